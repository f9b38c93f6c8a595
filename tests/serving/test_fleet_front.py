"""The front without Ray: forwarding, a lost replica, a full fleet, disconnects; and the fleet's options."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest
import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse

from lib.bench.paths import repository
from lib.serving.fleet import __main__ as fleet_command
from lib.serving.fleet.forwarding import ForwardedRequest, call_app, names_of
from lib.serving.fleet.front import FleetBusy, Front, ReplicaLost
from lib.serving.fleet.metrics import labelled
from lib.serving.fleet.options import FleetOptions, from_mapping, parse
from lib.serving.fleet.routing import LongestPrefix, PowerOfTwo

STREAM = {"content-type": "text/event-stream"}


def request_of(body=b"{}", path="/v1/completions", headers=()):
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return messages.pop() if messages else {"type": "http.disconnect"}

    scope = ForwardedRequest("POST", path, b"a=1", list(headers), b"").scope()
    return Request(scope, receive)


async def read(response):
    """(status, headers, body) as a client gets them."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        await asyncio.sleep(60)

    await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)
    body = b"".join(m.get("body", b"") for m in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), body


def ask(send, body=b"{}", **options):
    async def go():
        front = Front(send, **{"tries": 3, "max_body_bytes": 1000, **options})
        return await read(await front.answer(request_of(body)))

    return asyncio.run(go())


def app_of(response):
    return lambda request: call_app(response, request)


def test_a_whole_answer_comes_back_with_its_status_and_headers():
    answer = JSONResponse({"error": "no"}, 429, {"Retry-After": "7"})
    status, headers, body = ask(app_of(answer))
    assert (status, json.loads(body)) == (429, {"error": "no"})
    assert headers[b"retry-after"] == b"7" and int(headers[b"content-length"]) == len(body)


def test_the_application_sees_the_request():
    async def echo(scope, receive, send):
        request = Request(scope, receive)
        said = [request.method, request.url.path, request.url.query, dict(request.headers)]
        await JSONResponse([*said, (await request.body()).decode()])(scope, receive, send)

    async def go():
        front = Front(app_of(echo), 1, 1000)
        sent = [(b"x-key", b"k"), (b"connection", b"close"), (b"content-type", b"a/b")]
        return await read(await front.answer(request_of(b'{"prompt": 1}', "/p", sent)))

    _, _, body = asyncio.run(go())
    headers = {"x-key": "k", "content-type": "a/b"}  # not those of the connection
    assert json.loads(body) == ["POST", "/p", "a=1", headers, '{"prompt": 1}']


def test_a_stream_comes_in_parts_as_it_is_made():
    async def events():
        for i in range(3):
            yield f"data: {i}\n\n"

    status, headers, body = ask(app_of(StreamingResponse(events(), headers=STREAM)))
    assert status == 200 and body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert b"content-length" not in headers


class Replicas:
    """`send` for replicas of which the first ones are lost, each after so many messages."""

    def __init__(self, *lost_after, answer=None):
        self.lost_after, self.calls, self.closed = list(lost_after), 0, 0
        self.answer = answer or PlainTextResponse("fine")

    async def __call__(self, request):
        self.calls += 1
        after = self.lost_after.pop(0) if self.lost_after else None
        sent = 0
        try:
            async for message in call_app(self.answer, request):
                if sent == after:
                    raise ReplicaLost("it was killed")
                sent += 1
                yield message
        finally:
            self.closed += 1


def test_a_request_that_has_not_begun_goes_to_another_replica():
    replicas = Replicas(0, 1)
    assert ask(replicas)[0::2] == (200, b"fine")
    assert replicas.calls == 3
    status, headers, body = ask(Replicas(0, 0, 0))
    assert status == 503 and headers[b"retry-after"] == b"5"
    assert json.loads(body)["error"]["code"] == "replica_lost"


def test_a_stream_that_had_begun_ends_with_an_error():
    async def events():
        for i in range(9):
            yield f"data: {i}\n\n"

    replicas = Replicas(3, answer=StreamingResponse(events(), headers=STREAM))
    status, _, body = ask(replicas)
    first, second, error, done, rest = body.decode().split("\n\n")
    assert (status, first, second, done, rest) == (200, "data: 0", "data: 1", "data: [DONE]", "")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "replica_lost"
    assert (replicas.calls, replicas.closed) == (1, 1)


class Broken(Exception):
    """An error of the application."""


def failing(*messages, error):
    """`send` that yields ASGI messages and then raises."""

    async def send(request):
        for message in messages:
            yield message
        raise error

    return send


START = {"type": "http.response.start", "status": 200, "headers": []}
STREAM_START = {**START, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}


def part(body, more=True):
    return {"type": "http.response.body", "body": body, "more_body": more}


@pytest.mark.parametrize("messages", [[], [START]])
def test_an_error_before_the_answer_is_told_without_its_text(messages):
    status, _, body = ask(failing(*messages, error=Broken("secret")))
    assert status == 500 and b"secret" not in body
    assert json.loads(body)["error"]["code"] == "engine_error"


@pytest.mark.parametrize("error", [ReplicaLost("killed"), Broken("secret")])
@pytest.mark.parametrize("parts", [[part(b"ab", more=False)], [part(b"a"), part(b"b", more=False)]])
@pytest.mark.parametrize("start", [START, STREAM_START])
def test_an_answer_that_is_complete_stays_valid_whatever_comes_after(start, parts, error):
    assert ask(failing(start, *parts, error=error))[0::2] == (200, b"ab")


def test_an_error_in_a_stream_is_its_last_event():
    status, _, body = ask(failing(STREAM_START, part(b"data: 0\n\n"), error=Broken("secret")))
    first, error, done, rest = body.decode().split("\n\n")
    assert (status, first, done, rest) == (200, "data: 0", "data: [DONE]", "")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "engine_error"
    assert "secret" not in error


def test_what_is_no_stream_of_events_breaks_off_where_its_replica_is_lost():
    with pytest.raises(ReplicaLost):
        ask(failing(START, part(b"half"), error=ReplicaLost("killed")))


def test_a_full_fleet_says_when_to_come_again():
    async def full(request):
        raise FleetBusy("all replicas are full")
        yield

    status, headers, body = ask(full)
    assert (status, headers[b"retry-after"]) == (503, b"1")
    error = json.loads(body)["error"]
    assert error["code"] == "overloaded" and error["message"].startswith("all replicas are full")


def test_a_request_that_no_replica_begins_ends_with_504_and_is_given_up():
    given_up = []

    async def waits(request):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            given_up.append(request.path)
            raise
        yield

    status, _, body = ask(waits, timeout=0.05)
    assert status == 504 and given_up == ["/v1/completions"]
    assert json.loads(body)["error"]["code"] == "timeout"
    assert ask(app_of(PlainTextResponse("fine")), timeout=60)[0::2] == (200, b"fine")


def test_a_timeout_of_the_application_is_its_own_error():
    assert ask(failing(error=TimeoutError("inside")), timeout=60)[0] == 500


def test_a_body_that_is_too_large_goes_to_no_replica():
    replicas = Replicas()
    assert ask(replicas, body=b"x" * 1001)[0] == 413 and replicas.calls == 0


def test_a_client_that_goes_is_seen_by_the_application():
    seen = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        seen.append((await receive())["type"])

    async def go():
        messages = call_app(app, ForwardedRequest("GET", "/", b"", [], b""))
        await anext(messages)
        await anext(messages)
        await messages.aclose()

    asyncio.run(go())
    assert seen == ["http.disconnect"]


def test_an_error_of_the_application_is_raised():
    async def app(scope, receive, send):
        raise ZeroDivisionError("inside")

    async def go():
        async for _ in call_app(app, ForwardedRequest("GET", "/", b"", [], b"")):
            pass

    with pytest.raises(ZeroDivisionError, match="inside"):
        asyncio.run(go())


def body(**fields):
    return json.dumps(fields).encode()


def test_names_follow_the_prompt_whatever_form_it_has():
    ids = list(range(40))
    assert len(names_of(body(prompt=ids))) == 2 and names_of(body(prompt=[ids])) == names_of(body(prompt=ids))  # fmt: skip
    assert names_of(body(prompt=ids, cache_salt="x"))[0] != names_of(body(prompt=ids))[0]
    text = "word " * 40
    assert names_of(body(prompt=text)) == names_of(body(prompt=[text, "more"])) != []
    system = {"role": "system", "content": text}
    one, two = (
        names_of(body(messages=[system, {"role": "user", "content": c * 90}])) for c in "ab"
    )
    assert one[0] == two[0] and one[-1] != two[-1]
    assert names_of(body(messages=[system], tools=[{"name": "f" * 99}]))[0] != one[0]


@pytest.mark.parametrize(
    "raw",
    [b"", b"[1]", b"not json", b'{"prompt": 3}', b'{"prompt": []}', b'{"prompt": [1e99, 2]}',
     b'{"prompt": [1, "a", 2]}', b'{"prompt": [99999999999999999999, 1]}', b"\xff", b"null"],
)  # fmt: skip
def test_a_body_that_is_not_valid_has_no_names(raw):
    assert names_of(raw, block_size=1) == []


def test_the_options_are_flags_and_names_of_a_file():
    fleet, server = parse(["--replicas", "3", "--model", "m", "--port", "9", "--max-imbalance", "2"])  # fmt: skip
    assert (fleet.replicas, fleet.max_imbalance, server.port, server.llm["model"]) == (3, 2, 9, "m")
    assert isinstance(fleet.router(), LongestPrefix) and fleet.router().max_imbalance == 2
    fleet, server = from_mapping({"policy": "power_of_two", "model": "m", "max_num_seqs": 4})
    assert isinstance(fleet.router(), PowerOfTwo) and server.llm == {"model": "m", "max_num_seqs": 4}  # fmt: skip


@pytest.mark.parametrize(
    "given, message",
    [
        ({"replicas": 0}, "replicas must be an integer >= 1, got 0"),
        ({"replicas": "2"}, "replicas must be an integer >= 1, got '2'"),
        ({"replicas": True}, "replicas must be an integer >= 1, got True"),
        ({"replicas": 1.5}, "replicas must be an integer >= 1, got 1.5"),
        ({"replicas": None}, "replicas must be an integer >= 1, got None"),
        ({"max_replicas": 0}, "max_replicas must be an integer >= 1, got 0"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas must be >= replicas=3, got 2"),
        ({"policy": "random"}, "policy must be one of"),
        ({"target_requests": 0}, "target_requests must be a number > 0, got 0"),
        ({"cpus_per_replica": float("nan")}, "cpus_per_replica must be a number > 0, got nan"),
        ({"gpus_per_replica": float("inf")}, "gpus_per_replica must be a number >= 0, got inf"),
        ({"tries": 0}, "tries must be an integer >= 1, got 0"),
        ({"upscale_delay": 5}, "upscale_delay must be 30.0 unless max_replicas > replicas, got 5"),
        (
            {"replicas": 2, "max_replicas": 2, "target_requests": 3},
            "target_requests must be 16.0 unless",
        ),
        (
            {"policy": "round_robin", "min_match": 3},
            "min_match must be 2 unless policy is 'longest_prefix'",
        ),
        ({"drain_timeout": "30"}, "drain_timeout must be >= 0, got '30'"),
        ({"port": True}, "port must be >= 0 and <= 65535, got True"),
        ({"block_sise": 3}, "block_sise: no such option"),
        ({"block_size": 0}, "block_size"),
    ],
)
def test_bad_options_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        from_mapping(given)


def test_bad_options_end_the_command_with_a_message(capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(["--replicas", "0"])
    assert "replicas must be an integer >= 1, got 0" in capsys.readouterr().err


def test_defaults_are_valid():
    assert FleetOptions().router_options["policy"] == "longest_prefix"


def test_metrics_of_replicas_are_told_apart_and_each_metric_stays_together():
    texts = {
        name: f"# HELP a one\n# TYPE a counter\na {i}.0\n# HELP b two\n# TYPE b gauge\n"
        f'b{{le="+Inf",x="}} 1"}} {i}\n'
        for i, name in enumerate(("r", 's"t'))
    }
    assert labelled(texts).splitlines() == [
        "# HELP a one",
        "# TYPE a counter",
        'a{replica="r"} 0.0',
        'a{replica="s\\"t"} 1.0',
        "# HELP b two",
        "# TYPE b gauge",
        'b{replica="r",le="+Inf",x="} 1"} 0',
        'b{replica="s\\"t",le="+Inf",x="} 1"} 1',
    ]


def test_lines_that_belong_to_no_metric_are_left_out():
    assert labelled({"r": "# a comment\n# EOF\na 1\n"}) == 'a{replica="r"} 1\n'


def test_without_ray_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fleet", "--replicas", "2"])
    monkeypatch.setattr(fleet_command, "find_spec", lambda name: None)
    assert fleet_command.main() == 1
    assert "pip install -e '.[fleet]'" in capsys.readouterr().err


def test_the_config_file_has_valid_options_and_names_what_exists():
    text = (repository() / "lib" / "serving" / "fleet" / "serve.yaml").read_text()
    (application,) = yaml.safe_load(text)["applications"]
    fleet, server = from_mapping(application["args"])
    assert (fleet.replicas, server.llm["model"]) == (2, "smollm2")
    module, _, name = application["import_path"].partition(":")
    path = repository().joinpath(*module.split(".")).with_suffix(".py")
    assert f"def {name}(" in path.read_text()  # without importing Ray

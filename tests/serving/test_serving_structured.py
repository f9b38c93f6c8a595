"""Structured outputs and tools over HTTP, and schemas that are meant to hurt."""

from __future__ import annotations

import json
import threading
import time
from typing import Literal

import httpx
import pytest
from pydantic import BaseModel, ConfigDict

from lib.serving.tool_calls import CallStream, parse_answer
from tests.serving_support import sse, start, write_checkpoint

pytest_plugins = ["tests.serving_fixtures"]
pytest.importorskip("llguidance")

COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
COLOUR = {"enum": ["red", "green"]}
SCHEMA = {
    "type": "object",
    "properties": {"colour": COLOUR, "sure": {"type": "boolean"}},
    "required": ["colour", "sure"],
    "additionalProperties": False,
}


class Paint(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: Literal["red", "green"]
    sure: bool


class Pair(BaseModel):
    model_config = ConfigDict(extra="forbid")
    first: Paint
    second: Paint


def post(client: httpx.Client, route: str, body: dict) -> dict:
    response = client.post(route, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(
    ("kind", "accepts"),
    [
        ({"regex": "[a-f]{3}-[0-9]{2}"}, lambda t: t[3] == "-" and t[4:].isdecimal()),
        ({"choice": ["yes", "no"]}, lambda t: t in ("yes", "no")),
        ({"json": SCHEMA}, lambda t: Paint.model_validate_json(t)),
        ({"json": json.dumps(SCHEMA)}, lambda t: Paint.model_validate_json(t)),
        ({"grammar": 'start: "a" b\nb: "b" | "c"'}, lambda t: t in ("ab", "ac")),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
@pytest.mark.parametrize("route", [COMPLETION, CHAT])
def test_vllms_structured_outputs(client, route: str, kind: dict, accepts) -> None:
    body = {"prompt": "x"} if route == COMPLETION else {"messages": HELLO}
    body |= {"structured_outputs": kind, "n": 4, "seed": 1, "max_tokens": 60}
    choices = post(client, route, body)["choices"]
    for choice in choices:
        text = choice["text"] if route == COMPLETION else choice["message"]["content"]
        assert accepts(text) and choice["finish_reason"] == "stop"
    events = sse(client.post(route, json={**body, "stream": True}))[:-1]
    for choice in choices:
        parts = [c for e in events for c in e["choices"] if c["index"] == choice["index"]]
        if route == COMPLETION:
            assert "".join(p["text"] for p in parts) == choice["text"]
        else:
            text = "".join(p["delta"].get("content") or "" for p in parts)
            assert text == choice["message"]["content"]


def test_response_format(client) -> None:
    json_schema = {"name": "paint", "schema": SCHEMA, "strict": True}
    body = {"messages": HELLO, "seed": 3, "max_tokens": 100}
    formatted = {"type": "json_schema", "json_schema": json_schema}
    text = post(client, CHAT, {**body, "response_format": formatted})["choices"][0]["message"]
    assert Paint.model_validate_json(text["content"])
    free = {**body, "response_format": {"type": "json_object"}, "logit_bias": {"125": 8}}
    choice = post(client, CHAT, free)["choices"][0]
    assert choice["message"]["content"].startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_the_sdks_parse(ai) -> None:
    answer = ai.chat.completions.parse(
        model="tiny", messages=HELLO, response_format=Pair, seed=1, max_tokens=200
    )
    assert isinstance(answer.choices[0].message.parsed, Pair)


def tool(name: str, model: type[BaseModel]) -> dict:
    parameters = model.model_json_schema()
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("paint", Paint), tool("pair", Pair)]


def test_a_named_function_is_called(client, ai) -> None:
    body = {"messages": HELLO, "tools": TOOLS, "seed": 5, "max_tokens": 200}
    body["tool_choice"] = {"type": "function", "function": {"name": "pair"}}
    choice = post(client, CHAT, body)["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None and choice["finish_reason"] == "stop"
    assert call["type"] == "function" and call["function"]["name"] == "pair"
    assert Pair.model_validate_json(call["function"]["arguments"])
    arguments, names, ids = "", [], []
    for chunk in ai.chat.completions.create(model="tiny", stream=True, **body):
        for part in chunk.choices[0].delta.tool_calls or []:
            arguments += part.function.arguments
            names += [part.function.name] if part.function.name else []
            ids += [part.id] if part.id else []
    assert arguments == call["function"]["arguments"] and names == ["pair"] and len(ids) == 1


@pytest.mark.parametrize("parallel", [None, False])
def test_a_call_is_required(client, ai, parallel) -> None:
    body = {"messages": HELLO, "tools": TOOLS, "tool_choice": "required", "max_tokens": 900}
    body |= {"seed": 2, "logit_bias": {"93": 10}}  # "]", so that the list ends
    if parallel is not None:
        body["parallel_tool_calls"] = parallel
    choice = post(client, CHAT, body)["choices"][0]
    calls = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and (parallel is None or len(calls) == 1)
    models = {"paint": Paint, "pair": Pair}
    for call in calls:
        assert models[call["function"]["name"]].model_validate_json(call["function"]["arguments"])
    assert len({call["id"] for call in calls}) == len(calls)
    streamed = []
    for chunk in ai.chat.completions.create(model="tiny", stream=True, **body):
        for part in chunk.choices[0].delta.tool_calls or []:
            streamed.append((part.index, part.function.name, part.function.arguments))
        reason = chunk.choices[0].finish_reason
    assert reason == "tool_calls"
    expected = [c["function"] for c in calls]
    assert streamed == [(i, f["name"], f["arguments"]) for i, f in enumerate(expected)]


def test_a_call_that_was_cut_off_is_text(client) -> None:
    body = {"messages": HELLO, "tools": TOOLS, "tool_choice": "required", "max_tokens": 5}
    choice = post(client, CHAT, body)["choices"][0]
    assert choice["finish_reason"] == "length" and "tool_calls" not in choice["message"]
    assert choice["message"]["content"].startswith("[")


def test_tools_change_the_prompt_and_none_leaves_them_out(client) -> None:
    def length(**fields) -> int:
        body = {"messages": HELLO, "max_tokens": 1, **fields}
        return post(client, CHAT, body)["usage"]["prompt_tokens"]

    plain = length()
    assert length(tools=TOOLS, tool_choice="none") == plain
    assert length(tools=TOOLS, tool_choice="required") > plain


def test_results_of_tools_go_into_the_prompt(client) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "paint", "arguments": '{"a": 1}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ]
    assert post(client, CHAT, {"messages": messages, "max_tokens": 2})["choices"]


TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }} in <tool_call>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = r'Hm\. <tool_call>\n\{"name": "paint", "arguments": \{"sure": true\}\}\n</tool_call>'


@pytest.fixture(scope="module")
def with_tools(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("tools") / "tiny")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = TOOL_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with start(folder) as process, httpx.Client(base_url=process.url, timeout=30) as client:
        yield client


def test_the_model_may_decide_to_call(with_tools) -> None:
    """The random model would never write a call: a regular expression makes it."""
    body = {"messages": HELLO, "tools": TOOLS, "structured_outputs": {"regex": CALL}}
    choice = post(with_tools, CHAT, {**body, "max_tokens": 200})["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "Hm."
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "paint", "arguments": '{"sure": true}'}
    events = sse(with_tools.post(CHAT, json={**body, "max_tokens": 200, "stream": True}))[:-1]
    deltas = [e["choices"][0]["delta"] for e in events]
    assert "".join(d.get("content") or "" for d in deltas).strip() == "Hm."
    (streamed,) = [d["tool_calls"] for d in deltas if "tool_calls" in d]
    assert streamed[0]["function"] == call["function"]
    back = [*HELLO, choice["message"], {"role": "tool", "tool_call_id": "1", "content": "ok"}]
    post(with_tools, CHAT, {"messages": back, "tools": TOOLS, "max_tokens": 2})


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        ("no call at all", "no call at all", []),
        ('<tool_call>{"name": "f"}</tool_call>', None, ["f"]),
        ('a <tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n', "a", ["f"]),
        (
            '<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g"}</tool_call> b',
            "b",
            ["f", "g"],
        ),
        ('<tool_call>{"name": "f"}', None, ["f"]),
        ("a < b and <tool", "a < b and <tool", []),
        ("<tool_call>no JSON</tool_call>", "<tool_call>no JSON</tool_call>", []),
        ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
    ],
)
def test_calls_in_text(text: str, content: str | None, names: list[str], size: int) -> None:
    whole = parse_answer(text, "auto")
    assert whole.content == content and [c["function"]["name"] for c in whole.calls] == names
    stream, said, called = CallStream("auto"), "", []
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    for n, piece in enumerate(pieces):
        delta = stream.feed(piece, last=n == len(pieces) - 1)
        said += delta.get("content") or ""
        called += [c["function"]["name"] for c in delta.get("tool_calls", [])]
    assert (said.strip() or None) == content and called == names
    assert stream.called == bool(names)


def nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def doubling(depth: int) -> dict:
    """2^depth objects when written out."""
    definitions = {
        f"d{i}": {
            "type": "object",
            "properties": {k: {"$ref": f"#/$defs/d{i + 1}"} for k in "ab"},
            "required": ["a", "b"],
        }
        for i in range(depth)
    }
    return {"$defs": {**definitions, f"d{depth}": {"type": "string"}}, "$ref": "#/$defs/d0"}


ALTERNATIVES = {
    "allOf": [
        {"anyOf": [{"properties": {f"{side}{i}": {"type": "string"}}} for side in "pq"]}
        for i in range(16)
    ]
}
HOSTILE = {
    "nested 150": {"json": nested(150)},
    "nested 300": {"json": nested(300)},
    "doubling": {"json": doubling(30)},
    "alternatives": {"json": ALTERNATIVES},
    "only itself": {"json": {"$ref": "#"}},
    "each other": {
        "json": {
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
            "$ref": "#/$defs/a",
        }
    },
    "large": {"json": {"enum": ["x" * 100 + str(i) for i in range(9000)]}},
    "large text": {"json": '{"description": "' + "x" * 900_000 + '"}'},
    "multiple": {"json": {"type": "integer", "multipleOf": 999999937, "minimum": 1}},
    "pattern": {"json": {"type": "string", "pattern": "(.{1,500}x){1,500}"}},
    "no schema": {"json": {"type": 5}},
    "unknown keyword": {"json": {"type": "object", "unevaluatedProperties": False}},
    "subset": {"regex": "(a|b)*a(a|b){20}"},
    "repeated": {"regex": "(a{1000}){1000}"},
    "deep": {"regex": "(" * 3000 + ")" * 3000},
    "optional": {"regex": "a?" * 3000},
    "classes": {"regex": r"(\w|\d|[^x]){3000}"},
    "long": {"regex": "a" * 900_000},
    "unclosed": {"regex": "(a"},
    "look-ahead": {"regex": "a(?=b)"},
    "nothing": {"regex": "[^\\s\\S]"},
    "choices": {"choice": ["y" * 200 + str(i) for i in range(4000)]},
    "left recursion": {"grammar": 'start: a\na: a a | "x"'},
    "wide grammar": {"grammar": "start: /(a|b)*a(a|b){40}/"},
    "no grammar": {"grammar": "start: ("},
}
REFUSED = {
    "nested 150",
    "nested 300",
    "large",
    "large text",
    "no schema",
    "subset",
    "repeated",
    "deep",
    "optional",
    "classes",
    "long",
    "unclosed",
    "look-ahead",
    "nothing",
    "choices",
    "no grammar",
}
SECONDS = 20.0  # on a busy machine; each takes less than 3 on a quiet one


def test_hostile_schemas_end_soon_and_nothing_else_waits(client, server) -> None:
    """Each is refused with 400, or served. Meanwhile the server answers, and another request gets its tokens."""
    stop, gaps, problems = threading.Event(), [], []

    def neighbour() -> None:
        body = {"prompt": "Once", "max_tokens": 4, "ignore_eos": True}
        with httpx.Client(base_url=server.url, timeout=60) as other:
            while not stop.is_set():
                began = time.monotonic()
                if other.post(COMPLETION, json=body).status_code != 200:
                    problems.append("the neighbour failed")
                gaps.append(time.monotonic() - began)

    thread = threading.Thread(target=neighbour)
    thread.start()
    refused = set()
    try:
        for name, kind in HOSTILE.items():
            body = {"prompt": "x", "max_tokens": 3, "structured_outputs": kind}
            began = time.monotonic()
            response = client.post(COMPLETION, json=body, timeout=60)
            took = time.monotonic() - began
            assert response.status_code in (200, 400), (name, response.text)
            assert took < SECONDS, (name, took)
            if response.status_code == 400:
                refused.add(name)
                error = response.json()["error"]
                assert error["param"].startswith("structured_outputs"), (name, error)
                assert len(error["message"]) < 700, name
    finally:
        stop.set()
        thread.join()
    assert refused >= REFUSED, REFUSED - refused
    assert not problems and max(gaps) < SECONDS / 2, max(gaps)
    assert client.get("/health").status_code == 200
    assert not [line for line in server.log() if line.get("level") in ("error", "critical")]


def test_deeply_nested_tools_and_messages(client) -> None:
    deep = nested(300)
    function = {"name": "f", "parameters": deep}
    body = {
        "messages": HELLO,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "max_tokens": 3,
    }
    response = client.post(CHAT, json=body)
    assert response.status_code == 400, response.text
    assert client.get("/health").status_code == 200

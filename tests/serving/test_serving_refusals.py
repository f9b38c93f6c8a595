"""Bad input: 400 with OpenAI's error shape, the field and its range; and never a 5xx, whatever comes."""

from __future__ import annotations

import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.serving.validation_errors import describe

pytest_plugins = ["tests.serving_fixtures"]

COMPLETION, CHAT, GENERATE = "/v1/completions", "/v1/chat/completions", "/generate"
HELLO = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
JSON = {"type": "json_object"}

# route, body, field at fault, and what the message says of its range
BAD = [
    (COMPLETION, {}, "prompt", "required"),
    (COMPLETION, {"prompt": ""}, "prompt", "not empty"),
    (COMPLETION, {"prompt": []}, "prompt", "not empty"),
    (COMPLETION, {"prompt": ["a", ""]}, "prompt", "not empty"),
    (COMPLETION, {"prompt": [[1], []]}, "prompt", "not empty"),
    (COMPLETION, {"prompt": 5}, "prompt", "a string"),
    (COMPLETION, {"prompt": None}, "prompt", "a string"),
    (COMPLETION, {"prompt": [1.5]}, "prompt", "token ids"),
    (COMPLETION, {"prompt": [True]}, "prompt", "token ids"),
    (COMPLETION, {"prompt": [0, 259]}, "prompt", "< 259"),
    (COMPLETION, {"prompt": [-1]}, "prompt", ">= 0"),
    (COMPLETION, {"prompt": "a", "max_tokens": 2048}, "prompt", "<= 2048"),
    (COMPLETION, {"prompt": "a", "max_tokens": -1}, "max_tokens", ">= 0"),
    (CHAT, {"messages": HELLO, "max_tokens": 0}, "max_tokens", ">= 1"),
    (COMPLETION, {"prompt": "a", "max_tokens": "5"}, "max_tokens", "an integer"),
    (COMPLETION, {"prompt": "a", "max_tokens": 5.5}, "max_tokens", "an integer"),
    (COMPLETION, {"prompt": "a", "min_tokens": 17}, "min_tokens", "<= 16"),
    (COMPLETION, {"prompt": "a", "temperature": -1}, "temperature", ">= 0"),
    (COMPLETION, {"prompt": "a", "temperature": "hot"}, "temperature", "a number"),
    (COMPLETION, {"prompt": "a", "top_p": 2}, "top_p", ">= 0 and <= 1"),
    (COMPLETION, {"prompt": "a", "top_p": -0.1}, "top_p", ">= 0 and <= 1"),
    (COMPLETION, {"prompt": "a", "top_k": -2}, "top_k", ">= -1"),
    (COMPLETION, {"prompt": "a", "min_p": 1.1}, "min_p", ">= 0 and <= 1"),
    (COMPLETION, {"prompt": "a", "n": 0}, "n", ">= 1 and <= 128"),
    (COMPLETION, {"prompt": ["a"] * 3, "n": 128}, "n", "<= 256"),
    (COMPLETION, {"prompt": "a", "logprobs": 21}, "logprobs", ">= 0 and <= 20"),
    (COMPLETION, {"prompt": "a", "logprobs": True}, "logprobs", "an integer"),
    (COMPLETION, {"prompt": "a", "prompt_logprobs": -1}, "prompt_logprobs", ">= 0 and <= 20"),
    (COMPLETION, {"prompt": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", ">= 1"),
    (COMPLETION, {"prompt": "a", "seed": 2**64}, "seed", "<= 18446744073709551615"),
    (COMPLETION, {"prompt": "a", "stop": ""}, "stop", "1 to 256 characters"),
    (COMPLETION, {"prompt": "a", "stop": ["x"] * 17}, "stop", "at most 16"),
    (COMPLETION, {"prompt": "a", "stop_token_ids": [999]}, "stop_token_ids", "< 259"),
    (COMPLETION, {"prompt": "a", "presence_penalty": 3}, "presence_penalty", ">= -2 and <= 2"),
    (COMPLETION, {"prompt": "a", "repetition_penalty": 0}, "repetition_penalty", "> 0"),
    (COMPLETION, {"prompt": "a", "stream": "yes"}, "stream", "true or false"),
    (
        COMPLETION,
        {"prompt": "a", "stream_options": {"include_usage": True}},
        "stream_options",
        "stream",
    ),
    (
        COMPLETION,
        {"prompt": "a", "stream": True, "stream_options": {"other": 1}},
        "stream_options.other",
        "not supported",
    ),
    (COMPLETION, {"prompt": "a", "best_of": 2}, "best_of", "not supported"),
    (COMPLETION, {"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
    (COMPLETION, {"prompt": "a", "use_beam_search": True}, "use_beam_search", "not supported"),
    (COMPLETION, {"prompt": "a", "guided_json": {}}, "guided_json", "structured_outputs.json"),
    (COMPLETION, {"prompt": "a", "guided_regex": "a"}, "guided_regex", "structured_outputs.regex"),
    (COMPLETION, {"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias", "<= 100"),
    (COMPLETION, {"prompt": "a", "logit_bias": {"999": 1}}, "logit_bias", "< 259"),
    (COMPLETION, {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "an integer"),
    (COMPLETION, {"prompt": "a", "logit_bias": [1]}, "logit_bias", "an object"),
    (COMPLETION, {"prompt": "a", "bad_words": [""]}, "bad_words.0", "not empty"),
    (COMPLETION, {"prompt": "a", "bad_words": ["x" * 257]}, "bad_words.0", "at most 256"),
    (COMPLETION, {"prompt": "a", "bad_words": ["x"] * 129}, "bad_words", "at most 128 strings"),
    (COMPLETION, {"prompt": "a", "allowed_token_ids": [300]}, "allowed_token_ids", "< 259"),
    (COMPLETION, {"prompt": "a", "allowed_token_ids": []}, "allowed_token_ids", "at least 1"),
    (
        COMPLETION,
        {"prompt": "a", "structured_outputs": {}},
        "structured_outputs",
        "exactly one of json",
    ),
    (
        COMPLETION,
        {"prompt": "a", "structured_outputs": {"regex": "a", "choice": ["b"]}},
        "structured_outputs",
        "got regex, choice",
    ),
    (
        COMPLETION,
        {"prompt": "a", "structured_outputs": {"structural_tag": "{}"}},
        "structured_outputs.structural_tag",
        "not supported",
    ),
    (
        COMPLETION,
        {"prompt": "a", "structured_outputs": {"regex": "a"}, "ignore_eos": True},
        "ignore_eos",
        "structured_outputs",
    ),
    (
        CHAT,
        {
            "messages": HELLO,
            "structured_outputs": {"regex": "a"},
            "response_format": {"type": "json_object"},
        },
        "structured_outputs",
        "response_format",
    ),
    (
        CHAT,
        {"messages": HELLO, "response_format": {"type": "xml"}},
        "response_format.type",
        "json_schema",
    ),
    (
        CHAT,
        {"messages": HELLO, "response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "must be given",
    ),
    (
        CHAT,
        {
            "messages": HELLO,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x"}},
        },
        "response_format.json_schema.schema",
        "required",
    ),
    (
        CHAT,
        {
            "messages": HELLO,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "nothing"}},
            },
        },
        "structured_outputs",
        "json",
    ),
    (COMPLETION, {"prompt": "\ud800"}, "prompt", "a string"),
    (CHAT, {}, "messages", "required"),
    (CHAT, {"messages": []}, "messages", "not empty"),
    (CHAT, {"messages": ["hi"]}, "messages.0", "role"),
    (
        CHAT,
        {"messages": [{"role": "function", "content": "x"}]},
        "messages.0.role",
        "system, developer, user, assistant or tool, got 'function'",
    ),
    (CHAT, {"messages": [{"role": "user"}]}, "messages.0.content", "required"),
    (
        CHAT,
        {"messages": [*HELLO, {"role": "user", "content": None}]},
        "messages.1.content",
        "a string or a list of",
    ),
    (
        CHAT,
        {"messages": [{"role": "assistant", "content": "x", "weight": 1}]},
        "messages.0.weight",
        "not supported",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]},
        "messages.0.tool_call_id",
        "role tool",
    ),
    (
        CHAT,
        {
            "messages": [
                {
                    "role": "user",
                    "content": "x",
                    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": ""}}],
                }
            ]
        },
        "messages.0.tool_calls",
        "role assistant",
    ),
    (CHAT, {"messages": HELLO, "user": "u" * 129}, "user", "at most 128 characters"),
    (
        COMPLETION,
        {"prompt": "a", "stop_token_ids": [1, "x"]},
        "stop_token_ids.1",
        "an integer",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "messages.0.content",
        "text",
    ),
    (CHAT, {"messages": HELLO, "top_logprobs": 2}, "top_logprobs", "logprobs"),
    (
        CHAT,
        {"messages": HELLO, "logprobs": True, "top_logprobs": 21},
        "top_logprobs",
        ">= 0 and <= 20",
    ),
    (
        CHAT,
        {"messages": HELLO, "max_tokens": 1, "max_completion_tokens": 2},
        "max_completion_tokens",
        "max_tokens",
    ),
    (CHAT, {"messages": HELLO, "max_tokens": 2048}, "prompt", "<= 2048"),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 3000}]}, "prompt", "<= 2048"),
    (CHAT, {"messages": HELLO, "tools": TOOLS}, "tool_choice", "'required' and named"),
    (CHAT, {"messages": HELLO, "tools": TOOLS * 2, "tool_choice": "none"}, "tools", "different"),
    (CHAT, {"messages": HELLO, "tool_choice": "required"}, "tool_choice", "needs tools"),
    (CHAT, {"messages": HELLO, "tools": TOOLS, "tool_choice": "any"}, "tool_choice", "required"),
    (
        CHAT,
        {
            "messages": HELLO,
            "tools": TOOLS,
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
        "tool_choice",
        "one of the tools, got 'g'",
    ),
    (
        CHAT,
        {"messages": HELLO, "tools": TOOLS, "tool_choice": "required", "response_format": JSON},
        "tool_choice",
        "response_format",
    ),
    (CHAT, {"messages": HELLO, "functions": [{"name": "f"}]}, "functions", "tools"),
    (CHAT, {"messages": HELLO, "modalities": ["audio"]}, "modalities", "not supported"),
    (CHAT, {"messages": HELLO, "chat_template": "x"}, "chat_template", "not supported"),
    (
        CHAT,
        {"messages": HELLO, "chat_template_kwargs": {"tokenize": True}},
        "chat_template_kwargs",
        "'tokenize'",
    ),
    (
        CHAT,
        {"messages": HELLO, "continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        "add_generation_prompt",
    ),
    ("/tokenize", {}, "prompt", "prompt or messages"),
    ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt", "not both"),
    ("/tokenize", {"prompt": ""}, "prompt", "not empty"),
    ("/detokenize", {"tokens": [259]}, "tokens", "< 259"),
    ("/detokenize", {"tokens": "a"}, "tokens", "a list"),
    (GENERATE, {"prompt": "a", "max_tokens": 0}, "max_tokens", ">= 1"),
    (GENERATE, {"prompt": "a", "top_p": 0.5}, "top_p", "not supported"),
]


@pytest.mark.parametrize(
    ("route", "body", "field", "says"), BAD, ids=lambda v: v if isinstance(v, str) else ""
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_bad_fields(
    client: httpx.Client, route: str, body: dict, field: str, says: str, stream: bool
) -> None:
    if stream and (route not in (COMPLETION, CHAT) or "stream" in body or "stream_options" in body):
        pytest.skip("says itself whether it streams")
    response = post(client, route, json.dumps({**body, "stream": True} if stream else body))
    error = refusal(response, 400)
    assert error["param"] == field and field in error["message"] and says in error["message"]


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        ("{", "application/json", "not valid JSON"),
        ("", "application/json", "object"),
        ("[]", "application/json", "object"),
        ("null", "application/json", "object"),
        ("3", "application/json", "object"),
        ('{"prompt": "a"}', "text/plain", "Content-Type"),
        ('{"prompt": "a"}', "", "Content-Type"),
        ('{"prompt": "a"}', "application/x-www-form-urlencoded", "Content-Type"),
        ('{"prompt": "a", "temperature": NaN}', "application/json", "finite"),
        ('{"prompt": "a", "top_p": Infinity}', "application/json", "finite"),
        ("[" * 100_000, "application/json", "JSON"),
        (b'{"prompt": "\xff"}', "application/json", "JSON"),
        ('{"prompt": "a", "max_tokens": ' + "9" * 5000 + "}", "application/json", "JSON"),
    ],
)
def test_bad_bodies(client: httpx.Client, content, kind: str, says: str) -> None:
    assert says in refusal(post(client, COMPLETION, content, kind), 400)["message"]


def test_what_is_too_long_says_so_in_its_code(client: httpx.Client) -> None:
    body = {"prompt": "a" * 2000, "max_tokens": 100}
    error = refusal(client.post(COMPLETION, json=body), 400)
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")


def test_unknown_things(client: httpx.Client) -> None:
    error = refusal(client.post(COMPLETION, json={"model": "gpt-5", "prompt": "a"}), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    refusal(client.post(CHAT, json={"model": "gpt-5", "messages": HELLO}), 404)
    refusal(client.get("/v1/models/nope"), 404)
    refusal(client.get("/v1/embeddings"), 404)
    refusal(client.get("/static/../app.py"), 404)
    refusal(client.get("/static/%2e%2e/app.py"), 404)
    refusal(client.get(COMPLETION), 405)


def test_ranges_in_the_schema_are_those_of_the_engine(client: httpx.Client) -> None:
    """Each bound that /openapi.json states: what lies on it is served, what lies outside is refused."""
    schema = client.get("/openapi.json").json()["components"]["schemas"]["CompletionRequest"][
        "properties"
    ]
    checked = 0
    for field, known in schema.items():
        number = next(
            (k for k in known.get("anyOf", []) if k.get("type") in ("integer", "number")), {}
        )
        base = {"prompt": "a", "max_tokens": 4}
        for name, step in (("minimum", -1), ("maximum", 1)):
            bound = number.get(name)
            if bound is None or bound == 2**31 - 1 or abs(bound) >= 2**63:
                continue  # the widest that is an integer at all, or beyond what a float can tell apart
            bound = int(bound)  # OpenAPI's are floats
            served = client.post(COMPLETION, json={**base, field: bound})
            assert served.status_code == 200, (field, number, served.text)
            refusal(client.post(COMPLETION, json={**base, field: bound + step}), 400)
            checked += 1
    assert checked >= 14


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=6,
)
fields = st.sampled_from(
    [
        "prompt",
        "messages",
        "model",
        "max_tokens",
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "stop_token_ids",
        "logprobs",
        "top_logprobs",
        "echo",
        "stream",
        "stream_options",
        "min_tokens",
        "repetition_penalty",
        "user",
        "return_token_ids",
        "logit_bias",
        "bad_words",
        "allowed_token_ids",
        "prompt_logprobs",
        "response_format",
        "structured_outputs",
        "tools",
        "tool_choice",
        "truncate_prompt_tokens",
        "chat_template_kwargs",
        "metadata",
    ]
)


@settings(max_examples=150)
@given(
    route=st.sampled_from([COMPLETION, CHAT, GENERATE]),
    noise=st.dictionaries(fields, json_values, max_size=3),
)
def test_noise_is_never_a_server_error(server, route: str, noise: dict) -> None:
    base = {"messages": HELLO} if route == CHAT else {"prompt": "a"}
    with httpx.Client(base_url=server.url, timeout=30) as client:
        response = post(client, route, json.dumps({**base, "max_tokens": 2, **noise}))
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        refusal(response, response.status_code)


def test_after_all_that_the_server_is_well(client: httpx.Client, server) -> None:
    assert client.get("/health").status_code == 200
    assert not [line for line in server.log() if line.get("level") in ("error", "critical")]


def test_describe_shortens_values() -> None:
    message, param = describe(
        [{"type": "int_type", "loc": ("body", "n"), "input": "x" * 10_000, "msg": ""}],
        "application/json",
        {},
    )
    assert param == "n" and len(message) < 200


def post(
    client: httpx.Client, route: str, content, kind: str = "application/json"
) -> httpx.Response:
    return client.post(route, content=content, headers={"Content-Type": kind})


def refusal(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    for leak in ("Traceback", "/lib/", ".py", "site-packages", "0x"):
        assert leak not in response.text
    return error

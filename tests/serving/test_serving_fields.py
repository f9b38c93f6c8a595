"""Fields that clients of OpenAI's and vLLM's APIs send: which are accepted, and what each of them does."""

from __future__ import annotations

import httpx
import pytest

from lib import LLM, SamplingParams
from tests.serving_support import sse

pytest_plugins = ["tests.serving_fixtures"]

COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
END = 258  # <|im_end|>, the tiny model's EOS


@pytest.fixture(scope="module")
def engine(checkpoint) -> LLM:
    return LLM(checkpoint, device="cpu", attention="gather", num_blocks=65)


def post(client: httpx.Client, route: str, body: dict) -> dict:
    response = client.post(route, json=body)
    assert response.status_code == 200, response.text
    return response.json()


WITHOUT_EFFECT = {
    "store": True,
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "request_id": "x",
    "priority": 3,
    "user": "x",
}
NEUTRAL = {
    "logit_bias": {},
    "top_p": 1,
    "n": 1,
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "use_beam_search": False,
    "length_penalty": 1.0,
    "skip_special_tokens": True,
    "include_stop_str_in_output": False,
    "spaces_between_special_tokens": True,
    "logits_processors": None,
}
OF_COMPLETIONS = {"suffix": None, "best_of": 1, "echo": False, "logprobs": None}
OF_CHAT = {
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "logprobs": False,
    "top_logprobs": 0,
    "modalities": ["text"],
    "reasoning_effort": None,
    "functions": None,
    "chat_template_kwargs": {"enable_thinking": False},
}


@pytest.mark.parametrize(
    ("route", "fields"),
    [(COMPLETION, {**WITHOUT_EFFECT, **NEUTRAL, **OF_COMPLETIONS})]
    + [(CHAT, {**WITHOUT_EFFECT, **NEUTRAL, **OF_CHAT})],
)
def test_neutral_fields_change_nothing(client, route: str, fields: dict) -> None:
    body = {"prompt": "Once"} if route == COMPLETION else {"messages": HELLO}
    body |= {"max_tokens": 8, "seed": 1}
    plain = post(client, route, body)["choices"]
    assert post(client, route, {**body, **fields})["choices"] == plain
    for name, value in fields.items():
        assert post(client, route, {**body, name: value})["choices"] == plain, name
    stream = {"stream": True, "stream_options": {"include_obfuscation": False}}
    assert client.post(route, json={**body, **fields, **stream}).status_code == 200


def test_top_p_zero_takes_the_most_likely_token(client) -> None:
    body = {"prompt": "Once", "max_tokens": 8}
    greedy = post(client, COMPLETION, {**body, "temperature": 0})["choices"][0]["text"]
    assert post(client, COMPLETION, {**body, "top_p": 0})["choices"][0]["text"] == greedy


@pytest.mark.parametrize("prompt", ["Once upon a time", [5, 6, 7, 8]], ids=["text", "ids"])
@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("number", [0, 2])
def test_echo_with_logprobs(client, engine, prompt, max_tokens: int, number: int) -> None:
    body = {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "echo": True,
        "logprobs": number,
        "temperature": 0,
    }
    answer = post(client, COMPLETION, body)
    (choice,) = answer["choices"]
    (expected,) = engine.generate(
        [prompt],
        SamplingParams(
            temperature=0, max_tokens=max_tokens or 1, prompt_logprobs=number, logprobs=number
        ),
    )
    rows = [*expected.prompt_logprobs, *expected.logprobs[:max_tokens]]
    token_ids = [*expected.prompt_token_ids, *expected.token_ids[:max_tokens]]
    found = choice["logprobs"]
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(
        [row[i] for i, row in zip(token_ids[1:], rows[1:])], abs=1e-3
    )
    assert all(number <= len(row) <= number + 1 for row in found["top_logprobs"][1:])
    assert len(found["tokens"]) == len(token_ids) == len(found["text_offset"])
    assert found["text_offset"][:2] == [0, len(found["tokens"][0])]
    if isinstance(prompt, str):
        assert choice["text"].startswith(prompt)
    assert answer["usage"]["completion_tokens"] == max_tokens
    assert answer["usage"]["prompt_tokens"] == len(expected.prompt_token_ids)
    assert choice["finish_reason"] == "length"
    parts = [
        e["choices"][0]
        for e in sse(client.post(COMPLETION, json={**body, "stream": True}))
        if e != "[DONE]"
    ]
    assert "".join(part["text"] for part in parts) == choice["text"]
    for key in ("tokens", "text_offset"):
        streamed = sum((p["logprobs"][key] for p in parts if p["logprobs"]), [])
        assert streamed == found[key]


def test_nothing_is_generated_for_max_tokens_zero(client) -> None:
    answer = post(client, COMPLETION, {"prompt": ["ab", "cd"], "max_tokens": 0, "n": 2})
    assert [c["text"] for c in answer["choices"]] == [""] * 4
    assert answer["usage"]["completion_tokens"] == 0


def test_prompt_logprobs_of_both_routes(client, engine) -> None:
    body = {"prompt": [5, 6, 7], "max_tokens": 1, "prompt_logprobs": 3, "temperature": 0}
    found = post(client, COMPLETION, body)["choices"][0]["prompt_logprobs"]
    (expected,) = engine.generate(
        [[5, 6, 7]], SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=3)
    )
    assert found[0] is None
    for row, known in zip(found[1:], expected.prompt_logprobs[1:], strict=True):
        values = {int(i): entry["logprob"] for i, entry in row.items()}
        assert values == pytest.approx(known, abs=1e-3)
        ranks = [entry["rank"] for entry in row.values() if entry["rank"] is not None]
        assert sorted(ranks) == [1, 2, 3]
    chat = post(client, CHAT, {"messages": HELLO, "max_tokens": 1, "prompt_logprobs": 0})
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]


def test_echo_and_prompt_logprobs_may_ask_for_different_numbers(client) -> None:
    body = {"prompt": "abcd", "max_tokens": 1, "echo": True, "logprobs": 1, "prompt_logprobs": 4}
    (choice,) = post(client, COMPLETION, body)["choices"]
    assert all(len(row) <= 2 for row in choice["logprobs"]["top_logprobs"][1:])
    assert all(len(row) >= 4 for row in choice["prompt_logprobs"][1:])


def test_logit_bias_allowed_tokens_and_bad_words(client) -> None:
    body = {"prompt": "Once", "max_tokens": 4, "temperature": 0, "return_token_ids": True}
    biased = post(client, COMPLETION, {**body, "logit_bias": {"65": 100}})["choices"][0]
    assert biased["token_ids"] == [65] * 4
    allowed = post(client, COMPLETION, {**body, "allowed_token_ids": [70, 71]})["choices"][0]
    assert set(allowed["token_ids"]) <= {70, 71}
    both = {**body, "logit_bias": {"65": 100}, "bad_words": ["A"]}
    assert 65 not in post(client, COMPLETION, both)["choices"][0]["token_ids"]


def test_the_end_may_be_part_of_the_text(client) -> None:
    body = {"prompt": "Once", "max_tokens": 20, "structured_outputs": {"regex": "abcdef"}}
    stop = {**body, "stop": ["zz", "cd"]}
    assert post(client, COMPLETION, stop)["choices"][0]["text"] == "ab"
    with_stop = {**stop, "include_stop_str_in_output": True}
    assert post(client, COMPLETION, with_stop)["choices"][0]["text"] == "abcd"
    at_the_end = {**body, "stop": "ef"}  # by the token that completes the structured output
    assert post(client, COMPLETION, at_the_end)["choices"][0]["text"] == "abcd"
    forced = {"prompt": "a", "max_tokens": 3, "temperature": 0, "logit_bias": {str(END): 100}}
    shown = {"skip_special_tokens": False, "include_stop_str_in_output": True}
    assert post(client, COMPLETION, forced)["choices"][0]["text"] == ""
    assert post(client, COMPLETION, {**forced, **shown})["choices"][0]["text"] == "<|im_end|>"
    hidden = {**forced, "skip_special_tokens": False}
    assert post(client, COMPLETION, hidden)["choices"][0]["text"] == ""


def test_truncated_prompts_keep_their_end(client) -> None:
    body = {"max_tokens": 4, "temperature": 0, "echo": True, "return_token_ids": True}
    whole = post(client, COMPLETION, {**body, "prompt": "upon"})
    cut = post(client, COMPLETION, {**body, "prompt": "Once upon", "truncate_prompt_tokens": 4})
    assert cut["choices"] == whole["choices"] and cut["usage"] == whole["usage"]


def test_tokens_may_be_named_by_their_ids(client) -> None:
    body = {"prompt": [70], "max_tokens": 2, "logprobs": 1, "return_tokens_as_token_ids": True}
    (choice,) = post(client, COMPLETION, {**body, "return_token_ids": True})["choices"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in choice["token_ids"]]
    assert all(k.startswith("token_id:") for row in choice["logprobs"]["top_logprobs"] for k in row)


def test_tokenize_and_detokenize(client) -> None:
    found = post(client, "/tokenize", {"prompt": "Hi <|im_end|>", "return_token_strs": True})
    assert found["count"] == len(found["tokens"]) == 4 and found["tokens"][-1] == END
    assert found["token_strs"] == ["H", "i", " ", "<|im_end|>"] and found["max_model_len"] > 0
    assert post(client, "/detokenize", {"tokens": found["tokens"]})["prompt"] == "Hi <|im_end|>"
    assert post(client, "/detokenize", {"tokens": []})["prompt"] == ""
    chat = post(client, "/tokenize", {"messages": HELLO})
    assert chat["token_strs"] is None
    usage = post(client, CHAT, {"messages": HELLO, "max_tokens": 1})["usage"]
    assert chat["count"] == usage["prompt_tokens"]
    open_turn = {"messages": HELLO, "add_generation_prompt": False}
    assert post(client, "/tokenize", open_turn)["count"] < chat["count"]


def test_earlier_tool_calls_are_tokenized_as_the_chat_route_does(client) -> None:
    function = {"name": "paint", "arguments": '{"colour": "red"}'}
    call = {"id": "1", "type": "function", "function": function}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    messages = [*HELLO, said, {"role": "tool", "tool_call_id": "1", "content": "done"}]
    tokens = post(client, "/tokenize", {"messages": messages})["tokens"]
    text = post(client, "/detokenize", {"tokens": tokens})["prompt"]
    assert "<tool_call>" in text and "paint" in text  # this template does not know calls
    usage = post(client, CHAT, {"messages": messages, "max_tokens": 1})["usage"]
    assert len(tokens) == usage["prompt_tokens"]


def test_a_final_message_can_be_continued(client) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Well, I"}]
    body = {"messages": messages, "continue_final_message": True}
    tokens = post(client, "/tokenize", body)["tokens"]
    assert post(client, "/detokenize", {"tokens": tokens})["prompt"].endswith("assistant\nWell, I")
    post(client, CHAT, {**body, "max_tokens": 2})


def test_an_answer_can_be_sent_back_as_it_came(ai) -> None:
    """What the openai package's model_dump() gives: null for all that an answer may have."""
    first = ai.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4)
    said = first.choices[0].message.model_dump()
    assert None in said.values()
    history = [*HELLO, said, {"role": "user", "content": "and?", "name": "me"}]
    assert ai.chat.completions.create(model="tiny", messages=history, max_tokens=4).choices


@pytest.mark.parametrize(
    ("message", "same_as"),
    [
        ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        ({"role": "assistant", "refusal": "no"}, {"role": "assistant", "content": "no"}),
        (
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
                    {"type": "text", "text": "b"},
                ],
            },
            {"role": "user", "content": "a\nb"},
        ),
    ],
)
def test_messages_of_all_forms(client, message: dict, same_as: dict) -> None:
    found, expected = (
        post(client, "/tokenize", {"messages": [m, *HELLO]}) for m in (message, same_as)
    )
    assert found == expected


def test_usage_counts_cached_tokens(client) -> None:
    body = {"prompt": [9] * 40, "max_tokens": 1, "cache_salt": "only here"}
    first, second = (post(client, COMPLETION, body)["usage"] for _ in range(2))
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    assert second["prompt_tokens_details"]["cached_tokens"] == 32
    scored = post(client, COMPLETION, {**body, "prompt_logprobs": 0})["usage"]
    assert scored["prompt_tokens_details"] == {"cached_tokens": 0}

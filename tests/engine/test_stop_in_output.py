"""What ended a text as a part of it: SamplingParams.include_stop_str_in_output and skip_special_tokens."""

from __future__ import annotations

import pytest

from lib import SamplingParams

GREEDY = dict(temperature=0, max_tokens=20)


def test_a_stop_string_is_the_end_of_the_text(texty) -> None:
    engine = texty.engine()
    (whole,) = engine.generate([[3, 4, 5]], SamplingParams(ignore_eos=True, **GREEDY))
    stop = whole.text[4:6]
    (before,) = engine.generate([[3, 4, 5]], SamplingParams(ignore_eos=True, stop=stop, **GREEDY))
    asked = SamplingParams(ignore_eos=True, stop=stop, include_stop_str_in_output=True, **GREEDY)
    (after,) = engine.generate([[3, 4, 5]], asked)
    assert after.text == before.text + stop and after.token_ids == before.token_ids
    assert "".join(chunk.text for chunk in engine.stream([3, 4, 5], asked)) == after.text


def test_the_token_of_a_stop_id_is_text_too(texty) -> None:
    engine = texty.engine()
    (whole,) = engine.generate([[3, 4, 5]], SamplingParams(ignore_eos=True, **GREEDY))
    last = whole.token_ids[3]
    (before,) = engine.generate([[3, 4, 5]], SamplingParams(stop_token_ids=[last], **GREEDY))
    asked = SamplingParams(stop_token_ids=[last], include_stop_str_in_output=True, **GREEDY)
    (after,) = engine.generate([[3, 4, 5]], asked)
    assert before.token_ids == after.token_ids and before.finish_reason == "stop"
    assert after.text.startswith(before.text)
    assert after.text[len(before.text) :].strip() == engine.tokenizer.decode([last])
    streamed = [chunk.text for chunk in engine.stream([3, 4, 5], asked)]
    assert "".join(streamed) == after.text


@pytest.mark.parametrize("name", ["skip_special_tokens", "include_stop_str_in_output"])
def test_both_are_true_or_false(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be True or False, got 1"):
        SamplingParams(**{name: 1})

"""SamplingParams refuses what it cannot mean, and says which field, what value, which range."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
import pytest

from lib import SamplingParams

NAN, INF = math.nan, math.inf
BAD = {
    "n": ([0, -1, 129, 1.0, 1.5, "2", None, True, NAN, [1]], ">= 1 and <= 128"),
    "max_tokens": ([0, -5, 2.0, "16", None, False, NAN], ">= 1"),
    "min_tokens": ([-1, 17, 1.0, "0", None, True], ">= 0 and <= 16"),
    "temperature": ([-0.1, -1, NAN, INF, -INF, "1", None, True, 10**400, 1j, [1.0]], ">= 0"),
    "top_k": ([-2, 1.0, "5", None, True, NAN], ">= -1"),
    "top_p": ([0, 0.0, -0.1, 1.0001, 2, NAN, INF, "0.9", None, False], "> 0.0 and <= 1.0"),
    "min_p": ([-0.1, 1.1, NAN, "0", None, True], ">= 0.0 and <= 1.0"),
    "seed": ([1.0, "42", True, NAN, -(2**63) - 1, 2**64], ">= "),
    "stop": ([3, [3], ["a", None], {"a"}, b"a", [b"a"]], "list of str"),
    "stop_token_ids": ([3, "3", ["3"], [1.0], [None], [True]], "list of int"),
    "ignore_eos": ([0, 1, "yes", None], "True or False"),
    "include_stop_str_in_output": ([0, 1, "yes", None], "True or False"),
    "skip_special_tokens": ([0, 1, "no", None], "True or False"),
    "logprobs": ([-1, 21, 1.0, "5", True, NAN], ">= 0 and <= 20"),
    "prompt_logprobs": ([-1, 21, 1.0, "5", True, NAN], ">= 0 and <= 20"),
    "repetition_penalty": ([0, 0.0, -1, NAN, INF, "1", None, True], "> 0"),
    "presence_penalty": ([-2.1, 2.1, NAN, "1", None, False], ">= -2.0 and <= 2.0"),
    "frequency_penalty": ([-2.1, 2.1, NAN, INF, "1", None], ">= -2.0 and <= 2.0"),
    "logit_bias": ([[3], "3", 5], "a dict {token id: bias} or None"),
    "bad_words": (["a", [3], {"a"}], "list of str"),
    "allowed_token_ids": ([3, "3", ["3"], [1.0], [True]], "list of int"),
    "structured_outputs": (
        ["json", {}, {"json": {}, "regex": "a"}, {"yaml": "a"}, []],
        "a dict with one of the keys ['json', 'regex', 'choice', 'grammar']",
    ),
}


def test_every_field_is_covered():
    assert set(BAD) == set(SamplingParams.__dataclass_fields__)


@pytest.mark.parametrize(
    "field, value, allowed", [(f, v, text) for f, (values, text) in BAD.items() for v in values]
)
def test_invalid_values_are_refused(field, value, allowed):
    with pytest.raises(ValueError) as error:
        SamplingParams(**{field: value})
    message = str(error.value)
    assert re.match(rf"{field}\b", message)
    assert allowed in message
    assert f"got {value!r}" in message


@pytest.mark.parametrize("value", ["", [""], ["a", ""]])
def test_an_empty_stop_string_would_stop_everything(value):
    with pytest.raises(ValueError, match="stop must not contain the empty string"):
        SamplingParams(stop=value)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("logit_bias", {-1: 1.0}, "logit_bias must be >= 0, got -1"),
        ("logit_bias", {"x": 1.0}, "logit_bias must be an integer >= 0, got 'x'"),
        ("logit_bias", {3: 101}, "logit_bias must be >= -100.0 and <= 100.0, got 101"),
        ("logit_bias", {3: NAN}, "logit_bias must be a finite number"),
        ("bad_words", ["a", " "], "bad_words must not contain empty strings"),
        ("allowed_token_ids", [], "allowed_token_ids must be a list of token ids"),
        ("allowed_token_ids", [3, -1], "allowed_token_ids must be a list of token ids"),
        ("structured_outputs", {"json": 3}, "json must be of type dict or str or bool, got 3"),
        ("structured_outputs", {"json": False}, "json must be of type dict or str or bool"),
        ("structured_outputs", {"regex": None}, "regex must be of type str, got None"),
        ("structured_outputs", {"choice": []}, "choice must be a list of strings, not empty"),
        ("structured_outputs", {"choice": ["a", ""]}, "choice must be a list of strings"),
    ],
)
def test_invalid_contents_are_refused(field, value, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        SamplingParams(**{field: value})
    assert refused.value.param == field


def test_structured_outputs_end_where_the_text_does():
    with pytest.raises(ValueError, match="ignore_eos must be False with structured_outputs"):
        SamplingParams(structured_outputs={"regex": "a"}, ignore_eos=True)


def test_a_negative_stop_id_is_refused():
    with pytest.raises(ValueError, match="stop_token_ids must be >= 0, got -1"):
        SamplingParams(stop_token_ids=[3, -1])


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=2)


@pytest.mark.parametrize(
    "good",
    [
        {},
        dict(n=128),
        dict(max_tokens=10**6),
        dict(max_tokens=5, min_tokens=5),
        dict(temperature=0),
        dict(temperature=0.0),
        dict(temperature=Fraction(1, 2)),
        dict(temperature=np.float32(0.5)),
        dict(top_k=-1),
        dict(top_k=0),
        dict(top_k=np.int64(4)),
        dict(top_p=1),
        dict(top_p=1e-9),
        dict(min_p=1.0),
        dict(seed=0),
        dict(seed=-(2**63)),
        dict(seed=2**64 - 1),
        dict(stop="x"),
        dict(stop=["x", "yy"]),
        dict(stop=("x",)),
        dict(stop_token_ids=[0]),
        dict(stop_token_ids=()),
        dict(logprobs=0),
        dict(logprobs=20),
        dict(repetition_penalty=0.01),
        dict(presence_penalty=-2),
        dict(frequency_penalty=2.0),
        dict(ignore_eos=True),
    ],
)
def test_the_borders_of_the_ranges_are_inside(good):
    params = SamplingParams(**good)
    assert isinstance(params.stop, list) and isinstance(params.stop_token_ids, list)


def test_the_callers_lists_are_not_kept():
    stop, ids = ["a"], [1]
    params = SamplingParams(stop=stop, stop_token_ids=ids)
    stop.append("b"), ids.append(2)
    assert params.stop == ["a"] and params.stop_token_ids == [1]

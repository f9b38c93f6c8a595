"""How the tokens of a request are chosen, and when it ends. Introduced in chapter 1."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from lib.core.errors import InvalidRequest

MAX_LOGPROBS = 20
# What structured_outputs may ask for, and the type of each.
STRUCTURED = {
    "json": (dict, str, bool),
    "regex": (str,),
    "choice": (list, tuple),
    "grammar": (str,),
}
_LARGEST = 3.4e38  # float32, in which the sampler computes


@dataclass
class SamplingParams:
    """Sampling controls of one request. Names and meaning as in vLLM and the OpenAI API.

    n: completions of the prompt. max_tokens, min_tokens: bounds of the output length in tokens.
    temperature: 0 is argmax; top_k (0 or -1: all), top_p, min_p: which candidates stay. top_k keeps
    exactly k: of several tokens with the k-th largest logit, some are cut off (vLLM keeps them all).
    seed: same seed, same text, whatever else is in the batch. stop: string or strings that end the
    text and are not part of it; stop_token_ids: ids that end it, beside the model's EOS ids.
    min_tokens: stop ids are not sampled before, and a stop string counts if its last character
    comes from a later token, wherever it begins; the text ends before it (as in vLLM).
    ignore_eos: run past EOS ids. logprobs: also return the log-probabilities of that many most
    likely tokens (0: of the sampled one only), from the model's unmodified distribution.
    prompt_logprobs: the same for each token of the prompt but the first, given the tokens before it.
    repetition_penalty divides (> 1) the logits of tokens seen in prompt or output (Keskar et al. 2019);
    presence_penalty is subtracted once, frequency_penalty once per occurrence, for tokens of the output.

    logit_bias: {token id: number from -100 to 100} added to the logits. bad_words: strings that the
    output must not contain, as tokens: the last token of each is not sampled after the others.
    allowed_token_ids: only these are sampled. structured_outputs: only texts of a
    form, given as exactly one of {"json": a JSON schema as dict or text, or True for any JSON object},
    {"regex": ...}, {"choice": [...]}, {"grammar": in Lark's syntax}; the text ends where it is complete.
    skip_special_tokens: leave special tokens such as EOS out of the text. include_stop_str_in_output:
    the stop string that ended the text, or the token of the id that did, is part of the text.

    Raises InvalidRequest, a ValueError with the field's name in `param`, for anything else; the
    message names field, value and allowed range.
    """

    n: int = 1
    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    structured_outputs: dict[str, Any] | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        _integer("n", self.n, 1, 128)
        _integer("max_tokens", self.max_tokens, 1)
        _integer("min_tokens", self.min_tokens, 0, self.max_tokens)
        _number("temperature", self.temperature, 0.0)
        _integer("top_k", self.top_k, -1)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**64 - 1)
        self.stop = (
            [self.stop] if isinstance(self.stop, str) else _list("stop", self.stop, str, "str")
        )
        if any(s == "" for s in self.stop):
            raise InvalidRequest("stop must not contain the empty string, got ''", param="stop")
        self.stop_token_ids = [
            int(i) for i in _list("stop_token_ids", self.stop_token_ids, Integral, "int")
        ]
        for token_id in self.stop_token_ids:
            _integer("stop_token_ids", token_id, 0)
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(value := getattr(self, name), bool):
                raise InvalidRequest(f"{name} must be True or False, got {value!r}", param=name)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            _integer("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        _number("repetition_penalty", self.repetition_penalty, 0.0, open_low=True)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        self.logit_bias = _biases(self.logit_bias)
        self.bad_words = _list("bad_words", self.bad_words, str, "str")
        if any(not word.strip() for word in self.bad_words):
            raise InvalidRequest(
                f"bad_words must not contain empty strings, got {self.bad_words!r}",
                param="bad_words",
            )
        if self.allowed_token_ids is not None:
            ids = _list("allowed_token_ids", self.allowed_token_ids, Integral, "int")
            self.allowed_token_ids = [int(i) for i in ids]
            if not ids or min(ids) < 0:
                raise InvalidRequest(
                    "allowed_token_ids must be a list of token ids >= 0 that is not empty, or "
                    f"None, got {self.allowed_token_ids!r}",
                    param="allowed_token_ids",
                )
        self._check_structured_outputs()

    def _check_structured_outputs(self) -> None:
        given = self.structured_outputs
        if given is None:
            return
        if not isinstance(given, dict) or len(given) != 1 or not given.keys() <= STRUCTURED.keys():
            raise InvalidRequest(
                f"structured_outputs must be None or a dict with one of the keys {list(STRUCTURED)}, "
                f"got {given!r}",
                param="structured_outputs",
            )
        ((kind, value),) = given.items()
        types = STRUCTURED[kind]
        if not isinstance(value, types) or (kind == "json" and value is False):
            names = " or ".join(t.__name__ for t in types)
            raise InvalidRequest(
                f"structured_outputs.{kind} must be of type {names}, got {value!r}",
                param="structured_outputs",
            )
        if kind == "choice" and (not value or not all(isinstance(c, str) and c for c in value)):
            raise InvalidRequest(
                "structured_outputs.choice must be a list of strings, not empty, without empty "
                f"strings, got {value!r}",
                param="structured_outputs",
            )
        if self.ignore_eos:
            raise InvalidRequest(
                "ignore_eos must be False with structured_outputs, which end where the text is "
                "complete, got True",
                param="ignore_eos",
            )

    @property
    def greedy(self) -> bool:
        return (
            self.temperature < 1e-5
        )  # below this the division overflows, and argmax is what it tends to

    @property
    def has_penalties(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (
            1.0,
            0.0,
            0.0,
        )


def _range(low: float, high: float | None, open_low: bool = False) -> str:
    left = f"{'>' if open_low else '>='} {low}"
    return left if high is None else f"{left} and <= {high}"


def _integer(name: str, value: object, low: int, high: int | None = None) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InvalidRequest(
            f"{name} must be an integer {_range(low, high)}, got {value!r}", param=name
        )
    if value < low or (high is not None and value > high):
        raise InvalidRequest(f"{name} must be {_range(low, high)}, got {value!r}", param=name)


def _number(
    name: str, value: object, low: float, high: float | None = None, open_low: bool = False
) -> None:
    if (
        not isinstance(value, Real) or isinstance(value, bool) or not -_LARGEST <= value <= _LARGEST
    ):  # NaN is not
        raise InvalidRequest(
            f"{name} must be a finite number {_range(low, high, open_low)}, got {value!r}",
            param=name,
        )
    if value < low or (open_low and value == low) or (high is not None and value > high):
        raise InvalidRequest(
            f"{name} must be {_range(low, high, open_low)}, got {value!r}", param=name
        )


def _list(name: str, value: object, kind: type, kind_name: str) -> list:
    if value is None:
        return []
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(v, kind) and not isinstance(v, bool) for v in value
    ):
        raise InvalidRequest(f"{name} must be a list of {kind_name}, got {value!r}", param=name)
    return list(value)


def _biases(value: object) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"logit_bias must be a dict {{token id: bias}} or None, got {value!r}",
            param="logit_bias",
        )
    biases = {}
    for token, bias in value.items():
        # JSON has strings as keys.
        token = int(token) if isinstance(token, str) and token.isdecimal() else token
        _integer("logit_bias", token, 0)
        _number("logit_bias", bias, -100.0, 100.0)
        biases[int(token)] = float(bias)
    return biases

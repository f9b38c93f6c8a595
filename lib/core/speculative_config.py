"""Options of speculative decoding: `LLM(speculative_config={"method": "ngram", ...})`.

Introduced in chapter 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

METHODS = ("ngram", "early_exit", "draft_model")

DRAFT_SAMPLE_METHODS = ("greedy", "probabilistic")

# Options that belong to some methods. All others go with every method.
_METHODS_OF = {
    "prompt_lookup_min": ("ngram",),
    "prompt_lookup_max": ("ngram",),
    "draft_layers": ("early_exit",),
    "model": ("draft_model",),
    "draft_sample_method": ("early_exit", "draft_model"),
}
_REQUIRED = {"early_exit": "draft_layers", "draft_model": "model"}


@dataclass(frozen=True)
class SpeculativeConfig:
    """How drafts are made, and how many tokens they have. Names are vLLM's where it has the option.

    method: "ngram" copies what followed an earlier occurrence of the sequence's last tokens;
    "early_exit" drafts with the model's first layers; "draft_model" drafts with another checkpoint.
    num_speculative_tokens: most draft tokens per request and step, at least 1.
    prompt_lookup_min, prompt_lookup_max (ngram): shortest and longest suffix that is looked up, in
    tokens.
    draft_layers (early_exit): number of layers that draft.
    model (draft_model): the checkpoint, as `LLM(model=...)` takes it.
    draft_sample_method (early_exit, draft_model): "greedy" drafts the most likely tokens; with the
    same seed the output is that of the engine without drafts, up to rounding. "probabilistic"
    samples drafts where temperature > 0, and verifies them by rejection sampling: the output has
    the same distribution, but which text a seed gives depends on the drafts, and so on the batch.
    adaptive: choose the number of draft tokens from measured costs and each request's acceptance;
    False: always num_speculative_tokens, where there is room.

    Raises ValueError, naming the option, its value and what is allowed. `from_dict` also refuses
    options of another method. What depends on the model is checked when the engine is built.
    """

    method: str
    num_speculative_tokens: int = 4
    prompt_lookup_min: int = 2
    prompt_lookup_max: int = 4
    draft_layers: int | None = None
    model: str | Path | None = None
    draft_sample_method: str = "greedy"
    adaptive: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise _error("method", f"must be one of {list(METHODS)}", self.method)
        for name in ("num_speculative_tokens", "prompt_lookup_min", "prompt_lookup_max"):
            _check_at_least_1(name, getattr(self, name))
        if self.prompt_lookup_min > self.prompt_lookup_max:
            limit = f"must be <= prompt_lookup_max {self.prompt_lookup_max}"
            raise _error("prompt_lookup_min", limit, self.prompt_lookup_min)
        if (name := _REQUIRED.get(self.method)) and getattr(self, name) is None:
            raise _error(name, f"must be given with method {self.method!r}", None)
        if self.draft_layers is not None:
            _check_at_least_1("draft_layers", self.draft_layers)
        if self.model is not None and not isinstance(self.model, (str, Path)):
            raise _error("model", "must be a name or a path", self.model)
        if self.draft_sample_method not in DRAFT_SAMPLE_METHODS:
            limit = f"must be one of {list(DRAFT_SAMPLE_METHODS)}"
            raise _error("draft_sample_method", limit, self.draft_sample_method)
        if not isinstance(self.adaptive, bool):
            raise _error("adaptive", "must be True or False", self.adaptive)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> SpeculativeConfig:
        """The config that a user's dict describes."""
        if "method" not in options:
            raise _error("method", f"must be one of {list(METHODS)}", None)
        method = options["method"]
        if method not in METHODS:
            raise _error("method", f"must be one of {list(METHODS)}", method)
        names = [f.name for f in fields(cls)]
        known = [name for name in names if method in _METHODS_OF.get(name, METHODS)]
        for name, value in options.items():
            if method not in (methods := _METHODS_OF.get(name, METHODS)):
                those = " and ".join(map(repr, methods))
                only = f"is an option of method {those} and must not be given with {method!r}"
                raise _error(name, only, value)
            if name not in names:
                raise ValueError(
                    f"speculative_config may have the options {known} with method {method!r}, "
                    f"got {name!r}"
                )
        given = dict(options)
        if "prompt_lookup_max" in given and "prompt_lookup_min" not in given:
            # One of the two alone leaves the other's default, unless they would cross.
            longest = given["prompt_lookup_max"]
            _check_at_least_1("prompt_lookup_max", longest)
            given["prompt_lookup_min"] = min(longest, cls.prompt_lookup_min)
        if "prompt_lookup_min" in given and "prompt_lookup_max" not in given:
            shortest = given["prompt_lookup_min"]
            _check_at_least_1("prompt_lookup_min", shortest)
            given["prompt_lookup_max"] = max(shortest, cls.prompt_lookup_max)
        return cls(**given)


def _check_at_least_1(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _error(name, "must be an integer >= 1", value)


def _error(name: str, limit: str, value: Any) -> ValueError:
    return ValueError(f"speculative_config.{name} {limit}, got {value!r}")

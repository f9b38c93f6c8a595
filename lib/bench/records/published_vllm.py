"""vLLM's published figures from the card of the published engine, as one checked object.

The vLLM version, the dtype and the prompt of the batch sweep are not stated in the source. `PublishedVllm.caveat` says
so, and belongs wherever one of these numbers is shown.

Introduced in chapter 1.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.bench.paths import measurements_dir

ROUNDING = 0.01  # published times have four digits


@dataclass(frozen=True)
class ByPrompt:
    """One model's time to answer by the length of the prompt: `seconds[i]` for `new_tokens` tokens after `prompt[i]`."""

    new_tokens: int
    prompt: tuple[int, ...]
    seconds: tuple[float, ...]

    def step_seconds(self) -> list[float]:
        """Seconds per new token, by prompt. The time of the prompt is in it."""
        return [seconds / self.new_tokens for seconds in self.seconds]


@dataclass(frozen=True)
class PublishedVllm:
    """GPT-2 by batch, by generated tokens and by prompt, and Mistral 7B by prompt. Rates are in tokens per second.

    new_tokens: per sequence of the batch sweep. not_stated: what the source leaves open.
    """

    source: str
    not_stated: tuple[str, ...]
    new_tokens: int
    batch: tuple[int, ...]
    batch_tok_s: tuple[float, ...]
    batch_seconds: tuple[float, ...]
    generated: tuple[int, ...]
    generated_tok_s: tuple[float, ...]
    gpt2: ByPrompt
    mistral: ByPrompt

    label = "vLLM, A100, published"  # in legends and tables

    @property
    def caveat(self) -> str:
        """What the source does not state, as one sentence."""
        return _caveat(self.not_stated)

    @property
    def caveat_of_one_sequence(self) -> str:
        """The same for a text that shows runs of one sequence only: what is open about the batch sweep is left out."""
        return _caveat([name for name in self.not_stated if "batch" not in name])

    def step_seconds(self) -> list[float]:
        """Seconds of the batch sweep per generated token of a sequence. The time of the prompts is in it."""
        return [seconds / self.new_tokens for seconds in self.batch_seconds]

    def rate(self, batch: int) -> float:
        """Tokens per second at a batch of the sweep. Raises ValueError for another batch."""
        return self.batch_tok_s[self._row(batch)]

    def seconds(self, batch: int) -> float:
        """Seconds of the whole run at a batch of the sweep. Raises ValueError for another batch."""
        return self.batch_seconds[self._row(batch)]

    def _row(self, batch: int) -> int:
        if batch not in self.batch:
            raise ValueError(f"batch={batch} was not published; published: {list(self.batch)}")
        return self.batch.index(batch)


def _caveat(not_stated: Sequence[str]) -> str:
    if not not_stated:
        return "Each point of vLLM's runs is one run."
    *first, last = not_stated
    named = f"{', '.join(first)} and {last} are" if first else f"{last} is"
    return f"Of vLLM's runs, {named} not stated, and each point is one run."


def published_vllm(path: Path | str | None = None) -> PublishedVllm:
    """Reads `book/measurements/reference/vllm_results.json`, or the file at `path`.

    Raises ValueError where columns differ in length, or where a rate is not tokens over seconds.
    """
    path = measurements_dir() / "reference" / "vllm_results.json" if path is None else Path(path)
    data = json.loads(path.read_text())
    sweep, length = data["gpt2_batch_sweep"], data["gpt2_by_generated"]
    found = PublishedVllm(
        source=data["source"],
        not_stated=tuple(data["setup"]["not_stated"]),
        new_tokens=sweep["new_tokens"],
        batch=tuple(sweep["batch"]),
        batch_tok_s=tuple(sweep["tok_s"]),
        batch_seconds=tuple(sweep["latency_s"]),
        generated=tuple(length["max_tokens"]),
        generated_tok_s=tuple(length["tok_s"]),
        gpt2=_by_prompt(path, data, "gpt2_latency_by_prompt"),
        mistral=_by_prompt(path, data, "mistral7b_latency_by_prompt"),
    )
    _equal_lengths(path, "gpt2_batch_sweep", found.batch, found.batch_tok_s, found.batch_seconds)
    _equal_lengths(path, "gpt2_by_generated", found.generated, found.generated_tok_s)
    for batch, rate, seconds in zip(found.batch, found.batch_tok_s, found.batch_seconds):
        _same_rate(
            path, f"gpt2_batch_sweep, batch {batch}", rate, batch * found.new_tokens / seconds
        )
    mistral = data["mistral7b_latency_by_prompt"]
    for n, rate, seconds in zip(mistral["prompt"], mistral["tok_s"], mistral["latency_s"]):
        name = f"mistral7b_latency_by_prompt, prompt {n}"
        _same_rate(path, name, rate, mistral["new_tokens"] / seconds)
    return found


def _by_prompt(path: Path, data: dict[str, Any], name: str) -> ByPrompt:
    found = data[name]
    _equal_lengths(path, name, found["prompt"], found["latency_s"])
    return ByPrompt(found["new_tokens"], tuple(found["prompt"]), tuple(found["latency_s"]))


def _equal_lengths(path: Path, name: str, *columns: tuple[float, ...] | list[float]) -> None:
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise ValueError(f"{path}: the columns of {name} differ in length: {lengths}")


def _same_rate(path: Path, name: str, stated: float, computed: float) -> None:
    if abs(stated / computed - 1) > ROUNDING:
        raise ValueError(
            f"{path}: {name} states {stated} tokens/s, and its tokens over its seconds are {computed:.1f}"
        )

"""The same work on several engines and on transformers, in turns. Introduced in chapter 8."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib.bench.measure.timing import Timing, measure
from lib.bench.peers.hf import hf_generate, hf_generate_batch
from lib.bench.workloads import Workload, fixed, random_prompts

PROMPT, NEW = 64, 48  # tokens
STATIC = 8  # sequences in a static batch of transformers
BLOCK = 16


@dataclass(frozen=True)
class Result:
    """How long each contestant took for one piece of work; `same`: whether all gave the same tokens."""

    name: str
    tokens: int
    timings: dict[str, Timing]
    same: bool

    def rate(self, contestant: str) -> float:
        """Output tokens per second."""
        return self.timings[contestant].rate(self.tokens)


def in_turns(
    contestants: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1
) -> dict[str, Timing]:
    """Times contestants one after the other, round by round, so that other load on the machine affects all of them.

    A contestant that returns a Timing is counted by that: what it prepared before does not count then.
    """
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warmup + repeats):
        for name, run in contestants.items():
            answers: list[Any] = []
            seconds = measure(
                lambda run=run, answers=answers: answers.append(run()), warmup=0, repeats=1
            ).median
            if turn >= warmup:
                samples[name].append(
                    answers[0].median if isinstance(answers[0], Timing) else seconds
                )
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def blocks_for(work: Workload, block_size: int = BLOCK) -> int:
    """Number of blocks for all sequences of `work` at their longest, and the null block."""
    return 1 + sum(
        -(-(len(prompt) + n) // block_size) for prompt, n in zip(work.prompts, work.max_tokens)
    )


def equal_work(vocab_size: int, batch: int, prompt: int = PROMPT, new: int = NEW) -> Workload:
    """`batch` random prompts of `prompt` tokens, each with an answer of `new` tokens."""
    return Workload(
        f"batch {batch}",
        random_prompts(fixed(batch, prompt), vocab_size, seed=batch),
        fixed(batch, new),
    )


def compete(
    engines: Mapping[str, Any], reference: Any, work: Workload, peers: Sequence[str], repeats: int
) -> Result:
    """`work` on each engine (an LLM) and on transformers, in turns.

    reference: the transformers model. peers: any of "generate", "generate, batches of 8", "generate_batch".
    """
    answers: dict[str, list[list[int]]] = {}

    def ours(name: str) -> None:
        outputs = engines[name].generate(work.prompts, work.params)
        answers[name] = [output.token_ids for output in outputs]

    def theirs(name: str) -> Timing:
        once = {"warmup": 0, "repeats": 1}
        if (
            name == "generate_batch"
        ):  # its manager starts anew at each turn; a warm-up inside makes up for that
            result = hf_generate_batch(
                reference, work.prompts, work.max_tokens, warmup=1, repeats=1
            )
        else:
            size = STATIC if "batches" in name else None
            result = hf_generate(reference, work.prompts, work.max_tokens, batch_size=size, **once)
        answers[name] = result["token_ids"]
        return result["timing"]

    contestants: dict[str, Callable[[], Any]] = {
        name: lambda name=name: ours(name) for name in engines
    }
    contestants |= {name: lambda name=name: theirs(name) for name in peers}
    timings = in_turns(contestants, repeats)
    first = next(iter(answers.values()))
    return Result(
        work.name,
        sum(work.max_tokens),
        timings,
        all(answer == first for answer in answers.values()),
    )

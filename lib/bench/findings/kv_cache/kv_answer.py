"""The sentences of chapter 2 about an answer of SmolLM2, step by step.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none.

Introduced in chapter 2.
"""

from collections.abc import Sequence
from typing import Any

from lib.bench.findings.kv_cache.kv_steps import STAGES
from lib.bench.findings.values import Measured, column, ends, value
from lib.bench.findings.vocabulary import compare, missing


def answer(run: Any) -> dict[str, str]:
    """Under the figure of the answer's steps."""
    series = run["answer_by_step"]
    kept, without = (column(series, name) for name in ("kv_cache", "no_cache"))
    half = len(kept) // 2
    names = ("the answer with the cache", "the one without")
    whole = compare(_summed(kept), _summed(without), *names)
    late = compare(_summed(kept[half:]), _summed(without[half:]), *names)
    first = compare(ends(series, "kv_cache")[0], ends(series, "no_cache")[0], *STAGES)
    said = missing("the time of the answer").sentence
    if whole.kind != "missing":
        said = f"{whole.sentence} In its second half, {late}."
    begin = missing("the first step").sentence
    if first.kind != "missing":
        begin = f"The first step has to compute the prompt in both cases: {first}."
    return {"answer_finding": said, "first_step_finding": begin}


def shifted(agree: int, total: int) -> dict[str, str]:
    """An answer of which every decoded token has the position after its own: how many of its first tokens are right."""
    if agree >= total:
        said = (
            f"All {total} tokens are the right ones, so neither a comparison of this answer nor a benchmark of speed "
            "notices the mistake. A comparison of logits does."
        )
        return {"shifted_finding": said}
    right = f"the first {agree} are the right ones"
    if agree < 2:
        right = "the first is the only right one" if agree else "the first is a wrong one already"
    return {
        "shifted_finding": (
            f"Of {total} tokens, {right}. This model writes poor answers in any case, so neither a reader of the text "
            "nor a benchmark of speed notices the mistake. The comparison with the oracle does."
        )
    }


def _summed(steps: Sequence[Measured]) -> Measured:
    """Seconds of several steps together, one value per repeat where all steps have the same repeats."""
    if not steps or not all(value(step).known for step in steps):
        return None
    if all(isinstance(step, list) for step in steps) and len({len(step) for step in steps}) == 1:
        return [sum(repeat) for repeat in zip(*steps)]
    return sum(value(step).middle for step in steps)

"""The sentences of chapter 4 about the same bytes in blocks: sequences at once, steps, throughput.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none.

Introduced in chapter 4.
"""

from operator import truediv
from typing import Any

from lib.bench.findings.gates import stand_in_closed
from lib.bench.findings.paged_cache.published_memory import MIB
from lib.bench.findings.predictions import Prediction
from lib.bench.findings.values import Measured, cell, number, of_both, quantity, times, value
from lib.bench.findings.vocabulary import compare, missing, versus_prediction
from lib.bench.records.series import Series

SAME_BYTES = "same_bytes"
EXPERIMENT = "throughput on the same bytes"  # the name of its gate


def _pair(series: Series | None, column: str) -> tuple[Measured, Measured]:
    """A column of the two engines: contiguous, paged."""
    return cell(series, column, 0), cell(series, column, 1)


def _numbers(series: Series | None, column: str) -> tuple[float | None, float | None]:
    """The same by their middles; None for both where one of them is missing or not above zero."""
    first, second = (value(v).middle for v in _pair(series, column))
    return (first, second) if first and second and min(first, second) > 0 else (None, None)


def same_bytes(run: Any) -> dict[str, str]:
    """The sentences under the figure of sequences at once, on the same bytes."""
    series = run[SAME_BYTES]
    closed = bool(stand_in_closed(run, EXPERIMENT))
    before, after = _numbers(series, "peak_running")
    slow, fast = _numbers(series, "steps")
    at_once, short = missing("the number of sequences at once").sentence, ""
    if before and after:
        short = f"{number(before)} sequences at once became {number(after)}"
        at_once = f"On {series.params['budget_bytes'] / MIB:,.0f} MiB, {short}: {times(after / before)} as many."
        if after >= series.params["requests"]:
            at_once += (
                f" All {number(after)} requests ran at once, so the number of requests was the limit in this run, and "
                "not the number of blocks."
            )
    steps = missing("the number of steps").sentence
    if slow and fast:
        steps = f"The workload's {number(slow)} steps became {number(fast)}, a ratio of {slow / fast:.1f}."
        if fast >= slow:
            steps = f"The workload took {number(fast)} steps where the contiguous engine took {number(slow)}."
    said = compare(*_pair(series, "tok_s")[::-1], "the paged engine", "the contiguous one", what="throughput", unit="tokens/s")  # fmt: skip
    return {
        "at_once_finding": f"{at_once} {_at_once_prediction(series)}",
        "at_once_short": f"{short or 'the number of sequences at once was not measured here'}.",
        "steps_finding": steps,
        "gain_finding": f"{said.sentence} {_gain_verdict(series, closed)}",
        "gain_cause_finding": gain_cause(run),
        "broke_steps_finding": _broke(series, closed),
        "same_tokens_finding": _same_tokens(series),
    }


def _at_once_prediction(series: Series | None) -> str:
    predicted, measured = cell(series, "predicted_running", 1), cell(series, "peak_running", 1)
    found = versus_prediction(predicted, measured, "sequences")
    if found.kind == "missing":
        return missing("the number that finished lengths predict").sentence
    said = f"From finished lengths the prediction was {number(value(predicted).middle)}: {found.verdict}."
    held = value(cell(series, "peak_blocks", 1)).middle
    if held is not None and found.direction > 0:
        said += (
            " Young sequences need fewer blocks than finished ones; all of them together never held more than "
            f"{number(held)} blocks."
        )
    return said


def gain_limit(run: Any) -> tuple[float | None, Measured]:
    """(ratio of the steps, gain in throughput): the first was to be a limit of the second."""
    series = run[SAME_BYTES]
    slow, fast = _numbers(series, "steps")
    before, after = _pair(series, "tok_s")
    gains = None
    if value(before).known and value(before).low > 0 and value(after).known:
        gains = of_both(after, before, truediv)
    return (slow / fast if slow and fast else None), gains


def _gain_verdict(series: Series | None, closed: bool) -> str:
    limit, gain = gain_limit({SAME_BYTES: series})
    if limit is None or gain is None or value(gain).middle <= 0:
        return missing("the gain in throughput over the gain in steps").sentence
    got = value(gain).middle
    both = f"throughput {times(got)}, steps {times(limit)}"
    if closed or versus_prediction(limit, gain, "×").kind == "cannot tell":
        return f"Whether the ratio of the steps was the limit, this run cannot tell ({both})."
    if got <= 1.1 * limit:
        return f"The ratio of the steps was predicted to be the limit, and it held ({both})."
    verdict = versus_prediction(limit, got, "×").verdict
    return f"The ratio of the steps was predicted to be the limit, and the gain goes beyond it ({both}): {verdict}."


def _broke(series: Series | None, closed: bool) -> str:
    """What became of the limit on the throughput, for the list of what broke."""
    said = "The ratio of the steps was predicted to limit the gain in throughput, because a step with more sequences does more"
    limit, gain = gain_limit({SAME_BYTES: series})
    got = value(gain).middle
    if limit is None or not got or got <= 0:
        return f"{said}; {missing('whether that holds')}."
    if closed or versus_prediction(limit, gain, "×").kind == "cannot tell":
        return f"{said}. This run cannot tell whether it does."
    if got <= 1.1 * limit:
        return f"{said}. In this run it does. On another machine it need not: more work does not always take more time."
    return f"{said}. The gain was {times(got)}, the limit {times(limit)}: more work did not take more time."


def gain_cause(run: Any) -> str:
    """Where the throughput beyond, or below, the ratio of the steps comes from: the time of a step, and the prompts."""
    series = run[SAME_BYTES]
    slow, fast = (
        s / n if s and n else None
        for s, n in zip(_numbers(series, "seconds"), _numbers(series, "steps"))
    )
    if not slow or not fast:
        return missing("the time of a step").sentence
    said = f"A step took {quantity(fast, 's')} on average with blocks and {quantity(slow, 's')} with slots."
    alone, crowd = _numbers(series, "decode_step")
    few, many = _numbers(series, "decode_sequences")
    if alone and few and many:
        ratio = crowd / alone
        said += (
            f" A step that only decodes advanced {number(many)} sequences on average with blocks and {number(few)} with "
            f"slots, and took {times(ratio)} as long."
        )
        if many > 1.1 * few and ratio <= 1.1:
            said += " So more sequences did not make a step longer; chapter 3 has the time of a step by batch."
        elif many > 1.1 * few and ratio < many / few / 1.1:
            said += " So one more sequence adds less to a step than an equal share of its time; chapter 3 has the time of a step by batch."
    prompts, together = _numbers(series, "prompt_seconds")
    if prompts:
        said += (
            f" The steps that computed prompts took {quantity(together, 's')} together with blocks and "
            f"{quantity(prompts, 's')} with slots, for the same prompts."
        )
        if together < prompts / 1.1:
            said += " Many prompts in one step are products of many rows, which come closer to the machine's rate (chapter 1)."
    return said


def _same_tokens(series: Series | None) -> str:
    same = value(cell(series, "same_tokens", 1)).middle
    if same is None:
        return missing("whether both engines gave the same tokens").sentence
    total = series.params["requests"]
    if same >= total:
        return f"All {total} requests received exactly the same tokens from both engines."
    said = f"{number(same)} of the {total} requests received exactly the same tokens from both engines."
    return f"{said} The others differ, as they may where two logits are nearly equal and the order of a sum decides."


def predictions(run: Any) -> list[Prediction]:
    """The rows of the same bytes in the chapter's table."""
    series = run[SAME_BYTES]
    limit, gain = gain_limit(run)
    closed = bool(stand_in_closed(run, EXPERIMENT))
    return [
        Prediction(
            "sequences at once on the same bytes, from finished lengths",
            cell(series, "predicted_running", 1), cell(series, "peak_running", 1), _young(series), "sequences",
        ),
        Prediction(
            "gain in throughput, from the ratio of the steps",
            limit, gain, "" if closed else _shorter(series, limit, gain), "×", "at most", closed,
        ),
    ]  # fmt: skip


def _young(series: Series | None) -> str:
    found = versus_prediction(
        cell(series, "predicted_running", 1), cell(series, "peak_running", 1), ""
    )
    if found.kind in ("little", "failed") and found.direction > 0:
        return "young sequences hold fewer blocks than finished ones"
    return "no cause was measured" if found.kind == "failed" else ""


def _shorter(series: Series | None, limit: float | None, gain: Measured) -> str:
    """Why the gain passed the ratio of the steps, where it did: steps that are not longer with more sequences."""
    got = value(gain).middle
    if not limit or not got or got <= 1.1 * limit:
        return ""
    slow, fast = (
        s / n if s and n else None
        for s, n in zip(_numbers(series, "seconds"), _numbers(series, "steps"))
    )
    if not slow or not fast:
        return "no cause was measured"
    return f"a step with more sequences took {quantity(fast, 's')} on average, one with fewer {quantity(slow, 's')}"

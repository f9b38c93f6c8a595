"""Whole decode steps, engines on the same bytes, and the same arithmetic for a 7B model.

Introduced in chapter 7.
"""

from typing import Any

from lib.bench.findings.fused_attention.fused_rows import BATCH, TRANSFERS
from lib.bench.findings.run_notes import is_recorded, of_record
from lib.bench.findings.values import (
    Measured,
    cell,
    number,
    over,
    percent,
    positive,
    quantity,
    times,
)
from lib.bench.findings.vocabulary import (
    Finding,
    compare,
    missing,
    ratio_range,
    share,
    uncapital,
    versus_bound,
    versus_prediction,
)
from lib.bench.measure import counts
from lib.bench.measure.attention_cost import attention_time, layer_bytes, step_time
from lib.bench.measure.data_sheets import H100, LLAMA_7B

STEPS, SERVICE = "step_by_batch", "same_bytes"
STEP_NAMES = {"contiguous": "a contiguous step", "gather": "a gathered step", "fused": "a fused step"}  # fmt: skip
GOAL = 1.1  # a fused step over a contiguous one, at most
_LAYERS = 30  # SmolLM2's, for runs that did not record it
BATCH_7B, CONTEXT_7B = 32, 2048


def last(run: Any, column: str) -> Measured:
    """The value at the largest batch."""
    return cell(run[STEPS], column, -1)


def predicted_ratio(run: Any, kind: str) -> float | None:
    """A step's time over the contiguous one's, by its bounds."""
    return over(last(run, f"bound_{kind}"), last(run, "bound_contiguous"))


def measured_ratio(run: Any, kind: str) -> float | None:
    """A step's time over the contiguous one's at the largest batch."""
    return over(last(run, kind), last(run, "contiguous"))


def measured_range(run: Any, kind: str) -> Measured:
    """The same with the range of the repeats, as a verdict needs it."""
    return ratio_range(last(run, kind), last(run, "contiguous"))


def judged(run: Any, kind: str) -> Finding:
    return versus_prediction(predicted_ratio(run, kind), measured_range(run, kind), "×")


def step(run: Any, alone: Any = None) -> dict[str, str]:
    """The sentences under the figure of whole steps; alone: the run of attention alone, where it is another one."""
    batch = positive(last(run, "batch"))
    at = f"At batch {number(batch)}" if batch else "At the largest batch"
    said = {}
    for kind in ("fused", "gather"):
        found = compare(last(run, kind), last(run, "contiguous"), STEP_NAMES[kind], STEP_NAMES["contiguous"])  # fmt: skip
        want, verdict = predicted_ratio(run, kind), judged(run, kind)
        said[kind] = found.sentence
        if want is not None and verdict.kind != "missing":
            expected = (
                "both would take the same time"
                if kind == "fused"
                else f"it would take {times(want)} as long"
            )
            said[kind] = f"{found.sentence} By the bytes {expected}: {verdict.verdict}."
    fused = said["fused"]
    return {
        "step_fused_finding": of_record(run, f"{at}, {uncapital(fused)}"),
        "step_gather_finding": of_record(run, said["gather"]),
        "two_errors_finding": _two_errors(run),
        "goal_finding": _goal(run),
        "step_bound_finding": _over_bound(run),
        "attention_share_finding": _attention_share(run, alone),
        "takeaway_finding": _takeaway(run, at),
    }


def _two_errors(run: Any) -> str:
    """Whether the ratio of the gathered step is right because its two terms are."""
    base = over(last(run, "contiguous"), last(run, "bound_contiguous"))
    extra, expected = (
        b - a if (a := positive(last(run, x))) and (b := positive(last(run, y))) else None
        for x, y in (("contiguous", "gather"), ("bound_contiguous", "bound_gather"))
    )
    if base is None or not expected or expected <= 0 or extra is None:
        return missing("what the gather adds to a step").sentence
    if extra <= 0:
        return "The gather adds nothing to the step here, where the bytes predict a longer one."
    off = extra / expected
    said = (
        f"What the gather adds is {times(off)} what the bytes predict ({quantity(extra, 's')} against "
        f"{quantity(expected, 's')}), and the contiguous step is {times(base)} its bound."
    )
    if judged(run, "gather").kind == "about" and min(off, base) > 1.25:
        said += " The ratio is right, and its two parts are not: both were predicted too low by similar factors, which cancel."
    elif base > 1.25 * off:
        said += " Whatever a step spends beyond its bound outside of attention moves the ratio towards 1."
    return said


def _goal(run: Any) -> str:
    ratio = measured_ratio(run, "fused")
    if ratio is None:
        return missing("the goal of this chapter").sentence
    met = "met" if round(ratio, 2) <= GOAL else "not met"
    return (
        f"The goal of this chapter was a fused step that takes at most a tenth longer than a contiguous one, and it is {met}: "
        f"a fused step takes {ratio:.2f} times as long."
    )


def _over_bound(run: Any) -> str:
    found = versus_bound(last(run, "bound_fused"), last(run, "fused"))
    if found.kind == "missing":
        return missing("the fused step over its bound").sentence
    return f"A fused step {'is' if found.kind == 'about' else 'takes'} {found}."


def _attention_share(run: Any, timed_alone: Any) -> str:
    """Attention timed alone over the fused step, both of one run and at the same batch.

    Where the page quotes the recorded run for one of the two, both are of that run, and the sentence says so.
    """
    if is_recorded(timed_alone) != is_recorded(run) and timed_alone is not None:
        recorded = run if is_recorded(run) else timed_alone
        return of_record(recorded, _share_of(recorded))
    return _share_of(run)


def _share_of(run: Any) -> str:
    layer, series = run[BATCH], run[STEPS]
    if layer is None or series is None or cell(layer, "batch", -1) != last(run, "batch"):
        return missing("the share of attention in a step").sentence
    alone, whole = positive(cell(layer, "fused", -1)), positive(last(run, "fused"))
    if alone is None or whole is None:
        return missing("the share of attention in a step").sentence
    found = share(series.params.get("layers", _LAYERS) * alone, whole)
    if found.kind == "failed":
        return f"Attention, timed alone, would be {found}."
    return f"Attention, timed alone, is {found} of the fused step, which limits what a better attention kernel could still win."


def _takeaway(run: Any, at: str) -> str:
    found = compare(last(run, "fused"), last(run, "contiguous"), "a fused step on paged memory", "a contiguous one")  # fmt: skip
    return f"{at}, {found}."


# Engines on the same bytes.


def of_cache(run: Any, name: str, what: str) -> Measured:
    """A value of one engine: "contiguous", "gather" or "fused"."""
    series = run[SERVICE]
    if series is None or "cache" not in series or name not in series["cache"]:
        return None
    return cell(series, what, series["cache"].index(name))


def service(run: Any) -> dict[str, str]:
    """The sentences under the table of three engines with the same memory."""
    names = {"contiguous": "the engine with slots", "gather": "the engine with the gather", "fused": "the fused engine"}  # fmt: skip
    rate = {kind: of_cache(run, kind, "tok_s") for kind in names}
    fused, gather, kernel = (
        compare(rate[a], rate[b], names[a], names[b], what="throughput", unit="tokens/s")
        for a, b in (("fused", "contiguous"), ("gather", "contiguous"), ("fused", "gather"))
    )
    said = kernel.sentence
    blocks, both = over(rate["gather"], rate["contiguous"]), over(rate["fused"], rate["contiguous"])
    if blocks and both and both > 1.25:
        from_batch = (blocks - 1) / (both - 1)
        if from_batch > 0.55:
            said += " So most of the gain over slots comes from the batch that fits, and not from the kernel."
        elif from_batch < 0.45:
            said += " So the larger part of the gain over slots comes from the kernel."
        else:
            said += " So the gain over slots comes from the batch that fits and from the kernel, about half from each."
    return {
        "seats_finding": _seats(run),
        "service_finding": f"{fused.sentence} {gather.sentence}",
        "service_kernel_finding": said,
        "same_tokens_finding": _same_tokens(run),
    }


def _seats(run: Any) -> str:
    slots, blocks = (
        positive(of_cache(run, kind, "most_at_once")) for kind in ("contiguous", "fused")
    )
    budget = (run[SERVICE].params if run[SERVICE] is not None else {}).get("budget_bytes")
    if slots is None or blocks is None or not budget:
        return missing("the number of sequences at once").sentence
    one, many = (number(round(n)) for n in (slots, blocks))
    return f"On the same {quantity(budget, 'B')}, slots hold {one} sequences at once, and blocks hold {many}."


def _same_tokens(run: Any) -> str:
    params = run[SERVICE].params if run[SERVICE] is not None else {}
    same, total = params.get("same_tokens"), params.get("requests")
    if same is None or not total:
        return missing("whether all requests got the same tokens").sentence
    if same == total:
        return f"All {total} requests got the same tokens from slots and from blocks."
    return (
        f"{same} of {total} requests got the same tokens from slots and from blocks. The three ways add in different "
        "orders, so their logits differ in the last bits, and where two logits are nearly equal that can decide."
    )


# One realistic setting.


def realistic_rows() -> list[list[str]]:
    """Transfers, attention of a layer, a whole step, over the contiguous step: 7B, bfloat16, H100 by its data sheet."""
    rows = []
    for kind, transfers in TRANSFERS.items():
        attention, whole = realistic_times(transfers)
        ratio = whole / realistic_times(1)[1]
        rows.append(
            [kind, str(transfers), quantity(attention, "s"), quantity(whole, "s"), f"{ratio:.2f}"]
        )
    return rows


def realistic_times(transfers: int) -> tuple[float, float]:
    """Least seconds of one layer's attention and of a step."""
    arguments = (LLAMA_7B, H100, BATCH_7B, CONTEXT_7B, transfers, "bfloat16", "bfloat16")
    return attention_time(*arguments), step_time(*arguments)


def realistic() -> dict[str, str]:
    """The chapter's bytes for that setting."""
    kv = LLAMA_7B.num_layers * layer_bytes(LLAMA_7B, BATCH_7B, CONTEXT_7B, "bfloat16")
    weights = counts.streamed_bytes(LLAMA_7B, "bfloat16")
    group = LLAMA_7B.num_heads // LLAMA_7B.num_kv_heads
    place, gather = realistic_times(1)[1], realistic_times(3)[1]
    return {
        "realistic_finding": (
            f"A step of {BATCH_7B} sequences of {number(CONTEXT_7B)} tokens reads {quantity(kv, 'B')} of keys and values "
            f"and {quantity(weights, 'B')} of weights. With {group} query head per K/V head, attention does {group} FLOP "
            f"for each byte, and the machine could do {number(round(H100.ridge('bfloat16')))}. In place, a step takes at "
            f"least {quantity(place, 's')}; with a gather {quantity(gather, 's')}, of which the copy is "
            f"{percent((gather - place) / gather)}."
        )
    }

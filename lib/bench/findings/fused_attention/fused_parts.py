"""What a gather is made of, and how caches, block sizes and compiling change the times.

Introduced in chapter 7.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.bench.findings.curves import trend
from lib.bench.findings.fused_attention.fused_rows import BATCH, HOT, KINDS, versus_scaled
from lib.bench.findings.fused_attention.fused_warm import hot
from lib.bench.findings.gates import stand_in_closed
from lib.bench.findings.run_notes import of_record
from lib.bench.findings.values import (
    Measured,
    cell,
    column,
    number,
    over,
    percent,
    positive,
    quantity,
    times,
    value,
)
from lib.bench.findings.vocabulary import (
    capital,
    compare,
    missing,
    ratio_range,
    versus_prediction,
)

PARTS, SHUFFLED, FIRST_CALL = "gather_parts", "shuffled_blocks", "first_call"
KEPT, NEW, FRESH = (
    "copy into memory that is kept",
    "copy into new tensors",
    "copy into fresh pages",
)
PIECE, APART, MASKED = (
    "attention over one piece",
    "the same, each head's rows together",
    "the same with a mask",
)
WHOLE = "gather, all of it"
EXPERIMENT = "parts of a gather"  # the name of its gate


def part(run: Any, name: str, what: str = "seconds") -> Measured:
    """One part's seconds, or its page faults."""
    series = run[PARTS]
    if series is None or "part" not in series or name not in series["part"]:
        return None
    return cell(series, what, series["part"].index(name))


def copy_over_piece(run: Any) -> Measured:
    """The copy's time over that of attention over one piece; the bytes say 2."""
    return ratio_range(part(run, NEW), part(run, PIECE))


def gather_parts(run: Any) -> dict[str, str]:
    """The sentences under the table of the gather's parts."""
    piece = part(run, PIECE)
    copy = compare(part(run, NEW), piece, "the copy", "attention over one piece")
    verdict = versus_scaled(2.0, piece, part(run, NEW))
    said = copy.sentence
    closed = stand_in_closed(run, EXPERIMENT)
    if "missing" not in (verdict.kind, copy.kind):
        judged = "that run does not judge it" if closed else verdict.verdict
        said = f"{said} By the bytes the copy would take 2 times as long: {judged}."
    if closed:
        said += f" The recorded run failed its own check of these parts ({'; '.join(closed)})."
    mask = compare(part(run, MASKED), piece, "attention with a mask", "attention without one")
    fresh = compare(
        part(run, FRESH), part(run, KEPT), "a copy into fresh pages", "one into memory that is kept"
    )
    return {
        "copy_finding": of_record(run, said),
        "copy_bandwidth_finding": _copy_bandwidth(run),
        "heads_finding": _heads(run),
        "mask_finding": mask.sentence,
        "fresh_finding": fresh.sentence,
        "faults_finding": _faults(run),
        "sum_finding": _sum(run),
    }


def unused_slots(leaks: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Which ways of attention need finite numbers in unused slots. leaks: "NaN" or "fine" per sequence, by way."""
    need = [kind for kind in ("contiguous", "gather") if "NaN" in leaks[kind]]
    if not need:
        return {"unused_slots_finding": "The other two gave no NaN here either."}
    who = "The other two need" if len(need) == 2 else f"{capital(KINDS[need[0]])} needs"
    said = f"{who} finite numbers in unused memory, which no part of the engine guarantees."
    return {"unused_slots_finding": said}


def once(run: Any) -> float | None:
    """Seconds in which memory delivers the keys and values of the parts' batch and context once."""
    parts, series = run[PARTS], run[BATCH]
    if parts is None or series is None or run.roofline is None or "kv_bytes" not in series:
        return None
    for row in range(len(series["kv_bytes"])):
        at = tuple(positive(cell(series, name, row)) for name in ("batch", "context"))
        if at == (parts.params["batch"], parts.params["context"]):
            moved = positive(cell(series, "kv_bytes", row))
            return moved and moved / run.roofline.bandwidth
    return None


def _copy_bandwidth(run: Any) -> str:
    copied, read = (
        over(n * least if (least := once(run)) else None, part(run, name))
        for n, name in ((2, NEW), (1, PIECE))
    )
    if copied is None or read is None:
        return missing("the bandwidth of the copy").sentence
    said = (
        f"The copy moves its bytes at {percent(copied)} of the bandwidth that reading alone has, and attention over one "
        f"piece at {percent(read)}."
    )
    if copied > 1.1:
        said += " More than memory can deliver: some of the copy never leaves the processor's caches, or the ceiling was measured too low."
    if read < 0.5 * copied:
        said += (
            " Next to a slow read, the copy takes a smaller share of the time than of the bytes."
        )
    return said


def _heads(run: Any) -> str:
    found = compare(
        part(run, APART),
        part(run, PIECE),
        "attention with each head's rows together",
        "attention over the cache as it lies",
    )
    if found.kind in ("missing", "cannot tell", "undefined"):
        return found.sentence
    if found.direction < 0:
        return f"{found.sentence} So it costs time to skip the rows of the other heads."
    return f"{found.sentence} So skipping the rows of the other heads is not what makes it slow."


def _faults(run: Any) -> str:
    gather, fresh = (value(part(run, name, "page_faults")).middle for name in (WHOLE, FRESH))
    if gather is None and fresh is None:
        return missing("the number of page faults").sentence
    counted = [
        f"{number(round(n))} per layer for {name}"
        for n, name in ((gather, "the gather"), (fresh, "the copy into fresh pages"))
        if n is not None
    ]
    said = f"The system counted these page faults: {', '.join(counted)}."
    if gather is None or fresh is None:
        return said
    if fresh < 1:
        return f"{said} It does not count those of fresh pages, so the numbers show nothing."
    if gather < 0.01 * fresh:
        return f"{said} So the gather found its memory again."
    return f"{said} So in this run the gather's memory was not kept."


def _sum(run: Any) -> str:
    parts = [positive(part(run, name)) for name in (NEW, MASKED)]
    if None in parts:
        return missing("the sum of the parts").sentence
    found = versus_prediction(sum(parts), part(run, WHOLE))
    if found.kind == "missing":
        return missing("the whole gather").sentence
    agreed = {
        "about": "The parts, timed apart, add up to the whole gather",
        "cannot tell": "Whether the parts add up to the whole gather, this run cannot tell",
    }
    said = agreed.get(found.kind, "The parts, timed apart, do not add up to the whole gather")
    whole = quantity(positive(part(run, WHOLE)), "s")
    return f"{said}: copy and masked attention {quantity(sum(parts), 's')}, the gather {whole}."


def caches(run: Any) -> dict[str, str]:
    """What a benchmark reports whose keys are in the processor's caches."""
    series, bandwidth = run[HOT], run.roofline and run.roofline.bandwidth
    moved = hot_bytes(run)
    cold, warm = (over(moved, hot(run, "fused", last)) for last in (False, True))
    if series is None or not bandwidth or cold is None or warm is None:
        return {
            "hot_finding": missing("the bandwidth with warm caches").sentence,
            "hot_ratio_finding": missing("the gather with warm caches").sentence,
        }
    cold, warm = cold / bandwidth, warm / bandwidth
    said = (
        f"The keys and values of one layer are {quantity(moved, 'B')} here. Read by the fused kernel again and again, they "
        f"come at {percent(warm)} of the memory's bandwidth, against {percent(cold)} from memory."
    )
    if cold > 1.05:
        said += " Already the second is more than memory can deliver, so the ceiling was measured too low, and neither share says anything."
    elif warm > 1.05:
        said += (
            " The first is more than memory can deliver, which shows that these keys and values "
            "did not come from memory."
        )
    else:
        said += " Neither is more than memory can deliver, so here the mistake would not show in the warm number."
    ratios = [over(hot(run, "gather", last), hot(run, "fused", last)) for last in (False, True)]
    compared = missing("the gather with warm caches").sentence
    if None not in ratios:
        compared = f"The gather takes {times(ratios[0])} as long as the fused kernel from memory, and {times(ratios[1])} with warm caches."
    return {"hot_finding": said, "hot_ratio_finding": compared}


def hot_bytes(run: Any) -> float | None:
    """Bytes of one layer's keys and values in the experiment with warm caches."""
    series, layers = run[HOT], run[BATCH]
    if series is None or layers is None or not {"kv_bytes", "batch", "context"} <= layers.columns.keys():  # fmt: skip
        return None
    moved, batch, context = (positive(cell(layers, n, -1)) for n in ("kv_bytes", "batch", "context"))  # fmt: skip
    if None in (moved, batch, context):
        return None
    return moved * series.params["batch"] * series.params["context"] / (batch * context)


def shuffled(run: Any) -> dict[str, str]:
    """How the time changes with the block size, where the blocks lie in random order."""
    series = run[SHUFFLED]
    sizes = column(series, "block_size")
    said = []
    for kind, name in (("gather", "The gather's time"), ("fused", "The fused kernel's time")):
        found = trend(sizes, column(series, kind), "s", "{} tokens per block")
        said.append(
            f"{name} {found}" if found.kind != "missing" else missing(name.lower()).sentence[:-1]
        )
    return {
        "shuffled_finding": f"As blocks grow: {said[0].lower()[:1]}{said[0][1:]}; {said[1].lower()[:1]}{said[1][1:]}.",
    }


def compiling(run: Any) -> dict[str, str]:
    """What compiling costs once, and what a later process pays."""
    series = run[FIRST_CALL]
    compiled, loaded, later = (
        cell(series, name, row) for name, row in (("first", 0), ("first", 1), ("third", 1))
    )
    found = compare(loaded, compiled, "the first call of a later process", "the one that compiles")
    if found.kind == "missing":
        return {"compile_finding": missing("the time of compiling").sentence}
    said = of_record(run, found.sentence)
    again = over(loaded, later)
    if again and again > 2:
        said += (
            f" It still takes {times(again)} as long as its third call, which finds all in place."
        )
    return {"compile_finding": said}

"""What the published claims about the paged cache mean, as arithmetic on one hardware's records of chapters 4 and 7.

Memory is counted where it was not measured: the count needs no GPU, and chapter 4 reproduces the published table by it.

Introduced in chapter 6.
"""

import re

from book.scoreboard.outcomes import (
    DEPENDS,
    HARDWARE,
    NOISE,
    REFUTED,
    REPRODUCED,
    Outcome,
    Records,
    decide,
    gains,
    get,
    times,
)
from lib.bench.records.files import Reference

POOL = "the size of the pool"


def memory_gain(records: Records, published: Reference) -> Outcome | None:
    """Headline: memory of the contiguous cache over the paged one at batch 256; chapter 4."""
    peaks = gains(
        get(records, "04", "memory_by_batch"), "batch", "contiguous_peak_mib", "paged_peak_mib"
    )
    counted = get(records, "04", "published_memory")
    theirs = published["headline"]["paged_memory_reduction_bs256"]
    if 256 in peaks:
        return Outcome(
            f"{times(peaks[256])}, peaks measured",
            decide(peaks[256] > 1, peaks[256], theirs, size=POOL),
        )
    if counted is None:
        return None
    first, standing, fitting = counted["ratio"][:3]
    text = (f"counted: {times(first)} as published, {times(standing)} without the reset's second set of keys, "
            f"{times(fitting)} with a pool of the right size too")  # fmt: skip
    return Outcome(text, f"{DEPENDS} {POOL}" if standing > 1 else REFUTED)


def memory_crossing(records: Records, published: Reference) -> Outcome | None:
    """Finding: paged is smaller only above a batch of 24 to 32; chapter 4, counted."""
    counted = get(records, "04", "published_memory")
    if counted is None:
        return None
    first, standing, fitting = counted["crossing"][:3]
    text = (f"counted: from batch {first} with the published pool, from {standing} without the reset's second set of "
            f"keys, from {fitting} with a pool of the right size")  # fmt: skip
    return Outcome(text, f"{DEPENDS} {POOL}" if 1 < first <= 32 else REFUTED)


def gather_cost(records: Records, published: Reference) -> Outcome | None:
    """Finding: the copy costs 1.4 to 1.8 times the throughput."""
    cost = gains(get(records, "04", "decode_by_batch"), "batch", "paged", "contiguous")
    if not cost:
        return None
    low, high = (float(text) for text in re.findall(r"\d\.\d", published["findings"][3]))
    last = cost[max(cost)]
    verdict = (
        REFUTED
        if last <= 1
        else REPRODUCED
        if low <= last <= high
        else f"{DEPENDS} the batch and {HARDWARE}"
    )
    return Outcome(
        f"{times(cost[min(cost)])} the time of a step at batch {min(cost)}, {times(last)} at {max(cost)}",
        verdict,
    )


def flat_memory(records: Records, published: Reference) -> Outcome | None:
    """Finding: paged memory is flat, contiguous memory grows with the batch and runs out at 1,024. Needs measured peaks."""
    series = get(records, "04", "memory_by_batch")
    rows = [] if series is None else series.rows()
    slots, blocks = ({row["batch"]: row[f"{name}_peak_mib"] for row in rows if row[f"{name}_peak_mib"]}
                     for name in ("contiguous", "paged"))  # fmt: skip
    if len(slots) < 2 or len(blocks) < 2:
        return None
    grown, flat = slots[max(slots)] / slots[min(slots)], blocks[max(blocks)] / blocks[min(blocks)]
    refused = [row["batch"] for row in rows if row["contiguous_cache_mib"] is None]
    end = (
        f"refused at {min(refused):,}" if refused else f"fits at all of them, up to {max(slots):,}"
    )
    text = (f"paged {times(flat)} from batch {min(blocks)} to {max(blocks):,}; contiguous {times(grown)} to "
            f"{max(slots):,}, {end}")  # fmt: skip
    if flat >= grown:
        return Outcome(text, REFUTED)
    return Outcome(
        text, REPRODUCED if min(refused, default=0) == 1024 else f"{DEPENDS} the memory of the GPU"
    )


def slow_when_small(records: Records, published: Reference) -> Outcome | None:
    """Failure: paged is slower than contiguous at a small batch. Beside it, what chapter 7's kernel makes of it."""
    cost = gains(get(records, "04", "decode_by_batch"), "batch", "paged", "contiguous")
    if not cost:
        return None
    text = f"gathered {times(cost[min(cost)])} the time of a step at batch {min(cost)}"
    fused = gains(get(records, "07", "step_by_batch"), "batch", "fused", "contiguous")
    if fused:
        text += f"; fused {times(fused[min(fused)])} at batch {min(fused)}"
    if 1 < cost[min(cost)] <= 1 + NOISE:
        return Outcome(text, f"{DEPENDS} {HARDWARE}")
    return Outcome(text, REPRODUCED if cost[min(cost)] > 1 else REFUTED)


def out_of_memory(records: Records, published: Reference) -> Outcome | None:
    """Failure: no memory for 1,024 contiguous slots, while the paged pool serves them. Elsewhere: the same bytes."""
    series, same = get(records, "04", "memory_by_batch"), get(records, "04", "same_bytes")
    row = next((row for row in (series.rows() if series else []) if row["batch"] == 1024), None)
    if row is not None:
        slots, blocks = (row[f"{name}_cache_mib"] is not None for name in ("contiguous", "paged"))
        text = " and ".join(f"{name} {'fits' if fits else 'is refused'}"
                            for name, fits in (("contiguous", slots), ("paged", blocks)))  # fmt: skip
        verdict = (
            REFUTED if not blocks else f"{DEPENDS} the memory of the GPU" if slots else REPRODUCED
        )
        return Outcome(f"at batch 1,024 {text}", verdict)
    if same is None:
        return None
    at_once = dict(zip(same["cache"], same["peak_running"]))
    text = (f"smaller: on the same {same.params['budget_bytes'] / 2**20:.0f} MiB, {at_once['contiguous']} sequences at "
            f"once in slots, {at_once['paged']} in blocks")  # fmt: skip
    more = at_once["paged"] > at_once["contiguous"]
    return Outcome(text, f"{DEPENDS} the batch and the memory" if more else REFUTED)

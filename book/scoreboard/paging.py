"""What the published claims about the paged cache mean: counted where they are of memory, else from chapters 4 and 7.

A count needs no GPU and no record: `lib.bench.findings.paged_cache.published_memory` derives every published entry, and what these
rules count is what the published engine must have measured. What this book's engine takes is measured beside it.

Introduced in chapter 6.
"""

import re

from book.scoreboard.outcomes import (
    COUNTED,
    EXACT,
    INCONCLUSIVE,
    NOT_COMPARABLE,
    REFUTED,
    REPRODUCED,
    TOLERANCE,
    WITHIN_NOISE,
    Outcome,
    Records,
    card_name,
    direction,
    figure,
    gains,
    get,
    middle,
    on_card,
    times,
)
from lib.bench.findings.paged_cache import published_memory as memory
from lib.bench.records.files import Reference


def counted(text: str, holds: bool, note: str = "") -> Outcome:
    """The outcome of a count."""
    return Outcome(text, COUNTED if holds else REFUTED, note)


def memory_gain_count(published: Reference) -> Outcome:
    """Headline: memory of the contiguous cache over the paged one at batch 256."""
    first, standing, fitting = memory.audit().ratio[:3]
    theirs = published["headline"]["paged_memory_reduction_bs256"]
    note = (
        f"without the second set of keys that a reset holds it is {times(standing)}, and with a pool of just the blocks in "
        f"use as well {times(fitting)}"
    )
    return counted(times(first), abs(first / theirs - 1) <= EXACT, note)


def memory_gain(records: Records, published: Reference) -> Outcome | None:
    """The same by the measured peaks of this engine, whose pool is another."""
    series = get(records, "04", "memory_by_batch")
    peaks = gains(series, "batch", "contiguous_peak_mib", "paged_peak_mib")
    if 256 not in peaks:
        return None
    blocks = memory.sweeps()["by_batch"]["num_blocks"]
    return Outcome(
        f"{times(middle(peaks[256]))}, peaks measured",
        NOT_COMPARABLE,
        f"needs a pool of {blocks:,} blocks, as the published run has",
    )


def memory_crossing_count(published: Reference) -> Outcome:
    """Finding: paged is smaller only above a batch of 24 to 32."""
    first, standing, fitting = memory.audit().crossing[:3]
    table = memory.sweeps()["by_batch"]
    smaller = [
        n
        for n, slots, blocks in zip(table["batch"], table["contiguous_mb"], table["paged_mb"])
        if blocks < slots
    ]
    below = max(n for n in table["batch"] if n < min(smaller))
    text = (
        f"from batch {first}; from {standing} without the second set of keys that a reset holds, and from {fitting} with a "
        "pool of just the blocks in use as well"
    )
    note = f"the published sweep has no batch between {below} and {min(smaller)}, and at {min(smaller)} paged is the smaller one"
    return counted(text, below < first <= min(smaller), note)


def memory_crossing(records: Records, published: Reference) -> Outcome | None:
    """The same, measured: no chapter does."""
    return None


def flat_memory_count(published: Reference) -> Outcome:
    """Finding: paged memory is nearly flat, contiguous memory grows with the batch and runs out at 1,024."""
    found, ran = memory.audit(), memory.stress()
    paged = [memory.BASE + found.pool + memory.LOGIT_ROWS * n * found.row for n in found.batch]
    low, high = paged[0], paged[-1]
    text = (
        f"paged {low:,.0f} to {high:,.0f} MiB from batch {found.batch[0]} to {found.batch[-1]}; contiguous {memory.SLOPE} "
        f"MiB per sequence, {ran['with_reset']:.1f} GiB at batch 1,024"
    )
    exact = all(abs(ours / theirs - 1) <= EXACT for ours, theirs in zip(paged, found.paged))
    full = high / low <= 1 + TOLERANCE and ran["with_reset"] > memory.GPU_MIB / 1024
    note = f"{memory.LOGIT_ROWS} rows of logits per sequence in the paged count are fitted"
    if ran["standing"] < memory.GPU_MIB / 1024:
        note += f"; without the second set of keys that a reset holds, batch 1,024 takes {ran['standing']:.1f} GiB and fits into 80"
    return counted(text, exact and full, note)


def flat_memory(records: Records, published: Reference) -> Outcome | None:
    """The same by the measured peaks of this engine."""
    series = get(records, "04", "memory_by_batch")
    rows = [] if series is None else series.rows()
    slots, blocks = (
        {row["batch"]: peak for row in rows if (peak := row[f"{name}_peak_mib"])}
        for name in ("contiguous", "paged")
    )
    if len(slots) < 2 or len(blocks) < 2:
        return None
    grown, flat = slots[max(slots)] / slots[min(slots)], blocks[max(blocks)] / blocks[min(blocks)]
    refused = [row["batch"] for row in rows if row["contiguous_cache_mib"] is None]
    end = (
        f"refused at {min(refused):,}" if refused else f"fits at all of them, up to {max(slots):,}"
    )
    text = (
        f"paged {times(flat)} from batch {min(blocks)} to {max(blocks):,}; contiguous {times(grown)} to {max(slots):,}, "
        f"{end}"
    )
    if flat > 1 + TOLERANCE or flat >= grown:
        return Outcome(text, REFUTED)
    if not on_card(records, published):
        return Outcome(text, NOT_COMPARABLE, f"needs the memory of an {card_name(published)}")
    return Outcome(text, REPRODUCED if min(refused, default=0) == 1024 else REFUTED)


def gather_cost(records: Records, published: Reference) -> Outcome | None:
    """Finding: the copy costs 1.4 to 1.8 times the throughput."""
    cost = gains(get(records, "04", "decode_by_batch"), "batch", "paged", "contiguous")
    if not cost:
        return None
    small, large = min(cost), max(cost)
    context = get(records, "04", "decode_by_batch").params.get("context", "unknown")
    text = (
        f"{times(middle(cost[small]))} the time of a step at batch {small}, {times(middle(cost[large]))} at {large}, "
        f"{context} tokens of context"
    )
    batch, ours = _at_published_context(records)
    if ours is not None:
        text += f"; {times(ours)} at batch {batch} and 64 tokens"
    low, high = (float(found) for found in re.findall(r"\d\.\d", published["findings"][3]))
    judged = figure(
        direction(cost[large], 1),
        ours,
        (low + high) / 2,
        card=on_card(records, published),
        needs=f"an {card_name(published)} and the published context, about 60 tokens",
    )
    return Outcome(text, *judged)


def _at_published_context(records: Records) -> tuple[int | None, float | None]:
    """(batch, time over contiguous) at the context of the published sweep, 10 tokens of prompt and 50 more."""
    series = get(records, "04", "decode_by_context")
    found = gains(series, "context", "paged", "contiguous")
    return (series.params.get("batch"), middle(found[64])) if 64 in found else (None, None)


def slow_when_small(records: Records, published: Reference) -> Outcome | None:
    """Failure: paged is slower than contiguous at a small batch. Beside it, what chapter 7's kernel makes of it."""
    cost = gains(get(records, "04", "decode_by_batch"), "batch", "paged", "contiguous")
    if not cost:
        return None
    text = f"gathered {times(middle(cost[min(cost)]))} the time of a step at batch {min(cost)}"
    fused = gains(get(records, "07", "step_by_batch"), "batch", "fused", "contiguous")
    if fused:
        text += f"; fused {times(middle(fused[min(fused)]))} at batch {min(fused)}"
    way = direction(cost[min(cost)], 1)
    if way == 0:
        return Outcome(text, INCONCLUSIVE, WITHIN_NOISE)
    return Outcome(text, REPRODUCED if way > 0 else REFUTED)


def out_of_memory_count(published: Reference) -> Outcome:
    """Failure: no memory for 1,024 contiguous slots, while the paged pool serves them."""
    ran = memory.stress()
    text = (
        f"1,024 slots take {ran['with_reset']:.1f} GiB at a reset, the card has 80; a pool of {ran['blocks']:,} blocks "
        f"holds {ran['served']:,} sequences of {memory.TOKENS} tokens"
    )
    note = ""
    if ran["standing"] < memory.GPU_MIB / 1024:
        note = (
            f"without the second set of keys that a reset holds, the slots take {ran['standing']:.1f} GiB, so reserving the "
            "longest sequence is not the whole cause"
        )
    return counted(text, ran["with_reset"] > memory.GPU_MIB / 1024 and ran["served"] >= 1024, note)


def out_of_memory(records: Records, published: Reference) -> Outcome | None:
    """The same by this engine: at batch 1,024 where that was run, elsewhere on fewer bytes."""
    series, same = get(records, "04", "memory_by_batch"), get(records, "04", "same_bytes")
    row = next((row for row in (series.rows() if series else []) if row["batch"] == 1024), None)
    if row is not None:
        slots, blocks = (row[f"{name}_cache_mib"] is not None for name in ("contiguous", "paged"))
        text = " and ".join(
            f"{name} {'fits' if fits else 'is refused'}"
            for name, fits in (("contiguous", slots), ("paged", blocks))
        )
        if blocks and not on_card(records, published):
            note = f"needs the memory of an {card_name(published)}"
            return Outcome(f"at batch 1,024 {text}", NOT_COMPARABLE, note)
        return Outcome(f"at batch 1,024 {text}", REPRODUCED if blocks and not slots else REFUTED)
    if same is None:
        return None
    at_once = dict(zip(same["cache"], same["peak_running"]))
    text = (
        f"smaller: on the same {same.params['budget_bytes'] / 2**20:.0f} MiB, {at_once['contiguous']} sequences at once in "
        f"slots, {at_once['paged']} in blocks"
    )
    if at_once["paged"] <= at_once["contiguous"]:
        return Outcome(text, REFUTED)
    return Outcome(text, NOT_COMPARABLE, f"needs batch 1,024 on an {card_name(published)}")

"""The sentences of chapter 3 about one batch of equal sequences: the sweep over the batch size.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none. `packed` is the recorded run of chapter 8; see `batch_causes`.

Introduced in chapter 3.
"""

from typing import Any

from lib.bench.findings.batching.batch_causes import (
    first_cause,
    first_doubling,
    gain_cause,
    laid_out,
)
from lib.bench.findings.batching.batch_steps import (
    SWEEP,
    at_row,
    batches,
    doubling,
    gain,
    over_bound,
    ratio,
    step_ms,
)
from lib.bench.findings.curves import ordering, trend
from lib.bench.findings.values import (
    Measured,
    cell,
    column,
    ends,
    number,
    percent,
    times,
    times_between,
    value,
)
from lib.bench.findings.vocabulary import compare, missing, size_of, versus_bound, versus_prediction
from lib.bench.records.series import Series

PEERS = "batch_sweep_transformers"
RATE = "tokens/s"
WAYS = {
    "generate": "tok_s",
    "generate with a static cache": "static_cache_tok_s",
    "continuous batching": "generate_batch_tok_s",
}


def sweep(run: Any, packed: Any = None) -> dict[str, str]:
    """The sentences under the figure of the sweep."""
    series = run[SWEEP]
    ours, bound = step_ms(series), step_ms(series, "bound_tok_s")
    return (
        {
            "gain_finding": _gain(series),
            "gain_cause_finding": gain_cause(run, packed).sentence,
            "first_doubling_finding": first_doubling(series),
            "first_cause_finding": first_cause(series).sentence,
            "packed_finding": laid_out(packed).sentence,
            "doublings_finding": doublings(series),
            "twice_finding": _twice(series, ours, bound),
            "over_bound_finding": _over(series, ours, bound),
            "precision_finding": _precision(run),
        }
        | _peers(run)
        | _utilisation(series)
    )


def _gain(series: Series | None) -> str:
    got, expected = gain(series, "tok_s"), gain(series, "bound_tok_s")
    if got is None or expected is None:
        return missing("the gain of the largest batch").sentence
    shape = trend(batches(series), column(series, "tok_s"), RATE, "batch {}")
    found = versus_prediction(expected, got, "×")
    first, last = batches(series)[0], batches(series)[-1]
    return (
        f"From batch {first} to batch {last}, throughput {shape}. The largest batch has {times(got)} the throughput of "
        f"the smallest, where the bound grows {times(expected)}: {found.verdict}."
    )


def doublings(series: Series | None) -> str:
    """Which doublings of the batch gain most and least, and how far the step stays as it is after the first."""
    rates = [value(m).middle for m in column(series, "tok_s")]
    steps = [value(m).middle for m in step_ms(series)]
    sizes = batches(series)
    if len(rates) < 3 or None in rates or min(rates) <= 0:
        return missing("what each doubling gains").sentence
    gains = [b / a for a, b in zip(rates, rates[1:])]
    best, least = gains.index(max(gains)), gains.index(min(gains))
    said = (
        f"Of all doublings, the one from {sizes[best]} to {sizes[best + 1]} gains most ({times(gains[best])} the "
        f"throughput), and the one from {sizes[least]} to {sizes[least + 1]} least ({times(gains[least])})."
    )
    if size_of(gains[best] / gains[least]) == "about":
        each = times_between(gains[least], gains[best])
        said = f"All doublings gain about the same, {each} the throughput."
    later = [step / steps[1] for step in steps[2:]]
    free = next((i for i, r in enumerate(later) if r > 1 and size_of(r) != "about"), len(later))
    if not free:
        return f"{said} A step at batch {sizes[2]} takes {times(later[0])} as long as one at batch {sizes[1]}."
    to = f"From batch {sizes[1]} to batch {sizes[1 + free]} a step takes"
    if all(size_of(r) == "about" for r in later[:free]):
        return f"{said} {to} about the same time."
    return f"{said} {to} no more time than at batch {sizes[1]}."


def _twice(series: Series | None, ours: list[Measured], bound: list[Measured]) -> str:
    if ratio(ours) is None or ratio(bound) is None:
        return missing("the batch at which a step takes twice as long").sentence
    got, expected = doubling(series, ours), doubling(series, bound)
    largest = batches(series)[-1]
    where = [
        f"at batch {number(round(b))}" if b is not None else f"at no batch up to {largest}"
        for b in (got, expected)
    ]
    said = f"A step takes twice as long as alone {where[0]}, and its bound {where[1]}"
    if got is None or expected is None:
        return f"{said}."
    verdict = versus_prediction(expected, got, "").verdict
    if verdict == "as predicted" and over_bound(series, 0) and over_bound(series, 0) > 1.25:
        return (
            f"{said}: as predicted, but for another reason, since a step of one takes {times(over_bound(series, 0))} its "
            "bound."
        )
    return f"{said}: {verdict}."


def _over(series: Series | None, ours: list[Measured], bound: list[Measured]) -> str:
    first, last = (versus_bound(at_row(bound, row), at_row(ours, row), "ms") for row in (0, -1))
    if "missing" in (first.kind, last.kind):
        return missing("the time of a step over its bound").sentence
    sizes = batches(series)
    return f"A step is {first} at batch {sizes[0]}, and {last} at batch {sizes[-1]}."


def _at(series: Series | None, name: str, batch: int) -> Measured:
    sizes = batches(series)
    return cell(series, name, sizes.index(batch)) if batch in sizes else None


def _peers(run: Any) -> dict[str, str]:
    ours, theirs = run[SWEEP], run[PEERS]
    sizes = batches(theirs)
    names = ("this engine", "transformers")
    said = [
        (b, compare(_at(ours, "tok_s", b), _at(theirs, "tok_s", b), *names, what="throughput", unit=RATE))
        for b in dict.fromkeys((sizes[0], sizes[-1]) if sizes else ())
    ]  # fmt: skip
    known = [f"at batch {b}, {found}" for b, found in said if found.kind != "missing"]
    first = f"{'; '.join(known)}." if known else missing("transformers").sentence
    ways = []
    for b in sizes:
        found = {name: _at(theirs, c, b) for name, c in WAYS.items()}
        if sum(value(m).known for m in found.values()) > 1:
            ways.append(f"at batch {b}, {ordering(found, RATE, smallest_first=False)}")
    other = f"Of its ways, {'; '.join(ways[-2:])}." if ways else (
        "Its static cache and its continuous batching were not measured in this sweep; they take part at the scale of a GPU."
    )  # fmt: skip
    return {"transformers_finding": first[:1].upper() + first[1:], "peer_ways_finding": other}


def _precision(run: Any) -> str:
    ours, said = run[SWEEP], []
    for dtype in ("tf32", "bfloat16", "float16"):
        other = run[f"batch_sweep_{dtype}"]
        for row, batch in ((-1, "largest"), (0, "smallest")):
            pair = [at_row(column(s, "tok_s"), row) for s in (other, ours)]
            if all(value(m).known for m in pair):
                found = compare(*pair, dtype, "float32", what="throughput", unit=RATE)
                said.append(f"at the {batch} batch, {found}")
    if not said:
        return "Other dtypes were not measured here; the sweep has them at the scale of a GPU."
    text = "; ".join(said)
    return f"{text[:1].upper()}{text[1:]}."


def _utilisation(series: Series | None) -> dict[str, str]:
    read, done = ([value(m).middle for m in column(series, name)] for name in ("mbu", "mfu"))
    text = missing("the share of the ceilings").sentence
    if read and done and None not in (read[0], read[-1], done[0], done[-1]):
        sizes = batches(series)
        text = (
            f"At batch {sizes[0]} the run used {percent(read[0])} of the bandwidth and {percent(done[0])} of the "
            f"arithmetic; at batch {sizes[-1]}, {percent(read[-1])} and {percent(done[-1])}."
        )
        if read[-1] < 0.9 * read[0] and done[-1] > 1.1 * done[0]:
            text += " A larger batch uses less of the first ceiling and more of the second."
        if max(read[0], read[-1], done[0], done[-1]) > 1:
            text += " More than 100 % says that a ceiling was measured too low."
    busy, driver = ends(series, "gpu_busy"), ends(series, "nvml_mb")[1]
    counted = "The driver's own counts were not measured here."
    if all(value(m).known for m in (*busy, driver)):
        counted = (
            f"It was {number(round(value(busy[0]).middle))} % at the smallest batch and "
            f"{number(round(value(busy[1]).middle))} % at the largest. The driver's count of memory, "
            f"{number(round(value(driver).middle))} MB there, is of the whole GPU: the CUDA context, this chapter's other "
            "engine, and what the allocator keeps for later are in it."
        )
    return {"utilisation_finding": text, "driver_finding": counted}

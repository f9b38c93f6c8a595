"""The sentences of chapter 3 about one batch of equal sequences: the sweep over the batch size.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None where it has none.
`packed` is the recorded run of chapter 8, whose products with weights laid out once explain what the first doubling costs.

Introduced in chapter 3.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lib.bench.findings.curves import growth, ordering, trend
from lib.bench.findings.values import (
    Measured,
    cell,
    column,
    ends,
    number,
    percent,
    quantity,
    times,
    value,
)
from lib.bench.findings.vocabulary import (
    Finding,
    compare,
    missing,
    share,
    size_of,
    versus_bound,
    versus_prediction,
)
from lib.bench.measure import counts
from lib.bench.measure.batch_model import step_times, turning_point
from lib.bench.measure.data_sheets import H100, LLAMA_7B
from lib.bench.records.series import Series
from lib.models.checkpoint import GPT2_CONFIG

SWEEP, PEERS = "batch_sweep_float32", "batch_sweep_transformers"
RATE = "tokens/s"
WAYS = {
    "generate": "tok_s",
    "generate with a static cache": "static_cache_tok_s",
    "generate_batch": "generate_batch_tok_s",
}


def batches(series: Series | None) -> list[int]:
    return [] if series is None else list(series["batch"])


def step_ms(series: Series | None, name: str = "tok_s") -> list[Measured]:
    """Milliseconds of a step at each batch, from a column of rates, with the spread of its repeats."""
    found: list[Measured] = []
    for batch, rates in zip(batches(series), column(series, name)):
        samples = rates if isinstance(rates, list) else [rates]
        found.append([1e3 * batch / rate for rate in samples if rate and rate > 0] or None)
    return found


def _row(measured: Sequence[Measured], row: int) -> Measured:
    return measured[row] if -len(measured) <= row < len(measured) else None


def ratio(measured: Sequence[Measured], row: int = -1) -> float | None:
    """The value at `row` over the first one; None where one of them is missing."""
    return growth(_row(measured, 0), _row(measured, row))


def gain(series: Series | None, name: str) -> float | None:
    """How many times a column grows from the smallest batch to the largest."""
    return growth(*ends(series, name))


def doubling(series: Series | None, measured: Sequence[Measured]) -> float | None:
    """The batch at which a step takes twice as long as the first, read off between two measured ones; None: not reached."""
    found = [(b, v.middle) for b, m in zip(batches(series), measured) if (v := value(m)).known]
    for (a, low), (b, high) in zip(found, found[1:]):
        if high >= 2 * found[0][1] > low > 0:
            part = math.log(2 * found[0][1] / low) / math.log(high / low)
            return a * (b / a) ** part
    return None


# The prediction, by counts.


def turning(points: Mapping[tuple[str, int], int | None]) -> dict[str, str]:
    """Where decoding turns from bandwidth to arithmetic: {(dtype, tokens of a sequence): batch, or None for none}."""
    said = []
    for length in dict.fromkeys(length for _, length in points):
        found = {dtype: batch for (dtype, n), batch in points.items() if n == length}
        reached = [f"at batch {b:,} in {dtype}" for dtype, b in found.items() if b is not None]
        never = [dtype for dtype, b in found.items() if b is None]
        if never and not reached:
            among = " or ".join(never)
            where = f"no batch is large enough, in {among}"
            said.append(f"with sequences of {number(length)} tokens {where}")
            continue
        if never:
            reached.append(f"at no batch in {' or '.join(never)}")
        said.append(f"with sequences of {number(length)} tokens it turns {' and '.join(reached)}")
    text = "; ".join(said)
    return {"turning_finding": f"{text[:1].upper()}{text[1:]}."}


def realistic_rows(length: int = 1000) -> list[list[str]]:
    """One decode step of a 7B model in bfloat16 on an H100, by its data sheet: batch, read, caches, time, throughput."""
    weights = counts.streamed_bytes(LLAMA_7B, "bfloat16")
    rows = []
    for batch in (1, 8, 64, room(length)):
        read = counts.step_bytes(LLAMA_7B, "bfloat16", [length] * batch)
        moving, computing = step_times(LLAMA_7B, H100, batch, length, "bfloat16")
        step = max(moving, computing)
        rows.append(
            [
                f"{batch:,}",
                f"{read / 1e9:.1f}",
                percent(1 - weights / read),
                f"{1e3 * moving:.2f}",
                f"{1e3 * computing:.2f}",
                f"{batch / step:,.0f}",
            ]
        )
    return rows


def room(length: int, memory: float = 80e9) -> int:
    """Sequences whose caches fit beside the 7B model's weights: 80 GB on the H100's data sheet."""
    free = memory - counts.weight_bytes(LLAMA_7B, "bfloat16")
    return int(free // (length * counts.kv_bytes_per_token(LLAMA_7B, "bfloat16")))


def realistic(length: int = 1000) -> dict[str, str]:
    """The same arithmetic for a 7B model in bfloat16 on an H100."""
    batch = turning_point(LLAMA_7B, H100, length, "bfloat16")
    most = room(length)
    each = counts.decode_flops(LLAMA_7B, length)
    own = each / (length * counts.kv_bytes_per_token(LLAMA_7B, "bfloat16"))
    one, all_ = (max(step_times(LLAMA_7B, H100, b, length, "bfloat16")) for b in (1, most))
    ends_at = (
        f"no batch is bound by arithmetic: a sequence needs {number(round(own))} operations per "
        f"byte of its own cache, and the machine could do {number(round(H100.ridge('bfloat16')))}"
        if batch is None
        else f"arithmetic takes over at batch {batch:,}"
    )
    return {
        "realistic_finding": (
            f"With sequences of {number(length)} tokens {ends_at}. Memory is the limit first: "
            f"{most} such sequences fit beside "
            f"the weights. A step with all of them takes {times(all_ / one)} as long as a step "
            f"with one, so batching gives {times(most * one / all_)} the throughput there, and "
            f"not {most} times."
        )
    }


# The measured sweep.


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


def over_bound(series: Series | None, row: int) -> float | None:
    """Time of a step over its bound."""
    return growth(_row(step_ms(series, "bound_tok_s"), row), _row(step_ms(series), row))


def gain_cause(run: Any, packed: Any = None) -> Finding:
    """Why the batch gains more, or less, than the bounds allow.

    kind: "products" or "around" (what the first step spends its time on), "late" (the largest batch is the slow one),
    "about" (nothing to explain), "cannot tell" (the first step's time was not split), "missing".
    """
    series = run[SWEEP]
    first, last = over_bound(series, 0), over_bound(series, -1)
    if first is None or last is None:
        return missing("the time of a step over its bound")
    small, large = batches(series)[0], batches(series)[-1]
    if size_of(first / last) == "about":
        return Finding("the first step and the last are equally far above their bounds", "about")
    if first < last:
        return Finding(
            f"a step of {large} is further above its bound than a step of {small} ({times(last)} against {times(first)}), "
            "and a gain is what the last has over the first",
            "late",
        )
    said = (
        f"a step of {small} is further above its bound than a step of {large} ({times(first)} against {times(last)}), and "
        "a gain is measured from the first"
    )
    found = _first_step(run, packed)
    if found.kind == "missing":
        return Finding(
            f"{said}; what that first step spends its time on was not measured here", "cannot tell"
        )
    return Finding(f"{said}. {found.sentence.removesuffix('.')}", found.kind, found.ratio)


def _first_step(run: Any, packed: Any) -> Finding:
    """What a step of one sequence spends its time on: by this chapter's products, else by chapter 8's profile."""
    series = run[SWEEP]
    alone, step = _row(column(series, "products"), 0), _row(step_ms(series), 0)
    part = growth(step, alone)
    where = "of that first step"
    if part is None:
        kinds = packed["time_by_kind"] if packed is not None else None
        part = value(cell(kinds, "matrix products", 0)).middle
        where = "of a step of one sequence, in chapter 8's recorded run with SmolLM2,"
    if part is None or part <= 0:
        return missing("the first step's share of products")
    if part > 1.1:
        return Finding(
            "the products alone took longer than the step, so this run cannot say why",
            "cannot tell",
        )
    part = min(1.0, part)
    if part < 0.55:
        said = f"{percent(1 - part)} {where} is spent around the products, on work that a batch shares as it shares the weights"
        return Finding(said, "around", part)
    row, roofline = value(_row(column(series, "products_step"), 0)).middle, run.roofline
    rate = ""
    if row and row > 0 and roofline is not None:
        read = counts.streamed_bytes(GPT2_CONFIG, "float32") / (row / 1e3)
        rate = f": with one row they read the weights at {quantity(read, 'B/s')} of {quantity(roofline.bandwidth, 'B/s')}"
    return Finding(f"{share(part)} {where} is in the products{rate}", "products", part)


def first_doubling(series: Series | None) -> str:
    """The first doubling of the batch, which the bound says is free."""
    ours, bound = step_ms(series), step_ms(series, "bound_tok_s")
    got, expected = ratio(ours, 1), ratio(bound, 1)
    if got is None or expected is None:
        return missing("the first doubling").sentence
    small, large = batches(series)[:2]
    verdict = versus_prediction(expected, got, "×").verdict
    both = (
        f"{quantity(value(ours[1]).middle, 'ms')} against {quantity(value(ours[0]).middle, 'ms')}"
    )
    return (
        f"A step of {large} sequences takes {times(got)} as long as a step of {small} ({both}), where its bound takes "
        f"{times(expected)}: {verdict}."
    )


def first_cause(series: Series | None) -> Finding:
    """Whether the products alone explain the first doubling. kind: "products", "around", "about" (no extra time)."""
    got, alone = ratio(step_ms(series), 1), ratio(column(series, "products"), 1)
    if got is None or alone is None:
        return missing("the time of the products alone")
    large = batches(series)[1]
    said = f"the matrix products of these steps, timed alone, take {times(alone)} as long with {large} sequences"
    if got <= 1.1:
        return Finding(said, "about", alone)
    steps, products = (
        [value(m).middle for m in (_row(c, 0), _row(c, 1))]
        for c in (step_ms(series), column(series, "products"))
    )
    part = (products[1] - products[0]) / (steps[1] - steps[0])
    if part >= 0.55:
        return Finding(f"{said}: the step's extra time is theirs", "products", part)
    return Finding(f"{said}, which explains only a part of the step's extra time", "around", part)


def laid_out(packed: Any) -> Finding:
    """The same doubling with weights laid out once, from chapter 8's recorded run.

    kind: "free" where it costs nothing there and something with PyTorch's own products, else "other".
    """
    series = packed["products"] if packed is not None else None
    plain, once = (column(series, f"{name}, float32") for name in ("F.linear", "packed"))
    before, after = ratio(plain, 1), ratio(once, 1)
    if before is None or after is None:
        return missing("a product whose weights are laid out once")
    small, large = batches(series)[:2]
    said = (
        f"in chapter 8's recorded run of {packed.date}, with SmolLM2, PyTorch's own products with {large} rows take "
        f"{times(before)} as long as those with {small}; with weights that are laid out once, {times(after)}"
    )
    if after <= 1.1 < before:
        return Finding(f"{said}, and there the larger batch takes no more time", "free", after)
    return Finding(said, "other", after)


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
    last = 1
    while last + 1 < len(steps) and size_of(steps[last + 1] / steps[1]) == "about":
        last += 1
    if last > 1:
        return (
            f"{said} From batch {sizes[1]} to batch {sizes[last]} a step takes about the same time."
        )
    return f"{said} From batch {sizes[1]} on, no larger batch was free."


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
    first, last = (versus_bound(_row(bound, row), _row(ours, row), "ms") for row in (0, -1))
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
        "Its static cache and its generate_batch were not measured here; they run at the scale of a GPU."
    )  # fmt: skip
    return {"transformers_finding": first[:1].upper() + first[1:], "peer_ways_finding": other}


def _precision(run: Any) -> str:
    ours, said = run[SWEEP], []
    for dtype in ("tf32", "bfloat16", "float16"):
        other = run[f"batch_sweep_{dtype}"]
        for row, batch in ((-1, "largest"), (0, "smallest")):
            pair = [_row(column(s, "tok_s"), row) for s in (other, ours)]
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


def published_memory(sweep: Mapping[str, Sequence[float]], per_token: float) -> dict[str, str]:
    """How steeply the published memory grows, against a reservation of 1,024 tokens for each sequence."""
    (b0, b1), (m0, m1) = ((sweep[c][0], sweep[c][-1]) for c in ("batch", "peak_mb"))
    slope, reserved = (m1 - m0) / (b1 - b0), 1024 * per_token / 1e6
    both = f"the published memory grows by {number(slope)} MB for each further sequence, and this reservation by {number(reserved)} MB"
    kind = "about as steeply as the reservation" if size_of(slope / reserved) == "about" else (
        "more steeply than the reservation" if slope > reserved else "less steeply than the reservation"
    )  # fmt: skip
    return {"published_memory_finding": f"By the first and the last batch, {both}: {kind}."}


def published_gain(sweep: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """The published gain between the smallest and the largest batch."""
    grown = sweep["tok_s"][-1] / sweep["tok_s"][0]
    said = f"The published run gained {times(grown)} from batch {sweep['batch'][0]} to batch {sweep['batch'][-1]}."
    return {"published_gain_finding": said}

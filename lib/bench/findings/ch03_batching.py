"""The sentences of chapter 3 that depend on what was measured; those of its batch sweep are in `batch_sweep`.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None where it has none.

Introduced in chapter 3.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lib.bench.findings import batch_sweep, vllm_batches
from lib.bench.findings.batch_sweep import (
    SWEEP,
    published_gain,
    published_memory,
    realistic,
    realistic_rows,
    sweep,
    turning,
)
from lib.bench.findings.curves import growth
from lib.bench.findings.predictions import Prediction
from lib.bench.findings.values import (
    Measured,
    cell,
    column,
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
    versus_prediction,
)
from lib.bench.measure import counts
from lib.bench.records.files import Run, read_records, reference
from lib.bench.records.published_vllm import published_vllm
from lib.bench.records.series import Series
from lib.models.checkpoint import GPT2_CONFIG

__all__ = ["budget", "chat", "equal", "padding", "predictions", "published_equal", "published_gain", "published_memory",
           "realistic", "realistic_rows", "render", "sweep", "turning", "variable"]  # fmt: skip

CHAT, VARIABLE, EQUAL, BUDGET = "chat", "variable_lengths", "equal_lengths", "token_budget"
RATE = "tokens/s"
# Claims whose reason is one for being right, and not for being wrong.
CONFIRMED = ("batch at which", "gain of continuous batching, equal lengths")
STATIC, CONTINUOUS = "static batching", "continuous batching"


def row(series: Series | None, *prefixes: str) -> int:
    """The row whose engine begins with a prefix; with two, the second among those of the first; -1000 for none."""
    if series is None or "engine" not in series:
        return -1000
    found = [i for i, name in enumerate(series["engine"]) if str(name).startswith(prefixes[0])]
    place = len(prefixes) - 1
    return found[place] if len(found) > place else -1000


def over(series: Series | None, name: str, a: int, b: int) -> float | None:
    """Row a over row b of a column."""
    return growth(cell(series, name, b), cell(series, name, a))


# Padding.


def padding(run: Any) -> dict[str, str]:
    """The time of a padded pass against its tokens."""
    series = run["padding"]
    tokens, seconds = over(series, "tokens", 0, 1), _padding_time(series)
    if tokens is None or not value(seconds).known:
        return {"padding_finding": missing("the time of the padded pass").sentence}
    verdict = versus_prediction(tokens, seconds, "×").verdict
    return {
        "padding_finding": (
            f"Its forward pass took {times(value(seconds).middle)} as long as the flat one, for {times(tokens)} the "
            f"tokens: {verdict}."
        )
    }


def _padding_time(series: Series | None) -> Measured:
    """Time of the padded pass over the flat one, with the spread of the turns."""
    padded, flat = cell(series, "seconds", 0), cell(series, "seconds", 1)
    middle = value(flat).middle
    if middle is None or middle <= 0 or not value(padded).known or value(padded).middle <= 0:
        return None
    samples = padded if isinstance(padded, list) else [padded]
    return [s / middle for s in samples]


# Two schedulers, with the same slots.


def promise(promised: float | None, got: float | None) -> str:
    """A gain against the one that the count of steps promises, which is the most that is expected."""
    if promised is None or got is None:
        return missing("the gain against the count of steps").sentence
    if got > 1.1 * promised:
        return (
            f"That is {times(got)}, more than the {times(promised)} that the steps predict: a "
            f"step of one of the two was "
            "faster, or the machine changed between them."
        )
    if got >= promised / 1.1:
        return f"The steps predict {times(promised)}, and {times(got)} is about as much."
    if got <= 1:
        return f"The steps predict {times(promised)}; the throughput gained nothing ({times(got)})."
    return f"The steps predict at most {times(promised)}, and {times(got)} is less, as predicted."


def _schedulers(series: Series | None, static: int, continuous: int) -> tuple[str, str]:
    """(the comparison of throughput, with the promise of the steps; the reason, where the steps show it)."""
    found = compare(cell(series, "tok_s", continuous), cell(series, "tok_s", static), CONTINUOUS, STATIC,
                    what="throughput", unit=RATE)  # fmt: skip
    if found.kind in ("missing", "undefined"):
        return missing("the throughput of the two schedulers").sentence, ""
    promised, got = over(series, "steps", static, continuous), found.ratio
    if found.kind == "cannot tell":
        return found.sentence, ""
    return f"{found.sentence} {promise(promised, got)}", _fuller(series, static, continuous)


def _fuller(series: Series | None, static: int, continuous: int) -> str:
    """Why the gain is less than the steps promise: fuller steps that take longer; empty where that is not measured."""
    found = []
    for i in (static, continuous):
        steps, seconds, places, idle = (
            value(cell(series, name, i)).middle
            for name in ("steps", "seconds", "slot_steps", "idle_slot_steps")
        )
        if None in (steps, seconds, places, idle) or steps <= 0 or seconds <= 0 or places < idle:
            return ""
        found.append((seconds / steps, (places - idle) / steps))
    (before, few), (after, many) = found
    if after > 1.05 * before and many > few:
        return (
            f" A step held {many:.1f} sequences on average in place of {few:.1f}, and took "
            f"{quantity(after, 's')} in place of {quantity(before, 's')}."
        )
    return ""


def chat(run: Any) -> dict[str, str]:
    """Under the timeline of the chat."""
    series = run[CHAT]
    said, why = _schedulers(series, 0, 1)
    static, continuous = (cell(series, "ttft_mean_s", i) for i in (0, 1))
    found = compare(continuous, static, "one", "the other")
    if found.kind in ("missing", "undefined"):
        first = missing("the mean TTFT").sentence
    else:
        both = f"{quantity(value(continuous).middle, 's')} under continuous batching and {quantity(value(static).middle, 's')} under static"
        first = f"The mean TTFT was {both}"
        first += (
            ": a request in the second batch of a static engine waits for the slowest of the first."
            if found.direction < 0
            else ", so this run shows no shorter wait."
        )
    return {"chat_finding": said + why, "chat_ttft_finding": first, "idle_finding": _idle(series)}


def _idle(series: Series | None) -> str:
    parts = [
        share(cell(series, "idle_slot_steps", i), cell(series, "slot_steps", i)) for i in (0, 1)
    ]
    if any(part.ratio is None or part.ratio > 1 for part in parts):
        return missing("the share of idle slots").sentence
    static, continuous = (percent(part.ratio) for part in parts)
    return f"Under static batching {static} of the slot-steps computed nothing, under continuous batching {continuous}."


def variable(run: Any) -> dict[str, str]:
    """Under the figure of the workload with variable lengths."""
    series = run[VARIABLE]
    static, narrow, wide = (
        row(series, "static"),
        row(series, "continuous"),
        row(series, "continuous", ""),
    )
    generate, manager = (
        row(series, "transformers generate,"),
        row(series, "transformers generate_batch"),
    )
    said, why = _schedulers(series, static, narrow)

    def rates(a: int, b: int, a_name: str, b_name: str) -> Finding:
        pair = (cell(series, "tok_s", i) for i in (a, b))
        return compare(*pair, a_name, b_name, what="throughput", unit=RATE)

    slots = (
        f"the engine with {series.params['slots']} slots" if series else "the engine with few slots"
    )
    roomy = rates(wide, narrow, "the engine with a slot for every request", slots)
    step = rates(static, generate, "our static scheduler", "transformers generate")
    best = rates(
        wide, generate, "the engine with a slot for every request", "transformers generate"
    )
    other = rates(wide, manager, "the engine with a slot for every request", "generate_batch")
    near = rates(narrow, manager, slots, "generate_batch")
    peers = [f.sentence for f in (best, other, near) if f.kind != "missing"]
    against = " ".join(peers) or missing("transformers").sentence
    if other.kind == "missing":
        against += " Generate_batch did not run here." if peers else ""
    elif other.direction:
        against += " Neither the wide engine nor generate_batch has a queue, so what differs is the time of a step."
    return {
        "variable_finding": said + why,
        "wide_finding": roomy.sentence,
        "step_finding": step.sentence,
        "peers_finding": against,
    }


def same_answers(same: int | None, requests: int) -> dict[str, str]:
    """How many of this run's answers are transformers' to the last token; `same` is None where it did not run."""
    said = "transformers' generate did not run here, so that its answers could not be compared."
    if same is not None:
        said = (
            f"In this run {same} of {requests} answers are the same to the last token. The two add up their sums in "
            "different orders, which can decide between two tokens with almost the same logit."
        )
        if same == requests:
            said = f"In this run all {requests} answers are the same to the last token."
    return {"same_answers_finding": said}


def equal(run: Any) -> dict[str, str]:
    """Both schedulers on answers of one length."""
    series = run[EQUAL]
    found = compare(
        cell(series, "tok_s", 1),
        cell(series, "tok_s", 0),
        CONTINUOUS,
        STATIC,
        what="throughput",
        unit=RATE,
    )
    steps = [value(cell(series, "steps", i)).middle for i in (0, 1)]
    if found.kind in ("missing", "undefined") or None in steps:
        return {"equal_finding": missing("the run with equal lengths").sentence}
    if found.direction and steps[0] == steps[1]:
        said = f"{found.sentence} With the same {number(steps[0])} steps the scheduler cannot be the cause: "
        said += (
            "two timings of the same work differ by as much here."
            if found.kind == "little"
            else "something else changed between the two, so this run does not compare them."
        )
    else:
        said = f"Here, {found}."
    return {"equal_finding": said}  # fmt: skip


def published_equal(published: Any) -> dict[str, str]:
    """The published comparison of the two schedulers, and the batch of the published sweep that has its rate."""
    found, curve = published["continuous_vs_static"], published["batch_sweep"]
    static, continuous = found["static_tok_s"], found["continuous_tok_s"]
    said = compare(continuous, static, CONTINUOUS, STATIC, what="throughput", unit=RATE)
    batch, rate = min(zip(curve["batch"], curve["tok_s"]), key=lambda pair: abs(pair[1] - static))
    near = "No batch of the published sweep has that rate."
    if size_of(rate / static) == "about":
        near = (
            f"The published sweep has about that rate ({quantity(rate, RATE)}) at batch {batch}, which suggests that many "
            "slots."
        )
    return {"published_equal_finding": f"In the published run, {said}. {near}"}


# A long prompt arrives.


def budget(run: Any) -> dict[str, str]:
    """A long prompt in one step, or in chunks."""
    series = run[BUDGET]
    gaps, firsts = (
        [cell(series, name, i) for i in (0, 1)] for name in ("longest_gap_s", "ttft_long_s")
    )
    gap, first = (compare(b, a, "chunks", "one step") for a, b in (gaps, firsts))
    if {gap.kind, first.kind} & {"missing", "undefined"}:
        text = missing("the long prompt").sentence
        names = ("gap_finding", "late_finding", "trade_finding", "chunk_finding")
        return dict.fromkeys(names, text)
    large, small = (number(value(cell(series, "budget", i)).middle or 0) for i in (0, 1))
    said = [
        f"{quantity(value(b).middle, 's')} with a budget of {small} tokens and {quantity(value(a).middle, 's')} with {large}"
        for a, b in (gaps, firsts)
    ]
    return {
        "gap_finding": f"The longest gap between two tokens of a running sequence was {said[0]}: {_factor(gap, 'shorter', 'longer')}.",
        "late_finding": f"The first token of the new request came after {said[1]}: "
        f"{_factor(first, 'earlier', 'later')}.",
        "trade_finding": _trade(gap, first),
        "chunk_finding": _chunks(run),
    }


def _factor(found: Finding, less: str, more: str) -> str:
    if found.kind == "cannot tell":
        return "this run cannot tell them apart"
    if not found.direction:
        return "about the same"
    factor = max(found.ratio, 1 / found.ratio)
    if found.kind == "little":
        return f"a little {less if found.direction < 0 else more} ({percent(factor - 1)})"
    return f"{less if found.direction < 0 else more} by a factor of {times(factor).removesuffix(' times')}"


def _trade(gap: Finding, first: Finding) -> str:
    if gap.direction < 0 and first.direction > 0:
        return "The budget trades one for the other."
    if gap.direction < 0:
        return (
            "In this run the chunks did not delay the new request by more than the repeats differ."
        )
    return "In this run the chunks made no gap shorter, so the prediction failed."


def _chunks(run: Any) -> str:
    """The prediction in proportion to the tokens, its verdicts and its cause."""
    series = run[BUDGET]
    tokens = over(series, "budget", 0, 1)
    shrunk, delayed = over(series, "longest_gap_s", 0, 1), over(series, "ttft_long_s", 1, 0)
    if None in (tokens, shrunk, delayed):
        return missing("the long prompt").sentence
    gap, first = versus_prediction(tokens, shrunk, "×"), versus_prediction(1.0, delayed, "×")
    said = (
        f"In proportion to the tokens of a step, the longest gap would be {times(tokens)} shorter; it was {times(shrunk)}: "
        f"{gap.verdict}. The new request would wait as long as before; it waited "
        f"{times(delayed)} as long: {first.verdict}."
    )
    cause = chunk_cause(run)
    if "failed" in (gap.kind, first.kind) and cause.kind == "products":
        said += f" A chunk has fewer rows: {cause}."
    return said


def chunk_cause(run: Any) -> Finding:
    """Why a chunk takes more than its share of the whole prompt's time: the products alone. kind: "products" or "missing"."""
    series = run[BUDGET]
    alone = over(series, "products_s", 0, 1)
    tokens, got = over(series, "budget", 0, 1), over(series, "longest_gap_s", 0, 1)
    if None in (alone, tokens, got):
        return missing("the products of a chunk alone")
    large, small = (number(value(cell(series, "budget", i)).middle) for i in (0, 1))
    said = f"the products alone, with {large} rows in place of {small}, take {times(alone)} as long for {times(tokens)} the rows"
    fits = alone < tokens / 1.1 and got < tokens / 1.1
    return Finding(said, "products" if fits else "other", alone)


# The table at the end.


def predictions(run: Any, packed: Any = None) -> list[Prediction]:
    """The chapter's predictions; `packed`: chapter 8's recorded run. `run[name]` may come from different runs."""
    found = _sweep_predictions(run, packed) + _scheduler_predictions(run)
    return [_without_excuse(prediction) for prediction in found]


def _sweep_predictions(run: Any, packed: Any) -> list[Prediction]:
    series = run[SWEEP]
    ours, bound = batch_sweep.step_ms(series), batch_sweep.step_ms(series, "bound_tok_s")
    products = column(series, "products")
    cause, first = batch_sweep.gain_cause(run, packed), batch_sweep.first_cause(series)
    if first.kind == "missing" and batch_sweep.laid_out(packed).kind == "free":
        first = replace(batch_sweep.laid_out(packed), kind="products")
    got = batch_sweep.gain(series, "tok_s")
    sizes = batch_sweep.batches(series)
    alone = batch_sweep.ratio(products)
    high = batch_sweep.over_bound(series, 0)
    slow_start = ""
    if high and high > 1.25:
        slow_start = f"for another reason than the bound's: a step of {sizes[0]} takes {times(high)} its bound"
    by_products = sizes[-1] / sizes[0] / alone if alone and sizes else None
    return [
        Prediction("time of a padded pass over a flat one, from the tokens",
                   over(run["padding"], "tokens", 0, 1), _padding_time(run["padding"]), "", "×"),
        Prediction("time of a step, second batch over the first, from the bound", batch_sweep.ratio(bound, 1),
                   batch_sweep.ratio(ours, 1), first.text if first.kind == "products" else "", "×"),
        Prediction("the same, from the products timed alone", batch_sweep.ratio(products, 1), batch_sweep.ratio(ours, 1),
                   "", "×"),
        Prediction("batch at which a step takes twice as long as alone, from the bound",
                   batch_sweep.doubling(series, bound), batch_sweep.doubling(series, ours), slow_start, ""),
        Prediction("gain from the smallest batch to the largest, from the bound", batch_sweep.gain(series, "bound_tok_s"),
                   got, cause.text if cause.kind in ("products", "around", "late") else "", "×"),
        Prediction("the same, from the products timed alone", by_products, got, "", "×"),
    ]  # fmt: skip


def _scheduler_predictions(run: Any) -> list[Prediction]:
    made = []
    lengths = run[VARIABLE]
    pairs = (
        ("chat", run[CHAT], 0, 1),
        ("variable lengths", lengths, row(lengths, "static"), row(lengths, "continuous")),
    )
    for name, series, static, continuous in pairs:
        why = _fuller(series, static, continuous).strip().removesuffix(".")
        promised = over(series, "steps", static, continuous)
        got = over(series, "tok_s", continuous, static)
        # Less than the steps promise is expected, less than nothing is not.
        sense = "at most" if got is None or got >= 1 else ""
        made.append(
            Prediction(
                f"gain of continuous batching, {name}, from the steps",
                promised,
                got,
                why,
                "×",
                sense,
            )  # fmt: skip
        )
    equal_run, long = run[EQUAL], run[BUDGET]
    chunks, cause = value(cell(long, "prompt_steps", 1)).middle, chunk_cause(run)
    alone = over(long, "products_s", 1, 0)
    why = cause.text if cause.kind == "products" else ""
    return made + [
        Prediction("gain of continuous batching, equal lengths, from the steps", over(equal_run, "steps", 0, 1),
                   over(equal_run, "tok_s", 1, 0), "both take the same steps", "×"),
        Prediction("longest gap, whole prompt over chunks, in proportion to the tokens", over(long, "budget", 0, 1),
                   over(long, "longest_gap_s", 0, 1), why, "×"),
        Prediction("the same, from the products timed alone", over(long, "products_s", 0, 1),
                   over(long, "longest_gap_s", 0, 1), "", "×"),
        Prediction("TTFT of the long prompt, chunks over one step, in proportion to the tokens",
                   1.0 if chunks else None, over(long, "ttft_long_s", 1, 0), why, "×"),
        Prediction("the same, from the products timed alone", chunks * alone if chunks and alone else None,
                   over(long, "ttft_long_s", 1, 0), "", "×"),
    ]  # fmt: skip


def _without_excuse(prediction: Prediction) -> Prediction:
    """A cause of a deviation stands beside a deviation only; that of a confirmed limit or equality stays."""
    failed = prediction.verdict == "the prediction failed"
    off = failed or prediction.verdict.startswith("a little")
    confirms = bool(prediction.sense) or prediction.claim.startswith(CONFIRMED)
    fits = prediction.verdict == "as predicted" if confirms else off
    why = prediction.why if fits else ""
    return replace(prediction, why=why or ("no cause was measured" if failed else ""))


class Mixed:
    """One run for the table at the end, put together from the runs that each experiment showed."""

    def __init__(self, first: Any, others: Mapping[str, Any]):
        self._first, self._others, self.roofline = first, others, first.roofline

    def __getitem__(self, name: str) -> Series | None:
        return self._others.get(name, self._first)[name]


def chapter_8(slug: str | None = None) -> Run | None:
    """Chapter 8's recorded run, of this hardware where there is one: its products with weights laid out once."""
    runs = read_records("08_launch_overhead")
    own = [run for run in runs if run.slug == slug]
    return (own or runs or [None])[0]


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    published = reference()
    fingerprint = getattr(run, "data", {}).get("fingerprint", {})
    packed = chapter_8(fingerprint.get("hardware", {}).get("slug"))
    return (
        turning({("float32", 11): 13, ("bfloat16", 11): None})
        | realistic()
        | padding(run)
        | sweep(run, packed)
        | published_gain(published["batch_sweep"])
        | published_memory(published["batch_sweep"], counts.kv_bytes_per_token(GPT2_CONFIG, "float32"))
        | vllm_batches.sentences(published, published_vllm())
        | chat(run)
        | variable(run)
        | same_answers(None, 48)
        | equal(run)
        | published_equal(published)
        | budget(run)
    )  # fmt: skip

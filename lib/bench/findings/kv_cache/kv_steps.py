"""One step without and with a KV cache: models fitted to a run's two ends, and how well each describes what lies between.

Introduced in chapter 2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.bench.findings.values import (
    Measured,
    cell,
    column,
    ends,
    number,
    over,
    percent,
    positive,
    value,
)
from lib.bench.findings.vocabulary import ABOUT, Finding, missing
from lib.bench.measure import counts
from lib.bench.measure.step_model import LONGEST, StepModel, rate_between
from lib.bench.records.series import Series
from lib.models.checkpoint import GPT2_CONFIG

STEPS = "step_by_length"
STAGES = ("the step with the cache", "the step without")
NAMES = {
    "sum": "the fixed cost plus the arithmetic",
    "larger": "the larger of fixed cost and arithmetic",
}


def token_count(length: float | None) -> str:
    """A sequence length of a model, where it may have none: "1 token", "49 tokens", "more than 1,024 tokens"."""
    if not length:
        return f"more than {number(LONGEST)} tokens"
    return f"{number(length)} token{'s' * (length != 1)}"


def overlaps(run: Any) -> bool:
    """Whether a second device computes while the host starts the next operation: not where the CPU does both."""
    return run.roofline is not None and not run.roofline.device.startswith("cpu")


def model_kind(run: Any) -> str:
    """The model that the page predicts with: "sum" where one processor pays both costs, "larger" where they overlap."""
    return "larger" if overlaps(run) else "sum"


def fixed_cost(run: Any) -> Measured:
    """Seconds of a pass over one token with nothing to remember."""
    found = cell(run["floor"], "one_token", 0)
    if found is not None:
        return found
    series = run[STEPS]
    return cell(series, "no_cache", 0) if series is not None and series["length"][0] == 1 else None


def foretold(run: Any) -> dict[str, StepModel]:
    """Both models by the fixed cost and the machine's two ceilings; empty where one of them is not known."""
    fixed, roofline = positive(fixed_cost(run)), run.roofline
    if fixed is None or roofline is None or "float32" not in roofline.flops:
        return {}
    rate, bandwidth = roofline.flops["float32"], roofline.bandwidth
    return {
        kind: StepModel(GPT2_CONFIG, fixed, rate, bandwidth, kind == "larger") for kind in NAMES
    }


def calibrated(run: Any) -> dict[str, StepModel]:
    """Both models from the shortest step with a cache and the longest without: each with the rate that fits those two."""
    series = run[STEPS]
    if series is None or run.roofline is None or len(series["length"]) < 2:
        return {}
    fixed, longest = (
        positive(cell(series, name, row)) for name, row in (("kv_cache", 0), ("no_cache", -1))
    )
    if fixed is None or longest is None:
        return {}
    length, bandwidth = series["length"][-1], run.roofline.bandwidth
    between = rate_between(GPT2_CONFIG, 1, fixed, length, longest)
    if between is None:
        return {}
    rates = {"sum": between, "larger": counts.prefill_flops(GPT2_CONFIG, length) / longest}
    return {
        kind: StepModel(GPT2_CONFIG, fixed, rate, bandwidth, kind == "larger")
        for kind, rate in rates.items()
    }


def worst_miss(model: StepModel, lengths: Sequence[float], times: Sequence[Measured]) -> float:
    """Largest relative error of the model's steps without a cache, measured over predicted; 0.0 for no points."""
    pairs = [(n, positive(t)) for n, t in zip(lengths, times)]
    return max((abs(t / model.without(n) - 1) for n, t in pairs if t is not None), default=0.0)


def fit(run: Any) -> Finding:
    """Which model describes the steps between the two to which both were fitted: "sum", "larger", "neither" (kind)."""
    models, series = calibrated(run), run[STEPS]
    inner = column(series, "no_cache")[1:-1]
    if not models or not [t for t in inner if positive(t)]:
        return missing("a step between the shortest and the longest")
    miss = {
        kind: worst_miss(model, series["length"][1:-1], inner) for kind, model in models.items()
    }
    better, worse = sorted(miss, key=miss.get)
    said = (
        f"{NAMES[better]} is off by at most {percent(miss[better])} of its own prediction, and "
        f"{NAMES[worse]} by up to {percent(miss[worse])}"
    )
    if miss[worse] <= 1.25 * miss[better]:
        said = said.replace("at most ", "up to ")
        return Finding(f"{said}, so these lengths do not tell the two apart", "cannot tell")
    if miss[better] > 0.25:
        return Finding(f"{said.replace('at most ', 'up to ')}, so neither describes it", "neither")
    return Finding(said, better)


def halving(series: Series | None, slow: str = "no_cache", fast: str = "kv_cache") -> Finding:
    """Where `slow` reaches twice `fast`: `ratio` is the length, between measured ones on a logarithmic scale.

    kind: "at" (known), "before" (at the first length already), "never" (at no measured length), "missing".
    """
    rows = range(len(series["length"])) if series is not None else ()
    points = [
        (series["length"][i], a / b)
        for i in rows
        if (a := positive(cell(series, slow, i))) and (b := positive(cell(series, fast, i)))
    ]
    if not points:
        return missing("the length at which the cache halves a step")
    for i, (length, ratio) in enumerate(points):
        if ratio >= 2:
            if i == 0:
                return Finding("already at the shortest sequence", "before")
            before, low = points[i - 1]
            at = before * (length / before) ** ((2 - low) / (ratio - low))
            return Finding(f"at {token_count(round(at))}", "at", round(at))
    return Finding(f"at no length up to {token_count(points[-1][0])}", "never")


def kept_growth(run: Any) -> tuple[float | None, Measured]:
    """Time of a step with a cache at the longest sequence over that at the shortest: by the model, and as measured.

    What was measured is [least, middle, most], from the ranges of the repeats, where these differ by more than 10 %.
    """
    series, model = run[STEPS], foretold(run).get(model_kind(run))
    lengths, times = column(series, "length"), ends(series, "kv_cache")
    expected = model.kept(lengths[-1]) / model.kept(lengths[0]) if model and lengths else None
    short, long = map(value, times)
    middle = over(*reversed(times))
    noisy = max(short.spread or 0, long.spread or 0) > ABOUT
    if middle is None or not noisy or min(short.low, long.low) <= 0:
        return expected, middle
    return expected, [long.low / short.high, middle, long.high / short.low]


def by_products(run: Any) -> Finding:
    """The same where a step's products, timed alone, replace the arithmetic: products plus what surrounds them once."""
    series = run[STEPS]
    fixed = positive(cell(series, "kv_cache", 0))
    alone = [positive(p) for p in column(series, "products")]
    if fixed is None or not alone or None in alone:
        return missing("the length at which the cache halves a step, from the products")
    around = max(0.0, fixed - alone[0])
    columns: Mapping[str, list[Any]] = {
        "length": series["length"],
        "no_cache": [p + around for p in alone],
        "kv_cache": [fixed] * len(alone),
    }
    return halving(Series(STEPS, "s", dict(columns)))

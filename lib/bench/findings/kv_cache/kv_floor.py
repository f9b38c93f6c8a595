"""The sentences of chapter 2 about the fixed cost of a pass: what it is made of, and whether arithmetic hides behind it.

Introduced in chapter 2.
"""

from typing import Any

from lib.bench.findings.kv_cache.kv_steps import (
    STEPS,
    fixed_cost,
    foretold,
    model_kind,
    overlaps,
    token_count,
)
from lib.bench.findings.values import (
    Measured,
    cell,
    over,
    percent,
    quantity,
    value,
)
from lib.bench.findings.vocabulary import (
    Finding,
    missing,
    share,
    versus_bound,
)
from lib.bench.measure import counts
from lib.models.checkpoint import GPT2_CONFIG


def floor_cause(run: Any) -> Finding:
    """What a pass over one token spends its time on. kind: "bytes", "products", "around", "both", "cannot tell", "missing".

    By its products, timed alone, where they were; else by the profile of a step with a cache, which multiplies by one
    row too. Where a second device computes, products timed alone include the time in which the host starts them.
    """
    fixed = value(fixed_cost(run)).middle
    bound = value(_one_token_bound(run)).middle
    if not fixed or not bound or fixed <= 0 or bound <= 0:
        return missing("what the fixed cost is made of")
    if fixed <= 1.25 * bound:
        text = "that is mostly the reading of the weights from memory"
        return Finding(text, "bytes")
    alone = value(cell(run["floor"], "products", 0)).middle
    if alone is not None and alone > 1.1 * fixed:
        text = "the products, timed alone, took longer than the pass, so this run cannot say what it is made of"
        return Finding(text, "cannot tell")
    part, how = None, "timed alone"
    if alone is not None and alone > 0:
        part = alone / fixed
    elif (profiled := _profiled_products(run)) is not None:
        part, how = profiled / fixed, "in the profile of a step with a cache"
    if part is None or not 0 < part <= 1.1:
        return missing("what the fixed cost is made of")
    word = share(min(1.0, part)).kind
    said = f"{word} of the fixed cost ({percent(min(1.0, part))}, {how}) is spent in the matrix products"
    if part >= 0.55 and overlaps(run):
        text = f"{said}, the starting of each included, so this run does not say which of the two is slow"
        return Finding(text, "cannot tell")
    if part >= 0.55:
        rate = counts.streamed_bytes(GPT2_CONFIG, "float32") / (part * fixed)
        ceiling = run.roofline and run.roofline.bandwidth
        of = f" of the {quantity(ceiling, 'B/s')} that the memory delivers" if ceiling else ""
        said += f". They read the weights at {quantity(rate, 'B/s')}{of}"
        if part * fixed <= 1.25 * bound:
            text = f"{said}, near the ceiling; the rest of the time is spent in small operations and in starting each of them"
            return Finding(text, "bytes", part)
        text = f"{said}: most of the time is spent on slow reading, and not on starting"
        return Finding(text, "products", part)
    if part <= 0.45:
        text = f"{said}; the larger part is spent in small operations and in starting each of them"
        return Finding(text, "around", part)
    return Finding(f"{said}, and about as much around them", "both", part)


def _one_token_bound(run: Any) -> Measured:
    found = cell(run["floor"], "bound", 0)
    return cell(run[STEPS], "bound_no_cache", 0) if found is None else found


def _profiled_products(run: Any) -> float | None:
    """Seconds of products in the profiled step with a cache; only where one processor computes and starts."""
    shares, spent = run["profile"], value(cell(run["profile_time"], "kv_cache", 0)).middle
    if overlaps(run) or shares is None or "kv_cache" not in shares or spent is None:
        return None
    by_family = dict(zip(shares["family"], shares["kv_cache"]))
    found = [by_family.get(name, 0.0) for name in ("gemm", "gemv")]
    return None if None in found else spent * sum(found)


def floor_over_bound(run: Any) -> float | None:
    """The fixed cost over the bound of a pass over one token."""
    return over(fixed_cost(run), _one_token_bound(run))


def floor(run: Any) -> dict[str, str]:
    """The fixed cost, and the predictions that follow from it."""
    least = versus_bound(_one_token_bound(run), fixed_cost(run))
    first = missing("a pass over one token").sentence
    if least.kind != "missing":
        first = f"A pass over one token takes {least}."
    if overlaps(run):
        why = (
            "Here the CPU starts the operations and another device computes them. The two overlap, so a step should "
            "cost the larger of the fixed cost and the arithmetic."
        )
    else:
        why = (
            "Here one processor starts the operations, reads the weights and computes. Nothing overlaps, so a step "
            "should cost the fixed cost plus the arithmetic."
        )
    models = foretold(run)
    if not models:
        said = missing("the length at which a step should take half the time").sentence
    else:
        model = models[model_kind(run)]
        said = (
            f"The cache should then halve the time of a step at {token_count(model.factor_at(2))}."
        )
    return {
        "floor_finding": f"{first} {floor_cause(run).sentence}",
        "floor_model_finding": f"{why} {said}",
    }

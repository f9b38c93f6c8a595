"""Keys and values in 8 bits: their bytes, the time of attention, and what the rounding loses.

Every function takes a run. Introduced in chapter 11.
"""

from itertools import product
from typing import Any

from lib.bench.findings.quantisation.format_rows import named
from lib.bench.findings.run_notes import of_record
from lib.bench.findings.values import (
    Measured,
    cell,
    number,
    over,
    percent,
    positive,
    quantity,
    scientific,
    times,
    value,
)
from lib.bench.findings.vocabulary import missing


def kv_bytes(run: Any) -> dict[str, str]:
    """Bytes of one token's K and V, and how many more blocks the same memory holds."""
    known, blocks = (named(run["kv_formats"], name) for name in ("bytes_per_token", "blocks"))
    floats, ints = (known.get(name, 0) for name in ("float32", "int8"))
    if floats <= 0 or ints <= 0:
        return {"kv_bytes_finding": missing("the bytes of K and V").sentence}
    text = (
        f"K and V of one token take {number(floats / 1e3)} kB in float32 and "
        f"{number(ints / 1e3)} kB in int8"
    )
    few, many = (blocks.get(name, 0) for name in ("float32", "int8"))
    if few > 0 and many > 0:
        if few == many:
            text += f"; the same memory holds the same number of blocks ({number(few)})"
        else:
            held = f"{number(many)} in the place of {number(few)}"
            text += f", and the same memory holds {times(many / few)} as many blocks ({held})"
    return {"kv_bytes_finding": f"{text}."}


def kv_speed_up(run: Any, bound: bool = False) -> float | None:
    """Time of attention with float32 K and V over that with int8; with `bound`, of the bounds."""
    end = " bound" if bound else ""
    series = run["kv_attention"]
    return over(cell(series, f"float32{end}", 0), cell(series, f"int8{end}", 0))


def kv_measured(run: Any) -> Measured:
    """The measured speed-up of attention: all pairs of repeats where those of both overlap."""
    series = run["kv_attention"]
    floats, ints = (cell(series, name, 0) for name in ("float32", "int8"))
    if kv_speed_up(run) is None or not value(floats).overlaps(value(ints)):
        return kv_speed_up(run)
    pairs = ([x] if isinstance(x, (int, float)) else x for x in (floats, ints))
    return [a / b for a, b in product(*pairs) if positive(a) and positive(b)]


def kv_attention(run: Any) -> dict[str, str]:
    """Time of one layer's attention with K and V in float32 and in int8."""
    series = run["kv_attention"]
    floats, ints = (value(cell(series, name, 0)) for name in ("float32", "int8"))
    ratio = kv_speed_up(run)
    if ratio is None:
        return {"kv_attention_finding": missing("the time of attention").sentence}
    text = (
        f"Attention takes {quantity(floats.middle, 's')} per layer in float32 and "
        f"{quantity(ints.middle, 's')} in int8"
    )
    if floats.overlaps(ints):
        text += ", but the repeats overlap, so this run cannot tell which is faster"
    elif ratio >= 1:
        text += f": int8 is {times(ratio)} as fast"
    else:
        text += f": int8 is slower, {times(ratio)} as fast"
    return {"kv_attention_finding": of_record(run, f"{text}.")}


def kv_quality(run: Any) -> dict[str, str]:
    """KL divergence with K and V in int8, and the share of equal greedy tokens."""
    series = run["kv_quality"]
    divergence, same = (
        value(cell(series, name, 0)).middle for name in ("kl_divergence", "same_greedy")
    )
    if divergence is None or same is None:
        return {"kv_quality_finding": missing("the quality with K and V in int8").sentence}
    return {
        "kv_quality_finding": "With K and V in int8 the mean KL divergence is "
        f"{scientific(divergence)} nats, with {percent(same)} equal greedy tokens."
    }

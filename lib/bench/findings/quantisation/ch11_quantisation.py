"""The sentences of chapter 11 that depend on what was measured.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None if
the run has none of that name. FORMATS are the names of the engines, which are column names too.

Introduced in chapter 11.
"""

from typing import Any

from lib.bench.findings.predictions import Prediction
from lib.bench.findings.realistic import realistic_step
from lib.bench.findings.values import (
    cell,
    number,
    over,
    percent,
    quantity,
    times,
    value,
)
from lib.bench.findings.vocabulary import missing
from lib.bench.records.series import Series

FORMATS = ("float32", "int8", "4 bits", "int8 × int8", "4 bits × int8")


def _axis(series: Series | None, name: str) -> list[Any]:
    return list(series[name]) if series is not None and name in series else []


def _named(series: Series | None, column: str) -> dict[str, float]:
    """The medians of a column, by the column "format"; unknown ones are left out."""
    found = {
        n: value(cell(series, column, i)).middle for i, n in enumerate(_axis(series, "format"))
    }
    return {name: x for name, x in found.items() if x is not None}


def speed_up(run: Any, kind: str, row: int, bound: bool = False) -> float | None:
    """Time of float32's products over that of a format's, at index `row` of the sweep.

    With `bound` the ratio of their bounds, which is the prediction.
    """
    end = " bound" if bound else ""
    series = run["products"]
    return over(cell(series, f"float32{end}", row), cell(series, f"{kind}{end}", row))


def gain(run: Any, kind: str, row: int) -> float | None:
    """Tokens per second of an engine over float32's, at index `row` of the sweep of batches."""
    series = run["engine"]
    return over(cell(series, kind, row), cell(series, "float32", row))


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def bytes_of_formats(run: Any) -> dict[str, str]:
    """Bytes that a step reads for its products, relative to float32."""
    known = _named(run["formats"], "weight_bytes")
    whole = known.pop("float32", None)
    parts = {n: x / whole for n, x in known.items() if whole and n in FORMATS and "×" not in n}
    if not parts:
        return {"bytes_finding": missing("the bytes of the weights").sentence}
    said = _list([f"{percent(x)} of that with {name}" for name, x in parts.items()])
    return {
        "bytes_finding": f"The products of a step read {number(whole / 1e6)} MB in float32, {said}."
    }


def turning(run: Any) -> dict[str, str]:
    """The number of rows above which the operations take longer than the bytes, by the bound."""
    known = {n: x for n, x in _named(run["formats"], "turning_rows").items() if x > 0}
    if not known:
        return {"turning_finding": missing("the rows at which operations bind").sentence}
    said = _list([f"{number(round(x, 1))} rows with {name}" for name, x in known.items()])
    return {"turning_finding": f"On this machine the two times are equal at {said}."}


def products(run: Any) -> dict[str, str]:
    """The speed-up of the products with one row and with the most rows."""
    rows, said = _axis(run["products"], "rows"), []
    for row in sorted({0, len(rows) - 1}) if rows else []:
        found = [(kind, speed_up(run, kind, row)) for kind in FORMATS[1:]]
        parts = [f"{number(round(x, 2))} ({kind})" for kind, x in found if x is not None]
        if parts:
            noun = "row" if rows[row] == 1 else "rows"
            said.append(f"With {rows[row]} {noun} the speed-up over float32 is {_list(parts)}.")
    return {"products_finding": " ".join(said) or missing("the time of the products").sentence}


def engine(run: Any) -> dict[str, str]:
    """The format with the highest throughput at each batch, where the repeats can tell it from the second."""
    said, close = [], []
    for row, batch in enumerate(_axis(run["engine"], "batch")):
        rates = {k: value(cell(run["engine"], k, row)).middle for k in FORMATS}
        rates = {k: x for k, x in rates.items() if x is not None and x > 0}
        if rates:
            best, *others = sorted(rates, key=rates.get, reverse=True)
            first = value(cell(run["engine"], best, row))
            if any(first.overlaps(value(cell(run["engine"], k, row))) for k in others):
                close.append(f"batch {batch}")
                continue
            ratio = gain(run, best, row)
            over = "" if ratio is None or best == "float32" else f" ({times(ratio)} float32's)"
            said.append(f"{best} at batch {batch}{over}")
    if not said and not close:
        return {"engine_finding": missing("the throughput by format").sentence}
    sentences = [f"The fastest format is {_list(said)}."] if said else []
    if close:
        sentences.append(
            f"This run cannot tell which format is the fastest at {_list(close)}, "
            "because the repeats overlap."
        )
    return {"engine_finding": " ".join(sentences)}


def quality(run: Any) -> dict[str, str]:
    """The smallest and the largest KL divergence, and the share of equal greedy tokens there."""
    divergence, same = (_named(run["quality"], name) for name in ("kl_divergence", "same_greedy"))
    if not divergence:
        return {"quality_finding": missing("the quality of the formats").sentence}
    said = []
    for word, pick in (("smallest", min), ("largest", max)):
        name = pick(divergence, key=divergence.get)
        share = f", with {percent(same[name])} equal greedy tokens" if name in same else ""
        said.append(f"{name} has the {word} KL divergence ({divergence[name]:.2g} nats{share})")
    text = f"{said[0]}." if len(divergence) == 1 else f"{said[0]}, and {said[1]}."
    return {"quality_finding": text}


def kv_bytes(run: Any) -> dict[str, str]:
    """Bytes of one token's K and V, and how many more tokens the same memory holds."""
    known = _named(run["kv_formats"], "bytes_per_token")
    floats, ints = known.get("float32"), known.get("int8")
    if not floats or not ints:
        return {"kv_bytes_finding": missing("the bytes of K and V").sentence}
    return {
        "kv_bytes_finding": f"K and V of one token take {number(floats / 1e3)} kB in float32 and "
        f"{number(ints / 1e3)} kB in int8, so the same memory holds {times(floats / ints)} as many "
        "blocks."
    }


def kv_speed_up(run: Any, bound: bool = False) -> float | None:
    """Time of attention with float32 K and V over that with int8; with `bound` the ratio of their bounds."""
    end = " bound" if bound else ""
    series = run["kv_attention"]
    return over(cell(series, f"float32{end}", 0), cell(series, f"int8{end}", 0))


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
    return {"kv_attention_finding": f"{text}."}


def kv_quality(run: Any) -> dict[str, str]:
    """KL divergence of the predictions with K and V in int8, and the share of equal greedy tokens."""
    series = run["kv_quality"]
    divergence, same = (
        value(cell(series, name, 0)).middle for name in ("kl_divergence", "same_greedy")
    )
    if divergence is None or same is None:
        return {"kv_quality_finding": missing("the quality with K and V in int8").sentence}
    return {
        "kv_quality_finding": f"With K and V in int8 the mean KL divergence is {divergence:.2g} nats, "
        f"with {percent(same)} equal greedy tokens."
    }


def predictions(run: Any) -> list[Prediction]:
    """The chapter's predictions, for the table at its end."""
    rows, batches = _axis(run["products"], "rows"), _axis(run["engine"], "batch")
    found = [
        Prediction(
            f"speed-up of the products, {kind}, {rows[row]} row{'s' * (rows[row] != 1)}",
            speed_up(run, kind, row, bound=True), speed_up(run, kind, row), "", "×",
        )
        for row in (sorted({0, len(rows) - 1}) if rows else [])
        for kind in FORMATS[1:]
        if row or "×" not in kind
    ]  # fmt: skip
    if batches:
        predicted = value(cell(run["engine"], "predicted 4 bits", 0)).middle
        found.append(
            Prediction(
                f"speed-up of the engine, 4 bits, batch {batches[0]}, "
                "if the rest of the step takes as long as before",
                predicted, gain(run, "4 bits", 0), "", "×",
            )
        )  # fmt: skip
    if run["kv_attention"] is not None:
        found.append(
            Prediction(
                "speed-up of attention, K and V in int8", kv_speed_up(run, bound=True),
                kv_speed_up(run), "The bound does not count the conversion of codes to floats.", "×",
            )
        )  # fmt: skip
    return found


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    weights = bytes_of_formats(run) | turning(run) | products(run) | engine(run) | quality(run)
    cache = kv_bytes(run) | kv_attention(run) | kv_quality(run)
    return weights | cache | realistic_step.quantisation()

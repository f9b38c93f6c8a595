"""How fast each format of the weights is: the products alone, and the whole engine.

Every function takes a run. FORMATS are the names of the engines, which are column names too.
Introduced in chapter 11.
"""

from typing import Any

from lib.bench.findings.quantisation.format_rows import axis
from lib.bench.findings.run_notes import of_record
from lib.bench.findings.values import Measured, cell, listed, over, positive, times, value
from lib.bench.findings.vocabulary import ABOUT, missing

FORMATS = ("float32", "int8", "4 bits", "int8 × int8", "4 bits × int8")


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


def engine_prediction(run: Any, engine_run: Any = None) -> float | None:
    """Speed-up of the engine with 4 bits at the smallest batch, if only its products change.

    The products take the share f of float32's step, at most all of it, and become s times as fast:
    1 / (1 - f + f / s). Timed one by one they can take longer than in the engine's one call.
    """
    engine_run = run if engine_run is None else engine_run
    batches, rows = axis(engine_run["engine"], "batch"), axis(run["products"], "rows")
    if not batches or batches[0] not in rows:
        return None
    row = rows.index(batches[0])
    rate = positive(cell(engine_run["engine"], "float32", 0))
    alone = positive(cell(run["products"], "float32", row))
    faster = speed_up(run, "4 bits", row)
    if rate is None or alone is None or faster is None:
        return None
    share = min(1.0, alone * rate / batches[0])
    return 1 / (1 - share + share / faster)


def _cannot_tell(a: Measured, b: Measured) -> bool:
    """Whether the repeats overlap and differ by more than what counts as about the same."""
    x, y = value(a), value(b)
    return x.overlaps(y) and max(x.spread or 0, y.spread or 0) > ABOUT


def undecided(run: Any, kind: str, row: int) -> bool:
    """Whether repeats that cannot tell a format from float32 leave its predicted speed-up open.

    They do where the prediction lies between the smallest and the largest ratio of two repeats, or
    is about the same as one of them.
    """
    floats, taken = (value(cell(run["products"], name, row)) for name in ("float32", kind))
    predicted = speed_up(run, kind, row, bound=True)
    if predicted is None or speed_up(run, kind, row) is None or not _cannot_tell(floats, taken):
        return False
    if min(floats.low, taken.low) <= 0:
        return False
    least, most = floats.low / taken.high, floats.high / taken.low
    return least / (1 + ABOUT) <= predicted <= most / (1 - ABOUT)


def products(run: Any) -> dict[str, str]:
    """The speed-up of the products with one row and with the most rows, if the repeats show it."""
    rows, said = axis(run["products"], "rows"), []
    for row in sorted({0, len(rows) - 1}) if rows else []:
        noun = "row" if rows[row] == 1 else "rows"
        floats = cell(run["products"], "float32", row)
        known = [k for k in FORMATS[1:] if speed_up(run, k, row) is not None]
        close = [k for k in known if _cannot_tell(floats, cell(run["products"], k, row))]
        parts = [f"{speed_up(run, k, row):.2f} ({k})" for k in known if k not in close]
        if parts:
            said.append(f"With {rows[row]} {noun} the speed-up over float32 is {listed(parts)}.")
        if close:
            alike = listed([f"{k} ({speed_up(run, k, row):.2f})" for k in close])
            said.append(
                f"With {rows[row]} {noun} this run cannot tell {alike} from float32, "
                "because the repeats overlap."
            )
    text = " ".join(said) or missing("the time of the products").sentence
    return {"products_finding": of_record(run, text)}


def engine(run: Any) -> dict[str, str]:
    """The format with the highest throughput at each batch, where the repeats can tell it."""
    series, best, close = run["engine"], [], []
    for row, batch in enumerate(axis(series, "batch")):
        rates = {k: positive(cell(series, k, row)) for k in FORMATS}
        names = sorted((k for k, x in rates.items() if x), key=rates.get, reverse=True)
        if not names:
            continue
        first, *others = names
        if any(
            value(cell(series, first, row)).overlaps(value(cell(series, k, row))) for k in others
        ):
            close.append(f"batch {batch}")
        else:
            best.append((first, batch, gain(run, first, row)))
    if not best and not close:
        return {"engine_finding": missing("the throughput by format").sentence}
    sentences = [_fastest(best)] if best else []
    if close:
        sentences.append(
            f"This run cannot tell which format is the fastest at {listed(close)}, "
            "because the repeats overlap."
        )
    return {"engine_finding": of_record(run, " ".join(sentences))}


def _fastest(best: list[tuple[str, Any, float | None]]) -> str:
    """One sentence for (format, batch, gain over float32); one that always wins is named once."""

    def where(name: str, batch: Any, ratio: float | None) -> str:
        over_float = "" if ratio is None or name == "float32" else f" ({times(ratio)} float32's)"
        return f"at batch {batch}{over_float}"

    if len(best) > 1 and len({name for name, *_ in best}) == 1:
        return f"The fastest format is {best[0][0]}: {listed([where(*b) for b in best])}."
    return f"The fastest format is {listed([f'{b[0]} {where(*b)}' for b in best])}."

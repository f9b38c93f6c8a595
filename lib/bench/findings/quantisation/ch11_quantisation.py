"""The sentences of chapter 11 that depend on what was measured.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None if
the run has none of that name.

Introduced in chapter 11.
"""

import math
from typing import Any

from lib.bench.findings.predictions import Prediction, with_causes
from lib.bench.findings.quantisation.format_rows import axis, named
from lib.bench.findings.quantisation.format_speed import (
    FORMATS,
    engine,
    engine_prediction,
    gain,
    products,
    speed_up,
    undecided,
)
from lib.bench.findings.quantisation.kv_in_8_bits import (
    kv_attention,
    kv_bytes,
    kv_measured,
    kv_quality,
    kv_speed_up,
)
from lib.bench.findings.realistic import realistic_step
from lib.bench.findings.values import listed, number, percent, scientific
from lib.bench.findings.vocabulary import missing
from lib.bench.powers import power_of_ten

__all__ = [
    "bytes_of_formats", "engine", "kv_attention", "kv_bytes", "kv_quality", "predictions",
    "products", "quality", "render", "turning",
]  # fmt: skip

ROUNDING = 1e-6  # nats; a KL divergence below it is one of float32 sums in another order


def bytes_of_formats(run: Any) -> dict[str, str]:
    """Bytes that a step reads for its products, relative to float32."""
    known = named(run["formats"], "weight_bytes")
    whole = known.pop("float32", None)
    parts = {n: x / whole for n, x in known.items() if whole and n in FORMATS and "×" not in n}
    if not parts:
        return {"bytes_finding": missing("the bytes of the weights").sentence}
    said = listed([f"{percent(x)} of that with {name}" for name, x in parts.items()])
    return {
        "bytes_finding": f"The products of a step read {number(whole / 1e6)} MB in float32, {said}."
    }


def turning(run: Any) -> dict[str, str]:
    """The number of rows above which the operations take longer than the bytes, by the bound."""
    known = {n: x for n, x in named(run["formats"], "turning_rows").items() if x > 0}
    if not known:
        return {"turning_finding": missing("the rows at which operations bind").sentence}
    said = listed([f"{x:.1f} rows with {name}" for name, x in known.items()])
    return {"turning_finding": f"On this machine the two times are equal at {said}."}


def quality(run: Any) -> dict[str, str]:
    """Formats that lose nothing, then the smallest and the largest KL divergence of the others."""
    divergence, same = (named(run["quality"], name) for name in ("kl_divergence", "same_greedy"))
    if not divergence:
        return {"quality_finding": missing("the quality of the formats").sentence}
    equal = [name for name, x in divergence.items() if x < ROUNDING]
    others = {name: x for name, x in divergence.items() if name not in equal}
    said = []
    if equal:
        verb = "differs" if len(equal) == 1 else "differ"
        said.append(
            f"{listed(equal)} {verb} from the reference only as sums in another order do "
            f"(KL divergence below {power_of_ten(round(math.log10(ROUNDING)))} nats)."
        )
    found = []
    for word, pick in (("smallest", min), ("largest", max)) if others else ():
        name = pick(others, key=others.get)
        share = f", with {percent(same[name])} equal greedy tokens" if name in same else ""
        found.append(
            f"{name} has the {word} KL divergence ({scientific(others[name])} nats{share})"
        )
    if len(others) == 1:
        said.append(found[0].replace("the smallest", "a") + ".")
    elif found:
        said.append(f"{'Of the others, ' if equal else ''}{', and '.join(found)}.")
    return {"quality_finding": " ".join(said)}


def predictions(run: Any, engine_run: Any = None, kv_run: Any = None) -> list[Prediction]:
    """The chapter's predictions, for the table at its end.

    run: that of the products; the others where an experiment shows another run.
    """
    engine_run, kv_run = (run if other is None else other for other in (engine_run, kv_run))
    found = _product_predictions(run)
    if batches := axis(engine_run["engine"], "batch"):
        found.append(
            Prediction(
                f"speed-up of the engine, 4 bits, batch {batches[0]}, "
                "if only its products change",
                engine_prediction(run, engine_run), gain(engine_run, "4 bits", 0), "", "×",
            )
        )  # fmt: skip
    if kv_run["kv_attention"] is not None:
        predicted, measured = kv_speed_up(kv_run, bound=True), kv_speed_up(kv_run)
        why = "The bound does not count the conversion of codes to floats."
        found.append(
            Prediction(
                "speed-up of attention, K and V in int8", predicted, kv_measured(kv_run),
                _if_below(predicted, measured, why), "×",
            )
        )  # fmt: skip
    return with_causes(found)


def _product_predictions(run: Any) -> list[Prediction]:
    rows, found = axis(run["products"], "rows"), []
    for row in sorted({0, len(rows) - 1}) if rows else []:
        for kind in FORMATS[1:]:
            if row == 0 and "×" in kind:
                continue
            predicted, measured = speed_up(run, kind, row, bound=True), speed_up(run, kind, row)
            rounding = ", nor rounding the input" if "×" in kind else ""
            why = f"The bound does not count unpacking and converting codes{rounding}."
            found.append(
                Prediction(
                    f"speed-up of the products, {kind}, {rows[row]} row{'s' * (rows[row] != 1)}",
                    predicted, measured, _if_below(predicted, measured, why), "×",
                    undecided=undecided(run, kind, row),
                )
            )  # fmt: skip
    return found


def _if_below(predicted: float | None, measured: float | None, why: str) -> str:
    """`why` where less was measured than predicted: what a bound leaves out explains only that."""
    return why if predicted and measured and measured < predicted else ""


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    weights = bytes_of_formats(run) | turning(run) | products(run) | engine(run) | quality(run)
    cache = kv_bytes(run) | kv_attention(run) | kv_quality(run)
    return weights | cache | realistic_step.quantisation()

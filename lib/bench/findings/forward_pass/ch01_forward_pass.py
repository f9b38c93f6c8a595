"""The predictions of chapter 1 against what was measured, and all its sentences together.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none.

Introduced in chapter 1.
"""

from typing import Any

from lib.bench.findings import vllm_single
from lib.bench.findings.curves import growth
from lib.bench.findings.forward_pass.forward_latency import LATENCY, gap, latency
from lib.bench.findings.forward_pass.forward_profile import profile
from lib.bench.findings.forward_pass.forward_throughput import (
    THROUGHPUT,
    published_curve,
    throughput,
    throughput_trend,
)
from lib.bench.findings.predictions import Prediction, with_causes
from lib.bench.findings.realistic import realistic_prompt
from lib.bench.findings.values import ends, times
from lib.bench.records.files import reference
from lib.bench.records.published_vllm import published_vllm
from lib.bench.records.series import Series


def predictions(run: Any, by_length: Any = None) -> list[Prediction]:
    """The chapter's predictions, for the table at its end; `by_length`: the run of the throughput, where another."""
    by_length = run if by_length is None else by_length
    series, rates = run[LATENCY], by_length[THROUGHPUT]
    grown, cause = growth(*ends(series, "no_cache")), gap(run)
    why = cause.text if cause.kind in ("products", "around", "both") else ""
    bound = Prediction(
        "time of a new token, longest prompt over shortest, from the bound",
        growth(*ends(series, "bound")), grown, why, "×",
    )  # fmt: skip
    corrected = Prediction(
        "the same, from the matrix products timed alone",
        growth(*ends(series, "products")), grown, _around(series), "×",
    )  # fmt: skip
    shape = Prediction(
        "throughput as the answer grows", "falls", throughput_trend(by_length), "every token computes all before it again", ""
    )  # fmt: skip
    ratio = Prediction(
        "throughput, longest answer over shortest, from the bound",
        growth(*ends(rates, "bound")), growth(*ends(rates, "no_cache")), "", "×",
    )  # fmt: skip
    return with_causes((bound, corrected, shape, ratio))


def _around(series: Series | None) -> str:
    """What the products alone leave out, where it is a larger or a smaller part of the longest pass than of the shortest."""
    found = [growth(*pair) for pair in zip(ends(series, "products"), ends(series, "no_cache"))]
    if None in found:
        return ""
    short, long = found
    said = (
        f"the longest pass takes {times(long)} as long as its products, the shortest {times(short)}"
    )
    if long > 1.1 * short:
        return f"{said}: attention and small operations grow more than the products"
    if short > 1.1 * long:
        return f"{said}: attention and small operations grow less than the products"
    return ""


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    vllm = published_vllm()
    published = published_curve(reference()["no_cache_sweep"])
    published |= vllm_single.by_prompt(reference(), vllm) | vllm_single.by_generated(vllm)
    return latency(run) | throughput(run) | profile(run) | published | realistic_prompt.forward()

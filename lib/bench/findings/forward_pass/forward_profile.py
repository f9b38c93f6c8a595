"""The sentences of chapter 1 about the profile of a pass: its time by kernel family.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none.

Introduced in chapter 1.
"""

from typing import Any

from lib.bench.findings.values import number
from lib.bench.findings.vocabulary import missing, share
from lib.bench.records.series import Series


def families(profiled: Series | None) -> dict[str, float]:
    """Share of the time by kernel family, with "gemm" and "gemv" always there; empty where no share was measured."""
    if profiled is None or "share" not in profiled or None in profiled["share"]:
        return {}
    return {"gemm": 0.0, "gemv": 0.0} | dict(zip(profiled["family"], profiled["share"]))


def profile(run: Any) -> dict[str, str]:
    """The sentences under the profile's table."""
    series = run["profile"]
    shares = families(series)
    if not shares:
        return {"profile_finding": missing("the profile").sentence}
    gemm, gemv = shares["gemm"], shares["gemv"]
    said = (
        f"For one pass over {number(series.params['prompt'])} tokens, {share(gemm)} of the time is in products of many "
        f"rows (gemm), and {share(gemv)} in products with one row (gemv)"
    )
    said += ", among them the vocabulary matrix." if gemv else "."
    if gemm + gemv > 0.5:
        said += f" Everything else together is {share(max(0.0, 1 - gemm - gemv))}."
    return {"profile_finding": said}

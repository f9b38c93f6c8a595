"""How far masks move the shares of the answers, and whether draws follow the exact shares.

Each function takes a run; most return sentences of chapter 12.

Introduced in chapter 12.
"""

from typing import Any

from lib.bench.findings.structured_output.mask_rows import number_at
from lib.bench.findings.values import number, percent, scientific
from lib.bench.findings.vocabulary import Finding, missing

ERRORS = 3  # standard errors by which a counted share may differ from the exact one


def bias(run: Any) -> dict[str, str]:
    """The sentences under the table of exact shares: how far the mask moves them, and what was drawn."""
    series = run["answer_shares"]
    rows = len(series["text"]) if series is not None and "text" in series else 0
    found = [
        [number_at(series, c, row) for c in ("conditional", "masked", "drawn")]
        for row in range(rows)
    ]
    if not found or any(p is None or p < 0 for row in found for p in row):
        text = missing("the shares of the answers").sentence
        return {"bias_finding": text, "drawn_finding": text}
    own, masked = ([row[i] for row in found] for i in (0, 1))
    best, likely = own.index(max(own)), masked.index(max(masked))
    distance = sum(abs(a - b) for a, b in zip(own, masked)) / 2
    names = [f"“{text}”" for text in series["text"]]
    if best == likely:
        text = f"Both distributions prefer {names[best]}, with {percent(own[best])} and {percent(masked[best])}."
    else:
        text = (
            f"Among its own valid answers the model prefers {names[best]} ({percent(own[best])}). With masks it prefers "
            f"{names[likely]} ({percent(masked[likely])}), which has {percent(own[likely])} of the valid answers."
        )
    text += f" The total variation distance is {distance:.2f}."
    said = f"Share of {names[likely]} in the answers that were drawn: {drawn(run)}."
    return {"bias_finding": text, "drawn_finding": said}


def tries(run: Any) -> dict[str, str]:
    """How rarely the model itself gives one of the answers, and how many draws it takes on average."""
    series = run["answer_shares"]
    params = (series.params or {}) if series is not None else {}
    valid, nodes = params.get("valid"), params.get("nodes")
    texts = len(series["text"]) if series is not None and "text" in series else 0
    if not texts or not nodes or valid is None or not 0 < valid <= 1:
        return {"tries_finding": missing("the share of valid answers without masks").sentence}
    needed = float(f"{1 / valid:.3g}")
    return {
        "tries_finding": f"For the exact shares the model was run for {nodes:,} beginnings of "
        f"answers. Of the model's own answers, a share of {scientific(valid)} is exactly one of the {texts}, so that "
        f"drawing until one is valid takes about {number(needed)} "
        f"{'answer' if needed == 1 else 'answers'} on average."
    }


def drawn(run: Any) -> Finding:
    """Whether the most likely answer with masks is drawn as often as its exact share says.

    kind: "agrees" where the two differ by at most ERRORS standard errors of a share counted in so many draws,
    sqrt(p (1 - p) / draws); else "failed", or "missing".
    """
    series = run["answer_shares"]
    draws = (series.params or {}).get("draws") if series is not None else None
    rows = range(len(series["text"])) if series is not None and "text" in series else ()
    found = [[number_at(series, c, row) for c in ("masked", "drawn")] for row in rows]
    if not draws or not found or any(p is None or not 0 <= p <= 1 for row in found for p in row):
        return missing("the shares of the answers that were drawn")
    exact, counted = max(found)
    allowed = ERRORS * (exact * (1 - exact) / draws) ** 0.5
    both = f"{percent(counted)} of {draws:,} draws, exact {percent(exact)}"
    if abs(counted - exact) <= allowed:
        text = f"{both}, a difference within {ERRORS} standard errors ({percent(allowed)})"
        return Finding(text, "agrees")
    text = f"{both}, a difference of more than {ERRORS} standard errors ({percent(allowed)})"
    return Finding(text, "failed")

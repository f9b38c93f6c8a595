"""A chapter's predictions with their verdicts: the table at its end.

Introduced in chapter 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lib.bench.findings.values import Measured, quantity, times, value
from lib.bench.findings.vocabulary import MISSING, Finding, capital, versus_prediction
from lib.bench.notebook.tables import table

HEADERS = ("prediction", "predicted", "measured", "ratio", "verdict", "why")
_NO_CAUSE = "no cause was measured"
_VERDICTS = {
    "about": "as predicted",
    "within": "within the limit",
    "failed": "the prediction failed",
    "cannot tell": "this run cannot tell",
    "missing": MISSING,
}


@dataclass(frozen=True)
class Prediction:
    """One prediction: a number, or a shape such as "falls", with what was measured and why they differ.

    predicted: a number in `unit`, or the kind of a Finding (`trend` gives "rises", "falls", "flat", ...). measured: the
    same quantity, or that Finding; its kind "within" is not the predicted one, and within what the claim allows.
    why: one sentence; a plain text, or a Finding of its own. sense: "at least" or
    "at most" for a prediction that names a limit: a value near it is as predicted, one far on its right side is within
    the limit, which says less; "" for the value itself.
    undecided: the run behind `measured` failed its own gate, so it confirms and refutes nothing.
    """

    claim: str
    predicted: Measured | str
    measured: Measured | Finding
    why: str | Finding = ""
    unit: str = "s"
    sense: str = ""
    undecided: bool = False

    def __post_init__(self) -> None:
        if self.sense not in ("", "at least", "at most"):
            raise ValueError(f"sense={self.sense!r}: must be '', 'at least' or 'at most'")
        if isinstance(self.predicted, str) != isinstance(self.measured, Finding):
            raise ValueError(
                f"{self.claim!r}: a predicted word needs a measured Finding, a number a number"
            )

    @property
    def ratio(self) -> float | None:
        """Measured over predicted; None for words, and where one of the two is missing or not above zero."""
        if isinstance(self.predicted, str):
            return None
        want, got = value(self.predicted).middle, value(self.measured).middle
        return got / want if want and got and want > 0 and got > 0 else None

    @property
    def verdict(self) -> str:
        """ "as predicted", "a little above" or "a little below", "within the limit", "the prediction failed", …"""
        found = self._compared()
        return _VERDICTS["cannot tell"] if self.undecided and found != MISSING else found

    def _compared(self) -> str:
        """The verdict by the values alone."""
        if isinstance(self.predicted, str):
            kind = self.measured.kind
            if kind in ("missing", "cannot tell", "within"):
                return _VERDICTS[kind]
            return _VERDICTS["about" if kind == self.predicted else "failed"]
        found = versus_prediction(self.predicted, self.measured, self.unit)
        if self.sense and self.ratio is not None and found.kind in ("little", "failed"):
            if (self.ratio > 1) == (self.sense == "at least"):
                return _VERDICTS["within"]
        if found.kind == "little":
            return f"a little {'above' if found.direction > 0 else 'below'}"
        return _VERDICTS[found.kind]

    def row(self) -> list[str]:
        """The cells of the table, under HEADERS; the ratio is measured over predicted."""
        if isinstance(self.predicted, str):
            want, got = self.predicted, self.measured.brief or self.measured.text
        else:
            known = value(self.predicted).middle
            want = "no prediction here"
            if known is not None:
                want = f"{self.sense} {quantity(known, self.unit)}".strip()
            got = quantity(value(self.measured).middle, self.unit)
        return [self.claim, want, got, _ratio(self.ratio), self.verdict, capital(str(self.why))]


def _ratio(ratio: float | None) -> str:
    """A ratio as the table shows it: two decimals near 1, where they decide between two verdicts."""
    if ratio is None:
        return "–"
    close = 0.7 < ratio < 1.5 and abs(ratio - 1) > 1e-9
    return f"{ratio:.2f}" if close else times(ratio).removesuffix(" times")


def with_causes(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The same; a cause of a deviation stands beside a deviation only, the reason for a shape beside a right one only.

    A prediction that failed without a cause says so.
    """
    found = []
    for prediction in predictions:
        failed = prediction.verdict == _VERDICTS["failed"]
        fits = failed or prediction.verdict.startswith("a little")
        if isinstance(prediction.predicted, str):
            fits = prediction.verdict == _VERDICTS["about"]
        why = prediction.why if fits else ""
        found.append(replace(prediction, why=why or (_NO_CAUSE if failed else "")))
    return found


def predictions_table(predictions: Sequence[Prediction]) -> None:
    """Shows the table at a chapter's end: HTML in a notebook, aligned text in a script.

    A cause that stands in the row above is not written out again. Without any cause there is no column for them.
    """
    rows = [prediction.row() for prediction in predictions]
    causes = [row[-1] for row in rows]
    for row, above in zip(rows[1:], causes):
        if row[-1] == above and above not in ("", capital(_NO_CAUSE)):
            row[-1] = "As above"
    shown = len(HEADERS) if any(causes) else len(HEADERS) - 1
    table([row[:shown] for row in rows], headers=list(HEADERS[:shown]), kind="predictions")


def tally(predictions: Sequence[Prediction]) -> str:
    """The table in one sentence: "3 predictions: 1 as predicted, 1 failed, 1 this run cannot tell"."""
    verdicts = [prediction.verdict for prediction in predictions]
    counts = [
        (verdicts.count("as predicted"), "as predicted"),
        (verdicts.count(_VERDICTS["within"]), "within the limit that was predicted"),
        (sum(v.startswith("a little") for v in verdicts), "a little off"),
        (verdicts.count("the prediction failed"), "failed"),
        (verdicts.count("this run cannot tell"), "that this run cannot judge"),
        (verdicts.count(MISSING), "that were not measured here"),
    ]
    total = len(predictions)
    said = ", ".join(f"{count} {word}" for count, word in counts if count)
    return f"{total} prediction{'s' * (total != 1)}: {said or 'none'}"

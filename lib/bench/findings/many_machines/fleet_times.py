"""The sentences of chapter 13 on the points of its figure of a lost rack: windows of arrival, one after the other.

Introduced in chapter 13.
"""

from lib.bench.findings.values import cell, listed, number, percent, quantity, value
from lib.bench.findings.vocabulary import missing
from lib.bench.records.series import Series

_ENDING = ", p99"


def rack_over_time(series: Series | None) -> dict[str, str]:
    """Where the figure's curves are highest, when a replica is full, and how the caches fill at first.

    series: a column "<load>, p99", "<load>, hit rate" and "<load>, most" (requests at one replica) per fleet.
    """
    names = (
        [name.removesuffix(_ENDING) for name in series.columns if name.endswith(_ENDING)]
        if series is not None and "middle" in series
        else []
    )
    params = (series.params or {}) if series is not None else {}
    width, at, back, seats = (
        value(params.get(name)).middle for name in ("width", "at", "back", "seats")
    )
    found = {
        "rack_peak_finding": missing("the TTFT by the time of arrival").sentence,
        "rack_seats_finding": missing("when a replica is full").sentence,
        "rack_fill_finding": missing("how the caches fill").sentence,
    }
    if not names or None in (width, at, back, seats) or not 0 < width < at < back:
        return found
    windows = _Windows(series, width)
    if peaks := [said for name in names if (said := windows.peak(name, at))]:
        found["rack_peak_finding"] = (
            f"A point of the figure has the requests of {number(width)} s. From the loss on, the highest point is "
            f"{listed(peaks)}."
        )
    if full := [said for name in names if (said := windows.full(name, seats, at))]:
        found["rack_seats_finding"] = (
            f"A replica computes at most {number(seats)} requests at a time, and further ones wait there. {' '.join(full)}"
        )
    if filled := [said for name in names if (said := windows.filled(name, at))]:
        found["rack_fill_finding"] = f"At the start all caches are empty. {' '.join(filled)}"
    return found


class _Windows:
    """The rows of the series by the time of their windows."""

    def __init__(self, series: Series, width: float) -> None:
        self.series, self.width = series, width
        middles = (value(cell(series, "middle", i)).middle for i in range(len(series["middle"])))
        self.rows = [(i, middle) for i, middle in enumerate(middles) if middle is not None]

    def span(self, middle: float) -> str:
        first, last = middle - self.width / 2, middle + self.width / 2
        return f"{number(first) if abs(first) > 1e-9 else 0} s to {number(last)} s"

    def get(self, name: str, kind: str) -> list[tuple[float, float]]:
        """(middle of the window, value above zero) of one fleet's column."""
        cells = (
            (middle, value(cell(self.series, f"{name}, {kind}", i)).middle)
            for i, middle in self.rows
        )
        return [(middle, got) for middle, got in cells if got is not None and got > 0]

    def peak(self, name: str, at: float) -> str:
        """ "361 ms for the arrivals of 44 s to 46 s in the more loaded fleet"."""
        late = [(got, middle) for middle, got in self.get(name, "p99") if middle >= at]
        if not late:
            return ""
        got, middle = max(late)
        return f"{quantity(got, 's')} for the arrivals of {self.span(middle)} in the {name} fleet"

    def full(self, name: str, seats: float, at: float) -> str:
        """The first window in which a replica has more requests than seats, and the most before the loss."""
        most = self.get(name, "most")
        if not most:
            return ""
        over = [middle for middle, got in most if got > seats]
        largest = number(max(got for _, got in most))
        if not over:
            return f"In the {name} fleet, no replica has more than {largest} of the completed requests at once."
        when = "before the loss" if over[0] < at else "after the loss"
        return (
            f"In the {name} fleet, a replica first has more than that for arrivals of {self.span(over[0])}, {when}; the "
            f"most at one replica are {largest}."
        )

    def filled(self, name: str, at: float) -> str:
        """Hit rate and TTFT of the first window and of the last one before the loss."""
        hits, waits = self.get(name, "hit rate"), dict(self.get(name, "p99"))
        before = [(middle, got) for middle, got in hits if middle + self.width / 2 <= at]
        if len(before) < 2 or not all(middle in waits for middle in (before[0][0], before[-1][0])):
            return ""
        (first, low), (last, high) = before[0], before[-1]
        return (
            f"In the {name} fleet, {percent(low)} of the prompt tokens of {self.span(first)} are found in a cache and "
            f"{percent(high)} of those of {self.span(last)}; the 99th percentile of TTFT is {quantity(waits[first], 's')} "
            f"and {quantity(waits[last], 's')}."
        )

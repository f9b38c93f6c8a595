"""Measured values as the words need them: a middle, the range of the repeats, and one way to print a number.

Introduced in chapter 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lib.bench.measure.percentiles import percentile
from lib.bench.measure.timing import Timing
from lib.bench.powers import power_of_ten
from lib.bench.records.series import Series

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


_SMALLEST, _LARGEST = 1e-18, 1e30
# With fewer repeats, quartiles are interpolated between values that say little about them.
QUARTERS = 5


@dataclass(frozen=True)
class Value:
    """A measured value: `middle` (None: not measured), and `low` to `high`, the range of its `count` repeats.

    half: width of the middle half of the repeats, from the 25th to the 75th percentile; None for fewer than five.
    """

    middle: float | None
    low: float | None = None
    high: float | None = None
    count: int = 0
    half: float | None = None

    @property
    def known(self) -> bool:
        return self.middle is not None

    @property
    def spread(self) -> float | None:
        """Width of the range over the middle; None for fewer than two repeats, where it cannot be known."""
        if self.middle is None or self.count < 2:
            return None
        return (self.high - self.low) / abs(self.middle) if self.middle else math.inf

    @property
    def half_spread(self) -> float | None:
        """Width of the middle half over the middle; None for fewer than five repeats.

        It says how well the middle is known: one repeat that another program disturbed moves the range, not the middle.
        """
        if self.middle is None or self.half is None:
            return None
        return self.half / abs(self.middle) if self.middle else math.inf

    def overlaps(self, other: "Value") -> bool:
        """Whether the two ranges share a point, and at least one of them is a range and not one number."""
        if max(self.count, other.count) < 2:
            return False
        return self.low <= other.high and other.low <= self.high


# One number, all repeats of it, a middle with its range, or None where it was not measured.
Measured = float | int | Timing | Sequence[float] | Value | None


def value(measured: Measured) -> Value:
    """A Value of a number, a Timing, or a sequence of repeats; a Value as it is.

    NaN and infinities count as not measured, and so do numbers beyond what anything here can measure, whose ratios would
    overflow.

    The range is all repeats for fewer than ten of them, and from the 10th to the 90th percentile for more.
    """
    if measured is None:
        return Value(None)
    if isinstance(measured, Value):
        return measured
    found = getattr(measured, "samples", measured)
    samples = list(found) if isinstance(found, Sequence) else [found]
    finite = [float(s) for s in samples if s is not None and _is_measurable(s)]
    if not finite:
        return Value(None)
    few = len(finite) < 10
    low, high = (percentile(finite, q) for q in ((0, 100) if few else (10, 90)))
    quarters = [percentile(finite, q) for q in (25, 75)] if len(finite) >= QUARTERS else None
    half = quarters[1] - quarters[0] if quarters else None
    return Value(percentile(finite, 50), low, high, len(finite), half)


def _is_measurable(number: float) -> bool:
    return math.isfinite(number) and (number == 0 or _SMALLEST <= abs(number) <= _LARGEST)


def cell(series: Series | None, column: str, row: int, scale: float = 1.0) -> Measured:
    """One value of a recorded series times `scale`: its raw samples where they were kept, else its number, else None."""
    if (
        series is None
        or column not in series
        or not -len(series[column]) <= row < len(series[column])
    ):
        return None
    samples = series.samples.get(column)
    if samples and samples[row]:
        return [scale * sample for sample in samples[row]]
    found = series[column][row]
    return None if found is None else scale * found


def column(series: Series | None, name: str) -> list[Measured]:
    """Every value of a column, raw samples where they were kept; an empty list for a series that is absent."""
    if series is None or name not in series:
        return []
    return [cell(series, name, row) for row in range(len(series[name]))]


def ends(series: Series | None, name: str) -> tuple[Measured, Measured]:
    """The first and the last value of a column."""
    found = column(series, name)
    return (found[0], found[-1]) if found else (None, None)


def cell_of(series: Series | None, name: str, column: str) -> Measured:
    """The cell of `column` in the row whose first column is `name`; None where there is none."""
    names = next(iter(series.columns.values()), []) if series is not None else []
    return cell(series, column, names.index(name)) if name in names else None


def positive(measured: Measured) -> float | None:
    """The middle of a measured value; None where it is missing or not above zero."""
    middle = value(measured).middle
    return middle if middle is not None and middle > 0 else None


def over(a: Measured, b: Measured) -> float | None:
    """a over b by their middles; None where one is missing or not above zero."""
    x, y = positive(a), positive(b)
    return x / y if x and y else None


def of_both(a: Measured, b: Measured, how: Callable[[float, float], float]) -> Value:
    """how(a, b) of two middles, e.g. their ratio; the range is that of how(a, b) in each turn.

    The middle is the one that a reader finds from the two medians of a table. Turns count where both have as many.
    """
    first, second = value(a), value(b)
    if not (first.known and second.known):
        return Value(None)
    middle = value(how(first.middle, second.middle))
    found = value([how(x, y) for x, y in _turns(a, b)])
    if not (middle.known and found.known):
        return middle
    low, high = min(found.low, middle.low), max(found.high, middle.high)
    return Value(middle.middle, low, high, found.count)


def _turns(a: Measured, b: Measured) -> list[tuple[float, float]]:
    """The pairs of two lists of repeats that are equally long and complete; else none."""
    x, y = (getattr(measured, "samples", measured) for measured in (a, b))
    if not (isinstance(x, Sequence) and isinstance(y, Sequence) and len(x) == len(y) > 1):
        return []
    whole = all(s is not None and _is_measurable(s) for s in (*x, *y))
    return list(zip(x, y)) if whole else []


def listed(parts: Sequence[str]) -> str:
    """ "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def number(x: float) -> str:
    """Three significant digits, thousands with commas: 0.0123, 1.23, 12.3, 1,234; whole numbers as they are."""
    if abs(x - round(x)) <= 1e-9 * abs(x):
        return f"{x:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(x))))
    if digits > 6:
        return f"{x:.2e}"
    text = f"{x:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits > 2 else text


def quantity(x: float | None, unit: str = "") -> str:
    """A number with its unit: 0.0031 "s" is "3.10 ms", 3.6e10 "B/s" is "36.0 GB/s"; None is "not measured"."""
    if x is None or not math.isfinite(x):
        return "not measured"
    if unit == "ms":
        x, unit = x / 1e3, "s"
    if unit == "s" and 0 < abs(x) < 0.9995:
        return f"{number(1e3 * x)} ms" if abs(x) >= 0.9995e-3 else f"{number(1e6 * x)} µs"
    if unit in ("B", "B/s", "FLOP/s", "FLOPs"):
        for size, prefix in _PREFIXES:
            if abs(x) >= size:
                return f"{number(x / size)} {prefix}{unit}"
    return f"{number(x)} {unit}".strip()


def scientific(x: float, digits: int = 2) -> str:
    """A number of any size with `digits` significant digits: 0.0051, 12, and "3.8 × 10⁻⁶" outside of 0.001 to 10,000.

    Its spaces do not break over two lines. Zero is "0".
    """
    if not x or not math.isfinite(x):
        return f"{x:g}"
    mantissa, power = f"{x:.{digits - 1}e}".split("e")
    if -3 <= int(power) < 4:
        text = f"{float(f'{x:.{digits}g}'):,.{max(0, digits - 1 - int(power))}f}"
        return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")
    return f"{mantissa} × {power_of_ten(int(power))}".replace("-", "−").replace(" ", "\u00a0")


def times(ratio: float) -> str:
    """A ratio in words: "1.8 times", "12 times", "0.42 times"; a whole one without decimals."""
    whole = ratio >= 9.95 or abs(ratio - round(ratio)) < 1e-9
    digits = 0 if whole else 1 if ratio >= 0.995 else 2
    return f"{ratio:,.{digits}f} times" if ratio >= 0.005 else f"{ratio:.1g} times"


def times_between(low: float, high: float) -> str:
    """Two ratios in words: "1.4 to 2.0 times", and "1.9 times" where they print alike."""
    first, last = times(low), times(high)
    return last if first == last else f"{first.removesuffix(' times')} to {last}"


def percent(fraction: float) -> str:
    """A fraction as a whole percentage; "less than 1 %" and "more than 99 %" where 0 or 100 would be wrong."""
    if 0 < abs(fraction) < 0.005:
        return "less than 1 %"
    if 0.995 <= fraction < 1:
        return "more than 99 %"
    return f"{100 * fraction:,.0f} %"


def percent_above(fraction: float, limit: float) -> str:
    """A percentage that prints above a limit it is above: 25.4 % beside 25 %."""
    said = percent(fraction)
    if fraction <= limit or said != percent(limit):
        return said
    precise = (
        (f"{100 * fraction:.{digits}f} %", f"{100 * limit:.{digits}f} %") for digits in range(1, 18)
    )
    return next((text for text, other in precise if text != other), said)

"""Words for a whole curve: does it rise, in proportion to what, where does it cross another, in which order do they lie.

The thresholds are those of `lib.bench.findings.vocabulary`.

Introduced in chapter 1.
"""

from collections.abc import Mapping, Sequence

from lib.bench.findings.values import Measured, Value, listed, number, over, quantity, times, value
from lib.bench.findings.vocabulary import ABOUT, Finding, missing, size_of

_ROUNDING = 1e-9
_SMALLEST_SIZE = 1e-9  # sizes are counts; below this a ratio of two would overflow
Point = tuple[float, Value]


def points(xs: Sequence[float], ys: Sequence[Measured]) -> list[Point]:
    """The (x, Value) pairs that were measured, by rising x."""
    return sorted(
        ((x, v) for x, y in zip(xs, ys) if (v := value(y)).known), key=lambda point: point[0]
    )


def trend(
    xs: Sequence[float], ys: Sequence[Measured], unit: str = "", where: str = "{}"
) -> Finding:
    """The shape of a curve over x: "rises", "falls", "flat", "peaks", "dips", "varies" (kind), with its numbers.

    A change of at most 10 % is none. `where` names a place on the x axis, e.g. "{} tokens". `ratio` is last over first.
    """
    found = points(xs, ys)
    if len(found) < 2:
        return missing("the trend")
    middles = [v.middle for _, v in found]
    (_, first), (_, last) = found[0], found[-1]
    low, high = min(middles), max(middles)
    ratio = last.middle / first.middle if first.middle > 0 and last.middle > 0 else None
    ends = f"from {quantity(first.middle, unit)} to {quantity(last.middle, unit)}"
    if _near(low, high):
        return Finding(f"stays about the same ({ends})", "flat", ratio)
    if first.overlaps(last) and max(v.spread or 0 for _, v in found) > ABOUT:
        return Finding(
            f"shows no change that this run can tell from the spread of the repeats ({ends})",
            "cannot tell",
            ratio,
            brief=ends.removeprefix("from "),
        )
    if _climbs(middles):
        return Finding(f"rises {ends}", "rises", ratio, 1)
    if _climbs(middles[::-1]):
        return Finding(f"falls {ends}", "falls", ratio, -1)
    top, bottom = middles.index(high), middles.index(low)
    if _climbs(middles[: top + 1]) and _climbs(middles[top:][::-1]):
        at = where.format(number(found[top][0]))
        text = f"rises to a peak of {quantity(high, unit)} at {at} and falls again"
        return Finding(f"{text} ({ends})", "peaks", ratio)
    if _climbs(middles[: bottom + 1][::-1]) and _climbs(middles[bottom:]):
        at = where.format(number(found[bottom][0]))
        text = f"falls to a lowest {quantity(low, unit)} at {at} and rises again"
        return Finding(f"{text} ({ends})", "dips", ratio)
    return Finding(
        f"goes up and down between {quantity(low, unit)} and {quantity(high, unit)}",
        "varies",
        ratio,
    )


def _near(low: float, high: float) -> bool:
    return high - low <= (ABOUT + _ROUNDING) * min(abs(low), abs(high))


def _climbs(middles: Sequence[float]) -> bool:
    """Whether the last is above the first by more than 10 %, and nothing on the way falls back by more than 10 %."""
    if len(middles) < 2 or middles[-1] <= middles[0] or _near(middles[0], middles[-1]):
        return False
    top = middles[0]
    for middle in middles:
        if middle < top and not _near(middle, top):
            return False
        top = max(top, middle)
    return True


def scaling(xs: Sequence[float], ys: Sequence[Measured]) -> Finding:
    """How y grows with x from the first point to the last: in proportion, less, more, not at all, or it falls (kind).

    kind: "proportional", "less", "more", "flat", "falls". The clause reads on from its subject: "the time … grows 5.0
    times for 8.0 times the length, less than in proportion". `ratio` is growth of y over growth of x.
    """
    found = [(x, v) for x, v in points(xs, ys) if x > _SMALLEST_SIZE and v.middle > 0]
    if len(found) < 2 or found[-1][0] == found[0][0]:
        return missing("the growth")
    (x0, first), (x1, last) = found[0], found[-1]
    steps, growth = x1 / x0, last.middle / first.middle
    ratio = growth / steps
    if first.overlaps(last) and max(first.spread or 0, last.spread or 0) > ABOUT:
        return Finding("does not change by more than the repeats spread", "cannot tell", ratio)
    if size_of(growth) == "about":
        return Finding(f"stays about the same over {times(steps)} the size", "flat", ratio)
    if growth < 1:
        return Finding(f"falls to {times(growth)} over {times(steps)} the size", "falls", ratio, -1)
    said = f"grows {times(growth)} over {times(steps)} the size"
    if size_of(ratio) == "about":
        return Finding(f"{said}, in proportion", "proportional", ratio)
    kind = "more" if ratio > 1 else "less"
    return Finding(f"{said}, {kind} than in proportion", kind, ratio, 1 if ratio > 1 else -1)


def threshold(
    xs: Sequence[float], ys: Sequence[Measured], limit: float, unit: str = "", where: str = "{}"
) -> Finding:
    """Where a curve first reaches a limit: "reaches 2.00 s first at 8 users", or "never reaches 2.00 s (at most …)"."""
    found = points(xs, ys)
    if not found:
        return missing("the curve")
    said = quantity(limit, unit)
    for x, v in found:
        if v.middle >= limit:
            return Finding(f"reaches {said} first at {where.format(number(x))}", "reached", x)
    most = max(v.middle for _, v in found)
    return Finding(f"never reaches {said} (at most {quantity(most, unit)})", "never", None, -1)


def crossing(
    xs: Sequence[float],
    a: Sequence[Measured],
    b: Sequence[Measured],
    a_name: str,
    b_name: str,
    where: str = "{}",
) -> Finding:
    """Where curve a changes sides with curve b; `direction`: whether a ends above b. `ratio`: the x after the change.

    Points that differ by 10 % or less count for neither side.
    """
    both = [
        (x, value(p).middle, value(q).middle)
        for x, p, q in zip(xs, a, b)
        if value(p).known and value(q).known
    ]
    if not both:
        return missing(a_name, b_name)
    sided = [(x, 1 if p > q else -1) for x, p, q in sorted(both) if not _near(min(p, q), max(p, q))]
    if not sided:
        return Finding(f"{a_name} and {b_name} are about the same everywhere", "about")
    changes = [(x0, x1) for (x0, s0), (x1, s1) in zip(sided, sided[1:]) if s0 != s1]
    side = sided[-1][1]
    if not changes:
        word = "above" if side > 0 else "below"
        text = f"{a_name} is {word} {b_name} wherever they differ: they never cross"
        return Finding(text, "never", None, side)
    if len(changes) > 1:
        text = f"{a_name} and {b_name} cross {len(changes)} times, so neither stays above the other"
        return Finding(text, "varies")
    (x0, x1) = changes[0]
    word = "above" if side > 0 else "below"
    at = f"between {number(x0)} and {where.format(number(x1))}"
    return Finding(f"{a_name} goes {word} {b_name} {at}", "crosses", x1, side)


def ordering(
    values: Mapping[str, Measured], unit: str = "s", smallest_first: bool = True
) -> Finding:
    """Several results in order: "A (1.00 s), then B (1.50 s); C was not measured here". Neighbours within 10 % share a place."""
    known = {name: v for name, m in values.items() if (v := value(m)).known}
    if not known:
        return missing(*values)
    order = sorted(known, key=lambda name: known[name].middle, reverse=not smallest_first)
    groups: list[list[str]] = []
    for name in order:
        before = known[groups[-1][0]] if groups else None
        here = known[name]
        if before and _tied(before, here):
            groups[-1].append(name)
        else:
            groups.append([name])
    text = ", then ".join(
        listed([f"{name} ({quantity(known[name].middle, unit)})" for name in group])
        + (", about the same" if len(group) > 1 else "")
        for group in groups
    )
    gone = [name for name in values if name not in known]
    if gone:
        text += f"; {missing(*gone)}"
    return Finding(text, "ordered" if len(groups) > 1 else "about")


def _tied(a: Value, b: Value) -> bool:
    near = _near(min(a.middle, b.middle), max(a.middle, b.middle))
    noisy = max(a.spread or 0, b.spread or 0) > ABOUT
    return near or (noisy and a.overlaps(b))


def growth(first: Measured, last: Measured) -> float | None:
    """last over first, by their middles; None where one is missing or not above zero."""
    return over(last, first)

"""The book's words for measured values: each function takes numbers and returns the sentence that they support.

One set of thresholds for all chapters. Two values are "about" the same within 10 %, differ "a little" within 25 %, and
beyond that the sentence gives the ratio ("1.8 times"), from 3 on as "several times". Ranges of repeats that overlap
cannot be told apart, unless the repeats themselves agree within 10 %: then they are about the same. The book's page of
notation has a table of the words, which takes the thresholds from here.

Introduced in chapter 1.
"""

from dataclasses import dataclass

from lib.bench.findings.values import Measured, over, percent, quantity, times, value

ABOUT, LITTLE, SEVERAL = 0.10, 0.25, 3.0
# The least share that a word stands for; below the last one it is "a small part".
SHARES = (
    (0.95, "almost all"),
    (0.55, "most"),
    (0.45, "about half"),
    (0.25, "less than half"),
    (0.10, "less than a quarter"),
)
MISSING = "was not measured here"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Finding:
    """A clause without a full stop, and what it says: `glue("name", finding)` or f"{finding}." puts it into prose.

    kind: "missing", "cannot tell", "undefined" (zero or negative, where no ratio exists), "about", "little", "number",
    "several", "failed" and, for the words of `lib.bench.findings.curves`, the shape. ratio: the one that was judged.
    direction: 1 where the first value is larger, -1 where it is smaller, 0 where they are the same or cannot be told.
    brief: the numbers alone, for a cell of a table whose verdict has the words; empty where the text is short.
    """

    text: str
    kind: str
    ratio: float | None = None
    direction: int = 0
    brief: str = ""

    def __str__(self) -> str:
        return self.text

    @property
    def verdict(self) -> str:
        """The judgement alone, without its numbers, for a sentence that has them already: "as predicted", …"""
        if self.kind == "little":
            return f"a little {'above' if self.direction > 0 else 'below'} the prediction"
        short = {"about": "as predicted", "failed": "the prediction failed", "missing": MISSING}
        return short.get(self.kind, "this run cannot tell")

    @property
    def sentence(self) -> str:
        """The clause as a sentence of its own: a capital letter and a full stop."""
        return capital(self.text) + "."


def capital(text: str) -> str:
    """The text with its first letter as a capital."""
    return text[:1].upper() + text[1:]


def uncapital(text: str) -> str:
    """The text with its first letter small, for the inside of a sentence; a name keeps it: GPT-2, SmolLM2, K and V."""
    word = text.split(" ", 1)[0]
    is_name = word == "K" or any(letter.isupper() for letter in word[1:])
    return text if is_name else text[:1].lower() + text[1:]


def size_of(ratio: float) -> str:
    """The word's kind for a ratio of two positive values, whichever is larger: about, little, number, several."""
    distance = max(ratio, 1 / ratio)
    if distance <= 1 + ABOUT + _ROUNDING:
        return "about"
    if distance <= 1 + LITTLE + _ROUNDING:
        return "little"
    return "number" if distance < SEVERAL else "several"


def missing(*names: str) -> Finding:
    """ "A was not measured here", "A and B were not measured here"."""
    if len(names) == 1:
        return Finding(f"{names[0]} {MISSING}", "missing")
    return Finding(f"{' and '.join(names)} were not measured here", "missing")


def compare(
    a: Measured, b: Measured, a_name: str, b_name: str, *, what: str = "time", unit: str = "s"
) -> Finding:
    """How `a` stands to `b`. what="time": less is faster; anything else ("throughput", "memory") is an amount.

    "A is 1.8 times as fast as B (1.00 s against 1.80 s)", "A and B take about the same time", "A takes several times as
    long as B (5.0 times)", "A has a little more throughput than B (12 %)", "this run cannot tell A and B apart".
    """
    first, second = value(a), value(b)
    if not (first.known and second.known):
        return missing(*(n for n, v in ((a_name, first), (b_name, second)) if not v.known))
    x, y = first.middle, second.middle
    both = f"{quantity(x, unit)} against {quantity(y, unit)}"
    if x <= 0 or y <= 0:
        if x == y:
            return Finding(
                f"{a_name} and {b_name} have the same {what}, {quantity(x, unit)}", "about"
            )
        return Finding(f"{a_name} and {b_name} have no ratio ({both})", "undefined")
    ratio = x / y
    if first.overlaps(second) and max(first.spread or 0, second.spread or 0) > ABOUT:
        text = f"this run cannot tell {a_name} and {b_name} apart ({both}, within the spread of the repeats)"
        return Finding(text, "cannot tell", ratio)
    kind, direction = size_of(ratio), 1 if x > y else -1
    if kind == "about":
        verb = "take" if what == "time" else "have"
        return Finding(f"{a_name} and {b_name} {verb} about the same {what} ({both})", kind, ratio)
    if kind == "little":
        if what == "time":
            word, over = ("slower", ratio) if direction > 0 else ("faster", 1 / ratio)
            text = f"{a_name} is a little {word} than {b_name} ({percent(over - 1)}: {both})"
        else:
            word, over = ("more", ratio) if direction > 0 else ("less", ratio)
            text = f"{a_name} has a little {word} {what} than {b_name} ({percent(abs(over - 1))}: {both})"
        return Finding(text, kind, ratio, direction)
    factor = times(max(ratio, 1 / ratio))
    said, inside = (factor, both) if kind == "number" else ("several times", f"{factor}: {both}")
    if what == "time":
        words = f"takes {said} as long as" if direction > 0 else f"is {said} as fast as"
        return Finding(f"{a_name} {words} {b_name} ({inside})", kind, ratio, direction)
    more, less = (a_name, b_name) if direction > 0 else (b_name, a_name)
    if direction < 0:
        inside = inside.replace(both, f"{quantity(y, unit)} against {quantity(x, unit)}")
    return Finding(f"{more} has {said} the {what} of {less} ({inside})", kind, ratio, direction)


def ratio_range(a: Measured, b: Measured) -> Measured:
    """a over b: one number, or the least, the middle and the largest ratio where the repeats of one differ by over 10 %.

    So a prediction of the ratio is judged by the noise of both, as `compare` judges a and b.
    """
    ratio, first, second = over(a, b), value(a), value(b)
    if ratio is None or max(first.spread or 0, second.spread or 0) <= ABOUT:
        return ratio
    if min(first.low, second.low) <= 0:
        return ratio
    return [first.low / second.high, ratio, first.high / second.low]


def versus_prediction(predicted: Measured, measured: Measured, unit: str = "s") -> Finding:
    """The verdict on a predicted value: "as predicted" within 10 % of it, "a little above" within 25 %, else failed.

    Where the prediction lies within the range of repeats that spread by more than 10 %, this run cannot tell.
    """
    want, got = value(predicted), value(measured)
    if not got.known:
        return missing("the predicted value")
    if not want.known:
        return Finding(f"measured {quantity(got.middle, unit)}, without a prediction", "missing")
    both = f"measured {quantity(got.middle, unit)}, predicted {quantity(want.middle, unit)}"
    if want.middle <= 0 or got.middle <= 0:
        if want.middle == got.middle:
            return Finding(f"as predicted ({both})", "about")
        return Finding(f"the prediction failed: {both}", "failed", None)
    ratio = got.middle / want.middle
    direction = (ratio > 1) - (ratio < 1)
    if got.overlaps(want) and (got.spread or 0) > ABOUT:
        text = f"this run cannot tell ({both}, within the spread of the repeats)"
        return Finding(text, "cannot tell", ratio)
    if abs(ratio - 1) <= ABOUT + _ROUNDING:
        return Finding(f"as predicted ({both})", "about", ratio)
    if abs(ratio - 1) <= LITTLE + _ROUNDING:
        side = "above" if direction > 0 else "below"
        text = f"a little {side} the prediction ({percent(abs(ratio - 1))}: {both})"
        return Finding(text, "little", ratio, direction)
    return Finding(f"the prediction failed: {both} ({times(ratio)})", "failed", ratio, direction)


def versus_bound(bound: Measured, measured: Measured, unit: str = "s") -> Finding:
    """A time over the least that the ceilings allow: "at the bound", "1.3 times the bound", or below it.

    A time below the bound by more than 10 % says that a ceiling was measured too low, and the words say so.
    """
    least, got = value(bound), value(measured)
    if not (least.known and got.known and least.middle > 0 and got.middle > 0):
        return missing("the time over its bound")
    ratio = got.middle / least.middle
    both = f"{quantity(got.middle, unit)}, bound {quantity(least.middle, unit)}"
    if abs(ratio - 1) <= ABOUT + _ROUNDING:
        return Finding(f"at the bound within 10 % ({both})", "about", ratio)
    if ratio < 1:
        text = f"{times(ratio)} the bound ({both}: a ceiling was measured too low)"
        return Finding(text, "failed", ratio, -1)
    return Finding(f"{times(ratio)} the bound ({both})", size_of(ratio), ratio, 1)


def share(part: Measured, whole: Measured = 1.0) -> Finding:
    """A part of a whole in words: "almost all (97 %)", "about half (48 %)", "less than a quarter (13 %)", "a small part (3 %)"."""
    some, everything = value(part), value(whole)
    if not (some.known and everything.known):
        return Finding(f"a share that {MISSING}", "missing")
    if everything.middle <= 0 or some.middle < 0:
        return Finding("no share that could be computed", "undefined")
    fraction = some.middle / everything.middle
    if fraction > 1.005:
        text = f"more than the whole ({percent(fraction)}: one of the two was measured wrongly)"
        return Finding(text, "failed", fraction, 1)
    for least, word in SHARES:
        if fraction >= least:
            return Finding(f"{word} ({percent(fraction)})", word, fraction)
    word = "a small part" if fraction else "nothing"
    return Finding(f"{word} ({percent(fraction)})", word, fraction)


def goal_sentence(reached: float | None, goal: str, is_met: bool) -> str:
    """Whether a run reaches a goal, as a sentence after another one; empty where it was not measured."""
    if reached is None:
        return ""
    return f" The goal was {goal}; this run {'reaches' if is_met else 'does not reach'} it."

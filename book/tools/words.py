"""The words of the findings and what each means, as a table: the directive `words`.

The thresholds are those of the code that chooses the words (lib/bench/findings/vocabulary.py).
"""

from __future__ import annotations

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from lib.bench.findings.gates import SPREAD
from lib.bench.findings.values import QUARTERS, number, percent
from lib.bench.findings.vocabulary import ABOUT, LITTLE, SEVERAL, SHARES


def meanings() -> list[tuple[str, str]]:
    """(words, meaning) in the order of the table."""
    about, little, several = percent(ABOUT), percent(LITTLE), number(SEVERAL)
    shares = [f"at least {percent(least)}: *{word}*" for least, word in SHARES]
    return [
        ("about the same", f"two values differ by at most {about}"),
        (
            "a little faster, a little more",
            f"they differ by more than {about} and at most {little}",
        ),
        ("1.8 times", f"they differ by more than {little}; the ratio is below {several}"),
        ("several times", f"the ratio is {several} or more, and stands in parentheses"),
        (
            "this run cannot tell",
            f"the ranges of the repeats overlap, and one is wider than {about} of its median; of a prediction: it "
            "lies within such a range",
        ),
        (
            "this run cannot show it",
            "a condition of the experiment did not hold: other programs used the processor, the machine was slower than in "
            f"its recorded runs, or repeats differ by more than {percent(SPREAD)} of their median (all of fewer than "
            f"{number(QUARTERS)}, the middle half of {number(QUARTERS)} or more)",
        ),
        ("as predicted", f"the measured value is within {about} of the predicted one"),
        (
            "a little above, a little below",
            f"it is more than {about} and at most {little} from the predicted one",
        ),
        (
            "the prediction failed",
            f"it is more than {little} from the predicted one; of a predicted shape, such as *rises*: the measured "
            "one is another",
        ),
        (
            "within the limit",
            f"the predicted value is a least or a most (*at least*, *at most*), and the measured one lies on its right side, more than {about} "
            "from it",
        ),
        ("at the bound", f"a time is within {about} of the least that the ceilings allow"),
        ("flat", f"a curve changes by at most {about}"),
        ("almost all, most, …", f"a share of {', '.join(shares)}; less: *a small part*"),
    ]


def markdown() -> str:
    """The table as MyST text."""
    rows = [f"| {word} | {meaning} |" for word, meaning in meanings()]
    return "\n".join(["| Words | What they mean |", "| --- | --- |", *rows])


class Words(SphinxDirective):
    """The table of the words that the findings use."""

    def run(self) -> list[nodes.Node]:
        box = nodes.container("", is_div=True)
        self.state.nested_parse(
            StringList(markdown().splitlines(), "words"), self.content_offset, box
        )
        return box.children


def setup(app) -> None:
    app.add_directive("words", Words)

"""What the book changes in the text of its pages, and its table of words."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from book.tools.words import meanings
from lib.bench.findings.predictions import Prediction
from lib.bench.findings.vocabulary import (
    ABOUT,
    LITTLE,
    SEVERAL,
    SHARES,
    compare,
    share,
    versus_bound,
    versus_prediction,
)

ROOT = Path(__file__).resolve().parents[2]
PAGE = """# After 3 ms

A gain of 86 % at 1.5
GB/s, **12 ms** of [4 kB](https://a.example), after 3 steps; `sleep 5 s`.

    wait 7 s

$2 s$

```{words}
```
"""


def test_a_page_has_unbroken_units_outside_code_and_the_table_of_words(tmp_path):
    (tmp_path / "index.md").write_text(PAGE)
    (tmp_path / "conf.py").write_text(
        f"import sys\n\nsys.path.insert(0, {str(ROOT)!r})\nmyst_enable_extensions = ['dollarmath']\n"
        "extensions = ['myst_nb', 'sphinx_design', 'book.tools.book_ext']\n"
    )
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "-q", str(tmp_path), str(tmp_path / "out")],
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "out" / "index.html").read_text()
    text = re.sub(r"<[^>]*>", "", html[html.index("<h1>") :])
    for kept in ("After 3\u00a0ms", "86\u00a0%", "1.5\u00a0GB/s", "12\u00a0ms", "4\u00a0kB"):
        assert kept in text
    for plain in ("after 3 steps", "sleep 5 s", "wait 7 s", "2 s"):
        assert plain in text
    assert (
        "two values differ by at most 10\u00a0%" in text
        and text.count("the prediction failed") == 1
    )


def meaning(word: str) -> str:
    (found,) = [meaning for words, meaning in meanings() if word in words.split(", ")]
    return found


NEAR = 1e-3


@pytest.mark.parametrize("word, limit, kinds", [
    ("about the same", ABOUT, ("about", "little")),
    ("a little faster", LITTLE, ("little", "number")),
    ("1.8 times", SEVERAL - 1, ("number", "several")),
])  # fmt: skip
def test_a_comparison_changes_its_word_at_the_threshold_that_the_table_names(word, limit, kinds):
    found = [compare(1.0, 1 + limit + step, "a", "b").kind for step in (-NEAR, NEAR)]
    assert found == list(kinds)
    assert f"{100 * limit:.0f} %" in meaning(word) or f"below {SEVERAL:.0f}" in meaning(word)


def test_a_verdict_changes_its_word_at_the_threshold_that_the_table_names():
    for word, limit, verdicts in (
        ("as predicted", ABOUT, ("as predicted", "a little above the prediction")),
        ("a little above", LITTLE, ("a little above the prediction", "the prediction failed")),
    ):
        found = [versus_prediction(1.0, 1 + limit + step).verdict for step in (-NEAR, NEAR)]
        assert found == list(verdicts) and f"{100 * limit:.0f} %" in meaning(word)
    bounds = [versus_bound(1.0, 1 + ABOUT + step).text for step in (-NEAR, NEAR)]
    assert bounds[0].startswith("at the bound") and "times the bound" in bounds[1]
    assert f"within {100 * ABOUT:.0f} %" in meaning("at the bound")


def test_repeats_that_overlap_cannot_be_told_apart_from_the_width_that_the_table_names():
    narrow, wide = ([1 - x, 1.0, 1 + x] for x in (ABOUT / 2 - NEAR, ABOUT / 2 + NEAR))
    assert [compare(r, r, "a", "b").kind for r in (narrow, wide)] == ["about", "cannot tell"]
    assert f"wider than {100 * ABOUT:.0f} %" in meaning("this run cannot tell")


@pytest.mark.parametrize("least, word", SHARES)
def test_a_share_has_its_word_from_the_least_that_the_table_names(least, word):
    assert share(least + NEAR).kind == word != share(least - NEAR).kind
    assert f"at least {100 * least:.0f} %: *{word}*" in meaning("almost all")


@pytest.mark.parametrize("sense, side", [("at least", 1), ("at most", -1)])
def test_a_value_on_the_right_side_of_a_limit_has_the_words_of_the_table(sense, side):
    def verdict(distance):
        return Prediction("a claim", 1.0, 1 + side * distance, sense=sense).verdict

    assert verdict(ABOUT - NEAR) == "as predicted"
    assert verdict(ABOUT + NEAR) == verdict(LITTLE + NEAR) == "within the limit"
    assert "within the limit" not in (verdict(-ABOUT - NEAR), verdict(-LITTLE - NEAR))
    assert f"more than {100 * ABOUT:.0f} %" in meaning("within the limit")

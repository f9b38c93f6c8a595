"""Code on a page fits its column, and what a reader is to read is short; the rest is folded away."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from listings import CHAPTERS, all_cells, shown_listings, visible_cells  # noqa: E402

COLUMNS = 80  # of a cell that is read
WIDEST = 88  # what fits at 1300 px: folded cells
WIDEST_LISTING = 100  # of lib/, which the style sheet shows in a smaller type
LONGEST = 30  # lines of a cell that is not folded


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_cells_fit_their_column(chapter):
    wide = [line for cell in visible_cells(chapter) for line in cell.splitlines()]
    assert not [line for line in wide if len(line) > COLUMNS]
    assert not [
        line for cell in all_cells(chapter) for line in cell.splitlines() if len(line) > WIDEST
    ]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_long_cells_are_folded(chapter):
    long = [cell for cell in visible_cells(chapter) if len(cell.splitlines()) > LONGEST]
    assert not [cell.splitlines()[0] for cell in long], "tag it hide-input, or split it"


def test_most_visible_cells_are_short():
    lengths = [len(cell.splitlines()) for path in CHAPTERS for cell in visible_cells(path)]
    assert sum(n <= 15 for n in lengths) >= 0.6 * len(lengths)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_listings_of_lib_fit_their_column(chapter):
    wide = [
        f"{listing.call}: {line}"
        for listing in shown_listings(chapter)
        for line in listing.text.splitlines()
        if len(line) > WIDEST_LISTING
    ]
    assert not wide

"""Small tables: HTML in a notebook, aligned text in a script.

Introduced in chapter 1.
"""

import html
import re
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from lib.bench.script_options import in_notebook

# The space between a number and its unit, where no line may break.
_BEFORE_UNIT = re.compile(
    r"(?<=\d)[ \n](?=(?:[%×]|[µmn]?s|min|h|[kMGT]?i?B(?:/s)?|[kMGT]?FLOP(?:s|/s)?|tok(?:ens)?/s)(?!\w))"
)
# A cell of percentages alone, as a format such as ".1%" prints them.
_PERCENTAGES = re.compile(r"\d+(\.\d+)?%(, \d+(\.\d+)?%)*")
# The sign of a negative number, and the apostrophe of a word; a cell with a sign of code keeps both.
_MINUS, _APOSTROPHE = re.compile(r"(?:(?<=^)|(?<=[ (]))-(?=\d)"), re.compile(r"(?<=\w)'(?=\w|\Z| )")
_OF_CODE = re.compile(r"^'|[\"`\[\]{}\\=|*]")


def unbroken(text: str) -> str:
    """The text with a no-break space between a number and its unit: "86 %", "3.10 ms"."""
    return _BEFORE_UNIT.sub("\u00a0", text)


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str], kind: str = "") -> None:
    """Shows a small table: HTML in a notebook, aligned text in a script. Numbers come formatted: 3 digits are enough.

    Columns of numbers are aligned right, and a percentage has a space before its sign, as in the text. kind: a further CSS class of the HTML; all columns of "predictions" are aligned left, because words can stand beside numbers in them. Raises ValueError for a row that has not one cell per header.
    """
    for i, row in enumerate(rows):
        if len(row) != len(headers):
            raise ValueError(f"row {i} has {len(row)} cells, the table has {len(headers)} headers")
    cells = [[_spaced(str(cell)) for cell in row] for row in rows]
    numeric = [
        bool(cells) and kind != "predictions" and all(_is_number(row[i]) for row in cells)
        for i in range(len(headers))
    ]
    align = ["right" if number else "left" for number in numeric]
    if not in_notebook():
        text = tabulate(cells, headers, tablefmt="simple", disable_numparse=True, colalign=align)
        print("\n".join(line.rstrip() for line in text.splitlines()))
        return
    from IPython.display import HTML, display

    display(HTML(_as_html(cells, headers, align, kind)))


def _as_html(
    cells: Sequence[Sequence[str]], headers: Sequence[str], align: Sequence[str], kind: str
) -> str:
    # A phone shows a row of some tables as a list: the style sheet then puts its header before a cell.
    head = "".join(
        f'<th style="text-align:{a}">{_escaped(name)}</th>' for a, name in zip(align, headers)
    )
    rows = [
        "".join(
            f'<td style="text-align:{a}" data-header="{_escaped(name)}">{_escaped(cell)}</td>'
            for a, name, cell in zip(align, headers, row)
        )
        for row in cells
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    # The class is the one that Jupyter and the book's theme style, in light and dark.
    kinds = f"dataframe {kind}".strip()
    return f'<table class="{kinds}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _escaped(text: str) -> str:
    if not _OF_CODE.search(text):
        text = _APOSTROPHE.sub("’", _MINUS.sub("−", text))
    return html.escape(unbroken(text))


def _spaced(cell: str) -> str:
    """ "86 %" for "86%", where the cell has percentages alone."""
    return cell.replace("%", " %") if _PERCENTAGES.fullmatch(cell) else cell


def _is_number(cell: str) -> bool:
    text = cell.strip().rstrip("%×x").replace(",", "").replace("−", "-").strip()
    if text in ("", "-", "–", "—"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True

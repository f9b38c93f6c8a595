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
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:[%×]|[µmn]?s|min|h|[kMGT]?i?B(?:/s)?|tok/s)(?!\w))")


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str], kind: str = "") -> None:
    """Shows a small table: HTML in a notebook, aligned text in a script. Numbers come formatted: 3 digits are enough.

    Columns of numbers are aligned right. kind: a further CSS class of the HTML. Raises ValueError for a row that has not one cell per header.
    """
    for i, row in enumerate(rows):
        if len(row) != len(headers):
            raise ValueError(f"row {i} has {len(row)} cells, the table has {len(headers)} headers")
    cells = [[str(cell) for cell in row] for row in rows]
    numeric = [
        bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(headers))
    ]
    align = ["right" if number else "left" for number in numeric]
    if not in_notebook():
        text = tabulate(cells, headers, tablefmt="simple", disable_numparse=True, colalign=align)
        print("\n".join(line.rstrip() for line in text.splitlines()))
        return
    from IPython.display import HTML, display

    def line(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(
            f'<{tag} style="text-align:{a}">{_as_html(cell)}</{tag}>' for a, cell in zip(align, row)
        ) + "</tr>"  # fmt: skip

    body = "".join(line("td", row) for row in cells)
    # The class is the one that Jupyter and the book's theme style, in light and dark.
    display(
        HTML(
            f'<table class="{f"dataframe {kind}".strip()}"><thead>{line("th", headers)}</thead><tbody>{body}</tbody></table>'
        )
    )


def _as_html(cell: str) -> str:
    return html.escape(_BEFORE_UNIT.sub("\u00a0", cell))


def _is_number(cell: str) -> bool:
    text = cell.strip().rstrip("%×x").replace(",", "").replace("−", "-").strip()
    if text in ("", "-", "–", "—"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True

"""Some lines of a function in `lib/`, for a listing that is too long to be read whole.

Introduced in chapter 7.
"""

import textwrap
from typing import Any

from lib.bench.notebook.glue import source
from lib.bench.script_options import in_notebook


def excerpt(obj: Any, first: str, last: str) -> str:
    """The source of `obj` from the first line that holds `first` to the next one that holds `last`, both included.

    Raises ValueError where one of them is not there: the function has changed, and the page with it.
    """
    lines = source(obj).splitlines()
    start = next((i for i, line in enumerate(lines) if first in line), None)
    if start is None:
        raise ValueError(f"no line of {obj.__name__} holds {first!r}")
    end = next((i for i, line in enumerate(lines) if i >= start and last in line), None)
    if end is None:
        raise ValueError(f"no line of {obj.__name__} from {first!r} on holds {last!r}")
    return textwrap.dedent("\n".join(lines[start : end + 1])) + "\n"


def show_excerpt(obj: Any, first: str, last: str) -> None:
    """Shows those lines with highlighting; in a script it only checks that they are there."""
    text = excerpt(obj, first, last)
    if not in_notebook():
        return
    from IPython.display import Markdown, display

    display(Markdown(f"```python\n{text}```"))

"""Measured numbers in the prose, real source on the page, quiet progress bars; in a plain script all three are silent.

Introduced in chapter 1.
"""

import inspect
import re
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lib.bench.paths import repository
from lib.bench.script_options import in_notebook

T = TypeVar("T")
# Even an empty output has padding, and a light background on a dark page: this one takes no place.
_GONE = '<span class="book-gone"></span><style>.output:has(> .book-gone){display:none}</style>'


class _Plain:
    """Text for the prose. MyST-NB evaluates what it can as a Python literal, so "1,000" has to look like a string."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return repr(self.text)


def plain(text: str) -> str:
    """The text without Markdown's marks for code and bold, which {glue:text} would show as they are."""
    return re.sub(r"\*\*(.+?)\*\*", r"\1", text.replace("`", ""))


def glue(name: str, value: Any, fmt: str = "") -> None:
    """Puts `value` under `name` for the prose: {glue:text}`name`. `fmt` is a format spec, e.g. ".2f" or ",.0f".

    The page shows it as plain text in the weight of its paragraph. A sentence that needs code or bold is for `say`.
    """
    if not in_notebook():
        return
    try:
        from myst_nb import glue as myst_glue
    except ImportError:  # Colab: the prose keeps its role, the code runs on
        return
    myst_glue(name, _Plain(plain(format(value, fmt))), display=False)


def glue_all(values: Mapping[str, Any]) -> None:
    """Glues each value under its name, as a chapter's findings return them: {"growth": "grows 5.0 times …"}."""
    for name, value in values.items():
        glue(name, value)


def say(text: Any) -> None:
    """Shows a generated sentence or list that needs code or bold: Markdown in a notebook, plain text in a script."""
    if not in_notebook():
        print(textwrap.fill(plain(str(text)), 100))
        return
    from IPython.display import Markdown, display

    display(Markdown(str(text)))


def repository_url() -> str | None:
    """The project's address: `repository: url:` of _config.yml, the one place that holds it."""
    config = repository() / "_config.yml"
    if not config.is_file():
        return None
    found = re.search(
        r"^repository:[ \t]*\n(?:[ \t]+.*\n)*?[ \t]+url[ \t]*:[ \t]*['\"]?([^\s'\"#]+)",
        config.read_text(),
        re.M,
    )
    return found.group(1).rstrip("/") if found else None


def source(obj: Any, *methods: str) -> str:
    """The source of a function, class or module as it is in `lib/`; with `methods`, a class's head and those alone.

    Raises ValueError for a method that the class does not define.
    """
    if not methods:
        return textwrap.dedent(inspect.getsource(obj)).rstrip() + "\n"
    lines = inspect.getsource(obj).splitlines()
    head = lines[: next(i for i, line in enumerate(lines) if line.rstrip().endswith(":")) + 1]
    parts = ["\n".join(head)]
    for name in methods:
        if name not in vars(obj):
            defined = ", ".join(key for key in vars(obj) if not key.startswith("__"))
            raise ValueError(f"{obj.__name__} defines no {name!r}; it defines {defined}")
        member = vars(obj)[name]
        member = getattr(member, "fget", None) or getattr(member, "__func__", member)
        parts.append(inspect.getsource(member).rstrip())
    return "\n\n".join(parts) + "\n"


def show_source(obj: Any, *methods: str) -> None:
    """Shows the real source of a lib object with highlighting and a link to its file; nothing in a script."""
    if not in_notebook():
        return
    from IPython.display import Markdown, display

    # A decorator (torch.inference_mode) has a file of its own: the link goes to the function that it wraps.
    path, text = inspect.getsourcefile(inspect.unwrap(obj)), source(obj, *methods)
    line = 1 if inspect.ismodule(obj) else inspect.getsourcelines(obj)[1]
    caption = ""
    if path and Path(path).is_relative_to(repository()):
        where = Path(path).relative_to(repository()).as_posix()
        url = repository_url()
        caption = f"[`{where}`]({url}/blob/main/{where}#L{line})\n\n" if url else f"`{where}`\n\n"
    fence = "````" if "```" in text else "```"
    display(Markdown(f"{caption}{fence}python\n{text}{fence}"))


def sweep(iterable: Iterable[T], desc: str = "") -> Iterator[T]:
    """Iterates with a progress bar that vanishes at the end; silent without a terminal or a notebook.

    A notebook's bar is one display that is emptied at the end, so that the built page shows none.
    """
    items = list(iterable)
    if not in_notebook():
        from tqdm import tqdm

        yield from tqdm(items, desc=desc, leave=False, disable=not sys.stderr.isatty())
        return
    from IPython.display import display
    from tqdm import tqdm

    start, bar = time.perf_counter(), display({"text/plain": ""}, raw=True, display_id=True)
    try:
        for done, item in enumerate(items):
            text = tqdm.format_meter(
                done, len(items), time.perf_counter() - start, prefix=desc, ncols=80
            )
            bar.update({"text/plain": text}, raw=True)
            yield item
    finally:
        bar.update({"text/plain": "", "text/html": _GONE}, raw=True)

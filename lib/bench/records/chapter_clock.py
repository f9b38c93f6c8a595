"""How long a chapter has been running: from the start of its script, or of the cell that imports what it needs.

Introduced in chapter 1.
"""

import sys
import time
from datetime import datetime
from typing import Any

_IMPORTED = time.time()


def chapter_seconds() -> float:
    """Seconds since the chapter began, PyTorch's import and the loading of models included.

    In a script that is the age of the process. A notebook's kernel may have waited for its reader, so there it is the
    time since the beginning of the cell that first imported this module.
    """
    began = _import_cell if _import_cell is not None else _process_start()
    return time.time() - began


def _cell_start(shell: Any) -> float | None:
    """When the running cell's code reached the kernel (Unix time); None outside a notebook's kernel."""
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return None
    date = kernel.get_parent().get("header", {}).get("date")
    return date.timestamp() if isinstance(date, datetime) else _IMPORTED


def _process_start() -> float:
    """When this process began (Unix time); without psutil, when this module was imported."""
    try:
        import psutil

        return psutil.Process().create_time()
    except Exception:
        return _IMPORTED


def _shell() -> Any:
    """IPython's shell where this process has one. IPython is not imported for the question."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


_import_cell = _cell_start(_shell())

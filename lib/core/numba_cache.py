"""Numba's compiler with its results on disk, for the kernels of several packages. Introduced in chapter 7."""

from __future__ import annotations

import contextlib

from numba import njit
from numba.core.caching import FunctionCache

# Only the loop over shares is to run in parallel: looking for more to parallelise would double the compile time.
PRANGE = {
    **dict.fromkeys(
        ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"),
        False,
    ),
    "prange": True,
}


class _ForgivingCache(FunctionCache):
    """Compiled code on disk. A file that is cut short, as after a full disk or a kill, is compiled again."""

    def load_overload(self, signature, target_context):
        try:
            return super().load_overload(signature, target_context)
        except Exception:  # what unpickling half a file raises: anything
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature, data):
        with contextlib.suppress(Exception):  # a full disk costs the next process its time, no more
            super().save_overload(signature, data)


def compiled(function=None, **options):
    """njit with the result kept on disk, or, where neither the package nor a home can be written, in memory.

    A division by zero gives infinity or NaN instead of an exception, which would end the whole step.
    """
    if function is None:
        return lambda f: compiled(f, **options)
    dispatcher = njit(function, nogil=True, error_model="numpy", **{"fastmath": True, **options})
    with contextlib.suppress(RuntimeError):  # "no locator available": nowhere to keep it
        dispatcher._cache = _ForgivingCache(function)  # as its enable_caching does
    return dispatcher

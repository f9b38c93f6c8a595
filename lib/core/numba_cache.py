"""Numba's compiler with its results on disk, for the kernels of several packages. Introduced in chapter 7."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import ModuleType

import numba
import torch
from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

# Only the loop over shares is to run in parallel: looking for more to parallelise would double the compile time.
PRANGE = {
    **dict.fromkeys(
        ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"),
        False,
    ),
    "prange": True,
}
# For `fastmath`, without `nnan` and `ninf`: a NaN or an infinity in a row has to reach that row's outputs.
NAN_SAFE = {"contract", "reassoc", "nsz", "arcp"}


class _ForgivingCache(FunctionCache):
    """Compiled code on disk. A file that is cut short, as after a full disk or a kill, is compiled again.

    inlined: other modules whose functions were compiled into this one's code. Numba compiles again when
    the function's own file changes, and here also when one of theirs does.
    """

    def __init__(self, function, inlined: tuple[ModuleType, ...] = ()):
        super().__init__(function)
        if inlined:
            files = [Path(module.__file__).stat() for module in inlined]
            stamps = [(file.st_mtime, file.st_size) for file in files]
            self._cache_file = IndexDataCacheFile(
                self._cache_path,
                self._impl.filename_base,
                (self._impl.locator.get_source_stamp(), *stamps),
            )

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


def start_threads() -> None:
    """Start Numba's threads; may be repeated. PyTorch keeps its number of threads.

    Numba sets OpenMP's number of threads when it starts, and PyTorch's is the same one.
    """
    threads = torch.get_num_threads()
    numba.get_num_threads()  # starts them
    torch.set_num_threads(threads)


def compiled(function=None, *, inlined=(), **options):
    """njit with the result kept on disk, or, where neither the package nor a home can be written, in memory.

    inlined: modules, other than the function's own, of functions that this one calls.
    A division by zero gives infinity or NaN instead of an exception, which would end the whole step.
    """
    if function is None:
        return lambda f: compiled(f, inlined=inlined, **options)
    dispatcher = njit(function, nogil=True, error_model="numpy", **{"fastmath": True, **options})
    with contextlib.suppress(RuntimeError):  # "no locator available": nowhere to keep it
        dispatcher._cache = _ForgivingCache(function, inlined)  # as its enable_caching does
    return dispatcher

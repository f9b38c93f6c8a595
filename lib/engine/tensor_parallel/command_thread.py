"""The thread in which rank 0 runs its commands, one after the other. Introduced in chapter 13."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

_T = TypeVar("_T")


class CommandThread:
    """Runs calls in order. It ends with its object, or by `stop`, after the calls that it already has.

    An executor's thread would keep the process from ending. This one does not: a command that waits
    for a rank that was killed may never return, since gloo does not always notice.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future, Callable] | None] = SimpleQueue()
        self.stop = weakref.finalize(self, self._calls.put, None)
        Thread(target=_run, args=(self._calls,), name=name, daemon=True).start()

    def submit(self, call: Callable[[], _T]) -> Future[_T]:
        """The future of call(). RuntimeError after `stop`."""
        if not self.stop.alive:
            raise RuntimeError("the thread for commands has ended")
        future: Future[_T] = Future()
        self._calls.put((future, call))
        return future


def _run(calls: SimpleQueue[tuple[Future, Callable] | None]) -> None:
    while (item := calls.get()) is not None:
        future, call = item
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        del item, future, call  # kept, they would live until the next call

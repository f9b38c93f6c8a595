"""The rule that one engine serves one thread at a time. Introduced in chapter 1."""

from __future__ import annotations

import threading


class OneThread:
    """`with` it around everything that changes the engine. Raises RuntimeError while another thread is inside.

    It never waits. A thread that is inside already may enter again.
    """

    def __init__(self) -> None:
        # One entry at most, and `setdefault` is atomic. An interrupt before `__exit__` leaves the thread's own entry,
        # which does not keep that thread out: a lock would stay locked for ever.
        self._inside: dict[str, int] = {}

    def __enter__(self) -> None:
        me = threading.get_ident()
        if (owner := self._inside.setdefault("thread", me)) != me:
            raise RuntimeError(
                "an LLM serves one thread at a time: thread "
                f"{threading.current_thread().name!r} called it while thread {owner} was inside. "
                "Give each thread an LLM of its own, put a lock around all calls, or use the server"
            )

    def __exit__(self, *_: object) -> None:
        self._inside.clear()

"""The one thread that owns the LLM. It steps while there is work and sleeps while there is none.

A step takes milliseconds to seconds, and the event loop could not answer anything while it ran there. So the two only
exchange messages: commands come in through a deque under a condition, and after each step all that is new goes out in
a single `Turn`. Introduced in chapter 5.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lib.core.errors import EngineDeadError
from lib.core.outputs import RequestOutput
from lib.core.sampling_params import SamplingParams
from lib.engine.llm import LLM
from lib.serving.engine_snapshot import take_snapshot
from lib.serving.logs import log

# Without a good step in between, so many bad ones mean that the fault is not in a request.
MAX_FAILED_STEPS = 3
SNAPSHOT_INTERVAL = 0.1  # seconds at least, and only while a page is open
SNAPSHOT_SHARE = 0.02  # of the thread's time at most: of a large pool there are fewer snapshots


@dataclass
class Add:
    """Queue prompts, all or none."""

    requests: Sequence[tuple[str, list[int], SamplingParams]]  # id, token ids, params
    cache_salt: str | None = None


@dataclass
class Abort:
    request_ids: Sequence[str]


@dataclass
class Turn:
    """What happened since the last one. `errors`: request ids that ended, and why."""

    outputs: list[RequestOutput] = field(default_factory=list)
    errors: list[tuple[str, Exception]] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    snapshot: dict[str, Any] | None = None
    time: float = 0.0  # time.monotonic() after the step


class EngineThread:
    """`make_llm` runs in the thread, then `on_ready(llm)`; each turn goes to `on_turn`. `on_death(error)` is the last call.

    The callbacks run in this thread and should only pass things on.
    """

    def __init__(
        self,
        make_llm: Callable[[], LLM],
        on_ready: Callable[[LLM], None],
        on_turn: Callable[[Turn], None],
        on_death: Callable[[BaseException], None],
    ) -> None:
        self._make_llm, self._on_ready, self._on_turn, self._on_death = (
            make_llm,
            on_ready,
            on_turn,
            on_death,
        )
        self._inbox: deque[Add | Abort] = deque()
        self._wake = threading.Condition()
        self._stopping = self._watched = False
        self._failed_steps, self._next_snapshot, self._snapshot_due = 0, 0.0, False
        self.turn_began: float | None = None  # time.monotonic(); None between two turns
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # Called from other threads.

    def start(self) -> None:
        self._thread.start()

    def send(self, command: Add | Abort) -> None:
        with self._wake:
            self._inbox.append(command)
            self._wake.notify()

    def watch(self, watched: bool) -> None:
        """Whether turns should carry snapshots."""
        with self._wake:
            self._watched = self._snapshot_due = watched
            self._wake.notify()

    def stop(self, timeout: float) -> bool:
        """End after the current step. False if that took longer than `timeout` seconds."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    # The thread.

    def _run(self) -> None:
        try:
            llm = self._make_llm()
            self._on_ready(llm)
            while (commands := self._wait_for_work(llm)) is not None:
                self.turn_began = time.monotonic()
                self._turn(llm, commands)
                self.turn_began = None
        except BaseException as error:  # of any kind: callers wait for answers
            self._on_death(error)

    def _wait_for_work(self, llm: LLM) -> list[Add | Abort] | None:
        """Commands, maybe none, once there is something to do; None to end."""
        with self._wake:
            while not (self._stopping or self._inbox or llm.has_unfinished()):
                due = self._watched and self._snapshot_due
                if due and time.monotonic() >= self._next_snapshot:
                    break
                wait = max(0.001, self._next_snapshot - time.monotonic())
                self._wake.wait(wait if due else None)
            commands = list(self._inbox)
            self._inbox.clear()
            return None if self._stopping else commands

    def _turn(self, llm: LLM, commands: list[Add | Abort]) -> None:
        turn, failure = Turn(), None
        for command in commands:
            if isinstance(command, Add):
                self._add(llm, command, turn)
            else:
                aborted = [llm.abort(i) for i in command.request_ids]
                turn.outputs += [output for output in aborted if output is not None]
        if llm.has_unfinished():
            try:
                turn.outputs += llm.step()
                self._failed_steps = 0
            except Exception as error:
                failure = error
                self._recover(llm, error, turn)
        turn.time, turn.stats = time.monotonic(), llm.stats()
        if self._watched:
            self._snapshot_due = True
            if turn.time >= self._next_snapshot:
                turn.snapshot = take_snapshot(llm)
                taken = time.monotonic() - turn.time
                pause = max(SNAPSHOT_INTERVAL, taken / SNAPSHOT_SHARE)
                self._next_snapshot = turn.time + pause
                self._snapshot_due = llm.has_unfinished()
        self._on_turn(turn)
        if isinstance(failure, EngineDeadError):
            raise failure
        if self._failed_steps >= MAX_FAILED_STEPS:
            problem = f"{self._failed_steps} steps failed in a row"
            raise RuntimeError(problem) from failure

    def _add(self, llm: LLM, command: Add, turn: Turn) -> None:
        added: list[str] = []
        try:
            for request_id, token_ids, params in command.requests:
                added.append(
                    llm.add_request(token_ids, params, request_id, cache_salt=command.cache_salt)
                )
        except ValueError as error:
            for request_id in added:
                llm.abort(request_id)
            turn.errors += [(request_id, error) for request_id, _, _ in command.requests]

    def _recover(self, llm: LLM, error: Exception, turn: Turn) -> None:
        """End the requests that were in the step. The others have nothing in the cache that it could have spoilt."""
        self._failed_steps += 1
        victims = list(dict.fromkeys(request.request_id for request in llm.scheduler.running))
        log(
            "step failed",
            logging.ERROR,
            exc_info=error,
            failed_in_a_row=self._failed_steps,
            requests=victims,
        )
        for request_id in victims:
            llm.abort(request_id)
        turn.errors += [(request_id, error) for request_id in victims]

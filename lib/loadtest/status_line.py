"""The progress of a load test, as one line in a terminal. Introduced in chapter 6."""

from __future__ import annotations

import shutil
from collections import deque
from typing import TextIO

from lib.loadtest.request_trace import COMPLETED, UNSENT
from lib.loadtest.session import Session


class StatusLine:
    """`watcher=StatusLine(sys.stderr, "8 users")`. Redraws itself; silent where the stream is no terminal."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream, self._label = stream, label
        self._visible = stream.isatty()
        self._seen: deque[tuple[float, int]] = deque(
            maxlen=11
        )  # (seconds, chunks): the rate of the last two seconds

    def __call__(self, session: Session) -> None:
        if self._visible:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r\x1b[K" + self.text(session)[:width])
            self._stream.flush()

    def text(self, session: Session) -> str:
        """The line's text."""
        traces = session.traces
        ended = [trace for trace in traces if trace.end is not None and trace.outcome != UNSENT]
        done = sum(trace.outcome == COMPLETED for trace in ended)
        self._seen.append((session.clock(), sum(len(trace.chunks) for trace in traces)))
        (t0, n0), (t1, n1) = self._seen[0], self._seen[-1]
        rate = f"{(n1 - n0) / (t1 - t0):,.0f} chunks/s" if t1 > t0 else "..."
        first = sorted(trace.ttft for trace in traces if trace.chunks)
        ttft = f", TTFT p50 {first[len(first) // 2] * 1e3:,.0f} ms" if first else ""
        lost = f", {len(ended) - done} not completed" if len(ended) > done else ""
        return (
            f"{self._label}: {done}/{len(traces)} done{lost}, {len(session.in_flight)} in flight, {rate}{ttft}, "
            f"{session.clock():.0f} s"
        )

    def close(self) -> None:
        """Removes the line."""
        if self._visible:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

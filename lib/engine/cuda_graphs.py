"""Decode steps recorded once and replayed: one launch for a whole step. Introduced in chapter 8.

A CUDA graph remembers kernels with their arguments, which are addresses. So a step that is to be replayed reads its inputs
from buffers that never move, and has a fixed number of rows: batches are padded to the next size of a ladder. Padded rows
own nothing but the null block. vLLM and nano-vLLM record decode steps in the same way.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lib.core.batch import Batch, Scheduled
from lib.core.batch_buffer import Room
from lib.engine.runner import ModelRunner

LARGEST = 512  # larger batches have work enough to hide their launches behind
_Step = Callable[[], Tensor]
_Replay = Callable[[], object]


def ladder(largest: int) -> list[int]:
    """Batch sizes to record: 1, 2, 4, 8, then every eighth, and the largest. At most 7 rows of padding, from 8 on."""
    largest = min(largest, LARGEST)
    return sorted({n for n in (1, 2, 4, *range(8, largest, 8)) if n < largest} | {largest})


class Recorder(Protocol):
    """Records a step. `record(step)` returns what repeats it; its result lies where the step writes it."""

    def record(self, step: _Step) -> _Replay: ...

    def allocated(self) -> int:
        """Bytes that the device has given out so far."""


class CudaRecorder:
    """CUDA graphs that share one memory pool, since no two of them ever run at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()
        # One stream for all: cuBLAS allocates a workspace of up to 32 MiB for each stream it has seen.
        self._stream = torch.cuda.Stream(device)

    def record(self, step: _Step) -> _Replay:
        here = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(here)
        # A first run compiles kernels and allocates workspaces: nothing of that may be recorded.
        with torch.cuda.stream(self._stream):
            step()
        here.wait_stream(self._stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            step()
        return graph.replay

    def allocated(self) -> int:
        return torch.cuda.memory_reserved(self.device)


class Rerun:
    """No recording: the step runs again over the same buffers. All but the speed can so be tested without a GPU."""

    def record(self, step: _Step) -> _Replay:
        step()
        return step

    def allocated(self) -> int:
        return 0


class GraphRunner:
    """A ModelRunner that replays decode steps: `run(batch) -> logits [B, V]`, valid until the next `run`.

    A step of up to max(sizes) sequences with one query each is built in the `room` that the
    recorded steps read, and replayed; any other runs as before. `max_blocks`: blocks that the
    longest sequence can have. Attention must take lengths from `seq_lens` alone: the host's
    `kv_lens` are, while a step is recorded, the longest there can be. Costs: `capture_seconds`,
    `capture_bytes`.
    """

    def __init__(
        self,
        runner: ModelRunner,
        sizes: Sequence[int],
        block_size: int,
        max_blocks: int,
        device: torch.device,
        recorder: Recorder | None = None,
    ) -> None:
        self.runner, self.model, self.attention = runner, runner.model, runner.attention
        self.sizes, self.block_size, self.max_blocks = sorted(sizes), block_size, max_blocks
        self.num_replayed = self.num_eager = 0
        largest = Room(self.sizes[-1], max_blocks, torch.empty(0)).shape
        self._buffer = torch.zeros(largest.num_words, dtype=torch.int32, device=device)
        self._logits: Tensor | None = None  # [max(sizes), V], allocated by the first step
        recorder = recorder or CudaRecorder(device)
        before, start = recorder.allocated(), time.perf_counter()
        # Largest first: what it allocates is enough for all that come after it.
        self._graphs = {}
        for n in reversed(self.sizes):
            self._fill_with_padding(n)
            self._graphs[n] = recorder.record(lambda n=n: self._step(n))
        self.capture_seconds = time.perf_counter() - start
        self.capture_bytes = recorder.allocated() - before

    def room(self, scheduled: Sequence[Scheduled]) -> Room | None:
        """Where `Batch.build` is to lay this step out; None if it is not one that was recorded."""
        if len(scheduled) > self.sizes[-1] or any(item.num_tokens > 1 for item in scheduled):
            return None
        size = self.sizes[bisect_left(self.sizes, len(scheduled))]
        return Room(size, self.max_blocks, self._buffer)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        if batch.buffer is not self._buffer:
            self.num_eager += 1
            return self.runner.run(batch)
        self.num_replayed += 1
        self._graphs[len(batch.seq_lens)]()
        return self._logits[: len(batch.query_lens)]

    @torch.inference_mode()
    def _step(self, n: int) -> Tensor:
        """What is recorded: the model on a batch of n sequences in the room.

        Its logits go to one buffer for all sizes. A recording keeps its results alive, and 512
        rows of GPT-2's logits take 49 MiB in bfloat16: all sizes of the ladder would take 1.6 GiB.
        """
        logits = self.runner.run(self._batch(n))
        if self._logits is None:  # the first, not yet recorded run of the largest size
            self._logits = torch.empty_like(logits)
        return self._logits[:n].copy_(logits)

    def _fill_with_padding(self, n: int) -> None:
        """What a step must find that is recorded, and not yet used for a batch."""
        batch = self._batch(n)
        self._buffer.zero_()
        batch.seq_lens.fill_(1)
        for numbers in (batch.query_start_loc, batch.logits_indices):
            torch.arange(len(numbers), out=numbers)

    def _batch(self, n: int) -> Batch:
        """The room's first n sequences. The host has only their number."""
        return Batch(
            **Room(n, self.max_blocks, self._buffer).shape.views(self._buffer),
            block_size=self.block_size,
            query_lens=[1] * n,
            kv_lens=[self.max_blocks * self.block_size] * n,
            block_ids=[[]] * n,
            buffer=self._buffer,
        )

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

from lib.cache.block_manager import NULL_BLOCK
from lib.core.batch import Batch
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

    A batch of up to max(sizes) sequences with one query each is replayed, any other runs as before. `max_blocks`: blocks that
    the longest sequence can have. Attention must take lengths from `seq_lens` alone: the host's `kv_lens` are, while a step
    is recorded, the longest there can be. Costs: `capture_seconds`, `capture_bytes`.
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
        self.sizes, self.block_size = sorted(sizes), block_size
        self.num_replayed = self.num_eager = 0
        rows = self.sizes[-1]
        ints = {"dtype": torch.int64, "device": device}
        self._input_ids, self._positions, self._slots = (
            torch.zeros(rows, **ints) for _ in range(3)
        )
        self._block_table = torch.full(
            (rows, max_blocks), NULL_BLOCK, dtype=torch.int32, device=device
        )
        self._seq_lens = torch.ones(rows, dtype=torch.int32, device=device)
        self._query_start_loc = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._rows = torch.arange(rows, **ints)
        self._logits: Tensor | None = None  # [rows, V], allocated by the first step
        recorder = recorder or CudaRecorder(device)
        before, start = recorder.allocated(), time.perf_counter()
        # Largest first: what it allocates is enough for all that come after it.
        self._graphs = {n: recorder.record(lambda n=n: self._step(n)) for n in reversed(self.sizes)}
        self.capture_seconds = time.perf_counter() - start
        self.capture_bytes = recorder.allocated() - before

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        rows = len(batch.query_lens)
        if max(batch.query_lens) > 1 or rows > self.sizes[-1]:
            self.num_eager += 1
            return self.runner.run(batch)
        self.num_replayed += 1
        size = self.sizes[bisect_left(self.sizes, rows)]
        self._fill(batch, rows, size)
        self._graphs[size]()
        return self._logits[:rows]

    @torch.inference_mode()
    def _step(self, n: int) -> Tensor:
        """What is recorded: the model on the first n rows of the buffers.

        Its logits go to one buffer for all sizes. A recording keeps its results alive, and 512
        rows of GPT-2's logits take 49 MiB in bfloat16: all sizes of the ladder would take 1.6 GiB.
        """
        logits = self.runner.run(self._padded(n))
        if self._logits is None:  # the first, not yet recorded run of the largest size
            self._logits = torch.empty_like(logits)
        return self._logits[:n].copy_(logits)

    def _fill(self, batch: Batch, rows: int, size: int) -> None:
        self._input_ids[:rows].copy_(batch.input_ids)
        self._positions[:rows].copy_(batch.positions)
        self._slots[:rows].copy_(batch.slot_mapping)
        self._seq_lens[:rows].copy_(batch.seq_lens)
        width = batch.block_table.shape[1]
        self._block_table[:rows, :width].copy_(batch.block_table)
        self._block_table[:rows, width:].fill_(NULL_BLOCK)
        if (
            rows < size
        ):  # who was here before may still be running elsewhere: its slot must not be written again
            self._slots[rows:size].fill_(NULL_BLOCK * self.block_size)
            self._seq_lens[rows:size].fill_(1)
            self._block_table[rows:size].fill_(NULL_BLOCK)
            self._positions[rows:size].zero_()
            self._input_ids[rows:size].zero_()

    def _padded(self, n: int) -> Batch:
        """The first n rows of the buffers as a batch. All that the host knows of it is its shape."""
        longest = self._block_table.shape[1] * self.block_size
        return Batch(
            input_ids=self._input_ids[:n],
            positions=self._positions[:n],
            query_start_loc=self._query_start_loc[: n + 1],
            seq_lens=self._seq_lens[:n],
            block_table=self._block_table[:n],
            slot_mapping=self._slots[:n],
            logits_indices=self._rows[:n],
            block_size=self.block_size,
            query_lens=[1] * n,
            kv_lens=[longest] * n,
            block_ids=[[]] * n,
        )

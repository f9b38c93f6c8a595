"""The decode steps of a GraphRunner, over a small model with random weights: what each finds in the recorded buffer.

Positions, slots, lengths and block tables do not depend on the weights. The recorder repeats the step, so that no GPU is
needed.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lib.attention.gather import GatherAttention
from lib.bench.tiny_checkpoint import tiny_checkpoint
from lib.core.batch import Batch
from lib.core.sampling_params import SamplingParams
from lib.engine.cuda_graphs import GraphRunner, Rerun, ladder
from lib.engine.llm import LLM
from lib.engine.runner import ModelRunner

ROWS, BLOCK, BLOCKS = 4, 4, 10  # largest batch; tokens per block; blocks, with the null block
LONGEST = 12  # tokens of the longest sequence
REQUESTS = {"A": (6, 4), "B": (3, 3), "C": (5, 5)}  # tokens of prompt and answer


@dataclass(frozen=True)
class Row:
    """One row of the buffer, as the step finds it. name: None for padding."""

    name: str | None
    position: int
    slot: int
    length: int
    table: list[int]


@dataclass(frozen=True)
class Step:
    """size: rows of the graph that was replayed; None where the step was launched kernel by kernel."""

    names: list[str]
    size: int | None
    rows: list[Row]


class Watched(GraphRunner):
    """A GraphRunner that notes each of its steps."""

    def watch(self, llm: LLM) -> list[Step]:
        self.llm, self.steps = llm, []
        return self.steps

    def run(self, batch: Batch) -> Tensor:
        names = [request.request_id for request in self.llm.scheduler.running]
        replayed = batch.buffer is self._buffer
        self.steps.append(
            Step(names, len(batch.seq_lens), _rows(batch, names))
            if replayed
            else Step(names, None, [])
        )
        return super().run(batch)


def _rows(batch: Batch, names: list[str]) -> list[Row]:
    columns = (batch.positions, batch.slot_mapping, batch.seq_lens, batch.block_table)
    padded = [*names, *[None] * (len(batch.seq_lens) - len(names))]
    return [Row(*cells) for cells in zip(padded, *(column.tolist() for column in columns))]


def steps() -> list[Step]:
    """All steps of a run of REQUESTS, the one with their prompts first."""
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_checkpoint(Path(folder), 64)
        options = {"block_size": BLOCK, "num_blocks": BLOCKS, "max_num_seqs": ROWS}
        options |= {"max_model_len": LONGEST, "enable_prefix_caching": False}
        llm = LLM(path, device="cpu", dtype="float32", attention="gather", **options)
        runner = ModelRunner(llm.model, GatherAttention(llm.kv_cache))
        watched = Watched(runner, ladder(ROWS), BLOCK, LONGEST // BLOCK, llm.device, Rerun())
        found, llm.runner = watched.watch(llm), watched
        for name, (prompt, answer) in REQUESTS.items():
            params = SamplingParams(max_tokens=answer, temperature=0, ignore_eos=True)
            llm.add_request(list(range(prompt)), params, name)
        while llm.has_unfinished():
            llm.step()
    return found

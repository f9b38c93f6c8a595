"""Time of an all-reduce by its bytes on this machine, and the step of tensor parallelism that it predicts.

    link = measure_all_reduce()                      # two processes on this machine: some seconds
    link.latency, link.bandwidth                     # seconds, B/s: seconds(n) = latency + n / bandwidth
    step = ParallelStep(llm.config, link, size=2)
    step.communication(num_tokens=8, num_rows=8)     # seconds per step spent in communication
    step.seconds(alone, num_tokens=8, num_rows=8)    # prediction from one process's step of `alone` s
    step.speedup(alone, num_tokens=8, num_rows=8, divided=0.9)

`alone` is the step of one process with as many threads as each rank gets. A process of this module
(`python -m lib.bench.measure.all_reduce`) is a rank of the measurement. Introduced in chapter 13.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from lib.engine.tensor_parallel.group import Group
from lib.models.config import ModelConfig
from lib.models.parallel.shard import Shard, shard_of

SIZES = (4 * 2**10, 16 * 2**10, 64 * 2**10, 256 * 2**10, 2**20)  # bytes
_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Link:
    """seconds(n) = latency + n / bandwidth for an all-reduce of n bytes between `size` ranks.

    samples: all measured seconds, by bytes; empty for a link that was not measured.
    """

    latency: float  # seconds
    bandwidth: float  # B/s
    size: int = 2
    samples: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    def seconds(self, num_bytes: float) -> float:
        return self.latency + num_bytes / self.bandwidth


def fit_link(samples: Mapping[int, Sequence[float]], size: int = 2) -> Link:
    """The Link whose relative errors at the medians of `samples` (by bytes) are least, in squares.

    Neither latency nor time per byte is negative. Raises ValueError for fewer than two sizes.
    """
    if len(samples) < 2:
        raise ValueError(f"samples must have at least two sizes, got {sorted(samples)}")
    num_bytes = np.array(sorted(samples), dtype=float)
    times = np.array([median(samples[n]) for n in sorted(samples)])
    columns = np.stack([1 / times, num_bytes / times], axis=1)  # each equation divided by its time
    (latency, per_byte), *_ = np.linalg.lstsq(columns, np.ones(len(times)), rcond=None)
    if per_byte <= 0:
        latency, per_byte = float(np.sum(1 / times) / np.sum(1 / times**2)), 0.0
    elif latency < 0:
        ratio = num_bytes / times
        latency, per_byte = 0.0, float(ratio.sum() / (ratio**2).sum())
    bandwidth = 1 / per_byte if per_byte > 0 else float("inf")
    kept = {n: tuple(values) for n, values in samples.items()}
    return Link(float(latency), float(bandwidth), size, kept)


def measure_all_reduce(
    sizes: Sequence[int] = SIZES, size: int = 2, repeats: int = 50, warmup: int = 5
) -> Link:
    """Time all-reduces of float32 between `size` processes of this machine, by gloo, and fit a Link.

    The ranks run in processes of their own, with one thread each. Raises ValueError for `size` below
    2 or `repeats` below 1; RuntimeError if a rank fails.
    """
    if size < 2 or repeats < 1:
        raise ValueError(f"size={size}, repeats={repeats}: need size >= 2 and repeats >= 1")
    with socket.create_server((_HOST, 0)) as listener:
        port = listener.getsockname()[1]
        handle = listener.detach()
    store = dist.TCPStore(
        _HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=handle
    )
    settings = {"port": port, "size": size, "sizes": list(sizes), "repeats": repeats}
    settings["warmup"] = warmup
    ranks = [_start({**settings, "rank": rank}) for rank in range(size)]
    try:
        output, _ = ranks[0].communicate(timeout=300)
        if ranks[0].returncode:
            raise RuntimeError(f"the measurement's rank 0 ended with {ranks[0].returncode}")
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    del store  # the ranks have met through it
    return fit_link({int(n): times for n, times in json.loads(output).items()}, size)


@dataclass(frozen=True)
class ParallelStep:
    """A step of `config`'s model on `size` ranks, whose all-reduces take what `link` says.

    Amdahl's law with a term for communication: the divided part of the work takes the share of the
    rank that holds most, the rest takes as long as in one process, and communication is added.
    """

    config: ModelConfig
    link: Link
    size: int = 2
    itemsize: int = 4  # bytes of an activation

    @property
    def num_all_reduces(self) -> int:
        """Per step: one for the embedding, two per layer."""
        return 1 + 2 * self.config.num_layers

    @property
    def share(self) -> float:
        """Rank 0's share of the weights that products read: 1 / size if all divides evenly."""
        whole, rank_0 = (_product_weights(shard_of(self.config, 0, n)) for n in (1, self.size))
        return rank_0 / whole

    def communication(self, num_tokens: int, num_rows: int) -> float:
        """Seconds: all-reduces of [num_tokens, hidden], the gather of num_rows logits, the batch's broadcast.

        The gather is taken as one all-reduce of a rank's part of the logits, the broadcast (header
        and batch) as two of a few bytes.
        """
        activations = num_tokens * self.config.hidden_size * self.itemsize
        logits = num_rows * -(-self.config.vocab_size // self.size) * self.itemsize
        messages = self.num_all_reduces * self.link.seconds(activations)
        return messages + self.link.seconds(logits) + 2 * self.link.latency

    def seconds(self, alone: float, num_tokens: int, num_rows: int, divided: float = 1.0) -> float:
        """Predicted seconds of a step that takes one process `alone` seconds.

        divided: share of `alone` that tensor parallelism divides. Raises ValueError unless it is
        in [0, 1].
        """
        if not 0 <= divided <= 1:
            raise ValueError(f"divided must be in [0, 1], got {divided}")
        work = alone * (1 - divided + divided * self.share)
        return work + self.communication(num_tokens, num_rows)

    def speedup(self, alone: float, num_tokens: int, num_rows: int, divided: float = 1.0) -> float:
        """`alone` over the predicted seconds: below 1 where communication costs more than it saves."""
        return alone / self.seconds(alone, num_tokens, num_rows, divided)


def _product_weights(shard: Shard) -> int:
    """Elements of the matrices of a rank's products: all layers and the head."""
    c = shard.config
    heads, gated = len(shard.heads) + len(shard.kv_heads), c.architecture != "gpt2"
    attention = 2 * heads * c.head_dim * c.hidden_size
    mlp = (3 if gated else 2) * len(shard.intermediate) * c.hidden_size
    return c.num_layers * (attention + mlp) + len(shard.vocabulary) * c.hidden_size


def _start(settings: Mapping[str, Any]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "lib.bench.measure.all_reduce"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.stdin.write(json.dumps(settings) + "\n")
    process.stdin.flush()
    return process


def _run_rank(settings: Mapping[str, Any]) -> dict[int, list[float]]:
    """One rank's part of the measurement; seconds of each all-reduce, by bytes."""
    torch.set_num_threads(1)
    store = dist.TCPStore(_HOST, settings["port"])
    group = Group(store, settings["rank"], settings["size"], torch.device("cpu"), _HOST)
    group.connect()
    seconds: dict[int, list[float]] = {n: [] for n in settings["sizes"]}
    for run in range(settings["warmup"] + settings["repeats"]):
        for num_bytes in settings["sizes"]:  # in turns: a disturbance falls on all sizes
            x = torch.zeros(max(1, num_bytes // 4))
            start = time.perf_counter()
            group.all_reduce(x)
            if run >= settings["warmup"]:
                seconds[num_bytes].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    found = _run_rank(json.loads(sys.stdin.readline()))
    print(json.dumps(found))

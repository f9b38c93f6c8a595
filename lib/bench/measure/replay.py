"""Device work recorded once and replayed, so that a timing has no Python in it. Introduced in chapter 7.

On a GPU, one layer's attention takes some tens of microseconds, and starting its kernels from Python about as long. A wall
clock around such calls measures Python. A CUDA graph starts all recorded kernels with one call (chapter 8).
"""

from collections.abc import Callable
from typing import Any

import torch


def replayed(job: Callable[[], Any], device: torch.device | str) -> Callable[[], Any]:
    """`job` itself on a CPU. On CUDA, a call that replays what `job` does on the device and returns the same tensors.

    `job` runs once before it is recorded, which compiles its kernels. It may not copy between host and device, nor wait
    for the device: recording raises RuntimeError then. What it returns is overwritten by each replay.
    """
    if torch.device(device).type != "cuda":
        return job
    here, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        job()
    here.wait_stream(aside)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=aside):
        result = job()

    def run() -> Any:
        graph.replay()
        return result

    run.reads = job  # the graph knows addresses only: this keeps alive what lies there
    return run

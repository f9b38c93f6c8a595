"""`python -m tests.book.on_fake_device CHAPTER.py`: runs a chapter's script at smoke scale on a fake CUDA device.

Everything that a chapter does only on CUDA runs here: its branches, its counts, which tensors meet on which device.
Times mean nothing. transformers computes on the CPU; its continuous batching, and what it does only on a real GPU, is
left out by the chapter itself, which reports it. Servers and other processes that a chapter starts see no GPU.
"""

from __future__ import annotations

import argparse
import functools
import os
import runpy
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity
from torch.utils._pytree import tree_leaves, tree_map_only

from lib.bench.measure import profiler
from lib.bench.peers import hf, hf_model
from tests.fake_cuda import CudaTensor, fake_cuda
from tests.fake_kernels import computed_kernels

GIB = 2**30
_transformers_model, _run = hf_model.transformers_model, subprocess.run
_profile = profiler.torch_profile


def on_the_cpu(llm: Any) -> Any:
    """The reference model of `llm` on the CPU; given tensors of the fake device, it answers with such tensors."""
    there = SimpleNamespace(
        folder=llm.folder, dtype=llm.dtype, config=llm.config, model=llm.model, device="cpu"
    )
    model = _transformers_model(there)
    for name in ("forward", "generate"):
        setattr(model, name, _translated(getattr(model, name)))
    return model


def _translated(function: Any) -> Any:
    @functools.wraps(function)  # generate() looks at the signature of forward()
    def call(*args: Any, **kwargs: Any) -> Any:
        from_device = any(isinstance(x, CudaTensor) for x in tree_leaves((args, kwargs)))
        args, kwargs = tree_map_only(CudaTensor, lambda x: x.held, (args, kwargs))
        for layer in getattr(kwargs.get("past_key_values"), "layers", ()):
            layer.keys, layer.values = (getattr(x, "held", x) for x in (layer.keys, layer.values))
        found = function(*args, **kwargs)
        return tree_map_only(torch.Tensor, CudaTensor, found) if from_device else found

    return call


def run_beside(command: Any, *args: Any, **kwargs: Any) -> Any:
    """`subprocess.run`; code that is to run on the GPU gets Triton's interpreter on the CPU."""
    if isinstance(command, list) and command[1:2] == ["-c"] and "DEVICE = 'cuda'" in command[-1]:
        command = [*command[:-1], command[-1].replace("DEVICE = 'cuda'", "DEVICE = 'cpu'")]
        kwargs["env"] = {**kwargs["env"], "TRITON_INTERPRET": "1"}
    return _run(command, *args, **kwargs)


def profile_on_the_cpu(activities: Any, record_shapes: bool) -> Any:
    """The operators that compute for the fake device, which has no kernels to show."""
    return _profile(activities=[ProfilerActivity.CPU], record_shapes=True)


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("this run leaves transformers out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("script", type=Path)
    parser.add_argument("--gib", type=float, default=78, help="free memory that it reports")
    parser.add_argument("--capability", type=int, default=90, help="such as 75 for a T4")
    parser.add_argument("--without-peers", action="store_true", help="transformers' ways fail")
    options, others = parser.parse_known_args()  # the others are the chapter's own
    script = options.script.resolve()
    sys.argv = [str(script), *others]
    os.chdir(script.parent)
    with ExitStack() as stack:
        free = int(options.gib * GIB)
        device = stack.enter_context(fake_cuda(divmod(options.capability, 10), free))
        stack.enter_context(computed_kernels(device))
        stack.enter_context(patch.object(hf_model, "transformers_model", on_the_cpu))
        stack.enter_context(patch.object(subprocess, "run", run_beside))
        stack.enter_context(patch.object(profiler, "torch_profile", profile_on_the_cpu))
        stack.enter_context(patch.object(profiler, "_cuda_rows", profiler._cpu_rows))
        if options.without_peers:
            for owner, name in ((hf, "hf_generate"), (hf, "hf_generate_batch")):
                stack.enter_context(patch.object(owner, name, refuse))
        runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()

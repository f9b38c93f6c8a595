"""The Triton product: interpreted on the CPU, compiled ahead of time, and run where a GPU is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib import LLM, SamplingParams
from lib.bench.measure.kernel_resources import compiled_launches, why_not_compiled
from lib.models.quantized.weight import QuantizedWeight
from tests.helpers import llama_checkpoint, prompt_of
from tests.models.quantized.files import SIZES
from tests.models.quantized.test_product import KINDS, matrix_of
from tests.models.quantized.triton_cases import check

pytest.importorskip("triton")
MOST_SPILLED = 32  # bytes per thread


def test_interpreted():
    run = subprocess.run(
        [sys.executable, "-m", "tests.models.quantized.triton_cases"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    if "only 0-dimensional arrays can be converted to Python scalars" in run.stderr:
        pytest.skip("the interpreter of this Triton does not work with this NumPy (>= 2.4)")
    assert "interpreted: ok" in run.stdout, run.stderr[-3000:]


@pytest.mark.skipif(why_not_compiled() is not None, reason=str(why_not_compiled()))
@pytest.mark.parametrize("capability, dtype", [(75, torch.float16), (80, torch.bfloat16),
                                               (90, torch.bfloat16), (90, torch.float32)])  # fmt: skip
def test_compiled_ahead_of_time_it_fits(capability, dtype):
    from lib.models.quantized.triton_product import multiply

    weights = [QuantizedWeight(matrix_of(kind, 64, 128)) for kind in KINDS]

    def launch():
        for weight in weights:
            for rows in (1, 40):
                multiply(
                    torch.zeros(rows, 128, dtype=dtype), weight.words, weight.scale, weight.minimum,
                    weight.bits, weight.zero, weight.blocks_per_group, weight.out_features,
                )  # fmt: skip

    kernels = compiled_launches(launch, capability)
    assert len(kernels) == 2 * len(KINDS)
    for kernel in kernels:
        assert kernel.programs_per_sm >= 2 and kernel.local_bytes <= MOST_SPILLED, kernel


@pytest.mark.gpu
def test_on_a_gpu():
    check("cuda", {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2})


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_an_engine_on_a_gpu(tmp_path, quantization):
    folder = llama_checkpoint(tmp_path, seed=1, **SIZES)
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    prompts = [prompt_of(n, n) for n in (3, 20)]
    tokens = []
    for device in ("cpu", "cuda"):
        options = dict(num_blocks=17, dtype="float32", quantization=quantization)
        llm = LLM(folder, device=device, **options)
        tokens.append([o.token_ids for o in llm.generate(prompts, params)])
    assert tokens[0] == tokens[1]

"""The Triton kernels: interpreted on the CPU, and run where a GPU is. test_triton_aot.py compiles them without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib.attention.fused import fused_attention
from tests.fused_cases import MIXED, batch_of, cache_of, compare, fill, in_float64

pytest.importorskip("triton")


def test_interpreted_kernels_equal_gather():
    run = subprocess.run(
        [sys.executable, "-m", "tests.fused_cases"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    if "only 0-dimensional arrays can be converted to Python scalars" in run.stderr:
        pytest.skip("the interpreter of this Triton does not work with this NumPy (>= 2.4)")
    assert "interpreted: ok" in run.stdout, run.stderr[-3000:]


TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("block_size", [16, 17, 64])
@pytest.mark.parametrize(
    "heads, kv_heads, size", [(12, 12, 64), (9, 3, 64), (16, 2, 128), (3, 1, 20)]
)
def test_on_a_gpu_equals_gather(dtype, block_size, heads, kv_heads, size):
    for work in (
        MIXED,
        [(1, n) for n in (0, 15, 16, 31, 500, 3000)],
        [(1, 5000)],
        [(200, 0), (300, 700)],
    ):
        out, expected = compare(
            fused_attention, work, heads, kv_heads, size, block_size, dtype, device="cuda"
        )
        torch.testing.assert_close(out, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    "work",
    [[(1, 3000)], [(1, 40), (1, 0), (1, 700)], [(200, 0), (33, 500), (1, 64)]],
    ids=["one long", "decode", "chunks"],
)
def test_on_a_gpu_against_float64(work, dtype, device="cuda"):
    """Scores of size 4, so that a softmax is no mere average."""
    batch, num_blocks = batch_of(work, 16, device=device)
    cache = cache_of(6, 2, 64, num_blocks, 16, dtype, device)
    fill(cache, batch, 0, float("nan"))
    generator = torch.Generator().manual_seed(3)
    q, k, v = (
        scale * torch.randn(len(batch.input_ids), heads, 64, generator=generator).to(device, dtype)
        for scale, heads in ((4, 6), (1, 2), (1, 2))
    )
    out = fused_attention(cache)(0, q, k, v, batch).double().cpu()
    tolerance = 3e-5 if dtype == torch.float32 else 2 * TOLERANCE[dtype]
    torch.testing.assert_close(out, in_float64(cache, 0, batch, q), atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
def test_a_captured_decode_replays_for_other_lengths_and_tables():
    """What a CUDA graph needs: nothing in a launch depends on a number that only the device knows."""
    work, replacement = [(1, 10), (1, 20), (1, 900)], [(1, 899), (1, 3), (1, 64)]
    batch, num_blocks = batch_of(work, 16, device="cuda")
    other, as_many = batch_of(replacement, 16, seed=1, device="cuda")
    cache = cache_of(6, 2, 64, max(num_blocks, as_many), 16, torch.float16, "cuda")
    fill(cache, other, 0, 0.0)
    attention = fused_attention(cache)
    q, k, v = (torch.randn(3, heads, 64, device="cuda", dtype=torch.float16) for heads in (6, 2, 2))
    attention(0, q, k, v, batch)  # compiles
    expected = attention(0, q, k, v, other)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(0, q, k, v, batch)
    batch.seq_lens.copy_(other.seq_lens)
    batch.slot_mapping.copy_(other.slot_mapping)
    batch.block_table.zero_()[:, : other.block_table.shape[1]].copy_(other.block_table)
    out.fill_(float("nan"))
    graph.replay()
    torch.testing.assert_close(out, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [{}, {"max_num_batched_tokens": 40}, {"num_blocks": 10, "max_num_seqs": 4}],
    ids=["plain", "chunks", "preempted"],
)
def test_on_a_gpu_the_engine_answers_as_the_oracle(tiny, name, options):
    from tests.attention.test_fused_engine import WORK, run
    from tests.helpers import prompt_of

    engine = tiny[name].engine(device="cuda", dtype="float32", attention="fused", **options)
    assert run(engine) == [
        tiny[name].greedy(prompt_of(length, seed), n) for seed, (length, n) in enumerate(WORK)
    ]
    assert (engine.stats()["preemptions"] > 0) == ("num_blocks" in options)

"""The Triton kernels compiled ahead of time, by their own launch code, for GPUs that are not there.

What is compiled is what a GPU would run, so that its needs are known: shared memory, registers, and what was spilled.
`pytest -m aot_sweep` compiles every supported configuration, which takes many minutes.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from lib.attention.triton_config import Gpu, decode_tiles, varlen_tiles, why_not_on
from lib.bench.measure.kernel_resources import (
    MULTIPROCESSORS,
    compiled_launches,
    why_not_compiled,
)
from tests.fused_cases import batch_of, cache_of

WHY_NOT = why_not_compiled()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16
MOST_SPILLED = 32  # bytes per thread: a few values outside the loop over keys
SHARED_KIB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227}  # the most a program can have


def attention_on(capability, dtype, heads, kv_heads, size, processors=100):
    from lib.attention.fused_cuda import CudaFusedAttention

    cache = cache_of(heads, kv_heads, size, 2, 16, dtype)
    return CudaFusedAttention(cache, Gpu(capability, processors))


def step(attention, heads, work):
    """Launch what one layer of a step launches. Nothing is computed: the cache need not hold the sequences."""
    batch, _ = batch_of(work, 16)
    cache = attention.cache
    qkv = torch.empty(len(batch.input_ids), heads + 2 * cache.k.shape[3], cache.k.shape[4])
    qkv = qkv.to(cache.k.dtype)
    q, k, v = qkv.split((heads, cache.k.shape[3], cache.k.shape[3]), dim=1)
    attention(0, q, k, v, batch)


def check_resources(capability, dtype, heads, kv_heads, size):
    attention = attention_on(capability, dtype, heads, kv_heads, size)
    assert why_not_on(capability, dtype, size, heads // kv_heads) is None
    work = [(1, 3000), (100, 30)]  # keys split, and a chunk
    kernels = compiled_launches(lambda: step(attention, heads, work), capability)
    assert [kernel.kernel for kernel in kernels] == ["store", "decode", "merge", "varlen"]
    stated = {
        "decode": decode_tiles(attention.gpu, dtype, size).programs_per_sm,
        "varlen": varlen_tiles(attention.gpu, dtype, size).programs_per_sm,
    }
    for kernel in kernels:
        assert kernel.shared_bytes <= SHARED_KIB[capability] * 1024, kernel
        assert kernel.registers <= 255 and kernel.local_bytes <= MOST_SPILLED, kernel
        assert kernel.programs_per_sm >= stated.get(kernel.kernel, 1), kernel


@pytest.mark.parametrize(
    "capability, dtype, heads, kv_heads, size",
    [
        (75, FLOAT16, 12, 12, 64),
        (75, FLOAT16, 16, 2, 128),
        (75, FLOAT32, 16, 2, 80),
        (80, BFLOAT16, 9, 3, 64),
        (86, FLOAT32, 16, 2, 128),
        (89, FLOAT16, 32, 8, 128),
        (90, FLOAT32, 9, 3, 64),
        (90, BFLOAT16, 12, 12, 64),
        (100, BFLOAT16, 16, 1, 128),
    ],
)
def test_compiled_kernels_fit(capability, dtype, heads, kv_heads, size):
    check_resources(capability, dtype, heads, kv_heads, size)


@pytest.mark.aot_sweep
@pytest.mark.parametrize("capability", MULTIPROCESSORS)
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("size", [8, 20, 32, 64, 72, 80, 96, 100, 128])
@pytest.mark.parametrize("group", [1, 3, 7, 16])
def test_every_supported_configuration_fits(capability, dtype, size, group):
    if why_not_on(capability, dtype, size, group) is not None:
        pytest.skip("refused")
    check_resources(capability, dtype, 2 * group, 2, size)


def test_a_kernel_is_compiled_once_whatever_the_batch():
    """Batches, contexts and chunks of all sizes, and batch tensors that begin anywhere: a kernel compiled in service
    would be a pause of half a second."""
    attention = attention_on(90, BFLOAT16, 12, 12, 64, processors=132)
    works = [
        [(1, past)] * sequences
        for sequences, past in itertools.product((1, 2, 3, 16, 45, 200), (0, 15, 16, 1000, 9000))
    ]
    works += [[(n, past), (1, 50)] for n in (2, 16, 17, 40, 200, 1000) for past in (0, 100)]
    splits = set()

    def launch():
        for work in works:
            batch, _ = batch_of(work, 16)
            splits.add(attention.splits(batch, decode_tiles(attention.gpu, BFLOAT16, 64)))
            step(attention, 12, work)
            step_with_packed_batch(attention, work)

    kernels = compiled_launches(launch, 90)
    assert len(splits) > 5 and 1 in splits
    assert sorted(kernel.kernel for kernel in kernels) == ["decode", "merge", "store", "varlen"]
    launches = {kernel.kernel: kernel.launches for kernel in kernels}
    assert launches["store"] == launches["decode"] == 2 * len(works)
    assert launches["varlen"] == 2 * sum(n > 16 for (n, _), *_ in works)


def step_with_packed_batch(attention, work):
    """As `step`, with the batch's integers in one buffer, at offsets that are no multiple of 16 bytes."""
    batch, _ = batch_of(work, 16)
    for name in ("seq_lens", "query_start_loc", "block_table", "slot_mapping"):
        tensor = getattr(batch, name)
        buffer = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        setattr(batch, name, buffer[1:].view(tensor.shape))
    q = torch.empty(len(batch.input_ids), 12, 64, dtype=BFLOAT16)
    attention(0, q, q, q, batch)


def test_resources_of_a_kernel_that_is_known():
    """A copy of 4 KiB through shared memory takes no register beyond a few, and all its threads fit."""
    from lib.attention.triton_kernel import store

    x = torch.empty(64, 1024)
    slots = torch.empty(64, dtype=torch.int64)
    (kernel,) = compiled_launches(
        lambda: (
            [
                store[(64,)](
                    x, x, x, x, slots, 1024, 1024, WIDTH=1024, COLUMNS=1024, enable_fp_fusion=True
                )
            ]
            * 2
        ),
        80,
    )
    assert (kernel.kernel, kernel.capability, kernel.num_warps) == ("store", 80, 4)
    assert kernel.local_bytes == 0 and 8 <= kernel.registers <= 64
    assert 8 <= kernel.programs_per_sm <= 16  # 2,048 threads, 128 per program


def test_a_gpu_on_which_triton_cannot_build_its_launch_code(monkeypatch):
    """Without a C compiler the first launch fails: 'auto' must learn it before the engine runs."""
    from triton.runtime.driver import driver

    from lib.attention.fused import why_not_fused

    class WithoutCompiler:
        def __getattr__(self, name):
            raise RuntimeError(
                "Failed to find C compiler.\nSpecify it via CC environment variable."
            )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Gpu, "of", lambda device: Gpu(90, 132))
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device, **how: zeros(*shape, **how))
    before = driver._active
    driver.set_active(WithoutCompiler())
    try:
        why = why_not_fused(torch.device("cuda"), BFLOAT16, 16)
    finally:
        driver.set_active(before)
    assert isinstance(why, RuntimeError) and "Failed to find C compiler." in str(why)
    assert "gcc" in str(why) and "\n" not in str(why)

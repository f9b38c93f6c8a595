"""The sweeps at GPU scale on the GPUs that readers have: what a T4 of 15 GiB runs, and what it leaves out."""

import pytest

from lib.bench.findings.batching.memory_fit import fitting
from lib.bench.measure import counts
from lib.bench.measure.free_bytes import free_bytes
from lib.bench.measure.sweep_memory import (
    PROCESS_BYTES,
    batch_sweep_bytes,
    decode_step_bytes,
    servers_bytes,
)
from lib.models.checkpoint import GPT2_CONFIG
from tests.fake_cuda import fake_cuda

GIB = 2**30
WEIGHTS, KV = (f(GPT2_CONFIG, "float32") for f in (counts.weight_bytes, counts.kv_bytes_per_token))


def test_the_counts():
    assert KV == 73_728
    assert batch_sweep_bytes(GPT2_CONFIG, "float32", 4, 10) == 2 * (WEIGHTS + 40 * KV) + 48 * 50257
    assert servers_bytes(GPT2_CONFIG, "float32", 4, 10, 3) == 3 * (
        PROCESS_BYTES + WEIGHTS + 40 * KV
    )
    assert decode_step_bytes(GPT2_CONFIG, 4, 12) == pytest.approx(48 * KV * 25 / 12)
    assert decode_step_bytes(GPT2_CONFIG, 4, 12, half=True) == pytest.approx(72 * KV * 25 / 12)


@pytest.mark.parametrize("gib, most", [(15, 512), (10, 512), (6, 256), (80, 512)])
def test_chapter_3_on_small_gpus(gib, most):
    with fake_cuda(free_bytes=gib * GIB):
        free = free_bytes("cuda")
    fit = fitting(
        "batch",
        [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
        lambda n: batch_sweep_bytes(GPT2_CONFIG, "float32", n, 58),
        free,
    )
    assert fit.sizes[-1] == most
    assert ("512" in fit.sentence) == (most < 512)


@pytest.mark.parametrize("gib, most", [(15, 64), (22, 128), (80, 128)])
def test_chapter_6_on_small_gpus(gib, most):
    fit = fitting(
        "number of users",
        [1, 4, 8, 16, 32, 64, 128],
        lambda n: servers_bytes(GPT2_CONFIG, "float32", n, 256, 5),
        gib * GIB,
    )
    assert fit.sizes[-1] == most


@pytest.mark.parametrize("gib, layer, step", [(14, 64, 128), (11, 64, 64), (40, 64, 128)])
def test_chapter_7_on_small_gpus(gib, layer, step):
    batches = [1, 4, 16, 64, 128]
    half = fitting(
        "batch", batches[:-1], lambda n: decode_step_bytes(GPT2_CONFIG, n, 512, True), gib * GIB
    )
    whole = fitting("batch", batches, lambda n: decode_step_bytes(GPT2_CONFIG, n, 512), gib * GIB)
    assert (half.sizes[-1], whole.sizes[-1]) == (layer, step)

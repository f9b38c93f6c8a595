"""What is recorded gives the same numbers when it is replayed, for every kind of attention that chapter 7 times."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from lib.attention.contiguous import ContiguousAttention
from lib.attention.gather import GatherAttention
from lib.bench.measure.replay import replayed
from tests.fake_cuda import fake_cuda
from tests.fused_cases import batch_of, cache_of

CPU = torch.device("cpu")


def test_on_a_cpu_it_is_the_job_itself():
    def job():
        return 3

    assert replayed(job, CPU) is job


def attention_job(kind, work, device):
    """(job, cache, q): two layers' attention over a paged or a contiguous cache; with decoding sequences and chunks."""
    block_size = 16 if kind is GatherAttention else 64
    batch, num_blocks = batch_of(work, block_size, device=device)
    cache = cache_of(6, 2, 16, num_blocks, block_size, torch.float32, device)
    for tensor in (cache.k, cache.v):
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    tokens = sum(n for n, _ in work)
    q, k, v = (torch.randn(tokens, heads, 16).to(device) for heads in (6, 2, 2))
    attention = kind(cache)
    return (lambda: [attention(layer, q, k, v, batch) for layer in (0, 1)]), cache, q


@pytest.mark.parametrize("kind", [ContiguousAttention, GatherAttention])
@pytest.mark.parametrize("work", [[(1, 20), (1, 40)], [(5, 20)]], ids=["decode", "a chunk"])
def test_attention_can_be_recorded(kind, work):
    with fake_cuda() as cuda, torch.inference_mode():
        job, cache, q = attention_job(kind, work, "cuda")
        run = replayed(job, "cuda")
        q.mul_(2)
        expected = [out.cpu() for out in job()]
        cuda.clear()
        result = run()
        assert cuda.replays == 1 and sum(cuda.kernels.values()) == 0, "nothing else is started"
        for ours, truth in zip(result, expected):
            torch.testing.assert_close(ours.cpu(), truth)


def test_what_is_read_stays_alive():
    def recorded():
        x = torch.ones(3, device="cuda")
        return replayed(lambda: 2 * x, "cuda"), weakref.ref(x)

    with fake_cuda(), torch.inference_mode():
        run, x = recorded()
        gc.collect()
        assert x() is not None
        del run
        gc.collect()
        assert x() is None, "and no longer than the recording"


def test_a_job_that_waits_cannot_be_recorded():
    with fake_cuda(), torch.inference_mode():
        x = torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match="while a graph is captured"):
            replayed(lambda: x.sum().item(), "cuda")


@pytest.mark.gpu
def test_on_a_gpu_a_replay_sees_new_numbers():
    with torch.inference_mode():
        x = torch.ones(1000, device="cuda")
        run = replayed(lambda: 2 * x, "cuda")
        x.fill_(3)
        assert run().tolist() == [6.0] * 1000

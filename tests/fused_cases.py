"""Batches and caches for the fused kernels' tests, and the kernels under Triton's interpreter.

`TRITON_INTERPRET=1 python -m tests.fused_cases` runs the Triton kernels on the CPU, a program at a time, in NumPy. It is
a process of its own because the variable has to be set before the kernels are imported, and changes them all.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from lib.attention.gather import GatherAttention
from lib.cache.kv_cache import KVCache
from lib.core.batch import Batch, Scheduled
from lib.models.config import ModelConfig

MIXED = [
    (1, 0),
    (1, 31),
    (5, 40),
    (1, 32),
    (16, 0),
    (2, 63),
    (1, 300),
    (17, 50),
    (40, 0),
    (9, 7),
]  # (queries, keys before)


def cache_of(
    heads: int,
    kv_heads: int,
    size: int,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: str = "cpu",
) -> KVCache:
    config = ModelConfig("llama", 10, 8, 2, heads, kv_heads, size, 8, 64)
    return KVCache(config, num_blocks, block_size, dtype=dtype, device=device)


def batch_of(
    work: list[tuple[int, int]], block_size: int, seed: int = 0, device: str = "cpu"
) -> tuple[Batch, int]:
    """`work`: (queries, keys before them) a sequence. Blocks in random order. Returns the batch and the pool's size."""
    needed = [-(-(n + past) // block_size) for n, past in work]
    ids = (np.random.default_rng(seed).permutation(sum(needed) + 3) + 1).tolist()
    scheduled = []
    for (n, past), blocks in zip(work, needed):
        table = [ids.pop() for _ in range(blocks)]
        scheduled.append(
            Scheduled(
                SimpleNamespace(
                    token_ids=[0] * (n + past), num_computed_tokens=past, block_ids=table
                ),
                n,
            )
        )
    return Batch.build(scheduled, block_size, device), sum(needed) + 4


def fill(cache: KVCache, batch: Batch, seed: int, unused: float) -> None:
    """Random keys and values where a sequence has some, `unused` in every other slot, the null block's too."""
    generator = torch.Generator().manual_seed(seed)
    for x in (cache.k, cache.v):
        x.fill_(unused)
        for table, length, n in zip(batch.block_ids, batch.kv_lens, batch.query_lens):
            for position in range(length - n):
                block, offset = table[position // batch.block_size], position % batch.block_size
                x[:, block, offset] = torch.randn(x.shape[0], *x.shape[3:], generator=generator).to(
                    x
                )


def compare(
    attention,
    work,
    heads=6,
    kv_heads=2,
    size=16,
    block_size=16,
    dtype=torch.float32,
    seed=0,
    device="cpu",
    window=None,
):
    """What `attention(cache)` makes of a random batch, and what gathering in float32 makes of the same numbers.

    Unused slots are NaN for the one and 0 for the other; K and V must have arrived in their slots.
    """
    batch, num_blocks = batch_of(work, block_size, seed, device)
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(sum(n for n, _ in work), heads + 2 * kv_heads, size, generator=generator).to(
        device, dtype
    )
    q, k, v = qkv.split(
        (heads, kv_heads, kv_heads), dim=1
    )  # views with gaps, as the models hand them over
    shape = (heads, kv_heads, size, num_blocks, block_size)
    cache = cache_of(*shape, dtype, device)
    fill(cache, batch, seed, float("nan"))
    reference = cache_of(*shape, torch.float32, device)
    for ours, theirs in ((cache.k, reference.k), (cache.v, reference.v)):
        theirs.copy_(ours.float().nan_to_num_(0.0))
    out = attention(cache)(1, q, k, v, batch, window)
    for tensor, new in ((cache.k, k), (cache.v, v)):
        assert torch.equal(tensor[1].flatten(0, 1)[batch.slot_mapping], new)
    assert out.dtype == dtype and out.shape == q.shape
    assert not out.isnan().any(), "a slot that nobody wrote was read"
    expected = GatherAttention(reference)(1, q.float(), k.float(), v.float(), batch, window)
    return out.float(), expected


def in_float64(
    cache: KVCache, layer: int, batch: Batch, q: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    """What attention must give after this step's K and V were stored: all scores at once, in float64, on the CPU."""
    group, start, rows = q.shape[1] // cache.k.shape[3], 0, []
    for blocks, length, n in zip(batch.block_ids, batch.kv_lens, batch.query_lens):
        own = torch.tensor(blocks, device=cache.k.device)
        keys, values = (
            x[layer][own].flatten(0, 1)[:length].double().cpu().repeat_interleave(group, 1)
            for x in (cache.k, cache.v)
        )
        scores = (
            torch.einsum("ihd,jhd->hij", q[start : start + n].double().cpu(), keys)
            / q.shape[2] ** 0.5
        )
        distance = torch.arange(length - n, length)[:, None] - torch.arange(length)
        hidden = (distance < 0) | (distance >= (window or length))
        rows.append(
            torch.einsum(
                "hij,jhd->ihd", scores.masked_fill(hidden, float("-inf")).softmax(-1), values
            )
        )
        start += n
    return torch.cat(rows)


def triton_attention(splits: int, capability: int = 90):
    """CudaFusedAttention that splits every sequence's keys into `splits` parts, with the tiles of a GPU of `capability`."""
    from lib.attention.fused_cuda import CudaFusedAttention
    from lib.attention.triton_config import Gpu

    class WithSplits(CudaFusedAttention):
        def splits(self, batch, tiles) -> int:
            return splits

    return lambda cache: WithSplits(cache, Gpu(capability, processors=1))


def interpreted() -> None:
    empty = torch.empty

    def not_zero(*shape, **options):  # nobody relies on zeros
        result = empty(*shape, **options)
        return result.fill_(float("nan")) if result.is_floating_point() else result

    torch.empty = not_zero
    decode = [(1, 0), (1, 40), (1, 200)]
    # Up to 16 query rows a K/V head go to decode: a decoded token beside 2 to 17 tokens to verify, and longer chunks.
    verify = [(1, 70), (2, 63), (5, 0), (6, 130), (16, 20), (17, 33)]
    for dtype, tolerance in (
        (torch.float32, 2e-6),
        (torch.float16, 2e-3),
    ):  # NumPy, and so the interpreter, lacks bfloat16
        for capability, splits, work, heads, kv_heads, size, block_size, *window in (
            (90, 1, decode, 2, 2, 16, 16),
            (90, 1, decode, 2, 2, 16, 16, 37),
            (75, 3, decode, 3, 1, 16, 17, 1),
            (90, 5, verify, 8, 2, 64, 16, 37),
            (75, 2, verify, 2, 2, 16, 17, 4),
            (90, 1, [(33, 0), (70, 30)], 2, 2, 16, 16, 20),
            (75, 16, decode, 3, 1, 64, 16),
            (90, 18, decode, 8, 1, 20, 32),
            (75, 3, [(1, 0), (5, 40), (1, 100), (20, 0)], 3, 1, 16, 17),
            (90, 1, [(33, 0), (70, 30)], 2, 2, 16, 16),
            (90, 1, verify, 3, 1, 16, 16),
            (75, 2, verify, 2, 2, 16, 17),
            (90, 5, verify, 8, 2, 64, 16),
        ):
            out, expected = compare(
                triton_attention(splits, capability),
                work,
                heads,
                kv_heads,
                size,
                block_size,
                dtype,
                window=window[0] if window else None,
            )
            torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    print("interpreted: ok")


if __name__ == "__main__":
    interpreted()

"""The Numba kernel against the gather path and float64: any block table, any lengths, any heads, any number of shares."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.attention.fused import fused_attention, why_not_fused
from lib.attention.fused_cpu import CpuFusedAttention, attention_plan
from lib.attention.gather import GatherAttention
from lib.attention.work_partition import partition_work
from tests.fused_cases import MIXED, batch_of, cache_of, compare, fill, in_float64

CPU = torch.device("cpu")


def check(
    work, heads=6, kv_heads=2, size=16, block_size=16, dtype=torch.float32, seed=0, window=None
) -> None:
    shape = heads, kv_heads, size, block_size
    out, expected = compare(fused_attention, work, *shape, dtype, seed, window=window)
    atol, rtol = (2e-6, 1e-5) if dtype == torch.float32 else (2e-3, 1e-2)
    torch.testing.assert_close(out, expected, atol=atol, rtol=rtol)


@pytest.mark.parametrize("window", [1, 2, 31, 32, 33, 64, 1000])
@pytest.mark.parametrize("block_size", [7, 16])
def test_windows_of_any_length(window, block_size):
    check(MIXED, block_size=block_size, window=window)
    check([(1, 400), (3, 90), (8, 31)], block_size=block_size, window=window)
    check([(1, 10_000)], block_size=block_size, window=window)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [4, 8, 20, 48, 64, 128])
def test_heads_of_any_size(size, dtype):
    """The vector code multiplies 16 numbers at a time; what is left over is added one by one."""
    check(MIXED, size=size, dtype=dtype)
    check([(1, 0), (1, 7), (1, 8), (3, 30), (31, 1)], size=size, dtype=dtype, window=9)


@pytest.mark.parametrize("window", [None, 20])
def test_chunks_on_both_sides_of_the_hand_over(window):
    """Short sequences and short chunks go to the kernel, others to PyTorch; in a batch of both, each gets its own."""
    long, short = [(33, 224), (300, 0), (40, 1000)], [(32, 500), (256, 0), (100, 156), (1, 9)]
    for work in (long, short, [*long, *short], [(300, 0)], [(300, 0), (9, 0)]):
        batch, _ = batch_of(work, 16)
        handed = {row for row, _ in attention_plan(batch, window).chunks}
        assert handed == {row for row, one in enumerate(work) if one in long}
        check(work, window=window)


@pytest.mark.parametrize("window", [None, 1, 5, 40, 400])
def test_gather_itself_against_float64(window):
    """The reference of this file's tests, against all scores at once."""
    batch, num_blocks = batch_of(MIXED, 16)
    cache = cache_of(6, 2, 16, num_blocks, 16, torch.float32)
    fill(cache, batch, 0, 0.0)
    generator = torch.Generator().manual_seed(3)
    q, k, v = (
        torch.randn(len(batch.input_ids), heads, 16, generator=generator) for heads in (6, 2, 2)
    )
    out = GatherAttention(cache)(0, q, k, v, batch, window).double()
    expected = in_float64(cache, 0, batch, q, window)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("block_size", [1, 7, 16, 64])
@pytest.mark.parametrize("group", [1, 3, 8])
def test_decode_and_chunks_in_one_batch(dtype, block_size, group):
    check(MIXED, heads=2 * group, kv_heads=2, block_size=block_size, dtype=dtype)


@given(data=st.data())
def test_random_batches(data):
    length = st.integers(1, 20) | st.just(1)
    work = data.draw(st.lists(st.tuples(length, st.integers(0, 90)), min_size=1, max_size=6))
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 3, 8]))
    check(
        work,
        kv_heads * group,
        kv_heads,
        size=data.draw(st.sampled_from([8, 20, 64])),
        block_size=data.draw(st.integers(1, 64)),
        seed=data.draw(st.integers(0, 99)),
        dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16])),
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_any_number_of_threads_gives_the_same(monkeypatch, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(
        "numba.get_num_threads", lambda: threads
    )  # more shares than threads run after each other
    check([(1, 2000)], size=64)
    check([(1, 700), (1, 3), (12, 500), (1, 64)])


def test_fused_against_float64():
    """Closer to the truth than 1e-6, with scores up to +-30."""
    batch, num_blocks = batch_of([(1, 600)], 16)
    cache = cache_of(3, 1, 64, num_blocks, 16, torch.float32)
    fill(cache, batch, 0, float("nan"))
    q, k, v = torch.randn(3, 1, 3, 64, generator=torch.Generator().manual_seed(3)).unbind(0)
    q, k, v = 4 * q, k[:, :1], v[:, :1]
    out = fused_attention(cache)(0, q, k, v, batch)
    slots = torch.tensor([batch.block_ids[0][p // 16] * 16 + p % 16 for p in range(601)])
    keys, values = (x[0].flatten(0, 1)[slots, 0].double() for x in (cache.k, cache.v))
    expected = (q[0].double() @ keys.T / 8).softmax(-1) @ values
    torch.testing.assert_close(out[0].double(), expected, atol=1e-6, rtol=1e-5)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 500)), min_size=1, max_size=12),
    threads=st.integers(1, 9),
    window=st.one_of(st.none(), st.integers(1, 300)),
)
def test_shares_cover_every_key_tile_once_and_are_equal(lengths, threads, window):
    queries = np.array([n for n, _ in lengths])
    seen = queries + np.array([past for _, past in lengths])
    shares = partition_work(queries, seen, 24, threads, window)
    covered: dict[int, list[tuple[int, int]]] = {}
    for _, token, n, end, first, last, tiles, _, begin in shares.pieces.tolist():
        covered.setdefault(token, []).append((first, last))
        assert 0 <= first < last <= tiles
        # Tile 0 has the first key that the piece's first query sees, the last tile its last key.
        visible = 0 if window is None else max(0, end - n + 1 - window)
        assert begin <= visible < begin + 32 and begin % 32 == 0
        assert begin + 32 * (tiles - 1) < end <= begin + 32 * tiles
    for pieces in covered.values():
        assert pieces[0][0] == 0 and all(a[1] == b[0] for a, b in zip(pieces, pieces[1:]))
    assert set(covered) == {
        start + at
        for start, n in zip(np.cumsum(queries) - queries, queries.tolist())
        if n <= 24
        for at in range(0, n, 8)
    }
    states = [shares.pieces[p, 7] for p in shares.cuts]
    assert states == list(range(len(states))) and len(shares.offsets) - 1 <= threads
    cost = (shares.pieces[:, 5] - shares.pieces[:, 4]) * (shares.pieces[:, 2] + 4)
    of_share = [cost[a:b].sum() for a, b in zip(shares.offsets, shares.offsets[1:])]
    assert max(of_share) - min(of_share) <= 2 * 12, (
        "no share is more than a tile or two ahead of another"
    )


def test_what_cannot_be_fused_says_why(monkeypatch):
    assert why_not_fused(CPU, torch.float32, 1) is None
    half = why_not_fused(CPU, torch.float16, 16)
    assert isinstance(half, ValueError) and "dtype must be one of ['float32', 'bfloat16']" in str(
        half
    )
    small = why_not_fused(torch.device("cuda"), torch.float16, 8)
    assert "block_size must be >= 16" in str(small) or "pip install triton" in str(small)
    monkeypatch.setattr("lib.attention.fused.import_module", _missing)
    missing = why_not_fused(CPU, torch.float32, 16)
    assert isinstance(missing, ImportError) and "pip install numba" in str(missing)
    with pytest.raises(ImportError, match="pip install numba"):
        fused_attention(cache_of(2, 2, 8, 3, 16, torch.float32))


def _missing(name: str):
    raise ImportError(f"No module named {name!r}")


def test_auto_falls_back_with_one_line_and_fused_does_not(llama, monkeypatch, recwarn):
    assert isinstance(llama.engine(attention="auto").runner.attention, CpuFusedAttention)
    assert not recwarn.list
    monkeypatch.setattr("lib.attention.fused.import_module", _missing)
    with pytest.warns(UserWarning, match="falls back to 'gather'.*pip install numba"):
        assert isinstance(llama.engine(attention="auto").runner.attention, GatherAttention)
    with pytest.raises(ImportError, match="pip install numba"):
        llama.engine(attention="fused")


def test_auto_in_float16(llama):
    with pytest.warns(UserWarning, match="falls back to 'gather'.*dtype must be one of"):
        assert isinstance(
            llama.engine(dtype="float16", attention="auto").runner.attention, GatherAttention
        )
    with pytest.raises(ValueError, match="dtype must be one of"):
        llama.engine(dtype="float16", attention="fused")


def test_where_nothing_can_be_kept_on_disk_the_kernel_still_compiles(monkeypatch):
    from numba.core.caching import CompileResultCacheImpl

    from lib.core import numba_cache

    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [])
    for decorate in (numba_cache.compiled, numba_cache.compiled(parallel=True)):
        double = decorate(lambda x: 2 * x)
        assert double(4) == 8 and not double.stats.cache_path


FIRST_CALL = """
from lib.attention.numba_kernel import find_slots
import numpy as np
slots = np.empty(3, np.int64)
find_slots(slots, np.array([5, 7], np.int32), 4, 3, 4)
assert slots.tolist() == [23, 28, 28]
stats = find_slots.stats
print("hits", sum(stats.cache_hits.values()), "misses", sum(stats.cache_misses.values()))
"""


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("length", [0, 10, 0.5])
def test_a_compiled_file_that_is_cut_short_is_made_again(tmp_path, suffix, length):
    """A full disk or a kill leaves half a file: index (.nbi) or code (.nbc)."""

    def call() -> str:
        done = subprocess.run(
            [sys.executable, "-c", FIRST_CALL],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()

    assert call() == "hits 0 misses 1"
    (file,) = tmp_path.rglob(f"*.find_slots-*{suffix}")
    content = file.read_bytes()
    file.write_bytes(content[: int(length * len(content)) if length == 0.5 else length])
    assert call() == "hits 0 misses 1"
    assert call() == "hits 1 misses 0"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_numbers_that_are_not_finite_spoil_their_own_sequence_only(bad, dtype):
    work = [(1, 40), (1, 300), (3, 20), (1, 5)]
    batch, num_blocks = batch_of(work, 16)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(6, 10, 16, generator=generator).to(dtype)
    outs = []
    for broken in (False, True):
        cache = cache_of(6, 2, 16, num_blocks, 16, dtype)
        fill(cache, batch, 0, float("nan"))
        rows = qkv.clone()
        if broken:
            rows[1] = bad
        outs.append(fused_attention(cache)(0, *rows.split((6, 2, 2), dim=1), batch))
    others = [0, 2, 3, 4, 5]
    assert torch.equal(outs[0][others], outs[1][others]) and outs[0].isfinite().all()
    assert not outs[1][1].isfinite().all() or bad == 1e38

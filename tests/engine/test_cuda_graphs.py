"""Recorded decode steps: padding, the null block and the ladder for real, on any machine; CUDA graphs where there is a GPU."""

from __future__ import annotations

import random

import pytest
import torch

from lib import SamplingParams
from lib.attention.gather import GatherAttention
from lib.cache.kv_cache import KVCache
from lib.core.batch import Batch, Scheduled
from lib.core.request import Request
from lib.engine.cuda_graphs import LARGEST, GraphRunner, Rerun, ladder
from lib.engine.runner import ModelRunner
from tests.helpers import check_books, check_empty, prompt_of

CPU = torch.device("cpu")
GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)


def greedy(n):
    return SamplingParams(max_tokens=n, temperature=0, ignore_eos=True)


def recorded(tiny, **options):
    """An engine whose decode steps run over the static buffers. Gather takes its lengths from `seq_lens` when `kv_lens` are
    the longest, as they are in a recorded batch: it is the CPU's stand-in for the CUDA kernels."""
    engine = tiny.engine(**options)
    size = engine.options.block_size
    engine.runner = GraphRunner(
        engine.runner,
        ladder(engine.options.max_num_seqs),
        size,
        -(-engine.max_model_len // size),
        CPU,
        Rerun(),
    )
    return engine


def test_the_ladder():
    assert ladder(1) == [1] and ladder(2) == [1, 2] and ladder(3) == [1, 2, 3]
    assert ladder(64) == [1, 2, 4, *range(8, 65, 8)]
    assert ladder(20) == [1, 2, 4, 8, 16, 20]
    assert ladder(10**6)[-1] == LARGEST
    for largest in range(1, 80):
        sizes = ladder(largest)
        assert sizes == sorted(set(sizes)) and sizes[-1] == largest
        for n in range(1, largest + 1):
            assert next(size for size in sizes if size >= n) - n <= 7


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 7},
        {"block_size": 4, "num_blocks": 24, "max_num_seqs": 5},
        {"max_num_seqs": 3},
    ],
    ids=["plain", "chunks", "preempted", "few rows"],
)
def test_random_arrivals_give_the_oracles_tokens(tiny, name, options):
    engine, rng = recorded(tiny[name], **options), random.Random(str(options))
    work = [(rng.randint(1, 30), rng.randint(1, 18)) for _ in range(14)]
    ids, done, waiting = {}, {}, list(enumerate(work))
    while waiting or engine.has_unfinished():
        for _ in range(rng.choice((0, 0, 1, 3))):
            if waiting:
                seed, (length, n) = waiting.pop(0)
                ids[engine.add_request(prompt_of(length, seed), greedy(n))] = seed
        done |= {ids[o.request_id]: o.token_ids for o in engine.step() if o.finished}
        check_books(engine)
    for seed, (length, n) in enumerate(work):
        assert done[seed] == tiny[name].greedy(prompt_of(length, seed), n)
    assert engine.runner.num_replayed > 0 and engine.runner.num_eager > 0
    if "num_blocks" in options:
        assert engine.stats()["preemptions"] > 0
    check_empty(engine)


def decode_batch(lengths, block_size, tokens, first_block=1, graph=None):
    """One query a sequence: sequence i has `lengths[i]` tokens, and blocks of its own; for `graph` to replay."""
    scheduled, block = [], first_block
    for i, length in enumerate(lengths):
        request = Request(f"r{i}", tokens[i][:length], GREEDY)
        count = -(-length // block_size)
        request.block_ids, request.num_computed_tokens = (
            list(range(block, block + count)),
            length - 1,
        )
        block += count
        scheduled.append(Scheduled(request, 1))
    room = None if graph is None else graph.room(scheduled)
    return Batch.build(scheduled, block_size, room=room)


@pytest.fixture
def laid_out(llama):
    """A runner over a cache of random keys, its recorded twin, and token lists."""
    torch.manual_seed(0)
    cache = KVCache(llama.model.config, 33, 4, dtype=torch.float32, device="cpu")
    cache.k.normal_()
    cache.v.normal_()
    runner = ModelRunner(llama.model, GatherAttention(cache))
    graph = GraphRunner(runner, [1, 2, 4, 8], 4, 8, CPU, Rerun())
    return runner, graph, cache, [prompt_of(32, seed) for seed in range(9)]


@pytest.mark.parametrize("rows", range(1, 10))
def test_padded_logits_equal_plain_ones(laid_out, rows):
    runner, graph, cache, tokens = laid_out
    # Something stale in every buffer.
    graph.run(decode_batch([30, 2, 17, 9, 5, 7, 3, 1], 4, tokens, graph=graph))
    lengths = [1 + 2 * i for i in range(rows)]
    expected = runner.run(decode_batch(lengths, 4, tokens)).clone()
    replayed = graph.num_replayed
    batch = decode_batch(lengths, 4, tokens, graph=graph)
    # A product of 8 rows may sum in another order than one of 5: rounding, no more.
    torch.testing.assert_close(graph.run(batch), expected, rtol=1e-4, atol=1e-4)
    assert graph.num_replayed == replayed + (rows <= 8)


def test_padding_writes_to_the_null_block_alone(laid_out, monkeypatch):
    _, graph, cache, tokens = laid_out
    graph.run(decode_batch([30, 2, 17, 9], 4, tokens, graph=graph))
    before = cache.k.clone(), cache.v.clone()
    empty = torch.empty

    def stale(*size, **options):
        """Memory that was used before: it names slot 19, where a sequence keeps its keys."""
        memory = empty(*size, **options)
        memory[::2], memory[1::2] = 19, 0
        return memory

    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", stale)
        batch = decode_batch([6, 3, 5], 4, tokens, first_block=20, graph=graph)
    graph.run(batch)  # padded to 4: the fourth row was the sequence of 9
    for old, new in zip(before, (cache.k, cache.v)):
        changed = (old != new).flatten(3).any(-1).any(0)  # [blocks, slots]
        slots = {block * 4 + slot for block, slot in changed.nonzero().tolist()}
        assert (
            set(batch.slot_mapping[:3].tolist())
            <= slots
            <= {*batch.slot_mapping[:3].tolist(), 0, 1, 2, 3}
        )


def test_buffers_never_move_and_sizes_are_recorded_from_the_largest(llama):
    seen, order = [], []

    class Watching(Rerun):
        def record(self, step):
            logits = step()
            order.append(logits.shape[0])
            return super().record(step)

    class Attention(GatherAttention):
        def __call__(self, layer, q, k, v, batch):
            seen.append(
                (
                    len(batch.query_lens),
                    batch.block_table.data_ptr(),
                    batch.seq_lens.data_ptr(),
                    batch.slot_mapping.data_ptr(),
                    batch.block_table.shape[1],
                )
            )
            return super().__call__(layer, q, k, v, batch)

    cache = KVCache(llama.model.config, 33, 4, dtype=torch.float32, device="cpu")
    graph = GraphRunner(
        ModelRunner(llama.model, Attention(cache)), [1, 2, 4], 4, 8, CPU, Watching()
    )
    assert order == [4, 2, 1]
    tokens = [prompt_of(32, seed) for seed in range(4)]
    for rows in (1, 2, 3, 4, 1):
        graph.run(decode_batch([5] * rows, 4, tokens, graph=graph))
    assert {size for size, *_ in seen} == {1, 2, 4}
    assert len(set(seen)) == 3, "a size reads the same addresses in every step"
    assert graph.capture_seconds > 0 and graph.capture_bytes == 0


def test_all_sizes_write_their_logits_to_one_buffer(laid_out):
    """A recording keeps its result alive: one for each size would take the memory of a small model."""
    _, graph, _, tokens = laid_out
    results = [graph.run(decode_batch([5] * rows, 4, tokens, graph=graph)) for rows in (8, 3, 2, 1)]
    assert len({result.data_ptr() for result in results}) == 1
    assert [len(result) for result in results] == [8, 3, 2, 1]


def test_prompts_and_larger_batches_run_as_before(laid_out):
    runner, graph, _, tokens = laid_out
    prompt = Request("p", tokens[0][:6], GREEDY)
    prompt.block_ids = [30, 31]
    batch = Batch.build([Scheduled(prompt, 6)], 4)
    torch.testing.assert_close(graph.run(batch), runner.run(batch))
    assert (graph.num_replayed, graph.num_eager) == (0, 1)


def test_where_it_cannot_be(llama):
    for options in ({"kv_cache": "contiguous"}, {"kv_cache": "none"}, {"attention": "gather"}):
        with pytest.raises(
            ValueError,
            match="cuda_graphs needs kv_cache 'paged' and attention 'fused' on a CUDA device",
        ):
            llama.engine(cuda_graphs=True, **options)
    with pytest.raises(ValueError, match="cuda_graphs needs a CUDA device, got device 'cpu'"):
        llama.engine(cuda_graphs=True, attention="fused")
    with pytest.raises(ValueError, match="cuda_graphs must be True or False, got 1"):
        llama.engine(cuda_graphs=1, attention="fused")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu_the_same_tokens_as_the_oracle(tiny, name, compiled):
    engine = tiny[name].engine(
        device="cuda",
        dtype="float32",
        attention="fused",
        cuda_graphs=True,
        compile=compiled,
        num_blocks=65,
        max_num_seqs=6,
    )
    rng = random.Random(3)
    work = [(rng.randint(1, 40), rng.randint(1, 20)) for _ in range(12)]
    outputs = engine.generate(
        [prompt_of(length, seed) for seed, (length, _) in enumerate(work)],
        [greedy(n) for _, n in work],
    )
    for seed, ((length, n), output) in enumerate(zip(work, outputs)):
        assert output.token_ids == tiny[name].greedy(prompt_of(length, seed), n)
    assert engine.runner.num_replayed > 0 and engine.runner.capture_bytes > 0
    check_empty(engine)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-3), ("bfloat16", 0.15)])
def test_on_a_gpu_replayed_logits_equal_eager_ones(llama, dtype, tolerance):
    """Logits are of size 10. A padded batch may be another kernel's, so equal means: up to rounding in the dtype."""
    eager, graph = (
        llama.engine(
            device="cuda", dtype=dtype, attention="fused", cuda_graphs=c, async_scheduling=False
        )
        for c in (False, True)
    )
    tokens = [prompt_of(60, seed) for seed in range(7)]
    for rows in (7, 3, 1, 5):
        logits = []
        for engine in (eager, graph):
            ids = [
                engine.add_request(t[: 20 + 5 * i], greedy(8)) for i, t in enumerate(tokens[:rows])
            ]
            engine.step()
            scheduled = engine.scheduler.schedule()
            room = engine.runner.room(scheduled)
            batch = Batch.build(scheduled, engine.manager.block_size, engine.device, room)
            logits.append(engine.runner.run(batch).clone())
            for request_id in ids:
                engine.abort(request_id)
        torch.testing.assert_close(
            *logits, atol=tolerance, rtol=2e-2 if dtype == "bfloat16" else 1e-4
        )

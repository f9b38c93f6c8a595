"""Drafting by the first layers and by another model: what is drafted, what is computed for it, what it keeps."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from lib import SamplingParams
from lib.attention.full import FullAttention
from lib.attention.gather import GatherAttention
from lib.cache.block_manager import BlockManager
from lib.cache.kv_cache import KVCache
from lib.cache.prefix_cache import PrefixCachingBlockManager
from lib.core.batch import Batch
from lib.core.request import Request, Status
from lib.engine.runner import ModelRunner
from lib.engine.speculation.draft_model import DraftModelProposer, check_same_vocabulary
from lib.engine.speculation.early_exit import EarlyExitProposer
from lib.models.checkpoint import load_model
from lib.models.first_layers import bytes_per_pass, first_layers
from lib.models.packed import PackedLinear
from tests.helpers import POSITIONS, VOCAB, Tiny, gpt2_checkpoint, llama_checkpoint, prompt_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> dict[str, Tiny]:
    """Models of three layers."""
    folder = tmp_path_factory.mktemp
    return {
        "llama": Tiny(llama_checkpoint(folder("llama3"), seed=1, num_hidden_layers=3)),
        "gpt2": Tiny(gpt2_checkpoint(folder("gpt3"), seed=2, n_layer=3)),
    }


@torch.inference_mode()
def continuation(model, tokens: list[int], num_tokens: int) -> tuple[int, ...]:
    """Greedy tokens, computed without a cache."""
    tokens, start = list(tokens), len(tokens)
    for _ in range(num_tokens):
        logits = model(Batch.of_prompts([tokens]), FullAttention())[0]
        tokens.append(logits.argmax().item())
    return tuple(tokens[start:])


def running(length: int, seed: int, **params) -> Request:
    request = Request(
        f"r{seed}",
        prompt_of(length, seed),
        SamplingParams(max_tokens=100, temperature=0, ignore_eos=True, **params),
    )
    request.status = Status.RUNNING
    return request


# The first layers.


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_first_layers_are_a_model_of_shared_weights(deep, name):
    model = load_model(deep[name].folder).model
    tokens = prompt_of(9, 1)
    whole = model(Batch.of_prompts([tokens]), FullAttention())
    early = first_layers(model, 2)
    assert len(model.blocks) == 3 and len(early.blocks) == 2
    known = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in early.parameters()} < known
    got = early(Batch.of_prompts([tokens]), FullAttention())
    assert not torch.allclose(got, whole)
    model.blocks = model.blocks[:2]
    assert torch.equal(got, model(Batch.of_prompts([tokens]), FullAttention()))


def test_the_number_of_draft_layers_is_checked(deep):
    for wrong in (0, -1, 3, 4):
        with pytest.raises(ValueError, match=rf"draft_layers must be >= 1 and < 3, .* got {wrong}"):
            first_layers(deep["llama"].model, wrong)


def test_the_cost_of_a_draft_token_follows_from_the_weights(deep):
    model = deep["gpt2"].model
    block = sum(p.nbytes for p in model.blocks[0].parameters())
    head = model.lm_head.weight.nbytes
    assert bytes_per_pass(model) == 3 * block + head
    assert bytes_per_pass(first_layers(model, 1)) == block + head


def test_packed_weights_count_as_bytes_of_a_pass():
    linears = [nn.Linear(8, 8, bias=False) for _ in range(2)]
    model = nn.Module()
    model.blocks, model.lm_head = nn.ModuleList(linears), nn.Linear(8, 4)
    before = bytes_per_pass(model)
    model.blocks[0] = PackedLinear(linears[0])
    assert bytes_per_pass(model) == before == 4 * (2 * 64 + 36)


OPTIONS = {
    "gather": dict(attention="gather", block_size=4),
    "fused": dict(attention="fused", block_size=4),
    "contiguous": dict(kv_cache="contiguous"),
}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("options", OPTIONS)
def test_drafts_of_the_first_layers(deep, name, options):
    """They are the continuation that the first layers give without a cache, and each pass computes one token of each."""
    tiny, limits = deep[name], [3, 1, 4]
    engine = tiny.engine(**OPTIONS[options])
    prompts = [prompt_of(5 + 4 * i, i) for i in range(3)]
    for prompt in prompts:
        engine.add_request(prompt, SamplingParams(max_tokens=9, temperature=0, ignore_eos=True))
    engine.step()
    requests = engine.scheduler.running
    for request, limit in zip(requests, limits):
        assert engine.manager.allocate(request, request.num_tokens + limit)
    for layers in (1, 2):
        proposer = EarlyExitProposer(
            engine.model, layers, engine.runner.attention, engine.kv_cache, 64
        )
        before = engine.kv_cache.k.clone()
        drafts = proposer.propose(requests, limits)
        early = first_layers(tiny.model, layers)
        for request, draft, limit in zip(requests, drafts, limits):
            assert draft.token_ids == continuation(early, request.token_ids, limit)
            assert draft.probs is None
        assert (proposer.loop.num_passes, proposer.loop.tokens_computed) == (4, sum(limits))
        assert torch.equal(engine.kv_cache.k[layers:], before[layers:])
        written = (engine.kv_cache.k[0] != before[0]).flatten(2).any(-1).sum().item()
        assert layers == 2 or written == sum(limits)
    # A request that has more to compute than its last token is left alone.
    requests[1].num_computed_tokens -= 1
    drafts = proposer.propose(requests, limits)
    assert [len(d.token_ids) for d in drafts] == [3, 0, 4]
    assert 0 < proposer.cost_coefficient < 1


def test_the_first_layers_need_a_cache(deep):
    with pytest.raises(ValueError, match="'early_exit' needs kv_cache .* got kv_cache 'none'"):
        EarlyExitProposer(deep["llama"].model, 1, FullAttention(), None, 64)


# Another model.


def proposer_of(
    tiny: Tiny, num_blocks=65, block_size=4, budget=64, max_model_len=POSITIONS,
    manager=BlockManager, **options,
):  # fmt: skip
    model = load_model(tiny.folder).model
    cache = KVCache(model.config, num_blocks, block_size, dtype=torch.float32, device=CPU)
    runner = ModelRunner(model, GatherAttention(cache))
    manager = manager(num_blocks, block_size)
    return DraftModelProposer(runner, manager, cache, max_model_len, budget, 0.5, **options)


@pytest.mark.parametrize("manager", [BlockManager, PrefixCachingBlockManager])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_draft_models_cache_keeps_in_step(tiny, name, manager):
    """Drafts that are accepted to any length, requests that pause, are preempted, end or begin: each draft is what the
    model gives without a cache, and no token is computed twice but after a preemption, of which a prefix cache spares
    some."""
    proposer = proposer_of(tiny[name], manager=manager, num_blocks=257, budget=2048)
    rng = random.Random(3)
    requests = [running(3 + 5 * i, i) for i in range(4)]
    lacking = {r: r.num_tokens for r in requests}  # tokens that the cache does not have
    for _ in range(25):
        chosen = [r for r in requests if rng.random() < 0.8]
        limits = [rng.randint(1, 4) for _ in chosen]
        before = proposer.loop.tokens_computed
        drafts = proposer.propose(chosen, limits)
        proposer.check_integrity(requests)
        computed = proposer.loop.tokens_computed - before
        expected = sum(lacking[r] + limit - 1 for r, limit in zip(chosen, limits))
        assert computed == expected or (computed < expected and proposer.manager.num_hits)
        for request, draft, limit in zip(chosen, drafts, limits):
            assert draft.token_ids == continuation(tiny[name].model, request.token_ids, limit)
            accepted = rng.randint(0, limit)
            other = rng.choice([t for t in range(VOCAB) if t not in draft.token_ids])
            request.token_ids += [*draft.token_ids[:accepted], other]
            lacking[request] = 1 + (accepted == limit)
        for request in requests:
            if request not in chosen:  # a step without drafts
                request.token_ids.append(rng.randrange(VOCAB))
                lacking[request] += 1
        if rng.random() < 0.2:  # preempted, and back at once: the proposer has not noticed
            requests[0].status = Status.WAITING
            proposer.propose([], [])
            assert requests[0] not in proposer._sequences
            requests[0].status = Status.RUNNING
            lacking[requests[0]] = requests[0].num_tokens
        if rng.random() < 0.2:
            gone = requests.pop(1)
            proposer.free(gone)
            requests.append(running(4, rng.randrange(50)))
            if rng.random() < 0.5:  # one that goes on with an ended one's tokens, as in a chat
                requests[-1].token_ids[:0] = gone.token_ids
            lacking[requests[-1]] = requests[-1].num_tokens
    assert len(proposer._sequences) == 4
    for request in requests:
        proposer.free(request)
        proposer.free(request)
    unused = proposer.manager.num_free_blocks + proposer.manager.num_cached_blocks
    assert unused == proposer.manager.num_blocks
    proposer.check_integrity([])
    assert (proposer.manager.num_hits > 0) == (manager is PrefixCachingBlockManager)
    proposer.forget_cached()
    assert proposer.manager.num_free_blocks == proposer.manager.num_blocks


def test_a_shared_prefix_is_computed_once(llama):
    """Verified tokens are found by later requests with the same beginning; rejected drafts are not."""
    proposer = proposer_of(llama, manager=PrefixCachingBlockManager)
    first = running(10, 1)
    (draft,) = proposer.propose([first], [6])
    wrong = next(t for t in range(3, VOCAB) if t not in draft.token_ids)
    first.token_ids += [draft.token_ids[0], wrong]
    proposer.propose([first], [1])
    assert proposer.manager.num_hits == 0
    # 11 tokens of the first are verified and computed, two blocks of four; the third would hold drafts.
    second = running(5, 2)
    second.token_ids[:0] = [*first.token_ids[:10], *draft.token_ids]
    before = proposer.loop.tokens_computed
    (again,) = proposer.propose([second], [2])
    assert again.token_ids == continuation(llama.model, second.token_ids, 2)
    assert proposer.manager.num_hits == 8
    assert proposer.loop.tokens_computed - before == second.num_tokens - 8 + 1
    salted = running(5, 3)
    salted.token_ids, salted.cache_salt = list(second.token_ids), "other"
    before = proposer.loop.tokens_computed
    proposer.propose([salted], [2])
    assert proposer.loop.tokens_computed - before == salted.num_tokens + 1


def test_a_long_sequence_takes_several_calls(llama):
    """No pass computes more than max_num_batched_tokens, and a request drafts once all of it is in the cache."""
    proposer = proposer_of(llama, budget=16)
    requests = [running(40, 1), running(5, 2)]
    seen = []
    for _ in range(4):
        before = proposer.loop.tokens_computed
        drafts = proposer.propose(requests, [2, 2])
        seen.append(([len(d.token_ids) for d in drafts], proposer.loop.tokens_computed - before))
    # 16, 16 and 8 tokens of the first, and then room for the second, which has waited.
    assert seen[:3] == [([0, 0], 16), ([0, 0], 16), ([2, 2], 8 + 5 + 2)]
    assert seen[3] == ([2, 2], 2 + 2)
    assert drafts[0].token_ids == continuation(llama.model, requests[0].token_ids, 2)


def test_a_draft_is_as_long_as_there_is_room(llama):
    proposer = proposer_of(llama, num_blocks=6, block_size=4)
    drafts = proposer.propose([running(11, 1), running(3, 2)], [4, 4])
    # 11 + 3 tokens take four of the five blocks; 3 + 1 tokens, for two drafts, take the fifth.
    assert [len(d.token_ids) for d in drafts] == [4, 2]


def test_a_request_without_room_gets_no_draft_and_holds_nothing(llama):
    proposer = proposer_of(llama, num_blocks=6, block_size=4)
    first, second = running(11, 1), running(9, 2)
    assert [len(d.token_ids) for d in proposer.propose([first, second], [4, 4])] == [4, 0]
    assert proposer._sequences[second].block_ids == [] and proposer.manager.num_free_blocks == 1
    proposer.free(first)
    assert [len(d.token_ids) for d in proposer.propose([second], [4])] == [4]
    proposer.reset()
    assert proposer.manager.num_free_blocks == 5 and not proposer._sequences
    assert [len(d.token_ids) for d in proposer.propose([first], [9])] == [9]


def test_the_draft_model_may_know_fewer_positions(llama):
    proposer = proposer_of(llama, max_model_len=10)
    request = running(8, 1)
    assert len(proposer.propose([request], [9])[0].token_ids) == 3, (
        "positions 8 and 9, and their next"
    )
    request.token_ids += [5, 6, 7]
    assert proposer.propose([request], [9])[0].token_ids == ()
    assert proposer.manager.num_free_blocks == proposer.manager.num_blocks


def test_a_draft_ends_where_the_request_would(llama):
    proposer = proposer_of(llama)
    request = running(8, 1)
    plain = continuation(llama.model, request.token_ids, 4)
    request.stop_token_ids = frozenset([plain[1]])
    assert proposer.propose([request], [4])[0].token_ids == plain[:2]


def test_nan_in_the_draft_models_cache_stays_with_its_request(llama):
    """A token that breaks the draft model: that request has no more drafts, and the others do not notice."""
    proposer = proposer_of(llama, num_blocks=9)
    good, bad = running(8, 1), running(8, 2)
    broken = min(
        set(range(VOCAB)) - {*good.token_ids, *continuation(llama.model, good.token_ids, 8)}
    )
    proposer.loop.runner.model.token_embedding.weight[broken] = float("nan")
    bad.token_ids[3] = broken
    expected = continuation(llama.model, good.token_ids, 4)
    for _ in range(2):
        drafts = proposer.propose([bad, good], [4, 4])
        assert [d.token_ids for d in drafts] == [(), expected]
        assert proposer.kv_cache.k.isfinite().all() and proposer.kv_cache.v.isfinite().all()
    assert proposer.manager.num_free_blocks == 8 - 3


def test_an_ended_request_that_was_not_freed_is_seen(llama):
    proposer, request = proposer_of(llama), running(5, 1)
    proposer.propose([request], [2])
    with pytest.raises(RuntimeError, match=r"holds requests that have ended: \['r1'\]"):
        proposer.check_integrity([])


class Words:
    def __init__(self, *words: str) -> None:
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}


def test_both_models_must_mean_the_same_by_a_token():
    with pytest.raises(ValueError, match="vocabulary of 61 tokens, got a model with 60"):
        check_same_vocabulary(61, 60, None, None)
    with pytest.raises(ValueError, match="in which 2 differ: id 1 is 'c' instead of 'b'"):
        check_same_vocabulary(3, 3, Words("a", "b"), Words("a", "c", "d"))
    check_same_vocabulary(3, 3, Words("a", "b"), Words("a", "b"))
    check_same_vocabulary(3, 3, Words("a", "b"), None)

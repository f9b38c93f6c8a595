"""Steps that verify drafts, with drafts from a script: right ones, wrong ones, and runs that end in the middle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib import SamplingParams
from lib.core.batch import Batch, Scheduled
from lib.core.request import Request
from lib.engine.completion_stream import CompletionStream
from lib.engine.sampling import Sampler
from lib.engine.sampling_row import SamplingRow
from lib.engine.step_results import results_of, rows_to_sample
from tests.helpers import VOCAB, check_books, check_empty, drain, prompt_of
from tests.scripted_drafts import Script


def greedy(max_tokens, **changes):
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, **changes)


def make(prompt_length=5, output=(), **params) -> Request:
    request = Request("r", list(range(10, 10 + prompt_length)), SamplingParams(**params))
    request.token_ids += output
    return request


def test_a_batch_with_drafts():
    decode, chunk, verify = make(6), make(9), make(5)
    for request, computed in ((decode, 5), (chunk, 2), (verify, 4)):
        request.num_computed_tokens, request.block_ids = computed, [3, 1, 4]
    work = [Scheduled(decode, 1), Scheduled(chunk, 3), Scheduled(verify, 3, (7, 8))]
    assert [item.completes for item in work] == [True, False, True]
    batch = Batch.build(work, block_size=4)
    assert batch.input_ids.tolist() == [15, 12, 13, 14, 14, 7, 8]
    assert batch.positions.tolist() == [5, 2, 3, 4, 4, 5, 6]
    assert batch.slot_mapping.tolist() == [5, 14, 15, 4, 4, 5, 6]
    assert batch.kv_lens == [6, 5, 7] and batch.query_lens == [1, 3, 3]
    assert batch.logits_indices.tolist() == [0, 3, 4, 5, 6]
    assert batch.logits_indices.dtype == torch.int64


def test_a_row_stands_for_a_request_that_has_its_drafts():
    seeded = dict(seed=3, min_tokens=4, max_tokens=9)
    row = SamplingRow(make(output=(1, 2), **seeded), (5, 6))
    request = make(output=(1, 2, 5, 6), **seeded)
    for name in ("num_output_tokens", "output_token_ids", "token_ids", "params", "stop_token_ids"):
        assert getattr(row, name) == getattr(request, name)
    assert row.uniform() == request.uniform() != row.request.uniform()
    assert row.uniform("accept") != row.uniform()


def one_hot(*token_ids) -> torch.Tensor:
    return 9.0 * torch.nn.functional.one_hot(torch.tensor(token_ids), VOCAB).float()


def result(request, drafts, logits, tokenizer=None):
    request.num_computed_tokens = request.num_tokens - 1
    scheduled = [Scheduled(request, 1 + len(drafts), drafts)]
    stream = CompletionStream(request, tokenizer)
    chosen = Sampler().choose(logits, rows_to_sample(scheduled))
    (progress,) = results_of(scheduled, chosen, [stream])
    before = list(request.token_ids)
    assert request.token_ids == before and not request.finished, "looking changes nothing"
    for _ in range(2):  # twice: a commit that was interrupted is repeated
        stream.commit(progress)
    return stream, progress


@pytest.mark.parametrize(
    "drafts, accepted", [((5, 6, 7), 3), ((5, 6, 8), 2), ((9, 6, 7), 0), ((5, 9, 7), 1), ((), 0)]
)
def test_drafts_count_up_to_the_first_wrong_one(drafts, accepted):
    request = make(temperature=0, max_tokens=20, logprobs=1)
    stream, progress = result(request, drafts, one_hot(5, 6, 7, 8)[: len(drafts) + 1])
    assert request.output_token_ids == [5, 6, 7, 8][: accepted + 1]
    assert [list(row)[0] for row in request.logprobs] == request.output_token_ids
    assert (progress.num_drafts, progress.num_accepted) == (len(drafts), accepted)
    assert (request.metrics.num_draft_tokens, request.metrics.num_accepted_tokens) == (
        len(drafts), accepted)  # fmt: skip
    flags = [True] * accepted + [False]
    assert stream.chunk().drafted == (flags if accepted else None)
    assert not request.finished


def test_a_run_of_accepted_drafts_ends_where_the_request_does(texty):
    ends = [
        (dict(stop_token_ids=[6]), (6,), [5, 6], "stop", "c"),
        (dict(stop_token_ids=[7], min_tokens=2), (7,), [5, 6, 7], "stop", "cd"),
        (dict(max_tokens=3), (), [5, 6, 7], "length", "cde"),
        (dict(max_tokens=1), (), [5], "length", "c"),
        (dict(stop="d"), (), [5, 6], "stop", "c"),
        (dict(stop="d", min_tokens=2), (), [5, 6, 7, 6], "stop", "cde"),
        (dict(stop=["f", "ce"]), (), [5, 6, 7, 6], None, "cded"),
    ]
    tokenizer = texty.engine().tokenizer
    for params, stop_ids, output, reason, text in ends:
        request = make(temperature=0, **{"max_tokens": 20, **params})
        request.stop_token_ids = frozenset(stop_ids)
        stream, progress = result(request, (5, 6, 7), one_hot(5, 6, 7, 6), tokenizer)
        assert (request.output_token_ids, request.finish_reason) == (output, reason), params
        got = stream.completion().text.replace(" ", "")
        assert got == text, params
        assert progress.num_accepted == min(3, len(output))


def test_spans_of_the_text_that_accepted_drafts_made(texty):
    """Texts are words here: b c d e f for tokens 4 to 8, with spaces between them."""
    tokenizer = texty.engine().tokenizer
    request = make(temperature=0, max_tokens=20)
    stream, _ = result(request, (5, 6), one_hot(5, 6, 7), tokenizer)
    chunk = stream.chunk()
    ((start, end),) = chunk.draft_spans
    assert chunk.text[start:end].split() == ["c", "d"] and chunk.text[end:].split() == ["e"]
    stream.mark_delivered()
    scheduled = [Scheduled(request, 3, (9, 9))]
    request.num_computed_tokens = request.num_tokens - 1
    chosen = Sampler().choose(one_hot(5, 6, 7), rows_to_sample(scheduled))
    (progress,) = results_of(scheduled, chosen, [stream])
    stream.commit(progress)
    assert stream.chunk().draft_spans is None and stream.chunk().text.split() == ["c"]
    # With stop strings a step's text is one piece: no draft alone made it.
    request = make(temperature=0, max_tokens=20, stop="zz")
    stream, _ = result(request, (5, 6), one_hot(5, 6, 7), tokenizer)
    assert stream.chunk().text.split() == ["c", "d", "e"] and stream.chunk().draft_spans is None


@pytest.mark.parametrize("bad", range(4))
def test_logits_that_are_not_finite_count_for_nothing(bad):
    """Whatever draft they belong to: the step is repeated without drafts, and only then the request may fail."""
    logits = one_hot(5, 6, 7, 8)
    logits[bad, 3] = float("nan")
    request = make(temperature=0, max_tokens=20)
    _, progress = result(request, (5, 6, 7), logits)
    assert request.output_token_ids == [] and request.finish_reason is None
    assert not progress.finite and not request.allows_drafts
    _, progress = result(request, (), logits[:1])
    assert request.finish_reason == ("error" if bad == 0 else None)


def test_what_a_rejected_draft_leaves_behind_reaches_nobody(llama):
    """A token that breaks the model as a draft: its K and V are removed, and the sequence goes on."""
    engine, prompt = llama.engine(), prompt_of(6, 1)
    expected = llama.greedy(prompt, 12)
    broken = min(set(range(VOCAB)) - {*prompt, *expected})
    engine.model.token_embedding.weight[broken] = float("nan")
    truth = {"r": [*expected[:3], *[broken] * 4, *expected[7:]]}
    engine.drafter = Script(engine, truth, most=6, wrong=0)
    engine.drafter.rng.randint = lambda low, high: high
    engine.add_request(prompt, greedy(12), "r")
    assert drain(engine)["r"].token_ids == expected
    assert engine.stats()["draft_tokens"] > 0 and engine.stats()["accepted_tokens"] == 0
    assert engine.kv_cache.k.isfinite().all() and engine.kv_cache.v.isfinite().all()


OPTIONS = {
    "gather": dict(attention="gather"),
    "fused": dict(attention="fused"),
    "contiguous": dict(kv_cache="contiguous"),
    "chunks": dict(max_num_batched_tokens=40, block_size=4, num_blocks=129),
    "no prefixes": dict(enable_prefix_caching=False, block_size=2, num_blocks=65),
}


@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", OPTIONS)
def test_drafts_change_no_token(tiny, name, wrong):
    for model in ("llama", "gpt2"):
        engine = tiny[model].engine(**OPTIONS[name])
        work = {f"r{i}": (prompt_of(3 + 5 * i, i), 6 + 3 * i) for i in range(5)}
        truth = {r: tiny[model].greedy(p, n) for r, (p, n) in work.items()}
        engine.drafter = Script(engine, truth, wrong=wrong)
        for request_id, (prompt, n) in work.items():
            engine.add_request(prompt, greedy(n), request_id)
        done = drain(engine)
        assert {r: o.token_ids for r, o in done.items()} == truth
        stats = engine.stats()
        positions = stats["accepted_by_position"]
        assert sum(positions) == stats["accepted_tokens"] <= stats["draft_tokens"]
        assert positions == sorted(positions, reverse=True) and len(positions) <= 4
        if wrong == 0:
            assert stats["accepted_tokens"] == stats["draft_tokens"] > 20
            assert positions[0] == stats["num_drafts"]
        metrics = [output.metrics for output in done.values()]
        assert sum(m.num_draft_tokens for m in metrics) == stats["draft_tokens"]
        assert sum(m.num_accepted_tokens for m in metrics) == stats["accepted_tokens"]
        # What is left in the prefix cache is right: the same prompts with their answers find it.
        if name == "chunks":
            longer = [[*p, *truth[r]] for r, (p, _) in work.items()]
            engine.drafter = None
            again = engine.generate(longer, greedy(4))
            assert sum(o.num_cached_tokens for o in again) > 0
            assert [o.token_ids for o in again] == [tiny[model].greedy(p, 4) for p in longer]
        check_books(engine), check_empty(engine)


def test_only_the_tokens_that_a_request_got_count_as_computed(llama):
    engine = llama.engine(block_size=2)
    truth = {"r": llama.greedy(prompt_of(6, 1), 16)}
    engine.drafter = Script(engine, truth, most=5, wrong=0.5, seed=3)
    engine.add_request(prompt_of(6, 1), greedy(16), "r")
    (request,) = engine.scheduler.waiting
    while engine.has_unfinished():
        engine.step()
        assert request.finished or request.num_computed_tokens == request.num_tokens - 1
    assert engine.stats()["blocks_cached"] == (request.num_tokens - 1) // 2


@pytest.mark.parametrize("params", [
    dict(temperature=1.3), dict(temperature=0.8, top_p=0.7), dict(top_k=5, min_p=0.05),
    dict(temperature=0.9, repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.3),
])  # fmt: skip
def test_seeded_text_is_the_same_with_drafts(llama, params):
    prompts = [prompt_of(4 + i, i) for i in range(4)]
    sampling = [
        SamplingParams(max_tokens=14, seed=i, ignore_eos=True, logprobs=2, **params)
        for i in range(4)
    ]
    plain = llama.engine().generate(prompts, sampling)
    engine = llama.engine()
    for i, (prompt, p) in enumerate(zip(prompts, sampling)):
        engine.add_request(prompt, p, f"r{i}")
    truth = {f"r{i}": o.token_ids for i, o in enumerate(plain)}
    engine.drafter = Script(engine, truth, wrong=0.2)
    done = drain(engine)
    assert {r: o.token_ids for r, o in done.items()} == truth
    assert engine.stats()["accepted_tokens"] > 0
    for i, output in enumerate(plain):
        for ours, theirs in zip(done[f"r{i}"].logprobs, output.logprobs, strict=True):
            assert list(ours) == list(theirs)
            assert np.allclose(list(ours.values()), list(theirs.values()), atol=1e-4)

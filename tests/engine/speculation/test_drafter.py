"""Where drafts are made, how long they are, and that they take nothing away from the rest of the step."""

from __future__ import annotations

import numpy as np
import pytest

from lib import SamplingParams
from lib.core.request import Request
from lib.engine.speculation.drafter import num_possible
from tests.helpers import VOCAB, check_empty, drain, held_blocks, prompt_of
from tests.scripted_drafts import ScriptedProposer

FIXED = {"method": "ngram", "adaptive": False}


def greedy(max_tokens, **changes):
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, **changes)


def engine_of(tiny, work, wrong=0.0, config=None, **options):
    """An engine whose drafts come from the answers, and the answers: {request id: token ids}."""
    engine = tiny.engine(speculative_config={**FIXED, **(config or {})}, **options)
    truth = {r: tiny.greedy(prompt, n) for r, (prompt, n) in work.items()}
    engine.drafter.proposer = ScriptedProposer(truth, wrong)
    for request_id, (prompt, n) in work.items():
        engine.add_request(prompt, greedy(n), request_id)
    return engine, truth


def test_right_drafts_save_steps(llama):
    engine, truth = engine_of(llama, {"r": (prompt_of(6, 1), 21)}, config={"num_speculative_tokens": 6})  # fmt: skip
    assert drain(engine)["r"].token_ids == truth["r"]
    stats = engine.stats()
    # The prompt's step drafts, too: 21 tokens in three steps of 6 + 1.
    assert (stats["steps"], stats["num_drafts"], stats["draft_tokens"]) == (3, 3, 18)
    assert stats["accepted_by_position"] == [3] * 6 and stats["mean_accepted_length"] == 7


def test_a_draft_never_reaches_beyond_max_tokens(llama):
    engine, truth = engine_of(llama, {"r": (prompt_of(6, 1), 8)}, max_model_len=14, config={"num_speculative_tokens": 20})  # fmt: skip
    assert drain(engine)["r"].token_ids == truth["r"]
    assert engine.stats()["draft_tokens"] == 7 and engine.stats()["steps"] == 1


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 8])
def test_drafts_take_what_is_left_of_the_budget(llama, budget):
    work = {f"r{i}": (prompt_of(4, i), 12) for i in range(3)}
    engine, truth = engine_of(llama, work, max_num_batched_tokens=budget)
    done, computed, drafted = {}, 0, 0
    while engine.has_unfinished():
        done.update({o.request_id: o.token_ids for o in engine.step()})
        stats = engine.stats()
        assert 1 <= stats["tokens_computed"] - computed <= budget
        computed, drafted = stats["tokens_computed"], stats["draft_tokens"]
    assert done == truth
    assert (drafted > 0) == (budget > 1)


WORK = {f"r{i}": (prompt_of(5 + 3 * i, i), 10 + i) for i in range(5)}


@pytest.mark.parametrize("scheduler", ["continuous", "static"])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("num_blocks", [17, 19, 24, 129])
def test_drafts_that_are_all_wrong_take_nothing_from_others(llama, num_blocks, caching, scheduler):
    """Then every step is the same as without drafts: the same schedule, the same blocks, the same preemptions."""
    options = dict(num_blocks=num_blocks, block_size=2, enable_prefix_caching=caching, scheduler=scheduler)  # fmt: skip
    plain = llama.engine(**options)
    for request_id, (prompt, n) in WORK.items():
        plain.add_request(prompt, greedy(n), request_id)
    engine, truth = engine_of(llama, WORK, wrong=1.0, **options)
    done = {}
    while engine.has_unfinished():
        plain.step()
        done.update({o.request_id: o.token_ids for o in engine.step()})
        for name in ("running", "waiting", "preemptions"):
            assert engine.stats()[name] == plain.stats()[name]
        assert len(held_blocks(engine)) == len(held_blocks(plain))
    assert done == truth and not plain.has_unfinished()
    assert engine.stats()["draft_tokens"] > 0 == engine.stats()["accepted_tokens"]
    assert (engine.stats()["preemptions"] > 0) == (num_blocks < 30)
    check_empty(engine)


def test_where_the_cache_has_less_room_drafts_are_shorter(llama):
    """5 prompt and 10 output tokens in 8 blocks of 2: the last steps have less room than 4 draft tokens."""
    other = {"other": (prompt_of(7, 2), 8)}
    engine, truth = engine_of(llama, {"r": (prompt_of(5, 1), 10), **other}, num_blocks=11, block_size=2)  # fmt: skip
    done = drain(engine)
    assert {r: o.token_ids for r, o in done.items()} == truth
    stats = engine.stats()
    assert 0 < stats["draft_tokens"] < 4 * stats["num_drafts"]


def test_no_draft_for_a_prompt_in_its_middle_or_after_logits_that_were_not_finite(llama):
    engine, _ = engine_of(llama, {"r": (prompt_of(20, 1), 12)}, max_num_batched_tokens=8)
    engine.step(), engine.step()
    assert engine.stats()["num_drafts"] == 0
    engine.step()  # 4 tokens of the prompt, and as many drafts
    assert engine.stats()["draft_tokens"] == 4
    (request,) = engine.scheduler.running
    request.allows_drafts = False
    drain(engine)
    assert engine.stats()["draft_tokens"] == 4


def test_a_draft_ends_where_the_request_may_not_follow():
    class Even:
        def allowed(self, output):
            return None if 99 in output else np.packbits(np.arange(VOCAB) % 2 == 0, bitorder="little")  # fmt: skip

    request = Request("r", [4, 5], SamplingParams(max_tokens=50, min_tokens=3), frozenset([6]))
    assert num_possible(request, (7, 8, 9, 10)) == 4
    assert num_possible(request, ()) == 0
    assert num_possible(request, (7, 8, 6, 10)) == 3, "after a token that ends the request"
    assert num_possible(request, (7, 6, 8, 10)) == 1, "before one that comes too early"
    assert num_possible(request, (7, 6, 8, 10), skip_forbidden=False) == 4
    assert num_possible(request, (7, 8, 6, 10), skip_forbidden=False) == 3
    request.bad_words_token_ids = [[7, 8], [12]]
    assert num_possible(request, (7, 8, 9)) == 1
    assert num_possible(request, (8, 7, 12)) == 2
    request.bad_words_token_ids = []
    request.constraint = Even()
    assert num_possible(request, (8, 10, 11, 12)) == 2
    assert num_possible(request, (13,)) == 0


def test_what_is_kept_goes_with_the_request(llama):
    engine = llama.engine(speculative_config={"method": "ngram", "prompt_lookup_min": 1}, max_num_seqs=2)  # fmt: skip
    kept, known = engine.drafter.proposer._texts, engine.drafter.adaptive._known
    for i in range(4):
        engine.add_request(prompt_of(6, i), greedy(12), f"r{i}")
    for _ in range(3):
        engine.step()
    assert {r.request_id for r in known} == {"r0", "r1"} >= {r.request_id for r in kept}
    engine.abort("r0"), engine.abort("r3")
    assert {r.request_id for r in known} == {"r1"}
    engine.check_integrity()
    drain(engine)
    assert not kept and not known


def test_integrity_covers_the_drafter(llama):
    engine = llama.engine(speculative_config=FIXED)
    engine.generate(prompt_of(4, 1), greedy(4))
    engine.drafter.proposer.propose([Request("gone", [1, 2, 1], SamplingParams())], [2])
    with pytest.raises(RuntimeError, match="gone"):
        engine.check_integrity()

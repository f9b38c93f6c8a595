"""Random traffic on random engines: the oracle's tokens, and books that balance after every step."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import SamplingParams
from tests.helpers import VOCAB, Tiny, check_books, check_empty, prompt_of


@dataclass(frozen=True)
class Job:
    arrival: int  # step before which it is queued
    prompt: int  # tokens
    seed: int
    max_tokens: int
    n: int
    stop_id: int | None
    abort_after: int | None  # steps after its arrival


jobs = st.lists(
    st.builds(
        Job,
        arrival=st.integers(0, 12),
        prompt=st.integers(1, 24),
        seed=st.integers(0, 5),
        max_tokens=st.integers(1, 14),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        stop_id=st.one_of(st.none(), st.integers(3, VOCAB - 1)),
        abort_after=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 20)),
    ),
    min_size=1,
    max_size=7,
)


def run(tiny: Tiny, work: list[Job], **options) -> None:
    """Play the traffic. A step may compute little, but never nothing, so the work there is bounds the steps."""
    engine = tiny.engine(**options)
    queued: dict[str, Job] = {}
    streamed: dict[tuple[str, int], list[int]] = {}
    finished: dict[str, object] = {}
    waiting = sorted(enumerate(work), key=lambda item: item[1].arrival)
    # With one token a step and every sequence recomputed for every other one's token:
    total = sum(job.n * (job.prompt + job.max_tokens) for job in work)
    bound = 20 + total * (1 + sum(job.n for job in work))
    for step in range(bound):
        while waiting and (waiting[0][1].arrival <= step or not engine.has_unfinished()):
            index, job = waiting.pop(0)
            params = SamplingParams(
                max_tokens=job.max_tokens,
                temperature=0,
                ignore_eos=True,
                n=job.n,
                stop_token_ids=None if job.stop_id is None else [job.stop_id],
            )
            queued[engine.add_request(prompt_of(job.prompt, job.seed), params, f"job-{index}")] = (
                job
            )
        for request_id, job in queued.items():
            if (
                job.abort_after is not None
                and step >= job.arrival + job.abort_after
                and request_id not in finished
            ):
                output = finished[request_id] = engine.abort(request_id)
                # With asynchronous scheduling it may have got tokens, and even its end, by then.
                for chunk in output.chunks:
                    streamed.setdefault((request_id, chunk.index), []).extend(chunk.token_ids)
                check_books(engine)
        if not engine.has_unfinished():
            assert engine.step() == []
            if waiting:
                continue
            break
        before, queued_work = engine.stats()["tokens_computed"], engine.scheduler.has_unfinished
        for output in engine.step():
            assert output.request_id not in finished, "progress after the end"
            for chunk in output.chunks:
                streamed.setdefault((output.request_id, chunk.index), []).extend(chunk.token_ids)
            if output.finished:
                finished[output.request_id] = output
        computed = engine.stats()["tokens_computed"] - before
        assert computed >= 1 or not queued_work, "a step without work"
        if engine.manager.retains:
            assert computed <= engine.options.max_num_batched_tokens
        check_books(engine)
    else:
        raise AssertionError(f"someone starves: {bound} steps were not enough")
    check_empty(engine)
    assert set(finished) == set(queued) and len(queued) == len(work)
    for request_id, job in queued.items():
        truth = tiny.answer(
            prompt_of(job.prompt, job.seed),
            job.max_tokens,
            () if job.stop_id is None else (job.stop_id,),
        )
        for completion in finished[request_id].completions:
            if completion.finish_reason == "abort":
                assert job.abort_after is not None
                assert completion.token_ids == truth[: len(completion.token_ids)]
            else:
                assert completion.token_ids == truth
                assert completion.finish_reason == (
                    "stop" if truth[-1] == job.stop_id else "length"
                )
                if all(c.finish_reason != "abort" for c in finished[request_id].completions):
                    assert streamed[request_id, completion.index] == truth, (
                        "chunks and result differ"
                    )


# Not adaptive: what is measured would make a failure hard to repeat. tests/engine/speculation has it, with given costs.
_NGRAM = {"method": "ngram", "prompt_lookup_min": 1, "adaptive": False}
SPECULATION = [None, *({**_NGRAM, "num_speculative_tokens": k} for k in (1, 3, 6))]

common = dict(
    work=jobs,
    name=st.sampled_from(["llama", "gpt2"]),
    scheduler=st.sampled_from(["continuous", "static"]),
    max_num_seqs=st.integers(1, 5),
    budget=st.sampled_from([1, 2, 3, 5, 8, 16, 40, 2048]),
    speculative_config=st.sampled_from(SPECULATION),
)


@settings(max_examples=30)
@given(**common)
def test_without_a_cache(tiny, work, name, scheduler, max_num_seqs, budget, speculative_config):
    run(
        tiny[name],
        work,
        kv_cache="none",
        scheduler=scheduler,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        speculative_config=speculative_config,
    )


@settings(max_examples=45)
@given(**common, spare=st.integers(0, 20))
def test_contiguous(tiny, work, name, scheduler, max_num_seqs, budget, speculative_config, spare):
    longest = max(job.prompt + job.max_tokens for job in work)
    run(
        tiny[name],
        work,
        kv_cache="contiguous",
        scheduler=scheduler,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        speculative_config=speculative_config,
        max_model_len=longest + spare,
    )


@settings(max_examples=80)
@given(**common, block_size=st.sampled_from([1, 2, 4, 16]), spare=st.integers(0, 6))
def test_paged_with_a_pool_barely_large_enough(
    tiny, work, name, scheduler, max_num_seqs, budget, speculative_config, block_size, spare
):
    longest = max(job.prompt + job.max_tokens for job in work)
    blocks = -(-longest // block_size) + 1 + spare
    run(
        tiny[name],
        work,
        kv_cache="paged",
        scheduler=scheduler,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        speculative_config=speculative_config,
        block_size=block_size,
        num_blocks=blocks,
    )


@settings(max_examples=10)
@given(**common, block_size=st.sampled_from([1, 2, 4, 16]))
def test_paged_and_read_in_place(
    tiny, work, name, scheduler, max_num_seqs, budget, speculative_config, block_size
):
    longest = max(job.prompt + job.max_tokens for job in work)
    run(
        tiny[name],
        work,
        kv_cache="paged",
        scheduler=scheduler,
        max_num_seqs=max_num_seqs,
        attention="auto",
        max_num_batched_tokens=budget,
        speculative_config=speculative_config,
        block_size=block_size,
        num_blocks=-(-longest // block_size) + 3,
    )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_oracle_can_tell(tiny, name):
    """These answers depend on every token of their prompt: a cache that loses or swaps one would be seen."""
    prompt = prompt_of(12, 1)
    exact = tiny[name].logits(prompt)
    for position in range(len(prompt)):
        changed = [*prompt[:position], (prompt[position] + 1) % VOCAB, *prompt[position + 1 :]]
        assert (tiny[name].logits(changed) - exact).abs().max() > 0.05

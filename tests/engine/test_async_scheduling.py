"""Asynchronous scheduling: the same tokens as without, though every step is launched before the one before it is read."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import SamplingParams
from lib.engine import sampling
from lib.engine.chosen_tokens import ChosenTokens
from tests.engine.test_engine_properties import jobs, run
from tests.engine.test_fake_cuda import ENGINES, SAMPLING, cuda, engine_on  # noqa: F401
from tests.engine.test_structured_outputs import KINDS, bytes_model  # noqa: F401
from tests.helpers import check_books, check_empty, drain, prompt_of

NOT_ARRIVED = -77
GREEDY = dict(temperature=0, ignore_eos=True)


class LateTokens(ChosenTokens):
    """Tokens that reach the host only when they are read: until then it holds NOT_ARRIVED."""

    def _send(self, token_ids):
        super()._send(token_ids)
        self._under_way = self._packed
        self._packed = torch.full_like(self._under_way, NOT_ARRIVED)

    def _arrived(self):
        self._packed = self._under_way
        return super()._arrived()


@pytest.fixture(scope="module", autouse=True)
def late_tokens():
    with patch.object(sampling, "ChosenTokens", LateTokens):
        yield


def asynchronous(tiny, **options):
    return tiny.engine(async_scheduling=True, **options)


class Events:
    """What an engine does, in order: ("launch", tokens of the step) and ("read", tokens chosen)."""

    def __init__(self, engine, monkeypatch) -> None:
        self.seen: list[tuple[str, int]] = []
        run_model, read = engine.runner.run, LateTokens.read

        def launch(batch):
            self.seen.append(("launch", sum(batch.query_lens)))
            return run_model(batch)

        def read_tokens(chosen):
            self.seen.append(("read", len(chosen.token_ids)))
            return read(chosen)

        monkeypatch.setattr(engine.runner, "run", launch)
        monkeypatch.setattr(LateTokens, "read", read_tokens)


common = dict(
    work=jobs,
    name=st.sampled_from(["llama", "gpt2"]),
    scheduler=st.sampled_from(["continuous", "static"]),
    max_num_seqs=st.integers(1, 5),
    max_num_batched_tokens=st.sampled_from([1, 2, 3, 5, 8, 16, 40, 2048]),
)


@settings(max_examples=40)
@given(**common, spare=st.integers(0, 20))
def test_contiguous(tiny, work, name, spare, **options):
    longest = max(job.prompt + job.max_tokens for job in work)
    options |= {"kv_cache": "contiguous", "max_model_len": longest + spare}
    run(tiny[name], work, async_scheduling=True, **options)


@settings(max_examples=80)
@given(
    **common,
    block_size=st.sampled_from([1, 2, 4, 16]),
    spare=st.integers(0, 6),
    enable_prefix_caching=st.booleans(),
)
def test_paged_with_a_pool_barely_large_enough(tiny, work, name, spare, **options):
    longest = max(job.prompt + job.max_tokens for job in work)
    options["num_blocks"] = -(-longest // options["block_size"]) + 1 + spare
    run(tiny[name], work, async_scheduling=True, **options)


def test_a_step_is_read_after_the_next_one_is_launched(llama, monkeypatch):
    engine = asynchronous(llama)
    events = Events(engine, monkeypatch)
    (output,) = engine.generate([prompt_of(5, 1)], SamplingParams(max_tokens=4, **GREEDY))
    assert output.token_ids == llama.greedy(prompt_of(5, 1), 4)
    launched, read = ("launch", 1), ("read", 1)
    assert events.seen == [("launch", 5), launched, read, launched, read, launched, read, read]
    assert engine.stats()["tokens_discarded"] == 0, "max_tokens is known beforehand"
    assert engine.stats()["steps"] == 4 and engine.stats()["tokens_computed"] == 5 + 3
    check_empty(engine)


def test_a_request_that_a_stop_token_ends_has_one_superfluous_row(llama):
    prompt, other = prompt_of(5, 1), prompt_of(6, 2)
    truth = llama.greedy(prompt, 6)
    at = min(i for i, t in enumerate(truth) if t == truth[3])
    engine = asynchronous(llama)
    stops = SamplingParams(max_tokens=20, stop_token_ids=[truth[3]], **GREEDY)
    answers = engine.generate([prompt, other], [stops, SamplingParams(max_tokens=9, **GREEDY)])
    assert answers[0].token_ids == truth[: at + 1] and answers[0].finish_reason == "stop"
    assert answers[1].token_ids == llama.greedy(other, 9)
    assert engine.stats()["tokens_discarded"] == 1
    assert engine.stats()["tokens_computed"] == 5 + at + 6 + 8
    check_empty(engine)
    engine.generate(prompt, stops)  # alone: the step in flight is of no use to any other request
    assert engine.stats()["tokens_discarded"] == 2 and not engine.has_unfinished()
    check_empty(engine)


def test_a_sequence_as_long_as_the_cache_never_runs_over(llama, monkeypatch):
    engine = asynchronous(llama, block_size=4, num_blocks=6, max_model_len=20, max_num_seqs=2)
    lengths, run_model = [], engine.runner.run
    watched = lambda batch: (lengths.extend(batch.kv_lens), run_model(batch))[1]  # noqa: E731
    monkeypatch.setattr(engine.runner, "run", watched)
    for seed in range(3):
        engine.add_request(prompt_of(6, seed), SamplingParams(max_tokens=14, **GREEDY))
    done = drain(engine)
    assert [len(output.token_ids) for output in done.values()] == [14] * 3
    assert max(lengths) == 19, "the last token is never computed"
    check_empty(engine)


REQUESTS = {
    **SAMPLING,
    "seeded": dict(temperature=1.2),
    "logit_bias": dict(logit_bias={5: 8.0, 9: -100.0}),
    "prompt_logprobs": dict(prompt_logprobs=2, logprobs=0, temperature=0),
    "completions": dict(n=3, temperature=1.5, logprobs=1),
    "stop": dict(stop=["d", "qa"], temperature=1.5),
    "stop in output": dict(stop=["d"], include_stop_str_in_output=True, temperature=1.5),
    "bad_words": dict(bad_words=["a", "k", "z"], temperature=1.5),
    "allowed": dict(allowed_token_ids=[5, 6, 7, 8], temperature=2.0),
    "late nucleus": dict(top_p=0.95, temperature=3.0),
    "late nucleus with logprobs": dict(min_p=1e-4, temperature=3.0, logprobs=2),
}


@pytest.mark.parametrize("how", REQUESTS)
def test_every_parameter_gives_what_it_gives_without(texty, how, monkeypatch):
    """Chunks of prompts, preemption and neighbours included. "late": the nucleus is wider than the candidates."""
    if how.startswith("late"):
        few_candidates(monkeypatch)
    prompts = [prompt_of(3 + 4 * seed, seed) for seed in range(5)]
    common = {"ignore_eos": True, **REQUESTS[how]}
    params = [SamplingParams(max_tokens=9 + seed, seed=seed, **common) for seed in range(5)]
    params[1] = SamplingParams(max_tokens=15, **GREEDY)  # a neighbour of another kind
    small = dict(block_size=4, num_blocks=15, max_num_batched_tokens=12)
    engine, plain = asynchronous(texty, **small), texty.engine(**small)
    ours, expected = engine.generate(prompts, params), plain.generate(prompts, params)
    for one, other in zip(ours, expected):
        for a, b in zip(one.completions, other.completions):
            assert a.token_ids == b.token_ids and a.text == b.text
            assert a.finish_reason == b.finish_reason
            _same_logprobs(a.logprobs, b.logprobs)
        _same_logprobs(one.prompt_logprobs, other.prompt_logprobs)
    assert engine.stats()["preemptions"] > 0 and plain.stats()["preemptions"] > 0
    if how.startswith("late"):
        assert engine.stats()["tokens_discarded"] > 0
    check_empty(engine)


@pytest.mark.parametrize("kind", KINDS)
def test_structured_outputs_are_those_without(bytes_model, kind):  # noqa: F811
    """The mask of a step is made after the step before it has been read."""
    params = [
        SamplingParams(max_tokens=30, temperature=t, seed=s, structured_outputs=KINDS[kind][0])
        for t, s in ((0.0, 0), (1.0, 1), (1.3, 2))
    ]
    prompts = [prompt_of(3 + seed, seed, 200) for seed in range(3)]
    engine = asynchronous(bytes_model)
    for one, other in zip(
        engine.generate(prompts, params), bytes_model.engine().generate(prompts, params)
    ):
        assert one.token_ids == other.token_ids and one.finish_reason == other.finish_reason
    check_empty(engine)


def few_candidates(monkeypatch) -> None:
    """Truncated sampling sorts four tokens first, which are often not the nucleus."""
    monkeypatch.setattr(sampling.Sampler._draw_truncated, "__defaults__", (4,))


def _same_logprobs(ours, expected) -> None:
    assert (ours is None) == (expected is None)
    for a, b in zip(ours or [], expected or [], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert list(a) == list(b)
            assert list(a.values()) == pytest.approx(list(b.values()), abs=1e-4)


def test_an_abort_reads_the_step_in_flight(llama):
    """The aborted request may have got one token more by then, and its neighbour loses nothing."""
    engine = asynchronous(llama)
    first, second = prompt_of(5, 1), prompt_of(7, 2)
    params = SamplingParams(max_tokens=8, **GREEDY)
    a, b = engine.add_request(first, params), engine.add_request(second, params)
    engine.step()
    aborted = engine.abort(a)
    assert aborted.finish_reason == "abort" and aborted.token_ids == llama.greedy(first, 2)
    check_books(engine)
    assert engine.stats()["requests_finished"] == 1 and engine.stats()["running"] == 1
    chunks = [t for o in engine.step() for c in o.chunks for t in c.token_ids]
    assert chunks == llama.greedy(second, 3)[1:], "the token that the abort has read, and the next"
    assert drain(engine)[b].token_ids == llama.greedy(second, 8)
    check_empty(engine)


def test_a_launch_that_fails_loses_nothing(llama, monkeypatch):
    engine = asynchronous(llama)
    healthy, calls = engine.runner.run, []

    def sometimes(batch):
        calls.append(len(batch.query_lens))
        if len(calls) in (1, 3, 4, 7):
            raise RuntimeError("out of memory")
        return healthy(batch)

    monkeypatch.setattr(engine.runner, "run", sometimes)
    ids = {}
    for seed in range(3):
        ids[engine.add_request(prompt_of(5, seed), SamplingParams(max_tokens=6, **GREEDY))] = seed
    done, failures = {}, 0
    while engine.has_unfinished():
        try:
            done |= {output.request_id: output for output in engine.step() if output.finished}
        except RuntimeError:
            failures += 1
            assert engine.stats()["running"] == 3, "nobody has to start again"
        check_books(engine)
    assert failures == 4
    for request_id, seed in ids.items():
        assert done[request_id].token_ids == llama.greedy(prompt_of(5, seed), 6)
    check_empty(engine)


def test_tokens_that_cannot_be_read_are_computed_again(llama, monkeypatch):
    engine = asynchronous(llama)
    a = engine.add_request(prompt_of(5, 1), SamplingParams(max_tokens=6, **GREEDY))
    b = engine.add_request(prompt_of(6, 2), SamplingParams(max_tokens=6, **GREEDY))
    engine.step()
    with monkeypatch.context() as broken:
        broken.setattr(LateTokens, "read", lambda chosen: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
        assert engine.abort(a).token_ids == llama.greedy(prompt_of(5, 1), 1)
        check_books(engine)
    assert drain(engine)[b].token_ids == llama.greedy(prompt_of(6, 2), 6)
    check_empty(engine)


def test_a_block_that_held_nan_is_clean_for_its_next_owner(llama):
    """The step in flight writes one token of the failed request more: to a block of its own, here."""
    engine = asynchronous(llama, block_size=1, num_blocks=24, enable_prefix_caching=False)
    prompt = prompt_of(6, 3)
    poison = llama.greedy(prompt, 3)[2]
    with torch.no_grad():
        engine.model.token_embedding.weight[poison] = float("nan")
    (output,) = engine.generate([prompt], SamplingParams(max_tokens=9, **GREEDY))
    assert output.finish_reason == "error"
    assert engine.kv_cache.k.isfinite().all() and engine.kv_cache.v.isfinite().all()
    check_empty(engine)


@pytest.mark.parametrize(
    "options, problem",
    [
        (dict(async_scheduling="yes"), "async_scheduling must be 'auto', True or False, got 'yes'"),
        (dict(async_scheduling=1), "async_scheduling must be 'auto', True or False, got 1"),
        (dict(async_scheduling=True, kv_cache="none"), "where kv_cache is 'none', got True"),
        (
            dict(async_scheduling=True, speculative_config={"method": "ngram"}),
            "async_scheduling must be 'auto' or False with speculative_config",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(llama, options, problem):
    with pytest.raises(ValueError, match=problem):
        llama.engine(**options)


def test_auto_is_on_where_there_is_something_to_overlap(llama, cuda):  # noqa: F811
    assert engine_on(llama, attention="gather")._in_flight is not None
    assert engine_on(llama, attention="gather", async_scheduling=False)._in_flight is None
    assert engine_on(llama, kv_cache="none")._in_flight is None
    drafts = {"method": "ngram", "adaptive": False}
    assert engine_on(llama, attention="gather", speculative_config=drafts)._in_flight is None
    assert llama.engine()._in_flight is None and asynchronous(llama)._in_flight is not None


@pytest.mark.parametrize("options", [o for n, o in ENGINES.items() if n != "none"])
def test_on_the_device_a_step_is_launched_before_the_wait(llama, cuda, monkeypatch, options):  # noqa: F811
    """One copy in and one wait per greedy step, and the wait comes after the next step's launch."""
    engine = engine_on(llama, **{"max_num_batched_tokens": 64, **options})
    order, run_model = [], engine.runner.run
    monkeypatch.setattr(
        engine.runner, "run", lambda batch: (order.append("launch"), run_model(batch))[1]
    )
    wait = torch.cuda.Event.synchronize
    monkeypatch.setattr(
        torch.cuda.Event, "synchronize", lambda event: (order.append("wait"), wait(event))[1]
    )
    for seed in range(3):
        engine.add_request(
            prompt_of(5 + seed, seed), SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
        )
    engine.step()
    while any(r.num_output_tokens < 2 for r in engine.scheduler.running):
        engine.step()  # until all decode, in the step in flight as well
    for _ in range(4):
        cuda.clear()
        order.clear()
        engine.step()
        assert order == ["launch", "wait"]
        assert sum(cuda.h2d.values()) == 1, dict(cuda.h2d)
        assert sum(cuda.syncs.values()) == 1, dict(cuda.syncs)


def test_a_late_nucleus_is_drawn_from_logits_that_a_replay_has_not_overwritten(
    llama,
    cuda,  # noqa: F811
    monkeypatch,
):
    few_candidates(monkeypatch)
    prompts = [prompt_of(8, seed) for seed in range(3)]
    how = SamplingParams(
        max_tokens=10, top_p=0.95, temperature=3.0, logprobs=2, seed=3, ignore_eos=True
    )
    engine = engine_on(llama, attention="fused", cuda_graphs=True)
    ours, expected = (
        engine.generate(prompts, how),
        llama.engine(linear="plain").generate(prompts, how),
    )
    assert cuda.replays > 0 and engine.stats()["tokens_discarded"] > 0
    for one, other in zip(ours, expected):
        assert one.token_ids == other.token_ids
        _same_logprobs(one.logprobs, other.logprobs)

"""Speculation changes no token: every kind of sampling, on engines of every kind, with random traffic."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lib import SamplingParams
from lib.engine.speculation.adaptive import AdaptiveLength
from lib.engine.speculation.step_cost import CostCurve, StepCost
from tests.helpers import check_books, check_empty, prompt_of
from tests.scripted_drafts import ScriptedProposer

SAMPLING = {
    "greedy": dict(temperature=0),
    "penalties": dict(temperature=0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2),
    "drawn": dict(temperature=1.2),
    "truncated": dict(temperature=0.9, top_p=0.8, top_k=20, min_p=0.01),
    "drawn with penalties": dict(temperature=0.8, repetition_penalty=1.2, frequency_penalty=0.5),
    "biased": dict(temperature=1.0, logit_bias={5: 4.0, 9: -3.0}),
}  # fmt: skip
COSTS = {
    "free": CostCurve([1, 1000], [1.0, 1.1]),
    "knee": CostCurve([1, 8, 16], [1.0, 1.1, 2.2]),
    "dear": CostCurve([1, 2], [1.0, 2.0]),
}
ENGINES = {
    "paged": dict(block_size=4, num_blocks=65),
    "tiny pool": dict(block_size=2, num_blocks=25),
    "tiny pool without prefixes": dict(block_size=2, num_blocks=25, enable_prefix_caching=False),
    "contiguous": dict(kv_cache="contiguous"),
    "nothing kept": dict(kv_cache="none"),
    "static": dict(scheduler="static", block_size=4, num_blocks=65),
    "fused": dict(attention="auto", block_size=4, num_blocks=33),
    "quantised": dict(quantization="int8", block_size=2, num_blocks=33),
}

jobs = st.lists(
    st.tuples(
        st.integers(0, 6),  # step before which it is queued
        st.integers(1, 16),  # prompt tokens
        st.booleans(),  # the prompt is repeated: something to copy
        st.integers(1, 14),  # max_tokens
        st.sampled_from(list(SAMPLING)),
        st.sampled_from([1, 1, 2]),  # n
        st.sampled_from([0, 0, 3, 9]),  # min_tokens
        st.sampled_from([None, None, [5, 9, 20, 30, 31, 32, 33, 40]]),  # stop_token_ids
        st.sampled_from([None, None, "d", ["ce", "b"]]),  # stop
        st.sampled_from([None, 0, 2]),  # logprobs
        st.sampled_from([None, None, None, 2, 5]),  # steps until it is aborted
    ),
    min_size=1,
    max_size=5,
)


def params_of(index, job):
    _, _, _, max_tokens, sampling, n, min_tokens, stop_ids, stop, logprobs, _ = job
    return SamplingParams(
        max_tokens=max_tokens, min_tokens=min(min_tokens, max_tokens), seed=index, n=n, stop=stop,
        stop_token_ids=stop_ids, logprobs=logprobs, ignore_eos=index % 2 == 0, **SAMPLING[sampling],
    )  # fmt: skip


def prompt_for(index, job):
    prompt = prompt_of(job[1], index)
    return prompt * 2 if job[2] else prompt


def play(engine, work):
    """{request id: completions} of all that was not aborted, in random traffic."""
    done, aborted = {}, set()
    for step in range(400):
        for index, job in enumerate(work):
            if job[0] == step:
                engine.add_request(prompt_for(index, job), params_of(index, job), f"r{index}")
            if job[-1] is not None and job[0] + job[-1] == step and f"r{index}" not in done:
                engine.abort(f"r{index}")
                aborted.add(f"r{index}")
        for output in engine.step():
            if output.finished:
                done[output.request_id] = output.completions
        check_books(engine)
        if step > 12 and not engine.has_unfinished():
            check_empty(engine)
            return {r: completions for r, completions in done.items() if r not in aborted}
    raise AssertionError("still unfinished")


def alike(one, other) -> bool:
    """The same text, and logprobs that differ by rounding alone."""
    same = (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)  # fmt: skip
    if not same or (one.logprobs is None) != (other.logprobs is None):
        return False
    for a, b in zip(one.logprobs or [], other.logprobs or [], strict=True):
        if list(a)[0] != list(b)[0] or max(abs(a[i] - b[i]) for i in a if i in b) > 1e-3:
            return False
    return True


@settings(max_examples=70)
@given(
    work=jobs,
    name=st.sampled_from(list(ENGINES)),
    num_drafts=st.integers(1, 7),
    budget=st.sampled_from([3, 8, 40, 2048]),
    max_num_seqs=st.integers(1, 4),
    cost=st.sampled_from([None, *COSTS]),
    wrong=st.sampled_from([None, 0.0, 0.2, 0.6]),  # None: copied drafts, else from the answers
)
def test_the_same_tokens(texty, work, name, num_drafts, budget, max_num_seqs, cost, wrong):
    options = dict(max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, **ENGINES[name])
    reference = texty.engine(num_blocks=129, quantization=options.get("quantization"))
    expected = reference.generate(
        [prompt_for(i, job) for i, job in enumerate(work)],
        [params_of(i, job) for i, job in enumerate(work)],
    )
    config = {"method": "ngram", "prompt_lookup_min": 1, "num_speculative_tokens": num_drafts}
    engine = texty.engine(speculative_config={**config, "adaptive": False}, **options)
    if cost is not None:
        engine.drafter.adaptive = AdaptiveLength(StepCost(COSTS[cost]))
    if wrong is not None:
        truth = {f"r{i}": output.token_ids for i, output in enumerate(expected)}
        engine.drafter.proposer = ScriptedProposer(truth, wrong)
    for request_id, completions in play(engine, work).items():
        for one, other in zip(expected[int(request_id[1:])].completions, completions, strict=True):
            assert alike(one, other), (request_id, one, other)
    stats = engine.stats()
    metrics = stats["accepted_by_position"]
    assert sum(metrics) == stats["accepted_tokens"] <= stats["draft_tokens"]
    assert len(metrics) <= num_drafts and metrics == sorted(metrics, reverse=True)


def test_the_property_is_not_empty(texty):
    """The traffic above does accept drafts, reject drafts and preempt."""
    work = [(i, 6, True, 14, "greedy", 1, 0, None, None, None, None) for i in range(5)]
    for wrong in (None, 0.2):
        config = {"method": "ngram", "prompt_lookup_min": 1, "adaptive": False}
        engine = texty.engine(speculative_config=config, **ENGINES["tiny pool"])
        if wrong is not None:
            truth = {f"r{i}": texty.greedy(prompt_for(i, job), 14) for i, job in enumerate(work)}
            engine.drafter.proposer = ScriptedProposer(truth, wrong)
        play(engine, work)
        stats = engine.stats()
        assert 0 < stats["accepted_tokens"] < stats["draft_tokens"] and stats["preemptions"] > 0

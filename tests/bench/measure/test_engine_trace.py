"""A trace counts what an engine really did."""

import pytest

from lib.bench.measure.engine_trace import Trace, continuous_steps, static_steps, trace
from lib.bench.measure.host_step import host_parts
from lib.bench.workloads import (
    Workload,
    equal_length,
    variable_length,
)
from lib.engine.llm import LLM


def engine(llama, **options) -> LLM:
    return LLM(
        str(llama.folder),
        device="cpu",
        dtype="float32",
        **{"kv_cache": "contiguous", "max_num_seqs": 4, "max_model_len": 200, **options},
    )


@pytest.mark.parametrize(
    "scheduler, predict", [("static", static_steps), ("continuous", continuous_steps)]
)
@pytest.mark.parametrize("slots", [1, 4, 5])
def test_a_trace_takes_the_predicted_steps(llama, scheduler, predict, slots):
    workload = variable_length(61, n=13)
    run = trace(engine(llama, scheduler=scheduler, max_num_seqs=slots), workload)
    assert len(run.steps) == predict(workload.max_tokens, slots)
    assert [len(o.token_ids) for o in run.outputs] == workload.max_tokens
    assert run.idle_slot_steps == run.slot_steps - sum(workload.max_tokens)
    assert all(max(step.slots.values()) < slots for step in run.steps)
    assert all(len(set(step.slots.values())) == len(step.slots) for step in run.steps)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 7},
        {"scheduler": "static", "max_num_batched_tokens": 7},
        {
            "kv_cache": "paged",
            "block_size": 8,
            "num_blocks": 26,
            "enable_prefix_caching": False,
        },
    ],
)
def test_a_trace_counts_each_token_that_the_engine_computed(llama, options):
    llm, workload = engine(llama, **options), variable_length(61, n=13)
    run = trace(llm, workload)
    stats = llm.stats()
    assert run.computed_tokens == stats["tokens_computed"] and len(run.steps) == stats["steps"]
    if stats["preemptions"] == 0:
        assert run.computed_tokens == sum(
            len(p) + n - 1 for p, n in zip(workload.prompts, workload.max_tokens)
        )
    if budget := options.get("max_num_batched_tokens"):
        assert max(sum(step.tokens.values()) for step in run.steps) == budget
    assert run.output_tokens == sum(workload.max_tokens)
    assert [len(run.gaps(i)) for i in range(len(workload))] == [n - 1 for n in workload.max_tokens]
    assert all(0 < seconds <= run.seconds for seconds in run.ttft)


def test_requests_arrive_when_they_are_told_to(llama):
    workload = Workload("w", [[1, 2]] * 3, [4, 4, 2])
    run = trace(engine(llama), workload, arrivals=[0, 2, 50])
    assert [sorted(step.tokens) for step in run.steps[:4]] == [[0], [0], [0, 1], [0, 1]]
    assert len(run.steps) == 8  # nobody waits for step 50 in an empty engine
    with pytest.raises(ValueError, match="arrivals must be one step per request, ascending"):
        trace(engine(llama), workload, arrivals=[2, 0, 0])


def test_an_engine_with_a_prefix_cache_is_refused(llama):
    llm = engine(llama, kv_cache="paged", num_blocks=26)
    with pytest.raises(ValueError, match="llm must have enable_prefix_caching False, got True"):
        trace(llm, equal_length(61, n=2))


def test_a_busy_engine_is_refused(llama):
    llm = engine(llama)
    llm.add_request([1, 2, 3])
    with pytest.raises(ValueError, match="no unfinished requests"):
        trace(llm, equal_length(61, n=2))


def test_equal_lengths_leave_nothing_to_gain():
    lengths = equal_length(61).max_tokens
    for slots in range(1, 25):
        assert static_steps(lengths, slots) == continuous_steps(lengths, slots)


def test_step_counts_by_hand():
    assert static_steps([5, 1, 1, 4], 2) == 5 + 4
    assert continuous_steps([5, 1, 1, 4], 2) == 6
    assert Trace(2, [], []).slot_steps == 0


def test_an_engine_whose_steps_overlap_is_refused(llama):
    llm = engine(llama, async_scheduling=True)
    assert llm.async_scheduling and not engine(llama).async_scheduling
    with pytest.raises(ValueError, match="llm must have async_scheduling False, got True"):
        trace(llm, equal_length(61, n=2))
    with pytest.raises(ValueError, match="llm must have async_scheduling False, got True"):
        host_parts(llm, 1)

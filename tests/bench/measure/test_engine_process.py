"""Engine processes behind a router: the same tokens as one engine, and one outcome per request when one is killed."""

from __future__ import annotations

from multiprocessing import Pipe

import psutil
import pytest

from lib import LLM, SamplingParams
from lib.bench.measure.engine_process import EngineProcess
from lib.bench.measure.routed_trace import run_trace
from lib.serving.fleet.prompt_names import prompt_names
from lib.serving.fleet.routing import LongestPrefix, RoundRobin

OPTIONS = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 4,
    "num_blocks": 200,
    "attention": "gather",
}


@pytest.fixture
def engines(llama):
    """Two processes with the tiny Llama."""
    options = {"model": str(llama.folder), "device": "cpu", **OPTIONS}
    found = [EngineProcess(1, **options) for _ in range(2)]
    try:
        for engine in found:
            engine.ready()
        yield found
    finally:
        for engine in found:
            engine.close()


def prompts_of(groups, each, shared=64, own=8):
    return [
        [1 + (group + 3 * i) % 50 for i in range(shared)] + [51 + (k + i) % 9 for i in range(own)]
        for k in range(each)
        for group in range(groups)
    ]


def test_the_replicas_answer_as_one_engine_and_share_prefixes_by_affinity(engines, llama):
    prompts = prompts_of(groups=4, each=4)
    llm = LLM(str(llama.folder), device="cpu", **OPTIONS)
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    one = [llm.generate([prompt], params)[0] for prompt in prompts]
    arrivals = [0.02 * i for i in range(len(prompts))]
    router = LongestPrefix(min_match=2)
    trace = run_trace(engines, router, prompts, arrivals, max_tokens=6)
    assert [r.token_ids for r in trace] == [o.token_ids for o in one]
    assert all(r.outcome == "completed" and r.at <= r.first <= r.last for r in trace)
    assert {r.replica for r in trace} == {0, 1}
    # Each text is at one replica, so all but its first prompt find it: as with one engine.
    assert sum(r.cached for r in trace) >= 0.9 * sum(o.num_cached_tokens for o in one) > 0
    for engine in engines:
        engine.reset()
    (again,) = run_trace(engines, RoundRobin(), prompts[:1], [0.0], max_tokens=1)
    assert again.cached == 0


def test_the_steps_of_a_process_are_those_of_its_requests(engines):
    engine, prompts = engines[0], prompts_of(groups=1, each=3)
    engine.steps()
    trace = run_trace([engine], RoundRobin(), prompts, [0.0, 1.5, 1.5], max_tokens=4)
    steps = engine.steps()
    assert engine.steps() == []
    computed = sum(len(p) for p in prompts) - sum(r.cached for r in trace)
    assert sum(step.prompt_tokens for step in steps) == computed
    assert sum(step.sequences for step in steps) == 3 * len(
        prompts
    )  # the first token is the prompt's
    assert all(step.num_tokens > 0 and step.seconds > 0 for step in steps)
    assert all(a.end <= b.start for a, b in zip(steps, steps[1:]))


def begun_at(trace, replica):
    return sum(r.replica == replica and r.begun for r in trace)


def test_a_killed_replica_fails_what_had_begun_and_nothing_else(engines):
    prompts = prompts_of(groups=24, each=1)
    trace = run_trace(
        engines,
        RoundRobin(),
        prompts,
        [0.0] * len(prompts),
        max_tokens=150,
        watch=lambda trace: begun_at(trace, 0) >= 2 and engines[0].kill(),
    )
    outcomes = [r.outcome for r in trace]
    assert outcomes.count("completed") + outcomes.count("failed") == len(prompts)
    assert all(r.replica == 0 and r.first > 0 for r in trace if r.outcome == "failed")
    assert 0 < outcomes.count("failed") <= OPTIONS["max_num_seqs"]
    moved = [r for r in trace if r.tries == 2]
    assert moved and all(r.replica == 1 and r.outcome == "completed" for r in moved)
    with pytest.raises(RuntimeError, match="no engine process is left"):
        engines[1].kill()
        run_trace(engines, RoundRobin(), prompts[:2], [0.0, 0.0], max_tokens=2)


class Scripted:
    """An engine in this process. One that answers does so at once; `takes`: requests that another one still takes."""

    def __init__(self, answers, takes=0):
        self.connection, self.own = Pipe()
        self.answers, self.takes = answers, takes
        if not answers:
            self.own.close()

    def add(self, index, prompt, max_tokens):
        if self.answers:
            self.own.send([("first", index, 0, 0.0), ("done", index, [7], 0.0)])
        elif self.takes == 0:
            raise BrokenPipeError
        self.takes -= 1

    def receive(self):
        if not self.answers:
            raise EOFError
        return self.connection.recv()


def test_two_engines_that_end_at_the_same_time_lose_no_request():
    """The second one is found dead when a request of the first one is sent to it, before its own end is read."""
    engines = Scripted(False, takes=2), Scripted(False, takes=1), Scripted(True)
    trace = run_trace(engines, RoundRobin(), [[1], [2], [3], [4]], [0.0] * 4, 1)
    assert [(r.outcome, r.replica) for r in trace] == [("completed", 2)] * 4


def test_the_other_ranks_of_an_engine_have_ended_when_it_is_closed(llama):
    """Otherwise they are not reaped, and their CPU time looks like that of another program."""
    options = {"model": str(llama.folder), "device": "cpu", **OPTIONS, "tensor_parallel_size": 2}
    with EngineProcess(1, **options) as engine:
        engine.ready()
        ranks = psutil.Process(engine.process.pid).children(recursive=True)
        assert ranks
    assert engine.process.returncode == 0
    assert not [rank for rank in ranks if rank.is_running()]


def test_an_engine_that_cannot_start_says_so(tmp_path):
    with EngineProcess(1, model=str(tmp_path / "nothing")) as engine:
        with pytest.raises(RuntimeError, match="ended with status 1 before it was ready"):
            engine.ready()
    with pytest.raises(ValueError, match="threads must be >= 1, got 0"):
        EngineProcess(0)


def test_names_agree_exactly_where_the_prompts_do():
    a, b = [1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 0, 9]
    assert [x == y for x, y in zip(prompt_names(a, 4), prompt_names(b, 4))] == [True, False]
    assert (
        len(prompt_names(a, 4)) == 2 and len(prompt_names(a[:8], 4)) == 1
    )  # the last one is computed
    assert prompt_names("the same text", 4)[0] == prompt_names("the sane text", 4)[0]
    assert prompt_names(a, 4, salt="x")[0] != prompt_names(a, 4)[0]
    assert prompt_names("", 4) == [] and len(prompt_names("\ud800 lone surrogate", 4)) == 3
    with pytest.raises(ValueError, match="size must be >= 1, got 0"):
        prompt_names(a, 0)

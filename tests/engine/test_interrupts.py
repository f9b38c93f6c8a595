"""KeyboardInterrupt at every line of a step in turn: nothing is lost, doubled or wedged, and every draw is the same."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

import lib
from lib import SamplingParams
from tests.helpers import check_books, check_empty, prompt_of

TRACED = tuple(
    str(Path(lib.__file__).parent / package) for package in ("core", "engine", "cache", "attention")
)
GREEDY = dict(temperature=0, ignore_eos=True)
SEEDED = dict(temperature=1.5, ignore_eos=True)
OPTIONS = {
    "preempted": dict(num_blocks=12, block_size=2, max_num_seqs=4, max_num_batched_tokens=9),
    "static": dict(scheduler="static", max_num_seqs=3, max_num_batched_tokens=16),
    "contiguous": dict(kv_cache="contiguous", max_num_seqs=3, max_num_batched_tokens=9),
    "none": dict(kv_cache="none", max_num_seqs=3, max_num_batched_tokens=24),
    "asynchronous": dict(
        async_scheduling=True, num_blocks=12, block_size=2, max_num_seqs=4, max_num_batched_tokens=9
    ),
    "drafts": dict(
        block_size=2,
        max_num_batched_tokens=20,
        speculative_config={"method": "ngram", "prompt_lookup_min": 1, "adaptive": False},
    ),
}


def work(stop: str) -> list[tuple[list[int], SamplingParams]]:
    return [
        (prompt_of(9, 1), SamplingParams(max_tokens=8, prompt_logprobs=1, **GREEDY)),
        (prompt_of(5, 2), SamplingParams(max_tokens=1, **GREEDY)),
        (prompt_of(4, 3), SamplingParams(max_tokens=7, n=2, seed=5, logprobs=2, **SEEDED)),
        ([3, 4, 5], SamplingParams(max_tokens=9, stop=stop, **GREEDY)),
        (prompt_of(3, 4), SamplingParams(max_tokens=5, seed=6, top_p=0.9, **SEEDED)),
    ]


class Interrupt:
    """Raises KeyboardInterrupt at the `at`-th line that a step of the engine executes in lib, over all its steps."""

    def __init__(self, engine, at: int | None = None) -> None:
        self.lines: list[tuple[str, int]] = []
        self._at, self._step = at, engine._step
        engine._step = self._traced

    def _traced(self):
        sys.settrace(self._trace)
        try:
            return self._step()
        finally:
            sys.settrace(None)

    def _trace(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(TRACED):
            return None
        if event == "line":
            self.lines.append((frame.f_code.co_filename, frame.f_lineno))
            if len(self.lines) - 1 == self._at:
                raise KeyboardInterrupt
        return self._trace


def run(tiny, options, at=None):
    """(what each request answered, the lines executed, preemptions). The work is queued in two parts."""
    engine = tiny.engine(**options)
    interrupt, done, chunks, interrupts = Interrupt(engine, at), {}, {}, 0
    jobs = work(stop="d")
    for i, (prompt, params) in enumerate(jobs[:3]):
        engine.add_request(prompt, params, f"r{i}")
    for step in range(200):
        if step == 2:
            for i, (prompt, params) in enumerate(jobs[3:], 3):
                engine.add_request(prompt, params, f"r{i}")
        if not engine.has_unfinished():
            break
        try:
            outputs = engine.step()
        except KeyboardInterrupt:
            outputs, interrupts = [], interrupts + 1
        check_books(engine)
        for output in outputs:
            for chunk in output.chunks:
                tokens, texts, logprobs, _ = chunks.get(
                    (output.request_id, chunk.index), ([], [], [], 0)
                )
                chunks[output.request_id, chunk.index] = (
                    tokens + chunk.token_ids,
                    texts + [chunk.text],
                    logprobs + (chunk.logprobs or []),
                    chunk.finish_reason,
                )
            if output.finished:
                assert output.request_id not in done
                done[output.request_id] = output
    assert not engine.has_unfinished(), "the engine is wedged"
    assert interrupts == (at is not None)
    check_empty(engine)
    answers = {}
    for request_id, output in done.items():
        for c in output.completions:
            tokens, texts, logprobs, reason = chunks[request_id, c.index]
            assert (tokens, "".join(texts), reason) == (c.token_ids, c.text, c.finish_reason)
            assert c.logprobs is None or (logprobs == c.logprobs and len(logprobs) == len(tokens))
            answers[request_id, c.index] = (
                c.token_ids,
                c.text,
                c.finish_reason,
                c.logprobs and [list(row) for row in c.logprobs],
                output.prompt_logprobs and [row and list(row) for row in output.prompt_logprobs],
            )
    assert engine.stats()["requests_finished"] == len(answers) == 6
    return answers, interrupt.lines, engine.stats()["preemptions"]


@pytest.mark.parametrize("name", OPTIONS)
def test_an_interrupt_at_any_line_of_a_step_changes_no_answer(texty, name):
    expected, lines, preemptions = run(texty, OPTIONS[name])
    assert expected["r0", 0][0] == texty.greedy(prompt_of(9, 1), 8)
    assert expected["r3", 0][2] == "stop"
    assert [row and row[0] for row in expected["r0", 0][4]] == [None, *prompt_of(9, 1)[1:]]
    assert (preemptions > 0) == ("num_blocks" in OPTIONS[name])
    occurrences: dict[tuple[str, int], list[int]] = {}
    for at, line in enumerate(lines):
        occurrences.setdefault(line, []).append(at)
    rng = random.Random(name)
    assert len(occurrences) > 200
    chosen = [rng.choice(where) for where in occurrences.values()]
    chosen = rng.sample(chosen, min(len(chosen), 300 if name == "preempted" else 60))
    for at in sorted(chosen):
        answers, _, _ = run(texty, OPTIONS[name], at)
        assert answers == expected, f"interrupted at {lines[at]}"


def test_an_interrupted_generate_leaves_the_others_and_frees_its_own(texty):
    """Every line in turn, as above, of a generate beside a request that somebody else has queued."""
    expected = texty.greedy(prompt_of(6, 1), 12)

    def play(at=None):
        engine = texty.engine()
        engine.add_request(prompt_of(6, 1), SamplingParams(max_tokens=12, **GREEDY), "other")
        interrupt = Interrupt(engine, at)
        try:
            engine.generate([[7], [8, 9]], SamplingParams(max_tokens=3, n=2, **GREEDY))
            assert at is None
        except KeyboardInterrupt:
            assert at is not None
        num_lines = len(interrupt.lines)
        check_books(engine)
        assert engine.stats()["running"] + engine.stats()["waiting"] == 1
        outputs = []
        while engine.has_unfinished():
            outputs += engine.step()
        assert outputs[-1].token_ids == expected and len(outputs[-1].token_ids) == 12
        assert [t for o in outputs for c in o.chunks for t in c.token_ids] == expected
        check_empty(engine)
        return num_lines

    for at in random.Random(0).sample(range(play()), 40):
        play(at)

"""The waterfall of a step: its sentences follow the parts, whichever side is longer, and a missing part is said."""

from __future__ import annotations

import pytest

from lib import SamplingParams
from lib.bench.findings.launch_overhead import overhead_host as words
from lib.bench.measure.host_step import PARTS, host_parts
from lib.bench.records.files import Run
from tests.helpers import check_empty, drain, prompt_of


def run_of(device, host=(1e-4, 2e-4, 3e-4, 3e-4, 1e-4), without=()):
    columns = {"batch": [1, 64], "device": [device, device]}
    columns |= {part: [h, 10 * h] for part, h in zip(PARTS, host) if part not in without}
    series = {"unit": "s", "params": {}, "seed": 0, "columns": columns, "samples": {}}
    return Run({"measurements": {words.HOST: series}})


def test_the_longer_side_sets_the_pace():
    said = words.asynchronous(run_of(device=3e-3))
    first, batch, last = said["async_finding"].partition("Batch 64: ")
    assert first.startswith("Batch 1: the host needs 1 ms") and "an H100 3 ms" in first
    assert "at least 3.70 ms, side by side 3 ms" in first, "the sampler's launch is hidden anyway"
    assert "is hidden behind the device's" in first
    assert batch and "sets the pace" in last
    assert "10 ms, no gain: " in last and "3 ms, a gain of 23 %: " in first
    found = words.floor(run_of(device=3e-3), -1)
    assert (found.host, found.side_by_side) == pytest.approx((10e-3, 10e-3))
    assert found.one_by_one == pytest.approx(10e-3), "3 ms each of device and sampler's launch"


def test_the_largest_part_is_named():
    said = words.asynchronous(run_of(device=1e-3, host=(1e-4, 1e-4, 1e-4, 1e-4, 6e-4)))
    assert "'hand out' with 60 %" in said["async_finding"]


@pytest.mark.parametrize("without", PARTS)
def test_a_missing_part_is_said(without):
    for sentence in words.asynchronous(run_of(1e-3, without=(without,))).values():
        assert "not measured" in sentence or "missing" in sentence or "no " in sentence.lower()
    assert words.floor(Run({"measurements": {}}), 0) is None


def test_the_parts_of_a_step_are_timed_and_the_engine_is_as_before(llama):
    engine = llama.engine()
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    for seed in range(3):
        engine.add_request(prompt_of(4, seed), params)
    engine.step()
    found = host_parts(engine, 4)
    assert list(found) == list(PARTS) and all(len(times) == 4 for times in found.values())
    assert all(seconds > 0 for times in found.values() for seconds in times)
    assert all(len(output.token_ids) == 12 for output in drain(engine).values())
    check_empty(engine)
    assert engine.generate(prompt_of(4, 0), params)[0].token_ids == llama.greedy(
        prompt_of(4, 0), 12
    )
    with pytest.raises(RuntimeError, match="a step without work"):
        host_parts(engine, 1)


def test_the_figure_has_the_batch_that_gains_most_or_says_that_none_does():
    gains = run_of(device=3e-3)
    assert words.drawn_row(gains) == 0, "batch 64 gains nothing"
    assert "batch 1, the one that gains the most" in words.drawn(gains)["drawn_finding"]
    nothing = run_of(device=1e-5)
    said = words.drawn(nothing)["drawn_finding"]
    assert words.drawn_row(nothing) == -1
    assert said.endswith(
        "nothing is gained: the device's work is over before the sampler is launched."
    )
    long = words.drawn(run_of(device=100.0))["drawn_finding"]
    assert long.endswith("where nothing is gained."), "the host's work is a small part"
    assert "not measured" in words.drawn(Run({"measurements": {}}))["drawn_finding"]

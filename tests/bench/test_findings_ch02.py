"""Chapter 2's sentences say what the numbers say, whichever they are; its models of a step are right at their corners."""

import json
from pathlib import Path

import pytest

from lib.bench.findings.kv_cache import ch02_kv_cache as ch02
from lib.bench.findings.kv_cache import kv_floor, kv_steps, kv_throughput, kv_work
from lib.bench.measure import counts
from lib.bench.measure.data_sheets import H100, LLAMA_7B
from lib.bench.measure.step_model import StepModel, first_length, rate_between
from lib.bench.records.files import Run, reference
from lib.models.checkpoint import GPT2_CONFIG

# The record for which these tests were written: a new recording says other things.
FROZEN = Path(__file__).with_name("frozen")

STEPS = "step_by_length"


@pytest.fixture
def data():
    return json.loads((FROZEN / "02_kv_cache.json").read_text())


def columns(data, name=STEPS):
    """A measurement's columns, to be changed: its raw samples go, since they would count instead."""
    data["measurements"][name]["samples"] = {}
    return data["measurements"][name]["columns"]


def with_floor(data, one_token, products):
    """The record with the fixed cost and its products, in seconds."""
    series = {"pass": [""], "one_token": [one_token], "products": [products], "bound": [0.0135]}
    data["measurements"]["floor"] = {
        "unit": "s", "params": {}, "seed": 0, "columns": series, "samples": {},
    }  # fmt: skip
    return Run(data)


def with_steps(data, model, kept=0.0):
    """The record with the steps without a cache that a model gives, and steps with one that take the fixed cost."""
    series = columns(data)
    series["no_cache"] = [model.without(n) for n in series["length"]]
    series["kv_cache"] = [model.fixed + kept * n for n in series["length"]]
    return Run(data)


def model(overlap, fixed=0.04, rate=2e11):
    return StepModel(GPT2_CONFIG, fixed, rate, 4e10, overlap)


def test_costs_add_or_the_larger_counts():
    added, larger = model(False), model(True)
    work = counts.prefill_flops(GPT2_CONFIG, 512) / 2e11
    one = counts.prefill_flops(GPT2_CONFIG, 1) / 2e11
    assert added.without(1) == larger.without(1) == 0.04
    assert added.without(512) == pytest.approx(0.04 + work - one)
    assert larger.without(512) == pytest.approx(work)
    assert larger.gain(10, 10) < 1.001 < added.gain(10, 10)
    n = added.factor_at(2)
    assert added.without(n) >= 2 * added.kept(n) and added.without(n - 1) < 2 * added.kept(n - 1)
    assert added.emerges_at() < larger.emerges_at()


def test_a_model_may_have_no_length_and_no_rate():
    assert (
        model(True, fixed=1e6).factor_at(2) is None and model(True, fixed=1e6).emerges_at() is None
    )
    assert first_length(lambda n: n >= 7) == 7 and first_length(lambda n: False) is None
    assert rate_between(GPT2_CONFIG, 1, 0.04, 512, 0.04) is None


@pytest.mark.parametrize("overlap, kind", [(False, "sum"), (True, "larger")])
def test_the_model_that_made_the_steps_is_found_again(data, overlap, kind):
    run = with_steps(data, model(overlap))
    found = kv_steps.fit(run)
    assert found.kind == kind
    said = ch02.render(run)["fit_finding"]
    assert ("as assumed" in said) == (kind == "sum") and (
        "against the assumption" in said
    ) == overlap
    broke = ch02.render(run)["broke_model_finding"]
    assert ("Costs add where one processor" in broke) == (kind == "sum")


def test_steps_that_neither_model_describes(data):
    columns(data)["no_cache"][2] = 0.4
    assert kv_steps.fit(Run(data)).kind == "cannot tell"  # both are far off
    assert "do not tell the two apart" in ch02.render(Run(data))["fit_finding"]
    columns(data)["no_cache"][-1] = 0.001  # a long pass that is faster than a short one has no rate
    assert kv_steps.fit(Run(data)).kind == "missing"


def test_the_recorded_fixed_cost_is_a_slow_reading(data):
    cause = kv_floor.floor_cause(Run(data))
    assert cause.kind == "products" and "not on starting" in cause.text
    assert "On this machine that is wrong." in ch02.render(Run(data))["broke_cause_finding"]


@pytest.mark.parametrize(
    "one_token, products, kind",
    [(0.041, 0.038, "products"), (0.041, 0.012, "around"), (0.041, 0.0205, "both"), (0.0136, 0.0135, "bytes"),
     (0.041, 0.06, "cannot tell"), (None, 0.03, "products")],
)  # fmt: skip
def test_the_fixed_cost_is_blamed_on_what_was_timed(data, one_token, products, kind):
    cause = kv_floor.floor_cause(with_floor(data, one_token, products))
    assert cause.kind == kind
    assert ("starting each of them" in cause.text) == (kind == "around")


def test_a_gpu_overlaps_and_its_products_include_their_starting(data):
    data["fingerprint"]["hardware"]["kind"] = "cuda"
    run = with_floor(data, 0.041, 0.038)
    assert kv_steps.model_kind(run) == "larger"
    assert kv_floor.floor_cause(run).kind == "cannot tell"
    assert "The two overlap" in ch02.render(run)["floor_model_finding"]


def test_the_model_of_added_costs_foretells_the_recorded_gains(data):
    found = ch02.render(Run(data))["gain_finding"]
    assert found.count("as predicted") == 3
    old = [p for p in ch02.predictions(Run(data)) if "the larger of" in p.claim]
    assert old and {p.verdict for p in old} == {"the prediction failed"}
    assert all(p.why == "nothing overlaps: the two costs add" for p in old)


def test_the_published_gains_follow_from_the_other_table():
    said = kv_throughput.published_run(reference())
    assert said["published_gain_finding"].count("as predicted") == 3
    assert "at most 3 %" in said["published_model_finding"]


@pytest.mark.parametrize("kept, flat", [(0.0, True), (1e-3, False)])
def test_a_flat_step_is_called_flat(data, kept, flat):
    said = ch02.render(with_steps(data, model(False), kept))["growth_finding"]
    assert ("nearly flat, as predicted" in said) == flat
    assert ("the prediction of a flat curve failed" in said) != flat


def test_a_halving_outside_the_measured_lengths_is_no_missing_value(data):
    series = columns(data)
    series["no_cache"] = [1.1 * t for t in series["kv_cache"]]
    never = [p for p in ch02.predictions(Run(data)) if "halves" in p.claim][0]
    assert never.verdict == "the prediction failed" and "at no length up to 512" in never.row()[2]
    series["no_cache"] = [9 * t for t in series["kv_cache"]]
    before = [p for p in ch02.predictions(Run(data)) if "halves" in p.claim][0]
    assert (
        before.verdict == "the prediction failed" and "already at the shortest" in before.row()[2]
    )


def test_halving_lies_between_two_measured_lengths(data):
    found = kv_steps.halving(Run(data)[STEPS])
    assert found.kind == "at" and 32 < found.ratio < 64


def test_products_that_take_longer_than_their_step_say_nothing(data):
    columns(data)["products"] = [0.04, None, None, None, None, None, None, None, 0.9]
    assert "says nothing about them" in ch02.render(Run(data))["step_products_finding"]
    columns(data)["products"][-1] = 0.54
    assert "almost all (97 %) of the longest" in ch02.render(Run(data))["step_products_finding"]


def test_two_measurements_of_one_step_are_compared(data):
    run = Run(data)
    assert kv_work.same_step(run, run).kind == "about"
    columns(data, "latency_by_prompt")["further_no_cache"][-1] = 2.4
    assert kv_work.same_step(run, run).kind == "several"


def test_the_answer_is_judged_by_its_turns(data):
    assert "not measured here" in ch02.render(Run(data))["answer_finding"]
    turns = {"no_cache": [[0.1, 0.1]] * 4, "kv_cache": [[0.1, 0.1]] + [[0.02, 0.02]] * 3}
    data["measurements"]["answer_by_step"] = {
        "unit": "s", "params": {}, "seed": 0, "samples": {k: v for k, v in turns.items()},
        "columns": {"step": [1, 2, 3, 4], **{k: [s[0] for s in v] for k, v in turns.items()}},
    }  # fmt: skip
    said = ch02.render(Run(data))
    assert "2.5 times as fast" in said["answer_finding"] and "5 times" in said["answer_finding"]
    assert "about the same time" in said["first_step_finding"]


def test_one_realistic_setting_by_the_same_counts():
    assert 6.7e9 < counts.parameters(LLAMA_7B) < 6.8e9
    assert counts.kv_bytes_per_token(LLAMA_7B, "bfloat16") == 2**19
    assert H100.ridge("bfloat16") == pytest.approx(295.2, abs=0.1)
    assert "299 tokens" in kv_work.realistic()["realistic_finding"]


def test_no_gain_is_said_where_there_is_none():
    said = ch02.render(Run({"measurements": {}}))
    assert said["gain_finding"] == "The gain or its prediction was not measured here."
    assert "a step" in said["fit_finding"].lower() and "was not measured" in said["fit_finding"]

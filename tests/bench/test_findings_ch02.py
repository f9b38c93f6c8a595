"""Chapter 2's sentences say what the numbers say, whichever they are; its models of a step are right at their corners."""

import json
from pathlib import Path

import pytest

from lib.bench.findings.kv_cache import ch02_kv_cache as ch02
from lib.bench.findings.kv_cache import kv_answer, kv_floor, kv_steps, kv_throughput, kv_work
from lib.bench.findings.kv_cache.kv_by_length import bounds_halve, halved_by_bounds
from lib.bench.findings.shown import Shown
from lib.bench.measure import counts
from lib.bench.measure.data_sheets import H100, LLAMA_7B
from lib.bench.measure.roofline import Roofline
from lib.bench.measure.step_model import StepModel, first_length, rate_between
from lib.bench.records.files import Run, read_records, reference
from lib.bench.records.record import Record
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


@pytest.mark.parametrize(
    "kept, verdict",
    [(0.0, "as predicted"), (1.5e-5, "a little above"), (1e-3, "the prediction failed")],
)
def test_the_growth_with_a_cache_is_judged_by_the_model(data, kept, verdict):
    run = with_steps(data, model(False), kept)
    assert f"beside the model's: {verdict}" in ch02.render(run)["growth_finding"]
    assert ch02.predictions(run)[0].verdict == verdict


def test_a_step_with_a_cache_may_go_up_and_down_without_growing(data):
    run = with_steps(data, model(False))
    columns(data)["kv_cache"] = [0.040, 0.044, 0.039, 0.043, 0.041, 0.044, 0.039, 0.042, 0.041]
    assert "goes up and down" in ch02.render(run)["growth_finding"]
    assert ch02.predictions(run)[0].verdict == "as predicted"
    series = data["measurements"][STEPS]
    series["samples"] = {"kv_cache": [[0.03, 0.04, 0.06]] * 9}
    assert ch02.predictions(run)[0].verdict == "this run cannot tell"
    series["samples"], series["columns"]["kv_cache"] = {}, [None] * 9
    assert ch02.predictions(run)[0].verdict == "was not measured here"


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


def test_products_that_read_at_the_ceiling_are_not_called_slow(data):
    cause = kv_floor.floor_cause(with_floor(data, 0.022, 0.0135))
    text = cause.text
    assert cause.kind == "bytes"
    assert "near the ceiling" in text and "slow" not in text


@pytest.mark.parametrize(
    "one_token, said",
    [
        (0.02, "Here it is not"),
        (0.0136, "Here it is not"),
        (0.041, "On this machine that is wrong"),
    ],
)
def test_a_rule_of_twice_the_bound_is_judged_only_where_it_applies(data, one_token, said):
    broke = ch02.render(with_floor(data, one_token, 0.95 * one_token))["broke_cause_finding"]
    assert said in broke and ("On this machine that is" in broke) == (one_token > 0.03)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_lesson_of_the_two_models_fits_the_machine(data, kind, overlap):
    data["fingerprint"]["hardware"]["kind"] = kind
    said = ch02.render(with_steps(data, model(overlap)))["broke_model_finding"]
    assert ("Costs add where one processor" in said) == (kind == "cpu" and not overlap)
    assert ("although a second device computes" in said) == (kind == "cuda" and not overlap)
    assert ("after all" in said) == (kind == "cpu" and overlap)


@pytest.mark.parametrize("late", [False, True])
def test_a_cause_fits_the_direction_of_its_deviation(data, late):
    run = with_steps(data, model(False, rate=1e12 if late else 5e10))
    halved = [p for p in ch02.predictions(run) if "halves" in p.claim or "the same" in p.claim]
    for found in halved[1:3]:
        assert (found.why in ("", "no cause was measured")) == (found.ratio > 1 or not found.ratio)
    if late:
        assert halved[2].ratio > 1


def test_a_gain_below_its_prediction_is_not_blamed_on_costs_that_add(data):
    run = with_steps(data, model(False))
    series = columns(data, "throughput_by_generated")
    series["kv_cache"] = [0.5 * rate for rate in series["no_cache"]]
    gains = [p for p in ch02.predictions(run) if p.claim.startswith("gain") and "larger" in p.claim]
    assert gains and all(p.ratio < 1 and p.why == "no cause was measured" for p in gains)


def test_a_gain_is_that_of_the_rates_on_the_page(data):
    series = data["measurements"]["throughput_by_generated"]
    row = len(series["columns"]["generated"]) - 1
    series["samples"] = {
        "no_cache": [[]] * row + [[8.0, 10.0]],
        "kv_cache": [[]] * row + [[24.0, 26.0]],
    }
    least, middle, most = kv_throughput.gains(Run(data))[-1]
    assert (least, middle, most) == (2.6, 25 / 9, 3.0)


def test_a_pass_that_never_exceeds_its_fixed_cost_has_no_length(data):
    run = with_steps(data, model(True, fixed=10.0, rate=1e15))
    columns(data)["no_cache"][-1] = 10.001
    said = kv_throughput.pays(run, reference())["pays_finding"]
    assert "from more than 1,024 tokens on" in said and "pays later here" in said


@pytest.mark.parametrize(
    "rate, moved",
    [(0.3, "shorter"), (1.0, "shorter"), (2.0, "stays about"), (5.0, "longer"), (None, "was not")],
)
def test_the_crossover_in_bfloat16_follows_the_rate(rate, moved):
    flops = {"float32": 1.6e11} | ({"bfloat16": rate * 1.6e11} if rate else {})
    found = kv_work.crossover(Roofline("cpu", 3e10, flops))["bf16_crossover_finding"]
    assert moved in found
    assert "was not" in kv_work.crossover(None)["bf16_crossover_finding"]


@pytest.mark.parametrize(
    "agree, said",
    [(0, "the first is a wrong one"), (1, "the first is the only right"), (2, "the first 2 are the right"),
     (6, "All 6 tokens are the right")],
)  # fmt: skip
def test_a_shifted_answer_is_described_as_it_is(agree, said):
    found = kv_answer.shifted(agree, 6)["shifted_finding"]
    assert said in found and ("The comparison with the oracle does" in found) == (agree < 6)


def test_gemv_is_the_vocabulary_matrix_only_where_there_was_one(data):
    assert "the vocabulary matrix" in ch02.render(Run(data))["profile_finding"]
    found = columns(data, "profile")
    found["no_cache"][found["family"].index("gemv")] = 0.0
    assert "the vocabulary matrix" not in ch02.render(Run(data))["profile_finding"]


def test_a_profile_that_was_not_taken_has_no_share_of_nothing(data):
    found = columns(data, "profile")
    found["kv_cache"] = [None] * len(found["family"])
    assert "not measured here" in ch02.render(Run(data))["profile_finding"]


def test_one_token_is_no_plural():
    assert [kv_steps.token_count(n) for n in (1, 2, None)] == [
        "1 token",
        "2 tokens",
        "more than 1,024 tokens",
    ]


@pytest.mark.parametrize(
    "here, words", [(18, "at 18 tokens."), (1, "at 1 token."), (None, "at more than 1,024 tokens.")]
)
def test_bounds_of_two_runs_are_told_apart(here, words):
    """A disturbed copy's ceilings give another length than those of the record that the page quotes below."""
    (run,) = [run for run in read_records("02") if run.slug == "amd-epyc-2core"]
    own = halved_by_bounds(here, run_of_this_copy())["halved_bound_finding"]
    assert own == f"By these bounds the cache halves the time of a step {words}"
    quoted = bounds_halve(run)
    said = halved_by_bounds(here, Shown(run))["halved_bound_finding"]
    assert (
        said.startswith(own)
        and f"of the recorded run, which the next sections quote, it does so at {quoted} tokens."
        in said
    )
    assert halved_by_bounds(quoted, Shown(run))["halved_bound_finding"].count("halves") == 1


def run_of_this_copy():
    return Shown(
        Record("02_kv_cache", model="gpt2", weights="random", dtype="float32", device="cpu")
    )

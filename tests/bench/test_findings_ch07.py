"""Chapter 7's sentences against extreme results, and the parts of the bench that it brought."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib.bench.findings.fused_attention import ch07_fused_attention as ch07
from lib.bench.findings.fused_attention import fused_step
from lib.bench.findings.gates import Gate
from lib.bench.findings.shown import Shown
from lib.bench.measure import attention_cost, counts
from lib.bench.measure.data_sheets import H100, LLAMA_7B
from lib.bench.measure.roofline import Roofline
from lib.bench.notebook.excerpt import excerpt
from lib.bench.records.files import Run
from lib.models.checkpoint import GPT2_CONFIG

# The record for which these tests were written: a new recording says other things.
FROZEN = Path(__file__).with_name("frozen")

LAYER, HOT, PARTS, STEPS = "attention_by_batch", "hot_and_cold", "gather_parts", "step_by_batch"


@pytest.fixture
def data():
    return json.loads((FROZEN / "07_fused_attention.json").read_text())


def put(data, name, column, row, value):
    """One value of a series, without repeats."""
    series = data["measurements"][name]
    series["columns"][column][row] = value
    series["samples"].pop(column, None)


def at(data, name, column, row=-1):
    return data["measurements"][name]["columns"][column][row]


def said(data):
    return ch07.render(Run(data))


def test_the_recorded_run_passes_the_gates_of_its_own_figures(data):
    run = Run(data)
    for name, columns in {
        LAYER: ("contiguous", "gather", "fused"),
        HOT: ("contiguous", "gather", "fused"),
        STEPS: ("contiguous", "gather", "fused"),
        PARTS: ("seconds",),
        "chunks": ("kernel", "gather", "fused"),
        "shuffled_blocks": ("gather", "fused"),
    }.items():
        gate = Gate(name)
        gate.repeats([sorted(s)[:-1] for c in columns for s in run[name].samples[c]])
        assert gate.ok, gate.note


def test_the_first_prediction_fails_where_it_failed_and_holds_where_it_held(data):
    failed = "By the bytes the gather would take 3 times as long: the prediction failed."
    assert failed in said(data)["layer_gather_finding"]
    put(data, LAYER, "contiguous", -1, 1e-3)
    put(data, LAYER, "gather", -1, 3.1e-3)
    put(data, LAYER, "fused", -1, 1.05e-3)
    found = said(data)
    assert found["layer_gather_finding"].endswith("would take 3 times as long: as predicted.")
    assert found["layer_fused_finding"].endswith("the same time: as predicted.")
    assert found["broke_finding"].endswith("as predicted in this run.")
    assert "3.1 times and the fused kernel 1.0 times as long" in found["broke_finding"]
    by_bytes = ch07.predictions(Run(data))[:2]
    assert [p.verdict for p in by_bytes] == ["as predicted"] * 2 and not any(
        p.why for p in by_bytes
    )


@pytest.mark.parametrize("left, words", [(0.77, "more bandwidth would not shorten"), (0.2, "as the prediction assumed")])  # fmt: skip
def test_arithmetic_is_blamed_only_where_warm_caches_leave_it(data, left, words):
    for kind in ("contiguous", "gather", "fused"):
        put(data, HOT, kind, -1, left * at(data, HOT, kind, 0))
    assert words in said(data)["warm_finding"]
    causes = [p.why for p in ch07.predictions(Run(data))[:2]]
    assert all(("bytes are only a part" in why) == (left > 0.45) for why in causes)
    assert left > 0.45 or causes == ["no cause was measured"] * 2


def test_a_bandwidth_above_the_ceiling_says_so(data):
    assert "measured too low" not in said(data)["bandwidth_finding"]
    put(data, LAYER, "mbu_fused", -1, 1.42)
    assert "only where the ceiling was measured too low" in said(data)["bandwidth_finding"]
    assert "here the mistake would not show" in said(data)["hot_finding"]
    moved = at(data, LAYER, "kv_bytes") * 4 / at(data, LAYER, "batch")
    bandwidth = data["roofline"]["bandwidth"]
    put(data, HOT, "fused", -1, moved / bandwidth / 1.4)
    assert "did not come from memory" in said(data)["hot_finding"]
    put(data, HOT, "fused", 0, moved / bandwidth / 1.3)
    assert "neither share says anything" in said(data)["hot_finding"]


@pytest.mark.parametrize("factor, words", [(0.5, "is not what makes it slow"), (0.0, None), (2.0, "it costs time to skip")])  # fmt: skip
def test_other_heads_rows_are_blamed_only_by_the_measurement(data, factor, words):
    series = data["measurements"][PARTS]
    piece = series["columns"]["seconds"][3]
    if factor:
        for column, value in {"part": "the same, each head's rows together", "seconds": piece / factor, "page_faults": 0}.items():  # fmt: skip
            series["columns"][column].append(value)
        series["samples"].pop("seconds")
    found = said(data)["heads_finding"]
    assert (words in found) if words else found.endswith("was not measured here.")


def test_a_recorded_run_that_failed_its_own_check_judges_no_part(data):
    claim = "copy of the gather over attention in one piece, by bytes"
    reasons = ["the repeats differ by 55 %, more than 25 %"]
    data["gates"] = [{"experiment": "parts of a gather", "ok": False, "reasons": reasons}]
    own, quoted = Run(data), Shown(Run(data))
    verdicts = [{p.claim: p.verdict for p in ch07.predictions(run)}[claim] for run in (own, quoted)]
    assert verdicts[0] != "this run cannot tell" and verdicts[1] == "this run cannot tell"
    sentence = ch07.render(quoted)["copy_finding"]
    assert "that run does not judge it" in sentence and reasons[0] in sentence
    assert "does not judge" not in ch07.render(own)["copy_finding"]


def test_the_hand_over_is_judged_on_both_sides(data):
    assert said(data)["hand_over_finding"].startswith("At no size that was measured")
    put(data, "chunks", "kernel", 2, 5 * at(data, "chunks", "gather", 2))
    assert "too high: the kernel is slower already at 8 queries" in said(data)["hand_over_finding"]
    put(data, "chunks", "kernel", -1, 0.2 * at(data, "chunks", "gather"))
    assert "wrong in both directions" in said(data)["hand_over_finding"]
    put(data, "chunks", "kernel", 2, 0.5 * at(data, "chunks", "gather", 2))
    assert "too low: the kernel is still faster at 64 queries" in said(data)["hand_over_finding"]
    put(data, "chunks", "kernel", 2, 5 * at(data, "chunks", "gather", 2))
    put(data, "chunks", "kernel", 0, 5 * at(data, "chunks", "gather", 0))
    data["measurements"]["chunks"]["columns"]["kernel"][-1] = None
    assert "already at 1 and 8 queries." in said(data)["hand_over_finding"]
    data["measurements"]["chunks"]["columns"]["kernel"] = [None] * 4
    chunks = data["measurements"]["chunks"]
    for name, turns in (("kernel", [0.8, 1.0, 1.3]), ("gather", [0.7, 0.8, 1.1])):
        chunks["columns"][name][0] = turns[1]
        chunks["samples"][name] = [turns] + [None] * (len(chunks["columns"][name]) - 1)
    assert (
        "the slower of the two, by the medians, at 1 query; this run cannot tell"
        in (said(data)["hand_over_finding"])
    )
    chunks["columns"]["kernel"] = [None] * 4
    found = said(data)
    assert found["hand_over_finding"] != found["crossover_finding"], "the same twice in a row"


def test_the_goal_and_the_bound_of_a_step(data):
    assert "it is met" in said(data)["goal_finding"]
    put(data, STEPS, "fused", -1, 1.3 * at(data, STEPS, "contiguous"))
    assert "it is not met: a fused step takes 1.30 times" in said(data)["goal_finding"]
    assert ch07.predictions(Run(data))[-1].verdict == "a little above"
    put(data, STEPS, "fused", -1, 0.6 * at(data, STEPS, "bound_fused"))
    assert "a ceiling was measured too low" in said(data)["step_bound_finding"]


def test_a_ratio_that_is_right_by_two_errors_is_called_that(data):
    assert "its two parts are not" in said(data)["two_errors_finding"]
    put(data, STEPS, "contiguous", -1, at(data, STEPS, "bound_contiguous"))
    put(data, STEPS, "gather", -1, at(data, STEPS, "bound_gather"))
    assert "its two parts are not" not in said(data)["two_errors_finding"]


def test_the_gain_is_given_to_the_batch_or_to_the_kernel(data):
    assert "comes from the batch that fits" in said(data)["service_kernel_finding"]
    put(data, "same_bytes", "tok_s", 1, 1.1 * at(data, "same_bytes", "tok_s", 0))
    assert "comes from the kernel" in said(data)["service_kernel_finding"]
    for row, rate in ((0, 10.0), (1, 15.0), (2, 20.0)):
        put(data, "same_bytes", "tok_s", row, rate)
    assert "about half from each" in said(data)["service_kernel_finding"]
    data["measurements"]["same_bytes"]["params"]["same_tokens"] = 16
    assert said(data)["same_tokens_finding"].startswith("All 16 requests")
    data["measurements"]["same_bytes"]["params"]["same_tokens"] = 15
    assert said(data)["same_tokens_finding"].startswith("15 of 16 requests")


def test_compiling_is_reported_where_it_was_measured(data):
    assert said(data)["compile_finding"].endswith("was not measured here.")
    data["measurements"]["first_call"] = {
        "unit": "s", "params": {}, "seed": 0, "samples": {},
        "columns": {"on_disk": ["nothing", "compiled"], "first": [9.0, 0.3], "third": [1e-4, 1e-4]},
    }  # fmt: skip
    found = said(data)["compile_finding"]
    assert (
        "several times as fast as the one that compiles (30 times" in found
        and "3,000 times" in found
    )
    recorded = ch07.compiling(Shown(Run(data)))["compile_finding"]
    assert recorded.startswith("In the recorded run, the first call")


def test_the_slow_read_is_explained_by_its_profile_only_where_it_is_slow(data):
    put(data, LAYER, "mbu_contiguous", -1, 0.3)
    assert "uses only 30 % of the bandwidth" in said(data)["broke_finding"]
    assert "A slow contiguous read makes" in said(data)["broke_finding"]
    put(data, LAYER, "mbu_contiguous", -1, 0.9)
    assert "profile" not in said(data)["broke_finding"]
    put(data, LAYER, "mbu_contiguous", -1, 0.3)
    data["fingerprint"]["hardware"]["kind"] = "cuda"
    assert "profile" not in said(data)["broke_finding"]


@pytest.mark.parametrize("left", [1.0, 1.1, 5.0])
def test_warm_caches_that_are_no_faster_show_nothing(data, left):
    put(data, HOT, "gather", -1, left * at(data, HOT, "gather", 0))
    found = said(data)["warm_finding"]
    assert "does not show what memory takes" in found and "bandwidth would not" not in found


def test_a_sum_is_judged_in_the_run_that_has_its_warm_caches(data):
    other = copy.deepcopy(data)
    for kind in ("contiguous", "gather", "fused"):
        put(other, LAYER, kind, -1, 1.0)
    rows = ch07.predictions(Run(data), warm=Run(other))
    assert [row.measured for row in rows[2:4]] == [1.0, 1.0]
    assert rows[0].measured == ch07.predictions(Run(data))[0].measured


def test_both_parts_of_a_share_are_of_one_run(data):
    here, other = Run(data), Run(copy.deepcopy(data))
    put(data, STEPS, "fused", -1, 1.0)
    share = fused_step.step(other)["attention_share_finding"]
    assert fused_step.step(Shown(here), Shown(here))["attention_share_finding"] != share
    this = SimpleNamespace(recorded=False)
    mixed = fused_step.step(Shown(other), this)["attention_share_finding"]
    assert mixed == f"In the recorded run, {share[:1].lower()}{share[1:]}"


@pytest.mark.parametrize(
    "gather, fresh, words",
    [(0, 12000, "found its memory again"), (9000, 12000, "was not kept"), (0, 0, "does not count")],
)
def test_page_faults_are_judged(data, gather, fresh, words):
    parts = data["measurements"][PARTS]["columns"]["part"]
    put(data, PARTS, "page_faults", parts.index("gather, all of it"), gather)
    put(data, PARTS, "page_faults", parts.index("copy into fresh pages"), fresh)
    assert words in said(data)["faults_finding"]


@pytest.mark.parametrize(
    "contiguous, gather, words",
    [("NaN", "NaN", "The other two need"), ("fine", "NaN", "The gather needs"), ("fine", "fine", "gave no NaN")],
)  # fmt: skip
def test_unused_slots_matter_where_they_gave_nan(contiguous, gather, words):
    leaks = {"contiguous": ["fine", contiguous], "gather": [gather, gather], "fused": ["fine"] * 2}
    assert words in ch07.unused_slots(leaks)["unused_slots_finding"]


# What a step costs at least.


def test_attention_time_is_bytes_over_bandwidth_until_arithmetic_is_slower():
    fast = Roofline("cpu", 1e9, {"float32": 1e15})
    moved = 2 * 4 * 10 * GPT2_CONFIG.num_kv_heads * GPT2_CONFIG.head_dim * 4
    assert attention_cost.layer_bytes(GPT2_CONFIG, 4, 10) == moved
    assert attention_cost.attention_time(GPT2_CONFIG, fast, 4, 10, 3) == 3 * moved / 1e9
    slow = Roofline("cpu", 1e15, {"float32": 1e9})
    pairs = 4 * 4 * 10 * GPT2_CONFIG.num_heads * GPT2_CONFIG.head_dim
    assert attention_cost.attention_time(GPT2_CONFIG, slow, 4, 10, 3) == pairs / 1e9


def test_step_time_moves_all_bytes_of_a_step_once():
    bandwidth_only = Roofline("cuda", 1.0, {"bfloat16": 1e30})
    least = attention_cost.step_time(
        LLAMA_7B, bandwidth_only, 3, 100, 1, "bfloat16", arithmetic="bfloat16"
    )
    assert least == counts.step_bytes(LLAMA_7B, "bfloat16", [100] * 3)


def test_the_7b_sentence_has_the_numbers_of_its_table():
    found, rows = ch07.realistic()["realistic_finding"], ch07.realistic_rows()
    assert [row[3] in found for row in rows] == [True] * 3
    assert f"{round(H100.ridge('bfloat16'))}." in found and rows[1][4] == "2.44"


# Excerpts.


def sample(x):
    total = 0
    for i in range(x):
        total += i
    return total


def test_an_excerpt_is_the_lines_between_and_refuses_what_is_not_there():
    assert excerpt(sample, "for i", "+=") == "for i in range(x):\n    total += i\n"
    for first, last in (("while", "+="), ("for i", "total = 0")):
        with pytest.raises(ValueError, match="no line of sample"):
            excerpt(sample, first, last)


@pytest.mark.parametrize("factor", [0.3, 0.75, 0.9, 1.0, 1.1, 5.0])
@pytest.mark.parametrize("noise", [0.02, 0.4])
def test_a_comparison_and_its_verdict_agree(data, factor, noise):
    """Where the words cannot tell two steps apart, neither they nor the table judge a prediction of no difference."""
    series = data["measurements"][STEPS]
    for kind, middle in (("contiguous", 0.3), ("fused", 0.3 * factor)):
        series["columns"][kind][-1] = middle
        series["samples"][kind][-1] = [(1 - noise) * middle, middle, (1 + noise) * middle]
    found = said(data)["step_fused_finding"]
    verdict = next(p for p in ch07.predictions(Run(data)) if "whole step: fused" in p.claim).verdict
    assert ("cannot tell a fused step" in found) == found.endswith("this run cannot tell.")
    assert found.endswith("this run cannot tell.") == (verdict == "this run cannot tell")


@pytest.mark.parametrize(
    "factor, noise, words",
    [
        (0.5, 0, "take less time"),
        (1.0, 0, "take about as long as"),
        (3.0, 0, "no cause of it was measured"),
        (1.1, 0.5, "This run cannot tell what emptying the caches changes for"),
    ],
)
def test_layers_in_turn_with_nothing_emptied_are_judged(data, factor, noise, words):
    found = data["measurements"]["hot_and_cold"]
    for name in ("contiguous", "gather", "fused"):
        times = found["columns"][name]
        times[1] = factor * times[0]
        found["samples"][name] = [[t * (1 - noise), t, t * (1 + noise)] for t in times]
    text = ch07.render(Run(data))["in_turn_finding"]
    assert words in text and ("no cause" in text) == (factor == 3.0)
    del found["columns"]["fused"]
    assert "not measured" in ch07.render(Run(data))["in_turn_finding"]

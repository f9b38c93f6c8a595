"""Every finding of every chapter, rendered from the recorded runs and from perturbed copies of them."""

import copy
import importlib
import json
import pkgutil
import re
from pathlib import Path

import pytest

import lib.bench.findings
from lib.bench.findings.forward_pass import ch01_forward_pass as ch01
from lib.bench.findings.forward_pass import forward_latency, forward_throughput
from lib.bench.findings.launch_overhead import ch08_launch_overhead as ch08
from lib.bench.findings.launch_overhead import overhead_profile, peer_limit
from lib.bench.findings.predictions import Prediction
from lib.bench.findings.shown import Shown
from lib.bench.paths import measurements_dir, repository
from lib.bench.records.files import Run, reference

# The record for which these tests were written: a new recording says other things.
FROZEN = Path(__file__).with_name("frozen")

MODULES = [
    importlib.import_module(info.name)
    for info in pkgutil.walk_packages(lib.bench.findings.__path__, "lib.bench.findings.")
    if re.search(r"\.ch\d\d_", info.name)
]
FILES = {
    module.__name__.rpartition(".ch")[2]: sorted(
        measurements_dir().glob(f"*/{module.__name__.rpartition('.ch')[2]}.json")
    )
    for module in MODULES
}
CASES = [
    pytest.param(module, path, id=f"{path.parent.name}/{path.stem}")
    for module in MODULES
    for path in FILES[module.__name__.rpartition(".ch")[2]]
]


def scaled(data, name, column, factor, row=None):
    """The record with one column, or one row of it, times a factor; raw samples with it."""
    series = data["measurements"][name]
    rows = range(len(series["columns"][column])) if row is None else [row]
    for i in rows:
        found = series["columns"][column][i]
        series["columns"][column][i] = found and factor * found
        for sample in series["samples"].get(column, [])[i : i + 1]:
            sample[:] = [factor * s for s in sample]


def numeric(series):
    """Columns of numbers that were measured or computed from measurements: not the first one, which is the axis."""
    names = list(series["columns"])[1:]
    return [
        n
        for n in names
        if all(isinstance(v, (int, float, type(None))) for v in series["columns"][n])
    ]


def with_own(data, name):
    """A copy of a record that shares everything but one of its series: copying all of it would take most of the time."""
    measurements = dict(data["measurements"])
    measurements[name] = copy.deepcopy(measurements[name])
    return {**data, "measurements": measurements}


def perturbed(data):
    """(what was done, copy) for copies of a record: extreme factors, noise, rows, columns and series that are missing."""
    yield "as recorded", copy.deepcopy(data)
    for name, series in data["measurements"].items():
        rest = {other: s for other, s in data["measurements"].items() if other != name}
        yield f"without {name}", {**data, "measurements": rest}
        for column in numeric(series):
            for row in (None, 0, -1 % len(series["columns"][column])):
                for factor in (0.0, 0.3, 0.9, 1.1, 5.0, -1.0):
                    changed = with_own(data, name)
                    scaled(changed, name, column, factor, row)
                    yield f"{name}.{column}[{row}] times {factor}", changed
            nothing = with_own(data, name)
            found = nothing["measurements"][name]
            found["columns"][column] = [None] * len(found["columns"][column])
            found["samples"].pop(column, None)
            yield f"{name}.{column} not measured", nothing
            absent = with_own(data, name)
            del absent["measurements"][name]["columns"][column]
            absent["measurements"][name]["samples"].pop(column, None)
            yield f"{name} without the column {column}", absent
            noisy = with_own(data, name)
            values = noisy["measurements"][name]["columns"][column]
            noisy["measurements"][name]["samples"][column] = [
                [] if v is None else [0.4 * v, v, 2.5 * v] for v in values
            ]
            yield f"{name}.{column} with noisy repeats", noisy


@pytest.mark.parametrize("module, path", CASES)
def test_every_finding_renders_from_every_perturbed_record(module, path):
    sentences = module.render(Run(json.loads(path.read_text())))
    for done, data in perturbed(json.loads(path.read_text())):
        run = Run(data)
        found = module.render(run)
        assert found.keys() == sentences.keys(), done
        for name, text in found.items():
            assert text and text[-1] in ".:" and not text.endswith(".."), (done, name, text)
            assert not re.search(r"\b(nan|inf|None)\b|[`*]|\{|\}|  ", text), (done, name, text)
        for prediction in module.predictions(run):
            assert isinstance(prediction, Prediction) and len(prediction.row()) == 6, done
            check_verdict(prediction, done)


def check_verdict(prediction, done):
    """The verdict of a number follows from its ratio alone, or from the noise; a cause stands beside a deviation only."""
    if prediction.ratio is not None and not prediction.sense:
        close = abs(prediction.ratio - 1) <= 0.1 + 1e-9
        if prediction.verdict == "as predicted":
            assert close, done
        if prediction.verdict == "the prediction failed":
            assert abs(prediction.ratio - 1) > 0.25, done


@pytest.mark.parametrize("module", MODULES)
def test_the_chapter_uses_every_finding(module):
    stem = module.__name__.rpartition(".ch")[2]
    text = (repository() / "chapters" / f"{stem}.py").read_text()
    for name in module.render(Run({"measurements": {}})):  # also before a run was recorded
        assert f"{{glue:text}}`{name}`" in text, name
    for name in ("experiments_shown", "predictions_tally"):
        assert f"{{glue:text}}`{name}`" in text and f'glue("{name}"' in text, name


@pytest.fixture
def data():
    return json.loads((FROZEN / "01_forward_pass.json").read_text())


LATENCY, THROUGHPUT = "token_time_by_prompt", "throughput_by_generated"


def with_products(data, short, long):
    """The record with the time of the products alone, in ms, for the shortest and the longest prompt."""
    data["measurements"][LATENCY]["columns"]["products"] = [short, None, long]
    return Run(data)


def test_chapter_1_fails_its_first_prediction_where_it_failed(data):
    said = ch01.render(Run(data))["growth_finding"]
    assert "5.0 times as long, where the bound grows 8.2 times: the prediction failed." in said
    series = data["measurements"][LATENCY]["columns"]
    series["no_cache"][-1] = 8.2 * series["no_cache"][0]
    assert ch01.render(Run(data))["growth_finding"].endswith("8.2 times: as predicted.")
    assert "this run confirms it" in ch01.render(Run(data))["broke_finding"]


@pytest.mark.parametrize(
    "products, kind", [(110, "products"), (70, "around"), (92, "both"), (300, "cannot tell")]
)
def test_chapter_1_blames_what_the_products_show(data, products, kind):
    run = with_products(data, products, 560)
    assert forward_latency.gap(run).kind == kind
    cause = ch01.predictions(run)[0].why
    assert (forward_latency.FEW_ROWS in cause) == (kind == "products")
    assert ("no cause was measured" in cause) == (kind == "cannot tell")


def test_chapter_1_blames_few_rows_only_where_more_rows_are_better(data):
    assert "with few rows or with many" in forward_latency.gap(with_products(data, 110, 900)).text
    data["measurements"][LATENCY]["columns"].pop("products")
    assert (
        forward_latency.FEW_ROWS in forward_latency.gap(Run(data)).text
    )  # by the profile, and 2.2 against 1.3 times the bound
    data["measurements"][LATENCY]["columns"]["no_cache"][-1] = 1100
    assert "with few rows or with many" in forward_latency.gap(Run(data)).text


def test_chapter_1_gives_no_cause_without_a_gap(data):
    series = data["measurements"][LATENCY]["columns"]
    series["no_cache"] = [1.05 * b for b in series["bound"]]
    run = Run(data)
    assert forward_latency.gap(run).kind == "small"
    assert ch01.predictions(run)[0].verdict == "as predicted" and ch01.predictions(run)[0].why == ""


@pytest.mark.parametrize(
    "factors, shrinks",
    [((1.0, 1.0), None), ((2.0, 1.0), True), ((1.0, 2.0), False), ((0.35, 4.18), False)],
)
def test_chapter_1_explains_transformers_only_where_the_difference_shrinks(data, factors, shrinks):
    series = data["measurements"][LATENCY]["columns"]
    for row, factor in zip((0, -1), factors):
        series["transformers"][row] = factor * series["no_cache"][row]
    said = ch01.render(Run(data))["transformers_finding"]
    assert ("The difference shrinks as the products grow" in said) == (shrinks is True)
    assert ("no measurement of this chapter" in said) == (shrinks is False)


@pytest.mark.parametrize(
    "rates, verdict",
    [
        ([13, 12, 10, 8], "falls from 13 tokens/s to 8 tokens/s, as predicted."),
        ([2.0, 2.5, 3.0, 3.2], "rises from 2 tokens/s to 3.20 tokens/s, so the prediction failed."),
        ([8, 8.1, 8.2, 8.1], "stays about the same (from 8 tokens/s to 8.10 tokens/s), so the prediction failed."),
    ],
)  # fmt: skip
def test_chapter_1_judges_its_second_prediction(data, rates, verdict):
    data["measurements"][THROUGHPUT]["columns"]["no_cache"] = rates
    assert ch01.render(Run(data))["throughput_finding"].endswith(verdict)


def test_chapter_1_reports_no_peak_of_zero(data):
    assert "did not grow" in ch01.render(Run(data))["peak_finding"]
    data["measurements"][THROUGHPUT]["columns"]["peak_mb"][-1] = 42.0
    assert "42 MB on top of what" in ch01.render(Run(data))["peak_finding"]
    data["measurements"][THROUGHPUT]["columns"]["gpu_busy"][-1] = 97.0
    assert "42 MB of GPU memory" in ch01.render(Run(data))["peak_finding"]


def test_chapter_1_explains_the_published_curve_only_if_it_peaks():
    sweep = reference()["no_cache_sweep"]
    assert "peak of 169 tokens/s" in forward_throughput.published_curve(sweep)["published_finding"]
    falling = {"new_tokens": [10, 100], "tok_s": [9, 3]}
    assert "launch" not in forward_throughput.published_curve(falling)["published_finding"]


def test_chapter_1_says_which_prompt_its_gap_is_of(data):
    assert forward_latency.gap(with_products(data, 110, 560)).text.startswith("for the shortest")
    series = data["measurements"][LATENCY]["columns"]
    series["no_cache"] = [1.1 * b for b in series["bound"]]
    assert forward_latency.gap(Run(data)).text.startswith(
        "for the shortest prompt, there is little"
    )


@pytest.mark.parametrize(
    "short, long, said",
    [(0.95, 0.6, "grow more than"), (0.6, 0.95, "grow less than"), (0.9, 0.9, ""), (None, 0.9, "")],
)
def test_chapter_1_blames_what_surrounds_the_products_in_the_right_direction(
    data, short, long, said
):
    series = data["measurements"][LATENCY]["columns"]
    first, last = series["no_cache"][0], series["no_cache"][-1]
    run = with_products(data, short and short * first, long * last)
    found = ch01.predictions(run)[1]
    assert said in found.why and ("grow" in found.why) == bool(said)
    if said:
        assert (found.ratio > 1) == (said == "grow more than")


@pytest.mark.parametrize(
    "short, long, fits", [(0.9, 0.8, True), (1.05, 0.8, True), (1.2, 0.8, False), (0.9, 5, False)]
)
def test_chapter_1_names_no_share_above_the_whole(data, short, long, fits):
    series = data["measurements"][LATENCY]["columns"]
    times = series["no_cache"]
    said = ch01.render(with_products(data, short * times[0], long * times[-1]))["products_finding"]
    assert ("does not say which part" in said) != fits and ("of its time" in said) == fits
    assert ("all (105 %) of its time" in said) == (short == 1.05)


@pytest.mark.parametrize(
    "used, once, read, said",
    [(0.3, 0.01, 0.1, "More than half of both ceilings is unused."),
     (0.6, 0.01, 0.1, "Useful work takes less than half of either ceiling."),
     (0.9, 0.7, 0.1, "of the ceiling.")],
)  # fmt: skip
def test_chapter_1_calls_no_ceiling_unused_that_repeated_work_used(data, used, once, read, said):
    series = data["measurements"][THROUGHPUT]["columns"]
    for name, share in (("arithmetic", used), ("mfu", once), ("mbu", read)):
        series[name][-1] = share
    assert ch01.render(Run(data))["alone_finding"].endswith(said)


def test_chapter_1_names_the_vocabulary_matrix_only_where_products_had_one_row(data):
    assert "among them the vocabulary matrix" in ch01.render(Run(data))["profile_finding"]
    profile = data["measurements"]["profile"]["columns"]
    profile["share"][profile["family"].index("gemv")] = 0.0
    assert "vocabulary" not in ch01.render(Run(data))["profile_finding"]


def test_chapter_1_gives_the_shares_of_one_experiment_as_no_cause_in_another(data):
    ratio = ch01.predictions(with_products(data, 110, 560))[3]
    assert ratio.verdict == "the prediction failed" and ratio.why == "no cause was measured"


def chapter_8():
    return json.loads((FROZEN / "08_launch_overhead.json").read_text())


def columns_8(data, name):
    """The columns of one series, whose raw samples are dropped: a changed middle is then the whole truth."""
    series = data["measurements"][name]
    series["samples"] = {}
    return series["columns"]


def test_chapter_8_blames_the_kernel_only_where_its_products_are_slow():
    data = chapter_8()
    assert re.search(r"most \(\d+ %\) of the missing", ch08.render(Run(data))["broke_finding"])
    assert "kernel of the largest" in ch08.render(Run(data))["suspect_finding"]
    data = chapter_8()
    columns_8(data, "products")["F.linear, float32"][0] = 0.016
    columns_8(data, "time_by_kind")["matrix products"][0] = 0.28
    said = ch08.render(Run(data))
    assert (
        "the prediction failed" in said["broke_finding"] and "kernel" not in said["broke_finding"]
    )
    assert "lies around the products" in said["suspect_finding"]
    assert ch08.predictions(Run(data))[0].why == "No cause was measured"


@pytest.mark.parametrize(
    "factor, said",
    [(0.55, "is 1.8 times as fast"), (1.0, "about the same time"), (3.0, "3 times: ")],
)
def test_chapter_8_credits_packing_only_where_it_is_faster(factor, said):
    data = chapter_8()
    found = columns_8(data, "products")
    found["packed, float32"] = [factor * v for v in found["F.linear, float32"]]
    text = ch08.render(Run(data))["packing_finding"]
    assert said in text and ("way the kernel reads" in text) == (factor < 1)


def test_chapter_8_foretells_the_packed_step_from_the_plain_one():
    data = chapter_8()
    steps = columns_8(data, "step_by_batch")
    verdicts = [p.verdict for p in ch08.predictions(Run(data))[1:3]]
    assert verdicts == ["as predicted", "as predicted"]
    steps["packed where faster"][0] = steps["plain"][0]
    assert ch08.predictions(Run(data))[1].verdict == "the prediction failed"


@pytest.mark.parametrize(
    "share, verdict", [(0.05, "as predicted"), (0.08, "failed"), (0.3, "failed")]
)
def test_chapter_8_judges_the_share_of_python(share, verdict):
    data = chapter_8()
    columns_8(data, "time_by_kind")["Python"][1] = share
    columns_8(data, "time_by_kind")["other operators"][1] = 0.06
    data["measurements"]["time_by_kind"]["columns"]["python_calls"] = [1468, 6697, 1468, 6697]
    said = ch08.render(Run(data))["calls_finding"]
    assert verdict in said and ("6,697" in said) == (verdict == "failed")


@pytest.mark.parametrize(
    "factor, verdict, kernel",
    [(0.5, "the prediction failed", True), (1.0, "as predicted", False), (1.5, "the prediction failed", False)],
)  # fmt: skip
def test_chapter_8_a_prompt_that_packing_makes_faster_is_no_confirmation(factor, verdict, kernel):
    data = chapter_8()
    found = columns_8(data, "prefill")
    found["packed where faster"][0] = factor * found["plain"][0]
    said = ch08.render(Run(data))["prompt_finding"]
    assert f": {verdict}." in said and ("another kernel" in said) == kernel


def test_chapter_8_takes_launches_on_a_gpu_for_no_time_of_products():
    data = chapter_8()
    columns_8(data, "graphs")["seconds"] = [3.0]
    assert "hold the launches" in ch08.render(Run(data))["suspect_finding"]


def test_chapter_8_gives_packing_the_credit_only_where_the_plain_engine_equals_transformers():
    data = chapter_8()
    assert ch08.render(Run(data))["peer_finding"].endswith("all of that is the packing.")
    assert ch08.render(Run(data))["peer_batch_finding"].endswith("by one run of each.")
    found = columns_8(data, "waterfall")
    found["tok_s"][found["stage"].index("transformers")] = 10.0
    assert "the packing" not in ch08.render(Run(data))["peer_finding"]


def test_chapter_8_counts_python_among_what_a_gpu_waits_for():
    data = chapter_8()
    said = ch08.render(Run(data))["exercise_finding"]
    assert "The host is the slower one" in said and "4.2 times as many" in said
    assert ch08.render(Run(data))["exercise_lesson_finding"].startswith("Leave Python out")
    found = columns_8(data, "time_by_kind")
    found["Python"][0], found["matrix products"][0] = 0.01, 0.93
    assert "launching and Python are hidden" in ch08.render(Run(data))["exercise_finding"]
    assert "says the opposite" in ch08.render(Run(data))["exercise_lesson_finding"]


@pytest.mark.parametrize(
    "busy, collapse", [([1.4, 0.1, 0.06], True), ([0.08, 0.07, 0.06], False)]
)  # seconds, beside 0.04 alone
def test_chapter_8_tells_a_collapse_from_none(busy, collapse):
    data = chapter_8()
    assert "was not measured here" in ch08.render(Run(data))["busy_finding"]
    names = ["GNU's default", "3,000 rounds", "sleep at once"]
    data["measurements"]["busy_machine"] = {
        "unit": "s", "params": {}, "seed": 0, "samples": {},
        "columns": {"setting": names, "quiet": [0.04, 0.041, 0.05], "busy": busy},
    }  # fmt: skip
    said = ch08.render(Run(data))["busy_finding"]
    assert ("does not show the slowdown" in said) != collapse
    assert "3,000 rounds and the default take about the same time" in said
    assert "sleeping at once is a little slower than the default (25 %" in said
    verdict = ch08.predictions(Run(data))[-1].verdict
    assert verdict == ("the prediction failed" if collapse else "as predicted")


def test_chapter_8_draws_compiling_as_a_gain_only_where_it_is_one():
    data = chapter_8()
    found = columns_8(data, "step_by_batch")
    for factor, gain in ((0.5, True), (1.0, False), (1.4, False)):
        found["packed and compiled"] = [factor * v for v in found["packed where faster"]]
        said = ch08.render(Run(data))["compile_finding"]
        assert ("guards and wrappers cost" in said) != gain and ("2 times as fast" in said) == gain
    samples = data["measurements"]["step_by_batch"]["samples"]
    samples["packed and compiled"] = [[0.5 * v, v, 2 * v] for v in found["packed where faster"]]
    assert "guards and wrappers" not in ch08.render(Run(data))["compile_finding"], "cannot tell"


def test_chapter_8_its_first_tables_have_the_numbers_of_its_sentences():
    data = chapter_8()
    cells, said = ch08.first_tables(Run(data)), ch08.render(Run(data))
    for name, sentence in (
        ("bound_one", "step"), ("step_one", "step"), ("bound_rows", "step"), ("step_rows", "step"),
        ("start_one", "starting"), ("start_all", "starting"), ("operators_one", "head_count"),
    ):  # fmt: skip
        assert cells[name] in said[f"{sentence}_finding"], name
    assert set(ch08.first_tables(Run({"measurements": {}})).values()) == {
        "–", "the largest batch", ", measured further below", "this run",
    }  # fmt: skip
    quoted = ch08.first_tables(Shown(Run(data), label="recorded run of May"))
    assert (quoted["whose_steps"], quoted["rows_where"]) == ("recorded run of May", "")


@pytest.mark.parametrize(
    "factor, said", [(0.9, "no engine that computes"), (1.05, "a little too low"), (5, "limit is none")]
)  # fmt: skip
def test_chapter_8_a_limit_that_was_passed_is_none(factor, said):
    data = chapter_8()
    most = peer_limit.limit(Run(data))
    found = columns_8(data, "waterfall")
    found["tok_s"] = [factor * most for _ in found["tok_s"]]
    assert said in peer_limit.peer_limit(Run(data))["peer_limit_finding"]


@pytest.mark.parametrize("bfloat16, more", [(0.3, True), (0.5, False), (0.9, False)])
def test_chapter_8_half_the_bytes_explain_twice_at_most(bfloat16, more):
    data = chapter_8()
    found = columns_8(data, "products")
    for kernel in ("packed", "F.linear"):
        found[f"{kernel}, bfloat16"] = [bfloat16 * v for v in found[f"{kernel}, float32"]]
    assert ("two kernels differ too" in ch08.render(Run(data))["half_finding"]) == more


@pytest.mark.parametrize("flat, most", [(0.5, True), (0.95, True), (1.0, False), (1.3, False)])
def test_chapter_8_a_flat_function_that_is_no_faster_limits_nothing(flat, most):
    data = chapter_8()
    found = columns_8(data, "modules")
    found["flat"] = [flat * v for v in found["modules"]]
    said = ch08.render(Run(data))["modules_finding"]
    assert ("the most that the modules can cost" in said) == most


def test_chapter_8_says_whose_profile_it_quotes():
    run = Run(chapter_8())
    for words, name in ((ch08.by_kind, "kinds_finding"), (ch08.model, "corrected_finding")):
        own, quoted = (words(r)[name] for r in (run, Shown(run)))
        assert quoted == f"In the recorded run, {own[:1].lower()}{own[1:]}"


def test_chapter_8_a_rate_beyond_the_bound_blames_the_ceiling():
    data = chapter_8()
    assert "measured too low" not in ch08.render(Run(data))["one_sequence_finding"]
    found = columns_8(data, "waterfall")
    found["tok_s"] = [5 * v for v in found["tok_s"]]
    assert "measured too low" in ch08.render(Run(data))["one_sequence_finding"]


def test_chapter_8_says_whose_frames_are_drawn():
    ours, theirs = Shown(Run(chapter_8())), Shown(Run(chapter_8()), label="recorded run of May")
    said = overhead_profile.own_profile(theirs)["own_profile_finding"]
    assert "copy's run" in said and "the recorded run of May: the two need not agree." in said
    assert overhead_profile.own_profile(None)["own_profile_finding"].endswith("the same run.")
    assert overhead_profile.frames_note(ours, "") == ""
    assert overhead_profile.frames_note(None, "why") == "why"
    assert overhead_profile.frames_note(theirs, "why").startswith(
        "why; these frames are this copy's"
    )


def test_chapter_8_the_second_prediction_is_one_sentence():
    said = ch08.render(Run(chapter_8()))["corrected_finding"]
    assert said.startswith("The second prediction, for the packed step at batch 1: ")
    assert ". For the packed step at batch 64: " in said

"""Every finding of every chapter, rendered from the recorded runs and from perturbed copies of them."""

import copy
import importlib
import json
import pkgutil
import re

import pytest

import lib.bench.findings
from lib.bench.findings import ch01_forward_pass as ch01
from lib.bench.findings.predictions import Prediction
from lib.bench.paths import measurements_dir, repository
from lib.bench.records.files import Run, reference

MODULES = [
    importlib.import_module(f"lib.bench.findings.{info.name}")
    for info in pkgutil.iter_modules(lib.bench.findings.__path__)
    if re.match(r"ch\d\d_", info.name)
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


def perturbed(data):
    """(what was done, copy) for copies of a record: extreme factors, noise, rows, columns and series that are missing."""
    yield "as recorded", copy.deepcopy(data)
    for name, series in data["measurements"].items():
        gone = copy.deepcopy(data)
        del gone["measurements"][name]
        yield f"without {name}", gone
        for column in numeric(series):
            for factor in (0.0, 0.3, 0.9, 1.1, 5.0, -1.0):
                for row in (None, 0, -1 % len(series["columns"][column])):
                    changed = copy.deepcopy(data)
                    scaled(changed, name, column, factor, row)
                    yield f"{name}.{column}[{row}] times {factor}", changed
            nothing = copy.deepcopy(data)
            found = nothing["measurements"][name]
            found["columns"][column] = [None] * len(found["columns"][column])
            found["samples"].pop(column, None)
            yield f"{name}.{column} not measured", nothing
            absent = copy.deepcopy(data)
            del absent["measurements"][name]["columns"][column]
            absent["measurements"][name]["samples"].pop(column, None)
            yield f"{name} without the column {column}", absent
            noisy = copy.deepcopy(data)
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
    return json.loads((measurements_dir() / "amd-epyc-2core/01_forward_pass.json").read_text())


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
    assert ch01.gap(run).kind == kind
    cause = ch01.predictions(run)[0].why
    assert (ch01.FEW_ROWS in cause) == (kind == "products")
    assert ("no cause was measured" in cause) == (kind == "cannot tell")


def test_chapter_1_blames_few_rows_only_where_more_rows_are_better(data):
    assert "with few rows or with many" in ch01.gap(with_products(data, 110, 900)).text
    data["measurements"][LATENCY]["columns"].pop("products")
    assert (
        ch01.FEW_ROWS in ch01.gap(Run(data)).text
    )  # by the profile, and 2.2 against 1.3 times the bound
    data["measurements"][LATENCY]["columns"]["no_cache"][-1] = 1100
    assert "with few rows or with many" in ch01.gap(Run(data)).text


def test_chapter_1_gives_no_cause_without_a_gap(data):
    series = data["measurements"][LATENCY]["columns"]
    series["no_cache"] = [1.05 * b for b in series["bound"]]
    run = Run(data)
    assert ch01.gap(run).kind == "small"
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
    assert "peak of 169 tokens/s" in ch01.published_curve(sweep)["published_finding"]
    falling = {"new_tokens": [10, 100], "tok_s": [9, 3]}
    assert "launch" not in ch01.published_curve(falling)["published_finding"]

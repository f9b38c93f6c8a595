"""Chapter 11's sentences follow its numbers, also where a prediction fails."""

from __future__ import annotations

import pytest

from lib.bench.findings.quantisation import ch11_quantisation as ch11
from lib.bench.findings.shown import Shown
from lib.bench.records.files import Run
from tests.bench.test_findings_ch10 import run
from tests.bench.test_findings_chapters import check_verdict, perturbed

ROWS = [1, 16]


def complete(four_bits: float = 5.0, many: float = 38.0) -> Run:
    """A run in which float32's products take 27 ms at one row and 38 ms at 16."""
    bounds = {
        "float32 bound": [18.0, 24.0],
        "int8 bound": [4.5, 24.0],
        "4 bits bound": [3.0, 24.0],
        "int8 × int8 bound": [4.5, 6.0],
        "4 bits × int8 bound": [3.0, 6.0],
    }
    times = {
        "float32": [27.0, 38.0],
        "int8": [7.0, 40.0],
        "4 bits": [four_bits, many],
        "int8 × int8": [7.0, 12.0],
        "4 bits × int8": [5.5, 11.0],
    }
    return run(
        formats={
            "format": ["float32", "int8", "4 bits", "4 bits × int8"],
            "weight_bytes": [538e6, 135e6, 96e6, 96e6],
            "turning_rows": [12.0, 3.0, 2.1, 8.4],
        },
        products={"rows": ROWS, **times, **bounds},
        engine={
            "batch": ROWS,
            "float32": [27.0, 200.0],
            "int8": [70.0, 190.0],
            "4 bits": [75.0, 180.0],
            "4 bits × int8": [74.0, 500.0],
        },
        quality={
            "format": ["int8", "gguf × int8", "int4"],
            "kl_divergence": [1e-4, 0.002, 0.05],
            "same_greedy": [0.99, 0.97, 0.85],
        },
        kv_formats={
            "format": ["float32", "int8"],
            "bytes_per_token": [46_080, 12_240],
            "blocks": [91, 342],
        },
        kv_attention={
            "context": [2048],
            "float32": [2e-3],
            "int8": [1e-3],
            "float32 bound": [8e-4],
            "int8 bound": [2.2e-4],
        },
        kv_quality={"format": ["int8"], "kl_divergence": [4e-4], "same_greedy": [0.998]},
    )


def test_bytes_and_rows():
    assert ch11.bytes_of_formats(complete())["bytes_finding"] == (
        "The products of a step read 538 MB in float32, 25 % of that with int8 "
        "and 18 % of that with 4 bits."
    )
    said = ch11.turning(complete())["turning_finding"]
    assert "equal at 12.0 rows with float32, 3.0 rows with int8, 2.1" in said


def test_products():
    said = ch11.products(complete())["products_finding"]
    assert "With 1 row the speed-up over float32 is 3.86 (int8), 5.40 (4 bits)" in said
    assert "With 16 rows" in said and "1.00 (4 bits)" in said


@pytest.mark.parametrize(
    "ints, said",
    [
        (
            [20.0, 31.0],
            "With 1 row this run cannot tell int8 (1.18) from float32, because the repeats",
        ),
        ([29.5, 30.5], "With 1 row the speed-up over float32 is 1.00 (int8)."),
        ([10.0, 10.1], "With 1 row the speed-up over float32 is 2.99 (int8)."),
        ([90.0, 91.0], "With 1 row the speed-up over float32 is 0.33 (int8)."),
    ],
)
def test_products_whose_repeats_overlap_have_no_speed_up(ints, said):
    found = repeated("products", {"rows": [1]}, {"float32": [[29.0, 31.0]], "int8": [ints]})
    assert ch11.products(found)["products_finding"].startswith(said)


@pytest.mark.parametrize(
    "ints, predicted, verdict",
    [
        ([20.0, 31.0], 1.0, "this run cannot tell"),
        ([20.0, 31.0], 0.9, "this run cannot tell"),
        ([20.0, 31.0], 4.0, "the prediction failed"),  # no pair of repeats is near it
        ([29.5, 30.5], 1.0, "as predicted"),  # they overlap and are close
        ([10.0, 10.1], 3.0, "as predicted"),
    ],
)
def test_a_speed_up_that_the_prose_cannot_tell_is_not_judged_in_the_table(ints, predicted, verdict):
    bounds = {"rows": [1], "float32 bound": [12.0], "int8 bound": [12.0 / predicted]}
    found = repeated("products", bounds, {"float32": [[29.0, 31.0]], "int8": [ints]})
    judged = {p.claim: p.verdict for p in ch11.predictions(found)}
    assert judged["speed-up of the products, int8, 1 row"] == verdict


def test_a_speed_up_that_was_not_measured_is_not_open():
    bounds = {"rows": [1], "float32 bound": [12.0], "int8 bound": [12.0], "float32": [None]}
    found = repeated("products", bounds, {"int8": [[20.0, 31.0]]})
    judged = {p.claim: p.verdict for p in ch11.predictions(found)}
    assert judged["speed-up of the products, int8, 1 row"] == "was not measured here"


@pytest.mark.parametrize(
    "four_bits, verdict",
    [(4.5, "as predicted"), (5.6, "a little below"), (20.0, "the prediction failed")],
)
def test_bytes_predict_the_products_of_one_row(four_bits, verdict):
    found = {p.claim: p.verdict for p in ch11.predictions(complete(four_bits))}
    assert found["speed-up of the products, 4 bits, 1 row"] == verdict


@pytest.mark.parametrize("many, verdict", [(38.0, "as predicted"), (70.0, "the prediction failed")])
def test_operations_predict_the_products_of_many_rows(many, verdict):
    found = {p.claim: p.verdict for p in ch11.predictions(complete(many=many))}
    assert found["speed-up of the products, 4 bits, 16 rows"] == verdict


def timed(products: tuple[float, float] | None, rate: float = 25.0) -> Run:
    """Products of float32 and 4 bits at one row, in ms, and an engine with a step of 1 / rate."""
    series = {"engine": {"batch": [1], "float32": [rate], "4 bits": [2 * rate]}}
    if products:
        whole, small = (1e-3 * x for x in products)
        series["products"] = {"rows": [1], "float32": [whole], "4 bits": [small]}
    return run(**series)


@pytest.mark.parametrize(
    "products, predicted",
    [
        ((20.0, 5.0), 40 / 25),  # half of a step of 40 ms
        ((40.0, 8.0), 5.0),  # all of it
        ((50.0, 10.0), 5.0),  # alone they take longer than the step: no more than they gain
        ((20.0, 60.0), 40 / 80),
        (None, None),
    ],
)
def test_the_engine_gains_no_more_than_its_products(products, predicted):
    found = ch11.engine_prediction(timed(products))
    assert found == (predicted if predicted is None else pytest.approx(predicted))


def test_each_prediction_is_measured_in_the_run_that_its_experiment_shows():
    recorded, now = complete(), complete(four_bits=20.0)
    now.data["measurements"]["engine"]["columns"]["4 bits"] = [13.5, 100.0]
    now.data["measurements"]["kv_attention"]["columns"]["int8"] = [5e-4]
    found = {p.claim.partition(",")[0]: p for p in ch11.predictions(recorded, now, now)}
    assert found["speed-up of the engine"].row()[2] == "0.5 ×"
    assert found["speed-up of attention"].row()[2] == "4 ×"
    assert ch11.predictions(recorded, now, now)[1].row()[2] == "5.40 ×"


@pytest.mark.parametrize(
    "four_bits, why", [(20.0, "The bound does not count unpacking"), (1.0, "no cause"), (4.5, "")]
)
def test_what_a_bound_leaves_out_explains_only_less_than_the_bound(four_bits, why):
    (found,) = (p for p in ch11.predictions(complete(four_bits)) if "4 bits, 1 row" in p.claim)
    assert found.why.startswith(why) and bool(found.why) == bool(why)


def test_the_format_with_the_highest_throughput():
    assert ch11.engine(complete())["engine_finding"] == (
        "The fastest format is 4 bits at batch 1 (2.8 times float32's) "
        "and 4 bits × int8 at batch 16 (2.5 times float32's)."
    )
    slow = run(engine={"batch": [1], "float32": [30.0], "int8": [20.0]})
    assert ch11.engine(slow)["engine_finding"] == "The fastest format is float32 at batch 1."
    always = run(engine={"batch": [1, 4], "float32": [30.0, 50.0], "int8": [90.0, 60.0]})
    assert ch11.engine(always)["engine_finding"] == (
        "The fastest format is int8: at batch 1 (3 times float32's) and at batch 4 (1.2 times "
        "float32's)."
    )


def repeated(name: str, axis: dict, samples: dict[str, list[list[float]]]) -> Run:
    """A run of one series whose columns keep their repeats."""
    middles = {column: [sum(x) / len(x) for x in rows] for column, rows in samples.items()}
    found = run(**{name: axis | middles})
    found.data["measurements"][name]["samples"] = samples
    return found


def test_repeats_that_overlap_name_no_fastest_format():
    samples = {
        "float32": [[20.0, 21.0], [60.0, 61.0]],
        "int8": [[30.0, 34.0], [90.0, 91.0]],
        "4 bits": [[33.0, 35.0], [70.0, 71.0]],
    }
    found = repeated("engine", {"batch": [1, 4]}, samples)
    assert ch11.engine(found)["engine_finding"] == (
        "The fastest format is int8 at batch 4 (1.5 times float32's). This run cannot tell which "
        "format is the fastest at batch 1, because the repeats overlap."
    )


def test_keys_and_values_in_8_bits():
    whole = complete()
    assert ch11.kv_bytes(whole)["kv_bytes_finding"] == (
        "K and V of one token take 46.1 kB in float32 and 12.2 kB in int8, and the same memory holds "
        "3.8 times as many blocks (342 in the place of 91)."
    )
    whole.data["measurements"]["kv_formats"]["columns"]["blocks"] = [1025, 1025]
    assert "holds 1 times" not in ch11.kv_bytes(whole)["kv_bytes_finding"]
    assert "holds the same number of blocks (1,025)" in ch11.kv_bytes(whole)["kv_bytes_finding"]
    del whole.data["measurements"]["kv_formats"]["columns"]["blocks"]
    assert ch11.kv_bytes(whole)["kv_bytes_finding"].endswith("12.2 kB in int8.")
    assert ch11.kv_attention(whole)["kv_attention_finding"] == (
        "Attention takes 2 ms per layer in float32 and 1 ms in int8: int8 is 2 times as fast."
    )
    assert ch11.kv_quality(whole)["kv_quality_finding"] == (
        "With K and V in int8 the mean KL divergence is 4.0\u00a0×\u00a010⁻⁴ nats, with more than 99 % equal "
        "greedy tokens."
    )
    (found,) = (p for p in ch11.predictions(whole) if "K and V" in p.claim)
    assert found.verdict == "the prediction failed" and found.ratio == pytest.approx(2 * 2.2 / 8)


@pytest.mark.parametrize(
    "ints, said", [([1.0, 2.5], "cannot tell which is faster"), ([4.0, 4.1], "int8 is slower")]
)
def test_attention_that_is_not_faster_says_so(ints, said):
    samples = {"float32": [[2.0, 2.1]], "int8": [ints]}
    found = repeated("kv_attention", {"context": [2048]}, samples)
    assert said in ch11.kv_attention(found)["kv_attention_finding"]


@pytest.mark.parametrize(
    "ints, verdict",
    [([0.5, 2.5], "this run cannot tell"), ([0.9, 2.5], "the prediction failed")],
)
def test_attention_within_the_noise_is_not_judged_in_the_table_either(ints, verdict):
    samples = {"float32": [[2.0, 2.1]], "int8": [ints]}
    axis = {"context": [2048], "float32 bound": [3.5], "int8 bound": [1.0]}
    (found,) = ch11.predictions(repeated("kv_attention", axis, samples))
    assert found.verdict == verdict


def test_quality():
    assert ch11.quality(complete())["quality_finding"] == (
        "int8 has the smallest KL divergence (1.0\u00a0×\u00a010⁻⁴ nats, with 99 % equal greedy tokens), "
        "and int4 has the largest KL divergence (0.05 nats, with 85 % equal greedy tokens)."
    )


@pytest.mark.parametrize(
    "divergence, said",
    [
        (
            [3.6e-11, 0.005, 0.008, 3.5e-11],
            "4 bits and int4 differ from the reference only as sums in another order do (KL "
            "divergence below 10⁻⁶ nats). Of the others, int8 has the smallest KL divergence "
            "(0.005 nats), and int8 × int8 has the largest KL divergence (0.008 nats).",
        ),
        (
            [3.6e-11, 0.005, 1e-9, 0.0],
            "4 bits, int8 × int8 and int4 differ from the reference only as sums in another order "
            "do (KL divergence below 10⁻⁶ nats). int8 has a KL divergence (0.005 nats).",
        ),
        (
            [1e-9, None, None, None],
            "4 bits differs from the reference only as sums in another order do (KL divergence "
            "below 10⁻⁶ nats).",
        ),
    ],
)
def test_no_format_without_a_loss_has_the_smallest(divergence, said):
    names = ["4 bits", "int8", "int8 × int8", "int4"]
    found = run(quality={"format": names, "kl_divergence": divergence})
    assert ch11.quality(found)["quality_finding"] == said


def test_sentences_of_perturbed_runs():
    whole = ch11.render(complete())
    assert not any("not measured" in text for text in whole.values())
    for done, data in perturbed(complete().data):
        found = ch11.render(Run(data))
        assert found.keys() == whole.keys(), done
        for name, text in found.items():
            assert text[-1] == "." and "None" not in text and "nan" not in text.replace("nats", ""), (
                done, name, text,
            )  # fmt: skip
        for prediction in ch11.predictions(Run(data)):
            assert len(prediction.row()) == 6, done
            check_verdict(prediction, done)


def test_sentences_of_a_recorded_run_say_so_beside_this_runs_tables():
    found = complete()
    own, recorded = ch11.render(found), ch11.render(Shown(found))
    for name in ("products", "engine", "kv_attention"):
        said = recorded[f"{name}_finding"]
        assert not own[f"{name}_finding"].startswith("In the recorded run")
        assert said.startswith(("In the recorded run, ", "The recorded run cannot tell"))

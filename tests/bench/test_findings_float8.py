"""The sentences about float8 follow their numbers, also where they are missing."""

from __future__ import annotations

import pytest
import torch

from lib.bench.findings.quantisation import float8
from lib.bench.records.files import Run
from lib.models.quantized.fp8 import round_fp8
from tests.bench.test_findings_ch10 import run
from tests.bench.test_findings_chapters import check_verdict, perturbed


def complete(float8_error: float = 0.026, float8_outlier: float = 0.0264) -> Run:
    return run(
        float8={
            "format": ["int8", "float8"],
            "error": [0.01, float8_error],
            "error_with_outlier": [0.21, float8_outlier],
        },
        float8_quality={"format": ["float8"], "kl_divergence": [0.035], "same_greedy": [0.906]},
    )


def test_error_and_quality():
    assert float8.error(complete())["float8_error_finding"] == (
        "The matrix has an error of 1.0 % in int8 and of 2.6 % in float8: without outliers it has "
        "the smaller error in int8. With one outlier in each row the error of the other weights is "
        "21 times as large in int8 and about as large as without it in float8."
    )
    assert float8.quality(complete())["float8_quality_finding"] == (
        "With weights and activations in float8 the mean KL divergence is 0.035 nats, with 91 % "
        "equal greedy tokens."
    )


@pytest.mark.parametrize(
    "error, said",
    [
        (0.005, "the smaller error in float8"),
        (0.0105, "about the same error in both formats"),
        (0.03, "the smaller error in int8"),
    ],
)
def test_the_format_with_the_smaller_error_is_the_measured_one(error, said):
    assert said in float8.error(complete(error))["float8_error_finding"]


@pytest.mark.parametrize(
    "other, said",
    [
        (0.0081, "That is 4.3 times the divergence of int8 × int8 in the table above (0.0081"),
        (0.034, "That is about the divergence of int8 × int8"),
        (0.35, "That is 0.10 times the divergence of int8 × int8"),
        (0.0, "equal greedy tokens."),
        (None, "equal greedy tokens."),
    ],
)
def test_the_divergence_stands_beside_that_of_int8(other, said):
    found = complete()
    names = {"format": ["int8", "int8 × int8"], "kl_divergence": [1e-3, other]}
    found.data["measurements"] |= run(quality=names).data["measurements"]
    text = float8.quality(found)["float8_quality_finding"]
    assert said in text and ("table above" in text) == bool(other)


@pytest.mark.parametrize("error, why", [(0.05, "Small weights"), (0.01, "no cause"), (0.0236, "")])
def test_a_cause_of_a_larger_error_stands_beside_a_larger_error_only(error, why):
    found = float8.predictions(complete(error, error))[0]
    assert found.why.startswith(why) and bool(found.why) == bool(why)


def test_the_predicted_error_is_that_of_weights_spread_evenly():
    """Weights from 1 to 1.75, and no further: then the scale is 2^-8, and all steps are 1/8."""
    weights = 1 + 0.75 * torch.rand(1, 100_000, generator=torch.Generator().manual_seed(0))
    weights[0, 0] = 1.75
    error = (round_fp8(weights).dequantize() - weights).norm() / weights.norm()
    mean_square = (1.75**3 - 1) / (3 * 0.75)
    assert error.item() == pytest.approx((1 / (64 * 12) / mean_square) ** 0.5, rel=0.02)
    assert float8.PREDICTED == pytest.approx(0.0236, rel=0.01)


@pytest.mark.parametrize(
    "error, verdict", [(0.0236, "as predicted"), (0.05, "the prediction failed")]
)
def test_verdicts(error, verdict):
    found = {p.claim: p for p in float8.predictions(complete(error, error))}
    assert found["error of float8"].verdict == verdict
    assert found["error of float8 beside outliers"].verdict == verdict
    assert found["error of float8"].row()[1] == "2.36 %"
    (ratio,) = (p for claim, p in found.items() if "int8" in claim)
    assert ratio.ratio == pytest.approx(21 / 20)


def test_sentences_of_perturbed_runs():
    whole = float8.render(complete())
    for done, data in perturbed(complete().data):
        found = float8.render(Run(data))
        assert found.keys() == whole.keys(), done
        for text in found.values():
            assert text[-1] == "." and "None" not in text and "nan" not in text, (done, text)
        for prediction in float8.predictions(Run(data)):
            assert len(prediction.row()) == 6, done
            check_verdict(prediction, done)


def test_a_run_without_them():
    assert float8.predictions(run()) == []
    assert all("not measured" in text for text in float8.render(run()).values())

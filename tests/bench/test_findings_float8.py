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
        "The matrix has an error of 1.0 % in int8 and of 2.6 % in float8. With one outlier in each "
        "row the error of the other weights is 21 times as large in int8 and 1.0 times as large in "
        "float8."
    )
    assert float8.quality(complete())["float8_quality_finding"] == (
        "With weights and activations in float8 the mean KL divergence is 0.035 nats, with 91 % "
        "equal greedy tokens."
    )


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

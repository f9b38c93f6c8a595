"""The sentences about fused layers, from records that are made here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lib.bench.findings.launch_overhead import overhead_fused as found
from lib.bench.records.series import Series


class FakeRun(dict):
    """A run with the series of the parts of a step, and a bandwidth of 20 GB/s."""

    roofline = SimpleNamespace(bandwidth=20e9)

    def __missing__(self, name):
        return None


def run(**changes):
    """Packed, then fused, at batch 1; `changes` replace columns."""
    columns = {
        "engine": ["packed", "fused"],
        "batch": [1, 1],
        "products": [0.040, 0.025],
        "attention": [0.002, 0.002],
        "rest of the model": [0.007, 0.001],
        "around the model": [0.001, 0.001],
        "step": [0.050, 0.029],
        "calls": [1000, 400],
        "weight_bytes": [5e8, 5e8],
    } | changes
    made = FakeRun()
    made["step_parts"] = Series("step_parts", "s", columns)
    return made


def test_the_prediction_is_in_proportion_to_calls():
    predicted, measured = found.fused_prediction(run())
    assert predicted == pytest.approx(0.004) and measured == pytest.approx(0.004)
    said = found.fused(run())
    assert (
        "1,000 calls" in said["fused_calls_finding"] and "makes 400" in said["fused_calls_finding"]
    )
    assert "10 ms to 4 ms: as predicted" in said["fused_around_finding"]
    assert "is attention (50 %)" in said["fused_around_finding"]


def test_a_slower_rest_fails_the_prediction():
    said = found.fused(run(**{"rest of the model": [0.007, 0.006]}))["fused_around_finding"]
    assert "the prediction failed" in said and "rest of the model (67 %)" in said


def test_products_over_the_bandwidth():
    said = found.fused(run())["fused_products_finding"]
    assert "1.6 times as fast" in said
    assert "100 % of the measured bandwidth, oneDNN's at 62 %" in said
    assert "predicted: as predicted" in said
    slower = found.fused(run(products=[0.040, 0.040]))["fused_products_finding"]
    assert "The time of the bytes was predicted: the prediction failed." in slower
    assert "too low" not in said
    faster = found.fused(run(products=[0.040, 0.020]))["fused_products_finding"]
    assert "measured too low" in faster


def test_products_by_onednn_in_both_steps_are_not_compared():
    said = found.fused(run(kernel=[found.ONEDNN] * 2))["fused_products_finding"]
    assert "oneDNN computes the products of both steps" in said and "times" not in said
    said = found.fused(run(kernel=[found.ONEDNN, found.TILES]))["fused_products_finding"]
    assert "1.6 times as fast" in said


def test_the_whole_step_by_batch():
    assert (
        "At batch 1, the fused step is 1.7 times as fast"
        in found.fused(run())["fused_step_finding"]
    )


@pytest.mark.parametrize(
    "gone", ["products", "attention", "rest of the model", "around the model", "calls"]
)
def test_what_is_not_measured_is_said(gone):
    said = found.fused(run(**{gone: [None, None]}))
    assert all(isinstance(text, str) and text.endswith(".") for text in said.values())
    assert any("not measured" in text for text in said.values())


def test_an_older_record_has_none_of_it():
    said = found.fused(FakeRun())
    assert len(said) == 4 and all("not measured" in text for text in said.values())
    assert found.fused_prediction(FakeRun()) == (None, None)


@pytest.mark.parametrize(
    "share, said",
    [(0.9, None), (1.0, None), (1.012, "the products reach it"), (1.3, "was measured too low")],
)
def test_a_share_above_the_bandwidth_is_explained(share, said):
    products = 5e8 / 20e9 / share
    text = found.fused(run(products=[0.040, products]))["fused_products_finding"]
    assert (said is None) != ("bandwidth is a measurement" in text or "too low" in text)
    assert said is None or said in text

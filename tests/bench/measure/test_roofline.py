"""The two ceilings: their arithmetic and their measurement."""

import time

import pytest
import torch

from lib.bench.measure.roofline import Roofline, measure_matmul, measure_roofline, tf32


def test_roofline_arithmetic():
    roof = Roofline("toy", bandwidth=100.0, flops={"float32": 1000.0, "bfloat16": 4000.0})
    assert roof.ridge() == 10 and roof.ridge(torch.bfloat16) == 40
    assert roof.time(bytes=200, flops=100) == 2.0  # bandwidth bounds
    assert roof.time(bytes=100, flops=5000) == 5.0  # arithmetic bounds
    assert roof.time(bytes=100, flops=5000, dtype=torch.bfloat16) == 1.25
    with pytest.raises(ValueError, match="float16.*measured: float32, bfloat16"):
        roof.time(flops=1, dtype="float16")


def test_measured_ceilings_are_plausible_and_quick():
    start = time.perf_counter()
    roof = measure_roofline("cpu", dtypes=("float32",), quick=True)
    assert time.perf_counter() - start < 20
    assert 1e8 < roof.bandwidth < 1e13 and 1e8 < roof.flops["float32"] < 1e15
    assert roof.bandwidth == max(roof.details.values()) and set(roof.details) == {"mv", "sum"}
    assert measure_matmul("cpu", torch.float32, quick=True) > 1e8


def test_tf32_is_restored_even_after_an_error():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), tf32(True):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError
    assert torch.get_float32_matmul_precision() == before

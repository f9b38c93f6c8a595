"""The bound of products with quantised weights: bytes up to a number of rows, operations above it."""

from __future__ import annotations

import pytest

from lib.bench.measure.product_bound import product_times, turning_rows
from lib.bench.measure.roofline import Roofline

MACHINE = Roofline("cpu", bandwidth=10e9, flops={"float32": 100e9})


def test_bytes_do_not_depend_on_the_rows_and_operations_do():
    one, many = (product_times(MACHINE, 4_000_000, 1_000_000, rows) for rows in (1, 16))
    assert one == pytest.approx((4e-4, 2e-5))
    assert many == pytest.approx((4e-4, 32e-5))


def test_fewer_bytes_meet_the_operations_at_fewer_rows():
    assert turning_rows(MACHINE, 4_000_000, 1_000_000) == pytest.approx(20)
    assert turning_rows(MACHINE, 1_000_000, 1_000_000) == pytest.approx(5)
    assert turning_rows(MACHINE, 1_000_000, 1_000_000, faster=4) == pytest.approx(20)
    rows = 5
    assert product_times(MACHINE, 1_000_000, 1_000_000, rows)[0] == pytest.approx(
        product_times(MACHINE, 1_000_000, 1_000_000, rows)[1]
    )


@pytest.mark.parametrize("rows, faster", [(0, 1.0), (1, 0.0)])
def test_refusals(rows, faster):
    with pytest.raises(ValueError, match=f"rows={rows}, faster={faster}"):
        product_times(MACHINE, 1, 1, rows, faster)

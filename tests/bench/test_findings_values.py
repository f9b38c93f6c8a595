"""One way to print numbers of any size."""

import math

import pytest

from lib.bench.findings.values import percent_above, scientific
from lib.bench.powers import power_of_ten


@pytest.mark.parametrize(
    "x, digits, said",
    [
        (0, 2, "0"),
        (3.84e-06, 2, "3.8 × 10⁻⁶"),
        (5.1e-03, 2, "0.0051"),
        (9.96e-4, 2, "0.001"),
        (9.94e-4, 2, "9.9 × 10⁻⁴"),
        (0.5, 2, "0.5"),
        (12.3, 2, "12"),
        (9960, 2, "1.0 × 10⁴"),
        (1234, 2, "1,200"),
        (2e-6, 1, "2 × 10⁻⁶"),
        (-2e-6, 1, "−2 × 10⁻⁶"),
        (-0.25, 2, "−0.25"),
        (5e-324, 2, "4.9 × 10⁻³²⁴"),
        (1e300, 1, "1 × 10³⁰⁰"),
        (math.inf, 2, "inf"),
    ],
)
def test_a_number_of_any_size(x, digits, said):
    assert scientific(x, digits).replace("\u00a0", " ") == said
    assert " " not in scientific(x, digits)  # no line may break inside of a number


def test_powers_of_ten():
    assert [power_of_ten(n) for n in (0, 12, -300)] == ["10⁰", "10¹²", "10⁻³⁰⁰"]


@pytest.mark.parametrize(
    "fraction, said", [(0.4, "40 %"), (0.2, "20 %"), (0.25, "25 %"), (0.254, "25.4 %"), (0.25004, "25.004 %")]
)  # fmt: skip
def test_a_percentage_above_a_limit_prints_above_it(fraction, said):
    assert percent_above(fraction, 0.25) == said

"""The realistic setting of chapters 1 and 9, against the arithmetic done by hand."""

import pytest

from lib.bench.findings.realistic import realistic_prompt


def ms(cell):
    number, unit = cell.split()
    return float(number) * {"s": 1e3, "ms": 1, "µs": 1e-3}[unit]


def test_a_pass_takes_the_larger_of_bytes_and_operations():
    rows = realistic_prompt.forward_rows()
    for tokens, read, computed, bound in rows:
        assert ms(read) == pytest.approx(13.2e9 / 3.35e12 * 1e3, rel=0.01)
        assert ms(bound) == max(ms(read), ms(computed)), tokens
    # 2 operations per weight and token, the vocabulary matrix once: 2 · 6.48 G · 512 and the attention.
    assert ms(rows[2][2]) == pytest.approx(2 * 6.48e9 * 512 / 989e12 * 1e3, rel=0.03)
    assert "meet at 295 tokens" in realistic_prompt.forward()["realistic_finding"]


def test_what_is_found_is_not_computed_and_the_weights_are_read_all_the_same():
    rows = realistic_prompt.prefix_rows()
    least = [ms(row[2]) for row in rows]
    assert least == sorted(least, reverse=True) and rows[0][3] == "1.0"
    assert least[0] == ms(realistic_prompt.forward_rows()[-1][3])
    # All but a block found: the weights and 4,096 tokens of 524 kB are read, and little is computed.
    assert least[-1] == pytest.approx((13.2e9 + 4096 * 524288) / 3.35e12 * 1e3, rel=0.01)
    said = realistic_prompt.prefix()["realistic_finding"]
    assert "256 times fewer tokens" in said and "2.15 GB" in said and rows[-1][2] in said

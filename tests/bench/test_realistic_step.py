"""The realistic setting of chapters 10 to 12, against the arithmetic done by hand."""

import re

import pytest

from lib.bench.findings.realistic import realistic_step

WEIGHTS, BANDWIDTH, RATE = 13.2e9, 3.35e12, 989e12
CACHE = 524288  # bytes per token: 2 · 32 layers · 4,096 numbers · 2 bytes


def ms(cell):
    number, unit = cell.split()
    return float(number) * {"s": 1e3, "ms": 1, "µs": 1e-3}[unit]


def test_drafts_gain_while_reading_is_the_limit():
    one_short, full_short, one_long, full_long = realistic_step.speculation_rows()
    # 1 + 0.7 + 0.49 + 0.343 + 0.2401 tokens per step, and nearly the same bytes.
    assert float(one_short[4]) == pytest.approx(2.773, abs=0.01)
    assert float(one_long[4]) == pytest.approx(2.773, abs=0.02)
    for _, batch, plain, verifying, gain in (full_short, full_long):
        assert int(batch.replace(",", "")) > 100
        assert float(gain) == pytest.approx(2.773 * ms(plain) / ms(verifying), rel=0.01)
    sequences = int(full_long[1])
    assert ms(full_long[2]) == pytest.approx(
        1e3 * (WEIGHTS + sequences * 1000 * CACHE) / BANDWIDTH, rel=0.01
    )
    assert float(full_long[4]) > 2.7
    # Five rows of 990 sequences: 2 · 6.6 G operations per row, more than the bytes take.
    rows = 5 * int(full_short[1].replace(",", ""))
    assert ms(full_short[3]) == pytest.approx(1e3 * rows * 2 * 6.6e9 / RATE, rel=0.05)
    assert float(full_short[4]) < 1.1
    said = realistic_step.speculation()["realistic_finding"]
    assert "2.8 times the throughput at most" in said and f"{sequences} that fit" in said


def test_fewer_bits_read_fewer_bytes():
    rows = realistic_step.quantisation_rows()
    assert [row[2] for row in rows] == ["295", "148", "92"]
    for (_, size, _, one, many, with_int8), bits in zip(rows, (16, 8, 5)):
        weights = WEIGHTS * bits / 16
        assert float(size) == pytest.approx(weights / 1e9, abs=0.06)
        assert ms(one) == pytest.approx(1e3 * (weights + 1000 * CACHE) / BANDWIDTH, rel=0.01)
        cache = 64_000 * CACHE
        assert ms(many) == pytest.approx(1e3 * (weights + cache) / BANDWIDTH, rel=0.01)
        # 128 codes of a byte and a float32 scale, in the place of 256 bytes.
        small = cache * 132 / 256
        assert ms(with_int8) == pytest.approx(1e3 * (weights + small) / BANDWIDTH, rel=0.01)
    said = realistic_step.quantisation()["realistic_finding"]
    one, both = (
        float(n) for n in re.search(r"one sequence (\S+) times.*both (\S+) times", said).groups()
    )
    assert one == pytest.approx(ms(rows[0][3]) / ms(rows[2][3]), abs=0.06)
    assert both == pytest.approx(ms(rows[0][4]) / ms(rows[2][5]), abs=0.06)


def test_masks_are_a_small_part_of_the_bytes():
    said = realistic_step.masks()["realistic_finding"]
    assert "32,000 tokens" in said and "16.6 MB" in said and "less than 1 %" in said
    step = (WEIGHTS + 64_000 * CACHE) / BANDWIDTH
    assert f"at least {1e3 * step:.1f}0 ms" in said or f"at least {1e3 * step:.1f} ms" in said
    assert f"{1e6 * step / 64:.0f} µs for each" in said

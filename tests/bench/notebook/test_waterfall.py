"""The spans of a waterfall: on each row nothing overlaps, and the rows take as long as the slower side."""

from __future__ import annotations

import pytest

from lib.bench.notebook.waterfall import one_by_one, side_by_side

PARTS = {"schedule": 1.0, "build": 2.0, "sample": 3.0, "update": 4.0, "hand out": 5.0}


@pytest.mark.parametrize("device", [2.0, 30.0])
@pytest.mark.parametrize("rows_of", [one_by_one, side_by_side])
def test_nothing_overlaps_on_a_row_and_all_parts_are_there(rows_of, device):
    host, busy = rows_of(PARTS, device, steps=3).values()
    for spans in (host, busy):
        assert all(a[2] <= b[1] for a, b in zip(spans, spans[1:]))
    assert [name for name, *_ in host] == 3 * list(PARTS)
    assert all(end - start == pytest.approx(device) for _, start, end in busy)


@pytest.mark.parametrize("device, alone, beside", [(2.0, 15.0, 15.0), (30.0, 42.0, 30.0)])
def test_a_step_takes_as_long_as_it_must(device, alone, beside):
    """One by one, only the sampler's launch is hidden; side by side, the shorter side is."""
    starts = {
        rows_of: [s[1] for s in rows_of(PARTS, device, 2)[row] if s[0] == "schedule"]
        for rows_of, row in ((one_by_one, "host"), (side_by_side, "host, ahead"))
    }
    assert starts[one_by_one] == pytest.approx([0, alone])
    assert starts[side_by_side] == pytest.approx([0, beside])

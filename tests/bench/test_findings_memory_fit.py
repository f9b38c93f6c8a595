"""A sweep is cut to the memory that is free, and the sentence names what is missing."""

import pytest

from lib.bench.findings.batching.memory_fit import all_fit, fitting

GB = 1e9


def needed(batch):
    return 0.1 * GB * batch


def test_all_of_it():
    fit = fitting("batch", [1, 4, 16], needed, 100 * GB)
    assert fit.sizes == [1, 4, 16] and fit.left_out == []
    assert fit.sentence == "Every batch of this sweep fits into the memory of this device."


def test_a_part_of_it():
    fit = fitting("batch", [1, 64, 100, 128], needed, 10 * GB)  # 8 GB may be used
    assert fit.sizes == [1, 64]
    assert fit.sentence == (
        "Left out for lack of memory: batch 100 (10.0 GB) and 128 (12.8 GB). "
        "10.0 GB were free on this device."
    )


def test_nothing_of_it():
    with pytest.raises(ValueError, match="batch 4 needs 0.4 GB, more than 80% of the 0.4 GB"):
        fitting("batch", [4, 8], needed, 0.4 * GB)


def test_several_complete_sweeps_are_said_at_once():
    fits = [fitting(what, [1, 2], lambda n: n, 100) for what in ("batch", "context")]
    said = "Every batch and every context of these sweeps fit into the memory of this device."
    assert all_fit(fits) == said
    cut = fitting("batch", [1, 60, 70, 80], lambda n: n * 1e9, 50e9)
    assert all_fit([cut, fits[1]]) == f"{cut.sentence} {fits[1].sentence}"
    assert "batch 60 (60.0 GB), 70 (70.0 GB) and 80 (80.0 GB)." in cut.sentence

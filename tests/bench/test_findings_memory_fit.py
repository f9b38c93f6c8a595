"""A sweep is cut to the memory that is free, and the sentence names what is missing."""

import pytest

from lib.bench.findings.batching.memory_fit import fitting

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

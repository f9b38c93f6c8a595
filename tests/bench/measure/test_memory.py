"""Peak memory and utilisation of a block."""

import mmap
import time

import pytest
import torch

from lib.bench.measure.memory import Sampler, UtilisationSampler, page_faults, peak_memory


def test_peak_memory_sees_a_temporary_array():
    size = 200 * 2**20
    with peak_memory("cpu", interval=0.002) as peak:
        # Memory of its own: an array can get what an earlier test has freed and the process has kept.
        block = mmap.mmap(-1, size)
        torch.frombuffer(block, dtype=torch.float32).fill_(1.0)
        time.sleep(0.2)
        block.close()
    assert peak.bytes == peak.rss and 0.8 * size < peak.rss < 2.5 * size and peak.allocated is None


def test_utilisation_of_a_busy_and_an_idle_block():
    with UtilisationSampler("cpu", interval=0.05) as busy:
        end = time.perf_counter() + 0.4
        while time.perf_counter() < end:
            sum(range(1000))
    with UtilisationSampler("cpu", interval=0.05) as idle:
        time.sleep(0.3)
    assert busy.mean > idle.mean and busy.peak <= 100 and len(busy.samples) > 2
    with pytest.raises(ValueError):
        Sampler(lambda: 0, 0)


def faults_of_writing(block):
    """Page faults while one byte of each page is written."""
    before = page_faults()
    for at in range(0, len(block), 4096):
        block[at] = 1
    return page_faults() - before


def test_page_faults_count_the_fresh_pages_that_a_block_writes():
    pages = 20_000
    block = mmap.mmap(-1, 4096 * pages)  # malloc may hand out memory that was freed before
    written = faults_of_writing(block)
    again = faults_of_writing(block)
    assert written > 20 and again < written / 2  # with huge pages some 40, with small ones 20,000

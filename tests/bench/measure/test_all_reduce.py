"""The all-reduce's time by bytes, and the step that it predicts."""

from __future__ import annotations

import pytest

from lib.bench.measure.all_reduce import Link, ParallelStep, fit_link, measure_all_reduce
from lib.models.checkpoint import GPT2_CONFIG, empty_model
from lib.models.config import ModelConfig

LLAMA = ModelConfig(
    "llama",
    vocab_size=1000,
    hidden_size=96,
    num_layers=3,
    num_heads=12,
    num_kv_heads=3,
    head_dim=8,
    intermediate_size=128,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)
LINK = Link(latency=1e-4, bandwidth=1e9)


def test_a_fit_finds_latency_and_bandwidth_from_medians():
    samples = {n: [1e-4 + n / 2e9, 1e-4 + n / 2e9, 1.0] for n in (10, 10**4, 10**6)}
    link = fit_link(samples)
    assert link.latency == pytest.approx(1e-4) and link.bandwidth == pytest.approx(2e9)
    assert link.seconds(2e6) == pytest.approx(1.1e-3)
    assert link.samples[10] == tuple(samples[10])


def test_a_fit_is_never_negative():
    falling = fit_link({10: [2e-4], 10**6: [1e-4]})
    assert falling.bandwidth == float("inf") and 1e-4 < falling.latency < 2e-4
    steep = fit_link({10**3: [1e-6], 10**6: [1e-2]})
    assert steep.latency == 0 and steep.bandwidth > 0
    with pytest.raises(ValueError, match="at least two sizes, got \\[4\\]"):
        fit_link({4: [1.0]})


def test_two_processes_are_measured():
    link = measure_all_reduce((64, 65536), repeats=3, warmup=1)
    assert set(link.samples) == {64, 65536}
    assert all(len(times) == 3 and min(times) > 0 for times in link.samples.values())
    assert link.latency >= 0 and link.bandwidth > 0


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="need size >= 2"):
        measure_all_reduce(size=1)
    with pytest.raises(ValueError, match="divided must be in"):
        ParallelStep(LLAMA, LINK).seconds(1.0, 1, 1, divided=1.5)


def test_the_share_of_rank_0_counts_weights_of_products():
    assert ParallelStep(GPT2_CONFIG, LINK, 2).share == pytest.approx(0.5, abs=1e-4)
    # 3 K/V heads on 2 ranks: rank 0 has two thirds of the attention.
    attention, mlp, head = 3 * 2 * 15 * 8 * 96, 3 * 3 * 128 * 96, 1000 * 96
    expected = (attention * 2 / 3 + mlp / 2 + head / 2) / (attention + mlp + head)
    assert ParallelStep(LLAMA, LINK, 2).share == pytest.approx(expected)
    model = empty_model(LLAMA)
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embedding" not in n]
    assert attention + mlp + head == sum(p.numel() for p in matrices)


def test_communication_is_counted():
    step = ParallelStep(LLAMA, LINK, 2)
    assert step.num_all_reduces == 7
    expected = 7 * (1e-4 + 5 * 96 * 4 / 1e9) + (1e-4 + 2 * 500 * 4 / 1e9) + 2e-4
    assert step.communication(num_tokens=5, num_rows=2) == pytest.approx(expected)


def test_amdahl_with_communication():
    step = ParallelStep(GPT2_CONFIG, Link(0.0, float("inf")), 2)
    assert step.seconds(1.0, 1, 1) == pytest.approx(0.5, abs=1e-4)
    assert step.seconds(1.0, 1, 1, divided=0.8) == pytest.approx(0.6, abs=1e-4)
    assert step.speedup(1.0, 1, 1, divided=0.0) == 1.0
    slow = ParallelStep(GPT2_CONFIG, Link(1.0, 1e9), 2)
    assert slow.speedup(1.0, 1, 1) < 1 / 25

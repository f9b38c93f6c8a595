"""Experts that a step reads: counted, expected, and their bytes."""

from __future__ import annotations

import pytest
import torch

from lib.attention.full import FullAttention
from lib.bench.family_table import default_config
from lib.bench.findings import experts as words
from lib.bench.measure import counts
from lib.bench.measure.expert_counts import (
    counting_experts,
    expected_experts,
    step_weight_bytes,
)
from lib.bench.records.series import make_series
from lib.core.batch import Batch
from lib.models.checkpoint import load_model
from tests.families import hf_variant


def test_experts_are_counted_in_every_call(tmp_path):
    hf_variant("qwen3_moe").save_pretrained(tmp_path)  # a mixture in its second layer of three
    model = load_model(tmp_path).model
    with torch.inference_mode(), counting_experts(model) as found:
        model(Batch.of_prompts([[5, 9, 11, 30]]), FullAttention())
        model(Batch.of_prompts([[5]]), FullAttention())
    assert [tokens for tokens, _ in found] == [4, 1]
    assert 3 <= found[0][1] <= 7 and found[1][1] == 3
    model(Batch.of_prompts([[5]]), FullAttention())
    assert len(found) == 2  # the hooks are gone


def test_expected_experts():
    assert expected_experts(8, 2, 1) == pytest.approx(2)
    assert expected_experts(8, 2, 2) == pytest.approx(3.5)
    assert 7.9999 < expected_experts(8, 2, 64) < 8


def test_the_bytes_of_mixtral():
    """47 thousand million parameters, of which a token meets 13."""
    config = default_config("mixtral")
    one, every = (step_weight_bytes(config, "bfloat16", n) for n in (2, 8))
    assert one == counts.streamed_bytes(config, "bfloat16")
    embedding = config.vocab_size * config.hidden_size
    assert every == 2 * (counts.parameters(config) - embedding)
    assert counts.parameters(config) / 1e9 == pytest.approx(46.7, abs=0.05)
    assert one / 2e9 == pytest.approx(12.7, abs=0.1)


@pytest.mark.parametrize(
    "counted, said", [([2.0, 7.9], "at least 90 %"), ([2.0, 6.0], "only 76 % of the experts")]
)
def test_the_sentence_follows_the_counts(counted, said):
    columns = {"batch": [1, 32], "counted": counted, "expected": [2.0, 7.9]}
    series = make_series("experts", unit="experts", columns=columns, params={"experts": 8}, seed=0)
    text = words.spread(series)
    assert said in text and f"reads {counted[-1]:.1f} of 8 experts" in text

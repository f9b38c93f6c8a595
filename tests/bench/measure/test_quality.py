"""Perplexity, KL divergence and equal tokens, against sums written out and models whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch

from lib.bench.measure.quality import Quality, compare, log_probs, perplexity
from lib.models.quantized.load import load_quantized
from tests.helpers import VOCAB, prompt_of

TEXT = prompt_of(50, 1)


def quantized(tiny, kind: str):
    return load_quantized(tiny.folder, kind, "float32", torch.device("cpu"), torch.float32).model


def test_a_model_beside_itself(llama):
    result = compare(llama.model, llama.model, TEXT, window=20)
    assert result.num_tokens == 19 + 19 + 9
    assert result.kl_divergence == result.kl_largest == 0.0 and result.same_greedy == 1.0
    assert result.perplexity == result.reference_perplexity == perplexity(llama.model, TEXT, 20)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_sums_written_out(tiny, name):
    """One prediction after the other, each from the oracle's logits of its own pass."""
    exact, rough = tiny[name], quantized(tiny[name], "int8")
    result = compare(rough, exact.model, TEXT[:12], window=6)
    kl, ours, theirs, same = [], 0.0, 0.0, 0
    for start in (0, 6):
        for n in range(1, 6):
            before = TEXT[start : start + n]
            p = exact.logits(before).double().log_softmax(-1)
            q = log_probs(rough, [*before, 0])[-1]
            kl.append(sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist())))
            target = TEXT[start + n]
            ours, theirs = ours + q[target].item(), theirs + p[target].item()
            same += int(p.argmax() == q.argmax())
    assert result.num_tokens == 10
    assert result.kl_divergence == pytest.approx(sum(kl) / 10, rel=1e-3)
    assert result.kl_largest == pytest.approx(max(kl), rel=1e-3)
    assert result.perplexity == pytest.approx(math.exp(-ours / 10), rel=1e-5)
    assert result.reference_perplexity == pytest.approx(math.exp(-theirs / 10), rel=1e-5)
    assert result.same_greedy == same / 10
    assert perplexity(rough, TEXT[:12], 6) == pytest.approx(result.perplexity)


def test_more_bits_are_closer(gpt2):
    """8 bits per channel against weights rounded to 3 bits: every measure but perplexity has an order."""
    eight = compare(quantized(gpt2, "int8"), gpt2.model, TEXT)
    coarse = quantized(gpt2, "int8")
    for module in coarse.modules():
        if hasattr(module, "words"):
            module.words.copy_((module.words / 32).round_() * 32)
    three = compare(coarse, gpt2.model, TEXT)
    assert isinstance(three, Quality)
    assert 0 < eight.kl_divergence < three.kl_divergence and eight.kl_largest < three.kl_largest
    assert three.same_greedy < eight.same_greedy <= 1


def test_a_model_without_preferences_has_its_vocabulary_as_perplexity(gpt2):
    model = quantized(gpt2, "int8")
    model.lm_head.rows.words.zero_()
    assert perplexity(model, TEXT) == pytest.approx(VOCAB, rel=1e-6)


@pytest.mark.parametrize(
    "ids, window, message",
    [
        (TEXT[:1], 8, "token_ids must hold at least two tokens, got 1"),
        (TEXT, 1, "window must be >= 2 and <= 512, the model's positions, got 1"),
        (TEXT, 513, "window must be .* got 513"),
    ],
)
def test_out_of_range(llama, ids, window, message):
    with pytest.raises(ValueError, match=message):
        compare(llama.model, llama.model, ids, window)
    with pytest.raises(ValueError, match=message):
        perplexity(llama.model, ids, window)


def test_different_vocabularies(llama, tmp_path):
    from lib.models.checkpoint import load_model
    from tests.helpers import llama_checkpoint

    other = load_model(llama_checkpoint(tmp_path, seed=1, vocab_size=40)).model
    with pytest.raises(ValueError, match="vocabulary of 61 tokens, got 40"):
        compare(other, llama.model, TEXT[:4])

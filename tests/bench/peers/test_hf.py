"""The transformers peers generate exactly what was asked for, and the same tokens in every way of batching."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lib.bench.peers.hf import attempt, hf_generate, hf_generate_batch

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
LIMITS = [5, 9, 3]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=100, max_position_embeddings=128,
    )).eval()  # fmt: skip


@pytest.fixture(scope="module")
def alone(model):
    """Each prompt on its own, greedily, by the forward pass alone."""
    rows = []
    for prompt, limit in zip(PROMPTS, LIMITS):
        ids = list(prompt)
        for _ in range(limit):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        rows.append(ids[len(prompt) :])
    return rows


@pytest.mark.parametrize("use_cache", [True, False])
def test_static_batches(model, alone, use_cache):
    result = hf_generate(
        model, PROMPTS, LIMITS, batch_size=2, use_cache=use_cache, warmup=0, repeats=2
    )
    assert result["token_ids"] == alone and result["tokens"] == 17
    assert (
        result["steps"] == 9 + 3 and result["slot_steps"] == 2 * 9 + 3
    )  # a batch runs to its longest
    assert len(result["timing"].samples) == 2 and result["seconds"] > 0
    assert (
        result["tokens_per_second"] == pytest.approx(17 / result["seconds"])
        and result["versions"]["transformers"]
    )


def test_a_static_cache_has_one_length_for_all_batches(model, alone):
    result = hf_generate(model, PROMPTS, LIMITS, batch_size=2, cache="static", warmup=0, repeats=1)
    assert result["token_ids"] == alone and result["api"] == "generate, static cache"
    assert model._previous_max_cache_length >= 5 + 9  # the longest prompt and answer of the batches


def test_continuous_batching(model, alone):
    attention = model.config._attn_implementation
    result = hf_generate_batch(model, PROMPTS, LIMITS, warmup=1, repeats=2)
    assert (
        result["token_ids"] == alone
        and result["tokens"] == 17
        and len(result["timing"].samples) == 2
    )
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("prompt, limit, page", [(8, 50, 64), (3, 2, 16), (1000, 100, 256)])
def test_pages_are_no_longer_than_the_requests(model, monkeypatch, prompt, limit, page):
    """Pages of 256 tokens for 512 requests of 58 would take four times the memory that they need."""
    import transformers

    made = {}

    class Config(transformers.ContinuousBatchingConfig):
        def __init__(self, **options):
            made.update(options)
            raise RuntimeError("seen")

    monkeypatch.setattr(transformers, "ContinuousBatchingConfig", Config)
    with pytest.raises(RuntimeError, match="seen"):
        hf_generate_batch(model, [[1] * prompt] * 4, limit)
    assert made.get("page_size", made.get("block_size")) == page
    assert made["num_blocks"] == 4 * (-(-(prompt + limit) // page) + 1)


def test_a_baseline_that_fails_is_reported_in_one_line(capsys):
    def compile_something():
        raise RuntimeError("\n  no compiler\nand a long trace")

    assert attempt("generate", lambda: 3) == 3 and capsys.readouterr().out == ""
    assert attempt("generate, static cache", compile_something) is None
    said = capsys.readouterr().out
    assert (
        said
        == "generate, static cache does not run here, and is left out: RuntimeError: no compiler\n"
    )


def test_eos_ends_a_sequence_only_when_it_counts(model, alone):
    saved, eos = model.generation_config.eos_token_id, alone[1][2]
    expected = [row[: row.index(eos) + 1] if eos in row else row for row in alone]
    try:
        model.generation_config.eos_token_id = eos
        assert hf_generate(model, PROMPTS, LIMITS, warmup=0, repeats=1)["token_ids"] == alone
        for peer in (hf_generate, hf_generate_batch):
            assert (
                peer(model, PROMPTS, LIMITS, ignore_eos=False, warmup=0, repeats=1)["token_ids"]
                == expected
            )
        assert model.generation_config.eos_token_id == eos  # put back
    finally:
        model.generation_config.eos_token_id = saved


@pytest.mark.parametrize("prompts, limits, options", [
    ([], 3, {}), ([[]], 3, {}), ([[1]], 0, {}), ([[1]], [1, 2], {}), ([[1]], 3, {"cache": "warm"}),
    ([[1]], 3, {"batch_size": 0}),
])  # fmt: skip
def test_peers_refuse(model, prompts, limits, options):
    with pytest.raises(ValueError):
        hf_generate(model, prompts, limits, **options)

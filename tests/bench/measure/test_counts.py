"""Counted numbers against brute force: torch's own parameter and FLOP counts of transformers' models."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lib.bench.measure import counts
from lib.bench.measure.roofline import Roofline


def gpt2(d=48, heads=3, layers=2, vocab=101, positions=32, inner=None, tied=True):
    model = GPT2LMHeadModel(GPT2Config(
        n_embd=d, n_head=heads, n_layer=layers, vocab_size=vocab, n_positions=positions, n_inner=inner,
        tie_word_embeddings=tied, attn_implementation="eager",
    ))  # fmt: skip
    return model, SimpleNamespace(
        architecture="gpt2", vocab_size=vocab, hidden_size=d, num_layers=layers, num_heads=heads, num_kv_heads=heads,
        head_dim=d // heads, intermediate_size=inner or 4 * d, max_position_embeddings=positions, attention_bias=True,
        mlp_bias=True, tie_word_embeddings=tied,
    )  # fmt: skip


def llama(
    d=48, heads=6, kv_heads=2, head_dim=8, layers=3, vocab=101, inner=80, tied=False, bias=False
):
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=d, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        num_hidden_layers=layers, vocab_size=vocab, intermediate_size=inner, tie_word_embeddings=tied,
        attention_bias=bias, mlp_bias=bias, max_position_embeddings=64, attn_implementation="eager",
    ))  # fmt: skip
    return model, SimpleNamespace(
        architecture="llama", vocab_size=vocab, hidden_size=d, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=head_dim, intermediate_size=inner, max_position_embeddings=64,
        attention_bias=bias, mlp_bias=bias, tie_word_embeddings=tied,
    )  # fmt: skip


MODELS = {
    "gpt2": lambda: gpt2(),
    "gpt2 untied, odd inner": lambda: gpt2(inner=70, tied=False),
    "llama gqa": lambda: llama(),
    "llama mha tied": lambda: llama(kv_heads=6, tied=True),
    "llama mqa, wide heads, bias": lambda: llama(kv_heads=1, head_dim=12, bias=True),
}


@pytest.fixture(params=MODELS, scope="module")
def pair(request):
    torch.manual_seed(0)
    return MODELS[request.param]()


def test_parameters(pair):
    model, config = pair
    assert counts.parameters(config) == sum(p.numel() for p in model.parameters())
    assert counts.weight_bytes(config, torch.bfloat16) == 2 * counts.parameters(config)


def test_streamed_weights_are_all_but_the_tables(pair):
    model, config = pair
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    head = model.lm_head.weight
    looked_up = sum(m.weight.numel() for m in tables if m.weight is not head)
    assert counts.streamed_bytes(config, "float32") == 4 * (counts.parameters(config) - looked_up)


def test_flops_of_a_prompt(pair):
    model, config = pair
    ids = torch.randint(0, 101, (1, 13))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids, use_cache=False)
    # Eager attention multiplies the whole rectangle and masks it afterwards; the counter counts every position's logits.
    assert counts.flops(config, 13, 13, logits=13, causal=False) == _without_rope(counter)


def test_flops_of_one_token_with_a_cache(pair):
    model, config = pair
    ids = torch.randint(0, 101, (1, 9))
    with torch.no_grad():
        cache = model(ids[:, :8], use_cache=True).past_key_values
        with FlopCounterMode(display=False) as counter:
            model(ids[:, 8:], past_key_values=cache)
    assert counts.decode_flops(config, 9) == _without_rope(counter)


def test_generation_is_the_sum_of_its_passes(pair):
    model, config = pair
    ids = torch.randint(0, 101, (1, 5))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for _ in range(4):
            logits = model(ids, use_cache=False, logits_to_keep=1).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    masked = sum(config.num_layers * 4 * config.num_heads * config.head_dim * (n * n - counts.attention_pairs(n, n))
                 for n in range(5, 9))  # fmt: skip
    assert counts.generate_flops(config, 5, 4, kv_cache=False) + masked == _without_rope(counter)
    with_cache = counts.prefill_flops(config, 5) + sum(
        counts.decode_flops(config, n) for n in (6, 7, 8)
    )
    assert counts.generate_flops(config, 5, 4) == with_cache


def test_kv_bytes(pair):
    model, config = pair
    with torch.no_grad():
        cache = model(torch.randint(0, 101, (1, 7)), use_cache=True).past_key_values
    held = sum(
        t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values)
    )
    assert counts.kv_bytes_per_token(config, torch.float32) * 7 == held


def test_step_bytes_and_intensity_grow_with_the_batch(pair):
    _, config = pair
    one, four = (counts.step_bytes(config, "float32", [100] * n) for n in (1, 4))
    assert four - one == 300 * counts.kv_bytes_per_token(config, "float32")
    assert counts.intensity(config, "float32", [100]) < counts.intensity(
        config, "float32", [100] * 4
    )


def test_causal_pairs_against_a_mask():
    for query in range(1, 9):
        for kv in range(query, 12):
            mask = torch.arange(kv) <= torch.arange(kv - query, kv)[:, None]
            assert counts.attention_pairs(query, kv) == int(mask.sum())
    with pytest.raises(ValueError, match="query_len=5, kv_len=4"):
        counts.attention_pairs(5, 4)


def test_published_sizes():
    _, config = gpt2(d=8, heads=1)
    config.__dict__.update(vocab_size=50257, hidden_size=768, num_layers=12, num_heads=12, num_kv_heads=12, head_dim=64,
                           intermediate_size=3072, max_position_embeddings=1024)  # fmt: skip
    assert counts.parameters(config) == 124_439_808
    assert counts.kv_bytes_per_token(config, "float32") == 73_728


def test_utilisation_and_errors():
    roof = Roofline("toy", 1e9, {"float32": 1e12})
    assert counts.mfu(5e11, 1.0, roof) == 0.5 and counts.mbu(2.5e8, 0.5, roof) == 0.5
    for bad in ("float99", None, "tensor"):
        with pytest.raises(ValueError, match="dtype"):
            counts.dtype_bytes(bad)
    with pytest.raises(ValueError, match="new_tokens=0"):
        counts.generate_flops(gpt2()[1], 4, 0)


def _without_rope(counter):
    """Total of the counter less the angles of the rotary embedding: an outer product that it counts as a bmm."""
    total = counter.get_total_flops()
    for module, ops in counter.get_flop_counts().items():
        if module.endswith("rotary_emb"):
            total -= sum(ops.values())
    return total

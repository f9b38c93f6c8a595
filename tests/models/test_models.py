"""Our forward passes against transformers', on shapes that nobody tuned for. Tolerance: 1e-4 in float32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.attention.full import FullAttention
from lib.core.batch import Batch
from lib.models.checkpoint import load_model
from lib.models.llama import rope_frequencies
from tests.helpers import hf_gpt2, hf_llama

TOLERANCE = 1e-4
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def difference(hf, folder, lengths=(1, 7, 3, 20, 20), positions=0) -> float:
    """Largest difference of the last token's logits over ragged sequences."""
    hf.save_pretrained(folder)
    loaded = load_model(folder)
    generator = torch.Generator().manual_seed(5)
    prompts = [
        torch.randint(0, loaded.config.vocab_size, (n,), generator=generator).tolist()
        for n in lengths
    ]
    with torch.inference_mode():
        ours = loaded.model(Batch.of_prompts(prompts), FullAttention())
        theirs = torch.stack([hf(torch.tensor([p])).logits[0, -1] for p in prompts])
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.5, "logits this small would agree whatever the model does"
    return (ours - theirs).abs().max().item()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            dict(num_attention_heads=5, num_key_value_heads=5, hidden_size=40), id="odd-heads-gqa1"
        ),
        pytest.param(
            dict(num_attention_heads=9, num_key_value_heads=3, hidden_size=72), id="odd-heads-gqa3"
        ),
        pytest.param(dict(num_attention_heads=8, num_key_value_heads=1, hidden_size=64), id="gqa8"),
        pytest.param(
            dict(num_attention_heads=16, num_key_value_heads=2, hidden_size=64),
            id="gqa8-two-groups",
        ),
        pytest.param(dict(tie_word_embeddings=True), id="tied"),
        pytest.param(dict(attention_bias=True), id="attention-bias"),
        pytest.param(dict(mlp_bias=True), id="mlp-bias"),
        pytest.param(
            dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
            id="both-biases-tied",
        ),
        pytest.param(
            dict(head_dim=10, num_attention_heads=7, num_key_value_heads=7, hidden_size=35),
            id="head-dim-10",
        ),
        pytest.param(
            dict(head_dim=64, num_attention_heads=3, num_key_value_heads=1, hidden_size=42),
            id="head-dim-64",
        ),
        pytest.param(dict(head_dim=2), id="head-dim-2"),
        pytest.param(dict(rope_parameters=LLAMA3), id="rope-llama3"),
        pytest.param(
            dict(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
            id="rope-linear",
        ),
        pytest.param(
            dict(rope_parameters={"rope_type": "default", "rope_theta": 100.0}), id="rope-theta-100"
        ),
        pytest.param(dict(rms_norm_eps=1e-2), id="large-eps"),
        pytest.param(dict(vocab_size=7, num_hidden_layers=1, intermediate_size=1), id="smallest"),
    ],
)
def test_llama_equals_transformers(tmp_path, changes):
    assert difference(hf_llama(3, **changes), tmp_path) <= TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="three-heads"),
        pytest.param(dict(n_head=1), id="one-head"),
        pytest.param(dict(n_head=7, n_embd=35), id="odd-head-dim"),
        pytest.param(dict(n_inner=50), id="n-inner"),
        pytest.param(dict(tie_word_embeddings=False), id="untied"),
        pytest.param(dict(layer_norm_epsilon=1e-2), id="large-eps"),
        pytest.param(dict(activation_function="gelu_pytorch_tanh"), id="gelu-tanh"),
        pytest.param(dict(vocab_size=5, n_layer=1, n_inner=1), id="smallest"),
    ],
)
def test_gpt2_equals_transformers(tmp_path, changes):
    assert difference(hf_gpt2(4, **changes), tmp_path) <= TOLERANCE


@settings(max_examples=15)
@given(
    kv_heads=st.integers(1, 3),
    ratio=st.sampled_from([1, 3, 8]),
    half=st.integers(1, 9),
    width=st.integers(2, 4),
    tied=st.booleans(),
    attention_bias=st.booleans(),
    mlp_bias=st.booleans(),
    llama3=st.booleans(),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    seed=st.integers(0, 9),
)
def test_random_llamas_equal_transformers(
    tmp_path_factory,
    kv_heads,
    ratio,
    half,
    width,
    tied,
    attention_bias,
    mlp_bias,
    llama3,
    lengths,
    seed,
):
    hidden = (
        8 * ratio * kv_heads if ratio == 1 else width * ratio * kv_heads
    )  # transformers wants a multiple
    hf = hf_llama(
        seed,
        num_key_value_heads=kv_heads,
        num_attention_heads=kv_heads * ratio,
        head_dim=2 * half,
        hidden_size=hidden,
        intermediate_size=hidden + 7,
        tie_word_embeddings=tied,
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
        **({"rope_parameters": LLAMA3} if llama3 else {}),
    )
    assert difference(hf, tmp_path_factory.mktemp("random"), lengths) <= TOLERANCE


@pytest.mark.parametrize(
    "rope", [None, LLAMA3, {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}]
)
def test_rope_table_equals_transformers_at_every_position(tmp_path, rope):
    hf = hf_llama(1, head_dim=16, **({} if rope is None else {"rope_parameters": rope}))
    hf.save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype=torch.bfloat16).model
    assert model.cos_table.dtype == torch.float32, "bfloat16 cannot tell position 257 from 256"
    positions = torch.arange(hf.config.max_position_embeddings)[None]
    cos, sin = hf.model.rotary_emb(torch.zeros(1), positions)
    assert torch.allclose(model.cos_table, cos[0, :, :8], atol=1e-5)
    assert torch.allclose(model.sin_table, sin[0, :, :8], atol=1e-5)
    assert torch.allclose(rope_frequencies(model.config), hf.model.rotary_emb.inv_freq, rtol=1e-6)


@pytest.mark.parametrize("make", [hf_llama, hf_gpt2])
def test_the_last_position_works(make, tmp_path):
    """Lengths up to the very end of the table, next to short ones."""
    assert difference(make(6), tmp_path, lengths=(512, 2, 511)) <= TOLERANCE


@pytest.mark.parametrize("make", [hf_llama, hf_gpt2])
def test_a_sequence_does_not_see_its_neighbours(make, tmp_path):
    make(7).save_pretrained(tmp_path)
    model, attention = load_model(tmp_path).model, FullAttention()
    with torch.inference_mode():
        alone = model(Batch.of_prompts([[5, 9, 11]]), attention)
        crowd = model(Batch.of_prompts([[8, 8, 8], [5, 9, 11], [1], [5, 9, 12]]), attention)
    assert torch.allclose(alone[0], crowd[1], atol=1e-5)
    assert (crowd[1] - crowd[3]).abs().max() > 0.1


@pytest.mark.parametrize("make", [hf_llama, hf_gpt2])
def test_bfloat16_stays_near_float32(make, tmp_path):
    """bfloat16 keeps 8 bits: logits of size ~7 after two layers differ by at most 5 % of their spread, 1 % on average."""
    make(8).save_pretrained(tmp_path)
    prompts = Batch.of_prompts([[5, 9, 11, 30, 7], [4, 3], list(range(3, 50))])
    with torch.inference_mode():
        exact = load_model(tmp_path).model(prompts, FullAttention())
        rough = load_model(tmp_path, dtype=torch.bfloat16).model(prompts, FullAttention())
    assert rough.dtype == torch.bfloat16
    error = (rough.float() - exact).abs() / exact.std()
    assert 1e-6 < error.mean() < 0.02 and error.max() < 0.1

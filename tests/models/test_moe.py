"""Mixtures of experts: routing, and the products of tokens that are sorted by expert."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lib.models.checkpoint import load_model
from lib.models.moe import Experts, GroupedExperts, MixtureOfExperts, group_experts
from lib.models.parallel.shard import shard_of
from tests.families import hf_variant


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtral")
    hf_variant("mixtral", seed=2).save_pretrained(folder)
    return load_model(folder)


@pytest.fixture
def moe(mixtral) -> MixtureOfExperts:
    return mixtral.model.blocks[0].moe


def rows(tokens: int, width: int = 48) -> torch.Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(tokens))


def one_by_one(experts: Experts, x, chosen, shares):
    """Each token by itself, each of its experts by itself."""
    out = torch.zeros_like(x)
    for t in range(len(x)):
        for e, share in zip(chosen[t].tolist(), shares[t]):
            out[t] += share * experts[e](x[t : t + 1])[0]
    return out


@pytest.mark.parametrize("tokens", [1, 2, 17])
@torch.inference_mode()
def test_the_experts_sum_their_shares(moe, tokens):
    x = rows(tokens)
    chosen, shares = moe.route(x)
    assert chosen.shape == shares.shape == (tokens, 2)
    assert (chosen[:, 0] != chosen[:, 1]).all() and (shares[:, 0] >= shares[:, 1]).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(tokens))
    expected = one_by_one(moe.experts, x, chosen, shares)
    torch.testing.assert_close(moe(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "chosen", [[[4, 4, 4]], [[0, 1, 2], [2, 1, 0], [3, 0, 2]], [[1, 3, 1]] * 9]
)
@torch.inference_mode()
def test_any_choice_of_experts(moe, chosen):
    """Experts without a token, experts with all of them, and one that is chosen twice."""
    chosen, x = torch.tensor(chosen), rows(len(chosen))
    shares = torch.rand(chosen.shape, generator=torch.Generator().manual_seed(0))
    expected = one_by_one(moe.experts, x, chosen, shares)
    torch.testing.assert_close(moe.experts(x, chosen, shares), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_without_normalisation_the_shares_are_those_of_the_softmax(moe):
    x = rows(5)
    plain = moe.router(x).softmax(-1)
    moe.normalizes = False
    try:
        chosen, shares = moe.route(x)
    finally:
        moe.normalizes = True
    torch.testing.assert_close(shares, plain.gather(1, chosen))
    assert (shares.sum(1) < 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 40])
@torch.inference_mode()
def test_grouped_products_equal_the_loop(mixtral, dtype, tokens):
    """PyTorch's kernel for CUDA has a CPU form, slow and exact."""
    moe = load_model(mixtral.folder, dtype=dtype).model.blocks[1].moe
    x = rows(tokens).to(dtype)
    chosen, shares = moe.route(x)
    grouped = GroupedExperts(moe.experts)
    assert len(grouped) == len(moe.experts) == 5
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(
        grouped(x, chosen, shares),
        moe.experts(x, chosen, shares),
        atol=tolerance,
        rtol=tolerance,
    )
    ours = sum(p.numel() for p in grouped.parameters())
    assert ours == sum(p.numel() for p in moe.experts.parameters())


def test_on_a_cpu_the_loop_stays(mixtral):
    assert group_experts(mixtral.model) == 0
    assert type(mixtral.model.blocks[0].moe.experts) is Experts


def test_a_mixture_is_not_divided_among_ranks(mixtral):
    with pytest.raises(ValueError, match="tensor_parallel_size must be 1 for a mixture of experts"):
        shard_of(mixtral.config, 0, 2)
    assert shard_of(mixtral.config, 0, 1).local_config == replace(mixtral.config)

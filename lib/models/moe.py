"""Mixtures of experts: Mixtral, Qwen2-MoE and Qwen3-MoE. A router sends each token to a few of many MLPs.

Shazeer et al. 2017, Jiang et al. 2024 (Mixtral), Yang et al. 2024 (Qwen2-MoE: a shared expert beside the chosen ones).
Tokens are sorted by expert, so that each expert computes its tokens in one product ("grouped products", Gale et al.
2022). Chapter 14 describes it. Introduced in chapter 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.config import ModelConfig
from lib.models.llama_variants import LlamaVariant, VariantBlock


class Router(nn.Linear):
    """Logits [T, experts] of x [T, d]. A class of its own because its few weights are never quantised."""


class Expert(nn.Module):
    """A gated MLP, as Llama's layer has one: x [T, d] to [T, d]."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * features, bias=False)
        self.down = nn.Linear(features, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Experts(nn.ModuleList):
    """The experts of one layer: a loop over those that have tokens."""

    def forward(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """Sum over the chosen experts of share times output, [T, d].

        x [T, d]. chosen [T, k]: each token's experts. shares [T, k]: their weights, of x's type.
        """
        tokens, k = chosen.shape
        order = chosen.flatten().argsort(stable=True)  # pairs (token, choice) by expert
        counts = torch.zeros(len(self), dtype=torch.long, device=x.device)
        counts.scatter_add_(0, chosen.flatten(), torch.ones_like(order))
        y = torch.empty(tokens * k, x.shape[1], dtype=x.dtype, device=x.device)
        y[order] = self.products(x[order // k], counts)
        # Summed per token in the order of its choices: the batch's other tokens change nothing.
        return (y.view(tokens, k, -1) * shares.unsqueeze(-1)).sum(1)

    def products(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Outputs of rows that are sorted by expert; counts [experts] rows of each."""
        pieces = zip(self, rows.split(counts.tolist()))
        return torch.cat([expert(piece) for expert, piece in pieces if len(piece)])


class GroupedExperts(Experts):
    """The experts' weights in two tensors, and one kernel for all experts: for CUDA.

    A loop would have to know the counts on the host, which would wait for the device in every layer.
    """

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.count = len(experts)
        self.gate_up = nn.Parameter(torch.stack([e.gate_up.weight for e in experts]), False)
        self.down = nn.Parameter(torch.stack([e.down.weight for e in experts]), False)

    def __len__(self) -> int:
        return self.count

    def products(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0).to(torch.int32)
        gate, up = torch._grouped_mm(rows, self.gate_up.mT, ends).chunk(2, dim=-1)
        return torch._grouped_mm(F.silu(gate) * up, self.down.mT, ends)


class MixtureOfExperts(nn.Module):
    """x [T, d] to [T, d]: router, experts, and the shared expert where there is one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, features = config.hidden_size, config.moe_intermediate_size
        self.num_chosen, self.normalizes = config.num_experts_per_tok, config.norm_topk_prob
        self.router = Router(d, config.num_experts, bias=False)
        self.experts = Experts(Expert(d, features) for _ in range(config.num_experts))
        self.shared_expert = self.shared_gate = None
        if config.shared_expert_size:
            self.shared_expert = Expert(d, config.shared_expert_size)
            self.shared_gate = Router(d, 1, bias=False)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(chosen [T, k] experts, shares [T, k]): the k most likely ones of a softmax over all."""
        shares, chosen = self.router(x).float().softmax(-1).topk(self.num_chosen, dim=-1)
        if self.normalizes:
            shares = shares / shares.sum(-1, keepdim=True)
        return chosen, shares.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.experts(x, *self.route(x))
        if self.shared_expert is None:
            return y
        return y + self.shared_gate(x).sigmoid() * self.shared_expert(x)


class MoeBlock(VariantBlock):
    """A layer whose MLP is a mixture of experts."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        del self.gate_up, self.down
        self.moe = MixtureOfExperts(config)

    def mlp(self, x: Tensor) -> Tensor:
        return self.moe(x)


class MoeLlama(LlamaVariant):
    """A LlamaVariant some or all of whose layers are MoeBlocks."""

    @staticmethod
    def block(config: ModelConfig, layer: int) -> VariantBlock:
        return (MoeBlock if config.is_moe(layer) else VariantBlock)(config, layer)

    def checkpoint_shapes(self) -> dict[str, tuple[int, ...]]:
        """As a dense model's, with routers and experts in place of the MLPs of mixtures."""
        shapes = super().checkpoint_shapes()
        for i in self._moe_layers():
            shapes = {n: s for n, s in shapes.items() if not n.startswith(f"layers.{i}.mlp.")}
            for module, parts in self._moe_names(i).items():
                rows, columns = self.get_submodule(module).weight.shape
                shapes |= {f"{part}.weight": (rows // len(parts), columns) for part in parts}
        return shapes

    def checkpoint_names(self) -> dict[str, tuple[str, ...]]:
        """As a dense model's, with routers and experts in place of the MLPs of mixtures."""
        names = super().checkpoint_names()
        for i in self._moe_layers():
            del names[f"blocks.{i}.gate_up"], names[f"blocks.{i}.down"]
            names |= self._moe_names(i)
        return names

    def _moe_layers(self) -> list[int]:
        return [i for i in range(self.config.num_layers) if self.config.is_moe(i)]

    def _moe_names(self, layer: int) -> dict[str, tuple[str, ...]]:
        ours = f"blocks.{layer}.moe"
        if self.config.architecture == "mixtral":
            theirs, products = f"layers.{layer}.block_sparse_moe", ("w1", "w3", "w2")
        else:
            theirs, products = f"layers.{layer}.mlp", ("gate_proj", "up_proj", "down_proj")
        names = {f"{ours}.router": (f"{theirs}.gate",)}
        experts = {f"experts.{e}": f"experts.{e}" for e in range(self.config.num_experts)}
        if self.config.shared_expert_size:
            experts["shared_expert"] = "shared_expert"
            names[f"{ours}.shared_gate"] = (f"{theirs}.shared_expert_gate",)
        for module, name in experts.items():
            gate, up, down = (f"{theirs}.{name}.{product}" for product in products)
            names |= {f"{ours}.{module}.gate_up": (gate, up), f"{ours}.{module}.down": (down,)}
        return names


@torch.no_grad()
def group_experts(model: nn.Module) -> int:
    """Replace the experts of each layer by grouped ones, in place; returns the layers changed.

    For bfloat16 on CUDA, which PyTorch's kernel is for. Other experts, such as quantised ones, stay
    as they are. One layer's experts exist twice meanwhile.
    """
    grouped = 0
    for moe in [m for m in model.modules() if isinstance(m, MixtureOfExperts)]:
        products = [p for e in moe.experts for p in (e.gate_up, e.down)]
        if hasattr(torch, "_grouped_mm") and all(_can_be_grouped(p) for p in products):
            moe.experts = GroupedExperts(moe.experts)
            grouped += 1
    return grouped


def _can_be_grouped(linear: nn.Module) -> bool:
    if type(linear) is not nn.Linear or not linear.weight.is_cuda:
        return False
    # The kernel needs rows of whole 16 bytes.
    return linear.weight.dtype == torch.bfloat16 and linear.in_features % 8 == 0

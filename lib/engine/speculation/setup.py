"""Builds the parts of speculative decoding that a SpeculativeConfig names. Introduced in chapter 10."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lib.cache.kv_cache import KVCache
from lib.cache.manager import CacheManager
from lib.core.attention import Attention
from lib.core.engine_options import EngineOptions
from lib.core.speculative_config import SpeculativeConfig
from lib.engine.cuda_graphs import GraphRunner
from lib.engine.runner import ModelRunner
from lib.engine.sampling import Sampler
from lib.engine.speculation.adaptive import AdaptiveLength
from lib.engine.speculation.draft_model import DraftModelProposer
from lib.engine.speculation.drafter import Drafter
from lib.engine.speculation.early_exit import EarlyExitProposer
from lib.engine.speculation.ngram import NgramProposer
from lib.engine.speculation.proposer import Proposer
from lib.engine.speculation.rejection import RejectionSampler
from lib.engine.speculation.step_cost import measure_step_cost
from lib.models.first_layers import bytes_per_pass


@dataclass(frozen=True)
class DraftModel:
    """A draft model with a cache of its own, and the attention over it."""

    model: nn.Module
    kv_cache: KVCache
    manager: CacheManager
    attention: Attention


def speculative_config(options: EngineOptions) -> SpeculativeConfig | None:
    """The checked options.speculative_config. Raises ValueError for a mistake in it."""
    given = options.speculative_config
    return None if given is None else SpeculativeConfig.from_dict(given)


def make_sampler(config: SpeculativeConfig | None) -> Sampler:
    """The sampler that verifies drafts in the way they are made."""
    sampled = config is not None and config.draft_sample_method == "probabilistic"
    return RejectionSampler() if sampled else Sampler()


def make_proposer(
    config: SpeculativeConfig,
    options: EngineOptions,
    model: nn.Module,
    attention: Attention,
    kv_cache: KVCache | None,
    draft: DraftModel | None,
) -> Proposer:
    """Makes drafts by config.method; `attention` and `kv_cache` are those of `model`.

    draft: with the method "draft_model". Raises ValueError for draft_layers that `model` does not
    have.
    """
    if config.method == "ngram":
        return NgramProposer(config.prompt_lookup_min, config.prompt_lookup_max)
    budget, sample_method = options.max_num_batched_tokens, config.draft_sample_method
    if config.method == "early_exit":
        return EarlyExitProposer(
            model, config.draft_layers, attention, kv_cache, budget, sample_method
        )
    return DraftModelProposer(
        ModelRunner(draft.model, draft.attention),
        draft.manager,
        draft.kv_cache,
        draft.model.config.max_position_embeddings,
        budget,
        bytes_per_pass(draft.model) / bytes_per_pass(model),
        sample_method,
    )


def make_drafter(
    config: SpeculativeConfig,
    options: EngineOptions,
    proposer: Proposer,
    runner: ModelRunner | GraphRunner,
    manager: CacheManager,
    device: torch.device,
) -> Drafter:
    """Adds the drafts to a step; with config.adaptive it measures the time of steps first."""
    adaptive = None
    if config.adaptive:
        rows = options.max_num_seqs * (1 + config.num_speculative_tokens)
        most = min(rows, options.max_num_batched_tokens, manager.max_sequence_tokens)
        cost = measure_step_cost(runner, manager.block_size, most, device)
        adaptive = AdaptiveLength(cost, proposer.cost_coefficient)
    return Drafter(
        proposer,
        manager,
        config.num_speculative_tokens,
        options.max_num_batched_tokens,
        adaptive,
    )

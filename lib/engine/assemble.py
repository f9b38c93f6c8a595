"""The composition root: the one place that imports every chapter's parts and builds an engine from them.

Introduced in chapter 1; the only module that looks ahead, so that no other has to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lib.attention.full import FullAttention
from lib.attention.gather import GatherAttention
from lib.cache.allocate import kv_bytes_per_token
from lib.cache.kv_cache import KVCache
from lib.cache.manager import CacheManager, NoCache
from lib.core.attention import Attention
from lib.core.engine_options import EngineOptions
from lib.core.speculative_config import SpeculativeConfig
from lib.engine import model_setup
from lib.engine.cuda_graphs import GraphRunner, ladder
from lib.engine.in_flight import StepsInFlight
from lib.engine.kv_cache_setup import cache_size, make_cache
from lib.engine.kv_cache_size import KVCacheSize
from lib.engine.model_setup import prepare
from lib.engine.runner import ModelRunner
from lib.engine.sampling import Sampler
from lib.engine.scheduler import Scheduler
from lib.engine.speculation.draft_model import check_same_vocabulary
from lib.engine.speculation.drafter import Drafter
from lib.engine.speculation.setup import (
    DraftModel,
    make_drafter,
    make_proposer,
    make_sampler,
    speculative_config,
)
from lib.engine.static_scheduler import StaticScheduler
from lib.engine.structured.output_rules import OutputRules
from lib.models.checkpoint import LoadedModel
from lib.models.config import ModelConfig
from lib.models.fused.choose import has_fused_layers

if TYPE_CHECKING:
    from lib.engine.tensor_parallel.workers import Workers

_SCHEDULERS = {"continuous": Scheduler, "static": StaticScheduler}


@dataclass
class EngineParts:
    """The parts of one engine. `kv_cache` is None where nothing is kept."""

    runner: ModelRunner | GraphRunner
    scheduler: Scheduler
    manager: CacheManager
    kv_cache: KVCache | None
    max_model_len: int
    compile_seconds: float = 0.0
    packed_linears: int = 0  # linear layers that `options.linear` has packed
    fused_blocks: int = 0  # and blocks that it has replaced by fused ones
    drafter: Drafter | None = None
    sampler: Sampler = field(default_factory=Sampler)
    draft_kv_cache_bytes: int = 0  # K and V of a draft model
    in_flight: StepsInFlight | None = None  # with asynchronous scheduling


def assemble(
    model: nn.Module,
    options: EngineOptions,
    device: torch.device,
    dtype: torch.dtype,
    tokenizer: Any = None,
    workers: Workers | None = None,
) -> EngineParts:
    """Build the parts that `options` name. Raises ValueError where they do not fit into memory.

    tokenizer: the model's, with which a draft model's must agree. workers: the other ranks, if the
    model is one rank's part.
    """
    config: ModelConfig = model.config
    speculative = speculative_config(options)  # first: a mistake in it must not cost the time below
    longest = config.max_position_embeddings
    if options.max_model_len is not None and options.max_model_len > longest:
        raise ValueError(
            f"max_model_len must be <= {longest}, the positions the model knows, "
            f"got {options.max_model_len}"
        )
    max_model_len = options.max_model_len or longest
    if options.cuda_graphs and device.type != "cuda":
        raise ValueError(f"cuda_graphs needs a CUDA device, got device {str(device)!r}")
    packed_linears, fused_blocks, compile_seconds = prepare(model, options)
    draft = None
    if speculative is not None and speculative.method == "draft_model":
        draft = _draft_model(speculative, config, options, device, dtype, tokenizer)
    kv_cache, attention = None, FullAttention()
    if options.kv_cache == "none":
        manager: CacheManager = NoCache(max_model_len)
    else:
        size = _size(model, options, device, dtype, speculative, draft, workers)
        max_model_len = size.max_model_len
        kv_cache, manager, attention = make_cache(config, options, size, device, dtype)
        if workers is not None:
            from lib.engine.tensor_parallel.runner import ParallelKVCache

            kv_cache = ParallelKVCache(kv_cache, workers)
    scheduler = _SCHEDULERS[options.scheduler](
        manager, options.max_num_seqs, options.max_num_batched_tokens
    )
    runner = _runner(model, attention, workers)
    if options.cuda_graphs:
        if isinstance(attention, GatherAttention):  # 'auto' has found no kernels, and said why
            raise ValueError("cuda_graphs needs attention 'fused', which cannot be had here")
        max_blocks = math.ceil(max_model_len / options.block_size)
        runner = GraphRunner(
            runner, ladder(options.max_num_seqs), options.block_size, max_blocks, device
        )
    drafter, draft_kv_cache_bytes = None, 0
    if speculative is not None:
        own = None
        if draft is not None:  # its cache holds as many tokens as the model's
            own = DraftModel(draft, *make_cache(draft.config, options, size, device, dtype))
            draft_kv_cache_bytes = own.kv_cache.nbytes
        proposer = make_proposer(speculative, options, model, attention, kv_cache, own)
        drafter = make_drafter(speculative, options, proposer, runner, manager, device)
    sampler, in_flight = make_sampler(speculative), None
    if _is_asynchronous(options, device):
        sampler.logits_reused = isinstance(runner, GraphRunner)
        in_flight = StepsInFlight(scheduler, runner, sampler, device)
    return EngineParts(
        runner,
        scheduler,
        manager,
        kv_cache,
        max_model_len,
        compile_seconds,
        packed_linears,
        fused_blocks,
        drafter,
        sampler,
        draft_kv_cache_bytes,
        in_flight,
    )


def start_workers(options: EngineOptions, device: torch.device) -> Workers | None:
    """The other ranks, which load their parts of the model from now on; None without tensor parallelism.

    Raises ValueError where this machine has too few devices.
    """
    if options.tensor_parallel_size == 1:
        return None
    from lib.engine.tensor_parallel.workers import Workers

    return Workers(options, device)


def load(
    options: EngineOptions, device: torch.device, dtype: torch.dtype, workers: Workers | None = None
) -> LoadedModel:
    """The model with its weights and tokenizer; see `load_model` and `load_quantized` for errors.

    With `workers` it is rank 0's part of the model; `config` is that of the whole.
    """
    if workers is not None:
        return workers.load(options, dtype)
    return model_setup.load(options, device, dtype)


def output_rules(tokenizer: Any, config: ModelConfig) -> OutputRules:
    """What restricts the tokens of requests: structured output, allowed tokens, bad words."""
    return OutputRules(tokenizer, config.vocab_size, config.eos_token_ids)


def _runner(model: nn.Module, attention: Attention, workers: Workers | None) -> ModelRunner:
    if workers is None:
        return _step_runner(model, attention) or ModelRunner(model, attention)
    from lib.engine.tensor_parallel.runner import ParallelRunner

    return ParallelRunner(model, attention, workers)


def _step_runner(model: nn.Module, attention: Attention) -> ModelRunner | None:
    """Runs all layers of a step of few rows in one call, where model and attention have the kernels for it."""
    if not has_fused_layers(model):
        return None
    # Imported here: with it comes Numba.
    from lib.engine.fused_step.runner import fused_step_runner

    if (runner := fused_step_runner(model, attention)) is not None:
        return runner
    from lib.engine.fused_step.quantized import quantized_step_runner

    return quantized_step_runner(model, attention)


def _is_asynchronous(options: EngineOptions, device: torch.device) -> bool:
    if options.async_scheduling != "auto":
        return options.async_scheduling
    possible = options.kv_cache != "none" and options.speculative_config is None
    possible = possible and options.tensor_parallel_size == 1
    return possible and device.type == "cuda"


def _draft_model(
    speculative: SpeculativeConfig,
    config: ModelConfig,
    options: EngineOptions,
    device: torch.device,
    dtype: torch.dtype,
    tokenizer: Any,
) -> nn.Module:
    """The draft model, prepared as the model itself. Raises ValueError unless the vocabularies agree."""
    if options.kv_cache == "none":
        raise ValueError(
            "speculative_config.method 'draft_model' needs kv_cache 'contiguous' or 'paged', as its "
            "own cache is of the same kind, got kv_cache 'none'"
        )
    loaded = load(replace(options, model=speculative.model, quantization=None), device, dtype)
    sizes = config.vocab_size, loaded.config.vocab_size
    check_same_vocabulary(*sizes, tokenizer, loaded.tokenizer)
    prepare(loaded.model, options)
    return loaded.model


def _size(
    model: nn.Module,
    options: EngineOptions,
    device: torch.device,
    dtype: torch.dtype,
    speculative: SpeculativeConfig | None,
    draft: nn.Module | None,
    workers: Workers | None,
) -> KVCacheSize:
    """The cache's size where a draft model's cache, or those of other ranks, share the memory."""
    beside, rows = 0, 1
    if draft is not None:
        beside = kv_bytes_per_token(draft.config, options.kv_cache_dtype, dtype)
    if workers is not None:
        beside = workers.kv_bytes_per_token(options.kv_cache_dtype, dtype)
    if speculative is not None:
        rows += speculative.num_speculative_tokens
    runner = _runner(model, FullAttention(), workers)
    return cache_size(runner, options, device, dtype, beside, rows)

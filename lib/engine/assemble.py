"""The composition root: the one place that imports every chapter's parts and builds an engine from them.

Introduced in chapter 1; the only module that looks ahead, so that no other has to.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lib.attention.contiguous import ContiguousAttention
from lib.attention.full import FullAttention
from lib.attention.fused import fused_attention, why_not_fused
from lib.attention.gather import GatherAttention
from lib.cache.block_manager import BlockManager
from lib.cache.int8_kv_cache import Int8KVCache, int8_kv_bytes_per_token
from lib.cache.kv_cache import KVCache, kv_cache_bytes
from lib.cache.manager import CacheManager, NoCache
from lib.cache.prefix_cache import PrefixCachingBlockManager
from lib.cache.sizing import available_bytes, gib
from lib.cache.sliding_window import SlidingWindowBlockManager, SlidingWindowPrefixCache
from lib.cache.slot_manager import SlotManager
from lib.core.attention import Attention
from lib.core.batch import Batch
from lib.core.engine_options import EngineOptions
from lib.core.speculative_config import SpeculativeConfig
from lib.engine.cuda_graphs import GraphRunner, ladder
from lib.engine.in_flight import StepsInFlight
from lib.engine.runner import ModelRunner
from lib.engine.sampling import Sampler
from lib.engine.scheduler import Scheduler
from lib.engine.speculation.adaptive import AdaptiveLength
from lib.engine.speculation.draft_model import DraftModelProposer, check_same_vocabulary
from lib.engine.speculation.drafter import Drafter
from lib.engine.speculation.early_exit import EarlyExitProposer
from lib.engine.speculation.ngram import NgramProposer
from lib.engine.speculation.proposer import Proposer
from lib.engine.speculation.rejection import RejectionSampler
from lib.engine.speculation.step_cost import measure_step_cost
from lib.engine.static_scheduler import StaticScheduler
from lib.engine.structured.output_rules import OutputRules
from lib.models.checkpoint import LoadedModel, QuantizedCheckpoint, load_model
from lib.models.compiled import compile_blocks
from lib.models.config import ModelConfig
from lib.models.first_layers import bytes_per_pass
from lib.models.fused.choose import fuse_layers
from lib.models.moe import group_experts
from lib.models.packed import pack_linears

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
    speculative = _speculative(options)  # first: a mistake in it must not cost the time below
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
    kv_cache = None
    if options.kv_cache == "none":
        manager: CacheManager = NoCache(max_model_len)
        attention = FullAttention()
    else:
        plan = _slots if options.kv_cache == "contiguous" else _blocks
        beside = (
            0 if draft is None else _kv_bytes_per_token(draft.config, options.kv_cache_dtype, dtype)
        )
        if workers is not None:
            beside = workers.kv_bytes_per_token(dtype.itemsize)
        num_blocks, block_size, max_model_len = plan(
            _runner(model, FullAttention(), workers), options, max_model_len, device, dtype, beside
        )
        kv_cache = allocate(config, num_blocks, block_size, dtype, device, options.kv_cache_dtype)
        manager = _manager(options, kv_cache, config)
        attention = cached_attention(options, kv_cache, config)
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
        proposer = _proposer(speculative, options, model, draft, attention, kv_cache, dtype)
        if isinstance(proposer, DraftModelProposer):
            draft_kv_cache_bytes = proposer.kv_cache.nbytes
        drafter = _drafter(speculative, options, proposer, runner, manager, device)
    sampler, in_flight = _sampler(speculative), None
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
    activations = options.quantized_activations
    if options.quantization is None:
        try:
            loaded = load_model(options.model, device, dtype)
        except QuantizedCheckpoint as checkpoint:  # GPTQ or AWQ, as its config.json says
            from lib.models.quantized.load import load_prequantized

            return load_prequantized(checkpoint.folder, activations, device, dtype)
        if activations != "float32":
            raise ValueError(
                "quantized_activations must be 'float32' where no weights are quantised, "
                f"got {activations!r}"
            )
        return loaded
    # Imported here: with it comes Numba, which an engine on floats can do without.
    from lib.models.quantized.load import load_quantized

    return load_quantized(options.model, options.quantization, activations, device, dtype)


def prepare(model: nn.Module, options: EngineOptions) -> tuple[int, int, float]:
    """Pack, fuse or compile the model's layers in place: (linear layers packed, blocks fused, seconds of compiling).

    Every rank prepares its own part.
    """
    group_experts(model)
    packed = pack_linears(model, options.linear)
    fused = 0 if options.compile else fuse_layers(model, options.linear)
    seconds = compile_blocks(model) if options.compile else 0.0
    if fused and options.tensor_parallel_size > 1:
        from lib.models.parallel.fused import fuse_products

        fuse_products(model)
    return packed, fused, seconds


def weight_bytes(model: nn.Module) -> int:
    """Bytes that the model's weights take, in whatever form they are kept; shared ones count once."""
    other = sum(getattr(module, "weight_bytes", 0) for module in model.modules())
    return other + sum(parameter.nbytes for parameter in model.parameters())


def output_rules(tokenizer: Any, config: ModelConfig) -> OutputRules:
    """What restricts the tokens of requests: structured output, allowed tokens, bad words."""
    return OutputRules(tokenizer, config.vocab_size, config.eos_token_ids)


def _runner(model: nn.Module, attention: Attention, workers: Workers | None) -> ModelRunner:
    if workers is None:
        return ModelRunner(model, attention)
    from lib.engine.tensor_parallel.runner import ParallelRunner

    return ParallelRunner(model, attention, workers)


def _is_asynchronous(options: EngineOptions, device: torch.device) -> bool:
    if options.async_scheduling != "auto":
        return options.async_scheduling
    possible = options.kv_cache != "none" and options.speculative_config is None
    possible = possible and options.tensor_parallel_size == 1
    return possible and device.type == "cuda"


def _speculative(options: EngineOptions) -> SpeculativeConfig | None:
    given = options.speculative_config
    return None if given is None else SpeculativeConfig.from_dict(given)


def _drafter(
    config: SpeculativeConfig,
    options: EngineOptions,
    proposer: Proposer,
    runner: ModelRunner | GraphRunner,
    manager: CacheManager,
    device: torch.device,
) -> Drafter:
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


def _sampler(config: SpeculativeConfig | None) -> Sampler:
    sampled = config is not None and config.draft_sample_method == "probabilistic"
    return RejectionSampler() if sampled else Sampler()


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


def _proposer(
    config: SpeculativeConfig,
    options: EngineOptions,
    model: nn.Module,
    draft: nn.Module | None,
    attention: Attention,
    kv_cache: KVCache | None,
    dtype: torch.dtype,
) -> Proposer:
    if config.method == "ngram":
        return NgramProposer(config.prompt_lookup_min, config.prompt_lookup_max)
    budget, sample_method = options.max_num_batched_tokens, config.draft_sample_method
    if config.method == "early_exit":
        return EarlyExitProposer(
            model, config.draft_layers, attention, kv_cache, budget, sample_method
        )
    # As many tokens as the model's own cache.
    shape, device = (kv_cache.num_blocks, kv_cache.block_size), kv_cache.k.device
    own = allocate(draft.config, *shape, dtype, device, options.kv_cache_dtype)
    attention = cached_attention(options, own, draft.config)
    return DraftModelProposer(
        ModelRunner(draft, attention),
        _manager(options, own, draft.config),
        own,
        draft.config.max_position_embeddings,
        budget,
        bytes_per_pass(draft) / bytes_per_pass(model),
        sample_method,
    )


def _manager(options: EngineOptions, kv_cache: KVCache, config: ModelConfig) -> CacheManager:
    if options.kv_cache == "contiguous":
        return SlotManager(kv_cache.num_blocks, kv_cache.block_size)
    if (window := config.sliding_window) is not None:
        prefix_caching = options.enable_prefix_caching
        sliding = SlidingWindowPrefixCache if prefix_caching else SlidingWindowBlockManager
        return sliding(kv_cache.num_blocks, kv_cache.block_size, window)
    paged = PrefixCachingBlockManager if options.enable_prefix_caching else BlockManager
    return paged(kv_cache.num_blocks, kv_cache.block_size)


def cached_attention(options: EngineOptions, kv_cache: KVCache, config: ModelConfig) -> Attention:
    """The attention over `kv_cache` that `options` name."""
    if options.kv_cache == "contiguous":
        return ContiguousAttention(kv_cache)
    return _paged_attention(options, kv_cache, config)


def _paged_attention(options: EngineOptions, kv_cache: KVCache, config: ModelConfig) -> Attention:
    """'auto' is fused where it runs, else gather; 'fused' where it does not is an error that says what is missing."""
    if options.attention == "gather":
        return GatherAttention(kv_cache)
    k, group = kv_cache.k, config.num_heads // config.num_kv_heads
    int8 = isinstance(kv_cache, Int8KVCache)
    problem = why_not_fused(k.device, kv_cache.dtype, kv_cache.block_size, k.shape[4], group)
    if int8 and k.device.type != "cpu":
        problem = ValueError(
            f"attention 'fused' on {k.device.type} reads a cache of floats: kv_cache_dtype must be "
            "'auto', got 'int8'"
        )
    if config.attention_softcap is not None:
        problem = ValueError(
            "attention 'fused' computes plain scores: attn_logit_softcapping must be None, "
            f"got {config.attention_softcap!r}"
        )
    if problem is not None and options.attention == "fused":
        raise problem
    if problem is not None:
        warnings.warn(
            f"attention 'auto' falls back to 'gather', which copies K and V at every step: {problem}",
            stacklevel=4,
        )
        return GatherAttention(kv_cache)
    if int8:
        # Imported here, as fused_attention does it: with it comes Numba.
        from lib.attention.int8_fused_cpu import Int8CpuFusedAttention

        return Int8CpuFusedAttention(kv_cache)
    return fused_attention(kv_cache, group)


def _slots(
    runner: ModelRunner,
    options: EngineOptions,
    max_model_len: int,
    device: torch.device,
    dtype: torch.dtype,
    beside: int = 0,
) -> tuple[int, int, int]:
    """(slots, tokens in a slot, max_model_len). Every sequence gets a slot as long as the longest allowed.

    beside: bytes that a draft model, or other ranks, keep for each token in the same memory.
    """
    per_token = _kv_bytes_per_token(runner.model.config, options.kv_cache_dtype, dtype) + beside
    budget = _budget(runner, options, device)
    needed = options.max_num_seqs * max_model_len * per_token
    if needed > budget:
        fits = budget // (options.max_num_seqs * per_token)
        if options.max_model_len is not None or fits < 1:
            raise ValueError(
                f"a contiguous KV cache of max_num_seqs {options.max_num_seqs} x max_model_len {max_model_len} tokens "
                f"takes {gib(needed)}, but {gib(budget)} are available: at most {budget // (max_model_len * per_token)} "
                f"sequences of that length fit, or a max_model_len of {fits}"
            )
        max_model_len = fits  # no length was asked for: the longest that fits
    return options.max_num_seqs, max_model_len, max_model_len


def _blocks(
    runner: ModelRunner,
    options: EngineOptions,
    max_model_len: int,
    device: torch.device,
    dtype: torch.dtype,
    beside: int = 0,
) -> tuple[int, int, int]:
    """(blocks with the null block, block_size, max_model_len). `beside`: as in `_slots`."""
    size = options.block_size
    per_block = size * (
        _kv_bytes_per_token(runner.model.config, options.kv_cache_dtype, dtype) + beside
    )
    if options.num_blocks is not None:
        num_blocks = options.num_blocks
    else:
        # More blocks than all sequences at their longest could fill would lie idle.
        most = options.max_num_seqs * math.ceil(max_model_len / size) + 1
        num_blocks = min(most, _budget(runner, options, device) // per_block)
    capacity = (num_blocks - 1) * size
    if capacity < 1 or (options.max_model_len is not None and capacity < max_model_len):
        raise ValueError(
            f"num_blocks {num_blocks} (block 0 stays empty) of block_size {size} hold {max(capacity, 0)} tokens "
            f"({gib(num_blocks * per_block)}), less than one sequence of max_model_len {max_model_len}: "
            f"num_blocks must be >= {math.ceil(max_model_len / size) + 1}, or max_model_len smaller"
        )
    return num_blocks, size, min(max_model_len, capacity)


def _budget(runner: ModelRunner, options: EngineOptions, device: torch.device) -> int:
    if options.kv_cache_memory_bytes is not None:
        return options.kv_cache_memory_bytes
    tokens = options.max_num_batched_tokens if device.type == "cuda" else 1
    speculative = _speculative(options)
    rows_per_sequence = 1 if speculative is None else 1 + speculative.num_speculative_tokens

    def largest_step() -> None:
        # As many sequences as a step may have, the first of them as long as may be: most logits and most attention.
        # Rows of logits count like sequences: verifying k drafts takes k + 1 of them.
        rows = min(tokens, options.max_num_seqs * rows_per_sequence)
        lengths, spare = [1] * rows, tokens - rows
        for row in range(len(lengths)):
            extra = min(spare, runner.model.config.max_position_embeddings - 1)
            lengths[row], spare = 1 + extra, spare - extra
        batch = Batch.of_prompts([[0] * n for n in lengths], device)
        runner.run(batch).double().sort(
            -1
        )  # what sampling takes: float64, an order and a running sum

    return available_bytes(device, largest_step)


def _kv_bytes_per_token(config: ModelConfig, kv_cache_dtype: str, dtype: torch.dtype) -> int:
    if kv_cache_dtype == "int8":
        return int8_kv_bytes_per_token(config)
    return kv_cache_bytes(config, 1, dtype)


def allocate(
    config: ModelConfig,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    kv_cache_dtype: str = "auto",
) -> KVCache:
    """A KV cache of zeros. Raises ValueError where the device has no room for it."""
    kind = Int8KVCache if kv_cache_dtype == "int8" else KVCache
    try:
        return kind(config, num_blocks, block_size, dtype=dtype, device=device)
    except (
        MemoryError,
        torch.OutOfMemoryError,
        RuntimeError,
        ValueError,
    ) as error:  # NumPy: "array is too big"
        needed = num_blocks * block_size * _kv_bytes_per_token(config, kv_cache_dtype, dtype)
        raise ValueError(
            f"a KV cache of {num_blocks} x {block_size} tokens takes {gib(needed)}, "
            f"which {device} does not have: {str(error).splitlines()[0]}"
        ) from None

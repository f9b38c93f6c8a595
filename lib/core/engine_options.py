"""The engine's options: the arguments of `LLM` and the engine flags of the server. Introduced in chapter 1."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch


def _option(default: Any, help: str, **rules: Any) -> Any:
    """A field with its documentation. Rules: `choices`, or `at_least` for an integer."""
    return field(default=default, metadata={"help": help, **rules})


@dataclass(frozen=True)
class EngineOptions:
    """Every option of the engine, with its default. `LLM(...)` and `python -m lib.serving` take these.

    Raises ValueError, naming the option, its value and what is allowed, for a value out of range
    and for options that do not go together. What depends on the model or on the machine (lengths,
    memory, kernels) is checked where the engine is put together.
    """

    model: str | Path = _option(
        "smollm2", "smollm2, gpt2, a Hugging Face id, a checkpoint folder or a .gguf file"
    )
    device: str | torch.device = _option("auto", "auto, cpu, cuda or cuda:N")
    dtype: str | torch.dtype = _option("auto", "auto, float32, bfloat16 or float16")
    kv_cache: str = _option(
        "paged",
        "none: recompute everything in every step; contiguous: one slot of max_model_len tokens "
        "per sequence; paged: blocks of block_size tokens",
        choices=("none", "contiguous", "paged"),
    )
    attention: str = _option(
        "auto",
        "how the paged cache is read; gather copies it, fused reads it in place, auto is fused "
        "where its kernels run",
        choices=("auto", "gather", "fused"),
    )
    scheduler: str = _option(
        "continuous",
        "continuous: admit a request in any step; static: fill a batch only when it is empty",
        choices=("continuous", "static"),
    )
    max_num_seqs: int = _option(64, "most sequences per step", at_least=1)
    max_num_batched_tokens: int = _option(2048, "most tokens per step", at_least=1)
    max_model_len: int | None = _option(
        None, "longest prompt + output in tokens (the model's limit, or what fits)", at_least=1
    )
    block_size: int = _option(16, "tokens per block of the paged cache", at_least=1)
    num_blocks: int | None = _option(
        None, "blocks in the pool, the null block included (what fits into memory)", at_least=1
    )
    kv_cache_memory_bytes: int | None = _option(
        None, "size of the KV cache in bytes, instead of num_blocks", at_least=1
    )
    enable_prefix_caching: bool = _option(
        True, "keep the blocks of the paged cache and find them again by their content"
    )
    linear: str = _option(
        "auto",
        "how a CPU computes the layers; packed rearranges all weights for its matrix kernel, fused "
        "also merges what lies between the products and has a kernel for products of few rows, auto "
        "does so where it can, with weights of at least 65,536 elements; plain neither",
        choices=("plain", "auto", "packed", "fused"),
    )
    compile: bool = _option(False, "torch.compile what lies between the matrix products")
    cuda_graphs: bool = _option(
        False, "record decode steps as CUDA graphs and replay them (paged cache, fused attention)"
    )
    async_scheduling: bool | str = _option(
        "auto",
        "schedule and launch a step before the tokens of the one before it are read; auto: on CUDA, "
        "with a KV cache and without speculative decoding",
    )

    speculative_config: dict[str, Any] | None = _option(
        None,
        'speculative decoding, e.g. {"method": "ngram", "num_speculative_tokens": 4}; see '
        "lib.core.speculative_config",
    )
    quantization: str | None = _option(
        None,
        "None: as the checkpoint has it; int8, int4: round its weights to nearest while they are "
        "read; gguf: run a GGUF file's own blocks (smollm2, or a .gguf file); fp8: float8 weights "
        "and activations (NVIDIA GPUs from Ada and Hopper on; a CPU computes it slowly, for tests)",
        choices=(None, "int8", "int4", "gguf", "fp8"),
    )
    quantized_activations: str = _option(
        "float32",
        "input of layers with quantised weights; float32: as it is; int8 (CPU): rounded per row and "
        "block of 32 elements, which is faster for many rows",
        choices=("float32", "int8"),
    )
    kv_cache_dtype: str = _option(
        "auto",
        "how K and V are kept; auto: as floats of type dtype; int8: rounded, with one scale per "
        "token and head",
        choices=("auto", "int8"),
    )
    tensor_parallel_size: int = _option(
        1,
        "processes among which the model's weights and KV cache are divided; on CUDA, one GPU each",
        at_least=1,
    )

    def __post_init__(self) -> None:
        if self.speculative_config is not None and not isinstance(self.speculative_config, dict):
            raise ValueError(
                f"speculative_config must be a dict or None, got {self.speculative_config!r}"
            )
        for option in fields(self):
            self._check(option.name, option.default, option.metadata)
        if self.cuda_graphs and (self.kv_cache != "paged" or self.attention == "gather"):
            raise ValueError(
                "cuda_graphs needs kv_cache 'paged' and attention 'fused' on a CUDA device, "
                f"got kv_cache {self.kv_cache!r} and attention {self.attention!r}"
            )
        if self.tensor_parallel_size > 1:
            self._check_parallel()
        self._check_async_scheduling()
        if self.compile and self.linear == "fused":
            raise ValueError(
                "linear must not be 'fused' where compile is True: both replace what lies between "
                "the matrix products"
            )
        if self.kv_cache != "paged":
            for name, default in (("attention", "auto"), ("num_blocks", None)):
                if (value := getattr(self, name)) != default:
                    raise ValueError(
                        f"{name} must be {default!r} unless kv_cache is 'paged', got {value!r}"
                    )
        if self.kv_cache == "none" and self.kv_cache_memory_bytes is not None:
            raise ValueError(
                "kv_cache_memory_bytes must be None where kv_cache is 'none', "
                f"got {self.kv_cache_memory_bytes!r}"
            )
        if self.kv_cache_dtype != "auto":
            if self.kv_cache == "none":
                raise ValueError(
                    "kv_cache_dtype must be 'auto' where kv_cache is 'none', "
                    f"got {self.kv_cache_dtype!r}"
                )
            if self.cuda_graphs:
                raise ValueError(
                    "kv_cache_dtype must be 'auto' with cuda_graphs, whose kernels read a cache of "
                    f"floats, got {self.kv_cache_dtype!r}"
                )
        if self.num_blocks is not None and self.kv_cache_memory_bytes is not None:
            raise ValueError(
                "num_blocks and kv_cache_memory_bytes both set the pool's size: give one, "
                f"got {self.num_blocks!r} and {self.kv_cache_memory_bytes!r}"
            )

    def _check_parallel(self) -> None:
        if self.quantization == "fp8":
            raise ValueError(
                "quantization must not be 'fp8' where tensor_parallel_size is > 1, got 'fp8'"
            )
        if self.cuda_graphs:
            raise ValueError(
                "cuda_graphs must be False where tensor_parallel_size is > 1, got True"
            )
        method = (self.speculative_config or {}).get("method", "ngram")
        if method in ("early_exit", "draft_model"):  # whose drafts rank 0 would make alone
            raise ValueError(
                "speculative_config.method must be 'ngram' where tensor_parallel_size is > 1, "
                f"got {method!r}"
            )
        if self.async_scheduling is True:
            raise ValueError(
                "async_scheduling must be 'auto' or False where tensor_parallel_size is > 1, got True"
            )

    def _check_async_scheduling(self) -> None:
        value = self.async_scheduling
        if value != "auto" and not isinstance(value, bool):
            raise ValueError(f"async_scheduling must be 'auto', True or False, got {value!r}")
        if value is True and self.speculative_config is not None:
            raise ValueError(
                "async_scheduling must be 'auto' or False with speculative_config, since drafts follow "
                "tokens that the host has read, got True"
            )
        if value is True and self.kv_cache == "none":
            raise ValueError(
                "async_scheduling must be 'auto' or False where kv_cache is 'none', got True"
            )

    def _check(self, name: str, default: Any, rules: Any) -> None:
        value = getattr(self, name)
        if "choices" in rules and value not in rules["choices"]:
            raise ValueError(f"{name} must be one of {list(rules['choices'])}, got {value!r}")
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {value!r}")
        if "at_least" in rules and not (value is None and default is None):
            low = rules["at_least"]
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                or_none = " or None" if default is None else ""
                raise ValueError(f"{name} must be an integer >= {low}{or_none}, got {value!r}")

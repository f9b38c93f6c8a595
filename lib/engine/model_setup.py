"""Loads the model that the options name, and prepares its layers for the device. Introduced in chapter 13."""

from __future__ import annotations

import torch
from torch import nn

from lib.core.engine_options import EngineOptions
from lib.models.checkpoint import LoadedModel, QuantizedCheckpoint, load_model
from lib.models.compiled import compile_blocks
from lib.models.fused.choose import fuse_layers
from lib.models.moe import group_experts
from lib.models.packed import pack_linears


def load(options: EngineOptions, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """The model with its weights and tokenizer; see `load_model` and `load_quantized` for errors."""
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

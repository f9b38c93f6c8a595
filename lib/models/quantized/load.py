"""A quantised model from a name, a folder or a GGUF file. Introduced in chapter 11."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.models.checkpoint import LoadedModel, empty_model, find_folder, find_gguf, load_model
from lib.models.config import load_config, quantization_config
from lib.models.hub import HubUnreachable
from lib.models.quantized.fill import Weights, fill
from lib.models.quantized.float_weights import RoundedWeights
from lib.models.quantized.fp8 import check_device
from lib.models.quantized.fp8_checkpoint import FP8Checkpoint
from lib.models.quantized.gguf_blocks import GGUFWeights
from lib.models.quantized.gptq_awq import PackedWeights
from lib.models.smollm2 import gguf_folder
from lib.models.tokenizer import load_tokenizer
from lib.models.weights import read_tensors

# Readers of checkpoints that are quantised already, by their quantization_config.quant_method.
_READERS = {
    "gptq": PackedWeights,
    "awq": PackedWeights,
    "fp8": FP8Checkpoint,
    "compressed-tensors": FP8Checkpoint,
}


def load_quantized(
    name: str | Path,
    quantization: str,
    activations: str,
    device: torch.device,
    dtype: torch.dtype,
) -> LoadedModel:
    """Load a model with quantised weights, without a float copy of the whole model.

    "gguf": `name` is "smollm2" or a .gguf file, whose blocks are used as they are. "int8", "int4":
    any float checkpoint, rounded to nearest while it is read; so "fp8", which also rounds
    activations. Raises ValueError if checkpoint, quantization, activations and device do not fit
    together; other errors are those of `load_model`.
    """
    check_activations(activations, device)
    if quantization == "fp8":
        _check_fp8(activations, device, "quantization 'fp8'")
    return _filled(*open_quantized(name, quantization), activations, device, dtype)


def load_prequantized(
    folder: Path, activations: str, device: torch.device, dtype: torch.dtype
) -> LoadedModel:
    """Load a GPTQ, AWQ or FP8 checkpoint folder, as its config.json's quantization_config describes it.

    Raises ValueError for a variant that is not implemented, for tensors that do not fit, and for
    FP8 on a device that cannot multiply it.
    """
    check_activations(activations, device)
    loaded, weights = open_prequantized(folder)
    if isinstance(weights, FP8Checkpoint):
        _check_fp8(activations, device, f"the FP8 checkpoint in {folder}")
    return _filled(loaded, weights, activations, device, dtype)


def open_quantized(name: str | Path, quantization: str) -> tuple[LoadedModel, Weights]:
    """The model of `load_quantized`, with its parameters on the meta device, and what `fill` fills it with."""
    if quantization == "gguf":
        file = find_gguf(name)
        if file is None:
            raise ValueError(
                "quantization 'gguf' needs a model with GGUF blocks: model must be 'smollm2' or a "
                f".gguf file, got {str(name)!r}"
            )
        folder = gguf_folder(file, weights=False)
        loaded = _empty(folder)
        return loaded, GGUFWeights(file, loaded.config, loaded.model.checkpoint_shapes())
    loaded, tensors = _floats(name, quantization)
    return loaded, RoundedWeights(tensors, quantization, loaded.model.is_transposed)


def open_prequantized(folder: Path) -> tuple[LoadedModel, Weights]:
    """The same for `load_prequantized`. Raises ValueError for another method of quantisation."""
    settings = quantization_config(folder) or {}
    if (method := settings.get("quant_method")) not in list(_READERS):
        raise ValueError(
            f"{folder}/config.json: quantization_config.quant_method must be one of "
            f"{list(_READERS)}, got {method!r}"
        )
    loaded = _empty(folder)
    shapes, is_transposed = loaded.model.checkpoint_shapes(), loaded.model.is_transposed
    return loaded, _READERS[method](folder, settings, shapes, is_transposed)


def _empty(folder: Path) -> LoadedModel:
    config = load_config(folder)
    return LoadedModel(empty_model(config), config, load_tokenizer(folder), "real", folder)


def _filled(
    loaded: LoadedModel,
    weights: Weights,
    activations: str,
    device: torch.device,
    dtype: torch.dtype,
) -> LoadedModel:
    fill(loaded.model, weights, activations, dtype)
    return replace(loaded, model=loaded.model.to(device))


def check_activations(activations: str, device: torch.device) -> None:
    if device.type != "cpu" and activations != "float32":
        raise ValueError(
            f"quantized_activations must be 'float32' on {device.type} (weights are rounded, "
            f"activations are not), got {activations!r}"
        )


def _check_fp8(activations: str, device: torch.device, what: str) -> None:
    check_device(device, what)
    if activations != "float32":
        raise ValueError(
            f"quantized_activations must be 'float32' with {what}, which rounds activations to "
            f"float8 itself, got {activations!r}"
        )


def _floats(name: str | Path, quantization: str) -> tuple[LoadedModel, dict[str, Tensor]]:
    """A float checkpoint: config, tokenizer and empty model, and its tensors, mapped from the file.

    For "gpt2" without a connection to the hub: GPT-2 with random weights.
    """
    try:
        folder = find_folder(name)
    except HubUnreachable:
        if name != "gpt2":
            raise
        loaded = load_model(name)  # random weights, and the warning that says so
        empty = replace(loaded, model=empty_model(loaded.config))
        return empty, checkpoint_tensors(loaded.model)
    if (quantized := quantization_config(folder)) is not None:
        raise ValueError(
            f"quantization must be None for a checkpoint that is quantised already, by "
            f"{quantized.get('quant_method')!r}, got {quantization!r}"
        )
    loaded = _empty(folder)
    return loaded, read_tensors(folder, loaded.model.checkpoint_shapes())


def checkpoint_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a checkpoint of this model, by name.

    Only for GPT-2: each of its modules has one name in the checkpoint.
    """
    tensors = {}
    for path, (name,) in model.checkpoint_names().items():
        for kind, parameter in model.get_submodule(path).named_parameters():
            matrix = kind == "weight" and model.is_transposed(name)
            tensors[f"{name}.{kind}"] = parameter.T if matrix else parameter
    return tensors

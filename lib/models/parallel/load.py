"""Loads one rank's part of a model. Introduced in chapter 13."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.models.checkpoint import LoadedModel, build_model, empty_model, find_folder, load_model
from lib.models.config import load_config, quantization_config
from lib.models.hub import HubUnreachable
from lib.models.parallel.layers import Communicator, parallelize
from lib.models.parallel.shard import Shard, shard_of, take
from lib.models.tokenizer import load_tokenizer
from lib.models.weights import read_tensors


def load_part(
    name: str | Path,
    quantization: str | None,
    activations: str,
    device: torch.device,
    dtype: torch.dtype,
    rank: int,
    size: int,
    communicator: Communicator,
) -> LoadedModel:
    """Load the part of rank `rank` of `size`; arguments and errors as `load_model` and `load_quantized`.

    The result's `config` is the whole model's, its model's `config` that of the part. Parameters are
    copied from the mapped checkpoint, which is read where this rank's part lies only; a quantised
    weight is read as a whole, one at a time. GPT-2's random weights are made as a whole, then cut.
    Raises ValueError if the model cannot be divided among `size` ranks.
    """
    loaded, weights = _open(name, quantization)
    shard = shard_of(loaded.config, rank, size)
    if isinstance(weights, dict):
        if activations != "float32":
            raise ValueError(
                "quantized_activations must be 'float32' where no weights are quantised, "
                f"got {activations!r}"
            )
        model = build_model(shard.local_config, dtype=dtype)
        model.load_checkpoint(tensors_of(weights, shard, loaded.model))
    else:
        from lib.models.parallel.quantized import ShardedWeights
        from lib.models.quantized.fill import fill
        from lib.models.quantized.load import check_activations

        check_activations(activations, device)
        model = empty_model(shard.local_config)
        fill(model, ShardedWeights(weights, shard), activations, dtype)
    model = model.to(device)
    sizes = [len(shard_of(loaded.config, r, size).vocabulary) for r in range(size)]
    parallelize(model, shard, sizes, communicator)
    return replace(loaded, model=model)


def tensors_of(tensors: dict[str, Tensor], shard: Shard, model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint's tensors, each cut down to the rank's part: views, except of joined ranges.

    model: the whole one, which knows the orientation of its checkpoint's matrices.
    """
    parts = {}
    for name, tensor in tensors.items():
        module = name.rpartition(".")[0]
        part = shard.part_of(module)
        transposed = tensor.dim() == 2 and model.is_transposed(module)
        parts[name] = take(tensor.T, part).T if transposed else take(tensor, part)
    return parts


def _open(name: str | Path, quantization: str | None) -> tuple[LoadedModel, object]:
    """The model, its parameters on the meta device, and its weights: a dict of tensors if they are floats."""
    if quantization is not None:
        from lib.models.quantized.load import open_quantized

        return open_quantized(name, quantization)
    try:
        folder = find_folder(name)
    except HubUnreachable:
        from lib.models.quantized.load import checkpoint_tensors

        loaded = load_model(name)  # GPT-2 with random weights, or the same error again
        return replace(loaded, model=empty_model(loaded.config)), checkpoint_tensors(loaded.model)
    if quantization_config(folder) is not None:
        from lib.models.quantized.load import open_prequantized

        return open_prequantized(folder)
    config = load_config(folder)
    model = empty_model(config)
    loaded = LoadedModel(model, config, load_tokenizer(folder), "real", folder)
    return loaded, read_tensors(folder, model.checkpoint_shapes())

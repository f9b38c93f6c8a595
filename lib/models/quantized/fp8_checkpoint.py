"""Reads checkpoints with weights in float8_e4m3fn, as AutoFP8, transformers and llm-compressor write them.

Such a checkpoint has the layers' tensors under the usual names, `weight` as float8, and beside it
the scale by which it is multiplied: one for the whole matrix, or one per output channel. Its name is
`weight_scale`; transformers has `weight_scale_inv`, which despite its name is no inverse.
Activations have to be rounded in each step ("dynamic"), because scales of theirs are not read.
Introduced in chapter 11.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from lib.models.quantized.fp8 import FP8, FP8Matrix
from lib.models.weights import check_shapes, read_unchecked

_SCALES = ("weight_scale", "weight_scale_inv")


class FP8Checkpoint:
    """Tensors of a checkpoint by the names of the float model; layers that it keeps as floats stay so.

    Raises ValueError, naming the field of config.json, for what is not implemented: scales of
    activations, scales of blocks, other numbers of bits, a quantised KV cache. Also for tensors that
    are missing, unexpected or misshapen.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        shapes: dict[str, tuple[int, ...]],
        is_transposed: Callable[[str], bool],
    ) -> None:
        self.folder, self.is_transposed = folder, is_transposed
        check = _check_fp8 if settings.get("quant_method") == "fp8" else _check_compressed_tensors
        check(settings, folder)
        self.tensors = read_unchecked(folder)
        expected = dict(shapes)
        for name, tensor in self.tensors.items():
            if tensor.dtype == FP8 and name in shapes:
                scale = self._scale_name(name)
                expected[scale] = self._scale_shape(scale, shapes[name])
        check_shapes(self.tensors, expected, folder)

    def matrix(self, name: str, is_embedding: bool = False) -> FP8Matrix | Tensor:
        """A weight [out, in]: the checkpoint's float8 codes, or its floats."""
        weight = self.tensors[name]
        transposed = self.is_transposed(name.removesuffix(".weight"))
        if weight.dtype != FP8:
            return weight.T if transposed else weight
        if is_embedding or transposed:
            raise ValueError(
                f"the checkpoint in {self.folder}: {name} must not be {FP8}: only linear layers "
                "[out, in] may be"
            )
        scale = self.tensors[self._scale_name(name)].float().flatten()
        return FP8Matrix(weight, scale.expand(len(weight)).clone())

    def vector(self, name: str) -> Tensor:
        return self.tensors[name]

    def _scale_name(self, name: str) -> str:
        names = [f"{name.removesuffix('weight')}{scale}" for scale in _SCALES]
        return names[1] if names[1] in self.tensors else names[0]

    def _scale_shape(self, name: str, weight: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the scale has, if it is one of the possible ones; else that of a channel's."""
        allowed = ((weight[0], 1), (weight[0],), (), (1,), (1, 1))
        found = tuple(self.tensors[name].shape) if name in self.tensors else None
        return found if found in allowed else allowed[0]


def _choose(
    settings: dict[str, Any], key: str, allowed: tuple, folder: Path, path: str = ""
) -> None:
    value = settings.get(key)
    if value not in allowed:
        raise ValueError(
            f"{folder}/config.json: quantization_config.{path}{key} must be one of "
            f"{list(allowed)}, got {value!r}"
        )


def _check_fp8(settings: dict[str, Any], folder: Path) -> None:
    for key, allowed in (
        ("activation_scheme", ("dynamic",)),
        ("weight_block_size", (None,)),
        ("fmt", (None, "e4m3")),
        ("scale_fmt", (None, "float")),
    ):
        _choose(settings, key, allowed, folder)


def _check_compressed_tensors(settings: dict[str, Any], folder: Path) -> None:
    _choose(settings, "format", ("float-quantized",), folder)
    _choose(settings, "kv_cache_scheme", (None,), folder)
    _choose(settings, "transform_config", (None, {}), folder)
    sparsity = settings.get("sparsity_config") or {}
    _choose(sparsity, "format", (None, "dense"), folder, "sparsity_config.")
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ValueError(
            f"{folder}/config.json: quantization_config.config_groups must be an object with at "
            f"least one group, got {groups!r}"
        )
    for name, group in groups.items():
        path = f"config_groups.{name}."
        if not isinstance(group, dict):
            raise ValueError(
                f"{folder}/config.json: quantization_config.config_groups.{name} must be an object, "
                f"got {group!r}"
            )
        _choose(group, "output_activations", (None,), folder, path)
        for part, rules in (
            ("weights", {"strategy": ("channel", "tensor"), "dynamic": (False, None)}),
            ("input_activations", {"strategy": ("token",), "dynamic": (True,)}),
        ):
            values = group.get(part) or {}
            rules = {"num_bits": (8,), "type": ("float",), "symmetric": (True, None), **rules}
            for key, allowed in rules.items():
                _choose(values, key, allowed, folder, f"{path}{part}.")

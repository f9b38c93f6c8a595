"""Reads GPTQ and AWQ checkpoints: their integers and scales, rearranged as a QuantizedMatrix.

Frantar et al. 2023 (GPTQ), Lin et al. 2024 (AWQ). Both store a linear layer with K inputs, N
outputs and G groups of inputs as w[k, n] = scales[g, n] * (q[k, n] - zeros[g, n]). The integers q
and zeros are packed into int32, the lowest bits first:

- GPTQ (AutoGPTQ, GPTQModel): qweight [K * bits / 32, N] packs inputs; qzeros [G, N * bits / 32]
  packs outputs. Format "gptq" stores zeros - 1, "gptq_v2" stores zeros. g_idx [K] is the group of
  each input.
- AWQ (AutoAWQ, version "gemm"): qweight [K, N / 8] and qzeros [G, N / 8] pack outputs, in the order
  of _AWQ_ORDER.

Introduced in chapter 11.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.models.quantized.matrix import BLOCK, QuantizedMatrix
from lib.models.weights import check_shapes, read_unchecked

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output of each nibble of an int32, lowest first
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_FORMATS = ("gptq", "gptq_v2")


class PackedWeights:
    """Tensors of a GPTQ or AWQ checkpoint by the names of the float model.

    Layers that the checkpoint does not quantise (embedding and head, as a rule) stay float. Raises
    ValueError for a method, a number of bits, a group size or an order of inputs that is not
    implemented, and for tensors that are missing, unexpected or misshapen.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        shapes: dict[str, tuple[int, ...]],
        is_transposed: Callable[[str], bool],
    ) -> None:
        self.folder, self.is_transposed = folder, is_transposed
        self.method, self.bits, self.group_size, self.zero_shift = _settings(settings, folder)
        self.tensors = read_unchecked(folder)
        expected = dict(shapes)
        for name in list(self.tensors):
            base, _, part = name.rpartition(".")
            if part == "qweight" and f"{base}.weight" in expected:
                shape = expected.pop(f"{base}.weight")
                outputs, inputs = shape[::-1] if is_transposed(base) else shape
                expected |= self._packed_shapes(base, inputs, outputs)
                # AutoGPTQ writes a bias of zeros for layers without one.
                bias = self.tensors.get(f"{base}.bias")
                if bias is not None and f"{base}.bias" not in expected and not bias.any():
                    del self.tensors[f"{base}.bias"]
        check_shapes(self.tensors, expected, folder)

    def matrix(self, name: str, is_embedding: bool = False) -> QuantizedMatrix | Tensor:
        """A weight [out, in]: the checkpoint's integers, or its floats if it is not quantised."""
        base = name.removesuffix(".weight")
        if name in self.tensors:
            weight = self.tensors[name]
            return weight.T if self.is_transposed(base) else weight
        qweight, qzeros, scales = (self.tensors[f"{base}.{part}"] for part in _PARTS[:3])
        if self.method == "awq":
            codes, zeros = (_unpack_outputs(q, 4, _AWQ_ORDER) for q in (qweight, qzeros))
        else:
            self._check_order(base)
            order = tuple(range(32 // self.bits))
            codes = _unpack_outputs(qweight.T, self.bits, order).T
            zeros = _unpack_outputs(qzeros, self.bits, order) + self.zero_shift
        return _matrix(self.bits, codes.T, zeros.T, scales.T)

    def vector(self, name: str) -> Tensor:
        return self.tensors[name]

    def _packed_shapes(self, base: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        group = inputs if self.group_size == -1 else self.group_size
        packed = 32 // self.bits
        if inputs % group or group % BLOCK or outputs % packed or inputs % packed:
            raise ValueError(
                f"the checkpoint in {self.folder}: {base} has {inputs} inputs and "
                f"{outputs} outputs; the inputs must be divisible by the group size {group}, "
                f"that by {BLOCK}, and both by {packed}"
            )
        groups = inputs // group
        awq = self.method == "awq"
        shapes = {
            f"{base}.qweight": (inputs, outputs // packed) if awq else (inputs // packed, outputs),
            f"{base}.qzeros": (groups, outputs // packed),
            f"{base}.scales": (groups, outputs),
        }
        if f"{base}.g_idx" in self.tensors and not awq:
            shapes[f"{base}.g_idx"] = (inputs,)
        return shapes

    def _check_order(self, base: str) -> None:
        """Raise ValueError unless every group is a run of neighbouring inputs, as here.

        Checkpoints made with desc_act may group the inputs by importance instead.
        """
        order = self.tensors.get(f"{base}.g_idx")
        if order is None:
            return
        group = len(order) if self.group_size == -1 else self.group_size
        if not torch.equal(order.long(), torch.arange(len(order)) // group):
            raise ValueError(
                f"the checkpoint in {self.folder}: {base}.g_idx reorders the inputs (desc_act), "
                f"which is not implemented: it must be k // {group}"
            )


def _settings(settings: dict[str, Any], folder: Path) -> tuple[str, int, int, int]:
    """(method, bits, group size, what to add to the stored zeros)."""

    def choose(key: str, allowed: tuple, default: Any) -> Any:
        value = settings.get(key, default)
        if value not in allowed:
            raise ValueError(
                f"{folder}/config.json: quantization_config.{key} must be one of {list(allowed)}, "
                f"got {value!r}"
            )
        return value

    method = choose("quant_method", ("gptq", "awq"), None)
    bits = choose("bits", (4, 8) if method == "gptq" else (4,), None)
    group_size = settings.get("group_size", 128)
    if not isinstance(group_size, int) or (group_size != -1 and group_size < 1):
        raise ValueError(
            f"{folder}/config.json: quantization_config.group_size must be -1 or an integer >= 1, "
            f"got {group_size!r}"
        )
    if method == "awq":
        choose("version", ("gemm", "GEMM"), "gemm")
        choose("zero_point", (True,), True)
        return method, bits, group_size, 0
    return method, bits, group_size, int(choose("checkpoint_format", _FORMATS, "gptq") == "gptq")


def _unpack_outputs(packed: Tensor, bits: int, order: tuple[int, ...]) -> Tensor:
    """int32 [R, C] to int32 [R, C * 32 / bits].

    Of an int32, the value that starts at bit i * bits becomes column order[i] of its 32 / bits.
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    values = (packed[..., None] >> shifts) & (2**bits - 1)
    return values[..., torch.tensor(order).argsort()].flatten(1)


def _matrix(bits: int, codes: Tensor, zeros: Tensor, scale: Tensor) -> QuantizedMatrix:
    """codes [N, K], zeros and scale [N, G] as a QuantizedMatrix.

    If all zeros are the middle of the range, no minimum is needed, and scales stay in float16 if the
    checkpoint has them so. Otherwise the minimum is -scale * zero, and both are kept in float32, because float16 would
    round that product.
    """
    middle = 2 ** (bits - 1)
    codes = codes.to(torch.uint8) if bits == 4 else (codes - 128).to(torch.int8)
    if (zeros == middle).all():
        return QuantizedMatrix(
            bits, codes, scale if scale.dtype == torch.float16 else scale.float()
        )
    offset = zeros if bits == 4 else zeros - middle
    return QuantizedMatrix(bits, codes, scale.float(), -scale.float() * offset)

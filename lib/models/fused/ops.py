"""The functions of `lib.models.compiled` by Numba's kernels: same arguments, same results up to rounding.

For float32 and bfloat16 on a CPU, any number of rows. Introduced in chapter 8.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from lib.models.fused import kernel

_NO_BIAS = np.empty(0, np.float32)
_WORTH_A_THREAD = 2**14  # elements; waking a thread for fewer does not pay


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = torch.empty_like(x)
    kernel.rms_norm(array(x.contiguous()), floats(weight), eps, array(out), threads(x.numel()))
    return out


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _add_norm(x, y, weight, _NO_BIAS, eps)


def add_layer_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return _add_norm(x, y, weight, floats(bias), eps)


def split_rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows, size = qkv.shape[0], qkv.shape[1] // (heads + 2 * kv_heads)
    q, k, v = (qkv.new_empty(rows, n, size) for n in (heads, kv_heads, kv_heads))
    kernel.split_rotate(
        array(qkv.contiguous()),
        array(cos)[:, 0],
        array(sin)[:, 0],
        *map(array, (q, k, v)),
        threads(qkv.numel()),
    )
    return q, k, v


def swiglu(gate_up: Tensor) -> Tensor:
    out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    kernel.swiglu(array(gate_up.contiguous()), array(out), threads(gate_up.numel()))
    return out


def array(x: Tensor) -> np.ndarray:
    """A NumPy view of x; of bfloat16, which NumPy does not have, a view of its bits as uint16."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def floats(parameter: Tensor) -> np.ndarray:
    """A small parameter as a float32 array: a view if it is float32, a copy if it is bfloat16."""
    return parameter.detach().float().numpy()


def threads(elements: int) -> int:
    """Threads for a loop: at least one; more only if each gets `_WORTH_A_THREAD` elements."""
    return max(1, min(most_threads(), elements // _WORTH_A_THREAD))


def most_threads() -> int:
    """PyTorch's number of threads or Numba's, whichever is smaller."""
    return min(torch.get_num_threads(), numba.get_num_threads())


def _add_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: np.ndarray, eps: float
) -> tuple[Tensor, Tensor]:
    total, out = torch.empty_like(x), torch.empty_like(x)
    kernel.add_norm(
        array(x.contiguous()),
        array(y.contiguous()),
        floats(weight),
        bias,
        eps,
        array(total),
        array(out),
        threads(x.numel()),
    )
    return total, out

"""The family of a kernel by its name, as all profiles in the book show it.

The families: gemm, gemv, attention, softmax, normalisation, elementwise, copy, embedding, other.

Introduced in chapter 1.
"""

from collections.abc import Sequence

# The first pattern found in the lower-cased name decides, so the specific ones come first: a fused attention kernel
# built with CUTLASS is attention, a copy made by the elementwise machinery is a copy. "copy" is all that moves data
# without computing: copies, concatenation, gather, scatter, indexing, filling.
_CUDA = (
    ("attention", ("flash", "fmha", "attention", "attn", "mha_")),
    ("embedding", ("embedding",)),
    (
        "copy",
        ("memcpy", "memset", "copy", "catarray", "gather", "scatter", "index", "fill", "masked_"),
    ),
    ("softmax", ("softmax",)),
    (
        "normalisation",
        ("layer_norm", "layernorm", "rms_norm", "rmsnorm", "rsqrt", "meanops", "welford"),
    ),
    ("gemv", ("gemv", "dot_kernel")),
    ("gemm", ("gemm", "cutlass", "xmma", "nvjet", "wgmma", "hmma", "s16816", "splitk", "matmul")),
    ("elementwise", ("elementwise", "triton_poi", "gelu", "silu", "pointwise")),
)
_CPU = (
    ("attention", ("scaled_dot_product", "attention", "attn")),
    ("softmax", ("softmax",)),
    ("normalisation", ("layer_norm", "rms_norm")),
    ("embedding", ("embedding",)),
    ("copy", ("copy", "index", "gather", "scatter", "masked_")),
)
# Short operator names are compared whole: "le" is in "select", and "to" in "topk".
_CPU_EXACT = {
    "gemv": {"mv", "addmv", "dot"},
    "gemm": {"mm", "addmm", "bmm", "baddbmm", "matmul", "linear"},
    "normalisation": {"rsqrt", "mean", "var", "var_mean"},
    "copy": {"cat", "stack", "clone", "contiguous", "to", "fill", "zero", "where", "repeat", "repeat_interleave"},
    "elementwise": {"add", "sub", "mul", "div", "pow", "square", "sqrt", "neg", "exp", "sin", "cos", "tanh", "sigmoid",
                    "silu", "gelu", "erf", "relu", "addcmul", "le", "lt", "ge", "gt", "eq", "ne", "bitwise_and"},
}  # fmt: skip


def cuda_family(kernel: str) -> str:
    """Family of a CUDA kernel by its name."""
    return _first(_CUDA, kernel.lower())


def cpu_family(op: str, shapes: Sequence[Sequence[int]] = ()) -> str:
    """Family of a CPU operator by its name and, for a matmul, its shapes: one row or one column makes it a gemv.

    Views and allocations, which a CPU run spends most of its dispatching on, are "other".
    """
    name = op.lower()
    base = name.removeprefix("aten::").rstrip("_")
    family = next((family for family, names in _CPU_EXACT.items() if base in names), None)
    if family is None and "mkldnn" in name and "linear" in name:
        family = "gemm"
    if family == "gemm":
        return "gemv" if _is_gemv(shapes) else "gemm"
    return family or _first(_CPU, name)


def _first(table: Sequence[tuple[str, Sequence[str]]], name: str) -> str:
    return next(
        (family for family, patterns in table if any(pattern in name for pattern in patterns)),
        "other",
    )


def _is_gemv(shapes: Sequence[Sequence[int]]) -> bool:
    """Whether the last two matrices among the operands, [.., m, k] and [.., k, n], have m = 1 or n = 1.

    addmm and baddbmm carry the bias first; linear has its weight as [n, k], where m = 1 alone decides.
    """
    matrices = [shape for shape in shapes if len(shape) >= 2]
    if len(matrices) < 2:
        return False
    left, right = matrices[-2:]
    return left[-2] == 1 or right[-1] == 1

"""The Triton product against the dequantised matrix; `python -m` with TRITON_INTERPRET=1 runs it on a CPU."""

from __future__ import annotations

import torch

from tests.models.quantized.test_product import KINDS, matrix_of


def check(device: str, dtypes: dict[torch.dtype, float]) -> None:
    from lib.models.quantized.triton_product import multiply
    from lib.models.quantized.weight import QuantizedWeight

    for kind in KINDS:
        matrix = matrix_of(kind, 70, 128)
        weight = QuantizedWeight(matrix).to(device)
        for dtype, tolerance in dtypes.items():
            for rows in (1, 5, 16, 19):
                x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(rows)).to(dtype)
                exact = x.double() @ matrix.dequantize().T.double()
                out = multiply(
                    x.to(device), weight.words, weight.scale, weight.minimum, weight.bits,
                    weight.zero, weight.blocks_per_group, weight.out_features,
                )  # fmt: skip
                error = (out.cpu() - exact).abs().max() / exact.abs().max()
                assert error <= tolerance, (kind, dtype, rows, error)


if __name__ == "__main__":
    # NumPy, and so the interpreter, lacks bfloat16.
    check("cpu", {torch.float32: 1e-5, torch.float16: 5e-3})
    print("interpreted: ok")

"""Products with quantised weights against the same arithmetic in float64: any shape, any kind, any number of rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib.models.quantized import tile_code
from lib.models.quantized.layers import QuantizedEmbedding, QuantizedLinear
from lib.models.quantized.matrix import QuantizedMatrix, stack
from lib.models.quantized.rounding import round_blocks4, round_blocks8, round_channels
from lib.models.quantized.weight import QuantizedWeight

EXACT = 1e-5  # of the largest result: what float32 sums may differ from float64's


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def matrix_of(kind: str, rows: int, inputs: int, seed: int = 0) -> QuantizedMatrix:
    """Random codes and scales: all values that a layout can hold occur."""
    g = torch.Generator().manual_seed(seed)
    bits, group, dtype, has_minimum = {
        "Q4_0": (4, 32, torch.float16, False),
        "Q4_1": (4, 32, torch.float16, True),
        "Q8_0": (8, 32, torch.float16, False),
        "channels": (8, inputs, torch.float32, False),
        "groups": (4, 64, torch.float32, True),
    }[kind]
    low, high = (0, 16) if bits == 4 else (-128, 128)
    codes = torch.randint(low, high, (rows, inputs), generator=g)
    scale = torch.rand(rows, inputs // group, generator=g) + 0.01
    minimum = (torch.randn(scale.shape, generator=g) - 8 * scale).to(dtype) if has_minimum else None
    return QuantizedMatrix(
        bits, codes.to(torch.uint8 if bits == 4 else torch.int8), scale.to(dtype), minimum
    )


def rounded(x: Tensor) -> Tensor:
    """x as float64 after rounding to 8 bits per block of 32: what "int8" activations are."""
    blocks = x.view(len(x), -1, 32)
    largest = blocks.abs().amax(-1, keepdim=True)
    codes = (blocks * torch.where(largest > 0, 127 / largest, 0.0)).round()
    return (codes.double() * (largest.double() / 127)).view(x.shape)


KINDS = ["Q4_0", "Q4_1", "Q8_0", "channels", "groups"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activations", ["float32", "int8"])
@pytest.mark.parametrize("rows, inputs", [(16, 64), (37, 128), (3, 192)])
def test_the_product_is_that_of_the_dequantised_matrix(kind, activations, rows, inputs):
    matrix = matrix_of(kind, rows, inputs)
    weight = QuantizedWeight(matrix, activations)
    for tokens in (1, 2, 5, 8, 13, 16, 39):
        x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(tokens))
        exact = (
            x.double() if activations == "float32" else rounded(x)
        ) @ matrix.dequantize().T.double()
        error = (weight(x) - exact).abs().max() / exact.abs().max()
        assert error <= EXACT, f"{tokens} rows: {error:.1e}"


@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_a_row_does_not_depend_on_the_rows_beside_it(activations):
    weight = QuantizedWeight(matrix_of("Q4_1", 48, 128), activations)
    x = torch.randn(41, 128)
    x[7] *= 1e4
    together = weight(x)
    for row in (0, 7, 40):
        error = (weight(x[row : row + 1])[0] - together[row]).abs().max()
        assert error <= EXACT * together[row].abs().max()


def test_a_block_of_tiny_inputs_is_a_block_of_zeros():
    """127 / max |x| would be infinite."""
    weight = QuantizedWeight(matrix_of("Q8_0", 16, 64), "int8")
    x = torch.randn(3, 64)
    x[1, :32] = 0
    expected = weight(x)
    for tiny in (1e-45, 1e-40, 1e-37):
        x[1, :32] = tiny
        assert torch.equal(weight(x), expected)


def test_int8_activations_stay_within_their_bound():
    """An element is off by half a step at most: 1/254 of its block's largest."""
    matrix, x = matrix_of("Q4_1", 32, 128), torch.randn(20, 128)
    w = matrix.dequantize()
    steps = x.view(20, 4, 32).abs().amax(-1) / 127
    bound = 0.5 * steps @ w.abs().view(32, 4, 32).sum(-1).T
    error = (QuantizedWeight(matrix, "int8")(x) - x @ w.T).abs()
    assert (error <= bound * 1.001).all() and error.max() > 0.01 * bound.max()


@pytest.mark.parametrize("vnni", [True, False])
def test_the_written_out_sums_are_the_instruction_s(vnni, monkeypatch):
    """What runs where the CPU has no AVX-512 VNNI."""
    import numpy as np
    from numba import njit

    if vnni and not tile_code.HAS_VNNI:
        pytest.skip("no AVX-512 VNNI here")
    monkeypatch.setattr(tile_code, "HAS_VNNI", vnni)
    product = tile_code.tile_product(tile_code.Int8Tile, (2,))
    matrix = matrix_of("Q8_0", 16, 64)
    weight = QuantizedWeight(matrix, "int8")
    x = torch.randint(-127, 128, (2, 64), dtype=torch.int8)
    blocks = x.view(2, 2, 32).transpose(0, 1).contiguous()  # the rows of a block side by side
    sums = blocks.sum(-1)
    inputs = blocks.numpy(), np.ones((2, 2), np.float32), sums.int().numpy(), sums.float().numpy()
    out = np.zeros((2, 16), np.float32)

    @njit
    def run(words, scale, codes, scales, sums, totals, out):
        product(
            2, 8, words.ctypes.data, scale.ctypes.data, 0, 1, 0, 2, 1, codes.ctypes.data,
            scales.ctypes.data, sums.ctypes.data, totals.ctypes.data, out.ctypes.data, 16,
        )  # fmt: skip

    run(weight.words.numpy(), weight.scale.view(torch.uint16).numpy(), *inputs, out)
    (assembly,) = run.inspect_asm().values()
    assert ("vpdpbusd" in assembly) == vnni
    expected = x.double() @ matrix.dequantize().T.double()
    torch.testing.assert_close(torch.from_numpy(out).double(), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("activations", ["float32", "int8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_stays_so_and_alone(activations, bad):
    weight = QuantizedWeight(matrix_of("Q4_1", 16, 64), activations)
    x = torch.randn(5, 64)
    x[2, 40] = bad
    finite = torch.isfinite(weight(x)).all(dim=1)
    assert finite.tolist() == [True, True, False, True, True]


def test_zeros_give_zeros():
    for activations in ("float32", "int8"):
        y = QuantizedWeight(matrix_of("Q4_1", 16, 64), activations)(torch.zeros(3, 64))
        assert (y == 0).all()


def test_threads_share_the_tiles(monkeypatch):
    weight, x = QuantizedWeight(matrix_of("Q8_0", 80, 64)), torch.randn(3, 64)
    alone = weight(x)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(weight(x), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_reads_the_rows_of_the_matrix(kind):
    matrix = matrix_of(kind, 37, 128)
    ids = torch.tensor([0, 36, 5, 5, 16, 31])
    embedding = QuantizedEmbedding(QuantizedWeight(matrix), 128, torch.float32)
    assert torch.equal(embedding(ids), matrix.dequantize()[ids])


def test_a_layer_of_mixed_parts():
    """q and k in 4 bits, v in 8, one more in float: as in GGUF files of mixed types."""
    parts = [matrix_of("Q4_1", 20, 64, 1), matrix_of("Q4_1", 7, 64, 2), matrix_of("Q8_0", 9, 64, 3)]
    parts.append(torch.randn(5, 64))
    bias, x = torch.randn(41), torch.randn(6, 64)
    layer = QuantizedLinear(parts, bias, 64, "float32", torch.float32)
    assert len(layer.parts) == 3, "parts of one kind are one product"
    w = torch.cat([p if isinstance(p, Tensor) else p.dequantize() for p in parts])
    torch.testing.assert_close(layer(x), x @ w.T + bias, rtol=1e-5, atol=1e-3)


def test_bytes_are_those_of_codes_and_scales():
    """4 bits and two float16 per 32: 20 bytes, as in the file; padding to 16 channels on top."""
    weight = QuantizedWeight(matrix_of("Q4_1", 32, 128))
    assert weight.weight_bytes == 32 * 128 // 32 * 20
    assert QuantizedWeight(matrix_of("Q8_0", 32, 128)).weight_bytes == 32 * 128 // 32 * 34
    assert QuantizedWeight(matrix_of("Q4_0", 17, 128)).weight_bytes == 32 * 128 // 32 * 18
    assert sum(b.nbytes for b in weight.buffers()) == weight.weight_bytes
    assert not list(weight.parameters())


# Rounding.


def test_rounding_is_to_nearest():
    w = torch.randn(24, 96)
    for rounding, steps in ((round_channels, 127), (round_blocks8, 127)):
        matrix = rounding(w)
        step = w.view(24, -1, matrix.group_size).abs().amax(-1) / steps
        error = (matrix.dequantize() - w).view(24, -1, matrix.group_size).abs().amax(-1)
        assert (error <= 0.502 * step + 1e-3 * w.abs().max() * (rounding is round_blocks8)).all()
    blocks = w.view(24, 3, 32)
    step = (blocks.amax(-1) - blocks.amin(-1)) / 15
    error = (round_blocks4(w).dequantize() - w).view(24, 3, 32).abs().amax(-1)
    assert (error <= 0.52 * step).all() and error.max() > 0.4 * step.max()


@pytest.mark.parametrize("rounding", [round_channels, round_blocks8, round_blocks4])
def test_small_channels_keep_their_precision(rounding):
    """No floor under the scales: a channel near 1/64 is rounded as one near 1 is."""
    w = torch.randn(2, 64)
    w[1] = w[0] / 64
    large, small = rounding(w).dequantize()
    torch.testing.assert_close(small * 64, large, rtol=1e-6, atol=1e-6)
    assert (large - w[0]).abs().max() < 0.5
    assert (rounding(torch.zeros(2, 64)).dequantize() == 0).all()


def test_rounding_four_bits_again_changes_nothing():
    once = round_blocks4(torch.randn(8, 64))
    again = round_blocks4(once.dequantize())
    assert (once.codes == again.codes).float().mean() > 0.99


def test_what_cannot_be_rounded_is_named():
    with pytest.raises(ValueError, match="down has 48 inputs: they must be divisible .* 32"):
        round_blocks4(torch.randn(4, 48), "down")
    with pytest.raises(ValueError, match="up holds values beyond float16"):
        round_blocks8(torch.full((4, 32), 1e9), "up")
    assert round_channels(torch.randn(4, 48)).codes.shape == (4, 64), "int8 is padded"


def test_wrong_matrices_and_activations():
    with pytest.raises(ValueError, match="bits must be 4 with uint8 codes"):
        QuantizedMatrix(5, torch.zeros(2, 32, dtype=torch.uint8), torch.ones(2, 1))
    for groups in (3, 4):
        with pytest.raises(ValueError, match="groups of a multiple of 32 inputs"):
            QuantizedMatrix(4, torch.zeros(2, 64, dtype=torch.uint8), torch.ones(2, groups))
    for low in (torch.ones(2, 1), torch.ones(2, 2, dtype=torch.float16)):
        with pytest.raises(ValueError, match="minimum must have the scale's shape"):
            QuantizedMatrix(4, torch.zeros(2, 64, dtype=torch.uint8), torch.ones(2, 2), low)
    with pytest.raises(ValueError, match="activations must be one of .*got 'int4'"):
        QuantizedWeight(matrix_of("Q8_0", 16, 64), "int4")


def test_stacking_keeps_every_row():
    a, b = matrix_of("Q4_1", 5, 64, 1), matrix_of("Q4_1", 6, 64, 2)
    together = stack([a, b]).dequantize()
    assert torch.equal(together, torch.cat([a.dequantize(), b.dequantize()]))
    order = torch.randperm(5)
    assert torch.equal(a.reordered(order).dequantize(), a.dequantize()[order])

"""Chapter 7: merges the states of a sequence's tiles and compares with a softmax over all of its keys."""

from collections.abc import Callable

import torch

from book.check import Wrong

FUNCTION = "tile_state"
Merged = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def merge(one: Merged, two: Merged) -> Merged:
    """One state of two: the larger peak, both sums rescaled to it."""
    top = torch.maximum(one[0], two[0])
    a, b = torch.exp(one[0] - top), torch.exp(two[0] - top)
    return top, one[1] * a + two[1] * b, one[2] * a + two[2] * b


def check(answer: Callable[[torch.Tensor, torch.Tensor], Merged]) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1, 10, 100):  # e^100 is larger than any float32
        for cut in (1, 5, 11):
            scores = scale * torch.randn(12, generator=generator)
            values = torch.randn(12, 4, generator=generator)
            exact = scores.double().softmax(0) @ values.double()
            tiles = (answer(scores[part], values[part]) for part in (slice(cut), slice(cut, 12)))
            _, norm, acc = merge(*tiles)
            error = (acc / norm - exact).abs().max().item()
            if not error < 1e-5:
                raise Wrong(
                    f"Scores of size {scale}, 12 keys in tiles of {cut} and {12 - cut}: "
                    f"the merged output differs from attention by {error:.3g}"
                )

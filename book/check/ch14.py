"""Chapter 14: compares with attention itself, for 200 positions and windows."""

import random
from collections.abc import Callable

import torch

from book.check import expect
from lib.attention.full import FullAttention
from lib.core.batch import Batch

FUNCTION = "visible"


def seen(length: int, window: int | None) -> list[list[int]]:
    """Positions that each query of a sequence sees: those whose values are part of its result.

    All scores are equal, and the value of position i is the unit vector i.
    """
    queries = torch.zeros(length, 1, length)
    values = torch.eye(length)[:, None]
    batch = Batch.of_prompts([[0] * length])
    out = FullAttention()(0, queries, queries, values, batch, window)
    return [row.nonzero().flatten().tolist() for row in out[:, 0]]


def check(answer: Callable[[int, int | None], range]) -> None:
    rng = random.Random(0)
    for _ in range(200):
        length = rng.randint(1, 12)
        position, window = rng.randrange(length), rng.choice([None, *range(1, 15)])
        call = f"list(visible({position}, {window}))"
        expect(call, list(answer(position, window)), seen(length, window)[position])

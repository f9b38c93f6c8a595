"""Chapter 10: compares with the engine's proposer on 300 texts."""

import random
from collections.abc import Callable

from book.check import expect
from lib.core.request import Request
from lib.core.sampling_params import SamplingParams
from lib.engine.speculation.ngram import NgramProposer

FUNCTION = "draft"


def check(answer: Callable[[list[int], int], list[int]]) -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = [rng.randrange(4) for _ in range(rng.randint(1, 20))]
        k = rng.randint(1, 5)
        one = Request("check", list(text), SamplingParams())
        (engine_draft,) = NgramProposer(1, 3).propose([one], [k])
        got, expected = tuple(answer(list(text), k)), tuple(engine_draft.token_ids)
        if got and got == tuple(text[-len(got) :]):
            # Where the text ends, the engine continues with the copy's beginning.
            expected = expected[: len(got)]
        expect(f"draft({text}, {k})", list(got), list(expected))

"""Chapter 3: runs the padded batches with their lengths alone, one step after another."""

import random
from collections.abc import Callable, Sequence

from book.check import expect

FUNCTION = "rectangle_tokens"


def count(prompts: Sequence[int], answers: Sequence[int], slots: int) -> int:
    queue, computed = list(zip(prompts, answers)), 0
    while queue:
        batch, queue = queue[:slots], queue[slots:]
        new = max(prompt for prompt, _ in batch)  # columns of the next step
        left = [answer for _, answer in batch]
        while max(left) > 0:
            computed += len(batch) * new
            left, new = [n - 1 for n in left], 1
    return computed


def check(answer: Callable[..., int]) -> None:
    rng = random.Random(0)
    for _ in range(200):
        requests, slots = rng.randint(1, 12), rng.randint(1, 5)
        prompts, answers = ([rng.randint(1, 9) for _ in range(requests)] for _ in range(2))
        call = f"rectangle_tokens({prompts}, {answers}, {slots})"
        expect(call, answer(prompts, answers, slots), count(prompts, answers, slots))

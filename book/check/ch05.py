"""Chapter 5: lets a burst run through the book's model of a server, with more and more requests inside."""

import random
from collections.abc import Callable

from book.check import expect
from lib.loadtest.queue_model import StepLine, serve

FUNCTION = "largest_limit"


def slowest(limit: int, tokens: int, line: StepLine, slots: int) -> float:
    return max(request.last for request in serve([0.0] * limit, tokens, line, slots))


def count(seconds: float, tokens: int, shared: float, each: float, slots: int) -> int:
    line, limit = StepLine(shared, each), 0
    while slowest(limit + 1, tokens, line, slots) <= seconds:
        limit += 1
    return limit


def check(answer: Callable[..., int]) -> None:
    rng = random.Random(0)
    for _ in range(100):
        # Durations are multiples of 1/64 s, which floating point adds without rounding.
        seconds, tokens, slots = rng.randint(1, 320) / 64, rng.randint(1, 8), rng.randint(1, 6)
        shared, each = rng.randint(1, 8) / 64, rng.randint(1, 4) / 64
        call = f"largest_limit({seconds}, {tokens}, {shared}, {each}, {slots})"
        case = seconds, tokens, shared, each, slots
        expect(call, answer(*case), count(*case))

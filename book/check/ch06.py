"""Chapter 6: compares with the book's model of a server that has one place."""

import random
from collections.abc import Callable

from book.check import expect
from lib.loadtest.queue_model import StepLine, serve

FUNCTION = "latencies"


def check(answer: Callable[[list[float], float], list[float]]) -> None:
    rng = random.Random(0)
    for _ in range(100):
        # Times are multiples of 1/8 s, which floating point adds without rounding.
        due = sorted(rng.randint(0, 160) / 8 for _ in range(rng.randint(1, 12)))
        seconds = rng.randint(1, 24) / 8
        served = serve(due, 1, StepLine(seconds, 0.0), seats=1)
        expected = [request.last - request.arrived for request in served]
        expect(f"latencies({due}, {seconds})", list(answer(due, seconds)), expected)

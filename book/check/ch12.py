"""Chapter 12: compares with what all texts of small languages begin with."""

import random
from collections.abc import Callable

from book.check import expect
from lib.engine.structured.automaton import Automaton, from_choice

FUNCTION = "certain"


def common_beginning(texts: list[str]) -> str:
    beginning = min(texts, key=len)
    while not all(text.startswith(beginning) for text in texts):
        beginning = beginning[:-1]
    return beginning


def check(answer: Callable[[Automaton, int], bytes]) -> None:
    rng = random.Random(0)
    for _ in range(200):
        texts = sorted(
            {
                "".join(rng.choice("ab") for _ in range(rng.randint(1, 6)))
                for _ in range(rng.randint(1, 3))
            }
        )
        start = rng.choice(texts)
        start = start[: rng.randint(0, len(start))]
        automaton = from_choice(texts)
        state = automaton.read(automaton.start, start.encode())
        rest = [text[len(start) :] for text in texts if text.startswith(start)]
        call = f"certain(automaton of {texts}, the state after {start!r})"
        expect(call, answer(automaton, state), common_beginning(rest).encode())

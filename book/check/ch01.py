"""Chapter 1: counts the tokens of the loop, step by step."""

from collections.abc import Callable

from book.check import expect

FUNCTION = "computed_tokens"


def check(answer: Callable[[int, int], int]) -> None:
    for prompt in (1, 5, 40):
        for new_tokens in (1, 2, 7, 33):
            sequence, computed = prompt, 0
            for _ in range(new_tokens):
                computed += sequence
                sequence += 1
            call = f"computed_tokens({prompt}, {new_tokens})"
            expect(call, answer(prompt, new_tokens), computed)

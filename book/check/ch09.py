"""Chapter 9: compares with the block manager on 300 pairs of prompts."""

import random
from collections.abc import Callable

from book.check import expect
from lib.cache.prefix_cache import PrefixCachingBlockManager
from lib.core.request import Request
from lib.core.sampling_params import SamplingParams

FUNCTION = "found_tokens"


def request(tokens: list[int]) -> Request:
    return Request("check", list(tokens), SamplingParams())


def found(first: list[int], second: list[int], block: int) -> int:
    """Tokens of `second` that the manager finds once `first` was computed and has left."""
    manager, one = PrefixCachingBlockManager(1 + 40, block), request(first)
    manager.admit(one)
    one.num_computed_tokens = one.num_tokens
    manager.publish(one)
    manager.free(one)
    return manager.admit(request(second))


def check(answer: Callable[[list[int], list[int], int], int]) -> None:
    rng = random.Random(0)
    for _ in range(300):
        block, ends = rng.randint(1, 5), [rng.randint(1, 20) for _ in range(2)]
        first, second = ([rng.randrange(2) for _ in range(n)] for n in ends)
        call = f"found_tokens({first}, {second}, {block})"
        expect(call, answer(first, second, block), found(first, second, block))

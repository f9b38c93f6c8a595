"""Chapter 4: lets a BlockManager share the prompt's full blocks, and counts the blocks that are then taken."""

import random
from collections.abc import Callable

from book.check import expect
from lib.cache.block_manager import BlockManager
from lib.core.request import Request
from lib.core.sampling_params import SamplingParams

FUNCTION = "blocks_needed"
POOL = 2000


def count(prompt: int, answer: int, n: int, block: int) -> int:
    manager = BlockManager(POOL + 1, block)
    requests = [Request(str(i), [0] * prompt, SamplingParams()) for i in range(n)]
    manager.allocate(requests[0], prompt // block * block)
    for request in requests[1:]:
        manager.share(request, requests[0].block_ids)
    for request in requests:
        manager.allocate(request, prompt + answer - 1)
    manager.check_integrity(requests)
    return POOL - manager.num_free_blocks


def check(answer: Callable[[int, int, int, int], int]) -> None:
    rng = random.Random(0)
    for _ in range(200):
        case = rng.randint(1, 60), rng.randint(1, 30), rng.randint(1, 5), rng.choice((1, 4, 16))
        expect(f"blocks_needed{case}", answer(*case), count(*case))

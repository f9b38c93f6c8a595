"""Chapter 8: pads every batch as GraphRunner does, and counts the sizes that any ladder needs."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from book.check import Wrong

FUNCTION = "fewest_sizes"


def most_padding(sizes: Sequence[int], largest: int) -> int:
    """Rows of padding in the worst case, over batches of 1 to `largest` sequences."""
    return max(sizes[bisect_left(sizes, n)] - n for n in range(1, largest + 1))


def fewest(largest: int, most: int) -> int:
    """Sizes that are needed: the smallest batch that no size serves yet needs one, which serves `most` more at best."""
    served, sizes = 0, 0
    while served < largest:
        served, sizes = served + 1 + most, sizes + 1
    return sizes


def check(answer: Callable[[int, int], list[int]]) -> None:
    for largest in (1, 2, 7, 8, 9, 64, 100):
        for most in (0, 1, 2, 7):
            sizes, call = list(answer(largest, most)), f"fewest_sizes({largest}, {most})"
            if sizes != sorted(set(sizes)) or not sizes or sizes[0] < 1 or sizes[-1] != largest:
                raise Wrong(f"{call} returned {sizes}: ascending, from 1 or more to {largest}")
            if most_padding(sizes, largest) > most:
                padding = most_padding(sizes, largest)
                raise Wrong(f"{call} returned {sizes}, which pads by up to {padding} rows")
            if len(sizes) > fewest(largest, most):
                count = fewest(largest, most)
                raise Wrong(f"{call} returned {len(sizes)} sizes, {count} are enough")

"""Comparison of the tokens that two ways of computing the same answers give. Introduced in chapter 1."""

from collections.abc import Sequence

import torch


def same_tokens(
    expected: Sequence[Sequence[int]],
    got: Sequence[Sequence[int]],
    device: torch.device | str,
    what: str = "",
) -> bool:
    """Whether both have the same token ids, answer by answer. A difference raises AssertionError on a CPU.

    On a GPU it is printed: for batches of other shapes, its libraries choose kernels that add in another order, and
    where two tokens are almost equally likely, rounding decides between them. `what` names the comparison. Raises
    ValueError where the numbers of answers differ.
    """
    expected, got = [list(ids) for ids in expected], [list(ids) for ids in got]
    if len(expected) != len(got):
        raise ValueError(f"got {len(got)} answers to compare with {len(expected)}")
    wrong = [i for i, (a, b) in enumerate(zip(expected, got)) if a != b]
    if not wrong:
        return True
    text = _difference(expected, got, wrong)
    message = f"{what}: {text}" if what else text
    if torch.device(device).type == "cpu":
        raise AssertionError(message)
    print(f"Rounding on this GPU may be the cause: {message}")
    return False


def _difference(expected: list[list[int]], got: list[list[int]], wrong: list[int]) -> str:
    first = wrong[0]
    a, b = expected[first], got[first]
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    pair = [str(ids[at]) if at < len(ids) else "the end" for ids in (a, b)]
    return (
        f"{len(wrong)} of {len(expected)} answers differ, the first of them (answer {first}) "
        f"from token {at} on: {pair[1]} instead of {pair[0]}"
    )

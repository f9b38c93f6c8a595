"""Chapter 8: the fewest batch sizes to record for a limit on the padding. Check yours with `python -m book.check 8`."""


def fewest_sizes(largest, most):
    """The fewest batch sizes to record, in ascending order.

    A batch of n sequences, 1 to `largest`, runs as the next size that is
    not smaller, with at most `most` rows of padding. No size is above
    `largest`.
    """
    raise NotImplementedError

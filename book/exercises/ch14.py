"""Chapter 14: what a query sees through a sliding window. Check yours with `python -m book.check 14`."""


def visible(position, window):
    """Positions that the query at `position` sees, as a range.

    window: how many positions at most, its own included; None: no limit.
    """
    raise NotImplementedError

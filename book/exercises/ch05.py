"""Chapter 5: the limit that keeps the slowest answer of a burst below a time. Check yours with `python -m book.check 5`."""


def largest_limit(seconds, tokens, shared, each, slots):
    """Most requests inside, so that all answers take at most `seconds`.

    The burst comes at once to an idle engine. All answers have `tokens`
    tokens. A step of n sequences, at most `slots`, takes shared + each * n
    seconds and gives each of them one token. 0: not even one is possible.
    """
    raise NotImplementedError

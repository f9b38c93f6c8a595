"""Chapter 10: prompt lookup with suffixes of 1 to 3 tokens. Check yours with `python -m book.check 10`."""


def draft(token_ids, k):
    """At most `k` draft tokens, copied from the text itself.

    Take the longest suffix of 1 to 3 tokens that occurs earlier, and of its
    occurrences the most recent. Return the tokens that follow there, up to
    the end of the text; [] where no suffix occurs earlier.
    """
    raise NotImplementedError

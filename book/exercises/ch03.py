"""Chapter 3: tokens that padded static batches compute. Check yours with `python -m book.check 3`."""


def rectangle_tokens(prompts, answers, slots):
    """Tokens that padded static batches compute for a workload.

    prompts, answers: lengths, one per request. Batches of `slots` requests
    are taken in order. The first step computes a batch's prompts, padded to
    the longest; each further step one token in every row, until the longest
    answer is complete.
    """
    raise NotImplementedError

"""Chapter 1: tokens that a generation without a cache computes. Check yours with `python -m book.check 1`."""


def computed_tokens(prompt, answer):
    """Tokens computed for `answer` new tokens, without a cache.

    prompt: number of tokens of the prompt. Each step computes all tokens
    that the sequence has so far, and adds one.
    """
    raise NotImplementedError

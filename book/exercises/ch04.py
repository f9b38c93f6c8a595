"""Chapter 4: blocks of several answers to one prompt. Check yours with `python -m book.check 4`."""


def blocks_needed(prompt, answer, n, block):
    """Blocks that `n` answers to one prompt hold together at their end.

    prompt, answer: tokens of the prompt and of each answer, at least 1.
    block: tokens per block. Full blocks of the prompt are shared. The last
    token of an answer is never stored.
    """
    raise NotImplementedError

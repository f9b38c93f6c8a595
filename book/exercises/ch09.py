"""Chapter 9: tokens of a prompt that the prefix cache holds. Check yours with `python -m book.check 9`."""


def found_tokens(first, second, block):
    """Tokens of the prompt `second` that the engine finds after `first`.

    first, second: lists of token ids. block: tokens per block.
    """
    raise NotImplementedError

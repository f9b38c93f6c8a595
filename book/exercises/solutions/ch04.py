"""Chapter 4: blocks of several answers to one prompt. A solution, and answers that are wrong, by what is wrong with them."""


def blocks_needed(prompt, answer, n, block):
    shared = prompt // block
    each = -(-(prompt + answer - 1) // block)
    return shared + n * (each - shared)


def last_token_stored(prompt, answer, n, block):
    shared = prompt // block
    each = -(-(prompt + answer) // block)
    return shared + n * (each - shared)


def partial_block_shared(prompt, answer, n, block):
    shared = -(-prompt // block)
    each = -(-(prompt + answer - 1) // block)
    return shared + n * (each - shared)


WRONG = {
    "the last token is stored": last_token_stored,
    "the prompt's last, partly filled block is shared": partial_block_shared,
}

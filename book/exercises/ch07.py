"""Chapter 7: the state of one tile of keys, written so that states merge. Check yours with `python -m book.check 7`."""


def tile_state(scores, values):
    """The state (peak, norm, acc) of one tile of keys.

    scores: tensor [n]. values: tensor [n, D]. acc / norm is the output of
    attention over these keys, and states of several tiles can be merged.
    """
    raise NotImplementedError

"""Chapter 12: the bytes that follow in any case. Check yours with `python -m book.check 12`."""


def certain(automaton, state):
    """Bytes that follow from `state` in any case.

    Up to the first state in which there is a choice, or in which the text
    may end. automaton.table[state, byte] is the next state, DEAD (0) where
    the byte is not allowed; automaton.accepting[state]: the text may end.
    """
    raise NotImplementedError

"""Chapter 12: the bytes that follow in any case. A solution, and answers that are wrong, by what is wrong with them."""

import numpy as np


def certain(automaton, state):
    data = b""
    while not automaton.accepting[state]:
        onward = np.flatnonzero(automaton.table[state])
        if len(onward) != 1:
            break
        data += bytes([onward[0]])
        state = automaton.table[state, onward[0]]
    return data


def beyond_the_end(automaton, state):
    data = b""
    while len(onward := np.flatnonzero(automaton.table[state])) == 1:
        data += bytes([onward[0]])
        state = automaton.table[state, onward[0]]
    return data


def one_byte(automaton, state):
    onward = np.flatnonzero(automaton.table[state])
    if automaton.accepting[state] or len(onward) != 1:
        return b""
    return bytes([onward[0]])


WRONG = {
    "goes on where the text may end": beyond_the_end,
    "one byte at most": one_byte,
}

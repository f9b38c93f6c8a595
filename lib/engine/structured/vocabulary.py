"""A vocabulary's tokens as a tree of their bytes, read through an automaton.

Tokens that begin alike share a path, so that their common bytes are read once. Where a byte is not
allowed, all tokens below it are skipped. llguidance keeps a vocabulary as such a tree, too.
Introduced in chapter 12.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lib.core.numba_cache import compiled
from lib.engine.structured.automaton import Automaton


class Vocabulary:
    """All tokens' bytes as a tree (trie): a node per byte, parents before their children.

    token_bytes: of each id; b"" for ids that stand for no text, which no automaton allows.
    end_ids: the ids that end a text (EOS).

    Node n adds the byte `node_bytes[n]` at place `depths[n]` of a token. The nodes below it are
    n + 1 to `after[n]` - 1. `ids[n]` is the token that ends with node n, or `size` if none does.
    The tokens a (id 0), ab (1), b (2):

        node   byte   depth   after   id
        0      a      0       2       0
        1       b     1       2       1
        2      b      0       3       2

    Of two tokens with the same bytes, each has a last node of its own.
    """

    def __init__(self, token_bytes: Sequence[bytes], end_ids: Iterable[int]) -> None:
        self.size, self.token_bytes = len(token_bytes), list(token_bytes)
        self.end_ids = sorted(i for i in set(end_ids) if i < self.size)
        # A text can be written if each of its bytes is a token. In a byte-level BPE, or with byte
        # fallback, each byte that occurs in a token is a token of its own, too.
        self.single_bytes = {data[0] for data in token_bytes if len(data) == 1}
        with_text = [i for i in range(self.size) if token_bytes[i]]
        node_bytes, depths, after, ids = [], [], [], []
        path: list[int] = []  # the nodes of the previous token's bytes
        previous = b""
        for token_id in sorted(with_text, key=token_bytes.__getitem__):
            data = token_bytes[token_id]
            shared = min(_num_shared(previous, data), len(data) - 1)
            for node in path[shared:]:
                after[node] = len(node_bytes)
            del path[shared:]
            for depth in range(shared, len(data)):
                path.append(len(node_bytes))
                node_bytes.append(data[depth])
                depths.append(depth)
                after.append(0)  # until the last node below it is known
                ids.append(self.size)
            ids[-1] = token_id
            previous = data
        for node in path:
            after[node] = len(node_bytes)
        self.node_bytes = np.array(node_bytes, np.uint8)
        self.depths, self.after, self.ids = (np.array(c, np.int32) for c in (depths, after, ids))
        self.longest = max(depths, default=-1) + 1  # bytes of the longest token

    def walk(self, automaton: Automaton, state: int) -> np.ndarray:
        """Which tokens lead from `state` to a state other than DEAD, [size] bool."""
        states = np.empty(self.longest + 1, np.int32)
        allowed = np.zeros(self.size + 1, np.bool_)  # the last one: for nodes where no token ends
        nodes = self.node_bytes, self.depths, self.after, self.ids
        _walk(automaton.table.ravel(), state, *nodes, states, allowed)
        return allowed[: self.size]


def _num_shared(first: bytes, second: bytes) -> int:
    """Bytes at the beginning that are equal."""
    pairs = enumerate(zip(first, second))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


@compiled
def _walk(table, state, node_bytes, depths, after, ids, states, allowed):
    """See `Vocabulary.walk`.

    table: the automaton's, flat, 256 entries per state. states [longest + 1]: the state before the
    current path and after each of its bytes. allowed [size + 1]: written where a node is visited.
    """
    states[0] = state
    node = 0
    while node < len(node_bytes):
        depth = depths[node]
        reached = table[(states[depth] << 8) + node_bytes[node]]
        states[depth + 1] = reached
        allowed[ids[node]] = reached != 0  # DEAD
        node = node + 1 if reached != 0 else after[node]

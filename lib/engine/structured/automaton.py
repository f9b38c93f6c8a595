"""A deterministic automaton over bytes: one table, with one look-up per byte. Introduced in chapter 12."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lib.core.errors import InvalidRequest
from lib.engine.structured.regex_nfa import Nfa, parse, refuse

DEAD = 0  # the state from which no text is accepted
MAX_STATES = 4_096  # of a table; (a|b)*a(a|b){20} would need a million
MAX_ROUNDS = 64  # of merging states; a{1000} would need 1,000 and has nothing to merge
MAX_WORK = 2_000_000  # states of the nondeterministic automaton looked at while the table is made


@dataclass(frozen=True)
class Automaton:
    """`table[s, b]` is the state after byte b in state s; `accepting[s]` whether a text may end there.

    table [S, 256] int32, accepting [S] bool. State DEAD (0) is never left; from all others a text
    can still be completed. A text is accepted if its bytes lead from `start` to an accepting state.
    """

    table: np.ndarray
    accepting: np.ndarray
    start: int

    def read(self, state: int, data: bytes) -> int:
        """The state after the bytes."""
        for byte in data:
            state = int(self.table[state, byte])
        return state

    def accepts(self, text: str) -> bool:
        return bool(self.accepting[self.read(self.start, text.encode())])

    def restricted_to(self, single_bytes: Iterable[int]) -> Automaton:
        """The automaton of those accepted texts that consist of the given bytes. Raises InvalidRequest if there are none.

        A vocabulary may lack some bytes (SmolLM2's has no token for byte 4). A text that needs one
        could be begun but not completed.
        """
        missing = sorted(set(range(256)) - set(single_bytes))
        table = self.table.copy()
        table[:, missing] = DEAD
        return _without_dead_ends(Automaton(table, self.accepting, self.start))


def from_regex(pattern: str) -> Automaton:
    """The automaton of `re.fullmatch(pattern, text, re.ASCII)`. Raises InvalidRequest; see `regex_nfa.parse`."""
    return _minimized(_without_dead_ends(_determinize(parse(pattern))))


def from_choice(choices: Iterable[str]) -> Automaton:
    """The automaton that accepts exactly the given texts: a tree of their bytes. Raises InvalidRequest."""
    table, accepting = [[DEAD] * 256, [DEAD] * 256], [False, False]
    for text in choices:
        state = 1
        for byte in text.encode():
            if table[state][byte] == DEAD:
                if len(table) >= MAX_STATES:
                    raise InvalidRequest(
                        f"structured_outputs.choice must need at most {MAX_STATES:,} states "
                        "(bytes that differ)",
                        param="structured_outputs",
                    )
                table[state][byte] = len(table)
                table.append([DEAD] * 256)
                accepting.append(False)
            state = table[state][byte]
        accepting[state] = True
    return _minimized(Automaton(np.array(table, np.int32), np.array(accepting), 1))


def _determinize(nfa: Nfa) -> Automaton:
    """The subset construction (Rabin and Scott 1959): a state is a set of the NFA's states."""
    start = _closure(nfa, [nfa.start])
    numbers, sets = {frozenset(): DEAD, start: 1}, [frozenset(), start]
    rows, work = [np.zeros(256, np.int32)], 0
    while len(rows) < len(sets):
        states = sets[len(rows)]
        moves = [move for s in states for move in nfa.moves[s]]
        # Between two neighbouring borders all bytes lead to the same set.
        borders = sorted({0, 256, *(m[0] for m in moves), *(m[1] + 1 for m in moves)})
        row = np.zeros(256, np.int32)
        for low, high in zip(borders, borders[1:]):
            targets = {target for a, b, target in moves if a <= low <= b}
            if not targets:
                continue
            reached = _closure(nfa, targets)
            work += len(reached) + len(moves)
            if work > MAX_WORK:
                raise refuse("must take fewer steps to compile; optional parts multiply them")
            if reached not in numbers:
                if len(sets) >= MAX_STATES:
                    raise refuse(
                        f"must need at most {MAX_STATES:,} states as a deterministic automaton"
                    )
                numbers[reached] = len(sets)
                sets.append(reached)
            row[low:high] = numbers[reached]
        rows.append(row)
    accepting = np.array([nfa.end in states for states in sets])
    return Automaton(np.stack(rows), accepting, 1)


def _closure(nfa: Nfa, states: Iterable[int]) -> frozenset[int]:
    """The states and all that are reached from them without reading a byte."""
    found, todo = set(states), list(states)
    while todo:
        new = [s for s in nfa.free[todo.pop()] if s not in found]
        found.update(new)
        todo += new
    return frozenset(found)


def _without_dead_ends(automaton: Automaton) -> Automaton:
    """Send every move into a state that accepts nothing any more to DEAD. Raises InvalidRequest if no text is accepted."""
    columns = np.unique(automaton.table, axis=1)  # most bytes lead to the same states everywhere
    before: list[list[int]] = [[] for _ in columns]
    for state, afters in enumerate(columns.tolist()):
        for after in set(afters):
            before[after].append(state)
    alive, todo = automaton.accepting.copy(), np.flatnonzero(automaton.accepting).tolist()
    while todo:  # backwards from where a text may end
        new = [state for state in before[todo.pop()] if not alive[state]]
        alive[new] = True
        todo += new
    if not alive[automaton.start]:
        raise InvalidRequest(
            "structured_outputs must accept at least one text that this vocabulary can write",
            param="structured_outputs",
        )
    table = np.where(alive[automaton.table], automaton.table, DEAD).astype(np.int32)
    return Automaton(table, automaton.accepting, automaton.start)


def _minimized(automaton: Automaton) -> Automaton:
    """The same texts with equivalent states merged (Moore 1956): fewer states are fewer masks.

    Unchanged where MAX_ROUNDS rounds do not suffice. State DEAD keeps its number, and so does the start.
    """
    columns = np.unique(automaton.table, axis=1)
    groups, count = automaton.accepting.astype(np.int64), 0
    for _ in range(MAX_ROUNDS):
        # Two states stay together if they were, and if each byte leads them to states that were.
        signatures = np.column_stack([groups, groups[columns]])
        _, first, groups = np.unique(signatures, axis=0, return_index=True, return_inverse=True)
        if len(first) == count:
            break
        count = len(first)
    else:
        return automaton
    order = np.argsort(first)  # of the groups, by the first of their states
    number = np.empty_like(order)
    number[order] = np.arange(count)
    kept = first[order]
    merged = number[groups.reshape(-1)]
    table = merged[automaton.table[kept]].astype(np.int32)
    return Automaton(table, automaton.accepting[kept], int(merged[automaton.start]))

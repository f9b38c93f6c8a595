"""A regular expression as a nondeterministic automaton over bytes (Thompson 1968). Introduced in chapter 12."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from re import _constants as op  # Python's own parser, so that the syntax is that of `re`
from re import _parser

from lib.core.errors import InvalidRequest
from lib.engine.structured.utf8_ranges import MAX_CODE_POINT, utf8_ranges

MAX_PATTERN = 10_000  # characters
MAX_NFA_STATES = 50_000  # a{1000} copies what it repeats 1,000 times

_NAMED_CLASSES = {  # as `re` with the flag ASCII
    op.CATEGORY_DIGIT: [(48, 57)],
    op.CATEGORY_WORD: [(48, 57), (65, 90), (95, 95), (97, 122)],
    op.CATEGORY_SPACE: [(9, 13), (32, 32)],
}
_NEGATED = {
    op.CATEGORY_NOT_DIGIT: op.CATEGORY_DIGIT,
    op.CATEGORY_NOT_WORD: op.CATEGORY_WORD,
    op.CATEGORY_NOT_SPACE: op.CATEGORY_SPACE,
}
_REFUSED = {
    op.AT: "an anchor or \\b (the whole text is matched; leave ^ and $ out)",
    op.ASSERT: "a look-ahead or look-behind",
    op.ASSERT_NOT: "a look-ahead or look-behind",
    op.GROUPREF: "a back-reference",
    op.GROUPREF_EXISTS: "a conditional group",
    op.ATOMIC_GROUP: "an atomic group",
    op.POSSESSIVE_REPEAT: "a possessive repeat",
}
Ranges = list[tuple[int, int]]  # of code points, both ends included


def refuse(message: str) -> InvalidRequest:
    return InvalidRequest(f"structured_outputs.regex {message}", param="structured_outputs")


@dataclass
class Nfa:
    """States are numbers. Moves without a byte are in `free`.

    moves[s]: (lowest byte, highest byte, next state). free[s]: next states.
    """

    moves: list[list[tuple[int, int, int]]] = field(default_factory=list)
    free: list[list[int]] = field(default_factory=list)
    start: int = 0
    end: int = 0

    def state(self) -> int:
        if len(self.moves) >= MAX_NFA_STATES:
            raise refuse(
                f"must need at most {MAX_NFA_STATES:,} states; repeats such as {{1000}} multiply"
            )
        self.moves.append([])
        self.free.append([])
        return len(self.moves) - 1


def parse(pattern: str) -> Nfa:
    """The automaton that accepts exactly the UTF-8 texts which `re.fullmatch(pattern, text, re.ASCII)` accepts.

    \\d, \\w and \\s are ASCII. `^` at the beginning and `$` at the end change nothing. Raises
    InvalidRequest for a pattern that is too long or wrong, for flags, and for what no finite
    automaton can do or this one leaves out: look-around, back-references, anchors elsewhere.
    """
    if not isinstance(pattern, str):
        raise refuse(f"must be a string, got {pattern!r}")
    if len(pattern) > MAX_PATTERN:
        raise refuse(f"must have at most {MAX_PATTERN:,} characters, got {len(pattern):,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "possible nested set" is a mistake in most cases
            tree = _parser.parse(pattern, re.ASCII)
        if tree.state.flags & ~(re.ASCII | re.UNICODE):
            raise refuse(f"must not set flags such as (?i), got {pattern[:80]!r}")
        items = list(tree)
        if items and items[0] in [(op.AT, op.AT_BEGINNING), (op.AT, op.AT_BEGINNING_STRING)]:
            items = items[1:]
        if items and items[-1] in [(op.AT, op.AT_END), (op.AT, op.AT_END_STRING)]:
            items = items[:-1]
        nfa = Nfa()
        nfa.start = nfa.state()
        nfa.end = _sequence(nfa, nfa.start, items)
    except (re.error, OverflowError, FutureWarning, DeprecationWarning) as error:
        raise refuse(f"must be a regular expression, got {pattern[:80]!r}: {error}") from None
    except RecursionError:
        raise refuse("must not nest as deeply") from None
    return nfa


def _sequence(nfa: Nfa, state: int, items: list) -> int:
    """Append what reads `items` one after the other, beginning in `state`; returns the last state."""
    for kind, value in items:
        state = _item(nfa, state, kind, value)
    return state


def _item(nfa: Nfa, state: int, kind: object, value: object) -> int:
    if kind is op.LITERAL:
        return _characters(nfa, state, [(value, value)])
    if kind is op.NOT_LITERAL:
        return _characters(nfa, state, _complement([(value, value)]))
    if kind is op.ANY:  # all but the newline, as in `re`
        return _characters(nfa, state, _complement([(10, 10)]))
    if kind is op.IN:
        return _characters(nfa, state, _character_class(value))
    if kind is op.SUBPATTERN:
        _, added, removed, items = value
        if added or removed:
            raise refuse("must not set flags such as (?i:…)")
        return _sequence(nfa, state, items)
    if kind is op.BRANCH:
        end = nfa.state()
        for items in value[1]:
            begin = nfa.state()
            nfa.free[state].append(begin)
            nfa.free[_sequence(nfa, begin, items)].append(end)
        return end
    if kind in (op.MAX_REPEAT, op.MIN_REPEAT):  # greedy or not, the same texts match
        return _repeat(nfa, state, *value)
    raise refuse(f"must not contain {_REFUSED.get(kind, str(kind).lower())}")


def _repeat(nfa: Nfa, state: int, least: int, most: int, items: list) -> int:
    for _ in range(least):
        state = _sequence(nfa, state, items)
    if most is op.MAXREPEAT:
        loop, end = nfa.state(), nfa.state()
        nfa.free[state].append(loop)
        nfa.free[_sequence(nfa, loop, items)].append(loop)
        nfa.free[loop].append(end)
        return end
    end = nfa.state()
    for _ in range(most - least):
        nfa.free[state].append(end)
        begin = nfa.state()
        nfa.free[state].append(begin)
        state = _sequence(nfa, begin, items)
    nfa.free[state].append(end)
    return end


def _characters(nfa: Nfa, state: int, ranges: Ranges) -> int:
    """One character out of `ranges`: paths of one to four bytes that end in the same state."""
    end = nfa.state()
    for low, high in ranges:
        for byte_ranges in utf8_ranges(low, high):
            at = state
            for low_byte, high_byte in byte_ranges[:-1]:
                after = nfa.state()
                nfa.moves[at].append((low_byte, high_byte, after))
                at = after
            nfa.moves[at].append((*byte_ranges[-1], end))
    return end


def _character_class(items: list) -> Ranges:
    ranges: Ranges = []
    for kind, value in items:
        if kind is op.LITERAL:
            ranges.append((value, value))
        elif kind is op.RANGE:
            ranges.append(value)
        elif kind is op.CATEGORY and value in _NAMED_CLASSES:
            ranges += _NAMED_CLASSES[value]
        elif kind is op.CATEGORY and value in _NEGATED:
            ranges += _complement(_NAMED_CLASSES[_NEGATED[value]])
        elif kind is not op.NEGATE:
            raise refuse(f"must not contain {str(value).lower()} in a character class")
    return _complement(ranges) if items[0][0] is op.NEGATE else _merged(ranges)


def _merged(ranges: Ranges) -> Ranges:
    merged: Ranges = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def _complement(ranges: Ranges) -> Ranges:
    result, low = [], 0
    for a, b in _merged(ranges):
        if low < a:
            result.append((low, a - 1))
        low = b + 1
    return result if low > MAX_CODE_POINT else [*result, (low, MAX_CODE_POINT)]

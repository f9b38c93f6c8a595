"""Ranges of Unicode characters as sequences of byte ranges. Introduced in chapter 12.

The construction is that of RE2 (Cox 2010, "Regular Expression Matching in the Wild").
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_CODE_POINT = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)  # no characters: UTF-8 has no bytes for them
_LAST_OF_LENGTH = (0x7F, 0x7FF, 0xFFFF, MAX_CODE_POINT)  # largest code point of 1, 2, 3, 4 bytes

ByteRanges = tuple[tuple[int, int], ...]  # (lowest, highest) of each byte, both included


def utf8_ranges(low: int, high: int) -> Iterator[ByteRanges]:
    """Sequences of byte ranges whose products are exactly the UTF-8 texts of the code points low … high.

    Surrogates in between are left out. `utf8_ranges(0x7E, 0x81)` yields ((0x7E, 0x7F),) and
    ((0xC2, 0xC2), (0x80, 0x81)).
    """
    if low > high:
        return
    if low <= _SURROGATES[1] and high >= _SURROGATES[0]:
        yield from utf8_ranges(low, _SURROGATES[0] - 1)
        yield from utf8_ranges(_SURROGATES[1] + 1, high)
        return
    for last in _LAST_OF_LENGTH:
        if low <= last < high:
            yield from utf8_ranges(low, last)
            yield from utf8_ranges(last + 1, high)
            return
    # All of one length. Split until only a suffix of bytes varies, and varies fully.
    for shift in (6, 12, 18):
        block = (1 << shift) - 1  # code points that differ in the last shift / 6 bytes only
        if low > 0x7F and low & ~block != high & ~block:
            if low & block:
                yield from utf8_ranges(low, low | block)
                yield from utf8_ranges((low | block) + 1, high)
                return
            if high & block != block:
                yield from utf8_ranges(low, (high & ~block) - 1)
                yield from utf8_ranges(high & ~block, high)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode()))

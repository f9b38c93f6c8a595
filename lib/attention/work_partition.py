"""Divides one step's attention evenly across threads, for 64 short sequences as for a single long one.

The work is a queue of key tiles, sequence after sequence, cut into equal parts; what a cut goes through is merged later.
Introduced in chapter 7.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lib.attention.numba_kernel import KEY_TILE, QUERY_TILE

_TILE_COST = 4  # reading a key tile takes about as long as the arithmetic of four queries with it
_WORTH_A_SHARE = 40  # below this cost a share takes less time than waking a thread for it


@dataclass
class WorkPartition:
    """pieces [P, 9]: row, first token in T, queries, keys that the last query sees, key tiles first..last-1 of `tiles`,
    the place of the piece's state, and the position at which tile 0 begins. offsets [shares + 1]: where each share's pieces start. cuts [C]: pieces of units
    that are cut."""

    pieces: np.ndarray
    offsets: np.ndarray
    cuts: np.ndarray

    @property
    def num_states(self) -> int:
        return len(self.cuts) + len(self.offsets) - 1


def partition_work(
    query_lens: np.ndarray,
    seq_lens: np.ndarray,
    longest: int | np.ndarray,
    threads: int,
    window: int | None = None,
) -> WorkPartition:
    """WorkPartition for at most `threads` threads. query_lens, seq_lens [B]; rows with more than `longest`
    (a number, or one for each row) queries are left out.

    `window`: keys that a query sees, its own included; tiles that no query of a unit sees are left out.
    """
    units = _units(query_lens, seq_lens, longest, window)
    tiles, weights = units[:, 6], units[:, 2] + _TILE_COST
    ends = np.cumsum(tiles * weights)
    total = int(ends[-1]) if len(ends) else 0
    shares = max(1, min(threads, total // _WORTH_A_SHARE))
    whole, pieces, offsets, unit, tile = units.tolist(), [], [0], 0, 0
    for share in range(1, shares + 1):
        end = total * share // shares
        while unit < len(whole):
            left = (
                -(-(end - int(ends[unit])) // int(weights[unit])) + whole[unit][6]
            )  # tiles up to the share's end
            last = min(left, whole[unit][6])
            if last > tile:
                row = whole[unit]
                pieces.append([*row[:4], tile, last, row[6], share - 1, row[8]])
            if last < whole[unit][6]:
                tile = max(tile, last)
                break
            unit, tile = unit + 1, 0
        offsets.append(len(pieces))
    table = np.array(pieces, dtype=np.int64).reshape(-1, 9)
    cuts = np.flatnonzero((table[:, 4] > 0) | (table[:, 5] < table[:, 6]))
    table[:, 7] += len(cuts)  # whole units leave nothing behind: one state a share
    table[cuts, 7] = np.arange(len(cuts))
    return WorkPartition(table, np.array(offsets, dtype=np.int64), cuts)


def _units(
    query_lens: np.ndarray, seq_lens: np.ndarray, longest: int | np.ndarray, window: int | None
) -> np.ndarray:
    """Up to QUERY_TILE neighbouring queries of one sequence each: rows of `pieces` that cover all key tiles."""
    starts = np.cumsum(query_lens) - query_lens
    rows = np.flatnonzero(query_lens <= longest)
    parts = -(-query_lens[rows] // QUERY_TILE)
    row = np.repeat(rows, parts)
    first = (np.arange(len(row)) - np.repeat(np.cumsum(parts) - parts, parts)) * QUERY_TILE
    queries = np.minimum(QUERY_TILE, query_lens[row] - first)
    seen = seq_lens[row] - query_lens[row] + first + queries
    zero = np.zeros_like(row)
    # The first key that the unit's first query sees, rounded down to a tile.
    begin = zero if window is None else np.maximum(0, seen - queries + 1 - window)
    begin = begin // KEY_TILE * KEY_TILE
    tiles = -(-(seen - begin) // KEY_TILE)
    return np.stack(
        [row, starts[row] + first, queries, seen, zero, tiles, tiles, zero, begin], axis=1
    ).astype(np.int64)

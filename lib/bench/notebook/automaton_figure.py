"""Draws an automaton over bytes, straight from its table. Introduced in chapter 12."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch

from lib.bench.notebook.style import COLOURS, TEXT
from lib.engine.structured.automaton import DEAD, Automaton

RADIUS, COLUMN, ROW = 0.2, 1.7, 2.0  # of a state, and between states
MAX_DRAWN = 24  # states


def edges(automaton: Automaton) -> dict[tuple[int, int], str]:
    """{(state, next state): the bytes that lead there, as text such as "0–9 a–f “.” c3"}; moves into DEAD are left out."""
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for state, byte in zip(*np.nonzero(automaton.table)):
        found[int(state), int(automaton.table[state, byte])].append(int(byte))
    return {edge: label(read) for edge, read in sorted(found.items()) if DEAD not in edge}


def label(read: list[int]) -> str:
    """Bytes as ranges, three or more neighbours as one: [48, 49, 50, 97] is "0–2 a"."""
    runs: list[list[int]] = []
    for byte in read:
        if runs and byte == runs[-1][-1] + 1:
            runs[-1].append(byte)
        else:
            runs.append([byte])
    parts = [
        part
        for run in runs
        for part in ([f"{_shown(run[0])}–{_shown(run[-1])}"] if len(run) > 2 else map(_shown, run))
    ]
    return " ".join(parts)


def _shown(byte: int) -> str:
    if not 32 < byte < 127:
        return f"{byte:02x}"
    return chr(byte) if chr(byte).isalnum() else f"“{chr(byte)}”"


def places(automaton: Automaton) -> dict[int, tuple[float, float]]:
    """Where to draw each state: from left to right by the longest way that leads there through states of rising number."""
    links = edges(automaton)
    states = sorted({automaton.start, *(state for edge in links for state in edge)})
    column = dict.fromkeys(states, 0)
    for state, after in links:  # sorted: all ways into a state come before its own
        if after > state:
            column[after] = max(column[after], column[state] + 1)
    in_column: dict[int, list[int]] = defaultdict(list)
    for state in states:
        in_column[column[state]].append(state)
    return {
        state: (COLUMN * x, ROW * ((len(group) - 1) / 2 - row))
        for x, group in in_column.items()
        for row, state in enumerate(group)
    }


def draw_automaton(ax: Axes, automaton: Automaton) -> None:
    """States as circles, doubled where a text may end, and an arrow for each group of bytes.

    Raises ValueError for more than MAX_DRAWN states.
    """
    at = places(automaton)
    if len(at) > MAX_DRAWN:
        raise ValueError(f"automaton must have at most {MAX_DRAWN} states, got {len(at)}")
    for state, (x, y) in at.items():
        ends = bool(automaton.accepting[state])
        colour = COLOURS[2] if ends else COLOURS[0]
        ax.add_patch(Circle((x, y), RADIUS, fill=False, edgecolor=colour, linewidth=1.8))
        if ends:
            ax.add_patch(Circle((x, y), 0.8 * RADIUS, fill=False, edgecolor=colour, linewidth=1))
        ax.text(x, y, str(state), ha="center", va="center", fontsize=9)
    for (state, after), text in edges(automaton).items():
        _arrow(ax, at, state, after, text)
    x, y = at[automaton.start]
    ax.add_patch(_curve((x - 0.75, y), (x - RADIUS - 0.04, y), 0))
    rows = [y for _, y in at.values()]
    ax.set(
        xlim=(-0.85, max(x for x, _ in at.values()) + 0.5),
        ylim=(min(rows) - 0.5, max(rows) + 0.85),
        aspect="equal",
    )
    ax.axis("off")


def _arrow(ax: Axes, at: dict, state: int, after: int, text: str) -> None:
    (x, y), (to_x, to_y) = at[state], at[after]
    if state == after:  # a loop above the state
        ends = [(x + d * 0.6 * RADIUS, y + 0.9 * RADIUS) for d in (-1, 1)]
        ax.add_patch(_curve(*ends, -1.8))
        ax.text(x, y + 0.56, text, ha="center", va="bottom", fontsize=9)
        return
    length = np.hypot(to_x - x, to_y - y)
    unit = np.array([to_x - x, to_y - y]) / length
    start, end = np.array([x, y]) + unit * (RADIUS + 0.03), np.array([to_x, to_y]) - unit * (RADIUS + 0.04)  # fmt: skip
    over = any(  # another state lies on the straight line
        abs(unit[0] * (b - y) - unit[1] * (a - x)) < RADIUS and 0 < unit @ [a - x, b - y] < length
        for s, (a, b) in at.items()
        if s not in (state, after)
    )
    bend = -0.35 if over else 0.0
    ax.add_patch(_curve(start, end, bend))
    # Labels keep clear of other arrows: those of long arrows outside, of short ones inside, where arrows that begin or
    # end in one state are apart.
    long, rises = length > 1.5 * COLUMN, np.sign(to_y - y)
    away = (rises if long else -rises or 1) * (0.18 if rises else 0.14) - bend * length / 2
    along = start + (0.42 if long else 0.62) * (end - start)
    middle = along + np.array([-unit[1], unit[0]]) * away
    ax.text(*middle, text, ha="center", va="center", fontsize=9)


def _curve(start, end, bend: float) -> FancyArrowPatch:
    return FancyArrowPatch(
        start,
        end,
        connectionstyle=f"arc3,rad={bend}",
        arrowstyle="-|>",
        mutation_scale=9,
        shrinkA=0,
        shrinkB=0,
        color=TEXT,
        linewidth=1.2,
    )

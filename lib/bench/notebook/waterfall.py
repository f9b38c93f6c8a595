"""Spans of time in rows: what runs after what, and what runs beside it.

Introduced in chapter 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from lib.bench.notebook.style import COLOURS

Span = tuple[str, float, float]  # name, start, end


def waterfall(ax: Axes, rows: Mapping[str, Sequence[Span]]) -> None:
    """One row of bars per label, one colour per name of a span, and a legend of the names."""
    names = list(dict.fromkeys(name for spans in rows.values() for name, *_ in spans))
    for at, spans in enumerate(rows.values()):
        for name, start, end in spans:
            colour = COLOURS[names.index(name) % len(COLOURS)]
            ax.barh(
                at, end - start, 0.62, left=start, color=colour, edgecolor="white", linewidth=0.5
            )
    for i, name in enumerate(names):  # one entry per name, however many spans it has
        ax.barh(0, 0, color=COLOURS[i % len(COLOURS)], label=name)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.figure.legend(loc="outside upper left", ncols=6, handlelength=1.0)


def one_by_one(parts: Mapping[str, float], device: float, steps: int = 2) -> dict[str, list[Span]]:
    """The rows of `steps` steps without asynchronous scheduling: the device waits for the host.

    parts: seconds of the host's parts, in order, "sample" among them: it runs beside the device.
    """
    host: list[Span] = []
    busy: list[Span] = []
    now = 0.0
    for _ in range(steps):
        for name, seconds in parts.items():
            host.append((name, now, now + seconds))
            if name == "sample":  # then the host waits for the tokens
                busy.append(("device (predicted)", now, now + device))
                seconds = max(seconds, device)
            now += seconds
    return {"host": host, "device": busy}


def side_by_side(
    parts: Mapping[str, float], device: float, steps: int = 2
) -> dict[str, list[Span]]:
    """The same with asynchronous scheduling, in the steady state: each row goes on as fast as the slower one.

    The device starts a step when the host has launched it, before the host's "sample".
    """
    longest = max(sum(parts.values()), device)
    names = list(parts)
    launch = sum(parts[name] for name in names[: names.index("sample")])
    host: list[Span] = []
    for step in range(steps):
        now = step * longest
        for name, seconds in parts.items():
            host.append((name, now, now + seconds))
            now += seconds
    busy = [
        ("device (predicted)", start := step * longest + launch, start + device)
        for step in range(steps)
    ]
    return {"host, ahead": host, "device, ahead": busy}

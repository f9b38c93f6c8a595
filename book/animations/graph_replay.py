"""The animation of chapter 8: recorded decode steps, replayed over one buffer that never moves."""

from __future__ import annotations

from book.animations.film import BOX, GROUND, HUES, LINE, MUTED, TEXT, Film, Frames
from book.animations.graph_steps import REQUESTS, ROWS, Row, Step, steps
from lib.engine.cuda_graphs import ladder

COLOURS = dict(zip(REQUESTS, HUES))
FILLING = 2  # frames
STAGES = ("embedding", "layer 1", "layer 2", "logits")  # of the model, in order
COLUMNS = {
    "sequence": 8,
    "positions": 128,
    "slot_mapping": 232,
    "seq_lens": 372,
    "block_table": 470,
}
TITLE = "Decode steps replayed from recorded graphs"


def film() -> Film:
    run = steps()
    # A frame for each stage; in a replayed step, before it, frames in which the buffer is filled.
    lengths = [len(STAGES) + (FILLING if step.size else 0) for step in run]
    starts = [sum(lengths[:i]) for i in range(len(run) + 1)]
    first = next(i for i, step in enumerate(run) if step.size)
    drawing = Film("replay", 388, starts[-1], 0.6, starts[first + 1] - 1)
    _fixed(drawing)
    for i, step in enumerate(run):
        frames = starts[i], starts[i + 1]
        drawing.text(8, 22, f"Step {i + 1}", bold=True, size=18, frames=frames)
        if step.size is None:
            _launched(drawing, step, frames)
        else:
            _replayed(drawing, step, frames)
    return drawing


def _fixed(drawing: Film) -> None:
    """What no step changes: the recorded graphs, the buffer's places, the two lanes."""
    drawing.text(8, 84, "recorded", fill=MUTED)
    for size in ladder(ROWS):
        drawing.rect(*_graph(size), BOX, LINE)
        x, y, wide, _ = _graph(size)
        words = f"graph, {_number(size, 'row')}"
        drawing.text(x + wide / 2, y + 22, words, anchor="middle")
    for name, x in COLUMNS.items():
        drawing.text(x, 132, name, fill=MUTED)
    for row in range(ROWS):
        drawing.rect(112, 142 + row * 30, 500, 26, GROUND, LINE)
    drawing.text(8, 296, "program", fill=MUTED)
    drawing.text(8, 350, "GPU", fill=MUTED)
    for i, name in enumerate(STAGES):
        drawing.rect(*_stage(i), GROUND, LINE)
        x, y, wide, _ = _stage(i)
        drawing.text(x + wide / 2, y + 24, name, anchor="middle")
    drawing.text(112, 382, "order of the work, not its time", fill=MUTED)


def _graph(size: int) -> tuple[float, float, float, float]:
    return 112 + 168 * ladder(ROWS).index(size), 62, 160, 34


def _stage(i: int) -> tuple[float, float, float, float]:
    return 112 + 126 * i, 326, 122, 36


def _stages(drawing: Film, begin: int, end: int) -> None:
    """The stages of the model, one more with each frame from `begin` on."""
    for i, name in enumerate(STAGES):
        frames = begin + i, end
        x, y, wide, high = _stage(i)
        drawing.rect(x, y, wide, high, *HUES[0], frames=frames, weight=2)
        drawing.text(x + wide / 2, y + 24, name, anchor="middle", frames=frames)


def _box(drawing: Film, x: float, words: str, hue: tuple[str, str], frames: Frames) -> None:
    """What the program does."""
    drawing.rect(x, 274, 122, 34, *hue, frames=frames)
    drawing.text(x + 61, 297, words, anchor="middle", frames=frames)


def _launched(drawing: Film, step: Step, frames: Frames) -> None:
    begin, end = frames
    words = f"Prompts of {', '.join(step.names)}: kernels are launched one by one"
    drawing.text(84, 22, words, frames=frames)
    for i in range(len(STAGES)):
        _box(drawing, _stage(i)[0], "launches", HUES[1], (begin + i, end))
    _stages(drawing, begin, end)


def _replayed(drawing: Film, step: Step, frames: Frames) -> None:
    begin, end = frames
    replay = begin + FILLING, end
    padding = step.size - len(step.names)
    words = _number(len(step.names), "sequence")
    if padding:
        words += f", {_number(padding, 'row')} of padding"
    drawing.text(84, 22, f"{words}: one copy fills the buffer", frames=(begin, replay[0]))
    drawing.text(84, 22, f"{words}: one launch starts all kernels", frames=replay)
    for i, row in enumerate(step.rows):
        _row(drawing, row, 142 + i * 30, frames)
    _box(drawing, _stage(0)[0], "fill buffer", HUES[2], frames)
    drawing.rect(*_graph(step.size), "none", HUES[1][1], frames=replay, weight=3)
    _box(drawing, _stage(1)[0], "one launch", HUES[1], replay)
    _stages(drawing, *replay)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _row(drawing: Film, row: Row, y: float, frames: Frames) -> None:
    fill, line = (BOX, MUTED) if row.name is None else COLOURS[row.name]
    ink = MUTED if row.name is None else TEXT
    drawing.rect(112, y, 500, 26, fill, line, frames=frames, dashed=row.name is None)
    cells = {
        "sequence": row.name or "padding",
        "positions": row.position,
        "slot_mapping": row.slot,
        "seq_lens": row.length,
        "block_table": " ".join(map(str, row.table)),
    }
    for name, words in cells.items():
        drawing.text(
            COLUMNS[name],
            y + 19,
            words,
            fill=ink,
            bold=name == "sequence" and row.name is not None,
            frames=frames,
        )

"""The animation of chapter 4: a pool of blocks while four requests come, grow, give way and end."""

from __future__ import annotations

from collections.abc import Sequence

from book.animations.film import BOX, GROUND, HUES, LINE, MUTED, TEXT, WIDTH, Film
from book.animations.runs import Arrival, Step, play
from lib.cache.block_manager import BlockManager
from lib.engine.scheduler import Scheduler

BLOCK, BLOCKS = 4, 7  # tokens per block; blocks to hand out, besides the null block
REQUESTS = (
    Arrival("A", 7, 4),
    Arrival("B", 6, 9),
    Arrival("C", 5, 5),
    Arrival("D", 3, 4, 3),
)
COLOURS = dict(zip("ABCD", HUES))
SLOT, NUMBER, GAP, ROW, LEFT = 29, 22, 12, 21, 74
TITLE = "A pool of blocks, the block tables, and which request holds which block by step"


def steps() -> list[Step]:
    return play(Scheduler(BlockManager(BLOCKS + 1, BLOCK), 4, 32), REQUESTS)


def event(before: Step | None, step: Step) -> str:
    """What a step changed, in one line."""
    parts = []
    if before is not None:
        for name in before.ended:
            parts.append(f"{name} has ended")
    parts += [f"no block is free: {name} gives way" for name in step.preempted]
    for name, blocks in step.held.items():
        had = set() if before is None or name in before.ended else set(before.held.get(name, ()))
        new = [b for b in blocks if b not in had]
        if new:
            kind = "blocks" if len(new) > 1 else "block"
            parts.append(f"{name} takes {kind} {', '.join(map(str, new))}")
    if not parts:
        parts = ["all new tokens fit into the blocks"]
    line = "; ".join(parts)
    return line[0].upper() + line[1:]


def film() -> Film:
    run = steps()
    # The last of the steps with the fullest pool: blocks have changed hands by then.
    still = max(range(len(run)), key=lambda i: (sum(map(len, run[i].held.values())), i))
    drawing = Film("paged", 430, len(run) + 1, 1.4, still)
    arrival = {a.name: a.step for a in REQUESTS}
    for i, step in enumerate(run):
        # The last step stands one frame longer.
        frames = (i, i + 1 if i + 1 < len(run) else drawing.num_frames)
        before = run[i - 1] if i else None
        drawing.text(8, 22, f"Step {i + 1}", bold=True, size=18, frames=frames)
        drawing.text(84, 22, event(before, step), frames=frames)
        _pool(drawing, step, frames)
        states = {name: "ended" if at <= i + 1 else "not there yet" for name, at in arrival.items()}
        states |= dict.fromkeys(step.waiting, "waits")
        states |= {name: f"{n} tokens" for name, n in step.stored.items()}
        _tables(drawing, step, states, frames)
    _map(drawing, run)
    return drawing


def _pool(drawing: Film, step: Step, frames: tuple[int, int]) -> None:
    first = frames[0] == 0
    owners = {b: (name, i) for name, blocks in step.held.items() for i, b in enumerate(blocks)}
    for block in range(BLOCKS + 1):
        x = 8 + block % 4 * (NUMBER + BLOCK * SLOT + GAP) + NUMBER
        y = 40 + block // 4 * 42
        if first:
            drawing.text(x - 6, y + 22, block, fill=MUTED, anchor="end")
            fill, dashed = (GROUND, True) if block == 0 else (BOX, False)
            parts = 1 if block == 0 else BLOCK
            for part in range(parts):
                wide = BLOCK * SLOT / parts
                drawing.rect(x + part * wide, y, wide, 32, fill, LINE, dashed=dashed)
            if block == 0:
                middle = x + BLOCK * SLOT / 2
                drawing.text(middle, y + 22, "null block", fill=MUTED, anchor="middle")
        if block not in owners:
            continue
        name, place = owners[block]
        fill, line = COLOURS[name]
        filled = min(BLOCK, step.stored[name] - place * BLOCK)
        for slot in range(filled):
            drawing.rect(x + slot * SLOT, y, SLOT, 32, fill, line, frames=frames)
            middle = x + (slot + 0.5) * SLOT
            drawing.text(middle, y + 22, place * BLOCK + slot, anchor="middle", frames=frames)
        drawing.rect(x, y, BLOCK * SLOT, 32, "none", line, frames=frames, weight=2.4)


def _tables(drawing: Film, step: Step, states: dict[str, str], frames: tuple[int, int]) -> None:
    for i, name in enumerate(COLOURS):
        x, y = 8 + i % 2 * 306, 136 + i // 2 * 38
        fill, line = COLOURS[name]
        if frames[0] == 0:
            drawing.text(x, y + 20, name, bold=True, fill=line)
        for place, block in enumerate(step.held.get(name, ())):
            drawing.rect(x + 22 + place * 32, y, 30, 28, fill, line, frames=frames)
            middle = x + 37 + place * 32
            drawing.text(middle, y + 20, block, anchor="middle", frames=frames)
        drawing.text(x + 166, y + 20, states[name], fill=MUTED, frames=frames)


def _map(drawing: Film, run: Sequence[Step]) -> None:
    top, unit = 246, (WIDTH - LEFT - 8) / len(run)
    drawing.text(8, top - 14, "Blocks by step, coloured as far as they are filled")
    for block in range(1, BLOCKS + 1):
        drawing.text(8, top + ROW * block - 5, f"block {block}", fill=MUTED)
    for i, step in enumerate(run):
        x, frames = LEFT + i * unit, (i, drawing.num_frames)
        middle = x + unit / 2
        drawing.text(middle, top + ROW * BLOCKS + 24, i + 1, fill=MUTED, anchor="middle")
        for block in range(1, BLOCKS + 1):
            place = x + 1, top + ROW * (block - 1) + 1, unit - 2, ROW - 3
            drawing.rect(*place, BOX, LINE, frames=frames, still=True, weight=0.8)
        for name, blocks in step.held.items():
            fill, line = COLOURS[name]
            for place, block in enumerate(blocks):
                y, share = (
                    top + ROW * (block - 1) + 1,
                    min(BLOCK, step.stored[name] - place * BLOCK),
                )
                wide = (unit - 2) * share / BLOCK
                drawing.rect(x + 1, y, wide, ROW - 3, line, frames=frames, still=True)
        here = x, top - 1, unit, ROW * BLOCKS + 1
        end = i + 1 if i + 1 < len(run) else drawing.num_frames
        drawing.rect(*here, "none", TEXT, frames=(i, end), weight=2)
    drawing.text(8, top + ROW * BLOCKS + 24, "step", fill=MUTED)

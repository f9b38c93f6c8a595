"""The animation of chapter 3: slots that fill and drain, under static and under continuous batching."""

from __future__ import annotations

from collections.abc import Sequence

from book.animations.film import BOX, HUES, MUTED, WIDTH, Film
from book.animations.runs import Arrival, Step, play
from lib.cache.slot_manager import SlotManager
from lib.engine.scheduler import Scheduler
from lib.engine.static_scheduler import StaticScheduler

SLOTS = 3
# Prompts of one token: an answer of n tokens takes n steps.
REQUESTS = [Arrival(name, 1, n) for name, n in zip("ABCDEFGH", (3, 8, 2, 5, 2, 6, 3, 4))]
LONGEST = 16  # tokens of a slot, enough for all
ROW, LEFT, AXIS, HOLD = 27, 62, 262, 3  # HOLD: frames in which the whole picture stands
TITLE = "Slots by step under static and under continuous batching"


def steps_of(kind: type[Scheduler]) -> list[Step]:
    """The run under one scheduler."""
    return play(kind(SlotManager(SLOTS, LONGEST), SLOTS, SLOTS), REQUESTS)


def film() -> Film:
    static, continuous = steps_of(StaticScheduler), steps_of(Scheduler)
    num_frames = len(static) + HOLD
    drawing = Film("batching", AXIS + 12, num_frames, 0.7, num_frames - 1)
    unit = (WIDTH - LEFT - 8) / len(static)
    _panel(drawing, "Static", static, 0, unit)
    _panel(drawing, "Continuous", continuous, 128, unit)
    for number in range(1, len(static) + 1):
        drawing.text(LEFT + (number - 0.5) * unit, AXIS, number, fill=MUTED, anchor="middle")
    drawing.text(8, AXIS, "step", fill=MUTED)
    return drawing


def _panel(drawing: Film, name: str, steps: Sequence[Step], top: float, unit: float) -> None:
    order = [a.name for a in REQUESTS]
    computing = sum(len(step.held) for step in steps)
    drawing.text(8, top + 20, name, bold=True, size=18)
    for i, step in enumerate(steps):
        queue = " ".join(step.waiting) or "none"
        drawing.text(150, top + 20, f"step {i + 1}; waiting: {queue}", frames=(i, i + 1))
    places = SLOTS * len(steps)
    result = f"{len(steps)} steps; {places - computing} of {places} places empty"
    drawing.text(150, top + 20, result, frames=(len(steps), drawing.num_frames), still=True)
    for slot in range(SLOTS):
        drawing.text(8, top + 50 + ROW * slot, f"slot {slot}", fill=MUTED)
    seen: set[str] = set()
    for i, step in enumerate(steps):
        owners = {slots[0]: owner for owner, slots in step.held.items()}
        for slot in range(SLOTS):
            x, y = LEFT + i * unit, top + 32 + ROW * slot
            frames = (i, drawing.num_frames)
            place = x + 1, y, unit - 2, ROW - 4
            if slot not in owners:
                drawing.rect(*place, BOX, MUTED, frames=frames, dashed=True, weight=0.9)
                continue
            owner = owners[slot]
            fill, line = HUES[order.index(owner) % len(HUES)]
            drawing.rect(*place, fill, line, frames=frames)
            if owner not in seen:
                seen.add(owner)
                drawing.text(x + unit / 2, y + 17, owner, anchor="middle", frames=frames)

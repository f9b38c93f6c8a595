"""A prompt on every engine: which limit it meets, and what packing and compiling change.

Each function takes a run; most return sentences of chapter 8.

Introduced in chapter 8.
"""

from typing import Any

from lib.bench.findings.launch_overhead.overhead_rows import COMPILED, NAMES, PACKED, named
from lib.bench.findings.launch_overhead.overhead_step import starting
from lib.bench.findings.values import Measured, cell, positive
from lib.bench.findings.vocabulary import (
    capital,
    compare,
    missing,
    ratio_range,
    share,
    versus_bound,
    versus_prediction,
)

SAME_ARITHMETIC = "packing is another kernel for the same products, which a prompt has too"

_NO_DIFFERENCE = {
    "about": "as predicted",
    "little": "a little off the prediction",
    "failed": "the prediction failed",
}


def prefill(run: Any) -> dict[str, str]:
    """A prompt on every engine: which limit it meets, and whether packing or compiling changes it."""
    series = run["prefill"]
    if series is None:
        return {"prompt_finding": missing("the prompt").sentence}
    plain = cell(series, "plain", 0)
    flops, bytes_ = (positive(cell(series, name, 0)) for name in ("flops", "bytes"))
    length, every = series.params.get("prompt"), starting(run)
    said = missing("the prompt over its bound").sentence
    if flops and bytes_ and positive(plain):
        limit = "operations" if flops > bytes_ else "bytes"
        over = versus_bound(max(flops, bytes_), plain)
        said = f"For a prompt of {length} tokens the {limit} decide, and the plain engine's time is {over}."
        if every:
            said += f" The starts are {share(every, plain)} of its time."
    packed, top = named(series, PACKED), named(series, COMPILED)
    changed = compare(cell(series, packed, 0), plain, NAMES[packed], NAMES["plain"])
    if changed.kind != "missing":
        kind = versus_prediction(1.0, prompt_ratio(run), "×").kind
        said += f" No difference was predicted; {changed}: {_NO_DIFFERENCE.get(kind, 'this run cannot tell')}."
        if changed.direction < 0:
            said += f" {capital(SAME_ARITHMETIC)}: it removes no overhead."
    compiled = compare(
        cell(series, top, 0),
        cell(series, packed if packed in series else "plain", 0),
        NAMES[top],
        NAMES[packed if packed in series else "plain"],
    )
    if compiled.kind != "missing":
        said += f" {compiled.sentence}"
    return {"prompt_finding": said}


def prompt_ratio(run: Any) -> Measured:
    """Time of a prompt on the packed engine over the plain one's, with the range of the repeats."""
    series = run["prefill"]
    return ratio_range(cell(series, named(series, PACKED), 0), cell(series, "plain", 0))

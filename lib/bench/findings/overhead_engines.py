"""Whole engines against each other: packed, compiled, replayed, beside transformers, and beside a busy program.

Each function takes a run and returns sentences of chapter 8. Introduced in chapter 8.
"""

from typing import Any

from lib.bench.findings.curves import growth, ordering
from lib.bench.findings.overhead_step import (
    COMPILED,
    PACKED,
    STEPS,
    last_batch,
    middle,
    named,
    starting,
)
from lib.bench.findings.values import Measured, cell, number, percent, quantity, times, value
from lib.bench.findings.vocabulary import (
    capital,
    compare,
    missing,
    share,
    versus_bound,
    versus_prediction,
)
from lib.bench.records.series import Series

NAMES = {
    "plain": "the plain engine", "packed": "the packed engine", "packed where faster": "the packed engine",
    "fused layers": "the engine with fused layers", "packed and compiled": "the packed and compiled engine", "compiled": "the compiled engine",
    "graphs": "the engine with graphs", "graphs, compiled": "the compiled engine with graphs",
    "paged, fused": "the plain engine", "paged, gather": "the engine that gathers",
    "contiguous cache": "the contiguous cache", "no cache": "the engine without a cache",
}  # fmt: skip
SAME_ARITHMETIC = "packing is another kernel for the same products, which a prompt has too"


def steps(run: Any) -> dict[str, str]:
    """Engines by batch: which is fastest, what compiling and what graphs change."""
    series = run[STEPS]
    engines = [n for n in NAMES if series is not None and n in series]
    ranked = []
    for row, where in ((0, "batch 1"), (-1, last_batch(series))):
        order = ordering({NAMES[n]: cell(series, n, row) for n in engines}) if engines else None
        ranked.append(None if order is None else f"at {where}, {order}")
    best = missing("the step by batch").sentence
    if all(ranked) and "not measured" not in "".join(ranked):
        best = f"By the time of a step, {ranked[0]}; {ranked[1]}."
        first = min((middle(cell(series, n, 0)) or float("inf")) for n in engines)
        over = versus_bound(cell(series, "bound", 0), first)
        if over.kind != "missing":
            best += f" The time of the fastest step at batch 1 is {over}."
    return {"best_finding": best} | _compiled(run) | _graphs(series)


def _compiled(run: Any) -> dict[str, str]:
    series, base = run[STEPS], named(run[STEPS], (*PACKED, "plain"))
    top = named(series, COMPILED)
    names = NAMES[top], NAMES[base]
    found = [compare(cell(series, top, row), cell(series, base, row), *names) for row in (0, -1)]
    if "missing" in (found[0].kind, found[1].kind):
        judged = missing("what compiling changes").sentence
    else:
        judged = f"At batch 1, {found[0]}; at {last_batch(series)}, {found[1]}."
        if all(f.direction >= 0 for f in found):
            judged += (
                " So here guards and wrappers cost as much as the compiled loops save, or more."
            )
    seconds, before, after = (
        value(cell(run["compile"], name, 0)).middle for name in ("seconds", "before", "after")
    )
    count = missing("the number of operators in a compiled step").sentence
    if middle(before) and middle(after):
        count = f"The profiler sees {number(after)} launches in a step with compiled functions and {number(before)} without."
    if seconds is None:
        took = missing("the time to compile").sentence
    elif seconds <= 0:
        took = "There is no compiler on this machine, so this engine runs eagerly, and its numbers show no difference."
    else:
        took = (
            f"Compiling took {quantity(seconds, 's')}. What is compiled is kept on disk, where a later start "
            "finds it."
        )
    load = missing("the time to compile").sentence
    if middle(seconds):
        load = f"Compiling took {quantity(seconds, 's')} at load, which no bar of the last figure contains."
    return {
        "compile_finding": judged,
        "compile_count_finding": count,
        "compile_seconds_finding": took,
        "compile_load_finding": load,
    }


def _graphs(series: Series | None) -> dict[str, str]:
    found = compare(
        cell(series, "graphs", 0), cell(series, "plain", 0), NAMES["graphs"], NAMES["plain"]
    )
    said = f"At batch 1, {found}." if found.kind != "missing" else ""
    return {"graphs_finding": said or "Graphs were not measured here: they need a GPU."}


def modules(run: Any) -> dict[str, str]:
    """The model as one flat function against the model as a tree of modules."""
    flat, tree = (cell(run["modules"], name, 0) for name in ("flat", "modules"))
    found = compare(flat, tree, "the step with a flat function", "the step with modules")
    said = found.sentence
    saved = growth(tree, flat)
    if found.kind == "about" and saved and 0.005 < 1 - saved:
        said = f"{found.text}: the flat one takes {percent(1 - saved)} less."
    return {"modules_finding": capital(said)}


def prefill(run: Any) -> dict[str, str]:
    """A prompt on every engine: which limit it meets, and whether packing or compiling changes it."""
    series = run["prefill"]
    if series is None:
        return {"prompt_finding": missing("the prompt").sentence}
    plain = cell(series, "plain", 0)
    flops, bytes_ = (middle(cell(series, name, 0)) for name in ("flops", "bytes"))
    length, every = series.params.get("prompt"), starting(run)
    said = missing("the prompt over its bound").sentence
    if flops and bytes_ and middle(plain):
        limit = "operations" if flops > bytes_ else "bytes"
        over = versus_bound(max(flops, bytes_), plain)
        said = f"For a prompt of {length} tokens the {limit} decide, and the plain engine's time is {over}."
        if every:
            said += f" The starts are {share(every, plain)} of its time."
    packed, top = named(series, PACKED), named(series, COMPILED)
    changed = compare(cell(series, packed, 0), plain, NAMES[packed], NAMES["plain"])
    if changed.kind != "missing":
        verdict = versus_prediction(1.0, prompt_ratio(run), "×").verdict
        said += f" No difference was predicted; {changed}: {verdict}."
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
    """Time of a prompt on the packed engine over the median of the plain one, sample by sample."""
    series = run["prefill"]
    plain = middle(cell(series, "plain", 0))
    packed = cell(series, named(series, PACKED), 0)
    if not plain or packed is None:
        return None
    return [s / plain for s in packed] if isinstance(packed, list) else packed / plain


def rates(run: Any) -> dict[str, dict[str, Measured]]:
    """Output tokens per second by stage, for "first" (one sequence) and "last" (the largest batch)."""
    series = run["waterfall"]
    if series is None or not {"batch", "stage", "tok_s"} <= series.columns.keys():
        return {"first": {}, "last": {}}
    stages: dict[str, list[Measured]] = {}
    for i, stage in enumerate(series["stage"]):
        stages.setdefault(stage, []).append(cell(series, "tok_s", i))
    return {
        "first": {name: found[0] for name, found in stages.items()},
        "last": {name: found[-1] for name, found in stages.items() if len(found) > 1},
    }


def whole_way(run: Any) -> dict[str, str]:
    """The last figure: what the way brought, and what of it remains against transformers."""
    found, series = rates(run), run["waterfall"]
    batch = last_batch(series)
    said, best = [], {}
    for key, where in (("first", "One sequence"), ("last", capital(batch))):
        ours = {n: m for n, v in found[key].items() if n != "transformers" and (m := middle(v))}
        bare = ours.get("no cache")
        if len(ours) < 2 or not bare:
            said.append(missing(f"the whole way of {where.lower()}").sentence)
            continue
        best[key] = name = max(ours, key=ours.get)
        near = [NAMES.get(n, n) for n in ours if n != name and ours[n] * 1.1 >= ours[name]]
        also = (
            f"; {' and '.join(near)} {'are' if len(near) > 1 else 'is'} about as fast"
            if near
            else ""
        )
        said.append(
            f"{where} goes from {quantity(bare, 'tokens/s')} without a cache to {quantity(ours[name], 'tokens/s')} with "
            f"{NAMES.get(name, name)}, {times(ours[name] / bare)} as many{also}."
        )
    bound = middle(cell(run[STEPS], "bound", 0))
    if "first" in best and bound:
        used = middle(found["first"][best["first"]]) * bound
        said[0] += f" That is {percent(used)} of what the ceilings allow for a step at batch 1."
    whole = missing("the whole way").sentence
    if "first" in found and "last" in best and middle(found["first"].get("no cache")):
        ratio = middle(found["last"][best["last"]]) / middle(found["first"]["no cache"])
        whole = f"From one sequence without a cache to {batch} here, the machine gives {times(ratio)} as many tokens."
    return {
        "one_sequence_finding": said[0],
        "large_batch_finding": said[1],
        "whole_way_finding": whole,
        "peer_finding": _peer(found["first"], "at batch 1"),
        "peer_batch_finding": _peer(found["last"], f"at {batch}"),
    }


def _peer(values: dict[str, Measured], where: str) -> str:
    theirs, packed = (
        values.get("transformers"),
        next((values[n] for n in PACKED if n in values), None),
    )
    how = {"what": "throughput", "unit": "tokens/s"}
    plain = compare(values.get("paged, fused"), theirs, "the plain engine", "transformers", **how)
    fast = compare(packed, theirs, "the packed engine", "transformers", **how)
    if plain.kind in ("missing", "undefined"):
        return missing(f"transformers {where}").sentence
    said = f"{capital(where)}, {plain}"
    if fast.kind not in ("missing", "undefined"):
        said += f"; {fast}"
        if fast.direction > 0 and plain.kind == "about":
            said += ", and all of that is the packing"
    layers = values.get("fused layers")
    fused = compare(layers, theirs, NAMES["fused layers"], "transformers", **how)
    if fused.kind not in ("missing", "undefined") and fused.direction > 0:
        said += f"; {fused}"
    few = min(value(v).count for v in (values.get("paged, fused"), theirs))
    return said + (", by one run of each." if few < 2 else ".")


def busy(run: Any) -> dict[str, str]:
    """A decode step beside a busy program, for three ways of OpenMP's threads to wait."""
    series = run["busy_machine"]
    if series is None or len(series["setting"]) != 3:
        return {"busy_finding": missing("the step beside a busy program").sentence}
    quiet, beside = (
        [middle(cell(series, name, i)) for i in range(3)] for name in ("quiet", "busy")
    )
    if None in quiet or None in beside:
        return {"busy_finding": missing("the step beside a busy program").sentence}
    bounded = series["setting"][1]
    slow, limited, passive = (b / q for b, q in zip(beside, quiet))
    said = (
        f"Beside the busy program the default's step took {times(slow)} as long as alone, with {bounded} "
        f"{times(limited)}, and with sleep at once {times(passive)}."
    )
    if slow < 1.5 * limited:
        said += " So this run does not show the slowdown: its system gave the threads their cores."
    names = (bounded, "sleep at once")
    cost = [
        compare(cell(series, "quiet", i), cell(series, "quiet", 0), name, "the default")
        for i, name in zip((1, 2), names)
    ]
    said += f" Alone, {cost[0]}; {cost[1]}."
    return {"busy_finding": said}


def busy_ratio(run: Any, row: int) -> float | None:
    """Time of the step beside the busy program over its time alone."""
    series = run["busy_machine"]
    return growth(cell(series, "quiet", row), cell(series, "busy", row))

"""The whole way: tokens per second stage by stage, and beside transformers.

Each function takes a run; most return sentences of chapter 8.

Introduced in chapter 8.
"""

from typing import Any

from lib.bench.findings.launch_overhead.overhead_rows import NAMES, PACKED, STEPS, last_batch
from lib.bench.findings.run_notes import of_record
from lib.bench.findings.values import Measured, cell, percent, positive, quantity, times, value
from lib.bench.findings.vocabulary import capital, compare, missing


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
        ours = {n: m for n, v in found[key].items() if n != "transformers" and (m := positive(v))}
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
    bound = positive(cell(run[STEPS], "bound", 0))
    if "first" in best and bound:
        used = positive(found["first"][best["first"]]) * bound
        rate = quantity(positive(found["first"][best["first"]]), "tokens/s")
        said[0] += (
            f" {rate} is {percent(used)} of the rate at which every step would take its bound."
        )
        if used > 1.005:
            said[0] += " So a ceiling was measured too low."
    whole = missing("the whole way").sentence
    if "first" in found and "last" in best and positive(found["first"].get("no cache")):
        ratio = positive(found["last"][best["last"]]) / positive(found["first"]["no cache"])
        whole = f"From one sequence without a cache to {batch} here, the machine gives {times(ratio)} as many tokens."
    return {
        "one_sequence_finding": of_record(run, said[0]),
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
    bar = "the plain engine (“paged, fused” in the figure)"
    plain = compare(values.get("paged, fused"), theirs, bar, "transformers", **how)
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

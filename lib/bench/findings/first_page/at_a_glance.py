"""The book's first page: one measured sentence per chapter, and throughput step by step, from recorded runs.

Introduced in chapter 14.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lib.bench.findings.launch_overhead.overhead_rows import last_batch
from lib.bench.findings.launch_overhead.overhead_whole_way import rates
from lib.bench.findings.values import cell, cell_of, number, percent, quantity, value
from lib.bench.findings.vocabulary import Finding, compare, missing


@dataclass(frozen=True)
class Stage:
    """One bar: output tokens per second once a chapter's part is there. sequences: how many run at once."""

    chapter: int
    name: str
    sequences: str
    tok_s: float


# The chapter that builds a stage, its name in the figure and in chapter 8's last measurement; the first two run one
# sequence. Those of _BY_DEVICE are measured on a CPU or on a GPU only.
_STAGES = (
    (1, "no cache", "no cache", "first"),
    (2, "KV cache", "contiguous cache", "first"),
    (3, "batching", "contiguous cache", "last"),
    (4, "paged cache, gathered", "paged, gather", "last"),
    (7, "paged cache, fused attention", "paged, fused", "last"),
    (8, "packed weights", "packed", "last"),
    (8, "fused layers", "fused layers", "last"),
    (8, "CUDA graphs", "graphs", "last"),
)
_BY_DEVICE = ("packed", "fused layers", "graphs")


def stages(run: Any) -> list[Stage]:
    """Throughput by chapter, of a run of chapter 8; empty where a stage was not measured."""
    found, batch = rates(run), last_batch(run["waterfall"])
    sequences = {"first": "one sequence", "last": batch}
    known = []
    for chapter, name, stage, which in _STAGES:
        rate = value(found[which].get(stage)).middle
        if rate:
            known.append(Stage(chapter, name, sequences[which], rate))
        elif stage not in _BY_DEVICE:
            return []
    return known


def sentence(chapter: int, run: Any) -> str | None:
    """One sentence on what a run of the chapter measured; None where it was not measured, or there is no such sentence.

    Where the experiment failed its gate in the recorded run, the sentence is about what the run counted, and where it
    counted nothing, the sentence ends with the reason.
    """
    if chapter not in _SENTENCES:
        return None
    experiment, say = _SENTENCES[chapter]
    reasons = [
        reason
        for gate in run.gates
        if gate["experiment"] == experiment and not gate["ok"]
        for reason in gate["reasons"]
    ]
    counted = _COUNTED[chapter](run) if reasons and chapter in _COUNTED else missing("a count")
    if counted.kind != "missing":
        return counted.sentence
    finding = say(run)
    if finding.kind == "missing":
        return None
    caution = f" Read it with care: {'; '.join(reasons)}." if reasons else ""
    return finding.sentence + caution


def _of(prefix: str, finding: Finding) -> Finding:
    """The finding after a few words that say where it holds."""
    return Finding(f"{prefix}{finding.text}", finding.kind, finding.ratio, finding.direction)


def _count(series: Any, column: str, row: int) -> str:
    found = value(cell(series, column, row)).middle
    return "an unknown number" if found is None else number(found)


def _growth(run: Any) -> Finding:
    series = run["token_time_by_prompt"]
    short, long = (_count(series, "prompt", row) for row in (0, -1))
    times = (cell(series, "no_cache", row) for row in (-1, 0))
    names = f"a new token after {long} tokens", f"one after {short}"
    return _of("without a cache, ", compare(*times, *names, unit="ms"))


def _cache(run: Any) -> Finding:
    series = run["throughput_by_generated"]
    rate, bare = (cell(series, column, -1) for column in ("kv_cache", "no_cache"))
    names = "the engine with a KV cache", "the one without"
    said = compare(rate, bare, *names, what="throughput", unit="tokens/s")
    return _of(f"for an answer of {_count(series, 'generated', -1)} tokens, ", said)


def _continuous(run: Any) -> Finding:
    series = run["variable_lengths"]
    slots = "an unknown number of" if series is None else series.params.get("slots", "the same")
    names = [f"{kind}, {slots} slots" for kind in ("continuous", "static")]
    rate, static = (cell_of(series, name, "tok_s") for name in names)
    said = compare(
        rate, static, "continuous batching", "static batching", what="throughput", unit="tokens/s"
    )
    return _of("with answers of different lengths, ", said)


def _at_once(run: Any) -> Finding:
    series = run["same_bytes"]
    paged, slots = (
        value(cell_of(series, n, "peak_running")).middle for n in ("paged", "contiguous")
    )
    if not paged or not slots:
        return missing("the number of sequences at once")
    many = "sequence" if paged == 1 else "sequences"
    text = f"on the same bytes of cache, at most {number(paged)} {many} ran at once with blocks and {number(slots)} with slots"
    return Finding(text, "number", paged / slots)


def _over_http(run: Any) -> Finding:
    share = value(cell_of(run["throughput"], "streamed", "share")).middle
    if share is None:
        return missing("the throughput over HTTP")
    text = f"answers streamed over HTTP reach {percent(share)} of the throughput of the same engine without a server"
    return Finding(text, "number", share)


def _users(run: Any) -> Finding:
    series = run["throughput_by_users"]
    rate, alone = (cell(series, name, -1) for name in ("continuous, paged", "sequential"))
    names = "the batching server", "the sequential one"
    said = compare(rate, alone, *names, what="throughput", unit="tokens/s")
    return _of(f"with {_count(series, 'users', -1)} users, ", said)


def _fused(run: Any) -> Finding:
    series = run["same_bytes"]
    rate, slots = (cell_of(series, name, "tok_s") for name in ("fused", "contiguous"))
    names = "the paged cache with the fused kernel", "the contiguous one"
    said = compare(rate, slots, *names, what="throughput", unit="tokens/s")
    return _of("on the same bytes of cache, ", said)


def _packed(run: Any) -> Finding:
    found = rates(run)["last"]
    rate, plain = found.get("packed"), found.get("paged, fused")
    names = "the engine with packed weights", "the one with plain ones"
    said = compare(rate, plain, *names, what="throughput", unit="tokens/s")
    return _of(f"at {last_batch(run['waterfall'])}, ", said)


def _prefix(run: Any) -> Finding:
    series = run["ttft_by_shared"]
    prompt = "an unknown number of" if series is None else series.params.get("prompt", "all")
    found, none = (cell(series, "ttft", row) for row in (-1, 0))
    shared = _count(series, "shared", -1)
    return compare(found, none, f"the first token with {shared} of {prompt} prompt tokens cached", "the one with none")  # fmt: skip


def _drafts(run: Any) -> Finding:
    rate, bare = (cell_of(run["methods"], name, "tok_s") for name in ("n-gram", "no drafts"))
    names = "the engine with drafts", "the one without"
    said = compare(rate, bare, *names, what="throughput", unit="tokens/s")
    return _of("where the answer repeats the prompt, at batch 1, ", said)


def _formats(run: Any) -> Finding:
    series = run["products"]
    rows = _count(series, "rows", 0)
    small, full = (cell(series, name, 0) for name in ("4 bits × int8", "float32"))
    names = "a pass through all matrix products with 4-bit weights", "one in float32"
    return _of(f"with {rows} {'row' if rows == '1' else 'rows'}, ", compare(small, full, *names))


def _bytes(run: Any) -> Finding:
    series = run["formats"]
    small, full = (value(cell_of(series, n, "weight_bytes")).middle for n in ("4 bits", "float32"))
    if not small or not full or min(small, full) <= 0:
        return missing("the bytes of the weights")
    said = f"{quantity(small, 'B')} of weights in 4 bits, and {quantity(full, 'B')} in float32"
    text = f"the matrix products of a step read {said}"
    held = run["kv_formats"]
    many, few = (value(cell_of(held, n, "blocks")).middle for n in ("int8", "float32"))
    if many and few and many != few:
        text += (
            f"; the same memory holds {number(many)} blocks of keys and values in 8 bits, "
            f"and {number(few)} in float32"
        )
    return Finding(text, "number", small / full)


def _masks(run: Any) -> Finding:
    series = run["mask_time_by_vocabulary"]
    walk, each = (cell(series, name, -1) for name in ("walk", "one_by_one"))
    names = "computing a mask by walking the tree of all tokens", "reading token after token"
    said = compare(walk, each, *names)
    return _of(f"with a vocabulary of {_count(series, 'vocabulary', -1)} tokens, ", said)


def _routers(run: Any) -> Finding:
    series = run["policies"]
    names = ("longest_prefix", "round_robin")
    knows, in_turn = (value(cell_of(series, name, "hit_rate")).middle for name in names)
    if knows is None or in_turn is None:
        return missing("the hit rate by router")
    text = (
        f"behind a router that knows which prefixes a replica has cached, {percent(knows)} of the prompt "
        f"tokens were found; where the replicas took turns, {percent(in_turn)}"
    )
    return Finding(text, "number", knows / in_turn if in_turn else None)


def _window(run: Any) -> Finding:
    series = run["blocks_held"]
    bounded, all_seen = (value(cell(series, name, -1)).middle for name in ("window", "all"))
    window = None if series is None else series.params.get("window")
    if not bounded or not all_seen or window is None:
        return missing("the blocks that a sliding window holds")
    text = (
        f"after {_count(series, 'tokens', -1)} tokens, a sequence holds {number(bounded)} blocks with a "
        f"sliding window of {number(window)} tokens, and {number(all_seen)} without one"
    )
    return Finding(text, "number", all_seen / bounded)


# By chapter: the experiment's name at its gate, and the finding.
_SENTENCES: dict[int, tuple[str, Callable[[Any], Finding]]] = {
    1: ("time by prompt length", _growth),
    2: ("throughput by length of the answer", _cache),
    3: ("variable lengths", _continuous),
    4: ("throughput on the same bytes", _at_once),
    5: ("throughput", _over_http),
    6: ("throughput by users", _users),
    7: ("three engines on the same bytes", _fused),
    8: ("the whole way", _packed),
    9: ("TTFT by shared length", _prefix),
    10: ("ways to draft", _drafts),
    11: ("time of the products", _formats),
    12: ("time of a mask", _masks),
    13: ("two replicas behind a router", _routers),
    14: ("blocks held", _window),
}
# What the same run counted, for where that experiment failed its gate: no other program disturbs a count.
_COUNTED: dict[int, Callable[[Any], Finding]] = {11: _bytes}

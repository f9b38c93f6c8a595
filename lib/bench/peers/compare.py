"""`python -m lib.bench.peers.compare`: this engine and transformers, the same work in one run, in turns.

Equal lengths at several batch sizes against `generate`, and lengths that vary against continuous batching
(`generate_batch`) and static batches. BOOK_SCALE sets how much; `--record DIR` keeps the samples.

Introduced in chapter 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lib.bench.measure import counts
from lib.bench.measure.roofline import measure_roofline
from lib.bench.notebook.tables import table
from lib.bench.peers.hf_model import transformers_model
from lib.bench.peers.turns import (
    BLOCK,
    NEW,
    PROMPT,
    STATIC,
    Result,
    blocks_for,
    compete,
    equal_work,
)
from lib.bench.records.record import Record
from lib.bench.scale import pick
from lib.bench.workloads import Workload, variable_length

TARGET = 1.0  # ratio of rates: at least as fast as transformers
VOCAB_SIZE = 49152  # SmolLM2's
PLAIN, PACKED, FUSED = (
    "contiguous, plain",
    "contiguous, packed",
    "fused, packed",
)


def main() -> int:
    """The command: prints the table, saves the record where `--record` asks for it, and returns 0."""
    batches = pick(smoke=[1, 2], cpu=[1, 16, 64], gpu=[1, 16, 64])
    prompt, new = pick(smoke=(8, 4), cpu=(PROMPT, NEW), gpu=(PROMPT, NEW))
    repeats = pick(smoke=1, cpu=2, gpu=5)
    equal = [equal_work(VOCAB_SIZE, batch, prompt, new) for batch in batches]
    varied = variable_length(VOCAB_SIZE, n=pick(smoke=3, cpu=32, gpu=256))
    if new < 8:  # smoke
        varied = Workload(varied.name, varied.prompts, [min(n, new) for n in varied.max_tokens])
    engines = _engines([*equal, varied], rows=max(batches))
    fused = engines[FUSED]
    reference, roofline = transformers_model(engines[PLAIN]), measure_roofline(fused.device)
    record = Record(
        "peers",
        model="smollm2",
        weights=fused.weights,
        dtype="float32",
        device=fused.device,
        roofline=roofline,
    )
    results = [
        (compete(engines, reference, work, ["generate"], repeats), "generate") for work in equal
    ]
    peers = ["generate_batch", f"generate, batches of {STATIC}"]
    mixed = compete(engines, reference, varied, peers, repeats)
    results += [(mixed, peer) for peer in peers]
    _show(results, list(engines))
    # A step takes at least the time to read its bytes. The prompt's step is counted with its weights alone.
    lengths = range(prompt, prompt + new)
    bound = (
        sum(counts.step_bytes(fused.config, "float32", [n]) for n in lengths) / roofline.bandwidth
    )
    share = bound / results[0][0].timings[FUSED].median
    print(
        f"batch 1: {share:.0%} of the bandwidth bound ({roofline.bandwidth / 1e9:.1f} GB/s measured in this run)"
    )
    record.add(
        "peers",
        unit="tok/s",
        params={"prompt": prompt, "new_tokens": new, "target": TARGET},
        points=[_point(result, peer) for result, peer in results],
    )
    record.add("bandwidth_share", unit="share", points=[{"batch": 1, "share": share}])
    record.headline(
        "batch 1 over transformers", results[0][0].rate(FUSED) / results[0][0].rate("generate"), "×"
    )
    record.finish()
    return 0


def _engines(works: Sequence[Workload], rows: int) -> dict[str, Any]:
    """The three engines by name, each with room for all of `works`; `rows` sequences run at a time."""
    from lib.engine.llm import LLM

    def engine(**options: Any) -> LLM:
        longest = max(work.longest for work in works)
        return LLM("smollm2", dtype="float32", max_num_seqs=rows, max_model_len=longest, **options)

    return {
        PLAIN: engine(kv_cache="contiguous", linear="plain"),
        PACKED: engine(kv_cache="contiguous", linear="packed"),
        FUSED: engine(
            linear="auto",
            num_blocks=max(map(blocks_for, works)),
            block_size=BLOCK,
            enable_prefix_caching=False,  # every round computes its prompts, as the others do
        ),
    }


def _show(results: Sequence[tuple[Result, str]], engines: Sequence[str]) -> None:
    """The table: one row per piece of work and peer."""
    lines = []
    for result, peer in results:
        ratio = result.rate(FUSED) / result.rate(peer)
        lines.append(
            [
                result.name,
                *(f"{result.rate(name):,.1f}" for name in engines),
                peer,
                f"{result.rate(peer):,.1f}",
                f"{ratio:.2f}",
                f"{TARGET:.1f}",
                "yes" if ratio >= TARGET else "no",
                "yes" if result.same else "no",
            ]
        )
    table(
        lines,
        headers=[
            "work",
            *(f"{name} (tok/s)" for name in engines),
            "transformers",
            "tok/s",
            "ours / theirs",
            "target",
            "met",
            "same tokens",
        ],
    )


def _point(result: Result, peer: str) -> Mapping[str, Any]:
    """One row of the record: every contestant's samples, in tokens per second."""
    rates = {name: timing.rates(result.tokens) for name, timing in result.timings.items()}
    return {
        "work": result.name,
        "contiguous": rates[PLAIN],
        "contiguous_packed": rates[PACKED],
        "fused": rates[FUSED],
        "peer": peer,
        "theirs": rates[peer],
        "same": result.same,
    }


if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m lib.bench.peers.compare`: this engine and transformers, the same work in one run, in turns.

Equal lengths at several batch sizes against `generate`, and lengths that vary against continuous batching
(`generate_batch`) and static batches. BOOK_SCALE sets how much; `--record DIR` keeps the samples.

Introduced in chapter 8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib.bench.measure import counts
from lib.bench.measure.roofline import measure_roofline
from lib.bench.measure.timing import Timing, measure
from lib.bench.notebook.tables import table
from lib.bench.peers.hf import hf_generate, hf_generate_batch
from lib.bench.peers.hf_model import transformers_model
from lib.bench.records.record import Record
from lib.bench.scale import pick
from lib.bench.workloads import Workload, fixed, random_prompts, variable_length

PROMPT, NEW = 64, 48
GOAL = 1.0  # at least as fast as the other engine
STATIC = 8  # sequences in a static batch of transformers
BLOCK = 16


@dataclass(frozen=True)
class Result:
    """Output tokens a second of each contestant on one piece of work; `same`: whether all gave the same tokens."""

    name: str
    tokens: int
    timings: dict[str, Timing]
    same: bool

    def rate(self, contestant: str) -> float:
        return self.timings[contestant].rate(self.tokens)


def in_turns(
    contestants: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1
) -> dict[str, Timing]:
    """Times contestants one after the other, round by round: whatever else the machine does then meets all of them.

    A contestant may return the Timing of its own part; what it prepared before does not count then.
    """
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warmup + repeats):
        for name, run in contestants.items():
            answers: list[Any] = []
            seconds = measure(
                lambda run=run, answers=answers: answers.append(run()), warmup=0, repeats=1
            ).median
            if turn >= warmup:
                samples[name].append(
                    answers[0].median if isinstance(answers[0], Timing) else seconds
                )
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def blocks_for(work: Workload, block_size: int = BLOCK) -> int:
    """Blocks that hold all sequences of `work` at their longest, and the null block."""
    return 1 + sum(
        -(-(len(prompt) + n) // block_size) for prompt, n in zip(work.prompts, work.max_tokens)
    )


def equal_work(vocab_size: int, batch: int, prompt: int = PROMPT, new: int = NEW) -> Workload:
    return Workload(
        f"batch {batch}",
        random_prompts(fixed(batch, prompt), vocab_size, seed=batch),
        fixed(batch, new),
    )


def compete(
    engines: Mapping[str, Any], twin: Any, work: Workload, peers: Sequence[str], repeats: int
) -> Result:
    """`work` on each engine (an LLM) and on transformers. peers: any of "generate", "generate, batches of 8",
    "generate_batch"."""
    answers: dict[str, list[list[int]]] = {}

    def ours(name: str) -> None:
        outputs = engines[name].generate(work.prompts, work.params)
        answers[name] = [output.token_ids for output in outputs]

    def theirs(name: str) -> Timing:
        once = {"warmup": 0, "repeats": 1}
        if (
            name == "generate_batch"
        ):  # its manager starts anew at each turn; a warm-up inside makes up for that
            result = hf_generate_batch(twin, work.prompts, work.max_tokens, warmup=1, repeats=1)
        else:
            size = STATIC if "batches" in name else None
            result = hf_generate(twin, work.prompts, work.max_tokens, batch_size=size, **once)
        answers[name] = result["token_ids"]
        return result["timing"]

    contestants: dict[str, Callable[[], Any]] = {
        name: lambda name=name: ours(name) for name in engines
    }
    contestants |= {name: lambda name=name: theirs(name) for name in peers}
    timings = in_turns(contestants, repeats)
    first = next(iter(answers.values()))
    return Result(
        work.name,
        sum(work.max_tokens),
        timings,
        all(answer == first for answer in answers.values()),
    )


def main() -> int:
    from lib.engine.llm import LLM

    batches = pick(smoke=[1, 2], cpu=[1, 16, 64], gpu=[1, 16, 64])
    prompt, new = pick(smoke=(8, 4), cpu=(PROMPT, NEW), gpu=(PROMPT, NEW))
    repeats = pick(smoke=1, cpu=2, gpu=5)
    rows = max(batches)
    vocab_size = 49152  # SmolLM2's
    equal = [equal_work(vocab_size, batch, prompt, new) for batch in batches]
    varied = variable_length(vocab_size, n=pick(smoke=3, cpu=32, gpu=256))
    if new < 8:  # smoke
        varied = Workload(varied.name, varied.prompts, [min(n, new) for n in varied.max_tokens])
    longest, blocks = (
        max(work.longest for work in (*equal, varied)),
        max(map(blocks_for, (*equal, varied))),
    )
    engines = {
        "contiguous, plain": LLM(
            "smollm2",
            dtype="float32",
            kv_cache="contiguous",
            linear="plain",
            max_num_seqs=rows,
            max_model_len=longest,
        ),
        "contiguous, packed": LLM(
            "smollm2",
            dtype="float32",
            kv_cache="contiguous",
            linear="auto",
            max_num_seqs=rows,
            max_model_len=longest,
        ),
        "fused, packed": LLM(
            "smollm2",
            dtype="float32",
            linear="auto",
            max_num_seqs=rows,
            num_blocks=blocks,
            max_model_len=longest,
            block_size=BLOCK,
            enable_prefix_caching=False,  # every round computes its prompts, as the others do
        ),
    }
    last = engines["fused, packed"]
    twin, roofline = transformers_model(engines["contiguous, plain"]), measure_roofline(last.device)
    record = Record(
        "goals",
        model="smollm2",
        weights=last.weights,
        dtype="float32",
        device=last.device,
        roofline=roofline,
    )
    results = [(compete(engines, twin, work, ["generate"], repeats), "generate") for work in equal]
    peers = ["generate_batch", f"generate, batches of {STATIC}"]
    mixed = compete(engines, twin, varied, peers, repeats)
    results += [(mixed, peer) for peer in peers]
    best, lines = "fused, packed", []
    for result, peer in results:
        ratio = result.rate(best) / result.rate(peer)
        lines.append(
            [
                result.name,
                *(f"{result.rate(name):,.1f}" for name in engines),
                peer,
                f"{result.rate(peer):,.1f}",
                f"{ratio:.2f}",
                f"{GOAL:.1f}",
                "yes" if ratio >= GOAL else "no",
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
            "goal",
            "met",
            "same tokens",
        ],
    )
    # A step can be no faster than its bytes; the prompt is a step of its own, of which the bound sees only the weights.
    lengths = range(prompt, prompt + new)
    bound = (
        sum(counts.step_bytes(last.config, "float32", [n]) for n in lengths) / roofline.bandwidth
    )
    share = bound / results[0][0].timings[best].median
    print(
        f"batch 1: {share:.0%} of the bandwidth bound ({roofline.bandwidth / 1e9:.1f} GB/s measured in this run)"
    )
    record.add(
        "goals",
        unit="tok/s",
        params={"prompt": prompt, "new_tokens": new, "goal": GOAL},
        points=[
            {
                "work": result.name,
                "contiguous": result.timings["contiguous, plain"].rates(result.tokens),
                "contiguous_packed": result.timings["contiguous, packed"].rates(result.tokens),
                "fused": result.timings[best].rates(result.tokens),
                "peer": peer,
                "theirs": result.timings[peer].rates(result.tokens),
                "same": result.same,
            }
            for result, peer in results
        ],
    )
    record.add("bandwidth_share", unit="share", points=[{"batch": 1, "share": share}])
    record.headline(
        "batch 1 over transformers", results[0][0].rate(best) / results[0][0].rate("generate"), "×"
    )
    record.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

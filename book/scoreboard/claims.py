"""Published claims beside recorded runs: the claim, the recorded value, and the verdict.

`python -m book.scoreboard` prints it; the book's scoreboard page shows it. The claims are here, their rules in `rules`,
`paging` and `peers`.

Introduced in chapter 6.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from book.scoreboard import paging, peers, rules
from book.scoreboard.outcomes import Claim, Outcome, Records, card_name, verdict_of
from lib.bench.paths import measurements_dir
from lib.bench.records.files import Reference, Run, read_records, reference

# In the order in which they were published: (rule, label of the section, why, rule of the count).
FINDINGS = (
    (
        rules.largest_win,
        "sec-batch-sweep",
        "Batching shares the reading of the weights, and the cache avoids repeated work: gains of different kinds.",
    ),
    (
        rules.grows_with_length,
        "sec-kv-throughput",
        "Without a cache a step's work grows with the sequence, and with one it hardly does.",
    ),
    (
        paging.memory_crossing,
        "sec-published-memory",
        "The pool was fixed beforehand and is allocated in full before the first sequence.",
        paging.memory_crossing_count,
    ),
    (
        paging.gather_cost,
        "sec-gather-cost",
        "The copy moves every key and value three times, and so its cost grows with batch and context.",
    ),
    (
        paging.flat_memory,
        "sec-gpu-sweep",
        "A pool is a constant, and a slot for each sequence is a straight line.",
        paging.flat_memory_count,
    ),
    (
        rules.long_prompts,
        "sec-users",
        "The arithmetic of a prompt is not shared among the sequences of a step, so it reduces the gain.",
    ),
    (
        rules.dispatch,
        "sec-kv-profile",
        "With a cache a step multiplies each matrix by one row instead of one row per token.",
    ),
)
FAILURES = (
    (
        paging.slow_when_small,
        "sec-gather-cost",
        "A gathered step does all that a contiguous one does, and copies first; chapter 7 removes the copy.",
    ),
    (
        paging.out_of_memory,
        "sec-same-bytes",
        "A slot reserves room for the longest sequence, blocks only for tokens that exist.",
        paging.out_of_memory_count,
    ),
    (
        rules.flat_throughput,
        "sec-users",
        "One request at a time is a batch of one, for any number of waiting requests.",
    ),
)
NOT_A_CLAIM = "tests"  # the headline table's number of tests says nothing about the engine


@dataclass(frozen=True)
class Row:
    """A claim with its count (None for what cannot be counted) and its outcome on each recorded hardware, by label.

    An outcome is None where that hardware did not measure it. card: the model of the published card.
    """

    claim: Claim
    counted: Outcome | None
    outcomes: Mapping[str, Outcome | None]
    card: str

    @property
    def verdict(self) -> str:
        """The row's verdict; see `outcomes.verdict_of`."""
        return verdict_of(self.counted, self.outcomes, self.card)

    @property
    def found(self) -> dict[str, Outcome]:
        """What there is to show, by where it comes from: "counted" first, then each hardware that measured it."""
        first = {} if self.counted is None else {"counted": self.counted}
        return first | {label: o for label, o in self.outcomes.items() if o is not None}


def with_sign(text: str) -> str:
    """A published text with the book's sign for a factor: 118× for "118x"."""
    return re.sub(r"(?<=\d)x(?!\w)", "×", text)


def claims(published: Reference) -> list[Claim]:
    """All published claims, in their order: the headline table, the findings, the failures, vLLM beside the engine.

    Raises ValueError where there are more or fewer findings or failures than rules.
    """
    head, sweep = published["headline"], published["batch_sweep"]
    tokens, memory = (
        published["throughput_by_generated_tokens"]["tokens"],
        published["paged_vs_contiguous_by_batch"],
    )
    profiler, load = published["profiler"], published["load_c64"]
    table = (
        ("Throughput of the paged server over the sequential one", f"{head['system_throughput_gain_c64']}× at "
         f"{load['users']} users, {published['load_setup']['max_tokens']} tokens each", rules.load_gain, "sec-users",
         "The two servers differ in batching and in paging, and where all sequences fit, the gain comes from batching."),
        ("Throughput of the largest batch over batch 1", f"{head['batch_gain_512']}× at batch {sweep['batch'][-1]}",
         rules.batch_gain, "sec-batch-sweep",
         "A step reads the weights once for all sequences, until arithmetic takes longer than reading."),
        ("Memory of the contiguous cache over the paged one", f"{head['paged_memory_reduction_bs256']}× at batch "
         f"{memory['batch'][-1]}", paging.memory_gain, "sec-published-memory",
         "It compares a reset that holds three halves of a cache with a pool whose size was chosen freely.",
         paging.memory_gain_count),
        ("Throughput with a KV cache over without", f"{head['kv_cache_gain_1000_tokens']}× at {tokens[-1]:,} tokens",
         rules.cache_gain, "sec-kv-throughput",
         "The cache saves the work on all tokens but the last; how much time that is depends on the length and the card."),
        ("Computing time saved by the KV cache", f"{head['cuda_time_reduction_pct']} % ({profiler['no_cache_cuda_ms']} to "
         f"{profiler['kv_cache_cuda_ms']} ms, {profiler['new_tokens']} tokens after a prompt of {profiler['prompt']})",
         rules.time_saved, "sec-kv-profile",
         "The cache saves the work on all tokens but the last; how much time that is depends on the length and the card."),
    )  # fmt: skip
    found = [Claim("headline", *row) for row in table]
    found += [
        Claim("finding", with_sign(text), "", *rule)
        for text, rule in zip(published["findings"], FINDINGS, strict=True)
    ]
    for row, rule in zip(published["failures"], FAILURES, strict=True):
        found.append(
            Claim(
                "failure",
                with_sign(row["broke"][:1].upper() + row["broke"][1:]),
                with_sign(f"cause: {row['cause']}"),
                *rule,
            )
        )
    return found + peers.claims(published)


def recorded_hardware(folder: Path | str | None = None) -> dict[str, Records]:
    """All records that are measurements (not smoke runs), by the hardware's label and the chapter's number."""
    result: dict[str, dict[str, Run]] = {}
    for run in read_records("[0-9][0-9]_*", folder=folder):
        result.setdefault(run.label, {})[run.chapter[:2]] = run
    return dict(sorted(result.items()))


def scoreboard(folder: Path | str | None = None, published: Reference | None = None) -> list[Row]:
    """A row for every published claim. folder: where the records are, as `book/measurements/`."""
    published = published or reference()
    machines = recorded_hardware(measurements_dir() if folder is None else folder)
    return [
        Row(
            claim,
            None if claim.count is None else claim.count(published),
            {label: claim.judge(records, published) for label, records in machines.items()},
            card_name(published),
        )
        for claim in claims(published)
    ]


def main() -> None:
    """Prints the scoreboard as text."""
    for row in scoreboard():
        figure = f" ({row.claim.published})" if row.claim.published else ""
        print(f"\n[{row.verdict}] {row.claim.text}{figure}")
        for label, outcome in row.found.items():
            note = f"; {outcome.note}" if outcome.note else ""
            print(f"    {label}: {outcome.value} ({outcome.verdict}{note})")
        print(f"    {row.claim.why}")


if __name__ == "__main__":
    main()

"""Published claims beside recorded runs: the claim, the recorded value, and the verdict.

`python -m book.scoreboard` prints it; the book's scoreboard page shows it. The claims are here, their rules in `rules`
and `paging`.

Introduced in chapter 6.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from book.scoreboard import paging, rules
from book.scoreboard.outcomes import DEPENDS, HARDWARE, UNMEASURED, Claim, Outcome, Records
from lib.bench.paths import measurements_dir
from lib.bench.records.files import Reference, Run, read_records, reference

# In the order in which they were published: (rule, label of the section, why).
FINDINGS = (
    (
        rules.largest_win,
        "sec-batch-sweep",
        "Both gains depend on how far a sweep goes, and on which of launching, bytes and arithmetic bounds a step.",
    ),
    (
        rules.grows_with_length,
        "sec-kv-throughput",
        "A step costs the floor of launching it until the arithmetic of the whole sequence outgrows that floor.",
    ),
    (
        paging.memory_crossing,
        "sec-published-memory",
        "The pool was fixed beforehand and is paid for in full by the first sequence.",
    ),
    (
        paging.gather_cost,
        "sec-gather-cost",
        "The copy moves every key and value three times, and so grows with batch and context.",
    ),
    (
        paging.flat_memory,
        "sec-gpu-sweep",
        "A pool is a constant, and a slot for each sequence is a straight line; where it ends is the memory of the GPU.",
    ),
    (
        rules.long_prompts,
        "sec-users",
        "A prompt is read once and in one step, while its answer takes a step for each token.",
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
        "A slot reserves the longest sequence, and a block table only what is there.",
    ),
    (
        rules.flat_throughput,
        "sec-users",
        "One request at a time is a batch of one, however many wait.",
    ),
)


@dataclass(frozen=True)
class Row:
    """A claim and its outcome on each recorded hardware, by label; None where it was not measured."""

    claim: Claim
    outcomes: Mapping[str, Outcome | None]

    @property
    def verdict(self) -> str:
        """The verdict that all hardware shares; where they differ, the claim depends on the hardware."""
        found = {outcome.verdict for outcome in self.outcomes.values() if outcome is not None}
        if not found:
            return UNMEASURED
        return found.pop() if len(found) == 1 else f"{DEPENDS} {HARDWARE}"


def claims(published: Reference) -> list[Claim]:
    """All published claims, in their order: the headline table, the findings, the failures.

    Raises ValueError where there are more or fewer findings or failures than rules.
    """
    head, sweep = published["headline"], published["batch_sweep"]
    tokens, memory = (
        published["throughput_by_generated_tokens"]["tokens"],
        published["paged_vs_contiguous_by_batch"],
    )
    profiler, setup = published["profiler"], published["load_setup"]
    table = (
        ("Throughput of the paged server over the sequential one", f"{head['system_throughput_gain_c64']}× at 64 users, "
         f"{setup['max_tokens']} tokens each", rules.load_gain, "sec-users",
         "The two servers differ in batching and in paging, and where all sequences fit, the gain is batching's."),
        ("Throughput of the largest batch over batch 1", f"{head['batch_gain_512']}× at batch {sweep['batch'][-1]}",
         rules.batch_gain, "sec-batch-sweep",
         "A step that waits for weights, or for its launch, takes more sequences for nothing until arithmetic bounds it."),
        ("Memory of the contiguous cache over the paged one", f"{head['paged_memory_reduction_bs256']}× at batch "
         f"{memory['batch'][-1]}", paging.memory_gain, "sec-published-memory",
         "It compares a reset that holds three halves of a cache with a pool whose size somebody chose."),
        ("Throughput with a KV cache over without", f"{head['kv_cache_gain_1000_tokens']}× at {tokens[-1]:,} tokens",
         rules.cache_gain, "sec-kv-throughput",
         "Where launching hides the repeated work, as in short answers on a large GPU, a cache has little to save."),
        ("Computing time saved by the KV cache", f"{head['cuda_time_reduction_pct']} % ({profiler['no_cache_cuda_ms']} to "
         f"{profiler['kv_cache_cuda_ms']} ms)", rules.time_saved, "sec-kv-profile",
         "What is saved is the work on all tokens but the last, and so depends on how many there are."),
        ("Tests", f"{head['tests']}", rules.tests, "ch-load-test",
         "A test that runs on many cases is one function here; the number says little, what they hold says more."),
    )  # fmt: skip
    found = [Claim("headline", *row) for row in table]
    found += [
        Claim("finding", text, "", *rule)
        for text, rule in zip(published["findings"], FINDINGS, strict=True)
    ]
    for row, rule in zip(published["failures"], FAILURES, strict=True):
        found.append(
            Claim(
                "failure",
                row["broke"][:1].upper() + row["broke"][1:],
                f"cause: {row['cause']}",
                *rule,
            )
        )
    return found


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
    rows = []
    for claim in claims(published):
        outcomes = {label: claim.judge(records, published) for label, records in machines.items()}
        if claim.judge is rules.tests:  # the same for all
            outcomes = {"this repository": claim.judge({}, published)}
        rows.append(Row(claim, outcomes))
    return rows


def main() -> None:
    """Prints the scoreboard as text."""
    for row in scoreboard():
        print(
            f"\n[{row.verdict}] {row.claim.text}"
            + (f" ({row.claim.published})" if row.claim.published else "")
        )
        for label, outcome in row.outcomes.items():
            print(
                f"    {label}: "
                + ("–" if outcome is None else f"{outcome.value} ({outcome.verdict})")
            )
        print(f"    {row.claim.why}")


if __name__ == "__main__":
    main()

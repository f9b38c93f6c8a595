"""`python -m lib.loadtest.compare_tools --guidellm PATH --aiperf PATH`: our load generator beside two others, in turns.

One server, one list of prompts, one closed loop: each tool sends the same requests to /v1/completions and says what it
saw. `--record DIR` keeps every round. BOOK_SCALE sets how much. PATH is a tool's program; neither is a dependency.

Introduced in chapter 6.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lib.bench.measure.timing import Rates, Timing
from lib.bench.notebook.tables import table
from lib.bench.records.record import Record
from lib.bench.scale import pick
from lib.loadtest.client import Target
from lib.loadtest.other_tools import MODEL, OURS, Reading, ToolError, aiperf, guidellm, read_ours
from lib.loadtest.requests import FIXED, LoadRequest, make_requests
from lib.loadtest.run import closed_loop
from lib.serving.server_process import ServerProcess

WORKLOAD = "long"
LIMIT = 0.10  # tools that differ by no more agree
TIMES = ("ttft", "tpot", "throughput")


def make_work(n: int, fewest: int, most: int) -> list[LoadRequest]:
    """n text prompts of FIXED[WORKLOAD] tokens; answers of `fewest` to `most`, seeded, so that users drift apart.

    With answers of one length they all end in one step and come back at once. A millisecond then decides which of them
    share the next step, and TTFT has two values to choose from.
    """
    rng = random.Random(0)
    prompts = make_requests(WORKLOAD, n, text=True)
    return [LoadRequest(request.prompt, rng.randint(fewest, most)) for request in prompts]


def compare(tools: Mapping[str, Callable[[], Reading]], rounds: int) -> dict[str, list[Reading]]:
    """Each tool's readings, a round each. A round before the first one does not count: the server compiles then.

    The order moves by one from round to round, so that none always comes after the same other.
    """
    readings: dict[str, list[Reading]] = {name: [] for name in tools}
    for turn in range(1 + rounds):
        names = list(tools)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            sys.stderr.write(f"round {turn} of {rounds}: {name}\n")
            reading = tools[name]()
            if turn:
                readings[name].append(reading)
    return readings


def rows(readings: Mapping[str, Sequence[Reading]]) -> list[dict[str, Any]]:
    """One a tool, ours first: medians over the rounds with all samples, and each one's ratio to ours."""
    result = []
    for tool, found in readings.items():
        row: dict[str, Any] = {
            "tool": tool,
            "version": found[0].version,
            "completed": sum(r.completed for r in found),
        }
        for name in TIMES:
            kind = Rates if name == "throughput" else Timing
            row[name] = kind(tuple(getattr(reading, name) for reading in found))
            row[f"{name}_over_ours"] = row[name].median / median(
                getattr(r, name) for r in readings[OURS]
            )
        result.append(row | {"lagged": sum(reading.lagged for reading in found)})
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when all agree within LIMIT, 1 when a tool failed or differs by more, 2 for bad arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.loadtest.compare_tools", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--guidellm", required=True, metavar="PATH", help="its program, such as venv/bin/guidellm"
    )
    parser.add_argument(
        "--aiperf", required=True, metavar="PATH", help="its program, such as venv/bin/aiperf"
    )
    parser.add_argument(
        "--rounds", type=int, default=pick(smoke=1, cpu=3, gpu=5), help="that count (%(default)s)"
    )
    parser.add_argument(
        "--record", type=Path, metavar="DIR", help="write DIR/<hardware>/load_tools.json"
    )
    args = parser.parse_args(arguments)
    programs = {name: shutil.which(getattr(args, name)) for name in ("guidellm", "aiperf")}
    for name, program in programs.items():
        if program is None:
            parser.error(f"--{name} {getattr(args, name)}: there is no such program")
    if args.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {args.rounds}")
    try:  # absolute: each runs in a folder of its own
        return _measure(
            {name: os.path.abspath(path) for name, path in programs.items()},
            args.rounds,
            args.record,
        )
    except (ToolError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _measure(programs: Mapping[str, str], rounds: int, folder: Path | None) -> int:
    users, n, answers = pick(smoke=(2, 4, (2, 6)), cpu=(8, 64, (16, 48)), gpu=(8, 256, (32, 96)))
    requests = make_work(n, *answers)
    record = Record("load_tools", model=MODEL, weights="real", dtype="float32", seed=0)
    prompt, length = FIXED[WORKLOAD], 160  # tokens; a sequence has at most `length`
    blocks = users * length // 16 + 1  # room for all of them, and the null block
    # One core is left to the tools. Where the server has all, its threads wait for the one that is held up, and a tool
    # that takes a core makes the server many times slower: that would compare what the tools use, not what they see.
    threads = str(max(1, (os.cpu_count() or 1) - 1))
    with ServerProcess(
        "--model",
        MODEL,
        "--dtype",
        "float32",
        "--max-num-seqs",
        str(users),
        "--max-model-len",
        str(length),
        "--num-blocks",
        str(blocks),
        "--no-enable-prefix-caching",  # the tools send the same prompts in every round
        environment=dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), threads
        ),
    ) as server:

        def theirs(run: Callable[..., Reading], name: str) -> Reading:
            with tempfile.TemporaryDirectory() as work:
                return run(programs[name], server.url, requests, users, Path(work)).check(
                    requests, prompt
                )

        def ours() -> Reading:
            return read_ours(closed_loop(Target(server.url, MODEL), requests, users)).check(
                requests, prompt
            )

        readings = compare(
            {
                OURS: ours,
                "guidellm": lambda: theirs(guidellm, "guidellm"),
                "aiperf": lambda: theirs(aiperf, "aiperf"),
            },
            rounds,
        )
    points = rows(readings)
    table(
        [
            [
                p["tool"],
                p["version"],
                f"{1e3 * p['ttft'].median:.1f}",
                f"{1e3 * p['tpot'].median:.2f}",
                f"{p['throughput'].median:.1f}",
                *(f"{p[f'{name}_over_ours']:.3f}" for name in TIMES),
            ]
            for p in points
        ],
        headers=[
            "tool",
            "version",
            "TTFT (ms)",
            "TPOT (ms)",
            "tok/s",
            "over ours: TTFT",
            "TPOT",
            "tok/s",
        ],
    )
    worst = max(abs(point[f"{name}_over_ours"] - 1) for point in points for name in TIMES)
    print(
        f"largest difference from ours: {worst:.1%}; within {LIMIT:.0%}: {'yes' if worst <= LIMIT else 'NO'}"
    )
    if points[0]["lagged"]:
        print(
            f"OUR GENERATOR LAGGED in {points[0]['lagged']} of {rounds} rounds: its times are partly its own"
        )
    record.add(
        "tools",
        unit="s, tokens/s",
        points=points,
        params={
            "users": users,
            "requests": n,
            "prompt_tokens": prompt,
            "fewest_output_tokens": answers[0],
            "most_output_tokens": answers[1],
            "rounds": rounds,
            "threads": int(threads),
            "limit": LIMIT,
            "statistic": "the median over a run's requests; of those, the median over the rounds",
        },
    )
    record.headline("largest difference of another load tool from ours", 100 * worst, "%")
    if folder is not None:
        print(f"wrote {record.save(folder)}")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    # A caller's time limit ends this process with SIGTERM: as an exception, it takes the running tool along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    raise SystemExit(main())

"""`python -m lib.loadtest.compare_tools --guidellm PATH --aiperf PATH`: our load generator beside two others, in turns.

One server, one list of prompts, one closed loop: each tool sends the same requests to /v1/completions and says what it
saw. `--record DIR` keeps every round. BOOK_SCALE sets how much. PATH is a tool's program; neither is a dependency.

Introduced in chapter 6.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lib.bench.notebook.tables import table
from lib.bench.records.record import Record
from lib.bench.scale import pick
from lib.loadtest.client import Target
from lib.loadtest.other_tools import MODEL, aiperf, guidellm
from lib.loadtest.readings import OURS, Reading, ToolError, read_ours
from lib.loadtest.requests import FIXED
from lib.loadtest.rounds import TIMES, WORKLOAD, compare, make_work, rows
from lib.loadtest.run import closed_loop
from lib.serving.server_process import ServerProcess

LIMIT = 0.10  # tools that differ by no more agree


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

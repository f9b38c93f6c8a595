"""`python -m lib.bench.records`: runs the chapters as plain scripts, writes their records, keeps their figures.

Needs no Jupyter and no network. Each chapter has its own process, so that one which fails, hangs or fills the memory
costs its own record and no other. Running it again goes on where it ended.

Introduced in chapter 1.
"""

import argparse
import re
import signal
import sys
import tarfile
import time
from pathlib import Path

from tabulate import tabulate

from lib.bench.measure.machine import default_device, hardware
from lib.bench.paths import measurements_dir, repository
from lib.bench.records.chapter_process import Result, run_chapter
from lib.bench.records.preflight import describe_in_a_process, why_busy
from lib.bench.scale import SCALES, scale

# Where time is short, the chapters on whose numbers the book depends come first. Those not named here follow: on a GPU
# machine too they measure the CPU (11, 13, 14).
ORDER = ("03", "02", "04", "07", "08", "10", "09", "12", "01", "05", "06")
FAILED, CUT_OFF = 1, 3  # exit codes; argparse itself uses 2
CHAPTER_BUDGET = (
    480.0  # seconds that one chapter may take: one that hangs must not cost the others their time
)


def parse_budget(text: str) -> float:
    """Seconds of "90s", "8m", "1h" or "480". Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not found or float(found[1]) <= 0:
        raise ValueError(
            f"budget={text!r}: must be a positive number of seconds, or one with s, m or h, such as 8m"
        )
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def find_chapters(folder: Path, only: str | None) -> list[Path]:
    """The scripts NN_name.py, most informative first; with `only` ("02,04"), those, in the order given."""
    scripts = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.py"))}
    if only is None:
        rank = {number: i for i, number in enumerate(ORDER)}
        return sorted(
            scripts.values(), key=lambda path: (rank.get(path.stem[:2], len(ORDER)), path.stem)
        )
    chosen = []
    for name in (part.strip() for part in only.split(",") if part.strip()):
        match = [
            path for stem, path in scripts.items() if stem == name or stem[:2] == name.zfill(2)
        ]
        if not match:
            raise ValueError(
                f"only={name!r}: no such chapter in {folder}; there are {', '.join(scripts) or 'none'}"
            )
        chosen += match
    return chosen


def write_tar(folder: Path, path: Path) -> None:
    """Packs records and figures of one hardware: whole or not at all, so that a copy taken meanwhile can be read."""
    if not folder.is_dir():
        return  # no chapter has a record yet
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with tarfile.open(partial, "w:gz") as archive:
        archive.add(folder, folder.name)
    partial.replace(path)


def summary(results: list[Result]) -> str:
    """The table at the end."""
    rows = [
        (r.chapter, f"{r.seconds:.0f}" if r.seconds else "-", r.status, r.headline) for r in results
    ]
    return tabulate(
        rows, ("chapter", "seconds", "status", "headline"), tablefmt="simple", disable_numparse=True
    )


def main(argv: list[str] | None = None) -> int:
    """The command. Returns 0 when every chapter has its record, 1 when one failed, 3 when the budget ended first."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.bench.records", description="Record the chapters' measurements."
    )
    parser.add_argument("--scale", choices=SCALES, default=None, help="default: by the device")
    parser.add_argument(
        "--out", type=Path, help="default: book/measurements; out/measurements at smoke scale"
    )
    parser.add_argument("--only", help="chapters, such as 02,04; they run in this order")
    parser.add_argument("--budget", help="stop after this time, such as 8m; run again to go on")
    parser.add_argument(
        "--chapter-budget",
        default=f"{CHAPTER_BUDGET:.0f}s",
        help="end a chapter that takes longer than this, and go on with the next (8m)",
    )
    parser.add_argument(
        "--tar", type=Path, help="pack records and figures into this .tar.gz after each chapter"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="run chapters again whose record is up to date, and start on a busy machine",
    )
    parser.add_argument(
        "--chapters", type=Path, default=repository() / "chapters", help="folder of the scripts"
    )
    args = parser.parse_args(argv)
    at_scale = args.scale or scale()
    smoke_out = repository() / "out" / "measurements"
    out = args.out or (smoke_out if at_scale == "smoke" else measurements_dir())
    try:
        scripts = find_chapters(args.chapters, args.only)
        budget = parse_budget(args.budget) if args.budget else float("inf")
        chapter_budget = parse_budget(args.chapter_budget)
    except ValueError as error:
        parser.error(str(error))
    if at_scale == "gpu" and default_device().type != "cuda":
        parser.error("scale gpu needs a CUDA device, and PyTorch sees none")
    if not scripts:
        parser.error(f"no chapters (NN_name.py) in {args.chapters}")
    deadline = time.monotonic() + budget
    busy = why_busy()
    if busy and not args.force:
        parser.error(f"{busy} Times measured now are not reliable; --force records them anyway")
    if busy:
        print(f"warning    {busy} The records will say so.", flush=True)
    print(
        describe_in_a_process(),
        f"recording  {len(scripts)} chapters at {at_scale} scale",
        sep="\n",
        flush=True,
    )
    slug, results = hardware(default_device())["slug"], []
    for i, script in enumerate(scripts, 1):
        print(f"[{i}/{len(scripts)}] {script.stem} ...", flush=True)
        seconds = min(deadline - time.monotonic(), chapter_budget)
        result = run_chapter(script, out, slug, at_scale, seconds, args.force)
        if args.tar:
            write_tar(out / slug, args.tar)
        print(
            "      "
            + " ".join(filter(None, [result.status, f"{result.seconds:.0f} s", result.detail])),
            flush=True,
        )
        results.append(result)
    print("\n" + summary(results), flush=True)
    disturbed = [result.chapter for result in results if result.disturbed]
    if disturbed:
        print(
            f"\nOther programs disturbed {', '.join(disturbed)}: the times are not reliable, and the records say so. "
            f"On a quiet machine: --force --only {','.join(name[:2] for name in disturbed)}",
            flush=True,
        )
    states = {result.status for result in results}
    if "failed" in states:
        return FAILED
    return CUT_OFF if states & {"out of time", "not run"} else 0


if __name__ == "__main__":
    # A caller's time limit ends this process with SIGTERM: as an exception, it takes the running chapter along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())

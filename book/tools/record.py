"""Run every chapter as a plain script and keep its measurements: book/measurements/<hardware>/<chapter>.json.

Needs no Jupyter.  Name chapters to run only those: `make record ARGS="01 04"`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from book.tools.machine import describe_machine  # noqa: E402

RECORDS = ROOT / "book" / "measurements"


def main() -> int:
    wanted = sys.argv[1:]
    chapters = [p for p in sorted((ROOT / "chapters").glob("[0-9]*.py"))
                if not wanted or any(p.name.startswith(name) for name in wanted)]
    if not chapters:
        print(f"no chapter starts with {' or '.join(wanted)}" if wanted else "no chapters", file=sys.stderr)
        return 2
    print("Recording on", "; ".join(f"{name.lower()} {value}" for name, value in describe_machine().items()), flush=True)
    failed, start = [], time.time()
    for number, chapter in enumerate(chapters, 1):
        print(f"== [{number}/{len(chapters)}] {chapter.name}", flush=True)
        began = time.monotonic()
        # Without a display, and with the repository importable even where it is not installed.
        environment = {"MPLBACKEND": "Agg", "TOKENIZERS_PARALLELISM": "false", **os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, str(chapter), "--record", str(RECORDS)]
        if subprocess.run(command, cwd=ROOT, env=environment).returncode != 0:
            failed.append(chapter.name)
        print(f"   {time.monotonic() - began:.0f} s", flush=True)
    written = [p for p in sorted(RECORDS.rglob("*.json")) if p.stat().st_mtime >= start]
    print("\nWritten:", *(p.relative_to(ROOT) for p in written) if written else ["nothing"], sep="\n  ")
    if failed:
        print(f"FAILED: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

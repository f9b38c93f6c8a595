"""The load generator starts, runs and writes its JSON without PyTorch, matplotlib or transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.load_fake_server import FakeServer, Plan

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "matplotlib", "transformers", "numba")
# These drive this book's own server, or draw.
MAY_BE_HEAVY = {"compare_tools", "other_tools", "rounds", "figure"}
MODULES = sorted(
    path.stem for path in (ROOT / "lib/loadtest").glob("*.py") if path.stem not in MAY_BE_HEAVY
)
REPORT = f"; print([name for name in {HEAVY} if name in sys.modules])"


def python(code: str) -> str:
    """What `code` prints, in a process of its own. Its last line lists the heavy modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_light():
    assert {"cli", "run", "session", "client", "stats", "report", "gauges"} <= set(MODULES)
    names = ", ".join(f"lib.loadtest.{name}" for name in MODULES if not name.startswith("__"))
    assert python(f"import sys, {names}").strip() == "[]"


def test_a_run_is_light_and_so_is_its_file(tmp_path):
    arguments = ["--concurrency", "2", "--num-requests", "4", "--max-tokens", "3", "--goodput", "ttft:5000"]  # fmt: skip
    metrics = "vllm:num_requests_running 1\n"
    with FakeServer(lambda i, body: Plan(ttft=0.3, gap=0.1, tokens=3), metrics=metrics) as server:
        arguments += ["--url", server.url, "--out", str(tmp_path / "run.json")]
        said = python(f"import sys\nfrom lib.loadtest.cli import main\nstatus = main({arguments})\nprint(status)")  # fmt: skip
    assert said.splitlines()[-2:] == ["0", "[]"]
    data = json.loads((tmp_path / "run.json").read_text())
    assert data["runs"][0]["gauges"][0]["running"] == 1
    assert data["fingerprint"]["versions"]["torch"] and data["fingerprint"]["hardware"]["slug"]


def test_a_figure_and_a_record_are_imported_only_when_asked(tmp_path):
    with FakeServer(lambda i, body: Plan(ttft=0.01, gap=0.01, tokens=3)) as server:
        arguments = ["--url", server.url, "--concurrency", "1", "--num-requests", "2", "--figure", str(tmp_path / "x.svg")]  # fmt: skip
        said = python(f"import sys\nfrom lib.loadtest.cli import main\nmain({arguments})")
    assert "'matplotlib'" in said.splitlines()[-1] and "<svg" in (tmp_path / "x.svg").read_text()


@pytest.mark.parametrize("module", ["lib.bench.workloads", "lib.bench.measure.nvml", "lib.bench.measure.host"])  # fmt: skip
def test_what_the_load_generator_takes_from_bench_is_light(module):
    assert python(f"import sys, {module}").strip() == "[]"


def test_help_is_printed():
    done = subprocess.run(
        [sys.executable, "-m", "lib.loadtest", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and "--concurrency" in done.stdout and done.stderr == ""

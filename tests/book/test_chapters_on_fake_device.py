"""Every chapter's CUDA branches, at smoke scale on a fake CUDA device: see `tests/book/on_fake_device.py`.

`pytest -m fake_device` runs all of them, which takes a quarter of an hour; `make test` runs QUICK.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "chapters").glob("[0-9]*.py"))
QUICK = (
    "09_prefix_caching", "10_speculation", "11_quantisation", "12_structured_output", "13_many_machines"
)  # fmt: skip
T4 = ("--gib", "15", "--capability", "75")


def run_on_fake_device(script: Path, folder: Path, *options: str) -> str:
    """The chapter's output. It must end well, and say why, if it leaves a part of transformers out."""
    environment = {
        **os.environ,
        "BOOK_SCALE": "smoke",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "tests.book.on_fake_device", str(script), *options]
    done = subprocess.run(
        [*command, "--record", str(folder)], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    records = list(folder.glob(f"*/{script.stem}.json"))
    assert len(records) == 1, "the chapter wrote no record"
    return done.stdout


def by_name(*names: str) -> list:
    return [pytest.param(s, id=s.stem) for s in SCRIPTS if s.stem in names]


@pytest.mark.slow
@pytest.mark.parametrize("script", by_name(*QUICK))
def test_a_chapter_on_a_fake_device(script, tmp_path):
    run_on_fake_device(script, tmp_path)


@pytest.mark.fake_device
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("script", SCRIPTS, ids=[s.stem for s in SCRIPTS])
def test_every_chapter_on_a_fake_device(script, tmp_path):
    run_on_fake_device(script, tmp_path)


@pytest.mark.fake_device
@pytest.mark.timeout(1600)
def test_chapter_3_goes_on_where_transformers_does_not_run(tmp_path):
    (script,) = (s for s in SCRIPTS if s.stem == "03_batching")
    out = run_on_fake_device(script, tmp_path, "--without-peers")
    assert "transformers generate, batches of 8 does not run here, and is left out" in out


@pytest.mark.fake_device
@pytest.mark.timeout(1600)
def test_chapter_7_on_a_t4_takes_its_half_precision(tmp_path):
    (script,) = (s for s in SCRIPTS if s.stem == "07_fused_attention")
    run_on_fake_device(script, tmp_path, *T4)
    (path,) = tmp_path.glob("*/07_fused_attention.json")
    record = json.loads(path.read_text())
    assert record["measurements"]["attention_by_batch"]["params"]["half"] == "float16"
    assert record["fingerprint"]["gpu"]["capability"] == "7.5"

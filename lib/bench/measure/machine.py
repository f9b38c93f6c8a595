"""What a measurement was made on: hardware, versions, commit. A number without this is not a result.

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

import torch

from lib.bench.measure import nvml
from lib.bench.paths import repository

PACKAGES = ("torch", "triton", "numba", "numpy", "transformers", "tokenizers")


def default_device() -> torch.device:
    """The device that `auto` means: CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fingerprint(device: torch.device | str | None = None) -> dict[str, Any]:
    """Facts of this machine for a record. Works without git, NVML or psutil; holds no host name and no path.

    Keys: hardware {kind, name, slug, label}, gpu (CUDA only), cpu, os, versions, threads, float32_matmul, git {commit,
    dirty}, date (UTC). float32_matmul "highest" means that float32 products are exact: TF32 is off.
    """
    device = default_device() if device is None else torch.device(device)
    result = {
        "hardware": hardware(device),
        "cpu": _cpu(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "threads": {"torch": torch.get_num_threads(), "interop": torch.get_num_interop_threads()},
        "float32_matmul": torch.get_float32_matmul_precision(),
        "git": _git(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if device.type == "cuda":
        result["gpu"] = _gpu(device)
    return result


def hardware(device: torch.device | str | None = None) -> dict[str, str]:
    """Kind ("cpu" or "cuda"), name, label for figures, and slug (the folder of this hardware's records)."""
    device = default_device() if device is None else torch.device(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        label = re.sub(r"^Tesla ", "NVIDIA ", name)
    else:
        name, cores = _cpu_name(), _cores()
        label = f"{name}, {cores} core{'s' if cores > 1 else ''}"
    return {"kind": device.type, "name": name, "label": label, "slug": slug(label)}


def slug(label: str) -> str:
    """A folder name: "AMD EPYC, 2 cores" becomes "amd-epyc-2core", "NVIDIA H200" becomes "nvidia-h200"."""
    text = re.sub(r", (\d+) cores?$", r" \1core", label).lower()
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-") or "unknown"


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda_runtime": torch.version.cuda,
        "nvml": nvml.facts(device),
    }


def _cpu() -> dict[str, Any]:
    return {
        "name": _cpu_name(),
        "cores": _cores(),
        "memory_bytes": _memory(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available(),
        "mkl": torch.backends.mkl.is_available(),
    }


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


def allowed_cores() -> int:
    """Logical cores that this process may use: a container often has fewer than the machine."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


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
    if package == "torch":
        return torch.__version__
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

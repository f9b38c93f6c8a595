"""What a measurement was made on: hardware, versions, commit. A number without this is not a result.

Introduced in chapter 1.
"""

from typing import Any

import torch

from lib.bench.measure import nvml
from lib.bench.measure.host import cpu, cpu_hardware, describe, system


def default_device() -> torch.device:
    """The device that `auto` means: CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fingerprint(device: torch.device | str | None = None) -> dict[str, Any]:
    """Facts of this machine for a record. Works without git, NVML or psutil; holds no host name and no path.

    Keys: hardware {kind, name, slug, label}, gpu (CUDA only), cpu, os, versions, threads, float32_matmul, git {commit,
    dirty}, date (UTC). float32_matmul "highest" means that float32 products are exact: TF32 is off.
    """
    device = default_device() if device is None else torch.device(device)
    facts = system()
    # The version that runs: an installed distribution may be another than the one imported.
    facts["versions"]["torch"] = torch.__version__
    result = {
        "hardware": hardware(device),
        "cpu": {
            **cpu(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "onednn": torch.backends.mkldnn.is_available(),
            "mkl": torch.backends.mkl.is_available(),
        },
        **facts,
        "threads": {"torch": torch.get_num_threads(), "interop": torch.get_num_interop_threads()},
        "float32_matmul": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        result["gpu"] = _gpu(device)
    return result


def hardware(device: torch.device | str | None = None) -> dict[str, str]:
    """Kind ("cpu" or "cuda"), name, label for figures, and slug (the folder of this hardware's records)."""
    device = default_device() if device is None else torch.device(device)
    if device.type == "cuda":
        return describe("cuda", torch.cuda.get_device_name(device))
    return cpu_hardware()


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    with nvml.handle(device) as found:
        facts = nvml.facts(found)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda_runtime": torch.version.cuda,
        "nvml": facts,
    }

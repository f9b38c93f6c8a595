"""GPU facts that only the driver knows, through NVML (the library behind nvidia-smi).

Introduced in chapter 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def handle(device: torch.device | str) -> Iterator[tuple[Any, Any] | None]:
    """Yields `(pynvml, handle)` of a CUDA device, or None where there is no such device, driver or package.

    PyTorch and NVML number GPUs differently once CUDA_VISIBLE_DEVICES is set, so the device is found by its UUID.
    """
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        yield None
        return
    try:
        import pynvml

        pynvml.nvmlInit()
    except (
        Exception
    ):  # no package, no driver library, a container without access: all mean "no facts"
        yield None
        return
    try:
        yield pynvml, _find(pynvml, device)
    finally:
        pynvml.nvmlShutdown()


def _find(pynvml: Any, device: torch.device) -> Any:
    index = torch.cuda.current_device() if device.index is None else device.index
    uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))
    for prefix in ("GPU-", "MIG-"):
        try:
            return pynvml.nvmlDeviceGetHandleByUUID(prefix + uuid)
        except Exception:  # an unknown UUID, or a form that this driver does not take
            continue
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def ask(function: Any, *args: Any) -> Any:
    """The answer of one NVML query, or None where this GPU or driver does not support it."""
    try:
        answer = function(*args)
    except Exception:
        return None
    return answer.decode() if isinstance(answer, bytes) else answer


def facts(device: torch.device | str) -> dict[str, Any]:
    """Name, memory (bytes), driver, CUDA version, clocks (MHz), power limit (W) and MIG mode; {} without NVML."""
    with handle(device) as found:
        if found is None:
            return {}
        nvml, gpu = found
        memory, cuda = (
            ask(nvml.nvmlDeviceGetMemoryInfo, gpu),
            ask(nvml.nvmlSystemGetCudaDriverVersion),
        )
        power, mig = (
            ask(nvml.nvmlDeviceGetPowerManagementLimit, gpu),
            ask(nvml.nvmlDeviceGetMigMode, gpu),
        )
        return {
            "name": ask(nvml.nvmlDeviceGetName, gpu),
            "memory_bytes": memory.total if memory else None,
            "driver": ask(nvml.nvmlSystemGetDriverVersion),
            "cuda_driver": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
            "sm_clock_max_mhz": ask(nvml.nvmlDeviceGetMaxClockInfo, gpu, nvml.NVML_CLOCK_SM),
            "memory_clock_max_mhz": ask(nvml.nvmlDeviceGetMaxClockInfo, gpu, nvml.NVML_CLOCK_MEM),
            "power_limit_w": power / 1000 if power else None,
            "mig": bool(mig[0]) if mig else False,
        }

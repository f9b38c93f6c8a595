"""GPU facts that only the driver reports, through NVML (the library behind nvidia-smi).

Introduced in chapter 1.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the load generator uses this module and starts without PyTorch
    import torch

Found = tuple[Any, Any]  # pynvml, and the handle of one GPU


@contextmanager
def library() -> Iterator[Any | None]:
    """Yields pynvml, initialised; None without the package, without a driver, or in a container without access."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # each of these raises an error of its own
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


@contextmanager
def handle(device: "torch.device | str") -> Iterator[Found | None]:
    """Yields `(pynvml, handle)` of PyTorch's device, or None where there is no such device, driver or package.

    PyTorch and NVML number GPUs differently once CUDA_VISIBLE_DEVICES is set, so the device is found by its UUID.
    """
    import torch

    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        yield None
        return
    with library() as pynvml:
        yield pynvml and (pynvml, _find(pynvml, device))


@contextmanager
def visible_gpu() -> Iterator[Found | None]:
    """Yields `(pynvml, handle)` of the first GPU that a CUDA program started here would see; None without one.

    Needs no PyTorch. See `visible_gpus`.
    """
    with library() as pynvml:
        gpus = visible_gpus(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES")) if pynvml else []
        yield (pynvml, gpus[0]) if gpus else None


def visible_gpus(pynvml: Any, visible: str | None) -> list[Any]:
    """NVML handles of the GPUs that CUDA_VISIBLE_DEVICES=`visible` leaves, in that order; all of them for None.

    An entry is an index, the beginning of a GPU's UUID, or a MIG slice's whole UUID. As in CUDA, the first entry that
    names no GPU ends the list. An index counts in PCI order: between GPUs of different models, CUDA does so only with
    CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    if visible is None:
        return gpus
    result = []
    for entry in map(str.strip, visible.split(",")):
        if entry.startswith("MIG-"):
            found = ask(pynvml.nvmlDeviceGetHandleByUUID, entry)
        elif entry.startswith("GPU-"):
            uuids = [str(ask(pynvml.nvmlDeviceGetUUID, gpu)) for gpu in gpus]
            found = next((gpu for gpu, uuid in zip(gpus, uuids) if uuid.startswith(entry)), None)
        else:
            found = gpus[int(entry)] if entry.isdecimal() and int(entry) < len(gpus) else None
        if found is None:
            break
        result.append(found)
    return result


def _find(pynvml: Any, device: "torch.device") -> Any:
    import torch

    index = torch.cuda.current_device() if device.index is None else device.index
    uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))
    for prefix in ("GPU-", "MIG-"):
        found = ask(pynvml.nvmlDeviceGetHandleByUUID, prefix + uuid)
        if found is not None:  # else an unknown UUID, or a form that this driver does not take
            return found
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def ask(function: Any, *args: Any) -> Any:
    """The answer of one NVML query, or None where this GPU or driver does not support it."""
    try:
        answer = function(*args)
    except Exception:
        return None
    return answer.decode() if isinstance(answer, bytes) else answer


def facts(found: Found | None) -> dict[str, Any]:
    """Name, memory (bytes), driver, CUDA version, clocks (MHz), power limit (W) and MIG mode; {} without NVML."""
    if found is None:
        return {}
    nvml, gpu = found
    memory = ask(nvml.nvmlDeviceGetMemoryInfo, gpu)
    cuda = ask(nvml.nvmlSystemGetCudaDriverVersion)
    power = ask(nvml.nvmlDeviceGetPowerManagementLimit, gpu)
    mig = ask(nvml.nvmlDeviceGetMigMode, gpu)
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

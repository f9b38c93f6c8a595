"""Which GPU a process would use, found without PyTorch, on a driver that a test plays."""

import sys
from types import SimpleNamespace

import pytest

from lib.bench.measure import nvml

UUIDS = ["GPU-aaaa1111", "GPU-aaab2222", "GPU-cccc3333"]
SLICE = "MIG-dddd4444"


class Driver:
    """As much of pynvml as is asked for: three GPUs; a handle is the GPU's UUID."""

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.open = broken, 0

    def nvmlInit(self) -> None:
        if self.broken:
            raise RuntimeError("no driver")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return UUIDS[index]

    def nvmlDeviceGetUUID(self, handle: str) -> bytes:
        return handle.encode()  # older versions of pynvml give bytes

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in (*UUIDS, SLICE):
            raise ValueError("not found")
        return uuid


@pytest.mark.parametrize(
    "visible, indices",
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("0,7,1", [0]),  # CUDA stops at the first that is none
        ("GPU-cccc3333", [2]),
        ("GPU-aaab,GPU-aaaa", [1, 0]),  # the beginning of a UUID is enough
        ("GPU-zzzz,0", []),
    ],
)
def test_cuda_visible_devices(visible, indices):
    assert nvml.visible_gpus(Driver(), visible) == [UUIDS[i] for i in indices]


def test_a_mig_slice():
    assert nvml.visible_gpus(Driver(), f"{SLICE},MIG-none,0") == [SLICE]


def test_the_first_visible_gpu_and_a_driver_closed_afterwards(monkeypatch):
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    with pytest.raises(KeyError), nvml.visible_gpu() as found:
        assert found == (driver, UUIDS[1]) and driver.open == 1
        raise KeyError
    assert driver.open == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with nvml.visible_gpu() as found:
        assert found is None


@pytest.mark.parametrize("module", [None, Driver(broken=True), SimpleNamespace()])
def test_without_package_or_driver_there_is_no_gpu(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    with nvml.visible_gpu() as found:
        assert found is None and nvml.facts(found) == {}

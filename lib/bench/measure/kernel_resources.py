"""What a Triton kernel takes of a multiprocessor, read from the machine code that Triton compiles for a GPU that is not there.

Triton's compiler and NVIDIA's assembler need the name of an architecture, not a device. A driver without a device lets
the real launch code run: each launch compiles its kernel, as it would on the GPU, and then starts nothing.
Introduced in chapter 7.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch

REGISTERS_PER_SM = 65536  # of 32 bits; the same from sm_75 to sm_100


@dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor (SM) of an architecture holds. CUDA C++ Programming Guide, table of compute capabilities."""

    gpu: str  # a GPU of this architecture
    shared_bytes_per_program: int  # the most that one program can have
    shared_bytes: int
    threads: int
    programs: int


MULTIPROCESSORS = {
    75: Multiprocessor("T4", 64 << 10, 64 << 10, 1024, 16),
    80: Multiprocessor("A100", 163 << 10, 164 << 10, 2048, 32),
    86: Multiprocessor("A10", 99 << 10, 100 << 10, 1536, 16),
    89: Multiprocessor("L4", 99 << 10, 100 << 10, 1536, 24),
    90: Multiprocessor("H100", 227 << 10, 228 << 10, 2048, 32),
    100: Multiprocessor("B200", 227 << 10, 228 << 10, 2048, 32),
}


@dataclass(frozen=True)
class KernelResources:
    """A compiled kernel's needs. `launches` counts how often the launch code started it."""

    kernel: str
    capability: int  # 90 is sm_90
    num_warps: int
    shared_bytes: int
    registers: int  # per thread
    local_bytes: int  # per thread: memory for values that found no register ("spills")
    launches: int = 0

    @property
    def programs_per_sm(self) -> int:
        """Programs that one multiprocessor holds at the same time; 0 where not even one fits."""
        sm = MULTIPROCESSORS[self.capability]
        if self.shared_bytes > sm.shared_bytes_per_program:
            return 0
        return min(self.limits.values())

    @property
    def limited_by(self) -> str:
        """What runs out first: "registers", "shared memory", "threads" or "programs"."""
        return min(self.limits, key=self.limits.__getitem__)

    @property
    def limits(self) -> dict[str, int]:
        """Programs that each resource of a multiprocessor suffices for."""
        sm = MULTIPROCESSORS[self.capability]
        # Registers are handed out in units of 8 per thread, 256 per warp; from sm_80 on, the system takes 1 KiB of shared
        # memory for each program.
        per_program = -(-self.registers // 8) * 8 * 32 * self.num_warps
        shared = self.shared_bytes + (1024 if self.capability >= 80 else 0)
        return {
            "registers": REGISTERS_PER_SM // per_program,
            "shared memory": sm.shared_bytes // shared if shared else sm.programs,
            "threads": sm.threads // (32 * self.num_warps),
            "programs": sm.programs,
        }


def why_not_compiled() -> str | None:
    """What is missing for `compiled_launches`, or None."""
    try:
        import triton
        from triton import knobs  # noqa: F401
    except ImportError as error:
        return f"needs triton: {error}"
    if triton.knobs.runtime.interpret:
        return (
            "Triton interprets its kernels in this process (TRITON_INTERPRET): nothing is compiled"
        )
    missing = [name for name in ("ptxas", "cuobjdump") if not _tool(name).exists()]
    return f"needs {' and '.join(missing)}, which this triton does not bring" if missing else None


def compiled_launches(launch: Callable[[], object], capability: int) -> list[KernelResources]:
    """Call `launch`, which starts Triton kernels with CPU tensors, as on a GPU of `capability`.

    Returns one entry per compiled kernel, in the order of first launches: the same kernel compiled for other constants
    or types is another entry. Nothing is computed. No other thread may run Triton kernels meanwhile.
    """
    from triton.runtime.driver import driver

    without_device = _DriverWithoutDevice(capability)
    before = driver._active
    driver.set_active(without_device)
    try:
        launch()
    finally:
        driver.set_active(before)
    return [
        replace(kernel, launches=n)
        for kernel, n in zip(without_device.kernels, without_device.launches)
    ]


class _DriverWithoutDevice:
    """The part of a Triton driver that a launch uses.

    Each has a device number of its own: Triton keeps what it has compiled per device number.
    """

    _numbers = count(1000)

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)
        self.number = next(self._numbers)
        self.kernels: list[KernelResources] = []
        self.launches: list[int] = []
        self.utils = self  # Triton looks for the functions below in an attribute of this name

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def launcher_cls(self, source, metadata) -> Callable[..., None]:
        self._num_warps = metadata.num_warps  # of the kernel that is loaded next
        return self._start

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 1 << 30}  # too much is reported, not refused

    def load_binary(self, name: str, cubin: bytes, shared: int, device: int):
        """(module, function, registers, spills, most threads). The function is the kernel's number."""
        registers, local = _usage(cubin)
        self.kernels.append(
            KernelResources(name, self.target.arch, self._num_warps, shared, registers, local)
        )
        self.launches.append(0)
        return object(), len(self.kernels) - 1, registers, local, 1024

    def unload_module(self, module: object) -> None:
        pass

    def _start(self, x, y, z, stream, function, *rest) -> None:
        self.launches[function] += 1


def _tool(name: str) -> Path:
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of local memory) per thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_tool("cuobjdump")), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = map(
        int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text).groups()
    )
    return registers, stack + local

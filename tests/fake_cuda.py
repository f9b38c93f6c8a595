"""A CUDA device for tests on any machine: its tensors report device cuda:0 and compute on the CPU.

`fake_cuda()` counts what a step costs (kernels, host-to-device copies, waits of the host) and raises
RuntimeError for what a real device refuses: an operation on tensors of both kinds, a copy or a wait while a
graph is captured. Copies to pinned memory arrive only when an event or the device is waited for: until then the
memory holds garbage. Recorded graphs run the recorded operations again over the same memory.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda:0")
_ROOT = f"{Path(__file__).parents[1]}/"
_BOOK = (f"{_ROOT}lib/", f"{_ROOT}chapters/")
_COPIES = ("aten::copy_", "aten::_to_copy", "aten::to")
_INDEXING = ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")
_WAITS = (
    "aten::nonzero",
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
)
_MEMORY = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty")


class CudaTensor(torch.Tensor):
    """Reports cuda:0; `held` is the CPU tensor that holds its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> CudaTensor:
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        out.held = inner
        return out

    def __repr__(self) -> str:
        return f"CudaTensor({self.held})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        # PyTorch's own indexing, as contiguous() below, asks for a device guard that a CPU build has not.
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            return _DEVICES[-1].indexing(func, args)
        if func is torch.Tensor.tolist:
            _DEVICES[-1].waited("read: ")
            return args[0].held.tolist()
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.copy_:
                return _copy(*args, **(kwargs or {}))
            if func is torch.Tensor.contiguous and len(args) == 1 and not kwargs:
                whole = args[0].is_contiguous()
                return args[0] if whole else args[0].clone(memory_format=torch.contiguous_format)
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _DEVICES[-1].__torch_dispatch__(func, types, args, kwargs or {})


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return torch.ops.aten.copy_.default(target, source, non_blocking)


_DEVICES: list[FakeCuda] = []  # the active fake device: tensors find it here


class FakeCuda(TorchDispatchMode):
    """The device, and its counts since `clear`.

    kernels: operations and Triton launches, by name. variants: what Triton would compile separately. h2d: copies to the device, syncs: waits of the host
    (reads, copies of pageable memory, synchronize), each by the line of lib/ that causes it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pinned: dict[int, Tensor] = {}  # address: tensor, kept so that none is used again
        self._arriving: list[Callable[[], object]] = []  # copies to pinned memory under way
        self.recording: list[tuple[Any, ...]] | None = None
        self.streams = 0
        self.zeroed = (
            False  # whether new memory is 0: what a kernel that is only counted leaves behind
        )
        self.clear()

    def clear(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.h2d: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self.triton: Counter[str] = Counter()
        self.variants: set[tuple[Any, ...]] = set()
        self.replays = 0

    # What the host does.

    def copied_in(self, pinned: bool, what: str = "") -> None:
        self.h2d[f"{what}{_line()}"] += 1
        self._not_in_a_capture("a copy to the device")
        if not pinned:
            self.waited("pageable memory: ")

    def waited(self, what: str) -> None:
        self.syncs[f"{what}{_line()}"] += 1
        self._not_in_a_capture("a wait")
        self.arrive(len(self._arriving))

    def arrive(self, number: int) -> None:
        """The first `number` copies under way reach the host."""
        arrived, self._arriving = self._arriving[:number], self._arriving[number:]
        with torch.inference_mode():
            for finish in arrived:
                finish()

    def _not_in_a_capture(self, what: str) -> None:
        if self.recording is not None:
            raise RuntimeError(f"{what} while a graph is captured: {_line()}")

    def launch(self, kernel: Any, args: tuple[Any, ...], constants: dict[str, Any]) -> None:
        """A Triton kernel: counted, not run. What it would write stays as it was."""
        name = kernel.fn.__name__
        self.triton[name] += 1
        kinds = (_kind(x, p.do_not_specialize) for x, p in zip(args, kernel.params))
        self.variants.add((name, *kinds, *sorted(constants.items())))
        if any(isinstance(x, Tensor) and not isinstance(x, CudaTensor) for x in args):
            raise RuntimeError(f"triton kernel {name} got a CPU tensor: {_line()}")

    def compute(self, function: Callable[..., Tensor], *args: Any) -> CudaTensor:
        """What a kernel writes, by a function of CPU tensors; recorded as the kernel would be."""
        inner = tuple(x.held if isinstance(x, CudaTensor) else x for x in args)
        with torch._C._DisableTorchDispatch():
            out = function(*inner)
        self._record(function, inner, {}, out)
        return CudaTensor(out)

    # Operations.

    def indexing(self, func: Any, args: tuple[Any, ...]) -> Any:
        target, key, *value = args
        keys = key if isinstance(key, tuple) else (key,)
        for k in keys:
            if isinstance(k, list) or (isinstance(k, Tensor) and not isinstance(k, CudaTensor)):
                self.copied_in(False, "indices: ")
            if isinstance(k, Tensor) and k.dtype == torch.bool:
                self.waited("a mask as index: ")
        if value and isinstance(value[0], Tensor) and not isinstance(value[0], CudaTensor):
            self.copied_in(False, "values: ")
        if any(isinstance(k, Tensor | list) for k in keys) or value:
            self.kernels["index"] += 1
        key, value = tree_map_only(CudaTensor, lambda t: t.held, (key, value))
        with torch._C._DisableTorchDispatch():
            out = func(target.held, key, *value)
        self._record(func, (target.held, key, *value), {}, out)
        return CudaTensor(out) if isinstance(out, Tensor) else None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        on_device = [t for t in tensors if isinstance(t, CudaTensor)]
        to_device = (
            kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"
        )
        name = func._schema.name
        if not on_device and not to_device:
            return self._on_host(func, name, args, kwargs)
        others = [t for t in tensors if not isinstance(t, CudaTensor) and t.dim() > 0]
        copied_in = False
        if name in _COPIES:
            source = args[1] if name == "aten::copy_" else args[0]
            target = args[0] if name == "aten::copy_" else None
            named = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, torch.device)]
            to_device = to_device or any(x.type == "cuda" for x in named)
            leaves = (
                not isinstance(target, CudaTensor)
                if target is not None
                else bool(named) and not to_device
            )
            if leaves:
                return self._to_host(func, args, kwargs, source, target)
            if not isinstance(source, CudaTensor):
                blocking = not (kwargs.get("non_blocking") or any(a is True for a in args[2:]))
                copied_in = True
                self.copied_in(not blocking and self.is_pinned(source))
                with (
                    torch._C._DisableTorchDispatch()
                ):  # the device's own memory, also where nothing had to be converted
                    args = tree_map_only(Tensor, lambda t: t.clone() if t is source else t, args)
        elif on_device and others and name in _INDEXING:
            self.copied_in(False, "indices: ")
        elif on_device and others:
            raise RuntimeError(f"{name}: tensors on cuda:0 and on the CPU, in {_line()}")
        if name in _WAITS:
            self.waited(f"{name}: ")
        inner_args, inner_kwargs = tree_map_only(CudaTensor, lambda t: t.held, (args, kwargs))
        if to_device:
            here = torch.device("cpu")
            if any(isinstance(x, torch.device) for x in inner_args):  # aten::to.device
                inner_args = [here if isinstance(x, torch.device) else x for x in inner_args]
            else:
                inner_kwargs["device"] = here
        inner_kwargs.pop("pin_memory", None)
        with torch._C._DisableTorchDispatch():
            out = func(*inner_args, **inner_kwargs)
            if self.zeroed and name in _MEMORY:
                out.zero_()
        view = not func._schema.is_mutable and _addresses(out) & _addresses(on_device)
        if not (view or name in _MEMORY or name in _WAITS[1:3] or copied_in):
            self.kernels[name.removeprefix("aten::")] += 1
        if name not in _MEMORY:  # a graph does not allocate again
            self._record(func, inner_args, inner_kwargs, out)
        if on_device and isinstance(out, Tensor) and func._schema.is_mutable:
            written = next((t for t in on_device if t.held is out), None)
            if written is not None:
                return written
        return tree_map_only(Tensor, CudaTensor, out)

    def _to_host(self, func, args, kwargs, source: Tensor, target: Tensor | None) -> Tensor:
        blocking = not (kwargs.get("non_blocking") or any(a is True for a in args[2:]))
        if target is not None and not blocking and self.is_pinned(target):
            self._not_in_a_capture("a copy to the host")
            arrives = source.held.clone()
            target.fill_(-77)  # nobody may read it yet
            self._arriving.append(lambda: target.copy_(arrives))
            return target
        self.waited("read: ")
        inner_args, inner_kwargs = tree_map_only(CudaTensor, lambda t: t.held, (args, kwargs))
        with torch._C._DisableTorchDispatch():
            out = func(*inner_args, **inner_kwargs)
            return out.clone() if target is None else out

    def _on_host(self, func, name, args, kwargs):
        pinned = kwargs.pop("pin_memory", False)
        if name == "aten::is_pinned":
            return self.is_pinned(args[0])
        if name in ("aten::pin_memory", "aten::_pin_memory"):
            func, args, kwargs, pinned = torch.ops.aten.clone.default, args[:1], {}, True
        out = func(*args, **kwargs)
        if pinned:
            self._pinned[out.untyped_storage().data_ptr()] = out
        return out

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    # Graphs.

    def _record(self, func, args, kwargs, out) -> None:
        if self.recording is not None:
            self.recording.append((func, args, kwargs, out))

    def replay(self, recorded: list[tuple[Any, ...]]) -> None:
        self.replays += 1
        with torch.inference_mode(), torch._C._DisableTorchDispatch():
            for func, args, kwargs, out in recorded:
                new = func(*args, **kwargs)
                for old, fresh in zip(tree_leaves(out), tree_leaves(new)):
                    if old is None:  # of an assignment to indices
                        continue
                    if not _addresses(old) & _addresses((args, kwargs)):  # no view, not in place
                        old.copy_(fresh)


def _addresses(tensors: Any) -> set[int]:
    """Where the memory of these tensors lies."""
    found = [t for t in tree_leaves(tensors) if isinstance(t, Tensor)]
    return {
        (t.held if isinstance(t, CudaTensor) else t).untyped_storage().data_ptr() for t in found
    }


def _kind(argument: Any, any_value: bool) -> Any:
    """What Triton compiles a kernel for: types, and unless told not to, integers that are 1 or multiples of 16, and
    addresses that are multiples of 16."""
    if isinstance(argument, Tensor):
        inner = argument.held if isinstance(argument, CudaTensor) else argument
        return inner.dtype, any_value or inner.data_ptr() % 16 == 0
    if isinstance(argument, int) and not any_value:
        return argument if argument == 1 else argument % 16 == 0
    return type(argument)


def _line() -> str:
    """The innermost line of lib/ or of a chapter on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_BOOK):
            return f"{path.removeprefix(_ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "tests"


@contextmanager
def fake_cuda(
    capability: tuple[int, int] = (9, 0), free_bytes: int = 78 << 20
) -> Iterator[FakeCuda]:
    """A machine with one CUDA device, as long as the context lasts. Engines made in it must not outlive it."""
    from triton.runtime.jit import JITFunction

    device = FakeCuda()

    class Event:
        def __init__(self, **options: Any) -> None:
            self._copies, self._time = 0, 0.0

        def record(self, stream: Any = None) -> None:
            self._copies, self._time = len(device._arriving), time.perf_counter()

        def elapsed_time(self, end: Any) -> float:
            return 1e3 * (end._time - self._time)

        def synchronize(self) -> None:
            device.syncs[f"event: {_line()}"] += 1
            device._not_in_a_capture("a wait")
            device.arrive(self._copies)

        def query(self) -> bool:
            return True

    class Stream:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            device.streams += 1

        def wait_stream(self, other: Any) -> None: ...

    class Graph:
        def __init__(self) -> None:
            self.recorded: list[tuple[Any, ...]] = []

        def replay(self) -> None:
            device.replay(self.recorded)

    @contextmanager
    def graph(graph: Graph, pool: Any = None, stream: Any = None, **options: Any) -> Iterator[None]:
        if stream is None:
            device.streams += 1
        device.recording = graph.recorded
        try:
            yield
        finally:
            device.recording = None

    @contextmanager
    def stream(stream: Any) -> Iterator[None]:
        yield

    compile_or_run = JITFunction.run

    def launch(self, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        tensors = [x for x in args if isinstance(x, Tensor)]
        if tensors and not any(isinstance(x, CudaTensor) for x in tensors):
            # Compiled ahead of time for another GPU; what is no such thing has no driver and fails.
            return compile_or_run(self, *args, grid=grid, warmup=warmup, **kwargs)
        device.launch(self, args, kwargs)

    properties = SimpleNamespace(
        multi_processor_count=132,
        major=capability[0],
        minor=capability[1],
        name="Fake",
        total_memory=80 << 30,
        uuid="0",
    )
    fakes = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda d=None: capability,
        "get_device_properties": lambda d=None: properties,
        "get_device_name": lambda d=None: "Fake",
        "is_bf16_supported": lambda including_emulation=True: capability >= (8, 0),
        "synchronize": lambda d=None: device.waited("synchronize: "),
        "empty_cache": lambda: None,
        "memory_allocated": lambda d=None: 0,
        "max_memory_allocated": lambda d=None: 1 << 20,
        "memory_reserved": lambda d=None: 0,
        "max_memory_reserved": lambda d=None: 1 << 20,
        "reset_peak_memory_stats": lambda d=None: None,
        "mem_get_info": lambda d=None: (free_bytes, free_bytes + (2 << 20)),
        "_lazy_init": lambda: None,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": graph,
        "graph_pool_handle": lambda: (0, 1),
        "stream": stream,
        "device": lambda d: nullcontext(),
        "current_stream": lambda d=None: SimpleNamespace(wait_stream=lambda other: None),
    }
    make, move = torch.tensor, Tensor.to
    _device_constructors()  # kept from the first call on: it must name the real torch.tensor

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with_index = lambda x: (  # noqa: E731
            DEVICE if x == "cuda" or (isinstance(x, torch.device) and x.type == "cuda") else x
        )
        kwargs = {name: with_index(x) for name, x in kwargs.items()}
        return move(tensor, *(with_index(x) for x in args), **kwargs)

    def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        made = make(data, **options)  # a CPU build has no device guard for the direct way
        return made if device is None else made.to(device)

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "tensor", tensor))
        stack.enter_context(patch.object(Tensor, "to", to))
        for name, value in fakes.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        stack.enter_context(patch.object(JITFunction, "run", launch))
        lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifted)
        overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwritten)
        _DEVICES.append(device)
        stack.callback(_DEVICES.pop)
        stack.enter_context(device)
        yield device

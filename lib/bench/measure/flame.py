"""Where a call's time goes, frame by frame: an icicle of the Python calls and the operators beneath them.

Every call and return is noted, down to the C functions that Python calls (an operator of PyTorch is one, whatever it does
inside). Calls with the same stack are added up. Noting a call costs about as much as making it, so a step of thousands of
calls takes much longer than without. `record` therefore also times the step alone, and takes the difference away again, the
same amount for each call.

Introduced in chapter 8.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The first pattern that is found in a frame's name decides.
KINDS = (
    (
        "matrix products",
        ("_nn.linear", "_linear_pointwise", "OpOverload", "OpOverloadPacket", "mm"),
    ),
    ("attention kernel", ("numba_kernel.attend", "fused_cpu._run", "scaled_dot_product")),
    ("other operators", ("torch.", "Tensor.", "TensorBase.", "_C.")),
)
PYTHON = "Python"
PASSING = (
    "_wrapped_call_impl",
    "_call_impl",
    "decorate_context",
    "<lambda>",
)  # frames that only pass a call on


@dataclass
class Frame:
    """Calls with one stack: `seconds` of all of them, and the frames beneath. `name` is module.function, or a C function's."""

    name: str
    native: bool = False
    calls: int = 0
    seconds: float = 0.0
    children: dict[str, Frame] = field(default_factory=dict)

    @property
    def own(self) -> float:
        """Seconds that are not a child's."""
        return max(0.0, self.seconds - sum(child.seconds for child in self.children.values()))

    @property
    def all_calls(self) -> int:
        """Calls of this frame and of all beneath it."""
        return self.calls + sum(child.all_calls for child in self.children.values())

    def walk(self) -> Iterator[Frame]:
        yield self
        for child in self.children.values():
            yield from child.walk()

    def find(self, name: str) -> Frame | None:
        """The first frame whose name ends with `name`."""
        return next((frame for frame in self.walk() if frame.name.endswith(name)), None)


def record(fn: Callable[[], Any], repeats: int = 5) -> Frame:
    """Calls `fn` `repeats` times with and without noting; returns the root frame.

    The two take turns. Only this thread is seen.
    """
    root = Frame("step")
    stack: list[tuple[Frame, float]] = []
    clock = time.perf_counter

    def note(frame: Any, event: str, arg: Any) -> None:
        now = clock()
        if event in ("call", "c_call"):
            name = _python_name(frame) if event == "call" else _native_name(arg)
            parent = stack[-1][0] if stack else root
            child = parent.children.get(name)
            if child is None:
                child = Frame(name, native=event == "c_call")
                parent.children[name] = child
            stack.append((child, now))
        elif stack:  # return, c_return, c_exception
            done, start = stack.pop()
            done.calls += 1
            done.seconds += now - start

    alone = []
    for _ in range(repeats):
        start = clock()
        fn()
        alone.append(clock() - start)
        start = clock()
        sys.setprofile(note)
        try:
            fn()
        finally:
            sys.setprofile(None)
        root.seconds += clock() - start
        root.calls += 1
        stack.clear()
    for name in [name for name in root.children if "setprofile" in name]:
        del root.children[name]
    noted = max(1, root.all_calls - root.calls)
    noting = max(0.0, root.seconds - sum(alone)) / noted
    _correct(root, noting)
    return root


def _correct(frame: Frame, noting: float) -> None:
    """Take `noting` seconds away for each call beneath, and for each call itself where it has time of its own to give."""
    for child in frame.children.values():
        _correct(child, noting)
    frame.seconds = max(
        sum(child.seconds for child in frame.children.values()),
        frame.seconds - noting * frame.all_calls,
    )


def kind(frame: Frame) -> str:
    """What the frame's own time is: a matrix product, the attention kernel, another operator, or Python."""
    for name, patterns in KINDS:
        if any(pattern in frame.name for pattern in patterns) and (
            frame.native or name == "attention kernel"
        ):
            return name
    return PYTHON


def by_kind(root: Frame) -> dict[str, float]:
    """Share of the root's time for each kind; the shares sum to 1."""
    shares = dict.fromkeys([*(name for name, _ in KINDS), PYTHON], 0.0)
    for frame in root.walk():
        shares[kind(frame)] += frame.own
    total = sum(shares.values()) or 1.0
    return {name: seconds / total for name, seconds in shares.items()}


def splice(frame: Frame, names: tuple[str, ...] = PASSING) -> Frame:
    """A copy without frames whose name ends with one of `names`: their own time becomes their caller's."""
    copy = Frame(frame.name, frame.native, frame.calls, frame.seconds)
    for child in frame.children.values():
        child = splice(child, names)
        for part in child.children.values() if child.name.endswith(names) else [child]:
            known = copy.children.setdefault(part.name, Frame(part.name, part.native))
            _add(known, part)
    return copy


def _add(frame: Frame, other: Frame) -> None:
    frame.calls, frame.seconds = frame.calls + other.calls, frame.seconds + other.seconds
    for name, child in other.children.items():
        _add(frame.children.setdefault(name, Frame(name, child.native)), child)


def _python_name(frame: Any) -> str:
    return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_qualname if sys.version_info >= (3, 11) else ''}"


def _native_name(function: Any) -> str:
    owner = getattr(function, "__self__", None)
    module = getattr(function, "__module__", None)
    if module is None and owner is not None and not isinstance(owner, type(sys)):
        module = type(owner).__name__
    return f"{module or getattr(owner, '__name__', '')}.{getattr(function, '__name__', function)}"


__all__ = ["KINDS", "PASSING", "PYTHON", "Frame", "by_kind", "kind", "record", "splice"]

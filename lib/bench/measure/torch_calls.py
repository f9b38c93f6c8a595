"""Counts of Python's calls into PyTorch: all of them, and those that run an operator.

A call that runs an operator releases the interpreter lock meanwhile; reading an attribute such as `x.shape` does not.

Introduced in chapter 5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass
class TorchCalls:
    """calls: all calls from Python. operators: those among them that ran at least one operator."""

    calls: int = 0
    operators: int = 0


class _Operators(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None):
        self.count += 1
        return function(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __init__(self, operators: _Operators) -> None:
        super().__init__()
        self.operators, self.found = operators, TorchCalls()

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None):
        before = self.operators.count
        result = function(*args, **(kwargs or {}))
        self.found.calls += 1
        self.found.operators += self.operators.count > before
        return result


def count_torch_calls(fn: Callable[[], Any]) -> TorchCalls:
    """Runs `fn()` once and counts. What it times meanwhile is worthless: counting makes each call slower."""
    with _Operators() as operators, _Calls(operators) as calls:
        fn()
    return calls.found

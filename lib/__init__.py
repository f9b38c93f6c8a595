"""Token by Token: an LLM inference engine, built one measured step at a time. Introduced in chapter 1.

`LLM` and `SamplingParams` are imported on first use, so that `lib.loadtest` starts without PyTorch, and so that OpenMP's
waiting can be set before PyTorch loads it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lib.core.openmp import limit_spinning

if TYPE_CHECKING:
    from lib.core.sampling_params import SamplingParams
    from lib.engine.llm import LLM

limit_spinning()

__all__ = ["LLM", "SamplingParams"]
_MODULES = {"LLM": "lib.engine.llm", "SamplingParams": "lib.core.sampling_params"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)

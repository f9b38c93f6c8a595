"""One admitted HTTP request: what it may still run, its deadline, and its finished outputs.

Introduced in chapter 5.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lib.core.outputs import RequestOutput
from lib.serving.errors import ApiError
from lib.serving.output_collector import OutputCollector

_T = TypeVar("_T")


@dataclass
class Call:
    """One admitted HTTP request, from `AsyncLLM.open` to `AsyncLLM.close`. Plain data: it calls nothing.

    `reserved`: sequences it may still hand to the engine. `outputs`: the finished ones, by prompt.
    """

    id: str
    stream: bool
    reserved: int
    timeout: float | None  # seconds
    deadline: float | None  # in the event loop's time
    log_fields: dict[str, Any]
    cache_salt: str | None = None
    arrival: float = field(default_factory=time.monotonic)
    request_ids: list[str] = field(default_factory=list)
    outputs: dict[int, RequestOutput] = field(default_factory=dict)
    collector: OutputCollector = field(default_factory=OutputCollector)

    async def in_time(self, work: Awaitable[_T]) -> _T:
        """Await a part of the call's work. Raises ApiError 504 once the call's time is up."""
        try:
            async with asyncio.timeout_at(self.deadline):
                return await work
        except TimeoutError:
            raise ApiError(
                504,
                f"the request took longer than {self.timeout:g} s, the limit of this server",
                code="timeout",
            ) from None

"""Structured outputs are compiled in a thread of their own: neither the event loop nor the engine waits.

Introduced in chapter 5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from lib.core.sampling_params import SamplingParams
from lib.serving.errors import ApiError, invalid_request

# Longest time to compile a schema, in seconds. The compilers have limits of their own that take effect within a few
# seconds; this limit is for a machine that is very busy.
MOST_SECONDS = 20.0


class Rules(Protocol):
    """See `lib.engine.structured.output_rules.OutputRules`."""

    def prepare(self, params: SamplingParams) -> None: ...


class SchemaCompiler:
    """Compiles what requests ask for with the engine's rules, one after the other. The rules keep the result."""

    def __init__(self, rules: Callable[[], Rules]) -> None:
        self._rules = rules
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="schemas")

    async def prepare(self, params: SamplingParams) -> None:
        """Returns once the engine can take `params` without compiling. Raises ApiError 400."""
        if params.structured_outputs is None:
            return
        loop, began = asyncio.get_running_loop(), asyncio.Event()

        def work() -> None:
            loop.call_soon_threadsafe(began.set)
            self._rules().prepare(params)

        compiled = loop.run_in_executor(self._thread, work)
        compiled.add_done_callback(lambda _: began.set())  # also where `close` cancels it
        try:
            await self._turn(began)
            await asyncio.wait_for(compiled, MOST_SECONDS)
        except TimeoutError:
            raise ApiError(
                400,
                f"structured_outputs must compile within {MOST_SECONDS:g} s",
                "structured_outputs",
            ) from None
        except ValueError as error:
            raise invalid_request(error) from None
        finally:
            compiled.cancel()

    async def _turn(self, began: asyncio.Event) -> None:
        """Waits while requests before this one compile. Raises ApiError 503 if one of them does not end."""
        try:
            await asyncio.wait_for(began.wait(), 2 * MOST_SECONDS)
        except TimeoutError:
            raise ApiError(
                503, "structured_outputs of earlier requests are still being compiled"
            ) from None

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

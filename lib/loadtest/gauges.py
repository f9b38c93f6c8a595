"""The server's side of a load test over time: queue, cache, GPU, CPU; and whether the generator itself keeps up.

Introduced in chapter 6.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import psutil

from lib.bench.measure import nvml

TICK = 0.05  # seconds; how often the event loop's punctuality is checked
# Names of vLLM, which this book's server shares, and of SGLang.
_GAUGES = {
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs"),
    "kv_cache": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage"),
}
_NAMES = {name for names in _GAUGES.values() for name in names}
# prometheus_client's parser takes 15 ms for a page of 900 lines, as vLLM's is, and this takes 0.3 ms. It runs in the
# event loop that notes when tokens arrive: a token that comes meanwhile is noted late.
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{.*\})?\s+(\S+)", re.MULTILINE)


def parse_gauges(text: str) -> dict[str, float]:
    """running and waiting requests and the used share of the KV cache (0 to 1), from Prometheus' text format.

    Gauges that are not there are left out, as are those that are NaN or infinite. Several series of a name (one per
    GPU rank) are added up, shares averaged. Raises ValueError for a value that is no number.
    """
    found: dict[str, list[float]] = {}
    for name, value in _SAMPLE.findall(text):
        if name in _NAMES:
            found.setdefault(name, []).append(float(value))
    result = {}
    for gauge, names in _GAUGES.items():
        values = next((found[name] for name in names if name in found), [])
        # One unknown part makes the whole unknown.
        if values and all(map(math.isfinite, values)):
            result[gauge] = sum(values) / (len(values) if gauge == "kv_cache" else 1)
    return result


class Gauges:
    """Samples every `interval` seconds while `run()` is awaited; cancel it to end. `samples`: one dict each.

    t (s), running, waiting, kv_cache (0 to 1), gpu (%, of the first visible GPU), gpu_memory (bytes, whole GPU), cpu (%
    of all cores), generator_cpu (% of one core). A value that cannot be read is None. `lateness`: by how many seconds
    the event loop missed each of its wake-up times: a late loop notes tokens late.
    """

    def __init__(
        self, http: httpx.AsyncClient, base: str, clock: Callable[[], float], interval: float = 0.5
    ) -> None:
        if interval < TICK:
            raise ValueError(f"interval must be >= {TICK} seconds, got {interval}")
        self.samples: list[dict[str, Any]] = []
        self.lateness: list[float] = []
        self._http, self._base, self._clock, self._interval = http, base, clock, interval
        self._has_metrics, self._process = True, psutil.Process()

    async def run(self) -> None:
        with ExitStack() as stack:
            gpu = stack.enter_context(nvml.visible_gpu())
            psutil.cpu_percent(), self._process.cpu_percent()  # the first call starts the interval
            due = self._clock() + self._interval
            while True:
                before = self._clock()
                await asyncio.sleep(TICK)
                self.lateness.append(max(0.0, self._clock() - before - TICK))
                if self._clock() >= due:
                    due = self._clock() + self._interval
                    self.samples.append(await self._sample(gpu))

    async def _sample(self, gpu: tuple[Any, Any] | None) -> dict[str, Any]:
        sample: dict[str, Any] = {
            "t": round(self._clock(), 3),
            **dict.fromkeys(_GAUGES),
            "gpu": None,
            "gpu_memory": None,
            "cpu": psutil.cpu_percent(),
            "generator_cpu": self._process.cpu_percent(),
        }
        if self._has_metrics:
            try:
                response = await self._http.get(f"{self._base}/metrics", timeout=2.0)
                # A server without metrics is not asked again; one that is too busy is.
                self._has_metrics = response.status_code == 200
                sample |= parse_gauges(response.text) if self._has_metrics else {}
            except (httpx.HTTPError, ValueError):
                pass
        if gpu is not None:
            library, handle = gpu
            rates = nvml.ask(library.nvmlDeviceGetUtilizationRates, handle)
            memory = nvml.ask(library.nvmlDeviceGetMemoryInfo, handle)
            sample |= {"gpu": rates and rates.gpu, "gpu_memory": memory and memory.used}
        return sample

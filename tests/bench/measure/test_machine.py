"""The fingerprint of a machine, with and without PyTorch."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib.bench.measure.host import host_fingerprint, slug
from lib.bench.measure.machine import fingerprint, hardware


def test_slugs():
    assert slug("AMD EPYC, 2 cores") == "amd-epyc-2core"
    assert slug("Apple M1, 1 core") == "apple-m1-1core"
    assert slug("NVIDIA A100-SXM4-80GB") == "nvidia-a100-sxm4-80gb"
    assert slug("NVIDIA H200") == "nvidia-h200" and slug("../..") == "unknown"


@pytest.mark.parametrize("line, name", [
    ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "Intel Xeon Platinum 8481C"),
    ("AMD EPYC 7763 64-Core Processor", "AMD EPYC 7763"),
    ("AMD EPYC", "AMD EPYC"),
])  # fmt: skip
def test_cpu_names(monkeypatch, line, name):
    monkeypatch.setattr(Path, "read_text", lambda self: f"processor : 0\nmodel name\t: {line}\n")
    assert hardware("cpu")["name"] == name


def test_fingerprint_is_json_and_tells_nobody_where_it_was():
    facts = fingerprint("cpu")
    text = json.dumps(facts, allow_nan=False)
    assert facts["hardware"]["kind"] == "cpu" and facts["versions"]["torch"] == torch.__version__
    assert "gpu" not in facts and facts["date"].endswith("+00:00") and facts["cpu"]["cores"] >= 1
    host = platform.node()
    assert (
        os.path.expanduser("~") not in text
        and os.getcwd() not in text
        and (len(host) < 4 or host not in text)
    )


def test_fingerprint_without_git_or_psutil(monkeypatch):
    monkeypatch.setattr(
        subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError("git"))
    )
    monkeypatch.setitem(sys.modules, "psutil", None)
    facts = fingerprint("cpu")
    assert facts["git"] == {"commit": None, "dirty": None} and facts["cpu"]["memory_bytes"] is None
    assert facts["cpu"]["cores"] >= 1


def test_a_host_s_fingerprint_agrees_with_the_record_s():
    ours, full = host_fingerprint(), fingerprint("cpu")
    if ours["hardware"]["kind"] == "cpu":
        assert ours["hardware"] == full["hardware"]
    same = ("os", "versions", "git")
    assert {name: ours[name] for name in same} == {name: full[name] for name in same}
    assert ours["cpu"].items() <= full["cpu"].items()

"""Scale, options, timing, memory, ceilings, fingerprint: what a measurement rests on."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lib.bench.measure.machine import fingerprint, hardware, slug
from lib.bench.measure.memory import Sampler, UtilisationSampler, peak_memory
from lib.bench.measure.percentiles import percentile
from lib.bench.measure.roofline import Roofline, measure_matmul, measure_roofline, tf32
from lib.bench.measure.timing import Timing, measure, timed
from lib.bench.scale import pick, scale
from lib.bench.script_options import options


def test_scale_follows_the_variable_and_else_the_device(monkeypatch):
    monkeypatch.setenv("BOOK_SCALE", "smoke")
    assert scale() == "smoke" and pick(smoke=1, cpu=2, gpu=3) == 1
    monkeypatch.setenv("BOOK_SCALE", "huge")
    with pytest.raises(ValueError, match="BOOK_SCALE='huge'.*smoke, cpu, gpu"):
        scale()
    monkeypatch.delenv("BOOK_SCALE")
    for available, expected in ((True, "gpu"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert scale() == expected


def test_options_skip_what_belongs_to_others():
    assert options([]).record is None
    jupyter = ["-f", "/run/kernel-1.json", "--HistoryManager.hist_file=:memory:"]
    assert options(jupyter).record is None and options(jupyter).figures is None
    assert str(options(["--record", "a", "-x", "--figures=b"]).record) == "a"
    assert options(["--rec", "a"]).record is None  # no abbreviations: pytest has options of its own


def test_percentiles_against_torch():
    samples = [0.3, 0.1, 0.9, 0.5, 0.2, 0.7]
    for q in (0, 10, 50, 90, 100):
        assert percentile(samples, q) == pytest.approx(
            torch.tensor(samples).double().quantile(q / 100).item()
        )
    timing = Timing((4.0, 1.0, 2.0))
    assert (timing.median, timing.rate(10)) == (2.0, 5.0)
    assert timing.rates(8).median == 4.0 and timing.rates(8).samples == (2.0, 8.0, 4.0)
    for bad in (([], 50), ([1.0], 101), ([1.0], -1)):
        with pytest.raises(ValueError):
            percentile(*bad)


def test_measure_counts_runs_and_leaves_setup_out():
    calls = []

    def setup():
        time.sleep(0.03)
        return len(calls)

    timing = measure(calls.append, setup=setup, warmup=2, repeats=3, device="cpu")
    assert calls == [0, 1, 2, 3, 4] and len(timing.samples) == 3 and max(timing.samples) < 0.03


def test_measure_stops_at_its_budget_but_never_without_a_sample():
    timing = measure(lambda: time.sleep(0.02), warmup=0, repeats=50, budget=0.05, device="cpu")
    assert 1 <= len(timing.samples) <= 3
    assert (
        len(
            measure(
                lambda: time.sleep(0.02), warmup=0, repeats=50, budget=0.001, device="cpu"
            ).samples
        )
        == 1
    )
    assert timing.median >= 0.02


@pytest.mark.parametrize(
    "bad", [{"repeats": 0}, {"warmup": -1}, {"clock": "sun"}, {"clock": "events"}]
)
def test_measure_refuses(bad):
    with pytest.raises(ValueError):
        measure(lambda: None, device="cpu", **bad)


def test_timed_block():
    with timed("cpu") as watch:
        time.sleep(0.02)
    assert 0.02 <= watch.seconds < 5


def test_peak_memory_sees_a_temporary_array():
    size = 200 * 2**20
    with peak_memory("cpu", interval=0.002) as peak:
        block = torch.ones(size // 4)
        time.sleep(0.2)
        del block
    assert peak.bytes == peak.rss and 0.8 * size < peak.rss < 2.5 * size and peak.allocated is None


def test_utilisation_of_a_busy_and_an_idle_block():
    with UtilisationSampler("cpu", interval=0.05) as busy:
        end = time.perf_counter() + 0.4
        while time.perf_counter() < end:
            sum(range(1000))
    with UtilisationSampler("cpu", interval=0.05) as idle:
        time.sleep(0.3)
    assert busy.mean > idle.mean and busy.peak <= 130 and len(busy.samples) > 2
    with pytest.raises(ValueError):
        Sampler(lambda: 0, 0)


def test_roofline_arithmetic():
    roof = Roofline("toy", bandwidth=100.0, flops={"float32": 1000.0, "bfloat16": 4000.0})
    assert roof.ridge() == 10 and roof.ridge(torch.bfloat16) == 40
    assert roof.time(bytes=200, flops=100) == 2.0  # bandwidth bounds
    assert roof.time(bytes=100, flops=5000) == 5.0  # arithmetic bounds
    assert roof.time(bytes=100, flops=5000, dtype=torch.bfloat16) == 1.25
    with pytest.raises(ValueError, match="float16.*measured: float32, bfloat16"):
        roof.time(flops=1, dtype="float16")


def test_measured_ceilings_are_plausible_and_quick():
    start = time.perf_counter()
    roof = measure_roofline("cpu", dtypes=("float32",), quick=True)
    assert time.perf_counter() - start < 20
    assert 1e8 < roof.bandwidth < 1e13 and 1e8 < roof.flops["float32"] < 1e15
    assert roof.bandwidth == max(roof.details.values()) and set(roof.details) == {"mv", "sum"}
    assert measure_matmul("cpu", torch.float32, quick=True) > 1e8


def test_tf32_is_restored_even_after_an_error():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), tf32(True):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


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

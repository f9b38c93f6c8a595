"""The load of the machine: others' programs count, our own do not, whatever else runs beside these tests."""

import json
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest

from lib.bench.measure import system_load
from lib.bench.measure.system_load import Load, LoadMonitor, busiest_programs, measure_load
from tests.helpers_load import detached_program

SECONDS = 1.5
BURN = "import time\nwhile True: pass"


@contextmanager
def child(code):
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def cpu_seconds(process):
    times = process.cpu_times()
    return times.user + times.system


def core_seconds(load):
    return load.others_mean * load.seconds * load.cores


def test_a_busy_program_of_others_is_reported():
    with detached_program() as program:
        before = cpu_seconds(program)
        load = measure_load(SECONDS)
        used = cpu_seconds(program) - before
        names = busiest_programs(count=100)
    assert used > 0.1, "it got some of the CPU"
    assert core_seconds(load) >= used - 0.1  # others beside it may add to this
    assert load.others_max >= load.others_mean > 0 and load.seconds >= SECONDS
    assert any("of a core" in name and "while" not in name for name in names)


def test_own_children_do_not_count():
    with child("import time; time.sleep(60)") as idle, child(BURN) as burner:
        # Over the same time: once with all of this process's children as ours, once with another root.
        ours, theirs = LoadMonitor(), LoadMonitor(pid=idle.pid)
        before = cpu_seconds(burner)
        ours.start(), theirs.start()
        time.sleep(SECONDS)
        mine, foreign = ours.stop(), theirs.stop()
        used = cpu_seconds(burner) - before
    assert used > 0.1
    assert core_seconds(foreign) - core_seconds(mine) == pytest.approx(used, abs=0.2)


def test_a_child_that_ended_does_not_count_either():
    script = "import subprocess, sys\nfor _ in range(4): subprocess.run([sys.executable, '-c', 'sum(range(4_000_000))'])"
    ours = LoadMonitor()
    with child("import time; time.sleep(60)") as idle:
        theirs = LoadMonitor(pid=idle.pid, interval=None)
        ours.start(), theirs.start()
        own = psutil.Process().cpu_times()
        subprocess.run([sys.executable, "-c", script])
        mine, foreign = ours.stop(), theirs.stop()
        now = psutil.Process().cpu_times()
    used = sum(getattr(now, f) - getattr(own, f) for f in ("user", "system", "children_user", "children_system"))  # fmt: skip
    assert used > 0.1
    assert core_seconds(foreign) - core_seconds(mine) == pytest.approx(used, abs=0.25)


def load_of(**changes):
    quiet = dict(seconds=60.0, cores=2, others_mean=0.01, others_max=0.1, busy_samples=0.0, steal=0.0)  # fmt: skip
    return Load(**{**quiet, **changes})


def test_when_times_are_not_reliable():
    assert not load_of().disturbed
    assert not load_of(others_max=0.9, busy_samples=0.02).disturbed  # a short job
    assert load_of(others_mean=0.06).disturbed
    assert load_of(busy_samples=0.1, others_max=0.5).disturbed
    assert load_of(steal=0.2).disturbed
    data = json.loads(json.dumps(load_of(others_mean=0.5).to_json()))
    assert data["disturbed"] is True and data["others_mean"] == 0.5
    assert "50% of the CPU" in str(load_of(others_mean=0.5))


def test_where_nothing_can_be_measured_the_load_is_unknown(monkeypatch):
    zero = [type("Times", (), dict(user=0.0, system=0.0, idle=0.0))()] * 64
    monkeypatch.setattr(system_load.psutil, "cpu_times", lambda percpu: zero)
    assert measure_load(0.1) is None
    monkeypatch.setattr(system_load, "psutil", None)
    assert measure_load(0.1) is None and busiest_programs(0.1) == []

"""A decode step beside a busy program: slower, but not by tens of times."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from statistics import median

import pytest

from lib.bench.measure.busy_machine import GNU_DEFAULT, step_times
from lib.bench.paths import repository
from lib.core.openmp import SPIN_COUNT

SHOW = "import os, lib; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, str(SPIN_COUNT)),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "None"),
    ],
)
def test_the_users_choice_stays(given, expected):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if k not in names} | given
    shown = subprocess.run(
        [sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == expected


@pytest.mark.parametrize("place", ["Makefile", "book/tools/notebooks.py"])
def test_every_entry_point_sets_the_same_number(place):
    text = (repository() / place).read_text()
    assert re.findall(r"GOMP_SPINCOUNT\W+(\d+)", text) == [str(SPIN_COUNT)]


def test_importing_lib_does_not_load_openmp():
    """The setting has no effect once libgomp is loaded: lib must not load it by itself."""
    code = "import lib; print('libgomp' in open('/proc/self/maps').read())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: threads never wait for each other")
def test_one_busy_program_slows_a_step_by_a_small_factor():
    """2.6 times as measured for chapter 8; without the setting 40 to 70 times. The bound is generous."""
    bounded = {"GOMP_SPINCOUNT": str(SPIN_COUNT)}
    times = step_times("smollm2", {"bounded": bounded}, steps=12, rounds=2)["bounded"]
    assert median(times["busy"]) < 10 * median(times["quiet"])


def test_settings_are_measured_in_turns(llama):
    settings = {"default": GNU_DEFAULT, "few": {"GOMP_SPINCOUNT": "10"}}
    times = step_times(llama.folder, settings, steps=3, rounds=2)
    assert {name: (len(t["quiet"]), len(t["busy"])) for name, t in times.items()} == {
        "default": (6, 6),
        "few": (6, 6),
    }
    assert all(seconds > 0 for t in times.values() for state in t.values() for seconds in state)

"""The limit of open files is raised as far as the system lets it, and what is missing is said."""

import pytest

from lib.core import open_files

resource = pytest.importorskip("resource")
SPARE = 64


@pytest.fixture
def limits(monkeypatch):
    """[soft, hard], in place of this process's own."""
    now = [1024, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(now))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: now.__setitem__(slice(None), new))
    return now


def test_a_limit_that_is_enough_is_left_alone(limits):
    assert open_files.allow_open_files(1024 - SPARE) is None and limits == [1024, 4096]


def test_it_is_raised_to_what_is_needed(limits):
    assert open_files.allow_open_files(1750) is None and limits == [1750 + SPARE, 4096]


def test_beyond_the_hard_limit_it_says_so(limits):
    said = open_files.allow_open_files(5000)
    assert limits == [4096, 4096] and "5000 connections need 5064" in said and "4096" in said


def test_without_a_hard_limit_anything_goes(limits):
    limits[1] = resource.RLIM_INFINITY
    assert open_files.allow_open_files(10**5) is None and limits[0] == 10**5 + SPARE


def test_where_the_system_refuses_it_says_so(limits, monkeypatch):
    def refuse(kind, new):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert "the system allows this process 1024" in open_files.allow_open_files(2000)

"""How much memory a process has: the machine's, or less in a container."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib.cache import sizing
from lib.cache.sizing import available_bytes, free_memory

FREE = 10_000  # bytes that psutil reports in these tests
NO_LIMIT_V1 = 9223372036854771712


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    memory = type("Memory", (), {"available": FREE})()
    monkeypatch.setattr(sizing.psutil, "virtual_memory", lambda: memory)


def system(root: Path, cgroup: str, files: dict[str, object]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


V2 = "0::/\n"
V2_DEEP = "0::/kubepods/pod1/box\n"
V1 = "12:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n"
CASES = {
    "v2": (V2, {"memory.max": 5000, "memory.current": 2000}, 3000),
    "v2-none": (V2, {"memory.max": "max", "memory.current": 2000}, FREE),
    "v2-above-the-machine": (V2, {"memory.max": 10**9, "memory.current": 0}, FREE),
    "v2-over-the-limit": (V2, {"memory.max": 5000, "memory.current": 5001}, 0),
    "v2-file-pages-are-free": (
        V2,
        {
            "memory.max": 5000,
            "memory.current": 4900,
            "memory.stat": "anon 900\nfile 4000\ninactive_file 1500\nactive_file 2500",
        },
        4100,
    ),
    "v2-own-group": (
        V2_DEEP,
        {
            "kubepods/pod1/box/memory.max": 3000,
            "kubepods/pod1/box/memory.current": 1000,
            "kubepods/pod1/memory.max": "max",
            "kubepods/pod1/memory.current": 4000,
        },
        2000,
    ),
    "v2-a-group-above-has-less": (
        V2_DEEP,
        {
            "kubepods/pod1/box/memory.max": "max",
            "kubepods/pod1/box/memory.current": 1000,
            "kubepods/memory.max": 6000,
            "kubepods/memory.current": 5500,
        },
        500,
    ),
    "v2-path-of-the-host": (V2_DEEP, {"memory.max": 5000, "memory.current": 2000}, 3000),
    "v1": (
        V1,
        {
            "memory/docker/abc/memory.limit_in_bytes": 4000,
            "memory/docker/abc/memory.usage_in_bytes": 3000,
            "memory/docker/abc/memory.stat": "inactive_file 7\ntotal_inactive_file 100",
            "memory/memory.limit_in_bytes": NO_LIMIT_V1,
            "memory/memory.usage_in_bytes": 9000,
        },
        1100,
    ),
    "v1-in-a-container": (
        V1,
        {"memory/memory.limit_in_bytes": 4000, "memory/memory.usage_in_bytes": 1000},
        3000,
    ),
    "v1-none": (
        V1,
        {"memory/memory.limit_in_bytes": NO_LIMIT_V1, "memory/memory.usage_in_bytes": 1000},
        FREE,
    ),
    "no-files": (V2, {}, FREE),
    "no-groups": ("", {}, FREE),
}


@pytest.mark.parametrize("cgroup, files, expected", CASES.values(), ids=CASES)
def test_a_containers_limit_counts(tmp_path, cgroup, files, expected):
    assert free_memory(system(tmp_path, cgroup, files)) == expected


def test_without_control_groups_it_is_the_machines(tmp_path):
    assert free_memory(tmp_path) == FREE


def test_the_cache_gets_half_of_it_once_a_step_has_run(monkeypatch, tmp_path):
    ran = []
    limited = system(tmp_path, V2, {"memory.max": 5000, "memory.current": 2000})
    monkeypatch.setattr(sizing, "free_memory", lambda: free_memory(limited))
    assert available_bytes(torch.device("cpu"), lambda: ran.append(1)) == 1500 and ran == [1]

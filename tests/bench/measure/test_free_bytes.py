"""Free memory: what the system has, and on a GPU also what PyTorch's allocator keeps for later."""

import torch

from lib.bench.measure.free_bytes import free_bytes
from lib.cache.sizing import free_memory


def test_on_a_cpu_it_is_the_systems():
    assert 0.5 * free_memory() < free_bytes("cpu") < 2 * free_memory()


def test_on_a_gpu_unused_memory_of_the_allocator_counts(monkeypatch):
    for name, value in (
        ("memory_reserved", 700),
        ("memory_allocated", 500),
        ("mem_get_info", (1000, 5000)),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_bytes("cuda") == 1000 + 200

"""The counter of calls into PyTorch."""

import torch

from lib.bench.measure.torch_calls import count_torch_calls


def test_attributes_are_calls_but_no_operators():
    x = torch.ones(3)

    def work():
        assert x.shape == (3,) and x.dtype == torch.float32  # two attributes
        y = x + 1
        y.mul_(2)
        return torch.nn.functional.softmax(y, dim=0)

    found = count_torch_calls(work)
    assert (found.operators, found.calls) == (3, 5)


def test_it_counts_under_inference_mode_and_nothing_afterwards():
    x = torch.ones(3)
    with torch.inference_mode():
        found = count_torch_calls(lambda: x * 2)
        torch.ones(2)
    assert (found.operators, found.calls) == (1, 1)

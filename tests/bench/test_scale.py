"""The scale of a run."""

import pytest
import torch

from lib.bench.scale import pick, scale


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

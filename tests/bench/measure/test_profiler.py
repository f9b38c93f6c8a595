"""A profile of real products."""

import pytest
import torch

from lib.bench.measure.profiler import profile


@pytest.mark.parametrize("rows, family", [(64, "gemm"), (1, "gemv")])
def test_a_profile_tells_gemm_from_gemv(rows, family, capfd):
    a, weight = torch.ones(rows, 512), torch.ones(512, 2048)
    result = profile(lambda: [torch.mm(a, weight) for _ in range(7)], "cpu")
    assert capfd.readouterr() == ("", "")  # nothing of the profiler's own in a page
    assert next(iter(result.by_family())) == family and sum(
        result.by_family().values()
    ) == pytest.approx(1)
    top = result.top_ops(1)[0]
    assert (top.name, top.family, top.calls) == ("aten::mm", family, 7)
    assert 0 < top.seconds <= result.seconds and sum(
        op.share for op in result.ops
    ) == pytest.approx(1)


def test_the_profiler_ends_when_the_call_fails():
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            profile(lambda: 1 / 0, "cpu", warmup=0)
    assert profile(lambda: torch.ones(4) + 1, "cpu").ops

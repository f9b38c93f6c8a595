"""The load generator's arithmetic, on traces made by hand: exact, and without a clock."""

from __future__ import annotations

import pytest

from lib.loadtest.request_trace import OUTCOMES, RequestTrace
from lib.loadtest.run import LoadRun
from lib.loadtest.stats import distribution, is_good, summarize


def trace(
    index=0, scheduled=0.0, sent=None, chunks=(1.0, 1.5, 2.0), tokens=None, **fields
) -> RequestTrace:
    sent = scheduled if sent is None else sent
    return RequestTrace(
        index,
        scheduled,
        ready=fields.pop("ready", scheduled),
        sent=sent,
        chunks=list(chunks),
        end=fields.pop("end", chunks[-1] if chunks else sent),
        counted=True,
        prompt_tokens=6,
        output_tokens=len(chunks) if tokens is None else tokens,
        outcome=fields.pop("outcome", "completed"),
        **fields,
    )


def test_one_request():
    t = trace(scheduled=0.25, ready=0.5, sent=0.625, chunks=(1.0, 1.5, 2.0))
    assert (t.ttft, t.ttft_sent, t.e2e, t.e2e_sent) == (0.75, 0.375, 1.75, 1.375)
    assert (t.tpot, t.gaps, t.lag, t.wait) == (0.5, [0.5, 0.5], 0.125, 0.25)
    assert t.e2e == t.ttft + (t.output_tokens - 1) * t.tpot  # the book's definition


def test_several_tokens_a_chunk():
    """TPOT divides by tokens, as the server counts them; gaps are between chunks and pretend to nothing else."""
    t = trace(chunks=(1.0, 2.0, 3.0), tokens=9)
    assert t.tpot == 0.25 and t.gaps == [1.0, 1.0]
    assert summarize(LoadRun({}, [t]))["tokens_per_chunk"] == 3


def test_one_token_has_no_tpot():
    t = trace(chunks=(1.0,))
    assert t.tpot is None and t.gaps == []
    s = summarize(LoadRun({}, [t, trace()]), {"tpot": 0.6})
    assert s["tpot"]["n"] == 1 and s["good"] == 2  # vLLM: not in the percentiles, 0 for goodput


def test_rates_and_goodput():
    traces = [
        trace(i, scheduled=float(i), chunks=(i + 0.5, i + 1.0, i + 1.5 + i / 4)) for i in range(4)
    ]
    traces += [
        trace(4, scheduled=1.0, chunks=(), outcome="rejected", end=1.25),
        trace(5, scheduled=2.0, chunks=(3.0, 4.0), outcome="failed", end=5.0),
        RequestTrace(6),
    ]
    s = summarize(LoadRun({}, traces), {"e2el": 1.75, "ttft": 0.5})
    assert s["requests"] == 7 and s["rejected_fraction"] == 1 / 7
    assert {name: s[name] for name in OUTCOMES} == {
        "completed": 4,
        "rejected": 1,
        "failed": 1,
        "timeout": 0,
        "unsent": 1,
    }
    assert s["duration"] == 5.25  # the last request's end
    assert (
        s["output_tokens"] == 12 and s["output_throughput"] == 12 / 5.25
    )  # a failed request's tokens do not count
    assert s["total_token_throughput"] == (12 + 24) / 5.25 and s["request_throughput"] == 4 / 5.25
    assert [is_good(t, {"e2el": 1.75}) for t in traces] == [
        True,
        True,
        False,
        False,
        False,
        False,
        False,
    ]
    assert s["good"] == 2 and s["goodput"] == 2 / 5.25
    assert s["mean_in_flight"] == (1.5 + 1.75 + 2.0 + 2.25 + 0.25 + 3.0) / 5.25
    assert s["ttft"]["n"] == 4 and s["itl"]["n"] == 8
    assert summarize(LoadRun({}, traces))["goodput"] is None


def test_percentiles_are_linear_between_samples():
    d = distribution([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (d["mean"], d["p50"], d["p90"], d["p99"], d["min"], d["max"]) == (
        3.0,
        3.0,
        4.6,
        4.96,
        1.0,
        5.0,
    )
    assert d["indicative"] and not distribution(list(range(100)))["indicative"]
    assert distribution([])["p50"] is None and distribution([])["n"] == 0


def test_percentiles_are_numpys():
    import numpy as np

    samples = [((i * 7919) % 1000) / 997 for i in range(321)]
    for q in (50, 90, 95, 99):
        assert distribution(samples)[f"p{q}"] == pytest.approx(np.percentile(samples, q), rel=1e-12)


def test_a_lagging_generator_is_marked():
    prompt = [trace(i, sent=0.001) for i in range(10)]
    late = [trace(i, sent=0.9) for i in range(10)]
    assert not summarize(LoadRun({}, prompt))["lagged"] and summarize(LoadRun({}, late))["lagged"]
    assert summarize(LoadRun({}, prompt, lateness=[0.2] * 10))[
        "lagged"
    ]  # tokens noted late are no better
    # One late wake-up of ten, which is their 99th percentile, moves the slowest TTFT by less than a tenth.
    once = LoadRun({}, prompt, lateness=[0.0] * 9 + [0.02])
    assert not summarize(once)["lagged"]
    # The largest of a dozen wake-ups is no 99th percentile; three late ones of two hundred are.
    assert not summarize(LoadRun({}, prompt, lateness=[0.0] * 11 + [0.9]))["lagged"]
    assert summarize(LoadRun({}, prompt, lateness=[0.0] * 197 + [0.9] * 3))["lagged"]
    assert summarize(LoadRun({}, late[:1]))["lagged"]
    waiting = [
        trace(i, ready=0.9, sent=0.9) for i in range(10)
    ]  # for a place: no fault of the generator's
    assert not summarize(LoadRun({}, waiting))["lagged"]


def test_nothing_completed_is_no_division_by_zero():
    s = summarize(LoadRun({}, [RequestTrace(0)]), {"ttft": 1.0})
    assert (
        s["output_throughput"] == s["goodput"] == 0
        and s["ttft"]["p50"] is None
        and s["unsent"] == 1
    )


@pytest.mark.parametrize(
    "slo, words", [({"itl": 1.0}, "itl"), ({"ttft": 0.0}, "ttft"), ({"ttft": float("nan")}, "ttft")]
)
def test_slos_are_checked(slo, words):
    with pytest.raises(ValueError, match=words):
        summarize(LoadRun({}, [trace()]), slo)

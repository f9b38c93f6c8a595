"""The load generator's arithmetic, on traces made by hand: exact, and without a clock."""

from __future__ import annotations

import pytest

from lib.loadtest.arrivals import arrival_times
from lib.loadtest.client import EventReader, Target
from lib.loadtest.gauges import parse_gauges
from lib.loadtest.request_trace import OUTCOMES, RequestTrace
from lib.loadtest.requests import PREFIX, WORKLOADS, make_requests
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


def test_arrivals():
    assert arrival_times("burst", 3) == [0, 0, 0]
    assert arrival_times("steady", 3, rate=4) == [0, 0.25, 0.5]
    poisson = arrival_times("poisson", 4001, rate=10, seed=3)
    assert (
        poisson
        == arrival_times("poisson", 4001, rate=10, seed=3)
        != arrival_times("poisson", 4001, rate=10, seed=4)
    )
    assert poisson == arrival_times("gamma", 4001, rate=10, burstiness=1.0, seed=3)
    for kind, burstiness, variation in (
        ("poisson", 1.0, 1.0),
        ("gamma", 0.25, 4.0),
        ("gamma", 16.0, 1 / 16),
    ):
        times = arrival_times(kind, 4001, rate=10, burstiness=burstiness, seed=1)
        gaps = [b - a for a, b in zip(times, times[1:])]
        mean = sum(gaps) / len(gaps)
        squared = sum((gap - mean) ** 2 for gap in gaps) / len(gaps) / mean**2
        assert times[0] == 0 and min(gaps) >= 0
        assert mean == pytest.approx(0.1, rel=0.1) and squared == pytest.approx(variation, rel=0.2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("often", 3, {}),
        ("burst", 0, {}),
        ("steady", 3, {}),
        ("poisson", 3, {"rate": 0}),
        ("gamma", 3, {"rate": 1, "burstiness": -1.0}),
        ("steady", 3, {"rate": float("nan")}),
    ],
)
def test_bad_arrivals(arguments):
    kind, n, options = arguments
    with pytest.raises(ValueError, match="must be"):
        arrival_times(kind, n, **options)


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("text", [False, True])
def test_workloads(workload, text):
    made = make_requests(workload, 20, max_tokens=30, vocab_size=200, text=text, seed=5)
    assert made == make_requests(workload, 20, max_tokens=30, vocab_size=200, text=text, seed=5)
    assert made != make_requests(workload, 20, max_tokens=30, vocab_size=200, text=text, seed=6)
    prompts = [r.prompt.split() if text else r.prompt for r in made]
    lengths, fixed = (
        [len(p) for p in prompts],
        {"short": 6, "medium": 28, "long": 56, "shared-prefix": PREFIX + 28},
    )
    assert (
        set(lengths) == {fixed[workload]}
        if workload in fixed
        else 8 <= min(lengths) < max(lengths) <= 400
    )
    assert len({str(p) for p in prompts}) == 20
    if workload == "chat":
        assert 1 <= min(r.max_tokens for r in made) < max(r.max_tokens for r in made) <= 30
    else:
        assert {r.max_tokens for r in made} == {30}
    if workload == "shared-prefix":
        assert len({str(p[:PREFIX]) for p in prompts}) == 1
    if not text:
        assert all(0 <= i < 200 for p in prompts for i in p)


def test_bad_workloads_and_targets():
    for make in (
        lambda: make_requests("odd", 3),
        lambda: make_requests("short", 0),
        lambda: make_requests("short", 3, max_tokens=0),
        lambda: Target("localhost:8000"),
        lambda: Target("http://x", timeout=0),
        lambda: Target("http://x", stall_timeout=-1),
    ):
        with pytest.raises(ValueError, match="must"):
            make()
    assert Target("http://x:1/v1/").base == Target("http://x:1").base == "http://x:1"


def test_events_are_found_wherever_the_network_cuts():
    data = 'data: {"é": 1}\r\n\r\n: ping\n\ndata:[DONE]\n\n'.encode()
    for size in range(1, len(data) + 1):
        reader = EventReader()
        found = [e for i in range(0, len(data), size) for e in reader.feed(data[i : i + size])]
        assert found == ['{"é": 1}', "[DONE]"]


def test_gauges_by_vllms_and_sglangs_names():
    text = (
        '# HELP vllm:num_requests_running x\nvllm:num_requests_running{model_name="a b"} 3.0\n'
        'vllm:num_requests_waiting{model_name="a"} 2\nvllm:kv_cache_usage_perc{e="0"} 0.25\n'
        'vllm:kv_cache_usage_perc{e="1"} 0.75\nvllm:request_success_total{r="x"} 9\n'
    )
    assert parse_gauges(text) == {"running": 3, "waiting": 2, "kv_cache": 0.5}
    assert parse_gauges("sglang:num_running_reqs 4\nsglang:token_usage 0.5\n") == {
        "running": 4,
        "kv_cache": 0.5,
    }
    assert parse_gauges("up 1\n") == {}

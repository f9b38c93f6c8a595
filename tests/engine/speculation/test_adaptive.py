"""How many tokens are drafted, on cost curves that are given."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from lib import SamplingParams
from lib.core.batch import Scheduled
from lib.core.request import Request
from lib.engine.cuda_graphs import GraphRunner, Rerun
from lib.engine.speculation.adaptive import Acceptance, AdaptiveLength
from lib.engine.speculation.step_cost import CostCurve, StepCost, measure_step_cost

FLAT = CostCurve([1, 64, 128], [1.0, 1.0, 2.0])  # memory-bound up to 64 tokens
STEEP = CostCurve([1, 2], [1.0, 2.0])  # each token costs as much as the first


def decoding(num=1) -> list[Scheduled]:
    requests = [Request(f"r{i}", [5, 6, 7], SamplingParams()) for i in range(num)]
    for request in requests:
        request.num_computed_tokens = 2
    return [Scheduled(request, 1) for request in requests]


def learned(adaptive, items, outcomes, most=4) -> None:
    """Verified drafts: (tokens, accepted) per request, each told by the request's metrics as a step does."""
    for item, (drafts, accepted) in itertools.product(items, outcomes):
        adaptive.limits([item], [most])
        item.request.metrics.num_draft_tokens += drafts
        item.request.metrics.num_accepted_tokens += accepted


def test_the_curve():
    curve = CostCurve([1, 3, 5], [1.0, 2.0, 1.5])  # the last is noise
    assert curve(np.array([1, 2, 3, 4, 5])).tolist() == [1, 1.5, 2, 2, 2]
    assert curve(9) == pytest.approx(2 + 4 * 0.25)  # the slope of the whole, which is steeper
    assert CostCurve([1, 3, 5], [1, 1, 3])(7) == 5
    assert CostCurve([1], [2.0])(8) == 2
    for points, seconds in (([], []), ([2, 1], [1, 1]), ([1, 2], [1]), ([1], [0.0])):
        with pytest.raises(ValueError, match="num_tokens|seconds"):
            CostCurve(points, seconds)


def test_acceptance_is_counted_up_to_the_first_wrong_token():
    seen = Acceptance()
    seen.add(4, 2, decay=0.5)
    assert (seen.trials, seen.accepted) == (3, 2)
    seen.add(4, 4, decay=0.5)
    assert (seen.trials, seen.accepted) == (5.5, 5)
    # The prior counts like one trial.
    assert seen.rate == pytest.approx((5 + 0.6) / (5.5 + 1))
    assert Acceptance().rate == pytest.approx(0.6)


def test_good_drafts_grow_and_bad_ones_end():
    adaptive, items = AdaptiveLength(StepCost(FLAT)), decoding()
    learned(adaptive, items, [(4, 4)] * 5)
    assert adaptive.limits(items, [4]) == [4] and adaptive.limits(items, [2]) == [2]
    assert adaptive.rate(items[0].request) > 0.9
    adaptive, items = AdaptiveLength(StepCost(CostCurve([1, 9], [1.0, 2.6]))), decoding()
    learned(adaptive, items, [(4, 0)] * 8)
    assert adaptive.limits(items, [4]) == [0]


def test_where_each_token_costs_a_whole_one_nothing_is_drafted():
    adaptive, items = AdaptiveLength(StepCost(STEEP)), decoding(3)
    for item in items:
        learned(adaptive, [item], [(4, 4)] * 5)
    assert adaptive.limits(items, [4, 4, 4]) == [0, 0, 0]


def test_drafts_end_where_the_batch_reaches_the_knee_of_the_curve():
    """1 + k tokens for each of 8 requests are free up to 64 in all, and no more than that is taken."""
    for num, total in ((1, 7), (8, 7 * 8), (16, 48), (60, 4)):
        adaptive, items = AdaptiveLength(StepCost(FLAT)), decoding(num)
        learned(adaptive, items, [(7, 7)] * 6, most=7)
        assert sum(adaptive.limits(items, [7] * num)) == total


def test_no_other_choice_of_lengths_promises_more():
    rng = random.Random(1)
    for _ in range(40):
        num = rng.randint(1, 4)
        seconds = np.cumsum([rng.random() ** 3 + 0.01 for _ in range(20)])
        cost = StepCost(CostCurve(range(1, 21), seconds))
        adaptive, items = AdaptiveLength(cost), decoding(num)
        for item in items:
            learned(adaptive, [item], [(3, rng.randint(0, 3)) for _ in range(rng.randint(0, 6))], 3)
            adaptive.limits([item], [3])  # takes the last outcome in
        rates = [adaptive.rate(item.request) for item in items]

        def speed(lengths, rates=rates, cost=cost, num=num):
            gain = sum(r**j for r, k in zip(rates, lengths) for j in range(1, k + 1))
            return (num + gain) / cost.verify(num + sum(lengths))

        best = max(itertools.product(range(4), repeat=num), key=speed)
        chosen = adaptive.limits(items, [3] * num)
        if sum(chosen):
            assert speed(chosen) == pytest.approx(speed(best))
        else:
            assert speed(best) <= 1.02 * speed(chosen)


def test_passes_of_a_draft_model_are_paid_for():
    free, dear = AdaptiveLength(StepCost(FLAT)), AdaptiveLength(StepCost(FLAT), 0.9)
    for adaptive, expected in ((free, 4), (dear, 0)):
        items = decoding()
        learned(adaptive, items, [(4, 2)] * 6)
        assert adaptive.limits(items, [4]) == [expected]


def test_a_chunk_of_a_prompt_in_the_step_does_not_hide_what_drafts_cost():
    curve = CostCurve([1, 2, 1000], [1.0, 2.0, 1000.0])
    chunk = Scheduled(Request("chunk", [4] * 600, SamplingParams()), 500)
    adaptive, items = AdaptiveLength(StepCost(curve)), decoding()
    learned(adaptive, items, [(4, 4)] * 4)
    assert adaptive.limits([*items, chunk], [4, 0]) == [0, 0]


def test_steps_with_drafts_are_not_replayed_as_graphs():
    cost = StepCost(verify=FLAT, decode=CostCurve([1, 64], [0.1, 0.1]))
    adaptive, items = AdaptiveLength(cost), decoding()
    learned(adaptive, items, [(4, 4)] * 6)
    assert adaptive.limits(items, [4]) == [0], "5 tokens in ten times the time"


def test_a_request_without_drafts_tries_again_seldom():
    curve = CostCurve([1, 9], [1.0, 2.6])
    adaptive, items = AdaptiveLength(StepCost(curve)), decoding()
    metrics = items[0].request.metrics
    tries, step = [], 0
    while len(tries) < 6 and step < 2000:
        (length,) = adaptive.limits(items, [4])
        if length:
            tries.append(step)
            metrics.num_draft_tokens += length
        step += 1
    waits = np.diff(tries)
    assert waits[-4:].tolist() == sorted(waits[-4:]) and waits.max() == 257
    # A draft that is right ends the wait, and the bad ones before it are forgotten.
    while not (length := adaptive.limits(items, [4])[0]):
        pass
    metrics.num_draft_tokens += length
    metrics.num_accepted_tokens += length
    assert adaptive.limits(items, [4]) == [4]


def test_a_try_that_makes_no_draft_is_not_counted():
    adaptive, items = AdaptiveLength(StepCost(CostCurve([1, 9], [1.0, 2.6]))), decoding()
    learned(adaptive, items, [(4, 0)] * 8)
    lengths = [adaptive.limits(items, [4])[0] for _ in range(60)]
    assert lengths[:32] == [0] * 32 and lengths[32:] == [3] * 28


def speed_up(curve, acceptance, num=1, num_tokens=400, most=4) -> float:
    """Of `num` requests that draft with this acceptance rate: their time without drafts over that with them."""
    rng = random.Random(3)
    adaptive, items = AdaptiveLength(StepCost(curve)), decoding(num)
    seconds, left = 0.0, {item.request.request_id: num_tokens for item in items}
    while items:
        lengths = adaptive.limits(items, [most] * len(items))
        seconds += float(curve(len(items) + sum(lengths)))
        for item, length in zip(items, lengths):
            wrong = (i for i in range(length) if rng.random() >= acceptance)
            accepted = next(wrong, length)
            item.request.metrics.num_draft_tokens += length
            item.request.metrics.num_accepted_tokens += accepted
            left[item.request.request_id] -= accepted + 1
        items = [item for item in items if left[item.request.request_id] > 0]
    return num_tokens * float(curve(num)) / seconds


CPU = CostCurve([1, 5, 9, 17, 33, 65], [1.0, 1.32, 1.65, 2.3, 3.6, 6.2])  # 8 % per token
# As measured with SmolLM2 on two cores, over the time of one row.
RECORDED = CostCurve([1, 4, 8, 16, 32, 64], [1.0, 1.04, 1.19, 1.42, 1.73, 3.08])


@pytest.mark.parametrize("num", [1, 4, 16, 64])
@pytest.mark.parametrize("acceptance", [0.0, 0.05, 0.3, 0.95])
@pytest.mark.parametrize("curve", [CPU, FLAT, STEEP])
def test_drafts_never_cost_more_than_three_percent(curve, acceptance, num):
    assert speed_up(curve, acceptance, num) > 0.97


def test_right_drafts_pay_until_the_batch_is_too_large():
    gains = [speed_up(CPU, 0.95, num) for num in (1, 4, 16, 64)]
    assert gains[0] > 2 and gains == sorted(gains, reverse=True)
    assert speed_up(STEEP, 0.95, 1) == 1


def after_copying_traffic(curve, num=30) -> AdaptiveLength:
    """What is learnt from requests all of whose drafts were right."""
    adaptive = AdaptiveLength(StepCost(curve))
    for _ in range(num):
        items = decoding()
        learned(adaptive, items, [(8, 8)] * 6, most=8)
        adaptive.free(items[0].request)
    return adaptive


def drafted(adaptive, item, num_steps, accept, most=8) -> list[int]:
    """Lengths of the drafts of one request whose drafts are all right or all wrong."""
    lengths = []
    for _ in range(num_steps):
        (length,) = adaptive.limits([item], [most])
        item.request.metrics.num_draft_tokens += length
        item.request.metrics.num_accepted_tokens += length if accept else 0
        lengths.append(length)
    return lengths


def test_copying_traffic_does_not_make_drafts_of_a_new_request_long():
    """Each step finds a draft, and all are wrong: few tokens are drafted, whatever requests before had."""
    for traffic in (0, 30):
        adaptive, (item,) = after_copying_traffic(CPU, traffic), decoding()
        lengths = drafted(adaptive, item, 32, accept=False)
        assert lengths[0] == 3 and sum(lengths) <= 10, lengths
        # Two more requests in the same step do not change that.
        adaptive, items = after_copying_traffic(CPU, traffic), decoding(3)
        assert max(adaptive.limits(items, [8] * 3)) <= 3


def test_a_request_that_copies_gets_the_longest_drafts_from_its_second_on():
    for traffic in (0, 30):
        adaptive, (item,) = after_copying_traffic(CPU, traffic), decoding()
        assert drafted(adaptive, item, 6, accept=True) == [3] + [8] * 5


def test_a_request_that_tries_again_drafts_little():
    """Also one whose drafts were right for a time: a try is as short as a first draft."""
    adaptive, (item,) = AdaptiveLength(StepCost(CPU)), decoding()
    drafted(adaptive, item, 6, accept=True)
    lengths = drafted(adaptive, item, 80, accept=False)
    stop = lengths.index(0)
    assert set(lengths[stop:]) == {0, 3}


@pytest.mark.parametrize("num", [1, 4, 16])
@pytest.mark.parametrize("curve", [CPU, RECORDED])
def test_short_answers_lose_less_than_three_percent(curve, num):
    """All drafts are wrong, and one is found at every step."""
    assert speed_up(curve, 0.0, num, num_tokens=32, most=8) >= 0.97


def test_books():
    adaptive, items = AdaptiveLength(StepCost(FLAT)), decoding(2)
    adaptive.limits(items, [4, 4])
    with pytest.raises(RuntimeError, match="r1"):
        adaptive.check_integrity([items[0].request])
    adaptive.free(items[1].request), adaptive.free(items[1].request)
    adaptive.check_integrity([items[0].request])
    adaptive.reset()
    adaptive.check_integrity([])


@pytest.mark.parametrize("options", [dict(), dict(kv_cache="contiguous"), dict(kv_cache="none")])
def test_measured(llama, options):
    engine = llama.engine(**options)
    block_size = engine.manager.block_size
    cost = measure_step_cost(engine.runner, block_size, 17, engine.device)
    assert cost.decode is cost.verify
    assert cost.verify.num_tokens.tolist() == [1, 2, 3, 5, 9, 17]
    assert (np.diff(cost.verify.seconds) >= 0).all() and cost.verify.seconds[0] > 0


def test_measured_where_decode_steps_are_replayed(llama):
    engine = llama.engine(block_size=4)
    runner = GraphRunner(engine.runner, [1, 2, 4, 8], 4, 16, torch.device("cpu"), Rerun())
    cost = measure_step_cost(runner, 4, 17, engine.device)
    assert cost.decode.num_tokens.tolist() == [1, 2, 4, 8]
    assert cost.verify.num_tokens.tolist() == [1, 2, 3, 5, 9, 17]
    assert runner.num_replayed >= 8 and runner.num_eager >= 10
    # What was measured has left nothing behind.
    engine.runner = runner
    assert engine.generate([[5, 6, 7]], SamplingParams(max_tokens=6, temperature=0, ignore_eos=True))[0].token_ids == llama.greedy([5, 6, 7], 6)  # fmt: skip

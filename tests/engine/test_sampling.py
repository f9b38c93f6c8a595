"""The sampler against a slow float64 reference, row by row; and that a row's neighbours don't matter."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import SamplingParams
from lib.core.request import Request
from lib.engine.logit_adjustments import adjust
from lib.engine.sampling import sample


def request(prompt=(1, 2), output=(), stop_ids=(), index=0, **params) -> Request:
    made = Request(
        "r",
        list(prompt),
        SamplingParams(**{"max_tokens": 1000, **params}),
        frozenset(stop_ids),
        index,
    )
    made.token_ids += output
    return made


def logits_of(vocab: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(vocab, generator=torch.Generator().manual_seed(seed))


def reference(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """Probabilities by the definitions, one candidate at a time."""
    z = np.array([x / temperature for x in logits.double().tolist()])
    p = np.exp(z - z.max())
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda i: -p[i])
    kept = [i for i in order if p[i] >= min_p * p[order[0]] * (1 - 1e-9)]
    if top_k > 0:
        kept = kept[:top_k]
    whole, total, nucleus = p[kept].sum(), 0.0, []
    for i in kept:
        if total >= top_p * whole:
            break
        nucleus.append(i)
        total += p[i]
    out = np.zeros(len(p))
    out[nucleus] = p[nucleus] / p[nucleus].sum()
    return out


def draw(logits: torch.Tensor, count: int, **params) -> Counter:
    """`count` draws, each of a request with a seed of its own, in batches."""
    requests = [request(seed=s, **params) for s in range(count)]
    ids = []
    for start in range(0, count, 500):
        rows = requests[start : start + 500]
        ids += sample(logits.expand(len(rows), -1).clone(), rows)[0]
    return Counter(ids)


def assert_follows(counts: Counter, expected: np.ndarray) -> None:
    """Nothing outside the support, and chi square below its mean + 4 standard deviations."""
    total = sum(counts.values())
    assert all(expected[token] > 0 for token in counts), "drew a token that was cut off"
    common = [i for i in range(len(expected)) if expected[i] * total >= 5]
    rest = total - sum(counts[i] for i in common)
    pairs = [(counts[i], expected[i] * total) for i in common]
    tail = total - sum(e for _, e in pairs)
    if tail >= 5:
        pairs.append((rest, tail))
    freedom = max(1, len(pairs) - 1)
    chi2 = sum((seen - e) ** 2 / e for seen, e in pairs)
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom), (
        f"chi2 {chi2:.1f} for {freedom} degrees of freedom"
    )


@pytest.mark.parametrize(
    "params",
    [
        dict(),
        dict(temperature=0.5),
        dict(temperature=2.0),
        dict(top_k=5),
        dict(top_k=1),
        dict(top_k=-1),
        dict(top_k=40),
        dict(top_k=2**70),
        dict(top_p=0.9),
        dict(top_p=0.3),
        dict(top_p=1e-6),
        dict(min_p=0.1),
        dict(min_p=1.0),
        dict(top_k=10, top_p=0.8),
        dict(top_p=0.95, min_p=0.05, temperature=0.7),
        dict(top_k=7, top_p=0.9, min_p=0.02, temperature=1.5),
    ],
    ids=str,
)
def test_draws_follow_the_definition(params):
    logits = logits_of(40, seed=3)
    assert_follows(draw(logits, 4000, **params), reference(logits, **params))


@pytest.mark.parametrize(
    "params",
    [
        dict(top_p=0.9),
        dict(top_p=0.999),
        dict(top_p=0.7, min_p=0.9),
        dict(top_k=2500),
        dict(top_k=1500, top_p=0.5),
        dict(top_k=1024),
        dict(min_p=0.97),
    ],
    ids=str,
)
def test_nuclei_beyond_the_first_candidates(params):
    """A flat distribution over 3000 tokens: 1024 candidates do not hold the nucleus, and the answer is still exact."""
    logits = logits_of(3000, seed=1, scale=0.01)
    expected = reference(logits, **params)
    counts = draw(logits, 3000, **params)
    assert all(expected[token] > 0 for token in counts)
    kept = (expected > 0).sum()
    if kept > 1024:
        outside = sum(
            n for token, n in counts.items() if expected[token] and token not in _best(logits, 1024)
        )
        share = 1 - expected[list(_best(logits, 1024))].sum()
        assert abs(outside / 3000 - share) < 4 * math.sqrt(share * (1 - share) / 3000) + 1e-9


def _best(logits: torch.Tensor, k: int) -> set[int]:
    return set(logits.topk(k).indices.tolist())


def test_top_p_counts_what_top_k_left():
    """top_p is a share of what top_k left, also where top_k keeps more than the candidates that are looked at first."""
    logits = logits_of(3000, seed=2, scale=1.2)
    for top_k in (900, 1300):
        expected = reference(logits, top_k=top_k, top_p=0.9)
        edge = int((expected > 0).sum())
        row = request(top_k=top_k, top_p=0.9)
        row.uniform = lambda: 1 - 1e-12  # the last token of the nucleus
        token = sample(logits[None].clone(), [row])[0][0]
        assert token == logits.topk(edge).indices[-1].item()


@pytest.mark.parametrize(
    "params", [dict(), dict(top_k=5), dict(top_p=0.9), dict(min_p=0.1)], ids=str
)
@pytest.mark.parametrize("uniform", [0.0, 1e-17, 0.5, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(params, uniform):
    logits = logits_of(40, seed=4)
    logits[:3] = logits[-3:] = float("-inf")
    row = request(**params)
    row.uniform = lambda: uniform
    token = sample(logits[None].clone(), [row])[0][0]
    assert reference(logits, **params)[token] > 0


KINDS = [
    dict(temperature=0),
    dict(),
    dict(temperature=0.7),
    dict(top_k=3),
    dict(top_p=0.8),
    dict(top_p=0.999),
    dict(min_p=0.05),
    dict(top_k=9, top_p=0.7, min_p=0.01),
    dict(presence_penalty=1.5),
    dict(repetition_penalty=1.3),
    dict(min_tokens=5, top_p=0.6),
    dict(logprobs=3),
    dict(frequency_penalty=-1, temperature=0),
]


@settings(max_examples=40)
@given(
    rows=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 50)), min_size=2, max_size=8),
    flat=st.booleans(),
    ties=st.booleans(),
)
def test_a_row_does_not_depend_on_its_neighbours(rows, flat, ties):
    vocab = 2000
    logits = torch.stack(
        [
            logits_of(vocab, seed=s, scale=0.05 if flat and i % 2 else 3.0)
            for i, (_, s) in enumerate(rows)
        ]
    )
    if ties:
        logits = logits.bfloat16().float()  # a bfloat16 model's logits are full of equal values

    def fresh():
        return [
            request(seed=s, prompt=[s % 7, 5], output=[9, 9, s % 11], stop_ids=[3], **kind)
            for kind, s in rows
        ]

    together = sample(logits.clone(), fresh())
    alone = [sample(logits[r : r + 1].clone(), [row]) for r, row in enumerate(fresh())]
    assert together[0] == [ids[0] for ids, _ in alone]
    for one, (_, other) in zip(together[1], alone):
        assert (one is None) == (other[0] is None)
        if one is not None:
            assert list(one) == list(other[0]) and np.allclose(
                list(one.values()), list(other[0].values()), atol=1e-5
            )


def test_sampling_again_chooses_the_same_and_the_next_token_draws_anew():
    """A step that is repeated after an interrupt must not draw twice."""
    logits = torch.zeros(1, 100_000)
    for seed in (None, 3):
        row, drawn = request(seed=seed), []
        for _ in range(20):
            ids = {sample(logits, [row])[0][0] for _ in range(3)}
            assert len(ids) == 1
            drawn += ids
            row.append(drawn[-1])
        assert len(set(drawn)) > 15


def test_random_numbers_are_uniform_over_positions_seeds_and_completions():
    numbers = np.array(
        [
            request(output=[5] * position, seed=seed, index=index).uniform()
            for position in range(40)
            for seed in range(20)
            for index in range(5)
        ]
    )
    assert len(set(numbers)) == len(numbers) == 4000 and 0 <= numbers.min() < numbers.max() < 1
    counts = np.histogram(numbers, bins=40, range=(0, 1))[0]
    assert ((counts - 100) ** 2 / 100).sum() < 39 + 4 * math.sqrt(2 * 39)
    rows = numbers.reshape(40, 100)
    neighbours = np.corrcoef(rows[:-1].ravel(), rows[1:].ravel())[0, 1]
    assert abs(neighbours) < 0.07


@pytest.mark.parametrize("top_p", [1e-46, 5e-324, 1e-300])
@pytest.mark.parametrize("vocab", [40, 3000])
def test_the_smallest_top_p_leaves_the_most_likely_token(top_p, vocab):
    logits = logits_of(vocab, seed=5)
    assert set(draw(logits, 50, top_p=top_p)) == {logits.argmax().item()}


def test_top_k_keeps_exactly_k_of_equal_tokens():
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 2.0, 0.0])
    counts = draw(logits, 400, top_k=3, temperature=5.0)
    assert len(counts) == 3 and 1 in counts and set(counts) <= {1, 2, 3, 4, 5}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "params", [dict(temperature=0), dict(), dict(top_p=0.5), dict(logprobs=3), dict(min_tokens=5)]
)
def test_a_row_that_is_not_finite_has_no_token_and_its_neighbours_do(bad, params):
    logits = torch.stack([logits_of(50, seed) for seed in range(3)])
    expected = sample(logits, [request(seed=s, stop_ids=[3], **params) for s in range(3)])
    for row, column in ((1, 0), (1, 49)):
        broken = logits.clone()
        broken[row, column] = bad
        ids, logprobs = sample(broken, [request(seed=s, stop_ids=[3], **params) for s in range(3)])
        assert ids == [expected[0][0], None, expected[0][2]]
        assert logprobs == [expected[1][0], None, expected[1][2]]


def test_minus_infinity_is_a_token_that_cannot_be_unless_all_are():
    logits = logits_of(10)
    logits[2:] = -math.inf
    assert sample(logits[None], [request(temperature=0)])[0][0] in (0, 1)
    assert sample(torch.full((1, 10), -math.inf), [request(temperature=0)])[0] == [None]


def test_temperature_towards_zero_becomes_argmax():
    logits = logits_of(500, seed=6)
    best = logits.argmax().item()
    for temperature in (0, 1e-30, 1e-6, 1e-5, 1e-4, 1e-3):
        assert set(draw(logits, 50, temperature=temperature)) == {best}


def test_very_high_temperatures_are_uniform():
    counts = draw(logits_of(10, seed=6), 2000, temperature=1e30)
    assert_follows(counts, np.full(10, 0.1))


@settings(max_examples=60)
@given(
    prompt=st.lists(st.integers(0, 19), min_size=1, max_size=8),
    output=st.lists(st.integers(0, 19), max_size=8),
    repetition=st.floats(0.1, 3),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    seed=st.integers(0, 99),
)
def test_penalties_follow_their_definition(prompt, output, repetition, presence, frequency, seed):
    """Repetition over prompt and output, then frequency and presence over the output (vLLM, OpenAI)."""
    logits = logits_of(20, seed=seed)
    expected = logits.double().tolist()
    for token in set(prompt) | set(output):
        expected[token] = (
            expected[token] / repetition if expected[token] > 0 else expected[token] * repetition
        )
    for token, times in Counter(output).items():
        expected[token] -= frequency * times + presence
    row = request(
        prompt,
        output,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
    )
    plain = request()
    raw = torch.stack([logits, logits])
    adjusted = adjust(raw, [row, plain])
    assert torch.allclose(
        adjusted[0].double(), torch.tensor(expected, dtype=torch.double), atol=1e-4
    )
    assert torch.equal(adjusted[1], logits), "a neighbour's penalties"
    assert torch.equal(raw[0], logits), "the raw logits are still needed for the log-probabilities"


def test_min_tokens_holds_stop_ids_back_until_then():
    logits = torch.zeros(6)
    logits[3], logits[4] = 10.0, 5.0
    for produced, expected in ((0, 4), (1, 4), (2, 3)):
        row = request(output=[1] * produced, stop_ids=[3], min_tokens=2, temperature=0)
        assert sample(logits[None].clone(), [row])[0] == [expected]


@pytest.mark.parametrize(
    "params", [dict(temperature=0), dict(temperature=0.3, top_k=2), dict(presence_penalty=2.0)]
)
def test_logprobs_are_the_models_own_and_the_sampled_token_comes_first(params):
    logits = logits_of(30, seed=8)
    exact = torch.log_softmax(logits.double(), -1)
    for wanted in (0, 1, 5, 20):
        row = request(output=[3], seed=2, logprobs=wanted, **params)
        ids, logprobs = sample(logits[None].clone(), [row])
        keys = list(logprobs[0])
        assert keys[0] == ids[0]
        assert set(keys) == {ids[0]} | set(exact.topk(wanted).indices.tolist())
        others = [k for k in keys[1:]]
        assert others == sorted(others, key=lambda k: -exact[k])
        assert all(abs(logprobs[0][k] - exact[k].item()) < 1e-5 for k in keys)
    assert sample(logits[None].clone(), [request(**params)])[1] == [None]


def test_seeds_repeat_and_completions_differ():
    logits = logits_of(1000, seed=9, scale=0.1)
    first, again = (
        sample(logits.expand(4, -1).clone(), [request(seed=5, index=i) for i in range(4)])[0]
        for _ in range(2)
    )
    assert first == again and len(set(first)) > 1
    assert (
        first
        != sample(logits.expand(4, -1).clone(), [request(seed=6, index=i) for i in range(4)])[0]
    )


def test_half_precision_logits_are_sampled_in_float32():
    logits = logits_of(100, seed=1).bfloat16()
    ids, logprobs = sample(logits[None], [request(temperature=0, logprobs=2)])
    assert abs(logprobs[0][ids[0]] - torch.log_softmax(logits.float(), -1)[ids[0]].item()) < 1e-6


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 3e38])
@pytest.mark.parametrize("temperature", [0.0, 1.1e-5, 1.0])
def test_an_extreme_repetition_penalty_still_gives_a_token(tiny, penalty, temperature):
    params = SamplingParams(max_tokens=4, temperature=temperature, repetition_penalty=penalty)
    for name in tiny:
        (output,) = tiny[name].engine().generate([[5, 6, 7]], params)
        assert output.finish_reason in ("length", "stop") and output.token_ids


class Only:
    """A constraint that allows the same ids at every position."""

    def __init__(self, ids, vocab_size):
        bits = np.zeros(vocab_size, bool)
        bits[list(ids)] = True
        self.bits = np.packbits(bits, bitorder="little")

    def allowed(self, output_token_ids):
        return self.bits

    def is_complete(self, output_token_ids):
        return False


def test_masks_leave_only_what_they_allow_and_neighbours_bit_by_bit():
    logits = torch.randn(3, 21)
    rows = [request(), request(), request()]
    rows[1].constraint = Only([20, 3], 21)
    adjusted = adjust(logits, rows)
    assert torch.equal(adjusted[[0, 2]], logits[[0, 2]])
    assert adjusted[1].isfinite().nonzero().flatten().tolist() == [3, 20]
    assert torch.equal(adjusted[1, [3, 20]], logits[1, [3, 20]])
    rows[1].constraint = Only([], 21)
    ids, _ = sample(logits, rows)
    assert ids[1] is None and ids[0] is not None and ids[2] is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_copy_what_they_allow_as_float32_and_leave_the_logits_alone(dtype):
    logits = torch.tensor([[-0.0, 1.5, float("inf"), -3.0, float("nan")]] * 2, dtype=dtype)
    before = logits.clone()
    rows = [request(), request()]
    rows[0].constraint = Only([0, 3], 5)
    adjusted = adjust(logits, rows)
    assert adjusted.dtype == torch.float32 and adjusted.signbit()[:, 0].all()
    assert (
        adjusted[0, :4].tolist() == [0, float("-inf"), float("-inf"), -3] and adjusted[0, 4].isnan()
    )
    assert adjusted[1, :4].equal(logits[1, :4].float()) and adjusted[1, 4].isnan()
    assert logits.view(torch.int16).equal(before.view(torch.int16))
    assert sample(logits, rows)[0] == [None, None]


def test_min_tokens_gives_way_where_a_mask_leaves_only_the_end():
    logits = torch.zeros(2, 8)
    rows = [request(min_tokens=3, max_tokens=5, temperature=0.0) for _ in range(2)]
    for row, ids in zip(rows, ([7], [7, 2])):
        row.stop_token_ids = frozenset([7])
        row.constraint = Only(ids, 8)
    logits[:, 7] = 5
    assert sample(logits, rows)[0] == [7, 2]


def test_biases_are_added_and_bad_words_not_completed():
    row = request(logit_bias={3: 2.5, "4": -100}, temperature=0.0)
    logits = torch.zeros(1, 6)
    assert adjust(logits, [row])[0].tolist() == [0, 0, 0, 2.5, -100, 0]
    row = request(temperature=0.0)
    row.bad_words_token_ids = [[5], [1, 2, 3], [2, 4]]
    row.token_ids += [1, 2]
    adjusted = adjust(logits, [row])[0]
    assert (adjusted == float("-inf")).nonzero().flatten().tolist() == [3, 4, 5]
    row.token_ids += [1]
    assert (adjust(logits, [row])[0] == float("-inf")).nonzero().flatten().tolist() == [5]


def test_a_penalty_leaves_a_forbidden_token_forbidden():
    row = request(repetition_penalty=2.0, temperature=0.0)
    row.token_ids += [1]
    row.constraint = Only([2], 4)
    assert sample(torch.tensor([[0.0, 9.0, -9.0, 0.0]]), [row])[0] == [2]

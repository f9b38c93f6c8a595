"""Sampled drafts: the output follows the model's distribution exactly, whatever the drafts are sampled from."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from lib import SamplingParams
from lib.core.batch import Scheduled
from lib.core.request import Request
from lib.engine.completion_stream import CompletionStream
from lib.engine.sampling import Sampler, sample
from lib.engine.speculation import rejection
from lib.engine.speculation.draft_sampling import DraftRow, GreedyDrafts, ProbabilisticDrafts
from lib.engine.speculation.rejection import RejectionSampler, accepts, residual
from lib.engine.step_results import results_of, rows_to_sample
from tests.helpers import Tiny, llama_checkpoint

WORDS, START, COUNT = 10, 0, 4000


def table(seed: int, scale: float = 1.5) -> torch.Tensor:
    """Logits [previous word, next word]."""
    return scale * torch.randn(WORDS, WORDS, generator=torch.Generator().manual_seed(seed))


TARGET, DRAFTER = table(1), 0.6 * table(1) + 0.6 * table(2)  # alike, but far from equal


def make(seed: int, num_tokens: int, **params) -> Request:
    request = Request(
        "r", [START], SamplingParams(max_tokens=num_tokens, seed=seed, ignore_eos=True, **params)
    )
    return request


def draft(requests: list[Request], limits: list[int], sampler) -> list[Scheduled]:
    """One step's work with drafts from DRAFTER, as a proposer makes them."""
    drafts = {r: [] for r in requests}
    probs = {r: [] for r in requests}
    for place in range(max(limits)):
        active = [r for r, limit in zip(requests, limits) if limit > place]
        logits = DRAFTER[[[*r.token_ids, *drafts[r]][-1] for r in active]]
        token_ids, found = sampler.choose(logits, [DraftRow(r, tuple(drafts[r])) for r in active])
        for r, token_id, prob in zip(active, token_ids, found):
            drafts[r].append(token_id)
            probs[r].append(prob)
    work = []
    for r in requests:
        r.num_computed_tokens = r.num_tokens - 1
        sampled = bool(probs[r]) and probs[r][0] is not None
        work.append(
            Scheduled(
                r,
                1 + len(drafts[r]),
                tuple(drafts[r]),
                torch.stack(probs[r]) if sampled else None,
            )
        )
    return work


def verify(work: list[Scheduled], streams: dict[Request, CompletionStream], sampler) -> int:
    """Run the step; returns how many drafts were accepted."""
    logits = torch.cat(
        [TARGET[[item.request.token_ids[-1], *item.draft_token_ids]] for item in work]
    )
    chosen = sampler.choose(logits, rows_to_sample(work))
    progress = results_of(work, chosen, [streams[item.request] for item in work])
    for item in progress:
        item.stream.commit(item)
    return sum(item.num_accepted for item in progress)


def play(num_tokens=3, num_drafts=2, count=COUNT, drafts=None, **params):
    """(texts, accepted share) of `count` requests, each with a seed of its own."""
    drafts, sampler = drafts or ProbabilisticDrafts(), RejectionSampler()
    texts, proposed, accepted = [], 0, 0
    for start in range(0, count, 500):
        requests = [make(seed, num_tokens, **params) for seed in range(start, start + 500)]
        streams = {r: CompletionStream(r, None) for r in requests}
        while active := [r for r in requests if not r.finished]:
            limits = [min(num_drafts, num_tokens - r.num_output_tokens - 1) for r in active]
            work = draft(active, limits, drafts) if max(limits) else draft(active, limits, None)
            proposed += sum(len(item.draft_token_ids) for item in work)
            accepted += verify(work, streams, sampler)
        texts += [tuple(r.output_token_ids) for r in requests]
    return texts, accepted / max(1, proposed)


def truth(num_tokens: int, next_words) -> dict[tuple[int, ...], float]:
    """Probability of each text of `num_tokens` words. next_words(words so far): those of the next one."""
    texts = {(): 1.0}
    for _ in range(num_tokens):
        texts = {
            (*text, word): probability * p
            for text, probability in texts.items()
            for word, p in enumerate(next_words(text))
            if p > 0
        }
    return texts


def by_definition(**params):
    """The words after a text of the toy, by the definitions, one after the other."""
    return lambda text: next_word((START, *text), **params)


def next_word(seen, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, logit_bias=None,
              repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0):  # fmt: skip
    z = TARGET[seen[-1]].double().numpy().copy()
    for word, bias in (logit_bias or {}).items():
        z[word] += bias
    output = Counter(seen[1:])
    for word in set(seen):
        z[word] = z[word] / repetition_penalty if z[word] > 0 else z[word] * repetition_penalty
    for word, times in output.items():
        z[word] -= frequency_penalty * times + presence_penalty
    p = np.exp((z - z.max()) / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    kept = [i for i in order if p[i] >= min_p * p[order[0]]][: top_k or None]
    before = np.concatenate([[0], np.cumsum(p[kept])[:-1]]) / p[kept].sum()
    kept = [i for i, mass in zip(kept, before) if mass < top_p or i == order[0]]
    cut = np.zeros(WORDS)
    cut[kept] = p[kept] / p[kept].sum()
    return cut


def assert_follows(counts: Counter, expected: dict) -> None:
    """Nothing outside the support, and chi square below its mean + 4 standard deviations."""
    total = sum(counts.values())
    assert set(counts) <= {e for e, p in expected.items() if p > 0}, "an impossible text"
    common = [e for e, p in expected.items() if p * total >= 5]
    pairs = [(counts[e], expected[e] * total) for e in common]
    tail = total - sum(e for _, e in pairs)
    if tail >= 5:
        pairs.append((total - sum(seen for seen, _ in pairs), tail))
    freedom = max(1, len(pairs) - 1)
    chi2 = sum((seen - e) ** 2 / e for seen, e in pairs)
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom), f"{chi2:.1f} for {freedom} degrees"


def check(texts: list[tuple[int, ...]], next_words) -> None:
    """Each position by itself, and each pair of neighbouring positions together."""
    length = len(texts[0])
    expected = truth(length, next_words)
    for places in [(i,) for i in range(length)] + [(i, i + 1) for i in range(length - 1)]:
        marginal: dict[tuple[int, ...], float] = {}
        for text, p in expected.items():
            key = tuple(text[i] for i in places)
            marginal[key] = marginal.get(key, 0.0) + p
        assert_follows(Counter(tuple(text[i] for i in places) for text in texts), marginal)


@pytest.mark.parametrize("params", [
    dict(), dict(temperature=0.6), dict(top_k=4), dict(top_p=0.8), dict(min_p=0.1),
    dict(temperature=1.4, top_k=7, top_p=0.9),
    dict(logit_bias={3: 2.0, 5: -100.0}, top_p=0.9),
    dict(repetition_penalty=1.5, presence_penalty=0.7, frequency_penalty=0.9),
], ids=str)  # fmt: skip
def test_each_position_and_each_pair_of_positions_follow_the_model(params):
    texts, share = play(**params)
    check(texts, by_definition(**params))
    assert 0.3 < share < 0.95, "both outcomes are tested"


def test_drafts_that_are_not_sampled_do_no_harm():
    """The most likely words as drafts for a request at temperature 1."""
    texts, share = play(drafts=GreedyDrafts(), top_p=0.8)
    check(texts, by_definition(top_p=0.8))
    assert 0.2 < share < 0.95


@pytest.mark.parametrize("fault", ["accepts", "residual", "both", "uniform"])
def test_these_tests_see_p_and_q_swapped(monkeypatch, fault):
    """And one random number for both the draft and its acceptance."""
    if fault in ("accepts", "both"):
        monkeypatch.setattr(rejection, "accepts", lambda p, q, u: accepts(q, p, u))
    if fault in ("residual", "both"):
        monkeypatch.setattr(rejection, "residual", lambda p, q: residual(q, p))
    if fault == "uniform":
        monkeypatch.setattr(DraftRow, "uniform", lambda self: self.request.uniform(
            self.num_output_tokens, "accept"))  # fmt: skip
    with pytest.raises(AssertionError):
        check(play()[0], by_definition())


def test_the_residual_matters(monkeypatch):
    monkeypatch.setattr(rejection, "residual", lambda p, q: p)
    with pytest.raises(AssertionError):
        check(play()[0], by_definition())


def test_how_often_a_draft_is_accepted():
    """Leviathan et al. 2023, corollary 3.6: sum over words of min(p, q), here for the first draft."""
    p, q = (torch.softmax(x[START].double(), -1) for x in (TARGET, DRAFTER))
    expected = torch.minimum(p, q).sum().item()
    _, share = play(num_tokens=2, num_drafts=1)
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / COUNT)


def test_a_drafter_that_equals_the_model_is_always_accepted(monkeypatch):
    monkeypatch.setitem(globals(), "DRAFTER", TARGET)
    for params in (dict(), dict(top_p=0.7), dict(presence_penalty=0.5)):
        texts, share = play(count=500, **params)
        assert share == 1.0


def test_a_worked_example():
    """The one of the docstring."""
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    assert residual(p, q).tolist() == [[0.0, pytest.approx(0.4)]]
    uniform = torch.tensor([[0.55, 0.56]])
    assert accepts(p[:, :1].expand(1, 2), q[:, :1].expand(1, 2), uniform).tolist() == [
        [True, False]
    ]
    assert accepts(p[:, 1:], q[:, 1:], torch.tensor([[1 - 2**-53]])).all()
    assert not accepts(torch.tensor([0.0]), torch.tensor([0.5]), torch.tensor([0.0])).any()
    assert residual(p, p).tolist() == p.tolist(), "rounding has left nothing"


@pytest.mark.parametrize("params", [dict(), dict(top_p=0.8), dict(top_k=3, logprobs=2)], ids=str)
def test_asked_again_it_answers_the_same(params):
    """A step that is interrupted and repeated has the same drafts, the same verdicts and the same tokens."""
    requests = [make(seed, 9, **params) for seed in range(40)]
    first, again = (draft(requests, [3] * 40, ProbabilisticDrafts()) for _ in range(2))
    assert [item.draft_token_ids for item in first] == [item.draft_token_ids for item in again]
    logits = torch.cat([TARGET[[START, *item.draft_token_ids]] for item in first])
    one, two = (RejectionSampler().choose(logits, rows_to_sample(w)).read() for w in (first, again))
    assert one == two


def test_neighbours_without_sampled_drafts_keep_their_tokens():
    """Greedy requests, plain rows, deterministic drafts and unfinished prompts in the same step, with and without."""
    sampled = [make(seed, 9, top_p=0.9, logprobs=1) for seed in range(3)]
    work = draft(sampled, [3] * 3, ProbabilisticDrafts())
    greedy = draft([make(9, 9, temperature=0)], [2], ProbabilisticDrafts())
    assert greedy[0].draft_probs is None and all(item.draft_probs is not None for item in work)
    others = [
        *greedy,
        *draft([make(5, 9, top_p=0.9), make(6, 9)], [0, 0], None),
        *draft([make(7, 9), make(8, 9, top_k=4)], [2, 2], GreedyDrafts()),
    ]
    prompt = make(4, 9)
    prompt.token_ids, prompt.num_prompt_tokens = [1, 2, 3, 4], 4
    others.append(Scheduled(prompt, 2))
    assert not others[-1].completes

    def choose(work, sampler):
        ends = [
            [item.request.token_ids[item.request.num_computed_tokens + item.num_tokens - 1]]
            if not item.completes
            else [item.request.token_ids[-1], *item.draft_token_ids]
            for item in work
        ]
        token_ids, logprobs = sampler.choose(
            TARGET[[i for end in ends for i in end]], rows_to_sample(work)
        ).read()
        return list(zip(token_ids, logprobs))

    together = choose([*work, *others], RejectionSampler())
    rows = sum(item.num_rows for item in work)
    assert together[rows:] == choose(others, RejectionSampler()) == choose(others, Sampler())
    assert together[:rows] == choose(work, RejectionSampler())
    for token_id, logprobs in together[:rows]:
        assert list(logprobs)[0] == token_id and len(logprobs) in (1, 2)


def test_the_nucleus_can_be_larger_than_the_candidates():
    """With more than 1,024 likely words the sampler looks twice; verdict and distribution are those of all words."""
    vocab = 3000
    logits = 0.1 * torch.randn(1, vocab, generator=torch.Generator().manual_seed(3))
    request = Request("r", [0], SamplingParams(max_tokens=9, seed=1, top_p=0.95))
    request.num_computed_tokens = 0
    drafts = ProbabilisticDrafts()
    (token,), (probs,) = drafts.choose(logits, [DraftRow(request)])
    ordered = torch.softmax(logits[0].double(), -1).sort(descending=True).values
    nucleus = int((ordered.cumsum(0) < 0.95).sum()) + 1
    assert int((probs > 0).sum()) == nucleus > 1024 and probs[token] > 0
    assert probs.sum().item() == pytest.approx(1)
    item = Scheduled(request, 2, (token,), probs[None])
    rows = torch.cat([logits, logits])
    assert RejectionSampler().choose(rows, rows_to_sample([item])).read()[0][0] == token, "p = q"
    unlike = rows.clone()
    unlike[0, token] = -50.0  # outside the nucleus now
    chosen = RejectionSampler().choose(unlike, rows_to_sample([item])).read()[0][0]
    assert chosen != token and chosen is not None


def test_drafts_are_sampled_with_the_requests_own_parameters():
    for params in (dict(temperature=0.5), dict(top_k=3), dict(logit_bias={4: 5.0}, min_p=0.05)):
        request = make(3, 9, **params)
        _, (probs,) = ProbabilisticDrafts().choose(DRAFTER[:1], [DraftRow(request)])
        counts = Counter()
        for start in range(0, 2000, 500):
            rows = [make(seed, 9, **params) for seed in range(start, start + 500)]
            counts.update(sample(DRAFTER[:1].expand(500, -1).clone(), rows)[0])
        assert_follows(counts, dict(enumerate(probs.tolist())))


def test_logits_that_are_not_finite_give_no_draft_and_no_token():
    broken = TARGET[:1].clone()
    broken[0, 3] = float("nan")
    request = make(1, 9)
    for drafts in (ProbabilisticDrafts(), GreedyDrafts()):
        assert drafts.choose(broken, [DraftRow(request)])[0] == [None]
    (item,) = draft([request], [2], ProbabilisticDrafts())
    logits = torch.cat([TARGET[[START]], broken, TARGET[[1]]])
    token_ids, _ = RejectionSampler().choose(logits, rows_to_sample([item])).read()
    assert token_ids[1] is None and None not in (token_ids[0], token_ids[2])


def test_the_reference_is_a_distribution():
    assert len(truth(2, by_definition())) == WORDS**2
    assert sum(truth(3, by_definition(top_p=0.8)).values()) == pytest.approx(1)
    assert len(truth(2, by_definition(top_k=2))) == 4


@pytest.mark.parametrize("options", [
    dict(speculative_config=dict(method="early_exit", draft_layers=1), max_num_batched_tokens=100),
    dict(speculative_config=dict(method="draft_model"), attention="fused"),
], ids=["early exit, not always room for all drafts", "draft model"])  # fmt: skip
def test_texts_of_an_engine_follow_its_model(tmp_path, options):
    """The same through all of the engine: the texts of 2,000 requests against the probabilities without a cache."""
    target = Tiny(llama_checkpoint(tmp_path / "target", seed=3, vocab_size=WORDS))
    config = dict(
        options["speculative_config"], draft_sample_method="probabilistic", adaptive=False,
        num_speculative_tokens=2,
    )  # fmt: skip
    if config["method"] == "draft_model":
        config["model"] = llama_checkpoint(tmp_path / "draft", seed=4, vocab_size=WORDS)
    engine = target.engine(
        **{**options, "speculative_config": config}, max_num_seqs=64, num_blocks=129
    )
    sampling = dict(temperature=4.0, top_p=0.95)

    def next_words(seen):
        return distribution(target.logits([4, 5, *seen]), **sampling)

    outputs = engine.generate(
        [[4, 5]] * 2000,
        [SamplingParams(max_tokens=4, seed=s, ignore_eos=True, **sampling) for s in range(2000)],
    )
    check([tuple(o.token_ids) for o in outputs], next_words)
    stats = engine.stats()
    assert 0.1 < stats["accepted_tokens"] / stats["draft_tokens"] < 0.9
    assert stats["accepted_by_position"][1] > 50


def distribution(logits: torch.Tensor, temperature: float, top_p: float) -> list[float]:
    p = torch.softmax(logits.double() / temperature, -1)
    values, order = p.sort(descending=True)
    kept = order[values.cumsum(0) - values < top_p]
    return torch.zeros_like(p).index_copy(0, kept, p[kept] / p[kept].sum()).tolist()

"""Exact distributions under masks, against counting by hand and against drawing from a small Markov chain."""

import math

import pytest
import torch

from lib.bench.measure import constrained_distribution as exact
from lib.engine.structured.automaton import from_choice, from_regex
from lib.engine.structured.token_masks import TokenMasks
from lib.engine.structured.vocabulary import Vocabulary

TOKENS = [b"a", b"b", b"ab", b"x", b""]
END = 4
# After nothing, and after each token: the probability of each next one.
START = [0.5, 0.1, 0.2, 0.1, 0.1]
NEXT = {0: [0.1, 0.02, 0.0, 0.8, 0.08], 1: [0.1] * 4 + [0.6], 2: [0.3, 0.3, 0.1, 0.2, 0.1], 3: [0.2] * 5}  # fmt: skip


def log_probs(sequences):
    rows = [NEXT[tokens[-1]] if tokens else START for tokens in sequences]
    return torch.tensor(rows).log()


def masks(texts):
    return TokenMasks(from_choice(texts), Vocabulary(TOKENS, [END]))


def test_both_distributions_by_hand():
    found = exact.exact_shares(masks(["ab", "b"]), log_probs)
    # "ab" as two tokens and as one; "b".
    own = {"ab": 0.5 * 0.02 * 0.6 + 0.2 * 0.1, "b": 0.1 * 0.6}
    total = sum(own.values())
    assert found.valid == pytest.approx(total)
    for text, p in own.items():
        assert found.conditional[text] == pytest.approx(p / total)
    # With masks the first token is a, b or ab, and nothing after it can fail.
    assert found.masked["ab"] == pytest.approx((0.5 + 0.2) / 0.8)
    assert found.masked["b"] == pytest.approx(0.1 / 0.8)
    assert found.distance == pytest.approx(abs(found.masked["b"] - own["b"] / total))
    assert found.nodes == 1 + 3 + 1


def test_a_text_that_may_go_on_needs_its_end():
    found = exact.exact_shares(masks(["a", "ax"]), log_probs)
    own = {"a": 0.5 * 0.08, "ax": 0.5 * 0.8 * 0.2}
    assert found.conditional["a"] == pytest.approx(own["a"] / sum(own.values()))
    assert found.masked["a"] == pytest.approx(0.08 / 0.88)
    assert sum(found.masked.values()) == pytest.approx(1)


def test_the_two_are_equal_where_no_beginning_fails():
    """One token per text, each certain to end: a mask is then the same as a condition."""
    chain = lambda sequences: torch.tensor(  # noqa: E731
        [[0, 0, 0, 0, 1.0] if tokens else START for tokens in sequences]
    ).log()
    found = exact.exact_shares(masks(["a", "x"]), chain)
    assert found.distance == pytest.approx(0, abs=1e-12)


def test_drawing_with_masks_gives_the_masked_shares():
    generator = torch.Generator().manual_seed(0)
    rules, counts, draws = masks(["ab", "b", "aab"]), {}, 4_000
    for _ in range(draws):
        tokens, state = (), rules.automaton.start
        while rules.automaton.table[state].any():
            row = log_probs([tokens])[0].exp()
            allowed = torch.tensor([rules.allowed(state)[0] >> i & 1 for i in range(5)])
            token = torch.multinomial(row * allowed, 1, generator=generator).item()
            tokens, state = (*tokens, token), rules.after(state, token)
        text = b"".join(TOKENS[t] for t in tokens).decode()
        counts[text] = counts.get(text, 0) + 1
    found = exact.exact_shares(rules, log_probs)
    for text, p in found.masked.items():
        assert counts[text] / draws == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / draws))


def test_too_many_beginnings_are_refused(monkeypatch):
    monkeypatch.setattr(exact, "MAX_NODES", 50)
    rules = TokenMasks(from_regex("[ab]{9}"), Vocabulary(TOKENS, [END]))
    with pytest.raises(ValueError, match="at most 50 beginnings"):
        exact.exact_shares(rules, log_probs)

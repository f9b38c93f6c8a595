"""What a mask per step does to a model's distribution over whole texts, computed exactly for a small set of texts.

Park et al. 2024 ("Grammar-Aligned Decoding") describe the difference. Introduced in chapter 12.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.engine.structured.automaton import DEAD
from lib.engine.structured.token_masks import TokenMasks

MAX_NODES = 20_000  # beginnings of texts that are given to the model


@dataclass(frozen=True)
class ExactShares:
    """Probabilities of each valid text; both columns sum to 1.

    conditional: of the model's own answers, drawn until one is valid. masked: of answers drawn with
    a mask at each step. valid: the share of the model's own answers that are valid. nodes: beginnings
    of answers for which the model was run.
    """

    conditional: dict[str, float]
    masked: dict[str, float]
    valid: float
    nodes: int

    @property
    def distance(self) -> float:
        """Total variation distance: the largest difference in the probability of any set of texts."""
        return sum(abs(p - self.masked[text]) for text, p in self.conditional.items()) / 2


def exact_shares(
    masks: TokenMasks, log_probs: Callable[[Sequence[tuple[int, ...]]], Tensor]
) -> ExactShares:
    """Follows every sequence of tokens that spells a text of the automaton, which has finitely many.

    log_probs: natural logs [N, V] of the token that follows each of N sequences of output tokens. An
    answer is valid if an end token follows its text. With masks, a text to which nothing can be
    added ends without one, as in the engine. Raises ValueError for more than MAX_NODES beginnings.
    """
    automaton, vocabulary = masks.automaton, masks.vocabulary
    ends = vocabulary.end_ids
    own: dict[str, float] = {}
    masked: dict[str, float] = {}
    level, nodes = [((), automaton.start, 0.0, 0.0)], 0
    while level:
        nodes += len(level)
        if nodes > MAX_NODES:
            raise ValueError(f"the texts must have at most {MAX_NODES:,} beginnings as tokens")
        found = log_probs([tokens for tokens, *_ in level]).double()
        following = []
        for (tokens, state, log_own, log_masked), row in zip(level, found):
            bits = np.unpackbits(masks.allowed(state), bitorder="little")[: vocabulary.size]
            allowed = np.flatnonzero(bits)
            kept = torch.logsumexp(row[torch.from_numpy(allowed)], 0).item()
            if automaton.accepting[state]:
                text = b"".join(vocabulary.token_bytes[t] for t in tokens).decode()
                end = torch.logsumexp(row[ends], 0).item()
                last = not automaton.table[state].any()
                own[text] = own.get(text, 0.0) + math.exp(log_own + end)
                ending = log_masked + (0.0 if last else end - kept)
                masked[text] = masked.get(text, 0.0) + math.exp(ending)
                if last:
                    continue
            for token in allowed.tolist():
                if (after := masks.after(state, token)) != DEAD and token not in ends:
                    p = row[token].item()
                    step = ((*tokens, token), after, log_own + p, log_masked + p - kept)
                    following.append(step)
        level = following
    valid = sum(own.values())
    return ExactShares({text: p / valid for text, p in own.items()}, masked, valid, nodes)

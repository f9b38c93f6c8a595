"""Compares a model's predictions with a reference's on a text: perplexity, KL divergence, tokens.

Introduced in chapter 11.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.attention.full import FullAttention
from lib.core.attention import Attention
from lib.core.batch import Batch

WINDOW = 256  # tokens per forward pass; the first token of a window is not predicted


@dataclass(frozen=True)
class Quality:
    """A model compared with a reference, over the same `num_tokens` predictions.

    perplexity, reference_perplexity: exp of the mean negative log-probability of the text's next
    token. kl_divergence: mean of KL(reference || model) over the predictions, in nats, over the
    whole vocabulary; kl_largest: the largest value. same_greedy: share of predictions whose most
    likely token is the reference's.
    """

    num_tokens: int
    perplexity: float
    reference_perplexity: float
    kl_divergence: float
    kl_largest: float
    same_greedy: float


def compare(
    model: nn.Module,
    reference: nn.Module,
    token_ids: Sequence[int],
    window: int = WINDOW,
    attention: Attention | None = None,
) -> Quality:
    """Runs both models on the text `token_ids`, in windows of `window` tokens that do not overlap.

    Each token is predicted from the tokens of the text before it in its window (teacher forcing),
    so that an early difference does not change later inputs. `attention` is the model's, without a
    cache; FullAttention by default, as for the reference. Raises ValueError for fewer than two
    tokens, a window out of range, or models with different vocabularies.
    """
    if model.config.vocab_size != reference.config.vocab_size:
        raise ValueError(
            f"model must have the reference's vocabulary of {reference.config.vocab_size} tokens, "
            f"got {model.config.vocab_size}"
        )
    kl, ours, theirs, same = [], [], [], []
    for ids in _windows(token_ids, window, model):
        p, q = log_probs(reference, ids), log_probs(model, ids, attention)
        kl.append((p.exp() * (p - q)).sum(-1))
        targets = torch.tensor(ids[1:])[:, None]
        theirs.append(p.gather(1, targets)[:, 0])
        ours.append(q.gather(1, targets)[:, 0])
        same.append(p.argmax(-1) == q.argmax(-1))
    divergence = torch.cat(kl)
    return Quality(
        num_tokens=len(divergence),
        perplexity=math.exp(-torch.cat(ours).mean().item()),
        reference_perplexity=math.exp(-torch.cat(theirs).mean().item()),
        kl_divergence=divergence.mean().item(),
        kl_largest=divergence.max().item(),
        same_greedy=torch.cat(same).double().mean().item(),
    )


def perplexity(model: nn.Module, token_ids: Sequence[int], window: int = WINDOW) -> float:
    """exp of the mean negative log-probability of the text's tokens.

    Windows and errors are those of `compare`.
    """
    chosen = [
        log_probs(model, ids).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        for ids in _windows(token_ids, window, model)
    ]
    return math.exp(-torch.cat(chosen).mean().item())


@torch.inference_mode()
def log_probs(
    model: nn.Module, token_ids: Sequence[int], attention: Attention | None = None
) -> Tensor:
    """float64 [n - 1, V] on the CPU: log-probabilities of tokens 1 .. n - 1, given those before."""
    device = next(model.parameters()).device
    batch = Batch.of_prompts([list(token_ids)], device)
    batch.logits_indices = torch.arange(len(token_ids) - 1, device=device)
    return model(batch, attention or FullAttention()).cpu().double().log_softmax(-1)


def _windows(token_ids: Sequence[int], window: int, model: nn.Module) -> Iterator[list[int]]:
    """Pieces of `window` tokens; a last piece of one token, which predicts nothing, is left out."""
    longest = model.config.max_position_embeddings
    if not 2 <= window <= longest:
        raise ValueError(
            f"window must be >= 2 and <= {longest}, the model's positions, got {window}"
        )
    if len(token_ids) < 2:
        raise ValueError(f"token_ids must hold at least two tokens, got {len(token_ids)}")
    for start in range(0, len(token_ids) - 1, window):
        yield list(token_ids[start : start + window])

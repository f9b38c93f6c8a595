"""From logits to tokens, all rows of a step at once.

Order as in vLLM: penalties, min_tokens, temperature, min_p, top_k, top_p, draw. A row's token depends on that row alone:
its logits, its parameters and its own random number. Introduced in chapter 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.engine.sampling_row import SamplingRow

# Truncated sampling sorts only this many most likely candidates, and all of the vocabulary only where they do not
# hold the nucleus. Sorting 49,152 logits a row costs more than the rest of a small model's step.
_CANDIDATES = 1024
_LARGEST_LOGIT = 1e30  # still finite in float32 after division by the smallest temperature


@torch.inference_mode()
def sample(
    logits: Tensor, rows: Sequence[SamplingRow]
) -> tuple[list[int | None], list[dict[int, float] | None]]:
    """Choose the token of each row. Changes nothing: asked again, it chooses the same.

    `logits` [N, V], one for each of the N `rows`; a Request stands for its own next token. Returns N
    token ids, None for a row with NaN or +infinity (or nothing but -infinity), and for each row
    None or its log-probabilities {token id: natural log}, the sampled token first, then the most
    likely ones.
    """
    raw = logits.float()
    logits = _adjust(raw, rows)
    token_ids = logits.argmax(dim=-1)
    # NaN counts as the largest: a row is good if its largest logit is.
    good = logits.gather(1, token_ids.unsqueeze(1)).squeeze(1).isfinite()
    random_rows = [r for r, row in enumerate(rows) if not row.params.greedy]
    truncated = [r for r in random_rows if _truncates(rows[r], logits.shape[1])]
    plain = [r for r in random_rows if not _truncates(rows[r], logits.shape[1])]
    # Two groups, chosen by each row's own parameters: a neighbour's top_p must not change how this row adds up.
    for group, draw in ((plain, _draw), (truncated, _draw_truncated)):
        if group:
            chosen = [rows[r] for r in group]
            temperature = _column([r.params.temperature for r in chosen], logits)
            uniform = torch.tensor([[r.uniform()] for r in chosen], dtype=torch.float64).to(
                logits.device
            )
            token_ids[group] = draw(logits[group] / temperature, chosen, uniform)
    ids = [i if i >= 0 else None for i in torch.where(good, token_ids, -1).tolist()]
    wants_logprobs = [
        r for r, row in enumerate(rows) if row.params.logprobs is not None and ids[r] is not None
    ]
    logprobs: list[dict[int, float] | None] = [None] * len(rows)
    if wants_logprobs:
        for r, values in zip(wants_logprobs, torch.log_softmax(raw[wants_logprobs], dim=-1)):
            best = values.topk(rows[r].params.logprobs)
            logprobs[r] = {
                ids[r]: values[ids[r]].item(),
                **dict(zip(best.indices.tolist(), best.values.tolist())),
            }
    return ids, logprobs


def is_finite(logits: Tensor) -> list[bool]:
    """Whether each row of logits [B, V] could be sampled from: no NaN, no +infinity, not all -infinity."""
    return logits.amax(dim=-1).isfinite().tolist() if len(logits) else []


def _truncates(row: SamplingRow, vocab_size: int) -> bool:
    p = row.params
    return 0 < p.top_k < vocab_size or p.top_p < 1 or p.min_p > 0


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).to(like.device).unsqueeze(1)


def _adjust(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Penalties and min_tokens; copies the logits only if there are any."""
    penalised = [r for r, row in enumerate(rows) if row.params.has_penalties]
    held = [
        (r, token)
        for r, row in enumerate(rows)
        if row.num_output_tokens < row.params.min_tokens
        for token in row.stop_token_ids
    ]
    if not penalised and not held:
        return logits
    logits = logits.clone()
    if penalised:
        chosen = [rows[r] for r in penalised]
        repetition, presence, frequency = (
            _column([getattr(r.params, f"{name}_penalty") for r in chosen], logits)
            for name in ("repetition", "presence", "frequency")
        )
        in_output = _counts([r.output_token_ids for r in chosen], logits)
        seen = _counts([r.token_ids for r in chosen], logits) > 0
        values = logits[penalised]
        repeated = torch.where(values > 0, values / repetition, values * repetition)
        # An extreme penalty (1e-300, 1e300) must not make a logit infinite.
        values = torch.where(seen, repeated.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT), values)
        logits[penalised] = values - frequency * in_output - presence * (in_output > 0)
    if held:
        held_rows, tokens = zip(*held)
        logits[list(held_rows), list(tokens)] = float("-inf")
    return logits


def _counts(token_ids: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """How often each vocabulary id occurs in each list: [R, V]."""
    counts = torch.zeros(len(token_ids), like.shape[1], dtype=like.dtype)
    rows = torch.tensor([r for r, ids in enumerate(token_ids) for _ in ids], dtype=torch.long)
    columns = torch.tensor([i for ids in token_ids for i in ids], dtype=torch.long)
    counts.index_put_((rows, columns), torch.ones((), dtype=like.dtype), accumulate=True)
    return counts.to(like.device)


def _draw(scaled: Tensor, rows: Sequence[SamplingRow], uniform: Tensor) -> Tensor:
    """Inverse transform sampling: the first token at which the running sum of probabilities passes `uniform`."""
    return _invert(torch.softmax(scaled, dim=-1, dtype=torch.float64), uniform).squeeze(1)


def _draw_truncated(
    scaled: Tensor, rows: Sequence[SamplingRow], uniform: Tensor, width: int = _CANDIDATES
) -> Tensor:
    vocab_size = scaled.shape[1]
    width = min(width, vocab_size)
    top_k = [r.params.top_k if 0 < r.params.top_k < vocab_size else vocab_size for r in rows]
    top_k = torch.tensor(top_k).unsqueeze(1).to(scaled.device)
    # In float64: float32 would round the smallest top_p to 0, which leaves no candidate at all.
    top_p = torch.tensor([[r.params.top_p] for r in rows], dtype=torch.float64)
    top_p = top_p.to(scaled.device)
    min_p = _column([r.params.min_p for r in rows], scaled)
    values, ids = scaled.topk(width, dim=-1)
    rank = torch.arange(width, device=scaled.device).unsqueeze(0)
    keep = (rank < top_k) & (values >= values[:, :1] + min_p.log())
    probs = (values.double() - torch.logsumexp(scaled.double(), -1, keepdim=True)).exp()
    # What top_k and min_p leave is the whole distribution for top_p; if they leave all, it sums to one.
    cut = (top_k < vocab_size) | (min_p > 0)
    mass = torch.where(cut, (probs * keep).sum(-1, keepdim=True), torch.ones_like(probs[:, :1]))
    unknown = (
        keep[:, -1] & cut[:, 0]
    )  # they leave more than the candidates, and nobody knows how much
    before = (probs * keep).cumsum(-1) - probs * keep
    keep &= (before < top_p * mass) | (rank == 0)
    token_ids = ids.gather(1, _invert(probs * keep, uniform)).squeeze(1)
    if width < vocab_size and (short := (keep[:, -1] | unknown).nonzero().squeeze(1).tolist()):
        # The candidates do not hold these rows' nucleus. The others keep what they drew, whoever is beside them.
        token_ids[short] = _draw_truncated(
            scaled[short], [rows[r] for r in short], uniform[short], vocab_size
        )
    return token_ids


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Column [R, 1] at which the running sum of `weights` [R, N] passes uniform * total; never one of weight 0."""
    sums = weights.cumsum(-1)
    # `right`: the sum must pass the target, so a leading zero weight is not taken for uniform = 0.
    column = torch.searchsorted(sums, uniform * sums[:, -1:], right=True)
    last = weights.shape[1] - 1 - (weights.flip(-1) > 0).to(torch.uint8).argmax(-1, keepdim=True)
    return column.minimum(last)

"""From logits to tokens, all rows of a step at once.

Order as in vLLM: what `lib.engine.logit_adjustments` does, then temperature, min_p, top_k, top_p, draw.
A row's token depends on that row alone: its logits, its parameters and its own random number. Introduced in chapter 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.core.device import copy_to
from lib.core.request import Request
from lib.engine.chosen_tokens import NOT_FINITE, NOT_KNOWN, ChosenTokens
from lib.engine.logit_adjustments import adjust
from lib.engine.row_groups import DrawnRows, Row, RowGroups
from lib.engine.sampling_row import PromptRow, SamplingRow

# Truncated sampling sorts only this many most likely candidates, and all of the vocabulary only where they do not
# hold the nucleus. Sorting 49,152 logits a row costs more than the rest of a small model's step.
_CANDIDATES = 1024


class Sampler:
    """Chooses tokens. Keeps the parameters of a step's rows on the device for as long as the batch stays the same."""

    def __init__(self) -> None:
        # Whether a later step overwrites the logits before the tokens are read: `finish` needs its own.
        self.logits_reused = False
        self._key: tuple[object, ...] = ()
        self._groups: RowGroups | None = None

    @torch.inference_mode()
    def choose(self, logits: Tensor, rows: Sequence[Row]) -> ChosenTokens:
        """Choose the token of each of the N rows of `logits` [N, V]. Changes nothing, waits for nothing."""
        groups = self._groups_of(rows, logits)
        if self.logits_reused and groups.truncated is not None:
            logits = logits.clone()
        adjusted = logits
        if groups.may_adjust:
            adjusted = adjust(logits, [None if isinstance(row, PromptRow) else row for row in rows])
        token_ids = _largest(adjusted)
        # NaN counts as the largest: a row is good if its largest logit is.
        good = adjusted.gather(1, token_ids.unsqueeze(1)).squeeze(1).isfinite()
        # Two groups, chosen by each row's own parameters: a neighbour's top_p must not change how this row adds up.
        plain, truncated = groups.plain, groups.truncated
        uniform = self._uniforms(rows, groups, logits.device)
        if plain is not None:
            weights = torch.softmax(_scaled(adjusted, plain), dim=-1, dtype=torch.float64)
            drawn = self.draw([rows[r] for r in plain.rows], weights, uniform[: len(plain.rows)])
            token_ids.index_copy_(0, plain.index, drawn)
        if truncated is not None:
            uniform = uniform[len(uniform) - len(truncated.rows) :]
            drawn = self._draw_truncated(adjusted, rows, truncated, uniform)
            token_ids.index_copy_(0, truncated.index, drawn)
        if groups.num_known:
            token_ids.index_copy_(0, groups.known_index, groups.known_ids)
        token_ids = torch.where(good, token_ids, NOT_FINITE)

        @torch.inference_mode()
        def finish(unknown_rows: list[int]) -> Tensor:
            # The candidates do not hold these rows' nucleus. The others keep what they drew, whatever is beside them.
            places = [truncated.rows.index(r) for r in unknown_rows]
            some = truncated.some(places)
            at = copy_to(torch.tensor(places), logits.device)
            drawn = self._draw_truncated(adjusted, rows, some, uniform[at], width=logits.shape[1])
            return token_ids.index_copy(0, some.index, drawn)

        return ChosenTokens(token_ids, logits, groups, finish)

    def draw(
        self,
        rows: Sequence[Request | SamplingRow],
        weights: Tensor,
        uniform: Tensor,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Tokens [R] of R rows, drawn from `weights` [R, N], which need not sum to one.

        ids [R, N]: the tokens that the columns stand for; None: each for its own number. uniform
        [R, 1]: each row's number in [0, 1).
        """
        columns = draw(weights, uniform)
        return columns if ids is None else ids.gather(1, columns.unsqueeze(1)).squeeze(1)

    def _draw_truncated(
        self,
        adjusted: Tensor,
        rows: Sequence[Row],
        group: DrawnRows,
        uniform: Tensor,
        width: int = _CANDIDATES,
    ) -> Tensor:
        """Tokens [R]; NOT_KNOWN where `width` candidates do not hold the nucleus."""
        ids, weights, short = _truncate(_scaled(adjusted, group), group, width)
        token_ids = self.draw([rows[r] for r in group.rows], weights, uniform, ids)
        return token_ids if short is None else torch.where(short, NOT_KNOWN, token_ids)

    def _groups_of(self, rows: Sequence[Row], logits: Tensor) -> RowGroups:
        requests = [row.request if isinstance(row, SamplingRow) else row for row in rows]
        key = (logits.shape[1], logits.device, *requests)
        if self._groups is None or key != self._key:
            self._groups, self._key = RowGroups(rows, logits.shape[1], logits.device), key
        return self._groups

    @staticmethod
    def _uniforms(rows: Sequence[Row], groups: RowGroups, device: torch.device) -> Tensor | None:
        """[R, 1] float64: the random numbers of the plain rows, then those of the truncated ones."""
        drawn = [r for group in (groups.plain, groups.truncated) if group for r in group.rows]
        if not drawn:
            return None
        numbers = torch.tensor([[rows[r].uniform()] for r in drawn], dtype=torch.float64)
        return copy_to(numbers, device)


def sample(
    logits: Tensor, rows: Sequence[Row]
) -> tuple[list[int | None], list[dict[int, float] | None]]:
    """Choose the token of each row. Changes nothing: asked again, it chooses the same.

    `logits` [N, V], one for each of the N `rows`; a Request stands for its own next token. Returns N
    token ids, None for a row with NaN or +infinity (or nothing but -infinity), and for each row
    None or its log-probabilities {token id: natural log}, the sampled token first, then the most
    likely ones.
    """
    return Sampler().choose(logits, rows).read()


def _largest(logits: Tensor) -> Tensor:
    """The index of each row's largest element, NaN counting as the largest; the first of several."""
    if type(logits) is Tensor and logits.device.type == "cpu" and logits.dtype == torch.float32:
        # NumPy's argmax uses vector instructions, PyTorch's does not.
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(dim=-1)


def _scaled(logits: Tensor, group: DrawnRows) -> Tensor:
    return logits[group.index].float() / group.temperature


def draw(weights: Tensor, uniform: Tensor | float) -> Tensor:
    """[R] columns at which the running sum of `weights` [R, N] passes uniform * total; never one of weight 0.

    uniform: numbers in [0, 1), [R, 1] or one for all. This is inverse transform sampling.
    """
    sums = weights.cumsum(-1)
    # `right`: the sum must pass the target, so a leading zero weight is not taken for uniform = 0.
    column = torch.searchsorted(sums, uniform * sums[:, -1:], right=True)
    last = weights.shape[1] - 1 - (weights.flip(-1) > 0).to(torch.uint8).argmax(-1, keepdim=True)
    return column.minimum(last).squeeze(1)


def _truncate(scaled: Tensor, group: DrawnRows, width: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """(ids, weights, short): ids and weights [R, width] of the most likely tokens, 0 for those that top_k, top_p and
    min_p cut off; [R] which rows' nuclei need more than `width` of them, None where none can."""
    vocab_size = scaled.shape[1]
    width = min(width, vocab_size)
    top_k, top_p, min_p = group.top_k, group.top_p, group.min_p
    values, ids = scaled.topk(width, dim=-1)
    rank = torch.arange(width, device=scaled.device).unsqueeze(0)
    keep = (rank < top_k) & (values >= values[:, :1] + min_p.log())
    probs = (values.double() - torch.logsumexp(scaled.double(), -1, keepdim=True)).exp()
    # What top_k and min_p leave is the whole distribution for top_p; if they leave all, it sums to one.
    cut = (top_k < vocab_size) | (min_p > 0)
    mass = torch.where(cut, (probs * keep).sum(-1, keepdim=True), torch.ones_like(probs[:, :1]))
    # They leave more than the candidates, and how much is not known.
    unknown = keep[:, -1] & cut[:, 0]
    before = (probs * keep).cumsum(-1) - probs * keep
    keep &= (before < top_p * mass) | (rank == 0)
    return ids, probs * keep, (keep[:, -1] | unknown) if width < vocab_size else None

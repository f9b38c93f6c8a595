"""Rows of logits that are sampled in the same way, with their parameters on the device.

Introduced in chapter 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.core.device import copy_to
from lib.core.request import Request
from lib.engine.sampling_row import PromptRow, SamplingRow

# None: only whether its logits are finite is of interest
Row = SamplingRow | Request | PromptRow | None


@dataclass(frozen=True)
class DrawnRows:
    """R rows that are drawn at random. Parameters are columns [R, 1] on the logits' device."""

    rows: list[int]
    index: Tensor  # [R] int64, `rows` on the device
    temperature: Tensor  # float32
    top_k: Tensor  # int64, V where there is none
    top_p: Tensor  # float64: float32 would round the smallest top_p to 0, which leaves no candidate
    min_p: Tensor  # float32

    def some(self, places: Sequence[int]) -> DrawnRows:
        """Those of the rows that stand at these places of `rows`."""
        at = copy_to(torch.tensor(places), self.index.device)
        columns = (self.temperature, self.top_k, self.top_p, self.min_p)
        return DrawnRows(
            [self.rows[i] for i in places], self.index[at], *(column[at] for column in columns)
        )


class RowGroups:
    """The rows of a step by what the sampler does with them.

    Depends on the requests' parameters alone: as long as the batch has the same requests, so are
    the groups, and nothing is copied to the device.
    """

    def __init__(self, rows: Sequence[Row], vocab_size: int, device: torch.device) -> None:
        self.plain: DrawnRows | None = None  # drawn from all of the vocabulary
        self.truncated: DrawnRows | None = None  # with top_k, top_p or min_p
        self.logprobs: dict[int, list[int]] = {}  # rows by how many log-probabilities they ask for
        self.num_known = 0  # rows whose token is known: those of prompts
        self.may_adjust = any(row is not None and _may_adjust(row) for row in rows)
        plain, truncated, known = [], [], []
        for number, row in enumerate(rows):
            if row is None:
                continue
            if isinstance(row, PromptRow):
                known.append(number)
                self.logprobs.setdefault(row.request.params.prompt_logprobs, []).append(number)
                continue
            params = row.params
            if not params.greedy:
                cut = 0 < params.top_k < vocab_size or params.top_p < 1 or params.min_p > 0
                (truncated if cut else plain).append(number)
            if params.logprobs is not None:
                self.logprobs.setdefault(params.logprobs, []).append(number)
        drawn = [*plain, *truncated]
        if not drawn and not self.logprobs:
            return
        # One copy, in float64, which holds all of them exactly.
        packed = [[float(number) for number in drawn]]
        chosen = [rows[number].params for number in drawn]
        packed.append([p.temperature for p in chosen])
        packed.append([p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in chosen])
        packed.append([p.top_p for p in chosen])
        packed.append([p.min_p for p in chosen])
        asking = [number for group in self.logprobs.values() for number in group]
        flat = [*(value for part in packed for value in part), *asking]
        flat += [*known, *(rows[number].token_id for number in known)]
        on_device = copy_to(torch.tensor(flat, dtype=torch.float64), device)
        columns = on_device[: 5 * len(drawn)].view(5, len(drawn), 1)
        if plain:
            self.plain = _drawn_rows(plain, columns[:, : len(plain)])
        if truncated:
            self.truncated = _drawn_rows(truncated, columns[:, len(plain) :])
        numbers = on_device[5 * len(drawn) :].long()
        self.num_known = len(known)
        # [rows that ask], by group; [num_known] rows of prompts, and their token ids
        self.logprob_index, self.known_index, self.known_ids = numbers.split(
            [len(asking), len(known), len(known)]
        )


def _may_adjust(row: SamplingRow | Request | PromptRow) -> bool:
    """Whether a request asks for anything that `lib.engine.logit_adjustments` does."""
    request = row if isinstance(row, Request) else row.request
    params = request.params
    restricted = request.constraint is not None or request.bad_words_token_ids
    return bool(restricted or params.min_tokens or params.logit_bias or params.has_penalties)


def _drawn_rows(rows: list[int], columns: Tensor) -> DrawnRows:
    number, temperature, top_k, top_p, min_p = columns
    return DrawnRows(
        rows, number.squeeze(1).long(), temperature.float(), top_k.long(), top_p, min_p.float()
    )

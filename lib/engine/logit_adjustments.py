"""What a request's parameters do to its logits before a token is drawn, all rows of a step at once.

Order as in vLLM: masks (allowed tokens), bad words, min_tokens, logit_bias, penalties. Rows without any
of these keep their logits, bit by bit. Introduced in chapter 1.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lib.core.device import copy_to
from lib.core.request import Request
from lib.engine.row_groups import Row
from lib.engine.sampling_row import SamplingRow

_LARGEST_LOGIT = 1e30  # still finite in float32 after division by the smallest temperature


def adjust(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """The adjusted logits [N, V] float32; `logits` itself where no row asks for anything.

    A token that must not be chosen gets -infinity.
    """
    asked = [(r, row) for r, row in enumerate(rows) if row is not None]
    masks = {r: mask for r, row in asked if (mask := row.allowed()) is not None}
    banned = [(r, token) for r, row in asked for token in _banned(row, masks.get(r))]
    biased = [(r, token, bias) for r, row in asked for token, bias in row.params.logit_bias.items()]
    penalised = [r for r, row in asked if row.params.has_penalties]
    if not (masks or banned or biased or penalised):
        return logits
    if masks:
        logits = _keep_allowed(logits, masks)
    else:
        logits = logits.to(torch.float32, copy=True)
    if banned:
        logits[_index(logits, *zip(*banned))] = float("-inf")
    if biased:
        at_rows, tokens, biases = zip(*biased)
        logits[_index(logits, at_rows, tokens)] += copy_to(torch.tensor(biases), logits.device)
    if penalised:
        _penalise(logits, penalised, [rows[r] for r in penalised])
    return logits


def column(values: Sequence[float], like: Tensor) -> Tensor:
    """The values as a column [R, 1] with dtype and device of `like`."""
    return copy_to(torch.tensor(values, dtype=like.dtype), like.device).unsqueeze(1)


def _banned(row: Request | SamplingRow, mask: np.ndarray | None) -> list[int]:
    """Tokens that must not come next: ends before min_tokens, and those that would complete a bad word."""
    banned = row.completes_bad_words()
    if row.num_output_tokens < row.params.min_tokens:
        ends = list(row.stop_token_ids)
        # A mask may leave nothing but the end: then the text is complete, however short.
        if mask is None or _allows_other_than(mask, ends):
            banned = [*banned, *ends]
    return banned


def _allows_other_than(mask: np.ndarray, token_ids: Sequence[int]) -> bool:
    bits = np.unpackbits(mask, bitorder="little")
    bits[token_ids] = 0
    return bool(bits.any())


def _keep_allowed(logits: Tensor, masks: dict[int, np.ndarray]) -> Tensor:
    """A copy of the logits as float32, with -infinity for the tokens that a row's mask leaves out.

    The mask becomes an upper limit per token, infinity or -infinity, so that one minimum over
    the batch makes the copy and applies all masks. Rows without a mask are copied bit by bit. NaN
    stays NaN, so that a row with one is still refused.
    """
    packed = np.full((len(logits), -(-logits.shape[1] // 8)), 255, np.uint8)
    packed[list(masks)] = list(masks.values())
    places = copy_to(torch.from_numpy(packed), logits.device).flatten().int()
    limits = _limits_of_bytes(logits.device).index_select(0, places).view(len(logits), -1)
    limits = limits[:, : logits.shape[1]]
    return torch.minimum(logits, limits, out=limits)


@functools.cache
def _limits_of_bytes(device: torch.device) -> Tensor:
    """[256, 8] float32: for each byte of a mask, infinity where its bit is set, -infinity elsewhere."""
    every_byte = np.arange(256, dtype=np.uint8)[:, None]
    bits = torch.from_numpy(np.unpackbits(every_byte, axis=1, bitorder="little"))
    return torch.where(bits.bool(), float("inf"), float("-inf")).to(device)


def _penalise(logits: Tensor, at: Sequence[int], rows: Sequence[Request | SamplingRow]) -> None:
    repetition, presence, frequency = (
        column([getattr(r.params, f"{name}_penalty") for r in rows], logits)
        for name in ("repetition", "presence", "frequency")
    )
    in_output = _counts([r.output_token_ids for r in rows], logits)
    seen = _counts([r.token_ids for r in rows], logits) > 0
    index = copy_to(torch.tensor(at), logits.device)
    values = logits[index]
    repeated = torch.where(values > 0, values / repetition, values * repetition)
    # An extreme penalty (1e-300, 1e300) must not make a logit infinite, nor one that is -infinity finite.
    repeated = repeated.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    values = torch.where(seen & (values > float("-inf")), repeated, values)
    logits[index] = values - frequency * in_output - presence * (in_output > 0)


def _counts(token_ids: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """How often each vocabulary id occurs in each list: [R, V]."""
    counts = torch.zeros(len(token_ids), like.shape[1], dtype=like.dtype)
    rows = torch.tensor([r for r, ids in enumerate(token_ids) for _ in ids], dtype=torch.long)
    columns = torch.tensor([i for ids in token_ids for i in ids], dtype=torch.long)
    counts.index_put_((rows, columns), torch.ones((), dtype=like.dtype), accumulate=True)
    return copy_to(counts, like.device)


def _index(logits: Tensor, rows: Sequence[int], tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    return copy_to(torch.tensor([rows, tokens]), logits.device).unbind(0)

"""What a step has sampled: on the device first, on the host when it is read. Introduced in chapter 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lib.engine.row_groups import RowGroups

NOT_FINITE, NOT_KNOWN = -1, -2  # in place of a token id
_ROWS_AT_ONCE = 64  # whose log-probabilities are in memory: 49,152 float32 each are 13 MB

Logprobs = list[dict[int, float] | None]


class ChosenTokens:
    """The tokens of N rows, on their way to the host in one copy with their log-probabilities.

    `token_ids` [N] int64, on the device: NOT_FINITE for a row that could not be sampled from,
    NOT_KNOWN for a row that takes more work, which `finish` does: it returns all of them.
    """

    def __init__(
        self,
        token_ids: Tensor,
        logits: Tensor,
        groups: RowGroups,
        finish: Callable[[list[int]], Tensor],
    ) -> None:
        self.token_ids = token_ids
        self.late_rows: list[int] = []  # those that were NOT_KNOWN until `read`
        self._logits, self._groups, self._finish = logits, groups, finish
        self._send(token_ids)

    def read(self) -> tuple[list[int | None], Logprobs]:
        """Wait for the copy. N token ids, None for NOT_FINITE, and N log-probabilities as `sample` returns them."""
        values = self._arrived()
        num_rows = len(self.token_ids)
        unknown = [r for r in range(num_rows) if values[r] == NOT_KNOWN]
        if unknown:
            self.late_rows = unknown
            self.token_ids = self._finish(unknown)
            self._send(self.token_ids)
            values = self._arrived()
        ids = [int(i) if i >= 0 else None for i in values[:num_rows]]
        return ids, self._logprobs(ids, values[num_rows:])

    @torch.inference_mode()
    def _send(self, token_ids: Tensor) -> None:
        packed = token_ids
        if self._groups.logprobs:
            packed = torch.cat([token_ids.double(), *self._logprob_parts(token_ids)])
        self._event = None
        if packed.device.type == "cuda":
            host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            host.copy_(packed, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
            packed = host
        self._packed = packed

    def _arrived(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        return self._packed.tolist()

    def _logprob_parts(self, token_ids: Tensor) -> list[Tensor]:
        """For each group of rows: its [R, 1 + 2k] own, best values and best ids, flat, some rows a part."""
        parts, start = [], 0
        for k, rows in self._groups.logprobs.items():
            index = self._groups.logprob_index[start : start + len(rows)]
            start += len(rows)
            for some in index.split(_ROWS_AT_ONCE):
                values = torch.log_softmax(self._logits[some].float(), dim=-1)
                own = values.gather(1, token_ids[some].clamp(min=0).unsqueeze(1))
                best = values.topk(k)
                parts.append(torch.cat([own, best.values, best.indices], dim=1).double().flatten())
        return parts

    def _logprobs(self, ids: list[int | None], values: list[float]) -> Logprobs:
        logprobs: Logprobs = [None] * len(ids)
        start = 0
        for k, rows in self._groups.logprobs.items():
            for r in rows:
                own, best = values[start], values[start + 1 : start + 1 + 2 * k]
                start += 1 + 2 * k
                if ids[r] is not None:
                    tokens = (int(i) for i in best[k:])
                    logprobs[r] = {ids[r]: own, **dict(zip(tokens, best[:k]))}
        return logprobs

"""All tensors of a batch in one buffer, so that one copy brings them to the device. Introduced in chapter 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_ALIGNED = 4  # words of 4 bytes: each field begins at a multiple of 16 bytes, as kernels like it


@dataclass(frozen=True)
class BatchShape:
    """Sizes of a batch: T tokens of B sequences, N rows of logits, block tables of `width` blocks."""

    num_tokens: int
    num_seqs: int
    num_rows: int
    width: int

    @property
    def num_words(self) -> int:
        """Words of 4 bytes that all fields take together."""
        return sum(words for *_, words in self._fields())

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The batch's fields by name, as views of `buffer` [num_words or more] int32."""
        found, start = {}, 0
        for name, shape, dtype, words in self._fields():
            size = torch.Size(shape).numel() * dtype.itemsize // 4
            found[name] = buffer[start : start + size].view(dtype).view(shape)
            start += words
        return found

    def _fields(self) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, int]]:
        """(name, shape, dtype, words with those that fill up to the next field)."""
        fields = {
            "input_ids": ((self.num_tokens,), torch.int64),
            "positions": ((self.num_tokens,), torch.int64),
            "slot_mapping": ((self.num_tokens,), torch.int64),
            "logits_indices": ((self.num_rows,), torch.int64),
            "query_start_loc": ((self.num_seqs + 1,), torch.int32),
            "seq_lens": ((self.num_seqs,), torch.int32),
            "block_table": ((self.num_seqs, self.width), torch.int32),
        }
        for name, (shape, dtype) in fields.items():
            words = torch.Size(shape).numel() * dtype.itemsize // 4
            yield name, shape, dtype, -(-words // _ALIGNED) * _ALIGNED


@dataclass(frozen=True)
class Room:
    """Memory that a batch of one token per sequence is laid out in: padded to `num_seqs` sequences.

    A padded row is a sequence of one token, of which K and V go to block 0, which no sequence owns.
    """

    num_seqs: int
    width: int  # of the block table
    buffer: Tensor  # int32, on the device

    @property
    def shape(self) -> BatchShape:
        return BatchShape(self.num_seqs, self.num_seqs, self.num_seqs, self.width)

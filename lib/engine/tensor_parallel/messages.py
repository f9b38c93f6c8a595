"""What rank 0 tells the other ranks: a header of a few numbers, then what it announces. Introduced in chapter 13."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from lib.core.batch import Batch
from lib.core.batch_buffer import BatchShape
from lib.engine.tensor_parallel.group import Group


class Command(IntEnum):
    """RUN: a pass over the batch that follows. ALLOCATE: a KV cache of (num_blocks, block_size).
    CLEAN: remove what is not finite from (a number of) blocks. SIZES: tell the bytes. STOP: end."""

    RUN = 0
    ALLOCATE = 1
    CLEAN = 2
    SIZES = 3
    STOP = 4


_HEADER = 6  # the command, and up to five numbers


@dataclass(frozen=True)
class Message:
    """A command with its numbers, and int32 values where it has any."""

    command: Command
    numbers: tuple[int, ...] = ()
    payload: Tensor | None = None


def send(group: Group, message: Message) -> None:
    """From rank 0 to all others. Raises PeerLost."""
    numbers = message.numbers + (0,) * (_HEADER - 1 - len(message.numbers))
    group.broadcast(torch.tensor([message.command, *numbers]))
    if message.payload is not None:
        group.broadcast(message.payload)


def receive(group: Group) -> Message:
    """Wait for rank 0's next message. Raises PeerLost."""
    command, *numbers = group.broadcast(torch.empty(_HEADER, dtype=torch.int64)).tolist()
    if command == Command.RUN:
        words = BatchShape(*numbers[:4]).num_words
    else:
        words = numbers[0] if command == Command.CLEAN else 0
    payload = torch.empty(words, dtype=torch.int32) if words else None
    if payload is not None:
        group.broadcast(payload)
    return Message(Command(command), tuple(numbers), payload)


def of_batch(batch: Batch) -> Message:
    """A batch as its packed buffer, with the sizes that its fields are found by.

    On CUDA this waits for the batch's copy to the device, when the device has nothing else to do.
    """
    num_seqs, width = batch.block_table.shape
    numbers = len(batch.input_ids), num_seqs, len(batch.logits_indices), width, batch.block_size
    return Message(Command.RUN, numbers, batch.buffer.cpu())


def to_batch(message: Message, device: torch.device) -> Batch:
    """The batch of a RUN message; host lists are read from the buffer before it goes to `device`."""
    *sizes, block_size = message.numbers
    shape = BatchShape(*sizes)
    host = shape.views(message.payload)
    starts, kv_lens = host["query_start_loc"].tolist(), host["seq_lens"].tolist()
    blocks = [-(-n // block_size) if shape.width else 0 for n in kv_lens]
    buffer = message.payload.to(device)
    return Batch(
        **shape.views(buffer),
        block_size=block_size,
        query_lens=[last - first for first, last in zip(starts, starts[1:])],
        kv_lens=kv_lens,
        block_ids=[row[:n] for row, n in zip(host["block_table"].tolist(), blocks)],
        buffer=buffer,
    )

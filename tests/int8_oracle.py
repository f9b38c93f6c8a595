"""The no-cache loop over rounded K and V: what any engine with kv_cache_dtype='int8' must answer."""

from __future__ import annotations

from typing import Any

import torch

from lib.bench.measure.rounded_kv import RoundedKVAttention
from lib.core.batch import Batch
from lib.engine.llm import LLM
from tests.helpers import Tiny


class Int8Tiny(Tiny):
    """A checkpoint whose engines keep K and V in 8 bits.

    The order of sums depends on the batch. A difference of 1e-7 in K decides between two codes where K / scale lies
    halfway between them, and one code changes logits (of size 10 here) by up to MARGIN.
    """

    MARGIN = 0.02

    def engine(self, **options: Any) -> LLM:
        return super().engine(kv_cache_dtype="int8", **options)

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> torch.Tensor:
        return self.model(Batch.of_prompts([tokens]), RoundedKVAttention())[0]

    def clear(self, prompt: list[int], most: int) -> int:
        """How many of the first `most` greedy tokens lead the second best by MARGIN, up to the first that does not."""
        for n in range(1, most + 1):
            try:
                self.greedy(prompt, n)
            except AssertionError:
                return n - 1
        return most

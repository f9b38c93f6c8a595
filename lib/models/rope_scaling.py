"""RoPE beyond the context that a model was trained on: its frequencies, scaled. Introduced in chapter 1.

linear: Chen et al. 2023 (Position Interpolation). dynamic: NTK-aware scaling, of which nothing is left within
`max_position_embeddings`. yarn: Peng et al. 2023. llama3: Grattafiori et al. 2024.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def scaled_frequencies(freq: Tensor, theta: float, scaling: dict[str, Any] | None) -> Tensor:
    """Frequencies of plain RoPE, [D/2] radians per position, as `scaling` changes them."""
    kind = "default" if scaling is None else scaling["rope_type"]
    if kind in ("default", "dynamic"):
        # dynamic grows theta with a sequence that is longer than max_position_embeddings. The
        # engine refuses such sequences.
        return freq
    factor = scaling["factor"]
    if kind == "linear":
        return freq / factor
    if kind == "llama3":
        # Keeps the fast pairs, slows the slow ones down by `factor`, blends in between.
        original = scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        # Full turns that a pair makes within the original context.
        turns = original * freq / (2 * math.pi)
        blend = ((turns - low) / (high - low)).clamp(0, 1)
    else:
        blend = _yarn_blend(len(freq), theta, scaling)
    return blend * freq + (1 - blend) * freq / factor


def rope_magnitude(scaling: dict[str, Any] | None) -> float:
    """What cosines and sines are multiplied by: YaRN's attention factor, else 1."""
    return 1.0 if scaling is None else scaling.get("attention_factor", 1.0)


def _yarn_blend(pairs: int, theta: float, scaling: dict[str, Any]) -> Tensor:
    """Share of the plain frequency in each pair's, float32 [D/2]: a ramp between two pairs.

    Faster pairs than the one with `beta_fast` turns in the original context keep their frequency,
    slower ones than the one with `beta_slow` turns are slowed down.
    """
    d, original = 2 * pairs, scaling["original_max_position_embeddings"]

    def pair_with(turns: float) -> float:
        return d * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_with(scaling["beta_fast"]), pair_with(scaling["beta_slow"])
    if scaling["truncate"]:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, d - 1)
    if first == last:
        last += 0.001
    ramp = (torch.arange(pairs, dtype=torch.float32) - first) / (last - first)
    return 1 - ramp.clamp(0, 1)

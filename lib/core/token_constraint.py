"""Interface between the sampler and whatever restricts a request's tokens. Introduced in chapter 1.

Chapter 12 implements it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class TokenConstraint(Protocol):
    """Belongs to one request. What it answers depends on the output tokens alone, so that nothing
    has to be undone when a step fails, a draft is rejected or the request is preempted."""

    def allowed(self, output_token_ids: Sequence[int]) -> np.ndarray | None:
        """Token ids that may follow, as bits [ceil(V / 8)] uint8, lowest id first.

        None: all may. So it is after a draft that was not allowed: it will be rejected, and what
        would follow it with it.
        """

    def is_complete(self, output_token_ids: Sequence[int]) -> bool:
        """Whether the output is a whole text to which nothing can be added."""

"""How OpenMP's threads wait for each other. Introduced in chapter 8."""

from __future__ import annotations

import os

# PyTorch and Numba split an operator among threads and wait at its end, hundreds of times per step. GNU's OpenMP
# spins 300,000 times before it sleeps. A thread that spins on one core while its partner waits for the other core,
# which another program has, uses up its whole time slice: a step then takes tens of times longer. Chapter 8
# measures this number of rounds: about as fast as the default on a quiet machine, and bounded beside a busy program.
SPIN_COUNT = 3000


def limit_spinning() -> None:
    """Set GOMP_SPINCOUNT unless the user has chosen. Effective only before libgomp is loaded, so before torch."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))

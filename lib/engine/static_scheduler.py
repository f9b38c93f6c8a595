"""Static batching: a batch is filled once, runs until its last sequence ends, and only then comes the next.

Introduced in chapter 3, to be measured against.
"""

from __future__ import annotations

from lib.core.batch import Scheduled
from lib.core.request import Request
from lib.engine.scheduler import Scheduler


class StaticScheduler(Scheduler):
    """The continuous scheduler but for admission: only into an empty engine.

    Then as many requests as fit are admitted at once.
    """

    def schedule(self, may_preempt: bool = True) -> list[Scheduled]:
        self._filling = not self.running
        return super().schedule(may_preempt)

    def may_admit(self, budget: int) -> bool:
        return self._filling

    def waits_for_prefix(self, request: Request) -> bool:
        """Never: a request that is left out would wait for the whole batch."""
        return False

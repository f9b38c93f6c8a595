"""`python -m tests.serving_failing`: the server with an engine that fails where a prompt tells it to."""

from __future__ import annotations

import sys
import time

from lib import LLM
from lib.serving.server import run
from lib.serving.server_options import parse

FAIL_ONCE, FAIL_ALWAYS, STALL, DIE = 1, 2, 3, 4  # token ids


class FailingLLM(LLM):
    """Raises, stalls or ends its thread in the step that computes one of these tokens."""

    broken = False

    def __init__(self, **arguments) -> None:
        super().__init__(**arguments)
        healthy = self.runner.run

        def run_batch(batch):
            tokens = (
                set(batch.input_ids.tolist())
                if len(batch.input_ids) > len(batch.query_lens)
                else set()
            )
            self.broken |= FAIL_ALWAYS in tokens
            if self.broken or FAIL_ONCE in tokens:
                raise RuntimeError("a secret of /the/inside")
            if DIE in tokens:
                raise SystemExit(3)
            if STALL in tokens:
                time.sleep(3)
            return healthy(batch)

        self.runner.run = run_batch


if __name__ == "__main__":
    options = parse()
    sys.exit(run(options, lambda: FailingLLM(**options.llm)))

"""`python -m tests.serving_failing`: the server with an engine that fails where a prompt tells it to."""

from __future__ import annotations

import sys
import time

from lib import LLM
from lib.serving.server import run
from lib.serving.server_options import parse

FAIL_ONCE, FAIL_ALWAYS, STALL, DIE, NOT_FINITE = 1, 2, 3, 4, 5  # token ids


class FailingLLM(LLM):
    """Raises, stalls or ends its thread in the step that computes one of these tokens.

    A prompt with NOT_FINITE ends after its first token as one whose logits are not finite.
    """

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

    def step(self):
        outputs = super().step()
        return [self._fail(o) if NOT_FINITE in o.prompt_token_ids else o for o in outputs]

    def _fail(self, output):
        self.abort(output.request_id)
        for completion in output.completions:
            completion.finish_reason, completion.error = "error", "the logits are not finite"
            completion.metrics.finish_time = time.monotonic()
        for chunk in output.chunks:
            chunk.finish_reason = "error"
        output.finished = True
        return output


if __name__ == "__main__":
    options = parse()
    sys.exit(run(options, lambda: FailingLLM(**options.llm)))

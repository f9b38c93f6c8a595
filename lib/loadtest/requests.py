"""The requests of a load test: seeded prompts of known lengths, as token ids or as text. Introduced in chapter 6."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lib.bench.workloads import fixed, log_normal, random_prompts

FIXED = {"short": 6, "medium": 28, "long": 56}  # prompt tokens, as in the published load test
WORKLOADS = (*FIXED, "chat", "shared-prefix")
PREFIX = 128  # tokens that all prompts of `shared-prefix` begin with

# One token each in GPT-2's vocabulary and in most others, with the blank before it.
_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water "
    "room mother area money story fact month lot right study book eye job word business issue side kind head "
    "house service friend father power hour game line end member law car city"
).split()


@dataclass(frozen=True)
class LoadRequest:
    """One request: its prompt (text or token ids) and the number of tokens that it asks for."""

    prompt: str | list[int]
    max_tokens: int

    def body(self, model: str | None, ignore_eos: bool) -> dict[str, Any]:
        """What POST /v1/completions takes: greedy, streamed, with the token counts at the end."""
        body: dict[str, Any] = {
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if model is not None:
            body["model"] = model
        if (
            ignore_eos
        ):  # vLLM's field: an answer has exactly max_tokens tokens. Not every server knows it.
            body["ignore_eos"] = True
        return body


def make_requests(
    workload: str,
    n: int,
    *,
    max_tokens: int = 50,
    vocab_size: int = 1000,
    text: bool = False,
    seed: int = 0,
) -> list[LoadRequest]:
    """n requests; the same arguments give the same requests on every machine. Prompts are drawn independently.

    short, medium, long: prompts of 6, 28 and 56 tokens. chat: prompts of 8 to 400 tokens and answers of at most
    `max_tokens`, both log-normal, as conversations are. shared-prefix: 128 tokens that all have in common, then 28 of
    its own. `text`: words instead of token ids, each about a token.
    Raises ValueError for an unknown workload, and for n, max_tokens or vocab_size below 1.
    """
    if workload not in WORKLOADS:
        raise ValueError(f"workload must be one of {', '.join(WORKLOADS)}, got {workload!r}")
    outputs = fixed(n, max_tokens)
    if workload == "chat":
        lengths = log_normal(n, 48.0, 0.9, 8, 400, seed)
        # Another seed: a long question does not ask for a long answer.
        outputs = log_normal(n, max(1.0, max_tokens / 2), 0.7, 1, max_tokens, seed + 1)
    else:
        lengths = fixed(n, FIXED.get(workload, FIXED["medium"]))
    prompts: Sequence[list[Any]] = random_prompts(
        lengths, len(_WORDS) if text else vocab_size, seed
    )
    if workload == "shared-prefix":
        rng = random.Random(f"prefix/{seed}")
        shared = [rng.randrange(len(_WORDS) if text else vocab_size) for _ in range(PREFIX)]
        prompts = [shared + own for own in prompts]
    if text:
        prompts = ["".join(f" {_WORDS[i]}" for i in prompt) for prompt in prompts]
    return [LoadRequest(prompt, m) for prompt, m in zip(prompts, outputs)]

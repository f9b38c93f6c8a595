"""What of a request's parameters an engine cannot serve. Introduced in chapter 1."""

from __future__ import annotations

from typing import Any

from lib.core.errors import InvalidRequest
from lib.core.sampling_params import SamplingParams


def check_params(
    params: SamplingParams, num_prompt_tokens: int, longest: int, vocab_size: int, tokenizer: Any
) -> None:
    """Raise InvalidRequest for what depends on the engine; the rest is checked by `SamplingParams` itself.

    `longest`: tokens of the longest sequence; a request that needs more has the error code
    "context_length_exceeded". `tokenizer`: None where the model has none.
    """
    if (needed := num_prompt_tokens + params.max_tokens) > longest:
        raise InvalidRequest(
            f"prompt ({num_prompt_tokens} tokens) + max_tokens ({params.max_tokens}) must be <= "
            f"{longest} tokens, the longest sequence of this engine, got {needed}",
            param="prompt",
            code="context_length_exceeded",
        )
    if params.stop and tokenizer is None:
        raise InvalidRequest(
            f"stop must be empty for a model without a tokenizer, got {params.stop!r}", param="stop"
        )
    for token_id in params.stop_token_ids:
        if token_id >= vocab_size:
            raise InvalidRequest(
                f"stop_token_ids must be < {vocab_size}, got {token_id}", param="stop_token_ids"
            )
    if params.logprobs is not None and params.logprobs > vocab_size:
        raise InvalidRequest(
            f"logprobs must be <= {vocab_size}, the size of the vocabulary, got {params.logprobs}",
            param="logprobs",
        )

"""From a prompt and its parameters to requests, or to the refusal of what can never be served. Introduced in chapter 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lib.core.errors import InvalidRequest
from lib.core.request import Request
from lib.core.sampling_params import SamplingParams
from lib.engine.prompts import as_token_ids
from lib.engine.request_group import RequestGroup
from lib.models.config import ModelConfig


def make_group(
    request_id: str,
    prompt: str | Sequence[int],
    params: SamplingParams | None,
    tokenizer: Any,
    config: ModelConfig,
    longest: int,
    cache_salt: str | None = None,
    restrict: Callable[[Sequence[Request]], None] = lambda requests: None,
) -> RequestGroup:
    """The n requests of a prompt. Raises InvalidRequest.

    longest: tokens of the longest sequence. restrict: gives requests their constraints (chapter 12).
    """
    params = SamplingParams() if params is None else params
    if not isinstance(params, SamplingParams):
        raise InvalidRequest(
            f"params must be SamplingParams or None, got {params!r}", param="params"
        )
    params = replace(params)  # a copy, and checked again: its fields may have been set since
    if not isinstance(request_id, str) or not request_id:
        raise InvalidRequest(
            f"request_id must be a string, not empty, or None, got {request_id!r}",
            param="request_id",
        )
    if cache_salt is not None and (not isinstance(cache_salt, str) or not cache_salt):
        raise InvalidRequest(
            f"cache_salt must be a string, not empty, or None, got {cache_salt!r}",
            param="cache_salt",
        )
    token_ids = as_token_ids(prompt, tokenizer, config.vocab_size)
    _check(params, len(token_ids), longest, config.vocab_size, tokenizer)
    eos = () if params.ignore_eos else config.eos_token_ids
    stop_ids = frozenset(i for i in (*eos, *params.stop_token_ids) if i < config.vocab_size)
    requests = [
        Request(request_id, token_ids, params, stop_ids, index, cache_salt)
        for index in range(params.n)
    ]
    restrict(requests)
    return RequestGroup(
        request_id, prompt if isinstance(prompt, str) else None, requests, tokenizer
    )


def _check(
    params: SamplingParams, num_prompt_tokens: int, longest: int, vocab_size: int, tokenizer: Any
) -> None:
    """Refuse what depends on the engine; `SamplingParams` itself has checked the rest.

    Too long a request has the error code "context_length_exceeded". `tokenizer`: None where the
    model has none.
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
    for token_id in params.logit_bias:
        if token_id >= vocab_size:
            raise InvalidRequest(
                f"logit_bias must have token ids < {vocab_size}, got {token_id}", param="logit_bias"
            )
    for name in ("logprobs", "prompt_logprobs"):
        number = getattr(params, name)
        if number is not None and number > vocab_size:
            raise InvalidRequest(
                f"{name} must be <= {vocab_size}, the size of the vocabulary, got {number}",
                param=name,
            )

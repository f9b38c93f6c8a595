"""The bodies of the routes, as the OpenAI API has them, with vLLM's extra sampling fields. Introduced in chapter 5."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field, model_validator

from lib.core.sampling_params import MAX_LOGPROBS, SamplingParams
from lib.serving.fields import (
    INT32,
    MAX_STOP_LENGTH,
    MAX_STOP_STRINGS,
    NEUTRAL,
    Ids,
    StopString,
    Strict,
    Text,
    WithoutEffect,
    invalid,
)
from lib.serving.structured_fields import ResponseFormat, StructuredOutputs

# Fields of the bodies that are fields of SamplingParams as they are.
_SAMPLING_FIELDS = (
    "min_tokens",
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "bad_words",
    "allowed_token_ids",
    "skip_special_tokens",
    "include_stop_str_in_output",
)


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # without effect: nothing is added here
    neutral: ClassVar = {"continuous_usage_stats": (False,)}


class GenerationRequest(WithoutEffect):
    """What both OpenAI routes share."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=0, le=INT32)
    min_tokens: int | None = Field(None, ge=0, le=INT32)
    n: int | None = Field(None, ge=1, le=128)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=INT32)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**64 - 1)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = (
        Field(
            None,
            description=f"a string of 1 to {MAX_STOP_LENGTH} characters or a list of at most {MAX_STOP_STRINGS}",
        )
    )
    stop_token_ids: list[int] | None = Field(
        None, max_length=1024, description="a list of at most 1024 token ids"
    )
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    logit_bias: dict[str, float] | None = Field(
        None, max_length=1024, description="an object of at most 1024 {token id: -100 to 100}"
    )
    bad_words: list[StopString] | None = Field(
        None,
        max_length=128,
        description=f"a list of at most 128 strings of 1 to {MAX_STOP_LENGTH} characters",
    )
    allowed_token_ids: Ids | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    # Log-probabilities of the prompt's tokens. Not streamed, as in vLLM.
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    return_tokens_as_token_ids: bool | None = None  # in logprobs: "token_id:5" in place of texts
    truncate_prompt_tokens: int | None = Field(None, ge=1, le=INT32)  # the last so many are kept
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = (
        None  # as in vLLM: token_ids beside the text, all there is without a tokenizer
    )
    # The parts of each streamed text that accepted drafts made, in characters; the page colours them.
    return_draft_spans: bool | None = None
    # As in vLLM: only requests with the same salt share cached prefixes. It is not logged.
    cache_salt: str | None = Field(None, min_length=1, max_length=256)
    neutral: ClassVar = NEUTRAL

    @model_validator(mode="after")
    def _fields_agree(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "stream_options needs stream: true")
        if self.return_draft_spans and not self.stream:
            raise invalid("return_draft_spans", "return_draft_spans needs stream: true")
        if self.prompt_logprobs is not None and self.stream:
            raise invalid("prompt_logprobs", "prompt_logprobs needs stream: false")
        formatted = self.response_format is not None and self.response_format.structured is not None
        if formatted and self.structured_outputs is not None:
            raise invalid(
                "structured_outputs", "structured_outputs does not go together with response_format"
            )
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def structured(self) -> dict[str, Any] | None:
        """What the text must be like, as SamplingParams.structured_outputs."""
        if self.structured_outputs is not None:
            return self.structured_outputs.structured
        return None if self.response_format is None else self.response_format.structured

    def sampling_params(
        self,
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None = None,
        forced: dict[str, Any] | None = None,
    ) -> SamplingParams:
        """Raises ValueError where fields do not go together. forced: structured output of a forced tool call."""
        given: dict[str, Any] = {
            name: value for name in _SAMPLING_FIELDS if (value := getattr(self, name)) is not None
        }
        if self.top_p == 0:  # OpenAI's API has it: the most likely token alone
            given |= {"top_p": 1.0, "top_k": 1}
        if max_tokens is not None:
            given["max_tokens"] = max_tokens
        return SamplingParams(
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            structured_outputs=forced or self.structured,
            **given,
        )


class CompletionRequest(GenerationRequest):
    prompt: Text | Ids | Annotated[list[Text | Ids], Field(min_length=1)] = Field(
        description="a string, a list of token ids, or a list of either, and not empty"
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None
    add_special_tokens: bool | None = None  # those that the tokenizer puts around a text, e.g. BOS
    neutral: ClassVar = {**NEUTRAL, "suffix": ("",), "best_of": (1,)}

    @property
    def prompts(self) -> list[str | list[int]]:
        single = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if single else list(self.prompt)

    @property
    def echoed_logprobs(self) -> int | None:
        """How many the echoed prompt has per token; None where it is not echoed with any."""
        return self.logprobs if self.echo else None

    def params(self) -> SamplingParams:
        """With max_tokens 0, which scores a prompt, one token is generated and dropped."""
        asked = [k for k in (self.echoed_logprobs, self.prompt_logprobs) if k is not None]
        max_tokens = 1 if self.max_tokens == 0 else self.max_tokens
        return self.sampling_params(max_tokens, self.logprobs, max(asked, default=None))


class GenerateRequest(Strict):
    """The simple route. Greedy unless a temperature is given."""

    prompt: Text | Ids = Field(description="a string or a list of token ids, and not empty")
    max_tokens: int = Field(16, ge=1, le=INT32)
    temperature: float = Field(0.0, ge=0)


class GenerateResponse(BaseModel):
    request_id: str
    generated_text: str
    token_count: int


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorBody

"""The bodies of the routes, as the OpenAI API has them, with vLLM's extra sampling fields. Introduced in chapter 5.

Strict on purpose: a field that is not here is refused, because a client that sets it would believe that it works.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from lib.core.sampling_params import MAX_LOGPROBS, SamplingParams
from lib.serving.validation_errors import INVALID

MAX_STOP_STRINGS, MAX_STOP_LENGTH = 16, 256  # each token is compared with each of them
_INT32 = 2**31 - 1

Text = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[int], Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]


def _invalid(param: str, message: str) -> PydanticCustomError:
    """A validator's refusal: a complete sentence, and the field at fault."""
    return PydanticCustomError(INVALID, "{message}", {"message": message, "param": param})


class Strict(BaseModel):
    """JSON types are not converted: "5" is no number. null means that a field is not given."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool = False


class GenerationRequest(Strict):
    """What both OpenAI routes share."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1, le=_INT32)
    min_tokens: int | None = Field(None, ge=0, le=_INT32)
    n: int | None = Field(None, ge=1, le=128)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=_INT32)
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
    ignore_eos: bool | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = (
        None  # as in vLLM: token_ids beside the text, all there is without a tokenizer
    )
    # The parts of each streamed text that accepted drafts made, in characters; the page colours them.
    return_draft_spans: bool | None = None
    # As in vLLM: only requests with the same salt share cached prefixes. It is not logged.
    cache_salt: str | None = Field(None, min_length=1, max_length=256)
    user: str | None = Field(None, max_length=128)  # goes into the log

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise _invalid("stream_options", "stream_options needs stream: true")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling_params(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """Raises ValueError where fields do not go together."""
        fields = (
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
        )
        given: dict[str, Any] = {
            name: value for name in fields if (value := getattr(self, name)) is not None
        }
        if max_tokens is not None:
            given["max_tokens"] = max_tokens
        return SamplingParams(logprobs=logprobs, **given)


class CompletionRequest(GenerationRequest):
    prompt: Text | Ids | Annotated[list[Text | Ids], Field(min_length=1)] = Field(
        description="a string, a list of token ids, or a list of either, and not empty"
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None

    @model_validator(mode="after")
    def _echo_without_logprobs(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise _invalid(
                "echo",
                "echo does not go together with logprobs: the prompt's are not computed here",
            )
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        single = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if single else list(self.prompt)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    model_config = ConfigDict(
        json_schema_extra={
            "description": "{role: system, user or assistant, content: a string or text parts}"
        }
    )
    role: Literal["system", "user", "assistant"] = Field(description="system, user or assistant")
    content: str | list[TextPart] = Field(
        description='a string or a list of {type: "text", text: a string}'
    )


class ChatRequest(GenerationRequest):
    messages: list[Message] = Field(
        min_length=1,
        description="a list of {role: system, user or assistant, content: a string or text parts}, "
        "and not empty",
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=_INT32
    )  # OpenAI's newer name of max_tokens
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _names_agree(self) -> ChatRequest:
        if (
            None not in (self.max_tokens, self.max_completion_tokens)
            and self.max_tokens != self.max_completion_tokens
        ):
            raise _invalid(
                "max_completion_tokens",
                "max_completion_tokens is another name of max_tokens, and they differ",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise _invalid("top_logprobs", "top_logprobs needs logprobs: true")
        return self

    @property
    def conversation(self) -> list[dict[str, str]]:
        return [
            {
                "role": m.role,
                "content": m.content
                if isinstance(m.content, str)
                else "\n".join(part.text for part in m.content),
            }
            for m in self.messages
        ]


class GenerateRequest(Strict):
    """The simple route. Greedy unless a temperature is given."""

    prompt: Text | Ids = Field(description="a string or a list of token ids, and not empty")
    max_tokens: int = Field(16, ge=1, le=_INT32)
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

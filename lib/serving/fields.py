"""What all request bodies share: strict types, and which known fields are accepted though they do nothing.

A field that this server does not know is refused, because a client that sets it would believe that
it works. Clients also send known fields with the values that mean the same as leaving them out, and
fields that never change an answer. Both are accepted. Introduced in chapter 5.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from lib.serving.validation_errors import INVALID

MAX_STOP_STRINGS, MAX_STOP_LENGTH = 16, 256  # each token is compared with each of them
INT32 = 2**31 - 1

MAX_DEPTH = 100  # of nested objects and lists; llguidance refuses schemas deeper than 128

Text = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[int], Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Label = Annotated[str, Field(max_length=512)]


def invalid(param: str, message: str) -> PydanticCustomError:
    """A validator's refusal: a complete sentence that begins with the field, and the name of the field."""
    return PydanticCustomError(INVALID, "{message}", {"message": message, "param": param})


def _not_too_deep(value: dict[str, Any]) -> dict[str, Any]:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise invalid("", f"must not nest more than {MAX_DEPTH} objects and lists")
        inner = [v for v in level for v in (v.values() if isinstance(v, dict) else v)]
        level = [v for v in inner if isinstance(v, (dict, list))]
    return value


# A JSON object of any content. It is passed on to functions that recurse, so its depth is limited.
JsonObject = Annotated[dict[str, Any], AfterValidator(_not_too_deep)]


class Strict(BaseModel):
    """JSON types are not converted: "5" is not accepted as a number. null means that a field is not given.

    neutral: fields without a function here, and their values that mean the same as leaving them
    out (null always does). Any other value is refused like an unknown field.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        if not cls.neutral or not isinstance(data, dict):
            return data
        return {
            key: value
            for key, value in data.items()
            if key not in cls.neutral or not _is_one_of(value, (None, *cls.neutral[key]))
        }


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    # 1 == True in Python, but not in JSON.
    return any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed)


class WithoutEffect(Strict):
    """Known fields that change nothing about the answer of a server like this one."""

    user: str | None = Field(None, max_length=128)  # goes into the log
    store: bool | None = None
    metadata: JsonObject | None = None
    service_tier: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    request_id: Label | None = None
    priority: int | None = Field(None, ge=-INT32, le=INT32)


# Of OpenAI's and vLLM's APIs: what has no function here, and the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "spaces_between_special_tokens": (True,),
    "detokenize": (True,),
    "logits_processors": ([],),
    "kv_transfer_params": (),
    "vllm_xargs": ({},),
}

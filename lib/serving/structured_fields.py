"""The fields that ask for structured text: OpenAI's response_format, vLLM's structured_outputs.

Introduced in chapter 5.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from lib.serving.fields import JsonObject, Strict, Text, invalid


class JsonSchema(Strict):
    name: str
    description: str | None = None  # without effect: the model does not see it
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None  # without effect: the schema always holds


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise invalid(
                "json_schema", "json_schema must be given with type json_schema, and only with it"
            )
        if self.json_schema is not None and self.json_schema.schema_ is None:
            raise invalid("json_schema.schema", "json_schema.schema is required")
        return self

    @property
    def structured(self) -> dict[str, Any] | None:
        """As SamplingParams.structured_outputs."""
        if self.json_schema is not None:
            return {"json": self.json_schema.schema_}
        return {"json": True} if self.type == "json_object" else None


class StructuredOutputs(Strict):
    """vLLM's field: exactly one of them."""

    json_: JsonObject | Text | None = Field(
        None, alias="json", description="a JSON schema, as an object or as a string"
    )
    json_object: Literal[True] | None = None
    regex: Text | None = None
    choice: list[Text] | None = Field(None, min_length=1)
    grammar: Text | None = None
    neutral: ClassVar = {
        "json_object": (False,),
        "structural_tag": (),
        "disable_fallback": (False,),
        "disable_any_whitespace": (False,),
        "disable_additional_properties": (False,),
        "whitespace_pattern": (),
    }

    @model_validator(mode="after")
    def _exactly_one(self) -> StructuredOutputs:
        if len(self._given) != 1:
            names = ", ".join(self._given) or "none"
            raise invalid(
                "",
                "must have exactly one of json, json_object, regex, choice and grammar, "
                f"got {names}",
            )
        return self

    @property
    def _given(self) -> dict[str, Any]:
        kinds = {
            "json": self.json_,
            "json_object": self.json_object,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
        }
        return {kind: value for kind, value in kinds.items() if value is not None}

    @property
    def structured(self) -> dict[str, Any]:
        """As SamplingParams.structured_outputs."""
        ((kind, value),) = self._given.items()
        return {"json": True} if kind == "json_object" else {kind: value}

"""Pydantic's findings as one sentence: the field, what it may be, what it was. Introduced in chapter 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_KINDS = {
    "string": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
    "finite": "a finite number",
}
_BOUNDS = (
    ("minimum", ">="),
    ("exclusiveMinimum", ">"),
    ("maximum", "<="),
    ("exclusiveMaximum", "<"),
)
_SHOWN = 80  # characters of a value that an answer repeats


def describe(
    findings: Sequence[Mapping[str, Any]], content_type: str, schema: Mapping[str, Any]
) -> tuple[str, str | None]:
    """(message, name of the field at fault or None). `schema`: the body's JSON schema."""
    media = content_type.split(";")[0].strip().lower()
    if media != "application/json" and not (
        media.startswith("application/") and media.endswith("+json")
    ):
        return (
            f"Content-Type must be application/json, got {media!r}"
            if media
            else "Content-Type is missing, it must be application/json",
            None,
        )
    finding = findings[0]
    location = [part for part in finding["loc"] if part != "body"]
    kind = finding["type"]
    if kind == "json_invalid":
        return (
            f"the body is not valid JSON: {finding.get('ctx', {}).get('error', 'cannot be parsed')}",
            None,
        )
    if (
        kind == "value_error"
    ):  # a validator of ours, whose sentence is complete and begins with the field
        message = str(finding["ctx"]["error"])
        return message, message.split()[0]
    if not location:
        return "the body must be a JSON object", None
    if kind == "missing" and len(location) == 1:
        return f"{location[0]} is required", str(location[0])
    field = str(location[0])
    if kind == "extra_forbidden":
        name = ".".join(str(part) for part in location if not _is_branch(part))
        return f"{name[:_SHOWN]} is not supported by this server", name[:_SHOWN]
    known = schema.get("properties", {}).get(field, {})
    known = {
        **(known.get("anyOf") or [{}])[0],
        **known,
    }  # the other form of an optional field is null
    value = repr(finding.get("input"))
    if "description" in known:  # a field of several forms: what the last form lacked would not help
        return f"{field} must be {known['description']}, got {value[:_SHOWN]}", field
    return f"{field} must be {_expected(kind, finding, known)}, got {value[:_SHOWN]}", field


def _is_branch(part: object) -> bool:
    """Whether a part of a location names a branch of a union, such as 'list[int]', and not a field."""
    return isinstance(part, str) and (
        part in ("str", "int", "float", "bool") or "[" in part or part[:1].isupper()
    )


def _expected(kind: str, finding: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    limits = " and ".join(f"{sign} {known[name]}" for name, sign in _BOUNDS if name in known)
    noun = next((text for start, text in _KINDS.items() if kind.startswith(start)), None)
    if noun is None:
        if limits and kind.startswith(("greater", "less")):
            return limits
        message = str(finding["msg"])
        return (
            message.removeprefix("Input should be ")[:1].lower()
            + message.removeprefix("Input should be ")[1:]
        )
    return f"{noun} {limits}".strip()

"""Pydantic's findings as one sentence: the field's path, what is allowed, what was given. Introduced in chapter 5."""

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
# Fields that vLLM had until it replaced them.
_REPLACED = {
    "guided_json": "structured_outputs.json",
    "guided_regex": "structured_outputs.regex",
    "guided_choice": "structured_outputs.choice",
    "guided_grammar": "structured_outputs.grammar",
    "functions": "tools",
    "function_call": "tool_choice",
}
_SHOWN = 80  # characters of a value that an answer repeats
INVALID = "invalid_request"  # type of our validators' findings; their ctx has `message` and `param`


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
    if kind == INVALID:
        message, param = finding["ctx"]["message"], finding["ctx"]["param"]
        where = ".".join(map(str, location))  # of the object that the validator belongs to
        if where:
            message = f"{where}.{message}" if param else f"{where} {message}"
        return message, ".".join(filter(None, (where, param)))
    if not location:
        return "the body must be a JSON object", None
    path, known = _find(location, schema)
    if kind == "extra_forbidden":
        name = f"{path}.{location[-1]}"[:_SHOWN] if path else str(location[-1])[:_SHOWN]
        instead = _REPLACED.get(name)
        hint = f", {instead} is its newer name" if instead else ""
        return f"{name} is not supported by this server{hint}", name
    path = path or str(location[0])
    if kind == "missing":
        return f"{path} is required", path
    value = repr(finding.get("input"))[:_SHOWN]
    # Of a field of several forms, what the last form lacked would not help: its description names all.
    expected = known.get("description") or _expected(kind, finding, known)
    return f"{path} must be {expected}, got {value}", path


def _find(
    location: Sequence[str | int], schema: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]]:
    """(path such as "messages.0.role", its schema), as far as the schema has one form only."""
    path: list[str] = []
    known = schema
    for part in location:
        inner = (
            known.get("items") if isinstance(part, int) else known.get("properties", {}).get(part)
        )
        if inner is None:
            break
        known = _only_form(inner, schema)
        path.append(str(part))
    return ".".join(path), known


def _only_form(known: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of an optional field without its null, and of a reference what it refers to."""
    forms = [form for form in known.get("anyOf", []) if form.get("type") != "null"]
    if len(forms) == 1:
        known = {**forms[0], **known}
    if "$ref" in known:
        known = {**schema["$defs"][known["$ref"].rsplit("/", 1)[-1]], **known}
    return known


def _expected(kind: str, finding: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    limits = " and ".join(f"{sign} {known[name]}" for name, sign in _BOUNDS if name in known)
    if "maxLength" in known:
        limits = f"of at most {known['maxLength']} characters"
    if kind == "string_too_short":  # of all strings here, the shortest allowed has one character
        return "a string that is not empty"
    noun = next((text for start, text in _KINDS.items() if kind.startswith(start)), None)
    if noun is not None:
        return f"{noun} {limits}".strip()
    if limits and kind.startswith(("greater", "less")):
        return limits
    message = str(finding["msg"]).removeprefix("Input should be ")
    return message[:1].lower() + message[1:]

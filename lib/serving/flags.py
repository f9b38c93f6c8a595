"""Command-line flags from a dataclass of options: name, type, default and help of each field. Introduced in chapter 5."""

from __future__ import annotations

import argparse
import json
from dataclasses import MISSING, Field, fields
from typing import Any


def add_flags(group: Any, options: type) -> list[str]:
    """Add `--field-name` to an argparse group for each field of the dataclass; returns the fields' names.

    A field's metadata: `help`; `choices`, shown and left to the dataclass to check; `metavar`; `flag`, the flag's name
    where it is not the field's; `internal`, for a field that is no flag. The type comes from the annotation: a bool also
    gets `--no-...`, a list collects repeated flags, a dict is given as JSON.
    """
    flags = [option for option in fields(options) if not option.metadata.get("internal")]
    for option in flags:
        name = option.metadata.get("flag", option.name).replace("_", "-")
        group.add_argument(f"--{name}", dest=option.name, **_arguments(option))
    return [option.name for option in flags]


def _arguments(option: Field) -> dict[str, Any]:
    rules = option.metadata
    default = option.default if option.default_factory is MISSING else option.default_factory()
    shown = "" if default is None or default == [] else " (default: %(default)s)"
    known = {"default": default, "help": rules.get("help", "").replace("%", "%%") + shown}
    kinds = {kind.split("[")[0].strip() for kind in str(option.type).split("|")}
    if "bool" in kinds:
        return {**known, "action": argparse.BooleanOptionalAction}
    if "list" in kinds:
        return {**known, "action": "append", "metavar": rules.get("metavar", "VALUE")}
    kind = next((k for name, k in _KINDS.items() if name in kinds), str)
    metavar = (
        "{" + ",".join(c for c in rules["choices"] if c is not None) + "}"
        if "choices" in rules
        else _SHOWN.get(kind, "TEXT")
    )
    return {**known, "type": kind, "metavar": rules.get("metavar", metavar)}


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


_json_object.__name__ = "JSON object"  # argparse: "invalid JSON object value: '5'"
_KINDS = {"int": int, "float": float, "dict": _json_object}
_SHOWN = {int: "N", float: "X", _json_object: "JSON"}

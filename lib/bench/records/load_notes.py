"""A record's `load`: what other programs used of the CPU before and during the run. Introduced in chapter 1."""

from pathlib import Path
from typing import Any

from lib.bench.measure.system_load import Load
from lib.bench.records.files import read_record, write_json


def load_facts(before: Load | None, during: Load | None) -> dict[str, Any]:
    """A fingerprint's `load`: what other programs used before and during the run, and whether the times suffered.

    `before` and `during` are None where nothing was measured; `disturbed` is None where `during` is.
    """
    return {
        "before": before and before.to_json(),
        "during": during and during.to_json(),
        "disturbed": during and during.disturbed,
    }


def note_load(path: Path, before: Load | None, during: Load | None) -> dict:
    """Writes into a record what other programs used while it was made; the record."""
    record = read_record(path)
    record.setdefault("fingerprint", {})["load"] = load_facts(before, during)
    write_json(path, record)
    return record


def was_disturbed(record: dict) -> bool:
    """Whether a record says of itself that its times are not reliable. Older records do not say."""
    return bool((record.get("fingerprint", {}).get("load") or {}).get("disturbed"))

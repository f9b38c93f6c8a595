"""llguidance and xgrammar over the JSON Schema test suite: the recorded comparison in words and as a table.

`book/tools/compare_grammars.py` writes the file. Introduced in chapter 12.
"""

from typing import Any

from lib.bench.findings.values import percent
from lib.bench.paths import measurements_dir
from lib.bench.records.files import reference

HEADERS = ("library", "schemas compiled", "valid accepted", "invalid accepted", "install (MB)")


def comparison() -> Any:
    """The recorded comparison. Raises FileNotFoundError where it is missing."""
    return reference(measurements_dir() / "reference" / "json_schema_suite.json")


def rows(found: Any = None) -> list[list[str]]:
    """One row per trial, under HEADERS."""
    found = comparison() if found is None else found
    return [
        [
            f"{t['library']} {t['version']}" + (", strict" if t["mode"] == "strict" else ""),
            f"{t['compiled']} of {t['schemas']}",
            f"{t['valid_accepted']} of {t['valid']}",
            f"{t['invalid_accepted']} of {t['invalid']}",
            f"{t['install_mb']}",
        ]
        for t in found["trials"]
    ]


def suite(found: Any = None) -> dict[str, str]:
    """Where the table is from, and which of the two never accepts an invalid text."""
    found = comparison() if found is None else found
    said = []
    for trial in found["trials"]:
        if trial["mode"] != "default":
            continue
        name, wrong = trial["library"], trial["invalid_accepted"]
        compiled = f"{name} compiles {percent(trial['compiled'] / trial['schemas'])} of the schemas"
        if wrong:
            said.append(f"{compiled} and accepts {wrong} of {trial['invalid']} invalid texts")
        else:
            said.append(f"{compiled} and accepts none of {trial['invalid']} invalid texts")
    return {"suite_source": f"{found['source']}.", "suite_finding": "; ".join(said) + "."}

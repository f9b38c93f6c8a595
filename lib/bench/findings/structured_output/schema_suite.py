"""Two recorded trials of JSON schemas: two libraries over a test suite, and 1,000 answers of the engine.

`book/tools/compare_grammars.py` and `book/tools/schema_runs.py` write the files. Introduced in chapter 12.
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
    """Source of the table, and what each library compiles and accepts without xgrammar's strict mode."""
    found = comparison() if found is None else found
    with_strict = {trial["library"] for trial in found["trials"] if trial["mode"] == "strict"}
    said = []
    for trial in found["trials"]:
        if trial["mode"] == "strict":
            continue
        name, wrong = trial["library"], trial["invalid_accepted"]
        name += " (not strict)" if name in with_strict else ""
        compiled = f"{name} compiles {percent(trial['compiled'] / trial['schemas'])} of the schemas"
        if wrong:
            said.append(f"{compiled} and accepts {wrong} of {trial['invalid']} invalid texts")
        else:
            said.append(f"{compiled} and accepts none of {trial['invalid']} invalid texts")
    return {"suite_source": f"{found['source']}.", "suite_finding": "; ".join(said) + "."}


def schema_runs() -> Any:
    """The recorded answers under schemas. Raises FileNotFoundError where they are missing."""
    return reference(measurements_dir() / "reference" / "schema_runs.json")


def runs(found: Any = None) -> dict[str, str]:
    """How many of the recorded answers ended with `stop`, and how many of those are valid."""
    found = schema_runs() if found is None else found
    stopped, valid = found["stopped"], found["valid"]
    worst = max(found["by_schema"], key=lambda row: row["answers"] - row["stopped"])
    cut = worst["answers"] - worst["stopped"]
    all_or_some = "all of them" if valid == stopped else f"{valid:,} of them"
    return {
        "runs_finding": f"Of {found['source']} under {len(found['by_schema'])} schemas, {stopped:,} end with the reason "
        f"stop, and {all_or_some} are valid by the library jsonschema {found['versions']['jsonschema']}. "
        f"The other {found['answers'] - stopped:,} reached the limit of {found['max_tokens']} tokens.",
        "cut_finding": f"In the larger sample, the schema “{worst['schema']}” was cut off most often: {cut} of "
        f"{worst['answers']} answers did not end.",
    }

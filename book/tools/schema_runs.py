"""`python book/tools/schema_runs.py`: 1,000 runs of SmolLM2 under JSON schemas, each judged by the library jsonschema.

Every text whose reason is `stop` has to be valid. Writes book/measurements/reference/schema_runs.json, which chapter 12
quotes. jsonschema comes with Jupyter; it shares no code with the library that makes the masks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from typing import Any

import jsonschema

from lib import LLM, SamplingParams
from lib.bench.paths import measurements_dir
from lib.bench.records.json_file import write_json

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "boolean": {"type": "boolean"},
    "null or integer": {"type": ["null", "integer"], "minimum": -5, "maximum": 5},
    "integer range": {"type": "integer", "minimum": 17, "maximum": 1234},
    "exclusive range": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3},
    "number": {"type": "number", "minimum": 0, "maximum": 1},
    "multiple": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 500},
    "enum": {"enum": ["red", "green", 3, None, {"a": [1]}]},
    "const": {"const": {"deep": [1, {"er": "é"}]}},
    "short string": {"type": "string", "minLength": 2, "maxLength": 6},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "date": {"type": "string", "format": "date"},
    "integers": {"type": "array", "items": {"type": "integer", "maximum": 9, "minimum": 0}, "minItems": 1, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["x", "y"]}], "items": False, "minItems": 2},
    "object": _PERSON,
    "optional fields": {**_PERSON, "required": ["age"]},
    "nested": {"type": "object", "properties": {"who": _PERSON, "ok": {"type": "boolean"}}, "required": ["who", "ok"], "additionalProperties": False},
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
    "any of": {"anyOf": [_PERSON, {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}]},
    "all of": {"allOf": [{"type": "integer", "minimum": 10}, {"maximum": 12}]},
    "recursive": {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}}},
}  # fmt: skip
PROMPT = "Answer with one JSON value that follows this schema: {schema}"


def run(
    llm: LLM, schemas: Mapping[str, dict[str, Any]], seeds: Sequence[int], max_tokens: int
) -> list[dict[str, Any]]:
    """One row per schema: answers, those that ended with `stop`, and those of them that are valid.

    Texts that are not valid are kept under "wrong".
    """
    jobs = [(name, seed) for name in schemas for seed in seeds]
    prompts = [PROMPT.format(schema=json.dumps(schemas[name])) for name, _ in jobs]
    params = [
        SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0,
            seed=seed,
            structured_outputs={"json": schemas[name]},
        )
        for name, seed in jobs
    ]
    outputs = llm.generate(prompts, params)
    rows = {name: {"schema": name, "answers": 0, "stopped": 0, "valid": 0, "wrong": []} for name in schemas}  # fmt: skip
    for (name, _), output in zip(jobs, outputs):
        row = rows[name]
        row["answers"] += 1
        if output.finish_reason != "stop":
            continue
        row["stopped"] += 1
        if is_valid(output.text, schemas[name]):
            row["valid"] += 1
        else:
            row["wrong"].append(output.text)
    return list(rows.values())


def is_valid(text: str, schema: dict[str, Any]) -> bool:
    """Whether the text is JSON that follows the schema, formats included."""
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    try:
        return validator.is_valid(json.loads(text))
    except ValueError:
        return False


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50, help="answers per schema")
    parser.add_argument("--max-tokens", type=int, default=24)
    options = parser.parse_args(arguments)
    llm = LLM("smollm2", dtype="float32", max_model_len=384, max_num_seqs=64)
    start = time.perf_counter()
    rows = run(llm, SCHEMAS, range(options.seeds), options.max_tokens)
    totals = Counter({k: sum(row[k] for row in rows) for k in ("answers", "stopped", "valid")})
    packages = {name: version(name) for name in ("llguidance", "jsonschema")}
    found = {
        "source": f"{totals['answers']:,} answers of SmolLM2-135M-Instruct at temperature 1",
        "date": date.today().isoformat(),
        "versions": packages,
        "max_tokens": options.max_tokens,
        **totals,
        "seconds": round(time.perf_counter() - start, 1),
        "by_schema": rows,
    }
    write_json(measurements_dir() / "reference" / "schema_runs.json", found)
    print(dict(totals))
    if totals["valid"] != totals["stopped"]:
        raise SystemExit([row for row in rows if row["wrong"]])


if __name__ == "__main__":
    main()

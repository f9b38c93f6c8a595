"""The comparison of two libraries over the JSON Schema test suite, on a suite of two files."""

import json

import pytest

from book.tools import compare_grammars, grammar_trial
from lib.bench.findings.structured_output import schema_suite


@pytest.fixture
def suite(tmp_path):
    cases = {
        "enum": [({"enum": [1, "a"]}, [(1, True), ("a", True), (2, False)])],
        "type": [
            ({"type": "boolean"}, [(True, True), ("true", False), (0, False)]),
            ({"type": "nonsense"}, [(1, True)]),
        ],
    }
    for name, found in cases.items():
        written = [
            {"schema": schema, "tests": [{"data": d, "valid": v} for d, v in tests]}
            for schema, tests in found
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(written))
    return tmp_path


def test_a_library_that_accepts_everything_is_counted_as_such(suite):
    def compile_(schema):
        if schema.get("type") == "nonsense":
            raise RuntimeError("each library has errors of its own")
        return lambda text: True

    found = grammar_trial.trial(suite, compile_)
    counts = {k: found[k] for k in ("schemas", "compiled", "valid", "valid_accepted")}
    assert counts == {"schemas": 3, "compiled": 2, "valid": 3, "valid_accepted": 3}
    assert found["invalid"] == found["invalid_accepted"] == 3
    assert found["invalid_accepted_in"] == ["enum", "type"]


def test_llguidance_accepts_the_valid_texts_alone(suite):
    pytest.importorskip("llguidance")
    found = grammar_trial.trial(suite, grammar_trial.llguidance_compiler(strict=False))
    assert (found["compiled"], found["valid_accepted"], found["invalid_accepted"]) == (2, 3, 0)


def test_versions_and_sizes_are_read_from_what_was_installed(tmp_path):
    (tmp_path / "apache_tvm_ffi-0.1.15.post2.dist-info").mkdir()
    assert compare_grammars.version_in(tmp_path, "apache-tvm-ffi") == "0.1.15.post2"
    (tmp_path / "library.so").write_bytes(b"x" * 2_300_000)
    assert compare_grammars.megabytes(tmp_path) == 2.3


def test_a_trial_that_fails_says_how(tmp_path):
    with pytest.raises(RuntimeError, match="(?s)the trial of nothing failed.*KeyError"):
        compare_grammars.run_trial("nothing", "not strict", tmp_path, tmp_path)


def test_the_recorded_comparison_is_whole():
    found = schema_suite.comparison()
    assert [(t["library"], t["mode"]) for t in found["trials"]] == list(compare_grammars.TRIALS)
    for trial in found["trials"]:
        assert trial["schemas"] > 300 and trial["compiled"] > 100
        assert bool(trial["invalid_accepted"]) == bool(trial["invalid_accepted_in"])

"""Records as files: whole or absent, and an error for what is no record."""

import json
import math

import pytest

from lib.bench.paths import measurements_dir
from lib.bench.records.files import Reference, read_record, reference, write_json


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a" / "x.json"
    write_json(path, {"schema": 1})
    with pytest.raises(ValueError):
        write_json(path, {"x": math.nan})
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        write_json(path, {"schema": 2})
    assert json.loads(path.read_text()) == {"schema": 1} and [
        p.name for p in path.parent.iterdir()
    ] == ["x.json"]


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"schema": 1', "not valid JSON"),
        ("[]", "no record of schema 1"),
        ('{"schema": 99}', "no record of schema 1"),
        ('{"schema": 1, "scale": "cpu"}', "measurements must be a dict, got None"),
        ('{"schema": 1, "scale": "cpu", "measurements": []}', r"must be a dict, got \[\]"),
        ('{"schema": 1, "scale": "cpu", "measurements": {}}', "fingerprint must be a dict"),
        ('{"schema": 1, "measurements": {}, "fingerprint": {}}', "scale must be a str, got None"),
    ],
)
def test_what_is_no_record_is_said_so(tmp_path, text, message):
    path = tmp_path / "x.json"
    assert read_record(path) is None
    path.write_text(text)
    with pytest.raises(ValueError, match=f"x.json.*{message}"):
        read_record(path)


def test_the_published_figures():
    path = measurements_dir() / "reference" / "seed_results.json"
    if not path.is_file():
        with pytest.raises(FileNotFoundError):
            reference()
        return
    published = reference()
    assert (
        published["headline"]["batch_gain_512"] == 118.3
        and "A100" in published.label
        and published.source
    )
    assert isinstance(published, Reference)

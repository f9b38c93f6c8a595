"""The scoreboard: verdicts follow from records by rules, whatever a folder of records holds or lacks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from book.scoreboard import claims as board
from book.scoreboard.outcomes import (
    DEPENDS,
    REFUTED,
    REPRODUCED,
    UNMEASURED,
    decide,
    nearest,
    times,
)
from book.scoreboard.page import page_part
from lib.bench.records.files import SCHEMA, reference

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = reference()
COUNT = len(PUBLISHED["findings"]) + len(PUBLISHED["failures"]) + len(PUBLISHED["headline"])


class Folder:
    """A folder of records: `add("gpu", "03", batch_sweep_float32={"batch": [...], ...})`."""

    def __init__(self, path):
        self.path = path

    def add(self, hardware, chapter, scale="gpu", params=None, **measurements):
        series = {
            name: {
                "unit": "x",
                "params": (params or {}).get(name, {}),
                "seed": 0,
                "columns": columns,
                "samples": {},
            }
            for name, columns in measurements.items()
        }
        data = {
            "schema": SCHEMA, "chapter": f"{chapter}_name", "scale": scale, "measurements": series,
            "fingerprint": {"hardware": {"kind": "cpu", "label": hardware, "slug": hardware}, "date": "2025-01-01T00",
                            "versions": {"torch": "2.9"}},
        }  # fmt: skip
        path = self.path / hardware / f"{chapter}_name.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(data))

    def rows(self):
        return board.scoreboard(self.path)

    def row(self, rule):
        (found,) = [row for row in self.rows() if row.claim.judge.__name__ == rule]
        return found

    def verdict(self, rule):
        return self.row(rule).verdict


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def sweep(*pairs):
    return {"batch": [b for b, _ in pairs], "tok_s": [rate for _, rate in pairs]}


def generated(*triples):
    return {
        "generated": [n for n, _, _ in triples],
        "no_cache": [a for _, a, _ in triples],
        "kv_cache": [b for *_, b in triples],
    }


def test_every_published_claim_has_its_row_and_its_own_words(folder):
    rows = folder.rows()
    assert len(rows) == COUNT
    texts = " ".join(f"{row.claim.text} {row.claim.published}".lower() for row in rows)
    for text in [
        *PUBLISHED["findings"],
        *(row["broke"] for row in PUBLISHED["failures"]),
        *map(str, PUBLISHED["headline"].values()),
    ]:
        assert text.lower() in texts


def test_without_records_nothing_is_measured_but_the_tests(folder):
    assert {row.verdict for row in folder.rows() if row.claim.text != "Tests"} == {UNMEASURED}
    assert "depends on what counts" in folder.verdict("tests") and folder.row("tests").outcomes
    here = folder.row("tests").outcomes["this repository"].value
    assert int(here.split()[0]) > 200  # those in all folders of tests/, not in its root alone
    assert "No run has been recorded" in page_part("hardware", folder.rows(), {})


def test_a_folder_that_does_not_exist_is_one_without_records(tmp_path):
    assert {
        row.verdict for row in board.scoreboard(tmp_path / "none") if row.claim.text != "Tests"
    } == {UNMEASURED}


def test_smoke_runs_are_no_measurements(folder):
    folder.add("a", "03", scale="smoke", batch_sweep_float32=sweep((1, 10.0), (512, 1183.0)))
    assert folder.verdict("batch_gain") == UNMEASURED and board.recorded_hardware(folder.path) == {}


def test_a_figure_is_reproduced_only_at_the_size_that_the_claim_names(folder):
    folder.add("a", "03", batch_sweep_float32=sweep((1, 10.0), (64, 467.0), (512, 1183.0)))
    assert folder.verdict("batch_gain") == REPRODUCED
    folder.add("a", "03", batch_sweep_float32=sweep((1, 10.0), (64, 467.0)))
    assert folder.verdict("batch_gain") == f"{DEPENDS} the batch"
    assert (
        folder.row("batch_gain").outcomes["a"].value == "46.7× at batch 64 (published there: 46.7×)"
    )
    folder.add("a", "03", batch_sweep_float32=sweep((1, 10.0), (64, 60.0)))
    assert folder.verdict("batch_gain") == f"{DEPENDS} the hardware"
    folder.add("a", "03", batch_sweep_float32=sweep((1, 10.0), (64, 9.0)))
    assert folder.verdict("batch_gain") == REFUTED


def test_without_a_common_size_the_nearest_published_one_is_named(folder):
    folder.add("a", "02", throughput_by_generated=generated((100, 10.0, 20.0), (150, 5.0, 20.0)))
    row = folder.row("cache_gain")
    assert row.outcomes["a"].value == "4.00× at 150 tokens (published nearest: 1.02× at 200 tokens)"
    assert row.verdict.startswith(DEPENDS) and "length" in row.verdict
    assert folder.verdict("grows_with_length") == f"{DEPENDS} the hardware"


def test_zeros_and_gaps_are_left_out_and_never_divided_by(folder):
    folder.add("a", "03", batch_sweep_float32=sweep((1, 0.0), (64, 467.0)))
    assert folder.verdict("batch_gain") == UNMEASURED
    folder.add("a", "03", batch_sweep_float32=sweep((1, 10.0), (32, 200.0), (512, None)))
    assert "at batch 32" in folder.row("batch_gain").outcomes["a"].value
    folder.add("a", "02", throughput_by_generated=generated((200, 0.0, 5.0), (1000, None, 5.0)),
               profile_time={"no_cache": [0.0], "kv_cache": [0.0]})  # fmt: skip
    assert (
        folder.verdict("cache_gain")
        == folder.verdict("time_saved")
        == folder.verdict("grows_with_length")
        == UNMEASURED
    )
    folder.add("a", "06", gain_by_length={"gain": [0.0], "batching": [1.0], "paging": [0.0]},
               throughput_by_users={"users": [1, 4], "sequential": [0.0, 3.0], "continuous, paged": [1, 2]})  # fmt: skip
    assert (
        folder.verdict("load_gain")
        == folder.verdict("long_prompts")
        == folder.verdict("flat_throughput")
        == UNMEASURED
    )


def test_a_sweep_that_does_not_begin_at_one_has_no_gain_over_one(folder):
    folder.add("a", "03", batch_sweep_float32=sweep((4, 10.0), (512, 1183.0)))
    assert folder.verdict("batch_gain") == UNMEASURED


def test_hardware_that_agrees_shares_a_verdict_and_hardware_that_does_not_depends_on_it(folder):
    folder.add("a", "03", batch_sweep_float32=sweep((1, 10.0), (512, 1183.0)))
    folder.add("b", "03", batch_sweep_float32=sweep((1, 10.0), (512, 1000.0)))
    folder.add("c", "04", same_bytes={"cache": ["contiguous", "paged"], "peak_running": [3, 9]},
               params={"same_bytes": {"budget_bytes": 2**27}})  # fmt: skip
    row = folder.row("batch_gain")
    assert (
        row.verdict == REPRODUCED and row.outcomes["c"] is None
    )  # no record of chapter 3: it has no say
    folder.add("b", "03", batch_sweep_float32=sweep((1, 10.0), (512, 20.0)))
    assert folder.verdict("batch_gain") == f"{DEPENDS} the hardware"
    assert "a: 118× at batch 512 → reproduced" in page_part("headline", folder.rows())
    assert (
        "128 MiB, 3 sequences at once in slots, 9 in blocks"
        in folder.row("out_of_memory").outcomes["c"].value
    )


@pytest.mark.parametrize("kv, verdict", [(22.0, REPRODUCED), (2000.0, REFUTED)])
def test_batching_is_the_largest_win_only_if_it_beats_the_cache(folder, kv, verdict):
    folder.add("a", "03", batch_sweep_float32=sweep((1, 10.0), (512, 1183.0)))
    assert folder.verdict("largest_win") == UNMEASURED
    folder.add("a", "02", throughput_by_generated=generated((1000, 10.0, kv)))
    assert folder.verdict("largest_win") == verdict


def test_the_published_run_reproduces_itself(folder):
    tokens, memory = (
        PUBLISHED["throughput_by_generated_tokens"],
        PUBLISHED["paged_vs_contiguous_by_batch"],
    )
    load, profile = PUBLISHED["load_c64"], PUBLISHED["profiler"]
    s = PUBLISHED["batch_sweep"]
    folder.add("a", "03", batch_sweep_float32={"batch": s["batch"], "tok_s": s["tok_s"]})
    folder.add("a", "02", throughput_by_generated={"generated": tokens["tokens"], "no_cache": tokens["no_cache_tok_s"],
                                                   "kv_cache": tokens["kv_cache_tok_s"]},
               profile_time={"no_cache": [profile["no_cache_cuda_ms"]], "kv_cache": [profile["kv_cache_cuda_ms"]]},
               profile={"family": ["gemm", "gemv"], "no_cache": [0.9, 0.0], "kv_cache": [0.1, 0.8]},
               params={"profile_time": {"length": 512}})  # fmt: skip
    peaks = {f"{name}_{what}": [*memory[f"{name}_mb"], end] for name, end in (("contiguous", None), ("paged", 7312.4))
             for what in ("cache_mib", "peak_mib")}  # fmt: skip
    folder.add("a", "04", memory_by_batch={"batch": [*memory["batch"], 1024], **peaks},
               decode_by_batch={"batch": [1, 64], "paged": [1.4, 1.6], "contiguous": [1.0, 1.0]})  # fmt: skip
    folder.add("a", "06", gain_by_length={"gain": load["gain"], "batching": load["gain"], "paging": [1.0] * 3},
               throughput_by_users={"users": [1, 64], "sequential": [165, 165], "continuous, paged": [165, 1840]},
               params={"gain_by_length": {"users": 64, "answer": 50}})  # fmt: skip
    verdicts = {row.claim.judge.__name__: row.verdict for row in folder.rows()}
    assert {name for name, verdict in verdicts.items() if verdict != REPRODUCED} == {
        "memory_crossing",
        "tests",
    }


def test_what_the_paged_cache_does_is_counted_where_no_gpu_measured_it(folder):
    counted = {"case": ["p", "s", "f"], "ratio": [8.75, 5.9, 8.6], "crossing": [21, 32, 1]}
    folder.add("a", "04", scale="cpu", published_memory=counted, decode_by_batch={"batch": [1], "paged": [1.0], "contiguous": [1.0]},
               memory_by_batch={"batch": [1], "contiguous_peak_mib": [None], "paged_peak_mib": [None],
                                "contiguous_cache_mib": [72], "paged_cache_mib": [73]})  # fmt: skip
    assert (
        folder.verdict("memory_gain")
        == folder.verdict("memory_crossing")
        == f"{DEPENDS} the size of the pool"
    )
    assert folder.verdict("flat_memory") == folder.verdict("out_of_memory") == UNMEASURED
    assert folder.verdict("slow_when_small") == folder.verdict("gather_cost") == REFUTED


@pytest.mark.parametrize(
    "cost, verdict", [(0.97, REFUTED), (1.01, f"{DEPENDS} the hardware"), (1.4, REPRODUCED)]
)
def test_a_difference_within_the_noise_shows_no_direction(folder, cost, verdict):
    folder.add("a", "04", decode_by_batch={"batch": [1], "paged": [cost], "contiguous": [1.0]})
    assert folder.verdict("slow_when_small") == verdict


def test_a_damaged_record_is_an_error_that_names_its_file(folder):
    (folder.path / "a").mkdir()
    (folder.path / "a" / "03_name.json").write_text("{")
    with pytest.raises(ValueError, match="03_name.json"):
        folder.rows()


def test_more_findings_than_rules_is_an_error():
    data = {**PUBLISHED.data, "findings": [*PUBLISHED["findings"], "one more"]}
    with pytest.raises(ValueError):
        board.claims(type(PUBLISHED)(data))


def test_the_arithmetic_of_a_verdict():
    assert (
        decide(True, 1.25, 1.0) == REPRODUCED
        and decide(True, 1.26, 1.0) == decide(True, 0.7, 1.0) == "depends on the hardware"
    )
    assert (
        decide(True, None, 1.0, size="x")
        == decide(True, 2.0, None, size="x")
        == decide(True, 1, 1, full=False, size="x")
        == "depends on x"
    )
    assert decide(False, 1.0, 1.0) == REFUTED
    assert [times(x) for x in (118.3, 11.14, 2.216, 0.05)] == ["118×", "11.1×", "2.22×", "0.05×"]
    assert nearest([1, 64, 1000], 512) == 2


def test_each_claim_links_to_a_section_that_exists():
    text = "".join(path.read_text() for path in (ROOT / "chapters").glob("[0-9]*.py"))
    text += "".join(path.read_text() for path in (ROOT / "book").glob("*.md"))
    for row in board.claims(PUBLISHED):
        assert f"({row.section})=\n" in text


def built(folder, source):
    """The page's text, built by Sphinx in a process of its own with warnings as errors."""
    source.mkdir()
    labels = {row.section for row in board.claims(PUBLISHED)}
    page = (ROOT / "book/scoreboard.md").read_text()
    (source / "index.md").write_text(re.sub(r"\{cite:p\}`\w+`", "", page))
    stub = "\n\n".join(f"({label})=\n## {label}" for label in labels)
    (source / "stub.md").write_text(f"---\norphan: true\n---\n# Stub\n\n{stub}\n")
    (source / "conf.py").write_text(
        f"import sys\nfrom pathlib import Path\n\nsys.path.insert(0, {str(ROOT)!r})\nfrom book.scoreboard import claims\n\n"
        f"claims.measurements_dir = lambda: Path({str(folder.path)!r})\n"
        "extensions = ['myst_nb', 'sphinx_design', 'book.tools.book_ext']\n"
    )
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "-q", str(source), str(source / "out")],
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return re.sub(r"<[^>]*>", " ", (source / "out" / "index.html").read_text())


def test_the_page_builds_without_records_with_one_machine_and_with_two(folder, tmp_path_factory):
    places = tmp_path_factory.mktemp("pages")
    assert UNMEASURED in built(folder, places / "none")
    folder.add("one_$*[odd] | name", "03", batch_sweep_float32=sweep((1, 10.0), (512, 1183.0)))
    text = built(folder, places / "one")
    assert "one_$*[odd] | name: 118× at batch 512" in text
    folder.add("two", "03", batch_sweep_float32=sweep((1, 10.0), (64, 400.0)))
    text = built(folder, places / "two")
    assert "two: 40.0× at batch 64 (published there: 46.7×)" in text and "sec-batch-sweep" in text

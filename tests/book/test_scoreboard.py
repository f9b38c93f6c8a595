"""The scoreboard: verdicts follow from records by rules, whatever a folder of records holds or lacks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from book.scoreboard import claims as board
from book.scoreboard import paging
from book.scoreboard.outcomes import (
    ANOTHER_ENGINE,
    COUNTED,
    EXACT,
    INCONCLUSIVE,
    MIXED,
    NOISE,
    NOT_COMPARABLE,
    REFUTED,
    REPRODUCED,
    TOLERANCE,
    UNMEASURED,
    Outcome,
    card_name,
    direction,
    figure,
    nearest,
    quotient,
    times,
    verdict_of,
)
from book.scoreboard.page import BADGES, claims_table, hardware_table, page_part
from lib.bench.records.files import SCHEMA, reference

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = reference()
COUNT = (
    len(PUBLISHED["findings"]) + len(PUBLISHED["failures"]) + len(PUBLISHED["headline"]) - 1 + 2
)  # vLLM
A100 = "NVIDIA A100-SXM4-80GB"
BY_COUNT = {"memory_gain", "memory_crossing", "flat_memory", "out_of_memory"}


class Folder:
    """A folder of records: `add("gpu", "03", batch_sweep_float32={"batch": [...], ...})`."""

    def __init__(self, path):
        self.path = path

    def add(self, hardware, chapter, scale="gpu", params=None, samples=None, **measurements):
        series = {
            name: {
                "unit": "x",
                "params": (params or {}).get(name, {}),
                "seed": 0,
                "columns": columns,
                "samples": (samples or {}).get(name, {}),
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

    def outcome(self, rule, hardware="a"):
        return self.row(rule).outcomes[hardware]


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


def prompts(*gains):
    """Chapter 6's series of prompt lengths, whose sequential server gives one token per second."""
    return {
        "workload": ["short", "medium", "long"][: len(gains)],
        "sequential": [1.0] * len(gains),
        "continuous, paged": list(gains),
        "batching": list(gains),
        "paging": [1.0] * len(gains),
    }


FULL_LOAD = {"gain_by_length": {"users": 64, "answer": 50}}
SMALL_LOAD = {"gain_by_length": {"users": 16, "answer": 16}}


def test_every_published_claim_but_the_number_of_tests_has_its_row_and_its_own_words(folder):
    rows = folder.rows()
    assert len(rows) == COUNT
    texts = " ".join(f"{row.claim.text} {row.claim.published}".lower() for row in rows)
    headline = {name: value for name, value in PUBLISHED["headline"].items() if name != "tests"}
    for text in [
        *PUBLISHED["findings"],
        *(row["broke"] for row in PUBLISHED["failures"]),
        *map(str, headline.values()),
    ]:
        assert board.with_sign(text).lower() in texts
    assert not re.search(r"\dx\b", texts), "a factor has the sign ×"
    assert "Tests" not in {row.claim.text for row in rows}


def test_without_records_only_counts_have_a_verdict(folder):
    verdicts = {row.claim.judge.__name__: row.verdict for row in folder.rows()}
    assert {name for name, verdict in verdicts.items() if verdict == COUNTED} == BY_COUNT
    assert {v for name, v in verdicts.items() if name not in BY_COUNT} == {UNMEASURED}
    assert "No run has been recorded" in page_part("hardware", folder.rows(), {})


def test_a_folder_that_does_not_exist_is_one_without_records(tmp_path):
    verdicts = {row.verdict for row in board.scoreboard(tmp_path / "none")}
    assert verdicts == {UNMEASURED, COUNTED}


def test_smoke_runs_are_no_measurements(folder):
    folder.add(A100, "03", scale="smoke", batch_sweep_float32=sweep((1, 10.0), (512, 1183.0)))
    assert folder.verdict("batch_gain") == UNMEASURED and board.recorded_hardware(folder.path) == {}


def test_a_figure_is_judged_only_at_its_size_and_on_its_card(folder):
    for card, expected in ((A100, REPRODUCED), ("NVIDIA H100 80GB HBM3", NOT_COMPARABLE)):
        folder.add(card, "03", batch_sweep_float32=sweep((1, 10.0), (64, 467.0), (512, 1183.0)))
        assert folder.outcome("batch_gain", card).verdict == expected
    assert folder.verdict("batch_gain") == REPRODUCED  # the published card decides
    folder.add(A100, "03", batch_sweep_float32=sweep((1, 10.0), (64, 467.0)))
    found = folder.outcome("batch_gain", A100)
    assert found.verdict == NOT_COMPARABLE
    assert found.value == "46.7× at batch 64 (published there: 46.7×)"
    assert "chapter 3 on an A100, up to batch 512" in found.note


@pytest.mark.parametrize("factor", [0.3, 0.7, 1.3, 5.0])
def test_another_figure_on_the_published_card_is_another_engines_and_not_the_hardwares(
    folder, factor
):
    folder.add(A100, "03", batch_sweep_float32=sweep((1, 10.0), (512, 1183.0 * factor)))
    found = folder.outcome("batch_gain", A100)
    assert (found.verdict, found.note) == (REFUTED, ANOTHER_ENGINE)


@pytest.mark.parametrize(
    "rate, verdict",
    [(9.0, REFUTED), (5.0, REFUTED), (9.5, INCONCLUSIVE), (10.5, INCONCLUSIVE), (12.0, NOT_COMPARABLE)],
)  # fmt: skip
def test_a_direction_holds_fails_or_is_within_the_noise_on_any_machine(folder, rate, verdict):
    rate = 8.9 if rate == 9.0 else rate
    folder.add("a", "03", batch_sweep_float32=sweep((1, 10.0), (64, rate)))
    assert folder.verdict("batch_gain") == verdict


def test_repeats_that_overlap_show_no_direction(folder):
    noisy = {"batch_sweep_float32": {"tok_s": [[8.0, 10.0, 14.0], [9.0, 15.0, 20.0]]}}
    folder.add("a", "03", samples=noisy, batch_sweep_float32=sweep((1, 10.0), (64, 15.0)))
    assert folder.verdict("batch_gain") == INCONCLUSIVE


def test_without_a_common_size_the_nearest_published_one_is_named(folder):
    folder.add("a", "02", throughput_by_generated=generated((100, 10.0, 20.0), (150, 5.0, 20.0)))
    found = folder.outcome("cache_gain")
    assert found.value == "4.00× at 150 tokens (published nearest: 1.02× at 200 tokens)"
    assert found.verdict == NOT_COMPARABLE and "1,000 tokens" in found.note
    grows = folder.outcome("grows_with_length")
    assert grows.verdict == NOT_COMPARABLE and "does grow" in grows.note


@pytest.mark.parametrize("last, verdict", [(20.0, INCONCLUSIVE), (12.0, REFUTED), (40.0, NOT_COMPARABLE)])  # fmt: skip
def test_the_gain_of_a_cache_grows_falls_or_stays_with_the_length(folder, last, verdict):
    folder.add("a", "02", throughput_by_generated=generated((10, 10.0, 20.0), (100, 10.0, last)))
    assert folder.verdict("grows_with_length") == verdict


def test_zeros_and_gaps_are_left_out_and_never_divided_by(folder):
    folder.add("a", "03", batch_sweep_float32=sweep((1, 0.0), (64, 467.0)))
    assert folder.verdict("batch_gain") == UNMEASURED
    folder.add("a", "03", batch_sweep_float32=sweep((1, 10.0), (32, 200.0), (512, None)))
    assert "at batch 32" in folder.outcome("batch_gain").value
    folder.add("a", "02", throughput_by_generated=generated((200, 0.0, 5.0), (1000, None, 5.0)),
               profile_time={"no_cache": [0.0], "kv_cache": [0.0]})  # fmt: skip
    for rule in ("cache_gain", "time_saved", "grows_with_length", "largest_win", "dispatch"):
        assert folder.verdict(rule) == UNMEASURED
    folder.add("a", "06", gain_by_length=prompts(0.0, 0.0, 0.0),
               throughput_by_users={"users": [1, 4], "sequential": [0.0, 3.0], "continuous, paged": [1, 2]},
               params=SMALL_LOAD)  # fmt: skip
    for rule in ("load_gain", "long_prompts", "flat_throughput"):
        assert folder.verdict(rule) == UNMEASURED


def test_a_sweep_that_does_not_begin_at_one_has_no_gain_over_one(folder):
    folder.add("a", "03", batch_sweep_float32=sweep((4, 10.0), (512, 1183.0)))
    assert folder.verdict("batch_gain") == UNMEASURED


@pytest.mark.parametrize("kv, verdict", [(22.0, REPRODUCED), (2000.0, REFUTED), (1200.0, INCONCLUSIVE)])  # fmt: skip
def test_gains_are_ranked_at_the_published_sizes_and_at_no_others(folder, kv, verdict):
    folder.add(A100, "03", batch_sweep_float32=sweep((1, 10.0), (512, 1183.0)))
    assert folder.verdict("largest_win") == UNMEASURED
    folder.add(A100, "02", throughput_by_generated=generated((1000, 10.0, kv)))
    assert folder.verdict("largest_win") == verdict
    folder.add(A100, "02", throughput_by_generated=generated((100, 10.0, kv)))
    found = folder.outcome("largest_win", A100)
    assert found.verdict == NOT_COMPARABLE and "stated sizes" in found.note


@pytest.mark.parametrize(
    "kept, verdict", [(1.2, NOT_COMPARABLE), (0.86, NOT_COMPARABLE), (0.76, NOT_COMPARABLE), (0.6, REFUTED), (0.05, REFUTED)]
)  # fmt: skip
def test_long_prompts_hurt_where_less_than_three_quarters_of_the_gain_are_kept(folder, kept, verdict):  # fmt: skip
    folder.add("a", "06", gain_by_length=prompts(40.0, 40.0, 40.0 * kept), params=SMALL_LOAD)
    found = folder.outcome("long_prompts")
    assert found.verdict == verdict
    assert f"keeps {100 * kept:.0f} % (published: 86 %)" in found.value
    if verdict == REFUTED:  # with its caveat: the answers differ
        assert "answers have 16 tokens where the published have 50" in found.note
    folder.add(A100, "06", gain_by_length=prompts(40.0, 40.0, 40.0 * kept), params=FULL_LOAD)
    found = folder.outcome("long_prompts", A100)
    assert found.verdict == {0.86: REPRODUCED, 0.76: REPRODUCED, 0.6: REFUTED, 0.05: REFUTED}.get(kept, REFUTED)  # fmt: skip
    assert "answers have" not in found.note


def test_rounds_that_differ_leave_the_long_prompts_open(folder):
    noisy = {"gain_by_length": {"continuous, paged": [[30.0, 40.0, 50.0], [25.0, 28.0, 31.0]]}}
    folder.add("a", "06", gain_by_length=prompts(40.0, 28.0), params=SMALL_LOAD, samples=noisy)
    assert folder.verdict("long_prompts") == INCONCLUSIVE


@pytest.mark.parametrize("high, verdict", [(1.0, REPRODUCED), (1.0 + NOISE, REPRODUCED), (1.2, REFUTED), (5.0, REFUTED)])  # fmt: skip
def test_flat_has_one_threshold_and_the_page_states_it(folder, high, verdict):
    users = {"users": [1, 8, 64], "sequential": [100.0, 100.0 * high, 100.0], "continuous, paged": [100.0, 200.0, 300.0]}  # fmt: skip
    folder.add("a", "06", throughput_by_users=users)
    found = folder.outcome("flat_throughput")
    assert found.verdict == verdict
    assert f"varies by {100 * (high - 1):.0f} % from 1 to 64 users" in found.value
    rules = page_part("rules", folder.rows())
    assert f"Flat means that all values lie within {100 * NOISE:.0f} %" in rules
    assert f"within {100 * TOLERANCE:.0f} % of the published" in rules
    assert f"within {100 * EXACT:.0f} %" in rules


def test_the_published_run_reproduces_itself(folder):
    tokens, memory = (
        PUBLISHED["throughput_by_generated_tokens"],
        PUBLISHED["paged_vs_contiguous_by_batch"],
    )
    load, profile = PUBLISHED["load_c64"], PUBLISHED["profiler"]
    s = PUBLISHED["batch_sweep"]
    folder.add(A100, "03", batch_sweep_float32={"batch": s["batch"], "tok_s": s["tok_s"]})
    folder.add(A100, "02", throughput_by_generated={"generated": tokens["tokens"], "no_cache": tokens["no_cache_tok_s"],
                                                    "kv_cache": tokens["kv_cache_tok_s"]},
               profile_time={"no_cache": [profile["no_cache_cuda_ms"]], "kv_cache": [profile["kv_cache_cuda_ms"]]},
               profile={"family": ["gemm", "gemv"], "no_cache": [0.9, 0.0], "kv_cache": [0.1, 0.8]},
               params={"profile_time": {"prompt": 5, "new_tokens": 50}})  # fmt: skip
    peaks = {f"{name}_{what}": [*memory[f"{name}_mb"], end] for name, end in (("contiguous", None), ("paged", 7312.4))
             for what in ("cache_mib", "peak_mib")}  # fmt: skip
    folder.add(A100, "04", memory_by_batch={"batch": [*memory["batch"], 1024], **peaks},
               decode_by_context={"context": [64], "paged": [1.6], "contiguous": [1.0]},
               decode_by_batch={"batch": [1, 64], "paged": [1.4, 1.6], "contiguous": [1.0, 1.0]})  # fmt: skip
    gain = {
        "workload": load["prompt"],
        "sequential": load["sequential_tok_s"],
        "continuous, paged": load["paged_tok_s"],
        "batching": load["gain"],
        "paging": [1.0] * 3,
    }
    folder.add(A100, "06", gain_by_length=gain, params=FULL_LOAD,
               throughput_by_users={"users": [1, 64], "sequential": [165, 165], "continuous, paged": [165, 1840]})  # fmt: skip
    rows = {row.claim.judge.__name__: row for row in folder.rows()}
    assert {name for name, row in rows.items() if row.verdict == COUNTED} == BY_COUNT
    assert {row.verdict for name, row in rows.items() if name not in BY_COUNT} == {REPRODUCED}
    assert rows["out_of_memory"].outcomes[A100].verdict == REPRODUCED


def test_memory_is_counted_without_a_record_and_a_wrong_count_reproduces_nothing(
    folder, monkeypatch
):
    assert folder.row("memory_gain").found["counted"].value == "8.75×"
    assert "5.89×" in folder.row("memory_gain").found["counted"].note
    assert folder.row("memory_crossing").found["counted"].value.startswith("from batch 21;")
    assert "108.5 GiB" in folder.row("out_of_memory").found["counted"].value
    audited = paging.memory.audit()
    wrong = type(audited)(
        **{**vars(audited), "ratio": [5.0] * 4, "crossing": [60] * 4, "pool": 1.0}
    )
    monkeypatch.setattr(paging.memory, "audit", lambda: wrong)
    for rule in ("memory_gain", "memory_crossing", "flat_memory"):
        assert folder.verdict(rule) == REFUTED


def test_a_measured_peak_stands_beside_the_count_with_its_own_verdict(folder):
    columns = {"batch": [1, 256], "contiguous_cache_mib": [72, 100], "paged_cache_mib": [73, 73]}
    peaks = {"contiguous_peak_mib": [600.0, 19000.0], "paged_peak_mib": [5000.0, 5400.0]}
    folder.add(A100, "04", memory_by_batch={**columns, **peaks})
    row = folder.row("memory_gain")
    assert row.verdict == COUNTED and row.outcomes[A100].verdict == NOT_COMPARABLE
    assert "1,900 blocks" in row.outcomes[A100].note
    assert folder.row("flat_memory").outcomes[A100].verdict == REFUTED  # nothing ran out
    text = page_part("headline", folder.rows())
    assert "counted: 8.75× → reproduced by count" in text and "3.52×, peaks measured" in text


@pytest.mark.parametrize(
    "cost, verdict", [(0.5, REFUTED), (0.97, INCONCLUSIVE), (1.01, INCONCLUSIVE), (1.4, REPRODUCED)]
)
def test_a_difference_within_the_noise_shows_no_direction(folder, cost, verdict):
    folder.add("a", "04", decode_by_batch={"batch": [1], "paged": [cost], "contiguous": [1.0]})
    assert folder.verdict("slow_when_small") == verdict
    expected = {REPRODUCED: NOT_COMPARABLE}.get(verdict, verdict)  # the gather's has a figure
    assert folder.verdict("gather_cost") == expected


def test_a_profile_of_other_work_compares_no_time(folder):
    for kernels, verdict in ((("gemm", "gemv"), NOT_COMPARABLE), (("gemv", "gemv"), REFUTED)):
        shares = {"family": ["gemm", "gemv"]}
        for stage, largest in zip(("no_cache", "kv_cache"), kernels):
            shares[stage] = [0.9, 0.1] if largest == "gemm" else [0.1, 0.9]
        folder.add(A100, "02", profile=shares, profile_time={"no_cache": [1.0], "kv_cache": [0.2]},
                   params={"profile_time": {"length": 512}})  # fmt: skip
        assert folder.verdict("dispatch") == verdict
        found = folder.outcome("time_saved", A100)
        assert found.verdict == NOT_COMPARABLE and "50 tokens after a prompt of 5" in found.note


def test_the_published_card_decides_and_other_machines_may_disagree():
    def measured(**verdicts):
        return {name: v and Outcome("", v) for name, v in verdicts.items()}

    assert verdict_of(Outcome("", COUNTED), measured(a=REFUTED), "A100") == COUNTED
    assert verdict_of(None, measured(a=None), "A100") == UNMEASURED
    assert verdict_of(None, measured(a=REPRODUCED, b=REPRODUCED), "A100") == REPRODUCED
    assert verdict_of(None, measured(a=REPRODUCED, b=REFUTED), "A100") == MIXED
    assert verdict_of(None, measured(a=REPRODUCED, A100=REFUTED), "A100") == REFUTED
    assert verdict_of(None, measured(a=REFUTED, b=NOT_COMPARABLE), "A100") == REFUTED
    assert verdict_of(None, measured(a=INCONCLUSIVE, b=NOT_COMPARABLE), "A100") == NOT_COMPARABLE
    assert verdict_of(None, measured(A100=INCONCLUSIVE), "A100") == INCONCLUSIVE


def test_no_row_of_the_recorded_runs_names_the_hardware_as_the_reason():
    """Of the records in this repository: every row that is not comparable says what would make it so."""
    for row in board.scoreboard():
        for outcome in row.found.values():
            said = f"{outcome.verdict} {outcome.note} {row.claim.why}".lower()
            assert "hardware" not in said and "depends on" not in outcome.verdict
            if outcome.verdict == NOT_COMPARABLE:
                assert "needs" in outcome.note


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
    def verdict(way, ours, theirs, card=True):
        return figure(way, ours, theirs, card=card, needs="x")[0]

    assert verdict(1, 1.25, 1.0) == verdict(1, 0.75, 1.0) == REPRODUCED
    assert verdict(1, 1.26, 1.0) == verdict(1, 0.7, 1.0) == REFUTED
    assert verdict(1, None, 1.0) == verdict(1, 1.0, 1.0, card=False) == NOT_COMPARABLE
    assert verdict(0, 1.0, 1.0) == INCONCLUSIVE and verdict(-1, 1.0, 1.0) == REFUTED
    assert direction(1.2, 1.0) == 1 and direction(1.05, 1.0) == 0 and direction(0.3, 1.0) == -1
    assert quotient(([2.0, 4.0], 2.0)) == [1.0, 1.5, 2.0] and quotient((1.0, 2.0)) == [0.5]
    assert quotient((None, 1.0)) is quotient((1.0, 0.0)) is None
    assert [times(x) for x in (118.3, 11.14, 2.216, 0.05)] == ["118×", "11.1×", "2.22×", "0.05×"]
    assert nearest([1, 64, 1000], 512) == 2
    assert card_name(PUBLISHED) == "A100"


def sections():
    """{label of a claim's section: the text of the section in its source}."""
    texts = [path.read_text() for path in (ROOT / "chapters").glob("[0-9]*.py")]
    texts += [path.read_text() for path in (ROOT / "book").glob("*.md")]
    found = {}
    for label in {claim.section for claim in board.claims(PUBLISHED)}:
        (text,) = [text for text in texts if f"({label})=\n" in text]
        found[label] = text.split(f"({label})=\n")[1].split(")=\n")[0]
    return found


def test_each_linked_section_quotes_its_rows_from_the_scoreboard():
    for label, text in sections().items():
        assert f"```{{scoreboard}} {label}\n" in text, label


def test_a_section_shows_the_values_and_verdicts_of_its_rows(folder):
    folder.add("a", "03", batch_sweep_float32=sweep((1, 10.0), (64, 467.0)))
    rows = folder.rows()
    text = page_part("sec-batch-sweep", rows)
    assert folder.outcome("batch_gain").value in text and f"**{NOT_COMPARABLE}**" in text
    assert folder.outcome("batch_gain").value in page_part("headline", rows)
    with pytest.raises(ValueError, match="sec-none"):
        page_part("sec-none", rows)


def built(folder, source):
    """The page's text, built by Sphinx in a process of its own with warnings as errors."""
    source.mkdir()
    labels = {row.section for row in board.claims(PUBLISHED)}
    page = (ROOT / "book/scoreboard.md").read_text()
    (source / "index.md").write_text(re.sub(r" \{cite:p\}`\w+`", "", page))
    stub = "\n\n".join(
        f"({label})=\n## {label}\n\n```{{scoreboard}} {label}\n```" for label in labels
    )
    (source / "stub.md").write_text(f"---\norphan: true\n---\n# Stub\n\n{stub}\n")
    (source / "conf.py").write_text(
        f"import sys\nfrom pathlib import Path\n\nsys.path.insert(0, {str(ROOT)!r})\nfrom book.scoreboard import claims\n\n"
        f"claims.measurements_dir = lambda: Path({str(folder.path)!r})\n"
        "extensions = ['myst_nb', 'sphinx_design', 'book.tools.book_ext']\n"
    )
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "-q", str(source), str(source / "out")],
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    texts = ((source / "out" / f"{name}.html").read_text() for name in ("index", "stub"))
    return [re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text)) for text in texts]


def test_the_page_builds_without_records_with_one_machine_and_with_two(folder, tmp_path_factory):
    places = tmp_path_factory.mktemp("pages")
    assert UNMEASURED in built(folder, places / "none")[0]
    folder.add("one_$*[odd] | name", "03", batch_sweep_float32=sweep((1, 10.0), (512, 1183.0)))
    folder.add("two", "03", batch_sweep_float32=sweep((1, 10.0), (64, 400.0)))
    for text in built(folder, places / "two"):  # the scoreboard, and the section that it links to
        assert "one_$*[odd] | name: 118× at batch 512" in text
        assert "two: 40.0× at batch 64 (published there: 46.7×)" in text


@pytest.mark.parametrize("rule, claimed", [("vllm_at_first", "3.18×"), ("vllm_at_last", "2.20×")])
def test_vllm_beside_the_published_engine_says_who_is_ahead_and_what_is_not_stated(
    folder, rule, claimed
):
    claim = folder.row(rule).claim
    assert claim.published.startswith(claimed) and "are not stated" in claim.published
    assert claim.section == "sec-vllm" and folder.verdict(rule) == UNMEASURED


@pytest.mark.parametrize(
    "one, many, first, last",
    [
        (155.0, 18_346.0, REPRODUCED, REPRODUCED),
        (494.0, 8_349.0, INCONCLUSIVE, INCONCLUSIVE),
        (2_000.0, 4_000.0, REFUTED, REFUTED),  # ahead where the published engine is behind
        (300.0, 80_000.0, REFUTED, REFUTED),  # the direction holds, the figure is another
    ],
)
def test_this_engine_stands_to_vllm_as_the_published_one_does_or_not(
    folder, one, many, first, last
):
    folder.add(A100, "03", batch_sweep_float32=sweep((1, one), (512, many)))
    assert (folder.verdict("vllm_at_first"), folder.verdict("vllm_at_last")) == (first, last)
    assert "tokens/s at batch 512" in folder.outcome("vllm_at_last", A100).value


def test_vllms_figures_are_compared_on_their_card_and_at_their_batch_only(folder):
    folder.add("a", "03", batch_sweep_float32=sweep((1, 22.0), (64, 500.0)))
    for rule, where in (
        ("vllm_at_first", "22 tokens/s at batch 1"),
        ("vllm_at_last", "at batch 64"),
    ):
        outcome = folder.outcome(rule)
        assert outcome.verdict == NOT_COMPARABLE and where in outcome.value
        assert "needs chapter 3 on an A100" in outcome.note
    folder.add(A100, "03", batch_sweep_float32=sweep((1, 155.0), (64, 7_000.0)))
    assert folder.outcome("vllm_at_last", A100).verdict == NOT_COMPARABLE


def test_the_style_sheet_names_the_columns_of_a_row_that_a_phone_shows_as_a_list(folder):
    folder.add("a", "03", batch_sweep_float32=sweep((1, 10.0)))
    css = (ROOT / "book/_static/book.css").read_text()
    tables = {"scoreboard": claims_table(folder.rows(), "headline"),
              "runs": hardware_table(board.recorded_hardware(folder.path))}  # fmt: skip
    for name, text in tables.items():
        assert f":class: {name}\n" in text
        headers = re.split(r"\n\s+- ", text.split("* - ")[1].strip())
        assert len(headers) == {"scoreboard": 3, "runs": 6}[name]
        for i, header in enumerate(headers, 1):
            rule = rf'table\.{name} td:nth-child\({i}\)::before {{\s*content: "{header}";'
            assert re.search(rule, css), header


def test_verdicts_that_say_different_things_of_a_run_have_different_colours():
    assert BADGES[NOT_COMPARABLE] not in {BADGES[kind] for kind in BADGES if kind != NOT_COMPARABLE}

"""The first page's sentences hold whatever the records say, and all of them are there for the recorded runs."""

import pytest

from lib.bench.findings.first_page.at_a_glance import sentence, stages
from lib.bench.records.files import Run, read_records

CHAPTERS = range(1, 15)
STAGES = ["no cache", "contiguous cache", "paged, gather", "paged, fused", "packed", "transformers"]


def run_of(columns: dict, name: str, gates: list | None = None, params: dict | None = None) -> Run:
    series = {"unit": "", "params": params or {}, "seed": 0, "columns": columns, "samples": {}}
    return Run({"measurements": {name: series}, "gates": gates or []})


def two(ratio: float) -> dict[int, Run]:
    """For each chapter with a comparison, a run in which the first of its two values is `ratio` times the second."""
    a, b = 10.0 * ratio, 10.0
    rows = {"continuous, 8 slots": a, "static, 8 slots": b}
    users = {"users": [16], "sequential": [b], "continuous, paged": [a]}
    way = {"batch": [1] * 6 + [64] * 6, "stage": STAGES * 2,
           "tok_s": [b] * 6 + [b, b, b, b, a, b]}  # fmt: skip
    masks = {"vocabulary": [49152], "walk": [a], "one_by_one": [b]}
    return {
        1: run_of({"prompt": [64, 512], "no_cache": [b, a]}, "token_time_by_prompt"),
        2: run_of({"generated": [100], "kv_cache": [a], "no_cache": [b]}, "throughput_by_generated"),
        3: run_of({"engine": list(rows), "tok_s": list(rows.values())}, "variable_lengths", params={"slots": 8}),
        6: run_of(users, "throughput_by_users"),
        7: run_of({"cache": ["fused", "contiguous"], "tok_s": [a, b]}, "same_bytes"),
        8: run_of(way, "waterfall"),
        9: run_of({"shared": [0, 512], "ttft": [b, a]}, "ttft_by_shared", params={"prompt": 544}),
        10: run_of({"method": ["n-gram", "no drafts"], "tok_s": [a, b]}, "methods"),
        11: run_of({"rows": [1], "4 bits × int8": [a], "float32": [b]}, "products"),
        12: run_of(masks, "mask_time_by_vocabulary"),
    }  # fmt: skip


TIMES = (1, 9, 11, 12)  # of which less is faster


@pytest.mark.parametrize("chapter", two(1.0))
def test_the_words_follow_the_ratio(chapter):
    half, same, five = (sentence(chapter, two(ratio)[chapter]) for ratio in (0.5, 1.0, 5.0))
    assert "about the same" in same
    if chapter in TIMES:
        assert "is 2 times as fast as" in half and "takes several times as long as" in five
    else:
        assert "several times the throughput of" in five and "(5 times: 50" in five
        assert "2 times the throughput of" in half and "(10 tokens/s against 5 tokens/s)" in half
        winner = five.split(" has ")[0].split(", ")[-1]
        assert not half.split(" has ")[0].endswith(winner), "the slower one is named first"


def test_counts_and_shares_are_quoted_as_they_are():
    counted = {"cache": ["paged", "contiguous"], "peak_running": [12, 2]}
    assert sentence(4, run_of(counted, "same_bytes")) == (
        "On the same bytes of cache, at most 12 sequences ran at once with blocks and 2 with slots."
    )
    shared = {"way": ["offline", "streamed"], "share": [1.0, 0.94]}
    assert "reach 94 % of the throughput" in sentence(5, run_of(shared, "throughput"))
    rates = {"policy": ["round_robin", "longest_prefix"], "hit_rate": [0.62, 0.73]}
    assert sentence(13, run_of(rates, "policies")) == (
        "Behind a router that knows which prefixes a replica has cached, 73 % of the prompt tokens were found; "
        "where the replicas took turns, 62 %."
    )
    blocks = {"tokens": [41, 190], "window": [11, 9], "all": [11, 48]}
    assert sentence(14, run_of(blocks, "blocks_held", params={"window": 32})) == (
        "After 190 tokens, a sequence holds 9 blocks with a sliding window of 32 tokens, and 48 without one."
    )


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_what_was_not_measured_has_no_sentence(chapter):
    assert sentence(chapter, Run({"measurements": {}})) is None
    assert sentence(99, Run({"measurements": {}})) is None


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_recorded_chapter_has_its_sentence(chapter):
    for run in read_records(f"{chapter:02d}"):
        text = sentence(chapter, run)
        assert text is not None and text.endswith(".") and "unknown" not in text


def test_a_failed_gate_is_said():
    gate = {"experiment": "ways to draft", "ok": False, "reasons": ["the repeats differ by 41 %"]}
    columns = {"method": ["n-gram", "no drafts"], "tok_s": [2.0, 1.0]}
    said = sentence(10, run_of(columns, "methods", [gate]))
    assert said.endswith(" Read it with care: the repeats differ by 41 %.")
    passed = {**gate, "ok": True}
    assert "care" not in sentence(10, run_of(columns, "methods", [passed]))


def formats(weights: tuple[float, float], blocks: tuple[float, float] | None, ok: bool) -> Run:
    """A run of chapter 11 with its products timed: bytes in float32 and in 4 bits, blocks in float32 and in int8."""
    gate = {
        "experiment": "time of the products",
        "ok": ok,
        "reasons": [] if ok else ["the repeats differ by 83 %"],
    }
    run = run_of({"rows": [1], "4 bits × int8": [1.0], "float32": [4.0]}, "products", [gate])
    series = {"unit": "", "params": {}, "seed": 0, "samples": {}}
    columns = {"format": ["float32", "4 bits"], "weight_bytes": list(weights)}
    run.data["measurements"]["formats"] = series | {"columns": columns}
    if blocks:
        columns = {"format": ["float32", "int8"], "blocks": list(blocks)}
        run.data["measurements"]["kv_formats"] = series | {"columns": columns}
    return run  # fmt: skip


def test_a_count_stands_for_a_time_that_failed_its_gate():
    assert sentence(11, formats((538e6, 96.4e6), (91, 342), ok=False)) == (
        "The matrix products of a step read 96.4 MB of weights in 4 bits, and 538 MB in float32; the same memory holds "
        "342 blocks of keys and values in 8 bits, and 91 in float32."
    )
    assert "times as fast" in sentence(11, formats((538e6, 96.4e6), (91, 342), ok=True))
    for blocks in (None, (0, 342), (91, 91)):  # nothing is said about what is missing or the same
        assert sentence(11, formats((538e6, 96.4e6), blocks, ok=False)).endswith(
            "538 MB in float32."
        )
    for weights in ((0, 1.0), (1.0, 0), (float("nan"), 1.0)):  # no bytes: the time, with its reason
        said = sentence(11, formats(weights, (91, 342), ok=False))
        assert said.endswith(" Read it with care: the repeats differ by 83 %.")


def test_stages_are_those_of_the_whole_way_by_chapter():
    found = stages(two(5.0)[8])
    assert [stage.chapter for stage in found] == [1, 2, 3, 4, 7, 8]
    assert [stage.sequences for stage in found] == ["one sequence"] * 2 + ["batch 64"] * 4
    assert found[-1].tok_s == 50.0
    assert stages(Run({"measurements": {}})) == []

"""What the book says of vLLM's published figures follows from them: other figures, other words."""

from dataclasses import replace

import pytest

from lib.bench.findings import vllm_batches as batches
from lib.bench.findings import vllm_single as single
from lib.bench.records.files import Reference, reference
from lib.bench.records.published_vllm import ByPrompt, published_vllm

PUBLISHED, VLLM = reference(), published_vllm()


def sweep(factor=1.0, first=None, last=None):
    """vLLM's sweep with all times scaled, or with other times at its two ends."""
    seconds = [factor * s for s in VLLM.batch_seconds]
    seconds[0] = seconds[0] if first is None else first
    seconds[-1] = seconds[-1] if last is None else last
    rates = [b * VLLM.new_tokens / s for b, s in zip(VLLM.batch, seconds)]
    return replace(VLLM, batch_seconds=tuple(seconds), batch_tok_s=tuple(rates))


def said(name, vllm=VLLM, published=PUBLISHED):
    return batches.sentences(published, vllm)[f"vllm_{name}_finding"]


def test_who_is_ahead_at_each_end():
    text = said("ends")
    assert "At batch 1, vLLM has several times the throughput" in text
    assert "at batch 512, the published engine has 2.2 times" in text
    assert said("ends", sweep(0.3)).count("vLLM has") == 2


def test_bandwidth_is_excluded_only_where_both_steps_are_far_above_it():
    assert "bandwidth limits neither of them" in said("bytes")
    near = sweep(first=50 * 0.0004)  # 0.4 ms per step, and the bytes take 0.26 ms
    assert "do not exclude" in said("bytes", near)


def test_the_wait_for_the_host_comes_from_the_published_profile():
    assert "1.30 ms per token" in said("kernels") and "is shorter than that wait" in said("kernels")
    assert "is no shorter than that wait" in said("kernels", sweep(first=0.5))
    busy = Reference(
        {**PUBLISHED.data, "profiler": {**PUBLISHED["profiler"], "kv_cache_cuda_ms": 320.0}}
    )
    assert "almost all (99 %)" in said("kernels", published=busy)


def test_a_cost_per_sequence_is_blamed_only_where_the_published_engine_has_less():
    text = said("sequence")
    assert "adds 37.0 µs to a step of the published engine and 92.6 µs to a step of vLLM" in text
    assert (
        "Unless vLLM's kernels are slower than those, the other 55.6 µs, 60 % of what it adds"
        in text
    )
    assert "do not show" in said("sequence", sweep(0.4))


@pytest.mark.parametrize(
    "vllm, words",
    [
        (VLLM, "batch 80. Measured, vLLM's throughput goes below that of the published engine between 64 and 128: as the lines predict."),
        (sweep(0.3), "never cross"),
        (sweep(0.3), "do not cross"),
        (sweep(first=0.3), "the lines fail"),
    ],
)  # fmt: skip
def test_the_lines_cross_where_the_curves_do_or_the_text_says_that_they_fail(vllm, words):
    assert words in said("lines", vllm)


@pytest.mark.parametrize(
    "seconds, words",
    [(2.6, "as predicted"), (3.07, "a little above the prediction"), (6.0, "the prediction failed")],
)  # fmt: skip
def test_the_limit_of_256_sequences_is_judged(seconds, words):
    assert words in said("limit", sweep(last=seconds))


def test_one_run_per_point_is_said_where_the_curve_is_not_smooth():
    assert "One run per point".lower() in said("noise").lower()
    smooth = replace(VLLM, batch_tok_s=tuple(100.0 * b for b in VLLM.batch))
    assert "one run per point" not in said("noise", smooth)


def test_the_dtype_of_the_large_model_follows_only_where_its_step_excludes_float32():
    assert "it ran in 16 bits or fewer" in batches.large_model(VLLM)
    slow = replace(VLLM, mistral=ByPrompt(50, (64,), (1.0,)))
    assert "16 bits or fewer" not in batches.large_model(slow)


def test_chapter_8_blames_the_host_only_where_the_bytes_leave_room():
    assert "at most 14 % of that" in batches.host(VLLM)
    fast = replace(VLLM, generated_tok_s=(3500.0,) * len(VLLM.generated))
    assert "the bytes may explain most" in batches.host(fast)


def test_the_table_has_every_batch_that_both_published():
    rows = batches.rows(PUBLISHED, VLLM)
    assert len(rows) == 10
    assert rows[0] == ["1", "155", "494", "6.45", "2.02"]


def test_one_sequence_beside_the_published_engine():
    text = single.by_prompt(PUBLISHED, VLLM)["vllm_prompt_finding"]
    assert "grows 2.3 times" in text and VLLM.caveat_of_one_sequence in text
    assert "rises from 414" in single.by_generated(VLLM)["vllm_generated_finding"]
    assert "3.2 times: 549" in single.with_caches(PUBLISHED, VLLM)["vllm_cache_finding"]
    other = replace(VLLM, generated=(1,), generated_tok_s=(1.0,))
    assert "not measured" in single.with_caches(PUBLISHED, other)["vllm_cache_finding"]

"""vLLM's published figures: whole, consistent, and never without what their source leaves open."""

import json

import pytest

from lib.bench.paths import measurements_dir
from lib.bench.records.published_vllm import published_vllm

FILE = measurements_dir() / "reference" / "vllm_results.json"


@pytest.fixture
def changed(tmp_path):
    """A function that changes the published data and reads it back."""

    def read(change):
        data = json.loads(FILE.read_text())
        change(data)
        path = tmp_path / "vllm.json"
        path.write_text(json.dumps(data))
        return published_vllm(path)

    return read


def test_the_sweep_as_published():
    vllm = published_vllm()
    assert vllm.batch[0] == 1 and vllm.batch[-1] == 512
    assert (vllm.rate(1), vllm.rate(512)) == (493.9, 8348.6)
    assert vllm.seconds(512) == 3.0664
    for batch, rate, step in zip(vllm.batch, vllm.batch_tok_s, vllm.step_seconds()):
        assert batch / step == pytest.approx(rate, rel=0.01)
    assert vllm.gpt2.step_seconds()[0] == pytest.approx(0.0943 / 50)
    assert "github.com" in vllm.source


def test_the_caveat_names_all_that_is_not_stated(changed):
    caveat = published_vllm().caveat
    for name in ("the version", "the dtype", "the prompt of the batch sweep"):
        assert name in caveat
    one = changed(lambda data: data["setup"].update(not_stated=["the dtype"]))
    assert one.caveat.startswith("Of vLLM's runs, the dtype is not stated")
    none = changed(lambda data: data["setup"].update(not_stated=[]))
    assert none.caveat == "Each point of vLLM's runs is one run."


def test_beside_one_sequence_the_batch_sweep_is_left_out():
    vllm = published_vllm()
    assert "the version and the dtype are not stated" in vllm.caveat_of_one_sequence
    assert "batch" not in vllm.caveat_of_one_sequence


def test_a_batch_that_was_not_published_is_an_error_with_those_that_were():
    with pytest.raises(ValueError, match=r"batch=3 was not published; published: \[1, 2, 4"):
        published_vllm().rate(3)


def test_columns_of_different_lengths_are_an_error(changed):
    with pytest.raises(ValueError, match=r"gpt2_batch_sweep differ in length: \[10, 9, 10\]"):
        changed(lambda data: data["gpt2_batch_sweep"]["tok_s"].pop())
    with pytest.raises(ValueError, match="gpt2_latency_by_prompt differ in length"):
        changed(lambda data: data["gpt2_latency_by_prompt"]["prompt"].pop())


def test_a_rate_that_is_not_tokens_over_seconds_is_an_error(changed):
    def double(data):
        data["gpt2_batch_sweep"]["tok_s"][-1] *= 2

    with pytest.raises(ValueError, match=r"batch 512 states 16697.2 tokens/s, .* are 8348.6"):
        changed(double)

"""The most that arithmetic leaves any engine at chapter 8's largest batch."""

import json
from pathlib import Path

import pytest

from lib.bench.findings.launch_overhead.peer_limit import limit, peer_limit
from lib.bench.records.files import Run

FROZEN = Path(__file__).with_name("frozen")


@pytest.fixture
def data():
    """64 sequences, prompts of 16 tokens and 12 new ones; a prompt of 100 tokens takes 0.1 s, a step 0.1 s."""
    found = json.loads((FROZEN / "08_launch_overhead.json").read_text())
    series = found["measurements"]
    series["waterfall"] = {
        "unit": "tokens/s", "params": {"prompt": 16, "new_tokens": 12}, "seed": 0, "samples": {},
        "columns": {
            "batch": [1, 1, 64, 64],
            "stage": ["packed", "transformers"] * 2,
            "tok_s": [20.0, 10.0, 250.0, 200.0],
        },
    }  # fmt: skip
    series["prefill"]["columns"]["flops"], series["prefill"]["params"]["prompt"] = [0.1], 100
    series["step_by_batch"]["columns"]["bound"][-1] = 0.1
    return found


def test_the_limit_is_prompts_and_steps_at_their_bounds(data):
    assert limit(Run(data)) == pytest.approx(64 * 12 / (64 * 16 * 0.001 + 11 * 0.1))
    said = peer_limit(Run(data))["peer_limit_finding"]
    assert "at 362 tokens/s, 1.8 times" in said and "ours reached 250 tokens/s, 1.2 times" in said


def test_a_rate_beyond_the_limit_blames_the_ceiling(data):
    data["measurements"]["waterfall"]["columns"]["tok_s"][2] = 500.0
    assert "a ceiling was measured too low" in peer_limit(Run(data))["peer_limit_finding"]


@pytest.mark.parametrize("name", ["waterfall", "prefill", "step_by_batch"])
def test_without_a_measurement_nothing_is_claimed(data, name):
    del data["measurements"][name]
    assert "engine that" not in peer_limit(Run(data))["peer_limit_finding"]

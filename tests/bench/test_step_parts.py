"""The parts of a decode step: they add up, and the engine is left as it was."""

from __future__ import annotations

import pytest
import torch

from lib import SamplingParams
from lib.bench.measure.step_parts import PARTS, is_one_call, product_calls, step_parts
from lib.models.packed import why_not_packed
from tests.helpers import prompt_of

pytest.importorskip("numba")
ENDLESS = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
LAYOUTS = ["plain"] + (
    [] if why_not_packed(torch.device("cpu"), torch.float32) else ["packed", "fused"]
)


def test_the_parts_of_engines_in_turns(llama):
    engines = {name: llama.engine(linear=name) for name in LAYOUTS}
    if "fused" in LAYOUTS:
        engines["one call"] = llama.engine(linear="fused", attention="fused")
        assert is_one_call(engines["one call"], 2) and not is_one_call(engines["fused"], 2)
    for engine in engines.values():
        for seed in range(2):
            engine.add_request(prompt_of(5, seed), ENDLESS)
        for _ in range(2):
            engine.step()
    before = {name: engine.stats()["steps"] for name, engine in engines.items()}
    kept = {name: engine.kv_cache.k.clone() for name, engine in engines.items()}
    found = step_parts(engines, rows=2, repeats=3, warmup=1)
    for name, engine in engines.items():
        assert engine.stats()["steps"] == before[name] + 4
        assert set(found[name]) == {*PARTS, "step"}
        assert all(len(timing.samples) == 3 for timing in found[name].values())
        for i in range(3):
            part = {p: found[name][p].samples[i] for p in found[name]}
            assert part["products"] > 0 and part["attention"] > 0 and part["around the model"] > 0
            assert part["around the model"] < part["step"]
            if name != "one call":  # whose attention is timed outside of the step
                assert part["attention"] + part["around the model"] < part["step"]
            assert part["rest of the model"] <= part["step"]
        # What is timed alone leaves the cache as it is: only the steps' tokens were added.
        changed = (engine.kv_cache.k != kept[name]).flatten(3).any(-1).any(0)
        assert changed.sum() == 4 * 2
        # Nothing is timed any more.
        assert "run" not in vars(engine.runner)
        assert engine.runner.attention.__class__.__name__.endswith("Attention")
    assert len({str(engine.stats()["tokens_computed"]) for engine in engines.values()}) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.inference_mode()
def test_one_call_per_weight(llama, layout):
    model = llama.engine(linear=layout).model
    calls = product_calls(model, rows=3)
    assert len(calls) == 4 * len(model.blocks) + 1
    for call in calls:
        call()

"""All layers of a step in one compiled call: the same tokens as every other engine, in this process and the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib import LLM, SamplingParams
from lib.engine.runner import ModelRunner
from lib.models.packed import why_not_packed
from tests.fused_cases import batch_of, fill
from tests.helpers import drain, gpt2_checkpoint, llama_checkpoint, prompt_of
from tests.models.quantized.files import SIZES

pytest.importorskip("numba")
from lib.attention.fused_cpu import MOST_QUERIES, SHORT  # noqa: E402
from lib.engine.fused_step.runner import FusedStepRunner  # noqa: E402

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
CHECKPOINTS = {"llama": llama_checkpoint, "gpt2": gpt2_checkpoint}
WORK = [(3, 12), (1, 9), (17, 20), (5, 5), (40, 6)]  # tokens of the prompt, tokens of the answer


def engine_of(folder, dtype=torch.float32, **options):
    if (problem := why_not_packed(CPU, dtype)) is not None:
        pytest.skip(problem)
    defaults = {"device": "cpu", "dtype": str(dtype).removeprefix("torch."), "num_blocks": 65}
    engine = LLM(
        str(folder),
        **{"linear": "fused", "attention": "fused", "max_num_seqs": 8, **defaults, **options},
    )
    if not isinstance(engine.runner, FusedStepRunner):
        pytest.skip("oneDNN has another layout on this CPU")
    return engine


def one_call_per_step(engine, monkeypatch):
    """Count the steps of `engine` that run in one call."""
    calls, run = [], engine.runner._run
    monkeypatch.setattr(
        engine.runner, "_run", lambda *args: (calls.append(len(args[0])), run(*args))
    )
    return calls


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "options", [{}, {"num_blocks": 9}, {"enable_prefix_caching": False}], ids=str
)
def test_the_same_tokens(tiny, monkeypatch, name, options):
    """Prompts in chunks, decoding, preemption: steps change between one call and layer by layer."""
    engine = engine_of(tiny[name].folder, max_num_batched_tokens=36, **options)
    calls = one_call_per_step(engine, monkeypatch)
    ids = [
        engine.add_request(
            prompt_of(length, seed), SamplingParams(max_tokens=n, temperature=0, ignore_eos=True)
        )
        for seed, (length, n) in enumerate(WORK)
    ]
    done = drain(engine)
    assert [done[i].token_ids for i in ids] == [
        tiny[name].greedy(prompt_of(length, seed), n) for seed, (length, n) in enumerate(WORK)
    ]
    assert 0 < len(calls) < engine.stats()["steps"] and max(calls) > 1
    engine.check_integrity()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.inference_mode()
def test_logits_and_the_cache_are_those_of_single_layers(tmp_path, name, dtype):
    changes = {"attention_bias": True, "mlp_bias": True} if name == "llama" else {}
    CHECKPOINTS[name](tmp_path, **changes)
    engine = engine_of(tmp_path, dtype)
    cache, tolerance = engine.kv_cache, 1e-4 if dtype == torch.float32 else 0.1
    for work in ([(1, 0)], [(1, 31), (5, 7), (1, 20), (8, 0)]):
        batch, _ = batch_of(work, engine.manager.block_size)
        fill(cache, batch, seed=1, unused=0.0)
        before = cache.k.clone(), cache.v.clone()
        assert engine.runner.fits(batch)
        got, written = engine.runner.run(batch), (cache.k.clone(), cache.v.clone())
        for x, old in zip((cache.k, cache.v), before):
            x.copy_(old)
        expected = ModelRunner.run(engine.runner, batch)
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
        for x, y in zip((cache.k, cache.v), written):
            torch.testing.assert_close(y, x, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "quantization, activations", [("int8", "int8"), ("int4", "int8"), ("int4", "float32")]
)
@torch.inference_mode()
def test_quantised_weights(tmp_path, monkeypatch, quantization, activations):
    """Logits and answers are those of the same layers one by one.

    Sums of another order differ by 1e-7. Where an activation lies halfway between two codes, that decides between
    them, and one code changes a row's logits by a hundredth. So few rows may differ, and by no more than that.
    """
    llama_checkpoint(tmp_path, seed=1, **SIZES)
    engine, plain = (
        LLM(
            str(tmp_path),
            device="cpu",
            num_blocks=65,
            attention=attention,
            quantization=quantization,
            quantized_activations=activations,
        )
        for attention in ("fused", "gather")
    )
    assert type(engine.runner) is FusedStepRunner and type(plain.runner) is ModelRunner
    equal = []  # by row
    for seed in range(4):
        for work in ([(1, 0)], [(1, 31), (5, 7), (1, 20), (8, 0)]):
            batch, _ = batch_of(work, engine.manager.block_size)
            fill(engine.kv_cache, batch, seed=seed, unused=0.0)
            got, expected = engine.runner.run(batch), ModelRunner.run(engine.runner, batch)
            off = (got - expected).abs().amax(1) / expected.abs().amax(1)
            assert off.max() < 0.02
            equal += (off < 1e-5).tolist()
    assert sum(equal) >= (0.8 if activations == "int8" else 1.0) * len(equal)
    calls, prompts = one_call_per_step(engine, monkeypatch), [prompt_of(4, 1), prompt_of(19, 2)]
    outputs, others = (
        llm.generate(prompts, SamplingParams(max_tokens=12, temperature=0, ignore_eos=True))
        for llm in (engine, plain)
    )
    assert [o.token_ids for o in outputs] == [o.token_ids for o in others]
    assert calls


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_a_step(tiny, monkeypatch, threads):
    monkeypatch.setattr("lib.models.fused.ops.most_threads", lambda: threads)
    monkeypatch.setattr("lib.models.fused.weights.WORTH_THREADS", 0)
    engine = engine_of(tiny["llama"].folder)
    outputs = engine.generate(
        [prompt_of(4, 1), prompt_of(7, 2)],
        SamplingParams(max_tokens=8, temperature=0, ignore_eos=True),
    )
    assert [o.token_ids for o in outputs] == [
        tiny["llama"].greedy(prompt_of(n, seed), 8) for n, seed in ((4, 1), (7, 2))
    ]


def test_steps_that_go_layer_by_layer(tiny):
    engine = engine_of(tiny["llama"].folder)
    rows = engine.runner.most_rows
    for work, fits in (
        ([(1, 5)] * rows, True),
        ([(1, 5)] * (rows + 1), False),
        ([(8, 0), (1, 9)], True),
        ([(rows + 1, 0)], False),
    ):
        assert engine.runner.fits(batch_of(work, 16)[0]) == fits
    engine.runner.most_rows = 2 * MOST_QUERIES
    assert engine.runner.fits(batch_of([(MOST_QUERIES, SHORT), (1, 9)], 16)[0])
    assert engine.runner.fits(batch_of([(MOST_QUERIES + 1, 0)], 16)[0])
    assert not engine.runner.fits(batch_of([(MOST_QUERIES + 1, SHORT)], 16)[0])
    for other in (
        {"kv_cache": "contiguous", "max_model_len": 64},
        {"attention": "gather"},
        {"linear": "plain"},
    ):
        options = {"device": "cpu", "num_blocks": None if "kv_cache" in other else 65} | other
        assert type(LLM(tiny["llama"].folder, **options).runner) is ModelRunner


_NEXT_PROCESS = """
import json, sys
import torch
from lib import LLM, SamplingParams
torch.set_num_threads(1)
engine = LLM(sys.argv[1], device="cpu", num_blocks=65, **json.loads(sys.argv[2]))
params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
print(type(engine.runner).__name__, engine.generate([[5, 6, 7]], params)[0].token_ids)
print(torch.get_num_threads(), "thread")
"""


@pytest.mark.parametrize(
    "options",
    [{"linear": "fused"}, {"quantization": "int8", "quantized_activations": "int8"}],
    ids=["float", "int8"],
)
def test_compiled_code_on_disk_holds_no_address_of_the_process_that_compiled_it(tmp_path, options):
    llama_checkpoint(tmp_path, seed=1, **SIZES)
    options |= {"attention": "fused"}
    engine = LLM(str(tmp_path), device="cpu", num_blocks=65, **options)
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    (output,) = engine.generate([[5, 6, 7]], params)
    root = Path(__file__).resolve().parents[2]
    said = subprocess.run(
        [sys.executable, "-c", _NEXT_PROCESS, str(tmp_path), json.dumps(options)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    tokens, threads = said.splitlines()
    assert tokens == f"{type(engine.runner).__name__} {output.token_ids}"
    assert threads == "1 thread"  # Numba has more, and sets OpenMP's number when it starts

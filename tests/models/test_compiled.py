"""Compiled layers: the same tokens, one compilation for all sizes, and a model that runs where no compiler is."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from torch._dynamo.utils import counters

from lib import SamplingParams
from lib.models.compiled import compile_blocks
from lib.models.packed import why_not_packed
from tests.helpers import drain, prompt_of

compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="no C++ compiler"
)
WORK = [(40, 12), (3, 9), (17, 20), (1, 5)]


def run(engine):
    ids = [
        engine.add_request(
            prompt_of(length, seed), SamplingParams(max_tokens=n, temperature=0, ignore_eos=True)
        )
        for seed, (length, n) in enumerate(WORK)
    ]
    done = drain(engine)
    return [done[i].token_ids for i in ids]


@compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_same_tokens_and_nothing_compiled_later(tiny, name):
    packed = "plain" if why_not_packed(torch.device("cpu"), torch.float32) else "packed"
    expected = [
        tiny[name].greedy(prompt_of(length, seed), n) for seed, (length, n) in enumerate(WORK)
    ]
    for options in ({}, {"linear": packed, "max_num_batched_tokens": 24}):
        engine = tiny[name].engine(compile=True, **options)
        assert engine.compile_seconds > 0
        compiled = counters["stats"]["unique_graphs"]
        assert run(engine) == expected
        assert counters["stats"]["unique_graphs"] == compiled, (
            "a step compiled something: warm-up must cover all sizes"
        )
    # Numba's first parallel loop changes OpenMP's number of threads, upon which Dynamo compiles again: no count here.
    assert run(tiny[name].engine(compile=True, linear=packed, attention="fused")) == expected


@compiler
@pytest.mark.slow
def test_the_weights_keep_their_names(tiny):
    plain, compiled = tiny["gpt2"].engine().model, tiny["gpt2"].engine(compile=True).model
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    assert compiled.blocks[0].ln_1.weight.shape == (48,)


def test_without_a_compiler_the_model_runs_and_says_so_once(llama, monkeypatch):
    def broken(function):
        def call(*args):
            raise RuntimeError("\nno compiler found\nlong story")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="compile=True runs eagerly.*no compiler found") as caught:
        engine = llama.engine(compile=True)
    assert len(caught) == 1 and engine.compile_seconds == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(engine) == [
            llama.greedy(prompt_of(length, seed), n) for seed, (length, n) in enumerate(WORK)
        ]
        assert compile_blocks.__doc__


def test_it_is_a_bool(llama):
    with pytest.raises(ValueError, match="compile must be True or False, got 'max'"):
        llama.engine(compile="max")

"""Engines with quantization='fp8': the model's own tokens in any schedule, on the CPU and on devices that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib import LLM, SamplingParams
from lib.models.quantized.fp8 import FP8Weight
from lib.models.weight_bytes import weight_bytes
from lib.serving.server_options import parse
from tests.engine.test_quantization import QuantizedTiny, margins
from tests.fake_cuda import CudaTensor, fake_cuda
from tests.helpers import drain, llama_checkpoint, prompt_of
from tests.models.quantized.files import SIZES
from tests.models.quantized.test_fp8 import AUTO_FP8, checkpoint

WORK = [(5, 14), (20, 9), (33, 16), (1, 12), (17, 16)]  # (prompt tokens, output tokens)
FLIPPED = 1.5  # logits: the largest lead that an activation may turn, rounded to the other side


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return llama_checkpoint(tmp_path_factory.mktemp("fp8"), seed=1, **SIZES)


@pytest.fixture(scope="module")
def fp8(folder) -> QuantizedTiny:
    tiny = QuantizedTiny(folder, "fp8")
    tiny.MARGIN = 0.0
    return tiny


def check(tiny: QuantizedTiny, engine: LLM) -> None:
    """The tokens of the loop without a cache, nearly all of them.

    A sum that differs in its last bit may round an activation to the other side, a step of 1/8: a
    token may then differ where it had a small lead, and so may those after it.
    """
    ids = {
        engine.add_request(
            prompt_of(length, length), SamplingParams(max_tokens=n, temperature=0, ignore_eos=True)
        ): (length, n)
        for length, n in WORK
    }
    done, equal = drain(engine), 0
    for request_id, (length, n) in ids.items():
        prompt = prompt_of(length, length)
        answer, tokens = tiny.greedy(prompt, n), done[request_id].token_ids
        first = next((i for i, (a, b) in enumerate(zip(answer, tokens)) if a != b), n)
        if first < n:
            assert margins(tiny.model, prompt, answer)[first] <= FLIPPED
        equal += first
    assert equal >= 0.8 * sum(n for _, n in WORK)


@pytest.mark.parametrize(
    "options",
    [
        {"kv_cache": "none"},
        {"kv_cache": "contiguous"},
        {"attention": "fused"},
        {"max_num_batched_tokens": 7, "block_size": 4, "num_blocks": 18},
        {"scheduler": "static", "max_num_seqs": 2},
        {"speculative_config": {"method": "ngram", "prompt_lookup_min": 1, "adaptive": False}},
        {"kv_cache_dtype": "auto", "enable_prefix_caching": False},
    ],
    ids=lambda options: " ".join(str(x) for x in options.values()),
)
def test_the_tokens_of_the_model_without_a_cache(fp8, options):
    check(fp8, fp8.engine(**options))


def test_a_shared_prefix_is_found_again(fp8):
    engine, prompt = fp8.engine(), prompt_of(40, 7)
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    first, again = (engine.generate([prompt], params)[0] for _ in range(2))
    assert again.num_cached_tokens == 32 and again.token_ids == first.token_ids


def test_bytes_in_stats(fp8, folder):
    """One byte per weight and four per output channel; embedding, head and norms stay float."""
    engine = fp8.engine(dtype="bfloat16")
    parts = [m for m in engine.model.modules() if isinstance(m, FP8Weight)]
    layers = sum(m.out_features * m.in_features + 4 * m.out_features for m in parts)
    floats = sum(p.numel() for p in engine.model.parameters())
    assert engine.stats()["weight_bytes"] == layers + 2 * floats == weight_bytes(engine.model)
    assert 2 * 61 * 96 <= floats < 2 * 61 * 96 + 1000, "embedding, head, and a few vectors"


# Devices.


def on_device(tiny: QuantizedTiny, **options) -> LLM:
    defaults = {"device": "cuda", "dtype": "float32", "attention": "gather", "max_num_seqs": 4}
    return tiny.engine(**{**defaults, **options})


@pytest.mark.parametrize("capability", [(8, 9), (9, 0)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_on_a_device_meets_no_cpu_tensor(fp8, capability, dtype):
    """The fake device raises RuntimeError where tensors of two devices meet, and counts copies and waits."""
    with fake_cuda(capability) as cuda:
        engine = on_device(fp8, dtype=dtype)
        weights = [m for m in engine.model.modules() if isinstance(m, FP8Weight)]
        assert weights and all(
            isinstance(b, CudaTensor) for weight in weights for b in weight.buffers()
        )
        if dtype == "float32":
            check(fp8, engine)
        params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
        for seed in range(3):
            engine.add_request(prompt_of(5 + seed, seed), params)
        for _ in range(4):
            cuda.clear()
            engine.step()
        assert sum(cuda.h2d.values()) == 1, dict(cuda.h2d)
        assert sum(cuda.syncs.values()) == 1, dict(cuda.syncs)
        assert cuda.kernels["_scaled_mm"] == len(weights)


def test_graphs_record_the_products(fp8):
    with fake_cuda() as cuda:
        cuda.zeroed = True  # attention's kernels are counted, not run
        engine = on_device(fp8, dtype="bfloat16", attention="fused", cuda_graphs=True, max_model_len=96)  # fmt: skip
        params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
        cuda.clear()
        engine.generate([prompt_of(9, seed) for seed in range(2)], params)
        assert cuda.replays == 3


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6)])
def test_devices_that_do_not_multiply_float8_are_named(fp8, tmp_path, capability):
    found = ".".join(map(str, capability))
    with fake_cuda(capability):
        with pytest.raises(
            ValueError,
            match=rf"quantization 'fp8' needs .* capability >= 8.9 .* 'cuda.*capability {found}, .*'int8', 'int4'",
        ):
            on_device(fp8)
        with pytest.raises(
            ValueError, match=f"the FP8 checkpoint in .* needs .* capability {found}"
        ):
            LLM(checkpoint(tmp_path, AUTO_FP8, per="tensor"), device="cuda", num_blocks=9)


def test_what_does_not_go_with_it(fp8, folder, tmp_path):
    with pytest.raises(ValueError, match="quantized_activations must be 'float32' with quantization 'fp8'"):  # fmt: skip
        LLM(folder, device="cpu", quantization="fp8", quantized_activations="int8")
    done = checkpoint(tmp_path, AUTO_FP8, per="tensor")
    with pytest.raises(ValueError, match="must be None for a checkpoint .* 'fp8', got 'fp8'"):
        LLM(done, device="cpu", quantization="fp8")
    assert parse(["--quantization", "fp8"]).llm["quantization"] == "fp8"


def test_a_checkpoint_is_not_divided_among_ranks(tmp_path):
    from lib.models.parallel.load import load_part

    folder = checkpoint(tmp_path, AUTO_FP8, per="tensor")
    with pytest.raises(
        ValueError, match="tensor_parallel_size must be 1 with weights in FP8.* got 2"
    ):
        load_part(folder, None, "float32", torch.device("cpu"), torch.float32, 0, 2, None)

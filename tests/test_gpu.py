"""The oracle and the memory, on an NVIDIA GPU."""

from __future__ import annotations

import pytest
import torch

from lib import LLM, SamplingParams
from lib.attention.full import FullAttention
from lib.engine.batch import Batch
from lib.models.checkpoint import load_model
from tests.helpers import check_books, check_empty, drain, prompt_of

pytestmark = pytest.mark.gpu

STAGES = [("none", "continuous"), ("contiguous", "continuous"), ("contiguous", "static"), ("paged", "continuous")]
WORK = [(1, 9), (17, 12), (5, 1), (33, 8), (16, 20), (2, 2), (40, 15)]


@pytest.fixture(autouse=True)
def exact_matmuls():
    """TF32 keeps 10 bits: with it float32 would not be float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kv_cache, scheduler", STAGES, ids=["-".join(s) for s in STAGES])
@pytest.mark.parametrize("budget", [7, 2048])
def test_every_stage_equals_the_oracle_in_float32(tiny, name, kv_cache, scheduler, budget):
    engine = tiny[name].engine(device="cuda", dtype="float32", kv_cache=kv_cache, scheduler=scheduler, max_num_seqs=4,
                               max_num_batched_tokens=budget)
    ids = [engine.add_request(prompt_of(n, seed), greedy(m)) for seed, (n, m) in enumerate(WORK)]
    done = drain(engine)
    for seed, (request_id, (n, m)) in enumerate(zip(ids, WORK)):
        assert done[request_id].token_ids == tiny[name].greedy(prompt_of(n, seed), m)
    check_empty(engine)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_preemption_changes_no_token(tiny, name):
    engine = tiny[name].engine(device="cuda", dtype="float32", num_blocks=6, block_size=4)
    work = [(prompt_of(6, 1), 10), (prompt_of(7, 2), 9)]
    ids = [engine.add_request(p, greedy(n)) for p, n in work]
    done = drain(engine)
    assert engine.stats()["preemptions"] >= 1
    assert [done[i].token_ids for i in ids] == [tiny[name].greedy(p, n) for p, n in work]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype, mean, largest", [(torch.float32, 1e-5, 1e-4), (torch.bfloat16, 0.02, 0.15),
                                                  (torch.float16, 0.005, 0.05)])
def test_logits_against_the_cpu_in_float32(tiny, name, dtype, mean, largest):
    """In shares of the logits' spread."""
    prompts = [prompt_of(n, 1) for n in (1, 9, 30, 30)]
    with torch.inference_mode():
        exact = tiny[name].model(Batch.of_prompts(prompts), FullAttention())
        model = load_model(tiny[name].folder, device="cuda", dtype=dtype).model
        rough = model(Batch.of_prompts(prompts, device="cuda"), FullAttention()).float().cpu()
    error = (exact - rough).abs() / exact.std()
    assert error.mean() < mean and error.max() < largest


def test_sampled_tokens_equal_the_cpus(llama):
    params = [SamplingParams(max_tokens=10, seed=3, ignore_eos=True, **k) for k in
              ({}, dict(top_k=5), dict(top_p=0.8), dict(min_p=0.1), dict(repetition_penalty=1.2), dict(logprobs=3))]
    prompts = [prompt_of(8, i) for i in range(len(params))]
    cpu, gpu = (llama.engine(device=d, dtype="float32").generate(prompts, params) for d in ("cpu", "cuda"))
    same = sum(a.token_ids == b.token_ids for a, b in zip(cpu, gpu))
    assert same >= len(params) - 1, "rounding may move one draw over an edge, not more"


def test_the_pool_is_sized_from_free_memory(llama):
    free, total = torch.cuda.mem_get_info()
    engine = LLM(llama.folder, device="cuda", max_num_seqs=10**7)
    used = engine.kv_cache.nbytes
    assert 0.5 * free < used <= free - 0.05 * total
    engine.generate([prompt_of(20, 1)] * 4, greedy(8))
    check_books(engine)
    del engine
    torch.cuda.empty_cache()


def test_a_cache_that_does_not_fit_is_a_clear_error(llama):
    with pytest.raises(ValueError, match="contiguous KV cache of max_num_seqs .* GiB are available"):
        llama.engine(device="cuda", kv_cache="contiguous", max_num_seqs=10**8, max_model_len=512)
    with pytest.raises(ValueError, match="which cuda.* does not have"):
        llama.engine(device="cuda", num_blocks=10**9)
    assert llama.engine(device="cuda").generate([[5, 6]], greedy(3))[0].token_ids, "the GPU is usable afterwards"


def test_auto_takes_the_gpu(llama):
    engine = llama.engine(device="auto")
    assert engine.device.type == "cuda" and engine.dtype in (torch.bfloat16, torch.float16)
    assert llama.engine(device="cpu").device.type == "cpu"

"""The oracle and the memory, on an NVIDIA GPU."""

from __future__ import annotations

import pytest
import torch

from lib import LLM, SamplingParams
from lib.attention.full import FullAttention
from lib.bench.measure.roofline import tf32
from lib.bench.peers.hf import hf_generate, hf_generate_batch
from lib.bench.peers.hf_model import transformers_model
from lib.core.batch import Batch
from lib.models import checkpoint
from lib.models.checkpoint import RandomWeightsWarning, load_model
from lib.models.hub import HubUnreachable
from lib.serving.server_process import ServerProcess
from tests.helpers import check_books, check_empty, drain, prompt_of

pytestmark = pytest.mark.gpu

STAGES = [
    ("none", "continuous"),
    ("contiguous", "continuous"),
    ("contiguous", "static"),
    ("paged", "continuous"),
]
WORK = [(1, 9), (17, 12), (5, 1), (33, 8), (16, 20), (2, 2), (40, 15)]


DEVICE = "cuda"


@pytest.fixture(autouse=True)
def exact_matmuls():
    """TF32 keeps 10 bits: with it float32 would not be float32. It is off where nobody turns it on."""
    assert torch.get_float32_matmul_precision() == "highest"
    yield
    assert torch.get_float32_matmul_precision() == "highest"


def test_float32_is_exact_unless_tf32_is_asked_for():
    a, b = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    exact = a.double() @ b.double()

    def error():
        return ((a @ b).double() - exact).abs().max().item()

    assert (
        error() < 1e-3
    )  # products of 512 normal numbers: about 22, of which float32 keeps 7 digits
    if torch.cuda.get_device_capability() >= (8, 0):
        with tf32(True):
            assert error() > 1e-3
    assert error() < 1e-3


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kv_cache, scheduler", STAGES, ids=["-".join(s) for s in STAGES])
@pytest.mark.parametrize("budget", [7, 2048])
def test_every_stage_equals_the_oracle_in_float32(tiny, name, kv_cache, scheduler, budget):
    engine = tiny[name].engine(
        device="cuda",
        dtype="float32",
        kv_cache=kv_cache,
        scheduler=scheduler,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
    )
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
@pytest.mark.parametrize(
    "dtype, mean, largest",
    [(torch.float32, 1e-5, 1e-4), (torch.bfloat16, 0.02, 0.15), (torch.float16, 0.005, 0.05)],
)
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
    params = [
        SamplingParams(max_tokens=10, seed=3, ignore_eos=True, **k)
        for k in (
            {},
            dict(top_k=5),
            dict(top_p=0.8),
            dict(min_p=0.1),
            dict(repetition_penalty=1.2),
            dict(logprobs=3),
        )
    ]
    prompts = [prompt_of(8, i) for i in range(len(params))]
    cpu, gpu = (
        llama.engine(device=d, dtype="float32").generate(prompts, params) for d in ("cpu", "cuda")
    )
    same = sum(a.token_ids == b.token_ids for a, b in zip(cpu, gpu))
    assert same >= len(params) - 1, "rounding may move one draw over an edge, not more"


def test_the_pool_is_sized_from_free_memory(llama):
    free, total = torch.cuda.mem_get_info()
    engine = LLM(
        llama.folder, device="cuda", max_num_seqs=10**7, block_size=256
    )  # large: the books are kept in Python
    used = engine.kv_cache.nbytes
    assert 0.5 * free < used <= free - 0.05 * total
    engine.generate([prompt_of(20, 1)] * 4, greedy(8))
    check_books(engine)
    del engine
    torch.cuda.empty_cache()


def test_a_cache_that_does_not_fit_is_a_clear_error(llama):
    with pytest.raises(
        ValueError, match="contiguous KV cache of max_num_seqs .* GiB are available"
    ):
        llama.engine(device="cuda", kv_cache="contiguous", max_num_seqs=10**8, max_model_len=512)
    with pytest.raises(ValueError, match="which cuda.* does not have"):
        llama.engine(device="cuda", num_blocks=10**9)
    assert llama.engine(device="cuda").generate([[5, 6]], greedy(3))[0].token_ids, (
        "the GPU is usable afterwards"
    )


@pytest.fixture
def no_hub(monkeypatch):
    """GPT-2 has random weights, whether or not this machine has the checkpoint: what is tested needs no others."""

    def unreachable(hub_id):
        raise HubUnreachable("this test does without the hub")

    monkeypatch.setattr(checkpoint, "download", unreachable)


def test_where_the_published_contiguous_cache_ran_out_blocks_go_on(no_hub):
    """GPT-2 in float32, 1,024 sequences: 72 MiB for each in slots of 1,024 tokens, or the published 1,900 blocks."""
    slot = 72 * 2**20
    total = torch.cuda.mem_get_info()[1]
    options = {"device": DEVICE, "dtype": "float32", "max_num_batched_tokens": 16384}
    with (
        pytest.warns(RandomWeightsWarning),
        pytest.raises(ValueError, match="contiguous KV cache .* GiB are available"),
    ):
        LLM(
            "gpt2",
            kv_cache="contiguous",
            max_num_seqs=max(1024, total // slot + 1),
            max_model_len=1024,
            **options,
        )
    with pytest.warns(RandomWeightsWarning):
        engine = LLM("gpt2", num_blocks=1900, max_num_seqs=1024, **options)
    assert engine.kv_cache.nbytes == 1900 * 16 * slot // 1024
    prompts = [prompt_of(6, seed, vocab=50257) for seed in range(1024)]
    outputs = engine.generate(prompts, greedy(8))
    assert (
        all(len(output.token_ids) == 8 for output in outputs) and engine.stats()["preemptions"] == 0
    )
    check_empty(engine)
    del engine
    torch.cuda.empty_cache()


@pytest.mark.parametrize("kv_cache", ["contiguous", "paged"])
def test_a_server_on_the_gpu_answers_as_the_oracle(llama, kv_cache):
    import httpx

    prompt = prompt_of(9, 1)
    with ServerProcess(
        "--model",
        str(llama.folder),
        "--device",
        DEVICE,
        "--dtype",
        "float32",
        "--kv-cache",
        kv_cache,
        "--max-num-seqs",
        "4",
        "--max-model-len",
        "96",
    ) as server:
        body = {
            "prompt": prompt,
            "max_tokens": 12,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        answer = httpx.post(
            server.url + "/v1/completions", json=body, timeout=60, trust_env=False
        ).json()
    assert answer["choices"][0]["token_ids"] == llama.greedy(prompt, 12)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_transformers_does_the_same_work_in_all_its_ways(tiny, name):
    """What the record sets beside ours: if one of them cannot run here, this is where it says why."""
    twin = transformers_model(tiny[name].engine(device=DEVICE, dtype="float32"))
    prompts, limits = [prompt_of(n, 5) for n in (7, 3, 12)], [6, 9, 4]
    expected = [tiny[name].greedy(p, n) for p, n in zip(prompts, limits)]
    for run in (
        hf_generate,
        hf_generate_batch,
        lambda *args, **how: hf_generate(*args, cache="static", **how),
    ):
        assert run(twin, prompts, limits, warmup=1, repeats=1)["token_ids"] == expected
    torch.compiler.reset()


def test_auto_takes_the_gpu(llama):
    engine = llama.engine(device="auto")
    assert engine.device.type == "cuda" and engine.dtype in (torch.bfloat16, torch.float16)
    assert llama.engine(device="cpu").device.type == "cpu"

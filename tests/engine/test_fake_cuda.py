"""Engine steps on a CUDA device that is not there: no tensors of two devices meet, no step waits more often than it must.

The fake device computes, so tokens are compared as well: with the oracle, or with the same engine on the CPU.
"""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from lib import SamplingParams
from lib.attention import sdpa
from lib.serving.warmup import warm_up
from tests.engine import gpu_checks
from tests.fake_cuda import fake_cuda
from tests.fake_kernels import computed_kernels
from tests.helpers import check_empty, drain, prompt_of

WORK = [(1, 9), (17, 12), (5, 1), (33, 8), (16, 14), (2, 2), (40, 10)]
ENGINES = {
    "none": {"kv_cache": "none"},
    "contiguous": {"kv_cache": "contiguous"},
    "gather": {"attention": "gather"},
    "fused": {"attention": "fused"},
    "graphs": {"attention": "fused", "cuda_graphs": True},
    "chunks": {"attention": "gather", "max_num_batched_tokens": 7},
    "graphs, chunks": {"attention": "fused", "cuda_graphs": True, "max_num_batched_tokens": 7},
    "graphs, preempted": {"attention": "fused", "cuda_graphs": True, "num_blocks": 6},
}
SAMPLING = {
    "greedy": dict(temperature=0),
    "temperature": dict(temperature=0.8),
    "top_k": dict(top_k=5),
    "top_p": dict(top_p=0.8),
    "min_p": dict(min_p=0.1),
    "mixed": dict(top_k=5, top_p=0.9, temperature=1.3),
    "penalties": dict(repetition_penalty=1.2, presence_penalty=0.1, frequency_penalty=0.1),
    "min_tokens": dict(min_tokens=4, ignore_eos=False),
    "logprobs": dict(temperature=0, logprobs=3),
}


@pytest.fixture
def cuda():
    """The fake device; fused attention is a stand-in that computes what the kernels compute."""
    with fake_cuda() as device, computed_kernels(device):
        yield device


def engine_on(tiny, **options):
    defaults = {"device": "cuda", "dtype": "float32", "linear": "plain", "max_num_seqs": 4}
    if options.get("attention") == "fused" and "num_blocks" not in options:
        defaults["max_model_len"] = 96
    return tiny.engine(**{**defaults, **options})


def params(max_tokens, **how):
    return SamplingParams(**{"max_tokens": max_tokens, "ignore_eos": True, "seed": 5, **how})


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("options", ENGINES.values(), ids=ENGINES)
def test_every_engine_gives_the_oracles_tokens(tiny, cuda, name, options):
    engine = engine_on(tiny[name], **options)
    requests = {
        engine.add_request(prompt_of(length, seed), params(n, temperature=0)): (length, seed, n)
        for seed, (length, n) in enumerate(WORK)
    }
    done = drain(engine)
    for request_id, (length, seed, n) in requests.items():
        assert done[request_id].token_ids == tiny[name].greedy(prompt_of(length, seed), n)
    assert (cuda.replays > 0) == ("cuda_graphs" in options)
    assert (engine.stats()["preemptions"] > 0) == ("num_blocks" in options)
    check_empty(engine)


@pytest.mark.parametrize("options", ENGINES.values(), ids=ENGINES)
def test_a_greedy_step_copies_once_to_the_device_and_waits_once(llama, cuda, options):
    engine = engine_on(llama, **{"max_num_batched_tokens": 64, **options})
    for seed in range(3):
        engine.add_request(prompt_of(5 + seed, seed), params(12, temperature=0))
    for _ in range(4):
        cuda.clear()
        engine.step()
        decodes = all(r.num_output_tokens > 1 for r in engine.scheduler.running)
        if decodes:
            assert sum(cuda.h2d.values()) == 1, dict(cuda.h2d)
            assert sum(cuda.syncs.values()) == 1, dict(cuda.syncs)
    assert decodes


@pytest.mark.parametrize("how", SAMPLING.values(), ids=SAMPLING)
def test_a_sampled_step_copies_at_most_twice_and_waits_once(llama, cuda, how):
    """Penalties count tokens on the host: their steps may copy the counts as well."""
    engine = engine_on(llama, attention="fused", cuda_graphs=True)
    for seed in range(3):
        engine.add_request(prompt_of(5 + seed, seed), params(12, **how))
    for _ in range(3):
        engine.step()
    for _ in range(3):
        cuda.clear()
        engine.step()
        if how.get("min_tokens", 0) == 0 and "repetition_penalty" not in how:
            assert sum(cuda.h2d.values()) == 2 - (how.get("temperature") == 0), dict(cuda.h2d)
        assert sum(cuda.syncs.values()) == 1, dict(cuda.syncs)


@pytest.mark.parametrize("how", SAMPLING.values(), ids=SAMPLING)
def test_every_way_of_sampling_gives_the_cpus_tokens(llama, cuda, how):
    prompts, chosen = [prompt_of(8, i) for i in range(3)], params(8, **how)
    ours = engine_on(llama, attention="gather").generate(prompts, chosen)
    expected = llama.engine(linear="plain").generate(prompts, chosen)
    for a, b in zip(ours, expected):
        assert a.token_ids == b.token_ids
        assert (a.logprobs is None) == ("logprobs" not in how)
        for x, y in zip(a.logprobs or [], b.logprobs or []):
            assert list(x) == list(y) and list(x.values()) == pytest.approx(list(y.values()))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_kernels_launcher_stays_on_the_device(tiny, name):
    """The launches themselves, counted instead of run: up to 16 query rows per K/V head go to decode, more to varlen."""
    with fake_cuda() as cuda:
        cuda.zeroed = True
        engine = engine_on(tiny[name], attention="fused", cuda_graphs=True, max_num_seqs=4)
        layers, sizes = 2, 3  # of the model; of the ladder 1, 2, 4
        captured = 2 * sizes * layers  # each size runs once before it is captured
        assert cuda.triton["decode"] == captured and cuda.triton["varlen"] == 0
        probes = (
            2  # cached_attention and fused_attention ask both whether a kernel can be built here
        )
        assert cuda.triton["store"] == captured + probes
        cuda.clear()
        engine.generate([prompt_of(17, seed) for seed in range(3)], params(4, temperature=0))
        assert cuda.replays == 3 and dict(cuda.triton) == {"store": layers, "varlen": layers}
        cuda.clear()
        most = 16 // (engine.config.num_heads // engine.config.num_kv_heads)
        engine.generate([prompt_of(most, 1)], params(1, temperature=0))
        assert cuda.triton["varlen"] == 0 and cuda.triton["decode"] == layers


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
def test_after_the_warm_up_no_kernel_is_compiled(tiny, name, graphs):
    """Triton compiles for half a second when it meets a new kind of argument. No step in service may do that."""
    with fake_cuda() as cuda:
        cuda.zeroed = True
        engine = engine_on(
            tiny[name], attention="fused", cuda_graphs=graphs, max_num_seqs=20, max_model_len=400
        )
        warm_up(engine)
        known = set(cuda.variants)
        assert {variant[0] for variant in known} == {"store", "decode", "merge", "varlen"}
        cuda.clear()
        for n in (1, 3, 20):
            engine.generate(
                [prompt_of(1 + 17 * i, seed=i) for i in range(n)],
                [params(2 + i % 5, temperature=0) for i in range(n)],
            )
        assert cuda.triton["varlen"] and cuda.triton["decode"] and cuda.variants <= known


def test_all_sizes_are_captured_on_one_stream(llama, cuda):
    """cuBLAS keeps a workspace for each stream that it has seen."""
    engine = engine_on(llama, attention="fused", cuda_graphs=True, max_num_seqs=16)
    assert len(engine.runner.sizes) > 3 and cuda.streams == 1


@pytest.mark.parametrize("cache", ["none", "contiguous", "gather"])
def test_attention_on_cuda_leaves_cudnn_out(llama, cuda, cache):
    """cuDNN plans anew for each number of keys, which takes milliseconds at every decode step."""
    real, seen = sdpa.F.scaled_dot_product_attention, []

    def watched(*args, **options):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return real(*args, **options)

    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        with patch.object(sdpa.F, "scaled_dot_product_attention", watched):
            engine_on(llama, **ENGINES[cache]).generate([prompt_of(9, 1)], params(3))
        assert seen and not any(seen)
        assert torch.backends.cuda.cudnn_sdp_enabled(), "others may want it"
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_the_fake_device_refuses_what_a_real_one_refuses():
    with fake_cuda() as cuda, torch.inference_mode():
        x = torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match="tensors on cuda:0 and on the CPU"):
            x + torch.ones(3)
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(RuntimeError, match="while a graph is captured"):
            with torch.cuda.graph(graph):
                x.sum().item()
        with torch.cuda.graph(graph):
            total = (2 * x)[1:].sum()
        x.fill_(5)
        graph.replay()
        assert total.item() == 20
        late = torch.empty(3, pin_memory=True)
        late.copy_(x, non_blocking=True)
        assert late.tolist() != [5, 5, 5]
        event = torch.cuda.Event()
        event.record()
        event.synchronize()
        assert late.tolist() == [5, 5, 5]
        assert sum(cuda.h2d.values()) == 0 and sum(cuda.syncs.values()) == 3


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("options, happened", gpu_checks.ENGINES.values(), ids=gpu_checks.ENGINES)
def test_every_engine_of_chapters_8_to_10_gives_the_oracles_tokens(
    tiny, cuda, name, options, happened
):
    gpu_checks.check_tokens(tiny[name], options, happened)


@pytest.mark.parametrize(
    "options", [{"attention": "gather"}, gpu_checks.GRAPHS], ids=["gather", "graphs"]
)
def test_a_request_ended_by_a_stop_token_has_one_superfluous_row(llama, cuda, options):
    gpu_checks.check_stop_token(llama, options)


def test_drafts_of_a_model_that_is_the_same(llama, cuda):
    gpu_checks.check_draft_model(llama)


@pytest.mark.parametrize(
    "options",
    [{"attention": "gather"}, {"attention": "fused"}, gpu_checks.GRAPHS],
    ids=["gather", "fused", "graphs"],
)
def test_sliding_windows(tmp_path, cuda, options):
    gpu_checks.check_windows(tmp_path, options)


def test_a_cache_of_8_bits(tmp_path, cuda):
    gpu_checks.check_int8_cache(tmp_path)


@pytest.mark.parametrize(
    "options", [{"attention": "gather"}, gpu_checks.GRAPHS], ids=["gather", "graphs"]
)
def test_masks_of_structured_output(tmp_path, cuda, options):
    gpu_checks.check_structured(tmp_path, options)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("options", [{}, gpu_checks.GRAPHS], ids=["eager", "graphs"])
def test_quantised_weights(tmp_path, cuda, quantization, options):
    gpu_checks.check_quantized(tmp_path, quantization, options)

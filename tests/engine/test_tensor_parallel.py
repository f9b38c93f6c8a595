"""One model on two or three processes: the oracle's tokens with every cache, and no hang when a process ends."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings

from lib import LLM, SamplingParams
from lib.attention.full import FullAttention
from lib.core.batch import Batch
from lib.core.engine_options import EngineOptions
from lib.core.errors import EngineDeadError
from lib.engine.tensor_parallel import workers
from lib.engine.tensor_parallel.worker import LOST_PEER
from lib.models.quantized.load import load_quantized
from tests.engine.test_engine_properties import jobs, run
from tests.helpers import Tiny, check_empty, gpt2_checkpoint, hf_gpt2, llama_checkpoint, prompt_of

ROOT = Path(__file__).resolve().parents[2]
LLAMA = dict(hidden_size=384, intermediate_size=192, num_attention_heads=12)
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "adaptive": False}
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
# Longest job: 24 + 14 tokens, 10 blocks of 4; several of them do not fit: preemption.
SMALL_POOL = dict(block_size=4, num_blocks=13)
# A start costs seconds: each engine serves all tests that its name is in.
ENGINES = {
    "gather, 3 K/V heads": dict(model="kv3", max_num_batched_tokens=8, **SMALL_POOL),
    "fused, 1 K/V head, drafts": dict(
        model="kv1", attention="fused", speculative_config=NGRAM, **SMALL_POOL
    ),
    "contiguous, GPT-2": dict(model="gpt2", kv_cache="contiguous", max_num_batched_tokens=16),
    "none, 3 ranks": dict(model="kv1", kv_cache="none", tensor_parallel_size=3),
    "int8": dict(model="kv3", quantization="int8", **SMALL_POOL),
    "int4, GPT-2": dict(model="gpt2", quantization="int4", attention="fused", **SMALL_POOL),
}


class Shared(Tiny):
    """A checkpoint and one engine for it, which `engine()` returns whatever the options."""

    def __init__(self, folder: Path, options: dict) -> None:
        super().__init__(folder)
        kind = options.get("quantization")
        if kind is not None:
            device = torch.device("cpu")
            self.model = load_quantized(folder, kind, "float32", device, torch.float32).model
        self.shared = super().engine(**{"tensor_parallel_size": 2, **options})

    def engine(self, **_: object) -> LLM:
        return self.shared


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parallel")
    return {
        "kv3": llama_checkpoint(root / "kv3", seed=1, **LLAMA, num_key_value_heads=3),
        "kv1": llama_checkpoint(root / "kv1", seed=1, **LLAMA, num_key_value_heads=1),
        "gpt2": gpt2_checkpoint(root / "gpt2", seed=2, n_embd=128, n_head=4),
    }


@pytest.fixture(scope="module")
def engines(folders):
    """Engines by name, built when first asked for."""
    built: dict[str, Shared] = {}

    def get(name: str) -> Shared:
        if name not in built:
            options = dict(ENGINES[name])
            built[name] = Shared(folders[options.pop("model")], options)
        return built[name]

    yield get
    for tiny in built.values():
        tiny.shared.close()


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=8)
@given(work=jobs)
@pytest.mark.slow
def test_random_traffic_gives_the_tokens_of_one_process_without_a_cache(engines, name, work):
    """Chunks, prefix caching, aborts, n > 1; with a pool for one sequence and a little: preemption."""
    run(engines(name), work)


@pytest.mark.parametrize("name", ["gather, 3 K/V heads", "int8"])
def test_preemption_and_prefix_hits_have_happened(engines, name):
    tiny = engines(name)
    before = tiny.shared.stats()
    prompts = [prompt_of(20, 1)[:n] + prompt_of(4, n) for n in (16, 16, 20, 12)]
    for _ in range(2):
        outputs = tiny.shared.generate(prompts, GREEDY)
        assert [o.token_ids for o in outputs] == [tiny.greedy(p, 12) for p in prompts]
    after = tiny.shared.stats()
    assert after["preemptions"] > before["preemptions"]
    assert after["prefix_hits"] > before["prefix_hits"]


def test_drafts_are_verified_by_all_ranks(engines):
    tiny = engines("fused, 1 K/V head, drafts")
    prompt = prompt_of(8, 3) * 2
    (output,) = tiny.shared.generate([prompt], GREEDY)
    assert output.token_ids == tiny.greedy(prompt, 12)
    assert tiny.shared.stats()["draft_tokens"] > 0


def test_sampling_and_logprobs_are_those_of_one_process(engines, folders):
    name = "contiguous, GPT-2"
    options = {k: v for k, v in ENGINES[name].items() if k != "model"}
    params = SamplingParams(max_tokens=10, temperature=0.8, seed=7, logprobs=3, ignore_eos=True)
    prompts = [prompt_of(6, 1), prompt_of(11, 2)]
    alone = Tiny(folders["gpt2"]).engine(**options).generate(prompts, params)
    for one, many in zip(alone, engines(name).shared.generate(prompts, params)):
        assert many.token_ids == one.token_ids
        for a, b in zip(one.logprobs, many.logprobs):
            assert list(b) == list(a)
            assert list(b.values()) == pytest.approx(list(a.values()), abs=1e-4)


# (query heads, K/V heads) of each rank.
HEADS = {
    "gather, 3 K/V heads": [(8, 2), (4, 1)],
    "fused, 1 K/V head, drafts": [(6, 1), (6, 1)],
}


@pytest.mark.parametrize("name", HEADS)
def test_each_rank_holds_its_part_of_weights_and_cache(engines, name):
    """Counted: heads, MLP features and vocabulary are divided; norms are whole in both ranks."""
    tiny = engines(name)
    stats, config = tiny.shared.stats(), tiny.model.config
    hidden, size, layers = config.hidden_size, config.head_dim, config.num_layers
    expected = []
    for (heads, kv_heads), tokens in zip(HEADS[name], (31, 30)):
        attention = (2 * heads + 2 * kv_heads) * size * hidden
        mlp = 3 * config.intermediate_size // 2 * hidden
        norms = (2 * layers + 1) * hidden
        expected.append(4 * (layers * (attention + mlp) + 2 * tokens * hidden + norms))
    assert stats["weight_bytes_by_rank"] == expected
    assert stats["weight_bytes"] == sum(expected)
    whole = sum(p.nbytes for p in tiny.model.parameters())
    assert max(expected) < 0.62 * whole and min(expected) > 0.4 * whole
    slots = (stats["blocks_total"] + 1) * stats["block_size"]
    kv_heads = sum(kv for _, kv in HEADS[name])
    assert stats["kv_cache_bytes"] == 2 * layers * slots * kv_heads * size * 4


@pytest.mark.parametrize("at", [1, 2, 5, 9])
def test_an_interrupt_loses_nothing(engines, monkeypatch, at):
    """Ctrl-C stops rank 0's caller from waiting, not the ranks: the next step goes on with them."""
    llm = engines("gather, 3 K/V heads").shared
    calls, given = itertools.count(1), workers.wait

    def wait(*arguments, **options):
        if next(calls) == at:
            raise KeyboardInterrupt
        return given(*arguments, **options)

    monkeypatch.setattr(workers, "wait", wait)
    prompts = [prompt_of(20, seed) for seed in range(3)]
    for seed, prompt in enumerate(prompts):
        llm.add_request(prompt, GREEDY, str(seed))
    done: dict[str, list[int]] = {}
    interrupts = 0
    while llm.has_unfinished():
        try:
            done |= {output.request_id: output.token_ids for output in llm.step()}
        except KeyboardInterrupt:
            interrupts += 1
    tiny = engines("gather, 3 K/V heads")
    assert done == {str(seed): tiny.greedy(p, 12) for seed, p in enumerate(prompts)}
    assert interrupts == 1
    check_empty(llm)


def test_each_rank_gets_its_share_of_the_threads(engines):
    """Rank 0's passes run with its share; the caller's own number of threads stays as it was."""
    llm = engines("none, 3 ranks").shared
    seen = []

    def forward(batch: Batch) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return llm.model(batch, FullAttention())

    torch.set_num_threads(2)
    try:
        for _ in range(2):  # Numba's loops in a pass change the number for the next one
            llm.workers.run(Batch.of_prompts([[5, 6]]), torch.inference_mode()(forward))
        assert seen == [llm.workers.threads] * 2 == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def broken(folders, tmp_path_factory):
    """GPT-2 whose positions from 40 on are NaN, in a pool of three blocks."""
    model = hf_gpt2(2, n_embd=128, n_head=4)
    model.transformer.wpe.weight.data[40:] = float("nan")
    model.save_pretrained(folder := tmp_path_factory.mktemp("broken"))
    tiny = Shared(folder, dict(num_blocks=4, block_size=16, enable_prefix_caching=False))
    yield tiny
    tiny.shared.close()


def test_non_finite_values_are_removed_in_all_ranks(broken):
    """They would reach the next sequences in the blocks, of which a masked read multiplies them by 0."""
    (output,) = broken.shared.generate([prompt_of(41, 1)], SamplingParams(max_tokens=2))
    assert output.token_ids == []  # its K and V were in all three blocks
    prompts = [prompt_of(4, seed) for seed in range(3)]
    outputs = broken.shared.generate(prompts, SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))  # fmt: skip
    assert [o.token_ids for o in outputs] == [broken.greedy(p, 4) for p in prompts]


def test_an_error_in_a_rank_carries_its_traceback_to_rank_0(broken):
    """The last test of this engine: it ends it."""
    too_many = 2**40
    broken.shared.workers.allocate(too_many, 16)  # rank 0 does not wait for it
    with pytest.raises(EngineDeadError) as caught:
        broken.shared.generate([prompt_of(5, 1)], GREEDY)
    message = str(caught.value)
    assert "rank 1 failed" in message and "Traceback (most recent call last)" in message
    assert f"ValueError: a KV cache of {too_many} x 16 tokens" in message


def wait_until_gone(pid: int, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} is still running"
        time.sleep(0.05)


def test_a_rank_killed_in_the_middle_of_a_generation_ends_the_engine(folders):
    llm = Tiny(folders["gpt2"]).engine(tensor_parallel_size=3, kv_cache="paged")
    processes = llm.workers.ranks.processes
    killer = threading.Timer(0.2, os.kill, (processes[1].pid, signal.SIGKILL))
    params = SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)
    killer.start()
    start = time.monotonic()
    with pytest.raises(EngineDeadError, match="rank 1 .process .* was killed by SIGKILL"):
        while True:
            llm.generate([prompt_of(5, s) for s in range(4)], params)
    assert time.monotonic() - start < 30
    wait_until_gone(processes[2].pid)  # the other ranks have ended with it
    with pytest.raises(EngineDeadError, match="rank 1"):  # later steps say the same
        llm.generate([prompt_of(5, 1)], params)
    llm.close()


def test_closing_ends_the_processes(engines, folders):
    llm = engines("int8").shared
    (process,) = llm.workers.ranks.processes.values()
    llm.close()
    assert process.returncode in (0, LOST_PEER)  # by itself: not killed
    llm.close()
    with pytest.raises(EngineDeadError, match="has been closed"):
        llm.generate([prompt_of(5, 1)], GREEDY)
    Tiny(folders["kv3"]).engine().close()  # nothing to end in one process


SCRIPT = """
import sys, time
from lib import LLM, SamplingParams
llm = LLM(sys.argv[1], device="cpu", attention="gather", num_blocks=33, tensor_parallel_size=2)
params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
print("tokens", llm.generate([[5, 6, 7]], params)[0].token_ids, flush=True)
time.sleep(float(sys.argv[2]))
"""  # as a chapter: no `if __name__ == "__main__"`, no close


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


WAITS_FOR_EVER = """
import os, signal, sys, threading
from lib import LLM, SamplingParams
from lib.core.errors import EngineDeadError
llm = LLM(sys.argv[1], device="cpu", attention="gather", num_blocks=33, tensor_parallel_size=2)
os.kill(llm.workers.ranks.processes[1].pid, signal.SIGKILL)
llm.workers.group.broadcast = lambda x: threading.Event().wait()
try:
    llm.generate([[5, 6, 7]], SamplingParams(max_tokens=6))
except EngineDeadError as error:
    print(error, flush=True)
"""


@pytest.mark.slow
def test_a_process_ends_though_gloo_does_not_notice_that_a_rank_is_gone(folders, tmp_path):
    """Now and then a broadcast to a process that has just been killed never returns."""
    script = tmp_path / "script.py"
    script.write_text(WAITS_FOR_EVER)
    command = [sys.executable, str(script), str(folders["gpt2"])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 1" in done.stdout and "was killed by SIGKILL" in done.stdout


@pytest.mark.slow
def test_the_ranks_end_with_a_process_that_is_killed(folders, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folders["gpt2"]), "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout.readline().startswith("tokens")
        (rank_1,) = psutil.Process(process.pid).children()
        process.kill()
    wait_until_gone(rank_1.pid)


@pytest.mark.slow
def test_under_torchrun(folders, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = ["lib.engine.tensor_parallel.torchrun", str(script), str(folders["gpt2"]), "0"]
    command = [sys.executable, "-m", *launcher, "-m", *program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240)
    assert done.returncode == 0, done.stderr
    expected = Tiny(folders["gpt2"]).greedy([5, 6, 7], 6)
    assert done.stdout.splitlines() == [f"tokens {expected}"]  # one rank runs the script


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(tensor_parallel_size=0), "tensor_parallel_size must be an integer >= 1, got 0"),
        (
            dict(tensor_parallel_size=2, cuda_graphs=True),
            "cuda_graphs must be False where tensor_parallel_size is > 1",
        ),
        (
            dict(tensor_parallel_size=2, async_scheduling=True),
            "async_scheduling must be 'auto' or False where tensor_parallel_size is > 1",
        ),
        *(
            (
                dict(tensor_parallel_size=2, speculative_config={"method": method}),
                f"speculative_config.method must be 'ngram' where .* got '{method}'",
            )
            for method in ("early_exit", "draft_model")
        ),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        EngineOptions(**options)


def test_a_model_that_cannot_be_divided_is_refused_and_leaves_no_process(folders):
    before = set(psutil.Process().children())
    with pytest.raises(ValueError, match="tensor_parallel_size must be <= 4, the model's num_heads"):  # fmt: skip
        Tiny(folders["gpt2"]).engine(tensor_parallel_size=5)
    assert set(psutil.Process().children()) <= before

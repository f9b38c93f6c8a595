"""Checks of engines on CUDA, which test_on_gpu.py runs on a GPU and test_fake_cuda.py on the fake device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lib import SamplingParams
from lib.engine.structured.token_bytes import byte_level_alphabet
from tests.families import hf_variant
from tests.helpers import Tiny, check_empty, drain, llama_checkpoint, prompt_of
from tests.int8_oracle import Int8Tiny
from tests.models.quantized.files import SIZES

WORK = [(1, 9), (17, 12), (5, 1), (33, 8), (16, 14), (2, 2), (40, 10)]
GRAPHS = {"attention": "fused", "cuda_graphs": True}
DRAFTS = {"num_speculative_tokens": 3, "adaptive": False}

# By name: options, and which of asynchronous scheduling, replays and drafts must have taken place.
ENGINES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "contiguous": ({"kv_cache": "contiguous", "max_model_len": 96}, {"ahead"}),
    "gather": ({"attention": "gather"}, {"ahead"}),
    "fused": ({"attention": "fused"}, {"ahead"}),
    "graphs": (GRAPHS, {"ahead", "replays"}),
    "graphs, one step at a time": ({**GRAPHS, "async_scheduling": False}, {"replays"}),
    "graphs, chunks": ({**GRAPHS, "max_num_batched_tokens": 7}, {"ahead", "replays"}),
    "graphs, few blocks": ({**GRAPHS, "num_blocks": 6}, {"ahead", "replays"}),
    "ngram": (
        {"attention": "fused", "speculative_config": {"method": "ngram", **DRAFTS}},
        {"drafts"},
    ),
    "ngram, graphs": ({**GRAPHS, "speculative_config": {"method": "ngram", **DRAFTS}}, {"drafts"}),
    "early exit, graphs": (
        {
            **GRAPHS,
            "speculative_config": {"method": "early_exit", "draft_layers": 1, **DRAFTS},
        },
        {"drafts"},
    ),
}


def greedy(max_tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(
        **{"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **more}
    )


def on_cuda(tiny: Tiny, **options: Any) -> Any:
    defaults = {"device": "cuda", "dtype": "float32", "linear": "plain", "max_num_seqs": 4}
    if "num_blocks" not in options and options.get("kv_cache", "paged") == "paged":
        defaults |= {"num_blocks": 65, "max_model_len": 96}
    return tiny.engine(**{**defaults, **options})


def check_tokens(tiny: Tiny, options: dict[str, Any], happened: set[str]) -> None:
    """The oracle's tokens for requests of many lengths, and that what was asked for took place."""
    engine = on_cuda(tiny, **options)
    requests = {
        engine.add_request(prompt_of(length, seed), greedy(n)): (length, seed, n)
        for seed, (length, n) in enumerate(WORK)
    }
    done = drain(engine)
    for request_id, (length, seed, n) in requests.items():
        assert done[request_id].token_ids == tiny.greedy(prompt_of(length, seed), n)
    assert engine.async_scheduling == ("ahead" in happened)
    if "replays" in happened:
        assert engine.runner.num_replayed > 0
    assert (engine.stats()["draft_tokens"] > 0) == ("drafts" in happened)
    assert engine.stats()["tokens_discarded"] == 0
    check_empty(engine)


def check_stop_token(tiny: Tiny, options: dict[str, Any]) -> None:
    """A request that a stop token ends has one superfluous row in the step launched behind it."""
    engine = on_cuda(tiny, **options)
    prompt = prompt_of(7, 3)
    stop = tiny.greedy(prompt, 5)[-1]
    expected = tiny.answer(prompt, 12, (stop,))
    (output,) = engine.generate([prompt], greedy(12, stop_token_ids=[stop]))
    assert output.token_ids == expected and output.finish_reason == "stop"
    assert engine.stats()["tokens_discarded"] == 1
    check_empty(engine)


def check_draft_model(tiny: Tiny) -> None:
    """A draft model that is the model itself: nearly every draft is accepted."""
    config = {"method": "draft_model", "model": str(tiny.folder), **DRAFTS}
    engine = on_cuda(tiny, attention="fused", speculative_config=config)
    prompts = [prompt_of(n, n) for n in (3, 20)]
    outputs = engine.generate(prompts, greedy(12))
    assert [o.token_ids for o in outputs] == [tiny.greedy(p, 12) for p in prompts]
    stats = engine.stats()
    assert stats["accepted_tokens"] > 0.8 * stats["draft_tokens"] > 0
    check_empty(engine)


def check_windows(folder: Path, options: dict[str, Any]) -> None:
    """A model whose layers see a window of the tokens before them, with answers longer than it."""
    hf_variant("mistral", seed=1).save_pretrained(folder)
    tiny = Tiny(folder)
    engine = on_cuda(tiny, **options)
    prompts = [prompt_of(n, 1) for n in (1, 5, 23, 40)]
    for _ in range(2):  # the second time with cached prefixes, where the engine keeps them
        outputs = engine.generate(prompts, greedy(20))
        for prompt, output in zip(prompts, outputs):
            assert output.token_ids == tiny.greedy(prompt, 20)
    check_empty(engine)


def check_int8_cache(folder: Path) -> None:
    """K and V in 8 bits: the tokens of the loop without a cache that rounds them alike, as far as they are clear."""
    tiny = Int8Tiny(llama_checkpoint(folder, seed=1))
    engine = on_cuda(tiny, attention="gather", max_num_seqs=2)
    for seed in range(4):
        prompt = prompt_of(9 + 7 * seed, seed)
        clear = tiny.clear(prompt, 10)
        if clear:
            (output,) = engine.generate([prompt], greedy(clear))
            assert output.token_ids == tiny.greedy(prompt, clear)
    assert engine.stats()["steps"] > 0
    check_empty(engine)


def bytes_tiny(folder: Path) -> Tiny:
    """A model whose tokens are three special ones and the 256 bytes."""
    names = ["<unk>", "<s>", "</s>", *byte_level_alphabet()]
    backend = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    llama_checkpoint(folder, seed=1, vocab_size=len(names) + 5)  # padded, as real ones are
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return Tiny(folder)


def check_structured(folder: Path, options: dict[str, Any]) -> None:
    """Masked tokens, those of requests without a mask beside them, and sampled ones: as on the CPU."""
    tiny = bytes_tiny(folder)
    prompts = [prompt_of(4 + i, i) for i in range(4)]
    forms = [{"regex": "(ab|ba|c)+d"}, None, {"choice": ["bad", "abba"]}, {"regex": "[a-f]{3,6}"}]
    params = [
        SamplingParams(
            max_tokens=10, temperature=t, seed=7, structured_outputs=form, ignore_eos=form is None
        )
        for form, t in zip(forms, (0, 0, 0, 0.8))
    ]
    ours = on_cuda(tiny, **options).generate(prompts, params)
    expected = tiny.engine(linear="plain").generate(prompts, params)
    assert [o.token_ids for o in ours] == [o.token_ids for o in expected]
    assert ours[2].text in ("bad", "abba")


def check_quantized(folder: Path, quantization: str, options: dict[str, Any]) -> None:
    """Weights in 8 or 4 bits: the CPU engine's tokens."""
    tiny = Tiny(llama_checkpoint(folder, seed=1, **SIZES))
    prompts = [prompt_of(n, n) for n in (3, 20)]
    ours = on_cuda(tiny, quantization=quantization, linear="auto", **options)
    tokens = [o.token_ids for o in ours.generate(prompts, greedy(8))]
    cpu = tiny.engine(quantization=quantization)
    assert tokens == [o.token_ids for o in cpu.generate(prompts, greedy(8))]
    check_empty(ours)

"""Tiny random checkpoints, and the oracle: the slowest, simplest loop that can tell what an engine must answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.attention.full import FullAttention
from lib.cache.block_manager import NULL_BLOCK
from lib.core.batch import Batch
from lib.engine.llm import LLM
from lib.models.checkpoint import load_model

VOCAB = 61
POSITIONS = 512


def spread(model: nn.Module, seed: int) -> nn.Module:
    """Random weights that make logits of size ~10: with the usual 0.02 all of them are tiny and every test passes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p.copy_(0.3 * noise if name.endswith("bias") else 1 + 0.2 * noise)
            elif any(part in name for part in ("wte", "wpe", "embed", "lm_head")):
                p.copy_(noise)
            else:
                fan_in = (
                    p.shape[0] if ".c_" in name else p.shape[1]
                )  # GPT-2's Conv1D keeps [in, out]
                p.copy_(1.5 * noise / fan_in**0.5)
    return model.eval()


def hf_llama(seed: int = 0, **changes: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = dict(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )
    return spread(LlamaForCausalLM(LlamaConfig(**{**config, **changes})), seed)


def hf_gpt2(seed: int = 0, **changes: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = dict(
        vocab_size=VOCAB,
        n_embd=48,
        n_layer=2,
        n_head=3,
        n_positions=POSITIONS,
        bos_token_id=2,
        eos_token_id=2,
    )
    return spread(GPT2LMHeadModel(GPT2Config(**{**config, **changes})), seed)


def llama_checkpoint(folder: Path, seed: int = 0, **changes: Any) -> Path:
    hf_llama(seed, **changes).save_pretrained(folder)
    return folder


def gpt2_checkpoint(folder: Path, seed: int = 0, **changes: Any) -> Path:
    hf_gpt2(seed, **changes).save_pretrained(folder)
    return folder


def prompt_of(length: int, seed: int, vocab: int = VOCAB) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(3, vocab, (length,), generator=generator).tolist()


class Tiny:
    """A checkpoint folder and the truth about it."""

    MARGIN = 1e-4  # between the best and the second best logit, where fp32 rounding must not decide

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = load_model(folder).model
        self._known: dict[tuple[int, ...], list[int]] = {}

    def engine(self, **options: Any) -> LLM:
        """An LLM on this checkpoint: small by default, on the CPU, in float32."""
        defaults: dict[str, Any] = {"device": "cpu", "max_num_seqs": 8}
        if options.get("kv_cache") == "contiguous":
            defaults["max_model_len"] = 96
        elif options.get("kv_cache", "paged") == "paged":
            defaults["attention"] = "gather"
            if "kv_cache_memory_bytes" not in options:
                defaults["num_blocks"] = 65
        return LLM(self.folder, **{**defaults, **options})

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> torch.Tensor:
        """[V] logits after `tokens`: one sequence, nothing cached."""
        return self.model(Batch.of_prompts([tokens]), FullAttention())[0]

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        """What argmax decoding gives: run the whole sequence through the model, take the best token, repeat."""
        answer = self._known.setdefault(tuple(prompt), [])
        while len(answer) < num_tokens:
            best = self.logits([*prompt, *answer]).topk(2)
            margin = (best.values[0] - best.values[1]).item()
            assert margin > self.MARGIN, (
                f"a tie ({margin:.1e}) after {len(answer)} tokens: choose another prompt seed"
            )
            answer.append(best.indices[0].item())
        return answer[:num_tokens]

    def answer(
        self, prompt: list[int], max_tokens: int, stop_ids: tuple[int, ...] = ()
    ) -> list[int]:
        """Greedy tokens up to and including the first of `stop_ids`."""
        for length in range(1, max_tokens + 1):
            tokens = self.greedy(prompt, length)
            if tokens[-1] in stop_ids:
                return tokens
        return self.greedy(prompt, max_tokens)


def held_blocks(llm: LLM) -> list[int]:
    """Block ids that unfinished requests hold, over all of them."""
    unfinished = [*llm.scheduler.running, *llm.scheduler.waiting]
    blocks = [block for request in unfinished for block in request.block_ids]
    window = getattr(llm.manager, "window", None)  # what lies behind it is the null block
    return [block for block in blocks if block != NULL_BLOCK or window is None]


def check_books(llm: LLM) -> None:
    """The engine's and the cache's books balance, blocks are shared by the prefix cache alone, and the caps are kept."""
    llm.check_integrity()
    manager, scheduler = llm.manager, llm.scheduler
    held = held_blocks(llm)
    if not llm.options.enable_prefix_caching:
        assert len(set(held)) == len(held), f"a block has two owners: {sorted(held)}"
    unused = manager.num_free_blocks + manager.num_cached_blocks
    assert unused + len(set(held)) == manager.num_blocks
    assert len(scheduler.running) <= scheduler.max_num_seqs
    if manager.retains:
        for request in scheduler.running:
            assert request.num_computed_tokens <= len(request.block_ids) * manager.block_size


def check_empty(llm: LLM) -> None:
    """Nothing queued, nothing held, nothing to hand out."""
    assert not llm.has_unfinished()
    assert not llm.scheduler.running and not llm.scheduler.waiting
    unused = llm.manager.num_free_blocks + llm.manager.num_cached_blocks
    assert unused == llm.manager.num_blocks
    check_books(llm)


def drain(llm: LLM, max_steps: int = 2000) -> dict[str, Any]:
    """Step until nothing is left, checking the books; the finished outputs by request id."""
    done: dict[str, Any] = {}
    for _ in range(max_steps):
        if not llm.has_unfinished():
            return done
        for output in llm.step():
            if output.finished:
                done[output.request_id] = output
        check_books(llm)
    raise AssertionError(f"still unfinished after {max_steps} steps: {llm.stats()}")

"""The same work done by transformers, in the same run: static `generate` and continuous `generate_batch`.

Introduced in chapter 1.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lib.bench.measure.timing import measure
from lib.bench.peers.support import (
    Limits,
    Prompts,
    as_limits,
    as_result,
    attempt,
    load_peer,
    plain_greedy,
)

__all__ = ["attempt", "hf_generate", "hf_generate_batch", "load_peer"]

_MOST_BATCH_TOKENS = 8192  # what transformers itself takes where nothing is asked for


def hf_generate(
    model: Any,
    prompts: Prompts,
    max_new_tokens: Limits,
    *,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str = "float32",
    cache: str = "dynamic",
    use_cache: bool = True,
    ignore_eos: bool = True,
    warmup: int = 1,
    repeats: int = 3,
) -> dict[str, Any]:
    """Greedy `model.generate` over static batches of `batch_size` prompts in order (default: one batch of all).

    model: a transformers model, or a checkpoint folder or hub id, which is loaded to `device` in `dtype`. prompts:
    token ids, left-padded within a batch. max_new_tokens: one number, or one per prompt: a static batch then runs to
    the longest of its members, but only the tokens asked for count and are returned. With `ignore_eos`, every prompt
    gets its exact number of tokens. cache: "dynamic", or "static": preallocated, and on CUDA transformers compiles the
    decode step over it and records it as CUDA graphs, in the first call with a new shape: give it a warm-up.

    Returns {seconds (median), timing, tokens, tokens_per_second, steps, slot_steps, token_ids, api, versions}:
    steps counts decoding steps, slot_steps those times the batch; slot_steps - tokens is what waiting wasted.
    """
    if cache not in ("dynamic", "static"):
        raise ValueError(f"cache={cache!r}: must be 'dynamic' or 'static'")
    limits = as_limits(prompts, max_new_tokens)
    size = len(prompts) if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    model = load_peer(model, device, dtype)
    batches = [range(i, min(i + size, len(prompts))) for i in range(0, len(prompts), size)]
    static = use_cache and cache == "static"
    options: dict[str, Any] = {"do_sample": False, "use_cache": use_cache}
    if static:
        options["cache_implementation"] = "static"
        # transformers makes a cache as long as the longest so far. All batches start at that: one shape to compile.
        model._previous_max_cache_length = max(
            getattr(model, "_previous_max_cache_length", -1),
            *(
                max(len(prompts[i]) for i in batch) + max(limits[i] for i in batch)
                for batch in batches
            ),
        )
    rows: dict[int, list[int]] = {}
    steps: dict[int, int] = {}

    def run() -> None:
        for batch in batches:
            ids, mask = _left_pad([prompts[i] for i in batch], model.device)
            longest = max(limits[i] for i in batch)
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=longest, **options
            )
            new = out[:, ids.shape[1] :].tolist()
            steps[batch[0]] = len(new[0])
            rows.update(zip(batch, new))

    # What is compiled updates the cache in place, and tensors of inference mode are not made for that everywhere.
    without_gradients = torch.no_grad() if static else torch.inference_mode()
    with plain_greedy(model, ignore_eos) as eos, without_gradients:
        timing = measure(run, warmup=warmup, repeats=repeats, device=model.device)
    token_ids = [_cut(rows[i][: limits[i]], eos) for i in range(len(prompts))]
    api = f"generate, {cache} cache" if use_cache else "generate, no cache"
    slot_steps = sum(steps[batch[0]] * len(batch) for batch in batches)
    return as_result(timing, token_ids, api, steps=sum(steps.values()), slot_steps=slot_steps)


def hf_generate_batch(
    model: Any,
    prompts: Prompts,
    max_new_tokens: Limits,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str = "float32",
    ignore_eos: bool = True,
    warmup: int = 1,
    repeats: int = 3,
    **config: Any,
) -> dict[str, Any]:
    """Greedy continuous batching by transformers, arguments and result as `hf_generate`.

    The requests go to the manager that `model.generate_batch` is built on, because that method has one limit for all
    prompts and starts and stops the manager at each call, which costs more than a short batch itself. Here it is
    started and warmed once, as in a server, and the time is from the first request handed over to the last one done.
    Its cache holds every request at once, so that it never has to preempt, and shares no prefixes, which repeats of the
    same prompts would otherwise find computed. A step may hold all prompts, up to `_MOST_BATCH_TOKENS` tokens.
    `config` goes to `ContinuousBatchingConfig`, `page_size` under the name that the installed version has for it. Raises RuntimeError where transformers loses or fails a request.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    limits = as_limits(prompts, max_new_tokens)
    model = load_peer(model, device, dtype)
    fields = ContinuousBatchingConfig.__dataclass_fields__
    page_name = "page_size" if "page_size" in fields else "block_size"  # 5.17 has the older name
    longest = max(len(prompt) + limit for prompt, limit in zip(prompts, limits))
    # transformers' own 256 tokens would keep 200 of them empty in each of 512 short requests.
    fitting = min(256, max(16, 1 << (longest - 1).bit_length()))
    page = config[page_name] = config.pop("page_size", config.pop("block_size", fitting))
    config.setdefault("allow_block_sharing", False)
    config.setdefault(
        "num_blocks",
        sum(math.ceil((len(prompt) + limit) / page) + 1 for prompt, limit in zip(prompts, limits)),
    )
    # Left alone, 5.17 fills the GPU's free memory with a mask for as many tokens as it could hold.
    tokens = max(len(prompts), sum(map(len, prompts)))
    config.setdefault("max_batch_tokens", max(256, min(tokens, _MOST_BATCH_TOKENS)))
    outputs: list[list[int]] = []
    # Its thread updates tensors that this one makes: under inference_mode that would be refused.
    with (
        plain_greedy(model, ignore_eos) as eos, _quiet(), _same_attention(model, config, fields),
        torch.inference_mode(False), torch.no_grad(),
    ):  # fmt: skip
        plan = GenerationConfig(
            max_new_tokens=max(limits), do_sample=False, eos_token_id=list(eos) or -1
        )
        with model.continuous_batching_context_manager(
            generation_config=plan,
            continuous_batching_config=ContinuousBatchingConfig(**config),
            block=True,
            timeout=10,
        ) as manager:
            timing = measure(
                lambda: outputs.__setitem__(slice(None), _requests(manager, prompts, limits, list(eos) or -1)),
                warmup=warmup, repeats=repeats, device=model.device,
            )  # fmt: skip
    return as_result(timing, outputs, "continuous batching (generate_batch)")


def _requests(
    manager: Any, prompts: Prompts, limits: Sequence[int], eos: list[int] | int
) -> list[list[int]]:
    """Hands all requests to the manager and waits for all of them; returns their tokens in order."""
    names = [
        manager.add_request(list(prompt), max_new_tokens=limit, eos_token_id=eos)
        for prompt, limit in zip(prompts, limits)
    ]
    done: dict[str, list[int]] = {}
    while len(done) < len(names):
        answer = manager.get_result(timeout=1)
        if answer is None:
            if not manager.is_running():
                raise RuntimeError(
                    f"transformers' manager stopped with {len(done)} of {len(names)} requests done"
                )
        elif answer.error:
            raise RuntimeError(f"transformers failed request {answer.request_id}: {answer.error}")
        elif answer.is_finished():
            done[answer.request_id] = list(answer.generated_tokens)
    return [done[name] for name in names]


@contextmanager
def _same_attention(model: Any, config: dict[str, Any], fields: Any) -> Iterator[None]:
    """Keeps a float32 model on the attention it has. Continuous batching would change to FlashAttention where that is
    installed, or can be had from the hub, and FlashAttention knows no float32."""
    if model.dtype != torch.float32:
        yield
    elif "auto_switch_to_flash" in fields:
        config.setdefault("auto_switch_to_flash", False)
        yield
    else:  # before 5.20 or so, the name of the attention says it
        before = model.config._attn_implementation
        model.set_attn_implementation("paged|" + before.removeprefix("paged|"))
        try:
            yield
        finally:
            model.set_attn_implementation(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings of the continuous batching logger stay out of a page; its errors do not."""
    logger = logging.getLogger("ContinuousBatchingLogger")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _left_pad(prompts: Prompts, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _cut(tokens: list[int], eos: tuple[int, ...]) -> list[int]:
    """Tokens up to and with the first EOS: what follows it in a static batch is padding."""
    end = next((i + 1 for i, token in enumerate(tokens) if token in eos), len(tokens))
    return tokens[:end]

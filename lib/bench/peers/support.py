"""What `hf_generate` and `hf_generate_batch` share: the model, its settings, the limits, and the form of a result.

Introduced in chapter 1.
"""

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lib.bench.measure.timing import Timing

Prompts = Sequence[Sequence[int]]
Limits = int | Sequence[int]


def attempt(name: str, run: Callable[[], Any]) -> Any:
    """`run()`; where it raises, prints one line with the reason and returns None, so that the chapter goes on without
    this baseline."""
    try:
        return run()
    except Exception as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), "no message"
        )
        print(f"{name} does not run here, and is left out: {type(error).__name__}: {reason[:200]}")
        return None


def load_peer(
    model: Any, device: torch.device | str | None = None, dtype: torch.dtype | str = "float32"
) -> Any:
    """A transformers model ready to generate; a model object is used as it is, wherever it is."""
    if not isinstance(model, (str, Path)):
        return model.eval()
    from transformers import AutoModelForCausalLM

    from lib.bench.measure.machine import default_device

    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=getattr(torch, str(dtype).removeprefix("torch."))
    )
    return loaded.to(device or default_device()).eval()


@contextmanager
def plain_greedy(model: Any, ignore_eos: bool) -> Iterator[tuple[int, ...]]:
    """Swaps the checkpoint's own settings (sampling, penalties, EOS) for plain greedy; yields the EOS ids that count."""
    from transformers import GenerationConfig

    saved = model.generation_config
    eos = saved.eos_token_id
    ids = (
        ()
        if ignore_eos or eos is None
        else tuple(eos)
        if isinstance(eos, (list, tuple))
        else (eos,)
    )
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=list(ids) or None)
    try:
        yield ids
    finally:
        model.generation_config = saved


def as_limits(prompts: Prompts, max_new_tokens: Limits) -> list[int]:
    """One limit per prompt. Raises ValueError for no prompts, an empty one, or limits that do not fit them."""
    limits = (
        [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    )
    if not prompts or not all(prompts):
        raise ValueError("prompts: must be one or more non-empty lists of token ids")
    if len(limits) != len(prompts) or min(limits) < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens!r}: must be one number >= 1, or one for each prompt"
        )
    return limits


def as_result(
    timing: Timing, token_ids: list[list[int]], api: str, **counts: int
) -> dict[str, Any]:
    """What every peer returns: see `lib.bench.peers.hf.hf_generate`."""
    tokens = sum(len(ids) for ids in token_ids)
    return {
        "seconds": timing.median, "timing": timing, "tokens": tokens, "tokens_per_second": timing.rate(tokens), **counts,
        "token_ids": token_ids, "api": api,
        "versions": {name: importlib.metadata.version(name) for name in ("transformers", "torch")},
    }  # fmt: skip

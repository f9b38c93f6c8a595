"""The tensors of a checkpoint folder: safetensors read and checked against what the model expects.

Introduced in chapter 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# What a checkpoint with a language-model head puts before the names of its body.
_PREFIXES = ("transformer.", "model.")


def read_tensors(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read the folder's safetensors (one file, or shards with an index) and check them against `shapes`.

    Raises FileNotFoundError without any; ValueError for two tensors of one name, and with the lists
    of what is missing, unexpected or misshapen.
    """
    tensors = read_unchecked(folder)
    _check_tied_head(tensors, shapes, folder)
    check_shapes(tensors, shapes, folder)
    return tensors


def read_unchecked(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's safetensors but constants, by name without prefixes; mapped, not read.

    Raises FileNotFoundError without any; ValueError for two tensors of one name.
    """
    tensors: dict[str, Tensor] = {}
    sources: dict[str, str] = {}  # where each name came from, for the error
    for file in _safetensors_files(folder):
        for key, tensor in _read_file(file):
            name = next((key.removeprefix(p) for p in _PREFIXES if key.startswith(p)), key)
            if _is_buffer(name):
                continue
            source = f"{key!r} in {file.name}"
            if name in tensors:
                raise ValueError(
                    f"the checkpoint in {folder} holds one tensor twice: {sources[name]} and {source}"
                )
            tensors[name], sources[name] = tensor, source
    return tensors


def check_shapes(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    """Raise ValueError with the lists of what is missing, unexpected or misshapen."""
    problems = []
    if missing := sorted(shapes.keys() - tensors.keys()):
        problems.append(f"missing: {_listing(missing)}")
    if extra := sorted(tensors.keys() - shapes.keys()):
        problems.append(f"unexpected: {_listing(extra)}")
    if misshapen := [
        f"{name} is {list(tensors[name].shape)}, should be {list(shapes[name])}"
        for name in sorted(shapes.keys() & tensors.keys())
        if tuple(tensors[name].shape) != tuple(shapes[name])
    ]:
        problems.append(f"misshapen: {_listing(misshapen)}")
    if problems:
        raise ValueError(
            f"the checkpoint in {folder} does not fit its config.json; " + "; ".join(problems)
        )


def _read_file(file: Path) -> Iterable[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():
                yield key, opened.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} cannot be read (truncated, or not safetensors): {error}"
        ) from None


def _safetensors_files(folder: Path) -> list[Path]:
    """The single file, or the shards of the index. As in transformers, an index beside a single file is ignored."""
    file = folder / "model.safetensors"
    if file.is_file():
        return [file]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise FileNotFoundError(
            f"no model.safetensors and no model.safetensors.index.json in {folder}"
        )
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} is not a safetensors index: {error!r}") from None
    files = [folder / name for name in names]
    if absent := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{index.name} in {folder} names files that are not there: {_listing(absent)}"
        )
    return files


def _is_buffer(name: str) -> bool:
    """Constants that old checkpoints carry along: GPT-2's 12 causal masks among its 160 tensors, RoPE's frequencies."""
    return name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"))


def _check_tied_head(
    tensors: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    """A tied checkpoint may repeat its embedding as lm_head: drop the copy, refuse anything else."""
    if "lm_head.weight" not in tensors or "lm_head.weight" in shapes:
        return
    embedding = tensors.get("embed_tokens.weight", tensors.get("wte.weight"))
    if embedding is None or not torch.equal(tensors["lm_head.weight"], embedding):
        raise ValueError(
            f"the checkpoint in {folder} has an lm_head.weight of its own, "
            "but its config.json says tie_word_embeddings"
        )
    del tensors["lm_head.weight"]


def _listing(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

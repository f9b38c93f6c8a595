"""`python -m lib.bench.parity FOLDER`: a port compared with transformers layer by layer, and the first that differs.

Both models compute one prompt. Of every module that `checkpoint_names` pairs with modules of transformers, inputs and
outputs are compared in the order in which they are computed. What differs first is where to look: a module's output
after an equal input is a wrong weight or a wrong module; an input after equal outputs is a wrong operation between
modules, such as rotation, mask or residual. Introduced in chapter 14.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.attention.full import FullAttention
from lib.core.batch import Batch
from lib.models.checkpoint import load_model

TOLERANCE = 1e-4  # relative to a stage's largest number, or to 1 where that is smaller


@dataclass(frozen=True)
class Stage:
    """One input or output. `error`: largest difference from transformers; `size`: transformers' largest number."""

    module: str  # the port's
    reference: (
        str  # transformers'; of several that the port computes as one, "q_proj + k_proj + v_proj"
    )
    end: str  # "input" or "output"
    error: float = 0.0
    size: float = 0.0
    skipped: str = ""  # why it was not compared, if it was not

    def differs(self, tolerance: float = TOLERANCE) -> bool:
        # Written so that NaN differs.
        return not self.error <= tolerance * max(1.0, self.size)


@torch.inference_mode()
def compare_layers(model: nn.Module, reference: nn.Module, token_ids: Sequence[int]) -> list[Stage]:
    """Stages of one prompt in the port's order of computation.

    `model`: one of lib.models, in float32. `reference`: transformers' model with a head. A stage
    whose shapes differ has an infinite error. One that could not be compared says why.
    """
    names = _stage_names(model)
    theirs = {
        part: reference.get_submodule(part if part == "lm_head" else _body(reference, part))
        for parts in names.values()
        for part in parts
    }
    ours = {name: model.get_submodule(name) for name in names}
    seen, expected = _Recorder(ours), _Recorder(theirs)
    try:
        model(Batch.of_prompts([token_ids]), FullAttention())
        reference(torch.tensor([list(token_ids)]), use_cache=False)
    finally:
        for hook in [*seen.hooks, *expected.hooks]:
            hook.remove()
    stages = []
    for (name, end), tensor in seen.tensors.items():
        parts = names[name]
        kept = [expected.tensors.get((part, end)) for part in parts]
        if any(x is None for x in kept):
            reason = "transformers does not call this module"
            stages.append(Stage(name, _shown(parts), end, skipped=reason))
            continue
        if (name, end) == ("token_embedding", "output"):
            tensor = tensor * getattr(model.config, "embedding_scale", 1)  # in their module
        # Modules of one input, such as q, k and v, have it once.
        other = kept[0] if end == "input" else torch.cat(kept, dim=-1)
        stages.append(_stage(name, parts, end, tensor, other))
    called = {name for name, _ in seen.tensors}
    reason = "the port does not call this module, it reads its weights"
    return stages + [
        Stage(name, _shown(parts), "output", skipped=reason)
        for name, parts in names.items()
        if name not in called
    ]


def first_difference(stages: Sequence[Stage], tolerance: float = TOLERANCE) -> Stage | None:
    """The first stage that differs, None if none does."""
    return next((stage for stage in stages if stage.differs(tolerance)), None)


def compare_folder(folder: str, token_ids: Sequence[int] | None = None) -> list[Stage]:
    """`compare_layers` of a checkpoint folder that this engine and transformers load, both in float32.

    The default prompt: 40 seeded tokens, or as many as the model has positions.
    """
    from transformers import AutoModelForCausalLM

    loaded = load_model(folder)
    if token_ids is None:
        length = min(40, loaded.config.max_position_embeddings)
        generator = torch.Generator().manual_seed(0)
        size = (length,)
        token_ids = torch.randint(0, loaded.config.vocab_size, size, generator=generator).tolist()
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return compare_layers(loaded.model, reference, token_ids)


def report(stages: Sequence[Stage], tolerance: float = TOLERANCE) -> str:
    """The stages up to the first difference, one line each, and what it means."""
    compared = [stage for stage in stages if not stage.skipped]
    first = first_difference(stages, tolerance)
    shown = stages if first is None else stages[: stages.index(first) + 1]
    width = max((len(stage.reference) for stage in shown), default=0)
    lines = [
        f"{stage.reference:<{width}}  {stage.end:<6}  "
        + (
            f"not compared: {stage.skipped}"
            if stage.skipped
            else f"error {stage.error:.1e}  of {stage.size:.1e}"
        )
        for stage in shown
    ]
    if not compared:
        return "\n".join([*lines, "no stage was compared"])
    if first is None:
        skipped = len(stages) - len(compared)
        last = f"all {len(compared)} stages agree within {tolerance:g}"
        return "\n".join([*lines, last + (f", {skipped} were not compared" if skipped else "")])
    where = (
        "its weights or the module itself"
        if first.end == "output"
        else "what is computed between the stage above and this one"
    )
    return "\n".join(
        [*lines, f"first difference: {first.end} of {first.reference}", f"look at {where}"]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exits with 1 if a stage differs, or if none could be compared."""
    parser = argparse.ArgumentParser(prog="python -m lib.bench.parity", description=__doc__)
    parser.add_argument("folder", help="a checkpoint folder: config.json and *.safetensors")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    options = parser.parse_args(arguments)
    stages = compare_folder(options.folder)
    print(report(stages, options.tolerance))
    differs = first_difference(stages, options.tolerance) is not None
    return int(differs or all(stage.skipped for stage in stages))


def _stage_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Modules of the port, and those of transformers that compute the same together.

    They are those of the checkpoint, and beside them each layer and the head. A layer's experts are
    one module in transformers, and Mixtral's have another name in its files.
    """
    names: dict[str, tuple[str, ...]] = {}
    for name, parts in model.checkpoint_names().items():
        layer, is_expert, _ = name.partition(".experts.")
        if is_expert:
            name, parts = f"{layer}.experts", (f"{parts[0].partition('.experts.')[0]}.experts",)
        names[name] = tuple(part.replace(".block_sparse_moe.", ".mlp.") for part in parts)
    names["lm_head"] = ("lm_head",)  # also where it is tied, and has no tensor of its own
    for i in range(len(model.blocks)):
        (inner,) = names[f"blocks.{i}.proj"]
        names[f"blocks.{i}"] = (inner.rsplit(".", 2)[0],)
    return names


def _shown(parts: Sequence[str]) -> str:
    return " + ".join([parts[0], *(part.rpartition(".")[2] for part in parts[1:])])


def _body(reference: nn.Module, name: str) -> str:
    return f"{reference.base_model_prefix}.{name}"


class _Recorder:
    """Keeps what goes into and comes out of each of `modules`, in order, as [tokens, features]."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.tensors: dict[tuple[str, str], Tensor] = {}
        self.hooks = []
        for name, module in modules.items():
            self.hooks.append(module.register_forward_pre_hook(self._keep(name, "input")))
            self.hooks.append(module.register_forward_hook(self._keep(name, "output")))

    def _keep(self, name: str, end: str):
        def hook(module: nn.Module, inputs, output=None) -> None:
            value = inputs if end == "input" else output
            value = value[0] if isinstance(value, tuple) else value
            if torch.is_tensor(value) and value.is_floating_point():
                self.tensors[name, end] = value.reshape(-1, value.shape[-1]).clone()

        return hook


def _stage(name: str, parts: Sequence[str], end: str, ours: Tensor, theirs: Tensor) -> Stage:
    theirs = theirs[-len(ours) :]  # the head computes the last token's logits only
    error = float("inf")
    if ours.shape == theirs.shape:
        error = (ours - theirs).abs().max().item()
    return Stage(name, _shown(parts), end, error, theirs.abs().max().item())


if __name__ == "__main__":
    raise SystemExit(main())

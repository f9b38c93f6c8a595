"""The reference model: the same weights in transformers, for checks of parity and as a baseline in benchmarks.

Introduced in chapter 1.
"""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def transformers_model(llm: Any) -> Any:
    """A transformers model with the weights, dtype and device of `llm` (an engine's LLM), in eval mode.

    From the checkpoint folder where there is one; a GPT-2 with random weights is rebuilt tensor by tensor.
    """
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, logging

    logging.disable_progress_bar()
    if llm.folder is not None:
        reference = AutoModelForCausalLM.from_pretrained(llm.folder, dtype=llm.dtype)
    else:
        config = llm.config
        reference = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.vocab_size,
                n_positions=config.max_position_embeddings,
                n_embd=config.hidden_size,
                n_layer=config.num_layers,
                n_head=config.num_heads,
                layer_norm_epsilon=config.norm_eps,
            )
        )
        body = {
            "wte.weight": llm.model.token_embedding.weight,
            "wpe.weight": llm.model.position_embedding.weight,
            "ln_f.weight": llm.model.ln_f.weight,
            "ln_f.bias": llm.model.ln_f.bias,
        }
        for i, block in enumerate(llm.model.blocks):
            for name, module in (
                ("ln_1", block.ln_1),
                ("attn.c_attn", block.qkv),
                ("attn.c_proj", block.proj),
                ("ln_2", block.ln_2),
                ("mlp.c_fc", block.fc_in),
                ("mlp.c_proj", block.fc_out),
            ):
                body[f"h.{i}.{name}.weight"] = (
                    module.weight.T if module.weight.dim() == 2 else module.weight
                )
                body[f"h.{i}.{name}.bias"] = module.bias
        reference.transformer.load_state_dict(body)
        reference = reference.to(llm.dtype)
    return reference.to(llm.device).eval()

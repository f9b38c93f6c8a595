"""One small batch before the first client: kernels are compiled and libraries loaded on first use. Introduced in chapter 5."""

from __future__ import annotations

from lib.core.sampling_params import SamplingParams
from lib.engine.llm import LLM

_TOKENS = 3
_LONG = 130


def warm_up(llm: LLM) -> None:
    """A long and short prompts, prefill and decode, each way to sample: what would else cost a first client seconds.

    The long one has more keys than a tile of any kernel, so that the keys of a sequence are split, as later in service.
    """
    longest = (
        min(llm.max_model_len, llm.manager.max_sequence_tokens, llm.options.max_num_batched_tokens)
        - _TOKENS
    )
    if longest < 1:
        return
    token = llm.config.vocab_size // 2
    prompts = [[token] * min(length, longest) for length in (_LONG, 5, 1)]
    llm.generate(
        prompts,
        [
            SamplingParams(max_tokens=_TOKENS, ignore_eos=True, **how)
            for how in (
                {"temperature": 0.0, "logprobs": 1},
                {"top_p": 0.9, "top_k": 50},
                {"repetition_penalty": 1.1},
            )
        ],
    )
    llm.reset_prefix_cache()

"""The prompts of chapters 1 and 9 for one realistic setting: a 7B model in bfloat16 on an H100, by its data sheet.

Introduced in chapter 1.
"""

from lib.bench.findings.values import quantity, times
from lib.bench.measure import counts
from lib.bench.measure.data_sheets import H100, LLAMA_7B

DTYPE = "bfloat16"
PROMPT, BLOCK = 4096, 16


def forward_rows() -> list[list[str]]:
    """(tokens, time of the bytes, of the operations, the bound) of a forward pass over a prompt without a cache."""
    read = counts.streamed_bytes(LLAMA_7B, DTYPE) / H100.bandwidth
    rows = []
    for n in (1, 64, 512, PROMPT):
        computed = counts.prefill_flops(LLAMA_7B, n) / H100.rate(DTYPE)
        rows.append(
            [f"{n:,}", quantity(read, "s"), quantity(computed, "s"), quantity(_forward(n), "s")]
        )
    return rows


def forward() -> dict[str, str]:
    """Where the two ceilings meet there, and what a token costs at least without a cache."""
    weights = counts.streamed_bytes(LLAMA_7B, DTYPE)
    return {
        "realistic_finding": (
            f"There the two ceilings meet at {H100.ridge(DTYPE):,.0f} tokens. A pass reads {quantity(weights, 'B')} of "
            f"weights, so no token can take less than {quantity(_forward(1), 's')}; after {PROMPT:,} tokens a loop without "
            f"a cache needs at least {quantity(_forward(PROMPT), 's')} for each further one."
        )
    }


def prefix_rows() -> list[list[str]]:
    """(tokens found, computed, least TTFT, times less) for a prompt of which a part is in the prefix cache."""
    whole = _first_token(0)
    return [
        [f"{found:,}", f"{PROMPT - found:,}", quantity(least, "s"), f"{whole / least:.1f}"]
        for found in (0, 1024, 2048, 3072, PROMPT - BLOCK)
        for least in [_first_token(found)]
    ]


def prefix() -> dict[str, str]:
    """How much of a long prompt's least time remains where all but its last block is found."""
    most = PROMPT - BLOCK
    whole, least = _first_token(0), _first_token(most)
    read = counts.streamed_bytes(LLAMA_7B, DTYPE) / H100.bandwidth
    return {
        "realistic_finding": (
            f"With all but the last block found, {PROMPT // BLOCK} times fewer tokens are computed, and the least time is "
            f"{times(whole / least)} shorter: it falls from {quantity(whole, 's')} to {quantity(least, 's')}. Of what remains, "
            f"{quantity(read, 's')} is the reading of the weights, which no cache of keys and values saves. The kept blocks "
            f"of one such prompt are {quantity(PROMPT * counts.kv_bytes_per_token(LLAMA_7B, DTYPE), 'B')}."
        )
    }


def _forward(num_tokens: int) -> float:
    """Least seconds of a pass over a whole prompt."""
    weights = counts.streamed_bytes(LLAMA_7B, DTYPE)
    return H100.time(weights, counts.prefill_flops(LLAMA_7B, num_tokens), DTYPE)


def _first_token(found: int) -> float:
    """Least seconds to the first token where `found` tokens of the prompt are in the cache."""
    return H100.time(
        counts.step_bytes(LLAMA_7B, DTYPE, [PROMPT]),
        counts.flops(LLAMA_7B, PROMPT - found, PROMPT),
        DTYPE,
    )

"""`python -m lib.bench.measure.gpu_bounds`: least times of GPT-2's decode step on GPUs, by data sheet and by counts.

What the first run on a GPU is compared with. A kernel's time that is below its bound was measured wrongly.
Introduced in chapter 8.
"""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from lib.bench.measure import counts
from lib.bench.measure.data_sheets import A100, H100
from lib.bench.measure.roofline import Roofline
from lib.models.checkpoint import GPT2_CONFIG

# NVIDIA's data sheets: bytes per second, and FLOP/s of dense products in half precision (float16 on a T4).
GPUS = {
    "T4": Roofline("cuda", bandwidth=320e9, flops={"bfloat16": 65e12}),
    "L4": Roofline("cuda", bandwidth=300e9, flops={"bfloat16": 121e12}),
    "A100": A100,
    "H100": H100,
    "H200": Roofline("cuda", bandwidth=4.8e12, flops={"bfloat16": 989e12}),
}
BATCHES = (1, 64, 512)
CONTEXT = 33  # tokens per sequence in the middle of chapter 3's sweep: 8 given, 50 generated


def bounds(config: Any = GPT2_CONFIG, context: int = CONTEXT) -> list[dict[str, Any]]:
    """One row per GPU and batch: gpu, batch, seconds of a step, tokens_per_second, and what limits it.

    Half precision. The step reads the weights once and every sequence's keys and values; limit is "bytes" or "FLOPs".
    """
    rows = []
    for gpu, sheet in GPUS.items():
        for batch in BATCHES:
            moved = counts.step_bytes(config, "bfloat16", [context] * batch)
            flops = counts.step_flops(config, [context] * batch)
            seconds = sheet.time(moved, flops, "bfloat16")
            limit = "bytes" if seconds == moved / sheet.bandwidth else "FLOPs"
            rows.append(
                {
                    "gpu": gpu,
                    "batch": batch,
                    "seconds": seconds,
                    "tokens_per_second": batch / seconds,
                    "limit": limit,
                }
            )
    return rows


def main() -> None:
    table = [
        [r["gpu"], r["batch"], f"{1e6 * r['seconds']:,.0f}", f"{r['tokens_per_second']:,.0f}", r["limit"]]
        for r in bounds()
    ]  # fmt: skip
    print(
        tabulate(table, ["GPU", "batch", "step, µs, at least", "tokens/s, at most", "limited by"])
    )


if __name__ == "__main__":
    main()

"""What the calculators start from: models by their shape, and machines by their recorded or published rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import Any

from lib.bench.measure.data_sheets import A100, H100, LLAMA_7B, MISTRAL_7B
from lib.bench.records.files import read_records
from lib.models.checkpoint import GPT2_CONFIG
from lib.models.config import ModelConfig

# The shape of SmolLM2-135M, as its file has it; a test compares the two.
SMOLLM2 = ModelConfig(
    architecture="llama",
    vocab_size=49152,
    hidden_size=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    intermediate_size=1536,
    max_position_embeddings=8192,
)
MODELS = {
    "SmolLM2 135M": SMOLLM2,
    "GPT-2 124M": GPT2_CONFIG,
    "Llama 2 7B": LLAMA_7B,
    "Mistral 7B": MISTRAL_7B,
}
_SHAPE = (
    "architecture vocab_size hidden_size num_layers num_heads num_kv_heads head_dim intermediate_size "
    "max_position_embeddings attention_bias mlp_bias tie_word_embeddings"
).split()


def models() -> dict[str, dict[str, Any]]:
    """Each model's shape, by the fields of ModelConfig that the counts need."""
    return {
        name: {key: value for key, value in asdict(config).items() if key in _SHAPE}
        for name, config in MODELS.items()
    }


def machines() -> list[dict[str, Any]]:
    """name, bandwidth (B/s) and flops {dtype: FLOP/s}: recorded machines first, then two data sheets."""
    known = [(f"{run.label}, measured", run.roofline) for run in read_records("01") if run.roofline]
    known += [("A100 80GB PCIe, data sheet", A100), ("H100 SXM, data sheet", H100)]
    return [
        {
            "name": name,
            "bandwidth": roofline.bandwidth,
            "flops": {k: v for k, v in roofline.flops.items() if k in ("float32", "bfloat16")},
        }
        for name, roofline in known
    ]


def step_lines() -> list[dict[str, Any]]:
    """Chapter 6: seconds of a step of n sequences as shared + each · n, of each recorded server."""
    return [
        {"name": f"{server}, {run.label}", "shared": shared, "each": each}
        for run in read_records("06")
        if (series := run["step_line"]) is not None
        for server, shared, each in zip(series["server"], series["shared"], series["each"])
    ]


def token_curves() -> list[dict[str, Any]]:
    """Chapter 3: seconds of a step by the tokens that it computes, medians of each recorded run."""
    curves = []
    for run in read_records("03"):
        series = run["budget_steps"]
        if series is None:
            continue
        seconds: dict[int, list[float]] = {}
        for size in ("large", "small"):
            for tokens, gap in zip(series[f"tokens_{size}"], series[f"gap_{size}"]):
                if gap is not None:
                    seconds.setdefault(tokens, []).append(gap / 1e3)
        rows = sorted(seconds)
        curves.append(
            {"name": run.label, "rows": rows, "seconds": [median(seconds[n]) for n in rows]}
        )
    return curves


def speculation() -> dict[str, Any]:
    """Chapter 10: acceptance of the first draft by kind of text, and seconds of a step by its rows, of each recorded run."""
    texts = [
        {"name": f"{text}, {run.label}", "alpha": series[text][0]}
        for run in read_records("10")
        if (series := run["acceptance_by_position"]) is not None
        for text in series.columns
        if text != "position" and series[text][0] is not None
    ]
    curves = [
        {"name": run.label, "rows": list(series["rows"]), "seconds": list(series["step"])}
        for run in read_records("10")
        if (series := run["step_by_rows"]) is not None
    ]
    return {"texts": texts, "curves": curves}


PRESETS: dict[str, Callable[[], dict[str, Any]]] = {
    "roofline": lambda: {"models": models(), "machines": machines()},
    "memory": lambda: {"models": models()},
    "batching": dict,
    "budget": lambda: {"curves": token_curves()},
    "queue": lambda: {"lines": step_lines()},
    "prefix": dict,
    "speculation": speculation,
}

"""The published memory tables, counted again: what is in them, and what they would be without two of their choices.

Runs from `book/measurements/reference/` alone; the appendix on the published memory and chapter 4 take their numbers
from `audit`. A count that stops being equal to the published figure is a ValueError, never a rounded agreement.

Introduced in chapter 4.
"""

from dataclasses import dataclass
from typing import Any

import torch

from lib.bench.measure import counts
from lib.bench.paths import measurements_dir
from lib.bench.records.files import reference
from lib.cache.kv_cache import kv_cache_bytes
from lib.models.checkpoint import GPT2_CONFIG

MIB = 2**20
BASE, SLOPE = 534.8, 108  # MiB: the published contiguous line
BLOCK, TOKENS = 16, 50  # tokens of a block, and of each published sequence
LOGIT_ROWS = 11  # rows of logits per sequence that the published prefill keeps: fitted
GPU_MIB = 80 * 1024
PER_TOKEN = kv_cache_bytes(GPT2_CONFIG, 1, torch.float32)
SLOT = 1024 * PER_TOKEN / MIB  # MiB of a contiguous slot


def sweeps() -> Any:
    """The published sweeps of the paged cache."""
    return reference(measurements_dir() / "reference" / "paged_sweeps.json")


def blocks_for(num_tokens: int, block_size: int = BLOCK) -> int:
    """Blocks that hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


def peak_of_reset(k: float, v: float) -> float:
    """Most bytes alive while `self.k = zeros(...); self.v = zeros(...)` replaces an older pair of these sizes."""
    return max(k + v + k, k + v + v)  # the new tensor is complete before the old one goes


@dataclass(frozen=True)
class Audit:
    """The counted parts of the published tables, in MiB unless the name says otherwise."""

    weights: float
    masks: float
    pool: float
    row: float  # one row of logits
    batch: list[int]
    paged: list[float]
    rests: list[float]  # of the paged column, not derived
    per_sequence: float  # 50 tokens in blocks
    ratio: list[float]  # contiguous over paged at batch 256: of each case
    crossing: list[int]  # first batch at which paged is smaller: of each case

    @property
    def base_rest(self) -> float:
        """What is in the base beside weights and masks."""
        return BASE - self.weights - self.masks

    @property
    def columns(self) -> dict[str, list]:
        """For chapter 4's record: case, ratio, crossing."""
        return {"case": list(CASES), "ratio": self.ratio, "crossing": self.crossing}


CASES = (
    "as published",
    "contiguous without the reset's extra keys",
    "the same, and a pool of just the blocks in use",
    "keys and values alone",
)


def audit() -> Audit:
    """Counts every published entry again. Raises ValueError where a count and an entry differ."""
    tables, by_batch = sweeps(), sweeps()["by_batch"]
    _check_contiguous_line(tables)
    weights = counts.weight_bytes(GPT2_CONFIG, "float32") / MIB
    pool = by_batch["num_blocks"] * by_batch["block_size"] * PER_TOKEN / MIB
    row = GPT2_CONFIG.vocab_size * 4 / MIB
    grown = list(zip(by_batch["batch"], by_batch["paged_mb"]))
    rests = [paged - BASE - pool - LOGIT_ROWS * n * row for n, paged in grown]
    per_sequence = blocks_for(TOKENS) * BLOCK * PER_TOKEN / MIB
    contiguous = dict(zip(by_batch["batch"], by_batch["contiguous_mb"]))[256]
    paged = dict(grown)[256]
    standing = BASE + SLOT * 256
    ratio = [
        contiguous / paged,
        standing / paged,
        standing / (paged - pool + 256 * per_sequence),
        SLOT / per_sequence,
    ]
    rest = sum(rests) / len(rests)
    crossing = [*(_crossing(slope, pool, row, rest) for slope in (SLOPE, SLOT)), 1, 1]
    if per_sequence + row * LOGIT_ROWS + max(rests) >= SLOT:
        raise ValueError("a fitting pool is not smaller than one slot at batch 1")
    return Audit(
        weights, 12 * 1024 * 1024 * 4 / MIB, pool, row, list(by_batch["batch"]), list(by_batch["paged_mb"]), rests,
        per_sequence, ratio, crossing,
    )  # fmt: skip


def _check_contiguous_line(tables: Any) -> None:
    published = reference()
    if peak_of_reset(SLOT / 2, SLOT / 2) != SLOPE:
        raise ValueError(f"the peak of a reset is not {SLOPE} MiB per slot")
    for series, column in (
        (published["paged_vs_contiguous_by_batch"], "contiguous_mb"),
        (published["batch_sweep"], "peak_mb"),
        (tables["by_batch"], "contiguous_mb"),
        (tables["stress"], "contiguous_mb"),
    ):
        for n, megabytes in zip(series["batch"], series[column]):
            if megabytes is not None and round(BASE + SLOPE * n, 1) != megabytes:
                raise ValueError(f"{column} at batch {n}: {megabytes} is not on the line")


def _crossing(slope: float, pool: float, row: float, rest: float) -> int:
    """First batch at which `slope` MiB per sequence is more than the published paged run."""
    return next(n for n in range(1, 999) if slope * n > pool + LOGIT_ROWS * n * row + rest)


def fragmentation() -> list[list[Any]]:
    """Rows of (block size, blocks, slots reserved, empty, % empty) for the published sequences.

    Raises ValueError where a percentage differs from the published one.
    """
    published = reference()["fragmentation"]
    tokens, rows = published["tokens_per_sequence"], []
    for block_size, percent in zip(published["block_size"], published["frag_pct"]):
        blocks = blocks_for(tokens, block_size)
        empty = blocks * block_size - tokens
        if round(100 * empty / (blocks * block_size), 1) != percent:
            raise ValueError(f"blocks of {block_size}: {percent} % is not what is empty")
        rows.append([block_size, blocks, blocks * block_size, empty, percent])
    return rows


def stress() -> dict[str, float]:
    """The published stress run: GiB and blocks that its cases need. Raises ValueError where a count contradicts it."""
    run = sweeps()["stress"]
    fits = [run["num_blocks"] >= n * blocks_for(TOKENS) for n in run["batch"]]
    if fits != [mb is not None for mb in run["paged_mb"]]:
        raise ValueError("the pool's blocks do not say where the paged run failed")
    if not BASE + SLOPE * 512 < GPU_MIB < BASE + SLOPE * 1024:
        raise ValueError("the reset's peak does not say where the contiguous run failed")
    return {
        "blocks": run["num_blocks"],
        "with_reset": (BASE + SLOPE * 1024) / 1024,
        "standing": (BASE + SLOT * 1024) / 1024,
        "equal_slots": run["num_blocks"] * BLOCK // 1024,
        "served": run["num_blocks"] // blocks_for(TOKENS),
    }

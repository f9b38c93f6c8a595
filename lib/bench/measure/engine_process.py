"""An engine in a process of its own, with its own number of threads. Introduced in chapter 13.

`python -m lib.bench.measure.engine_process FD` is the child; it speaks pickled tuples over an inherited socket. A fresh
interpreter and not `multiprocessing.Process`, which would import the caller's script again, and run a chapter twice.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from lib.bench.paths import repository

if TYPE_CHECKING:
    from lib.engine.llm import LLM


class EngineStep(NamedTuple):
    """One step of an engine. Times in seconds of time.monotonic.

    sequences: those that decode, one token each. prompt_tokens: computed for all prompts of the step together.
    """

    start: float
    end: float
    sequences: int
    prompt_tokens: int

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def num_tokens(self) -> int:
        return self.sequences + self.prompt_tokens


class EngineProcess:
    """`with EngineProcess(threads=1, model="smollm2") as engine:` starts it; the arguments after `threads` are LLM's.

    `ready()` waits until the model is loaded, so that several can load at once. `add` sends a request; what `receive`
    returns are its messages: ("first", request id, cached tokens, time) with its first token, and ("done", request id,
    token ids, time) with its last. Times are those of time.monotonic, which all processes of a machine share.
    """

    def __init__(self, threads: int, **options: Any) -> None:
        if threads < 1:
            raise ValueError(f"threads must be >= 1, got {threads}")
        self.connection, child = Pipe()
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(child.fileno())],
            pass_fds=[child.fileno()],
            cwd=repository(),
            env=os.environ | dict.fromkeys(names, str(threads)),
        )
        child.close()
        self.connection.send((threads, options))

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self, timeout: float = 300.0) -> None:
        """Waits until it takes requests. Raises RuntimeError where it ended first, or takes longer than `timeout` seconds."""
        if not self.connection.poll(timeout):
            raise RuntimeError(f"the engine was not ready after {timeout:g} s")
        try:
            self.connection.recv()
        except EOFError:
            status = self.process.wait()
            raise RuntimeError(f"the engine ended with status {status} before it was ready") from None  # fmt: skip

    def add(self, request_id: int, prompt: Sequence[int], max_tokens: int) -> None:
        """Sends a greedy request for exactly `max_tokens` tokens. Raises OSError where the process has ended."""
        self.connection.send(("add", request_id, list(prompt), max_tokens))

    def reset(self) -> None:
        """Forgets the prefix cache. Call it only while nothing runs. Raises EOFError where the process has ended."""
        self.connection.send(("reset",))
        self.connection.recv()

    def steps(self) -> list[EngineStep]:
        """The steps since the last call, in order. Call it only while nothing runs.

        Raises EOFError where the process has ended.
        """
        self.connection.send(("steps",))
        return [EngineStep(*step) for step in self.connection.recv()]

    def receive(self) -> list[tuple]:
        """The messages that are there. Raises EOFError where the process has ended and all were read."""
        found = []
        while self.connection.poll():
            try:
                found.append(self.connection.recv())
            except (EOFError, ConnectionResetError):
                if found:
                    return found
                raise EOFError("the engine process has ended") from None
        return found

    def kill(self) -> None:
        """SIGKILL: it ends at once, in the middle of whatever it does."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """It ends when its socket does."""
        self.connection.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


def _serve(connection: Connection) -> None:
    """Takes requests and steps until the parent has gone."""
    import torch  # the parent of this module may be a process without PyTorch

    from lib.engine.llm import LLM

    threads, options = connection.recv()
    torch.set_num_threads(threads)
    llm = LLM(**options)
    try:
        _answer(connection, llm)
    finally:
        llm.close()  # other ranks end before this process, which reaps them: their CPU time is ours


def _answer(connection: Connection, llm: LLM) -> None:
    """Steps the engine and answers; ends with EOFError or OSError when the parent has gone."""
    from lib.core.sampling_params import SamplingParams

    params = lambda n: SamplingParams(max_tokens=n, temperature=0.0, ignore_eos=True)  # noqa: E731
    warm_up = [1] * 8
    llm.generate([warm_up], params(2))
    llm.reset_prefix_cache()
    connection.send(("ready",))
    ids: dict[str, int] = {}
    begun: set[str] = set()
    computed = llm.stats()["tokens_computed"]
    steps: list[tuple] = []  # the fields of an EngineStep: its class is another one in the parent
    while True:
        while connection.poll(0 if llm.has_unfinished() else None):
            message = connection.recv()
            if message[0] == "reset":
                llm.reset_prefix_cache()
                connection.send(("reset",))
            elif message[0] == "steps":
                connection.send(steps)
                steps = []
            else:
                _, number, prompt, max_tokens = message
                ids[llm.add_request(prompt, params(max_tokens))] = number
        start = time.monotonic()
        outputs = llm.step()
        now, before, computed = time.monotonic(), computed, llm.stats()["tokens_computed"]
        sequences = sum(output.request_id in begun for output in outputs)
        steps.append((start, now, sequences, computed - before - sequences))
        for output in outputs:
            name = output.request_id
            if name not in begun:
                begun.add(name)
                connection.send(("first", ids[name], output.num_cached_tokens, now))
            if output.finished:
                begun.discard(name)
                connection.send(("done", ids.pop(name), list(output.token_ids), now))


if __name__ == "__main__":
    try:
        _serve(Connection(int(sys.argv[1])))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The parent has gone. Nothing else here needs an orderly end, which takes seconds.
        os._exit(0)

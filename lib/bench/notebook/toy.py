"""The toy of chapters 2 to 7: two requests, three blocks of four tokens, at most four tokens per step.

    A    prompt "The cat sat"         answer "on the mat and looked"    there from the first step
    B    prompt "Once upon a time"    answer "there was a"              arrives during the first step

A word is a token, and the answers are given, so no model is needed: what runs is the real scheduler over a real cache
manager. Each chapter works the same two requests by hand and prints what its part of the engine did with them.

Introduced in chapter 2.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lib.core.batch import Batch
from lib.core.request import Request
from lib.core.sampling_params import SamplingParams

PROMPTS = {"A": "The cat sat".split(), "B": "Once upon a time".split()}
ANSWERS = {"A": "on the mat and looked".split(), "B": "there was a".split()}
ARRIVALS = {"A": 1, "B": 2}  # the first step that can take the request
BLOCK_SIZE = 4  # tokens
NUM_BLOCKS = 4  # three to hand out, and the null block
BUDGET = 4  # max_num_batched_tokens
VOCABULARY = tuple(
    dict.fromkeys(word for name in PROMPTS for word in PROMPTS[name] + ANSWERS[name])
)  # a token's id is its place


@dataclass(frozen=True)
class Step:
    """What one step did with each request, by name. A request that did nothing is left out.

    number: counted from 1. computed: (first, last) position computed. words: the tokens at these positions. stored:
    tokens in the cache after the step. block_ids: its block table during the step. streamed: the word that it got.
    waiting: names in the queue after the schedule was made. preempted: names that lost their blocks in this step.
    batch: the step's flat batch.
    """

    number: int
    batch: Batch
    computed: dict[str, tuple[int, int]]
    words: dict[str, list[str]]
    stored: dict[str, int]
    block_ids: dict[str, list[int]]
    streamed: dict[str, str]
    waiting: list[str]
    preempted: list[str]

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computed."""
        return sum(self.batch.query_lens)


def token_ids(words: Iterable[str]) -> list[int]:
    """The ids of some words of the toy. Raises ValueError for another word."""
    return [VOCABULARY.index(word) for word in words]


def text(ids: Iterable[int]) -> str:
    """The words of some token ids, in their order."""
    return " ".join(VOCABULARY[i] for i in ids)


def request(name: str) -> Request:
    """Request A or B as it arrives: its prompt, and an answer of as many tokens as it will get."""
    params = SamplingParams(max_tokens=len(ANSWERS[name]), temperature=0, ignore_eos=True)
    return Request(name, token_ids(PROMPTS[name]), params)


def play(scheduler: Any, arrivals: Mapping[str, int] = ARRIVALS) -> list[Step]:
    """Runs the requests that `arrivals` names through a scheduler until all have ended; returns its steps.

    arrivals: the first step that can take each request. The place of the model is taken by ANSWERS. Raises ValueError
    for a step that would have no request to run.
    """
    requests = {name: request(name) for name in arrivals}
    steps: list[Step] = []
    while scheduler.has_unfinished or any(at > len(steps) for at in arrivals.values()):
        for name, at in arrivals.items():
            if at == len(steps) + 1:
                scheduler.add(requests[name])
        steps.append(_step(scheduler, requests, len(steps) + 1))
    return steps


def _step(scheduler: Any, requests: Mapping[str, Request], number: int) -> Step:
    before = {name: r.metrics.num_preemptions for name, r in requests.items()}
    scheduled = scheduler.schedule()
    batch = Batch.build(scheduled, scheduler.cache.block_size)
    waiting = [r.request_id for r in scheduler.waiting]
    computed, words, streamed, block_ids = {}, {}, {}, {}
    for item in scheduled:
        r, name = item.request, item.request.request_id
        start, end = r.num_computed_tokens, r.num_computed_tokens + item.num_tokens
        computed[name] = (start, end - 1)
        words[name] = [VOCABULARY[i] for i in r.token_ids[start:end]]
        block_ids[name] = list(r.block_ids)
        if end == r.num_tokens:  # nothing is missing any more: the step gives the next token
            streamed[name] = ANSWERS[name][r.num_output_tokens]
    scheduler.update(scheduled)
    stored = {item.request.request_id: item.request.num_computed_tokens for item in scheduled}
    for name, word in streamed.items():
        requests[name].append(VOCABULARY.index(word))
    scheduler.release([requests[name] for name in streamed if requests[name].finished])
    preempted = [name for name, r in requests.items() if r.metrics.num_preemptions > before[name]]
    return Step(number, batch, computed, words, stored, block_ids, streamed, waiting, preempted)


def positions(step: Step, name: str) -> str:
    """The positions that a step computed of a request, e.g. "0–2", "3", or "–" for none."""
    if name not in step.computed:
        return "–"
    first, last = step.computed[name]
    return str(first) if first == last else f"{first}–{last}"


def token_times(steps: Iterable[Step], seconds: float) -> dict[str, list[float]]:
    """When each request got its tokens, in seconds, if every step takes `seconds` and the first begins at 0."""
    found: dict[str, list[float]] = {}
    for step in steps:
        for name in step.streamed:
            found.setdefault(name, []).append(step.number * seconds)
    return found

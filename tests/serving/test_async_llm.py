"""AsyncLLM and the service over it, in this process: what no client can see from outside, or only by luck."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine

import httpx
import pytest

from lib import LLM, SamplingParams
from lib.serving.app import create_app
from lib.serving.errors import ApiError
from lib.serving.output_collector import MAX_PENDING
from lib.serving.page_feed import MAX_WATCHERS, Feed
from lib.serving.server_options import ServerOptions
from lib.serving.service import Service
from tests.serving_failing import DIE, FAIL_ALWAYS, NOT_FINITE, STALL, FailingLLM
from tests.serving_support import CONTEXT

pytest_plugins = ["tests.serving_fixtures"]

PARAMS = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=2000, temperature=0, ignore_eos=True)


@pytest.fixture
def make_llm(checkpoint) -> Callable[[], FailingLLM]:
    return lambda: FailingLLM(model=checkpoint, device="cpu", attention="gather")


@contextlib.asynccontextmanager
async def running(make_llm: Callable[[], LLM]) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    service = Service(ServerOptions(served_model_name="tiny"), make_llm)
    service.async_llm.start()
    transport = httpx.ASGITransport(create_app(service))
    try:
        await asyncio.wait_for(service.async_llm.ready.wait(), 120)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            yield service, client
    finally:
        service.close()
        await asyncio.to_thread(service.async_llm.stop, 10)


def run(work: Coroutine) -> None:
    """Run a test. An exception in a callback of the loop fails it too."""

    async def strict() -> None:
        problems = []
        asyncio.get_running_loop().set_exception_handler(lambda _, about: problems.append(about))
        await asyncio.wait_for(work, 120)
        assert not problems

    asyncio.run(strict())


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_generate_yields_the_engines_tokens(make_llm) -> None:
    prompts = [[10, 11, 12], [20], [30, 31]]
    expected = [output.token_ids for output in make_llm().generate(prompts, PARAMS)]

    async def work() -> None:
        async with running(make_llm) as (service, _):
            engine = service.async_llm
            call = engine.open("a", 3, None, stream=True)
            tokens: list[list[int]] = [[], [], []]
            async for updates in engine.generate(prompts, PARAMS, call):
                for update in updates:
                    tokens[update.position] += [i for c in update.chunks for i in c.token_ids]
            assert tokens == expected == [call.outputs[i].token_ids for i in range(3)]
            assert engine.in_flight == 0

    run(work())


def test_leaving_generate_aborts_and_gives_the_room_back(make_llm) -> None:
    async def work() -> None:
        async with running(make_llm) as (service, _):
            engine = service.async_llm
            call = engine.open("a", 2, None, stream=True)
            updates = engine.generate([[10], [11]], LONG, call)
            await anext(updates)
            assert engine.in_flight == 2
            await updates.aclose()
            await eventually(lambda: engine.in_flight == 0 and engine.stats["running"] == 0)
            assert engine.stats["tokens_computed"] < 2000

            # One that never began has no `finally` to run.
            call = engine.open("b", 1, None, stream=True)
            unused = engine.generate([[10]], LONG, call)
            engine.close(call)
            assert engine.in_flight == 0
            await unused.aclose()

    run(work())


def test_what_is_not_read_is_merged(make_llm) -> None:
    """A client that stops reading costs the memory of its tokens, not a queue entry per step."""

    async def work() -> None:
        async with running(make_llm) as (service, _):
            engine = service.async_llm
            params = SamplingParams(max_tokens=1000, n=2, seed=1, ignore_eos=True, logprobs=0)
            call = engine.open("a", 2, None, stream=True)
            updates = engine.generate([[10, 11]], params, call)
            taken = await anext(updates)
            await eventually(lambda: engine.in_flight == 0)
            rest = [batch async for batch in updates]
            assert sum(len(batch) for batch in rest) <= MAX_PENDING
            for completion in call.outputs[0].completions:
                chunks = [
                    chunk
                    for batch in [taken, *rest]
                    for update in batch
                    for chunk in update.chunks
                    if chunk.index == completion.index
                ]
                assert sum((c.token_ids for c in chunks), []) == completion.token_ids
                assert sum((c.logprobs for c in chunks), []) == completion.logprobs
                assert "".join(c.text for c in chunks) == completion.text
                assert [c.finish_reason for c in chunks][-1] == "length"

    run(work())


def test_calls_end_with_the_engine(make_llm) -> None:
    """Those that are in it and those that were only opened: at once, not after their timeout."""

    async def work() -> None:
        async with running(make_llm) as (service, client):
            engine = service.async_llm
            inside, opened, fatal = (
                engine.open(name, 1, None, stream=True) for name in ("a", "b", "c")
            )
            waiting = engine.generate([[10]], LONG, inside)
            await anext(waiting)
            with pytest.raises(ApiError, match="died"):
                await anext(engine.generate([[DIE] * 2], PARAMS, fatal))
            async with asyncio.timeout(10):
                with pytest.raises(ApiError, match="died"):
                    async for _ in waiting:
                        pass
                with pytest.raises(ApiError, match="died") as error:
                    await anext(engine.generate([[10]], PARAMS, opened))
            assert (error.value.status, error.value.code) == (503, "dead")
            engine.close(opened)
            assert engine.in_flight == 0 and engine.dead.is_set()
            assert (await client.get("/health")).json() == {"status": "dead"}

    run(work())


def test_the_last_failed_step_is_reported_like_the_others(make_llm) -> None:
    async def work() -> None:
        async with running(make_llm) as (service, client):
            answers = [
                await client.post("/v1/completions", json={"prompt": prompt})
                for prompt in ([FAIL_ALWAYS] * 2, [10, 11], [10, 11])
            ]
            assert [a.status_code for a in answers] == [500] * 3
            assert {a.json()["error"]["code"] for a in answers} == {"engine_error"}
            await asyncio.wait_for(service.async_llm.dead.wait(), 10)
            assert service.async_llm.stats["running"] == 0

    run(work())


def test_a_completion_that_ends_in_an_error_is_a_500(make_llm) -> None:
    async def work() -> None:
        async with running(make_llm) as (_, client):
            good = {"prompt": [10, 11], "max_tokens": 50, "ignore_eos": True}
            for path, body in (
                ("/v1/completions", {"prompt": [NOT_FINITE, 10], "n": 2}),
                ("/v1/completions", {"prompt": [[10, 11], [NOT_FINITE]]}),
                ("/generate", {"prompt": [NOT_FINITE]}),
                ("/v1/completions", {"prompt": [NOT_FINITE], "stream": True}),
            ):
                failed, whole = await asyncio.gather(
                    client.post(path, json=body), client.post("/v1/completions", json=good)
                )
                error = failed.json()["error"]
                assert (failed.status_code, error["code"]) == (500, "engine_error")
                assert error["message"] == "the logits are not finite"
                assert whole.json()["usage"]["completion_tokens"] == 50
            # After the first tokens of its other prompt there is no status left: an event says it.
            mixed = {"prompt": [[10, 11], [NOT_FINITE]], "max_tokens": 100, "stream": True}
            mixed["return_token_ids"] = True  # so that a part of a character is a piece, too
            streamed = await client.post("/v1/completions", json=mixed)
            first, *_, last, done, _ = streamed.text.split("\n\n")
            assert streamed.status_code == 200 and "choices" in first and done == "data: [DONE]"
            assert json.loads(last[6:])["error"]["message"] == "the logits are not finite"

    run(work())


def test_a_step_that_hangs_is_not_healthy(make_llm) -> None:
    async def work() -> None:
        async with running(make_llm) as (service, client):
            assert service.async_llm.hung_after == 60
            service.async_llm.hung_after = 0.5
            stalled = asyncio.create_task(
                client.post("/v1/completions", json={"prompt": [STALL] * 2, "max_tokens": 1})
            )
            statuses = []
            while not stalled.done():
                health = await client.get("/health")
                statuses.append((health.status_code, health.json()["status"]))
                await asyncio.sleep(0.05)
            assert (200, "ok") in statuses and (503, "hung") in statuses
            assert stalled.result().status_code == 200
            await eventually(lambda: not service.async_llm.hung)
            assert (await client.get("/health")).status_code == 200

    run(work())


def test_while_loading_every_answer_is_503(make_llm) -> None:
    may_load = threading.Event()

    def slow() -> LLM:
        may_load.wait(60)
        return make_llm()

    async def work() -> None:
        service = Service(ServerOptions(served_model_name="tiny"), slow)
        service.async_llm.start()
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            hello = {"messages": [{"role": "user", "content": "hi"}], "min_tokens": 5}
            answers = [
                await client.post("/v1/chat/completions", json=hello),
                await client.post("/v1/completions", json={"prompt": "x", "min_tokens": 99}),
                await client.post("/v1/completions", json={"prompt": "x", "model": "other"}),
                await client.post("/generate", json={"prompt": "x"}),
                await client.get("/v1/models"),
                await client.get("/v1/models/tiny"),
                await client.get("/engine/events"),
            ]
            assert [a.status_code for a in answers] == [503] * len(answers)
            assert {a.json()["error"]["code"] for a in answers} == {"loading"}
            may_load.set()
            await asyncio.wait_for(service.async_llm.ready.wait(), 60)
            assert (await client.get("/v1/models")).json()["data"][0]["max_model_len"] == CONTEXT
        service.close()
        await asyncio.to_thread(service.async_llm.stop, 10)

    run(work())


def test_watchers_count_from_their_subscription() -> None:
    async def work() -> None:
        feed, watched = Feed(), []
        feed.watch = watched.append
        places = [feed.subscribe() for _ in range(MAX_WATCHERS)]
        with pytest.raises(ApiError, match="watching already") as error:
            feed.subscribe()
        assert error.value.status == 503
        feed.unsubscribe(places[0])
        places[0] = feed.subscribe()
        for place in places:
            feed.unsubscribe(place)
        assert watched[-1] is False

    run(work())


def test_a_drain_refuses_calls_that_come_to_the_engine_late(make_llm) -> None:
    async def work() -> None:
        async with running(make_llm) as (service, _):
            engine = service.async_llm
            opened = engine.open("a", 1, None, stream=False)  # still being tokenised, say
            began = time.monotonic()
            assert await engine.drain(0.1) is False and time.monotonic() - began < 5
            with pytest.raises(ApiError, match="shutting down"):
                await anext(engine.generate([[10]], PARAMS, opened))
            engine.close(opened)
            assert engine.in_flight == 0

    run(work())

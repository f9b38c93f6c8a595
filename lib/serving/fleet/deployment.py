"""The fleet on Ray Serve: `Engine` replicas with chapter 5's application, and one `Front` before them.

`build` is also what a serve config file imports, e.g. `serve run lib/serving/fleet/serve.yaml`. Introduced in chapter 13.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any

from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from lib.core.engine_options import EngineOptions
from lib.engine.llm import LLM
from lib.serving.app import create_app
from lib.serving.errors import ApiError
from lib.serving.fleet.forwarding import ForwardedRequest, call_app
from lib.serving.fleet.front import FleetBusy, Front, ReplicaLost
from lib.serving.fleet.metrics import labelled
from lib.serving.fleet.options import FleetOptions, from_mapping
from lib.serving.logs import configure
from lib.serving.server_options import ServerOptions
from lib.serving.service import Service

ROUTER = "lib.serving.fleet.ray_router.FleetRequestRouter"
HEALTH_SECONDS = 5.0  # between two health checks of a replica


class Engine:
    """One replica: the server of chapter 5 without its socket."""

    async def __init__(self, options: ServerOptions) -> None:
        configure(options.log_level)
        self._service = Service(options, lambda: LLM(**options.llm))
        self._app = create_app(self._service)
        async_llm = self._service.async_llm
        async_llm.start()
        ready, dead = (asyncio.ensure_future(e.wait()) for e in (async_llm.ready, async_llm.dead))
        await asyncio.wait({ready, dead}, return_when=asyncio.FIRST_COMPLETED)
        for task in (ready, dead):
            task.cancel()
        await self.check_health()

    async def handle(self, request: ForwardedRequest) -> AsyncIterator[dict[str, Any]]:
        """The application's messages for one request."""
        async for message in call_app(self._app, request):
            yield message

    async def check_health(self) -> None:
        """Raises where the engine has died or a step hangs: Ray Serve then starts another replica."""
        async_llm = self._service.async_llm
        if async_llm.state == "dead" or async_llm.hung:
            raise RuntimeError(f"the engine is {'hung' if async_llm.hung else 'dead'}")

    async def metrics(self) -> tuple[str, str]:
        """(this replica's id, its metrics in Prometheus' text format)."""
        return serve.get_replica_context().replica_tag, self._service.metrics.render().decode()

    def __del__(self) -> None:
        """Stops the engine. Ray Serve calls this after it has waited for running requests (`drain_timeout`)."""
        if hasattr(self, "_service"):  # not where the options were refused
            try:
                self._service.async_llm.stop(5.0)
            finally:
                self._service.close()


class FrontDeployment:
    """The process that clients reach. There is only one, so that its router sees every request."""

    def __init__(self, engine: DeploymentHandle, log_level: str, **options: Any) -> None:
        """options: those of `Front`, without `send`."""
        configure(log_level)
        self._engine = engine.options(method_name="handle", stream=True)
        self._replicas = engine
        self._front = Front(self._send, **options)

    async def __call__(self, request: Request) -> Response:
        if request.url.path == "/metrics":
            return await self._metrics()
        return await self._front.answer(request)

    async def _send(self, request: ForwardedRequest) -> AsyncIterator[dict[str, Any]]:
        messages = self._engine.remote(request)
        try:
            async for message in messages:
                yield message
        except BackPressureError as error:
            raise FleetBusy("all replicas are full") from error
        except DeploymentUnavailableError as error:
            raise FleetBusy("no replica is running") from error
        except RayTaskError:
            raise  # an error of the application: another replica would raise it too
        except (RayActorError, ObjectLostError) as error:  # ObjectLostError: its machine has ended
            raise ReplicaLost(str(error)) from error
        except (asyncio.CancelledError, GeneratorExit):  # the client has gone
            messages.cancel()
            raise

    async def _metrics(self) -> Response:
        try:
            texts = dict(await self._replicas.broadcast("metrics").results_async())
        except (RayActorError, DeploymentUnavailableError):  # one has just ended, or all have
            return ApiError(503, "a replica has ended: try again", code="replica_lost", retry_after=5).response()  # fmt: skip
        return Response(labelled(texts), media_type="text/plain; version=0.0.4; charset=utf-8")


def build(given: Mapping[str, Any]) -> serve.Application:
    """The application of a serve config file, from options by name: those of the fleet, the server and LLM.

    Raises ValueError for a bad one, and for host and port, which the file has as `http_options`.
    """
    if elsewhere := sorted({"host", "port"} & set(given)):
        raise ValueError(f"{', '.join(elsewhere)}: set in http_options of the file, not in args")
    return application(*from_mapping(given))


def application(fleet: FleetOptions, server: ServerOptions) -> serve.Application:
    """Engines behind a front.

    Ray Serve does rolling updates: it drains a fifth of the replicas at a time, at least one, and starts new ones in their
    places. An update of the front restarts it, and new requests wait until it is back.
    """
    scaling: dict[str, Any] = {"num_replicas": fleet.replicas}
    if fleet.scales:
        scaling = {
            "autoscaling_config": {
                "min_replicas": fleet.replicas,
                "max_replicas": fleet.max_replicas,
                "target_ongoing_requests": fleet.target_requests,
                "upscale_delay_s": fleet.upscale_delay,
                "downscale_delay_s": fleet.downscale_delay,
                # Seconds over which requests are averaged: no longer than the shorter delay.
                "look_back_period_s": max(
                    1.0, min(30.0, fleet.upscale_delay, fleet.downscale_delay)
                ),
            }
        }
    engine = serve.deployment(
        Engine,
        name="Engine",
        max_ongoing_requests=server.max_concurrent_requests,
        max_queued_requests=fleet.max_queued,
        graceful_shutdown_timeout_s=server.drain_timeout,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=30.0,
        ray_actor_options={"num_cpus": fleet.cpus_per_replica, "num_gpus": fleet.gpus_per_replica},
        request_router_config=RequestRouterConfig(
            request_router_class=ROUTER, request_router_kwargs=fleet.router_options
        ),
        **scaling,
    )
    front = serve.deployment(
        FrontDeployment,
        name="Front",
        num_replicas=1,
        max_ongoing_requests=100_000,  # the engines' limits decide what is refused
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=server.drain_timeout,
    )
    return front.bind(
        engine.bind(server),
        server.log_level,
        tries=fleet.tries,
        max_body_bytes=server.max_body_bytes,
        block_size=server.llm.get("block_size", EngineOptions.block_size),
        timeout=server.request_timeout or None,
    )


class _Stopped(Exception):
    """SIGINT or SIGTERM has come."""


def run(fleet: FleetOptions, server: ServerOptions) -> None:
    """Serves until SIGINT or SIGTERM, then drains: what has begun gets `drain_timeout` seconds. A second signal ends it."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        raise _Stopped

    try:
        serve.start(http_options={"host": server.host, "port": server.port})
        for number in numbers:
            signal.signal(number, stop)
        serve.run(application(fleet, server))
        threading.Event().wait()
    except _Stopped:
        pass
    finally:  # also where the engine could not be started
        serve.shutdown()

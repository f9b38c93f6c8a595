"""The GET routes: health, models, metrics, version, the page and its events. Introduced in chapter 5."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from lib.serving.completions import ERRORS
from lib.serving.service import Service
from lib.serving.sse import EventStream

STATIC = Path(__file__).with_name("static")
router = APIRouter()


@router.head("/health", include_in_schema=False)
@router.get("/health", responses={503: {"description": "loading, draining, dead or hung"}})
async def health(request: Request) -> Response:
    """200 while the engine takes requests and its steps end."""
    async_llm = request.app.state.service.async_llm
    status = "ok" if async_llm.state == "ready" else async_llm.state
    if async_llm.state != "dead" and async_llm.hung:
        status = "hung"
    return JSONResponse({"status": status}, 200 if status == "ok" else 503)


@router.get("/version")
async def show_version() -> dict[str, str]:
    try:
        return {"version": version("token-by-token")}
    except PackageNotFoundError:  # run from a folder that is not installed
        return {"version": "unknown"}


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(request.app.state.service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.head("/v1/models", include_in_schema=False)
@router.get("/v1/models", responses={status: ERRORS[status] for status in (401, 503)})
async def list_models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [_model(request)]}


@router.get(
    "/v1/models/{name:path}", responses={status: ERRORS[status] for status in (401, 404, 503)}
)
async def show_model(name: str, request: Request) -> dict[str, Any]:
    request.app.state.service.check_model(name)
    return _model(request)


@router.get(
    "/engine/events",
    response_model=None,
    responses={status: ERRORS[status] for status in (401, 503)},
)
async def engine_events(request: Request) -> Response:
    """Server-sent events for the page: at most ten snapshots of the engine a second."""
    service: Service = request.app.state.service
    service.async_llm.require_ready()
    watcher = service.feed.subscribe()
    return EventStream(service.feed.events(watcher), lambda: service.feed.unsubscribe(watcher))


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def page() -> Response:
    return FileResponse(
        STATIC / "index.html",
        headers={
            "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'self'"
        },
    )


def _model(request: Request) -> dict[str, Any]:
    service: Service = request.app.state.service
    llm = service.llm
    return {
        "id": service.model_name,
        "object": "model",
        "created": request.app.state.started,
        "owned_by": "token-by-token",
        "max_model_len": service.tokens.limit,
        "weights": llm.weights,
        "chat": bool(getattr(llm.tokenizer, "chat_template", None)),
        "text": service.tokens.has_text,
    }

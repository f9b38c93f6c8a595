"""The FastAPI application, put together. Introduced in chapter 5."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from lib.serving import chat, completions, errors, status_routes, tokenize_routes
from lib.serving.middleware import ApiKeyGuard, BodyReader
from lib.serving.service import Service


def create_app(service: Service) -> FastAPI:
    """All routes over one service. The caller starts `service.async_llm`."""
    # The interactive documentation would load its scripts from elsewhere; /openapi.json stays. A redirect from /path/ to
    # /path would send the client to whatever its Host header names.
    app = FastAPI(title="Token by Token", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service, app.state.started = service, int(time.time())
    for module in (completions, chat, tokenize_routes, status_routes):
        app.include_router(module.router)
    app.mount("/static", _Files(directory=status_routes.STATIC), name="static")
    errors.install(app)
    app.openapi = lambda: _schema(app)
    # The last one added is the first to see a request.
    app.add_middleware(BodyReader, most=service.options.max_body_bytes)
    if service.options.api_key is not None:
        app.add_middleware(ApiKeyGuard, key=service.options.api_key)
    if service.options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.options.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return app


class _Files(StaticFiles):
    """StaticFiles without its tolerance for a slash after a file's name."""

    def get_path(self, scope: Scope) -> str:
        if scope["path"].endswith("/"):
            raise HTTPException(404)
        return super().get_path(scope)


def _schema(app: FastAPI) -> dict[str, Any]:
    """FastAPI's, without its 422: what does not validate is answered with OpenAI's 400."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
    return app.openapi_schema

"""Errors in the shape that OpenAI's clients understand, without the server's internals. Introduced in chapter 5."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lib.serving.logs import log
from lib.serving.validation_errors import describe

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """An answer that is an error. `param` names the field at fault, `retry_after` is in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def invalid_request(error: ValueError) -> ApiError:
    """A refused field as a 400; `param` and `code` are those of lib.core.errors.InvalidRequest."""
    return ApiError(
        400, str(error)[:500], getattr(error, "param", None), getattr(error, "code", None)
    )


def engine_error(text: str | None = None) -> ApiError:
    """A 500 for a request on which the engine failed; `text`: what the engine says about it."""
    return ApiError(
        500,
        text or "the engine failed while it worked on this request; try again",
        code="engine_error",
    )


def install(app: FastAPI) -> None:
    """Have every error of `app` answered in this shape, the router's own and the unforeseen included."""

    schemas: dict[str, dict[str, Any]] = {}  # by path; making one takes milliseconds

    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return refuse(request.url.path, error)

    async def bad_body(request: Request, error: RequestValidationError) -> JSONResponse:
        path = request.url.path
        if path not in schemas:
            schemas[path] = _schema_of(request)
        message, param = describe(
            error.errors(), request.headers.get("content-type", ""), schemas[path]
        )
        return refuse(request.url.path, ApiError(400, message, param))

    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = {
            404: "there is no such path",
            405: f"{request.method} is not allowed here",
            400: "the body cannot be read as JSON",
        }.get(error.status_code, str(error.detail))
        response = refuse(request.url.path, ApiError(error.status_code, message))
        response.headers.update(error.headers or {})
        return response

    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        # The traceback is for the log, where uvicorn writes it.
        return refuse(
            request.url.path, ApiError(500, "the server failed on this request; its log says why")
        )

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, bad_body)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unforeseen)


def refuse(path: str, error: ApiError) -> JSONResponse:
    """The response, and a line in the log."""
    log(
        "refused",
        logging.ERROR if error.status == 500 else logging.INFO,
        path=path,
        status=error.status,
        message=error.message[:300],
    )
    return error.response()


def _schema_of(request: Request) -> dict[str, Any]:
    """JSON schema of the body that the request's route takes; it has each field's range."""
    body = getattr(request.scope.get("route"), "body_field", None)
    model = getattr(getattr(body, "field_info", None), "annotation", None)
    return model.model_json_schema() if hasattr(model, "model_json_schema") else {}

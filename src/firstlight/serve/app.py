"""The server as one application: routes, errors in OpenAI's shape, and the guard before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from firstlight.serve import shapes, watching
from firstlight.serve.chat import chat
from firstlight.serve.completions import complete
from firstlight.serve.errors import ApiError, bad_value
from firstlight.serve.guard import Guard
from firstlight.serve.replies import JsonResponse
from firstlight.serve.service import Service


def make_app(
    service: Service,
    *,
    api_key: str | None = None,
    hosts: Iterable[str] | None = None,
    origins: Sequence[str] = (),
) -> FastAPI:
    """The application for one model. Its engine's thread starts and ends with it.

    api_key, hosts, origins: see `firstlight.serve.guard.Guard`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.worker.stop)

    # No documentation pages: FastAPI's load their scripts from other hosts.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    _add_routes(app, service)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(Exception, _own_error)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(Guard, api_key=api_key, hosts=hosts, origins=origins, meters=service.meters)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    # Bodies are read by `bodies.parse_body`, not by FastAPI: its errors have another shape.
    async def completions(request: HttpRequest) -> Response:
        return await complete(service, request)

    async def chat_completions(request: HttpRequest) -> Response:
        return await chat(service, request)

    async def models() -> Response:
        return JsonResponse({"object": "list", "data": [_entry(service)]})

    async def model(model_id: str) -> Response:
        service.check_model(model_id)
        return JsonResponse(_entry(service))

    async def health() -> Response:
        return watching.health(service)

    async def metrics() -> Response:
        return watching.metrics(service)

    for path, act in (
        ("/v1/completions", completions),
        ("/v1/chat/completions", chat_completions),
    ):
        app.add_api_route(path, act, methods=["POST"], response_class=Response, response_model=None)
    for path, act in (
        ("/v1/models", models),
        ("/v1/models/{model_id:path}", model),
        ("/health", health),
        ("/metrics", metrics),
    ):
        app.add_api_route(path, act, methods=["GET"], response_class=Response, response_model=None)


def _entry(service: Service) -> dict[str, Any]:
    return shapes.model_entry(service.model_id, service.created_unix_s, service.facts)


async def _api_error(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JsonResponse(error.to_dict(), status_code=error.status, headers=dict(error.headers))


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {
        404: f"there is no {request.method} {request.url.path[:200]}",
        405: f"{request.url.path[:200]} does not take {request.method}",
    }
    codes = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
    message = words.get(error.status_code, str(error.detail))
    wrong = ApiError(error.status_code, message, code=codes.get(error.status_code))
    return JsonResponse(wrong.to_dict(), status_code=error.status_code, headers=dict(error.headers or {}))


async def _unreadable(_: HttpRequest, error: Exception) -> Response:
    """What FastAPI itself finds wrong with a request to one of the studio's routes."""
    assert isinstance(error, RequestValidationError)
    mistake = error.errors()[0]
    names = [str(part) for part in mistake["loc"] if part != "body"]
    wrong = bad_value(f"{'.'.join(names) or 'the body'}: {mistake['msg']}", param=names[0] if names else None)
    return JsonResponse(wrong.to_dict(), status_code=400)


async def _own_error(_: HttpRequest, error: Exception) -> Response:
    """A mistake of ours. What it was is in the log, not in the answer."""
    wrong = ApiError(500, f"the server made a mistake ({type(error).__name__})", code="internal_error")
    return JsonResponse(wrong.to_dict(), status_code=500)

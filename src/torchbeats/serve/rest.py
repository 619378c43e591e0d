"""The routes of the REST interface, which is shaped like OpenAI's, and its OpenAPI document."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from torchbeats.errors import RequestError
from torchbeats.serve import answers, shapes
from torchbeats.serve.door import DEADLINE, FAILED, error_body
from torchbeats.serve.metrics import CONTENT_TYPE
from torchbeats.serve.service import Service
from torchbeats.serve.uploads import Upload, form_of, from_data_url, validated
from torchbeats.version import __version__

ABOUT = """
Embeddings and labels of sounds. `POST /v1/embeddings` has the shape of OpenAI's, and the official clients work with it:
a sound is sent as `data:audio/wav;base64,…` in place of a text. Each error is `{"error": {"message", "type", "code"}}`.
"""
REASONS = {
    401: "The token is missing or wrong.",
    403: "The page of another site asks.",
    404: "There is no such model, table or route.",
    405: "The route has other methods.",
    408: "The request came too slowly.",
    413: "The body, the sound in it, or the work with it is too much.",
    421: "The server is not the one that the Host header names.",
    422: "The request is not as it must be, or a sound in it cannot be read.",
    429: "Too many requests are being worked on; Retry-After says when to try again.",
    500: "The server has failed.",
    503: "There is no room, or the server is stopping.",
    504: "The answer was not ready in time.",
}
GONE = 499  # nobody reads it
LARGE_BODY = 2**20

Options = TypeVar("Options", bound=BaseModel)
Parsed = TypeVar("Parsed")


def application(service: Service) -> FastAPI:
    """The REST interface of a service."""
    app = FastAPI(title="torchbeats", version=__version__, description=ABOUT, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": shapes.Error, "description": reason} for status, reason in REASONS.items()
    }
    small: dict[int | str, dict[str, Any]] = {status: errors[status] for status in (401, 403, 405, 421)}

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return JSONResponse(error_body(error.status, error.code, error.message), error.status, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse(error_body(500, "internal_error", FAILED), 500)

    @app.exception_handler(HTTPException)
    async def wrong_route(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code == 404:
            message = f"There is nothing at {request.url.path[:100]}; /openapi.json has what there is."
        elif error.status_code == 405:
            message = f"{request.url.path[:100]} does not take {request.method}."
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        body = error_body(error.status_code, code, message)
        return JSONResponse(body, error.status_code, dict(error.headers or {}))

    @app.get("/health", tags=["server"], responses=small)
    async def health() -> shapes.Health:
        """Whether the server is there; asks for no token."""
        return shapes.Health()

    @app.get("/metrics", tags=["server"], response_class=PlainTextResponse, responses=small)
    async def metrics() -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models", tags=["models"], responses=small)
    async def models() -> shapes.Models:
        """The models that requests can name."""
        rows = []
        for name, served in service.models.items():
            outputs = list(served.model.outputs)
            rows.append(shapes.ModelRow(id=name, created=served.created, outputs=outputs, labels=served.model.labels))
        return shapes.Models(data=rows)

    @app.post(
        "/v1/embeddings",
        tags=["sounds"],
        response_model=shapes.Embeddings,
        response_model_exclude_none=True,
        responses=errors,
        openapi_extra=_body(shapes.EmbeddingRequest, shapes.EmbeddingOptions, {"input": shapes.SILENCE}),
    )
    async def embeddings(request: Request) -> Response:
        """Embed sounds: one vector for each, the mean over its windows of ten seconds."""

        async def work() -> shapes.Embeddings:
            options, uploads = await _sounds(request, shapes.EmbeddingRequest, shapes.EmbeddingOptions, service)
            return await answers.embeddings(service, options, uploads)

        return await _answered(request, work, service)

    @app.post(
        "/v1/tags",
        tags=["sounds"],
        response_model=shapes.TagAnswer,
        response_model_exclude_none=True,
        responses=errors,
        openapi_extra=_body(shapes.TagRequest, shapes.TagOptions, {"input": shapes.SILENCE, "every": 1}),
    )
    async def tags(request: Request) -> Response:
        """Name what sounds contain: a row a sound, a timeline, or events."""

        async def work() -> shapes.TagAnswer:
            options, uploads = await _sounds(request, shapes.TagRequest, shapes.TagOptions, service)
            return await answers.tagged(service, options, uploads)

        return await _answered(request, work, service)

    @app.post(
        "/v1/search",
        tags=["sounds"],
        response_model=shapes.SearchAnswer,
        responses=errors,
        openapi_extra=_body(shapes.SearchRequest, shapes.SearchOptions, {"like": [0], "n": 3}),
    )
    async def search(request: Request) -> Response:
        """The rows of the server's table that are most like sounds, or like other rows."""

        async def work() -> shapes.SearchAnswer:
            if _is_form(request):
                fields, files = await form_of(request, "file", service.limits.inputs)
                return await answers.matches(service, validated(shapes.SearchOptions, fields), _some(files))
            body, like, unlike = await _off_the_loop(request, _queries)
            return await answers.matches(service, body, like, unlike)

        return await _answered(request, work, service)

    return app


async def _sounds(
    request: Request, whole: type[Any], options: type[Options], service: Service
) -> tuple[Options, list[Upload]]:
    """The options of a request, and the sounds in it."""
    if _is_form(request):
        fields, files = await form_of(request, "file", service.limits.inputs)
        return validated(options, fields), _some(files)
    return await _off_the_loop(request, lambda content: _inputs(validated(whole, content), service.limits.inputs))


def _inputs(body: Any, most: int) -> tuple[Any, list[Upload]]:
    several = [body.input] if isinstance(body.input, str) else body.input
    if len(several) > most:
        raise RequestError(422, "too_many_inputs", f"A request may have {most} sounds, not {len(several)}.")
    return body, [from_data_url(text, f"input {number}") for number, text in enumerate(several)]


def _queries(content: bytes) -> tuple[shapes.SearchRequest, list[Upload | int], list[Upload | int]]:
    body = validated(shapes.SearchRequest, content)

    def one(query: str | int, name: str) -> Upload | int:
        return query if isinstance(query, int) else from_data_url(query, name)

    like = [one(query, f"like {number}") for number, query in enumerate(body.like)]
    return body, like, [one(query, f"unlike {number}") for number, query in enumerate(body.unlike)]


async def _off_the_loop(request: Request, parse: Callable[[bytes], Parsed]) -> Parsed:
    """A body parsed, in a thread where that takes long enough for others to notice."""
    content = await request.body()
    return await asyncio.to_thread(parse, content) if len(content) > LARGE_BODY else parse(content)


def _some(files: list[Upload]) -> list[Upload]:
    if not files:
        raise RequestError(422, "invalid_form", "The form has no file in a field called file.")
    return files


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"


async def _answered(request: Request, work: Callable[[], Coroutine[Any, Any, BaseModel]], service: Service) -> Response:
    """The answer, unless the client goes away or the time is up before."""
    await request.body()  # from here on nothing comes but the news that the client has gone
    task = asyncio.ensure_future(work())
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        left = request.scope[DEADLINE] - time.monotonic()
        done, _ = await asyncio.wait({task, gone}, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return _as_json(task.result())
        if gone in done:
            return Response(status_code=GONE)
        limit = f"{service.limits.request_seconds:g} s"
        raise RequestError(504, "timeout", f"The answer was not ready within {limit}; send fewer or shorter sounds.")
    finally:
        task.cancel()
        gone.cancel()


def _as_json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


async def _until_gone(request: Request) -> None:
    """Wait until the client has closed the connection, behind its request's body."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _body(whole: type[BaseModel], options: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """How the document describes a body that comes as JSON or as a form."""
    form = options.model_json_schema()
    file = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "Sound files."}
    form["properties"] = {"file": file, **form["properties"]}
    form["required"] = ["file"]
    content = {
        "application/json": {"schema": _inlined(whole.model_json_schema()), "example": example},
        "multipart/form-data": {"schema": _inlined(form)},
    }
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with its definitions in their places."""
    definitions = schema.pop("$defs", {})

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return walk(
                    {**definitions[value["$ref"].rpartition("/")[2]], **{k: v for k, v in value.items() if k != "$ref"}}
                )
            return {name: walk(part) for name, part in value.items()}
        return [walk(part) for part in value] if isinstance(value, list) else value

    result: dict[str, Any] = walk(schema)
    return result

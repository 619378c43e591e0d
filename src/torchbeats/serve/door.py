"""What every request passes first, whoever answers it: who may ask, how much may come, and how long it may take."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlencode

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from torchbeats.errors import RequestError
from torchbeats.serve.limits import Limits
from torchbeats.serve.metrics import Metrics
from torchbeats.serve.security import Access

Headers: TypeAlias = dict[str, str]

ROUTES = ("/v1/embeddings", "/v1/tags", "/v1/search", "/v1/models", "/health", "/metrics", "/openapi.json")
DEADLINE = "torchbeats.deadline"  # in a request's scope: when its time is up, by `time.monotonic`
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# Even if something on the page wanted to ask another machine, the browser would not let it.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
}
STREAM_SECONDS = 0.5  # from a result to the browser that has asked for it
FAILED = "The server has failed at this request; its log says how."
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def error_body(status: int, code: str, message: str) -> dict[str, Any]:
    """The one shape of all errors, which is OpenAI's."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "code": code, "param": None}}


class Door:
    """An application in front of two others.

    Args:
        rest: answers what programs ask.
        access: who is let in.
        limits: of what comes.
        metrics: count requests and times.
        busy: seconds until there will be room, for those who are sent away.
    """

    def __init__(
        self, rest: ASGIApp, access: Access, limits: Limits, metrics: Metrics, busy: Callable[[], float]
    ) -> None:
        self.page: ASGIApp | None = None  # answers a browser, as soon as it is there
        self.page_expected = False
        self._rest, self._access, self._limits, self._metrics, self._busy = rest, access, limits, metrics, busy
        self._requests, self._held = 0, 0
        self._ending = False
        self._streams: set[asyncio.Task[Any]] = set()  # that stay open as long as a browser shows the page
        metrics.gauge("torchbeats_requests_in_progress", "Requests to /v1 that are worked on.", lambda: self._requests)
        metrics.gauge("torchbeats_held_bytes", "Bytes of bodies that are held.", lambda: self._held)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._rest(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, path, status = time.monotonic(), scope["path"], 0
        scope[DEADLINE] = began + self._limits.request_seconds
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        query = scope["query_string"].decode("latin-1")
        ours = path in ROUTES or path.startswith("/v1/") or self.page is None

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = self._added(headers) if ours else {**self._added(headers), **PAGE_HEADERS}
                message["headers"] = [*message.get("headers", ()), *_encoded(added)]
            await send(message)

        body = _Body(receive, self, scope[DEADLINE], headers.get("content-length"))
        counted = path.startswith("/v1/") and scope["method"] == "POST"
        try:
            asks_first = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
            self._access.check(path, query, headers, asks_first)
            if asks_first:
                await _send_empty(noted, 204, self._preflight(headers))
                return
            cookie = self._access.cookie_for(query, headers) if scope["method"] == "GET" and not ours else None
            if cookie is not None:
                rest = urlencode([pair for pair in parse_qsl(query) if pair[0] != "token"])
                where = path.replace("//", "/") + (f"?{rest}" if rest else "")
                await _send_empty(noted, 303, {"Location": where, "Set-Cookie": cookie})
                return
            if self.page_expected and self.page is None and path == "/":
                await _send_waiting(noted)
                return
            body.check()
            if counted:
                self._enter()
            try:
                await self._app_for(ours)(scope, body, noted)
            finally:
                self._requests -= counted
        except RequestError as error:
            if not status:
                await send_error(noted, error)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            if not status:
                await send_error(noted, RequestError(500, "internal_error", FAILED))
        finally:
            body.release()
            route = path if path in ROUTES else "/v1" if path.startswith("/v1/") else "page"
            self._metrics.request(route, status, time.monotonic() - began)

    def _app_for(self, ours: bool) -> ASGIApp:
        return self._rest if ours or self.page is None else self._streamed

    async def _streamed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The page's answer, which may be a stream that only the end of the server ends."""
        assert self.page is not None
        task = asyncio.ensure_future(self.page(scope, receive, send))
        if scope["method"] == "GET":
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)
        try:
            await task
        except asyncio.CancelledError:
            if not task.cancelled() or not self._ending:  # it is this request that was cancelled
                task.cancel()
                raise
            with suppress(Exception):
                await send({"type": "http.response.body", "body": b""})

    async def end_streams(self) -> None:
        """Let browsers go, when what they have asked for is computed."""
        end = time.monotonic() + self._limits.request_seconds
        while self._streams and self._busy() > 0 and time.monotonic() < end:
            await asyncio.sleep(0.05)
        if self._streams:
            await asyncio.sleep(STREAM_SECONDS)
        self._ending = True
        for task in list(self._streams):
            task.cancel()

    def _enter(self) -> None:
        if self._requests >= self._limits.queue:
            raise RequestError(
                429,
                "queue_full",
                f"{self._requests} requests are being worked on, as many as may be; try again in a moment.",
                {"Retry-After": self.retry_after()},
            )
        self._requests += 1

    def retry_after(self) -> str:
        """For a header: whole seconds until there will be room."""
        return str(max(1, min(600, math.ceil(self._busy()))))

    def hold(self, count: int) -> None:
        """Take room for so many bytes, or say that there is none."""
        if self._held + count > self._limits.held_bytes:
            raise RequestError(
                503,
                "no_room",
                f"The server holds {self._held / 2**20:.0f} MB of requests, as much as it may; try again in a moment.",
                {"Retry-After": self.retry_after()},
            )
        self._held += count

    def release(self, count: int) -> None:
        """Give room back."""
        self._held -= count

    def too_large(self) -> RequestError:
        """The error of a body that is."""
        return RequestError(
            413,
            "body_too_large",
            f"A request's body may have {self._limits.body_mb:g} MB; send fewer or shorter sounds, or compress them.",
        )

    @property
    def limits(self) -> Limits:
        """Of what comes."""
        return self._limits

    def _added(self, headers: Headers) -> Headers:
        origin = headers.get("origin")
        if origin is not None and self._access.allows(origin):
            return {**SECURITY_HEADERS, "Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        return SECURITY_HEADERS

    def _preflight(self, headers: Headers) -> Headers:
        if not self._access.allows(headers.get("origin", "")):
            return {}
        return {
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": "Authorization, Content-Type",
            "Access-Control-Max-Age": "600",
        }


class _Body:
    """A request's body as it comes: no more of it than may be held, and no later than its time."""

    def __init__(self, receive: Receive, door: Door, deadline: float, declared: str | None) -> None:
        self._receive, self._door, self._deadline = receive, door, deadline
        self._declared = int(declared) if declared is not None and declared.isdigit() else 0
        self._taken, self._come, self._complete = 0, 0, False

    def check(self) -> None:
        """Refuse what declares to be too large; make room for what is declared."""
        if self._declared > self._door.limits.body_bytes:
            raise self._door.too_large()
        self._door.hold(self._declared)
        self._taken = self._declared

    async def __call__(self) -> Message:
        if self._complete:  # what else comes is that the client has gone
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise RequestError(
                408, "too_slow", f"The request did not come within {self._door.limits.request_seconds:g} s."
            ) from None
        self._come += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._come > self._door.limits.body_bytes:
            raise self._door.too_large()
        if self._come > self._taken:
            self._door.hold(self._come - self._taken)
            self._taken = self._come
        return message

    def release(self) -> None:
        """The request has been answered."""
        self._door.release(self._taken)
        self._taken = 0


async def send_error(send: Send, error: RequestError) -> None:
    """An error as an answer."""
    body = json.dumps(error_body(error.status, error.code, error.message)).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
    await send({"type": "http.response.start", "status": error.status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": body})


async def _send_waiting(send: Send) -> None:
    """To a browser that is earlier than the page; it asks again by itself."""
    text = '<!doctype html><html lang="en"><title>torchbeats</title><meta http-equiv="refresh" content="1">'
    body = f'{text}<p role="status">The page will be here in a few seconds.</p></html>'.encode()
    headers = {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(body)), "Retry-After": "1"}
    await send({"type": "http.response.start", "status": 503, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": body})


async def _send_empty(send: Send, status: int, headers: Headers) -> None:
    headers = {"Content-Length": "0", **headers} if status != 204 else headers
    await send({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": b""})


def _encoded(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]

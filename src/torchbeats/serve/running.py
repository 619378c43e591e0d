"""A service at an address, until somebody stops it."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from torchbeats.errors import SettingsError
from torchbeats.interrupts import SIGNALS
from torchbeats.serve.door import Door
from torchbeats.serve.limits import Limits
from torchbeats.serve.rest import application
from torchbeats.serve.security import Access
from torchbeats.serve.service import Service

IDLE_SECONDS = 15.0  # that a connection may take to send a request's head, or the rest of a body that was refused
BACKLOG = 1024  # connections that wait to be accepted


class _Protocol(H11Protocol):
    """Uvicorn's, which alone would wait for a request's head for ever."""

    _idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Something has come, perhaps the end of a head."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for any more."""
        super().connection_lost(exc)
        if self._idle is not None:
            self._idle.cancel()

    def _watch(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._idle is None:
            self._idle = self.loop.call_later(IDLE_SECONDS, self._close)
        elif not idle and self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """Uvicorn's, which alone would wait for browsers to go, and raise the signal that stopped it once more."""

    def __init__(self, config: uvicorn.Config, door: Door) -> None:
        super().__init__(config)
        self._door = door

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what is being worked on."""
        if not self.force_exit:
            await self._door.end_streams()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Inside, Ctrl-C and SIGTERM stop the server: the first when work under way is answered, the second at once."""
        before: dict[signal.Signals, Any] = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        self.force_exit = self.should_exit
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        SettingsError: there is no such address here, or another program has the port.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"There is no address {host} ({getattr(error, 'strerror', error)}).") from error
    place = socket.socket(family, socket.SOCK_STREAM)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(address)
        place.listen(BACKLOG)
    except OSError as error:
        place.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"Port {port} at {host} is taken: another server runs there. Stop it, or name another with --port."
            ) from error
        raise SettingsError(f"Port {port} at {host} cannot be had: {error.strerror}.") from error
    place.setblocking(False)
    return place


def address_of(place: socket.socket, host: str) -> str:
    """The URL of a socket, as a person would type it."""
    port = place.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    service: Service,
    place: socket.socket,
    access: Access,
    *,
    page: Callable[[Service], FastAPI] | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Answer requests until Ctrl-C or SIGTERM; what is being worked on then is answered, and nothing new is begun.

    Args:
        service: that does the work; it is closed at the end.
        place: a socket that listens.
        access: who is let in.
        page: makes an application for browsers, beside the first requests, as it takes seconds to import.
        ready: called when requests are answered.
    """
    limits: Limits = service.limits
    door = Door(application(service), access, limits, service.metrics, service.busy)
    door.page_expected = page is not None
    config = uvicorn.Config(
        door,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(IDLE_SECONDS),
        limit_concurrency=4 * limits.queue,
        timeout_graceful_shutdown=int(limits.request_seconds) + 1,
    )
    server = _Server(config, door)

    async def serve() -> None:
        task = asyncio.ensure_future(server.serve([place]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        async with AsyncExitStack() as stack:
            if server.started:
                ready()
                if page is not None:
                    made = await asyncio.to_thread(page, service)
                    await stack.enter_async_context(made.router.lifespan_context(made))
                    door.page = made
            await task

    try:
        asyncio.run(serve())
    finally:
        service.close()

"""What a browser tells Gradio of files: only of those that it has sent itself.

Gradio opens any path and fetches any URL that a request names as a file. Here a file is named by where its upload lies.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from torchbeats.errors import RequestError
from torchbeats.serve.door import send_error

FILE_ROUTE = "/gradio_api/file="


def inside(path: str, folder: str) -> Path:
    """A file that lies in the folder of uploads.

    Raises:
        RequestError: it does not, or is none.
    """
    try:
        place = Path(path).resolve()
        known = place.is_relative_to(Path(folder).resolve()) and place.is_file()
    except (OSError, ValueError):
        known = False
    if not known:
        raise RequestError(422, "no_such_upload", "The page may only name files that it has sent; send it again.")
    return place


class Guard:
    """An application in front of Gradio's.

    Args:
        app: Gradio's.
        folder: of uploads.
    """

    def __init__(self, app: ASGIApp, folder: str) -> None:
        self._app, self._folder = app, folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass whose files are uploads."""
        try:
            await self._check(scope, receive, send)
        except RequestError as error:
            await send_error(send, error)

    async def _check(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = b"".join(value for name, value in scope.get("headers", ()) if name.lower() == b"content-type")
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD") or kind.startswith(b"multipart/form-data"):
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
            if messages[-1]["type"] != "http.request":
                return
        content = b"".join(message.get("body", b"") for message in messages)
        for path in _files(_parsed(content)):
            inside(path, self._folder)

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, again, send)


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content) if content else None
    except (ValueError, RecursionError) as error:
        raise RequestError(422, "invalid_request", "The page sends JSON, and this is none.") from error


def _files(value: Any) -> Iterator[str]:
    """Paths of all files in a request, however deep; a URL is one, too, unless it is that of an upload."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for name in ("path", "url"):
                if isinstance(place := value.get(name), str):
                    yield place.partition(FILE_ROUTE)[2] if name == "url" and FILE_ROUTE in place else place
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def upload_folder() -> str:
    """Where Gradio puts what browsers send."""
    return os.environ["GRADIO_TEMP_DIR"]

"""A request's body → the sounds in it, and its other fields. Nothing leaves the memory, and no URL is fetched."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from torchbeats.errors import RequestError

_DATA_URL = re.compile(r"data:(?P<kind>[^,;]*)(?P<parameters>(?:;[^,;]*)*),", re.IGNORECASE)
MOST_FIELDS = 100  # of a form
MOST_FAULTS = 5  # that one answer names

Shape = TypeVar("Shape", bound=BaseModel)


class Upload(NamedTuple):
    """A sound file that was sent.

    Attributes:
        name: for messages.
        content: its bytes.
    """

    name: str
    content: bytes


class _InMemory(MultiPartParser):
    """Starlette's parser without files on a disk; the body's size is bounded before."""

    spool_max_size = 2**62


async def form_of(request: Request, files: str, most_files: int) -> tuple[dict[str, Any], list[Upload]]:
    """The fields of a form, and the files in the field of a name.

    Raises:
        RequestError: it is no form, or has other files.
    """
    fields: dict[str, Any] = {}
    uploads: list[Upload] = []
    try:
        parser = _InMemory(request.headers, request.stream(), max_files=most_files + 1, max_fields=MOST_FIELDS)
        form = await parser.parse()
    except (MultiPartException, ValueError, KeyError) as error:
        reason = str(getattr(error, "message", error)).rstrip(".")
        raise RequestError(422, "invalid_form", f"The form cannot be read: {reason}.") from error
    try:
        for name, value in form.multi_items():
            if isinstance(value, str):
                if name == files:
                    raise RequestError(422, "invalid_form", f"The field {name} takes files, with a name each.")
                fields[name] = value
            elif name != files:
                raise RequestError(422, "invalid_form", f"Files belong in the field {files}, not {name[:100]!r}.")
            else:
                uploads.append(Upload(f"file {len(uploads)}", await value.read()))
    finally:
        await form.close()
    return fields, uploads


def from_data_url(text: str, name: str) -> Upload:
    """The content of a ``data:`` URL.

    Args:
        text: the URL.
        name: of the sound, for messages.

    Raises:
        RequestError: it is no such URL, or not in base64.
    """
    head = _DATA_URL.match(text[:300])
    if head is None:
        raise RequestError(
            422,
            "invalid_input",
            f"{name}: a sound is sent as data:audio/…;base64,…, or as a file of a form (multipart/form-data); nothing "
            "is fetched from a URL or read from a path.",
        )
    if head["parameters"].lower().split(";")[-1] != "base64":
        raise RequestError(422, "invalid_input", f"{name}: a data: URL must be in base64: data:audio/…;base64,….")
    try:
        return Upload(name, base64.b64decode(memoryview(text.encode("ascii"))[head.end() :], validate=True))
    except (binascii.Error, ValueError) as error:
        raise RequestError(422, "invalid_input", f"{name}: what follows base64, is no base64.") from error


def validated(shape: type[Shape], content: bytes | dict[str, Any]) -> Shape:
    """A body, or the fields of a form, as they are to be.

    Raises:
        RequestError: they are not; the message says where, and why.
    """
    try:
        return shape.model_validate_json(content) if isinstance(content, bytes) else shape.model_validate(content)
    except ValidationError as error:
        raise RequestError(
            422, "invalid_request", _sentence(error.errors(include_url=False, include_input=False))
        ) from error


def _sentence(faults: Sequence[Any]) -> str:
    """What is wrong with a request."""
    parts = []
    for fault in faults[:MOST_FAULTS]:
        place = ".".join(str(part)[:100] for part in fault["loc"])
        parts.append(f"{place}: {fault['msg']}" if place else fault["msg"])
    more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
    return f"The request is not as it must be: {'; '.join(parts)}{more}."

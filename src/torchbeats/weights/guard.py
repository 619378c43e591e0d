"""What a Hub says is not believed: its client makes file names of headers, and writes whatever arrives.

``huggingface_hub`` keeps a file under the ETag that the server sends, in a folder of the commit that the server sends,
and finds out that a body is longer than promised when it has written all of it. `guarded` looks at the answers before
the client acts on them.
"""

from __future__ import annotations

import functools
import importlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from torchbeats.weights.sidecars import LARGEST

_PLAIN = re.compile(r"[\w=+-][\w.=+-]{0,127}", re.ASCII)  # one name inside a folder, on every system
_COMMIT_HEADER = "X-Repo-Commit"

LARGEST_LISTING = 2**25  # bytes: 200,000 files
LONGEST_LISTING = 60  # seconds
_BLOCK = 2**16  # bytes read at once
_OF_THE_BODY = ("content-encoding", "content-length", "transfer-encoding")  # as it came; it has been unpacked

_largest: ContextVar[int | None] = ContextVar("largest", default=None)  # while one of our downloads is under way


class HostileAnswer(Exception):
    """The server's answer would make the client write where, or more than, it must not; the message says which."""


def is_plain(name: object) -> bool:
    """Whether it is one name inside a folder, as the hashes of commits and contents are."""
    return isinstance(name, str) and _PLAIN.fullmatch(name) is not None


def is_inside(name: object) -> bool:
    """Whether it names a file inside a repository's folder, on every system."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    windows = PureWindowsPath(name)
    return not (PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts)


@contextmanager
def guarded(sidecar: bool = False) -> Iterator[None]:
    """Around a call of ``hf_hub_download``, ``model_info`` or ``dataset_info``: answers are checked as they come in.

    Args:
        sidecar: the file describes weights, so it is small.

    Raises:
        HostileAnswer: a list of files without an end, an ETag or commit that is no plain name, a body longer than
            promised, or a sidecar that is not small; before anything of it is written outside the cache.
    """
    _install()
    token = _largest.set(LARGEST if sidecar else 2**63)
    try:
        yield
    finally:
        _largest.reset(token)


@functools.cache
def _install() -> None:
    """Put the checks around the three functions of the client that hear the server; they act in `guarded` only.

    Once for good, so that downloads in several threads do not take the checks from each other.
    """
    from huggingface_hub import file_download

    api: Any = importlib.import_module("huggingface_hub.hf_api")
    api.get_session = _listing(api.get_session)
    file_download.get_hf_file_metadata = _checking_metadata(file_download.get_hf_file_metadata)
    file_download.http_get = _limiting(file_download.http_get)


def _checking_metadata(get: Callable[..., Any]) -> Callable[..., Any]:
    """The client's function that asks for a file's ETag, commit and size, with a look at what comes back."""

    @functools.wraps(get)
    def checked(*args: Any, **kwargs: Any) -> Any:
        largest = _largest.get()
        if largest is None:
            return get(*args, **kwargs)
        try:
            metadata = get(*args, **kwargs)
        except Exception as error:
            headers = getattr(getattr(error, "response", None), "headers", {})
            _check_commit(headers.get(_COMMIT_HEADER))  # the client notes that a commit lacks a file
            raise
        _check_commit(metadata.commit_hash)
        content = getattr(metadata, "xet_file_data", None)  # newer clients have it
        for value, name in (("ETag", metadata.etag), ("hash", getattr(content, "file_hash", None))):
            if name is not None and not is_plain(name):
                raise HostileAnswer(
                    f"the server calls its content by the {value} {name!r:.100}, which is no plain name"
                )
        if metadata.size is not None and not 0 <= metadata.size <= largest:
            raise HostileAnswer(f"the server promises {metadata.size:,} bytes, where at most {largest:,} make sense")
        return metadata

    return checked


def _check_commit(commit: str | None) -> None:
    if commit is not None and not is_plain(commit):
        raise HostileAnswer(f"the server names the commit {commit!r:.100}, which is no plain name")


def _listing(get_session: Callable[[], Any]) -> Callable[[], Any]:
    """The client's function that gives its HTTP session, which then reads no more of an answer than makes sense."""

    @functools.wraps(get_session)
    def bounded() -> Any:
        session = get_session()
        return session if _largest.get() is None else _Bounded(session)

    return bounded


class _Bounded:
    """An HTTP session, of httpx or requests, whose answers have an end."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def get(self, url: str, **arguments: Any) -> Any:
        if not hasattr(self._session, "stream"):  # requests, which clients before 1.0 use
            answer = self._session.get(url, stream=True, **arguments)
            with answer:
                answer._content = _read(answer.iter_content(_BLOCK))
            answer._content_consumed = True
            return answer
        with self._session.stream("GET", url, **arguments) as answer:
            body = _read(answer.iter_bytes(_BLOCK))
            headers = [(name, value) for name, value in answer.headers.items() if name.lower() not in _OF_THE_BODY]
            return type(answer)(answer.status_code, headers=headers, content=body, request=answer.request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def _read(blocks: Iterable[bytes]) -> bytes:
    """A whole answer, unless it is too long or takes too long."""
    body, deadline = bytearray(), time.monotonic() + LONGEST_LISTING
    for block in blocks:
        body += block
        if len(body) > LARGEST_LISTING:
            raise HostileAnswer(f"the server's list of files goes on beyond {LARGEST_LISTING:,} bytes")
        if time.monotonic() > deadline:
            raise HostileAnswer(f"the server's list of files has not ended after {LONGEST_LISTING} seconds")
    return bytes(body)


def _limiting(get: Callable[..., Any]) -> Callable[..., Any]:
    """The client's function that downloads into an open file, which then takes no more than was promised."""

    @functools.wraps(get)
    def limited(url: str, temp_file: Any, *args: Any, expected_size: int | None = None, **kwargs: Any) -> Any:
        if _largest.get() is not None and expected_size is not None:
            temp_file = _Limited(temp_file, expected_size)
        return get(url, temp_file, *args, expected_size=expected_size, **kwargs)

    return limited


class _Limited:
    """An open file that refuses to grow beyond a size."""

    def __init__(self, file: Any, limit: int) -> None:
        self._file, self._most = file, limit

    def write(self, data: bytes) -> int:
        if self._file.tell() + len(data) > self._most:
            raise HostileAnswer(f"the server sends more than the {self._most:,} bytes that it promised")
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

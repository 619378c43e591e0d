"""What a Hub says is not believed: its client makes file names of headers, and writes whatever arrives.

``huggingface_hub`` keeps a file under the ETag that the server sends, in a folder of the commit that the server sends,
and finds out that a body is longer than promised when it has written all of it. `guarded` looks at the answers before
the client acts on them. The client's time limits begin anew with every byte; `within_time` ends what only drips.
"""

from __future__ import annotations

import functools
import importlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from pathlib import Path, PurePosixPath, PureWindowsPath
from threading import Thread
from typing import Any, TypeVar

from torchbeats.weights.sidecars import LARGEST

_PLAIN = re.compile(r"[\w=+-][\w.=+-]{0,127}", re.ASCII)  # one name inside a folder, on every system
_COMMIT_HEADER = "X-Repo-Commit"

LARGEST_LISTING = 2**25  # bytes: 200,000 files
LONGEST_LISTING = 60  # seconds
LONGEST_WAIT = 60.0  # seconds for headers, or for the next LEAST_PROGRESS bytes of a body
LEAST_PROGRESS = 2**14
_WAIT_BY_BLOCKS = 1800.0  # where the client tells of 10 MB at once: before 1.0
_BLOCK = 2**16  # bytes read at once
_OF_THE_BODY = ("content-encoding", "content-length", "transfer-encoding")  # as it came; it has been unpacked

R = TypeVar("R")

_largest: ContextVar[int | None] = ContextVar("largest", default=None)  # while one of our downloads is under way


class _Progress:
    """What has come from a server, while something is expected of it."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        self._bytes = 0

    @contextmanager
    def expected(self, seconds: float) -> Iterator[None]:
        """Within it, something is to come every so many seconds."""
        self.seconds, self._bytes = seconds, 0
        self.deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            self.deadline = None

    def add(self, count: int) -> None:
        """So many bytes have come."""
        self._bytes += count
        if self._bytes >= LEAST_PROGRESS and self.deadline is not None:
            self._bytes, self.deadline = 0, time.monotonic() + self.seconds


_progress: ContextVar[_Progress | None] = ContextVar("progress", default=None)


def within_time(work: Callable[[], R]) -> R:
    """Do what hears a server, unless the server lets it wait: no headers, or next to nothing of a body, for a minute.

    The work goes on in a thread of its own, which is left to itself, and ends with the process, where it is given up.

    Raises:
        HostileAnswer: it was given up.
    """
    progress, result = _Progress(), Future[R]()
    token = _progress.set(progress)
    context = copy_context()
    _progress.reset(token)

    def run() -> None:
        try:
            result.set_result(context.run(work))
        except BaseException as error:
            result.set_exception(error)

    Thread(target=run, name="hub", daemon=True).start()
    while True:
        if wait([result], timeout=0.1).done:
            return result.result()
        if (deadline := progress.deadline) is not None and time.monotonic() > deadline:
            raise HostileAnswer(f"next to nothing has come from the server for {progress.seconds:g} seconds")


@contextmanager
def _expected(seconds: float) -> Iterator[_Progress]:
    """The progress of this call of `within_time`, if it is one."""
    progress = _progress.get() or _Progress()
    with progress.expected(seconds):
        yield progress


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
    if hasattr(file_download, "http_stream_backoff"):  # since 1.0
        file_download.http_stream_backoff = _counting(file_download.http_stream_backoff)


def _checking_metadata(get: Callable[..., Any]) -> Callable[..., Any]:
    """The client's function that asks for a file's ETag, commit and size, with a look at what comes back."""

    @functools.wraps(get)
    def checked(*args: Any, **kwargs: Any) -> Any:
        largest = _largest.get()
        if largest is None:
            return get(*args, **kwargs)
        try:
            with _expected(LONGEST_WAIT):
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
        with _expected(LONGEST_LISTING + 1):  # a second after its own limit
            return self._get(url, arguments)

    def _get(self, url: str, arguments: dict[str, Any]) -> Any:
        if not callable(getattr(self._session, "stream", None)):  # requests, which clients before 1.0 use
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
        if _largest.get() is None:
            return get(url, temp_file, *args, expected_size=expected_size, **kwargs)
        if expected_size is not None and not isinstance(temp_file, _Limited):  # it is called again by itself
            temp_file = _Limited(temp_file, expected_size)
        file_download = importlib.import_module("huggingface_hub.file_download")
        by_bytes = hasattr(file_download, "http_stream_backoff")
        try:
            with _expected(LONGEST_WAIT if by_bytes else _WAIT_BY_BLOCKS):
                return get(url, temp_file, *args, expected_size=expected_size, **kwargs)
        except HostileAnswer:  # a client before 1.0 would go on from what there is
            with suppress(OSError):  # Windows keeps what is open
                Path(temp_file.name).unlink()
            raise

    return limited


def _counting(stream: Callable[..., Any]) -> Callable[..., Any]:
    """The client's function that opens an answer of httpx, whose bytes are then counted as they come."""

    @contextmanager
    def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with stream(*args, **kwargs) as response:
            progress, iter_raw = _progress.get(), response.iter_raw

            def raw(chunk_size: int | None = None) -> Iterator[bytes]:
                for block in iter_raw(chunk_size):
                    if progress is not None:
                        progress.add(len(block))
                    yield block

            response.iter_raw = raw
            yield response

    return counted


class _Limited:
    """An open file that refuses to grow beyond a size."""

    def __init__(self, file: Any, limit: int) -> None:
        self._file, self._most = file, limit

    def write(self, data: bytes) -> int:
        if self._file.tell() + len(data) > self._most:
            raise HostileAnswer(f"the server sends more than the {self._most:,} bytes that it promised")
        if (progress := _progress.get()) is not None:
            progress.add(len(data))
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

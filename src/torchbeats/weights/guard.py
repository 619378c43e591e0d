"""What a Hub says is not believed: its client makes file names of headers, and writes whatever arrives.

``huggingface_hub`` keeps a file under the ETag that the server sends, in a folder of the commit that the server sends,
and finds out that a body is longer than promised when it has written all of it. `guarded` looks at the answers before
the client acts on them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from torchbeats.weights.sidecars import LARGEST

_PLAIN = re.compile(r"[\w=+-][\w.=+-]{0,127}", re.ASCII)  # one name inside a folder, on every system
_COMMIT_HEADER = "X-Repo-Commit"

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
    """Around a call of ``hf_hub_download``: answers are checked as they come in.

    Args:
        sidecar: the file describes weights, so it is small.

    Raises:
        HostileAnswer: an ETag or commit that is no plain name, a body longer than promised, or a sidecar that is not
            small; before anything of it is written outside the cache.
    """
    _install()
    token = _largest.set(LARGEST if sidecar else 2**63)
    try:
        yield
    finally:
        _largest.reset(token)


@functools.cache
def _install() -> None:
    """Put the checks around the two functions of the client that hear the server; they act in `guarded` only.

    Once for good, so that downloads in several threads do not take the checks from each other.
    """
    from huggingface_hub import file_download

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
        for said, name in (("ETag", metadata.etag), ("hash", getattr(content, "file_hash", None))):
            if name is not None and not is_plain(name):
                raise HostileAnswer(f"the server calls its content by the {said} {name!r:.100}, which is no plain name")
        if metadata.size is not None and not 0 <= metadata.size <= largest:
            raise HostileAnswer(f"the server promises {metadata.size:,} bytes, where at most {largest:,} make sense")
        return metadata

    return checked


def _check_commit(commit: str | None) -> None:
    if commit is not None and not is_plain(commit):
        raise HostileAnswer(f"the server names the commit {commit!r:.100}, which is no plain name")


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

    def __init__(self, file: Any, most: int) -> None:
        self._file, self._most = file, most

    def write(self, data: bytes) -> int:
        if self._file.tell() + len(data) > self._most:
            raise HostileAnswer(f"the server sends more than the {self._most:,} bytes that it promised")
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

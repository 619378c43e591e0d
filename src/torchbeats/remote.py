"""Files at a URL of any store that fsspec knows: what the store says of them, and their bytes.

A small file is fetched whole, a large one block by block as it is read. What fails is tried again a few times, unless
it would fail again.
"""

from __future__ import annotations

import io
import os
import re
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from torchbeats.errors import AudioError, MissingPackageError
from torchbeats.extras import require

# zip://inner.wav::s3://bucket/archive.zip is one, C:\sounds is none.
_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]+://")

RETRY_SECONDS = (0.5, 1.0, 2.0)  # before the second attempt, the third, and the last
WHOLE_BYTES = 2**25  # a file up to this size is fetched by one request
BLOCK_BYTES = 2**23  # of a larger one
HELD_BLOCKS = 3  # of each file: decoders go to and fro between a header and the sound
MOST_BYTES = 2**28  # of a file that its store cannot send in parts

PACKAGES = frozenset({"s3fs", "aiohttp", "braceexpand", "fsspec"})  # that the extra installs
EXTRA = "remote"

Result = TypeVar("Result")


class Details(NamedTuple):
    """What a store says of a file.

    Attributes:
        size: in bytes; None where it does not say.
        version: is another where the content is: a checksum or a time of change; empty where it does not say.
    """

    size: int | None = None
    version: str = ""


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL, and no file of this machine that is called like one."""
    text = os.fspath(path)
    return _URL.match(text) is not None and not os.path.lexists(text)


def absolute(path: str | os.PathLike[str]) -> str:
    """A path that means the same in every working directory; a URL stays as it is."""
    return os.fspath(path) if is_url(path) else os.path.abspath(path)


def store_of(url: str) -> tuple[Any, str]:
    """The store of a URL, as a file system of fsspec's, and what the URL is called there.

    Raises:
        AudioError: there is no such store, or it cannot be reached.
        MissingPackageError: a package for it is not installed.
    """
    fsspec = require("fsspec", EXTRA)
    # Not what a listing said a while ago: an update asks what there is now.
    files, path = attempt(url, lambda: fsspec.core.url_to_fs(url, use_listings_cache=False))
    return files, str(path)


def attempt(url: str, call: Callable[[], Result]) -> Result:
    """What a call gives that asks a store; tried again after a pause where that may help.

    Raises:
        AudioError: it fails every time, or would.
        MissingPackageError: a package for the store is not installed.
    """
    for pause in RETRY_SECONDS:
        try:
            return call()
        except Exception as error:
            if _is_final(error):
                raise _told(url, error) from error
        time.sleep(pause)
    try:
        return call()
    except Exception as error:
        raise _told(url, error) from error


def describe(url: str) -> Details:
    """What the store says of a file.

    Raises:
        AudioError: there is no such file, or the store does not answer.
        MissingPackageError: a package for the store is not installed.
    """
    files, path = store_of(url)
    return details_of(attempt(url, lambda: files.info(path)))


def details_of(info: Mapping[str, Any]) -> Details:
    """The same from an entry of a listing."""
    size = info.get("size")
    for names in (("ETag", "etag", "Content-MD5", "Digest", "CRC", "blob_id", "md5Hash", "content_md5"), _TIMES):
        for name in names:
            if info.get(name) not in (None, ""):
                return Details(size, f"{name} {info[name]}".replace('"', ""))
    return Details(size)


_TIMES = ("Last-Modified", "LastModified", "last_modified", "updated", "mtime", "modified", "created", "date_time")


def read(url: str, start: int, end: int) -> bytes:
    """Some bytes of a file.

    Raises:
        AudioError: they cannot be had.
        MissingPackageError: a package for the store is not installed.
    """
    files, path = store_of(url)
    return attempt(url, lambda: _exactly(files.cat_file(path, start=start, end=end), end - start))


def open_url(url: str, size: int | None = None) -> BinaryIO:
    """A file at a URL, open for reading at any place.

    Args:
        url: of the file.
        size: in bytes, where it is known; the store is asked otherwise.

    Raises:
        AudioError: it cannot be had, or is larger than `MOST_BYTES` and its store cannot send it in parts.
        MissingPackageError: a package for the store is not installed.
    """
    files, path = store_of(url)
    in_parts = True
    if size is None:
        info = attempt(url, lambda: files.info(path))
        if info.get("type") == "directory":
            raise AudioError(url, "it is a folder, not a file")
        size, in_parts = info.get("size"), info.get("partial", True)
    if size is not None and (size <= WHOLE_BYTES or (not in_parts and size <= MOST_BYTES)):
        return _named(io.BytesIO(attempt(url, lambda: _exactly(files.cat_file(path), size))), url)
    if size is None:
        return _named(io.BytesIO(attempt(url, lambda: _at_most(url, files, path))), url)
    if not in_parts:
        raise AudioError(url, _TOO_LARGE)
    if not getattr(files, "async_impl", False):  # a local file, an archive, or a store with retries of its own
        return cast(BinaryIO, attempt(url, lambda: files.open(path, "rb")))
    return io.BufferedReader(_Blocks(url, files, path, size), 2**16)


@contextmanager
def opened(url: str) -> Iterator[BinaryIO]:
    """The same, closed in the end; what is missing on this machine is an `AudioError` too."""
    try:
        file = open_url(url)
    except MissingPackageError as error:
        raise AudioError(url, str(error).removesuffix(".")) from error
    with file:
        yield file


def failure_of(file: BinaryIO) -> AudioError | None:
    """Why an open file seems to end before its end, if it does."""
    failure = getattr(getattr(file, "raw", None), "failure", None)
    return failure if isinstance(failure, AudioError) else None


_TOO_LARGE = (
    f"its store does not send parts of a file, and it has more than {MOST_BYTES >> 20} MB: download it and name the "
    "file"
)


class _CutError(OSError):
    """Fewer bytes came than the file has."""


def _exactly(content: bytes, size: int) -> bytes:
    if len(content) < size:
        raise _CutError(f"the connection was cut: {len(content):,} of {size:,} bytes came")
    return content


def _at_most(url: str, files: Any, path: str) -> bytes:
    """All of a file whose size is not known."""
    content = bytearray()
    with files.open(path, "rb") as file:
        while more := file.read(MOST_BYTES - len(content)):  # a stream gives what has come so far, not all of it
            content += more
            if len(content) >= MOST_BYTES:
                raise AudioError(url, _TOO_LARGE)
    return bytes(content)


def _named(file: io.BytesIO, name: str) -> BinaryIO:
    file.name = name
    return file


class _Blocks(io.RawIOBase):
    """A large file, fetched block by block as it is read; the last few blocks are kept.

    Where a block cannot be had the file seems to end, since decoders cannot hand an exception on; `failure_of` tells.
    """

    def __init__(self, url: str, files: Any, path: str, size: int) -> None:
        self.name, self._files, self._path, self._size = url, files, path, size
        self.failure: AudioError | None = None
        self._position = 0
        self._held: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a place before the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size or self.failure is not None:
            return 0
        number, first = divmod(self._position, BLOCK_BYTES)
        try:
            content = self._block(number)[first : first + len(buffer)]
        except AudioError as error:
            self.failure = error
            return 0
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def _block(self, number: int) -> bytes:
        if number not in self._held:
            start = number * BLOCK_BYTES
            end = min(start + BLOCK_BYTES, self._size)
            content = attempt(
                self.name, lambda: _exactly(self._files.cat_file(self._path, start=start, end=end), end - start)
            )
            if len(content) > end - start:
                raise AudioError(self.name, _TOO_LARGE)
            self._held[number] = content
            if len(self._held) > HELD_BLOCKS:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]


# --- what is wrong ----------------------------------------------------------------------------------------------------

_FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError, NotImplementedError),
    *(ValueError, KeyError, TypeError, zipfile.BadZipFile, AudioError),
)
# Of botocore, which need not be installed.
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound"})


def _status(error: BaseException) -> int | None:
    """What an HTTP server answered."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _cause(error: Exception) -> BaseException:
    """What fsspec calls a missing file may be a refusal, or a server that does not answer."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and type(cause).__module__.startswith("aiohttp"):
        return error if cause is None or _status(cause) in (404, 410) else cause
    return error


def _is_final(error: Exception) -> bool:
    cause = _cause(error)
    status = _status(cause)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 425, 429)
    return isinstance(cause, _FINAL) or type(cause).__name__ in _NO_CREDENTIALS


def _told(url: str, error: Exception) -> AudioError | MissingPackageError:
    """The error in a sentence."""
    cause = _cause(error)
    if isinstance(cause, (AudioError, MissingPackageError)):
        return cause
    if isinstance(cause, ImportError):
        package = getattr(cause.__cause__, "name", None) or cause.name or str(cause)
        if package in PACKAGES:
            return MissingPackageError(package, EXTRA)
        return AudioError(url, f"its store needs the package {package}: pip install {package}")
    status, words = _status(cause), (str(cause).splitlines() or [""])[0].rstrip(".") or type(cause).__name__
    if type(cause).__name__ in _NO_CREDENTIALS:
        return AudioError(url, f"no credentials are known for its store ({words}); give them as its client reads them")
    if isinstance(cause, PermissionError) or status in (401, 403):
        return AudioError(url, f"its store denies access ({words}); check the credentials")
    if isinstance(cause, FileNotFoundError):
        return AudioError(url, "there is no such file")
    if isinstance(cause, ValueError) and "rotocol" in words:
        return AudioError(url, f"no store of this kind is known ({words})")
    return AudioError(url, f"it cannot be read ({words})")

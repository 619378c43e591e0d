"""What a URL means: a file, all files below a prefix, or those whose names match a pattern; listed page by page."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

from torchbeats import remote
from torchbeats.audio import AUDIO_SUFFIXES
from torchbeats.errors import AudioError, InputError, MissingPackageError
from torchbeats.extras import require
from torchbeats.remote import Details

LOOKUPS = 16  # files that a store is asked about at the same time


class RemoteSound(NamedTuple):
    """A sound file at a URL.

    Attributes:
        url: of the file.
        size: in bytes; None where the store does not say.
        version: is another where the file is; see `remote.Details`.
    """

    url: str
    size: int | None = None
    version: str = ""

    def open(self) -> BinaryIO:
        """The sound as an open file.

        Raises:
            AudioError: it cannot be had.
        """
        try:
            return remote.open_url(self.url, self.size)
        except MissingPackageError as error:
            raise AudioError(self.url, str(error).removesuffix(".")) from error


class _Parts(NamedTuple):
    """A URL: ``s3://`` and ``bucket/name``; or ``zip://``, ``inner`` and ``::s3://bucket/archive.zip``."""

    scheme: str
    inside: str
    tail: str

    @property
    def is_web(self) -> bool:
        return self.scheme in ("http://", "https://")

    def magic(self) -> re.Match[str] | None:
        """The first character that stands for others. A question mark in a web address is none."""
        return re.search(r"[*]" if self.is_web else r"[*?[]", self.inside)


def _parts(url: str) -> _Parts:
    head = url.index("://") + len("://")
    inside, separator, tail = url[head:].partition("::")
    return _Parts(url[:head], inside, separator + tail)


def has_magic(url: str) -> bool:
    """Whether a URL is a pattern."""
    return _parts(url).magic() is not None


def suffix_of(url: str) -> str:
    """The ending of a file's name, in small letters; what follows a web address behind a question mark apart."""
    parts = _parts(url) if remote.is_url(url) else _Parts("", url, "")
    inside = parts.inside.split("?")[0].split("#")[0] if parts.is_web else parts.inside
    return os.path.splitext(inside)[1].lower()


def expand_braces(pattern: str) -> list[str]:
    """``{000..127}`` and ``{a,b}`` spelt out.

    Raises:
        InputError: braces that do not match.
        MissingPackageError: the package braceexpand is not installed.
    """
    if "{" not in pattern:
        return [pattern]
    try:
        return list(require("braceexpand", remote.EXTRA).braceexpand(pattern))
    except ValueError as error:
        raise InputError(f"{pattern} cannot be read: {error}.") from error


def sounds_at(url: str) -> Iterator[RemoteSound]:
    """The sound files that a URL means, in a fixed order, as the store lists them.

    Args:
        url: of a file; of a folder, or a prefix that ends in ``/``, for all files below with names that end like sound,
            hidden ones left out; or a pattern with ``*`` (within a name) or ``**``, for those of them that match.
            Braces are spelt out before.

    Raises:
        InputError: there are none, or the store cannot be asked.
        MissingPackageError: a package for the store is not installed.
    """
    for one in expand_braces(url):
        yield from _sounds_at(one)


def _sounds_at(url: str) -> Iterator[RemoteSound]:
    parts = _parts(url)
    if not parts.magic() and not _is_folder(url, parts):
        yield RemoteSound(url)
        return
    empty = True
    for sound in matches(url):
        if suffix_of(sound.url) in AUDIO_SUFFIXES:
            empty = False
            yield sound
    if empty:
        raise InputError(f"There is no sound file at {url}.")


def _is_folder(url: str, parts: _Parts) -> bool:
    """Whether a URL means what is below it. Of what ends like sound, nobody is asked."""
    if not parts.inside or parts.inside.endswith("/"):
        return True
    if parts.is_web or suffix_of(url) in AUDIO_SUFFIXES:
        return False
    try:
        files, path = remote.store_of(url)
        return bool(remote.attempt(url, lambda: files.isdir(path)))
    except AudioError:  # which reading will say
        return False


def matches(url: str) -> Iterator[RemoteSound]:
    """All files below a prefix or that a pattern means, in a fixed order; hidden ones left out.

    Raises:
        InputError: there is no such place, or the store cannot be asked.
        MissingPackageError: a package for the store is not installed.
    """
    parts = _parts(url)
    magic = parts.magic()
    folder = parts.inside if magic is None else parts.inside[: magic.start()].rpartition("/")[0]
    folder = folder + "/" if folder and not folder.endswith("/") else folder
    pattern = None if magic is None else _compiled(parts.inside[len(folder) :])
    try:
        files, root = remote.store_of(parts.scheme + folder + parts.tail)
        begin = "" if magic is None else parts.inside[len(folder) : magic.start()]
        deep = magic is None or "**" in parts.inside or "/" in parts.inside[len(folder) :]
        for name, details in _listed(url, files, root.rstrip("/"), begin, deep):
            if any(part.startswith(".") for part in name.split("/")):
                continue
            if pattern is None or pattern.fullmatch(name):
                yield RemoteSound(parts.scheme + folder + name + parts.tail, *details)
    except AudioError as error:
        raise InputError(f"{url}: {error.reason}.") from error


def _compiled(pattern: str) -> re.Pattern[str]:
    """``**`` stands for any folders, ``*`` for any characters but ``/``, ``?`` for one, ``[abc]`` for one of them."""
    tokens = re.compile(r"\*\*/|\*\*|\*|\?|\[!?[^]]+\]|.", re.DOTALL)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def translated(token: str) -> str:
        if len(token) > 2 and token.startswith("["):
            return "[" + re.sub("^!", "^", token[1:-1]).replace("\\", "\\\\") + "]"
        return known.get(token) or re.escape(token)

    return re.compile("".join(map(translated, tokens.findall(pattern))), re.DOTALL)


def _listed(url: str, files: Any, root: str, begin: str, deep: bool) -> Iterator[tuple[str, Details]]:
    """Names below a folder of a store, relative to it, with what the store says of them."""
    if hasattr(files, "call_s3") and root:
        return _pages(url, files, root, begin, deep)
    return _walk(url, files, root, deep)


def _pages(url: str, files: Any, root: str, begin: str, deep: bool) -> Iterator[tuple[str, Details]]:
    """Of S3, a thousand at a time, in the order of the names' bytes."""
    bucket, _, key = root.partition("/")
    above = key + "/" if key else ""
    question = {"Bucket": bucket, "Prefix": above + begin, **({} if deep else {"Delimiter": "/"})}
    while True:
        page = remote.attempt(url, lambda: files.call_s3("list_objects_v2", **question))
        for item in page.get("Contents", ()):
            info = {**item, "size": item["Size"]}
            yield item["Key"][len(above) :], remote.details_of(info)
        if not page.get("IsTruncated"):
            return
        question["ContinuationToken"] = page["NextContinuationToken"]


def _walk(url: str, files: Any, root: str, deep: bool) -> Iterator[tuple[str, Details]]:
    """Of any other store, folder by folder: its files by name, then the folders in it."""
    waiting = [root]
    while waiting:
        parent = waiting.pop()
        entries: list[Mapping[str, Any]] = remote.attempt(url, lambda: files.ls(parent, detail=True))  # noqa: B023
        entries = sorted(entries, key=lambda entry: str(entry["name"]))
        below = []
        for entry in entries:
            name = str(entry["name"]).rstrip("/")
            if not name.startswith(root) or len(name) <= len(parent):  # a web page's links lead anywhere
                continue
            if entry["type"] == "directory":
                below.append(name)
            else:
                yield name[len(root) :].lstrip("/"), remote.details_of(entry)
        if deep:
            waiting += reversed(below)


def described(urls: Iterable[RemoteSound]) -> list[RemoteSound]:
    """The same with what their stores say of them, several asked at a time; where none answers, as they are.

    Raises:
        MissingPackageError: a package for a store is not installed.
    """

    def ask(sound: RemoteSound) -> RemoteSound:
        if sound.version:
            return sound
        try:
            return RemoteSound(sound.url, *remote.describe(sound.url))
        except AudioError:  # reading it says what is wrong
            return sound

    with ThreadPoolExecutor(LOOKUPS, thread_name_prefix="lookup") as pool:
        return list(pool.map(ask, urls))

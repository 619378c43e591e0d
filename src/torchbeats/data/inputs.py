"""What a command is given → the list of sounds it means."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from torchbeats.audio import AudioWarning
from torchbeats.data import shards, urls
from torchbeats.data.folders import Omissions, sounds_in_folder
from torchbeats.data.list_formats.formats import LIST_SUFFIXES
from torchbeats.data.lists import LONGEST_PATH, iterate_list
from torchbeats.data.shards import ShardSound, UnreadableShard
from torchbeats.data.sources import SoundSource
from torchbeats.data.stored import StoredSound
from torchbeats.data.urls import RemoteSound
from torchbeats.errors import AudioError, InputError, some_of
from torchbeats.files import special_kind
from torchbeats.remote import is_url

LOOKED_UP = 64  # URLs that are asked about together


@dataclass(frozen=True)
class Piece:
    """A part of a file.

    Attributes:
        path: of the file, or its URL.
        start: in seconds.
        end: in seconds; None for the file's end.
        content: where the sound is, if it is no file of this machine but lies in a list, a shard or at a URL; then
            ``path`` is its name.
    """

    path: str
    start: float = 0.0
    end: float | None = None
    content: SoundSource | None = None


def find_audio(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    follow_links: bool = False,
    notes: Callable[[str], None] | None = None,
) -> list[str]:
    """The sound files that the inputs name, each once, in a fixed order.

    Args:
        inputs: as for `find_sounds`.
        follow_links: as for `find_sounds`.
        notes: as for `find_sounds`.

    Returns:
        Paths. Files that are named outright are in it whether they exist or not: reading them says what is wrong.

    Raises:
        InputError: a folder without sounds, a list that cannot be read or holds sounds itself, or no file at all.
    """
    if notes is None:
        notes = partial(warnings.warn, category=AudioWarning, stacklevel=4)
    result: dict[str, None] = {}
    for piece in find_sounds(inputs, follow_links=follow_links, notes=notes):
        if isinstance(piece.content, (StoredSound, ShardSound, UnreadableShard)):
            raise InputError(
                f"{piece.content.file} holds sounds in itself, not paths of files; here files are needed: write each "
                "sound to a file of its own."
            )
        result[piece.path] = None
    return list(result)


def find_sounds(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    follow_links: bool = False,
    notes: Callable[[str], None] | None = None,
) -> list[Piece]:
    """The sounds that the inputs name, each piece of a file once, in a fixed order.

    Args:
        inputs: files; folders, searched with all below them for names that end like sound, hidden ones left out; lists
            with one of `LIST_SUFFIXES`, which may say where in a file a sound starts and ends, and Parquet that holds
            the sounds themselves; "-" for paths on standard input, one a line or as ``find -print0`` writes them; URLs
            of files, folders or patterns in any store that fsspec knows, as of `urls.sounds_at`; and WebDataset shards,
            ``.tar``, by path, URL or pattern. Paths in a list are relative to its folder or, where nothing is found
            there, to the working directory; they may be URLs.
        follow_links: search the folders as well that links in a folder lead to, each once.
        notes: called with a sentence for each kind of thing in folders that was left out: links to folders, folders
            that cannot be searched, named pipes and devices, files with attributes from macOS. By default each is an
            `AudioWarning`.

    Returns:
        Pieces. Whether a file exists, and has such a piece, is found out by reading it.

    Raises:
        InputError: a folder without sounds, a list that cannot be read, or no file at all.
    """
    if notes is None:
        notes = partial(warnings.warn, category=AudioWarning, stacklevel=3)
    return list(iterate_sounds(inputs, follow_links=follow_links, notes=notes))


def iterate_sounds(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    follow_links: bool = False,
    notes: Callable[[str], None] | None = None,
) -> Iterator[Piece]:
    """The same one by one, while the search goes on; what is wrong with an input is said when it is reached.

    Args:
        inputs: as for `find_sounds`.
        follow_links: as for `find_sounds`.
        notes: as for `find_sounds`; called at the end.
    """
    if notes is None:
        notes = partial(warnings.warn, category=AudioWarning, stacklevel=2)
    names = [os.fspath(name) for name in inputs]
    omissions = Omissions()
    sounds = described(chain.from_iterable(_expand(name, omissions, follow_links) for name in names))
    one_folder = len(names) == 1 and os.path.isdir(names[0])  # a search comes by every file once
    empty = True
    for sound in sounds if one_folder else distinct(sounds, notes):
        empty = False
        yield sound
    for line in omissions.lines():
        notes(line)
    if empty:
        raise InputError("The inputs name no files.")


def described(sounds: Iterable[Piece]) -> Iterator[Piece]:
    """The same; those at URLs with what their stores say of them, so that a change will be noticed."""
    waiting: list[Piece] = []
    for sound in sounds:
        if sound.content is None and is_url(sound.path):
            sound = replace(sound, content=RemoteSound(sound.path))
        if not waiting and not isinstance(sound.content, RemoteSound):
            yield sound
            continue
        waiting.append(sound)
        if len(waiting) == LOOKED_UP:
            yield from _looked_up(waiting)
            waiting = []
    yield from _looked_up(waiting)


def _looked_up(sounds: list[Piece]) -> list[Piece]:
    remote = [sound.content for sound in sounds if isinstance(sound.content, RemoteSound)]
    contents = iter(urls.described(remote))
    return [
        replace(sound, content=next(contents)) if isinstance(sound.content, RemoteSound) else sound for sound in sounds
    ]


def distinct(sounds: Iterable[Piece], notes: Callable[[str], None] | None = None) -> Iterator[Piece]:
    """Each sound once, whatever its names. Of those that have been, hashes of 64 bits are kept.

    Args:
        sounds: some of which may be the same.
        notes: called at the end with a sentence about names of files that had come by other names.
    """
    seen: dict[int, int] = {}
    aliases: list[str] = []
    for sound in sounds:
        name, identity = hash(repr(sound)), hash(_identity(sound))
        if identity not in seen:
            seen[identity] = name
            yield sound
        elif seen[identity] != name:
            aliases.append(sound.path)
    if aliases and notes is not None:
        notes(f"Other names of files that were named before were left out: {some_of(aliases, 3)}.")


def _identity(sound: Piece) -> Hashable:
    """Equal for two names of the same piece of the same file; hard links are files of their own."""
    if sound.content is not None:
        return repr(sound)
    try:
        about = os.stat(sound.path)
        known = about.st_nlink == 1 and about.st_ino  # some file systems number no files: 0 says so
        file: Hashable = (about.st_dev, about.st_ino) if known else os.path.realpath(sound.path)
    except (OSError, ValueError):
        file = os.path.abspath(sound.path)
    return file, sound.start, sound.end


def _expand(name: str, omissions: Omissions, follow_links: bool) -> Iterator[Piece]:
    if name == "-":
        names = (os.fsdecode(raw_name).rstrip("\r\n") for raw_name in _split(sys.stdin.buffer))
        yield from (Piece(raw_name) for raw_name in names if raw_name.strip())
    elif shards.is_shard(name) and not os.path.isdir(name):
        for shard in shards.expand(name):
            yield from _in_shard(shard)
    elif is_url(name):
        if urls.suffix_of(name) in LIST_SUFFIXES:
            raise InputError(f"The list {name} must be a file of this machine: download it. It may hold URLs.")
        yield from (Piece(sound.url, content=sound) for sound in urls.sounds_at(name))
    elif os.path.isdir(name):
        yield from map(Piece, sounds_in_folder(name, omissions, follow_links=follow_links))
    elif Path(name).suffix.lower() in LIST_SUFFIXES:
        if kind := special_kind(name):
            raise InputError(f"The list {name} is {kind}, not a file. Paths are read from - (stdin).")
        yield from (Piece(row.path, row.start, row.end, row.content) for row in iterate_list(Path(name)))
    else:
        yield Piece(name)


def _in_shard(shard: str) -> Iterator[Piece]:
    """The sounds in a shard; where it breaks off, behind them something that says so when it is read."""
    count = 0
    try:
        for sound in shards.sounds_in(shard):
            count += 1
            yield Piece(sound.path, content=sound)
    except AudioError as error:
        reason = f"{error.reason}; the {count:,} sounds before are used" if count else error.reason
        yield Piece(shard, content=UnreadableShard(shard, reason))


def _split(file: BinaryIO) -> Iterator[bytes]:
    """Names in a stream, as bytes: they need not be UTF-8. They end in NUL, as of find -print0, or with the line."""
    block = file.read(2 * LONGEST_PATH)  # long enough for one whole name
    separator = b"\0" if b"\0" in block else b"\n"
    tail = b""
    while block:
        *names, tail = (tail + block).split(separator)
        yield from names
        block = file.read(1 << 16)
    yield tail

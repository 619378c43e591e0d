"""What a command is given → the list of sounds it means."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from torchbeats.audio import AudioWarning
from torchbeats.data.folders import Omissions, sounds_in_folder
from torchbeats.data.list_formats.formats import LIST_SUFFIXES
from torchbeats.data.lists import LONGEST_PATH, iterate_list
from torchbeats.data.stored import MemorySound, StoredSound
from torchbeats.errors import InputError
from torchbeats.files import special_kind


@dataclass(frozen=True)
class Piece:
    """A part of a file.

    Attributes:
        path: of the file.
        start: in seconds.
        end: in seconds; None for the file's end.
        content: where the sound is, if it is no file but lies in a list; then ``path`` is its name.
    """

    path: str
    start: float = 0.0
    end: float | None = None
    content: StoredSound | MemorySound | None = None


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
        if isinstance(piece.content, StoredSound):
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
            the sounds themselves; "-" for paths on standard input, one a line or as ``find -print0`` writes them. Paths
            in a list are relative to its folder or, where nothing is found there, to the working directory.
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
    sounds = chain.from_iterable(_expand(name, omissions, follow_links) for name in names)
    one_folder = len(names) == 1 and os.path.isdir(names[0])  # a search comes by every file once
    empty = True
    for sound in sounds if one_folder else distinct(sounds):
        empty = False
        yield sound
    for line in omissions.lines():
        notes(line)
    if empty:
        raise InputError("The inputs name no files.")


def distinct(sounds: Iterable[Piece]) -> Iterator[Piece]:
    """Each sound once. Of those that have been, hashes of 64 bits are kept."""
    seen: set[int] = set()
    for sound in sounds:
        identity = hash(repr(sound))
        if identity not in seen:
            seen.add(identity)
            yield sound


def _expand(name: str, omissions: Omissions, follow_links: bool) -> Iterator[Piece]:
    if name == "-":
        names = (os.fsdecode(raw_name).rstrip("\r\n") for raw_name in _split(sys.stdin.buffer))
        yield from (Piece(raw_name) for raw_name in names if raw_name.strip())
    elif os.path.isdir(name):
        yield from map(Piece, sounds_in_folder(name, omissions, follow_links=follow_links))
    elif Path(name).suffix.lower() in LIST_SUFFIXES:
        if kind := special_kind(name):
            raise InputError(f"The list {name} is {kind}, not a file. Paths are read from - (stdin).")
        yield from (Piece(row.path, row.start, row.end, row.content) for row in iterate_list(Path(name)))
    else:
        yield Piece(name)


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

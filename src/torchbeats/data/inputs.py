"""What a command is given → the list of sound files it means."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torchbeats.audio import AUDIO_SUFFIXES
from torchbeats.data.lists import LIST_SUFFIXES, read_list
from torchbeats.data.stored import StoredSound
from torchbeats.errors import InputError


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
    content: StoredSound | None = None


def find_audio(inputs: Iterable[str | os.PathLike[str]]) -> list[str]:
    """The sound files that the inputs name, each once, in a fixed order.

    Args:
        inputs: files; folders, searched with all below them for names that end like sound, hidden ones left out;
            lists with one of `LIST_SUFFIXES`; "-" for paths on standard input, one a line or
            as `find -print0` writes them. Paths in a list are
            relative to its folder or, where nothing is found there, to the working directory.

    Returns:
        Paths. Files that are named outright are in it whether they exist or not: reading them says what is wrong.

    Raises:
        InputError: a folder without sounds, a list that cannot be read or holds sounds itself, or no file at all.
    """
    result: dict[str, None] = {}
    for piece in find_sounds(inputs):
        if piece.content is not None:
            raise InputError(
                f"{piece.content.file} holds sounds in itself, not paths of files; here files are needed: write each "
                "sound to a file of its own."
            )
        result[piece.path] = None
    return list(result)


def find_sounds(inputs: Iterable[str | os.PathLike[str]]) -> list[Piece]:
    """As `find_audio`, with what a list says of where in a file a sound starts and ends: each piece once.

    A list may also be Parquet that holds the sounds themselves. Whether a file has such a piece is found out by
    reading it.
    """
    result: dict[Piece, None] = {}
    for name in inputs:
        result.update(dict.fromkeys(_expand(os.fspath(name))))
    if not result:
        raise InputError("The inputs name no files.")
    return list(result)


def _expand(name: str) -> Iterator[Piece]:
    if name == "-":
        data = sys.stdin.buffer.read()  # as bytes: names need not be UTF-8
        separator = b"\0" if b"\0" in data else b"\n"  # that of find -print0, or one a line
        names = (os.fsdecode(one).rstrip("\r\n") for one in data.split(separator))
        yield from (Piece(one) for one in names if one.strip())
    elif os.path.isdir(name):
        yield from map(Piece, _in_folder(name))
    elif Path(name).suffix.lower() in LIST_SUFFIXES:
        yield from (Piece(row.path, row.start, row.end, row.content) for row in read_list(Path(name)).rows)
    else:
        yield Piece(name)


def _in_folder(folder: str) -> Iterator[str]:
    empty = True
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES:
                empty = False
                yield os.path.join(parent, name)
    if empty:
        raise InputError(f"There is no sound file in the folder {folder}, nor in any below it.")

"""A folder → the sound files in it and below it, and what was left out on the way."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from torchbeats.audio import AUDIO_SUFFIXES
from torchbeats.errors import InputError, some_of


@dataclass
class Omissions:
    """What a search of folders left out, by kind; the value of each is a list of paths.

    Attributes:
        links: links to folders, which were not followed.
        repeated: folders that a link leads to, but which had been searched already; among them every loop.
        unsearchable: folders that cannot be searched, each with the reason.
        special: named pipes, devices and sockets that are called like sounds.
        metadata: ``._*`` files, in which macOS keeps attributes of the file of the same name.
    """

    links: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    unsearchable: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One sentence for each kind of which there is any."""
        kinds = [
            (self.links, "Links to folders were not followed (--follow-links, in Python follow_links=True)"),
            (self.repeated, "Links to folders that had been searched already were not followed"),
            (self.unsearchable, "Folders that could not be searched"),
            (self.special, "Named pipes, devices and sockets were left out"),
            (self.metadata, "Files with attributes from macOS (._*) were left out"),
        ]
        return [f"{reason}: {some_of(paths, 3)}." for paths, reason in kinds if paths]


def sounds_in_folder(folder: str, omissions: Omissions, *, follow_links: bool = False) -> Iterator[str]:
    """The files in a folder, and in all folders below it, that are called like sounds.

    A folder's own files come before those below it, each by name. Hidden files and folders are left out. Only regular
    files count, and links to them; a link to nothing counts as well, so that reading it says what is wrong.

    Args:
        folder: where the search starts; itself it may be a link.
        omissions: what was left out, and is not just hidden or no sound, is added to it.
        follow_links: search the folders that links lead to as well, each once.

    Yields:
        Paths that begin with ``folder``.

    Raises:
        InputError: there is no sound.
    """
    own = Omissions()
    empty = True
    visited: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        parent = pending.pop()
        try:
            if follow_links and not _first_visit(parent, visited):
                own.repeated.append(parent)
                continue
            names, below = _entries(parent, own, follow_links)
        except OSError as error:
            own.unsearchable.append(f"{parent} ({error.strerror})")
            continue
        for name in names:
            empty = False
            yield os.path.join(parent, name)
        pending += reversed(below)
    _add(own, omissions)
    if empty:
        reasons = " ".join(own.lines())
        raise InputError(f"There is no sound file in the folder {folder}, nor in any below it. {reasons}".rstrip())


def _entries(parent: str, omissions: Omissions, follow_links: bool) -> tuple[list[str], list[str]]:
    """Names of the sounds in a folder, and paths of the folders in it; names alone, as there may be a million."""
    own, sounds, below = Omissions(), list[str](), list[str]()
    with os.scandir(parent) as listing:
        for entry in listing:
            if _is_folder(entry):
                if entry.name.startswith("."):
                    continue
                (own.links if entry.is_symlink() and not follow_links else below).append(entry.path)
            elif _is_sound(entry, own):
                sounds.append(entry.name)
    for paths in (sounds, below, *vars(own).values()):
        paths.sort()
    _add(own, omissions)
    return sounds, below


def _first_visit(folder: str, visited: set[tuple[int, int]]) -> bool:
    about = os.stat(folder)
    identity = (about.st_dev, about.st_ino)
    if identity in visited:
        return False
    visited.add(identity)
    return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or a path that is too long
        return False


def _is_sound(entry: os.DirEntry[str], omissions: Omissions) -> bool:
    if os.path.splitext(entry.name)[1].lower() not in AUDIO_SUFFIXES:
        return False
    if entry.name.startswith("._"):
        omissions.metadata.append(entry.path)
    if entry.name.startswith("."):
        return False
    if _is_special(entry):
        omissions.special.append(entry.path)
        return False
    return True


def _is_special(entry: os.DirEntry[str]) -> bool:
    try:
        # What cannot be looked at is not called special: reading it says what is wrong.
        return not entry.is_file() and not stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return False


def _add(part: Omissions, total: Omissions) -> None:
    for kind, paths in vars(part).items():
        getattr(total, kind).extend(paths)

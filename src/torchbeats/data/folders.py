"""A folder → the sound files in it and below it, and what was left out on the way."""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from torchbeats.audio import AUDIO_SUFFIXES
from torchbeats.errors import InputError, some_of


@dataclass
class Omissions:
    """What a search of folders left out, by kind; the value of each is a list of paths.

    Attributes:
        links: links to folders, which were not followed.
        repeated: folders that a link leads to, but which had been searched already; among them every loop.
        aliases: links to files that the search finds anyway, or has found by another link.
        unsearchable: folders that cannot be searched, each with the reason.
        special: named pipes, devices and sockets that are called like sounds.
        metadata: ``._*`` files, in which macOS keeps attributes of the file of the same name.
    """

    links: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    unsearchable: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One sentence for each kind of which there is any."""
        kinds = [
            (self.links, "Links to folders were not followed (--follow-links, in Python follow_links=True)"),
            (self.repeated, "Links to folders that had been searched already were not followed"),
            (self.aliases, "Links to files that are here by another name were left out, as they are the same sounds"),
            (self.unsearchable, "Folders that could not be searched"),
            (self.special, "Named pipes, devices and sockets were left out"),
            (self.metadata, "Files with attributes from macOS (._*) were left out"),
        ]
        return [f"{reason}: {some_of(paths, 3)}." for paths, reason in kinds if paths]


def sounds_in_folder(folder: str, omissions: Omissions, *, follow_links: bool = False) -> Iterator[str]:
    """The files in a folder, and in all folders below it, that are called like sounds.

    A folder's own files come before those below it, each by name. Hidden files and folders are left out. Only regular
    files count, and links to them; a link to nothing counts as well, so that reading it says what is wrong. A file that
    links lead to comes once, by its own name if it has one here; hard links are files of their own.

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
    visited: set[Hashable] = set()
    aliases = _Aliases(folder, visited)
    pending = [folder]
    while pending:
        parent = pending.pop()
        try:
            if follow_links and not _first_visit(parent, visited):
                own.repeated.append(parent)
                continue
            names, links, below = _entries(parent, own, follow_links)
        except OSError as error:
            own.unsearchable.append(f"{parent} ({error.strerror})")
            continue
        for name in names:
            path = os.path.join(parent, name)
            if aliases.comes_otherwise(path, name in links):
                own.aliases.append(path)
                continue
            empty = False
            yield path
        pending += reversed(below)
    _add(own, omissions)
    if empty:
        reasons = " ".join(own.lines())
        raise InputError(f"There is no sound file in the folder {folder}, nor in any below it. {reasons}".rstrip())


class _Aliases:
    """Tells whether a file comes by another name too, where links lead to it; of all other files it keeps nothing.

    Args:
        folder: that is searched.
        visited: identities of the folders that were searched, if links to folders are followed.
    """

    def __init__(self, folder: str, visited: set[Hashable]) -> None:
        self._root, self._visited = os.path.realpath(folder), visited
        self._linked: set[Hashable] = set()

    def comes_otherwise(self, path: str, is_link: bool) -> bool:
        """Whether the file at a path is one that has come, or will, by another name."""
        if not is_link and not self._linked:
            return False
        try:
            identity = _identity(path)
            if identity in self._linked or (is_link and self._is_found(os.path.realpath(path))):
                return True
        except OSError:  # a link to nothing, which reading will tell
            return False
        if is_link:
            self._linked.add(identity)
        return False

    def _is_found(self, target: str) -> bool:
        """Whether the search comes by a file under this name, no part of which is a link."""
        if os.path.splitext(target)[1].lower() not in AUDIO_SUFFIXES or os.path.basename(target).startswith("."):
            return False
        if _identity(os.path.dirname(target)) in self._visited:
            return True
        parts = os.path.relpath(target, self._root).split(os.sep)
        return not any(part.startswith(".") for part in parts)  # hidden, or outside: ../


def _identity(path: str) -> Hashable:
    about = os.stat(path)
    return (about.st_dev, about.st_ino) if about.st_ino else os.path.realpath(path)  # 0: files are not numbered


def _entries(parent: str, omissions: Omissions, follow_links: bool) -> tuple[list[str], set[str], list[str]]:
    """Names of the sounds in a folder, those of them that are links, and paths of the folders in it.

    Names alone, as there may be a million.
    """
    own, sounds, links, below = Omissions(), list[str](), set[str](), list[str]()
    with os.scandir(parent) as listing:
        for entry in listing:
            if _is_folder(entry):
                if entry.name.startswith("."):
                    continue
                (own.links if entry.is_symlink() and not follow_links else below).append(entry.path)
            elif _is_sound(entry, own):
                sounds.append(entry.name)
                if entry.is_symlink():
                    links.add(entry.name)
    for paths in (sounds, below, *vars(own).values()):
        paths.sort()
    _add(own, omissions)
    return sounds, links, below


def _first_visit(folder: str, visited: set[Hashable]) -> bool:
    identity = _identity(folder)
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

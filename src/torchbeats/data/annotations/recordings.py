"""What annotations call a recording → the sound file: beside them, near them, or in folders that a user names."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from torchbeats.audio import AUDIO_SUFFIXES
from torchbeats.data.folders import Omissions, sounds_in_folder
from torchbeats.errors import InputError, SettingsError


class Recordings:
    """The sound files that annotations may be of.

    Searched are the folders that a user names, with all below them; else the folder of the annotations, the folders in
    it, the one above it, the other folders in that one, and at last all below a root. Each folder is searched once.

    Args:
        folders: named by the user.
        root: of the annotations, where a user named a folder of them.

    Raises:
        SettingsError: one of them is no folder.
        InputError: there is no sound in one of them.
    """

    def __init__(self, folders: Sequence[str | os.PathLike[str]] = (), root: Path | None = None) -> None:
        self.folders, self.root = [os.fspath(folder) for folder in folders], root
        if missing := next((folder for folder in self.folders if not os.path.isdir(folder)), None):
            raise SettingsError(f"There is no folder {missing}.")
        self._named = _Index(path for folder in self.folders for path in sounds_in_folder(folder, Omissions()))
        self._in_root: _Index | None = None
        self._nearby: dict[Path, _Index] = {}

    def within(self, root: Path) -> Recordings:
        """The same for annotations that lie below a folder."""
        return self if self.folders else Recordings(root=root)

    def path_of(self, path: str, annotations: Path) -> str | None:
        """The file with the name in a path that is not there, on whatever system it was written.

        Raises:
            InputError: several files have this name, and the path does not tell which is meant.
        """
        parts = path.replace("\\", "/").split("/")
        for index in self._indices(annotations):
            if candidates := index.by_name.get(parts[-1].lower()):
                return self._choose(candidates, parts[:-1], parts[-1], annotations)
        return None

    def named_like(self, annotations: Path) -> str | None:
        """The recording that annotations are called after: ``a.wav`` of ``a.txt`` or ``a.Table.1.selections.txt``.

        Raises:
            InputError: several files have this name.
        """
        parts = annotations.name.split(".")
        for index in self._indices(annotations):
            for count in range(len(parts) - 1, 0, -1):
                name = ".".join(parts[:count])
                if candidates := index.by_name.get(name.lower()) or index.by_stem.get(name.lower()):
                    return self._choose(candidates, [*annotations.parent.parts], name, annotations)
        return None

    def _indices(self, annotations: Path) -> Iterator[_Index]:
        if self.folders:
            yield self._named
            return
        folder = annotations.parent
        if folder not in self._nearby:
            self._nearby[folder] = _Index(_sounds_nearby(folder))
        yield self._nearby[folder]
        if self.root is not None:
            if self._in_root is None:
                self._in_root = _Index(sounds_below(self.root))
            yield self._in_root

    def _choose(self, candidates: list[str], folders: list[str], name: str, annotations: Path) -> str | None:
        """The candidate whose folders are most like those of a path, counted from the last."""
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        similarity = [_common_end([*Path(candidate).parent.parts], folders) for candidate in candidates]
        best = [match for match, count in zip(candidates, similarity, strict=True) if count == max(similarity)]
        same_folder = [match for match in best if Path(match).parent == annotations.parent]
        best = same_folder or best
        if len(best) > 1:
            raise InputError(
                f"{annotations} speaks of {name}, which may be {best[0]} or {best[1]}: name the folder with "
                "the sound that is meant (--sounds)."
            )
        return best[0]


class _Index:
    """Sound files by their names, and by their names without the ending; in lower case."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.by_name, self.by_stem = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
        for path in dict.fromkeys(paths):
            name = os.path.basename(path).lower()
            self.by_name[name].append(path)
            self.by_stem[os.path.splitext(name)[0]].append(path)


def _common_end(first: list[str], second: list[str]) -> int:
    count = 0
    while count < min(len(first), len(second)) and first[-1 - count].lower() == second[-1 - count].lower():
        count += 1
    return count


def _sounds_nearby(folder: Path) -> Iterator[str]:
    """Sounds in a folder, in the folders in it, in the one above it, and in the folders beside it."""
    yield from _sounds_directly_in(folder)
    for below in _folders_in(folder):
        yield from _sounds_directly_in(below)
    above = folder / ".." if folder.name in ("", "..") else folder.parent
    yield from _sounds_directly_in(above)
    for beside in _folders_in(above):
        if not os.path.samefile(beside, folder):
            yield from _sounds_directly_in(beside)


def sounds_below(folder: Path) -> Iterator[str]:
    """The sounds in a folder and in all below it, if there are any."""
    with suppress(InputError):  # there are none
        yield from sounds_in_folder(str(folder), Omissions())


def _sounds_directly_in(folder: Path) -> list[str]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir())
    except OSError:
        return []
    visible = (name for name in names if not name.startswith("."))
    return [str(folder / name) for name in visible if os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES]


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    except OSError:
        return []

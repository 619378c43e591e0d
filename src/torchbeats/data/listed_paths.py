"""Paths as people write them in lists → files that can be opened from here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from torchbeats.data.annotations.recordings import Recordings
from torchbeats.files import from_readable, is_called_like_url
from torchbeats.remote import is_url

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


class ListedPaths:
    """Turns the paths in a list into paths that can be opened from here, and counts what was unusual about them.

    Args:
        path: of the list.
        encoding: that the list was read as.
        recordings: where files are searched for by name that are not where a path says.
        annotations: whether the list is one of annotations, whose paths are often those of another machine.
    """

    def __init__(self, path: Path, encoding: str, recordings: Recordings, annotations: bool) -> None:
        self.path, self.folder, self.encoding = path, path.parent, encoding
        self.recordings = recordings if annotations or recordings.folders else None
        self.unusual: dict[str, tuple[int, int, str, str]] = {}

    def resolve(
        self, text: str, number: int, folders: Sequence[str] = (), other_names: Sequence[str] = ()
    ) -> str | None:
        """A path that can be opened from here; None for a comment."""
        if url := next((name.strip() for name in (text, *other_names) if is_url(name.strip())), None):
            return url
        readings = self._readings(text)
        for remark, name in [*readings, *(("", name.replace("\\", "/")) for name in other_names)]:
            if opened := self._existing(name, folders):
                if remark and not other_names:
                    self._count(remark, number, text.strip(), opened)
                return opened
        if self.recordings is not None and (opened := self.recordings.path_of(readings[0][1], self.path)):
            return opened
        if text.lstrip().startswith("#"):
            return None
        remark, name = readings[-1]
        if _DRIVE.match(name) or is_called_like_url(name):  # what is wrong with a URL is told where it is opened
            return name
        if remark:
            self._count(remark, number, text.strip(), name)
        return str(self.folder / name)

    def _readings(self, text: str) -> list[tuple[str, str]]:
        """What a text may mean, the likeliest first, and what is to be said about it."""
        readings = [("", text)]
        if (stripped := text.strip()) != text:
            readings.append(("", stripped))
        if len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "\"'":
            stripped = stripped[1:-1]
            readings.append(("", stripped))
        if self.encoding in ("cp1252", "latin-1") and not stripped.isascii():
            readings.append(
                ("", os.fsdecode(stripped.encode(self.encoding)))
            )  # the name itself may be in that encoding
            readings.append(("", stripped))
        if stripped.startswith("~") and (home := os.path.expanduser(stripped)) != stripped:
            readings.append(("~ is read as the home folder", home))
        if (escaped := from_readable(stripped)) != stripped:  # from a table of ours
            readings.append(("", escaped))
        if "\\" in stripped:
            if _DRIVE.match(stripped):
                readings.append(("", stripped))
            else:
                readings.append((r"\ in paths is read as /", stripped.replace("\\", "/")))
        return readings

    def _existing(self, name: str, folders: Sequence[str]) -> str | None:
        """The path at which a file is there: beside the list or, where nothing is, in the working directory."""
        if not name:
            return None
        for folder in (".", *folders):
            candidate = str(self.folder / folder / name)  # an absolute path stays what it is
            if os.path.exists(candidate):
                return candidate
        return name if os.path.exists(name) else None

    def _count(self, remark: str, number: int, text: str, name: str) -> None:
        count, first, *example = self.unusual.get(remark, (0, number, text, name))
        self.unusual[remark] = (count + 1, first, example[0], example[1])

    def notes(self) -> Iterator[str]:
        """What was unusual, once each."""
        for remark, (count, number, text, name) in self.unusual.items():
            yield f"{remark}, in {count:,} row{'s' * (count > 1)}: {text} (line {number:,}) is {name}."

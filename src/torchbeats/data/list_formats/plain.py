"""Lists without a header: a path a line (``.txt``), and Kaldi's ``.scp``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchbeats.data.annotations import audacity
from torchbeats.data.annotations.formats import dialect_of
from torchbeats.data.annotations.recordings import Recordings
from torchbeats.data.columns import Columns
from torchbeats.data.list_formats.raw_list import RawList, numbered_lines, read_text
from torchbeats.data.list_formats.tables import read_table

_PATH = "path of a list without a header"


def read_txt(path: Path, labels: bool | str) -> RawList:
    """A path a line; or the table of a program that calls its tables ``.txt``; or an Audacity label track."""
    text, encoding = read_text(path)
    first = next((line for line in text.split("\n") if line.strip() and not line.startswith("#")), "")
    headers = [first.split(delimiter) for delimiter in ",;\t" if delimiter in first]
    if any(Columns(names).paths or dialect_of(names) for names in headers):
        return read_table(text, encoding)  # as Raven writes its tables
    if audacity.is_track(text) or (not text.strip() and Recordings().named_like(path)):
        return RawList(audacity.COLUMNS, audacity.read_track(text), encoding=encoding, dialect=audacity.AUDACITY)
    rows = ((number, {_PATH: line}) for number, line in numbered_lines(text) if line.strip())
    return RawList([], rows, encoding=encoding, path=_PATH)


def read_scp(path: Path, labels: bool | str) -> RawList:
    """Kaldi's lists: the name of an utterance and, behind a blank, its file."""
    text, encoding = read_text(path)

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in numbered_lines(text):
            if not line.strip():
                continue
            parts = line.strip().split(maxsplit=1)
            if len(parts) < 2:
                raise ValueError(f"line {number:,} must hold the name of an utterance and its path, not {line[:60]!r}.")
            yield number, {_PATH: parts[1]}

    return RawList([], rows(), encoding=encoding, path=_PATH)

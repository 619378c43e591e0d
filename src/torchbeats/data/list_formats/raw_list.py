"""A list as its format has it: what every reader of a format gives, and how a text is read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchbeats.audio import AudioWarning
from torchbeats.data.annotations.dialects import Dialect
from torchbeats.data.text import decode

NUL = "\u2400"  # stands for the NUL character, which older versions of `csv` refuse


@dataclass
class RawList:
    """What a format gives: a list's rows as they are written, before any path or time in them is looked at.

    Attributes:
        names: of the columns.
        rows: the number of each, from 1, and its values by the names of the columns.
        unit: "line", "row" or "entry", what the numbers count.
        encoding: of the text.
        path: the column that holds the sounds, where its name does not tell.
        label_names: of columns that hold the numbers of classes, the names of these.
        dialect: of the program that wrote it, where the format belongs to one.
    """

    names: list[str]
    rows: Iterable[tuple[int, dict[str, Any]]]
    unit: str = "line"
    encoding: str = "utf-8"
    path: str | None = None
    label_names: dict[str, list[str]] = field(default_factory=dict)
    dialect: Dialect | None = None


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a text, numbered from 1; one by one, for a list of a million of them takes twice the text's room.

    Not as `str.splitlines` has them: U+2028 and its like may be in names.
    """
    text = text.replace("\0", NUL)
    start, number = 0, 1
    while (end := text.find("\n", start)) >= 0:
        yield number, text[start:end]
        start, number = end + 1, number + 1
    yield number, text[start:]


def note(path: Path, message: str) -> None:
    """An `AudioWarning` that names the list."""
    warnings.warn(f"{path}: {message}", AudioWarning, stacklevel=2)


def read_text(path: Path) -> tuple[str, str]:
    """A list's text with line ends as Python has them, and its encoding; any but UTF-8 is noted."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file.")
    text, encoding = decode(path.read_bytes())
    if encoding in ("cp1252", "latin-1"):
        number, line = next((n, line) for n, line in enumerate(text.split("\n"), 1) if not line.isascii())
        encoding_name = "Latin-1" if encoding == "latin-1" else "Latin-1 (Windows-1252)"
        note(path, f"it is not UTF-8, and is read as {encoding_name}; see line {number:,}: {line.strip()[:80]!r}.")
    text = text.lstrip("\ufeff").replace("\r\n", "\n")
    return (text if "\n" in text else text.replace("\r", "\n")), encoding

"""Text in columns under a header: CSV, TSV, and whatever else is between the columns."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchbeats.data.columns import Columns
from torchbeats.data.list_formats.raw_list import NUL, RawList, read_text

DELIMITERS = ",;\t|"


def read_csv(path: Path, labels: bool | str) -> RawList:
    """A table with a header."""
    return read_table(*read_text(path))


def read_table(text: str, encoding: str) -> RawList:
    """Text in columns; the header decides what the delimiter is."""
    lines = text.replace("\0", NUL).split("\n")
    first, separator = 0, ""
    while first < len(lines):
        line = lines[first].strip()
        if match := re.fullmatch(r"sep=(.)", line):  # for Excel
            separator = match[1]
        elif line and not (line.startswith("#") and not _header(line.lstrip("# "), separator)[1].paths):
            break
        first += 1
    if first == len(lines):
        return RawList([], ())
    lines[first] = lines[first].lstrip("# ")
    delimiter, _ = _header(lines[first], separator)
    reader = csv.reader(io.StringIO("\n".join(lines[first:]), newline="\n"), delimiter=delimiter, skipinitialspace=True)
    names = [name.strip() for name in next(reader, [])]

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        number = first + 1
        try:
            while True:
                number = first + reader.line_num + 1  # a cell may go on over several lines: where it begins
                cells = next(reader, None)
                if cells is None:
                    return
                if any("\n" in cell for cell in cells) and first + reader.line_num >= len(lines) - 1:
                    list(csv.reader(lines[number - 1 :], delimiter=delimiter, strict=True))  # is its last quote closed?
                if len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
                    if cells[0].lstrip().startswith("#"):
                        continue
                    raise ValueError(
                        f"line {number:,} has {len(cells)} cells, and the header {len(names)}; a cell with "
                        f"{delimiter!r} in it needs quotation marks."
                    )
                if cells:
                    yield number, dict(zip(names, cells, strict=False))
        except csv.Error as error:
            raise ValueError(
                f"line {number:,} is not what a table has ({error}); a quotation mark may have no partner."
            ) from error

    return RawList(names, rows(), encoding=encoding)


def _header(line: str, separator: str = "") -> tuple[str, Columns]:
    """What is between columns, and the columns: by which of the delimiters a path is among most of them."""
    choices = []
    for delimiter in separator or DELIMITERS:
        try:
            names = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error:
            continue
        columns = Columns(names)
        choices.append((bool(columns.paths), len(names), delimiter, columns))
    if not choices:
        raise ValueError("its header has a cell that is too long.")
    best = max(choices, key=lambda choice: choice[:2])
    return best[2], best[3]

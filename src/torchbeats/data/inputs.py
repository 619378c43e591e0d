"""What a command is given → the list of sound files it means."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchbeats.audio import AudioWarning
from torchbeats.data.folders import Omissions, sounds_in_folder
from torchbeats.errors import InputError
from torchbeats.files import special_kind

PATH_COLUMNS = ("path", "file", "filename", "filepath", "file_name", "audio")  # of a list, the first that is there


@dataclass(frozen=True)
class Piece:
    """A part of a file.

    Attributes:
        path: of the file.
        start: in seconds.
        end: in seconds; None for the file's end.
    """

    path: str
    start: float = 0.0
    end: float | None = None


def find_audio(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    follow_links: bool = False,
    notes: Callable[[str], None] | None = None,
) -> list[str]:
    """The sound files that the inputs name, each once, in a fixed order.

    Args:
        inputs: files; folders, searched with all below them for names that end like sound, hidden ones left out;
            lists that end in .csv, .txt, .jsonl or .parquet; "-" for paths on standard input, one a line or
            as `find -print0` writes them. Paths in a list are
            relative to its folder or, where nothing is found there, to the working directory.
        follow_links: search the folders as well that links in a folder lead to, each once.
        notes: called with a sentence for each kind of thing in folders that was left out: links to folders, folders
            that cannot be searched, named pipes and devices, files with attributes from macOS. By default each is an
            `AudioWarning`.

    Returns:
        Paths. Files that are named outright are in it whether they exist or not: reading them says what is wrong.

    Raises:
        InputError: a folder without sounds, a list that cannot be read, or no file at all.
    """
    found: dict[str, None] = {}
    omissions = Omissions()
    for given in inputs:
        found.update(dict.fromkeys(_expand(os.fspath(given), omissions, follow_links)))
    for line in omissions.lines():
        if notes is None:
            warnings.warn(line, AudioWarning, stacklevel=2)
        else:
            notes(line)
    if not found:
        raise InputError("The inputs name no files.")
    return list(found)


def find_sounds(inputs: Iterable[str | os.PathLike[str]]) -> list[Piece]:
    """As `find_audio`, with what a list says of where in a file a sound starts and ends."""
    return [Piece(path) for path in find_audio(inputs)]


def _expand(given: str, omissions: Omissions, follow_links: bool) -> Iterator[str]:
    if given == "-":
        given_names = sys.stdin.buffer.read()  # as bytes: names need not be UTF-8
        separator = b"\0" if b"\0" in given_names else b"\n"  # that of find -print0, or one a line
        names = (os.fsdecode(name).rstrip("\r\n") for name in given_names.split(separator))
        yield from (name for name in names if name.strip())
    elif os.path.isdir(given):
        yield from sounds_in_folder(given, omissions, follow_links=follow_links)
    elif Path(given).suffix.lower() in LIST_SUFFIXES:
        if os.path.exists(given) and not os.path.isfile(given):
            raise InputError(f"The list {given} is {special_kind(given)}, not a file. Paths are read from - (stdin).")
        yield from (row["path"] for row in read_list(Path(given)))
    else:
        yield given


def read_list(path: Path, columns: Collection[str] = ()) -> list[dict[str, Any]]:
    """The rows of a list that have a path.

    Args:
        path: of a list that ends in .csv, .txt, .jsonl or .parquet.
        columns: what is wanted of each row beside its path, where it has it.

    Returns:
        Dictionaries with "path", a file's path as it can be opened from here, and the columns.

    Raises:
        InputError: there is no such list, it cannot be read, or has no paths.
    """
    try:
        rows = list(_LISTS[path.suffix.lower()](path, columns))
    except FileNotFoundError:
        raise InputError(f"There is no list {path}.") from None
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"The list {path} cannot be read: {error}") from error
    for row in rows:
        beside = path.parent / row["path"]  # an absolute path stays what it is
        if beside.exists() or not os.path.exists(row["path"]):
            row["path"] = str(beside)
    return rows


def _read_parquet(path: Path, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path)
    column = _path_column(table.schema_arrow.names)
    wanted = {column, *columns} & set(table.schema_arrow.names)
    for batch in table.iter_batches(columns=sorted(wanted)):
        for row in batch.to_pylist():
            if row[column] and not isinstance(row[column], str):
                kind = table.schema_arrow.field(column).type
                raise ValueError(f"its column {column!r} must hold paths of files, not values of type {kind}.")
            if row[column]:
                yield _row(row, column, columns)


def _read_txt(path: Path, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    # not splitlines: U+2028 and its like may be in names
    return ({"path": line} for line in path.read_text("utf-8-sig").split("\n") if line.strip())


def _read_csv(path: Path, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    rows = csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline="\n"))
    column = _path_column(rows.fieldnames or ())
    return (_row(row, column, columns) for row in rows if row[column])


def _read_jsonl(path: Path, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON ({error}).") from error
        row = _row(entry, _path_column(entry), columns) if isinstance(entry, dict) else {"path": entry}
        if not isinstance(row["path"], str):
            raise ValueError(f"line {number} must hold a path, not {row['path']!r}.")
        yield row


def _row(values: Mapping[str, Any], path_column: str, columns: Collection[str]) -> dict[str, Any]:
    return {"path": values[path_column], **{name: values[name] for name in columns if name in values}}


def _path_column(columns: Iterable[str]) -> str:
    columns = list(columns)
    for name in PATH_COLUMNS:
        if name in columns:
            return name
    raise ValueError(f"it needs a column called {' or '.join(PATH_COLUMNS)}; it has {', '.join(columns) or 'none'}.")


_LISTS: dict[str, Callable[[Path, Collection[str]], Iterable[dict[str, Any]]]] = {
    ".csv": _read_csv,
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
LIST_SUFFIXES = tuple(_LISTS)

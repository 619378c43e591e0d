"""What a command is given → the list of sound files it means."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from torchbeats.audio import AUDIO_SUFFIXES

PATH_COLUMNS = ("path", "file", "filename", "filepath", "file_name", "audio")  # of a list, the first that is there


class InputError(ValueError):
    """An input from which no list of files can be made; the message names it and says why."""


def find_audio(inputs: Iterable[str | os.PathLike[str]]) -> list[str]:
    """The sound files that the inputs name, each once, in a fixed order.

    Args:
        inputs: files; folders, searched with all below them for names that end like sound, hidden ones left out;
            lists that end in .csv, .txt, .jsonl or .parquet; "-" for paths on standard input, one a line or
            as `find -print0` writes them. Paths in a list are
            relative to its folder or, where nothing is found there, to the working directory.

    Returns:
        Paths. Files that are named outright are in it whether they exist or not: reading them says what is wrong.

    Raises:
        InputError: a folder without sounds, a list that cannot be read, or no file at all.
    """
    found: dict[str, None] = {}
    for given in inputs:
        found.update(dict.fromkeys(_expand(os.fspath(given))))
    if not found:
        raise InputError("The inputs name no files.")
    return list(found)


def _expand(given: str) -> Iterator[str]:
    if given == "-":
        given_names = sys.stdin.buffer.read()  # as bytes: names need not be UTF-8
        separator = b"\0" if b"\0" in given_names else b"\n"  # that of find -print0, or one a line
        names = (os.fsdecode(name).rstrip("\r\n") for name in given_names.split(separator))
        yield from (name for name in names if name.strip())
    elif os.path.isdir(given):
        yield from _in_folder(given)
    elif (suffix := Path(given).suffix.lower()) in _LISTS:
        yield from _in_list(Path(given), _LISTS[suffix])
    else:
        yield given


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


def _in_list(path: Path, read: Callable[[str], Iterable[str]] | None) -> Iterator[str]:
    try:
        entries = list(_read_parquet(path) if read is None else read(path.read_text("utf-8-sig")))
    except FileNotFoundError:
        raise InputError(f"There is no list {path}.") from None
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"The list {path} cannot be read: {error}") from error
    for entry in entries:
        beside = path.parent / entry  # an absolute entry stays what it is
        yield entry if not beside.exists() and os.path.exists(entry) else str(beside)


def _read_parquet(path: Path) -> Iterator[str]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path)
    column = _path_column(table.schema_arrow.names)
    for batch in table.iter_batches(columns=[column]):
        yield from (str(entry) for entry in batch.column(0).to_pylist() if entry)


def _read_txt(text: str) -> Iterator[str]:
    return (line for line in text.split("\n") if line.strip())  # not splitlines: U+2028 and its like may be in names


def _read_csv(text: str) -> Iterator[str]:
    rows = csv.DictReader(io.StringIO(text, newline="\n"))
    column = _path_column(rows.fieldnames or ())
    return (row[column] for row in rows if row[column])


def _read_jsonl(text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON ({error}).") from error
        path = entry[_path_column(entry)] if isinstance(entry, dict) else entry
        if not isinstance(path, str):
            raise ValueError(f"line {number} must hold a path, not {path!r}.")
        yield path


def _path_column(columns: Iterable[str]) -> str:
    columns = list(columns)
    for name in PATH_COLUMNS:
        if name in columns:
            return name
    raise ValueError(f"it needs a column called {' or '.join(PATH_COLUMNS)}; it has {', '.join(columns) or 'none'}.")


# What reads the text of a list; None for one that is not text.
_LISTS = {".csv": _read_csv, ".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": None}

"""A list of sounds, in whatever format → its rows: files or pieces of them, and what else the list says."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torchbeats.audio import AudioWarning
from torchbeats.data.annotations import audacity
from torchbeats.data.annotations.dialects import Dialect
from torchbeats.data.annotations.formats import dialect_of
from torchbeats.data.annotations.recordings import Recordings
from torchbeats.data.columns import PATH_COLUMNS, SLICED, Columns, is_missing, key
from torchbeats.data.stored import StoredSound
from torchbeats.data.text import decode
from torchbeats.errors import InputError, quoted, some_of
from torchbeats.files import from_readable

DELIMITERS = ",;\t|"
LONGEST_PATH = 4096  # characters; no system opens longer ones
NUL = "\u2400"  # stands for the NUL character, which older versions of `csv` refuse
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: C:// is a drive
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


class Row(NamedTuple):
    """A row of a list that names a sound.

    Attributes:
        number: of its line, or of its row where the list is Parquet, from 1.
        path: of the file, as it can be opened from here.
        start: of the piece, in seconds.
        end: of the piece, in seconds; None for the file's end.
        values: what else the list says, by the names of its columns.
        content: where the sound is, if it is in the list itself.
    """

    number: int
    path: str
    start: float
    end: float | None
    values: dict[str, Any]
    content: StoredSound | None = None


@dataclass
class SoundList:
    """A list that was read.

    Attributes:
        path: of the list.
        columns: what its columns are for.
        rows: those that name a sound.
        unit: "line" or "row", what the numbers of rows count.
        class_names: of columns that hold the numbers of classes, their names, where the list tells.
        dialect: of the program that wrote it, if these are annotations of a known one.
        recording: that all rows are of, where they name none.
    """

    path: Path
    columns: Columns
    rows: list[Row]
    unit: str = "line"
    class_names: dict[str, list[str]] = field(default_factory=dict)
    dialect: Dialect | None = None
    recording: str | None = None

    def place(self, number: int) -> str:
        """A row's place, for messages."""
        return f"{self.unit} {number:,}"

    def note(self, message: str) -> None:
        """Say what a reader of the list should know, as an `AudioWarning`."""
        note(self.path, message)

    def left_out(self, reason: str, numbers: Sequence[int]) -> None:
        """Say that rows were left out, if any were."""
        if numbers:
            count = f"{len(numbers):,} row{'s' * (len(numbers) > 1)} left out"
            self.note(f"{count}, {reason}: {some_of(map(self.place, numbers), 5)}.")


def note(path: Path, message: str) -> None:
    """An `AudioWarning` that names the list."""
    warnings.warn(f"{path}: {message}", AudioWarning, stacklevel=2)


@dataclass
class _Raw:
    """What a format gives: rows as they are written."""

    names: list[str]
    rows: Iterable[tuple[int, dict[str, Any]]]
    unit: str = "line"
    encoding: str = "utf-8"
    path: str | None = None  # the column that holds sounds, where its name does not tell
    class_names: dict[str, list[str]] = field(default_factory=dict)
    dialect: Dialect | None = None


def read_list(path: Path, labels: bool | str = False, recordings: Recordings | None = None) -> SoundList:
    """The rows of a list that name a sound. What is unusual about it is told by an `AudioWarning`.

    Args:
        path: of a list with one of `LIST_SUFFIXES`; annotations of Raven, Audacity, Kaleidoscope and BirdNET are lists.
        labels: whether more is wanted of a row than its sound; the name of a column: this one has the labels.
        recordings: where sounds are searched for by their names that are not where the list has them.

    Raises:
        InputError: there is no such list, it cannot be read, or has no paths; the message names the line.
    """
    with _errors(path):
        result, rows = _begun(path, labels, recordings)
        result.rows.extend(rows)
    _note_times(result)
    return result


def iterate_list(path: Path) -> Iterator[Row]:
    """The rows of `read_list` one by one; what is wrong with a row is said when it is reached."""
    with _errors(path):
        result, rows = _begun(path, False, None)
        if result.dialect is not None:  # annotations are judged as a whole, and never many
            result.rows.extend(rows)
            rows = iter(result.rows)
        yield from rows
    _note_times(result)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"There is no list {path}.") from None
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"The list {path} cannot be read: {error}") from error


def _begun(path: Path, labels: bool | str, recordings: Recordings | None) -> tuple[SoundList, Iterator[Row]]:
    """A list whose columns are known, and has no row yet; and its rows."""
    raw = LISTS[path.suffix.lower()](path, labels)
    columns = Columns(raw.names)
    dialect = raw.dialect or dialect_of(raw.names)
    recordings = recordings or Recordings()
    if dialect is not None:
        columns.paths = dialect.path_columns(raw.names)
    if raw.path is not None:
        columns.paths = [raw.path]
    if not columns.paths and dialect is None:
        names = ", ".join(name[:40] for name in columns.names[:20]) or "none"
        raise ValueError(f"it needs a column called {' or '.join(PATH_COLUMNS[:6])}; it has {names}.")
    result = SoundList(path, columns, [], raw.unit, raw.class_names, dialect)
    if not columns.paths:
        result.recording = recordings.beside(path)
    if labels:
        label_columns = _label_columns(result, labels)
        raw.rows = _with_label(raw.rows, label_columns) if len(label_columns) > 1 else raw.rows
    return result, _rows(result, raw, bool(labels), recordings)


def _note_times(result: SoundList) -> None:
    """Say what is unusual about a list's times."""
    columns = result.columns
    if note_of := _note_on_sequence(result):
        result.note(note_of)
    if columns.not_understood and result.dialect is None:
        names = quoted(columns.not_understood)
        whole = "" if columns.times else ": whole files are taken"
        result.note(f"the columns {names} look like times, and are not used{whole}.")


def _note_on_sequence(result: SoundList) -> str | None:
    """What to know of a Raven table whose times may count through several recordings, and do not say so."""
    recordings = dict.fromkeys(row.path for row in result.rows)
    if result.dialect is None or result.dialect.name != "Raven" or result.columns.file_offset or len(recordings) < 2:
        return None
    return (
        f"it names {len(recordings):,} recordings and has no column File Offset (s): its times are taken as times in "
        "each recording. If they count through all of them, let Raven add this column."
    )


def _label_columns(result: SoundList, labels: bool | str) -> list[str]:
    """The columns that have labels: of a row the first with one counts; the first also becomes the list's column."""
    columns, dialect = result.columns, result.dialect
    chosen = [columns.label] if columns.label is not None else []
    if isinstance(labels, str):
        alike = [name for name in columns.names if key(name) == key(labels)]
        chosen = [name for name in alike if name == labels] or alike[:1]
        if not chosen:
            raise ValueError(f"it has no column {labels!r} for labels; there are {quoted(columns.names, 20)}.")
    elif dialect is not None:
        chosen = dialect.label_columns(columns.names)
        if dialect.name == "Raven" and len(chosen) > 1:
            raise ValueError(f"which of its columns {quoted(chosen)} has the labels? Name it: --label-column.")
        if not chosen:
            raise ValueError(f"it has no column for labels; there are {quoted(columns.names, 20)}.")
    columns.label = chosen[0] if chosen else None
    return chosen


def _with_label(
    rows: Iterable[tuple[int, dict[str, Any]]], names: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with the first label that there is in the first of several columns."""
    for number, values in rows:
        first = next((values[name] for name in names if not is_missing(values.get(name))), None)
        yield number, {**values, names[0]: first}


def _rows(result: SoundList, raw: _Raw, labels: bool, recordings: Recordings) -> Iterator[Row]:
    columns, paths = result.columns, _Paths(result.path, raw.encoding, recordings, result.dialect is not None)
    kept = {*columns.partitions.values(), *columns.others, columns.label} if labels else set[str | None]()
    lacking = defaultdict[str, list[int]](list)
    for number, values in raw.rows:
        sound = next((values[name] for name in columns.paths if name in values), None)
        content = sound if isinstance(sound, StoredSound) else None
        if isinstance(sound, dict):
            sound = sound.get("path")
        other_names: Sequence[str] = ()
        if result.dialect is not None:
            if not columns.paths and not result.recording:
                raise ValueError(
                    f"it names no recording, and there is no sound called like it beside it, as "
                    f"{result.path.name.split('.')[0]}.wav would be."
                )
            names = result.dialect.paths(values) if columns.paths else [str(result.recording)]
            sound, other_names = (names[0], names[1:]) if names else (None, ())
        nothing = sound is None or (isinstance(sound, str) and not sound.strip())
        if nothing and all(is_missing(value) for value in values.values()):
            continue  # an empty line
        if nothing:
            lacking["which name no file"].append(number)
        elif content is None and not isinstance(sound, str):
            raise ValueError(f"{result.place(number)} must hold a path, not {repr(sound)[:60]}.")
        elif isinstance(sound, str) and (NUL in sound or "\0" in sound):
            lacking["whose path has a NUL character"].append(number)
        elif isinstance(sound, str) and _is_pipe(sound):
            lacking["since commands are never run (|)"].append(number)
        else:
            if isinstance(sound, str) and len(sound) > LONGEST_PATH:
                raise ValueError(f"{result.place(number)} holds a path of {len(sound):,} characters.")
            try:
                start, end = columns.piece(values)
            except ValueError as error:
                raise ValueError(f"{result.place(number)}: {error}") from None
            if content:
                opened: str | None = content.name
            elif not columns.paths:
                opened = result.recording
            else:
                opened = paths.resolve(str(sound), number, _folders_of(columns, values), other_names)
            if opened is not None:
                values = {name: value for name, value in values.items() if name in kept}
                yield Row(number, opened, start, end, values, content)
    for reason, numbers in lacking.items():
        result.left_out(reason, numbers)
    for message in paths.notes():
        result.note(message)


def _is_pipe(text: str) -> bool:
    return text.rstrip().endswith("|") or text.lstrip().startswith("|")


def _folders_of(columns: Columns, values: dict[str, Any]) -> Sequence[str]:
    """Where else beside the list UrbanSound8K has a file: in a folder for each fold."""
    if not columns.paths or key(columns.paths[0]) != SLICED or "fold" not in columns.partitions:
        return ()
    fold = f"fold{str(values.get(columns.partitions['fold'])).strip()}"
    return fold, f"audio/{fold}", f"../audio/{fold}"


class _Paths:
    """Finds what the paths in a list mean, and remembers what was unusual.

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
        self.comments = 0

    def resolve(
        self, text: str, number: int, folders: Sequence[str] = (), other_names: Sequence[str] = ()
    ) -> str | None:
        """A path that can be opened from here; None for a comment."""
        if _URL.match(text.strip()):
            return text.strip()
        readings = self._readings(text)
        for how, name in [*readings, *(("", name.replace("\\", "/")) for name in other_names)]:
            if opened := self._existing(name, folders):
                if how and not other_names:
                    self._remember(how, number, text.strip(), opened)
                return opened
        if self.recordings is not None and (opened := self.recordings.called(readings[0][1], self.path)):
            return opened
        if text.lstrip().startswith("#"):
            return None
        how, name = readings[-1]
        if _DRIVE.match(name):
            return name
        if how:
            self._remember(how, number, text.strip(), name)
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
            beside = str(self.folder / folder / name)  # an absolute path stays what it is
            if os.path.exists(beside):
                return beside
        return name if os.path.exists(name) else None

    def _remember(self, how: str, number: int, text: str, name: str) -> None:
        count, first, *example = self.unusual.get(how, (0, number, text, name))
        self.unusual[how] = (count + 1, first, example[0], example[1])

    def notes(self) -> Iterator[str]:
        """What was unusual, once each."""
        for how, (count, number, text, name) in self.unusual.items():
            yield f"{how}, in {count:,} row{'s' * (count > 1)}: {text} (line {number:,}) is {name}."


# --- formats ----------------------------------------------------------------------------------------------------------

_PLAIN = "path of a list without a header"


def _text(path: Path) -> tuple[str, str]:
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file.")
    text, encoding = decode(path.read_bytes())
    if encoding in ("cp1252", "latin-1"):
        number, line = next((n, line) for n, line in enumerate(text.split("\n"), 1) if not line.isascii())
        called = "Latin-1" if encoding == "latin-1" else "Latin-1 (Windows-1252)"
        note(path, f"it is not UTF-8, and is read as {called}; see line {number:,}: {line.strip()[:80]!r}.")
    text = text.lstrip("\ufeff").replace("\r\n", "\n")
    return (text if "\n" in text else text.replace("\r", "\n")), encoding


def _read_txt(path: Path, labels: bool | str) -> _Raw:
    text, encoding = _text(path)
    first = next((line for line in text.split("\n") if line.strip() and not line.startswith("#")), "")
    headers = [first.split(delimiter) for delimiter in ",;\t" if delimiter in first]
    if any(Columns(names).paths or dialect_of(names) for names in headers):
        return _table(text, encoding)  # as Raven writes its tables
    if audacity.is_track(text) or (not text.strip() and Recordings().beside(path)):
        return _Raw(audacity.COLUMNS, audacity.read_track(text), encoding=encoding, dialect=audacity.AUDACITY)
    # not splitlines: U+2028 and its like may be in names
    lines = enumerate(text.replace("\0", NUL).split("\n"), start=1)
    rows = ((number, {_PLAIN: line}) for number, line in lines if line.strip())
    return _Raw([], rows, encoding=encoding, path=_PLAIN)


def _read_scp(path: Path, labels: bool | str) -> _Raw:
    """Kaldi's lists: the name of an utterance and, behind a blank, its file."""
    text, encoding = _text(path)

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(text.replace("\0", NUL).split("\n"), start=1):
            if not line.strip():
                continue
            parts = line.strip().split(maxsplit=1)
            if len(parts) < 2:
                raise ValueError(f"line {number:,} must hold the name of an utterance and its path, not {line[:60]!r}.")
            yield number, {_PLAIN: parts[1]}

    return _Raw([], rows(), encoding=encoding, path=_PLAIN)


def _read_csv(path: Path, labels: bool | str) -> _Raw:
    return _table(*_text(path))


def _table(text: str, encoding: str) -> _Raw:
    """Text in columns: what is between them is told by the header."""
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
        return _Raw([], ())
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

    return _Raw(names, rows(), encoding=encoding)


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


def _read_jsonl(path: Path, labels: bool | str) -> _Raw:
    text, encoding = _text(path)
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append((number, _entry(_json(line, number), number)))
    return _Raw(_names(rows), rows, encoding=encoding)


def _read_json(path: Path, labels: bool | str) -> _Raw:
    """An array of objects, alone or as the only one in an object; or an object a line, as NeMo calls its lists."""
    text, _ = _text(path)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return _read_jsonl(path, labels)
    if isinstance(whole, dict) and not Columns(whole).paths:
        arrays = [value for value in whole.values() if isinstance(value, list)]
        whole = arrays[0] if len(arrays) == 1 else whole
    entries = whole if isinstance(whole, list) else [whole]
    rows = [(number, _entry(entry, number)) for number, entry in enumerate(entries, start=1)]
    return _Raw(_names(rows), rows, unit="entry")


def _names(rows: Iterable[tuple[int, dict[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(name for _, values in rows for name in values))


def _json(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except RecursionError as error:
        raise ValueError(f"line {number:,} is nested too deeply; it must hold an object with a path.") from error
    except ValueError as error:
        raise ValueError(f"line {number:,} is not JSON ({error}).") from error


def _entry(entry: Any, number: int) -> dict[str, Any]:
    """A path, or an object with one under a known name, by itself or as the path of the sound there."""
    if isinstance(entry, str):
        return {"path": entry}
    if not isinstance(entry, dict):
        raise ValueError(f"line {number:,} must hold a path, not {repr(entry)[:60]}.")
    columns = Columns(entry)
    if not columns.paths:
        names = ", ".join(name[:40] for name in list(entry)[:20]) or "none"
        raise ValueError(f"line {number:,}: it needs a column called {' or '.join(PATH_COLUMNS[:6])}; it has {names}.")
    sound = entry[columns.paths[0]]
    path = sound.get("path") if isinstance(sound, dict) else sound
    if not isinstance(path, str):
        raise ValueError(f"line {number:,} must hold a path, not {repr(sound)[:60]}.")
    return {**entry, columns.paths[0]: path}


def _read_parquet(path: Path, labels: bool | str) -> _Raw:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        raise FileNotFoundError(path)
    table = pq.ParquetFile(path)
    schema = table.schema_arrow
    columns = Columns(schema.names)
    stored = next((name for name in schema.names if _holds_sounds(table, name)), None)
    if stored is not None:
        columns.paths = [stored]
    names = [] if stored else columns.paths[:1]
    if labels:
        flat = [name for name in columns.others if not pa.types.is_nested(schema.field(name).type)]
        names += [*columns.partitions.values(), *((columns.label,) if columns.label else flat)]
        names += [name for name in schema.names if isinstance(labels, str) and key(name) == key(labels)]
    names += [time.name for time in columns.times]
    wanted = [name for name in dict.fromkeys(names) if name != stored]
    if stored is None and columns.paths:
        kind = schema.field(columns.paths[0]).type
        if not _may_be_path(kind):
            raise ValueError(
                f"its column {columns.paths[0]!r} must hold paths of files or their bytes, not values of type {kind}."
            )

    inner = [f"{stored}.path"] if stored is not None and pa.types.is_struct(schema.field(stored).type) else []
    names_inside = Counter[str]()
    if inner:
        for batch in table.iter_batches(columns=inner):
            names_inside.update(batch.column(0).field(0).to_pylist())

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        for group in range(table.num_row_groups):
            row = 0
            for batch in table.iter_batches(row_groups=[group], columns=[*wanted, *inner]):
                for values in batch.to_pylist() if batch.num_columns else ({} for _ in range(batch.num_rows)):
                    number += 1
                    if stored is not None:
                        inside = (values.get(stored) or {}).get("path")
                        name = f"{path}#{inside}" if inside and names_inside[inside] == 1 else f"{path}#row {number}"
                        values[stored] = StoredSound(
                            str(path), f"{stored}.bytes" if inner else stored, group, row, name
                        )
                    row += 1
                    yield number, values

    return _Raw(schema.names, rows(), "row", path=stored, class_names=_class_names(schema))


def _holds_sounds(table: Any, name: str) -> bool:
    """Whether a column of Parquet holds bytes of sounds: struct<bytes, path>, or a known name and bytes."""
    import pyarrow as pa

    kind = table.schema_arrow.field(name).type
    is_bytes = lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind)  # noqa: E731
    if pa.types.is_struct(kind):
        inside = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        if not {"bytes", "path"} <= set(inside) or not is_bytes(inside["bytes"]):
            return False
        return not _all_null(table, f"{name}.bytes")
    return is_bytes(kind) and bool(Columns([name]).paths)


def _all_null(table: Any, leaf: str) -> bool:
    """Whether a column is known to be empty, by what its row groups' heads say."""
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        for i in range(about.num_columns):
            column = about.column(i)
            if column.path_in_schema == leaf:
                known = column.statistics is not None and column.statistics.has_null_count
                if not known or column.statistics.null_count < column.num_values:
                    return False
    return True


def _may_be_path(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "path" and _may_be_path(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _class_names(schema: Any) -> dict[str, list[str]]:
    """The names of numbered classes, as Hugging Face's data sets keep them in a table's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in about["names"]]
            for column, about in features.items()
            if isinstance(about, dict) and isinstance(about.get("names"), list)
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


LISTS: dict[str, Callable[[Path, bool | str], _Raw]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": _read_txt,
    ".scp": _read_scp,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
LIST_SUFFIXES = tuple(LISTS)

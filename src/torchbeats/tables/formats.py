"""Formats of a table: one writer for each ending of a file's name, and what a finished table says of itself."""

from __future__ import annotations

import json
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchbeats.errors import StoreError
from torchbeats.extras import require
from torchbeats.files import replacing
from torchbeats.plans import Values

METADATA_KEY = b"torchbeats"  # of the JSON in a table's metadata
INPUTS_KEY = b"torchbeats.inputs"  # of the inputs' states there; see `tables.states`
PARTS_KEY = b"torchbeats.parts"  # of the names of a table's parts, and their rows; see `tables.parts`
COMMON = "_common_metadata"  # of a table in parts
SUFFIXES = (".parquet", ".npz", ".lance")
# What reading a damaged file raises.
DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError, SyntaxError),
    *(pa.ArrowException, zipfile.BadZipFile, zlib.error),
)
BEGINS = "begins"  # a column of unfinished tables alone: whether a row is the first of its file


class Content(NamedTuple):
    """All of a finished table.

    Attributes:
        schema: of its rows a window or a step, with its metadata.
        rows: number of those.
        tables: the rows, in pieces; with the column `BEGINS`.
        by_file: join the rows of each file to one.
    """

    schema: pa.Schema
    rows: int
    tables: Iterable[pa.Table]
    by_file: bool


def with_begins(schema: pa.Schema) -> pa.Schema:
    """The schema of an unfinished table."""
    return schema.append(pa.field(BEGINS, pa.bool_()))


def read_metadata(path: Path, key: bytes = METADATA_KEY) -> bytes | None:
    """An entry of a table's metadata; None where there is none, or no table of ours."""
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                name = {METADATA_KEY: "about", INPUTS_KEY: "inputs"}[key]
                return str(arrays[name]).encode() if key == METADATA_KEY else bytes(arrays[name])
        if path.suffix == ".lance":
            return (open_lance(path).schema.metadata or {}).get(key) if exists(path) else None
        return (pq.read_metadata(path / COMMON if path.is_dir() else path).metadata or {}).get(key)
    except DAMAGE:
        return None


def read_about(path: Path) -> dict[str, Any] | None:
    """What a table says of itself, if it is one of ours."""
    try:
        return dict(json.loads(read_metadata(path) or b""))
    except (ValueError, TypeError):
        return None


def summary(path: Path) -> dict[str, Any] | None:
    """Rows, columns and settings of a table of ours; None for anything else."""
    about = read_about(path)
    if about is None:
        return None
    try:
        return _summary(path, about)
    except DAMAGE:
        return None


def _summary(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    if path.suffix == ".lance":
        dataset = open_lance(path)
        return {
            "rows": dataset.count_rows(),
            "columns": {field.name: str(field.type) for field in dataset.schema},
            "settings": about,
        }
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            columns = {name: str(arrays[name].dtype) for name in arrays.files if name not in ("about", "inputs")}
            rows = len(arrays["start"])
    else:
        schema = pq.read_schema(path / COMMON if path.is_dir() else path)
        rows = sum(pq.read_metadata(file).num_rows for file in parquet_files(path))
        columns = {field.name: str(field.type) for field in schema}
    return {"rows": rows, "columns": columns, "settings": about}


def parquet_files(path: Path) -> list[Path]:
    """The files of a table in Parquet, in order: itself, or its parts."""
    if not path.is_dir():
        return [path]
    return [path / name for name, _ in json.loads(read_metadata(path, PARTS_KEY) or b"[]")]


def pieces(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in pieces of exactly so many, the last apart: a table does not show how its rows came."""
    pending: list[pa.Table] = []
    count = 0
    for table in _merged(tables, rows):
        while count + len(table) >= rows:
            yield pa.concat_tables([*pending, table.slice(0, rows - count)]).combine_chunks()
            table, pending, count = table.slice(rows - count), [], 0
        pending.append(table)
        count += len(table)
    if count:
        yield pa.concat_tables(pending).combine_chunks()


def _merged(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in fewer pieces, of at most so many rows or one table: each table has some KB beside its rows."""
    pending: list[pa.Table] = []
    count = 0
    for table in tables:
        pending.append(table)
        count += len(table)
        if len(pending) == 256 or count >= rows:
            yield pa.concat_tables(pending).combine_chunks()
            pending, count = [], 0
    if pending:
        yield pa.concat_tables(pending)


def _firsts(rows: pa.Table) -> Values:
    """Indices of the rows that begin a file."""
    return np.flatnonzero(rows[BEGINS].to_numpy())


def finished(content: Content) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """The rows of the finished table, and their schema."""
    if content.by_file:
        return _file_schema(content.schema), _by_file(content.tables, content.schema)
    tables = (table.drop_columns([BEGINS]).replace_schema_metadata(content.schema.metadata) for table in content.tables)
    return content.schema, tables


def _by_file(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows a step to rows a file, all columns but the path lists; a file's rows may lie in many tables."""
    pending = with_begins(schema).empty_table()
    for table in tables:
        pending = pa.concat_tables([pending, table.replace_schema_metadata(schema.metadata)])
        if len(firsts := _firsts(pending)):  # the last file may go on in the next table
            yield _joined(pending.slice(0, firsts[-1]))
            pending = pending.slice(firsts[-1])
    yield _joined(pending)


def _joined(steps: pa.Table) -> pa.Table:
    """A row for each file whose rows these are; they begin with one's first."""
    firsts = _firsts(steps)
    steps = steps.drop_columns([BEGINS])
    path, *lists = (column.combine_chunks() for column in steps.columns)
    offsets = pa.array(np.append(firsts, len(steps)), pa.int32())
    joined = [pa.ListArray.from_arrays(offsets, values) for values in lists]
    return pa.table([path.take(pa.array(firsts)), *joined], _file_schema(steps.schema))


def _file_schema(schema: pa.Schema) -> pa.Schema:
    path, *lists = schema
    return pa.schema([path, *((field.name, pa.list_(field.type)) for field in lists)], schema.metadata)


def _write_parquet(path: Path, content: Content) -> None:
    schema, tables = finished(content)
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _write_npz(path: Path, content: Content) -> None:
    """Arrays ``embedding`` or ``labels``, ``path``, ``start``, ``end``, and ``about`` as JSON, with an item a row.

    By file there are a path a file, and ``file``, which tells for each step the index of its path. The values, much the
    largest of them, are never whole in memory.
    """
    schema, by_file = content.schema, content.by_file
    name, values = schema.names[-1], schema.types[-1]
    dtype = np.dtype(values.value_type.to_pandas_dtype()).newbyteorder("<")
    paths: list[str] = []
    begins: list[Values] = [np.empty(0, bool)]
    times: dict[str, list[Values]] = {"start": [np.empty(0)], "end": [np.empty(0)]}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            header = {"descr": dtype.str, "fortran_order": False, "shape": (content.rows, values.list_size)}
            np.lib.format.write_array_header_2_0(file, header)
            for table in content.tables:
                for chunk in table[name].chunks:
                    file.write(np.ascontiguousarray(chunk.flatten().to_numpy(), dtype).tobytes())
                for column, parts in times.items():
                    parts.append(table[column].to_numpy())
                begins.append(table[BEGINS].to_numpy())
                path_column = table["path"]
                paths += (path_column.take(pa.array(_firsts(table))) if by_file else path_column).to_pylist()
        arrays = {column: np.concatenate(parts) for column, parts in times.items()}
        if by_file:
            arrays["file"] = np.cumsum(np.concatenate(begins)) - 1
        metadata = schema.metadata
        arrays |= {"path": np.array(paths, str), "about": np.array(metadata[METADATA_KEY].decode())}
        if INPUTS_KEY in metadata:
            arrays["inputs"] = np.frombuffer(metadata[INPUTS_KEY], np.uint8)
        for column, array in arrays.items():
            with archive.open(f"{column}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array)


def open_lance(path: Path) -> Any:
    """A Lance dataset, which is what LanceDB keeps a table as.

    Raises:
        MissingPackageError: the package pylance is not installed.
    """
    return require("lance", "search").dataset(str(path))


def _write_lance(path: Path, content: Content) -> None:
    """One version of a dataset, which appears whole, in place of the last; data of versions before go afterwards."""
    lance = require("lance", "search")
    schema, tables = finished(content)
    batches = (batch for table in tables for batch in table.to_batches())
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    if not exists(path):  # what a killed run left there would be in the way
        shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = lance.write_dataset(reader, str(path), mode="overwrite" if exists(path) else "create")
    dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)


# Each makes a table of a path and a content; the table that was there before stays whole until the new one is.
WRITERS: dict[str, Callable[[Path, Content], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".lance": _write_lance,
}


def check_name(out: Path) -> None:
    """Raise a `StoreError` where no table can be written under a name."""
    if out.suffix not in SUFFIXES:
        raise StoreError(f"The output must be named .parquet, .npz or .lance; {out} is not.")
    if out.suffix == ".lance":
        require("lance", "search")  # not when the work is done
        if out.is_file():
            raise StoreError(f"{out} is a file, and Lance keeps a table in a folder; name another output.")
    elif out.is_dir():
        raise StoreError(f"{out} is a folder; name another output.")


def exists(out: Path) -> bool:
    """Whether something is in a table's place; a Lance dataset whose first version was never completed is nothing."""
    if out.suffix == ".lance" and out.is_dir():
        parts = {"data", "_versions", "_transactions"}
        return any((out / "_versions").glob("*.manifest")) or not {path.name for path in out.iterdir()} <= parts
    return out.exists()

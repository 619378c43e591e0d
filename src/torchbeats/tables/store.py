"""Results → one Parquet or NumPy file, complete or absent, and resumable.

While a run goes on, its rows lie in a folder ``OUT.parts`` beside the output: ``run.json`` tells what is computed,
``part-000000.parquet`` and so on hold rows, and each part says in its metadata how far the run had come. Every file
appears whole or not at all, so a run that is killed loses what came after its last part, no more. At the end the parts
become the output, and the folder goes. Rows a step may then be joined to rows a file.
"""

from __future__ import annotations

import json
import os
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchbeats.errors import DiskFullError, FileInUseError, StoreError
from torchbeats.files import as_json, held, readable, remove_leftovers, replacing
from torchbeats.inference import Group, Position
from torchbeats.plans import Row, Values

METADATA_KEY = b"torchbeats"  # of the JSON in the output's metadata
SUFFIXES = (".parquet", ".npz")
# What reading a damaged file raises.
DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError, SyntaxError),
    *(pa.ArrowException, zipfile.BadZipFile, zlib.error),
)
FLUSH_SECONDS = 2.0  # a part is written no more often than this
FLUSH_BYTES = 16 * 2**20


class Store:
    """The output of one run.

    Args:
        out: ``.parquet`` or ``.npz``.
        row: what a row is. Groups have a row a step where the output is to have a row a file.
        about: all that the result depends on; goes into the output's metadata. Only a run with the same is ever
            continued, or found to be complete.
        overwrite: replace what is there. The old output stays until the new one is complete, and an overwriting run
            that was stopped is continued by another.

    Attributes:
        position: how far an earlier run has come.
        failed: number of inputs that could not be read, so far.
        complete: an earlier run has finished; there is nothing to do.

    Raises:
        StoreError: the name's ending is another, something else is in the output's place, or another run is at it.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        row: Row,
        about: dict[str, Any],
        overwrite: bool = False,
    ) -> None:
        self.out = Path(out)
        if self.out.suffix not in SUFFIXES:
            raise StoreError(f"The output must be named .parquet or .npz; {self.out} is not.")
        if self.out.is_dir():
            raise StoreError(f"{self.out} is a folder; name another output.")
        _, self.errors = output_files(out)
        self.about = json.loads(json.dumps(about))
        self.schema = pa.schema(
            [
                ("path", pa.string()),
                ("start", pa.float64()),
                ("end", pa.float64()),
                (row.column, pa.list_(pa.from_numpy_dtype(row.dtype), row.width)),
            ]
        )
        self._by_file = row.per == "file"
        self._folder = self.out.with_suffix(self.out.suffix + ".parts")
        self._pending: list[Group] = []
        self._flushed = time.monotonic()
        self.position, self.failed, self.complete = Position(), 0, False
        if self.out.exists() and not overwrite:
            self._find_complete()
        else:
            self._continue_or_begin(overwrite)

    def _lock(self) -> None:
        """Keep other processes away until this one is gone, or done: two would mix their parts."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._held = held(self._folder / "lock")
        except FileInUseError:
            raise StoreError(f"Another run is writing {self.out}; wait for it, or name another output.") from None

    def _find_complete(self) -> None:
        there = _read_about(self.out)
        if there is None or {**there, "failed": 0} != {**self.about, "failed": 0}:
            raise StoreError(
                f"{self.out} exists and holds something else: {_difference(there, self.about)}. Name another output, "
                "or use --overwrite."
            )
        self.complete, self.failed = True, int(there["failed"])
        for path in (self.out, self.errors):
            remove_leftovers(path)
        if self._folder.exists():  # the last run was killed at the very end, or one that overwrites is at it
            self._lock()
            self._discard()

    def _continue_or_begin(self, overwrite: bool) -> None:
        self._lock()
        run, wanted = self._folder / "run.json", {"about": self.about, "overwrite": overwrite}
        there = json.loads(run.read_text("utf-8")) if run.exists() else None
        # An overwriting run begins anew, but goes on behind another one's parts.
        if there is not None and there["about"] == self.about and (there["overwrite"] or not overwrite):
            for part in self._parts():
                self.position, failures = _part_state(part)
                self.failed += len(failures)
            return
        if there is not None and self._parts() and not overwrite:
            raise StoreError(
                f"{self._folder} holds an unfinished run with other settings: "
                f"{_difference(there['about'], self.about)}. Finish that one, or use --overwrite to begin anew."
            )
        self._clear()
        with replacing(run) as temporary:
            temporary.write_text(json.dumps(wanted, indent=1), "utf-8")

    def _discard(self) -> None:
        """Leave nothing but the output; and what is somebody else's, which is not ours to delete."""
        self._clear()
        (self._folder / "lock").unlink(missing_ok=True)
        with suppress(OSError):
            self._folder.rmdir()

    def _clear(self) -> None:
        """Delete the parts; first what says that they are whole, lest a run that is killed here be continued."""
        (self._folder / "run.json").unlink(missing_ok=True)
        for part in self._parts():
            part.unlink(missing_ok=True)
        for leftover_of in (self._folder, self.out, self.errors):  # the last two of a run that was killed as it ended
            remove_leftovers(leftover_of)

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("part-*.parquet"))

    def append(self, group: Group) -> None:
        """Take the results of one group; they reach the disk within a few seconds of work."""
        self._pending.append(group)
        size = sum(group.values.nbytes for group in self._pending)
        if size >= FLUSH_BYTES or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flush()

    def keep(self) -> None:
        """Write what was appended, as the run is about to stop; if that cannot be, it is computed anew."""
        with suppress(OSError, StoreError):
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        # No more pending before they are written: should a Ctrl-C come within, they are not to be written twice.
        pending, self._pending = self._pending, []
        failures = [failure for group in pending for failure in group.failures]
        self.position = pending[-1].position
        self.failed += len(failures)
        state = {"position": self.position, "failures": failures}
        tables = [self._table(group) for group in pending if group.paths]
        table = pa.concat_tables(tables) if tables else _part_schema(self.schema).empty_table()
        with _told(), replacing(self._folder / f"part-{len(self._parts()):06d}.parquet") as temporary:
            pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(state)}), temporary)
        self._flushed = time.monotonic()

    def _table(self, group: Group) -> pa.Table:
        values = pa.FixedSizeListArray.from_arrays(pa.array(group.values.reshape(-1)), self.schema.types[-1].list_size)
        paths = [readable(path) for path in group.paths]
        columns = [pa.array(paths, pa.string()), *group.times.T, values, group.begins]
        return pa.table(columns, schema=_part_schema(self.schema))

    def finish(self) -> None:
        """Make the parts the output, and list the inputs that failed in ``OUT.errors.jsonl``, if any did."""
        self._flush()
        failures = [failure for part in self._parts() for failure in _part_state(part)[1]]
        if failures:
            with _told(), replacing(self.errors) as temporary, temporary.open("w", encoding="utf-8") as file:
                for path, reason in failures:
                    file.write(as_json({"path": readable(path), "error": reason}) + "\n")
        else:
            self.errors.unlink(missing_ok=True)
        about = {METADATA_KEY: json.dumps({**self.about, "failed": len(failures)})}
        write = _write_npz if self.out.suffix == ".npz" else _write_parquet
        with _told(), replacing(self.out) as temporary:
            write(temporary, self._parts(), self.schema.with_metadata(about), self._by_file)
        self.complete = True
        self._discard()


@contextmanager
def _told() -> Iterator[None]:
    """A full disk costs nothing that is done, and the error says so."""
    try:
        yield
    except DiskFullError as error:
        kept = "What was computed before is kept; make room, and the same command goes on."
        raise DiskFullError(error.path, error.reason, kept) from error


def output_files(out: str | os.PathLike[str]) -> list[Path]:
    """What a run writes: the table, and the list of the sounds that could not be read."""
    out = Path(out)
    return [out, out.with_suffix(out.suffix + ".errors.jsonl")]


BEGINS = "begins"  # a column of the parts alone: whether a row is the first of its file


def _part_schema(schema: pa.Schema) -> pa.Schema:
    return schema.append(pa.field(BEGINS, pa.bool_()))


def _part_state(part: Path) -> tuple[Position, list[tuple[str, str]]]:
    state = json.loads(pq.read_metadata(part).metadata[METADATA_KEY])
    return Position(*state["position"]), [(path, reason) for path, reason in state["failures"]]


def _read_about(out: Path) -> dict[str, Any] | None:
    """What an output says of itself, if it is one of ours."""
    try:
        if out.suffix == ".npz":
            with np.load(out) as arrays:
                return dict(json.loads(str(arrays["about"])))
        return dict(json.loads(pq.read_metadata(out).metadata[METADATA_KEY]))
    except DAMAGE:
        return None


def summary(path: Path) -> dict[str, Any] | None:
    """Rows, columns and settings of a table of ours; None for anything else."""
    about = _read_about(path)
    if about is None:
        return None
    try:
        return _summary(path, about)
    except DAMAGE:
        return None


def _summary(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            columns = {name: str(arrays[name].dtype) for name in arrays.files if name != "about"}
            rows = len(arrays["start"])
    else:
        schema, rows = pq.read_schema(path), pq.read_metadata(path).num_rows
        columns = {field.name: str(field.type) for field in schema}
    return {"rows": rows, "columns": columns, "settings": about}


def _difference(there: dict[str, Any] | None, here: dict[str, Any]) -> str:
    if there is None:
        return "nothing that torchbeats wrote"
    changed = [name for name in here if there.get(name) != here[name]]
    return "; ".join(
        "files were added, removed or changed"
        if name == "inputs"
        else f"{name} is {there.get(name)} there and {here[name]} here"
        for name in changed
    )


def _tables(parts: list[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """The parts' rows, in pieces that are large enough to be worth a row group and small enough for any memory."""
    held: list[pa.Table] = []
    for part in parts:
        held.append(pq.read_table(part).replace_schema_metadata(schema.metadata))
        if sum(table.nbytes for table in held) >= FLUSH_BYTES:
            yield pa.concat_tables(held)
            held = []
    yield pa.concat_tables(held) if held else _part_schema(schema).empty_table()


def _firsts(rows: pa.Table) -> Values:
    """Indices of the rows that begin a file."""
    return np.flatnonzero(rows[BEGINS].to_numpy())


def _by_file(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows a step to rows a file, all columns but the path lists; a file's rows may lie in many tables."""
    held = _part_schema(schema).empty_table()
    for table in tables:
        held = pa.concat_tables([held, table])
        if len(firsts := _firsts(held)):  # the last file may go on in the next table
            yield _joined(held.slice(0, firsts[-1]))
            held = held.slice(firsts[-1])
    yield _joined(held)


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


def _write_parquet(path: Path, parts: list[Path], schema: pa.Schema, by_file: bool) -> None:
    tables = _tables(parts, schema)
    with pq.ParquetWriter(path, _file_schema(schema) if by_file else schema) as writer:
        whole = (table.drop_columns([BEGINS]) for table in tables)
        for table in _by_file(tables, schema) if by_file else whole:
            writer.write_table(table)


def _write_npz(path: Path, parts: list[Path], schema: pa.Schema, by_file: bool) -> None:
    """Arrays ``embedding`` or ``labels``, ``path``, ``start``, ``end``, and ``about`` as JSON, with an item a row.

    By file there are a path a file, and ``file``, which tells for each step the index of its path. The values, much the
    largest of them, are never whole in memory.
    """
    name, values = schema.names[-1], schema.types[-1]
    dtype = np.dtype(values.value_type.to_pandas_dtype()).newbyteorder("<")
    rows = sum(pq.read_metadata(part).num_rows for part in parts)
    paths: list[str] = []
    begins: list[Values] = [np.empty(0, bool)]
    times: dict[str, list[Values]] = {"start": [np.empty(0)], "end": [np.empty(0)]}
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            header = {"descr": dtype.str, "fortran_order": False, "shape": (rows, values.list_size)}
            np.lib.format.write_array_header_2_0(file, header)
            for table in _tables(parts, schema):
                for chunk in table[name].chunks:
                    file.write(np.ascontiguousarray(chunk.flatten().to_numpy(), dtype).tobytes())
                for column, pieces in times.items():
                    pieces.append(table[column].to_numpy())
                begins.append(table[BEGINS].to_numpy())
                named = table["path"]
                paths += (named.take(pa.array(_firsts(table))) if by_file else named).to_pylist()
        arrays = {column: np.concatenate(pieces) for column, pieces in times.items()}
        if by_file:
            arrays["file"] = np.cumsum(np.concatenate(begins)) - 1
        arrays |= {"path": np.array(paths, str), "about": np.array(schema.metadata[METADATA_KEY].decode())}
        for column, array in arrays.items():
            with archive.open(f"{column}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array)

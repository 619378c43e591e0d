"""A table in parts: a folder, here or in an object store, with a Parquet file for each block of inputs.

A part is named by its block's number and by a hash of all that its rows depend on, so a name that exists is work that
is done, and two processes that write one write the same. ``_common_metadata`` is written last: it has the schema, what
the table says of itself, and which parts are its own. Names in sorted order give the rows in the order of the inputs.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from torchbeats.errors import StoreError
from torchbeats.extras import require
from torchbeats.files import replacing
from torchbeats.remote import absolute, is_url
from torchbeats.tables.formats import COMMON, METADATA_KEY, PARTS_KEY

PART_KEY = b"torchbeats.part"  # of what a part says of its inputs
READERS = 16  # threads that read ends of parts


class Summary(NamedTuple):
    """What became of a block.

    Attributes:
        name: of its part.
        rows: in it.
        inputs: of the block.
        seconds: of sound.
        failures: inputs that could not be read, and why.
        begun: when its computation began, in seconds since 1970.
        ended: when it was complete.
    """

    name: str
    rows: int
    inputs: int
    seconds: float
    failures: list[tuple[str, str]]
    begun: float = 0.0
    ended: float = 0.0


def part_name(number: int, about: dict[str, Any], states: Iterable[bytes]) -> str:
    """What the part of a block is called.

    Args:
        number: of the block.
        about: all that the rows depend on, beside the inputs.
        states: of the inputs; see `torchbeats.data.fingerprint.state`.
    """
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for state in states:
        digest.update(state)
    return f"part-{number:06}-{digest.hexdigest()[:16]}.parquet"


class Parts:
    """The folder of a table in parts.

    Args:
        folder: a path, or a URL that fsspec opens.

    Raises:
        StoreError: the URL cannot be opened.
        MissingPackageError: fsspec, or what it needs for the URL, is not installed.
    """

    def __init__(self, folder: str) -> None:
        fsspec = require("fsspec", "ray")
        self.folder = absolute(folder)
        try:
            self._files, self._path = fsspec.core.url_to_fs(self.folder)
        except (ValueError, ImportError) as error:
            raise StoreError(f"{folder} cannot be opened: {error}.") from error
        self._is_local = not is_url(folder)

    def names(self) -> set[str]:
        """Of the complete parts."""
        self._files.invalidate_cache()
        try:
            paths = self._files.ls(self._path, detail=False)
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be listed: {error}.") from error
        names = (posixpath.basename(path.replace(os.sep, "/")) for path in paths)
        return {name for name in names if name.startswith("part-") and name.endswith(".parquet")}

    def _place(self, name: str) -> str:
        return f"{self._path}/{name}"

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        self._files.invalidate_cache()
        return bool(self._files.exists(self._place(name)))

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A file of the folder, to read."""
        with self._files.open(self._place(name), "rb") as file:
            yield file

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """A file of the folder, to write; it appears whole, or not at all."""
        if self._is_local:
            with replacing(self._place(name)) as temporary, temporary.open("wb") as file:
                yield file
            return
        file = self._files.open(self._place(name), "wb")
        try:
            yield file
        except BaseException:
            with suppress(Exception):  # what went wrong is told
                file.discard()
                file.closed = True  # closing would complete it
            with suppress(OSError):  # some stores show what is not complete
                self._files.rm_file(self._place(name))
            raise
        file.close()

    def remove(self, names: Iterable[str]) -> None:
        """Delete files of the folder."""
        for name in names:
            if self.has(name):
                self._files.rm_file(self._place(name))

    def discard(self) -> None:
        """Delete the parts, and the folder if nothing else is in it."""
        self.remove([COMMON, *self.names()])
        if self._is_local and os.path.isdir(self._path) and not os.listdir(self._path):
            os.rmdir(self._path)

    def summary(self, name: str) -> Summary | None:
        """What a part says of itself; None where it is not there, or not whole."""
        try:
            with self.open(name) as file:
                said = json.loads(pq.read_metadata(file).metadata[PART_KEY])
        except (FileNotFoundError, ValueError, KeyError, TypeError, pa.ArrowException):
            return None
        failures = [(path, reason) for path, reason in said.pop("failures")]
        return Summary(name, failures=failures, **said)

    def summaries(self, names: Sequence[str]) -> list[Summary]:
        """The same of many, without those that are not whole."""
        with ThreadPoolExecutor(READERS, thread_name_prefix="parts") as pool:
            return [summary for summary in pool.map(self.summary, names) if summary is not None]

    def about(self, name: str) -> dict[str, Any] | None:
        """The settings in the metadata of a part, or of the whole table."""
        try:
            with self.open(name) as file:
                return dict(json.loads(pq.read_metadata(file).metadata[METADATA_KEY]))
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return None

    def write(self, name: str, schema: pa.Schema, tables: Iterable[pa.Table], says: Iterator[dict[str, Any]]) -> None:
        """Write a part.

        Args:
            name: of it.
            schema: of its rows, with metadata.
            tables: the rows.
            says: its next is what the part says of itself, asked for behind the last row.
        """
        with self.create(name) as file, pq.ParquetWriter(file, schema) as writer:
            for table in tables:
                writer.write_table(table)
            writer.add_key_value_metadata({PART_KEY: json.dumps(next(says))})

    def tables(self, names: Iterable[str]) -> Iterator[pa.Table]:
        """Rows of some parts, a row group at a time."""
        for name in names:
            with self.open(name) as file, pq.ParquetFile(file) as part:
                for group in range(part.num_row_groups):
                    yield part.read_row_group(group).replace_schema_metadata(None)

    def schema(self, name: str) -> pa.Schema:
        """Of a part's rows, with its metadata."""
        with self.open(name) as file:
            return pq.read_schema(file)

    def complete(self, schema: pa.Schema, about: dict[str, Any], summaries: Sequence[Summary]) -> None:
        """Say that the table is whole, and which parts are its own.

        Args:
            schema: of the rows.
            about: what it says of itself.
            summaries: of the parts, in order.
        """
        metadata = {
            METADATA_KEY: json.dumps(about),
            PARTS_KEY: json.dumps([[summary.name, summary.rows] for summary in summaries]),
        }
        with self.create(COMMON) as file:
            pq.write_metadata(schema.with_metadata(metadata), file)


def errors_of(out: str) -> str:
    """Where the list of the sounds is that could not be read."""
    return f"{out.rstrip('/')}.errors.jsonl"


def write_errors(out: str, lines: bytes) -> str | None:
    """Write that list, or remove an old one where there is nothing in it; its name, if it has something in it."""
    path = errors_of(out)
    folder, name = os.path.split(path) if not is_url(path) else path.rsplit("/", 1)
    place = Parts(folder or ".")
    if not lines:
        place.remove([name])
        return None
    with place.create(name) as file:
        file.write(lines)
    return path


def is_parts(path: Path) -> bool:
    """Whether a path is a complete table in parts."""
    return (path / COMMON).is_file()

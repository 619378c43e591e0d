"""The rows of a run that goes on: files that only grow, and one small file that says how much of them counts.

A folder ``OUT.parts`` lies beside the output:

* ``rows.arrow``: parts one behind the other, each an Arrow stream of its own.
* ``failures.jsonl``: inputs that could not be read.
* ``inputs.bin``: a record for each input that is done; see `torchbeats.tables.states`.
* ``fragments.jsonl``: of a Lance dataset, what rows have moved on to; the file with the rows then begins anew.
* ``run.json``: what is computed, how far the run has come, and how long each of the other files is by then.

To keep a part costs the same whatever came before it, and to go on takes reading ``run.json`` alone. It is replaced
whole, after the other files have reached the disk; what they have beyond the lengths it names is of a part that was
not completed, and is cut off.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from torchbeats.errors import DiskFullError, FileInUseError, StoreError
from torchbeats.files import as_json, held, is_full, readable, remove_leftovers, replacing
from torchbeats.inference import Position

PARTS_OF_VERSION_ONE = "part-*.parquet"
GROWING = ("rows.arrow", "failures.jsonl", "inputs.bin", "fragments.jsonl")
ROWS_FILE = "rows_file"  # of ``run.json``: what the file with the rows is called, once rows before have moved on


class Unfinished:
    """The folder of one run, which no other process can write to at the same time.

    Args:
        out: the output.

    Attributes:
        run: what ``run.json`` says; None where no run has begun.

    Raises:
        StoreError: another run is writing the output.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = folder_of(out)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._held = held(self.folder / "lock")
        except FileInUseError:
            raise StoreError(f"Another run is writing {out}; wait for it, or name another output.") from None
        self._files: dict[str, IO[bytes]] = {}
        self.run: dict[str, Any] | None = read_run(self.folder)

    @property
    def position(self) -> Position:
        """How far the run has come."""
        return Position(*self.run["position"]) if self.run else Position()

    def of_version_one(self) -> bool:
        """Whether there are rows of a run that torchbeats 0.1 began: a file for each part."""
        return any(self.folder.glob(PARTS_OF_VERSION_ONE))

    def begin(self, what: dict[str, Any]) -> None:
        """Begin a new run; rows of an earlier one go.

        Args:
            what: is computed.
        """
        self.clear()
        self._save({**what, "position": Position(), "rows": 0, "failed": 0, "lengths": dict.fromkeys(GROWING, 0)})

    def add(
        self,
        rows: pa.Table,
        failures: Sequence[tuple[str, str]],
        records: bytes,
        position: Position,
        progress: dict[str, Any],
    ) -> None:
        """Keep a part of the results. Once this returns they survive whatever stops the run.

        Args:
            rows: in order.
            failures: inputs that could not be read, and why.
            records: of the inputs that are done.
            position: of the run behind them.
            progress: what else is to be known when the run goes on.
        """
        assert self.run is not None
        contents = {
            "rows.arrow": _stream(rows),
            "failures.jsonl": failure_lines(failures),
            "inputs.bin": records,
        }
        lengths = self.run["lengths"] | {name: self._grow(name, content) for name, content in contents.items()}
        self._save(
            {
                **self.run,
                **progress,
                "position": position,
                "rows": self.run["rows"] + len(rows),
                "failed": self.run["failed"] + len(failures),
                "lengths": lengths,
            }
        )

    def _grow(self, name: str, content: bytes | pa.Buffer) -> int:
        """Append to a file; its new length."""
        assert self.run is not None
        length: int = self.run["lengths"].get(name, 0)
        if not len(content):
            return length
        file = self._files.get(name)
        if file is None:
            path = self._path(name)
            file = self._files[name] = open(path, "ab")  # noqa: SIM115 - it stays open
            if file.tell() < length:
                raise StoreError(
                    f"{path} is shorter than it was: {file.tell():,} of {length:,} bytes. Use "
                    "--overwrite to begin anew."
                )
        file.truncate(length)  # behind it lies what a run has not completed
        try:
            remaining = memoryview(content).cast("B")
            while remaining:
                remaining = remaining[os.write(file.fileno(), remaining) :]
            os.fsync(file.fileno())
        except OSError as error:
            if is_full(error):
                raise DiskFullError(self.out, os.strerror(error.errno or errno.ENOSPC).lower()) from error
            raise
        return length + len(content)

    def waiting_bytes(self) -> int:
        """Size of the rows that have not moved on."""
        return int(self.run["lengths"]["rows.arrow"]) if self.run else 0

    def move_rows(self, lines: bytes) -> None:
        """All rows until here have moved on to fragments; the file with the rows begins anew.

        Args:
            lines: of the new fragments.
        """
        assert self.run is not None
        before = self._path("rows.arrow")
        lengths = {**self.run["lengths"], "fragments.jsonl": self._grow("fragments.jsonl", lines), "rows.arrow": 0}
        number = self.run.get("moves", 0) + 1
        if (file := self._files.pop("rows.arrow", None)) is not None:
            file.close()
        self._save({**self.run, "lengths": lengths, "moves": number, ROWS_FILE: f"rows-{number}.arrow"})
        before.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return _path_of(self.folder, name, self.run)

    def _save(self, run: dict[str, Any]) -> None:
        with replacing(self.folder / "run.json") as temporary:
            temporary.write_text(json.dumps(run, indent=1), "utf-8")
        self.run = run

    def tables(self) -> Iterator[pa.Table]:
        """All rows in order, a part at a time."""
        yield from parts(self.folder)

    def records(self) -> bytes:
        """The records of all inputs that are done."""
        return self._content("inputs.bin")

    def failures(self) -> bytes:
        """A JSON object a line for each input that could not be read."""
        return self._content("failures.jsonl")

    def fragments(self) -> list[bytes]:
        """A line for each fragment that rows have moved on to."""
        return self._content("fragments.jsonl").splitlines()

    def _content(self, name: str) -> bytes:
        length = self.run["lengths"].get(name, 0) if self.run else 0
        if not length:
            return b""
        with open(self.folder / name, "rb") as file:
            return file.read(length)

    def clear(self) -> None:
        """Delete the rows; first what says that they count, lest a run that is killed here be continued."""
        (self.folder / "run.json").unlink(missing_ok=True)
        for file in self._files.values():
            file.close()
        self._files.clear()
        growing = (self.folder / name for name in GROWING)
        for path in (*growing, *self.folder.glob("rows-*.arrow"), *self.folder.glob(PARTS_OF_VERSION_ONE)):
            path.unlink(missing_ok=True)
        errors = self.out.with_suffix(self.out.suffix + ".errors.jsonl")
        for leftover_of in (self.folder, self.out, errors):  # the last two of a run that was killed as it ended
            if not (leftover_of == self.out and self.out.is_dir()):  # Lance has no leftovers of ours
                remove_leftovers(leftover_of)
        self.run = None

    def discard(self) -> None:
        """Delete the folder; files in it that are not of a run stay."""
        self.clear()
        (self.folder / "lock").unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()


def failure_lines(failures: Sequence[tuple[str, str]]) -> bytes:
    """Inputs that could not be read, and why, as a JSON object a line."""
    lines = (as_json({"path": readable(path), "error": reason}) + "\n" for path, reason in failures)
    return "".join(lines).encode("utf-8", "replace")


def folder_of(out: Path) -> Path:
    """Where the rows of an unfinished run are."""
    return out.with_suffix(out.suffix + ".parts")


def read_run(folder: Path) -> dict[str, Any] | None:
    """What is known of an unfinished run; None where there is none that could be continued."""
    try:
        run = json.loads((folder / "run.json").read_text("utf-8"))
    except FileNotFoundError:
        return None
    return run if "lengths" in run else None


def _path_of(folder: Path, name: str, run: dict[str, Any] | None) -> Path:
    return folder / (run.get(ROWS_FILE, name) if run and name == "rows.arrow" else name)


def parts(folder: Path) -> Iterator[pa.Table]:
    """The rows of an unfinished run, a part at a time."""
    run = read_run(folder)
    length = run["lengths"]["rows.arrow"] if run else 0
    if not length:
        return
    with pa.OSFile(str(_path_of(folder, "rows.arrow", run))) as file:
        while file.tell() < length:
            with pa.ipc.open_stream(file) as stream:
                yield stream.read_all()


def _stream(rows: pa.Table) -> pa.Buffer | bytes:
    if not len(rows):
        return b""
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, rows.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as stream:
        stream.write_table(rows)
    return buffer.getvalue()

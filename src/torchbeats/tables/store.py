"""Results → one table, complete or absent, and resumable.

While a run goes on, its rows lie in a folder beside the output; see `torchbeats.tables.unfinished`. A run that is
killed loses what came after its last part, no more. At the end the rows become the output, and the folder goes. Rows
a step may then be joined to rows a file.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from torchbeats.data.fingerprint import Fingerprint
from torchbeats.errors import DiskFullError, StoreError
from torchbeats.files import readable, remove_leftovers, replacing
from torchbeats.inference import Group, Position
from torchbeats.plans import Row
from torchbeats.tables import formats, fragments
from torchbeats.tables.formats import INPUTS_KEY, METADATA_KEY, Content, read_about, with_begins
from torchbeats.tables.states import hash_of, packed, records
from torchbeats.tables.unfinished import Unfinished, folder_of

FLUSH_SECONDS = 2.0  # a part is written no more often than this
FLUSH_BYTES = 16 * 2**20

# Of the rows of a run and its records of inputs, makes those of the whole table: their number, themselves, the records.
Merge = Callable[[int, Iterable[pa.Table], bytes], tuple[int, Iterable[pa.Table], bytes]]


class Store:
    """The output of one run.

    Args:
        out: the table; its ending is one of `formats.SUFFIXES`.
        row: what a row is. Groups have a row a step where the output is to have a row a file.
        about: all that the result depends on; goes into the output's metadata. Only a run with the same is ever
            continued, or found to be complete. Where it does not say "inputs", their fingerprint is made as they come.
        overwrite: replace what is there. The old output stays until the new one is complete, and an overwriting run
            that was stopped is continued by another.
        base: fingerprint of the inputs of the table that is there, if this run updates it.

    Attributes:
        position: how far an earlier run has come.
        failed: number of inputs that could not be read, so far.
        inputs: fingerprint of the inputs that an earlier run has finished, or of all of those in a complete output.
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
        base: str | None = None,
    ) -> None:
        self.out = Path(out)
        formats.check_name(self.out)
        _, self.errors = output_files(out)
        self.about = json.loads(json.dumps(about))
        self.schema = schema_of(row)
        self._by_file = row.per == "file"
        # A Lance dataset grows as the run goes on, where its rows come in their order, and as they stay.
        self._by_fragments = self.out.suffix == ".lance" and not self._by_file and base is None
        self._what = {"about": self.about, "overwrite": overwrite, "base": base}
        self._unfinished: Unfinished | None = None
        self._pending: list[Group] = []
        self._states: list[bytes] = []
        self._flushed, self._bytes = time.monotonic(), 0
        self._fingerprint = Fingerprint()
        self._under_way, self._rows_under_way = 0, 0
        self.position, self.failed, self.complete, self.inputs = Position(), 0, False, ""
        if formats.exists(self.out) and not overwrite and base is None:
            self._find_complete()
        else:
            self._continue_or_begin()

    def _find_complete(self) -> None:
        existing = read_about(self.out)
        if existing is None or _comparable(existing, self.about) != _comparable(self.about, self.about):
            raise StoreError(self._refusal(existing))
        self.complete, self.failed, self.inputs = True, int(existing["failed"]), str(existing.get("inputs"))
        for path in (self.out, self.errors):
            remove_leftovers(path)
        if folder_of(self.out).exists():  # the last run was killed at the very end, or one that overwrites is at it
            Unfinished(self.out).discard()

    def _refusal(self, existing: dict[str, Any] | None) -> str:
        only_files = existing is not None and {**existing, **_NOT_SETTINGS} == {**self.about, **_NOT_SETTINGS}
        update = ", or --update to compute only files that differ" if only_files and not self._by_file else ""
        return (
            f"{self.out} exists and holds something else: {difference(existing, self.about)}. Name another output, "
            f"or use --overwrite{update}."
        )

    def _continue_or_begin(self) -> None:
        unfinished = self._unfinished = Unfinished(self.out)
        run, overwrite = unfinished.run, self._what["overwrite"]
        # An overwriting run begins anew, but goes on behind another one's parts.
        same = run is not None and run["about"] == self.about and run.get("base") == self._what["base"]
        if run is not None and same and (run["overwrite"] or not overwrite):
            self.position, self.failed, self.inputs = unfinished.position, run["failed"], run["inputs"]
            self._under_way, self._rows_under_way = run["under_way"], run["rows_under_way"]
            return
        if run is None and unfinished.of_version_one() and not overwrite:
            raise StoreError(
                f"{folder_of(self.out)} holds an unfinished run of torchbeats 0.1, which this version cannot continue. "
                "Finish it with that version, or use --overwrite to begin anew."
            )
        if run is not None and unfinished.position != Position() and not overwrite and self._what["base"] is None:
            raise StoreError(self._other_run(run["about"]))
        self._begin()

    def _begin(self) -> None:
        assert self._unfinished is not None
        if self.out.suffix == ".lance":
            self._unfinished.clear()  # first, lest a run that is killed here be continued without its fragments
            fragments.discard(self.out)
        self._unfinished.begin({**self._what, **self._progress()})
        self.position, self.failed, self.inputs = Position(), 0, ""

    def _other_run(self, about: dict[str, Any]) -> str:
        return (
            f"{folder_of(self.out)} holds an unfinished run with other settings: {difference(about, self.about)}. "
            "Finish that one, or use --overwrite to begin anew."
        )

    def continue_with(self, states: Iterable[bytes]) -> None:
        """Make sure that an earlier run was at the same inputs; begin anew where they are others and may be.

        Args:
            states: of the first `position` inputs, and of the one that follows; see `fingerprint.state`.

        Raises:
            StoreError: files were added, removed or changed since.
        """
        following = b""
        for number, state in enumerate(states):
            if number < self.position.inputs:
                self._fingerprint.add(state)
            else:
                following = state
        if str(self._fingerprint) == self.inputs and self._under_way in (0, hash_of(following)):
            return
        if not self._what["overwrite"] and self._what["base"] is None:
            raise StoreError(self._other_run({**self.about, "inputs": self.inputs}))
        self._fingerprint, self._under_way, self._rows_under_way = Fingerprint(), 0, 0
        self._begin()

    def check_complete(self, inputs: str) -> None:
        """Raise a `StoreError` where the complete output is of other inputs than those with this fingerprint."""
        if self.inputs != inputs:
            self.about["inputs"] = inputs
            raise StoreError(self._refusal(read_about(self.out)))

    def append(self, group: Group, states: Sequence[bytes] = ()) -> None:
        """Take the results of one group; they reach the disk within a few seconds of work.

        Args:
            group: in order.
            states: of the inputs that end in this group, and of the one under way behind it; see `fingerprint.state`.
        """
        self._pending.append(group)
        self._states += states[: len(group.ended)]
        self._under_way = hash_of(states[len(group.ended)]) if len(states) > len(group.ended) else 0
        self._bytes += group.values.nbytes
        if self._bytes >= FLUSH_BYTES or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flush()

    def keep(self) -> None:
        """Write what was appended, as the run is about to stop; if that cannot be, it is computed anew."""
        with suppress(OSError, StoreError):
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        assert self._unfinished is not None
        # No more pending before they are written: should a Ctrl-C come within, they are not to be written twice.
        pending, self._pending = self._pending, []
        failures = [failure for group in pending for failure in group.failures]
        self.position = pending[-1].position
        self.failed += len(failures)
        tables = [rows_of(group, self.schema) for group in pending if group.paths]
        table = pa.concat_tables(tables) if tables else with_begins(self.schema).empty_table()
        ended = [end for group in pending for end in group.ended]
        counts = [count for group in pending for count in self._row_counts(group)]
        for state in self._states:
            self._fingerprint.add(state)
        states = zip(ended, self._states, strict=False)
        hashes = [0 if failed else hash_of(state) for (_, failed), state in states]
        hash_records = records(hashes, counts[: len(hashes)])
        with _disk_full_explained():
            self._unfinished.add(table, failures, hash_records, self.position, self._progress())
            if self._by_fragments and self._unfinished.waiting_bytes() >= fragments.FRAGMENT_BYTES:
                self._move_rows()
        self._states, self._bytes, self._flushed = [], 0, time.monotonic()

    def _move_rows(self) -> None:
        """Make a fragment of the rows that wait. One that a run writes which is stopped here is written again."""
        assert self._unfinished is not None
        self._unfinished.move_rows(fragments.add_fragment(self.out, self.schema, self._unfinished.tables()))

    def _progress(self) -> dict[str, Any]:
        return {
            "inputs": str(self._fingerprint),
            "under_way": self._under_way,
            "rows_under_way": self._rows_under_way,
        }

    def _row_counts(self, group: Group) -> list[int]:
        """Numbers of rows of the inputs that end in a group."""
        edges = [*np.flatnonzero(group.begins).tolist(), len(group.paths)]
        self._rows_under_way += edges[0]
        file_rows = iter(np.diff(edges).tolist())
        counts = []
        for windows, _ in group.ended:
            if self._rows_under_way:
                counts.append(self._rows_under_way)
                self._rows_under_way = 0
            else:
                counts.append(next(file_rows, 0) if windows else 0)
        self._rows_under_way += sum(file_rows)
        return counts

    def finish(self, inputs: str | None = None, merge: Merge | None = None) -> None:
        """Make the rows the output, and list the inputs that failed in ``OUT.errors.jsonl``, if any did.

        Args:
            inputs: fingerprint of all inputs, if they are not just those that this run was at.
            merge: adds what an update keeps.
        """
        self._flush()
        unfinished = self._unfinished
        assert unfinished is not None
        assert unfinished.run is not None
        if failures := unfinished.failures():
            with _disk_full_explained(), replacing(self.errors) as temporary:
                temporary.write_bytes(failures)
        else:
            self.errors.unlink(missing_ok=True)
        tables: Iterable[pa.Table] = unfinished.tables()
        count, states = unfinished.run["rows"], unfinished.records()
        if merge is not None:
            count, tables, states = merge(count, tables, states)
        about = {**self.about, "failed": self.failed}
        about.setdefault("inputs", inputs or str(self._fingerprint))
        metadata = {METADATA_KEY: json.dumps(about), INPUTS_KEY: packed(states)}
        schema = self.schema.with_metadata(metadata)
        with _disk_full_explained():
            if self._by_fragments and count:
                if unfinished.waiting_bytes():
                    self._move_rows()
                fragments.commit(self.out, schema, unfinished.fragments())
            else:
                self._write(schema, count, tables)
        self.complete = True
        unfinished.discard()

    def _write(self, schema: pa.Schema, count: int, tables: Iterable[pa.Table]) -> None:
        """Write all of the output at once."""
        piece = formats.pieces(tables, piece_rows(self.schema))
        content = Content(schema, count, piece, self._by_file)
        formats.WRITERS[self.out.suffix](self.out, content)

    def nothing_to_do(self) -> None:
        """An update has found no change: the table stays as it is."""
        assert self._unfinished is not None
        self._unfinished.discard()
        self.complete, self.failed = True, int((read_about(self.out) or {}).get("failed", 0))


def schema_of(row: Row) -> pa.Schema:
    """Of a table's rows a window or a step."""
    return pa.schema(
        [
            ("path", pa.string()),
            ("start", pa.float64()),
            ("end", pa.float64()),
            (row.column, pa.list_(pa.from_numpy_dtype(row.dtype), row.width)),
        ]
    )


def rows_of(group: Group, schema: pa.Schema) -> pa.Table:
    """A group's rows, with the column `formats.BEGINS`."""
    values = pa.FixedSizeListArray.from_arrays(pa.array(group.values.reshape(-1)), schema.types[-1].list_size)
    paths = [readable(path) for path in group.paths]
    columns = [pa.array(paths, pa.string()), *group.times.T, values, group.begins]
    return pa.table(columns, schema=with_begins(schema))


def piece_rows(schema: pa.Schema) -> int:
    """Number of rows that are written at once."""
    width = schema.types[-1].list_size * schema.types[-1].value_type.bit_width // 8
    return max(1, FLUSH_BYTES // (width + 64))


@contextmanager
def _disk_full_explained() -> Iterator[None]:
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


_NOT_SETTINGS = {"failed": None, "inputs": None}


def _comparable(about: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in two tables; the inputs are compared later where they are not known yet."""
    inputs = {"inputs": about.get("inputs")} if "inputs" in current else {}
    return {**about, "failed": 0, "inputs": None, **inputs}


def difference(existing: dict[str, Any] | None, here: dict[str, Any]) -> str:
    """In what the settings of a table differ from those that are wanted, in words."""
    if existing is None:
        return "nothing that torchbeats wrote"
    changed = [name for name in here if existing.get(name) != here[name]]
    return (
        "; ".join(
            "files were added, removed or changed"
            if name == "inputs"
            else f"{name} is {existing.get(name)} there and {here[name]} here"
            for name in changed
        )
        or "files were added, removed or changed"
    )

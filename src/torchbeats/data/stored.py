"""Sounds that lie inside a Parquet file, as the Hugging Face Hub has them: read one by one, when they are asked for."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from torchbeats.errors import AudioError

HELD_BYTES = 1 << 26  # of what was read last: threads ask for neighbouring rows in almost any order
BATCH_ROWS = 8
MOST_READERS = 4


class StoredSound(NamedTuple):
    """Where the bytes of a sound are.

    Attributes:
        file: a Parquet file.
        column: that holds bytes.
        group: the row group.
        row: in that group.
        name: of the sound, for people.
    """

    file: str
    column: str
    group: int
    row: int
    name: str

    def open(self) -> BinaryIO:
        """The sound as an open file.

        Raises:
            AudioError: the Parquet file cannot be read, or holds no bytes here.
        """
        try:
            data = _reader(self.file, self.column).read(self.group, self.row)
        except (OSError, ValueError) as error:
            raise AudioError(self.name, f"{self.file} cannot be read ({error})") from error
        if not data:
            raise AudioError(self.name, "its row holds no sound")
        content = io.BytesIO(data)
        content.name = self.name
        return content


class MemorySound(NamedTuple):
    """The content of a sound file that is in memory.

    Attributes:
        name: of the sound, for people.
        data: the file's bytes.
    """

    name: str
    data: bytes

    def open(self) -> BinaryIO:
        """The sound as an open file.

        Raises:
            AudioError: there are no bytes.
        """
        if not self.data:
            raise AudioError(self.name, "the file is empty (0 bytes)")
        content = io.BytesIO(self.data)
        content.name = self.name
        return content


class _Reader:
    """Rows of one column, in order for little, in any order at the cost of what lies before them in their group."""

    def __init__(self, file: str, column: str) -> None:
        import pyarrow.parquet as pq

        # With a buffer, a column of a row group is read bit by bit; without, all of it at once.
        self._file, self._column = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False), column
        self._held: OrderedDict[tuple[int, int], bytes | None] = OrderedDict()
        self._bytes, self._group, self._next = 0, -1, 0
        self._batches: Iterator[Any] = iter(())
        self._lock = threading.Lock()

    def read(self, group: int, row: int) -> bytes | None:
        with self._lock:
            if (group, row) in self._held:
                return self._held[group, row]
            if group != self._group or row < self._next:
                self._group, self._next = group, 0
                self._batches = self._file.iter_batches(BATCH_ROWS, row_groups=[group], columns=[self._column])
            for batch in self._batches:
                column = batch.column(0)
                values = column.field(0) if hasattr(column, "field") else column
                first, self._next = self._next, self._next + len(values)
                if row < self._next:
                    for i, value in enumerate(values.to_pylist()):
                        self._hold((group, first + i), value)
                    return values[row - first].as_py()
            raise ValueError(f"its row group {group} has no row {row}")

    def _hold(self, key: tuple[int, int], value: bytes | None) -> None:
        self._bytes -= len(self._held.pop(key, None) or b"")
        self._held[key] = value
        self._bytes += len(value or b"")
        while self._bytes > HELD_BYTES and len(self._held) > 1:
            self._bytes -= len(self._held.popitem(last=False)[1] or b"")


_readers: OrderedDict[tuple[int, str, str, int], _Reader] = OrderedDict()
_readers_lock = threading.Lock()


def _reader(file: str, column: str) -> _Reader:
    with _readers_lock:  # a process that was forked, and a file that was written anew, have readers of their own
        key = (os.getpid(), file, column, os.stat(file).st_mtime_ns)
        if key not in _readers:
            _readers[key] = _Reader(file, column)
            while len(_readers) > MOST_READERS:
                _readers.popitem(last=False)
        _readers.move_to_end(key)
        return _readers[key]

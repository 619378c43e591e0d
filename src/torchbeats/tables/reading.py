"""A finished table, read a piece at a time: its rows, and what it says of itself."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from torchbeats.audio import Floats
from torchbeats.errors import InputError
from torchbeats.files import from_readable
from torchbeats.inference import Flags, Times
from torchbeats.tables.store import DAMAGE, SUFFIXES, summary

ROWS = 8192  # at a time


class Rows(NamedTuple):
    """Some rows of a table, in order.

    Attributes:
        first: index of the first of them in the table.
        paths: of their files.
        times: ``(n, 2)`` float64, start and end in seconds.
        values: ``(n, D)`` float32.
        begins: ``(n,)`` bool, whether a row is the first of a sound.
    """

    first: int
    paths: list[str]
    times: Times
    values: Floats
    begins: Flags


class Table:
    """Embeddings that `write_table` wrote.

    Args:
        path: ``.parquet`` or ``.npz``.

    Attributes:
        about: all that the embeddings depend on: "model", "weights", "pool", "layer", "window" and so on.
        shape: of an embedding.
        count: number of rows.

    Raises:
        InputError: it cannot be read, torchbeats did not write it, or its rows are no embeddings.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        described = summary(self.path) if self.path.suffix in SUFFIXES else None
        if described is None:
            raise InputError(f"{self.path} cannot be read, or is no table that torchbeats wrote.")
        if "embedding" not in described["columns"]:
            raise InputError(f"{self.path} holds no embeddings; its columns are {', '.join(described['columns'])}.")
        self.about: dict[str, Any] = described["settings"]
        self.shape: tuple[int, ...] = tuple(self.about["shape"])
        self.count: int = described["rows"]

    def rows(self, size: int = ROWS) -> Iterator[Rows]:
        """All rows, at most ``size`` at a time.

        Raises:
            InputError: one of them is not finite.
        """
        last = ("", 0.0)  # path and start of the row before
        first = 0
        for paths, times, values in self._pieces(size):
            begins = np.empty(len(paths), bool)
            for i, (path, start) in enumerate(zip(paths, times[:, 0].tolist(), strict=True)):
                begins[i] = path != last[0] or start <= last[1]
                last = (path, start)
            if not np.isfinite(values).all():
                where = int((~np.isfinite(values).all(1)).argmax())
                raise InputError(
                    f"{self.path} holds numbers that are not finite, in row {first + where:,}, of {paths[where]}. Make "
                    "it again; a sound that gives such numbers is left out then."
                )
            yield Rows(first, [from_readable(path) for path in paths], times, values, begins)
            first += len(paths)

    def take(self, indices: np.ndarray[Any, Any]) -> Floats:
        """``(n, D)``, the embeddings of some rows, in the order of the indices."""
        order = np.argsort(indices, kind="stable")
        wanted = indices[order]
        taken = np.empty((len(indices), int(np.prod(self.shape))), np.float32)
        for rows in self.rows():
            low, high = np.searchsorted(wanted, [rows.first, rows.first + len(rows.paths)])
            taken[order[low:high]] = rows.values[wanted[low:high] - rows.first]
        return taken

    def _pieces(self, size: int) -> Iterator[tuple[list[str], Times, Floats]]:
        try:
            yield from self._npz(size) if self.path.suffix == ".npz" else self._parquet(size)
        except DAMAGE as error:
            reason = (str(error).splitlines() or [repr(error)])[0]
            raise InputError(f"{self.path} is damaged ({reason}). Make it again, or copy it again.") from error

    def _parquet(self, size: int) -> Iterator[tuple[list[str], Times, Floats]]:
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(size, columns=["path", "start", "end", "embedding"]):
                times = np.stack([batch["start"].to_numpy(), batch["end"].to_numpy()], 1)
                values = batch["embedding"].flatten().to_numpy().reshape(len(batch), -1)
                yield batch["path"].to_pylist(), times, values

    def _npz(self, size: int) -> Iterator[tuple[list[str], Times, Floats]]:
        with np.load(self.path) as arrays:
            paths, times = arrays["path"], np.stack([arrays["start"], arrays["end"]], 1)
        with zipfile.ZipFile(self.path) as archive, archive.open("embedding.npy") as file:
            np.lib.format.read_magic(file)
            (_, width), _, dtype = np.lib.format.read_array_header_2_0(file)  # as the store writes it
            for first in range(0, len(paths), size):
                part = slice(first, first + size)
                content = file.read(len(paths[part]) * width * dtype.itemsize)
                values = np.frombuffer(content, dtype).reshape(-1, width).astype(np.float32, copy=False)
                yield paths[part].tolist(), times[part], values

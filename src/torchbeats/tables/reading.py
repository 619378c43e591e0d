"""A finished table, read a piece at a time: its rows, and what it says of itself."""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from torchbeats.audio import Floats
from torchbeats.errors import InputError, TorchbeatsError
from torchbeats.files import from_readable, is_called_like_url, with_both_slashes
from torchbeats.inference import Flags, Times
from torchbeats.plans import EmbeddingPlan
from torchbeats.tables.formats import BEGINS, DAMAGE, SUFFIXES, open_lance, parquet_files, summary

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


class Ranges:
    """Rows of a finished table by their places in it, as they lie there.

    Args:
        path: of the table. Its rows are a window or a step each.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._group, self._held = -1, pa.table({})

    def __enter__(self) -> Ranges:
        if self.path.suffix == ".npz":
            with np.load(self.path) as arrays:
                columns = {name: arrays[name] for name in ("path", "start", "end")}
                (name,) = set(arrays.files) - {*columns, "about", "inputs"}
                values = arrays[name]
            stored = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
            self._table = pa.table({**columns, name: stored})
        elif self.path.suffix == ".lance":
            self._dataset = open_lance(self.path)
        else:
            self._groups: list[tuple[Path, int]] = []  # file and number of each row group
            rows = [0]
            for file in parquet_files(self.path):
                metadata = pq.read_metadata(file)
                self._groups += [(file, i) for i in range(metadata.num_row_groups)]
                rows += [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            self._edges = np.cumsum(rows)
            self._file: pq.ParquetFile | None = None
        return self

    def __exit__(self, *_: object) -> None:
        if self.path.suffix == ".parquet" and self._file is not None:
            self._file.close()

    def read(self, first: int, last: int) -> Iterator[pa.Table]:
        """The rows from the first to the one before the last, in pieces, with the column `BEGINS`."""
        while first < last:
            table = self.at(first, last).slice(0, last - first)
            first += len(table)
            yield table.append_column(BEGINS, pa.array(np.zeros(len(table), bool)))

    def at(self, first: int, last: int) -> pa.Table:
        """The first of some rows and those behind it that are read with it, which may be more than are asked for."""
        if self.path.suffix == ".lance":
            count = min(last - first, ROWS)
            return self._dataset.to_table(offset=first, limit=count).replace_schema_metadata(None)
        if self.path.suffix == ".npz":
            return self._table.slice(first)
        group = int(np.searchsorted(self._edges, first, "right")) - 1
        if group != self._group:
            file, number = self._groups[group]
            if self._file is None or self._groups[self._group][0] != file:
                self.__exit__()
                self._file = pq.ParquetFile(file)
            self._group, self._held = group, self._file.read_row_group(number).replace_schema_metadata(None)
        return self._held.slice(first - self._edges[group])


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except TorchbeatsError:
        raise
    except DAMAGE as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise InputError(f"{path} is damaged ({reason}). Make it again, or copy it again.") from error


class Table:
    """Embeddings that `write_table` wrote.

    Args:
        path: ``.parquet``, ``.npz`` or ``.lance``.

    Attributes:
        about: all that the embeddings depend on: "model", "weights", "pool", "layer", "window" and so on.
        plan: how they were made, of these.
        shape: of an embedding.
        count: number of rows.

    Raises:
        InputError: it cannot be read, torchbeats did not write it, its rows are no embeddings, or what it says of
            itself makes no sense.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        about_table = summary(self.path) if self.path.suffix in SUFFIXES else None
        if about_table is None and is_called_like_url(path):
            raise InputError(f"{with_both_slashes(path)} is a URL, and a table is read from this machine: download it.")
        if about_table is None:
            raise InputError(f"{self.path} cannot be read, or is no table that torchbeats wrote.")
        if "embedding" not in about_table["columns"]:
            raise InputError(f"{self.path} holds no embeddings; its columns are {', '.join(about_table['columns'])}.")
        self.about: dict[str, Any] = about_table["settings"]
        self.plan, self.shape = _checked(self.path, self.about, about_table["columns"]["embedding"])
        self.count: int = about_table["rows"]

    def rows(self, size: int = ROWS) -> Iterator[Rows]:
        """All rows, at most ``size`` at a time.

        Raises:
            InputError: one of them is not finite, or the file is damaged.
        """
        last = ("", 0.0)  # path and start of the row before
        first = 0
        for paths, times, values in self._pieces(size):
            begins = np.empty(len(paths), bool)
            for i, (path, start) in enumerate(zip(paths, times[:, 0].tolist(), strict=True)):
                begins[i] = path != last[0] or start <= last[1]
                last = (path, start)
            if not np.isfinite(values).all():
                bad_row = int((~np.isfinite(values).all(1)).argmax())
                raise InputError(
                    f"{self.path} holds numbers that are not finite, in row {first + bad_row:,}, of {paths[bad_row]}. "
                    "Make it again; a sound that gives such numbers is left out then."
                )
            yield Rows(first, [from_readable(path) for path in paths], times, values, begins)
            first += len(paths)
        if first != self.count:
            raise InputError(
                f"{self.path} is damaged: it declares {self.count:,} rows and holds {first:,}. Make it again."
            )

    def take(self, indices: np.ndarray[Any, Any]) -> Floats:
        """``(n, D)``, the embeddings of some rows, in the order of the indices.

        Raises:
            InputError: the file is damaged.
        """
        with _damage_told(self.path):
            return self._take(indices)

    def _take(self, indices: np.ndarray[Any, Any]) -> Floats:
        unique_indices, inverse = np.unique(indices, return_inverse=True)
        vectors = np.empty((len(unique_indices), int(np.prod(self.shape))), np.float32)
        count = 0
        for first, values in self._near_rows(unique_indices):
            last = int(np.searchsorted(unique_indices, first + len(values)))
            vectors[count:last] = values[unique_indices[count:last] - first]
            count = last
        return vectors[inverse]

    def _near_rows(self, indices: np.ndarray[Any, Any]) -> Iterator[tuple[int, Floats]]:
        """Index of the first of some rows, and their embeddings, until all wanted ones have been among them."""
        if self.path.suffix == ".npz":
            first = 0
            for values in self.vectors():
                yield first, values
                first += len(values)
            return
        with Ranges(self.path) as ranges:
            count = 0
            while count < len(indices):
                first = int(indices[count])
                rows = ranges.at(first, int(indices[-1]) + 1)
                yield first, rows["embedding"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
                count = int(np.searchsorted(indices, first + len(rows)))

    def vectors(self, size: int = ROWS) -> Iterator[Floats]:
        """``(rows, D)`` embeddings in order, and nothing else of the rows.

        Raises:
            InputError: the file is damaged.
        """
        with _damage_told(self.path):
            if self.path.suffix == ".npz":
                yield from (values for _, _, values in self._npz(size))
                return
            for batch in self.batches(["embedding"], size):
                yield batch["embedding"].flatten().to_numpy().reshape(len(batch), -1)

    def places(self, indices: np.ndarray[Any, Any]) -> list[tuple[str, float, float]]:
        """Path, start and end of some rows, in the order of the indices.

        Raises:
            InputError: the file is damaged.
        """
        with _damage_told(self.path):
            return self._places_of(indices)

    def _places_of(self, indices: np.ndarray[Any, Any]) -> list[tuple[str, float, float]]:
        order = np.argsort(indices, kind="stable")
        ordered = indices[order]
        result: list[tuple[str, float, float]] = [("", 0.0, 0.0)] * len(indices)
        for first, path, start, end in self._places(ordered):
            low, high = np.searchsorted(ordered, [first, first + len(start)])
            taken = ordered[low:high] - first
            columns = (column.take(pa.array(taken)).to_pylist() for column in (path, start, end))
            for position, (name, *times) in zip(order[low:high].tolist(), zip(*columns, strict=True), strict=True):
                result[position] = (from_readable(name), *times)
        return result

    def _pieces(self, size: int) -> Iterator[tuple[list[str], Times, Floats]]:
        with _damage_told(self.path):
            yield from self._npz(size) if self.path.suffix == ".npz" else self._arrow(size)

    def rows_of(self, paths: Iterable[str]) -> np.ndarray[Any, Any]:
        """Sorted indices of the rows of some files, by their paths as the table has them.

        Raises:
            InputError: the file is damaged.
        """
        requested = pa.array(sorted(paths), pa.string())
        parts = [np.zeros(0, np.int64)]
        with _damage_told(self.path):
            for first, path, _, _ in self._places():
                parts.append(first + np.flatnonzero(pc.is_in(path, requested).to_numpy(zero_copy_only=False)))
        return np.concatenate(parts)

    def _places(
        self, ordered: np.ndarray[Any, Any] | None = None
    ) -> Iterator[tuple[int, pa.Array, pa.Array, pa.Array]]:
        """Index of the first of some rows, their paths, starts and ends.

        Args:
            ordered: sorted indices; rows that are not read with one of these may be left out.
        """
        columns = ["path", "start", "end"]
        if self.path.suffix == ".npz":
            with np.load(self.path) as arrays:
                yield (0, *(pa.array(arrays[name]) for name in columns))
            return
        if ordered is not None and self.path.suffix == ".parquet":
            yield from self._places_in_groups(columns, ordered)
            return
        first = 0
        for batch in self.batches(columns, 1 << 16):
            yield (first, *(batch[name] for name in columns))
            first += len(batch)

    def _places_in_groups(
        self, columns: list[str], ordered: np.ndarray[Any, Any]
    ) -> Iterator[tuple[int, pa.Array, pa.Array, pa.Array]]:
        first = 0  # of a part's rows
        for part in parquet_files(self.path):
            with pq.ParquetFile(part, pre_buffer=False) as file:
                rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                edges = first + np.cumsum([0, *rows])
                within = ordered[np.searchsorted(ordered, edges[0]) : np.searchsorted(ordered, edges[-1])]
                for group in np.unique(np.searchsorted(edges, within, "right") - 1).tolist():
                    table = file.read_row_group(group, columns)
                    yield (int(edges[group]), *(table[name].combine_chunks() for name in columns))
                first = int(edges[-1])

    def _arrow(self, size: int) -> Iterator[tuple[list[str], Times, Floats]]:
        for batch in self.batches(["path", "start", "end", "embedding"], size):
            times = np.stack([_numbers(batch["start"]), _numbers(batch["end"])], 1)
            values = _numbers(batch["embedding"].flatten()).reshape(len(batch), -1)
            yield batch["path"].to_pylist(), times, values

    def batches(self, columns: list[str], size: int = ROWS) -> Iterator[pa.RecordBatch]:
        """Some columns of a table in Parquet or Lance."""
        if self.path.suffix == ".lance":
            yield from open_lance(self.path).to_batches(columns=columns, batch_size=size, scan_in_order=True)
        else:
            for part in parquet_files(self.path):
                # Read ahead, all of the file would be in memory before long.
                with pq.ParquetFile(part, pre_buffer=False) as file:
                    yield from file.iter_batches(size, columns=columns)

    def _npz(self, size: int) -> Iterator[tuple[list[str], Times, Floats]]:
        with np.load(self.path) as arrays:
            paths, times = arrays["path"], np.stack([arrays["start"], arrays["end"]], 1)
        with zipfile.ZipFile(self.path) as archive, archive.open("embedding.npy") as file:
            np.lib.format.read_magic(file)
            (_, width), _, dtype = np.lib.format.read_array_header_2_0(file)  # as the store writes it
            if width != math.prod(self.shape) or dtype.kind != "f":
                raise ValueError(f"its array has {width:,} {dtype} a row")
            for first in range(0, len(paths), size):
                part = slice(first, first + size)
                content = file.read(len(paths[part]) * width * dtype.itemsize)
                values = np.frombuffer(content, dtype).reshape(-1, width).astype(np.float32, copy=False)
                yield paths[part].tolist(), times[part], values


# Of what a table says of itself, what its readers rely on.
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "weights", "engine", "dtype", "pool"), (str,)),
    "layer": (int, str, NoneType),
    **dict.fromkeys(("hop", "window"), (int, float, NoneType)),
    "batch_seconds": (int, float),
    "shape": (list,),
}


def _checked(path: Path, about: dict[str, Any], stored: str) -> tuple[EmbeddingPlan, tuple[int, ...]]:
    """Plan and shape of what a table says of itself, where that makes sense; ``stored`` is its column's type."""
    try:
        for name, types in _TYPES.items():
            if name not in about or type(about[name]) not in types:  # a bool is no number
                raise ValueError(name)
        plan = EmbeddingPlan(*(about[name] for name in ("pool", "layer", "hop")),
                             **{name: about[name] for name in ("window", "batch_seconds")})  # fmt: skip
        if not isinstance(getattr(torch, about["dtype"], None), torch.dtype):
            raise ValueError("dtype")
        shape = tuple(about["shape"])
        if not all(type(size) is int and size > 0 for size in shape):
            raise ValueError("shape")
        width = re.fullmatch(r"fixed_size_list<\w+: float>\[(\d+)\]", stored)
        fits = int(width[1]) == math.prod(shape) if width else stored == "float32"  # NumPy's has a width of its own
        if not fits:
            raise ValueError("shape")
    except ValueError as error:
        raise InputError(
            f"{path} is damaged: what it says of itself makes no sense ({error}). Make it again, or copy it again."
        ) from error
    return plan, shape


def _numbers(array: pa.Array) -> np.ndarray[Any, Any]:
    """The numbers of a column, not copied; pyarrow's own way imports pandas where it is, which takes half a second."""
    kind = np.dtype(array.type.to_pandas_dtype())
    if array.null_count or kind.hasobject or not len(array):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    return np.frombuffer(array.buffers()[1], kind)[array.offset : array.offset + len(array)]

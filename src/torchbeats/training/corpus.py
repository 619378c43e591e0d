"""The sounds of a corpus, and how long each is: found once, then kept as a Parquet file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchbeats import audio
from torchbeats.audio import AudioWarning, Floats
from torchbeats.data import shards
from torchbeats.data.inputs import find_audio
from torchbeats.data.shards import ShardSound
from torchbeats.errors import AudioError, CorpusError, InputError
from torchbeats.files import replacing

# Paths as the bytes that they are on disk, which need not be text.
_SCHEMA = pa.schema(
    {"path": pa.binary(), "seconds": pa.float32(), "shard": pa.binary(), "offset": pa.int64(), "size": pa.int64()}
)


class Failure(NamedTuple):
    """A sound that could not be read."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Corpus:
    """The sounds that there are, and how long each is.

    Args:
        table: columns ``path``; ``seconds``, NaN where no header tells; and of a sound inside a WebDataset shard
            ``shard``, ``offset`` and ``size``, null elsewhere.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.seconds = table["seconds"].to_numpy()
        self._columns = {name: table[name].combine_chunks() for name in ("path", "shard", "offset", "size")}

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def hours(self) -> float:
        """Hours of sound whose length is known."""
        return float(np.nansum(self.seconds)) / 3600

    def path(self, row: int) -> str:
        """Name of a sound, for people."""
        shard = self._get("shard", row)
        return os.fsdecode((shard + b"#" if shard else b"") + self._get("path", row))

    def _get(self, column: str, row: int) -> Any:
        return self._columns[column][row].as_py()

    def read(self, row: int, start: float, seconds: float) -> Floats:
        """A piece of a sound; see `audio.excerpt`."""
        name, shard = os.fsdecode(self._get("path", row)), self._get("shard", row)
        if shard is None:
            return audio.excerpt(name, start, seconds)
        sound = ShardSound(os.fsdecode(shard), name, self._get("offset", row), self._get("size", row))
        return audio.excerpt(sound.open(), start, seconds)

    def save(self, path: Path) -> None:
        """Write the index; the next run need not look at every file again."""
        with replacing(path) as temporary:
            pq.write_table(self.table, temporary)

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Read what `save` wrote."""
        return cls(pq.read_table(path))


def index(
    inputs: Sequence[str],
    jobs: int = 8,
    on_file: Callable[[Failure | None], None] = lambda failure: None,
) -> Corpus:
    """Find all sounds that the inputs name and look at their headers.

    Args:
        inputs: what `find_audio` takes, URLs among them; and WebDataset shards, ``.tar`` files, by path or by any URL
            that fsspec reads, where ``*`` and ``{000..127}`` stand for many.
        jobs: threads that look.
        on_file: called for every file and shard; with what is wrong where it is of no use.

    Raises:
        InputError: an input names no files.
        CorpusError: none of them can be read.
    """
    patterns = [name for name in inputs if shards.is_shard(name)]
    files = [name for name in inputs if not shards.is_shard(name)]
    tasks: list[tuple[Callable[[str], list[_Row]], str]] = []
    if files:
        tasks += [(_look, path) for path in find_audio(files)]
    tasks += [(_members, url) for pattern in patterns for url in _expand(pattern)]

    def attempt(task: tuple[Callable[[str], list[_Row]], str]) -> list[_Row] | Failure:
        look, path = task
        try:
            return look(path)
        except AudioError as error:
            return Failure(path, error.reason)
        except (OSError, ValueError, ImportError) as error:
            return Failure(path, f"it cannot be read ({error})")

    rows: list[_Row] = []
    failures: list[Failure] = []
    with ThreadPoolExecutor(jobs, thread_name_prefix="index") as pool:
        for result in pool.map(attempt, tasks):
            if isinstance(result, Failure):
                failures.append(result)
                on_file(result)
            else:
                rows += result
                on_file(None)
    if not rows:
        raise CorpusError(
            f"There is nothing to learn from: none of the {len(tasks):,} files could be read. The first, {failures[0]}."
        )
    return Corpus(pa.table(dict(zip(_SCHEMA.names, map(list, zip(*rows, strict=True)), strict=True)), schema=_SCHEMA))


_Row: TypeAlias = "tuple[bytes, float, bytes | None, int | None, int | None]"


def _look(path: str) -> list[_Row]:
    seconds = audio.duration(path)
    return [(os.fsencode(path), float("nan") if seconds is None else seconds, None, None, None)]


def _expand(pattern: str) -> list[str]:
    """The shards that a pattern stands for."""
    try:
        return list(shards.expand(pattern))
    except InputError as error:
        raise CorpusError(str(error)) from error


def _members(shard: str) -> list[_Row]:
    """The sounds in a shard. Only their headers in the archive are read, so that their lengths stay unknown."""
    rows: list[_Row] = []
    try:
        for sound in shards.sounds_in(shard):
            rows.append((os.fsencode(sound.name), float("nan"), os.fsencode(shard), sound.offset, sound.size))
    except AudioError as error:
        if not rows:
            raise
        warnings.warn(f"{shard}: {error.reason}; the {len(rows):,} sounds before are used.", AudioWarning, stacklevel=2)
    return rows

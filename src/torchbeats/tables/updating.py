"""A table that exists and its sounds of today: which are computed, which rows are kept, and both in order."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from torchbeats.data.fingerprint import Fingerprint, state
from torchbeats.data.inputs import Piece
from torchbeats.data.listing import Listing
from torchbeats.errors import StoreError
from torchbeats.tables.formats import INPUTS_KEY, read_about, read_metadata
from torchbeats.tables.reading import Ranges
from torchbeats.tables.states import STATE, hash_of, unpacked
from torchbeats.tables.store import difference

NEW = -1


class Update:
    """What an update has to do.

    Args:
        out: the table.
        about: all that the rows depend on, but the inputs.
        sounds: of today.

    Attributes:
        base: fingerprint of the table's inputs.
        inputs: fingerprint of the sounds.
        changed: the sounds that were added or changed, or that could not be read.
        kept: number of the sounds whose rows stay.
        dropped: number of the table's inputs whose rows go, those of changed sounds among them.

    Raises:
        StoreError: the table was made with other settings, or does not tell what it was made of.
    """

    def __init__(self, out: Path, about: dict[str, Any], sounds: Listing) -> None:
        self.out = out
        existing = read_about(out)
        if existing is None or {**existing, "inputs": 0, "failed": 0} != {**about, "inputs": 0, "failed": 0}:
            raise StoreError(
                f"{out} cannot be updated, as it holds something else: {difference(existing, about)}. Name another "
                "output, or use --overwrite."
            )
        packed = read_metadata(out, INPUTS_KEY)
        states = np.zeros(0, STATE) if packed is None else unpacked(packed)
        self.base = str(existing["inputs"])
        if len(states) != int(self.base.split()[0]):
            raise StoreError(
                f"{out} cannot be updated: it does not tell which files it was made of. Use --overwrite once, to "
                "compute all of it."
            )
        self._hashes, self._rows = states["hash"], states["rows"].astype(np.int64)
        self._firsts = np.concatenate([[0], np.cumsum(self._rows)])[: len(self._rows)]
        self._sources, self.inputs = _compare(self._hashes, sounds)
        self.kept = int((self._sources != NEW).sum())
        self.dropped = len(states) - self.kept
        self.changed = Listing(sound for sound, source in zip(sounds, self._sources, strict=True) if source == NEW)

    def is_needed(self) -> bool:
        """Whether anything but the fingerprint would change."""
        return bool(self.dropped) or self.kept < len(self._sources) or bool((np.diff(self._sources) < 0).any())

    def merge(self, count: int, tables: Iterable[pa.Table], records: bytes) -> tuple[int, Iterable[pa.Table], bytes]:
        """Rows that were computed and rows that are kept, in the order of the sounds; see `store.Merge`."""
        new = np.frombuffer(records, STATE)
        states = np.zeros(len(self._sources), STATE)
        states[self._sources == NEW] = new
        unchanged = self._sources[self._sources != NEW]
        # Of a kept input the hash is what it was; it is not looked up again, lest a change in between go unseen.
        states["rows"][self._sources != NEW] = self._rows[unchanged]
        states["hash"][self._sources != NEW] = self._hashes[unchanged]
        total = count + int(self._rows[unchanged].sum())
        return total, self._merged(tables, new["rows"]), states.tobytes()

    def _merged(self, tables: Iterable[pa.Table], rows: Any) -> Iterator[pa.Table]:
        added = _take(tables, iter(rows.tolist()))
        with Ranges(self.out) as existing:
            first = last = 0  # of the rows to be kept next
            for source in self._sources.tolist():
                if source != NEW and self._firsts[source] == last:
                    last += int(self._rows[source])
                    continue
                yield from existing.read(first, last)
                first = last = 0 if source == NEW else int(self._firsts[source])
                if source == NEW:
                    yield from next(added)
                else:
                    last += int(self._rows[source])
            yield from existing.read(first, last)


def _compare(hashes: Any, sounds: Iterable[Piece]) -> tuple[Any, str]:
    """For each sound the index of the table's input that it is, or `NEW`; and the fingerprint of the sounds."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    fingerprint, current = Fingerprint(), array("Q")
    for sound in sounds:
        line = state(sound)
        fingerprint.add(line)
        current.append(hash_of(line))
    current_hashes = np.frombuffer(current, np.uint64) if current else np.zeros(0, np.uint64)
    if not len(hashes):
        return np.full(len(current_hashes), NEW), str(fingerprint)
    positions = np.minimum(np.searchsorted(ordered, current_hashes), len(ordered) - 1)
    return np.where(ordered[positions] == current_hashes, order[positions], NEW), str(fingerprint)


def _take(tables: Iterable[pa.Table], counts: Iterator[int]) -> Iterator[list[pa.Table]]:
    """The rows of one input after the other."""
    remaining = iter(tables)
    table: pa.Table | None = None
    for count in counts:
        taken = []
        while count:
            if table is None or not len(table):
                table = next(remaining)
            taken.append(table.slice(0, count))
            count -= len(taken[-1])
            table = table.slice(len(taken[-1]))
        yield taken

"""All vectors of a table, a block at a time; those of a large Parquet table are kept unpacked for the next search.

Parquet unpacks about half a gigabyte a second, and reading plain numbers is ten times as fast. So the first search of a
large table writes its vectors, of length 1, to a file in the cache; its name tells the table's size and time of change.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from torchbeats.audio import Floats
from torchbeats.files import replacing
from torchbeats.search.queries import unit
from torchbeats.tables.reading import Table

BLOCK_BYTES = 2**24
CACHED_BYTES = 2**26  # smaller tables are read as they are
THREADS = 4

# Called with the index of a block's first row and ``(rows, D)`` vectors, which are only valid during the call.
OnBlock = Callable[[int, Floats], None]


def for_each_block(table: Table, call: OnBlock) -> None:
    """Call a function with all vectors of a table, of length 1, in blocks that are the same for every format.

    It may be called in several threads, and in any order.
    """
    width = int(np.prod(table.shape))
    rows = max(1, BLOCK_BYTES // (4 * width))
    cache = _cache_of(table) if table.path.suffix == ".parquet" and 4 * width * table.count >= CACHED_BYTES else None
    if cache is not None and not _is_whole(cache, table, width):
        with suppress(OSError):  # a full disk, a folder that is not ours: the search goes on without
            _store(cache, _blocks(table, rows, width))
    if cache is None or not _is_whole(cache, table, width):
        for number, block in enumerate(_blocks(table, rows, width)):
            call(number * rows, block)
        return
    with ThreadPoolExecutor(threads := min(THREADS, os.cpu_count() or 1)) as pool:
        shares = [pool.submit(_read, cache, call, rows, width, share, threads) for share in range(threads)]
        for share in shares:
            share.result()


def _blocks(table: Table, rows: int, width: int) -> Iterator[Floats]:
    block, filled = np.empty((rows, width), np.float32), 0
    for values in table.vectors():
        while len(values):
            count = min(rows - filled, len(values))
            block[filled : filled + count] = values[:count]
            values, filled = values[count:], filled + count
            if filled == rows:
                yield unit(block)
                filled = 0
    if filled:
        yield unit(block[:filled])


def cache_folder() -> Path:
    """Where vectors of large tables are kept: ``$XDG_CACHE_HOME/torchbeats/search``, else below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchbeats" / "search"


def _cache_of(table: Table) -> Path:
    path = table.path.resolve()
    stat = path.stat()
    table_key = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return cache_folder() / f"{table_key}-{stat.st_size}-{stat.st_mtime_ns}.f32"


def _is_whole(cache: Path, table: Table, width: int) -> bool:
    try:
        return cache.stat().st_size == 4 * width * table.count
    except OSError:
        return False


def _store(cache: Path, blocks: Iterator[Floats]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    for stale in cache.parent.glob(f"{cache.name.split('-')[0]}-*.f32"):  # of the same table as it was before
        stale.unlink(missing_ok=True)
    with replacing(cache) as temporary, temporary.open("wb") as file:
        for block in blocks:
            file.write(block.astype("<f4", copy=False).data)


def _read(cache: Path, call: OnBlock, rows: int, width: int, share: int, shares: int) -> None:
    """Every so many blocks, beginning with one of the first."""
    block = np.empty((rows, width), "<f4")
    with open(cache, "rb", buffering=0) as file:
        number = share
        while True:
            file.seek(number * block.nbytes)
            count = file.readinto(block.data.cast("B")) or 0  # a regular file gives all that there is
            if not count:
                return
            call(number * rows, block[: count // (4 * width)])
            number += shares

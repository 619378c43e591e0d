"""All vectors of a table, a block at a time; those of a large Parquet table are kept unpacked for the next search.

Parquet unpacks about half a gigabyte a second, and reading plain numbers is ten times as fast. So the first search of a
large table writes its vectors, of length 1, to a file in the cache; its name tells the table's size and time of change.
The cache has at most `KEPT_BYTES`; what was searched longest ago goes first.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from torchbeats.audio import Floats
from torchbeats.files import remove_leftovers, replacing
from torchbeats.search.queries import unit
from torchbeats.tables.reading import Table

BLOCK_BYTES = 2**24
CACHED_BYTES = 2**26  # smaller tables are read as they are
KEPT_BYTES = 2**34  # of all tables together
THREADS = 4

# Called with the index of a block's first row and ``(rows, D)`` vectors, which are only valid during the call.
OnBlock = Callable[[int, Floats], None]


def for_each_block(table: Table, call: OnBlock) -> None:
    """Call a function with all vectors of a table, of length 1, in blocks that are the same for every format.

    It may be called in several threads, and in any order.
    """
    width = int(np.prod(table.shape))
    rows = max(1, BLOCK_BYTES // (4 * width))
    size = 4 * width * table.count
    cache = _cache_of(table, size)
    if cache is not None and not _is_whole(cache, size):
        with suppress(OSError):  # a full disk, a folder that is not ours: the search goes on without
            _store(cache, size, _blocks(table, rows, width))
    if cache is None or not _is_whole(cache, size):
        for number, block in enumerate(_blocks(table, rows, width)):
            call(number * rows, block)
        return
    with suppress(OSError):
        os.utime(cache)  # tells which was used last
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


def products(block: Floats, target: Floats) -> Floats:
    """``(rows,)``: of each vector the product with a target ``(D,)``.

    A row's is the same whatever rows are beside it. And no threads of a BLAS wait for each other here, which takes five
    times as long where other programs are at work.
    """
    result: Floats = np.einsum("ij,j->i", block, target)
    return result


def cache_folder() -> Path:
    """Where vectors of large tables are kept: ``$XDG_CACHE_HOME/torchbeats/search``, else below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchbeats" / "search"


def _cache_of(table: Table, size: int) -> Path | None:
    """The file that keeps the vectors of a table; None where they are too few, or too many."""
    if table.path.suffix != ".parquet" or not CACHED_BYTES <= size <= KEPT_BYTES:
        return None
    path = table.path.resolve()
    stat = path.stat()
    table_key = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return cache_folder() / f"{table_key}-{stat.st_size}-{stat.st_mtime_ns}.f32"


def _is_whole(cache: Path, size: int) -> bool:
    try:
        return cache.stat().st_size == size
    except OSError:
        return False


def _store(cache: Path, size: int, blocks: Iterator[Floats]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    for stale in cache.parent.glob(f"{cache.name.split('-')[0]}-*.f32"):  # of the same table as it was before
        stale.unlink(missing_ok=True)
    remove_leftovers(cache.parent)
    _make_room(cache.parent, size)
    if shutil.disk_usage(cache.parent).free < 2 * size:  # others need room, too
        return
    with replacing(cache) as temporary, temporary.open("wb") as file:
        for block in blocks:
            file.write(block.astype("<f4", copy=False).data)


def _make_room(folder: Path, size: int) -> None:
    """Delete vectors of the tables that were searched longest ago, until those of another fit in."""
    used = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*.f32"))
    total = sum(of_one for _, of_one, _ in used)
    for _, of_one, path in used:
        if total + size <= KEPT_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= of_one


def _read(cache: Path, call: OnBlock, rows: int, width: int, share: int, shares: int) -> None:
    """Every so many blocks, beginning with one of the first."""
    with open(cache, "rb") as file:
        total = os.fstat(file.fileno()).st_size
        for first in range(4 * width * rows * share, total, 4 * width * rows * shares):
            _with_mapped(file.fileno(), first, min(4 * width * rows, total - first), width, call)


def _with_mapped(descriptor: int, first: int, size: int, width: int, call: OnBlock) -> None:
    """Call a function with some vectors of a file where the system has them in memory; a copy takes twice as long."""
    begin = first // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    length = first + size - begin
    if sys.platform == "linux":
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE  # one call, not one for every page
        mapped = mmap.mmap(descriptor, length, flags=flags, prot=mmap.PROT_READ, offset=begin)
    else:
        mapped = mmap.mmap(descriptor, length, access=mmap.ACCESS_READ, offset=begin)
    with mapped:
        block = np.frombuffer(mapped, "<f4", size // 4, first - begin).reshape(-1, width)
        call(first // (4 * width), block)
        del block  # what is in use cannot be closed

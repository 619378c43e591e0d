"""What a table keeps of each of its inputs, so that an update can tell which have changed: 12 bytes an input.

A file is taken as the same if its path, its size, its time of change, and the piece of it that is meant are. Of these
a hash is kept, and the number of rows that were made of the input. An input that could not be read, in whole or in
part, has the hash 0: an update tries it again.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

States: TypeAlias = "np.ndarray[Any, Any]"

STATE = np.dtype([("hash", "<u8"), ("rows", "<u4")])


def hash_of(state: bytes) -> int:
    """A hash of `torchbeats.data.fingerprint.state` of an input, never 0."""
    return int.from_bytes(hashlib.blake2b(state, digest_size=8).digest(), "little") or 1


def records(hashes: Sequence[int], rows: Iterable[int]) -> bytes:
    """The records of some inputs, in order."""
    result = np.zeros(len(hashes), STATE)
    result["hash"], result["rows"] = np.array(hashes, np.uint64), list(rows)
    return result.tobytes()


def packed(content: bytes) -> bytes:
    """Records as they are kept in a table's metadata; as text, since readers of Parquet expect it there."""
    by_field = np.frombuffer(content, STATE)
    return base64.b64encode(zlib.compress(by_field["hash"].tobytes() + by_field["rows"].tobytes(), 1))


def unpacked(content: bytes) -> States:
    """``(inputs,)`` of `STATE`; the inverse of `packed`."""
    data = zlib.decompress(base64.b64decode(content))
    count = len(data) // STATE.itemsize
    result = np.zeros(count, STATE)
    result["hash"] = np.frombuffer(data, "<u8", count)
    result["rows"] = np.frombuffer(data, "<u4", count, 8 * count)
    return result

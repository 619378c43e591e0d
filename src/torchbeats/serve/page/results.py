"""What a person can download for a while after it was made: in memory, the newest of it."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict

MOST_BYTES = 2**26


class Results:
    """Files by a key that cannot be guessed and their names; the oldest go when there are too many bytes."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._files: OrderedDict[str, dict[str, bytes]] = OrderedDict()
        self._bytes, self._most, self._lock = 0, most_bytes, threading.Lock()

    def add(self, files: dict[str, bytes]) -> str:
        """Keep some files; their key."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._files[key] = files
            self._bytes += _size(files)
            while self._bytes > self._most and len(self._files) > 1:
                _, oldest = self._files.popitem(last=False)
                self._bytes -= _size(oldest)
        return key

    def get(self, key: str, name: str) -> bytes | None:
        """One of them; None where it has gone."""
        with self._lock:
            return self._files.get(key, {}).get(name)


def _size(files: dict[str, bytes]) -> int:
    return sum(map(len, files.values()))

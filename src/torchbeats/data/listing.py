"""The sounds of a run, listed while it goes on: work begins with the first of them, and few bytes a path are kept."""

from __future__ import annotations

import pickle
import time
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice

from torchbeats.data.inputs import Piece

CHUNK = 1024  # sounds


class Listing:
    """Sounds that can be gone through any number of times, though their source can but once.

    Those that have been listed are kept packed, in 10 to 20 bytes a path.

    Args:
        source: the sounds; iterated no further than somebody asks for.
    """

    def __init__(self, source: Iterable[Piece]) -> None:
        self._source = iter(source)
        self._chunks: list[bytes] = []
        self._count = 0
        self._whole = False

    @property
    def total(self) -> int | None:
        """Number of sounds, as soon as it is known."""
        return self._count if self._whole else None

    def __iter__(self) -> Iterator[Piece]:
        index = 0
        while index < len(self._chunks) or self._list_more():
            for path, start, end, content in pickle.loads(zlib.decompress(self._chunks[index])):  # of this process
                yield Piece(path, start, end, content)
            index += 1

    def advance(self, seconds: float) -> None:
        """List ahead for some time, or to the end."""
        stop = time.monotonic() + seconds
        while not self._whole and time.monotonic() < stop:
            self._list_more()

    def _list_more(self) -> bool:
        if self._whole:
            return False
        sounds = [(sound.path, sound.start, sound.end, sound.content) for sound in islice(self._source, CHUNK)]
        self._count += len(sounds)
        self._whole = len(sounds) < CHUNK
        if sounds:
            self._chunks.append(zlib.compress(pickle.dumps(sounds, pickle.HIGHEST_PROTOCOL), 1))
        return bool(sounds)

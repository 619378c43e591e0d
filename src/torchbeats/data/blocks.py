"""Blocks of inputs: computed by themselves, so that any machine computes the same numbers for one.

No batch of the model reaches over a block's end. A block has up to 256 inputs, fewer where their files are large; which
inputs it has depends on those before it, and on itself, alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

from torchbeats.data.inputs import Piece
from torchbeats.data.sounds import Sound
from torchbeats.patches import SAMPLE_RATE

BLOCK_INPUTS = 256
BLOCK_BYTES = 2**28

S = TypeVar("S", bound=Sound)


class BlockEnds:
    """Tells of inputs that come one by one which is the last of its block.

    Attributes:
        size: of the last one that was asked about, in bytes, more or less; 0 where it is not known.
    """

    def __init__(self) -> None:
        self._inputs, self._bytes, self.size = 0, 0, 0

    def is_last(self, sound: Sound) -> bool:
        """Whether a block ends with the next sound, which is this one."""
        self.size = _bytes(sound)
        self._inputs += 1
        self._bytes += self.size
        last = self._inputs >= BLOCK_INPUTS or self._bytes >= BLOCK_BYTES
        if last:
            self._inputs, self._bytes = 0, 0
        return last


def blocks_of(sounds: Iterable[S]) -> Iterator[list[S]]:
    """The same in blocks."""
    ends, block = BlockEnds(), list[S]()
    for sound in sounds:
        block.append(sound)
        if ends.is_last(sound):
            yield block
            block = []
    if block:
        yield block


def _bytes(sound: Sound) -> int:
    """About how large a sound is; 0 where that is not known before it is read."""
    if isinstance(sound, Piece):
        if sound.end is not None and 0 <= sound.start < sound.end < 1e9:
            return round((sound.end - sound.start) * SAMPLE_RATE * 2)  # as 16-bit samples
        if sound.content is not None:
            return 0
        sound = sound.path
    if not isinstance(sound, (str, os.PathLike)):
        return 0
    try:
        return os.stat(sound).st_size
    except (OSError, ValueError):  # reading it says what is wrong
        return 0

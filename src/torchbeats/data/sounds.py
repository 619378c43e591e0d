"""What a caller in Python gives as sounds → each with a name, and its samples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from torchbeats import audio
from torchbeats.audio import Floats
from torchbeats.data import pieces
from torchbeats.data.inputs import Piece, find_sounds
from torchbeats.patches import SAMPLE_RATE

Sound: TypeAlias = (
    "str | os.PathLike[str] | Piece | np.ndarray[Any, Any] | Tensor | tuple[np.ndarray[Any, Any] | Tensor, float]"
)


def blocks(sound: Sound) -> Iterator[Floats]:
    """The samples of a sound at 16 kHz, mono, in blocks."""
    if isinstance(sound, (str, os.PathLike)):
        return audio.stream(sound)
    if isinstance(sound, Piece):
        return pieces.stream(sound)
    samples, rate = sound if isinstance(sound, tuple) else (sound, SAMPLE_RATE)
    return iter([audio.from_array(samples, rate)])


def named(inputs: Sound | Iterable[Sound]) -> Iterator[tuple[str, Sound]]:
    """Every single sound with the name its rows will have."""
    is_single = isinstance(inputs, (str, os.PathLike, Piece, np.ndarray, Tensor))
    pair = isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[1], Real)
    for index, sound in enumerate([inputs] if is_single or pair else inputs):  # type: ignore[arg-type]
        if isinstance(sound, (str, os.PathLike)):
            yield from ((piece.path, piece) for piece in find_sounds([sound]))
        elif isinstance(sound, Piece):
            yield sound.path, sound
        else:
            yield f"[{index}]", sound

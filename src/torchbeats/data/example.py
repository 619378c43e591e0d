"""A labelled sound, or a piece of one."""

from __future__ import annotations

from typing import NamedTuple

from torchbeats.data.sources import SoundSource


class Example(NamedTuple):
    """A sound, or a piece of one, and what it is.

    Attributes:
        path: of the file.
        labels: names of its classes.
        start: of the piece, in seconds.
        end: of the piece, in seconds; None for the end of the file.
        split: "train", "validation" or "test", or what the list says where that is none of them.
        fold: of a cross-validation, likewise.
        group: what a split should keep together, a speaker or a recording, likewise.
        content: where the sound is, if it is no file of this machine; then ``path`` is its name.
    """

    path: str
    labels: tuple[str, ...]
    start: float = 0.0
    end: float | None = None
    split: str | None = None
    fold: str | None = None
    group: str | None = None
    content: SoundSource | None = None

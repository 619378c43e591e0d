"""Pieces of files: whether there can be such a piece, and its samples."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torchbeats import audio
from torchbeats.audio import Floats
from torchbeats.data.inputs import Piece
from torchbeats.errors import AudioError
from torchbeats.patches import SAMPLE_RATE

SLACK_SECONDS = 0.25  # that a piece may end behind its file: times are rounded, and headers count a codec's padding
LONGEST_SECONDS = 1e9  # thirty years


def impossible(start: float, end: float | None, seconds: float | None = None, *, points: bool = False) -> str | None:
    """Why there can be no such piece of a file, without a final full stop; None if there can.

    Args:
        start: of the piece, in seconds.
        end: of the piece; None for the file's end.
        seconds: of the file, where they are known.
        points: whether a piece may end where it starts.
    """
    if points and end == start:
        end = None
    if not math.isfinite(start) or start < 0:
        return f"the piece starts at {start:g} s, and a sound starts at 0 s"
    if end is not None and not end > start:
        return f"the piece ends at {end:g} s, but starts at {start:g} s"
    if seconds is None:
        if (last := start if end is None else end) > LONGEST_SECONDS:
            return f"the piece ends at {last:g} s, and no sound is that long"
        return None
    if start >= seconds:
        return f"the piece starts at {start:g} s, and the file ends at {seconds:.2f} s"
    if end is not None and end - seconds > min(SLACK_SECONDS, (end - start) / 2):
        return f"the piece ends at {end:g} s, and the file at {seconds:.2f} s"
    return None


def stream(piece: Piece) -> Iterator[Floats]:
    """Reads a piece.

    Yields:
        ``(samples,)`` float32, 16 kHz mono.

    Raises:
        AudioError: as `audio.excerpt`; also where the file ends before the piece does.
    """
    if reason := impossible(piece.start, piece.end):
        raise AudioError(piece.path, reason)
    sound = piece.path if piece.content is None else piece.content.open()
    if not piece.start and piece.end is None:
        yield from audio.stream(sound)
        return
    duration = math.inf if piece.end is None else piece.end - piece.start
    samples = audio.excerpt(sound, piece.start, duration)
    if reason := impossible(piece.start, piece.end, piece.start + len(samples) / SAMPLE_RATE):
        raise AudioError(piece.path, reason)
    yield samples

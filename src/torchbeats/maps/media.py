"""Pictures and sounds of single points, small enough to lie in a page."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np

from torchbeats.audio import AudioWarning, Floats
from torchbeats.data import pieces
from torchbeats.data.inputs import Piece
from torchbeats.errors import AudioError
from torchbeats.patches import N_MELS, SAMPLE_RATE
from torchbeats.plots.timeline import Spectrogram

WIDTH, HEIGHT = 128, N_MELS // 2  # of a spectrogram, in pixels
LEVELS = 16  # so that a pixel takes four bits
RANGE_DB = 70.0
LONGEST_SECONDS = 30.0  # of a sound in a page; of a longer one its beginning

_ANCHORS = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))  # dark to bright


def samples_of(path: str, start: float, end: float) -> Floats | None:
    """``(samples,)`` of a stretch, at 16 kHz mono; None where it is not at hand or cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioWarning)  # told when the table was made
            blocks = [*pieces.stream(Piece(path, start, min(end, start + LONGEST_SECONDS)))]
    except (AudioError, OSError, ValueError):
        return None
    samples = np.concatenate([np.zeros(0, np.float32), *blocks])
    return samples if len(samples) else None


def spectrogram(samples: Floats) -> bytes:
    """A PNG of the log-mel spectrogram, low frequencies below, `WIDTH` × `HEIGHT`."""
    summary = Spectrogram()
    summary.add(samples)
    levels = summary.decibels()
    if not len(levels):  # shorter than a frame
        levels = np.full((1, N_MELS), -RANGE_DB, np.float32)
    columns = levels[np.arange(WIDTH) * len(levels) // WIDTH]
    if len(levels) > WIDTH:  # no column is lost: a short call stays visible
        edges = np.arange(WIDTH) * len(levels) // WIDTH
        columns = np.maximum.reduceat(levels, edges, axis=0)
    pixels = columns.reshape(WIDTH, HEIGHT, 2).max(2).T[::-1]
    values = np.clip((pixels / RANGE_DB + 1) * (LEVELS - 1), 0, LEVELS - 1).round().astype(np.uint8)
    return _png(values)


def _png(values: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """``(height, width)`` of values below 16 as a PNG with a palette."""
    height, width = values.shape
    packed = (values[:, 0::2] << 4) | values[:, 1::2]
    lines = np.concatenate([np.zeros((height, 1), np.uint8), packed], axis=1)  # each begins with its filter: none
    places = np.linspace(0, len(_ANCHORS) - 1, LEVELS)
    colours = np.stack([np.interp(places, range(len(_ANCHORS)), column) for column in zip(*_ANCHORS, strict=True)], 1)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)),
        (b"PLTE", colours.round().astype(np.uint8).tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def compressed(samples: Floats) -> tuple[str, bytes]:
    """The media type and the content of a file that browsers play: MP3, or FLAC where libsndfile writes no MP3."""
    import soundfile

    form, media = ("MP3", "audio/mpeg") if "MP3" in soundfile.available_formats() else ("FLAC", "audio/flac")
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), SAMPLE_RATE, format=form)
    return media, file.getvalue()

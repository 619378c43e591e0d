"""Rows of the table to see and to hear: a small spectrogram, and a WAV that every browser plays."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import soundfile

from torchbeats import audio
from torchbeats.audio import Floats
from torchbeats.patches import SAMPLE_RATE
from torchbeats.plots.timeline import RANGE_DB, Spectrogram
from torchbeats.tables.reading import Table

LONGEST_SECONDS = 60.0  # of an excerpt; a row of a table can be a whole recording
WIDTH, HEIGHT = 256, 128  # pixels of a spectrogram
HELD = 64  # excerpts: a grid's players and pictures ask for the same ones


class Excerpts:
    """Sounds of a table's rows.

    Args:
        table: whose files are read, and no others.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self.samples = lru_cache(HELD)(self._samples)

    def wav(self, row: int) -> bytes:
        """A row's sound, 16 kHz mono, as the model hears it.

        Raises:
            AudioError: its file cannot be read.
        """
        file = io.BytesIO()
        soundfile.write(file, self.samples(row), SAMPLE_RATE, "PCM_16", format="WAV")
        return file.getvalue()

    def spectrogram(self, row: int) -> bytes:
        """Its log-mel spectrogram as a PNG.

        Raises:
            AudioError: its file cannot be read.
        """
        return spectrogram_png(self.samples(row))

    def _samples(self, row: int) -> Floats:
        ((path, start, end),) = self._table.places(np.array([row]))
        return audio.excerpt(path, start, min(end - start, LONGEST_SECONDS))


def spectrogram_png(samples: Floats) -> bytes:
    """The log-mel spectrogram of a sound, as a picture without axes."""
    from matplotlib.image import imsave

    spectrogram = Spectrogram()
    spectrogram.add(samples)
    levels = spectrogram.decibels()
    if not len(levels):
        levels = np.full((1, HEIGHT), -RANGE_DB, np.float32)
    columns = np.linspace(0, len(levels) - 1, WIDTH).round().astype(np.intp)
    file = io.BytesIO()
    imsave(file, levels[columns].T, cmap="magma", vmin=-RANGE_DB, vmax=0, origin="lower", format="png")
    return file.getvalue()

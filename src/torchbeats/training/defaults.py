"""Settings of a fine-tuning by the size of the data: one table, and the sentence that says why.

With few sounds there are few steps in an epoch, so more of them, and a lower learning rate, as what the model knows is
worth more than what so few can add. The more there are, the nearer the layers below may come to the head's rate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from torchbeats import audio
from torchbeats.data.labelled import Labelled
from torchbeats.errors import AudioError

_LOOKED_AT = 200  # sounds whose length is asked for; their mean stands for all
_MOST_SECONDS = 320.0  # of a batch


class DataSize(NamedTuple):
    """How much there is to learn from.

    Attributes:
        clips: number of labelled sounds.
        classes: number of classes.
        seconds: that the model hears of a sound on average, at most ``longest``.
        longest: the most that it hears at once (``data.seconds``).
    """

    clips: int
    classes: int
    seconds: float
    longest: float

    @classmethod
    def of(cls, labelled: Labelled, longest: float) -> DataSize:
        """The size of labelled sounds. The headers of some are looked at.

        Args:
            labelled: the sounds.
            longest: seconds that the model hears at once.
        """
        count = len(labelled.examples)
        rows = np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int))
        lengths = []
        for example in (labelled.examples[row] for row in rows.tolist()):
            end = example.end
            if end is None and example.content is None:
                try:
                    end = audio.duration(example.path)
                except AudioError:  # training finds out, and says so
                    continue
            if end is not None:
                lengths.append(min(max(0.0, end - example.start), longest))
        return cls(count, len(labelled.classes), float(np.mean(lengths)) if lengths else longest, longest)


class Row(NamedTuple):
    """Settings for data of less than so many clips."""

    below: float
    epochs: float
    patience: int
    lr: float
    layer_decay: float
    average: float
    clips_a_batch: int
    validation: float


# The table, as docs/finetuning.md has it.
TABLE = (
    Row(200, epochs=40, patience=10, lr=2e-4, layer_decay=0.75, average=0.95, clips_a_batch=8, validation=0.2),
    Row(1_000, epochs=30, patience=8, lr=5e-4, layer_decay=0.75, average=0.98, clips_a_batch=8, validation=0.2),
    Row(10_000, epochs=15, patience=4, lr=1e-3, layer_decay=0.85, average=0.99, clips_a_batch=16, validation=0.1),
    Row(float("inf"), epochs=8, patience=3, lr=1e-3, layer_decay=0.9, average=0.999, clips_a_batch=32, validation=0.1),
)


def row_for(size: DataSize) -> Row:
    """The row of the table for data of this size."""
    return next(row for row in TABLE if size.clips < row.below)


def by_size(size: DataSize) -> dict[str, Any]:
    """Settings for data of this size, nested as `FinetuneSettings` is."""
    row = row_for(size)
    batch = min(_MOST_SECONDS, row.clips_a_batch * size.seconds)
    return {
        "data": {"batch_seconds": max(size.longest, round(batch, 1)), "validation": row.validation},
        "model": {
            "epochs": row.epochs,
            "patience": row.patience,
            "lr": row.lr,
            "layer_decay": row.layer_decay,
            "average": row.average,
        },
    }

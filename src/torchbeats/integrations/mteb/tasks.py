"""Sounds on this machine as a task for MTEB."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from mteb import TaskMetadata
from mteb.abstasks import AbsTaskClassification

from torchbeats.data.example import Example
from torchbeats.data.fingerprint import fingerprint
from torchbeats.data.inputs import Piece
from torchbeats.data.labelled import Labelled, read_labelled
from torchbeats.data.sounds import blocks
from torchbeats.errors import InputError
from torchbeats.patches import SAMPLE_RATE


def classification_task(
    sounds: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], name: str | None = None
) -> AbsTaskClassification:
    """A task for MTEB from sounds of your own, each of one class.

    Folders called train and test (or validation), or such a column of a list, are splits; MTEB trains its classifier on
    one and tests it on the others. Where there are none, it cross-validates in five parts. How many examples a
    class the classifier sees, 8, and how often it is trained, 10 times, are the task's attributes ``samples_per_label``
    and ``n_experiments``.

    Args:
        sounds: a folder with a folder for each class in it; a list of files with labels; or several of these.
        name: of the task. MTEB keeps results by it, and does not look whether the files are still the same; so where
            not given, it is the first input's name with a hash of all files' names, sizes and times of change.

    Raises:
        InputError: no sounds, a sound with several labels, or splits without one to train on.
    """
    inputs = [sounds] if isinstance(sounds, (str, os.PathLike)) else list(sounds)
    labelled = read_labelled(inputs, "single_label")
    splits = sorted({example.split or "train" for example in labelled.examples})
    tested = [split for split in splits if split != "train"]
    if "train" not in splits:
        raise InputError(f"There is no split called train, which MTEB's classifier learns from; there is {splits}.")
    first = os.path.abspath(os.fspath(inputs[0]))
    state = fingerprint(labelled.examples).split()[-1]
    about = TaskMetadata(
        name=name or f"{Path(first).stem}-{state[:8]}",
        description=f"{len(labelled.examples):,} sounds of {len(labelled.classes):,} classes.",
        dataset={"path": first, "revision": state},
        type="AudioClassification",
        category="a2c",
        modalities=["audio"],
        eval_splits=tested or ["train"],
        eval_langs=["zxx-Zxxx"],  # no language
        main_score="accuracy",
    )

    class LocalTask(_LocalTask):
        metadata = about
        labelled_sounds = labelled
        is_cross_validation = not tested

    return LocalTask()


class _LocalTask(AbsTaskClassification):
    """A task whose sounds are on this machine."""

    labelled_sounds: Labelled
    data_loaded: bool
    input_column_name = "audio"

    def load_data(self, num_proc: int | None = None, **options: Any) -> None:
        """Make the data set: paths and labels, or the sound itself where that is a piece of something."""
        import datasets

        if self.data_loaded:
            return
        splits: dict[str, dict[str, list[Any]]] = {}
        for example in self.labelled_sounds.examples:
            columns = splits.setdefault(example.split or "train", {"audio": [], "label": []})
            columns["audio"].append(_stored(example))
            columns["label"].append(self.labelled_sounds.classes.index(example.labels[0]))
        # A plain column: casting it to datasets.Audio would want torchcodec.
        datasets_by_split = {split: datasets.Dataset.from_dict(columns) for split, columns in splits.items()}
        self.dataset = datasets.DatasetDict(datasets_by_split)
        self.data_loaded = True


def _stored(example: Example) -> dict[str, Any]:
    """What stands for a sound in a data set."""
    if not example.start and example.end is None and example.content is None:
        return {"bytes": None, "path": example.path}
    piece = Piece(example.path, example.start, example.end, example.content)
    file = io.BytesIO()
    soundfile.write(file, np.concatenate(list(blocks(piece))), SAMPLE_RATE, "FLOAT", format="WAV")
    return {"bytes": file.getvalue(), "path": example.path}

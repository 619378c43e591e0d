"""A column of sounds in, columns of results out: a callable for Ray, Daft, Spark, ``datasets.map`` and the like.

It pickles to a few bytes where the model is named, and each process then loads the model once. A sound that cannot be
read is a row with an error, never an exception: one bad file does not cost a cluster its work.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from torchbeats.abstention import Naming
from torchbeats.data.inputs import Piece
from torchbeats.data.sounds import Sound
from torchbeats.data.stored import MemorySound
from torchbeats.errors import InputError
from torchbeats.inference import Group, groups
from torchbeats.loading import device_called, exported_layer, load, ready
from torchbeats.plans import BATCH_SECONDS, WINDOW_SECONDS, EmbeddingPlan, Plan
from torchbeats.protocol import Layer, Model
from torchbeats.tagging import TOP, check_choice, likeliest, score_plan, scored
from torchbeats.weights import hub

COLUMNS = ("path", "bytes", "audio")  # that may hold the sounds


@cache
def _load(
    name: str, engine: str | None, device: str | None, dtype: torch.dtype | None, layer: int | None, threads: int | None
) -> Model:
    """One model a process, however many callables, or copies of one, it runs."""
    if threads is not None:
        torch.set_num_threads(threads)
    return load(name, engine=engine, device=device, dtype=dtype, layer=layer)


class _Worker(ABC):
    """What `Embedder` and `Tagger` share."""

    default_model: str

    def __init__(
        self,
        model: Model | str | os.PathLike[str] | None,
        plan: Plan,
        *,
        engine: str | None,
        device: str | torch.device | None,
        dtype: torch.dtype | None,
        threads: int | None,
        jobs: int | None,
    ) -> None:
        if model is None:
            model = self.default_model
        if device is not None:
            device_called(device)  # says at once what is wrong
        self.plan, self.jobs = plan, jobs
        self._model = os.fspath(model) if isinstance(model, (str, os.PathLike)) else model
        self._settings = (engine, None if device is None else str(device), dtype, threads)

    def model(self) -> Model:
        """The model, loaded when it is first needed in a process."""
        engine, device, dtype, threads = self._settings
        if not isinstance(self._model, str):
            return ready(self._model, device, dtype)
        layer = exported_layer(engine, getattr(self.plan, "layer", None))
        return _load(self._model, engine, device, dtype, layer, threads)

    def __call__(self, batch: Any) -> Any:
        """Results of a batch of sounds.

        Args:
            batch: a mapping of columns, a ``pandas.DataFrame`` or a ``pyarrow.Table``, with one of the columns
                ``path``, ``bytes`` (a file's content) and ``audio`` (arrays at 16 kHz; or mappings with ``array`` and
                ``sampling_rate``, or with ``bytes`` or ``path``, as ``datasets`` has them). Beside ``path`` and
                ``bytes`` may be ``start`` and ``end``, in seconds, of the piece that is meant; beside ``bytes`` and
                ``audio`` a ``path`` that is only the name.

        Returns:
            Columns of the same kind as the batch's. In a row without results ``error`` is a sentence, otherwise None.

        Raises:
            InputError: a batch without a column of sounds.
        """
        columns = _columns(batch)
        names, sounds = _sounds(columns)
        model = self.model()
        rows: list[list[dict[str, Any]]] = [[] for _ in sounds]
        failures: list[tuple[int, str]] = []

        def results() -> Iterator[Group]:
            pairs = ((str(number), sound) for number, sound in enumerate(sounds))
            for group in groups(pairs, model, self.plan, jobs=self.jobs):
                failures.extend((int(number), reason) for number, reason in group.failures)
                yield group

        for sound, values in self.rows(results(), model):
            rows[int(sound)].append({"path": names[int(sound)], **values, "error": None})
        for index, reason in failures:
            rows[index].append({"path": names[index], "error": f"{reason}."})
        flat = [row for sound_rows in rows for row in sound_rows]
        return _as(batch, {name: [row.get(name) for row in flat] for name in ("path", *self.columns(), "error")})

    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of results."""

    @abstractmethod
    def rows(self, results: Iterator[Group], model: Model) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each row's sound and its values."""


class Embedder(_Worker):
    """Embeds the sounds of a batch; the columns of its results are path, start, end, embedding and error.

    ``dataset.map_batches(Embedder("beats-iter3"), batch_format="pyarrow", concurrency=4)`` is all that Ray needs.

    Args:
        model: a name or path, which each process loads once; or a model, which is pickled. The small built-in one where
            not given.
        pool: see `EmbeddingPlan`.
        layer: see `EmbeddingPlan`.
        window: seconds that the model sees at once; None for all of a sound.
        hop: seconds from a window's start to the next; the window's length where not given.
        batch_seconds: audio in a batch of the model.
        engine: see `load`.
        device: see `load`.
        dtype: see `load`.
        threads: that torch computes with in each process; as torch sees fit where not given.
        jobs: threads that decode; up to four where not given.

    Raises:
        SettingsError: a setting that makes no sense.
    """

    default_model = hub.BUILT_IN

    def __init__(
        self,
        model: Model | str | os.PathLike[str] | None = None,
        *,
        pool: str = "mean",
        layer: Layer = None,
        window: float | None = WINDOW_SECONDS,
        hop: float | None = None,
        batch_seconds: float = BATCH_SECONDS,
        engine: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        threads: int | None = None,
        jobs: int | None = None,
    ) -> None:
        plan = EmbeddingPlan(pool, layer, hop, window=window, batch_seconds=batch_seconds)
        super().__init__(model, plan, engine=engine, device=device, dtype=dtype, threads=threads, jobs=jobs)

    def columns(self) -> tuple[str, ...]:
        """Names of the columns of results."""
        return ("start", "end", "embedding")

    def rows(self, results: Iterator[Group], model: Model) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each row's sound and its values."""
        for group in results:
            for row in group.rows():
                yield row.path, {"start": row.start, "end": row.end, "embedding": row.embedding}


class Tagger(_Worker):
    """Names what the sounds of a batch contain.

    The columns of its results are path, start, end, labels, probabilities and error; each row has a list of labels, and
    one of their probabilities.

    Args:
        model: a name or path of a fine-tuned model, which each process loads once; or a model, which is pickled. The
            built-in tagger where not given.
        top: labels in a row, at most.
        threshold: the smallest probability of a label.
        every: seconds of a row in a timeline; a row for each sound where not given.
        window: seconds that the model sees at once; see `tag`.
        views: how often each window is classified; see `ScorePlan`.
        unknown: call a row "unknown" that is less familiar than the model's file asks for; see `tag`.
        batch_seconds: audio in a batch of the model.
        engine: see `load`.
        device: see `load`.
        dtype: see `load`.
        threads: that torch computes with in each process; as torch sees fit where not given.
        jobs: threads that decode; up to four where not given.

    Raises:
        SettingsError: a setting that makes no sense.
    """

    default_model = hub.BUILT_IN_TAGGER

    def __init__(
        self,
        model: Model | str | os.PathLike[str] | None = None,
        *,
        top: int = TOP,
        threshold: float = 0.0,
        every: float | None = None,
        window: float | None = None,
        views: int = 1,
        unknown: bool = True,
        batch_seconds: float = BATCH_SECONDS,
        engine: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        threads: int | None = None,
        jobs: int | None = None,
    ) -> None:
        check_choice(top, threshold)
        self.top, self.threshold, self.unknown = top, threshold, unknown
        self._score_plan = score_plan(every, window, batch_seconds, views)
        super().__init__(model, self._score_plan, engine=engine, device=device, dtype=dtype, threads=threads, jobs=jobs)

    def columns(self) -> tuple[str, ...]:
        """Names of the columns of results."""
        return ("start", "end", "labels", "probabilities")

    def rows(self, results: Iterator[Group], model: Model) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each row's sound and its values."""
        self._score_plan.check(model)
        naming = Naming(model, self.unknown)
        thresholds = naming.thresholds(self.threshold)
        for row in naming.judged(scored(results, self._score_plan)):
            indices = likeliest(row.probabilities, self.top, thresholds)
            labels = [naming.names[index] for index in indices]
            values = [float(row.probabilities[index]) for index in indices]
            yield row.path, {"start": row.start, "end": row.end, "labels": labels, "probabilities": values}


# --- batches ----------------------------------------------------------------------------------------------------------


def _columns(batch: Any) -> Mapping[str, Sequence[Any]]:
    if hasattr(batch, "to_pydict"):  # pyarrow
        columns: Mapping[str, Sequence[Any]] = batch.to_pydict()
        return columns
    if hasattr(batch, "iloc"):  # pandas
        return {str(name): list(batch[name]) for name in batch.columns}
    return {name: batch[name] for name in batch}


def _as(batch: Any, columns: dict[str, list[Any]]) -> Any:
    """Columns as the batch has them."""
    if hasattr(batch, "to_pydict"):
        return _arrow(columns)
    return type(batch)(columns) if hasattr(batch, "iloc") else columns


def _arrow(columns: dict[str, list[Any]]) -> Any:
    import pyarrow as pa

    types = {
        "path": pa.string(),
        "start": pa.float64(),
        "end": pa.float64(),
        "embedding": pa.list_(pa.float32()),
        "labels": pa.list_(pa.string()),
        "probabilities": pa.list_(pa.float64()),
        "error": pa.string(),
    }
    return pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})


def _sounds(columns: Mapping[str, Sequence[Any]]) -> tuple[list[str], list[Sound]]:
    """What each sound is called, and the sounds."""
    column = next((name for name in reversed(COLUMNS) if name in columns), None)
    if column is None:
        raise InputError(f"A batch needs a column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}; it has {list(columns)}.")
    names: list[str] = []
    sounds: list[Sound] = []
    for number, value in enumerate(columns[column]):
        sound_name = columns["path"][number] if "path" in columns else None
        name, sound = _sound(value, None if sound_name is None else os.fspath(sound_name), f"[{number}]")
        if isinstance(sound, Piece):
            start, end = (columns[time][number] if time in columns else None for time in ("start", "end"))
            sound = Piece(sound.path, _seconds(start) or 0.0, _seconds(end), sound.content)
        names.append(name)
        sounds.append(sound)
    return names, sounds


def _sound(value: Any, sound_name: str | None, otherwise: str) -> tuple[str, Sound]:
    if isinstance(value, Mapping):
        name = sound_name or value.get("path") or otherwise
        if value.get("array") is not None:
            return name, (np.asarray(value["array"], np.float32), value["sampling_rate"])
        value = value["path"] if value.get("bytes") is None else value["bytes"]
        sound_name = name
    if isinstance(value, (bytes, bytearray, memoryview)):
        name = sound_name or otherwise
        return name, Piece(name, content=MemorySound(name, bytes(value)))
    if isinstance(value, (str, os.PathLike)):
        path = os.fspath(value)
        return sound_name or path, Piece(path)
    if value is None:  # a row without a sound, which reading will say
        return sound_name or otherwise, Piece(
            sound_name or otherwise, content=MemorySound(sound_name or otherwise, b"")
        )
    return sound_name or otherwise, np.asarray(value, np.float32)


def _seconds(value: Any) -> float | None:
    return None if value is None or value != value else float(value)

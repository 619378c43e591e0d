"""Sounds of MTEB's tasks in, an embedding for each out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mteb.models.abs_encoder import AbsEncoder

from torchbeats.audio import AudioWarning, Floats
from torchbeats.embedder import Embedder
from torchbeats.errors import AudioError, ModelError
from torchbeats.integrations.mteb.metadata import loaded, located, short_name
from torchbeats.loading import ready
from torchbeats.plans import BATCH_SECONDS, WINDOW_SECONDS, EmbeddingPlan
from torchbeats.protocol import Layer, Model


class BEATsEncoder(AbsEncoder):
    """One embedding a sound: the mean of its windows' embeddings, each counted by its length.

    Up to the window's length that is the row of `torchbeats.embed`.

    Args:
        model_name: a name that ``torchbeats models`` lists, with or without ``torchbeats/`` in front; whatever else
            `torchbeats.load` takes; or a model. The small built-in one where not given.
        revision: a commit, tag or branch on the Hugging Face Hub; where not given, that of the list of models.
        device: where to compute; a GPU if there is one.
        pool: see `EmbeddingPlan`.
        layer: see `EmbeddingPlan`.
        window: seconds that the model sees at once; None for all of a sound, however long.
        batch_seconds: audio in a batch of the model.

    Attributes:
        mteb_model_meta: what MTEB keeps results under. Its revision is the Hub's commit where that is known, otherwise
            a hash of the weights, so results of one file are never taken for those of another.

    Raises:
        ModelError: it is a tokenizer, or has no such layer.
        HubError: no such name, or its file cannot be had.
        SettingsError: a setting that makes no sense.
    """

    def __init__(
        self,
        model_name: Model | str | os.PathLike[str] | None = None,
        revision: str | None = None,
        *,
        device: str | torch.device | None = None,
        pool: str = "mean",
        layer: Layer = None,
        window: float | None = WINDOW_SECONDS,
        batch_seconds: float = BATCH_SECONDS,
    ) -> None:
        name = short_name(model_name)
        self.model = ready(located(name, revision), device or "auto")
        plan = EmbeddingPlan(pool, layer, window=window, batch_seconds=batch_seconds)
        plan.check(self.model)
        self.embedder = Embedder(self.model, pool=pool, layer=layer, window=window, batch_seconds=batch_seconds)
        usual = {"pool": "mean", "layer": None, "window": WINDOW_SECONDS}
        settings = {key: value for key, value in plan.settings(self.model).items() if value != usual.get(key, value)}
        self.mteb_model_meta = loaded(name, self.model, revision, plan.row(self.model).width, settings, BEATsEncoder)

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        batch_size: int = 32,
        show_progress_bar: bool = True,
        **options: Any,
    ) -> Floats:
        """Embed the sounds of a task.

        Args:
            inputs: MTEB's loader of a data set with a column ``audio``.
            task_metadata: of the task; errors name it.
            hf_split: not used.
            hf_subset: not used.
            prompt_type: not used; a sound is the same as a query and as a document.
            batch_size: sounds that are read together. Batches of the model are by seconds.
            show_progress_bar: whether to show how far it is.
            options: of other encoders; not used.

        Returns:
            ``(sounds, D)`` float32.

        Raises:
            ModelError: the task has no sounds.
            AudioError: a sound that cannot be read. Of one that breaks off, what comes before is embedded, with an
                `AudioWarning`.
        """
        from tqdm.auto import tqdm

        sounds = _undecoded(inputs.dataset, task_metadata.name)
        result = np.empty((len(sounds), int(self.mteb_model_meta.embed_dim)), np.float32)
        with tqdm(total=len(sounds), disable=not show_progress_bar, desc="Embedding sounds") as bar:
            for start in range(0, len(sounds), batch_size):
                batch = sounds[start : start + batch_size]["audio"]
                result[start : start + len(batch)] = list(self._rows(batch, start, task_metadata.name))
                bar.update(len(batch))
        return result

    def _rows(self, batch: Sequence[Any], start: int, task: str) -> Iterator[Floats]:
        """The embedding of each sound."""
        numbers = [str(number) for number in range(len(batch))]  # as names: paths need not differ, or be there at all
        columns = self.embedder({"audio": list(batch), "path": numbers})
        for number, sound in zip(numbers, batch, strict=True):
            indices = [row for row, name in enumerate(columns["path"]) if name == number]
            failed = [columns["error"][row] for row in indices if columns["error"][row] is not None]
            rows = [row for row in indices if columns["error"][row] is None]
            path = (sound or {}).get("path")
            name = f"{path or 'a sound'} (number {start + int(number)} of {task})"
            if not rows:
                raise AudioError(name, failed[0].removesuffix(".") if failed else "it is empty")
            if failed:
                warnings.warn(f"{name}: {failed[0]}", AudioWarning, stacklevel=2)
            seconds = [columns["end"][row] - columns["start"][row] for row in rows]
            yield np.average([columns["embedding"][row].reshape(-1) for row in rows], axis=0, weights=seconds)


def _undecoded(dataset: Any, task: str) -> Any:
    """The column of sounds, as files where they are files: we read them, and need no torchcodec for that."""
    import datasets

    if "audio" not in dataset.features:
        columns = ", ".join(dataset.features)
        raise ModelError(f"BEATs embeds sounds, and {task} has a part without any: its columns are {columns}.")
    sounds = dataset.select_columns("audio")
    if isinstance(sounds.features["audio"], datasets.Audio):
        sounds = sounds.cast_column("audio", datasets.Audio(decode=False))
    return sounds

"""Sounds → one array with a row for each, for those who have them all at hand."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import torch

from torchbeats.audio import Floats
from torchbeats.data.sounds import Sound
from torchbeats.errors import AudioError, SettingsError
from torchbeats.inference import groups_of
from torchbeats.loading import ready
from torchbeats.plans import BATCH_SECONDS, WINDOW_SECONDS, EmbeddingPlan
from torchbeats.pooling import WINDOW_POOLINGS
from torchbeats.protocol import Model


def encode(
    inputs: Sound | Iterable[Sound],
    model: Model | str | os.PathLike[str] | None = None,
    *,
    pool: str = "mean",
    layer: int | None = None,
    window: float | None = WINDOW_SECONDS,
    batch_seconds: float = BATCH_SECONDS,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    jobs: int | None = None,
) -> Floats:
    """Embed sounds, one row for each, however long it is.

    Args:
        inputs: as for `embed`.
        model: as for `embed`.
        pool: "mean", "bands" or "statistics".
        layer: as for `embed`, and so are all that follow.
        window: seconds that the model sees at once. A row is the mean over a sound's windows.
        batch_seconds: audio in a batch.
        device: where to compute.
        dtype: to compute in.
        jobs: threads that decode.

    Returns:
        ``(N, D)`` float32, in the order of the inputs.

    Raises:
        AudioError: a sound cannot be read, in whole or in part; `embed` would leave it out and go on.
        ValueError: a setting that makes no sense, or inputs that name no files.
    """
    if pool not in WINDOW_POOLINGS:
        raise SettingsError(f"A row a sound needs the pooling {', '.join(WINDOW_POOLINGS)}, not {pool!r}.")
    plan = EmbeddingPlan(pool, layer, window=window, batch_seconds=batch_seconds)
    sums: list[Floats] = []
    windows: list[int] = []
    for group in groups_of(inputs, ready(model, device, dtype), plan, jobs, on_failure=_refuse):
        for begins, value in zip(group.begins, group.values, strict=True):
            if begins:
                sums.append(value.copy())
                windows.append(1)
            else:
                sums[-1] += value
                windows[-1] += 1
    return np.stack(sums) / np.asarray(windows, np.float32)[:, np.newaxis]


def _refuse(path: str, reason: str) -> None:
    raise AudioError(path, reason)

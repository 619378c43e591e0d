"""Sounds → how large the values are that enter each product of a model, which fixes the steps they are rounded to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchbeats.errors import SettingsError
from torchbeats.model import BEATs
from torchbeats.onnx.graph import Observing
from torchbeats.onnx.metadata import LENGTHS
from torchbeats.onnx.network import Network
from torchbeats.onnx.sessions import inference_session
from torchbeats.waveform import prepare


def ranges(model: BEATs, sounds: Iterable[np.ndarray[Any, Any] | Tensor], layer: int | None = None) -> dict[str, float]:
    """The largest magnitude of what enters each product, over all sounds; by name, as `Graph` wants them.

    Args:
        model: a `BEATs`.
        sounds: ``(samples,)`` at 16 kHz each, in [-1, 1] or integer PCM.
        layer: at which the graph will end; the model's last where not given.

    Raises:
        SettingsError: there are no sounds.
        ValueError: a sound that is none.
        MissingPackageError: onnxruntime is not installed.
    """
    graph = Observing()
    with torch.no_grad():
        Network(model, graph, fused=True).write("fbank", layer)
    session = inference_session(graph.serialized())
    largest = np.zeros(len(graph.observed), np.float32)
    heard = False
    for sound in sounds:
        heard = True
        wav, _ = prepare(torch.as_tensor(sound)[None], model.grid.min_samples)
        with torch.inference_mode():
            fbank = model.fbank(wav)
        found = session.run([*graph.observed.values()], {"fbank": fbank.numpy(), LENGTHS: np.array([fbank.size(1)])})
        largest = np.maximum(largest, np.array(found, np.float32))
    if not heard:
        raise SettingsError("There are no sounds to calibrate with; give some dozens like those the model will hear.")
    return dict(zip(graph.observed, largest.tolist(), strict=True))

"""The front end that some files carry with their weights: the same as ours, or another model's."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchbeats.config import shown
from torchbeats.errors import CheckpointError
from torchbeats.fbank import mel_filters, povey_window
from torchbeats.patches import FRAME_LENGTH, FRAME_SHIFT, N_MELS, SAMPLE_RATE

# AVEX 1.4 stores the window, and the mel filters as FFT bins by bands, in the state dict.
_WINDOW, _FILTERS = "fbank.window", "fbank.mel_fb"
_BITS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # allowed difference
# AVEX's settings of the front end, and the values that ours has.
_SETTINGS = {
    "sample_frequency": SAMPLE_RATE,
    "num_mel_bins": N_MELS,
    "frame_length": 1000 * FRAME_LENGTH / SAMPLE_RATE,
    "frame_shift": 1000 * FRAME_SHIFT / SAMPLE_RATE,
}


def without_front_end(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors less window and mel filters, once they have been compared with ours.

    Raises:
        CheckpointError: they are others.
    """
    for name, expected in ((_WINDOW, povey_window()), (_FILTERS, mel_filters())):
        if name in tensors and not _same(tensors[name], expected):
            raise CheckpointError(
                path,
                f"it was trained with another front end: its {name} is not that of {N_MELS} mel bands from 20 Hz to "
                f"{SAMPLE_RATE // 2000} kHz at {SAMPLE_RATE // 1000} kHz in windows of 25 ms, the only one torchbeats "
                "has.",
            )
    return {name: tensor for name, tensor in tensors.items() if name not in (_WINDOW, _FILTERS)}


def check_settings(path: str | PathLike[str], cfg: Mapping[str, Any]) -> None:
    """Raise a `CheckpointError` where settings ask for another front end."""
    for name, expected in _SETTINGS.items():
        value = cfg.get(name, expected)
        if isinstance(value, (int, float)) and value != expected:
            raise CheckpointError(
                path,
                f"it was trained with another front end: {name} {shown(value)}. torchbeats has {expected:g} only.",
            )


def _same(stored: Tensor, expected: Tensor) -> bool:
    """Whether two constants are equal but for rounding; a filter bank may also be stored bands first."""
    if stored.dtype not in _BITS or stored.layout != torch.strided or stored.is_meta:
        return False
    transposed = stored.t() if stored.dim() == 2 and stored.shape != expected.shape else stored
    return transposed.shape == expected.shape and bool(
        (transposed.float() - expected).abs().max() <= _BITS[stored.dtype]
    )

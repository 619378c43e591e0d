"""A vector for every step of 160 ms, of batches of any length: what the benchmarks ask of a model."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from torchbeats.loading import load
from torchbeats.model import BEATs
from torchbeats.patches import SAMPLE_RATE

WINDOW_STEPS = 62  # 10 s, which published models were trained on
SHORTEST = SAMPLE_RATE // 2  # samples; a shorter rest joins the window before


def load_encoder(name_or_path: str | os.PathLike[str] | None) -> BEATs:
    """As `torchbeats.load`, for a model that gives features.

    Raises:
        CheckpointError: it is a tokenizer.
        ModelError: it is an exported model.
    """
    return load(name_or_path, expect=BEATs)


def step_embeddings(model: BEATs, wav: Tensor) -> Tensor:
    """The mean over the bands of each step, in windows of 10 s that join without a gap.

    Args:
        model: on the device of ``wav``.
        wav: ``(B, samples)`` at 16 kHz, in [-1, 1] or integer PCM.

    Returns:
        ``(B, steps, C)`` float32.
    """
    hop = WINDOW_STEPS * model.grid.step_samples
    length = model.grid.samples(WINDOW_STEPS)
    starts = [0, *range(hop, wav.shape[-1] - SHORTEST + 1, hop)]
    ends = [start + length for start in starts[:-1]] + [wav.shape[-1]]
    pieces = [model.encode(wav[..., start:end]).steps() for start, end in zip(starts, ends, strict=True)]
    return torch.cat(pieces, dim=1).float()

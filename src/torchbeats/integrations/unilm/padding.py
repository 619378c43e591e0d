"""What a padding mask of the research code says, in its own reading and in the exact one."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from torchbeats.errors import SettingsError
from torchbeats.patches import FRAME_LENGTH, FRAME_SHIFT, frames, mask_behind

Padding = Literal["exact", "reference"]


def check_rule(padding: str) -> Padding:
    """Return ``padding`` if it is the name of a rule.

    Raises:
        SettingsError: it is not.
    """
    for rule in get_args(Padding):
        if padding == rule:
            return rule
    raise SettingsError(f"padding must be {' or '.join(map(repr, get_args(Padding)))}, not {padding!r}.")


def clip_lengths(mask: Tensor, frame_count: int, samples: int | None = None) -> Tensor:
    """Length of each clip in samples, by which its patches are counted.

    Args:
        mask: ``(B, L)`` bool, True = padding. L is the number of samples, which it may exceed by less than
            ``frame_count``: what is over is dropped. Or it is the number of frames. A mask of any other length, from
            the number of frames up, has another rate: its shares of a row are shares of the batch's length.
        frame_count: frames of the batch.
        samples: samples of the batch; None where there is only a spectrogram.

    Returns:
        ``(B,)`` int64.

    Raises:
        ValueError: the mask is too short, marks what is not at the end, or leaves a row nothing; names the row.
    """
    L = mask.size(1)
    if frame_count > L:
        raise ValueError(f"The mask covers {L} positions, fewer than the {frame_count} frames of the batch.")
    if samples is None:
        # Of all lengths that give so many frames, the mask's own if it is one of them.
        samples = L if frames(L) == frame_count else FRAME_LENGTH + (frame_count - 1) * FRAME_SHIFT
    over_samples = samples <= L < samples + frame_count
    if over_samples:
        mask = mask[:, :samples]
    counts = (~mask).sum(1)
    if not torch.compiler.is_compiling():
        _check(mask, counts)
    if over_samples:
        return counts
    if frame_count == L:
        # A clip without padding keeps the samples behind its last frame.
        return torch.where(counts == L, samples, FRAME_LENGTH + (counts - 1) * FRAME_SHIFT).clamp_max(samples)
    return counts * samples // L


def _check(mask: Tensor, counts: Tensor) -> None:
    """Refuse rows that the exact rule has no answer for."""
    scattered = (mask != mask_behind(counts, mask.size(1))).any(1)
    for invalid, message in (
        (scattered, 'marks what is not at its end; only padding="reference" takes that'),
        (counts == 0, "is padding throughout"),
    ):
        if bool(invalid.any()):
            raise ValueError(f"Row {int(invalid.nonzero()[0, 0])} of padding_mask {message}.")

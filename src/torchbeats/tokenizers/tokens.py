"""What every tokenizer gives: a label for each patch, on the grid of a clip's steps and bands."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchbeats.backbone import evaluating
from torchbeats.config import RandomProjectionConfig, TokenizersConfig
from torchbeats.errors import ModelError
from torchbeats.fbank import Fbank
from torchbeats.patches import PatchGrid
from torchbeats.protocol import TOKENS, Layer, Output, refuse, token_type
from torchbeats.waveform import prepare

PADDING = -1  # stands where a clip has no patch


class Tokens(NamedTuple):
    """Labels of a batch of clips.

    Attributes:
        labels: ``(B, steps, bands)`` int64, low frequencies first; -1 behind a clip's own steps.
        step_counts: ``(B,)`` int64, steps of each clip.
        step_times: ``(steps, 2)`` float64, start and end of each step in seconds.
    """

    labels: Tensor
    step_counts: Tensor
    step_times: Tensor

    @classmethod
    def of(cls, labels: Tensor, grid: PatchGrid) -> Tokens:
        """From ``(B, T)`` labels in the order of the patches, -1 where there is padding."""
        labels = labels.unflatten(1, (-1, grid.bands))
        start = torch.arange(labels.size(1), dtype=torch.float64, device="cpu")
        times = torch.stack([start, start + 1], dim=1) * grid.step_seconds
        return cls(labels, (labels[..., 0] != PADDING).sum(1), times)


class AcousticTokenizer(nn.Module):
    """What all tokenizers can do once they can label log-mel features."""

    grid: PatchGrid
    fbank: Fbank
    cfg: TokenizersConfig | RandomProjectionConfig
    label_dict = None
    labels = None  # tokens have no names
    layer: int | None = None
    engine = "torch"

    def label_fbank(self, fbank: Tensor, samples: Tensor | None = None) -> Tensor:
        """Labels from raw log-mel features, for callers who have those at hand.

        Args:
            fbank: ``(B, frames, 128)``.
            samples: ``(B,)`` integers, length of each clip in samples; None where no row has padding.

        Returns:
            ``(B, T)`` int64, -1 behind a clip's own patches, and for patches whose features are not finite.
        """
        raise NotImplementedError

    def encode(self, wav: Tensor, lengths: Tensor | None = None) -> Tokens:
        """Labels of each clip on the grid of its steps and bands.

        Args:
            wav: ``(B, samples)`` at 16 kHz, in [-1, 1] or integer PCM.
            lengths: ``(B,)`` integers, each clip's length in samples.
        """
        wav, samples = prepare(wav, self.grid.min_samples, lengths=lengths)
        return Tokens.of(self.label_fbank(self.fbank(wav), samples), self.grid)

    @property
    def outputs(self) -> dict[str, Output]:
        """What `compute` gives: "tokens", a label for each band of a step."""
        return {TOKENS: Output((self.grid.bands,), token_type(self.cfg.quant_n), by_step=True)}

    def check(self, output: str, layer: Layer = None) -> None:
        """Raise a `ModelError` where something else than tokens is asked for."""
        refuse(self.outputs, output)
        if layer is not None:
            raise ModelError("A tokenizer's labels come from its last layer; leave the layer out.")

    @torch.inference_mode()
    def compute(self, output: str, wav: Tensor, lengths: Tensor | None = None, layer: Layer = None) -> Tensor:
        """Labels ``(B, steps, bands)`` in evaluation mode; see `encode`."""
        self.check(output, layer)
        with evaluating(self):
            return self.encode(wav, lengths).labels

"""The interface of X-ARES, the eXtensive Audio Representation and Evaluation Suite (arXiv 2505.16369).

X-ARES makes the one class of a file whose name ends in "Encoder", and keeps results under the class's name. So each
checkpoint gets a class, in a file of its own:

    from torchbeats.integrations import xares

    class BeatsIter3Encoder(xares.BEATsEncoder):
        checkpoint = "beats-iter3"

    python -m xares.run --max-jobs 1 beats_iter3_encoder.py src/tasks/*.py
"""

from __future__ import annotations

import os
from typing import ClassVar

from torch import Tensor, nn

from torchbeats.integrations.steps import load_encoder, step_embeddings
from torchbeats.patches import SAMPLE_RATE

__all__ = ["BEATsEncoder"]


class BEATsEncoder(nn.Module):
    """Waveforms in, a vector for every step of 160 ms out.

    Args:
        checkpoint: a file or a name, as `torchbeats.load` takes them; the class's own where not given, and the
            built-in model where that is None.

    Attributes:
        sampling_rate: in Hz.
        output_dim: C.
        hop_size_in_ms: from one vector to the next.
    """

    checkpoint: ClassVar[str | None] = None
    sampling_rate = SAMPLE_RATE

    def __init__(self, checkpoint: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self.model = load_encoder(checkpoint or self.checkpoint)
        self.output_dim: int = self.model.cfg.encoder_embed_dim
        self.hop_size_in_ms = round(1000 * self.model.grid.step_seconds)

    def forward(self, audio: Tensor) -> Tensor:
        """``(B, samples)`` or ``(samples,)`` at 16 kHz in [-1, 1] to ``(B, steps, C)`` float32."""
        return step_embeddings(self.model, audio.unsqueeze(0) if audio.dim() == 1 else audio)

"""The frozen tokenizer that labels the first iteration (BEATs, section 3.1; BEST-RQ, arXiv 2202.01855)."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchbeats.backbone import digest
from torchbeats.config import RandomProjectionConfig
from torchbeats.fbank import Fbank
from torchbeats.patches import PatchGrid, mask_behind
from torchbeats.tokenizers.tokens import PADDING, AcousticTokenizer, Tokens
from torchbeats.weights import checkpoint, kinds
from torchbeats.weights.families import Checkpoint


@kinds.register(
    "random_projection",
    RandomProjectionConfig,
    about="random-projection tokenizer",
    sizes={"quant_n": ("codes", 0), "quant_dim": ("codes", 1)},
    build=lambda stored, freeze: RandomProjectionTokenizer(stored),  # it has nothing to train
)
class RandomProjectionTokenizer(AcousticTokenizer):
    """Labels each patch with the nearest of N random vectors, in a space that a random matrix projects patches to.

    Nothing in it learns. What it looks at is the raw patch, normalised; never the embedding that a model learns.

    Args:
        cfg: a `RandomProjectionConfig`, a file that this class was saved to, or None for the default settings.
        seed: of the random matrix and vectors.
    """

    cfg: RandomProjectionConfig
    projection: Tensor
    codes: Tensor

    def __init__(
        self,
        cfg: RandomProjectionConfig | Checkpoint | str | os.PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        cfg, stored = checkpoint.source(cfg, RandomProjectionConfig)
        cfg.check()
        self.cfg = cfg
        self.grid = PatchGrid(cfg.input_patch_size)
        self.fbank = Fbank()
        random = torch.Generator().manual_seed(seed)
        values = cfg.input_patch_size**2
        projection = nn.init.xavier_normal_(torch.empty(cfg.quant_dim, values), generator=random)
        self.register_buffer("projection", projection)
        # Codes of one length: of vectors of many lengths the shortest would be the nearest to every faint patch.
        codes = F.normalize(torch.randn(cfg.quant_n, cfg.quant_dim, generator=random), dim=-1)
        self.register_buffer("codes", codes)
        if stored is not None:
            checkpoint.fill(self, stored)

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.codes.device

    def digest(self) -> str:
        """A hash of the random matrix, the codes and the settings."""
        return digest(self, self.cfg)

    def forward(self, wav: Tensor, lengths: Tensor | None = None) -> Tokens:
        """As `encode`."""
        return self.encode(wav, lengths)

    @torch.no_grad()
    def label_fbank(self, fbank: Tensor, samples: Tensor | None = None) -> Tensor:
        """Labels from raw log-mel features; see `AcousticTokenizer`."""
        size, bands = self.grid.patch_size, self.grid.bands
        steps = fbank.size(1) // size
        x = (fbank[:, : steps * size].float() - self.cfg.fbank_mean) / (2 * self.cfg.fbank_std)
        counts = None if samples is None else self.grid.patches(samples)
        if self.cfg.normalisation == "clip":
            x = x - _mean_over_time(x, None if counts is None else counts // bands * size)
        patches = x.view(len(x), steps, size, bands, size).transpose(2, 3).flatten(3).flatten(1, 2)  # (B, T, size²)
        if self.cfg.normalisation == "patch":
            patches = F.layer_norm(patches, patches.shape[-1:])
        # The codes have one length, so the nearest is the one with the largest product.
        with torch.autocast(x.device.type, enabled=False):
            labels = (patches @ self.projection.float().t() @ self.codes.float().t()).argmax(-1)
        return labels if counts is None else labels.masked_fill(mask_behind(counts, labels.size(1)), PADDING)


def _mean_over_time(x: Tensor, counts: Tensor | None) -> Tensor:
    """Mean over each row's own frames: ``(B, F, N)`` and ``(B,)`` to ``(B, 1, N)``."""
    if counts is None:
        return x.mean(1, keepdim=True)
    padding = mask_behind(counts, x.size(1)).unsqueeze(-1)
    return x.masked_fill(padding, 0).sum(1, keepdim=True) / counts.view(-1, 1, 1)

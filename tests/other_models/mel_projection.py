"""A kind of model in one file, as an example: each step's log-mel bands, projected to a few numbers."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchbeats.backbone import Encoded, digest
from torchbeats.config import ModelConfig
from torchbeats.fbank import Fbank
from torchbeats.patches import PATCH_SIZE, PatchGrid
from torchbeats.protocol import Layer, Output, embeddings, refuse, refuse_layer
from torchbeats.waveform import mask_behind, prepare
from torchbeats.weights import checkpoint, kinds
from torchbeats.weights.families import Checkpoint


@dataclass(init=False)
class MelProjectionConfig(ModelConfig):
    """Settings of a `MelProjection`."""

    input_patch_size: int = PATCH_SIZE
    width: int = 8
    fbank_mean: float = 15.0
    fbank_std: float = 6.0


@kinds.register("mel_projection", MelProjectionConfig, sizes={"width": ("projection.weight", 0)})
class MelProjection(nn.Module):
    """Projects patches of log-mel features."""

    layer: int | None = None
    engine = "torch"
    labels: list[str] | None = None
    label_dict: dict[int, str] | None = None

    def __init__(
        self, cfg: MelProjectionConfig | Checkpoint | str | os.PathLike[str] | None = None, freeze: bool = True
    ) -> None:
        super().__init__()
        self.cfg, stored = checkpoint.source(cfg, MelProjectionConfig)
        self.cfg.check()
        self.grid = PatchGrid(self.cfg.input_patch_size)
        self.fbank = Fbank()
        self.projection = nn.Linear(self.grid.patch_size**2, self.cfg.width)
        if stored is not None:
            checkpoint.fill(self, stored)
        self.requires_grad_(not freeze).train(not freeze)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.projection.weight.device

    @property
    def outputs(self) -> dict[str, Output]:
        """Every pooling."""
        return embeddings(self.cfg.width, self.grid.bands)

    def check(self, output: str, layer: Layer = None) -> None:
        """Raise a `ModelError` where there is no such output or layer."""
        refuse(self.outputs, output)
        refuse_layer(layer, 0)

    @torch.inference_mode()
    def compute(self, output: str, wav: Tensor, lengths: Tensor | None = None, layer: Layer = None) -> Tensor:
        """One of the outputs; see `protocol.Model`."""
        self.check(output, layer)
        wav, samples = prepare(wav, self.grid.min_samples, lengths=lengths)
        x = (self.fbank(wav) - self.cfg.fbank_mean) / (2 * self.cfg.fbank_std)
        size, bands = self.grid.patch_size, self.grid.bands
        steps = x.size(1) // size
        patches = (
            x[:, : steps * size].view(len(x), steps, size, bands, size).transpose(2, 3).reshape(len(x), -1, size**2)
        )
        features = self.projection(patches)
        counts = torch.full((len(x),), features.size(1)) if samples is None else self.grid.patches(samples)
        return Encoded(features, mask_behind(counts, features.size(1)), counts, bands).pool(output)

    def digest(self) -> str:
        """A hash of all weights and settings."""
        return digest(self, self.cfg)

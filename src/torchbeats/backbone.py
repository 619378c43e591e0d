"""Waveforms to encoder output: what `BEATs` and `Tokenizers` share."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchbeats import freezing, kernels, pooling
from torchbeats.config import FBANK_MEAN, FBANK_STD, BEATsConfig, ModelConfig
from torchbeats.encoder import TransformerEncoder
from torchbeats.fbank import Fbank
from torchbeats.patches import FRAME_LENGTH, N_MELS, PatchGrid, mask_behind, mask_of_groups
from torchbeats.waveform import floating, prepare

Self = TypeVar("Self", bound="Backbone")


class Encoded(NamedTuple):
    """Features of a batch of clips, and which of them are real.

    Attributes:
        x: ``(B, T, C)``, a row for each patch, ``patch = bands * step + band``. What stands behind a clip's own patches
            means nothing.
        padding_mask: ``(B, T)`` bool, True = behind the clip's own patches.
        patch_counts: ``(B,)`` int64, patches of each clip.
        bands: patches a step, 8 in all published models.
    """

    x: Tensor
    padding_mask: Tensor
    patch_counts: Tensor
    bands: int = 8

    def pool(self, name: str) -> Tensor:
        """``(B, D)``, or by step ``(B, T / bands, D)``, by a pooling mode of `torchbeats.pooling`."""
        return pooling.pooling(name).function(*self)

    def by_step(self) -> Tensor:
        """Patches grouped by step, low frequencies first: ``(B, T / bands, bands, C)``."""
        return pooling.by_step(self.x, self.bands)

    def steps(self) -> Tensor:
        """One vector for each step of 160 ms, the mean over its bands: ``(B, T / bands, C)``."""
        return self.pool("steps")

    def step_counts(self) -> Tensor:
        """Steps of each clip: ``(B,)`` int64."""
        return self.patch_counts // self.bands

    def step_times(self) -> Tensor:
        """Start and end of each step in seconds: ``(T / bands, 2)`` float64, on the CPU."""
        start = torch.arange(self.x.size(1) // self.bands, dtype=torch.float64, device="cpu")
        return torch.stack([start, start + 1], dim=1) * PatchGrid(N_MELS // self.bands).step_seconds

    def pooled(self) -> Tensor:
        """One vector for each clip, the mean over its own patches: ``(B, C)``."""
        return self.pool("mean")

    def pooled_bands(self) -> Tensor:
        """One vector for each clip, the mean over time with the bands kept side by side: ``(B, bands * C)``."""
        return self.pool("bands")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module has its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def digest(model: nn.Module, cfg: ModelConfig) -> str:
    """SHA-256 over a model's settings and all its stored tensors, in hexadecimal."""
    result = hashlib.sha256(json.dumps(cfg.to_dict(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        result.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return result.hexdigest()


class Backbone(nn.Module):
    """Front end, patch embedding and encoder, with the names that checkpoints use.

    Args:
        cfg: sizes and settings; copied.
    """

    layer: int | None = None  # the model ends at its last
    engine = "torch"
    encoder_class: type[TransformerEncoder] = TransformerEncoder

    def __init__(self, cfg: BEATsConfig) -> None:
        super().__init__()
        cfg = copy.deepcopy(cfg)
        cfg.check()
        self.cfg = cfg
        self.grid = PatchGrid(cfg.input_patch_size)
        self.frozen = False
        self.frozen_by_default = False
        self.fbank = Fbank()
        self.patch_embedding = nn.Conv2d(
            1, cfg.embed_dim, kernel_size=cfg.input_patch_size, stride=cfg.input_patch_size, bias=cfg.conv_bias
        )
        self.layer_norm = nn.LayerNorm(cfg.embed_dim)
        same_width = cfg.embed_dim == cfg.encoder_embed_dim
        self.post_extract_proj = None if same_width else nn.Linear(cfg.embed_dim, cfg.encoder_embed_dim)
        self.dropout_input = nn.Dropout(cfg.dropout_input)
        self.encoder = self.encoder_class(cfg)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.patch_embedding.weight.device

    def digest(self) -> str:
        """A hash of all weights and settings."""
        return digest(self, self.cfg)

    def freeze(self: Self) -> Self:
        """Evaluation mode for good, and no parameter asks for a gradient. Gradients still flow to the input.

        Undone by `unfreeze`; and by ``requires_grad=True``, set by hand on any parameter.
        """
        self.frozen, self.frozen_by_default = True, False
        self.requires_grad_(False)
        freezing.warn_of_optimisers(self)
        return self.eval()

    def unfreeze(self: Self) -> Self:
        """Undo `freeze`: training mode, and every parameter asks for a gradient."""
        self.frozen = False
        self.requires_grad_(True)
        return self.train()

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """As `nn.Module.requires_grad_`; asking for gradients undoes `freeze`, without a change of mode."""
        self.frozen = self.frozen and not requires_grad
        return super().requires_grad_(requires_grad)

    def train(self: Self, mode: bool = True) -> Self:
        """Set training mode; a frozen model stays in evaluation mode, also when a module around it is set.

        A model with fresh weights that is frozen by default says so, once.
        """
        if mode and self.frozen:
            if any(parameter.requires_grad for parameter in self.parameters()):
                self.frozen = False  # a parameter was set to require gradients by hand
            elif self.frozen_by_default:
                self.frozen_by_default = False
                freezing.warn_of_training_mode(self)
        return super().train(mode and not self.frozen)

    def preprocess(self, source: Tensor, fbank_mean: float = FBANK_MEAN, fbank_std: float = FBANK_STD) -> Tensor:
        """Normalised log-mel features, in float32 whatever the model's dtype.

        Args:
            source: ``(B, samples)`` at 16 kHz, in [-1, 1] or integer PCM, at least 400 samples.
            fbank_mean: subtracted.
            fbank_std: half of what is divided by. Both at their published defaults stand for the model's own.

        Returns:
            ``(B, frames, 128)``.
        """
        source = floating(source)
        if source.dim() != 2 or source.size(1) < FRAME_LENGTH:
            raise ValueError(f"source is {tuple(source.shape)}; it must be (batch, {FRAME_LENGTH} samples or more).")
        return self.normalise(self.fbank(source), fbank_mean, fbank_std)

    def normalise(self, fbank: Tensor, fbank_mean: float = FBANK_MEAN, fbank_std: float = FBANK_STD) -> Tensor:
        """Raw log-mel features to those that the patch embedding takes. Arguments as in `preprocess`."""
        if (fbank_mean, fbank_std) == (FBANK_MEAN, FBANK_STD):
            fbank_mean, fbank_std = self.cfg.fbank_mean, self.cfg.fbank_std
        return (fbank - fbank_mean) / (2 * fbank_std)

    def forward_padding_mask(self, features: Tensor, padding_mask: Tensor) -> Tensor:
        """Reduce a mask over a finer axis to that of ``features``: a group is padding when all of it is.

        The model itself does not use this rule, which shifts with the batch's length: it counts each clip's patches.

        Args:
            features: ``(B, T, ...)``.
            padding_mask: ``(B, L)`` bool with L at least T; what is left over behind T equal groups is dropped.

        Returns:
            ``(B, T)`` bool.
        """
        return mask_of_groups(padding_mask, features.size(1))

    def _encode(
        self,
        wav: Tensor,
        wav_lens: Tensor | None = None,
        lengths: Tensor | None = None,
        padding_mask: Tensor | None = None,
        fbank_mean: float = FBANK_MEAN,
        fbank_std: float = FBANK_STD,
        output_all_hiddens: bool = False,
        layer: int | None = None,
    ) -> tuple[Encoded, list[Tensor]]:
        """Waveforms to features, and every layer's where asked. Lengths in one of three forms, see `BEATs.forward`."""
        wav, samples = prepare(
            wav, self.grid.min_samples, wav_lens=wav_lens, lengths=lengths, padding_mask=padding_mask
        )
        features = self.preprocess(wav, fbank_mean, fbank_std)
        return self.encode_features(features, samples, output_all_hiddens, layer)

    def encode_features(
        self,
        features: Tensor,
        samples: Tensor | None = None,
        output_all_hiddens: bool = False,
        layer: int | None = None,
    ) -> tuple[Encoded, list[Tensor]]:
        """Normalised log-mel features to the encoder's output.

        Args:
            features: ``(B, frames, 128)``, as `preprocess` gives them.
            samples: ``(B,)`` integers, length of each clip in samples; None where no row has padding.
            output_all_hiddens: return every layer's output too.
            layer: stop behind this layer.

        Returns:
            The output, and every layer's, ``(B, T, C)`` each, or an empty list.
        """
        x = self.embed_patches(features)
        B, T, _ = x.shape
        counts = torch.full((B,), T, device=x.device) if samples is None else self.grid.patches(samples)
        mask = mask_behind(counts, T)
        # Without padding the encoder takes no mask; to find out costs a look at the values.
        has_padding = samples is not None and (torch.compiler.is_compiling() or bool(mask.any()))
        x, hiddens = self.encoder(x, mask if has_padding else None, output_all_hiddens=output_all_hiddens, layers=layer)
        return Encoded(x, mask, counts, self.grid.bands), hiddens

    def embed_patches(self, fbank: Tensor) -> Tensor:
        """``(B, frames, 128)`` to the encoder's input, ``(B, T, C)``; frames behind the last whole step are dropped."""
        patches = self.grid.bands * (fbank.size(1) // self.grid.patch_size)
        # One step more than there is, dropped again: with it no axis is ever of length 1, which torch.export would take
        # for a case of its own, and then refuse clips of a single step.
        fbank = F.pad(fbank, (0, 0, 0, self.grid.patch_size)).to(self.patch_embedding.weight.dtype)
        x = self.patch_embedding(fbank.unsqueeze(1))  # (B, E, steps + 1, bands)
        x = self.layer_norm(x.flatten(2)[..., :patches].transpose(1, 2))
        if self.post_extract_proj is not None:
            x = kernels.linear(self.post_extract_proj, x)
        return self.dropout_input(x)

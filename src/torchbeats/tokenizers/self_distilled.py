"""The self-distilled tokenizer: an encoder whose output is quantised (BEATs, arXiv 2212.09058, section 3.2)."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from torchbeats.backbone import Backbone
from torchbeats.config import FBANK_MEAN, FBANK_STD, TokenizersConfig
from torchbeats.errors import ModelError
from torchbeats.protocol import Layer
from torchbeats.tokenizers.codebook import NormEMAVectorQuantizer
from torchbeats.tokenizers.tokens import PADDING, AcousticTokenizer
from torchbeats.weights import checkpoint, kinds
from torchbeats.weights.families import Checkpoint


@kinds.register("tokenizer", TokenizersConfig, about="tokenizer", sizes=kinds.ENCODER_SIZES)
class Tokenizers(AcousticTokenizer, Backbone):
    """Acoustic tokenizer: one of ``quant_n`` labels for each patch.

    Args:
        cfg: a `TokenizersConfig` for fresh weights, a tokenizer checkpoint, or None for the default size.
        freeze: stay in evaluation mode and ask for no parameter gradients, until `unfreeze`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a tokenizer checkpoint, or is damaged.
    """

    cfg: TokenizersConfig

    def __init__(
        self,
        cfg: TokenizersConfig | Checkpoint | str | os.PathLike[str] | None = None,
        freeze: bool = True,
    ) -> None:
        cfg, stored = checkpoint.source(cfg, TokenizersConfig)
        with checkpoint.drafted_for(stored):
            super().__init__(cfg)
            self.quantize = NormEMAVectorQuantizer(cfg.quant_n, cfg.quant_dim, beta=1.0, kmeans_init=True)
            self.quantize_layer = nn.Sequential(
                nn.Linear(cfg.encoder_embed_dim, cfg.encoder_embed_dim),
                nn.Tanh(),
                nn.Linear(cfg.encoder_embed_dim, cfg.quant_dim),
            )
        if stored is not None:
            checkpoint.fill(self, stored)
        if freeze:
            self.freeze()
            self.frozen_by_default = stored is None

    def forward(
        self,
        wav: Tensor,
        padding_mask: Tensor | None = None,
        fbank_mean: float = FBANK_MEAN,
        fbank_std: float = FBANK_STD,
    ) -> Tensor:
        """As `extract_labels`."""
        return self.extract_labels(wav, padding_mask, fbank_mean, fbank_std)

    def extract_labels(
        self,
        source: Tensor,
        padding_mask: Tensor | None = None,
        fbank_mean: float = FBANK_MEAN,
        fbank_std: float = FBANK_STD,
    ) -> Tensor:
        """Labels flattened over the batch.

        Args:
            source: ``(B, samples)`` at 16 kHz, in [-1, 1] or integer PCM.
            padding_mask: ``(B, samples)`` bool, True = padding, which must be at the end.
            fbank_mean: see `preprocess`.
            fbank_std: see `preprocess`.

        Returns:
            ``(B * T,)`` int64, one label a patch, those of padding included.
        """
        encoded, _ = self._encode(source, padding_mask=padding_mask, fbank_mean=fbank_mean, fbank_std=fbank_std)
        return self._quantise(encoded.x)

    def check(self, output: str, layer: Layer = None) -> None:
        """Raise a `ModelError` where this gives no such output, or has no codes yet."""
        super().check(output, layer)
        if not bool(self.quantize.embedding.initted):
            raise ModelError("This tokenizer has no codes yet; take one that was trained.")

    def label_fbank(self, fbank: Tensor, samples: Tensor | None = None) -> Tensor:
        """Labels from raw log-mel features; see `AcousticTokenizer`."""
        encoded, _ = self.encode_features(self.normalise(fbank), samples)
        no_label = encoded.padding_mask | ~encoded.x.isfinite().all(-1)  # no code is near to what is no number
        return self._quantise(encoded.x).view(no_label.shape).masked_fill(no_label, PADDING)

    def _quantise(self, x: Tensor) -> Tensor:
        if not (self.training or torch.compiler.is_compiling() or bool(self.quantize.embedding.initted)):
            raise ValueError("This tokenizer has no codes yet: load a checkpoint, or train it.")
        indices: Tensor = self.quantize(self.quantize_layer(x))[2]
        return indices

"""BEATs: the encoder with, for fine-tuned models, its label head (arXiv 2212.09058)."""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from torch import Tensor, nn

from torchbeats import labels
from torchbeats.backbone import Backbone, Encoded, evaluating
from torchbeats.config import FBANK_MEAN, FBANK_STD, BEATsConfig
from torchbeats.errors import ModelError
from torchbeats.pooling import pooling
from torchbeats.protocol import PROBABILITIES, Layer, Output, embeddings, refuse, refuse_layer
from torchbeats.weights import checkpoint, kinds
from torchbeats.weights.families import Checkpoint


@kinds.register("beats", BEATsConfig, sizes=kinds.ENCODER_SIZES)
class BEATs(Backbone):
    """The BEATs audio encoder.

    Args:
        ckp_path: a checkpoint file of any published family; a `BEATsConfig` for fresh weights of that size; None for
            fresh weights of the default size.
        freeze: stay in evaluation mode and ask for no parameter gradients, until `unfreeze`. To train fresh weights,
            say False; a model that was not told so warns when it is set to training mode.
        output_all_hiddens: `forward` returns every layer's features, the encoder's input to the first layer in front.

    Attributes:
        cfg: the `BEATsConfig`.
        label_dict: of a model with labels, class index to label as the file has it (AudioSet ids, say); else None.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a BEATs checkpoint, or is damaged.
    """

    cfg: BEATsConfig

    def __init__(
        self,
        ckp_path: str | os.PathLike[str] | BEATsConfig | Checkpoint | None = None,
        freeze: bool = True,
        output_all_hiddens: bool = False,
    ) -> None:
        cfg, stored = checkpoint.source(ckp_path, BEATsConfig)
        with checkpoint.drafted_for(stored):
            super().__init__(cfg)
            self.predictor_dropout = nn.Dropout(cfg.predictor_dropout)
            shape = pooling(cfg.predictor_pool).shape(self.grid.bands, cfg.encoder_embed_dim)
            self.predictor = nn.Linear(math.prod(shape), cfg.predictor_class) if cfg.finetuned_model else None
        self.output_all_hiddens = output_all_hiddens
        self.label_dict = None if stored is None else stored.label_dict
        if stored is not None:
            checkpoint.fill(self, stored)
        if freeze:
            self.freeze()
            self.frozen_by_default = stored is None

    @property
    def labels(self) -> list[str] | None:
        """Readable label of each class, in the order of the outputs: AudioSet ids become names. None without a head."""
        if self.label_dict is None:
            return None
        return [labels.display_name(self.label_dict[index]) for index in sorted(self.label_dict)]

    @property
    def outputs(self) -> dict[str, Output]:
        """What `compute` gives, by name: every pooling, and from a model with a label head "probabilities"."""
        outputs = embeddings(self.cfg.encoder_embed_dim, self.grid.bands)
        if self.predictor is not None:
            classes = getattr(self.predictor, "out_features", self.cfg.predictor_class)  # it may have been exchanged
            outputs[PROBABILITIES] = Output((classes,), np.dtype(np.float32))
        return outputs

    def check(self, output: str, layer: Layer = None) -> None:
        """Raise a `ModelError` where there is no such output, or no such layer."""
        refuse(self.outputs, output)
        refuse_layer(layer, len(self.encoder.layers))
        if layer is not None and output == PROBABILITIES:
            raise ModelError("Probabilities come from the label head, which stands behind the last layer.")

    @torch.inference_mode()
    def compute(self, output: str, wav: Tensor, lengths: Tensor | None = None, layer: Layer = None) -> Tensor:
        """One of `outputs`, in evaluation mode and without gradients.

        Args:
            output: its name.
            wav: ``(B, samples)`` at 16 kHz, in [-1, 1] or integer PCM.
            lengths: ``(B,)`` integers, each clip's length in samples.
            layer: whose output: 0 is the encoder's input to the first layer, None the model's output, "all" every
                layer's, one behind the other.

        Returns:
            ``(B, D)``, or by step ``(B, steps, D)``, float.
        """
        self.check(output, layer)
        with evaluating(self):
            if output == PROBABILITIES:
                return self.probabilities(self.logits(wav, lengths=lengths))
            if isinstance(layer, str):
                encoded, hiddens = self._encode(wav, lengths=lengths, output_all_hiddens=True)
                hiddens = [*hiddens[:-1], encoded.x]  # with the final norm, where there is one
                return torch.stack([encoded._replace(x=x).pool(output) for x in hiddens], dim=-2).flatten(-2)
            return self.encode(wav, lengths, layer=layer).pool(output)

    def forward(
        self,
        wav: Tensor,
        wav_lens: Tensor | None = None,
        fbank_mean: float = FBANK_MEAN,
        fbank_std: float = FBANK_STD,
        *,
        lengths: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Features of a batch of clips and, from a model with a label head, class probabilities.

        A clip's features are the same alone and in any batch. Clips shorter than 2,800 samples are filled up to it with
        silence, with a warning.

        Args:
            wav: ``(B, samples)`` at 16 kHz, in [-1, 1] or integer PCM.
            wav_lens: ``(B,)``, each clip's length relative to ``samples``.
            fbank_mean: see `preprocess`.
            fbank_std: see `preprocess`.
            lengths: ``(B,)`` integers, each clip's length in samples; use at most one of the three forms.
            padding_mask: ``(B, samples)`` bool, True = padding, which must be at the end.

        Returns:
            ``(x,)``, or ``(x, lprobs, padding_mask)`` with a label head.
            x: ``(B, T, C)``, or ``(layers + 1, B, T, C)`` with ``output_all_hiddens``.
            lprobs: ``(B, classes)``, sigmoid (softmax for single-label models) of the mean of the patches' logits;
                with another ``predictor_pool`` than "mean", of logits of the pooled features.
            padding_mask: ``(B, T)`` bool, True = behind the clip's own patches.

        Raises:
            ValueError: wrong rank, no samples, lengths out of range, NaN or infinite samples; names the row.
        """
        encoded, hiddens = self._encode(
            wav, wav_lens, lengths, padding_mask, fbank_mean, fbank_std, self.output_all_hiddens
        )
        x = torch.stack(hiddens) if self.output_all_hiddens else encoded.x
        if self.predictor is None:
            return (x,)
        return x, self.probabilities(self.pooled_logits(encoded)), encoded.padding_mask

    def extract_features(
        self,
        wav: Tensor,
        wav_lens: Tensor | None = None,
        fbank_mean: float = FBANK_MEAN,
        fbank_std: float = FBANK_STD,
        *,
        lengths: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """As `forward`, under the name that the research code uses."""
        return self.forward(wav, wav_lens, fbank_mean, fbank_std, lengths=lengths, padding_mask=padding_mask)

    def encode(self, wav: Tensor, lengths: Tensor | None = None, *, layer: int | None = None) -> Encoded:
        """Features with all that is needed to pool them: masks, counts, steps and times.

        Args:
            wav: ``(B, samples)`` at 16 kHz, in [-1, 1] or integer PCM.
            lengths: ``(B,)`` integers, each clip's length in samples.
            layer: stop behind this layer: 0 is the encoder's input to the first, None the model's output.
        """
        return self._encode(wav, lengths=lengths, layer=layer)[0]

    def logits(
        self,
        wav: Tensor,
        wav_lens: Tensor | None = None,
        fbank_mean: float = FBANK_MEAN,
        fbank_std: float = FBANK_STD,
        *,
        lengths: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Mean of the logits of each clip's own patches, ``(B, classes)``. Arguments as in `forward`.

        Raises:
            ValueError: also where the model has no label head.
        """
        encoded, _ = self._encode(wav, wav_lens, lengths, padding_mask, fbank_mean, fbank_std)
        return self.pooled_logits(encoded)

    def probabilities(self, logits: Tensor) -> Tensor:
        """What the config's ``problem_type`` makes of logits ``(..., classes)``: softmax or sigmoid."""
        return logits.softmax(-1) if self.cfg.problem_type == "single_label" else logits.sigmoid()

    def pooled_logits(self, encoded: Encoded) -> Tensor:
        """As `logits`, from what `encode` gave."""
        if self.predictor is None:
            raise ModelError("This model has no label head: it was pre-trained, not fine-tuned.")
        if pooling(self.cfg.predictor_pool).linear:
            # The mean of linear outputs is the linear output of the mean.
            dropped = encoded._replace(x=self.predictor_dropout(encoded.x))
            return self.predictor(dropped.pool(self.cfg.predictor_pool))
        # Zeros among a clip's steps would be taken for deviation.
        return self.predictor(self.predictor_dropout(encoded.pool(self.cfg.predictor_pool)))

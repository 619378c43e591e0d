"""The model, under the name of the research code's file."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any, ClassVar

from torch import Tensor

from torchbeats import config, model
from torchbeats.backbone import Encoded
from torchbeats.config import FBANK_MEAN, FBANK_STD, BEATsConfig
from torchbeats.errors import ModelError
from torchbeats.integrations.unilm.backbone import attention_weights
from torchbeats.integrations.unilm.interface import ResearchInterface
from torchbeats.integrations.unilm.padding import check_rule
from torchbeats.pooling import masked_mean

__all__ = ["BEATs", "BEATsConfig"]


class BEATs(ResearchInterface, model.BEATs):
    """`torchbeats.BEATs` with the arguments and return values of the research code, trainable from the start.

    Args:
        cfg: a `BEATsConfig`, for fresh weights that `load_state_dict` replaces; or a checkpoint file.
        padding: how a padding mask is read. "exact": a clip owns the patches of its own samples, and its features are
            those that it has alone; padding must be at a row's end. "reference": as the research code does, where a
            clip's features depend on the length of the batch. A call may name another.

    Attributes:
        predictor: the label head; set it to None for features from a fine-tuned model, or to a head of your own, which
            gets patches ``(B, T, C)`` and whose outputs are averaged over each clip's.
    """

    # This class hides its module as an attribute of the package: `unilm.BEATs.BEATs` must work all the same.
    BEATs: ClassVar[type[model.BEATs]]
    BEATsConfig: ClassVar[type[config.BEATsConfig]]

    def __init__(self, cfg: config.BEATsConfig | str | os.PathLike[str] | None = None, padding: str = "exact") -> None:
        rule = check_rule(padding)
        super().__init__(cfg, freeze=False)
        self.padding = rule

    # The arguments are those of the research code, which is what this class is for.
    def extract_features(  # type: ignore[override]
        self,
        source: Tensor,
        padding_mask: Tensor | None = None,
        fbank_mean: float = FBANK_MEAN,
        fbank_std: float = FBANK_STD,
        feature_only: bool = False,
        *,
        do_preprocess: bool = True,
        need_weights: bool = False,
        padding: str | None = None,
    ) -> tuple[Any, ...]:
        """Features of a pre-trained model, class probabilities of a fine-tuned one.

        Args:
            source: ``(B, samples)`` at 16 kHz in [-1, 1] or integer PCM; without ``do_preprocess`` what `preprocess`
                gives, ``(B, frames, 128)`` or ``(B, 1, frames, 128)``.
            padding_mask: ``(B, L)`` bool, True = padding. L is the number of samples or of frames; or any number from
                the latter up, for a mask of another rate.
            fbank_mean: see `preprocess`.
            fbank_std: see `preprocess`.
            feature_only: features, from a fine-tuned model too.
            do_preprocess: ``source`` is a waveform.
            need_weights: return attention weights too.
            padding: "exact" or "reference", in place of the model's own.

        Returns:
            ``(x, padding_mask)``, or ``(probabilities, padding_mask)`` from a model with a label head.
            x: ``(B, T, C)``.
            probabilities: ``(B, classes)``.
            padding_mask: ``(B, T)`` bool, None where none was passed.
            With ``need_weights``, thirdly a dictionary: index of each layer to its weights ``(B, T, T)``, the mean over
            heads.

        Raises:
            ValueError: wrong shape, samples that are not finite, or a mask that the rule cannot read.
            ModelError: ``padding="reference"`` with a head over bands, which the research code does not have.
        """
        with ExitStack() as stack:
            weights = stack.enter_context(attention_weights(self.encoder.layers)) if need_weights else {}
            if do_preprocess:
                encoded = self._encode_source(source, padding_mask, fbank_mean, fbank_std, padding)
            else:
                encoded = self._encode_fbank(source, padding_mask, padding)
        patch_mask = None if padding_mask is None else encoded.padding_mask
        features = self.predictor is None or feature_only
        result = encoded.x if features else self.probabilities(self.pooled_logits(encoded))
        return (result, patch_mask, weights) if need_weights else (result, patch_mask)

    def extract_features_from_fbank(
        self, fbank: Tensor, padding_mask: Tensor | None = None, **options: Any
    ) -> tuple[Any, ...]:
        """`extract_features` of what `preprocess` gives; other arguments as there, by keyword."""
        return self.extract_features(fbank, padding_mask, do_preprocess=False, **options)

    def forward(self, source: Tensor, padding_mask: Tensor | None = None, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        """As `extract_features`, for wrappers that call a module."""
        return self.extract_features(source, padding_mask, *args, **options)

    def pooled_logits(self, encoded: Encoded) -> Tensor:
        """Mean over each clip's own patches of what the head makes of every patch, ``(B, classes)``.

        The published head is linear, so that the mean could come first; one that a caller has put in its place may not.
        """
        if self.cfg.predictor_pool != "mean":
            if bool((encoded.patch_counts % encoded.bands).any()):
                raise ModelError(
                    f'padding="reference" splits steps, which a head over {self.cfg.predictor_pool} needs whole: '
                    'use "exact".'
                )
            return super().pooled_logits(encoded)
        if self.predictor is None:
            raise ValueError("This model has no label head: it was pre-trained, not fine-tuned, or predictor is None.")
        by_patch: Tensor = self.predictor(self.predictor_dropout(encoded.x))
        return masked_mean(by_patch, encoded.padding_mask, encoded.patch_counts)


BEATs.BEATs = BEATs
BEATs.BEATsConfig = BEATsConfig

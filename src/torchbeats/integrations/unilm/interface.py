"""What the research code's two models have in common: a mask of any length beside waveforms or spectrograms."""

from __future__ import annotations

from torch import Tensor

from torchbeats.backbone import Backbone, Encoded
from torchbeats.config import FBANK_MEAN, FBANK_STD
from torchbeats.integrations.unilm.backbone import TransformerEncoder
from torchbeats.integrations.unilm.padding import Padding, check_rule, clip_lengths
from torchbeats.patches import N_MELS, frames, mask_of_groups
from torchbeats.waveform import prepare


class ResearchInterface(Backbone):
    """Mixed into a model: its encoder is called as in the research code, and masks are read by one of two rules."""

    encoder_class = TransformerEncoder
    padding: Padding  # where a call does not say

    @property
    def embed(self) -> int:
        """Channels of the patch embedding."""
        return self.cfg.embed_dim

    @property
    def input_patch_size(self) -> int:
        """Side of a patch, in frames and mel bins."""
        return self.cfg.input_patch_size

    def _encode_source(
        self,
        source: Tensor,
        padding_mask: Tensor | None,
        fbank_mean: float = FBANK_MEAN,
        fbank_std: float = FBANK_STD,
        padding: str | None = None,
    ) -> Encoded:
        """Waveforms ``(B, samples)`` to features. ``padding`` in place of the model's own rule."""
        rule = self.padding if padding is None else check_rule(padding)
        mask = lengths = None
        if padding_mask is not None and source.dim() == 2:  # `prepare` says what another shape should be
            mask = _checked(padding_mask, source)
            if rule == "exact":
                samples = source.size(1)
                lengths = clip_lengths(mask, frames(max(samples, self.grid.min_samples)), samples)
        wav, lengths = prepare(source, self.grid.min_samples, lengths=lengths)
        fbank = self.preprocess(wav, fbank_mean, fbank_std)
        if mask is not None and rule == "reference":
            return self._encode_staggered(fbank, mask)
        return self.encode_features(fbank, lengths)[0]

    def _encode_fbank(self, fbank: Tensor, padding_mask: Tensor | None, padding: str | None = None) -> Encoded:
        """Normalised log-mel features, ``(B, frames, 128)`` or ``(B, 1, frames, 128)``, to features."""
        rule = self.padding if padding is None else check_rule(padding)
        if fbank.dim() == 4 and fbank.size(1) == 1:
            fbank = fbank.squeeze(1)
        if fbank.dim() != 3 or fbank.size(1) < self.grid.patch_size or fbank.size(2) != N_MELS:
            raise ValueError(
                f"A spectrogram is (batch, frames, {N_MELS}) or (batch, 1, frames, {N_MELS}) with at least "
                f"{self.grid.patch_size} frames; this is {tuple(fbank.shape)}."
            )
        if padding_mask is None:
            return self.encode_features(fbank)[0]
        mask = _checked(padding_mask, fbank)
        if rule == "reference":
            return self._encode_staggered(fbank, mask)
        return self.encode_features(fbank, clip_lengths(mask, fbank.size(1)))[0]

    def _encode_staggered(self, fbank: Tensor, mask: Tensor) -> Encoded:
        """As the research code: the mask in equal groups to frames, and those again in equal groups to patches.

        The groups of patches do not end with a step, so the bands of a clip's last step may count as padding or not one
        by one.
        """
        x = self.embed_patches(fbank)
        patch_mask = mask_of_groups(mask_of_groups(mask, fbank.size(1)), x.size(1))
        x, _ = self.encoder(x, patch_mask)
        return Encoded(x, patch_mask, patch_mask.logical_not().sum(1), self.grid.bands)


def _checked(padding_mask: Tensor, source: Tensor) -> Tensor:
    """``padding_mask`` as bool, on the device of ``source``, if it has a row for each of its clips."""
    B = len(source)
    if padding_mask.dim() != 2 or len(padding_mask) != B:
        raise ValueError(
            f"padding_mask has the shape {tuple(padding_mask.shape)}; a batch of {B} needs ({B}, positions)."
        )
    return padding_mask.to(source.device).bool()

"""The self-distilled tokenizer, under the name of the research code's file."""

from __future__ import annotations

import os
from typing import ClassVar

from torch import Tensor

from torchbeats import config, tokenizers
from torchbeats.config import FBANK_MEAN, FBANK_STD, TokenizersConfig
from torchbeats.integrations.unilm.interface import ResearchInterface
from torchbeats.integrations.unilm.padding import check_rule

__all__ = ["Tokenizers", "TokenizersConfig"]


class Tokenizers(ResearchInterface, tokenizers.Tokenizers):
    """`torchbeats.Tokenizers` with the arguments of the research code, trainable from the start.

    Args:
        cfg: a `TokenizersConfig`, for fresh weights that `load_state_dict` replaces; or a checkpoint file.
        padding: how a padding mask is read, "exact" or "reference"; see `BEATs`.
    """

    # This class hides its module as an attribute of the package: `unilm.Tokenizers.Tokenizers` must work all the same.
    Tokenizers: ClassVar[type[tokenizers.Tokenizers]]
    TokenizersConfig: ClassVar[type[config.TokenizersConfig]]

    def __init__(
        self, cfg: config.TokenizersConfig | str | os.PathLike[str] | None = None, padding: str = "exact"
    ) -> None:
        rule = check_rule(padding)
        super().__init__(cfg, freeze=False)
        self.padding = rule

    def extract_labels(
        self,
        source: Tensor,
        padding_mask: Tensor | None = None,
        fbank_mean: float = FBANK_MEAN,
        fbank_std: float = FBANK_STD,
        *,
        padding: str | None = None,
    ) -> Tensor:
        """Labels flattened over the batch, ``(B * T,)`` int64, one a patch, those of padding included.

        Args:
            source: ``(B, samples)`` at 16 kHz in [-1, 1] or integer PCM.
            padding_mask: ``(B, L)`` bool, True = padding; see `BEATs.extract_features`.
            fbank_mean: see `preprocess`.
            fbank_std: see `preprocess`.
            padding: "exact" or "reference", in place of the model's own.
        """
        return self._quantise(self._encode_source(source, padding_mask, fbank_mean, fbank_std, padding).x)


Tokenizers.Tokenizers = Tokenizers
Tokenizers.TokenizersConfig = TokenizersConfig

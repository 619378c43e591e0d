"""Acoustic tokenizers: a discrete label for each patch."""

from torchbeats.tokenizers.codebook import NormEMAVectorQuantizer
from torchbeats.tokenizers.self_distilled import Tokenizers, Tokens

__all__ = ["NormEMAVectorQuantizer", "Tokenizers", "Tokens"]

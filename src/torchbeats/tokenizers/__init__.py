"""Acoustic tokenizers: a discrete label for each patch."""

from torchbeats.tokenizers.codebook import NormEMAVectorQuantizer
from torchbeats.tokenizers.random_projection import RandomProjectionTokenizer
from torchbeats.tokenizers.self_distilled import Tokenizers
from torchbeats.tokenizers.tokens import Tokens

__all__ = ["NormEMAVectorQuantizer", "RandomProjectionTokenizer", "Tokenizers", "Tokens"]

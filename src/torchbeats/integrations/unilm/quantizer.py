"""The tokenizer's codebook, under the name of the research code's file."""

from torchbeats.tokenizers.codebook import EmbeddingEMA, NormEMAVectorQuantizer

__all__ = ["EmbeddingEMA", "NormEMAVectorQuantizer"]

"""Whether a model's embeddings still differ from each other: figures that tell of a collapse."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

COLUMNS = ("effective_rank", "mean_cosine", "embedding_norm")
_MOST = 512  # patches looked at
# Small models that a learning rate of 0.1 to 10 made collapse had a mean cosine of 0.999 to 1 from the first steps on,
# and mostly a rank of 1.1 to 1.9; the same in good health 0.1 to 0.3 and 2.8 to 3.1.
_LEAST_RANK, _MOST_COSINE = 1.5, 0.998


@torch.no_grad()
def embedding_figures(x: Tensor, padding: Tensor) -> dict[str, float]:
    """Figures of the encoder's output for the patches of a batch.

    effective_rank: the exponential of the entropy of the shares that the principal directions have of the variance (Roy
    and Vetterli 2007), at most the number of channels; mean_cosine: of all pairs; embedding_norm: mean length.

    Args:
        x: ``(B, T, C)``.
        padding: ``(B, T)`` bool, True = padding.
    """
    vectors = x[~padding].float()
    vectors = vectors[:: max(1, len(vectors) // _MOST)][:_MOST]
    n = len(vectors)
    if n < 2 or not bool(torch.isfinite(vectors).all()):
        return {}
    unit = torch.nn.functional.normalize(vectors, dim=1)
    variance = torch.linalg.svdvals(vectors - vectors.mean(0)).square()
    shares = variance / variance.sum().clamp_min(1e-30)
    return {
        "effective_rank": float((-(shares * shares.clamp_min(1e-30).log()).sum()).exp()),
        "mean_cosine": float((unit.sum(0).square().sum() - n) / (n * (n - 1))),
        "embedding_norm": float(vectors.norm(dim=1).mean()),
    }


def embedding_collapse(report: Mapping[str, float]) -> str | None:
    """A sentence, if a report shows that all embeddings have become the same, or lie on one line."""
    rank, cosine = report.get("effective_rank"), report.get("mean_cosine")
    if rank is None or cosine is None or (rank >= _LEAST_RANK and cosine <= _MOST_COSINE):
        return None
    return (
        f"the embeddings have collapsed: effective rank {rank:.1f}, mean cosine of two {cosine:.4f}. "
        "Try a lower learning rate, a longer warm-up, or more varied sounds."
    )

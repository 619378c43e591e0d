"""Figures that tell of collapsed embeddings."""

import pytest
import torch

from torchbeats.training.embeddings import embedding_collapse, embedding_figures


def figures(x, padding=None):
    return embedding_figures(x, torch.zeros(x.shape[:2], dtype=torch.bool) if padding is None else padding)


def test_independent_directions_count():
    """Vectors of equal variance along R axes have rank R."""
    for rank in (1, 2, 5):
        x = torch.cat([torch.eye(8)[:rank], -torch.eye(8)[:rank]]).repeat(4, 1).view(2, -1, 8)
        assert figures(3 * x)["effective_rank"] == pytest.approx(rank, rel=1e-4)
        assert figures(3 * x)["embedding_norm"] == pytest.approx(3)


def test_padding_takes_no_part():
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    padding = torch.arange(6) >= torch.tensor([[6], [4]])
    spoilt = x.masked_fill(padding.unsqueeze(-1), 1e9)
    assert figures(x, padding) == figures(spoilt, padding)


def test_a_collapse_is_told():
    random = torch.randn(2, 100, 16, generator=torch.Generator().manual_seed(0))
    assert embedding_collapse(figures(random)) is None
    same = torch.ones(16) + 1e-4 * random
    assert "mean cosine of two 1.0000" in embedding_collapse(figures(same))
    line = random[..., :1] * torch.ones(16) + 1e-3 * random
    assert "effective rank 1.0" in embedding_collapse(figures(line))
    assert embedding_collapse({}) is None

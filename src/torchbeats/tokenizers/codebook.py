"""A codebook of unit vectors that follows its data by moving averages (BEATs, section 3.2; arXiv 1711.00937)."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

KMEANS_ITERATIONS = 10


class EmbeddingEMA(nn.Module):
    """The codes. All state is in buffers: no optimiser moves it and no distributed wrapper averages it.

    Args:
        num_tokens: N.
        codebook_dim: D.
        kmeans_init: the codes are still to be found by `init_from`; until then they are zero.
    """

    weight: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    initted: Tensor

    def __init__(self, num_tokens: int, codebook_dim: int, kmeans_init: bool = False) -> None:
        super().__init__()
        codes = torch.zeros(num_tokens, codebook_dim)
        if not kmeans_init:
            codes = F.normalize(torch.randn(num_tokens, codebook_dim), dim=-1)
        self.register_buffer("weight", codes)
        # Published codebooks carry these two, though the moving average of unit vectors needs neither.
        self.register_buffer("cluster_size", torch.zeros(num_tokens))
        self.register_buffer("embed_avg", codes.clone())
        self.register_buffer("initted", torch.tensor([float(not kmeans_init)]))

    def forward(self, index: Tensor) -> Tensor:
        """``(...)`` integers to codes ``(..., D)``."""
        return F.embedding(index, self.weight)

    @torch.no_grad()
    def init_from(self, z: Tensor) -> None:
        """Start from the k-means of unit vectors ``z`` ``(M, D)``, under cosine similarity."""
        codes, sizes = spherical_kmeans(z, self.weight.size(0))
        if dist.is_available() and dist.is_initialized():  # each process saw other vectors; all must have one codebook
            dist.broadcast(codes, 0)
            dist.broadcast(sizes, 0)
        self.weight.copy_(codes)
        self.cluster_size.copy_(sizes)
        self.embed_avg.copy_(codes)
        self.initted.fill_(1)


def spherical_kmeans(z: Tensor, clusters: int, iterations: int = KMEANS_ITERATIONS) -> tuple[Tensor, Tensor]:
    """Means of unit vectors, themselves of unit length.

    Args:
        z: ``(M, D)``.
        clusters: N; where M is smaller, vectors are drawn more than once.
        iterations: fixed number of rounds. A cluster that loses all its members keeps its mean.

    Returns:
        ``(N, D)`` means and ``(N,)`` members of each in the last round.
    """
    if len(z) >= clusters:
        start = torch.randperm(len(z), device=z.device)[:clusters]
    else:
        start = torch.randint(len(z), (clusters,), device=z.device)
    means = z[start]
    sizes = z.new_zeros(clusters)
    for _ in range(iterations):
        sums, sizes = _sums_and_counts(z, (z @ means.t()).argmax(-1), clusters)
        means = torch.where(sizes[:, None] > 0, F.normalize(sums, dim=-1), means)
    return means, sizes


def _sums_and_counts(z: Tensor, index: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Sum ``(N, D)`` and number ``(N,)`` of the vectors ``z`` ``(M, D)`` that ``index`` ``(M,)`` gives each cluster."""
    sums = z.new_zeros(clusters, z.size(1)).index_add_(0, index, z)
    return sums, torch.bincount(index, minlength=clusters).to(z.dtype)


class NormEMAVectorQuantizer(nn.Module):
    """Replaces each vector by the nearest of N unit vectors; in training those follow by exponential moving averages.

    Args:
        n_embed: N, number of codes.
        embedding_dim: D.
        beta: weight of the commitment loss.
        decay: share of a code that a training step keeps.
        eps: kept for callers of the research code; nothing depends on it.
        statistic_code_usage: keep a moving average of how often each code is used, in ``cluster_size``.
        kmeans_init: codes start as the k-means of the first training batch.
        codebook_init_path: a file with a tensor ``(N, D)`` to start from instead.
        reseed_below: in training, a code whose moving average of uses falls below this share of the codes' mean gets
            the place of a vector of the batch; 0, as published, leaves unused codes where they are.

    Raises:
        ValueError: the file holds something else; or ``reseed_below`` without ``statistic_code_usage``.
    """

    cluster_size: Tensor

    def __init__(
        self,
        n_embed: int,
        embedding_dim: int,
        beta: float,
        decay: float = 0.99,
        eps: float = 1e-5,
        statistic_code_usage: bool = True,
        kmeans_init: bool = False,
        codebook_init_path: str | os.PathLike[str] = "",
        *,
        reseed_below: float = 0.0,
    ) -> None:
        super().__init__()
        if reseed_below and not statistic_code_usage:
            raise ValueError("reseed_below needs the statistics of use that statistic_code_usage keeps.")
        self.reseed_below = reseed_below
        self.num_tokens = n_embed
        self.codebook_dim = embedding_dim
        self.beta = beta
        self.decay = decay
        self.eps = eps
        self.statistic_code_usage = statistic_code_usage
        self.embedding = EmbeddingEMA(n_embed, embedding_dim, kmeans_init and not codebook_init_path)
        if codebook_init_path:
            codes = torch.load(codebook_init_path, map_location="cpu", weights_only=True)
            if not isinstance(codes, Tensor) or tuple(codes.shape) != (n_embed, embedding_dim):
                raise ValueError(f"{codebook_init_path} must hold one tensor of shape {(n_embed, embedding_dim)}.")
            self.embedding.weight.copy_(F.normalize(codes.float(), dim=-1))
            self.embedding.embed_avg.copy_(self.embedding.weight)
        if statistic_code_usage:
            self.register_buffer("cluster_size", torch.zeros(n_embed))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise; in training mode also move the codes.

        Args:
            z: ``(..., D)``.

        Returns:
            z_q: codes ``(..., D)``; the gradient goes straight through to ``z`` scaled to unit length.
            loss: ``beta`` times the mean squared distance of the unit vectors from their codes, a scalar.
            indices: ``(M,)`` int64, flattened over all leading axes.
        """
        unit = F.normalize(z.float(), dim=-1)  # distances of near neighbours need float32
        flat = unit.reshape(-1, self.codebook_dim)
        if self.training and not bool(self.embedding.initted):
            self.embedding.init_from(flat.detach())
        indices = self.nearest(flat)
        codes = self.embedding(indices).view_as(unit).to(unit.dtype)
        if self.training:
            self._follow(flat.detach(), indices)
        loss = self.beta * F.mse_loss(codes.detach(), unit)
        z_q = unit + (codes - unit).detach()
        return z_q.to(z.dtype), loss, indices

    def nearest(self, unit: Tensor) -> Tensor:
        """Index of the code closest to each row of ``unit`` ``(M, D)``: ``(M,)`` int64."""
        codes = self.embedding.weight.to(unit.dtype)
        with torch.autocast(unit.device.type, enabled=False):  # which would take the product in half precision
            squared = unit.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * unit @ codes.t()
        return squared.argmin(1)

    @torch.no_grad()
    def _follow(self, unit: Tensor, indices: Tensor) -> None:
        """Move each used code towards the mean of what fell to it, in all processes together."""
        sums, counts = _sums_and_counts(unit, indices, self.num_tokens)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
            dist.all_reduce(counts)
        if self.statistic_code_usage:
            if self.reseed_below and not bool(self.cluster_size.any()):
                self.cluster_size.fill_(counts.mean())  # the average has not begun: no code is unused yet
            self.cluster_size.lerp_(counts.to(self.cluster_size.dtype), 1 - self.decay)
        codes = self.embedding.weight
        used = counts[:, None] > 0
        towards = torch.where(used, F.normalize(sums / counts.clamp_min(1)[:, None], dim=-1), codes)
        codes.copy_(F.normalize(codes.lerp(towards.to(codes.dtype), 1 - self.decay), dim=-1))
        if self.reseed_below:
            self._reseed(unit)

    def _reseed(self, unit: Tensor) -> None:
        """Give unused codes the places of vectors ``unit`` ``(M, D)`` of this batch, the same in all processes."""
        usual = self.cluster_size.mean()
        unused = (self.cluster_size < self.reseed_below * usual).nonzero().squeeze(1)
        if not len(unused):
            return
        reseeded = self.embedding.weight[unused]
        if len(unit):  # otherwise they stay where they are
            reseeded = unit[torch.randint(len(unit), (len(unused),), device=unit.device)].to(reseeded.dtype)
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(reseeded, 0)
        self.embedding.weight[unused] = reseeded
        self.cluster_size[unused] = usual

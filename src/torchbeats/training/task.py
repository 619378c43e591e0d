"""What both kinds of training have in common: optimiser, schedule, randomness, and what is told on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from torchbeats.training.data import Batch, Failure
from torchbeats.training.settings import Optimiser

COLLAPSED = 0.02  # a codebook whose perplexity is below this share of its size says next to nothing


class LabelStatistics(nn.Module):
    """Counts labels and hits since the last report, in all processes.

    Args:
        bands: patches a step.
        labels: size of the codebook.
    """

    counts: Tensor
    hits: Tensor

    def __init__(self, bands: int, labels: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(bands, labels), persistent=False)
        self.register_buffer("hits", torch.zeros(()), persistent=False)
        self.predicted = False  # whether anybody says how many labels were predicted

    @torch.no_grad()
    def update(self, labels: Tensor, bands: Tensor, hits: Tensor | None = None) -> None:
        """Count ``labels`` ``(M,)`` in their ``bands`` ``(M,)``, and the number of ``hits``."""
        B, N = self.counts.shape
        self.counts += torch.bincount(bands * N + labels, minlength=B * N).view(B, N)
        if hits is not None:
            self.predicted = True
            self.hits += hits

    def report(self) -> dict[str, float]:
        """What was counted, which then starts from zero.

        codes_used: share of codes seen at all; perplexity: of the labels, all bands together; and where labels are
        predicted, accuracy: share of them that was right; majority: the share that the commonest of each band has.
        """
        counts, hits = all_sum(self.counts), all_sum(self.hits)
        total = counts.sum().clamp_min(1)
        shares = counts.sum(0) / total
        entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
        self.counts.zero_()
        self.hits.zero_()
        use = {"codes_used": float((shares > 0).float().mean()), "perplexity": float(entropy.exp())}
        if not self.predicted:
            return use
        return {"accuracy": float(hits / total), "majority": float(counts.max(1).values.sum() / total), **use}


def all_sum(x: Tensor) -> Tensor:
    """Sum over the processes, if there are several; ``x`` stays as it is."""
    x = x.detach().clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def all_items(items: list[Any]) -> list[Any]:
    """What the lists of all processes hold."""
    if not (dist.is_available() and dist.is_initialized()):
        return items
    lists: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(lists, items)
    return [item for part in lists for item in part]


class Task(L.LightningModule):
    """A network in training.

    Args:
        optimiser: settings.
        seed: of all randomness.
        statistics: counts the labels of a codebook, where there is one.
    """

    def __init__(self, optimiser: Optimiser, seed: int, statistics: LabelStatistics | None = None) -> None:
        super().__init__()
        self.optimiser, self.seed, self._statistics = optimiser, seed, statistics
        self.failures: list[Failure] = []
        self.clips = 0
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """The loss under "loss", and other scalars to report."""
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch. Dropout and the like depend on its number alone, so that a run can go on from any."""
        torch.manual_seed(hash((self.seed, self.global_step, batch_idx, self.global_rank)) % 2**63)
        self.failures += batch.failures
        self.clips += len(batch.wav)
        scalars = self.step(batch)
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._steps += 1
        return scalars["loss"]

    def report(self) -> dict[str, float]:
        """What happened since the last report, over all processes."""
        world = self.trainer.world_size
        means = {name: float(all_sum(value)) / (self._steps * world) for name, value in self._sums.items()}
        self._sums, self._steps = {}, 0
        return means if self._statistics is None else {**means, **self._statistics.report()}

    @property
    def statistics(self) -> LabelStatistics:
        """What counts the labels."""
        assert self._statistics is not None
        return self._statistics

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW; no decay of biases, norms and other vectors."""
        o = self.optimiser
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            # Told by name: where a strategy has spread the weights over processes, their shapes tell nothing.
            decays = name.endswith((".weight", ".weight_v")) and "norm" not in name
            if parameter.requires_grad:
                groups.setdefault((decays, self.rate_factor(name)), []).append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {"params": parameters, "weight_decay": o.weight_decay if decays else 0.0, "lr": o.lr * factor}
                for (decays, factor), parameters in sorted(groups.items(), key=lambda group: group[0], reverse=True)
            ],
            betas=(o.betas[0], o.betas[1]),
        )

        def share(step: int) -> float:
            warm = min(1.0, (step + 1) / max(1, o.warmup))
            over = min(1.0, max(0, step - o.warmup) / max(1, o.steps - o.warmup))
            return warm * (0.55 + 0.45 * math.cos(math.pi * over))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate_factor(self, name: str) -> float:
        """What the learning rate is multiplied with for the parameter of this name."""
        return 1.0

    def share_of_mean(self, total: Tensor, count: int) -> Tensor:
        """A sum over ``count`` things, as this process's share of the mean over those of all processes.

        The processes' gradients are averaged, so each counts as many times as there are processes.
        """
        everywhere = all_sum(torch.tensor(float(count), device=total.device))
        return total * (self.trainer.world_size / everywhere.clamp_min(1))


def collapse(report: Mapping[str, Any], labels: int) -> str | None:
    """A sentence, if a report shows that the labels have collapsed."""
    if report["perplexity"] >= COLLAPSED * labels:
        return None
    return (
        f"the labels have collapsed: {report['codes_used']:.0%} of {labels} codes are in use, with a perplexity of "
        f"{report['perplexity']:.1f}. Try distillation.reseed_below=0.1, another tokens.normalisation, or a lower "
        "learning rate."
    )

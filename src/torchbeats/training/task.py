"""What both kinds of training have in common: optimiser, schedule, randomness, and reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from torchbeats.model import BEATs
from torchbeats.tokenizers import Tokenizers
from torchbeats.training.corpus import Failure
from torchbeats.training.embeddings import embedding_collapse, embedding_figures
from torchbeats.training.processes import all_sum
from torchbeats.training.settings import OptimiserSettings


class TrainingBatch(Protocol):
    """What every batch has."""

    @property
    def wav(self) -> Tensor:
        """``(B, samples)``, zero behind each crop."""

    @property
    def failures(self) -> list[Failure]:
        """Sounds that could not be read, and are not in the batch."""

    @property
    def paths(self) -> Sequence[str]:
        """Names of the sounds in it."""


B = TypeVar("B", bound=TrainingBatch)

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
        usage = {"codes_used": float((shares > 0).float().mean()), "perplexity": float(entropy.exp())}
        if not self.predicted:
            return usage
        return {"accuracy": float(hits / total), "majority": float(counts.max(1).values.sum() / total), **usage}


class Task(L.LightningModule, Generic[B]):
    """A network in training, and all that is particular to it; a run asks for nothing else.

    Args:
        optimiser: settings.
        seed: random seed.
        statistics: counts the labels of a codebook, where there is one.
    """

    def __init__(self, optimiser: OptimiserSettings, seed: int, statistics: LabelStatistics | None = None) -> None:
        super().__init__()
        self.optimiser, self.seed, self._statistics = optimiser, seed, statistics
        self.failures: list[Failure] = []
        self.clips = 0
        self.bad_batches: list[tuple[int, list[str]]] = []  # step, and its sounds, where the gradient was not finite
        self.bad_steps = 0  # how many of those the training ends with
        self.encoded: tuple[Tensor, Tensor] | None = None  # the last batch's embeddings, and what of them is padding
        self._sums: dict[str, Tensor] = {}
        self._steps: Tensor | float = 0.0
        self._current: list[tuple[Tensor, Sequence[str]]] = []  # of this step's batches: finite?, their sounds

    # --- what each kind of training decides for itself ---

    def step(self, batch: B) -> dict[str, Tensor]:
        """The loss under "loss", and other scalars to report."""
        raise NotImplementedError

    def begin(self, batches: Iterable[B]) -> None:
        """Get ready for the first step of a fresh training; ``batches`` are as many as are taken."""

    def finished(self, weights: Mapping[str, Tensor]) -> BEATs | Tokenizers:
        """The model that the training was for, in one piece.

        Args:
            weights: the task's state dict, in one piece however it was spread over processes.
        """
        raise NotImplementedError

    def callbacks(self) -> Sequence[Callback]:
        """Lightning's callbacks that the training needs."""
        return ()

    def rate_factor(self, name: str) -> float:
        """What the learning rate is multiplied with for the parameter of this name."""
        return 1.0

    @property
    def drops_layers(self) -> bool:
        """Whether a step may leave layers out."""
        return False

    def status_text(self, report: Mapping[str, float]) -> str:
        """A few words about a report, for the display."""
        return f"loss {report['loss']:.3f}"

    def warning_text(self, report: Mapping[str, float]) -> str | None:
        """A sentence, where a report shows that something is wrong."""
        return embedding_collapse(report)

    # --- what all have in common ---

    def training_step(self, batch: B, batch_idx: int) -> Tensor:
        """One batch. Dropout and the like depend on its number alone, so that a run can go on from any."""
        torch.manual_seed(hash((self.seed, self.global_step, batch_idx, self.global_rank)) % 2**63)
        self.failures += batch.failures
        self.clips += len(batch.wav)
        scalars = self.step(batch)
        finite = torch.isfinite(scalars["loss"].detach())
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().where(finite, 0)
        self._steps = self._steps + finite.float()
        self._current.append((finite, batch.paths))
        return scalars["loss"] * torch.where(finite, 1.0, math.nan)  # so that the gradient in no process is finite

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave a step out, in all processes, whose gradient is not finite."""
        batches, self._current = self._current, []
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        not_finite = ~torch.isfinite(torch.nn.utils.get_total_norm(gradients))
        if all_sum(not_finite.float()).item() == 0:
            self.bad_steps = 0
            return
        scales = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scales and all_sum(torch.stack([~finite for finite, _ in batches]).any().float()).item() == 0:
            return  # the scaler of float16 leaves the step out, and tries a smaller scale
        for parameter in self.parameters():
            parameter.grad = None  # what has none stays as it is
        culprits = [path for finite, paths in batches if not finite for path in paths]
        self.bad_batches.append((self.global_step + 1, culprits or [path for _, paths in batches for path in paths]))
        self.bad_steps += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what was counted since the last report, in all processes together."""
        counted: dict[str, Any] = {"sums": {name: all_sum(value) for name, value in self._sums.items()}}
        counted["steps"] = float(all_sum(torch.as_tensor(self._steps, device=self.device)))
        if self._statistics is not None:
            counted["predicted"] = self._statistics.predicted
            counted["statistics"] = {name: all_sum(value) for name, value in self._statistics.named_buffers()}
        checkpoint["counted"] = counted

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what was counted, in one of the processes."""
        counted = checkpoint.get("counted")
        if counted is None or self.trainer.global_rank:
            return
        self._sums = {name: value.to(self.device) for name, value in counted["sums"].items()}
        self._steps = counted["steps"]
        if self._statistics is not None:
            for name, value in self._statistics.named_buffers():
                value.copy_(counted["statistics"][name])
            self._statistics.predicted = bool(counted.get("predicted", self._statistics.predicted))

    def report(self) -> dict[str, float]:
        """What happened since the last report, over all processes."""
        steps = float(all_sum(torch.as_tensor(self._steps, device=self.device)))
        means = {name: float(all_sum(value)) / steps if steps else math.nan for name, value in self._sums.items()}
        self._sums, self._steps = {}, 0.0
        if self.encoded is not None:  # of the last batch, in this process
            means |= embedding_figures(*self.encoded)
            self.encoded = None
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

    def share_of_mean(self, total: Tensor, count: int) -> Tensor:
        """A sum over ``count`` things, as this process's share of the mean over those of all processes.

        The processes' gradients are averaged, so each counts as many times as there are processes.
        """
        everywhere = all_sum(torch.tensor(float(count), device=total.device))
        return total * (self.trainer.world_size / everywhere.clamp_min(1))


class BehindEachStep(Callback):
    """Lets something follow each step. A callback: a task's own hook comes behind the saving of state.

    Args:
        follow: called behind each step of the optimiser.
    """

    def __init__(self, follow: Callable[[], object]) -> None:
        self.follow, self.step = follow, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin, or go on, where the state is."""
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Follow, unless gradients still accumulate."""
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            self.follow()


def collapse(report: Mapping[str, Any], labels: int) -> str | None:
    """A sentence, if a report shows that the labels have collapsed."""
    if report["perplexity"] >= COLLAPSED * labels:
        return None
    return (
        f"the labels have collapsed: {report['codes_used']:.0%} of {labels} codes are in use, with a perplexity of "
        f"{report['perplexity']:.1f}. Try distillation.reseed_below=0.1, another tokens.normalisation, or a lower "
        "learning rate."
    )


def part(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The part of a state dict that belongs to the module of this name."""
    return {key.removeprefix(name + "."): value for key, value in weights.items() if key.startswith(name + ".")}


def all_finite(weights: Mapping[str, Tensor]) -> bool:
    """Whether every number of a state dict is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in weights.values() if tensor.is_floating_point())

"""An attentive probe: which layers and which moments matter is learned, the model stays as it is.

A softmax weight for each layer mixes their features (Peters et al., arXiv 1802.05365; Yang et al., SUPERB, arXiv
2105.01051). In each frequency band a learned query attends to the patches over time, so that one short event can decide
where a mean would drown it; the bands stand side by side, and a linear layer tells the classes apart. Before it has
learned anything the head pools as "bands" does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchbeats.data.folds import Design, Fold
from torchbeats.data.labelled import Labelled
from torchbeats.errors import InputError
from torchbeats.evaluation.features import Features
from torchbeats.evaluation.metrics import Array
from torchbeats.evaluation.probe import OnFit, Outcome, check_classes, outcome

ATTENTIVE = "attentive"
STEPS = 63  # of 160 ms, that are looked at together: ten seconds
BATCH_VALUES = 48_000_000  # of features in a batch, 200 MB in float32


@dataclass(frozen=True)
class Training:
    """How the head is trained.

    Attributes:
        epochs: passes over the training sounds, at least.
        steps: at least so many; where sounds are few, they are passed over more often.
        batch: sounds in a step; fewer where they are long and the model is large.
        lr: highest learning rate; it rises over the first tenth and falls to zero as a cosine.
        weight_decay: of AdamW, of the linear layer alone.
        dropout: of what the linear layer sees.
    """

    epochs: int = 5
    steps: int = 600
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.1
    dropout: float = 0.5


class AttentiveHead(nn.Module):
    """Features of all layers to logits.

    Args:
        layers: of features, the encoder's input included.
        bands: patches a step.
        width: C, values of a patch.
        classes: to tell apart.
        dropout: see `Training`.
    """

    def __init__(self, layers: int, bands: int, width: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(layers))
        self.queries = nn.Parameter(torch.zeros(bands, width))
        self.norm = nn.BatchNorm1d(bands * width, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.predictor = nn.Linear(bands * width, classes)
        nn.init.zeros_(self.predictor.weight)
        nn.init.zeros_(self.predictor.bias)

    def layer_weights(self) -> Tensor:
        """``(layers,)``, how much each layer counts; they sum to one."""
        return self.mix.softmax(0)

    def attention(self, mixed: Tensor, mask: Tensor) -> Tensor:
        """``(B, steps, bands)``: weights of a band's patches over time, which sum to one over a clip's own steps."""
        scores = (mixed * self.queries).sum(-1) / math.sqrt(mixed.size(-1))
        return scores.masked_fill(mask.unsqueeze(-1), -math.inf).softmax(1)

    def pool(self, x: Tensor, mask: Tensor) -> Tensor:
        """``(B, bands * C)``; arguments as for `forward`."""
        mixed = torch.einsum("bslkc,l->bskc", x, self.layer_weights())
        return torch.einsum("bskc,bsk->bkc", mixed, self.attention(mixed, mask)).flatten(1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Logits.

        Args:
            x: ``(B, steps, layers, bands, C)``.
            mask: ``(B, steps)`` bool, True = behind the clip's own steps, where x must be finite.

        Returns:
            ``(B, classes)``.
        """
        logits: Tensor = self.predictor(self.dropout(self.norm(self.pool(x, mask))))
        return logits


def attentive(
    features: Features,
    data: Labelled,
    plan: Design,
    seed: int = 0,
    training: Training | None = None,
    on_epoch: OnFit = lambda: None,
) -> tuple[Outcome, list[float]]:
    """Cross-validate an attentive probe, as `torchbeats.evaluation.probe.probe` does the others.

    Args:
        features: of the examples, one for each.
        data: the examples.
        plan: what is held out.
        seed: random seed of the training and the bootstrap: with the same one the figures are the same.
        training: how each fold's head is trained.
        on_epoch: called behind every epoch of every fold.

    Returns:
        How it did, and the mean over the folds of each layer's weight.

    Raises:
        InputError: training sounds of one class only, or an example without features.
    """
    training = training or Training()
    truth = data.targets()
    if not features.counts.all():
        shortest = data.examples[int(features.counts.argmin())].path
        raise InputError(f"{shortest} has no features that are finite in every layer; leave it out.")
    for fold in plan.folds:
        check_classes(truth[fold.train], data)
    scores = np.full((len(truth), len(data.classes)), np.nan, np.float32)
    weights = []
    for number, fold in enumerate(plan.folds):
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(1000 * seed + number)
            head = train(features, truth, len(data.classes), fold, training, seed, on_epoch)
        scores[fold.test] = predict(head, features, fold.test, single=truth.ndim == 1)
        weights.append(head.layer_weights().detach().numpy())
    return outcome(ATTENTIVE, truth, scores, plan, seed), np.mean(weights, axis=0).tolist()


def train(
    features: Features, truth: Array, classes: int, fold: Fold, training: Training, seed: int, on_epoch: OnFit
) -> AttentiveHead:
    """A head that has learned from a fold's training sounds. Arguments as for `attentive`."""
    _, layers, bands, width = features.values.shape
    head = AttentiveHead(layers, bands, width, classes, training.dropout).train()
    random = np.random.default_rng([seed, len(fold.train)])
    other_parameters = [parameter for name, parameter in head.named_parameters() if name != "predictor.weight"]
    optimiser = torch.optim.AdamW(
        [
            {"params": [head.predictor.weight], "weight_decay": training.weight_decay},
            {"params": other_parameters, "weight_decay": 0.0, "lr": 10 * training.lr},
        ],
        lr=training.lr,
    )
    size = batch_size(features, fold.train, training.batch)
    epochs = epochs_of(features, fold, training)
    total = epochs * len(list(batches(fold.train, size)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: share_of_rate(step, total))
    for _ in range(epochs):
        for members in batches(random.permutation(fold.train), size):
            firsts = [int(random.integers(max(1, features.counts[i] - STEPS + 1))) for i in members]
            logits = head(*gathered(features, members, firsts))
            target = torch.from_numpy(truth[members])
            loss = F.cross_entropy(logits, target) if truth.ndim == 1 else _sigmoid_loss(logits, target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        on_epoch()
    return head.eval()


def epochs_of(features: Features, fold: Fold, training: Training) -> int:
    """How many passes over a fold's training sounds are made."""
    in_one = len(list(batches(fold.train, batch_size(features, fold.train, training.batch))))
    return max(training.epochs, math.ceil(training.steps / in_one))


def total_epochs(features: Features, plan: Design, training: Training | None = None) -> int:
    """How many `attentive` reports. Arguments as there."""
    return sum(epochs_of(features, fold, training or Training()) for fold in plan.folds)


def _sigmoid_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none").sum(1).mean()


def share_of_rate(step: int, total: int) -> float:
    """A linear rise over the first tenth of the steps, then a cosine down to zero."""
    warm = max(1, total // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


@torch.inference_mode()
def predict(head: AttentiveHead, features: Features, examples: Array, single: bool) -> Array:
    """``(examples, classes)`` probabilities: the mean over pieces of a sound that is longer than `STEPS`."""
    pieces = [
        (position, int(first)) for position, i in enumerate(examples) for first in pieces_of(int(features.counts[i]))
    ]
    scores = torch.zeros(len(examples), head.predictor.out_features)
    counts = torch.zeros(len(examples), 1)
    for members in batches(np.arange(len(pieces)), batch_size(features, examples, 64), alone=True):
        positions, firsts = zip(*(pieces[k] for k in members), strict=True)
        logits = head(*gathered(features, [int(examples[position]) for position in positions], firsts))
        values = logits.softmax(1) if single else logits.sigmoid()
        scores.index_add_(0, torch.tensor(positions), values)
        counts.index_add_(0, torch.tensor(positions), torch.ones(len(positions), 1))
    return (scores / counts).numpy()


def pieces_of(steps: int) -> Array:
    """First steps of pieces of at most `STEPS` of about equal length, which cover all."""
    count = math.ceil(steps / STEPS)
    return np.linspace(0, max(0, steps - STEPS), count).round().astype(np.int64)


def batches(examples: Array, size: int, alone: bool = False) -> Iterator[Array]:
    """Parts of about equal size; of two examples and more unless ``alone``: one has no deviation."""
    count = math.ceil(len(examples) / size)
    if not alone:
        count = max(1, min(count, len(examples) // 2))
    return iter(np.array_split(examples, count))


def batch_size(features: Features, examples: Array, largest: int) -> int:
    """As many sounds as fit into `BATCH_VALUES`, at least 4, at most ``largest``."""
    steps = min(STEPS, int(features.counts[examples].max()))
    return max(4, min(largest, BATCH_VALUES // (steps * math.prod(features.values.shape[1:]))))


def gathered(features: Features, examples: Sequence[int] | Array, firsts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """At most `STEPS` steps of each example from its first one on: ``(B, steps, layers, bands, C)``, and their mask."""
    parts = [features.of(int(i), first, STEPS) for i, first in zip(examples, firsts, strict=True)]
    longest = max(map(len, parts))
    x = np.zeros((len(parts), longest, *features.values.shape[1:]), np.float32)
    mask = torch.ones(len(parts), longest, dtype=torch.bool)
    for row, part in enumerate(parts):
        x[row, : len(part)] = part
        mask[row, : len(part)] = False
    return torch.from_numpy(x), mask

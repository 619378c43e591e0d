"""What a fine-tuning begins with: a linear head fitted on the frozen model's embeddings (arXiv 2202.10054).

A fresh head sends gradients of noise through the layers below before it has learnt anything, which costs some of what
they knew; one that already fits leaves them as they are where they are right.
"""

from __future__ import annotations

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from torchbeats.data.labelled import Labelled
from torchbeats.errors import InputError
from torchbeats.evaluation.regression import limited_threads
from torchbeats.evaluation.rows import Rows, rows_of
from torchbeats.heads.fitting import FOLDS, Linear, fit_head
from torchbeats.plans import EmbeddingPlan
from torchbeats.training.examples import one_hot
from torchbeats.training.finetuning import Finetuning
from torchbeats.training.listener import Listener
from torchbeats.training.settings import FinetuneSettings

MOST_SOUNDS = 10_000  # a linear head has little to learn from more
MOST_WORK = 2e9  # sounds × values × classes of a regression: a few minutes of one core
SEARCH_WORK = 1e8  # up to which the regularisation is chosen, in twenty fits more
USUAL_C = 0.01  # beyond that
OF_EACH_CLASS = 20  # sounds that are drawn first


class LinearHead(Callback):
    """Before the first step of a fresh training, fit the head; a training that goes on has one.

    One process does it, and the others get the result.

    Args:
        task: whose head it is.
        labelled: the sounds to train on.
        settings: of the fine-tuning.
        listener: told of the progress.
    """

    def __init__(self, task: Finetuning, labelled: Labelled, settings: FinetuneSettings, listener: Listener) -> None:
        self.task, self.labelled, self.settings, self.listener = task, labelled, settings, listener
        self.fitted = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fit, in the process that leads."""
        if trainer.global_step:
            return
        if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
            self.listener.warn("The head begins untrained: model.head_first needs each process to hold all weights.")
            return
        linear = trainer.strategy.broadcast(self._fit() if trainer.is_global_zero else None)
        if linear is None:
            return
        self.task.set_head(torch.from_numpy(linear.weight), torch.from_numpy(linear.bias))
        self.fitted = True

    def _fit(self) -> Linear | None:
        """The head, in the process that leads; None, with a warning, where the sounds do not suffice for one."""
        model, training = self.task.model, self.task.model.training
        assert model.predictor is not None
        chosen = self.labelled.subset(drawn(self.labelled, model.predictor.in_features, self.settings.seed))
        try:
            rows = self._embeddings(chosen)
            return self._regression(rows.values, chosen.subset(rows.indices.tolist()))
        except InputError as error:  # training may still do, and names what it cannot read
            self.listener.warn(f"The head begins untrained, as no linear one can be fitted: {error}")
            return None
        finally:
            model.train(training)

    def _embeddings(self, labelled: Labelled) -> Rows:
        """As the head sees them, in windows as long as validation has them."""
        plan = EmbeddingPlan(self.settings.model.pool, window=self.settings.data.seconds)
        total = len(labelled.examples)
        with self.listener.work("Embedding", total, "sounds") as advance:
            return rows_of(
                labelled.examples, self.task.model.eval(), plan, progress=lambda _, share: advance(share, "")
            )

    def _regression(self, x: np.ndarray, labelled: Labelled) -> Linear:
        # Pieces of a file are held out together, as are groups.
        examples = [example._replace(group=example.group or example.path) for example in labelled.examples]
        labelled = Labelled(examples, labelled.classes, labelled.problem_type)
        classes = len(labelled.classes)
        search = len(x) * min(x.shape) * classes <= SEARCH_WORK
        with (
            self.listener.work("Linear head", 100.0, "%") as advance,
            limited_threads(len(x), x.shape[1], classes),
        ):
            done = 0.0

            def progress(fits: int, total: int) -> None:
                nonlocal done
                advance(100 * fits / total - done, "")
                done = 100 * fits / total

            return fit_head(
                x,
                labelled,
                folds=FOLDS if search else 2,
                balance=self.settings.data.balance > 0,
                c=None if search else USUAL_C,
                seed=self.settings.seed,
                progress=progress,
            ).linear


def drawn(labelled: Labelled, width: int, seed: int) -> list[int]:
    """Which sounds a linear head is fitted on: all of them, or as many as keep the fit short, rare classes first.

    Args:
        labelled: the sounds.
        width: D, values of an embedding.
        seed: of the draw.
    """
    count = len(labelled.examples)
    most = min(MOST_SOUNDS, max(100, int(MOST_WORK / (width * len(labelled.classes)))))
    if count <= most:
        return list(range(count))
    order = np.random.default_rng(seed).permutation(count)
    belongs = one_hot(labelled)[order] > 0
    first = (belongs & (belongs.cumsum(0) <= OF_EACH_CLASS)).any(1)
    return sorted(np.concatenate([order[first], order[~first]])[:most].tolist())

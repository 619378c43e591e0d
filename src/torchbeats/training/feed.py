"""The batches of a training, from the one that it has come to."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import lightning as L
import torch
from torch.utils.data import DataLoader

from torchbeats.training.batches import Batches
from torchbeats.training.crops import Excerpts
from torchbeats.training.processes import workers_for
from torchbeats.training.task import Task, TrainingBatch

OUTLAST_SECONDS = 300  # of a worker behind the first SIGTERM: a step on a slow processor, and its saving

B = TypeVar("B", bound=TrainingBatch)


class Feed(L.LightningDataModule, Generic[B]):
    """Reads and collates batches in worker processes.

    Args:
        task: what is trained; it is shown batches before the first step, see `Task.begin`.
        batches: from number of the first batch, rank of this process and number of processes to the batches.
        crops: reads the crops that a batch is made of.
        collate: puts them together.
        workers: processes that read, for each process that trains; -1 for as many as there are cores to spare.
        accumulate: batches a step.
    """

    def __init__(
        self,
        task: Task[B],
        batches: Callable[[int, int, int], Batches],
        crops: Excerpts[Any],
        collate: Callable[[list[Any]], B],
        *,
        workers: int,
        accumulate: int,
    ) -> None:
        super().__init__()
        self.task, self.batches, self.crops, self.collate = task, batches, crops, collate
        self.workers, self.accumulate = workers, accumulate

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches without end, from the one behind the last that was trained on."""
        trainer = self.trainer
        assert trainer is not None
        first = trainer.global_step * self.accumulate
        if first == 0:  # every process sees the same batches, so that all begin alike
            self.task.begin(self.collate([self.crops[draw] for draw in draws]) for draws in self.batches(0, 0, 1))
        return loader(
            self.crops,
            self.batches(first, trainer.global_rank, trainer.world_size),
            self.collate,
            workers_for(self.workers, trainer.num_devices),
        )


def loader(
    crops: Excerpts[Any], batches: Batches, collate: Callable[[list[Any]], Any], workers: int
) -> DataLoader[Any]:
    """Batches without end, made in ``workers`` other processes or, with 0, in this one."""
    return DataLoader(
        crops,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_outlast_a_stop,
    )


def _outlast_a_stop(_worker: int) -> None:
    """Have this worker go on when its whole group is told to stop, as a terminal, systemd and Slurm do.

    The process that trains finishes its step and saves it, and then ends its workers; one that had ended by itself
    would end the training in the middle of the step. One whose training is gone notices that; told twice, it ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # Windows sends no SIGTERM
        signal.signal(signal.SIGTERM, _end_later)


def _end_later(signum: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(OUTLAST_SECONDS)

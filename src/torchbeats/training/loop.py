"""Training by Lightning, from the beginning or from the state that a stopped run left."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from torchbeats.errors import TrainingError
from torchbeats.files import replacing
from torchbeats.interrupts import is_the_command
from torchbeats.training.environment import environment_for
from torchbeats.training.feed import Feed
from torchbeats.training.folder import RunFolder
from torchbeats.training.memory import keep_freed_memory
from torchbeats.training.processes import leader_finds
from torchbeats.training.reporter import Reporter
from torchbeats.training.saving import Saver
from torchbeats.training.settings import TrainerSettings
from torchbeats.training.task import Task, TrainingBatch, all_finite

B = TypeVar("B", bound=TrainingBatch)


def fit(
    task: Task[B],
    feed: Feed[B],
    folder: RunFolder,
    state: Path,
    t: TrainerSettings,
    reporter: Reporter,
    callbacks: Sequence[Callback] = (),
    half_on_cpu: bool = False,
) -> tuple[L.Trainer, dict[str, Tensor]]:
    """Train, from the beginning or from the state that an earlier run left.

    Args:
        task: what is trained.
        feed: gives batches.
        folder: of the run.
        state: file of the state, which stays when all is done.
        t: settings.
        reporter: tells how it goes.
        callbacks: more of Lightning's.
        half_on_cpu: a processor that multiplies bfloat16 may do so where the precision is "auto".

    Returns:
        The trainer, and the task's state dict, in one piece however it was spread.

    Raises:
        TrainingStopped: a signal came; the state is saved.
        TrainingError: several steps in a row had no finite gradient.
    """
    saver = Saver(task, state, max(1, round(t.save_every / reporter.every)) * reporter.every)
    environment, devices, nodes = environment_for(t)
    if is_the_command():
        keep_freed_memory()
    with _quiet(), saver.signals_restored():
        trainer = L.Trainer(
            accelerator=t.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=_strategy(t, nodes, devices, task.drops_layers),
            precision=_precision(t, half_on_cpu),
            accumulate_grad_batches=t.accumulate,
            gradient_clip_val=t.clip or None,
            max_steps=task.optimiser.steps,
            max_epochs=-1,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            plugins=[_States(), environment],
            logger=TensorBoardLogger(folder.path, name="tensorboard", version=reporter.name),
            log_every_n_steps=reporter.every,
            callbacks=[
                *task.callbacks(),
                *callbacks,
                reporter,  # behind what it may tell of
                saver,
            ],
        )
        try:
            trainer.fit(task, feed, ckpt_path=state if leader_finds(state) else None, weights_only=True)
        except SystemExit as leaving:  # so Lightning answers a Ctrl-C that comes before the first step
            if isinstance(leaving.__context__, KeyboardInterrupt):
                raise leaving.__context__ from None
            raise
    if saver.stopped is not None:
        raise saver.stopped
    weights = trainer.strategy.lightning_module_state_dict()
    if trainer.is_global_zero and not all_finite(weights):
        raise TrainingError(
            "The training ended with weights that are not finite; they are not written. Try a lower learning rate."
        )
    return trainer, weights


class _States(TorchCheckpointIO):
    """Writes states beside their place; Lightning writes them to /tmp, and from there moving may be copying."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)


def _strategy(t: TrainerSettings, nodes: int, devices: int | str, drops_layers: bool) -> Any:
    """How processes work together; ours differs from Lightning's in leaving codebooks to their own arithmetic.

    Args:
        t: settings.
        nodes: number of machines.
        devices: of each.
        drops_layers: a step may leave layers out.
    """
    several = nodes > 1 or (str(devices).isdigit() and int(devices) > 1)
    if t.devices in ("auto", "-1", -1) and t.accelerator in ("auto", "gpu", "cuda"):
        several = several or torch.cuda.device_count() > 1
    if t.strategy == "ddp" or (t.strategy == "auto" and several):
        return DDPStrategy(broadcast_buffers=False, find_unused_parameters=drops_layers)
    return t.strategy


def _precision(t: TrainerSettings, half_on_cpu: bool) -> Any:
    if t.precision != "auto":
        return t.precision
    if t.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    mps = t.accelerator == "mps" or (t.accelerator == "auto" and torch.backends.mps.is_available())
    return "bf16-mixed" if half_on_cpu and not mps and _cpu_multiplies_bfloat16() else "32-true"


def _cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it, with which a step takes two thirds of the time."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # private to PyTorch: where it is missing, float32
    return bool(ask is not None and ask())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's own messages; the listener has ours."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

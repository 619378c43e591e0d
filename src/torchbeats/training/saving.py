"""When a training's state is saved: every so many steps, every few minutes, and when the run is stopped."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint

from torchbeats.errors import TrainingError
from torchbeats.training.task import Task, all_finite

SAVE_SECONDS = 300.0  # at most so long between two states
BAD_STEPS = 5  # in a row without a finite gradient end a run


class TrainingStopped(KeyboardInterrupt):
    """The run was stopped, and its state is saved.

    Attributes:
        step: behind which it stopped.
        signum: number of the signal that asked for it.
    """

    def __init__(self, step: int, signum: int) -> None:
        super().__init__(f"Stopped at step {step:,}; the same command goes on.")
        self.step, self.signum = step, signum


class Saver(Checkpoint):
    """Saves the state; ends the training behind the step in which a signal came.

    Lightning has callbacks of this class called last, so that what is saved is whole.

    Args:
        task: what is trained.
        state: file of the state.
        every: steps from one state to the next.
    """

    def __init__(self, task: Task[Any], state: Path, every: int) -> None:
        self.task, self.state, self.every = task, state, every
        self.stopped: TrainingStopped | None = None
        self._signal = 0
        self._group: Any = None

    @contextmanager
    def signals_restored(self) -> Iterator[None]:
        """Within it, handlers of signals may be replaced; behind it they are as before."""
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take signals, over Lightning's own handlers, which end a run as if it were done."""
        self._step, self._saved_at = trainer.global_step, time.monotonic()
        if trainer.world_size > 1 and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)
            signal.signal(signal.SIGINT, self._note)

    def _note(self, signum: int, frame: Any) -> None:
        if self._signal:  # the second time it is meant at once
            if sys.stderr.isatty():
                sys.stderr.write("\x1b[?25h\n")  # a progress display hides the cursor
                sys.stderr.flush()
            os._exit(128 + signum)
        self._signal = signum

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save, or stop, where it is time."""
        step = trainer.global_step
        if step == self._step:  # gradients still accumulate
            return
        self._step = step
        if self.task.bad_steps >= BAD_STEPS:
            saved = (
                f"The state saved before is kept in {self.state}" if self.state.exists() else "No state was saved yet"
            )
            raise TrainingError(
                f"The loss or its gradient was not finite in {BAD_STEPS} steps in a row, up to step {step:,}. {saved}; "
                "skipped.jsonl lists the sounds. Try a lower learning rate, or trainer.precision=32-true."
            )
        stop, due = self._agreed(self._signal, time.monotonic() - self._saved_at > SAVE_SECONDS)
        last = step >= trainer.max_steps or trainer.should_stop
        # Behind the last step, too, a stop is one: there may be other phases, and other folds.
        if stop or (not last and (due or not step % self.every)):
            self._save(trainer)
        if stop:
            self.stopped = TrainingStopped(step, stop)
            trainer.should_stop = True

    def _save(self, trainer: L.Trainer) -> None:
        if all_finite(self.task.state_dict()):  # the same in all processes, whose weights are the same
            trainer.save_checkpoint(self.state)
            self._saved_at = time.monotonic()

    def _agreed(self, stop: int, due: bool) -> tuple[int, bool]:
        """What one process wants, all do."""
        if self._group is None:
            return stop, due
        flags = torch.tensor([stop, int(due)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group)
        return int(flags[0]), bool(flags[1])

"""How a training goes: metrics.csv, TensorBoard, the list of sounds left out, the display."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from torchbeats.errors import quoted
from torchbeats.files import replacing
from torchbeats.training.corpus import Failure
from torchbeats.training.folder import RunFolder
from torchbeats.training.processes import all_items, is_leader
from torchbeats.training.task import Task

_TIMED_STEPS = (2, 12)  # from the one to the other, how long is left is estimated for the first time
_WORTH_SAYING = 60.0  # seconds


class Reporter(Callback):
    """Writes metrics.csv, TensorBoard's log and the list of sounds left out, and moves the progress display.

    Args:
        task: what is trained.
        folder: of the run.
        title: of this training, for people.
        key: what tells the rows of this training from others in the same table.
        columns: figures that a row may have.
        every: steps from one row to the next.
        extra: more figures for each row.
    """

    def __init__(
        self,
        task: Task[Any],
        folder: RunFolder,
        title: str,
        key: Mapping[str, Any],
        columns: Sequence[str],
        every: int,
        extra: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self.task, self.folder, self.title, self.key, self.every = task, folder, title, dict(key), every
        self.extra = extra
        self.columns = [*key, "step", "lr", *columns, "clips_per_second", "skipped"]
        self.name = "-".join(f"{name}-{value}" if isinstance(value, int) else str(value) for name, value in key.items())
        self.file = folder.path / "metrics.csv"
        self.seen: set[str] = set()
        self.warned = False

    @property
    def state_key(self) -> str:
        """A fixed name, as saved states have it."""
        return "Report"

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on has to know."""
        self._note_failures()
        return {"seen": sorted(self.seen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.seen = set(state_dict["seen"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin, or go on, where the state is."""
        if trainer.is_global_zero:
            self._drop_rows_behind(trainer.global_step)
        total = trainer.max_steps
        self._work = self.folder.listener.work(self.title, total, "steps")
        self._advance = self._work.__enter__()
        self._advance(trainer.global_step, "")
        self._done, self._since, self._clips = trainer.global_step, time.monotonic(), 0
        self._begun, self._timed = trainer.global_step, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Report every so many steps."""
        if trainer.global_step == self._done:  # gradients still accumulate
            return
        self._done = trainer.global_step
        self._estimate(trainer.max_steps)
        if self.task.bad_batches:  # then in all processes
            self._note_bad_batches()
        if self._done % self.every and self._done != trainer.max_steps:
            self._advance(1, "")
            return
        task = self.task
        self._note_failures()
        report = {**task.report(), **self.extra()}
        elapsed, self._since = time.monotonic() - self._since, time.monotonic()
        clips, self._clips = task.clips - self._clips, task.clips
        report["clips_per_second"] = clips * trainer.world_size / elapsed
        report["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        report["skipped"] = len(self.seen)
        if trainer.is_global_zero:
            self._write(report)
            for logger in trainer.loggers:
                logger.log_metrics(report, self._done)
            if not self.warned and (sentence := task.warning_text(report)):
                self.warned = True
                self.folder.listener.warn(f"{self.title}, step {self._done}: {sentence}")
        self._advance(1, f"{task.status_text(report)}, {report['clips_per_second']:,.0f} clips/s")

    def _estimate(self, total: int) -> None:
        """Behind a few steps, tell how long the rest will take at most."""
        first, last = _TIMED_STEPS
        if self._done == self._begun + first:
            self._timed = time.monotonic()
        elif self._done == self._begun + last:
            step = (time.monotonic() - self._timed) / (last - first)
            if (left := step * (total - self._done)) > _WORTH_SAYING:
                self.folder.listener.say(
                    f"{self.title}: about {duration(left)} to go, {total - self._done:,} steps of {step:.2f} s at most."
                )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the display."""
        self._work.__exit__(None, None, None)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the display."""
        if hasattr(self, "_work"):
            self._work.__exit__(None, None, None)

    def _note_failures(self) -> None:
        failures, self.task.failures = all_items(self.task.failures), []
        for failure in failures:
            if failure.path in self.seen:
                continue
            self.seen.add(failure.path)
            if is_leader():
                self.folder.skip(failure)

    def _note_bad_batches(self) -> None:
        batches, self.task.bad_batches = all_items(self.task.bad_batches), []
        paths = sorted({path for _, paths in batches for path in paths})
        new_paths = [path for path in paths if path not in self.seen]
        self.seen.update(new_paths)
        if is_leader():
            reason = f"the loss or its gradient was not finite at step {batches[0][0]} of {self.title}"
            self.folder.list_skipped([Failure(path, reason) for path in new_paths])
            self.folder.listener.warn(
                f"{self.title}, step {batches[0][0]}: the loss or its gradient is not finite. The step is left out, "
                f"with its sounds: {quoted(paths, 3)}."
            )

    def _write(self, report: dict[str, float]) -> None:
        new = not self.file.exists()
        row = {**self.key, "step": self._done, **report}
        with self.file.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(self.columns)
            writer.writerow([_short(row.get(name, "")) for name in self.columns])

    def _drop_rows_behind(self, step: int) -> None:
        """Rows that a stopped run wrote behind its last saved state will be written again."""
        if not self.file.exists():
            return
        with self.file.open(newline="") as file:
            header, *rows = list(csv.reader(file))
        own_key, n = [str(value) for value in self.key.values()], len(self.key)
        complete = [row for row in rows if len(row) == len(header)]  # the last may be cut off
        earlier = [dict(zip(header, row, strict=True)) for row in complete if row[:n] != own_key or int(row[n]) <= step]
        with replacing(self.file) as temporary, temporary.open("w", newline="") as file:
            # An earlier version may have written fewer columns.
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(earlier)


def duration(seconds: float) -> str:
    """A length of time for people: ``50 s``, ``12 min``, ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value

"""Training by Lightning, in a folder that a stopped run goes on from: what all kinds of training share."""

from __future__ import annotations

import csv
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from torchbeats.errors import FileInUseError, SettingsError
from torchbeats.files import held, replacing
from torchbeats.training.data import Failure
from torchbeats.training.settings import Trainer
from torchbeats.training.task import Task, all_items

_LOCK = ".lock"


class Listener:
    """What a display of the run's progress is told; this one shows nothing."""

    def say(self, message: str) -> None:
        """Something good to know."""

    def warn(self, message: str) -> None:
        """Something that is wrong, though the run goes on."""

    @contextmanager
    def work(self, name: str, total: float | None, unit: str) -> Iterator[Callable[[float, str], None]]:
        """Around a piece of work; what it gives is called with how much more is done, and a remark."""
        yield lambda more, remark: None


class RunFolder:
    """Where a run keeps what it computes, how it goes, and what it left out.

    Args:
        path: of the folder.
        listener: told of the progress; only by the process that leads.
    """

    def __init__(self, path: Path, listener: Listener | None = None) -> None:
        self.path = path
        self.listener = listener if listener and leads() else Listener()

    def claim(self, about: dict[str, Any], defaults: dict[str, Any], may_change: Sequence[str]) -> None:
        """Write down what the run computes, or find that it is the same as before.

        Args:
            about: everything that decides it, nested.
            defaults: of what a run may have been begun without.
            may_change: names, with dots, of what may be another when a run goes on.

        Raises:
            SettingsError: the folder holds a run with other settings, or something else.
        """
        file = self.path / "run.yaml"
        if file.exists():
            there = _filled(yaml.safe_load(file.read_text("utf-8")), defaults)
            changed = [
                f"{name} was {_brief(before)} and is now {_brief(now)}"
                for name, before, now in _differences(there, about)
                if name not in may_change and name.split(".")[0] not in may_change
            ]
            if changed:
                raise SettingsError(
                    f"{self.path} holds a run with other settings: {'; '.join(changed)}. Give the command that began "
                    "it, or another --out."
                )
        elif self.path.exists() and any(entry.name != _LOCK for entry in self.path.iterdir()):
            raise SettingsError(f"{self.path} is not empty, and holds no run that could go on. Name another --out.")
        if leads():
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._held = held(self.path / _LOCK)
            except FileInUseError:
                raise SettingsError(f"Another run is at work in {self.path}; wait for it, or stop it.") from None
            with replacing(file) as temporary:
                temporary.write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True), "utf-8")

    def skip(self, failure: Failure) -> None:
        """Tell of a sound that is left out, and add it to the list, once."""
        line = json.dumps({"path": failure.path, "error": failure.reason}) + "\n"
        with (self.path / "skipped.jsonl").open("a+", encoding="utf-8") as file:
            file.seek(0)
            if line not in file:
                self.listener.warn(f"Skipped {failure}.")
                file.write(line)


def fit(
    task: Task,
    feed: L.LightningDataModule,
    folder: RunFolder,
    state: Path,
    t: Trainer,
    report: Report,
    *,
    leaves_out: bool,
    callbacks: Sequence[Callback] = (),
) -> tuple[L.Trainer, dict[str, Tensor]]:
    """Train, from the beginning or from the state that an earlier run left.

    Args:
        task: what is trained.
        feed: gives batches.
        folder: of the run.
        state: file of the state, which stays when all is done.
        t: settings.
        report: tells how it goes; state is saved just behind a report, when nothing is counted half.
        leaves_out: a step may leave layers out.
        callbacks: more of Lightning's.

    Returns:
        The trainer, and the task's state dict, in one piece however it was spread.
    """
    save_every = max(1, round(t.save_every / report.every)) * report.every
    with _quiet():
        trainer = L.Trainer(
            accelerator=t.accelerator,
            devices=t.devices,
            num_nodes=t.nodes,
            strategy=_strategy(t, leaves_out),
            precision=_precision(t),
            accumulate_grad_batches=t.accumulate,
            gradient_clip_val=t.clip or None,
            max_steps=task.optimiser.steps,
            max_epochs=-1,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            plugins=[_States()],
            logger=TensorBoardLogger(folder.path, name="tensorboard", version=report.name),
            log_every_n_steps=report.every,
            callbacks=[
                *callbacks,
                report,  # behind what it may tell of
                ModelCheckpoint(
                    state.parent,
                    filename=state.stem,
                    every_n_train_steps=save_every,
                    save_top_k=1,
                    monitor=None,
                    enable_version_counter=False,
                    save_on_train_epoch_end=False,
                ),
            ],
        )
        trainer.fit(task, feed, ckpt_path=state if state.exists() else None, weights_only=True)
    if trainer.interrupted or (trainer.global_step < task.optimiser.steps and not trainer.should_stop):
        raise KeyboardInterrupt
    return trainer, trainer.strategy.lightning_module_state_dict()


class _States(TorchCheckpointIO):
    """Writes states beside their place; Lightning writes them to /tmp, and from there moving may be copying."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)


class Report(Callback):
    """Writes metrics.csv, TensorBoard's log and the list of sounds left out, and moves the progress display.

    Args:
        folder: of the run.
        title: of this training, for people.
        key: what tells the rows of this training from others in the same table.
        columns: figures that a row may have.
        every: steps from one row to the next.
        remark: a few words for the display.
        complain: a sentence where a report shows that something is wrong; it is told once.
        extra: more figures for each row.
    """

    def __init__(
        self,
        folder: RunFolder,
        title: str,
        key: Mapping[str, Any],
        columns: Sequence[str],
        every: int,
        remark: Callable[[Mapping[str, float]], str],
        complain: Callable[[Mapping[str, float]], str | None] = lambda report: None,
        extra: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self.folder, self.title, self.key, self.every = folder, title, dict(key), every
        self.remark, self.complain, self.extra = remark, complain, extra
        self.columns = [*key, "step", "lr", *columns, "clips_per_second", "skipped"]
        self.name = "-".join(f"{name}-{value}" if isinstance(value, int) else str(value) for name, value in key.items())
        self.file = folder.path / "metrics.csv"
        self.seen: set[str] = set()
        self.warned = False

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on has to know."""
        return {"seen": sorted(self.seen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.seen = set(state_dict["seen"])

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Begin, or go on, where the state is."""
        if trainer.is_global_zero:
            self._drop_rows_behind(trainer.global_step)
        total = trainer.max_steps
        self._work = self.folder.listener.work(self.title, total, "steps")
        self._advance = self._work.__enter__()
        self._advance(trainer.global_step, "")
        self._done, self._since, self._clips = trainer.global_step, time.monotonic(), 0

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *_: Any) -> None:
        """Report every so many steps."""
        assert isinstance(task, Task)
        if trainer.global_step == self._done:  # gradients still accumulate
            return
        self._done = trainer.global_step
        if self._done % self.every and self._done != trainer.max_steps:
            self._advance(1, "")
            return
        self._note_failures(task)
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
            if not self.warned and (sentence := self.complain(report)):
                self.warned = True
                self.folder.listener.warn(f"{self.title}, step {self._done}: {sentence}")
        self._advance(1, f"{self.remark(report)}, {report['clips_per_second']:,.0f} clips/s")

    def on_train_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Close the display."""
        self._work.__exit__(None, None, None)

    def on_exception(self, trainer: L.Trainer, task: L.LightningModule, exception: BaseException) -> None:
        """Close the display."""
        if hasattr(self, "_work"):
            self._work.__exit__(None, None, None)

    def _note_failures(self, task: Task) -> None:
        failures, task.failures = all_items(task.failures), []
        for failure in failures:
            if failure.path in self.seen:
                continue
            self.seen.add(failure.path)
            if leads():
                self.folder.skip(failure)

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
        mine, n = [str(value) for value in self.key.values()], len(self.key)
        kept = [row for row in rows if len(row) == len(self.columns) and (row[:n] != mine or int(row[n]) <= step)]
        with replacing(self.file) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *kept])


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _strategy(t: Trainer, leaves_out: bool) -> Any:
    """How processes work together; ours differs from Lightning's in leaving codebooks to their own arithmetic.

    Args:
        t: settings.
        leaves_out: a step may leave layers out.
    """
    several = t.nodes > 1 or (isinstance(t.devices, int) and t.devices > 1)
    if t.devices in ("auto", "-1", -1) and t.accelerator in ("auto", "gpu", "cuda"):
        several = several or torch.cuda.device_count() > 1
    if t.strategy == "ddp" or (t.strategy == "auto" and several):
        return DDPStrategy(broadcast_buffers=False, find_unused_parameters=leaves_out)
    return t.strategy


def _precision(t: Trainer) -> Any:
    if t.precision != "auto":
        return t.precision
    gpu = t.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true"


def workers(wanted: int, processes: int) -> int:
    """How many processes are to decode for each of those that train; -1 stands for as many as there are cores for."""
    spare = (os.cpu_count() or 1) // processes - 1
    return wanted if wanted >= 0 else max(1, min(8, spare))


def leads() -> bool:
    """Whether this process is the one that writes; the others are started by it, and find what it wrote."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


def _filled(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, with defaults for what they lack."""
    nested = {
        name: _filled(values.get(name) or {}, default) if name != "config" else values.get(name, default)
        for name, default in defaults.items()
        if isinstance(default, dict)
    }
    return {**defaults, **values, **nested}


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in {**before, **now}:
        a, b = before.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            yield prefix + name, a, b


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning speaks of its own matters; ours are told by the listener."""
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

"""Iterative pre-training: labels → model → tokenizer → model …, each phase begun, continued or skipped.

    RUN/run.yaml                          what the run computes
    RUN/corpus.parquet                    the sounds, with their lengths
    RUN/statistics.json                   mean and deviation of their log-mel features
    RUN/metrics.csv, RUN/tensorboard/     how it goes
    RUN/skipped.jsonl                     sounds that could not be read
    RUN/iteration-1/tokenizer.safetensors
    RUN/iteration-1/model.safetensors     and so on for each iteration
    RUN/model.safetensors                 the last iteration's

A phase is done when its ``.safetensors`` is there. Until then its state lies beside it as ``.ckpt``.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy

from torchbeats import checkpoint
from torchbeats.config import RandomProjectionConfig
from torchbeats.files import replacing
from torchbeats.loading import load
from torchbeats.model import BEATs
from torchbeats.patches import SAMPLE_RATE, PatchGrid
from torchbeats.tokenizers import RandomProjectionTokenizer, Tokenizers
from torchbeats.training.data import Batch, Batches, Corpus, Crops, Failure, collate, fbank_statistics, index, loader
from torchbeats.training.distill import Distillation
from torchbeats.training.pretrain import Pretraining
from torchbeats.training.settings import Settings, SettingsError, Trainer
from torchbeats.training.task import Task, all_items, collapse

# Of run.yaml, what may change when a run goes on: the machine, and how far it is to go.
_MAY_CHANGE = ("trainer", "iterations")
_COLUMNS = [
    *("iteration", "phase", "step", "lr", "loss", "distance", "commitment", "accuracy", "majority", "codes_used"),
    *("perplexity", "clips_per_second", "skipped"),
]


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


class Run:
    """One run of iterative pre-training.

    Args:
        folder: of the run; one that was stopped goes on where it was.
        inputs: sounds: what `torchbeats.training.data.index` takes.
        settings: what to do.
        teacher: a model to distil the first iteration's tokenizer from, in place of random projection; a file or name.
        listener: told of the progress.

    Raises:
        SettingsError: the folder holds a run with other settings.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        inputs: Sequence[str],
        settings: Settings,
        teacher: str | None = None,
        listener: Listener | None = None,
    ) -> None:
        self.folder, self.inputs, self.settings, self.teacher = Path(folder), list(inputs), settings, teacher
        self.listener = listener if listener and _leads() else Listener()
        self._claim()

    def train(self) -> Path:
        """Do all that is not done yet; returns the final model's file."""
        self.corpus = self._corpus()
        self.fbank = self._statistics()
        for iteration in range(1, self.settings.iterations + 1):
            self._tokenizer(iteration)
            self._model(iteration)
        final = self.folder / "model.safetensors"
        last = self._file(self.settings.iterations, "model")
        if _leads():
            with replacing(final) as temporary:
                shutil.copyfile(last, temporary)
        return final

    # --- before training ---

    def _claim(self) -> None:
        """Write down what the run computes, or find that it is the same as before."""
        about = {"inputs": self.inputs, "teacher": self.teacher, **self.settings.to_dict()}
        file = self.folder / "run.yaml"
        if file.exists():
            # What a setting did that the run was begun without, its default does.
            there = _filled(yaml.safe_load(file.read_text("utf-8")), Settings(size=self.settings.size).to_dict())
            changed = [
                f"{name} was {_brief(before)} and is now {_brief(now)}"
                for name, before, now in _differences(there, about)
                if name.split(".")[0] not in _MAY_CHANGE and name != "data.workers"
            ]
            if changed:
                raise SettingsError(
                    f"{self.folder} holds a run with other settings: {'; '.join(changed)}. Give the command that began "
                    "it, or another --out."
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise SettingsError(f"{self.folder} is not empty, and holds no run that could go on. Name another --out.")
        if _leads():
            with replacing(file) as temporary:
                temporary.write_text(yaml.safe_dump(about, sort_keys=False), "utf-8")

    def _corpus(self) -> Corpus:
        file = self.folder / "corpus.parquet"
        if not file.exists():
            with self.listener.work("Looking at the sounds", None, "files") as advance:

                def on_found(failure: Failure | None) -> None:
                    advance(1, "")
                    if failure:
                        self._skip(failure)

                index(self.inputs, on_found=on_found).save(file)
        corpus = Corpus.load(file)
        known = f", {corpus.hours:,.2f} h" if corpus.hours else ""
        self.listener.say(f"Corpus: {len(corpus):,} sounds{known}.")
        return corpus

    def _statistics(self) -> dict[str, float]:
        """The corpus's own ``fbank_mean`` and ``fbank_std``."""
        file = self.folder / "statistics.json"
        if not file.exists():
            data = self.settings.data
            with self.listener.work("Measuring loudness", data.statistics_seconds, "s of sound") as advance:

                def on_batch(batch: Batch) -> None:
                    advance(float(batch.samples.sum()) / SAMPLE_RATE, "")

                mean, std = fbank_statistics(self.corpus, data, self.settings.seed, on_batch)
            with replacing(file) as temporary:
                temporary.write_text(json.dumps({"fbank_mean": round(mean, 5), "fbank_std": round(std, 5)}), "utf-8")
        statistics: dict[str, float] = json.loads(file.read_text("utf-8"))
        return statistics

    # --- the phases ---

    def _file(self, iteration: int, what: str) -> Path:
        return self.folder / f"iteration-{iteration}" / f"{what}.safetensors"

    def _tokenizer(self, iteration: int) -> None:
        """The iteration's labels: by random projection first, then distilled from the model before."""
        file = self._file(iteration, "tokenizer")
        if file.exists():
            return
        settings = self.settings
        if iteration == 1 and self.teacher is None:
            if _leads():
                cfg = RandomProjectionConfig(vars(settings.tokens), **self.fbank, input_patch_size=self._patch_size())
                checkpoint.save(RandomProjectionTokenizer(cfg, seed=settings.seed), file)
            return
        teacher = load(self.teacher if iteration == 1 else self._file(iteration - 1, "model"))
        if not isinstance(teacher, BEATs):
            raise SettingsError(f"The teacher {self.teacher} is a tokenizer; a model is needed.")
        torch.manual_seed(self._seed(iteration, 0))
        tokenizer = Tokenizers(settings.tokenizers_config(**self.fbank), freeze=False)
        start = settings.distillation.start
        if start != "fresh" and not _copy_backbone(teacher, tokenizer) and start == "teacher":
            raise SettingsError("distillation.start=teacher needs a teacher of the tokenizer's own size.")
        task = Distillation(tokenizer, teacher, settings.distillation, self._seed(iteration, 1))
        self._fit(task, tokenizer, iteration, "tokenizer", mask=0.0)

    def _model(self, iteration: int) -> None:
        """The iteration's model, from fresh weights."""
        file = self._file(iteration, "model")
        if file.exists():
            return
        settings = self.settings
        tokenizer = load(self._file(iteration, "tokenizer"))
        torch.manual_seed(self._seed(iteration, 2))
        model = BEATs(settings.beats_config(**self.fbank), freeze=False)
        task = Pretraining(model, tokenizer, settings.model, self._seed(iteration, 3))
        m = settings.model
        self._fit(task, model, iteration, "model", mask=m.mask, mel_shift=m.mel_shift, equaliser_db=m.equaliser_db)

    def _patch_size(self) -> int:
        return self.settings.beats_config().input_patch_size

    def _seed(self, iteration: int, what: int) -> int:
        return self.settings.seed * 1_000 + iteration * 10 + what

    def _fit(self, task: Task, product: BEATs | Tokenizers, iteration: int, phase: str, **crops: Any) -> None:
        """Train, from the beginning or from where an earlier run was stopped, and save what comes of it."""
        file = self._file(iteration, phase)
        state = file.with_suffix(".ckpt")
        t = self.settings.trainer
        log_every = min(t.log_every, task.optimiser.steps)
        # State is saved just behind a report, when nothing is counted half.
        save_every = max(1, round(t.save_every / log_every)) * log_every
        report = _Report(self, iteration, phase, log_every)
        feed = _Feed(self, task, crops, self._seed(iteration, 4))
        with _quiet():
            trainer = L.Trainer(
                accelerator=t.accelerator,
                devices=t.devices,
                num_nodes=t.nodes,
                strategy=_strategy(t, leaves_out=product.cfg.encoder_layerdrop > 0),
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
                logger=TensorBoardLogger(self.folder, name="tensorboard", version=f"iteration-{iteration}-{phase}"),
                log_every_n_steps=log_every,
                callbacks=[
                    report,
                    ModelCheckpoint(
                        file.parent,
                        filename=phase,
                        every_n_train_steps=save_every,
                        save_top_k=1,
                        monitor=None,
                        enable_version_counter=False,
                        save_on_train_epoch_end=False,
                    ),
                ],
            )
            trainer.fit(task, feed, ckpt_path=state if state.exists() else None, weights_only=True)
        if trainer.global_step < task.optimiser.steps:
            raise KeyboardInterrupt
        trained = trainer.strategy.lightning_module_state_dict()  # in one piece, however it was spread
        if trainer.is_global_zero:
            prefix = next(name for name, module in task.named_modules() if module is product) + "."
            weights = {name.removeprefix(prefix): value for name, value in trained.items() if name.startswith(prefix)}
            whole: BEATs | Tokenizers
            whole = Tokenizers(product.cfg) if isinstance(product, Tokenizers) else BEATs(product.cfg)
            whole.load_state_dict(weights)
            checkpoint.save(whole, file)
            state.unlink(missing_ok=True)
        trainer.strategy.barrier()

    def _skip(self, failure: Failure) -> None:
        """Tell of a sound that is left out, and add it to the list, once."""
        line = json.dumps({"path": failure.path, "error": failure.reason}) + "\n"
        with (self.folder / "skipped.jsonl").open("a+", encoding="utf-8") as file:
            file.seek(0)
            if line not in file:
                self.listener.warn(f"Skipped {failure}.")
                file.write(line)


class _Feed(L.LightningDataModule):
    """Batches from the one that the training has come to."""

    def __init__(self, run: Run, task: Task, crops: dict[str, Any], seed: int) -> None:
        super().__init__()
        self.run, self.task, self.seed = run, task, seed
        self.grid = PatchGrid(run.settings.beats_config().input_patch_size)
        self.crops = Crops(run.corpus, run.settings.data, self.grid, **crops)

    def _batches(self, first: int, rank: int, world: int) -> Batches:
        return Batches(self.run.corpus, self.run.settings.data, self.seed, self.grid, first, rank, world)

    def train_dataloader(self) -> Any:
        trainer = self.trainer
        assert trainer is not None
        first = trainer.global_step * self.run.settings.trainer.accumulate
        if first == 0 and isinstance(self.task, Distillation):
            batches = self._batches(0, 0, 1)  # every process the same, so that all get the same codes
            draws = islice(batches, self.task.settings.kmeans_batches)
            made = (collate((self.crops[draw] for draw in batch), self.grid) for batch in draws)
            self.task.begin(batch.to(self.task.device) for batch in made)
        return loader(
            self.crops,
            self._batches(first, trainer.global_rank, trainer.world_size),
            _workers(self.run.settings.data.workers, trainer.num_devices),
        )


class _States(TorchCheckpointIO):
    """Writes states beside their place; Lightning writes them to /tmp, and from there moving may be copying."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)


class _Report(Callback):
    """Writes metrics.csv, TensorBoard's log and the list of sounds left out, and moves the progress display."""

    def __init__(self, run: Run, iteration: int, phase: str, every: int) -> None:
        self.run, self.iteration, self.phase, self.every = run, iteration, phase, every
        self.file = run.folder / "metrics.csv"
        self.seen: set[str] = set()
        self.warned = False

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on has to know."""
        return {"seen": sorted(self.seen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.seen = set(state_dict["seen"])

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._drop_rows_behind(trainer.global_step)
        total = trainer.max_steps
        self._work = self.run.listener.work(f"Iteration {self.iteration}: {self.phase}", total, "steps")
        self._advance = self._work.__enter__()
        self._advance(trainer.global_step, "")
        self._done, self._since, self._clips = trainer.global_step, time.monotonic(), 0

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *_: Any) -> None:
        assert isinstance(task, Task)
        if trainer.global_step == self._done:  # gradients still accumulate
            return
        self._done = trainer.global_step
        if self._done % self.every and self._done != trainer.max_steps:
            self._advance(1, "")
            return
        self._note_failures(task)
        report = task.report()
        elapsed, self._since = time.monotonic() - self._since, time.monotonic()
        clips, self._clips = task.clips - self._clips, task.clips
        report["clips_per_second"] = clips * trainer.world_size / elapsed
        report["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        report["skipped"] = len(self.seen)
        if trainer.is_global_zero:
            self._write(report)
            for logger in trainer.loggers:
                logger.log_metrics(report, self._done)
            labels = task.statistics.counts.size(1)
            if not self.warned and (sentence := collapse(report, labels)):
                self.warned = True
                self.run.listener.warn(f"Iteration {self.iteration}, {self.phase}, step {self._done}: {sentence}")
        remark = f"loss {report['loss']:.3f}"
        if self.phase == "model":
            remark += f", accuracy {report['accuracy']:.1%} (commonest label {report['majority']:.1%})"
        self._advance(1, f"{remark}, {report['perplexity']:.0f} codes, {report['clips_per_second']:,.0f} clips/s")

    def on_train_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._work.__exit__(None, None, None)

    def on_exception(self, trainer: L.Trainer, task: L.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "_work"):
            self._work.__exit__(None, None, None)

    def _note_failures(self, task: Task) -> None:
        failures, task.failures = all_items(task.failures), []
        for failure in failures:
            if failure.path in self.seen:
                continue
            self.seen.add(failure.path)
            if _leads():
                self.run._skip(failure)

    def _write(self, report: dict[str, float]) -> None:
        new = not self.file.exists()
        row = {"iteration": self.iteration, "phase": self.phase, "step": self._done, **report}
        with self.file.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(_COLUMNS)
            writer.writerow([_short(row.get(name, "")) for name in _COLUMNS])

    def _drop_rows_behind(self, step: int) -> None:
        """Rows that a stopped run wrote behind its last saved state will be written again."""
        if not self.file.exists():
            return
        with self.file.open(newline="") as file:
            header, *rows = list(csv.reader(file))
        mine = [str(self.iteration), self.phase]
        kept = [row for row in rows if len(row) == len(_COLUMNS) and (row[:2] != mine or int(row[2]) <= step)]
        with replacing(self.file) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *kept])


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _copy_backbone(teacher: BEATs, tokenizer: Tokenizers) -> bool:
    """Let a tokenizer start with the weights of a model of the same size; returns whether it is."""
    theirs, ours = teacher.state_dict(), tokenizer.state_dict()
    backbone = {name: tensor for name, tensor in theirs.items() if not name.startswith("predictor.")}
    if any(name not in ours or ours[name].shape != tensor.shape for name, tensor in backbone.items()):
        return False
    tokenizer.load_state_dict({**ours, **backbone})
    return True


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


def _workers(wanted: int, processes: int) -> int:
    spare = (os.cpu_count() or 1) // processes - 1
    return wanted if wanted >= 0 else max(1, min(8, spare))


def _leads() -> bool:
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

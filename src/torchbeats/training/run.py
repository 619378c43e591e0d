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

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch

from torchbeats.config import RandomProjectionConfig
from torchbeats.errors import SettingsError
from torchbeats.files import replacing
from torchbeats.loading import load
from torchbeats.model import BEATs
from torchbeats.patches import SAMPLE_RATE, PatchGrid
from torchbeats.protocol import TOKENS
from torchbeats.tokenizers import RandomProjectionTokenizer, Tokenizers
from torchbeats.tokenizers.tokens import AcousticTokenizer
from torchbeats.training.data import Batch, Batches, Corpus, Crops, Failure, collate, fbank_statistics, index, loader
from torchbeats.training.distillation import Distillation
from torchbeats.training.loop import Listener, Report, RunFolder, fit, leads, workers
from torchbeats.training.pretraining import Pretraining
from torchbeats.training.settings import Settings
from torchbeats.training.task import Task, collapse
from torchbeats.weights import checkpoint

# Of run.yaml, what may change when a run goes on: the machine, and how far it is to go.
_MAY_CHANGE = ("trainer", "iterations", "data.workers")
_COLUMNS = ("loss", "distance", "commitment", "accuracy", "majority", "codes_used", "perplexity")


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
        self.place = RunFolder(self.folder, listener)
        self.listener = self.place.listener
        about = {"inputs": self.inputs, "teacher": self.teacher, **settings.to_dict()}
        self.place.claim(about, Settings(size=settings.size).to_dict(), _MAY_CHANGE)

    def train(self) -> Path:
        """Do all that is not done yet; returns the final model's file."""
        self.corpus = self._corpus()
        self.fbank = self._statistics()
        for iteration in range(1, self.settings.iterations + 1):
            self._tokenizer(iteration)
            self._model(iteration)
        final = self.folder / "model.safetensors"
        last = self._file(self.settings.iterations, "model")
        if leads():
            with replacing(final) as temporary:
                shutil.copyfile(last, temporary)
        return final

    # --- before training ---

    def _corpus(self) -> Corpus:
        file = self.folder / "corpus.parquet"
        if not file.exists():
            with self.listener.work("Looking at the sounds", None, "files") as advance:

                def on_found(failure: Failure | None) -> None:
                    advance(1, "")
                    if failure:
                        self.place.skip(failure)

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
            if leads():
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
        tokenizer = load(self._file(iteration, "tokenizer"), engine="torch")
        tokenizer.check(TOKENS)
        torch.manual_seed(self._seed(iteration, 2))
        model = BEATs(settings.beats_config(**self.fbank), freeze=False)
        task = Pretraining(model, cast("AcousticTokenizer", tokenizer), settings.model, self._seed(iteration, 3))
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
        report = Report(
            self.place,
            f"Iteration {iteration}, {phase}",
            {"iteration": iteration, "phase": phase},
            _COLUMNS,
            min(self.settings.trainer.log_every, task.optimiser.steps),
            _remark,
            lambda seen: collapse(seen, self.settings.tokens.quant_n),
        )
        feed = _Feed(self, task, crops, self._seed(iteration, 4))
        leaves_out = product.cfg.encoder_layerdrop > 0
        trainer, trained = fit(task, feed, self.place, state, self.settings.trainer, report, leaves_out=leaves_out)
        if trainer.is_global_zero:
            prefix = next(name for name, module in task.named_modules() if module is product) + "."
            weights = {name.removeprefix(prefix): value for name, value in trained.items() if name.startswith(prefix)}
            whole: BEATs | Tokenizers
            whole = Tokenizers(product.cfg) if isinstance(product, Tokenizers) else BEATs(product.cfg)
            whole.load_state_dict(weights)
            checkpoint.save(whole, file)
            state.unlink(missing_ok=True)
        trainer.strategy.barrier()


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
            workers(self.run.settings.data.workers, trainer.num_devices),
        )


def _remark(report: Mapping[str, float]) -> str:
    said = f"loss {report['loss']:.3f}"
    if "accuracy" in report:
        said += f", accuracy {report['accuracy']:.1%} (commonest label {report['majority']:.1%})"
    return f"{said}, {report['perplexity']:.0f} codes"


def _copy_backbone(teacher: BEATs, tokenizer: Tokenizers) -> bool:
    """Let a tokenizer start with the weights of a model of the same size; returns whether it is."""
    theirs, ours = teacher.state_dict(), tokenizer.state_dict()
    backbone = {name: tensor for name, tensor in theirs.items() if not name.startswith("predictor.")}
    if any(name not in ours or ours[name].shape != tensor.shape for name, tensor in backbone.items()):
        return False
    tokenizer.load_state_dict({**ours, **backbone})
    return True

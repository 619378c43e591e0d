"""Iterative pre-training: labels → model → tokenizer → model …, each phase begun, continued or skipped.

    RUN/run.yaml                          what the run computes
    RUN/corpus.parquet                    the sounds, with their lengths
    RUN/statistics.json                   mean and deviation of their log-mel features
    RUN/metrics.csv, RUN/tensorboard/     how it goes
    RUN/skipped.jsonl                     sounds that could not be read
    RUN/iteration-1/tokenizer.safetensors where there are labels
    RUN/iteration-1/model.safetensors     and so on for each iteration
    RUN/model.safetensors                 the last iteration's

A phase is done when its ``.safetensors`` is there. Until then its state lies beside it as ``.ckpt``.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

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
from torchbeats.training.batches import Batches
from torchbeats.training.corpus import Corpus, Failure, index
from torchbeats.training.crops import Batch, Collate, Crops
from torchbeats.training.distillation import Distillation
from torchbeats.training.embeddings import COLUMNS
from torchbeats.training.feed import Feed
from torchbeats.training.folder import RunFolder
from torchbeats.training.listener import Listener
from torchbeats.training.loop import fit
from torchbeats.training.pretraining import MaskedModelling, Pretraining
from torchbeats.training.processes import is_leader, join_processes, leader_finds, leader_first, wait_for
from torchbeats.training.regression import Regression
from torchbeats.training.reporter import Reporter
from torchbeats.training.settings import Settings
from torchbeats.training.statistics import fbank_statistics
from torchbeats.training.task import Task
from torchbeats.weights import checkpoint

# Of run.yaml, what may change when a run goes on: the machine, and how far it is to go.
_MAY_CHANGE = ("trainer", "iterations", "data.workers")
_OF_LABELS = ("accuracy", "majority", "codes_used", "perplexity")
_COLUMNS = ("loss", "distance", "commitment", "utterance", *_OF_LABELS, "target_variance", *COLUMNS)


class Run:
    """One run of iterative pre-training.

    Args:
        folder: of the run; one that was stopped goes on where it was.
        inputs: sounds: what `torchbeats.training.corpus.index` takes.
        settings: what to do.
        teacher: a model to distil the first iteration's tokenizer from, in place of random projection; a file or name.
        listener: told of the progress.

    Raises:
        SettingsError: the folder holds a run with other settings; or a teacher is given for labels that are not made.
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
        if teacher is not None and self._without_labels:
            raise SettingsError(
                f"The teacher {teacher} is there to distil a tokenizer from, and with model.targets=teacher there is "
                "none; leave it out, or set model.targets=codes."
            )
        self.grid = PatchGrid(settings.beats_config().input_patch_size)
        join_processes(settings.trainer.accelerator)
        self.run_folder = RunFolder(self.folder, listener)
        self.listener = self.run_folder.listener
        about = {"inputs": self.inputs, "teacher": self.teacher, **settings.to_dict()}
        self.run_folder.claim(about, Settings(size=settings.size).to_dict(), _MAY_CHANGE)

    def train(self) -> Path:
        """Do all that is not done yet; returns the final model's file."""
        self.corpus = self._corpus()
        self.fbank = self._statistics()
        for iteration in range(1, self.settings.iterations + 1):
            if not self._without_labels:
                self._tokenizer(iteration)
            self._model(iteration)
        final = self.folder / "model.safetensors"
        last = self._file(self.settings.iterations, "model")
        if is_leader():
            with replacing(final) as temporary:
                shutil.copyfile(last, temporary)
        return final

    @property
    def _without_labels(self) -> bool:
        return self.settings.model.targets == "teacher"

    # --- before training ---

    def _corpus(self) -> Corpus:
        file = self.folder / "corpus.parquet"
        if not leader_finds(file):
            leader_first(lambda: self._index(file))
        wait_for(file)
        corpus = Corpus.load(file)
        hours = f", {corpus.hours:,.2f} h" if corpus.hours else ""
        self.listener.say(f"Corpus: {len(corpus):,} sounds{hours}.")
        return corpus

    def _index(self, file: Path) -> None:
        with self.listener.work("Looking at the sounds", None, "files") as advance:

            def on_file(failure: Failure | None) -> None:
                advance(1, "")
                if failure:
                    self.run_folder.skip(failure)

            index(self.inputs, on_file=on_file).save(file)

    def _statistics(self) -> dict[str, float]:
        """The corpus's own ``fbank_mean`` and ``fbank_std``."""
        file = self.folder / "statistics.json"
        if not leader_finds(file):
            leader_first(lambda: self._measure(file))
        wait_for(file)
        statistics: dict[str, float] = json.loads(file.read_text("utf-8"))
        if not all(isinstance(value, float) and math.isfinite(value) for value in statistics.values()):
            raise SettingsError(f"{file} holds {statistics}, and not finite numbers; delete it, and it is made again.")
        return statistics

    def _measure(self, file: Path) -> None:
        data = self.settings.data
        there_is = float(self.corpus.seconds.sum())  # not a number where that of some is not known
        total = data.statistics_seconds if math.isnan(there_is) else min(data.statistics_seconds, there_is)
        with self.listener.work("Measuring loudness", total, "s of sound") as advance:

            def on_batch(batch: Batch) -> None:
                advance(float(batch.samples.sum()) / SAMPLE_RATE, "")

            mean, std = fbank_statistics(self.corpus, data, self.settings.seed, on_batch)
            advance(total, "")  # crops leave the ends of sounds out
        with replacing(file) as temporary:
            temporary.write_text(json.dumps({"fbank_mean": round(mean, 5), "fbank_std": round(std, 5)}), "utf-8")

    # --- the phases ---

    def _file(self, iteration: int, kind: str) -> Path:
        return self.folder / f"iteration-{iteration}" / f"{kind}.safetensors"

    def _tokenizer(self, iteration: int) -> None:
        """The iteration's labels: by random projection first, then distilled from the model before."""
        file = self._file(iteration, "tokenizer")
        if leader_finds(file):
            wait_for(file)
            return
        settings = self.settings
        if iteration == 1 and self.teacher is None:
            leader_first(lambda: self._random_projection(file))
            wait_for(file)
            return
        teacher = load(self.teacher if iteration == 1 else self._file(iteration - 1, "model"), expect=BEATs)
        torch.manual_seed(self._seed(iteration, 0))
        tokenizer = Tokenizers(settings.tokenizers_config(**self.fbank), freeze=False)
        start = settings.distillation.start
        if start != "fresh" and not _copy_backbone(teacher, tokenizer) and start == "teacher":
            raise SettingsError("distillation.start=teacher needs a teacher of the tokenizer's own size.")
        task = Distillation(tokenizer, teacher, settings.distillation, self._seed(iteration, 1))
        self._fit(task, iteration, "tokenizer", self._crops())

    def _random_projection(self, file: Path) -> None:
        cfg = RandomProjectionConfig(vars(self.settings.tokens), **self.fbank, input_patch_size=self.grid.patch_size)
        checkpoint.save(RandomProjectionTokenizer(cfg, seed=self.settings.seed), file)

    def _model(self, iteration: int) -> None:
        """The iteration's model, from fresh weights."""
        file = self._file(iteration, "model")
        if leader_finds(file):
            wait_for(file)
            return
        settings = self.settings
        labels = None if self._without_labels else load(self._file(iteration, "tokenizer"), engine="torch")
        torch.manual_seed(self._seed(iteration, 2))
        model = BEATs(settings.beats_config(**self.fbank), freeze=False)
        task: MaskedModelling
        if labels is None:
            task = Regression(model, settings.model, self._seed(iteration, 3))
        else:
            labels.check(TOKENS)
            task = Pretraining(model, cast("AcousticTokenizer", labels), settings.model, self._seed(iteration, 3))
        m = settings.model
        crops = self._crops(
            mask=m.mask,
            mask_block=m.mask_block,
            masks=m.masks,
            mix=m.mix,
            mel_shift=m.mel_shift,
            equaliser_db=m.equaliser_db,
        )
        self._fit(task, iteration, "model", crops)

    def _crops(self, **changes: Any) -> Crops:
        return Crops(self.corpus, self.settings.data, self.grid, **changes)

    def _seed(self, iteration: int, purpose: int) -> int:
        return self.settings.seed * 1_000 + iteration * 10 + purpose

    def _fit(self, task: Task[Batch], iteration: int, phase: str, crops: Crops) -> None:
        """Train, from the beginning or from where an earlier run was stopped, and save what comes of it."""
        file = self._file(iteration, phase)
        state = file.with_suffix(".ckpt")
        settings = self.settings
        reporter = Reporter(
            task,
            self.run_folder,
            f"Iteration {iteration}, {phase}",
            {"iteration": iteration, "phase": phase},
            _COLUMNS,
            min(settings.trainer.log_every, task.optimiser.steps),
        )

        def batches(first: int, rank: int, world: int) -> Batches:
            return Batches(self.corpus, settings.data, self._seed(iteration, 4), self.grid, first, rank, world)

        feed = Feed(
            task,
            batches,
            crops,
            Collate(self.grid),
            workers=settings.data.workers,
            accumulate=settings.trainer.accumulate,
        )
        trainer, weights = fit(task, feed, self.run_folder, state, settings.trainer, reporter)
        if trainer.is_global_zero:
            checkpoint.save(task.finished(weights), file)
            state.unlink(missing_ok=True)
        trainer.strategy.barrier()
        wait_for(file)


def _copy_backbone(teacher: BEATs, tokenizer: Tokenizers) -> bool:
    """Let a tokenizer start with the weights of a model of the same size; returns whether it is."""
    teacher_state, tokenizer_state = teacher.state_dict(), tokenizer.state_dict()
    backbone = {name: tensor for name, tensor in teacher_state.items() if not name.startswith("predictor.")}
    if any(
        name not in tokenizer_state or tokenizer_state[name].shape != tensor.shape for name, tensor in backbone.items()
    ):
        return False
    tokenizer.load_state_dict({**tokenizer_state, **backbone})
    return True

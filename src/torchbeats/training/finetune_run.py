"""Fine-tuning: labelled sounds and a model → a model with labels (BEATs, section 4.2).

RUN/run.yaml, metrics.csv, skipped.jsonl, tensorboard/     as in pre-training
RUN/model.safetensors                                      the result, which carries its labels
RUN/validation.json                                        what it makes of the sounds that were held out
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from torchbeats.data.labelled import Labelled
from torchbeats.errors import InputError, quoted
from torchbeats.extras import require
from torchbeats.model import BEATs
from torchbeats.training.batches import Batches
from torchbeats.training.embeddings import COLUMNS
from torchbeats.training.examples import (
    Collate,
    LabelledBatch,
    LabelledCorpus,
    LabelledCrops,
    as_data,
    class_weights,
)
from torchbeats.training.feed import Feed
from torchbeats.training.finetuning import Finetuning, keeps_head, with_head
from torchbeats.training.folder import RunFolder
from torchbeats.training.linear_head import LinearHead
from torchbeats.training.listener import Listener
from torchbeats.training.loop import fit
from torchbeats.training.processes import join_processes, leader_finds, wait_for
from torchbeats.training.reporter import Reporter
from torchbeats.training.settings import FinetuneSettings, TuningSettings
from torchbeats.training.validation import Validate
from torchbeats.training.work import work_of
from torchbeats.weights import checkpoint

MAY_CHANGE = ("trainer", "data.workers")
_COLUMNS = ("loss", "train_accuracy", "score", "accuracy", "mAP", "macro_f1", *COLUMNS)


def defaults_of_older_runs() -> dict[str, Any]:
    """The settings of runs that say nothing of them, as those which began before a setting was there."""
    return FinetuneSettings(model=TuningSettings(head_first=False)).to_dict()


class Finetune:
    """One fine-tuning.

    Args:
        folder: of the run; one that was stopped goes on where it was.
        model: to begin with.
        labelled: examples to train on.
        held_out: examples to validate on; None to train without.
        settings: what to do.
        about: what else decides the result, for run.yaml.
        listener: told of the progress.

    Raises:
        SettingsError: the folder holds a run with other settings.
        InputError: there are fewer than two classes.
    """

    def __init__(
        self,
        folder: Path,
        model: BEATs,
        labelled: Labelled,
        held_out: Labelled | None,
        settings: FinetuneSettings,
        about: dict[str, Any],
        listener: Listener | None = None,
    ) -> None:
        if len(labelled.classes) < 2 and labelled.problem_type == "single_label":
            raise InputError(f"There must be two classes or more; all sounds are {labelled.classes[0]!r}.")
        self.folder, self.labelled, self.held_out, self.settings = folder, labelled, held_out, settings
        join_processes(settings.trainer.accelerator)
        self.run_folder = RunFolder(folder, listener)
        held_out_examples = [] if held_out is None else held_out.examples
        count = len(labelled.examples)
        sounds = work_of(
            [*labelled.examples, *held_out_examples], {"held out": range(count, count + len(held_out_examples))}
        )
        about = {**about, "sounds": sounds, "classes": labelled.classes, "problem_type": labelled.problem_type}
        about |= settings.to_dict()
        self.run_folder.claim(about, defaults_of_older_runs(), MAY_CHANGE)
        if without_examples := [name for name, count in labelled.counts().items() if not count]:
            self.run_folder.listener.warn(
                f"There is nothing to train on for {quoted(without_examples)}; they will not be known."
            )
        self.fits_head = settings.model.head_first and not keeps_head(model, labelled.classes, settings.model.pool)
        if self.fits_head:
            require("sklearn", "train")
        torch.manual_seed(settings.seed)
        self.model = with_head(model, labelled.classes, labelled.problem_type, settings.model)
        self.corpus = LabelledCorpus(labelled)

    def train(self) -> Path:
        """Do what is not done yet; returns the result's file."""
        final = self.folder / "model.safetensors"
        if leader_finds(final):
            return final
        settings, t = self.settings, self.settings.trainer
        epoch = max(1, math.ceil(self._batches_an_epoch() / t.accumulate))
        steps = max(1, round(settings.model.epochs * epoch))
        task = Finetuning(self.model, settings.model, settings.augment, steps, settings.seed)
        state, best = self.folder / "state.ckpt", self.folder / "best.safetensors"
        head = LinearHead(task, self.labelled, settings, self.run_folder.listener) if self.fits_head else None
        validate = None
        if self.held_out is not None:
            validate = Validate(task.tuned, self.held_out, settings, epoch, self.run_folder, best, head)
        reporter = Reporter(
            task,
            self.run_folder,
            "Fine-tuning",
            {"phase": "finetune"},
            _COLUMNS,
            min(t.log_every, epoch),
            extra=lambda: {} if validate is None else validate.latest,
        )
        callbacks = [callback for callback in (head, validate) if callback is not None]
        trainer, weights = fit(task, self._feed(task), self.run_folder, state, t, reporter, callbacks)
        if trainer.is_global_zero:
            if validate is not None and validate.kept_linear_head:
                kept = "Fine-tuning did not improve on the linear head; the linear head is kept."
                self.run_folder.listener.note(kept)
            if best.exists():
                best.replace(final)
            else:
                checkpoint.save(task.finished(weights), final)
            state.unlink(missing_ok=True)
        trainer.strategy.barrier()
        wait_for(final)
        return final

    def _batches(self, first: int = 0, rank: int = 0, world: int = 1) -> Batches:
        settings, grid = self.settings, self.model.grid
        balance = settings.data.balance
        weights = class_weights(self.corpus.targets, balance) if balance else None
        data = as_data(settings.data)
        return Batches(self.corpus, data, settings.seed, grid, first, rank, world, weights=weights, fill=False)

    def _batches_an_epoch(self) -> int:
        """How many batches go through all sounds once."""
        return sum(1 for _ in self._batches().pass_once())

    def _feed(self, task: Finetuning) -> Feed[LabelledBatch]:
        return Feed(
            task,
            self._batches,
            LabelledCrops(self.corpus, self.settings.augment),
            Collate(self.model.grid, len(self.labelled.classes)),
            workers=self.settings.data.workers,
            accumulate=self.settings.trainer.accumulate,
        )

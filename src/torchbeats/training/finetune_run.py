"""Fine-tuning: labelled sounds and a model → a model with labels (BEATs, section 4.2).

RUN/run.yaml, metrics.csv, skipped.jsonl, tensorboard/     as in pre-training
RUN/model.safetensors                                      the result, which carries its labels
RUN/validation.json                                        what it makes of the sounds that were held out
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch

from torchbeats.data.labelled import Labelled
from torchbeats.errors import InputError, SettingsError, quoted
from torchbeats.extras import require
from torchbeats.files import write_json
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
from torchbeats.training.linear_head import linear_model
from torchbeats.training.listener import Listener
from torchbeats.training.loop import fit
from torchbeats.training.processes import join_processes, launched, leader_finds, leader_first, wait_for
from torchbeats.training.reporter import Reporter
from torchbeats.training.search import Searched, search, with_found
from torchbeats.training.settings import FinetuneSettings, TuningSettings
from torchbeats.training.validation import Validate
from torchbeats.training.work import work_of
from torchbeats.weights import checkpoint

MAY_CHANGE = ("trainer", "data.workers")
_BEGUN, _LINEAR, _SEARCH = "begun.json", "linear.safetensors", "search"  # in the folder, until the run is done
_FOUND = "found.json"  # in that of the search
_COLUMNS = ("loss", "train_accuracy", "score", "accuracy", "mAP", "macro_f1", *COLUMNS)


def defaults_of_older_runs() -> dict[str, Any]:
    """The settings of runs that say nothing of them, as those which began before a setting was there."""
    tuning = TuningSettings(head_first=False, pool="mean", patience=0)
    return {"tune": 0.0, **FinetuneSettings(model=tuning).to_dict()}


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
        tune: seconds to spend on a search of learning rates first, see `torchbeats.training.search`.

    Raises:
        SettingsError: the folder holds a run with other settings; or a search is asked for without sounds to validate
            on, or in several processes.
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
        tune: float = 0.0,
    ) -> None:
        if len(labelled.classes) < 2 and labelled.problem_type == "single_label":
            raise InputError(f"There must be two classes or more; all sounds are {labelled.classes[0]!r}.")
        if tune and held_out is None:
            raise SettingsError(
                "A search of learning rates needs sounds that are held out: set data.validation, and in a "
                "cross-validation model.patience, to more than 0."
            )
        if tune and (launch := launched()) is not None and launch.world > 1:
            raise SettingsError(
                f"A search of learning rates is for one process, and {launch.launcher} started {launch.world}. Search "
                "with one, and give what it finds with model.lr and model.layer_decay."
            )
        self.folder, self.labelled, self.held_out, self.settings = folder, labelled, held_out, settings
        self.budget = tune
        join_processes(settings.trainer.accelerator)
        self.run_folder = RunFolder(folder, listener)
        held_out_examples = [] if held_out is None else held_out.examples
        count = len(labelled.examples)
        sounds = work_of(
            [*labelled.examples, *held_out_examples], {"held out": range(count, count + len(held_out_examples))}
        )
        about = {**about, "sounds": sounds, "classes": labelled.classes, "problem_type": labelled.problem_type}
        about |= {"tune": tune, **settings.to_dict()}
        self.run_folder.claim(about, defaults_of_older_runs(), MAY_CHANGE)
        if without_examples := [name for name, count in labelled.counts().items() if not count]:
            self.run_folder.listener.warn(
                f"There is nothing to train on for {quoted(without_examples)}; they will not be known."
            )
        self.fits_head = settings.model.head_first and not keeps_head(model, labelled.classes, settings.model.pool)
        if self.fits_head:
            require("sklearn", "train")
        self.start = model
        self.grid = model.grid
        self.corpus = LabelledCorpus(labelled)

    def train(self) -> Path:
        """Do what is not done yet; returns the result's file."""
        final = self.folder / "model.safetensors"
        if leader_finds(final):
            return final
        model, fitted = self._begun()
        if self.budget:
            self.settings = self._searched(model)
        settings, t = self.settings, self.settings.trainer
        epoch = self.steps_an_epoch()
        steps = max(1, round(settings.model.epochs * epoch))
        task = Finetuning(model, settings.model, settings.augment, steps, settings.seed)
        state, best = self.folder / "state.ckpt", self.folder / "best.safetensors"
        validate = None
        if self.held_out is not None:
            validate = Validate(task.tuned, self.held_out, settings, epoch, self.run_folder, best, fitted)
        reporter = Reporter(
            task,
            self.run_folder,
            "Fine-tuning",
            {"phase": "finetune"},
            _COLUMNS,
            min(t.log_every, epoch),
            extra=lambda: {} if validate is None else validate.latest,
        )
        callbacks = [] if validate is None else [validate]
        trainer, weights = fit(task, self._feed(task), self.run_folder, state, t, reporter, callbacks, half_on_cpu=True)
        if trainer.is_global_zero:
            verdict = None if validate is None else validate.verdict()
            linear = self.folder / _LINEAR
            if verdict is not None:
                self.run_folder.listener.note(verdict.sentence)
            if verdict is not None and verdict.linear:
                linear.replace(final)
            elif best.exists():
                best.replace(final)
            else:
                checkpoint.save(task.finished(weights), final)
            if self.budget:  # run.yaml has the rates that were given, not those that were found
                (self.folder / _SEARCH / _FOUND).replace(self.folder / "search.json")
            for file in (state, best, linear, self.folder / _BEGUN):
                file.unlink(missing_ok=True)
            shutil.rmtree(self.folder / _SEARCH, ignore_errors=True)
        trainer.strategy.barrier()
        wait_for(final)
        return final

    def _begun(self) -> tuple[BEATs, bool]:
        """The model that training begins with, and whether it has a linear head that was fitted here."""
        settings, labelled = self.settings, self.labelled
        file = self.folder / _BEGUN
        if self.fits_head:
            if not leader_finds(file):
                leader_first(lambda: self._fit_head(file))
            wait_for(file)
            pool = json.loads(file.read_text("utf-8"))["pool"]
            if pool is not None:
                linear = BEATs(self.folder / _LINEAR)
                return with_head(linear, labelled.classes, labelled.problem_type, settings.model, pool), True
        torch.manual_seed(settings.seed)
        return with_head(self.start, labelled.classes, labelled.problem_type, settings.model), False

    def _fit_head(self, file: Path) -> None:
        fitted = linear_model(self.start, self.labelled, self.held_out, self.settings, self.run_folder.listener)
        if fitted is not None:
            checkpoint.save(fitted.model, self.folder / _LINEAR)
            if fitted.compared:
                figures = ", ".join(f"{name} {share:.1%}" for name, share in fitted.compared.items())
                self.run_folder.listener.say(f"Pooling {fitted.pool}: a linear head on sounds held out has {figures}.")
        write_json(file, {"pool": None if fitted is None else fitted.pool})

    def _searched(self, model: BEATs) -> FinetuneSettings:
        """The settings with the learning rates that a short search found best."""
        folder = self.folder / _SEARCH
        file = folder / _FOUND

        def train(place: Path, settings: FinetuneSettings, validated: bool) -> dict[str, float]:
            Finetune(place, model, self.labelled, self.held_out if validated else None, settings, {}).train()
            validation = place / "validation.json"
            return json.loads(validation.read_text("utf-8"))["figures"] if validation.exists() else {}

        def find() -> None:
            assert self.held_out is not None
            counts = self.steps_an_epoch(), len(self.labelled.examples), len(self.held_out.examples)
            run = Searched(self.settings, *counts, train)
            write_json(file, search(run, folder, self.budget, self.run_folder.listener))

        if not leader_finds(file):
            leader_first(find)
        wait_for(file)
        return with_found(self.settings, json.loads(file.read_text("utf-8")))

    def _batches(self, first: int = 0, rank: int = 0, world: int = 1) -> Batches:
        settings = self.settings
        balance = settings.data.balance
        weights = class_weights(self.corpus.targets, balance) if balance else None
        data = as_data(settings.data)
        return Batches(self.corpus, data, settings.seed, self.grid, first, rank, world, weights=weights, fill=False)

    def steps_an_epoch(self) -> int:
        """How many steps go through all sounds once."""
        batches = sum(1 for _ in self._batches().pass_once())
        return max(1, math.ceil(batches / self.settings.trainer.accumulate))

    def _feed(self, task: Finetuning) -> Feed[LabelledBatch]:
        """The batches of a training."""
        return Feed(
            task,
            self._batches,
            LabelledCrops(self.corpus, self.settings.augment),
            Collate(self.grid, len(self.labelled.classes)),
            workers=self.settings.data.workers,
            accumulate=self.settings.trainer.accumulate,
        )

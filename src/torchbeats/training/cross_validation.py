"""A fine-tuning for each fold of labelled sounds, and what the models make of what they did not hear.

RUN/fold-1, fold-2, …          a fine-tuning each
RUN/fold-1/scores.npz          what its model makes of the sounds of the fold
RUN/validation.json            what the models make of all sounds, each of its own fold's
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torchbeats.data.folds import Design, Fold, share_of
from torchbeats.data.labelled import Labelled
from torchbeats.errors import InputError
from torchbeats.evaluation import metrics
from torchbeats.evaluation.rows import rows_of
from torchbeats.files import replacing, write_json
from torchbeats.model import BEATs
from torchbeats.training.corpus import Failure
from torchbeats.training.finetune_run import MAY_CHANGE, Finetune, defaults_of_older_runs
from torchbeats.training.folder import RunFolder
from torchbeats.training.listener import Listener
from torchbeats.training.processes import is_leader, join_processes, leader_finds
from torchbeats.training.settings import FinetuneSettings
from torchbeats.training.validation import figures, scores_for
from torchbeats.training.work import work_of


class CrossValidation:
    """Fine-tunings that each leave other sounds out, and are asked about them: an honest figure for a recipe.

    A fold's sounds play no part in its training, not even to tell which epoch was the best. To choose one, and between
    it and the linear head, a share of the training sounds is held out besides; with ``model.patience=0`` none is, and
    the model is that of the last epoch.

    Args:
        folder: of the run; one that was stopped goes on where it was.
        model: to begin with, each time.
        labelled: the examples.
        plan: what is held out when.
        settings: of each fine-tuning.
        about: what else decides the result, for run.yaml.
        listener: told of the progress.
        tune: seconds to spend on a search of learning rates in each fold.

    Raises:
        SettingsError: the folder holds a run with other settings.
    """

    def __init__(
        self,
        folder: Path,
        model: BEATs,
        labelled: Labelled,
        plan: Design,
        settings: FinetuneSettings,
        about: dict[str, Any],
        listener: Listener | None = None,
        tune: float = 0.0,
    ) -> None:
        self.folder, self.model, self.labelled, self.plan, self.settings = folder, model, labelled, plan, settings
        self.about, self.listener, self.tune = about, listener, tune
        join_processes(settings.trainer.accelerator)
        self.run_folder = RunFolder(folder, listener)
        # The folds' results are kept by number, so they must be of these very sounds.
        parts = {f"training {number}": fold.train.tolist() for number, fold in enumerate(plan.folds, start=1)}
        parts |= {f"held out {number}": fold.test.tolist() for number, fold in enumerate(plan.folds, start=1)}
        sounds = work_of(labelled.examples, parts)
        about = {**about, "held_out": plan.name, "sounds": sounds, "classes": labelled.classes, "tune": tune}
        about |= settings.to_dict()
        self.run_folder.claim(about, defaults_of_older_runs(), MAY_CHANGE)

    def run(self) -> CrossValidated | None:
        """Do what is not done yet; returns the figures, in the process that leads."""
        parts = [self._fold(number, fold) for number, fold in enumerate(self.plan.folds, start=1)]
        if not is_leader():
            return None
        indices = np.concatenate([fold_indices for fold_indices, _ in parts])
        scores = np.concatenate([values for _, values in parts])
        if not len(indices):
            raise InputError("Not one of the sounds that were held out can be read.")
        truth = self.labelled.subset(indices.tolist()).targets()
        measure = metrics.accuracy if truth.ndim == 1 else metrics.mean_average_precision
        ends = np.cumsum([0, *(len(fold_indices) for fold_indices, _ in parts)])
        result = CrossValidated(
            metrics.report(truth, scores, self.labelled.classes),
            metrics.bootstrap(truth, scores, self.plan.units[indices]),
            [measure(truth[a:b], scores[a:b]) if a < b else math.nan for a, b in pairwise(ends)],
        )
        write_json(self.folder / "validation.json", result.to_dict(self.plan))
        return result

    def _fold(self, number: int, fold: Fold) -> tuple[metrics.Array, metrics.Array]:
        """Which of the examples were heard, and their scores ``(heard, classes)``."""
        folder = self.folder / f"fold-{number}"
        file = folder / "scores.npz"
        if not leader_finds(file):
            training, validation, tune = self.labelled.subset(fold.train.tolist()), None, self.tune
            if self.settings.model.patience:
                if drawn := share_of(training, self.settings.data.validation, self.settings.seed):
                    training, validation = training.without(drawn), training.subset(drawn)
                else:
                    without, tune = " and without a search of learning rates" if tune else "", 0.0
                    reason = "no class is large enough to hold out some of its sounds"
                    self.run_folder.listener.warn(f"Fold {number} ends with its last epoch{without}, as {reason}.")
            self.run_folder.listener.say(f"Fold {number} of {len(self.plan.folds)}")
            about = {**self.about, "held_out": f"{self.plan.name}: {number}"}
            run = Finetune(folder, self.model, training, validation, self.settings, about, self.listener, tune)
            result = run.train()
            if is_leader():
                indices, values = self._predict(BEATs(result), fold)
                with replacing(file) as temporary, temporary.open("wb") as stream:
                    np.savez(stream, heard=indices, values=values)
        if not is_leader():
            return np.empty(0, np.int64), np.empty((0, 0))
        with np.load(file) as arrays:
            return arrays["heard"], arrays["values"]

    def _predict(self, model: BEATs, fold: Fold) -> tuple[metrics.Array, metrics.Array]:
        plan = scores_for(self.settings.data)
        examples = self.labelled.subset(fold.test.tolist()).examples
        try:
            rows = rows_of(
                examples, model, plan, on_failure=lambda path, reason: self.run_folder.skip(Failure(path, reason))
            )
        except InputError:  # nothing of this fold can be read, which must not cost the others
            return fold.test[:0], np.empty((0, len(self.labelled.classes)), np.float32)
        return fold.test[rows.indices], rows.values


class CrossValidated(NamedTuple):
    """The result of a cross-validation.

    Attributes:
        report: figures over all sounds that were held out.
        interval: 95 % confidence of accuracy, or mAP, by a bootstrap over sounds or groups.
        by_fold: accuracy or mAP of each fold; NaN where none of its sounds can be read.
    """

    report: metrics.Report
    interval: tuple[float, float]
    by_fold: list[float]

    def to_dict(self, plan: Design) -> dict[str, Any]:
        """The content of validation.json."""
        values = {"held_out": plan.name, "interval": self.interval, "interval_over": plan.unit}
        values |= {"folds": plan.names, "by_fold": self.by_fold}
        return values | figures(self.report)

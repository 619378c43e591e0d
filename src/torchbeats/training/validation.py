"""What a fine-tuning makes of held-out sounds, epoch by epoch; the best is kept, or the linear head it began with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from torchbeats.data.labelled import Labelled
from torchbeats.errors import InputError
from torchbeats.evaluation import metrics
from torchbeats.evaluation.metrics import Array
from torchbeats.evaluation.rows import Rows, rows_of
from torchbeats.files import write_json
from torchbeats.model import BEATs
from torchbeats.plans import ScorePlan
from torchbeats.training.corpus import Failure
from torchbeats.training.folder import RunFolder
from torchbeats.training.settings import FinetuneSettings, LabelledDataSettings
from torchbeats.weights import checkpoint

_RESAMPLES = 100  # of the bootstrap by which two mAPs are compared
_RESAMPLED = 1e8  # scores that all of them hold at most, down to ten
_SURER = 0.999  # times the log loss, and an epoch with the same figure is better
_ABOVE_ROUNDING = 1 + 1e-9  # one sound more, and none less, is a gain of exactly its noise
_FEWEST_GROUPS = 5  # that are drawn as wholes


class Verdict(NamedTuple):
    """Which model is kept, and why.

    Attributes:
        linear: it is the linear head that training began with.
        sentence: that says so, with both figures.
    """

    linear: bool
    sentence: str


class Validate(Callback):
    """At every epoch's end, find out what the result so far makes of held-out examples; keep the best.

    Args:
        tuned: gives the model that the training has come to so far.
        labelled: the examples.
        settings: of the fine-tuning.
        every: steps of an epoch.
        folder: of the run.
        file: where the best goes.
        linear: training begins with a linear head, whose model is validated too, as epoch 0.
    """

    def __init__(
        self,
        tuned: Callable[[], BEATs],
        labelled: Labelled,
        settings: FinetuneSettings,
        every: int,
        folder: RunFolder,
        file: Path,
        linear: bool = False,
    ) -> None:
        self.tuned, self.labelled, self.settings = tuned, labelled, settings
        self.every, self.folder, self.file, self.linear = every, folder, file, linear
        self.best, self.best_loss, self.since, self.latest = -math.inf, math.inf, 0, dict[str, float]()
        self.step = 0  # of the last validation; before the first step there is one of a linear head only
        self.scores: dict[str, tuple[Tensor, Tensor]] = {}  # of "linear" and "tuned", the best: which examples, scores

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on has to know."""
        names = ("best", "best_loss", "since", "latest", "step", "scores")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.best, self.since, self.latest = state_dict["best"], state_dict["since"], state_dict["latest"]
        self.best_loss, self.step, self.scores = state_dict["best_loss"], state_dict["step"], state_dict["scores"]

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Validate a linear head. A run that was stopped where its patience had ended is not to go on."""
        if trainer.global_step == 0 and self.linear and trainer.is_global_zero:
            self._evaluate(self.tuned())
        trainer.should_stop = self._is_enough()

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *_: Any) -> None:
        """Validate behind an epoch."""
        step = trainer.global_step
        if (step % self.every and step != trainer.max_steps) or step == self.step:  # gradients may accumulate
            return
        self.step = step
        if trainer.is_global_zero:
            self._evaluate(self.tuned())
        trainer.should_stop = bool(trainer.strategy.broadcast(self._is_enough()))

    def _is_enough(self) -> bool:
        return 0 < self.settings.model.patience <= self.since

    def _evaluate(self, model: BEATs) -> None:
        try:
            rows = scored(model, self.labelled, self.settings.data, self.folder.skip)
        except InputError as error:  # no reason to lose an epoch's work; the last one is the result then
            self.folder.listener.warn(f"Nothing to validate on: {error}")
            return
        report = self._report(rows)
        self.latest = _brief(report)
        score, kept = self.latest["score"], (torch.from_numpy(rows.indices), torch.from_numpy(rows.values))
        if self.step == 0:
            if math.isfinite(score):  # else nothing could be compared; training decides
                self.scores["linear"] = kept
                self.folder.listener.say(f"Held out, with the linear head alone: {score:.1%}")
            return
        # Few sounds have few figures: of equal ones the more certain counts, or training would end too early.
        loss = _log_loss(self.labelled.subset(rows.indices.tolist()).targets(), rows.values)
        surer = score == self.best and loss < _SURER * self.best_loss
        if score > self.best or surer or not self.file.exists():
            self.best, self.best_loss, self.since, self.scores["tuned"] = score, loss, 0, kept
            checkpoint.save(model, self.file)
        else:
            self.since += 1

    def _report(self, rows: Rows) -> metrics.Report:
        return metrics.report(self.labelled.subset(rows.indices.tolist()).targets(), rows.values, self.labelled.classes)

    def verdict(self) -> Verdict | None:
        """Whether the best epoch or the linear head is kept, written to validation.json too; None with no choice."""
        rows = {name: Rows(scores.numpy(), indices.numpy(), []) for name, (indices, scores) in self.scores.items()}
        if "tuned" not in rows:
            return None
        found, verdict = dict[str, Any](), None
        if "linear" in rows:
            verdict, found = self._compared(rows["tuned"], rows["linear"])
        kept = "linear" if verdict is not None and verdict.linear else "tuned"
        write_json(self.folder.path / "validation.json", {**figures(self._report(rows[kept])), **found})
        return verdict

    def _compared(self, tuned: Rows, linear: Rows) -> tuple[Verdict, dict[str, Any]]:
        both = np.intersect1d(tuned.indices, linear.indices)
        examples = self.labelled.subset(both.tolist())
        a, b = (rows.values[np.searchsorted(rows.indices, both)] for rows in (tuned, linear))
        truth = examples.targets()
        kind = "accuracy" if truth.ndim == 1 else "mAP"
        measure = metrics.accuracy if truth.ndim == 1 else metrics.mean_average_precision
        after, before = measure(truth, a), measure(truth, b)
        together = [example.group or example.path for example in examples.examples]  # pieces of a file are alike too
        noise = noise_of_difference(truth, a, b, together)
        linear_kept = not after - before > noise * _ABOVE_ROUNDING
        sounds = f"the {len(both):,} sounds held out: {kind} {after:.1%} fine-tuned, {before:.1%} with the linear head"
        margin = f"± {noise:.1%}" if math.isfinite(noise) else "of which one sound says nothing"
        sentence = (
            f"Fine-tuning gained nothing beyond noise ({margin}) on {sounds}; the linear head is kept."
            if linear_kept
            else f"Fine-tuning is kept, better than noise ({margin}) on {sounds} alone."
        )
        figure = {"linear_head": {kind: before, "fine_tuned": after, "noise": noise, "kept": linear_kept}}
        return Verdict(linear_kept, sentence), figure


def noise_of_difference(truth: Array, a: Array, b: Array, groups: Sequence[str | None]) -> float:
    """The standard error of the difference between two models' figures on the same examples.

    Of accuracies that of the paired difference, as in McNemar's test: only examples that one has right and the other
    wrong count. Of mAPs by a bootstrap over examples. Examples of a group count together, where there are at least
    `_FEWEST_GROUPS`.

    Args:
        truth: ``(N,)`` classes; or ``(N, classes)``.
        a: ``(N, classes)`` scores of one model.
        b: of the other.
        groups: of each example, or None.
    """
    count = len(truth)
    units = np.arange(count)
    if None not in groups and len(set(groups)) >= _FEWEST_GROUPS:
        units = np.unique(np.array(groups), return_inverse=True)[1]
    number = int(units.max(initial=0)) + 1
    if number < 2:
        return math.inf
    if truth.ndim == 1:
        gain = (a.argmax(1) == truth).astype(float) - (b.argmax(1) == truth)
        of_units = np.bincount(units, gain - gain.mean(), number)
        return float(np.sqrt(np.square(of_units).sum() * number / (number - 1)) / count)
    random, members = np.random.default_rng(0), [np.flatnonzero(units == unit) for unit in range(number)]
    gains = []
    for _ in range(int(min(_RESAMPLES, max(10, _RESAMPLED / a.size)))):
        rows = np.concatenate([members[unit] for unit in random.integers(number, size=number)])
        gains.append(
            metrics.mean_average_precision(truth[rows], a[rows]) - metrics.mean_average_precision(truth[rows], b[rows])
        )
    return float(np.nanstd(gains))


def _log_loss(truth: Array, scores: Array) -> float:
    scores = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
    if truth.ndim == 1:
        return float(-np.log(scores[np.arange(len(truth)), truth]).mean())
    return float(-np.where(truth > 0, np.log(scores), np.log(1 - scores)).mean())


def scores_for(data: LabelledDataSettings) -> ScorePlan:
    """The plan for scores of held-out examples."""
    return ScorePlan(window=data.seconds, views=data.views)


def scored(model: BEATs, labelled: Labelled, data: LabelledDataSettings, skip: Callable[[Failure], None]) -> Rows:
    """A model's scores of examples; ``skip`` is called with those that cannot be read."""
    training = model.training
    try:
        plan = scores_for(data)
        return rows_of(
            labelled.examples, model.eval(), plan, on_failure=lambda path, reason: skip(Failure(path, reason))
        )
    finally:
        model.train(training)


def _brief(report: metrics.Report) -> dict[str, float]:
    """The figures of a validation that go into metrics.csv; the best epoch is the one with the highest "score"."""
    score = report.figures["accuracy" if report.problem_type == "single_label" else "mAP"]
    decides = {"score": -math.inf if math.isnan(score) else score}
    return decides | {n: report.figures[n] for n in ("accuracy", "mAP", "macro_f1") if n in report.figures}


def figures(report: metrics.Report) -> dict[str, Any]:
    """A report as validation.json has it."""
    return {"figures": report.figures, "classes": [row._asdict() for row in report.classes]}

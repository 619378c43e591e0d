"""What a fine-tuning makes of held-out sounds, epoch by epoch; the best is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from torchbeats.data.labelled import Labelled
from torchbeats.errors import InputError
from torchbeats.evaluation import metrics
from torchbeats.evaluation.rows import rows_of
from torchbeats.files import write_json
from torchbeats.model import BEATs
from torchbeats.plans import ScorePlan
from torchbeats.training.corpus import Failure
from torchbeats.training.folder import RunFolder
from torchbeats.training.linear_head import LinearHead
from torchbeats.training.settings import FinetuneSettings, LabelledDataSettings
from torchbeats.weights import checkpoint


class Validate(Callback):
    """At every epoch's end, find out what the result so far makes of held-out examples; keep the best.

    Args:
        tuned: gives the model that the training has come to so far.
        labelled: the examples.
        settings: of the fine-tuning.
        every: steps of an epoch.
        folder: of the run.
        file: where the best goes.
        head: what fits a linear head before the first step; its model is validated too, as epoch 0.
    """

    def __init__(
        self,
        tuned: Callable[[], BEATs],
        labelled: Labelled,
        settings: FinetuneSettings,
        every: int,
        folder: RunFolder,
        file: Path,
        head: LinearHead | None = None,
    ) -> None:
        self.tuned, self.labelled, self.settings = tuned, labelled, settings
        self.every, self.folder, self.file, self.head = every, folder, file, head
        self.best, self.since, self.latest = -math.inf, 0, dict[str, float]()
        self.step = 0  # of the last validation; before the first step there is one of a fitted head only
        self.kept_linear_head = False  # whether the best so far is the model before the first step

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on has to know."""
        return {"best": self.best, "since": self.since, "latest": self.latest, "step": self.step} | {
            "kept_linear_head": self.kept_linear_head
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.best, self.since, self.latest = state_dict["best"], state_dict["since"], state_dict["latest"]
        self.step, self.kept_linear_head = state_dict["step"], state_dict.get("kept_linear_head", False)

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Validate a fitted head. A run that was stopped where its patience had ended is not to go on."""
        if trainer.global_step == 0 and self.head is not None and self.head.fitted and trainer.is_global_zero:
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
            report = evaluate(model, self.labelled, self.settings.data, self.folder.skip)
        except InputError as error:  # no reason to lose an epoch's work; the last one is the result then
            self.folder.listener.warn(f"Nothing to validate on: {error}")
            return
        self.latest = _brief(report)
        score = self.latest["score"]
        if self.step == 0:
            if math.isinf(score):  # nothing that could be compared; training decides
                return
            self.folder.listener.say(f"Held out, with the linear head alone: {score:.1%}")
        if score > self.best or self.step == 0 or not self.file.exists():
            self.best, self.since, self.kept_linear_head = score, 0, self.step == 0
            checkpoint.save(model, self.file)
            write_json(self.folder.path / "validation.json", figures(report))
        else:
            self.since += 1


def scores_for(data: LabelledDataSettings) -> ScorePlan:
    """The plan for scores of held-out examples."""
    return ScorePlan(window=data.seconds, views=data.views)


def evaluate(
    model: BEATs, labelled: Labelled, data: LabelledDataSettings, skip: Callable[[Failure], None]
) -> metrics.Report:
    """The figures of a model on examples; ``skip`` is called with those that cannot be read."""
    training = model.training
    try:
        plan = scores_for(data)
        rows = rows_of(
            labelled.examples, model.eval(), plan, on_failure=lambda path, reason: skip(Failure(path, reason))
        )
    finally:
        model.train(training)
    return metrics.report(labelled.subset(rows.indices.tolist()).targets(), rows.values, labelled.classes)


def _brief(report: metrics.Report) -> dict[str, float]:
    """The figures of a validation that go into metrics.csv; the best epoch is the one with the highest "score"."""
    score = report.figures["accuracy" if report.problem_type == "single_label" else "mAP"]
    decides = {"score": -math.inf if math.isnan(score) else score}
    return decides | {n: report.figures[n] for n in ("accuracy", "mAP", "macro_f1") if n in report.figures}


def figures(report: metrics.Report) -> dict[str, Any]:
    """A report as validation.json has it."""
    return {"figures": report.figures, "classes": [row._asdict() for row in report.classes]}

"""Fine-tuning: labelled sounds and a model → a model with labels (BEATs, section 4.2).

RUN/run.yaml, metrics.csv, skipped.jsonl, tensorboard/     as in pre-training
RUN/model.safetensors                                      the result, which carries its labels
RUN/validation.json                                        what it makes of the sounds that were held out
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from torchbeats.config import BEATsConfig
from torchbeats.data.labelled import Labelled
from torchbeats.errors import InputError, quoted
from torchbeats.evaluation import metrics
from torchbeats.evaluation.rows import rows_of
from torchbeats.files import write_json
from torchbeats.model import BEATs
from torchbeats.plans import ScorePlan
from torchbeats.training.augmentation import equalise, shift_mel
from torchbeats.training.data import Batches, Failure
from torchbeats.training.examples import (
    Collate,
    LabelledBatch,
    LabelledCorpus,
    LabelledCrops,
    as_data,
    class_weights,
)
from torchbeats.training.loop import Listener, Report, RunFolder, fit, workers
from torchbeats.training.settings import Augmentation, FinetuneSettings, LabelledData, Optimiser, Tuning
from torchbeats.training.task import Task
from torchbeats.weights import checkpoint

MAY_CHANGE = ("trainer", "data.workers")
_COLUMNS = ("loss", "train_accuracy", "score", "accuracy", "mAP", "macro_f1")


def with_head(model: BEATs, labels: Sequence[str], problem_type: str, tuning: Tuning) -> BEATs:
    """The same model, to be trained, with a fresh head for ``labels``; a head with the same labels is kept."""
    cfg = BEATsConfig(
        model.cfg.to_dict(),
        finetuned_model=True,
        predictor_class=len(labels),
        predictor_dropout=tuning.dropout,
        predictor_pool=tuning.pool,
        problem_type=problem_type,
        encoder_layerdrop=tuning.layerdrop,
        layer_wise_gradient_decay_ratio=tuning.gradient_decay,
    )
    tuned = BEATs(cfg, freeze=False)
    names = dict(enumerate(labels))
    keep = model.label_dict == names and model.cfg.predictor_pool == tuning.pool
    weights = {n: t for n, t in model.state_dict().items() if keep or not n.startswith("predictor.")}
    tuned.load_state_dict({**tuned.state_dict(), **weights})
    tuned.label_dict = names
    return tuned


class Finetuning(Task):
    """Trains a model and its head on labels.

    Args:
        model: with a head, see `with_head`.
        settings: of the training.
        augment: of what the model hears.
        steps: of the optimiser.
        seed: of all randomness.
    """

    def __init__(self, model: BEATs, settings: Tuning, augment: Augmentation, steps: int, seed: int) -> None:
        optimiser = Optimiser(
            steps=steps,
            lr=settings.lr,
            warmup=round(settings.warmup * steps),
            weight_decay=settings.weight_decay,
            betas=settings.betas,
        )
        super().__init__(optimiser, seed)
        self.settings, self.augment = settings, augment
        self.model = model.unfreeze()
        self._freeze(settings.freeze)
        self.average: AveragedModel | None = None
        if settings.average:
            decay = get_ema_multi_avg_fn(settings.average)
            self.average = AveragedModel(self.model, multi_avg_fn=decay).requires_grad_(False)

    def _freeze(self, layers: int) -> None:
        """Keep the patch embedding and the first layers as they are; -1 stands for all but the head."""
        if not layers:
            return
        depth = len(self.model.encoder.layers)
        if layers > depth:
            raise InputError(f"The model has {depth} layers; {layers} cannot be frozen.")
        frozen: list[nn.Module] = [self.model.patch_embedding, self.model.layer_norm, self.model.encoder.pos_conv]
        frozen += [m for m in (self.model.post_extract_proj, self.model.encoder.layer_norm) if m is not None]
        frozen += self.model.encoder.layers[: depth if layers < 0 else layers]
        for module in frozen:
            module.requires_grad_(False)

    def result(self) -> BEATs:
        """What the training has come to: the moving average, or the model itself."""
        return self.model if self.average is None else cast("BEATs", self.average.module)

    def rate_factor(self, name: str) -> float:
        """The further from the head, the slower."""
        depth = len(self.model.encoder.layers)
        if ".predictor." in f".{name}":
            below = 0
        elif match := re.search(r"encoder\.layers\.(\d+)\.", name):
            below = depth - 1 - int(match[1])  # the position table, which all layers share, counts as the first's
        else:
            below = depth
        return self.settings.layer_decay**below

    def step(self, batch: LabelledBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """Cross entropy, of classes or of each class for itself; a mean over the clips of all processes."""
        model = self.model
        with torch.no_grad():
            fbank = model.fbank(batch.wav)
            if self.augment.mel_shift:
                fbank = shift_mel(fbank, batch.shifts)
            if self.augment.equaliser_db:
                fbank = equalise(fbank, batch.curves)
            features = mask_spectrum(model.normalise(fbank), self.augment.time_mask, self.augment.mel_mask)
        encoded, _ = model.encode_features(features, batch.samples)
        logits, targets = model.pooled_logits(encoded).float(), batch.targets
        smoothing = self.settings.label_smoothing
        if model.cfg.problem_type == "single_label":
            loss = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        else:
            targets = targets * (1 - smoothing) + smoothing / 2
            loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        clips = int(batch.counts.sum())
        hits = (logits.argmax(1) == batch.targets.argmax(1)).float() * batch.counts
        return {
            "loss": self.share_of_mean((loss * batch.counts).sum(), clips),
            "train_accuracy": self.share_of_mean(hits.sum(), clips),
        }


def mask_spectrum(features: Tensor, time: float, mel: float) -> Tensor:
    """SpecAugment: set a stretch of frames and one of mel bins to zero, of up to these shares, in each clip.

    Args:
        features: ``(B, frames, mel bins)``, normalised, so that zero is the corpus's mean.
        time: largest share of the frames.
        mel: largest share of the mel bins.
    """
    B, frames, mels = features.shape
    for axis, size, share in ((1, frames, time), (2, mels, mel)):
        if not share:
            continue
        width = (torch.rand(B, 1, device=features.device) * share * size).long()
        first = (torch.rand(B, 1, device=features.device) * (size - width + 1)).long()
        place = torch.arange(size, device=features.device)
        inside = (place >= first) & (place < first + width)
        features = features.masked_fill(inside.unsqueeze(2 if axis == 1 else 1), 0)
    return features


# --- validation -------------------------------------------------------------------------------------------------------


class Average(Callback):
    """Lets the moving average follow each step. A callback: a task's own hook comes behind the saving of state."""

    def __init__(self) -> None:
        self.step = 0

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Begin, or go on, where the state is."""
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *_: Any) -> None:
        """Follow, unless gradients still accumulate."""
        assert isinstance(task, Finetuning)
        if task.average is not None and trainer.global_step != self.step:
            self.step = trainer.global_step
            task.average.update_parameters(task.model)


class Validate(Callback):
    """At every epoch's end, find out what the result so far makes of held-out examples; keep the best.

    Args:
        run: the fine-tuning.
        labelled: the examples.
        every: steps of an epoch.
        file: where the best goes.
    """

    def __init__(self, run: Finetune, labelled: Labelled, every: int, file: Path) -> None:
        self.run, self.labelled, self.every, self.file = run, labelled, every, file
        self.best, self.since, self.latest = -math.inf, 0, dict[str, float]()
        self.step = 0  # of the last validation; there is none before the first step

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on has to know."""
        return {"best": self.best, "since": self.since, "latest": self.latest, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.best, self.since, self.latest = state_dict["best"], state_dict["since"], state_dict["latest"]
        self.step = state_dict["step"]

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *_: Any) -> None:
        """Validate behind an epoch."""
        assert isinstance(task, Finetuning)
        step = trainer.global_step
        if (step % self.every and step != trainer.max_steps) or step == self.step:  # gradients may accumulate
            return
        self.step = step
        if trainer.is_global_zero:
            self._ask(task.result())
        stop = bool(self.run.settings.model.patience) and self.since >= self.run.settings.model.patience
        trainer.should_stop = bool(trainer.strategy.broadcast(stop))

    def _ask(self, model: BEATs) -> None:
        place = self.run.place
        try:
            found = evaluate(model, self.labelled, self.run.settings.data, place.skip)
        except InputError as error:  # no reason to lose an epoch's work; the last one is the result then
            place.listener.warn(f"Nothing to validate on: {error}")
            return
        self.latest = _figures(found)
        if self.latest["score"] > self.best or not self.file.exists():
            self.best, self.since = self.latest["score"], 0
            checkpoint.save(model, self.file)
            write_json(self.run.folder / "validation.json", figures(found))
        else:
            self.since += 1


def scores_for(data: LabelledData) -> ScorePlan:
    """How a model is asked about held-out examples."""
    return ScorePlan(window=data.seconds, views=data.views)


def evaluate(model: BEATs, labelled: Labelled, data: LabelledData, skip: Callable[[Failure], None]) -> metrics.Report:
    """What a model makes of examples; of those that cannot be read ``skip`` is told."""
    training = model.training
    try:
        plan = scores_for(data)
        rows = rows_of(labelled.examples, model.eval(), plan, on_failure=lambda path, why: skip(Failure(path, why)))
    finally:
        model.train(training)
    return metrics.report(labelled.subset(rows.heard.tolist()).targets(), rows.values, labelled.classes)


def _figures(found: metrics.Report) -> dict[str, float]:
    """Of a validation, what goes into metrics.csv; "score" is what decides."""
    score = found.figures["accuracy" if found.problem_type == "single_label" else "mAP"]
    decides = {"score": -math.inf if math.isnan(score) else score}
    return decides | {n: found.figures[n] for n in ("accuracy", "mAP", "macro_f1") if n in found.figures}


# --- the run ----------------------------------------------------------------------------------------------------------


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
        self.place = RunFolder(folder, listener)
        sounds = fingerprint(labelled.examples, [] if held_out is None else held_out.examples)
        about = {**about, "sounds": sounds, "classes": labelled.classes, "problem_type": labelled.problem_type}
        about |= settings.to_dict()
        self.place.claim(about, FinetuneSettings().to_dict(), MAY_CHANGE)
        if unheard := [name for name, count in labelled.counts().items() if not count]:
            self.place.listener.warn(f"There is nothing to train on for {quoted(unheard)}; they will not be known.")
        torch.manual_seed(settings.seed)
        self.model = with_head(model, labelled.classes, labelled.problem_type, settings.model)
        self.corpus = LabelledCorpus(labelled)

    def train(self) -> Path:
        """Do what is not done yet; returns the result's file."""
        final = self.folder / "model.safetensors"
        if final.exists():
            return final
        settings, t = self.settings, self.settings.trainer
        feed = _Feed(self)
        epoch = max(1, math.ceil(feed.batches_an_epoch() / t.accumulate))
        steps = max(1, round(settings.model.epochs * epoch))
        task = Finetuning(self.model, settings.model, settings.augment, steps, settings.seed)
        every = min(t.log_every, epoch)
        state, best = self.folder / "state.ckpt", self.folder / "best.safetensors"
        validate = None if self.held_out is None else Validate(self, self.held_out, epoch, best)
        report = Report(
            self.place,
            "Fine-tuning",
            {"phase": "finetune"},
            _COLUMNS,
            every,
            _remark,
            extra=lambda: {} if validate is None else validate.latest,
        )
        trainer, _ = fit(
            task,
            feed,
            self.place,
            state,
            t,
            report,
            leaves_out=settings.model.layerdrop > 0,
            callbacks=[Average()] if validate is None else [Average(), validate],
        )
        if trainer.is_global_zero:
            if best.exists():
                best.replace(final)
            else:
                checkpoint.save(task.result(), final)
            state.unlink(missing_ok=True)
        trainer.strategy.barrier()
        return final


def fingerprint(*lists: Sequence[Any]) -> str:
    """Of examples and of which are held out: how many, and a hash that is another if any of it is."""
    digest = hashlib.sha256(repr([list(one) for one in lists]).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{' + '.join(str(len(one)) for one in lists)}, {digest[:16]}"


def figures(found: metrics.Report) -> dict[str, Any]:
    """A report as validation.json has it."""
    return {"figures": found.figures, "classes": [row._asdict() for row in found.classes]}


class _Feed(L.LightningDataModule):
    """Batches from the one that the training has come to."""

    def __init__(self, run: Finetune) -> None:
        super().__init__()
        self.run = run
        self.grid = run.model.grid
        self.crops = LabelledCrops(run.corpus, run.settings.data, run.settings.augment, self.grid)

    def _batches(self, first: int = 0, rank: int = 0, world: int = 1) -> Batches:
        settings = self.run.settings
        balance = settings.data.balance
        weights = class_weights(self.run.corpus.targets, balance) if balance else None
        data = as_data(settings.data)
        return Batches(self.run.corpus, data, settings.seed, self.grid, first, rank, world, weights=weights, fill=False)

    def batches_an_epoch(self) -> int:
        """How many batches go through all sounds once."""
        return sum(1 for _ in self._batches().pass_once())

    def train_dataloader(self) -> Any:
        """From the batch behind the last one that was trained on."""
        trainer = self.trainer
        assert trainer is not None
        settings = self.run.settings
        first = trainer.global_step * settings.trainer.accumulate
        count = workers(settings.data.workers, trainer.num_devices)
        return DataLoader(
            self.crops,
            batch_sampler=self._batches(first, trainer.global_rank, trainer.world_size),
            collate_fn=Collate(self.grid, len(self.run.labelled.classes)),
            num_workers=count,
            prefetch_factor=4 if count else None,
            pin_memory=torch.cuda.is_available(),
        )


def _remark(report: Any) -> str:
    said = f"loss {report['loss']:.3f}"
    return f"{said}, held out {report['score']:.1%}" if "score" in report else said

"""Fine-tuning: labelled sounds and a model → a model with labels (BEATs, section 4.2).

RUN/run.yaml, metrics.csv, skipped.jsonl, tensorboard/     as in pre-training
RUN/model.safetensors                                      the result, which carries its labels
RUN/validation.json                                        what it makes of the sounds that were held out
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning as L
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from torchbeats import audio, checkpoint
from torchbeats.audio import AudioError
from torchbeats.config import BEATsConfig
from torchbeats.evaluation import metrics
from torchbeats.evaluation.rows import rows_of
from torchbeats.files import replacing
from torchbeats.inference import ScorePlan
from torchbeats.inputs import InputError
from torchbeats.labelled import Example, Labelled
from torchbeats.model import BEATs
from torchbeats.patches import PatchGrid
from torchbeats.training.augment import CURVE_TERMS, augment_waveform, equalise, shift_mel
from torchbeats.training.data import Batches, Corpus, Crops, Draw, Failure, Floats
from torchbeats.training.loop import Listener, Report, RunFolder, fit, workers
from torchbeats.training.settings import Augmentation, Data, FinetuneSettings, LabelledData, Optimiser, Tuning
from torchbeats.training.task import Task

_MAY_CHANGE = ("trainer", "data.workers")
_COLUMNS = ("loss", "train_accuracy", "score", "accuracy", "mAP", "macro_f1")


# --- data -------------------------------------------------------------------------------------------------------------


class LabelledCorpus(Corpus):
    """Examples as a corpus to draw crops from.

    Args:
        labelled: the examples.
    """

    def __init__(self, labelled: Labelled) -> None:
        self.examples = labelled.examples
        self.targets = one_hot(labelled)
        ends = [_length(example) for example in labelled.examples]
        table = pa.table({
            "path": [os.fsencode(example.path) for example in labelled.examples],
            "seconds": pa.array(ends, pa.float32()),
            "shard": pa.nulls(len(ends), pa.binary()),
            "offset": pa.nulls(len(ends), pa.int64()),
            "size": pa.nulls(len(ends), pa.int64()),
        })  # fmt: skip
        super().__init__(table)

    def read(self, row: int, start: float, seconds: float) -> Floats:
        """A piece of an example; see `audio.excerpt`."""
        example = self.examples[row]
        if example.end is not None:
            seconds = min(seconds, example.end - example.start - start)
        return audio.excerpt(example.path, example.start + start, seconds)


def one_hot(labelled: Labelled) -> Floats:
    """``(N, classes)`` float32, one where an example belongs."""
    targets = labelled.targets()
    return targets if targets.ndim == 2 else np.eye(len(labelled.classes), dtype=np.float32)[targets]


def _length(example: Example) -> float:
    """Seconds of an example; NaN where no header tells, or the file cannot be read, which training will find out."""
    if example.end is not None:
        return example.end - example.start
    try:
        seconds = audio.duration(example.path)
    except AudioError:
        return math.nan
    return math.nan if seconds is None else max(0.0, seconds - example.start)


class LabelledCrop(NamedTuple):
    """A piece of an example."""

    samples: Floats
    target: Floats  # (classes,)
    mix: float  # share that is left to it when it is mixed with another
    shift: int
    curve: tuple[float, ...]
    counts: bool


class LabelledBatch(NamedTuple):
    """Crops of like length, mixed and padded.

    Attributes:
        wav: ``(B, samples)``, zero behind each crop.
        samples: ``(B,)`` int64, length of each.
        targets: ``(B, classes)``, how much of each class is in it.
        shifts: ``(B,)`` int64, mel bins that it is heard higher.
        curves: ``(B, K)``, the equaliser that it is heard through.
        counts: ``(B,)``, one, or zero for what only fills up.
        failures: sounds that could not be read, and are not in the batch.
    """

    wav: Tensor
    samples: Tensor
    targets: Tensor
    shifts: Tensor
    curves: Tensor
    counts: Tensor
    failures: list[Failure]


class LabelledCrops(Crops):
    """Reads and changes crops of examples.

    Args:
        corpus: the examples.
        data: settings.
        augment: how crops are changed.
        grid: of the model's patches.
    """

    corpus: LabelledCorpus

    def __init__(self, corpus: LabelledCorpus, data: LabelledData, augment: Augmentation, grid: PatchGrid) -> None:
        super().__init__(corpus, _as_data(data), grid, mel_shift=augment.mel_shift, equaliser_db=augment.equaliser_db)
        self.augment = augment

    def __getitem__(self, draw: Draw) -> LabelledCrop | Failure:  # type: ignore[override]
        random = np.random.default_rng(draw.seed)
        samples = self.sound(draw, random)
        if isinstance(samples, Failure):
            return samples
        a = self.augment
        samples = augment_waveform(samples, random, a.gain_db, a.band_limited)
        if a.roll:
            samples = np.roll(samples, random.integers(len(samples)))
        mix = max(share := random.beta(a.mixup, a.mixup), 1 - share) if a.mixup else 1.0
        shift = int(random.integers(-a.mel_shift, a.mel_shift + 1))
        curve = random.normal(0.0, a.equaliser_db, CURVE_TERMS) / np.sqrt(np.arange(1, CURVE_TERMS + 1))
        return LabelledCrop(samples, self.corpus.targets[draw.row], mix, shift, tuple(curve.tolist()), draw.counts)


def _as_data(data: LabelledData) -> Data:
    return Data(crop_seconds=[data.seconds], batch_seconds=data.batch_seconds, workers=data.workers)


def collate_labelled(items: Iterable[LabelledCrop | Failure], grid: PatchGrid, classes: int) -> LabelledBatch:
    """Put crops together, each mixed with the one behind it. Where none could be read, silence that does not count."""
    items = list(items)
    crops = [item for item in items if isinstance(item, LabelledCrop)]
    if not crops:
        silence, nothing = np.zeros(grid.min_samples, np.float32), np.zeros(classes, np.float32)
        crops = [LabelledCrop(silence, nothing, 1.0, 0, (0.0,) * CURVE_TERMS, False)]
    lengths = torch.tensor([max(len(crop.samples), grid.min_samples) for crop in crops])
    wav = torch.zeros(len(crops), int(lengths.max()))
    for row, crop in zip(wav, crops, strict=True):
        row[: len(crop.samples)] = torch.from_numpy(crop.samples)
    targets = torch.from_numpy(np.stack([crop.target for crop in crops]))
    mix = torch.tensor([crop.mix for crop in crops], dtype=torch.float32).unsqueeze(1)
    if bool((mix < 1).any()):
        wav, targets = mix * wav + (1 - mix) * wav.roll(1, 0), mix * targets + (1 - mix) * targets.roll(1, 0)
        lengths = torch.maximum(lengths, lengths.roll(1, 0))
    return LabelledBatch(
        wav,
        lengths,
        targets,
        shifts=torch.tensor([crop.shift for crop in crops]),
        curves=torch.tensor([crop.curve for crop in crops]),
        counts=torch.tensor([float(crop.counts) for crop in crops]),
        failures=[item for item in items if isinstance(item, Failure)],
    )


@dataclasses.dataclass
class _Collate:
    """`collate_labelled` for one grid; a class, so that it can be sent to another process."""

    grid: PatchGrid
    classes: int

    def __call__(self, items: list[LabelledCrop | Failure]) -> LabelledBatch:
        return collate_labelled(items, self.grid, self.classes)


# --- the task ---------------------------------------------------------------------------------------------------------


def with_head(model: BEATs, labels: Sequence[str], problem_type: str, tuning: Tuning) -> BEATs:
    """The same model, to be trained, with a fresh head for ``labels``; a head with the same labels is kept."""
    cfg = BEATsConfig(
        model.cfg.to_dict(),
        finetuned_model=True,
        predictor_class=len(labels),
        predictor_dropout=tuning.dropout,
        problem_type=problem_type,
        encoder_layerdrop=tuning.layerdrop,
        layer_wise_gradient_decay_ratio=tuning.gradient_decay,
    )
    tuned = BEATs(cfg, freeze=False)
    names = dict(enumerate(labels))
    keep = model.label_dict == names
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

    def on_train_batch_end(self, *_: Any) -> None:
        """Let the average follow."""
        if self.average is not None and self.trainer.global_step != getattr(self, "_averaged", -1):
            self._averaged = self.trainer.global_step
            self.average.update_parameters(self.model)

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

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on has to know."""
        return {"best": self.best, "since": self.since, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.best, self.since, self.latest = state_dict["best"], state_dict["since"], state_dict["latest"]

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *_: Any) -> None:
        """Validate behind an epoch."""
        assert isinstance(task, Finetuning)
        step = trainer.global_step
        if (step % self.every and step != trainer.max_steps) or step == getattr(self, "_done", -1):
            return
        self._done = step
        if trainer.is_global_zero:
            found = evaluate(task.result(), self.labelled, self.run.settings.data.seconds)
            self.latest = _figures(found)
            if self.latest["score"] > self.best:
                self.best, self.since = self.latest["score"], 0
                checkpoint.save(task.result(), self.file)
            else:
                self.since += 1
        stop = bool(self.run.settings.model.patience) and self.since >= self.run.settings.model.patience
        trainer.should_stop = bool(trainer.strategy.broadcast(stop))


def evaluate(model: BEATs, labelled: Labelled, seconds: float) -> metrics.Report:
    """What a model makes of examples."""
    training = model.training
    rows = rows_of(labelled.examples, model.eval(), ScorePlan(window=seconds))
    model.train(training)
    return metrics.report(labelled.subset(rows.heard.tolist()).targets(), rows.values, labelled.classes)


def _figures(found: metrics.Report) -> dict[str, float]:
    """Of a validation, what goes into metrics.csv; "score" is what decides."""
    score = found.figures["accuracy" if found.problem_type == "single_label" else "mAP"]
    figures = {"score": -math.inf if math.isnan(score) else score}
    return figures | {n: found.figures[n] for n in ("accuracy", "mAP", "macro_f1") if n in found.figures}


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
        InputError: there are fewer than two classes, or a class has nothing to train on.
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
        about = {**about, "classes": labelled.classes, "problem_type": labelled.problem_type, **settings.to_dict()}
        self.place.claim(about, FinetuneSettings().to_dict(), _MAY_CHANGE)
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
            callbacks=[] if validate is None else [validate],
        )
        if trainer.is_global_zero:
            if best.exists():
                best.replace(final)
            else:
                checkpoint.save(task.result(), final)
            if self.held_out is not None:
                self._validation(final)
            state.unlink(missing_ok=True)
        trainer.strategy.barrier()
        return final

    def _validation(self, model: Path) -> None:
        assert self.held_out is not None
        found = evaluate(BEATs(model), self.held_out, self.settings.data.seconds)
        about = {"figures": found.figures, "classes": [row._asdict() for row in found.classes]}
        with replacing(self.folder / "validation.json") as temporary:
            temporary.write_text(json.dumps(about, indent=1, ensure_ascii=False).replace("NaN", "null"), "utf-8")


class _Feed(L.LightningDataModule):
    """Batches from the one that the training has come to."""

    def __init__(self, run: Finetune) -> None:
        super().__init__()
        self.run = run
        self.grid = run.model.grid
        self.crops = LabelledCrops(run.corpus, run.settings.data, run.settings.augment, self.grid)

    def _batches(self, first: int = 0, rank: int = 0, world: int = 1) -> Batches:
        settings = self.run.settings
        weights = class_weights(self.run.corpus.targets) if settings.data.balanced else None
        data = _as_data(settings.data)
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
            collate_fn=_Collate(self.grid, len(self.run.labelled.classes)),
            num_workers=count,
            prefetch_factor=4 if count else None,
            pin_memory=torch.cuda.is_available(),
        )


def class_weights(targets: Floats) -> np.ndarray[Any, np.dtype[np.float64]]:
    """``(N,)``, how often to draw each example, so that all classes come equally often; by its rarest class."""
    counts = np.maximum(targets.sum(0), 1)
    return np.maximum((targets / counts).max(1), 1 / len(targets) / targets.shape[1]).astype(np.float64)


def _remark(report: Any) -> str:
    said = f"loss {report['loss']:.3f}"
    return f"{said}, held out {report['score']:.1%}" if "score" in report else said


def split(labelled: Labelled, share: float, seed: int) -> tuple[Labelled, Labelled | None]:
    """Training and validation examples: by the list's own split if it has one, else a seeded share of each class.

    Groups, where the list tells them, stay together. A class's last example stays in training.
    """
    names = {example.split for example in labelled.examples}
    held = {"validation", "valid", "val", "dev", "test", "eval"}
    if names & held:
        out = [i for i, example in enumerate(labelled.examples) if example.split in held]
    elif share:
        out = _drawn(labelled, share, seed)
    else:
        out = []
    inside = sorted(set(range(len(labelled.examples))) - set(out))
    return labelled.subset(inside), labelled.subset(out) if out else None


def _drawn(labelled: Labelled, share: float, seed: int) -> list[int]:
    random = np.random.default_rng(seed)
    units: dict[str, list[int]] = {}
    for i, example in enumerate(labelled.examples):
        units.setdefault(f"g {example.group}" if example.group is not None else f"e {i}", []).append(i)
    left = labelled.counts()
    wanted = {name: share * count for name, count in left.items()}
    out: list[int] = []
    for unit in [list(units.values())[i] for i in random.permutation(len(units))]:
        labels = [label for i in unit for label in labelled.examples[i].labels]
        if labels and all(wanted[label] >= 0.5 and left[label] > labels.count(label) for label in labels):
            out += unit
            for label in labels:
                wanted[label] -= 1
                left[label] -= 1
    return sorted(out)

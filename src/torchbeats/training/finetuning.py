"""The training of a model and its head on labels (BEATs, section 4.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from torchbeats.config import BEATsConfig
from torchbeats.errors import InputError
from torchbeats.heads.fitting import OF_A_HEAD
from torchbeats.model import BEATs
from torchbeats.training.augmentation import equalise, shift_mel
from torchbeats.training.examples import LabelledBatch
from torchbeats.training.settings import AUTO, AugmentationSettings, OptimiserSettings, TuningSettings
from torchbeats.training.task import BehindEachStep, Task, part

USUAL_POOL = "statistics"  # where none is named, and there is nothing to choose by


def with_head(
    model: BEATs, labels: Sequence[str], problem_type: str, tuning: TuningSettings, pool: str | None = None
) -> BEATs:
    """The same model, to be trained, with a fresh head for ``labels``; a head with the same labels is kept.

    Args:
        model: to begin with.
        labels: names of the classes.
        problem_type: "single_label" or "multi_label".
        tuning: settings.
        pool: what the head sees; what the settings say if not given, with `USUAL_POOL` for "auto".
    """
    pool = pool or _pool(model, labels, tuning.pool)
    cfg = BEATsConfig(
        model.cfg.to_dict(),
        finetuned_model=True,
        predictor_class=len(labels),
        predictor_dropout=tuning.dropout,
        predictor_pool=pool,
        problem_type=problem_type,
        encoder_layerdrop=tuning.layerdrop,
        layer_wise_gradient_decay_ratio=tuning.gradient_decay,
    )
    for name in OF_A_HEAD:
        cfg.__dict__.pop(name, None)
    tuned = BEATs(cfg, freeze=False)
    names = dict(enumerate(labels))
    keep = keeps_head(model, labels, pool)
    weights = {n: t for n, t in model.state_dict().items() if keep or not n.startswith("predictor.")}
    tuned.load_state_dict({**tuned.state_dict(), **weights})
    tuned.label_dict = names
    return tuned


def keeps_head(model: BEATs, labels: Sequence[str], pool: str) -> bool:
    """Whether a model has a head for these very labels, over the same pooling; any is for "auto"."""
    return model.label_dict == dict(enumerate(labels)) and pool in (AUTO, model.cfg.predictor_pool)


def _pool(model: BEATs, labels: Sequence[str], pool: str) -> str:
    if pool != AUTO:
        return pool
    return model.cfg.predictor_pool if keeps_head(model, labels, AUTO) else USUAL_POOL


class Finetuning(Task[LabelledBatch]):
    """Trains a model and its head on labels.

    Args:
        model: with a head, see `with_head`.
        settings: of the training.
        augment: of what the model hears.
        steps: of the optimiser.
        seed: random seed.
    """

    def __init__(
        self, model: BEATs, settings: TuningSettings, augment: AugmentationSettings, steps: int, seed: int
    ) -> None:
        optimiser = OptimiserSettings(
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

    def tuned(self) -> BEATs:
        """What the training has come to so far: the moving average, or the model itself."""
        return self.model if self.average is None else cast("BEATs", self.average.module)

    def finished(self, weights: Mapping[str, Tensor]) -> BEATs:
        """The fine-tuned model, with its labels."""
        model = BEATs(self.model.cfg)
        model.load_state_dict(part(weights, "model" if self.average is None else "average.module"))
        model.label_dict = self.model.label_dict
        return model

    def callbacks(self) -> list[Callback]:
        """What lets the moving average follow."""
        average = self.average
        return [] if average is None else [BehindEachStep(lambda: average.update_parameters(self.model))]

    @property
    def drops_layers(self) -> bool:
        """Whether a step may leave layers out."""
        return self.settings.layerdrop > 0

    def status_text(self, report: Mapping[str, float]) -> str:
        """Loss, and how the last validation went."""
        score = f", held out {report['score']:.1%}" if "score" in report else ""
        return super().status_text(report) + score

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

    def step(self, batch: LabelledBatch) -> dict[str, Tensor]:
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
        self.encoded = encoded.x.detach(), encoded.padding_mask
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
        position = torch.arange(size, device=features.device)
        masked = (position >= first) & (position < first + width)
        features = features.masked_fill(masked.unsqueeze(2 if axis == 1 else 1), 0)
    return features

"""Masked modelling without labels: say what a teacher makes of patches that were not seen (data2vec).

The teacher is a moving average of the model's weights (arXiv 2202.03555 and 2212.07525). It hears the whole clip, as
labels would be made from it. A target is the mean of its upper layers' outputs, each normalised, so that no layer
outweighs the others, and targets that are all alike are no way out.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from torchbeats.model import BEATs
from torchbeats.pooling import masked_mean
from torchbeats.training.crops import Batch
from torchbeats.training.pretraining import MaskedModelling
from torchbeats.training.processes import all_sum
from torchbeats.training.settings import ModelSettings
from torchbeats.training.task import BehindEachStep

_EPSILON = 1e-5  # added to variances
_COLLAPSED = 0.01  # variance of targets that says next to nothing; uncorrelated layers alone give one over their number


class Teacher(nn.Module):
    """A moving average of a model, whose layers are what the model is to say.

    Args:
        student: the model; the teacher begins as a copy of it.
        decay: share of the teacher's weights that a step keeps.
        layers: K, how many of the upper layers make a target; 0: all of them.
        norm: of a layer's output: "instance" (each channel over the clip's own patches) or "layer" (each patch over its
            channels).
    """

    def __init__(self, student: BEATs, decay: float, layers: int, norm: str) -> None:
        super().__init__()
        self.model = copy.deepcopy(student).freeze()
        self.layers, self.norm = layers, norm
        self._average = get_ema_multi_avg_fn(decay)

    def follow(self, student: BEATs) -> None:
        """Each weight becomes ``decay`` times itself and ``1 - decay`` times the student's."""
        self._average(list(self.model.parameters()), list(student.parameters()), 0)

    @torch.no_grad()
    def forward(self, features: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Make targets of whole clips.

        Args:
            features: normalised log-mel, ``(B, frames, 128)``.
            samples: ``(B,)`` int64, length of each clip.

        Returns:
            Of all patches, ``(B, T, C)`` float32, where those behind a clip's own mean nothing; and of clips,
            ``(B, C)``: the mean of the layers' means over the clip, each normalised over its channels.
        """
        encoded, hiddens = self.model.encode_features(features, samples, output_all_hiddens=True)
        upper = [x.float() for x in hiddens[1:][-self.layers :]]  # the first is what enters the first layer
        counts, padding = encoded.patch_counts, encoded.padding_mask
        patches = sum(self._normalised(x, padding, counts) for x in upper) / len(upper)
        means = [masked_mean(x, padding, counts) for x in upper]
        clips = sum(F.layer_norm(mean, mean.shape[-1:]) for mean in means) / len(upper)
        assert isinstance(patches, Tensor)
        assert isinstance(clips, Tensor)
        return patches, clips

    def _normalised(self, x: Tensor, padding: Tensor, counts: Tensor) -> Tensor:
        """A layer's output ``(B, T, C)`` with mean 0 and variance 1, without learned gains."""
        if self.norm == "layer":
            return F.layer_norm(x, x.shape[-1:])
        x = x - masked_mean(x, padding, counts).unsqueeze(1)
        return x * (masked_mean(x.square(), padding, counts) + _EPSILON).rsqrt().unsqueeze(1)


class Regression(MaskedModelling):
    """Trains a model on what a teacher, a moving average of it, says of hidden patches.

    Args:
        model: to be trained.
        settings: of the training.
        seed: random seed.
    """

    def __init__(self, model: BEATs, settings: ModelSettings, seed: int) -> None:
        super().__init__(model, model.cfg.encoder_embed_dim, settings, seed)
        self.teacher = Teacher(
            self.network.model, settings.teacher_decay, settings.teacher_layers, settings.teacher_norm
        )

    def callbacks(self) -> Sequence[Callback]:
        """What lets the teacher follow."""
        return [BehindEachStep(lambda: self.teacher.follow(self.network.model))]

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Distance of what is said from the targets, over the patches asked for, in all processes together."""
        model = self.network.model
        with torch.no_grad():
            fbank = model.fbank(batch.wav)
            of_patches, of_clips = self.teacher(model.normalise(fbank), batch.samples)
            rows, patches = batch.target_indices // batch.hidden.size(1), batch.target_indices % batch.hidden.size(1)
            targets = of_patches[rows // batch.draws, patches]  # (M, C)
        said, (x, visible_padding) = self.network(self.heard(fbank, batch), batch)
        self.encoded = x.detach(), visible_padding
        loss = self.share_of_mean(self._distance(said, targets).sum(), len(targets))
        scalars = {"target_variance": self._variance(targets)}
        if self.network.clip is None:
            return {"loss": loss, **scalars}
        asked = rows.unique()
        pooled = masked_mean(x, visible_padding, batch.visible_counts)[asked]
        distance = self._distance(self.network.clip(pooled), of_clips[asked // batch.draws])
        utterance = self.share_of_mean(distance.sum(), len(asked))
        return {"loss": loss + self.settings.utterance * utterance, "utterance": utterance, **scalars}

    def _distance(self, said: Tensor, targets: Tensor) -> Tensor:
        """``(M, C)`` twice to ``(M,)``: the mean over the channels of squares, or of smooth L1."""
        beta, said = self.settings.teacher_beta, said.float()
        if beta:
            return F.smooth_l1_loss(said, targets, reduction="none", beta=beta).mean(1)
        return (said - targets).square().mean(1)

    def _variance(self, targets: Tensor) -> Tensor:
        """Of the targets of all processes, about the mean of each channel: this process's share of it."""
        sums = torch.cat([targets.sum(0), targets.new_tensor([float(len(targets))])])
        sums = all_sum(sums)
        mean = sums[:-1] / sums[-1].clamp_min(1)
        return self.share_of_mean((targets - mean).square().mean(1).sum(), len(targets))

    def status_text(self, report: Mapping[str, float]) -> str:
        """Loss, and how much there is to say."""
        return f"{super().status_text(report)}, variance of the targets {report['target_variance']:.2f}"

    def warning_text(self, report: Mapping[str, float]) -> str | None:
        """A sentence, if the targets or the embeddings have collapsed."""
        if report["target_variance"] < _COLLAPSED:
            return (
                f"the teacher's targets have collapsed: their variance is {report['target_variance']:.4f}. Try a lower "
                "learning rate, a longer warm-up, or a model.teacher_decay nearer to 1."
            )
        return super().warning_text(report)

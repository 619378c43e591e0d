"""Masked audio modelling: say the labels of patches that the model did not see (BEATs, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchbeats.config import BEATsConfig
from torchbeats.encoder import TransformerEncoder, VisiblePatches
from torchbeats.errors import TrainingError
from torchbeats.model import BEATs
from torchbeats.patches import frames, mask_behind
from torchbeats.pooling import masked_mean
from torchbeats.tokenizers.tokens import PADDING, AcousticTokenizer
from torchbeats.training.augmentation import equalise, lay_next_over, shift_mel
from torchbeats.training.crops import Batch
from torchbeats.training.processes import all_sum
from torchbeats.training.settings import ModelSettings, predictor_heads
from torchbeats.training.task import LabelStatistics, Task, collapse, part


class LabelPredictor(nn.Module):
    """From the encoder's output for the visible patches to the labels of the hidden ones.

    Hidden patches enter as one learned vector; all are put in order again and go through a few Transformer layers.

    Args:
        cfg: of the model.
        labels: N, size of the codebook; or channels of what is regressed.
        layers: Transformer layers.
        width: their channels, P; 0 for those of the encoder.
    """

    def __init__(self, cfg: BEATsConfig, labels: int, layers: int = 3, width: int = 0) -> None:
        super().__init__()
        width = width or cfg.encoder_embed_dim
        predictor_cfg = BEATsConfig(
            cfg.to_dict(),
            encoder_layers=layers,
            encoder_embed_dim=width,
            encoder_ffn_embed_dim=4 * width,
            encoder_attention_heads=predictor_heads(cfg, width),
            encoder_layerdrop=0.0,
        )
        self.enter = nn.Linear(cfg.encoder_embed_dim, width)
        self.hidden = nn.Parameter(torch.randn(width) * 0.02)
        self.encoder = TransformerEncoder(predictor_cfg)
        self.leave = nn.Linear(width, labels)

    def forward(
        self,
        x: Tensor,
        visible: VisiblePatches,
        visible_padding: Tensor,
        hidden: Tensor,
        padding: Tensor,
        target_indices: Tensor,
    ) -> Tensor:
        """Predict.

        Args:
            x: ``(B, K, C)``, the encoder's output for the visible patches.
            visible: which of the T patches those are.
            visible_padding: ``(B, K)`` bool, True = padding.
            hidden: ``(B, T)`` bool, True = not seen.
            padding: ``(B, T)`` bool, True = behind the clip's own patches.
            target_indices: ``(M,)`` int64, indices into ``B * T``.

        Returns:
            ``(M, N)`` logits.
        """
        x = visible.spread(self.enter(x).masked_fill(visible_padding.unsqueeze(-1), 0))
        x = torch.where(hidden.unsqueeze(-1), self.hidden.to(x.dtype), x)
        x, _ = self.encoder(x, padding)
        return self.leave(x.flatten(0, 1)[target_indices])


class MaskedModel(nn.Module):
    """A BEATs model and its label predictor.

    Args:
        model: the model that is trained.
        labels: size of the codebook; or channels of what is regressed.
        settings: of the predictor.
    """

    def __init__(self, model: BEATs, labels: int, settings: ModelSettings) -> None:
        super().__init__()
        self.model = model
        self.predictor = LabelPredictor(model.cfg, labels, settings.predictor_layers, settings.predictor_width)
        self.clip: nn.Linear | None = None  # says the labels of a whole clip, from one vector
        if settings.utterance:
            self.clip = nn.Linear(model.cfg.encoder_embed_dim, labels)

    def forward(self, features: Tensor, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Say the labels of patches.

        Args:
            features: normalised log-mel, ``(B, frames, 128)``.
            batch: what is seen of it, and asked.

        Returns:
            Logits for the patches that are asked for, ``(M, N)``; the encoder's output for the visible ones,
            ``(B * draws, K, C)``, and what of that is padding, ``(B * draws, K)``.
        """
        model = self.model
        x = model.embed_patches(features).repeat_interleave(batch.draws, 0)
        T = x.size(1)
        visible = VisiblePatches(batch.visible, T)
        visible_padding = mask_behind(batch.visible_counts, batch.visible.size(1))
        x, _ = model.encoder(visible.pick(x), visible_padding, visible=visible)
        padding = mask_behind(model.grid.patches(batch.samples), T).repeat_interleave(batch.draws, 0)
        logits = self.predictor(x, visible, visible_padding, batch.hidden, padding, batch.target_indices)
        return logits, (x, visible_padding)


def utterance_loss(logits: Tensor, labels: Tensor, batch: Batch) -> tuple[Tensor, int]:
    """Cross entropy between what is said of a clip's labels and the shares that they have in it.

    Args:
        logits: ``(B * draws, N)``.
        labels: of all patches, ``(B, T)``; `PADDING` where there is none.
        batch: whose they are.

    Returns:
        The sum over all rows that are asked for anything and have a label, and how many those are.
    """
    known = labels != PADDING
    counts = logits.new_zeros(len(labels), logits.size(1), dtype=torch.float32)
    counts.scatter_add_(1, labels.where(known, 0), known.to(counts.dtype))
    shares = (counts / counts.sum(1, keepdim=True).clamp_min(1)).repeat_interleave(batch.draws, 0)
    rows = batch.target_indices // batch.hidden.size(1)
    asked = shares.new_zeros(len(shares)).index_fill(0, rows, 1) * (shares.sum(1) > 0)
    return -(asked.unsqueeze(1) * shares * logits.float().log_softmax(-1)).sum(), int(asked.sum())


class MaskedModelling(Task[Batch]):
    """What is common to masked modelling, whatever is to be said of the hidden patches.

    Args:
        model: to be trained.
        outputs: numbers that are said of a patch: logits of labels, or channels.
        settings: of the training.
        seed: random seed.
        statistics: counts the labels, where there are any.
    """

    def __init__(
        self,
        model: BEATs,
        outputs: int,
        settings: ModelSettings,
        seed: int,
        statistics: LabelStatistics | None = None,
    ) -> None:
        super().__init__(settings, seed, statistics)
        self.settings = settings
        self.network = MaskedModel(model.unfreeze(), outputs, settings)

    @torch.no_grad()
    def heard(self, fbank: Tensor, batch: Batch) -> Tensor:
        """The normalised features that the model hears, ``(B, frames, 128)``; ``fbank`` is of the clips alone."""
        if self.settings.mix:
            fbank = lay_next_over(fbank, frames(batch.samples), batch.softer)
        if self.settings.mel_shift:
            fbank = shift_mel(fbank, batch.shifts)
        if self.settings.equaliser_db:
            fbank = equalise(fbank, batch.curves)
        return self.network.model.normalise(fbank)

    def finished(self, weights: Mapping[str, Tensor]) -> BEATs:
        """The pre-trained model."""
        model = BEATs(self.network.model.cfg)
        model.load_state_dict(part(weights, "network.model"))
        return model

    @property
    def drops_layers(self) -> bool:
        """Whether a step may leave layers out."""
        return self.network.model.cfg.encoder_layerdrop > 0


class Pretraining(MaskedModelling):
    """Trains a model on a tokenizer's labels.

    Args:
        model: to be trained.
        tokenizer: gives the labels, on the fly.
        settings: of the training.
        seed: random seed.
    """

    def __init__(self, model: BEATs, tokenizer: AcousticTokenizer, settings: ModelSettings, seed: int) -> None:
        labels = tokenizer.cfg.quant_n
        super().__init__(model, labels, settings, seed, LabelStatistics(model.grid.bands, labels))
        self.tokenizer = tokenizer.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Pretraining:
        """Set training mode, of all but the tokenizer."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy over the patches asked for, in all processes together."""
        model = self.network.model
        with torch.no_grad():
            fbank = model.fbank(batch.wav)
            of_clip = self.tokenizer.label_fbank(fbank, batch.samples)
            labels = of_clip.repeat_interleave(batch.draws, 0).flatten()[batch.target_indices]
        logits, (x, visible_padding) = self.network(self.heard(fbank, batch), batch)
        self.encoded = x.detach(), visible_padding
        loss = F.cross_entropy(
            logits, labels, reduction="sum", ignore_index=PADDING, label_smoothing=self.settings.label_smoothing
        )
        labelled = labels != PADDING  # a tokenizer has no label for what it makes no finite numbers of
        hits = (logits.detach().argmax(-1) == labels).sum()
        self.statistics.update(labels[labelled], (batch.target_indices % model.grid.bands)[labelled], hits)
        count = self._labelled(labelled)
        loss = self.share_of_mean(loss, count)
        scalars = {"unlabelled": 1 - count / max(1, len(labels)) + 0 * loss}
        if self.network.clip is None:
            return {"loss": loss, **scalars}
        pooled = masked_mean(x, visible_padding, batch.visible_counts)
        total, clips = utterance_loss(self.network.clip(pooled), of_clip, batch)
        utterance = self.share_of_mean(total, clips)
        return {"loss": loss + self.settings.utterance * utterance, "utterance": utterance, **scalars}

    def _labelled(self, labelled: Tensor) -> int:
        """How many patches have a label in this process; a `TrainingError` if none has in any."""
        count = int(labelled.sum())
        counts = all_sum(torch.tensor([float(count), float(len(labelled))], device=labelled.device))
        if counts[1] > 0 == counts[0]:
            raise TrainingError(
                f"The tokenizer gives none of the {int(counts[1]):,} patches of step {self.global_step + 1:,} a label; "
                "its weights may be damaged, or too large for this precision. Make the tokenizer again: delete its "
                ".safetensors in the run's folder, and give the same command."
            )
        return count

    def status_text(self, report: Mapping[str, float]) -> str:
        """Loss, accuracy and codes in use."""
        accuracy = f"accuracy {report['accuracy']:.1%} (commonest label {report['majority']:.1%})"
        return f"{super().status_text(report)}, {accuracy}, {report['perplexity']:.0f} codes"

    def warning_text(self, report: Mapping[str, float]) -> str | None:
        """A sentence, if labels are missing, or the labels or the embeddings have collapsed."""
        if report.get("unlabelled", 0.0) > 0:
            return (
                f"the tokenizer gives {report['unlabelled']:.1%} of the patches no label, as its numbers for them are "
                "not finite; they are left out. Its weights may be damaged."
            )
        return collapse(report, self.tokenizer.cfg.quant_n) or super().warning_text(report)

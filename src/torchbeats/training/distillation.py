"""Self-distillation: a tokenizer whose labels keep what a trained model knows (BEATs, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchbeats.backbone import Encoded
from torchbeats.config import BEATsConfig, TokenizersConfig
from torchbeats.encoder import TransformerEncoder
from torchbeats.model import BEATs
from torchbeats.tokenizers import NormEMAVectorQuantizer, Tokenizers
from torchbeats.training.crops import Batch
from torchbeats.training.processes import all_sum
from torchbeats.training.settings import DistillationSettings
from torchbeats.training.task import LabelStatistics, Task, collapse, part


class Estimator(nn.Module):
    """From quantised vectors to the teacher's output.

    Args:
        cfg: of the tokenizer.
        teacher_width: channels of the teacher's output.
        layers: Transformer layers.
    """

    def __init__(self, cfg: TokenizersConfig, teacher_width: int, layers: int = 3) -> None:
        super().__init__()
        estimator_cfg = BEATsConfig(cfg.to_dict(), encoder_layers=layers, encoder_layerdrop=0.0)
        self.enter = nn.Linear(cfg.quant_dim, cfg.encoder_embed_dim)
        self.encoder = TransformerEncoder(estimator_cfg)
        self.leave = nn.Linear(cfg.encoder_embed_dim, teacher_width)

    def forward(self, codes: Tensor, padding: Tensor) -> Tensor:
        """``(B, T, quant_dim)`` and ``(B, T)`` bool, True = padding, to ``(B, T, teacher_width)``."""
        return self.leave(self.encoder(self.enter(codes), padding)[0])


class Distillation(Task[Batch]):
    """Trains a tokenizer to keep what the teacher's output says.

    Args:
        tokenizer: to be trained.
        teacher: a pre-trained or fine-tuned model; it stays as it is.
        settings: of the training.
        seed: random seed.
    """

    def __init__(self, tokenizer: Tokenizers, teacher: BEATs, settings: DistillationSettings, seed: int) -> None:
        super().__init__(settings, seed, LabelStatistics(tokenizer.grid.bands, tokenizer.cfg.quant_n))
        self.settings = settings
        cfg = tokenizer.cfg
        self.tokenizer = tokenizer.unfreeze()
        self.tokenizer.quantize = NormEMAVectorQuantizer(
            cfg.quant_n,
            cfg.quant_dim,
            beta=settings.beta,
            decay=settings.decay,
            kmeans_init=True,
            reseed_below=settings.reseed_below,
        )
        self.teacher = teacher.freeze()
        self.estimator = Estimator(cfg, teacher.cfg.encoder_embed_dim, settings.estimator_layers)

    @torch.no_grad()
    def begin(self, batches: Iterable[Batch]) -> None:
        """Start the codes as the k-means of what the tokenizer makes of the first batches.

        One batch may be of few sounds, and with it many codes would start where nothing else ever falls.
        """
        self.tokenizer.eval()
        vectors = []
        for batch in islice(batches, self.settings.kmeans_batches):
            encoded, z = self._project(batch.to(self.device))
            vectors.append(F.normalize(z[~encoded.padding_mask].float(), dim=-1))
        torch.manual_seed(self.seed)
        self.tokenizer.quantize.embedding.init_from(torch.cat(vectors))
        self.tokenizer.train()

    def _project(self, batch: Batch, fbank: Tensor | None = None) -> tuple[Encoded, Tensor]:
        """The tokenizer's encoder output, and that as vectors to be quantised, ``(B, T, quant_dim)``."""
        fbank = self.tokenizer.fbank(batch.wav) if fbank is None else fbank
        encoded, _ = self.tokenizer.encode_features(self.tokenizer.normalise(fbank), batch.samples)
        return encoded, self.tokenizer.quantize_layer(encoded.x)

    def _target(self, fbank: Tensor, samples: Tensor) -> Tensor:
        """What the estimator is to say, ``(B, T, C)``.

        Less its mean over the clip, the teacher's output tells what happens in a clip, and not who speaks or through
        which microphone, which is the same throughout.
        """
        encoded, _ = self.teacher.encode_features(self.teacher.normalise(fbank), samples)
        if self.settings.target == "plain":
            return encoded.x
        mean = encoded.pooled_bands().unflatten(1, (encoded.bands, -1))  # (B, bands, C)
        return (encoded.by_step() - mean.unsqueeze(1)).flatten(1, 2)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One minus the cosine between estimate and teacher, and the commitment to codes, a mean over all patches."""
        with torch.no_grad():
            fbank = self.teacher.fbank(batch.wav)
            target = self._target(fbank, batch.samples)
        encoded, z = self._project(batch, fbank)
        self.encoded = encoded.x.detach(), encoded.padding_mask
        B, T, _ = z.shape
        real = (
            torch.zeros(B * T, dtype=torch.bool, device=z.device).index_fill(0, batch.target_indices, True).view(B, T)
        )
        # Padding takes no part in the codebook: only real vectors are quantised.
        # Codes follow vectors in the forward pass already, and must never follow what is not finite.
        finite = not float(all_sum((~torch.isfinite(z[real])).any().float()))
        self.tokenizer.quantize.train(finite and self.training)
        codes, commitment, labels = self.tokenizer.quantize(z[real])
        estimate = self.estimator(z.new_zeros(z.shape).masked_scatter(real.unsqueeze(-1), codes), encoded.padding_mask)
        distance = 1 - F.cosine_similarity(estimate[real].float(), target[real].float(), dim=-1)
        patches = len(labels)
        self.statistics.update(labels, batch.target_indices % encoded.bands)
        distance_loss = self.share_of_mean(distance.sum(), patches)
        # A process that only fills up has no vectors, and their mean is not a number.
        commitment = self.share_of_mean(commitment * patches if patches else z.sum() * 0, patches)
        return {"loss": distance_loss + commitment, "distance": distance_loss, "commitment": commitment}

    def finished(self, weights: Mapping[str, Tensor]) -> Tokenizers:
        """The tokenizer, without teacher and estimator."""
        tokenizer = Tokenizers(self.tokenizer.cfg)
        tokenizer.load_state_dict(part(weights, "tokenizer"))
        return tokenizer

    @property
    def drops_layers(self) -> bool:
        """Whether a step may leave layers out."""
        return self.tokenizer.cfg.encoder_layerdrop > 0

    def status_text(self, report: Mapping[str, float]) -> str:
        """Loss and codes in use."""
        return f"{super().status_text(report)}, {report['perplexity']:.0f} codes"

    def warning_text(self, report: Mapping[str, float]) -> str | None:
        """A sentence, if the labels have collapsed, or the embeddings."""
        return collapse(report, self.tokenizer.cfg.quant_n) or super().warning_text(report)

"""How sounds are cut into windows, and what rows a model makes of each: embeddings, class probabilities, labels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from torchbeats import audio
from torchbeats.audio import Floats
from torchbeats.backbone import Encoded
from torchbeats.model import BEATs
from torchbeats.onnx.engine import OnnxModel
from torchbeats.patches import SAMPLE_RATE, PatchGrid
from torchbeats.tokenizers import RandomProjectionTokenizer, Tokenizers

Values: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"  # float32 embeddings, or integer labels

POOLS = ("mean", "bands", "steps", "patches")
SHORTEST_SECONDS = 0.5  # a last piece shorter than this joins the window before
WINDOW_SECONDS = 10.0
BATCH_SECONDS = 40.0


@dataclass(frozen=True, kw_only=True)
class BasePlan(ABC):
    """How sounds are cut up, and what rows are made of each piece. As it stands, a row for every step.

    Args:
        window: seconds that the model sees at once, rounded to whole steps; None for all of a sound, however long.
        batch_seconds: audio in a batch, padding included; a longer window makes a batch of its own.

    Raises:
        ValueError: a setting that makes no sense, named.
    """

    window: float | None = WINDOW_SECONDS
    batch_seconds: float = BATCH_SECONDS

    def __post_init__(self) -> None:
        if self.window is not None and not SHORTEST_SECONDS <= self.window < math.inf:
            raise ValueError(f"A window must have at least {SHORTEST_SECONDS} s, not {self.window}.")
        if not self.batch_seconds > 0:
            raise ValueError(f"A batch must hold some seconds of audio, not {self.batch_seconds}.")

    @property
    def by_step(self) -> bool:
        """A row for every step rather than for every window."""
        return True

    @abstractmethod
    def check(self, model: nn.Module) -> None:
        """Raise a ``ValueError`` where this cannot be done with the model."""

    @abstractmethod
    def rows(self, model: Any, wav: Tensor, lengths: Tensor | None) -> Iterator[Values]:
        """What becomes of a batch ``(B, samples)``: ``(rows, D)`` for each clip."""

    def windows(self, blocks: Iterable[Floats], grid: PatchGrid) -> Iterator[tuple[int, Floats]]:
        """Cut a stream of samples into ``(start, samples)`` windows."""
        if self.window is None:
            return _whole(blocks)
        steps = max(1, round(self.window * SAMPLE_RATE / grid.step_samples))
        # Each window starts at the step that follows the last one's steps.
        return _windows(blocks, grid.samples(steps), steps * grid.step_samples)


@dataclass(frozen=True)
class Plan(BasePlan):
    """How embeddings are made.

    Args:
        pool: "mean": one row a window, the mean over its patches, C values. "bands": the mean over time with the bands
            kept, 8 × C. "steps": a row a step of 160 ms, the mean over its bands, C. "patches": a row a step with
            all its bands, 8 × C.
        layer: whose output: 0 is the encoder's input to the first, None the model's output.
        hop: seconds from a window's start to the next; the window's length where not given.
        window: seconds that the model sees at once; None for all of a sound, however long. For "steps" and "patches"
            rounded to whole steps.
        batch_seconds: audio in a batch, padding included.

    Raises:
        ValueError: a setting that makes no sense, named.
    """

    pool: str = "mean"
    layer: int | None = None
    hop: float | None = None

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ValueError(f"There is no pooling called {self.pool!r}; choose one of {', '.join(POOLS)}.")
        super().__post_init__()
        _check_hop(self.hop, self.window)
        if self.hop is not None and self.by_step:
            raise ValueError(f"The pooling {self.pool!r} lays windows so that steps join; leave the hop out.")

    @property
    def by_step(self) -> bool:
        """A row for every step rather than for every window."""
        return self.pool in ("steps", "patches")

    def check(self, model: nn.Module) -> None:
        """Raise a ``ValueError`` where the model is none that embeds, or has no such layer."""
        if isinstance(model, OnnxModel):
            model.check("embedding" if self.pool == "mean" else "patches", self.layer)
            return
        if not isinstance(model, BEATs):
            raise ValueError("This is a tokenizer; embeddings need a BEATs model.")
        depth = len(model.encoder.layers)
        if self.layer is not None and not 0 <= self.layer <= depth:
            raise ValueError(
                f"The model has {depth} layers, and its input as number 0; there is no layer {self.layer}."
            )

    def windows(self, blocks: Iterable[Floats], grid: PatchGrid) -> Iterator[tuple[int, Floats]]:
        """Cut a stream of samples into ``(start, samples)`` windows."""
        if self.by_step:
            return super().windows(blocks, grid)
        return _windows_every(blocks, self.window, self.hop)

    def rows(self, model: Any, wav: Tensor, lengths: Tensor | None) -> Iterator[Values]:
        """What becomes of a batch ``(B, samples)``: ``(rows, D)`` float32 for each clip."""
        if self.pool == "mean" and isinstance(model, OnnxModel):
            return iter(model.compute("embedding", wav, lengths).numpy()[:, np.newaxis])
        encoded = model.encode(wav, lengths, layer=self.layer)
        pooled = self.pooled(encoded).float().cpu().numpy()
        return _own(pooled, encoded.step_counts()) if self.by_step else iter(pooled[:, np.newaxis])

    def pooled(self, encoded: Encoded) -> Tensor:
        """``(B, D)``, or ``(B, steps, D)`` by step."""
        match self.pool:
            case "mean":
                return encoded.pooled()
            case "bands":
                return encoded.pooled_bands()
            case "steps":
                return encoded.steps()
            case _:
                return encoded.by_step().flatten(2)


@dataclass(frozen=True)
class ScorePlan(BasePlan):
    """How class probabilities are made: a row a window.

    Where in a short sound the model's steps of 160 ms begin is chance, and matters. More views take it out: each window
    is heard so many times, a share of a step later each time, behind noise like its quietest moment. A view, too, hears
    whole steps alone, so the end of a sound of one or two steps is not in all of them.

    Args:
        hop: seconds from a window's start to the next; the window's length where not given.
        views: of which the probabilities' mean is taken. So many times the work.
        window: seconds that the model sees at once; None for all of a sound, however long.
        batch_seconds: audio in a batch, padding included.

    Raises:
        ValueError: a setting that makes no sense, named.
    """

    hop: float | None = None
    views: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.views, int) or self.views < 1:
            raise ValueError(f"A window is heard once or more, not {self.views} times.")
        _check_hop(self.hop, self.window)

    @property
    def by_step(self) -> bool:
        """A row for every step rather than for every window."""
        return False

    def check(self, model: nn.Module) -> None:
        """Raise a ``ValueError`` where the model has no label head."""
        if isinstance(model, OnnxModel):
            model.check("probabilities")
            return
        if not isinstance(model, BEATs) or model.predictor is None:
            raise ValueError("This model has no label head; take one that was fine-tuned.")

    def windows(self, blocks: Iterable[Floats], grid: PatchGrid) -> Iterator[tuple[int, Floats]]:
        """Cut a stream of samples into ``(start, samples)`` windows."""
        return _windows_every(blocks, self.window, self.hop)

    def rows(self, model: Any, wav: Tensor, lengths: Tensor | None) -> Iterator[Values]:
        """What becomes of a batch ``(B, samples)``: ``(1, classes)`` float32 probabilities for each clip."""
        total = _probabilities(model, wav, lengths)
        for view in range(1, self.views):
            count = view * model.grid.step_samples // self.views
            total = total + _probabilities(model, *_later(wav, lengths, count))
        return iter((total / self.views)[:, np.newaxis])


def _probabilities(model: BEATs | OnnxModel, wav: Tensor, lengths: Tensor | None) -> Floats:
    """``(B, classes)``."""
    if isinstance(model, OnnxModel):
        return model.compute("probabilities", wav, lengths).numpy()
    return model.probabilities(model.logits(wav, lengths=lengths)).float().cpu().numpy()


def _later(wav: Tensor, lengths: Tensor | None, count: int) -> tuple[Tensor, Tensor | None]:
    """A batch whose clips begin ``count`` samples later, and their lengths; the same noise for the same clip."""
    ends = [wav.size(1)] * len(wav) if lengths is None else lengths.tolist()
    later = wav.new_zeros(len(wav), wav.size(1) + count)
    for row, clip, end in zip(later, wav, ends, strict=True):
        samples = np.trim_zeros(clip[:end].float().cpu().numpy(), "b")  # what is too short for the model ends in zeros
        row[: count + len(samples)] = torch.from_numpy(audio.delay(samples, count, np.random.default_rng(count)))
    return later, None if lengths is None else lengths + count


@dataclass(frozen=True)
class TokenPlan(BasePlan):
    """How acoustic labels are made: a row a step with a label for each of its bands."""

    def check(self, model: nn.Module) -> None:
        """Raise a ``ValueError`` where the model is no tokenizer, or one that is still to be trained."""
        if not isinstance(model, (Tokenizers, RandomProjectionTokenizer)):
            raise ValueError("This is a BEATs model; tokens need a tokenizer.")
        if isinstance(model, Tokenizers) and not bool(model.quantize.embedding.initted):
            raise ValueError("This tokenizer has no codes yet; take one that was trained.")

    def rows(self, model: Any, wav: Tensor, lengths: Tensor | None) -> Iterator[Values]:
        """What becomes of a batch ``(B, samples)``: labels ``(steps, bands)`` of each clip."""
        tokens = model.encode(wav, lengths)
        return _own(tokens.labels.cpu().numpy().astype(label_type(model)), tokens.step_counts)


def label_type(tokenizer: Tokenizers | RandomProjectionTokenizer) -> np.dtype[Any]:
    """The smallest type for a tokenizer's labels: int16, or int32 where it has more than 32,767 codes."""
    return np.dtype(np.int16 if tokenizer.cfg.quant_n <= np.iinfo(np.int16).max else np.int32)


def _windows(blocks: Iterable[Floats], length: int, hop: int) -> Iterator[tuple[int, Floats]]:
    return audio.windows(blocks, length, hop, round(SHORTEST_SECONDS * SAMPLE_RATE))


def _whole(blocks: Iterable[Floats]) -> Iterator[tuple[int, Floats]]:
    """One window with everything in it; none where there is nothing."""
    if held := list(blocks):
        yield 0, np.concatenate(held)


def _windows_every(blocks: Iterable[Floats], window: float | None, hop: float | None) -> Iterator[tuple[int, Floats]]:
    if window is None:
        return _whole(blocks)
    length = round(window * SAMPLE_RATE)
    return _windows(blocks, length, length if hop is None else round(hop * SAMPLE_RATE))


def _check_hop(hop: float | None, window: float | None) -> None:
    if hop is not None and window is None:
        raise ValueError("A hop leads from one window to the next; where each sound is one window, leave it out.")
    if hop is not None and window is not None and not SHORTEST_SECONDS / 10 <= hop <= window:
        raise ValueError(f"The hop must lie between {SHORTEST_SECONDS / 10} s and the window's {window} s.")


def _own(values: Values, counts: Tensor) -> Iterator[Values]:
    """Each clip's own steps, of ``(B, steps, D)`` with padding."""
    return (clip[:count] for clip, count in zip(values, counts.tolist(), strict=True))

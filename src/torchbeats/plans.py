"""How sounds are cut into windows, which output of a model is wanted of each, and what a row of the results is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from torchbeats import audio
from torchbeats.audio import Floats
from torchbeats.errors import SettingsError
from torchbeats.patches import SAMPLE_RATE, PatchGrid
from torchbeats.pooling import POOLINGS, pooling
from torchbeats.protocol import PROBABILITIES, TOKENS, Layer, Model

Values: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"  # float32 embeddings or probabilities, or integer labels

SHORTEST_SECONDS = 0.5  # a last piece shorter than this joins the window before
WINDOW_SECONDS = 10.0
BATCH_SECONDS = 40.0


class Row(NamedTuple):
    """What a row of results is.

    Attributes:
        column: what its values are called.
        shape: of the values; a table stores them flat.
        dtype: of the values.
        per: "window" or "step" of 160 ms; or "file", whose steps a table joins to one row.
    """

    column: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    per: str

    @property
    def width(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class Window(NamedTuple):
    """A piece of a sound that a model sees at once.

    Attributes:
        start: where its row starts, in samples from the start of the sound.
        end: where its row ends.
        samples: what the model sees, which may reach further on both sides.
    """

    start: int
    end: int
    samples: Floats


@dataclass(frozen=True, kw_only=True)
class Plan(ABC):
    """How sounds are cut up, and what rows are made of each piece.

    Args:
        window: seconds that the model sees at once; None for all of a sound, however long.
        batch_seconds: audio in a batch, padding included; a longer window makes a batch of its own.

    Raises:
        SettingsError: a setting that makes no sense, named.
    """

    window: float | None = WINDOW_SECONDS
    batch_seconds: float = BATCH_SECONDS

    model_is: ClassVar[str] = "model"  # what a table calls it that computed its rows

    def __post_init__(self) -> None:
        if self.window is not None and not SHORTEST_SECONDS <= self.window < math.inf:
            raise SettingsError(f"A window must have at least {SHORTEST_SECONDS} s, not {self.window}.")
        if not self.batch_seconds > 0:
            raise SettingsError(f"A batch must hold some seconds of audio, not {self.batch_seconds}.")

    @property
    @abstractmethod
    def output(self) -> str:
        """The model's output that is wanted; see `torchbeats.protocol`."""

    @abstractmethod
    def row(self, model: Model) -> Row:
        """What a row of the results is."""

    def settings(self, model: Model) -> dict[str, Any]:
        """All settings that the results depend on, beside the model's weights and the sounds."""
        return {"window": self.window, "batch_seconds": self.batch_seconds}

    def check(self, model: Model) -> None:
        """Raise a `ModelError` where this cannot be done with the model."""
        model.check(self.output)

    def rows(self, model: Model, wav: Tensor, lengths: Tensor | None) -> Iterator[Values]:
        """What becomes of a batch ``(B, samples)``: ``(rows, D)`` for each clip."""
        values = _array(model.compute(self.output, wav, lengths), self.row(model).dtype)
        return (
            _own_steps(values, model, wav, lengths)
            if model.outputs[self.output].by_step
            else iter(values[:, np.newaxis])
        )

    def windows(self, blocks: Iterable[Floats], grid: PatchGrid) -> Iterator[Window]:
        """Cut a stream of samples into windows; by step, each starts at the step that follows the last one's steps."""
        if self.window is None:
            return _one_window(blocks)
        steps = max(1, round(self.window * SAMPLE_RATE / grid.step_samples))
        return _cut(blocks, grid.samples(steps), steps * grid.step_samples)


@dataclass(frozen=True)
class EmbeddingPlan(Plan):
    """How embeddings are made.

    Args:
        pool: a mode of `torchbeats.pooling.POOLINGS`. "mean": one row a window, the mean over its patches, C values.
            "bands": the mean over time with the bands kept, 8 × C. "statistics": that, and then the standard deviation
            over time, 2 × 8 × C. "steps": a row a step of 160 ms, the mean over its bands, C. "patches": a row a step
            with all its bands, 8 × C.
        layer: whose output: 0 is the encoder's input to the first, None the model's output, "all" every one, side by
            side.
        hop: seconds from a window's start to the next; the window's length where not given.
        window: seconds that the model sees at once; None for all of a sound, however long. By step rounded to whole
            steps.
        batch_seconds: audio in a batch, padding included.

    Raises:
        SettingsError: a setting that makes no sense, named.
    """

    pool: str = "mean"
    layer: Layer = None
    hop: float | None = None

    def __post_init__(self) -> None:
        by_step = pooling(self.pool).by_step
        super().__post_init__()
        _check_hop(self.hop, self.window)
        if self.hop is not None and by_step:
            raise SettingsError(f"The pooling {self.pool!r} lays windows so that steps join; leave the hop out.")
        if isinstance(self.layer, str) and self.layer != "all":
            raise SettingsError(f"The layer must be a number or all, not {self.layer!r}.")

    @property
    def output(self) -> str:
        """The pooling's name."""
        return self.pool

    def row(self, model: Model) -> Row:
        """An embedding; of several layers, with an axis for them in front."""
        output = model.outputs[self.pool]
        shape = (len(self.layers(model)), *output.shape) if self.layer == "all" else output.shape
        return Row("embedding", shape, output.dtype, "step" if output.by_step else "window")

    def settings(self, model: Model) -> dict[str, Any]:
        """All settings that the embeddings depend on."""
        layer = model.layer if self.layer is None else self.layer
        return {"pool": self.pool, "layer": layer, "hop": self.hop, **super().settings(model)}

    def layers(self, model: Model) -> list[int]:
        """The layers in a row, in order."""
        depth = getattr(model.cfg, "encoder_layers", 0) if model.layer is None else model.layer
        if self.layer == "all":
            return list(range(depth + 1))
        return [depth if self.layer is None else int(self.layer)]

    def check(self, model: Model) -> None:
        """Raise a `ModelError` where the model is none that embeds, or has no such layer."""
        model.check(self.output, self.layer)

    def windows(self, blocks: Iterable[Floats], grid: PatchGrid) -> Iterator[Window]:
        """Cut a stream of samples into windows."""
        if POOLINGS[self.pool].by_step:
            return super().windows(blocks, grid)
        return _cut_every(blocks, self.window, self.hop)

    def rows(self, model: Model, wav: Tensor, lengths: Tensor | None) -> Iterator[Values]:
        """What becomes of a batch ``(B, samples)``: ``(rows, D)`` float32 for each clip."""
        values = _array(model.compute(self.pool, wav, lengths, self.layer), np.dtype(np.float32))
        return _own_steps(values, model, wav, lengths) if POOLINGS[self.pool].by_step else iter(values[:, np.newaxis])


@dataclass(frozen=True)
class ScorePlan(Plan):
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
        SettingsError: a setting that makes no sense, named.
    """

    hop: float | None = None
    views: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.views, int) or self.views < 1:
            raise SettingsError(f"A window is heard once or more, not {self.views} times.")
        _check_hop(self.hop, self.window)

    @property
    def output(self) -> str:
        """Probabilities."""
        return PROBABILITIES

    def row(self, model: Model) -> Row:
        """A probability for each class."""
        output = model.outputs[PROBABILITIES]
        return Row("probabilities", output.shape, output.dtype, "window")

    def settings(self, model: Model) -> dict[str, Any]:
        """All settings that the probabilities depend on."""
        return {"hop": self.hop, "views": self.views, **super().settings(model)}

    def windows(self, blocks: Iterable[Floats], grid: PatchGrid) -> Iterator[Window]:
        """Cut a stream of samples into windows."""
        return _cut_every(blocks, self.window, self.hop)

    def rows(self, model: Model, wav: Tensor, lengths: Tensor | None) -> Iterator[Values]:
        """What becomes of a batch ``(B, samples)``: ``(1, classes)`` float32 probabilities for each clip."""
        total = _array(model.compute(PROBABILITIES, wav, lengths), np.dtype(np.float32))
        for view in range(1, self.views):
            count = view * model.grid.step_samples // self.views
            later = model.compute(PROBABILITIES, *_delayed(wav, lengths, count))
            total = total + _array(later, np.dtype(np.float32))
        return iter((total / self.views)[:, np.newaxis])


@dataclass(frozen=True)
class TokenPlan(Plan):
    """How acoustic labels are made: a row a step with a label for each of its bands; in a table, a row a file."""

    model_is = "tokenizer"

    @property
    def output(self) -> str:
        """Tokens."""
        return TOKENS

    def row(self, model: Model) -> Row:
        """A label for each band of a step."""
        output = model.outputs[TOKENS]
        return Row("labels", output.shape, output.dtype, "file")

    def settings(self, model: Model) -> dict[str, Any]:
        """All settings that the labels depend on."""
        return {"codes": getattr(model.cfg, "quant_n", None), "bands": model.grid.bands, **super().settings(model)}


def plan_for(model: Model) -> Plan:
    """What a model is there for, as it is done by default: tokens from a tokenizer, embeddings from any other."""
    return TokenPlan() if TOKENS in model.outputs else EmbeddingPlan()


def _delayed(wav: Tensor, lengths: Tensor | None, count: int) -> tuple[Tensor, Tensor | None]:
    """A batch whose clips begin ``count`` samples later, and their lengths; the same noise for the same clip."""
    ends = [wav.size(1)] * len(wav) if lengths is None else lengths.tolist()
    delayed = wav.new_zeros(len(wav), wav.size(1) + count)
    for row, clip, end in zip(delayed, wav, ends, strict=True):
        samples = np.trim_zeros(clip[:end].float().cpu().numpy(), "b")  # what is too short for the model ends in zeros
        row[: count + len(samples)] = torch.from_numpy(audio.delay(samples, count, np.random.default_rng(count)))
    return delayed, None if lengths is None else lengths + count


def _array(values: Tensor, dtype: np.dtype[Any]) -> Values:
    # NumPy has no bfloat16.
    return (values.float() if values.is_floating_point() else values).cpu().numpy().astype(dtype, copy=False)


def _own_steps(values: Values, model: Model, wav: Tensor, lengths: Tensor | None) -> Iterator[Values]:
    """Each clip's own steps, of ``(B, steps, D)`` with padding."""
    samples = [wav.size(1)] * len(wav) if lengths is None else lengths.tolist()
    return (clip[: model.grid.steps(count)] for clip, count in zip(values, samples, strict=True))


def _one_window(blocks: Iterable[Floats]) -> Iterator[Window]:
    """One window with everything in it; none where there is nothing."""
    if parts := list(blocks):
        samples = np.concatenate(parts)
        yield Window(0, len(samples), samples)


def _cut(blocks: Iterable[Floats], length: int, hop: int) -> Iterator[Window]:
    for start, samples in audio.windows(blocks, length, hop, round(SHORTEST_SECONDS * SAMPLE_RATE)):
        yield Window(start, start + len(samples), samples)


def _cut_every(blocks: Iterable[Floats], window: float | None, hop: float | None) -> Iterator[Window]:
    if window is None:
        return _one_window(blocks)
    length = round(window * SAMPLE_RATE)
    return _cut(blocks, length, length if hop is None else round(hop * SAMPLE_RATE))


def _check_hop(hop: float | None, window: float | None) -> None:
    if hop is not None and window is None:
        raise SettingsError("A hop leads from one window to the next; where each sound is one window, leave it out.")
    if hop is not None and window is not None and not SHORTEST_SECONDS / 10 <= hop <= window:
        raise SettingsError(f"The hop must lie between {SHORTEST_SECONDS / 10} s and the window's {window} s.")

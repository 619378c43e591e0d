"""What a model gives: the one contract between models and everything that runs them.

`BEATs`, `Tokenizers`, `RandomProjectionTokenizer` and `OnnxModel` keep it. Plans, inference, evaluation and tables ask
a model for an output by name and never for its class, so a new kind of model is one class that keeps this contract.

Outputs are called as the poolings of `torchbeats.pooling` ("mean", "bands", "statistics" and so on), "probabilities" of
classes, and "tokens", a tokenizer's labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from torchbeats.config import ModelConfig
from torchbeats.errors import ModelError
from torchbeats.patches import PatchGrid
from torchbeats.pooling import POOLINGS

PROBABILITIES = "probabilities"
TOKENS = "tokens"

Layer: TypeAlias = "int | str | None"  # 0 is the encoder's input, None the model's output, "all" every one


class Output(NamedTuple):
    """What one row of a model's output is.

    Attributes:
        shape: of a row: ``(C,)``, ``(bands, C)``, ``(classes,)`` or ``(bands,)``.
        dtype: of its values.
        by_step: a row for every step of 160 ms, rather than for every clip.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_step: bool = False


class Model(Protocol):
    """What every model gives, whatever computes it."""

    @property
    def grid(self) -> PatchGrid:
        """How it cuts a spectrogram into patches."""

    @property
    def cfg(self) -> ModelConfig:
        """Its settings."""

    @property
    def label_dict(self) -> dict[int, str] | None:
        """Class index to label, as its file has it; None without labels."""

    @property
    def labels(self) -> list[str] | None:
        """Readable name of each class; None without labels."""

    @property
    def layer(self) -> int | None:
        """The layer at which the model ends, where that is not its last."""

    @property
    def outputs(self) -> Mapping[str, Output]:
        """What it can compute, by name."""

    @property
    def engine(self) -> str:
        """What computes: "torch", "onnx" or "openvino"."""

    @property
    def device(self) -> torch.device:
        """Where it computes; waveforms are to be there."""

    def check(self, output: str, layer: Layer = None) -> None:
        """Raise a `ModelError`, which says what would, where the model cannot compute this."""

    def compute(self, output: str, wav: Tensor, lengths: Tensor | None = None, layer: Layer = None) -> Tensor:
        """One of the outputs, in evaluation mode and without gradients.

        Args:
            output: its name.
            wav: ``(B, samples)`` at 16 kHz, in [-1, 1] or integer PCM.
            lengths: ``(B,)`` integers, each clip's length in samples.
            layer: whose output: 0 is the encoder's input to the first, None the model's output, "all" every one, side
                by side in front of the row's values.

        Returns:
            ``(B, D)``; by step ``(B, steps, D)``, where what stands behind a clip's own steps means nothing. D is the
            product of the output's shape.
        """

    def digest(self) -> str:
        """A hash of all weights and settings: another if any of them is."""


def embeddings(width: int, bands: int) -> dict[str, Output]:
    """The outputs of a model that embeds: every pooling of its features.

    Args:
        width: C, channels of a patch's features.
        bands: patches a step.
    """
    dtype = np.dtype(np.float32)
    return {name: Output(mode.shape(bands, width), dtype, mode.by_step) for name, mode in POOLINGS.items()}


def token_type(codes: int) -> np.dtype[Any]:
    """The smallest type for labels: int16, or int32 where there are more than 32,767 codes."""
    return np.dtype(np.int16 if codes <= np.iinfo(np.int16).max else np.int32)


def refuse(outputs: Mapping[str, Output], requested: str) -> None:
    """Raise a `ModelError` where ``requested`` is not among a model's outputs; the message says what the model is."""
    if requested in outputs:
        return
    if requested == PROBABILITIES and TOKENS not in outputs:
        raise ModelError("This model has no label head; take one that was fine-tuned.")
    if requested == TOKENS:
        raise ModelError("This is a BEATs model; tokens need a tokenizer.")
    if TOKENS in outputs:
        kind = "embeddings need a BEATs model" if requested in POOLINGS else "labels of classes need a fine-tuned model"
        raise ModelError(f"This is a tokenizer; {kind}.")
    raise ModelError(f"This model has no output called {requested!r}; it has {', '.join(outputs)}.")


def refuse_layer(layer: Layer, depth: int) -> None:
    """Raise a `ModelError` where a model of ``depth`` layers has no such layer."""
    if layer is None or layer == "all" or (isinstance(layer, int) and 0 <= layer <= depth):
        return
    raise ModelError(f"The model has {depth} layers; there is no layer {layer}.")

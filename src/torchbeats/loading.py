"""A name or a path → a model that is ready to use."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch

from torchbeats.config import RandomProjectionConfig, TokenizersConfig
from torchbeats.model import BEATs
from torchbeats.onnx.engine import OnnxModel
from torchbeats.onnx.export import SUFFIX
from torchbeats.tokenizers import RandomProjectionTokenizer, Tokenizers
from torchbeats.weights import checkpoint, hub


def load(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    freeze: bool = True,
) -> Any:
    """Load a model by name or from a file.

    Args:
        name_or_path: a name that ``torchbeats models`` lists, ``owner/repo[/file][@revision]`` on the Hugging Face Hub,
            a checkpoint file of any published family, or an .onnx file that `export` wrote; None for the small model
            that comes with the package, with a warning that says so.
        device: where the model goes; the CPU where not given.
        dtype: of its parameters; float32 where not given. The front end stays in float32.
        freeze: stay in evaluation mode and ask for no parameter gradients, until ``model.unfreeze()``.

    Returns:
        A `BEATs`, with its label names under ``labels`` if it has any; from a tokenizer's checkpoint, a `Tokenizers` or
        a `RandomProjectionTokenizer`; from an .onnx file, an `OnnxModel`, which is for the CPU and float32.

    Raises:
        FileNotFoundError: there is no such file.
        HubError: no such name, or its file cannot be had.
        CheckpointError: the file is not a BEATs checkpoint, or is damaged.
        MissingPackageError: an .onnx file, and onnxruntime is not installed.
    """
    if name_or_path is None:
        warnings.warn(hub.BUILT_IN_NOTE, stacklevel=2)
        name_or_path = hub.BUILT_IN
    path = hub.resolve(name_or_path)
    if path.suffix == SUFFIX:
        return OnnxModel(path).to(device=device, dtype=dtype)
    stored = checkpoint.read(path)
    model: torch.nn.Module
    if isinstance(stored.config, RandomProjectionConfig):
        model = RandomProjectionTokenizer(stored)
    elif isinstance(stored.config, TokenizersConfig):
        model = Tokenizers(stored, freeze=freeze)
    else:
        model = BEATs(stored, freeze=freeze)
    return model.to(device=device, dtype=dtype)

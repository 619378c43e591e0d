"""What a model must look like for the research code and its many copies, which know fewer settings than we do."""

from __future__ import annotations

import warnings
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from torchbeats.config import FBANK_MEAN, FBANK_STD, BEATsConfig
from torchbeats.errors import ModelError

_KERNEL, _BIAS = "patch_embedding.weight", "patch_embedding.bias"


def for_research_code(
    path: str | PathLike[str], config: BEATsConfig, tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and tensors with which code that knows the published settings alone computes what the model does.

    Such code normalises features by the published mean and standard deviation, whatever the settings say; a model with
    others gets them folded into its patch embedding.

    Args:
        path: of the file to be written, for messages.
        config: of the model.
        tensors: of the model, by state-dict name.

    Raises:
        ModelError: the model has a head that the research code does not have.
    """
    settings = config.to_dict()
    if config.finetuned_model and config.predictor_pool != "mean":
        raise ModelError(
            f"{path} is for code that has no head over {config.predictor_pool}. Write a .safetensors file, or "
            "fine-tune with model.pool=mean."
        )
    if config.finetuned_model and config.problem_type == "single_label":
        warnings.warn(
            f"{path} is of a single-label model. The research code and its copies apply a sigmoid to the logits where "
            "this model applies a softmax: there take the logits, or the largest probability alone. torchbeats reads "
            "the file as it is meant.",
            stacklevel=4,
        )
    if (config.fbank_mean, config.fbank_std) != (FBANK_MEAN, FBANK_STD):
        tensors = {**tensors, **_folded(tensors, config.fbank_mean, config.fbank_std)}
        settings |= {"fbank_mean": FBANK_MEAN, "fbank_std": FBANK_STD, "conv_bias": True}
    return settings, tensors


def _folded(tensors: dict[str, Tensor], mean: float, std: float) -> dict[str, Tensor]:
    """The patch embedding that gives for features normalised as published what the model's own gives for its own.

    With x = (f - m) / 2s and y = (f - M) / 2S for the same features f, x = S / s * y + (M - m) / 2s.
    """
    kernel = tensors[_KERNEL]
    exact = kernel.double()
    bias = exact.sum((1, 2, 3)) * (FBANK_MEAN - mean) / (2 * std)
    if _BIAS in tensors:
        bias = bias + tensors[_BIAS].double()
    # Half precision would lose the bias's digits, which are added to every patch; nothing asks for one dtype in a file.
    wide = torch.promote_types(kernel.dtype, torch.float32)
    return {_KERNEL: (exact * FBANK_STD / std).to(kernel.dtype), _BIAS: bias.to(wide)}

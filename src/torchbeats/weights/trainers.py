"""Weights as training programs leave them: in a dictionary of more than weights, under the names of what was around.

Lightning writes ``{"state_dict", "optimizer_states", ...}``, AVEX and others ``{"model_state_dict", ...}``, ESPnet's
``checkpoint.pth`` ``{"model", "reporter", "optimizers", ...}``. Inside, every name may begin with that of a wrapper:
``model.`` (an attribute), ``module.`` (DistributedDataParallel), ``_orig_mod.`` (torch.compile).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchbeats.errors import CheckpointError, quoted, some_of

# Where trainers put the weights; a file may use another name.
_CONTAINERS = ("model", "state_dict", "model_state_dict", "module")
# Every BEATs has a tensor of these names; what stands in front of them is the names of what was around the model.
_ANCHORS = ("patch_embedding.weight", "encoder.layers.0.self_attn.q_proj.weight")
# What wraps single modules for the trainer's own use, anywhere in a model, and never is a name of a part.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Parts of a larger model that `families` knows under these names.
_KNOWN_PARENTS = ("encoder", "backbone")


def weights_in(path: Path, content: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
    """The state dict in what a file holds, and the name it was under; None where the file is the state dict.

    Raises:
        CheckpointError: there are several, or the one that there is holds no BEATs.
    """
    mappings = {name: value for name, value in content.items() if isinstance(value, Mapping)}
    holding = [name for name, value in mappings.items() if _parents(value)]
    if len(holding) > 1:
        raise CheckpointError(
            path, f"it has the weights of several models, under {quoted(holding)}. Save the one that you want alone."
        )
    if holding:
        return mappings[holding[0]], holding[0]
    container = next((name for name in _CONTAINERS if name in mappings), None)
    if container is None or any(isinstance(value, Tensor) for value in content.values()):
        return content, None
    return mappings[container], container


def unwrapped(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without the names of wrappers around the whole model, where all of them have those in common.

    Raises:
        CheckpointError: the model's tensors lie beside tensors of something else; which is told.
    """
    tensors = _without_wrappers(path, tensors)
    parents = _parents(tensors)
    if len(parents) > 1:
        names = quoted(parent.rstrip(".") or "no name" for parent in sorted(parents))
        raise CheckpointError(
            path, f"it has parts of a BEATs under several names: {names}. Save the model that you want alone."
        )
    if not parents:
        return tensors
    parent = parents.pop()
    wrappers = parent.split(".")[:-1]
    if wrappers and wrappers[-1] in _KNOWN_PARENTS:
        wrappers = wrappers[:-1]
    prefix = "".join(f"{part}." for part in wrappers)
    if not prefix:
        return tensors
    if outside := [name for name in tensors if not name.startswith(prefix)]:
        raise CheckpointError(
            path,
            f"its BEATs lies under {prefix[:-1]!r}, beside tensors of something else: {some_of(outside)}. In the "
            f"program that made it, save the model alone: torchbeats.save(….{prefix[:-1]}, 'model.safetensors').",
        )
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _parents(names: Mapping[Any, Any]) -> set[str]:
    """What stands in front of the names that every BEATs has."""
    return {
        name.removesuffix(anchor)
        for name in names
        if isinstance(name, str)
        for anchor in _ANCHORS
        if name == anchor or name.endswith("." + anchor)
    }


def _without_wrappers(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    plain = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in tensors}
    if len(set(plain.values())) < len(plain):
        duplicates = [name for name, shorter in plain.items() if name != shorter and shorter in plain]
        raise CheckpointError(path, f"it has tensors twice, with and without a wrapper: {some_of(duplicates)}.")
    return {plain[name]: tensor for name, tensor in tensors.items()}


# --- values beside the weights ----------------------------------------------------------------------------------------


class _StandIn:
    """Takes the place of a harmless object beside the weights, which is never used; stores and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __repr__(self) -> str:
        return "an object that is no plain value"


# Trainers keep these beside the weights, in their histories and settings. None of the real classes is called.
_STAND_INS = (
    "datetime.timedelta",
    "datetime.datetime",
    "argparse.Namespace",
    "types.SimpleNamespace",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    *(
        f"{module}.{kind}"
        for module in ("pathlib", "pathlib._local")  # as Python 3.13 calls it
        for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
)


def plain_values() -> AbstractContextManager[Any]:
    """While torch loads a file: the harmless objects that trainers keep beside the weights are passed over."""
    return torch.serialization.safe_globals([(_StandIn, name) for name in _STAND_INS])

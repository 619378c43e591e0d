"""The description of a model in its ONNX file, checked for consistency and against the graph's inputs and outputs."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchbeats.config import BEATsConfig
from torchbeats.errors import CheckpointError, some_of
from torchbeats.labels import class_names
from torchbeats.onnx.network import INPUTS
from torchbeats.onnx.outputs import BY_OUTPUT, POOLINGS, STEP_COUNTS
from torchbeats.patches import N_MELS, SAMPLE_RATE, PatchGrid
from torchbeats.protocol import PROBABILITIES
from torchbeats.weights.families import (
    METADATA_KEY,
    check_version,
    labels_by_index,
    settings_that_fit,
)
from torchbeats.weights.sidecars import LARGEST

LENGTHS = "lengths"
# Shape of each input behind the batch; None is a size that is open.
_INPUT_SHAPES: dict[str, tuple[int | None, ...]] = {"waveform": (None,), "fbank": (None, N_MELS)}
Shapes = Mapping[str, Sequence[int | str | None]]


@dataclass(frozen=True)
class Description:
    """A file's model.

    Attributes:
        config: of the model that was exported.
        label_dict: its labels by index.
        layer: at which the graph ends; None for the model's last.
        takes: name of the graph's first input, "waveform" or "fbank".
    """

    config: BEATsConfig
    label_dict: dict[int, str] | None
    layer: int | None
    takes: str


def description_of(
    path: str | os.PathLike[str], metadata: Mapping[str, str], inputs: Shapes, outputs: Shapes
) -> Description:
    """Read the metadata of a file that `export` wrote.

    Args:
        path: of the file, for messages.
        metadata: of the file.
        inputs: shapes of the graph's inputs, by name.
        outputs: shapes of its outputs.

    Raises:
        CheckpointError: another program wrote it, or they contradict themselves or the graph.
    """
    if METADATA_KEY not in metadata:
        raise CheckpointError(path, "this ONNX file was not written by `torchbeats export`.")
    about = _parsed(path, metadata[METADATA_KEY])
    if (rate := metadata.get("sample_rate", str(SAMPLE_RATE))) != str(SAMPLE_RATE):
        raise CheckpointError(
            path,
            f"its metadata say sample_rate {reprlib.repr(rate)}; BEATs models hear {SAMPLE_RATE} samples a second.",
        )
    check_version(path, about["version"])
    if about["kind"] != "beats":
        raise CheckpointError(
            path, f"it holds a {reprlib.repr(about['kind'])}, which this version of torchbeats does not know."
        )
    config = settings_that_fit(path, about["config"], BEATsConfig, {})
    label_dict = labels_by_index(path, about["labels"], config) if config.finetuned_model else None
    _check_names(path, metadata.get("labels"), label_dict, config)
    result = Description(config, label_dict, _layer(path, about["layer"], config), about["takes"])
    _check_inputs(path, result.takes, inputs)
    _check_outputs(path, result, outputs)
    return result


def _parsed(path: str | os.PathLike[str], text: str) -> dict[str, Any]:
    try:
        if len(text) > LARGEST:
            raise ValueError(f"it has {len(text):,} characters; at most {LARGEST:,} are read")
        about = json.loads(text)
        if not isinstance(about["config"], dict):
            raise TypeError(f"config is of type {type(about['config']).__name__}")
        return {name: about[name] for name in ("version", "kind", "config", "labels", "layer", "takes")}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(path, f"the metadata that describes the model is damaged ({error!r:.100}).") from error


def _check_names(
    path: str | os.PathLike[str], text: str | None, label_dict: dict[int, str] | None, config: BEATsConfig
) -> None:
    """Compare the classes' names for other programs with those of the model."""
    expected = class_names(label_dict, config.predictor_class)
    if text is None or text == json.dumps(expected, ensure_ascii=False):
        return
    try:
        names = json.loads(text) if len(text) <= LARGEST else None
    except (ValueError, RecursionError):
        names = None
    if names != expected:
        raise CheckpointError(path, "its metadata name its classes twice, and not alike.")


def _layer(path: str | os.PathLike[str], layer: Any, config: BEATsConfig) -> int | None:
    if layer is None or (type(layer) is int and 0 <= layer <= config.encoder_layers):
        return layer
    raise CheckpointError(
        path, f"its layer must be null or one of 0 to {config.encoder_layers}, not {reprlib.repr(layer)}."
    )


def _check_inputs(path: str | os.PathLike[str], takes: Any, inputs: Shapes) -> None:
    if not isinstance(takes, str) or takes not in INPUTS or set(inputs) != {takes, LENGTHS}:
        raise CheckpointError(
            path, f"its metadata say that it takes {reprlib.repr(takes)}; its inputs are {_names(inputs)}."
        )
    for name, trailing in ((takes, _INPUT_SHAPES[takes]), (LENGTHS, ())):
        _check_shape(path, f"its input {name}", inputs[name], trailing)


def _check_outputs(path: str | os.PathLike[str], description: Description, outputs: Shapes) -> None:
    config = description.config
    if unknown := [name for name in outputs if name not in (*BY_OUTPUT, PROBABILITIES, STEP_COUNTS)]:
        raise CheckpointError(path, f"it has outputs that `torchbeats export` does not write: {_names(unknown)}.")
    if PROBABILITIES in outputs and not config.finetuned_model:
        raise CheckpointError(path, f"its settings say finetuned_model false; yet it has the output {PROBABILITIES}.")
    if PROBABILITIES in outputs and description.layer not in (None, config.encoder_layers):
        raise CheckpointError(path, f"it has the output {PROBABILITIES}, which layer {description.layer} cannot have.")
    bands = PatchGrid(config.input_patch_size).bands
    for name, shape in outputs.items():
        if name in BY_OUTPUT:
            trailing = POOLINGS[BY_OUTPUT[name]].shape(bands, config.encoder_embed_dim)[1:]
            setting = f"encoder_embed_dim {config.encoder_embed_dim}"
        else:
            trailing = (config.predictor_class,) if name == PROBABILITIES else ()
            setting = f"predictor_class {config.predictor_class}"
        _check_shape(path, f"its settings say {setting}; its output {name}", shape, trailing)


def _check_shape(
    path: str | os.PathLike[str], what: str, shape: Sequence[Any], trailing: Sequence[int | str | None]
) -> None:
    """Compare a shape with a batch and what stands behind it, where names and None are sizes that are open."""
    fits = len(shape) == 1 + len(trailing) and all(
        expected == size for expected, size in zip(trailing, shape[1:], strict=True) if isinstance(expected, int)
    )
    if not fits:
        raise CheckpointError(path, f"{what} has the shape {reprlib.repr(list(shape))}.")


def _names(names: Mapping[str, Any] | Sequence[str]) -> str:
    return some_of(name[:40] for name in names)

"""A BEATs model → one ONNX file that needs neither torch nor torchbeats: front end, encoder, pooling, label head.

The graph is written operation by operation, not traced: that takes a second and no compiler, works with any torch, and
leaves every weight where a quantised product finds it. Tests hold it to the model in each of its settings.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchbeats.errors import ModelError, SettingsError
from torchbeats.extras import require
from torchbeats.files import replacing
from torchbeats.labels import class_names
from torchbeats.model import BEATs
from torchbeats.onnx.calibration import ranges
from torchbeats.onnx.graph import Graph
from torchbeats.onnx.network import INPUTS, Network
from torchbeats.onnx.outputs import OUTPUTS, write_outputs
from torchbeats.patches import SAMPLE_RATE
from torchbeats.protocol import PROBABILITIES
from torchbeats.version import __version__
from torchbeats.weights.checkpoint import config_and_labels, plain_settings
from torchbeats.weights.families import FORMAT_VERSION, METADATA_KEY

SUFFIX = ".onnx"
LARGEST = 2**31 - 2**20  # bytes: a protocol buffer ends at 2 GB


def export(
    model: BEATs,
    path: str | os.PathLike[str],
    *,
    takes: str = "waveform",
    outputs: Iterable[str] | None = None,
    layer: int | None = None,
    int8: bool = False,
    calibrate: Iterable[np.ndarray[Any, Any] | Tensor] | None = None,
) -> None:
    """Write a model to an ONNX file, which is complete or absent.

    The graph has two inputs, batch and time being of any size:

    | input | |
    |---|---|
    | ``waveform`` | ``(batch, samples)`` float32 at 16 kHz, in [-1, 1]; |
    | or ``fbank`` | ``(batch, frames, 128)`` float32, log-mel features as `torchbeats.fbank.Fbank` gives them |
    | ``lengths`` | ``(batch,)`` int64: samples, or frames, of each clip; what lies behind them is not looked at |

    | output | |
    |---|---|
    | ``embedding`` | ``(batch, C)``, the mean over each clip's own patches |
    | ``probabilities`` | ``(batch, classes)``, of a model with a label head |
    | ``steps`` | ``(batch, steps, C)``, the mean over the bands of each 160 ms |
    | ``patches`` | ``(batch, 8 * steps, C)``, ``patch = 8 * step + band`` |
    | ``step_counts`` | ``(batch,)`` int64, beside either of the last two: the steps that are a clip's own |

    Clips shorter than one step are filled up with silence. The file's metadata have ``sample_rate``, ``labels`` (a JSON
    list in the order of ``probabilities``), ``torchbeats_version``, and all settings under ``torchbeats``.

    Args:
        model: a `BEATs`.
        path: of the file.
        takes: "waveform", or "fbank" for a graph without the front end.
        outputs: some of "embedding", "probabilities", "steps" and "patches"; all that the model has where not given.
        layer: whose output; the model's where not given. 0 is the encoder's input to the first layer.
        int8: the encoder's weights as 8-bit integers, under a third of the size; values then agree to about a percent,
            and those of a clip depend a little on the clips beside it.
        calibrate: sounds, ``(samples,)`` at 16 kHz each, some dozens of ten seconds, like those that the model will
            hear: with ``int8``, the encoder's values are rounded to the ranges that they have in these. OpenVINO
            computes such a file faster than any other; it is slower than without in ONNX Runtime. Values of a clip do
            not depend on the clips beside it.

    Raises:
        ValueError: a setting that makes no sense, or a model that is none of `BEATs`.
        MissingPackageError: the package onnx is not installed, or onnxruntime, which computes the ranges.
    """
    content = serialized(model, takes=takes, outputs=outputs, layer=layer, int8=int8, calibrate=calibrate)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def serialized(
    model: BEATs,
    *,
    takes: str = "waveform",
    outputs: Iterable[str] | None = None,
    layer: int | None = None,
    int8: bool = False,
    calibrate: Iterable[np.ndarray[Any, Any] | Tensor] | None = None,
    fused: bool = False,
) -> bytes:
    """What `export` writes; ``fused`` is the form that suits OpenVINO, which calibrated graphs always have."""
    names = check(model, takes, outputs, layer)
    if calibrate is not None and not int8:
        raise SettingsError("Sounds to calibrate with are for int8; without it nothing is rounded.")
    config, label_dict = config_and_labels(model)
    require("onnx", "onnx")

    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        model = copy.deepcopy(model).float()
    found = None if calibrate is None else ranges(model, calibrate, layer)
    graph = Graph(int8, found)
    with torch.no_grad():
        write_outputs(graph, Network(model, graph, fused or graph.static).write(takes, layer), model, names)
    if graph.bytes > LARGEST:
        raise ModelError(f"An ONNX file ends at 2 GB, and the weights have {graph.bytes / 1e9:.1f} GB. Export int8.")

    about = {
        "version": FORMAT_VERSION,
        "kind": "beats",
        "config": plain_settings(config.to_dict()),
        "labels": label_dict,
        "takes": takes,
        "layer": layer,
        "int8": int8,
        "calibrated": graph.static,
    }
    metadata = {METADATA_KEY: json.dumps(about), "torchbeats_version": __version__, "sample_rate": str(SAMPLE_RATE)}
    if PROBABILITIES in names:
        metadata["labels"] = json.dumps(class_names(label_dict, config.predictor_class), ensure_ascii=False)
    return graph.serialized(metadata)


def check(model: BEATs, takes: str, outputs: Iterable[str] | None, layer: int | None) -> tuple[str, ...]:
    """The outputs that are meant; a `ModelError` or `SettingsError` where there are none. Arguments: see `export`."""
    if not hasattr(model, "predictor"):  # which a BEATs has, be it None
        raise ModelError(f"Only a BEATs model can be exported; this has the type {type(model).__name__}.")
    _check_parts(model)
    if takes not in INPUTS:
        raise SettingsError(f"A graph takes {' or '.join(INPUTS)}, not {takes!r}.")
    depth = model.cfg.encoder_layers
    if layer is not None and not 0 <= layer <= depth:
        raise ModelError(f"The model has {depth} layers; there is no layer {layer}.")
    labelled = model.predictor is not None and layer in (None, depth)
    if outputs is None:
        return tuple(name for name in OUTPUTS if name != PROBABILITIES or labelled)
    requested = set(outputs)
    if unknown := sorted(requested - set(OUTPUTS)):
        raise SettingsError(f"There is no output called {unknown[0]!r}; choose some of {', '.join(OUTPUTS)}.")
    if not requested:
        raise SettingsError(f"A graph must have an output; choose some of {', '.join(OUTPUTS)}.")
    if PROBABILITIES in requested and not labelled:
        reason = "stands behind the last layer" if model.predictor is not None else "is missing from this model"
        raise ModelError(f"Probabilities come from the label head, which {reason}.")
    return tuple(name for name in OUTPUTS if name in requested)


def _check_parts(model: BEATs) -> None:
    """Raise a `ModelError` where a part has been replaced: the graph has the operations of ours.

    A label head may have been replaced; `config_and_labels` looks at it.
    """
    for name, part in model.named_modules():
        kind = type(part)
        if name and name.split(".")[0] != "predictor" and not kind.__module__.startswith(("torch.nn.", "torchbeats.")):
            raise ModelError(
                f"The model's {name} is a {kind.__module__}.{kind.__name__}, which cannot be exported. Merge adapters "
                "into the weights first (merge_and_unload in PEFT); instead of a quantised model, export the original "
                "with int8."
            )

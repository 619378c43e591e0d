"""What ESPnet's ``config.yaml`` says of a fine-tuned model: labels, problem type, and settings of the front end."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchbeats.errors import CheckpointError
from torchbeats.weights import sidecars

CONFIG = "config.yaml"
_DEFAULT = "multi-class"  # ESPnetClassificationModel's classification_type
_PROBLEM_TYPES = {"multi-class": "single_label", "multi-label": "multi_label"}
# Options of ESPnet's encoder that change what it computes, and the value with which they do not.
_OPTIONS = {
    "max_layer": None,
    "use_weighted_representation": False,
    "adapter_config": "",
    "add_positional_information": False,
    "downsampling_rate": 1,
}


def settings_beside(path: Path) -> dict[str, Any]:
    """``token_list`` and ``cfg`` for a file of bare weights, from the ``config.yaml`` that comes with it.

    Raises:
        CheckpointError: there is none, or it describes a model that torchbeats does not have.
    """
    beside = sidecars.beside(path, CONFIG)
    if beside is None:
        raise CheckpointError(path, f"a fine-tuned ESPnet model needs its {CONFIG} beside it; download that too.")
    said = sidecars.read_yaml(beside)
    encoder, decoder, task = (said.get(name) or {} for name in ("encoder_conf", "decoder_conf", "model_conf"))
    base = encoder.get("beats_config") or {} if isinstance(encoder, Mapping) else {}
    if not all(isinstance(part, Mapping) for part in (encoder, decoder, task, base)):
        raise CheckpointError(path, f"the settings in {beside} must be dictionaries: encoder_conf, its beats_config, …")
    if decoder.get("pooling", "mean") != "mean":
        raise CheckpointError(
            path, f"its head pools by {decoder['pooling']}; torchbeats reads heads that pool by mean."
        )
    for option, off in _OPTIONS.items():
        if encoder.get(option) not in (None, off):
            raise CheckpointError(path, f"it was trained with ESPnet's {option}, which torchbeats does not have.")
    settings = {name: value for name, value in base.items() if value is not None}
    settings |= {name: encoder[name] for name in ("fbank_mean", "fbank_std") if encoder.get(name) is not None}
    settings["problem_type"] = _problem_type(path, task.get("classification_type", _DEFAULT))
    return {"token_list": said.get("token_list"), "cfg": settings}


def settings_of_converted(path: Path, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a fine-tuned model that somebody wrote as ``{"model", "cfg", "token_list"}``.

    ``cfg`` is that of the pre-trained model, as a rule, and does not tell a sigmoid from a softmax. The ``config.yaml``
    beside it does; where there is none, ESPnet's default is taken, with a warning.
    """
    if sidecars.beside(path, CONFIG) is not None:
        theirs: dict[str, Any] = settings_beside(path)["cfg"]
        return {**cfg, **theirs}  # as ESPnet does: what it was fine-tuned with wins
    if cfg.get("problem_type") is not None:
        return dict(cfg)
    if cfg.get("classification_type") is not None:
        return {**cfg, "problem_type": _problem_type(path, cfg["classification_type"])}
    warnings.warn(
        f"{path} does not say whether its classes exclude each other, and no {CONFIG} of ESPnet's lies beside it: they "
        "are taken to do so (softmax), as is ESPnet's default. If it was trained with classification_type: "
        f"multi-label, put its {CONFIG} beside it.",
        stacklevel=2,
    )
    return {**cfg, "problem_type": _PROBLEM_TYPES[_DEFAULT]}


def _problem_type(path: Path, kind: Any) -> str:
    if not isinstance(kind, str) or kind not in _PROBLEM_TYPES:
        raise CheckpointError(path, f"its classification_type must be one of {', '.join(_PROBLEM_TYPES)}.")
    return _PROBLEM_TYPES[kind]

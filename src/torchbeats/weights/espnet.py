"""ESPnet's ``config.yaml`` of a model → its labels, problem type, and settings of the front end.

ESPnet's encoder takes the mean and deviation of its features as arguments of its own, ``encoder_conf.fbank_mean`` and
``fbank_std``. Those among the sizes (``beats_config``, or ``cfg`` in a file) it stores and never uses. Where it is told
none it takes those of its version.
"""

from __future__ import annotations

import re
import reprlib
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torchbeats.config import FBANK_MEAN, FBANK_STD
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
# Settings of ESPnet's that no other publisher's files have: those of the pre-training predictor.
_ITS_SETTINGS = {"codebook_vocab_size", "decoder_layers", "decoder_embed_dim", "mask_ratio", "use_flash_attn"}

# Frozen helpers of the front end, which hold nothing that was learned; ESPnet has them since `_FIRST_OPENBEATS`.
FROZEN = ("patch_embedding_pad.", "raw2fbank_pad.")

_PUBLISHED = {"fbank_mean": FBANK_MEAN, "fbank_std": FBANK_STD}  # ESPnet's defaults too, up to this version:
_LAST_PUBLISHED = 202511
_OPENBEATS = {"fbank_mean": 15.29130, "fbank_std": 5.90532}  # of its corpus of 7 million sounds; from this version on:
_FIRST_OPENBEATS = 202609


def settings_of_finetuned(path: Path, tensors: Collection[str], cfg: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``token_list`` and ``cfg`` of a model with a label head, from the ``config.yaml`` that comes with it.

    Args:
        path: of the weights.
        tensors: their names.
        cfg: settings in the file itself, which those beside it are to overrule.

    Raises:
        CheckpointError: there is none, or it describes a model that torchbeats does not have.
    """
    config = _read_config(path, "a fine-tuned ESPnet model")
    decoder, task = _section(path, config, "decoder_conf"), _section(path, config, "model_conf")
    if decoder.get("pooling", "mean") != "mean":
        raise CheckpointError(
            path, f"its head pools by {_shown(decoder['pooling'])}; torchbeats reads heads that pool by mean."
        )
    settings = _settings(path, config, cfg or {}, tensors)
    settings["problem_type"] = _problem_type(path, task.get("classification_type", _DEFAULT))
    return {"token_list": config.get("token_list"), "cfg": settings}


def settings_of_pretraining(path: Path, tensors: Collection[str]) -> tuple[dict[str, Any], bool]:
    """Settings of a checkpoint of ESPnet's pre-training, and whether they are all that differ from its defaults.

    Raises:
        CheckpointError: as above.
    """
    config = _read_config(path, "a checkpoint of ESPnet's pre-training")
    return _settings(path, config, {}, tensors), _section(path, config, "encoder_conf").get("beats_ckpt_path") is None


def settings_of_converted(path: Path, cfg: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """Settings of a fine-tuned model that was converted to ``{"model", "cfg", "token_list"}``.

    ``cfg`` is that of the pre-trained model, as a rule, and does not tell a sigmoid from a softmax. The ``config.yaml``
    beside it does; where there is none, ESPnet's default is taken, with a warning.
    """
    if sidecars.find(path, CONFIG) is not None:
        finetuned: dict[str, Any] = settings_of_finetuned(path, tensors, cfg)["cfg"]
        return {**cfg, **finetuned}  # as ESPnet does: what it was fine-tuned with wins
    settings = _with_published(cfg)
    assumed = []
    if cfg.get("problem_type") is None and cfg.get("classification_type") is None:
        settings["problem_type"] = _PROBLEM_TYPES[_DEFAULT]
        assumed.append("its classes are taken to exclude each other (softmax, not classification_type: multi-label)")
    elif cfg.get("problem_type") is None:
        settings["problem_type"] = _problem_type(path, cfg["classification_type"])
    if assumed or not _has_statistics(cfg):
        assumed.append(f"its features are normalised by the mean and deviation {_pair(settings)}")
    if assumed:
        warnings.warn(
            f"{path} does not say all of how it was trained, and no {CONFIG} of ESPnet's lies beside it: "
            f"{' and '.join(assumed)}. If that is wrong, so are its outputs: put its {CONFIG} beside it.",
            stacklevel=2,
        )
    return settings


def settings_of_pretrained(path: Path, cfg: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """``cfg`` of a file ``{"cfg", "model"}``, with ESPnet's statistics where it is ESPnet's.

    Args:
        path: of the file.
        cfg: in it.
        tensors: their names in it.
    """
    if not _has_frozen(tensors) and _ITS_SETTINGS.isdisjoint(cfg):
        config = _own_training_config(path)
        return (
            dict(cfg) if config is None or _has_statistics(cfg) else {**cfg, **_statistics(path, config, cfg, tensors)}
        )
    config_file = sidecars.find(path, CONFIG)
    if config_file is not None:
        return {**cfg, **_statistics(path, sidecars.read_yaml(config_file), cfg, tensors)}
    settings = _with_published(cfg)
    if not _has_statistics(cfg):
        _warn_of_assumed(path, settings, f"no {CONFIG} of ESPnet's lies beside it")
    return settings


def _has_frozen(tensors: Collection[str]) -> bool:
    return any(name.removeprefix("encoder.").startswith(FROZEN) for name in tensors)


def _own_training_config(path: Path) -> dict[str, Any] | None:
    """The ``config.yaml`` beside a file that may be anybody's, where it is one of a BEATs that ESPnet trained afresh.

    One of a fine-tuned model names the file that it was tuned from, which may well be this one.
    """
    config_file = sidecars.find(path, CONFIG)
    try:
        config = {} if config_file is None else sidecars.read_yaml(config_file)
    except CheckpointError:
        return None
    encoder = config.get("encoder_conf")
    if not isinstance(encoder, Mapping) or "beats_config" not in encoder or encoder.get("beats_ckpt_path") is not None:
        return None
    return config


def _read_config(path: Path, what: str) -> dict[str, Any]:
    config_file = sidecars.find(path, CONFIG)
    if config_file is None:
        raise CheckpointError(path, f"{what} needs its {CONFIG} beside it; download that too.")
    config = sidecars.read_yaml(config_file)
    _check_input(path, config)
    return config


def _section(path: Path, config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, Mapping):
        raise CheckpointError(path, f"{name} in the {CONFIG} beside it must be a dictionary of settings.")
    return section


def _settings(
    path: Path, config: Mapping[str, Any], cfg: Mapping[str, Any], tensors: Collection[str]
) -> dict[str, Any]:
    """The encoder's settings: the sizes that the configuration names, and its statistics."""
    encoder = _section(path, config, "encoder_conf")
    for option, off in _OPTIONS.items():
        if encoder.get(option) not in (None, off):
            raise CheckpointError(path, f"it was trained with ESPnet's {option}, which torchbeats does not have.")
    base = {name: value for name, value in _section(path, encoder, "beats_config").items() if value is not None}
    return {**base, **_statistics(path, config, {**cfg, **base}, tensors)}


# --- what the encoder gets --------------------------------------------------------------------------------------------


def _check_input(path: Path, config: Mapping[str, Any]) -> None:
    """Raise a `CheckpointError` where the encoder was not given the sound as it is."""
    normalise = _part_name(config.get("normalize"))
    if normalise == "utterance_mvn":
        # Taking off the mean of a waveform changes nothing: each window of the front end does so itself.
        if not _section(path, config, "normalize_conf").get("norm_vars", False):
            normalise = None
        else:
            normalise += " with norm_vars"
    # With a size of the input, ESPnet builds no front end, whatever is set.
    frontend = _part_name(config.get("frontend")) if config.get("input_size") is None else None
    for option, value in (
        ("normalize", normalise),
        ("preencoder", _part_name(config.get("preencoder"))),
        ("frontend", frontend),
    ):
        if value is not None:
            raise CheckpointError(
                path,
                f"it was trained with ESPnet's {option}: {value}, which changes the sound before the encoder; "
                "torchbeats does not have that.",
            )


def _part_name(value: Any) -> str | None:
    """The name of one of ESPnet's parts; None where it is left out, which can be written in four ways."""
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null", "nil")):
        return None
    return _shown(value)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and len(value) < 80 else reprlib.repr(value)


def _statistics(
    path: Path, config: Mapping[str, Any], cfg: Mapping[str, Any], tensors: Collection[str]
) -> dict[str, Any]:
    """Mean and deviation of the features: those of ``encoder_conf``, else the default of the version of ESPnet.

    Args:
        path: of the weights, for messages.
        config: content of the ``config.yaml`` beside it.
        cfg: all other settings, whose statistics ESPnet does not use.
        tensors: names in the file.
    """
    encoder = _section(path, config, "encoder_conf")
    stated = {name: encoder[name] for name in _PUBLISHED if encoder.get(name) is not None}
    if _has_statistics(stated):
        return stated
    default = _default_of(config.get("version"))
    unused = {name: cfg[name] for name in _PUBLISHED if cfg.get(name) is not None}
    if default is None:
        result = {**_PUBLISHED, **unused, **stated}
        if not _has_statistics({**unused, **stated}):
            _warn_of_assumed(path, result, f"the {CONFIG} beside it names no version of ESPnet that would tell")
        return result
    result = {**default, **stated}
    if default is _PUBLISHED and _has_frozen(tensors):  # a development version says the number of the last release
        _warn_of_assumed(
            path, result, f"it has parts that ESPnet {config['version']}, which its {CONFIG} names, lacked"
        )
    if unused and {**result, **unused} != result:
        warnings.warn(
            f"{path}: the mean and deviation of features {_pair({**result, **unused})} among its sizes are stored by "
            f"ESPnet and never used; it is read as ESPnet {config['version']} reads it, with {_pair(result)}. If it "
            f"was trained with others, write them into encoder_conf in its {CONFIG}.",
            stacklevel=2,
        )
    return result


def _default_of(version: Any) -> dict[str, float] | None:
    """Default statistics of a version of ESPnet, as its ``config.yaml`` names it; None where that does not tell."""
    if isinstance(version, int) and not isinstance(version, bool) and 0 < version < 10**6:
        version = str(version)
    if not isinstance(version, str):
        return None
    if re.match(r"0\.[1-9]", version):  # until 2022; 0.0.0 is that of a copy that was not installed
        return _PUBLISHED
    match = re.match(r"20\d{4}(?!\d)", version)
    if match is None or _LAST_PUBLISHED < int(match[0]) < _FIRST_OPENBEATS:
        return None
    return _PUBLISHED if int(match[0]) <= _LAST_PUBLISHED else _OPENBEATS


def _has_statistics(settings: Mapping[str, Any]) -> bool:
    return all(settings.get(name) is not None for name in _PUBLISHED)


def _with_published(cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {**cfg, **{name: value for name, value in _PUBLISHED.items() if cfg.get(name) is None}}


def _warn_of_assumed(path: Path, result: Mapping[str, Any], reason: str) -> None:
    warnings.warn(
        f"{path}: {reason}. The mean and deviation of its features are taken to be {_pair(result)}, the defaults "
        f"up to ESPnet {_LAST_PUBLISHED}; from {_FIRST_OPENBEATS} on they are {_pair(_OPENBEATS)}. If it was trained "
        f"with others, put its {CONFIG} beside it, with fbank_mean and fbank_std in encoder_conf.",
        stacklevel=2,
    )


def _pair(settings: Mapping[str, Any]) -> str:
    return " and ".join(reprlib.repr(settings.get(name)) for name in _PUBLISHED)


def _problem_type(path: Path, kind: Any) -> str:
    if not isinstance(kind, str) or kind not in _PROBLEM_TYPES:
        raise CheckpointError(path, f"its classification_type must be one of {', '.join(_PROBLEM_TYPES)}.")
    return _PROBLEM_TYPES[kind]

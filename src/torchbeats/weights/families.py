"""Recognises the family of a checkpoint, and gives its tensors, settings and labels the reference's names.

The formats are told apart by what is in the file, never by its name:

| family | file | beside it |
|---|---|---|
| ours | safetensors; config and labels in its metadata | |
| Microsoft: BEATs, its fine-tuned models and tokenizers | ``{"cfg", "model", "label_dict"}`` | |
| OpenBEATs (ESPnet), pre-trained | ``{"cfg", "model"}`` and two frozen convolutions | ``config.yaml``, else a warning |
| ESPnet's pre-training, as it stands | tensors under ``encoder.``, ``decoder.mask_token`` | ``config.yaml`` |
| OpenBEATs (ESPnet), fine-tuned | tensors under ``encoder.``, a head under ``decoder.`` | ``config.yaml`` |
| the same, converted | ``{"cfg", "model", "token_list"}`` | ``config.yaml``, else a warning |
| AVEX, NatureBEATs | safetensors, flat or under ``backbone.``, a head under ``classifier.`` | ``label_map.json`` |
| transformers, with `torchbeats.integrations` | safetensors; see `transformers_folder` | ``config.json`` |
| training programs | any of these under one key of a dictionary, and under wrappers' names; see `trainers` | |
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchbeats.config import BEATsConfig, TokenizersConfig, shown
from torchbeats.encoder import PARAMETRIZED_NAMES
from torchbeats.errors import CheckpointError, some_of
from torchbeats.weights import espnet, front_end, integrity, kinds, sidecars, trainers, transformers_folder

METADATA_KEY = "torchbeats"  # of the JSON in our safetensors files' metadata
MOST_VALUES = 100_000  # of a setting that no model is built from, and which is kept
FORMAT_VERSION = 1
POSITION_TABLE = re.compile(r"encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.weight")
# What no shape tells, where no config does: every publisher of such files has these.
_PUBLISHERS = {"deep_norm": True, "max_distance": 800}
# Where ESPnet's models and AVEX's keep a label head; ours and Microsoft's is called "predictor".
_HEADS = ("decoder.linear_out.", "classifier.", "output_layer.", "head.")


@dataclass
class Checkpoint:
    """What a file holds, in the reference's names.

    Attributes:
        path: of the file.
        config: of the class that tells the kind of model; see `kinds`.
        tensors: by state-dict name; emptied as they go into a model.
        label_dict: class index to label, of a fine-tuned model.
    """

    path: Path
    config: Any
    tensors: dict[str, Tensor]
    label_dict: dict[int, str] | None = None


def recognise(path: Path, content: Mapping[str, Any], metadata: Mapping[str, str]) -> Checkpoint:
    """Tell what a file holds.

    Args:
        path: of the file; some formats keep settings or labels in a file beside it.
        content: what is in it, by name.
        metadata: of a safetensors file.

    Raises:
        CheckpointError: it is no BEATs checkpoint, or contradicts itself.
    """
    if METADATA_KEY in metadata:
        stored = _from_torchbeats(path, _tensors(path, content), metadata)
    elif (about := transformers_folder.config_beside(path, content)) is not None:
        stored = _transformers(path, _tensors(path, content), about)
    else:
        stored = _from_elsewhere(path, content)
    if isinstance(stored.config, BEATsConfig) and not _layers(stored.tensors):
        raise CheckpointError(path, f"this is a checkpoint of another model: it has {some_of(stored.tensors)}.")
    return stored


def _from_torchbeats(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Checkpoint:
    try:
        about = json.loads(metadata[METADATA_KEY])
        version, kind, cfg, labels = about["version"], about["kind"], about["config"], about["labels"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(path, f"the metadata that describes the model is damaged ({error!r}).") from error
    check_version(path, version)
    if not isinstance(kind, str) or (known := kinds.kind_called(kind)) is None:
        raise CheckpointError(path, f"it holds a {reprlib.repr(kind)}, which this version of torchbeats does not know.")
    integrity.check_digest(path, about, tensors)
    config = settings_that_fit(path, cfg, known.config, tensors)
    return Checkpoint(path, config, tensors, labels_by_index(path, labels, config))


def check_version(path: str | os.PathLike[str], version: Any) -> None:
    """Raise a `CheckpointError` where a file is in another form than this version writes."""
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            path, f"it was written by a newer torchbeats (format {reprlib.repr(version)}); upgrade to read it."
        )


def _transformers(path: Path, tensors: dict[str, Tensor], about: Mapping[str, Any]) -> Checkpoint:
    """What transformers saved, after training with it for example."""
    tensors = transformers_folder.renamed(tensors)
    config = settings_that_fit(path, transformers_folder.settings_of(path, about, tensors), BEATsConfig, tensors)
    labels = transformers_folder.labels_of(about) if config.finetuned_model else None
    return Checkpoint(path, config, tensors, labels_by_index(path, labels, config))


def _from_elsewhere(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    """The research code's files, ESPnet's, AVEX's, and whatever training programs have put around them."""
    weights, container = trainers.weights_in(path, content)
    tensors = trainers.unwrapped(path, _tensors(path, weights, container))
    cfg = _settings_in(content) if container else None
    if cfg is not None:
        return _checkpoint(path, tensors, cfg, content)
    if _is_espnet_pretraining(tensors):
        return _espnet_pretraining(path, tensors)
    if _is_espnet_finetuned(tensors):
        return _espnet_finetuned(path, tensors, espnet.settings_of_finetuned(path, tensors), content)
    tensors = _learned(tensors)
    if container == "model" and content.keys() <= {"model", "cfg", "label_dict"}:
        raise CheckpointError(path, 'it has weights under "model" but no "cfg" that describes them.')
    if container and not _layers(_without_prefix(tensors, "backbone.")):
        raise CheckpointError(
            path, f"what it has under {container!r} are weights of another model: {some_of(tensors)}."
        )
    return _bare(path, tensors, content, container)


def _settings_in(content: Mapping[str, Any]) -> Any:
    """Settings beside the weights: the research code's, or those that Lightning keeps of a module's arguments."""
    arguments = content.get("hyper_parameters")
    if content.get("cfg") is None and isinstance(arguments, Mapping):
        return next((arguments[name] for name in ("cfg", "config") if isinstance(arguments.get(name), Mapping)), None)
    return content.get("cfg")


def _checkpoint(path: Path, tensors: dict[str, Tensor], cfg: Any, content: Mapping[str, Any]) -> Checkpoint:
    """Weights with the settings that they were trained with."""
    _check_mapping(path, cfg)
    if _is_espnet_pretraining(tensors):
        tensors = _encoder_alone(tensors)
    elif _is_espnet_finetuned(tensors):
        settings = {"cfg": espnet.settings_of_converted(path, cfg, tensors)}
        return _espnet_finetuned(path, tensors, settings, content)
    if "token_list" in content:  # of ESPnet's too, under the research code's names
        cfg = espnet.settings_of_converted(path, cfg, tensors)
        tensors = _with_predictor(tensors)
        labels = _labels_of_outputs(content["token_list"], tensors)
    else:
        cfg = espnet.settings_of_pretrained(path, cfg, tensors)
        labels = content.get("label_dict")
    tensors = front_end.without_front_end(path, _learned(tensors))
    tokenizer = any(name.startswith("quantize.") for name in tensors)
    config = settings_that_fit(path, cfg, TokenizersConfig if tokenizer else BEATsConfig, tensors)
    return Checkpoint(path, config, tensors, labels_by_index(path, labels, config))


def _bare(path: Path, tensors: dict[str, Tensor], content: Mapping[str, Any], container: str | None) -> Checkpoint:
    """Tensors alone; sizes come from their shapes, and all else from what the publishers of such files always use."""
    if any(name.startswith("backbone.") for name in tensors):
        # The head that the backbone had before is of no use; the trained one is the classifier.
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("backbone.predictor.")}
    tensors = front_end.without_front_end(path, _with_predictor(_without_prefix(tensors, "backbone.")))
    config = settings_that_fit(path, {**_PUBLISHERS, **_sizes(path, tensors)}, BEATsConfig, tensors)
    labels = content.get("label_dict") if container else None
    label_file = sidecars.find(path, "label_map.json") if config.finetuned_model and labels is None else None
    labels = labels if label_file is None else sidecars.read_json(label_file)
    if container:
        head = ", and a sigmoid over its classes" if config.finetuned_model else ""
        warnings.warn(
            f"{path} has no settings beside its weights. It is read as the published models are built: deep norm, a "
            f"greatest distance of 800 in the position bias, the published mean and deviation of features{head}. If "
            "it was trained otherwise, its outputs are wrong: save it with torchbeats.save from the program that "
            "trained it.",
            stacklevel=2,
        )
    return Checkpoint(path, config, tensors, labels_by_index(path, labels, config))


def _learned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without the frozen parts of ESPnet's front end."""
    return {name: tensor for name, tensor in tensors.items() if not _without_parent(name).startswith(espnet.FROZEN)}


def _is_espnet_pretraining(tensors: Mapping[str, Tensor]) -> bool:
    return "encoder.patch_embedding.weight" in tensors and "decoder.mask_token" in tensors


def _espnet_pretraining(path: Path, tensors: dict[str, Tensor]) -> Checkpoint:
    """The encoder of a checkpoint that ESPnet's pre-training goes on from, beside its predictor of labels."""
    cfg, complete = espnet.settings_of_pretraining(path, tensors)
    tensors = front_end.without_front_end(path, _learned(_encoder_alone(tensors)))
    config = settings_that_fit(
        path, {**({} if complete else _PUBLISHERS), **cfg, **_sizes(path, tensors)}, BEATsConfig, tensors
    )
    return Checkpoint(path, config, tensors)


def _encoder_alone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _without_prefix(
        {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}, "encoder."
    )


def _is_espnet_finetuned(tensors: Mapping[str, Tensor]) -> bool:
    return "encoder.patch_embedding.weight" in tensors


def _espnet_finetuned(
    path: Path, tensors: dict[str, Tensor], settings: Mapping[str, Any], content: Mapping[str, Any]
) -> Checkpoint:
    """An encoder under ``encoder.`` with a head; ``settings`` has its ``token_list`` and ``cfg``."""
    tensors = front_end.without_front_end(path, _with_predictor(_without_prefix(_learned(tensors), "encoder.")))
    config = settings_that_fit(path, {**_PUBLISHERS, **settings["cfg"], **_sizes(path, tensors)}, BEATsConfig, tensors)
    symbols = content.get("token_list", settings.get("token_list"))
    labels = content.get("label_dict") if symbols is None else _labels_of_outputs(symbols, tensors)
    return Checkpoint(path, config, tensors, labels_by_index(path, labels, config))


def _labels_of_outputs(symbols: Any, tensors: Mapping[str, Tensor]) -> Any:
    """ESPnet's ``token_list`` without the one or two symbols at its end that the head has no output for."""
    head = tensors.get("predictor.weight")
    return symbols[: len(head)] if isinstance(symbols, (list, tuple)) and head is not None and head.dim() else symbols


def _without_parent(name: str) -> str:
    return name.removeprefix("encoder.").removeprefix("backbone.")


def _with_predictor(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, a label head of whatever name under that of the reference."""
    new_names = {prefix + part: "predictor." + part for prefix in _HEADS for part in ("weight", "bias")}
    renamed = {new_names[name] for name in tensors if name in new_names}
    return {new_names.get(name, name): tensor for name, tensor in tensors.items() if name not in renamed}


def _sizes(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings that shapes and names decide; they overrule what any config says."""
    attention = "encoder.layers.0.self_attn."
    try:
        patch, table = tensors["patch_embedding.weight"], _first(tensors, POSITION_TABLE)
        kernel = tensors["encoder.pos_conv.0.weight_v"]
        width = tensors[attention + "q_proj.weight"].size(0)
        sizes: dict[str, Any] = {
            "input_patch_size": patch.size(-1),
            "embed_dim": patch.size(0),
            "conv_bias": "patch_embedding.bias" in tensors,
            "encoder_layers": _layers(tensors),
            "encoder_embed_dim": width,
            "encoder_ffn_embed_dim": tensors["encoder.layers.0.fc2.weight"].size(1),
            "encoder_attention_heads": table.size(1),
            "num_buckets": table.size(0),
            "conv_pos": kernel.size(-1),
            "conv_pos_groups": width // kernel.size(1),
            "relative_position_embedding": True,
            "gru_rel_pos": attention + "grep_a" in tensors,
        }
        if "encoder.layers.0.fc1.linear.weight" in tensors:
            sizes["activation_fn"] = "glu"
        if "predictor.weight" in tensors:
            sizes |= {"finetuned_model": True, "predictor_class": tensors["predictor.weight"].size(0)}
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            path, f"this is not a BEATs checkpoint: it has no {error}. It has {some_of(tensors)}."
        ) from error
    return sizes


def settings_that_fit(path: str | os.PathLike[str], cfg: Any, kind: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Settings that a model can be built from and that fit the tensors; looked at before anything of their size is."""
    _check_mapping(path, cfg)
    if clashes := [name for name in cfg if callable(getattr(kind, name, None))]:
        raise CheckpointError(path, f"its config has settings that no model has: {some_of(clashes)}.")
    for name, value in cfg.items():
        if _values(value, {}) > MOST_VALUES:
            raise CheckpointError(path, f"its setting {shown(name)} holds more than {MOST_VALUES:,} values.")
    front_end.check_settings(path, cfg)
    config = kind(cfg)
    layers, stated = _layers(tensors), getattr(config, "encoder_layers", None)
    if layers and type(stated) is int and stated >= 1 and stated != layers:
        raise CheckpointError(path, f"its config speaks of {shown(stated)} layers; it holds {layers}.")
    try:
        config.check()
    except ValueError as error:
        raise CheckpointError(path, f"no model can be built from its config: {error}") from error
    for setting, (name, axis) in kinds.kind_of(kind).sizes.items():
        tensor = tensors.get(name)
        if tensor is None or not hasattr(config, setting) or not -tensor.dim() <= axis < tensor.dim():
            continue
        if getattr(config, setting) != tensor.size(axis):
            raise CheckpointError(
                path,
                f"its config does not fit its tensors: {setting} is {getattr(config, setting)}, where the shape of "
                f"{name} says {tensor.size(axis)}.",
            )
    return config


def _values(item: Any, counts: dict[int, float]) -> float:
    """How many values there are in one, with what is in it several times counted so often.

    A pickle of a kilobyte can name a list of nine lists of nine lists of …, which takes no room until it is written.
    """
    if not isinstance(item, (list, tuple, set, frozenset, Mapping)):
        return 1
    if id(item) not in counts:
        counts[id(item)] = math.inf  # until it is known: what is within itself has no end
        children = [*item.keys(), *item.values()] if isinstance(item, Mapping) else item
        try:
            counts[id(item)] = 1 + sum(_values(child, counts) for child in children)
        except RecursionError:
            return math.inf
    return counts[id(item)]


def _check_mapping(path: str | os.PathLike[str], cfg: Any) -> None:
    if not isinstance(cfg, Mapping) or not all(isinstance(name, str) for name in cfg):
        raise CheckpointError(path, f"its config must be a dictionary of settings, not {type(cfg).__name__}.")


def _tensors(path: Path, content: Mapping[Any, Any], container: str | None = None) -> dict[str, Tensor]:
    """The tensors under the reference's names."""
    tensors: dict[str, Tensor] = {}
    unexpected = []
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            unexpected.append(str(name)[:80])
            continue
        for parametrized, plain in PARAMETRIZED_NAMES.items():
            if name.endswith(parametrized):
                name = name.removesuffix(parametrized) + plain
        tensors[name] = value
    place = f" under {container!r}" if container else ""
    if unexpected or not tensors:
        description = (
            f"entries that are no tensors{place}: {some_of(unexpected)}" if unexpected else f"no tensors{place}"
        )
        raise CheckpointError(path, f"this is not a BEATs checkpoint: it has {description}.")
    if without_values := [name for name, tensor in tensors.items() if not _has_its_values(tensor)]:
        raise CheckpointError(path, f"it has tensors without plain values: {some_of(without_values)}.")
    return tensors


def _has_its_values(tensor: Tensor) -> bool:
    """Whether a tensor is an array of real numbers, each of which is stored: a shape alone can claim any size."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same tensors, less a prefix where they have it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def labels_by_index(path: str | os.PathLike[str], labels: Any, config: BEATsConfig) -> dict[int, str] | None:
    """Labels by index from any form they come in: a list, index to label, or label to index."""
    if labels is None:
        return None
    try:
        if isinstance(labels, str) or not hasattr(labels, "__len__"):
            raise TypeError(f"they are of type {type(labels).__name__}")
        if len(labels) != config.predictor_class:  # before each of them is looked at
            raise CheckpointError(path, f"it has {len(labels)} labels for a head of {config.predictor_class} classes.")
        if isinstance(labels, Mapping):
            indexed = any(type(value) is not int for value in labels.values())  # else its values are the indices
            pairs = [(k, v) if indexed else (v, k) for k, v in labels.items()]
        else:
            pairs = list(enumerate(labels))
        if any(isinstance(label, (Mapping, list, tuple, set)) for _, label in pairs):
            raise TypeError("a label is a list")
        table = {int(index): str(label) for index, label in pairs}
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            path, f"its labels cannot be read as a table from index to label ({error!s:.100})."
        ) from error
    if len(table) != config.predictor_class or set(table) != set(range(len(table))):
        raise CheckpointError(path, f"it has {len(table)} labels for a head of {config.predictor_class} classes.")
    return dict(sorted(table.items()))


def _layers(tensors: Iterable[str]) -> int:
    return len({match[1] for name in tensors if (match := re.match(r"encoder\.layers\.(\d+)\.", name))})


def _first(tensors: Mapping[str, Tensor], pattern: re.Pattern[str]) -> Tensor:
    for name, tensor in tensors.items():
        if pattern.fullmatch(name):
            return tensor
    raise KeyError("relative position table")

"""Whose checkpoint is it? What each published format calls its tensors, settings and labels, in the reference's names.

The formats are told apart by what is in the file, never by its name:

| family | file | beside it |
|---|---|---|
| ours | safetensors; config and labels in its metadata | |
| Microsoft: BEATs, its fine-tuned models and tokenizers | ``{"cfg", "model", "label_dict"}`` | |
| OpenBEATs (ESPnet), pre-trained | ``{"cfg", "model"}`` and two frozen convolutions | |
| OpenBEATs (ESPnet), fine-tuned | tensors under ``encoder.``, a head under ``decoder.`` | ``config.yaml`` |
| AVEX, NatureBEATs | safetensors, flat or under ``backbone.``, a head under ``classifier.`` | ``label_map.json`` |
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from torchbeats.config import BEATsConfig, RandomProjectionConfig, TokenizersConfig
from torchbeats.encoder import PARAMETRIZED_NAMES
from torchbeats.errors import CheckpointError, some_of

METADATA_KEY = "torchbeats"  # of the JSON in our safetensors files' metadata
FORMAT_VERSION = 1
KINDS: dict[str, Any] = {  # what our files may hold, and the configuration that tells it from the others
    "beats": BEATsConfig,
    "tokenizer": TokenizersConfig,
    "random_projection": RandomProjectionConfig,
}

POSITION_TABLE = re.compile(r"encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.weight")
# Frozen helpers of ESPnet's front end, which hold nothing that was learned.
_UNUSED = ("patch_embedding_pad.", "raw2fbank_pad.")
# What no shape tells, where no config does: every publisher of such files has these.
_PUBLISHERS = {"deep_norm": True, "gru_rel_pos": True, "max_distance": 800}
# Where ESPnet's models and AVEX's keep a label head; ours and Microsoft's is called "predictor".
_HEADS = ("decoder.linear_out.", "classifier.", "output_layer.", "head.")


@dataclass
class Checkpoint:
    """What a file holds, in the reference's names.

    Attributes:
        path: of the file.
        config: a `TokenizersConfig` or `RandomProjectionConfig` if it is a tokenizer.
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
        found = _ours(path, _tensors(path, content), metadata)
    elif isinstance(content.get("model"), Mapping):
        found = _microsoft(path, content)
    else:
        found = _bare(path, content)
    if isinstance(found.config, RandomProjectionConfig):  # which has no layers
        return found
    layers = _layers(found.tensors)
    if not layers:
        raise CheckpointError(path, f"this is a checkpoint of another model: it has {some_of(found.tensors)}.")
    if layers != found.config.encoder_layers:  # said before anything of the size that the config asks for is built
        raise CheckpointError(path, f"its config speaks of {found.config.encoder_layers} layers; it holds {layers}.")
    return found


def _ours(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Checkpoint:
    try:
        about = json.loads(metadata[METADATA_KEY])
        version, kind, cfg, labels = about["version"], about["kind"], about["config"], about["labels"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(path, f"the metadata that describes the model is damaged ({error!r}).") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(path, f"it was written by a newer torchbeats (format {version}); upgrade to read it.")
    if kind not in KINDS:
        raise CheckpointError(path, f"it holds a {kind!r}, which this version of torchbeats does not know.")
    config = _config(path, cfg, KINDS[kind])
    return Checkpoint(path, config, tensors, _label_dict(path, labels, config))


def _microsoft(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    """A dictionary with ``cfg`` and ``model``: the research code's files, and ESPnet's pre-trained ones."""
    tensors = _tensors(path, content["model"])
    cfg = content.get("cfg")
    if cfg is None:
        raise CheckpointError(path, 'it has weights under "model" but no "cfg" that describes them.')
    if _is_espnet_finetuned(tensors):
        return _espnet_finetuned(path, tensors, content)
    tokenizer = any(name.startswith("quantize.") for name in tensors)
    config = _config(path, cfg, TokenizersConfig if tokenizer else BEATsConfig)
    return Checkpoint(path, config, tensors, _label_dict(path, content.get("label_dict"), config))


def _bare(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    """Tensors alone; sizes come from their shapes, and all else from what the publishers of such files always use."""
    tensors = _tensors(path, content)
    if _is_espnet_finetuned(tensors):
        return _espnet_finetuned(path, tensors, _espnet_settings(path))
    if any(name.startswith("backbone.") for name in tensors):
        # The head that the backbone had before is of no use; the trained one is the classifier.
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("backbone.predictor.")}
    tensors = _with_predictor(_under(tensors, "backbone."))
    config = _config(path, {**_PUBLISHERS, **_sizes(path, tensors)}, BEATsConfig)
    beside = _beside(path, "label_map.json") if config.finetuned_model else None
    labels = None if beside is None else _parsed(beside, json.loads)
    return Checkpoint(path, config, tensors, _label_dict(path, labels, config))


def _is_espnet_finetuned(tensors: Mapping[str, Tensor]) -> bool:
    return "encoder.patch_embedding.weight" in tensors


def _espnet_finetuned(path: Path, tensors: dict[str, Tensor], said: Mapping[str, Any]) -> Checkpoint:
    """An encoder under ``encoder.`` with a head; ``said`` has ``token_list`` and, in ``cfg``, how it was trained."""
    tensors = _with_predictor(_under(tensors, "encoder."))
    if not isinstance(said["cfg"], Mapping):
        raise CheckpointError(path, f"its config must be a dictionary of settings, not {type(said['cfg']).__name__}.")
    config = _config(path, {**_PUBLISHERS, **said["cfg"], **_sizes(path, tensors)}, BEATsConfig)
    labels = said.get("token_list")
    if isinstance(labels, list):  # behind the labels come one or two symbols that the head has no output for
        labels = labels[: config.predictor_class]
    return Checkpoint(path, config, tensors, _label_dict(path, labels, config))


def _with_predictor(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, a label head of whatever name under that of the reference."""
    heads = {prefix + part: "predictor." + part for prefix in _HEADS for part in ("weight", "bias")}
    renamed = {heads[name] for name in tensors if name in heads}
    return {heads.get(name, name): tensor for name, tensor in tensors.items() if name not in renamed}


def _espnet_settings(path: Path) -> dict[str, Any]:
    """Labels, problem type and settings of a fine-tuned ESPnet model, from the ``config.yaml`` that comes with it."""
    import yaml

    beside = _beside(path, "config.yaml")
    if beside is None:
        raise CheckpointError(path, "a fine-tuned ESPnet model needs its config.yaml beside it; download that too.")
    said = _parsed(beside, yaml.safe_load)
    encoder, decoder, task = (said.get(name) or {} for name in ("encoder_conf", "decoder_conf", "model_conf"))
    base = encoder.get("beats_config") or {} if isinstance(encoder, Mapping) else {}
    if not all(isinstance(part, Mapping) for part in (encoder, decoder, task, base)):
        raise CheckpointError(path, f"the settings in {beside} must be dictionaries: encoder_conf, its beats_config, …")
    if decoder.get("pooling", "mean") != "mean":
        raise CheckpointError(
            path, f"its head pools by {decoder['pooling']}; torchbeats reads heads that pool by mean."
        )
    for option in ("max_layer", "use_weighted_representation", "adapter_config"):
        if encoder.get(option):
            raise CheckpointError(path, f"it was trained with ESPnet's {option}, which torchbeats does not have.")
    settings = {name: value for name, value in base.items() if value is not None}
    settings |= {name: encoder[name] for name in ("fbank_mean", "fbank_std") if encoder.get(name) is not None}
    kind = task.get("classification_type", "multi-class")
    settings["problem_type"] = "multi_label" if kind == "multi-label" else "single_label"
    return {"token_list": said.get("token_list"), "cfg": settings}


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


def _config(path: Path, cfg: Any, kind: Any) -> Any:
    if not isinstance(cfg, Mapping) or not all(isinstance(name, str) for name in cfg):
        raise CheckpointError(path, f"its config must be a dictionary of settings, not {type(cfg).__name__}.")
    if clashes := [name for name in cfg if callable(getattr(kind, name, None))]:
        raise CheckpointError(path, f"its config has settings that no model has: {some_of(clashes)}.")
    config = kind(cfg)
    try:
        config.check()
    except ValueError as error:
        raise CheckpointError(path, f"no model can be built from its config: {error}") from error
    return config


def _tensors(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors under the reference's names, less the ones that hold nothing."""
    found: dict[str, Tensor] = {}
    strangers = []
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            strangers.append(str(name))
            continue
        for theirs, ours in PARAMETRIZED_NAMES.items():
            if name.endswith(theirs):
                name = name.removesuffix(theirs) + ours
        if not name.removeprefix("encoder.").startswith(_UNUSED):
            found[name] = value
    if strangers or not found:
        what = f"entries that are no tensors: {some_of(strangers)}" if strangers else "no tensors"
        raise CheckpointError(path, f"this is not a BEATs checkpoint: it has {what}.")
    return found


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same tensors, less a prefix where they have it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _label_dict(path: Path, labels: Any, config: BEATsConfig) -> dict[int, str] | None:
    """Labels by index from any form they come in: a list, index to label, or label to index."""
    if labels is None:
        return None
    try:
        if isinstance(labels, Mapping):
            indexed = any(not isinstance(value, int) for value in labels.values())  # else its values are the indices
            pairs = [(k, v) if indexed else (v, k) for k, v in labels.items()]
        else:
            pairs = list(enumerate(labels))
        table = {int(index): str(label) for index, label in pairs}
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(path, f"its labels cannot be read as a table from index to label ({error}).") from error
    if sorted(table) != list(range(config.predictor_class)):
        raise CheckpointError(path, f"it has {len(table)} labels for a head of {config.predictor_class} classes.")
    return dict(sorted(table.items()))


def _beside(path: Path, name: str) -> Path | None:
    """A file that describes the weights: beside them or, in the Hub's cache, at the top of their repository."""
    folders = [path.parent]
    if "snapshots" in path.parts:
        top = len(path.parts) - path.parts[::-1].index("snapshots") + 1
        folders.append(Path(*path.parts[:top]))
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _parsed(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The dictionary that a describing file holds."""
    from yaml import YAMLError

    try:
        content = parse(path.read_text("utf-8"))
    except (OSError, ValueError, YAMLError, RecursionError) as error:
        raise CheckpointError(path, f"the file that describes the weights cannot be read ({error}).") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(path, f"the file that describes the weights holds a {type(content).__name__}.")
    return dict(content)


def _layers(tensors: Iterable[str]) -> int:
    return len({match[1] for name in tensors if (match := re.match(r"encoder\.layers\.(\d+)\.", name))})


def _first(tensors: Mapping[str, Tensor], pattern: re.Pattern[str]) -> Tensor:
    for name, tensor in tensors.items():
        if pattern.fullmatch(name):
            return tensor
    raise KeyError("relative position table")

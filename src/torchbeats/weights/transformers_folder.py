"""The folder of a model as transformers and sentence-transformers keep it, read and written without either of them.

| file | what it is |
|---|---|
| config.json | settings, under the names that checkpoints use; labels and problem type, as transformers calls them |
| model.safetensors | tensors under ``backbone.``; of a model with a head ``beats.backbone.`` and ``classifier.`` |
| preprocessor_config.json | of the feature extractor |
| torchbeats_transformers.py | what ``trust_remote_code=True`` runs: an import of torchbeats |
| modules.json, sentence_bert_config.json, config_sentence_transformers.json | for sentence-transformers |
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from torchbeats.config import SIZES, BEATsConfig
from torchbeats.encoder import PARAMETRIZED_NAMES
from torchbeats.errors import CheckpointError
from torchbeats.files import replacing, write_json
from torchbeats.patches import SAMPLE_RATE
from torchbeats.weights import sidecars

MODEL_TYPE = "beats"
CONFIG, WEIGHTS, PREPROCESSOR, SHIM = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "torchbeats_transformers.py",
)
FILES = (CONFIG, WEIGHTS, PREPROCESSOR, SHIM, "modules.json")  # by which a folder is seen to hold a model already

# Where `trust_remote_code=True` finds the classes.
AUTO_MAP = {
    "AutoConfig": "torchbeats_transformers.BEATsConfig",
    "AutoFeatureExtractor": "torchbeats_transformers.BEATsFeatureExtractor",
    "AutoProcessor": "torchbeats_transformers.BEATsFeatureExtractor",
    "AutoModel": "torchbeats_transformers.BEATsModel",
    "AutoModelForAudioClassification": "torchbeats_transformers.BEATsForAudioClassification",
}
SHIM_TEXT = '''"""Hands this model over to torchbeats: pip install "torchbeats[transformers]"."""

from torchbeats.integrations.transformers import (
    BEATsConfig,
    BEATsFeatureExtractor,
    BEATsForAudioClassification,
    BEATsModel,
)

__all__ = ["BEATsConfig", "BEATsFeatureExtractor", "BEATsForAudioClassification", "BEATsModel"]
'''

# Names for the problem types; without one, transformers applies a softmax.
PROBLEM_TYPES = {"multi_label": "multi_label_classification", "single_label": "single_label_classification"}
_TORCHBEATS_PROBLEM_TYPES: dict[str | None, str] = {
    **{theirs: ours for ours, theirs in PROBLEM_TYPES.items()},
    None: "single_label",
}

# What transformers says in other words: by tensors, id2label and its own problem types.
_IN_OTHER_WORDS = ("finetuned_model", "predictor_class", "problem_type")
# The defaults of a new configuration are the settings of the published base models.
DEFAULTS = {
    name: value
    for name, value in BEATsConfig(SIZES["base"]).to_dict().items()
    if name not in _IN_OTHER_WORDS
}  # fmt: skip

_BACKBONE, _HEADED = "backbone.", "beats.backbone."
_HEAD = {"classifier.weight": "predictor.weight", "classifier.bias": "predictor.bias"}
_TABLE = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.relative_attention_bias\.weight")

_SENTENCE_TRANSFORMERS: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        # The pooler's output is the mean over a sound's own patches; the module called Pooling would count padding.
        "modality_config": {"audio": {"method": "forward", "method_output_name": "pooler_output"}},
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
}


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether an output is to be a folder: there is one, or the name ends in a slash."""
    return os.fspath(path).endswith(("/", os.sep)) or Path(path).is_dir()


def holds_model(folder: Path) -> list[str]:
    """Files of a model that a folder has."""
    return [name for name in FILES if (folder / name).exists()]


# --- writing ----------------------------------------------------------------------------------------------------------


def write(
    folder: Path,
    config: BEATsConfig,
    label_dict: Mapping[int, str] | None,
    labels: Sequence[str] | None,
    state: Mapping[str, Tensor],
) -> None:
    """Write a model. The weights come last, so that a folder without them is not complete.

    Args:
        folder: made where it does not exist; other files in it stay.
        config: of the model.
        label_dict: class index to label, as the model's file has it.
        labels: readable names of the same.
        state: tensors by state-dict name, on the CPU.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).unlink(missing_ok=True)
    write_json(folder / CONFIG, config_json(config, label_dict, labels))
    write_json(folder / PREPROCESSOR, PREPROCESSOR_SETTINGS)
    write_shim(folder)
    for name, content in _SENTENCE_TRANSFORMERS.items():
        write_json(folder / name, content)
    tensors = {name: tensor.contiguous() for name, tensor in _named(state, headed=config.finetuned_model)}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, {"format": "pt"})


PREPROCESSOR_SETTINGS: dict[str, Any] = {
    "feature_extractor_type": "BEATsFeatureExtractor",
    "auto_map": {name: AUTO_MAP[name] for name in ("AutoFeatureExtractor", "AutoProcessor")},
    "feature_size": 1,
    "sampling_rate": SAMPLE_RATE,
    "padding_value": 0.0,
    "padding_side": "right",
    "return_attention_mask": True,
}


def write_shim(folder: Path) -> None:
    """Write what ``trust_remote_code=True`` runs."""
    with replacing(folder / SHIM) as temporary:
        temporary.write_text(SHIM_TEXT, "utf-8")


def config_json(
    config: BEATsConfig, label_dict: Mapping[int, str] | None, labels: Sequence[str] | None
) -> dict[str, Any]:
    """What config.json holds. Arguments as for `write`."""
    settings = {name: getattr(config, name) for name in DEFAULTS}
    about = {
        "model_type": MODEL_TYPE,
        "architectures": ["BEATsForAudioClassification" if config.finetuned_model else "BEATsModel"],
        "auto_map": AUTO_MAP,
        "dtype": "float32",  # whatever the file has: float16 saves room there, and is slow on most processors
        "tie_word_embeddings": True,
    }
    if not config.finetuned_model:
        return {**about, **settings}
    raw = [(label_dict or {}).get(index, f"LABEL_{index}") for index in range(config.predictor_class)]
    names = list(labels or raw)
    if len(set(names)) < len(names):
        names = raw
    return {
        **about,
        **settings,
        "problem_type": PROBLEM_TYPES[config.problem_type],
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "label_ids": {name: label for name, label in zip(names, raw, strict=True) if name != label},
    }


def _named(state: Mapping[str, Tensor], headed: bool) -> Iterable[tuple[str, Tensor]]:
    """The tensors by their names in the folder; the position table once."""
    head_names = {plain: transformers_name for transformers_name, plain in _HEAD.items()}
    prefix = _HEADED if headed else _BACKBONE
    for name, tensor in state.items():
        table = _TABLE.fullmatch(name)
        if table is None or table[1] == "0":
            for transformers_name, plain in PARAMETRIZED_NAMES.items():  # which transformers insists on
                if name.endswith(plain):
                    name = name.removesuffix(plain) + transformers_name
            yield head_names.get(name, prefix + name), tensor


# --- reading ----------------------------------------------------------------------------------------------------------


def settings_of(path: Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of a model, under our names, from its config.json.

    Args:
        path: of the weights, for messages.
        about: what config.json holds.
        tensors: as `renamed` gives them.

    Raises:
        CheckpointError: a head for which torchbeats has no outputs.
    """
    settings = {name: about[name] for name in DEFAULTS if name in about}
    settings = {**DEFAULTS, **settings}
    head = tensors.get("predictor.weight")
    if head is None:
        return settings
    problem = about.get("problem_type")
    if problem not in _TORCHBEATS_PROBLEM_TYPES:
        raise CheckpointError(
            path, f"its problem type is {problem!r}; torchbeats has models for {' and '.join(PROBLEM_TYPES.values())}."
        )
    classes = len(head) if head.dim() else 0
    return {
        **settings,
        "finetuned_model": True,
        "predictor_class": classes,
        "problem_type": _TORCHBEATS_PROBLEM_TYPES[problem],
    }


def labels_of(about: Mapping[str, Any]) -> dict[str, str] | None:
    """Class index to label, as the model's first file had it; None where transformers numbered the classes."""
    names = about.get("id2label")
    if not isinstance(names, Mapping) or all(name == f"LABEL_{index}" for index, name in names.items()):
        return None
    ids = about.get("label_ids")
    label_by_name = ids if isinstance(ids, Mapping) else {}
    return {index: label_by_name.get(name, name) if isinstance(name, str) else name for index, name in names.items()}


def config_beside(path: Path, content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config.json of a model whose tensors have the names of such a folder, if it is one of ours."""
    if not any(str(name).startswith((_BACKBONE + "encoder.", _HEADED + "encoder.")) for name in content):
        return None
    file = sidecars.find(path, CONFIG)
    about = None if file is None else sidecars.read_json(file)
    return about if about is not None and about.get("model_type") == MODEL_TYPE else None


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of such a folder under the reference's names."""
    return {
        _HEAD.get(name, name.removeprefix(_HEADED).removeprefix(_BACKBONE)): tensor for name, tensor in tensors.items()
    }

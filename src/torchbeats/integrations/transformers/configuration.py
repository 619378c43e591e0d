"""The settings of a model, as transformers keeps them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

import torchbeats
from torchbeats.errors import SettingsError
from torchbeats.weights import transformers_folder


class BEATsConfig(PretrainedConfig):
    """Settings of a `torchbeats.BEATs` under their own names, and labels and problem type under those of transformers.

    Args:
        **kwargs: settings of a `torchbeats.BEATsConfig`; those that are left out are the published base model's. All
            else that a ``PretrainedConfig`` takes, such as ``num_labels``, ``id2label`` and ``problem_type``.

    Raises:
        SettingsError: no model can be built from them.
    """

    model_type = transformers_folder.MODEL_TYPE
    attribute_map = {  # noqa: RUF012 - transformers reads it from the class, and would take an annotation for a setting
        "hidden_size": "encoder_embed_dim",
        "intermediate_size": "encoder_ffn_embed_dim",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }

    def __init__(self, **kwargs: Any) -> None:
        settings = {name: kwargs.pop(name, default) for name, default in transformers_folder.DEFAULTS.items()}
        for alias, attribute in self.attribute_map.items():
            settings[attribute] = kwargs.pop(alias, settings[attribute])
        for name, value in settings.items():
            setattr(self, name, value)
        # The layers share one table of position biases, and transformers asks this whether anything is shared at all.
        kwargs["tie_word_embeddings"] = True
        kwargs["auto_map"] = transformers_folder.AUTO_MAP
        super().__init__(**kwargs)

    def settings(self) -> torchbeats.BEATsConfig:
        """What `torchbeats.BEATs` is built from, without a head."""
        config = torchbeats.BEATsConfig({name: getattr(self, name) for name in transformers_folder.DEFAULTS})
        try:
            config.check()
        except ValueError as error:
            raise SettingsError(str(error)) from error
        return config

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write config.json, and what ``trust_remote_code=True`` runs; models call this when they are saved."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        transformers_folder.write_shim(folder)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: a copy of this file is no use in a model's folder, which imports torchbeats instead."""

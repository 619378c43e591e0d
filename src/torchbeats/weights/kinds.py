"""The kinds of models that a file of ours may hold. Each kind registers itself, beside its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

from torchbeats.config import ModelConfig
from torchbeats.errors import ModelError

M = TypeVar("M", bound=nn.Module)

# Settings of every model with the BEATs encoder, and the tensor and axis that show them.
ENCODER_SIZES = {
    "input_patch_size": ("patch_embedding.weight", -1),
    "embed_dim": ("patch_embedding.weight", 0),
    "encoder_embed_dim": ("encoder.layers.0.self_attn.q_proj.weight", 0),
    "encoder_ffn_embed_dim": ("encoder.layers.0.fc2.weight", 1),
    "encoder_attention_heads": ("encoder.layers.0.self_attn.relative_attention_bias.weight", 1),
    "num_buckets": ("encoder.layers.0.self_attn.relative_attention_bias.weight", 0),
    "conv_pos": ("encoder.pos_conv.0.weight_v", -1),
    "predictor_class": ("predictor.weight", 0),
    "quant_n": ("quantize.embedding.weight", 0),
    "quant_dim": ("quantize.embedding.weight", 1),
}


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        name: in the metadata of its files, which stay readable only as long as it stays the same.
        about: what messages call it: "tokenizer", say.
        model: its class, which keeps `torchbeats.protocol.Model`.
        config: the class of its settings; no other kind has the same.
        build: from a checkpoint, and whether the model is to be frozen, to a model with the checkpoint's weights.
        sizes: settings that the shape of a tensor shows: its name in the state dict, and the axis.
    """

    name: str
    about: str
    model: type[nn.Module]
    config: type[ModelConfig]
    build: Callable[[Any, bool], Any]
    sizes: Mapping[str, tuple[str, int]] = field(default_factory=dict)


KINDS: dict[str, Kind] = {}


def register(
    name: str,
    config: type[ModelConfig],
    *,
    about: str = "model",
    sizes: Mapping[str, tuple[str, int]] | None = None,
    build: Callable[[Any, bool], Any] | None = None,
) -> Callable[[type[M]], type[M]]:
    """Make a class of models known to `torchbeats.save` and `torchbeats.load`: a decorator of the class.

    Args:
        name: see `Kind`, also for the others.
        config: see there.
        about: see there.
        sizes: see there.
        build: ``Class(checkpoint, freeze=...)`` where not given.

    Raises:
        ValueError: another class has this name, or these settings.
    """

    def decorate(model: type[M]) -> type[M]:
        for kind in KINDS.values():
            taken = kind.name == name or kind.config is config
            if taken and kind.model.__qualname__ != model.__qualname__:
                raise ValueError(f"{model.__name__} cannot be {name!r}: {kind.model.__name__} is {kind.name!r}.")
        make: Any = build or (lambda checkpoint, freeze: model(checkpoint, freeze=freeze))
        KINDS[name] = Kind(name, about, model, config, make, sizes or {})
        return model

    return decorate


def kind_of(config: type[ModelConfig]) -> Kind:
    """The kind of model that has settings of this class.

    Raises:
        ModelError: no class of models is registered with them.
    """
    for kind in KINDS.values():
        if kind.config is config:
            return kind
    raise ModelError(f"A model with settings of the class {config.__name__} is of no known kind; register its class.")


def kind_called(name: str) -> Kind | None:
    """The kind of model that has this name in files; None for an unknown one."""
    return KINDS.get(name)


def kind_of_model(model: type[Any]) -> Kind | None:
    """The kind of a class of models, or of the nearest class above it; None where none is registered."""
    return next((kind for above in model.__mro__ for kind in KINDS.values() if kind.model is above), None)

"""The numbers that define a model, and the named sizes."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchbeats.patches import N_MELS, PATCH_SIZE
from torchbeats.pooling import WINDOW_POOLINGS

# Mean and standard deviation of AudioSet's log-mel features, part of every Microsoft checkpoint's meaning.
FBANK_MEAN = 15.41663
FBANK_STD = 6.55582

PROBLEM_TYPES = ("multi_label", "single_label")

LARGEST_SIZE = 2**20  # of any setting that counts something; beyond it stands a mistake, or a trap


class ModelConfig:
    """What all configurations have in common: a dictionary in, a dictionary out, and `check`.

    A new kind of model has a dataclass (``@dataclass(init=False)``) of its own below this one, with a default for each
    of its settings; see `torchbeats.weights.kinds`.
    """

    input_patch_size: int
    fbank_mean: float
    fbank_std: float

    def __init__(self, cfg: Mapping[str, Any] | None = None, **fields: Any) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        if unknown := sorted(fields.keys() - defaults.keys()):
            raise TypeError(f"{type(self).__name__} has no field {', '.join(unknown)}. It has: {', '.join(defaults)}.")
        self.update({**defaults, **(cfg or {}), **fields})

    def update(self, cfg: Mapping[str, Any]) -> None:
        """Overwrite the settings that ``cfg`` names; keys the config does not know are kept as attributes."""
        self.__dict__.update(cfg)

    def to_dict(self) -> dict[str, Any]:
        """Every setting, unknown keys that a checkpoint carried included: what a checkpoint stores as ``"cfg"``."""
        return dict(self.__dict__)

    def summary(self) -> str:
        """Kind and size in a few words."""
        return type(self).__name__.removesuffix("Config")

    def check(self) -> None:
        """Raise a ``ValueError`` that names the first setting no model can be built from."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            kind: Any = type(field.default)
            # Python counts True among the integers; as a size it is a mistake.
            fits = isinstance(value, (int, float) if kind is float else kind) and (
                kind is bool or not isinstance(value, bool)
            )
            if not fits:
                raise ValueError(f"{field.name} must be of type {kind.__name__}, not {shown(value)}.")
            if kind is int and value < 1:
                raise ValueError(f"{field.name} must be at least 1, not {shown(value)}.")
            if kind is int and value > LARGEST_SIZE:
                raise ValueError(f"{field.name} must be at most {LARGEST_SIZE}, not {shown(value)}.")
            if kind is float and not _is_finite(value):
                raise ValueError(f"{field.name} must be a finite number, not {shown(value)}.")
        if self.fbank_std <= 0:
            raise ValueError(f"fbank_std must be positive, not {shown(self.fbank_std)}.")
        if N_MELS % self.input_patch_size:
            raise ValueError(f"input_patch_size must divide the {N_MELS} mel bins; {self.input_patch_size} does not.")


def shown(value: Any) -> str:
    """A value for a sentence: short, however large it is."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length():,} bits"
    return reprlib.repr(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no floating-point number holds
        return False


@dataclass(init=False)
class BEATsConfig(ModelConfig):
    """Architecture and training settings of a BEATs model, under the names that published checkpoints use.

    The defaults are those of the research code. Published checkpoints differ from them in ``deep_norm``,
    ``relative_position_embedding`` and ``gru_rel_pos`` (all true) and ``max_distance`` (800).

    Args:
        cfg: the ``"cfg"`` dictionary of a checkpoint. Keys that are not listed below are kept as attributes.
        **fields: single settings, over ``cfg``; an unknown name is a ``TypeError``.

    | field | meaning |
    |---|---|
    | input_patch_size | side of a square patch, in frames and mel bins; must divide 128 |
    | embed_dim | channels of the patch embedding |
    | conv_bias | the patch embedding has a bias |
    | encoder_layers, encoder_embed_dim, encoder_ffn_embed_dim, encoder_attention_heads | size of the Transformer |
    | activation_fn | of the feed-forward part; a name that `get_activation_fn` knows |
    | layer_wise_gradient_decay_ratio | gradients are multiplied by this once a layer, from the top down |
    | layer_norm_first | pre-norm layers; cannot be combined with ``deep_norm`` |
    | deep_norm | scaled residuals and initial weights (DeepNet, arXiv 2203.00555) |
    | dropout, attention_dropout, activation_dropout, dropout_input, predictor_dropout | probabilities |
    | encoder_layerdrop | probability of leaving a layer out in training |
    | conv_pos, conv_pos_groups | kernel and groups of the convolutional position embedding |
    | relative_position_embedding, num_buckets, max_distance | T5-style position bias, in patches |
    | gru_rel_pos | the bias is gated by the query (WavLM, arXiv 2110.13900) |
    | finetuned_model, predictor_class | a head with this many classes |
    | predictor_pool | what the head sees of a clip: "mean" over all patches, "bands" or "statistics" over time |
    | problem_type | "multi_label" (sigmoid) or "single_label" (softmax) |
    | fbank_mean, fbank_std | normalisation of the log-mel features |
    """

    input_patch_size: int = PATCH_SIZE
    embed_dim: int = 512
    conv_bias: bool = False

    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    activation_fn: str = "gelu"

    layer_wise_gradient_decay_ratio: float = 1.0
    layer_norm_first: bool = False
    deep_norm: bool = False

    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    encoder_layerdrop: float = 0.0
    dropout_input: float = 0.0

    conv_pos: int = 128
    conv_pos_groups: int = 16

    relative_position_embedding: bool = False
    num_buckets: int = 320
    max_distance: int = 1280
    gru_rel_pos: bool = False

    finetuned_model: bool = False
    predictor_dropout: float = 0.1
    predictor_class: int = 527
    predictor_pool: str = "mean"
    problem_type: str = "multi_label"

    fbank_mean: float = FBANK_MEAN
    fbank_std: float = FBANK_STD

    def check(self) -> None:
        """Raise a ``ValueError`` that names the first setting no model can be built from."""
        super().check()
        if self.encoder_embed_dim % self.encoder_attention_heads:
            raise ValueError(
                f"encoder_embed_dim ({self.encoder_embed_dim}) must be a multiple of "
                f"encoder_attention_heads ({self.encoder_attention_heads})."
            )
        if self.encoder_embed_dim % self.conv_pos_groups:
            raise ValueError(
                f"encoder_embed_dim ({self.encoder_embed_dim}) must be a multiple of "
                f"conv_pos_groups ({self.conv_pos_groups})."
            )
        if self.deep_norm and self.layer_norm_first:
            raise ValueError("deep_norm and layer_norm_first exclude each other: deep norm scales post-norm residuals.")
        if self.predictor_pool not in WINDOW_POOLINGS:
            raise ValueError(
                f"predictor_pool must be {' or '.join(WINDOW_POOLINGS)}, not {shown(self.predictor_pool)}."
            )
        if self.problem_type not in PROBLEM_TYPES:
            raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, not {shown(self.problem_type)}.")

    def summary(self) -> str:
        """Size in a few words."""
        return f"{self.encoder_layers} layers of {self.encoder_embed_dim}"


@dataclass(init=False)
class TokenizersConfig(BEATsConfig):
    """Settings of a self-distilled acoustic tokenizer: a `BEATsConfig` and the size of its codebook.

    | field | meaning |
    |---|---|
    | quant_n | number of codes |
    | quant_dim | dimensions of a code |
    """

    quant_n: int = 1024
    quant_dim: int = 256

    def summary(self) -> str:
        """Size in a few words."""
        return f"tokenizer with {super().summary()}, {self.quant_n:,} codes"


PATCH_NORMALISATIONS = ("clip", "patch", "corpus")


@dataclass(init=False)
class RandomProjectionConfig(ModelConfig):
    """Settings of the frozen tokenizer that labels the first iteration.

    | field | meaning |
    |---|---|
    | input_patch_size | side of a square patch, in frames and mel bins |
    | quant_n | number of codes |
    | quant_dim | dimensions that a patch is projected to |
    | normalisation | "clip": each mel bin less its mean over the clip; "patch": each patch less its mean, by its own
    standard deviation; "corpus": neither |
    | fbank_mean, fbank_std | normalisation of the log-mel features, before all that |
    """

    input_patch_size: int = PATCH_SIZE
    quant_n: int = 1024
    quant_dim: int = 256
    normalisation: str = "clip"
    fbank_mean: float = FBANK_MEAN
    fbank_std: float = FBANK_STD

    def check(self) -> None:
        """Raise a ``ValueError`` that names the first setting no tokenizer can be built from."""
        super().check()
        if self.normalisation not in PATCH_NORMALISATIONS:
            raise ValueError(
                f"normalisation must be one of {', '.join(PATCH_NORMALISATIONS)}, not {shown(self.normalisation)}."
            )

    def summary(self) -> str:
        """Size in a few words."""
        return f"random-projection tokenizer with {self.quant_n:,} codes"


# What the published checkpoints switch on over the research code's defaults.
_PUBLISHED = {"deep_norm": True, "relative_position_embedding": True, "gru_rel_pos": True, "max_distance": 800}

SIZES: dict[str, dict[str, Any]] = {
    "nano": {  # 5 M parameters: the model that comes with the package
        **_PUBLISHED,
        "embed_dim": 256,
        "encoder_layers": 6,
        "encoder_embed_dim": 256,
        "encoder_ffn_embed_dim": 1024,
        "encoder_attention_heads": 4,
        "conv_pos": 64,
    },
    "tiny": {  # 22 M parameters
        **_PUBLISHED,
        "embed_dim": 384,
        "encoder_layers": 12,
        "encoder_embed_dim": 384,
        "encoder_ffn_embed_dim": 1536,
        "encoder_attention_heads": 6,
    },
    "base": {**_PUBLISHED},  # 90 M parameters: BEATs, OpenBEATs Base
    "large": {  # 300 M parameters: OpenBEATs Large
        **_PUBLISHED,
        "encoder_layers": 24,
        "encoder_embed_dim": 1024,
        "encoder_ffn_embed_dim": 4096,
        "encoder_attention_heads": 16,
    },
}

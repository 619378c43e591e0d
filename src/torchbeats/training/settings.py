"""What a pre-training run can be told: named sizes, a YAML file over them, and single settings over both."""

from __future__ import annotations

import copy
import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torchbeats.config import PATCH_NORMALISATIONS, SIZES, BEATsConfig, TokenizersConfig, shown
from torchbeats.errors import SettingsError
from torchbeats.pooling import WINDOW_POOLINGS
from torchbeats.training.defaults import DataSize, by_size
from torchbeats.training.yaml_values import read_yaml, read_yaml_file

LARGEST = 2**31 - 1  # number that a setting may be, seeds apart
LARGEST_SEED = 10**15  # what is derived from it has to fit into 64 bits
LARGEST_SIZE = 2**20  # of anything that weights are made for
AUTO = "auto"  # the pooling that a linear head does best with


T = TypeVar("T")


def setting(default: T, meaning: str) -> T:
    """A field of a dataclass with its default and the sentence that ``--show`` and the documentation have about it."""
    if isinstance(default, (list, dict)):  # a type checker should see the default, not the field
        return field(default_factory=lambda: copy.copy(default), metadata={"meaning": meaning})
    return field(default=default, metadata={"meaning": meaning})


@dataclass
class DataSettings:
    """How clips are drawn from the corpus."""

    crop_seconds: list[float] = setting([10.0], "Seconds; each clip's longest length is one of these.")
    batch_seconds: float = setting(320.0, "Seconds of audio in a batch, over all processes.")
    workers: int = setting(
        -1, "Decoding processes for each process that trains; -1: as many as there are cores to spare, up to 8."
    )
    gain_db: float = setting(0.0, "Each clip becomes louder or softer by up to this many decibels.")
    band_limited: float = setting(0.0, "Share of the clips that lose what is above 4 kHz, like telephone sound.")
    statistics_seconds: float = setting(
        3600.0, "Seconds of audio from which the corpus's mean and deviation are estimated."
    )


@dataclass
class TokenSettings:
    """The labels' vocabulary, and what the first iteration's frozen tokenizer looks at."""

    quant_n: int = setting(1024, "Number of codes, which are the labels.")
    quant_dim: int = setting(256, "Dimensions of a code.")
    normalisation: str = setting(
        "clip",
        "What random projection sees of a patch: clip (less each mel bin's mean over the clip), patch (less its own "
        "mean, by its own deviation) or corpus (as it is).",
    )


@dataclass
class OptimiserSettings:
    """AdamW, a linear warm-up, then a cosine down to a tenth."""

    steps: int = setting(400_000, "Optimiser steps.")
    lr: float = setting(5e-4, "Highest learning rate, at the end of the warm-up.")
    warmup: int = setting(5_000, "Steps in which the learning rate rises from zero.")
    weight_decay: float = setting(0.01, "AdamW's weight decay.")
    betas: list[float] = setting([0.9, 0.98], "AdamW's two decay rates of its moving averages.")


@dataclass
class ModelSettings(OptimiserSettings):
    """Masked audio modelling."""

    mask: float = setting(0.75, "Share of the patches that are hidden.")
    mask_block: int = setting(
        1,
        "Patches that are seen come in blocks of this many steps and bands (EAT's inverse block masking, arXiv "
        "2401.03497); 1: each by itself, as in BEATs.",
    )
    masks: int = setting(
        1,
        "A clip is heard once and learned from with this many masks (EAT); a batch costs up to as many times as much, "
        "less its reading, front end and labels, so make data.batch_seconds smaller.",
    )
    mix: float = setting(
        0.0,
        "Share of the clips with which the model hears the next of the batch too, up to 15 dB softer; the labels are "
        "those of the clip alone (as in WavLM, arXiv 2110.13900).",
    )
    utterance: float = setting(
        0.0,
        "Weight of a second loss: the mean of what the encoder makes of the patches it sees has to tell how often each "
        "label comes in the whole clip (an utterance-level loss as EAT's, on labels), or the mean of what the teacher "
        "makes of it.",
    )
    targets: str = setting(
        "codes",
        "What is said of hidden patches: codes (a tokenizer's labels, as in BEATs) or teacher (without labels, what a "
        "moving average of the model makes of the whole clip; data2vec, arXiv 2202.03555; iterations=1).",
    )
    teacher_decay: float = setting(
        0.999, "Share of the teacher's weights that a step keeps; the rest moves to the model's. With targets=teacher."
    )
    teacher_layers: int = setting(
        0, "Upper layers of the teacher whose outputs, normalised, have a target as their mean; 0: all."
    )
    teacher_norm: str = setting(
        "instance",
        "How a layer's output is normalised: instance (each channel over the clip) or layer (each patch over its "
        "channels).",
    )
    teacher_beta: float = setting(
        0.0,
        "Distance from the teacher up to which errors count by their square, beyond it as they are; 0: all squared.",
    )
    label_smoothing: float = setting(0.1, "Share of a label's weight that is spread over all codes.")
    predictor_layers: int = setting(3, "Layers of the label predictor, which is dropped after training.")
    predictor_width: int = setting(0, "Width of the label predictor; 0: that of the encoder.")
    mel_shift: int = setting(
        0, "The model hears each clip up to this many mel bins higher or lower than what its labels were made from."
    )
    equaliser_db: float = setting(
        0.0, "Depth in decibels of a smooth random colouring of what the model hears, as by another microphone."
    )


@dataclass
class DistillationSettings(OptimiserSettings):
    """The self-distilled tokenizer."""

    beta: float = setting(1.0, "Weight of the commitment loss.")
    decay: float = setting(0.99, "Share of a code that a step keeps; the rest moves to the mean of its patches.")
    kmeans_batches: int = setting(8, "Batches whose k-means the codes start as.")
    reseed_below: float = setting(
        0.0, "A code that is used less often than this share of the average is drawn anew; 0: none is."
    )
    estimator_layers: int = setting(3, "Layers that estimate the teacher's output from codes; dropped after training.")
    target: str = setting(
        "plain", "The teacher's output: plain (as it is) or clip (less each band's mean over the clip)."
    )
    start: str = setting(
        "fresh", "Weights at the start: fresh, teacher (a copy of it), or auto (a copy if it is of the same size)."
    )


@dataclass
class TrainerSettings:
    """The machine and the loop; may differ when a run is continued."""

    accelerator: str = setting("auto", "Lightning's name of the device: auto, cpu, gpu or mps.")
    devices: int | str = setting("auto", "Number of devices on each machine; auto: all of them.")
    nodes: int = setting(1, "Number of machines.")
    strategy: str = setting("auto", "Lightning's name of how several devices work together; auto: ddp.")
    precision: str = setting(
        "auto", "Lightning's name; auto: bf16-mixed on a GPU that has it, in fine-tuning a CPU too, 32-true elsewhere."
    )
    accumulate: int = setting(1, "Batches whose gradients make one step, where memory is short.")
    clip: float = setting(1.0, "Largest norm of the gradient; 0: any.")
    log_every: int = setting(50, "Steps between two rows of metrics.csv.")
    save_every: int = setting(500, "Steps between two saved states; one is also saved every five minutes.")


@dataclass
class Settings:
    """Everything that decides what a pre-training run computes."""

    size: str = setting("base", "Architecture and preset: nano, tiny, base or large.")
    iterations: int = setting(3, "Rounds of tokenizer and model.")
    seed: int = setting(0, "Random seed.")
    config: dict[str, Any] = setting({}, "Fields of BEATsConfig that differ from those of the size.")
    data: DataSettings = field(default_factory=DataSettings)
    tokens: TokenSettings = field(default_factory=TokenSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)

    def beats_config(self, **fields: Any) -> BEATsConfig:
        """The architecture of the models."""
        return BEATsConfig({**SIZES[self.size], **self.config}, **fields)

    def tokenizers_config(self, **fields: Any) -> TokenizersConfig:
        """The architecture of the self-distilled tokenizers."""
        vocabulary = {"quant_n": self.tokens.quant_n, "quant_dim": self.tokens.quant_dim}
        return TokenizersConfig({**SIZES[self.size], **self.config, **vocabulary}, **fields)

    def to_dict(self) -> dict[str, Any]:
        """The settings as nested dictionaries of plain values."""
        return dataclasses.asdict(self)


@dataclass
class LabelledDataSettings:
    """How labelled clips are drawn."""

    seconds: float = setting(10.0, "The most that the model hears at once, in training and in validation.")
    batch_seconds: float = setting(40.0, "Seconds of audio in a batch, over all processes; by the size of the data.")
    workers: int = setting(
        -1, "Decoding processes for each process that trains; -1: as many as there are cores to spare, up to 8."
    )
    balance: float = setting(
        0.0, "0: draw classes as often as they come; 1: all equally often; 0.5: by the roots of their counts."
    )
    views: int = setting(
        1, "Validation hears each sound this many times, a share of a step later each time, and takes the mean."
    )
    validation: float = setting(
        0.1, "Share of the sounds that is held out, if the data have no split of their own; by the size of the data."
    )


@dataclass
class AugmentationSettings:
    """How clips are changed, so that there seem to be more of them."""

    gain_db: float = setting(6.0, "Each clip becomes louder or softer by up to this many decibels.")
    band_limited: float = setting(0.0, "Share of the clips that lose what is above 4 kHz.")
    speed: float = setting(
        0.0, "Each clip is played faster or slower by up to this share, and becomes higher or lower with it."
    )
    noise: float = setting(
        0.0, "Share of the clips that get noise of some colour, 5 to 40 dB below them, as from another recorder."
    )
    delay: float = setting(
        0.0, "Up to this many seconds of noise like its quietest moment come before a clip, and on top of it."
    )
    roll: bool = setting(False, "Each clip begins somewhere within itself and ends with its beginning; not for words.")
    mixup: float = setting(
        0.3, "Clips are mixed in pairs, by shares from Beta(mixup, mixup) (arXiv 1710.09412); 0: not."
    )
    time_mask: float = setting(0.1, "Up to this share of the frames is silenced (SpecAugment, arXiv 1904.08779).")
    mel_mask: float = setting(0.1, "Up to this share of the mel bins is silenced.")
    mel_shift: int = setting(0, "Each clip is heard up to this many mel bins higher or lower.")
    equaliser_db: float = setting(0.0, "Depth in decibels of a smooth random colouring, as by another microphone.")


@dataclass
class TuningSettings:
    """AdamW with a learning rate that falls from the head to the input."""

    epochs: float = setting(20.0, "Passes through the sounds, at most; by the size of the data.")
    lr: float = setting(5e-4, "Highest learning rate, of the head and the last layer; by the size of the data.")
    layer_decay: float = setting(0.75, "Each layer further down learns this much slower; by the size of the data.")
    warmup: float = setting(0.1, "Share of the steps in which the learning rate rises from zero.")
    weight_decay: float = setting(0.01, "AdamW's weight decay.")
    betas: list[float] = setting([0.9, 0.98], "AdamW's two decay rates of its moving averages.")
    label_smoothing: float = setting(0.0, "Share of a label's weight that is spread over all classes.")
    freeze: int = setting(0, "The patch embedding and this many layers stay as they are; -1: all but the head.")
    layerdrop: float = setting(0.0, "Probability of leaving a layer out of a step.")
    gradient_decay: float = setting(1.0, "Gradients are multiplied by this once a layer, from the top down.")
    dropout: float = setting(0.1, "Dropout in front of the head.")
    pool: str = setting(
        AUTO,
        "What the head sees: mean (over all patches, as in the original), or over time: bands or statistics; auto: "
        "what a linear head does best with, or what a head that stays has.",
    )
    average: float = setting(
        0.99,
        "The result is a moving average of the weights, of which a step keeps this share; 0: the last weights; by the "
        "size of the data.",
    )
    patience: int = setting(
        5,
        "Epochs without a better validation before training ends early; 0: it does not, and a cross-validation holds "
        "nothing out besides; by the size of the data.",
    )
    head_first: bool = setting(
        True,
        "Training begins with a linear head fitted on the frozen model's embeddings, which is kept if fine-tuning does "
        "no better on the sounds held out, beyond noise (LP-FT, arXiv 2202.10054); a head that knows the same classes "
        "stays.",
    )


@dataclass
class FinetuneSettings:
    """Everything that decides what a fine-tuning computes."""

    seed: int = setting(0, "Random seed.")
    data: LabelledDataSettings = field(default_factory=LabelledDataSettings)
    augment: AugmentationSettings = field(default_factory=AugmentationSettings)
    model: TuningSettings = field(default_factory=TuningSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)

    def to_dict(self) -> dict[str, Any]:
        """The settings as nested dictionaries of plain values."""
        return dataclasses.asdict(self)


# Beside the architectures of config.SIZES. Base and large follow ESPnet's reproduction (arXiv 2507.14129).
_SMALL_MODEL = {"lr": 1e-3, "warmup": 300, "predictor_layers": 2}
# A tokenizer that starts as a copy of its teacher needs few steps; the shorter they are, the sooner a code is missed.
_SMALL_TOKENIZER = {
    "steps": 500,
    "warmup": 50,
    "estimator_layers": 2,
    "start": "auto",
    "decay": 0.95,
    "reseed_below": 0.05,
}
PRESETS: dict[str, dict[str, Any]] = {
    "nano": {  # a few hours on a laptop core
        "iterations": 2,
        "config": {"dropout": 0.0, "attention_dropout": 0.0},
        "data": {"crop_seconds": [1.0, 2.5, 10.0], "batch_seconds": 64.0},
        "model": {**_SMALL_MODEL, "steps": 5_000, "predictor_width": 128},
        "distillation": _SMALL_TOKENIZER,
    },
    "tiny": {  # a day on a laptop, an hour on a GPU
        "iterations": 2,
        "config": {"dropout": 0.0, "attention_dropout": 0.0},
        "data": {"crop_seconds": [2.5, 10.0], "batch_seconds": 128.0},
        "model": {**_SMALL_MODEL, "steps": 20_000, "predictor_width": 192},
        "distillation": {**_SMALL_TOKENIZER, "steps": 2_000},
    },
    "base": {},
    "large": {"model": {"lr": 3e-4}},
}


def settings(
    size: str = "base",
    file: Path | None = None,
    assignments: Iterable[str] = (),
    **named: Any,
) -> Settings:
    """Settle what a run is to do.

    Args:
        size: of `PRESETS`.
        file: YAML, nested as `Settings` is.
        assignments: ``key=value`` with dots in the key, ``model.lr=1e-3``; the value is read as YAML.
        **named: fields of `Settings`, over all others; None stands for not given.

    Raises:
        SettingsError: no such setting, or a value that it cannot have.
    """
    values = read_yaml_file(file) if file is not None else {}
    assignments = list(assignments)
    size = values.get("size", size) if isinstance(values, Mapping) else size
    for assignment in assignments:
        if assignment.startswith("size="):
            size = assignment[len("size=") :]
    if size not in list(PRESETS):  # of a list, so that what cannot be a key is none
        raise SettingsError(f"There is no size called {shown(size)}; choose one of {', '.join(PRESETS)}.")
    result = Settings(size=size)
    _merge(result, PRESETS[size], "")
    _apply(result, values, assignments, named)
    _check(result)
    return result


def finetune_settings(
    file: Path | None = None, assignments: Iterable[str] = (), size: DataSize | None = None, **named: Any
) -> FinetuneSettings:
    """Settle what a fine-tuning is to do.

    Args:
        file: YAML, nested as `FinetuneSettings` is.
        assignments: as for `settings`.
        size: of the data; what nothing else says is by it then, see `torchbeats.training.defaults`.
        **named: as for `settings`.

    Raises:
        SettingsError: as `settings`.
    """
    result = FinetuneSettings()
    if size is not None:
        _merge(result, by_size(size), "")
    _apply(result, read_yaml_file(file) if file is not None else {}, assignments, named)
    _check_finetune(result)
    return result


def _apply(target: Any, values: Any, assignments: Iterable[str], named: Mapping[str, Any]) -> None:
    """Set what a file says, over that what assignments say, over that what is named and not None."""
    _merge(target, values, "")
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise SettingsError(f"{assignment!r} sets nothing; write it as key=value, as in model.lr=1e-3.")
        nested: Any = read_yaml(value, f"The value of {key}")
        for name in reversed(key.strip().split(".")):
            nested = {name: nested}
        _merge(target, nested, "")
    _merge(target, {name: value for name, value in named.items() if value is not None}, "")


def _merge(target: Any, values: Any, prefix: str) -> None:
    """Set fields of a settings object from a dictionary, both nested."""
    if not isinstance(values, Mapping):
        raise SettingsError(f"{prefix.rstrip('.') or 'The file'} must hold names and values, not {shown(values)}.")
    kinds = typing.get_type_hints(type(target))
    for name, value in values.items():
        if name not in kinds:
            raise _no_setting(prefix, name, kinds)
        current = getattr(target, name)
        if dataclasses.is_dataclass(current):
            _merge(current, value, f"{prefix}{name}.")
        elif isinstance(current, dict):
            if not isinstance(value, Mapping):
                raise SettingsError(f"{prefix}{name} must hold names and values, not {shown(value)}.")
            current.update(value)
        else:
            setattr(target, name, _as(kinds[name], value, prefix + name))


def _no_setting(prefix: str, name: Any, known: Iterable[str]) -> SettingsError:
    name = name if isinstance(name, str) and len(name) < 80 else shown(name)
    return SettingsError(f"There is no setting {prefix}{name}; there are {', '.join(prefix + n for n in known)}.")


def _as(kind: Any, value: Any, name: str) -> Any:
    """``value`` as a setting of type ``kind``."""
    origin = typing.get_origin(kind)
    if origin is list:
        items = value if isinstance(value, (list, tuple)) else [value]
        return [_as(typing.get_args(kind)[0], item, name) for item in items]
    choices = typing.get_args(kind) if origin in (typing.Union, types.UnionType) else (kind,)
    limit = LARGEST_SEED if name == "seed" else LARGEST
    if isinstance(value, (int, float)) and not abs(value) <= limit:
        raise SettingsError(f"{name} must be a number of at most {limit}, not {shown(value)}.")
    if float in choices and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if int in choices and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, choices) and (bool in choices or not isinstance(value, bool)):
        return value
    if str in choices and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise SettingsError(f"{name} must be of type {' or '.join(c.__name__ for c in choices)}, not {shown(value)}.")


def _check(settings: Settings) -> None:
    """Refuse values that would only fail later, or quietly do nothing."""
    known = [field.name for field in dataclasses.fields(BEATsConfig)]
    if unknown := [name for name in settings.config if name not in known]:
        raise _no_setting("config.", unknown[0], known)
    try:
        settings.beats_config().check()
    except (TypeError, ValueError) as error:
        raise SettingsError(f"config: {error}") from error
    data, tokens, model, distillation, trainer = (
        settings.data, settings.tokens, settings.model, settings.distillation, settings.trainer
    )  # fmt: skip
    phases = (model, distillation)
    config = settings.beats_config()
    width = model.predictor_width or config.encoder_embed_dim
    rules = {
        "iterations must be at least 1": settings.iterations >= 1,
        f"tokens.quant_n, tokens.quant_dim and model.predictor_width must be at most {LARGEST_SIZE}": max(
            tokens.quant_n, tokens.quant_dim, width
        )
        <= LARGEST_SIZE,
        "model.predictor_layers and distillation.estimator_layers must be at most 1000": max(
            model.predictor_layers, distillation.estimator_layers
        )
        <= 1000,
        "data.batch_seconds must be at most 1000000": data.batch_seconds <= 1e6,
        "data.workers must be at most 1000": data.workers <= 1000,
        "trainer.nodes must be at least 1": trainer.nodes >= 1,
        "seed must be at least 0": settings.seed >= 0,
        "data.workers must be at least 0, or -1": data.workers >= -1,
        "data.crop_seconds must name at least one length of 0.175 s or more": len(data.crop_seconds) > 0
        and all(0.175 <= seconds < math.inf for seconds in data.crop_seconds),
        "data.batch_seconds must be at least the longest of data.crop_seconds": max(data.crop_seconds, default=0)
        <= data.batch_seconds
        < math.inf,
        "data.statistics_seconds must be more than 0": data.statistics_seconds > 0,
        "data.gain_db must be at least 0": 0 <= data.gain_db < math.inf,
        "data.band_limited must lie between 0 and 1": 0 <= data.band_limited <= 1,
        "model.mask must be at least 0 and less than 1": 0 <= model.mask < 1,
        "model.mask_block must lie between 1 and 1000": 1 <= model.mask_block <= 1000,
        "model.masks must lie between 1 and 1000": 1 <= model.masks <= 1000,
        "model.mix must lie between 0 and 1": 0 <= model.mix <= 1,
        "model.utterance must be at least 0": 0 <= model.utterance < math.inf,
        "model.targets must be codes or teacher": model.targets in ("codes", "teacher"),
        "with model.targets=teacher there are no labels that a tokenizer could be made for, so iterations must be 1": (
            model.targets != "teacher" or settings.iterations == 1
        ),
        "model.teacher_decay must be at least 0 and less than 1": 0 <= model.teacher_decay < 1,
        f"model.teacher_layers must lie between 0 and the model's {config.encoder_layers} layers": 0
        <= model.teacher_layers
        <= config.encoder_layers,
        "model.teacher_norm must be instance or layer": model.teacher_norm in ("instance", "layer"),
        "model.teacher_beta must be at least 0": 0 <= model.teacher_beta < math.inf,
        "model.label_smoothing must be at least 0 and less than 1": 0 <= model.label_smoothing < 1,
        "model.mel_shift must lie between 0 and 127": 0 <= model.mel_shift < 128,
        "model.equaliser_db must be at least 0": 0 <= model.equaliser_db < math.inf,
        f"model.predictor_width must be a multiple of its {predictor_heads(config, width)} heads and of "
        f"config.conv_pos_groups, {config.conv_pos_groups}": width > 0
        and width % config.conv_pos_groups == 0
        and width % predictor_heads(config, width) == 0,
        "model.predictor_layers must be at least 1": model.predictor_layers >= 1,
        "tokens.quant_n must be at least 2": tokens.quant_n >= 2,
        "tokens.quant_dim must be at least 1": tokens.quant_dim >= 1,
        f"tokens.normalisation must be one of {', '.join(PATCH_NORMALISATIONS)}": tokens.normalisation
        in PATCH_NORMALISATIONS,
        "distillation.estimator_layers must be at least 1": distillation.estimator_layers >= 1,
        "distillation.kmeans_batches must be at least 1": distillation.kmeans_batches >= 1,
        "distillation.decay must be at least 0 and less than 1": 0 <= distillation.decay < 1,
        "distillation.beta must be at least 0": 0 <= distillation.beta < math.inf,
        "distillation.reseed_below must be at least 0 and less than 1": 0 <= distillation.reseed_below < 1,
        "distillation.target must be plain or clip": distillation.target in ("plain", "clip"),
        "distillation.start must be fresh, teacher or auto": distillation.start in ("fresh", "teacher", "auto"),
        "lr must be more than 0": all(0 < phase.lr < math.inf for phase in phases),
        "warmup and weight_decay must be at least 0": all(
            phase.warmup >= 0 and 0 <= phase.weight_decay < math.inf for phase in phases
        ),
        "the two betas must lie between 0 and 1": all(
            len(phase.betas) == 2 and all(0 <= beta < 1 for beta in phase.betas) for phase in phases
        ),
        "steps must be at least 1": all(phase.steps >= 1 for phase in phases),
        "trainer.clip must be at least 0": 0 <= trainer.clip < math.inf,
        "trainer.log_every, save_every and accumulate must be at least 1": min(
            trainer.log_every, trainer.save_every, trainer.accumulate
        )
        >= 1,
    }
    _refuse(rules)


def _check_finetune(settings: FinetuneSettings) -> None:
    """Refuse values that would only fail later, or quietly do nothing."""
    data, augment, model, trainer = settings.data, settings.augment, settings.model, settings.trainer
    _refuse(
        {
            "seed must be at least 0": settings.seed >= 0,
            "data.seconds must be at least 0.175": 0.175 <= data.seconds < math.inf,
            "data.batch_seconds must be at least data.seconds": data.seconds <= data.batch_seconds < math.inf,
            "data.workers must be at least 0, or -1": data.workers >= -1,
            "data.views must lie between 1 and 1000": 1 <= data.views <= 1000,
            "data.batch_seconds must be at most 1000000": data.batch_seconds <= 1e6,
            "data.workers must be at most 1000": data.workers <= 1000,
            "trainer.nodes must be at least 1": trainer.nodes >= 1,
            "data.balance must lie between 0 and 1": 0 <= data.balance <= 1,
            "data.validation must be at least 0 and less than 1": 0 <= data.validation < 1,
            "augment.gain_db and equaliser_db must be at least 0": 0 <= augment.gain_db < math.inf
            and 0 <= augment.equaliser_db < math.inf,
            "augment.band_limited and noise must lie between 0 and 1": 0 <= augment.band_limited <= 1
            and 0 <= augment.noise <= 1,
            "augment.speed must lie between 0 and 0.5": 0 <= augment.speed <= 0.5,
            "augment.delay must be at least 0 and at most data.seconds": 0 <= augment.delay <= data.seconds,
            "augment.mixup must be at least 0": 0 <= augment.mixup < math.inf,
            "augment.time_mask and mel_mask must be at least 0 and less than 1": 0 <= augment.time_mask < 1
            and 0 <= augment.mel_mask < 1,
            "augment.mel_shift must lie between 0 and 127": 0 <= augment.mel_shift < 128,
            "model.epochs must be more than 0": 0 < model.epochs < math.inf,
            "model.lr must be more than 0": 0 < model.lr < math.inf,
            "model.layer_decay must be more than 0 and at most 1": 0 < model.layer_decay <= 1,
            "model.gradient_decay must be more than 0 and at most 1": 0 < model.gradient_decay <= 1,
            "model.warmup must lie between 0 and 1": 0 <= model.warmup <= 1,
            "model.weight_decay must be at least 0": 0 <= model.weight_decay < math.inf,
            "the two betas must lie between 0 and 1": len(model.betas) == 2 and all(0 <= b < 1 for b in model.betas),
            "model.label_smoothing, layerdrop, dropout and average must be at least 0 and less than 1": all(
                0 <= value < 1 for value in (model.label_smoothing, model.layerdrop, model.dropout, model.average)
            ),
            f"model.pool must be {' or '.join((AUTO, *WINDOW_POOLINGS))}": model.pool in (AUTO, *WINDOW_POOLINGS),
            "model.freeze must be at least 0, or -1": model.freeze >= -1,
            "model.patience must be at least 0": model.patience >= 0,
            "trainer.clip must be at least 0": 0 <= trainer.clip < math.inf,
            "trainer.log_every, save_every and accumulate must be at least 1": min(
                trainer.log_every, trainer.save_every, trainer.accumulate
            )
            >= 1,
        }
    )


def _refuse(rules: Mapping[str, bool]) -> None:
    for rule, holds in rules.items():
        if not holds:
            raise SettingsError(f"The settings cannot be followed: {rule}.")


def predictor_heads(config: BEATsConfig, width: int) -> int:
    """Attention heads of a label predictor: as wide as the encoder's, if it is wide enough for one."""
    return max(1, width // (config.encoder_embed_dim // config.encoder_attention_heads))

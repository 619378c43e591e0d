"""Every setting of pre-training and fine-tuning: its default, what it means, and which values it may have."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torchbeats.config import PATCH_NORMALISATIONS, SIZES, BEATsConfig, TokenizersConfig
from torchbeats.pooling import WINDOW_POOLINGS
from torchbeats.training.limits import Limit, at_least, between, more_than, of_each, one_of

LARGEST_SIZE = 2**20  # of anything that weights are made for
AUTO = "auto"  # the pooling that a linear head does best with


T = TypeVar("T")


def setting(default: T, meaning: str, limit: Limit | None = None) -> T:
    """A field with its default, the sentence that ``--show`` and the documentation have about it, and its limit."""
    metadata = {"meaning": meaning, "limit": limit}
    if isinstance(default, (list, dict)):  # a type checker should see the default, not the field
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DataSettings:
    """How clips are drawn from the corpus."""

    crop_seconds: list[float] = setting(
        [10.0], "Seconds; each clip's longest length is one of these.", of_each(at_least(0.175))
    )
    batch_seconds: float = setting(320.0, "Seconds of audio in a batch, over all processes.", more_than(0, at_most=1e6))
    workers: int = setting(
        -1,
        "Decoding processes for each process that trains; -1: as many as there are cores to spare, up to 8.",
        between(0, 1000, or_be=-1),
    )
    gain_db: float = setting(0.0, "Each clip becomes louder or softer by up to this many decibels.", at_least(0))
    band_limited: float = setting(
        0.0, "Share of the clips that lose what is above 4 kHz, like telephone sound.", between(0, 1)
    )
    statistics_seconds: float = setting(
        3600.0, "Seconds of audio from which the corpus's mean and deviation are estimated.", more_than(0)
    )


@dataclass
class TokenSettings:
    """The labels' vocabulary, and what the first iteration's frozen tokenizer looks at."""

    quant_n: int = setting(1024, "Number of codes, which are the labels.", between(2, LARGEST_SIZE))
    quant_dim: int = setting(256, "Dimensions of a code.", between(1, LARGEST_SIZE))
    normalisation: str = setting(
        "clip",
        "What random projection sees of a patch: clip (less each mel bin's mean over the clip), patch (less its own "
        "mean, by its own deviation) or corpus (as it is).",
        one_of(*PATCH_NORMALISATIONS),
    )


@dataclass
class OptimiserSettings:
    """AdamW, a linear warm-up, then a cosine down to a tenth."""

    steps: int = setting(400_000, "Optimiser steps.", at_least(1))
    lr: float = setting(5e-4, "Highest learning rate, at the end of the warm-up.", more_than(0))
    warmup: int = setting(5_000, "Steps in which the learning rate rises from zero.", at_least(0))
    weight_decay: float = setting(0.01, "AdamW's weight decay.", at_least(0))
    betas: list[float] = setting(
        [0.9, 0.98], "AdamW's two decay rates of its moving averages.", of_each(at_least(0, less_than=1), 2)
    )


@dataclass
class ModelSettings(OptimiserSettings):
    """Masked audio modelling."""

    mask: float = setting(0.75, "Share of the patches that are hidden.", at_least(0, less_than=1))
    mask_block: int = setting(
        1,
        "Patches that are seen come in blocks of this many steps and bands (EAT's inverse block masking, arXiv "
        "2401.03497); 1: each by itself, as in BEATs.",
        between(1, 1000),
    )
    masks: int = setting(
        1,
        "A clip is heard once and learned from with this many masks (EAT); a batch costs up to as many times as much, "
        "less its reading, front end and labels, so make data.batch_seconds smaller.",
        between(1, 1000),
    )
    mix: float = setting(
        0.0,
        "Share of the clips with which the model hears the next of the batch too, up to 15 dB softer; the labels are "
        "those of the clip alone (as in WavLM, arXiv 2110.13900).",
        between(0, 1),
    )
    utterance: float = setting(
        0.0,
        "Weight of a second loss: the mean of what the encoder makes of the patches it sees has to tell how often each "
        "label comes in the whole clip (an utterance-level loss as EAT's, on labels), or the mean of what the teacher "
        "makes of it.",
        at_least(0),
    )
    targets: str = setting(
        "codes",
        "What is said of hidden patches: codes (a tokenizer's labels, as in BEATs) or teacher (without labels, what a "
        "moving average of the model makes of the whole clip; data2vec, arXiv 2202.03555; iterations=1).",
        one_of("codes", "teacher"),
    )
    teacher_decay: float = setting(
        0.999,
        "Share of the teacher's weights that a step keeps; the rest moves to the model's. With targets=teacher.",
        at_least(0, less_than=1),
    )
    teacher_layers: int = setting(
        0, "Upper layers of the teacher whose outputs, normalised, have a target as their mean; 0: all.", at_least(0)
    )
    teacher_norm: str = setting(
        "instance",
        "How a layer's output is normalised: instance (each channel over the clip) or layer (each patch over its "
        "channels).",
        one_of("instance", "layer"),
    )
    teacher_beta: float = setting(
        0.0,
        "Distance from the teacher up to which errors count by their square, beyond it as they are; 0: all squared.",
        at_least(0),
    )
    label_smoothing: float = setting(
        0.1, "Share of a label's weight that is spread over all codes.", at_least(0, less_than=1)
    )
    predictor_layers: int = setting(
        3, "Layers of the label predictor, which is dropped after training.", between(1, 1000)
    )
    predictor_width: int = setting(0, "Width of the label predictor; 0: that of the encoder.", between(0, LARGEST_SIZE))
    mel_shift: int = setting(
        0,
        "The model hears each clip up to this many mel bins higher or lower than what its labels were made from.",
        between(0, 127),
    )
    equaliser_db: float = setting(
        0.0,
        "Depth in decibels of a smooth random colouring of what the model hears, as by another microphone.",
        at_least(0),
    )


@dataclass
class DistillationSettings(OptimiserSettings):
    """The self-distilled tokenizer."""

    beta: float = setting(1.0, "Weight of the commitment loss.", at_least(0))
    decay: float = setting(
        0.99, "Share of a code that a step keeps; the rest moves to the mean of its patches.", at_least(0, less_than=1)
    )
    kmeans_batches: int = setting(8, "Batches whose k-means the codes start as.", at_least(1))
    reseed_below: float = setting(
        0.0,
        "A code that is used less often than this share of the average is drawn anew; 0: none is.",
        at_least(0, less_than=1),
    )
    estimator_layers: int = setting(
        3, "Layers that estimate the teacher's output from codes; dropped after training.", between(1, 1000)
    )
    target: str = setting(
        "plain",
        "The teacher's output: plain (as it is) or clip (less each band's mean over the clip).",
        one_of("plain", "clip"),
    )
    start: str = setting(
        "fresh",
        "Weights at the start: fresh, teacher (a copy of it), or auto (a copy if it is of the same size).",
        one_of("fresh", "teacher", "auto"),
    )


@dataclass
class TrainerSettings:
    """The machine and the loop; may differ when a run is continued."""

    accelerator: str = setting("auto", "Lightning's name of the device: auto, cpu, gpu or mps.")
    devices: int | str = setting("auto", "Number of devices on each machine; auto: all of them.")
    nodes: int = setting(1, "Number of machines.", at_least(1))
    strategy: str = setting("auto", "Lightning's name of how several devices work together; auto: ddp.")
    precision: str = setting(
        "auto", "Lightning's name; auto: bf16-mixed on a GPU that has it, in fine-tuning a CPU too, 32-true elsewhere."
    )
    accumulate: int = setting(1, "Batches whose gradients make one step, where memory is short.", at_least(1))
    clip: float = setting(1.0, "Largest norm of the gradient; 0: any.", at_least(0))
    log_every: int = setting(50, "Steps between two rows of metrics.csv.", at_least(1))
    save_every: int = setting(500, "Steps between two saved states; one is also saved every five minutes.", at_least(1))


@dataclass
class Settings:
    """Everything that decides what a pre-training run computes."""

    size: str = setting("base", "Architecture and preset: nano, tiny, base or large.")
    iterations: int = setting(3, "Rounds of tokenizer and model.", at_least(1))
    seed: int = setting(0, "Random seed.", at_least(0))
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

    seconds: float = setting(
        10.0, "The most that the model hears at once, in training and in validation.", at_least(0.175)
    )
    batch_seconds: float = setting(
        40.0, "Seconds of audio in a batch, over all processes; by the size of the data.", more_than(0, at_most=1e6)
    )
    workers: int = setting(
        -1,
        "Decoding processes for each process that trains; -1: as many as there are cores to spare, up to 8.",
        between(0, 1000, or_be=-1),
    )
    balance: float = setting(
        0.0,
        "0: draw classes as often as they come; 1: all equally often; 0.5: by the roots of their counts.",
        between(0, 1),
    )
    views: int = setting(
        1,
        "Validation hears each sound this many times, a share of a step later each time, and takes the mean.",
        between(1, 1000),
    )
    validation: float = setting(
        0.1,
        "Share of the sounds that is held out, if the data have no split of their own; by the size of the data.",
        at_least(0, less_than=1),
    )


@dataclass
class AugmentationSettings:
    """How clips are changed, so that there seem to be more of them."""

    gain_db: float = setting(6.0, "Each clip becomes louder or softer by up to this many decibels.", at_least(0))
    band_limited: float = setting(0.0, "Share of the clips that lose what is above 4 kHz.", between(0, 1))
    speed: float = setting(
        0.0,
        "Each clip is played faster or slower by up to this share, and becomes higher or lower with it.",
        between(0, 0.5),
    )
    noise: float = setting(
        0.0,
        "Share of the clips that get noise of some colour, 5 to 40 dB below them, as from another recorder.",
        between(0, 1),
    )
    delay: float = setting(
        0.0,
        "Up to this many seconds of noise like its quietest moment come before a clip, and on top of it.",
        at_least(0),
    )
    roll: bool = setting(False, "Each clip begins somewhere within itself and ends with its beginning; not for words.")
    mixup: float = setting(
        0.3, "Clips are mixed in pairs, by shares from Beta(mixup, mixup) (arXiv 1710.09412); 0: not.", at_least(0)
    )
    time_mask: float = setting(
        0.1, "Up to this share of the frames is silenced (SpecAugment, arXiv 1904.08779).", at_least(0, less_than=1)
    )
    mel_mask: float = setting(0.1, "Up to this share of the mel bins is silenced.", at_least(0, less_than=1))
    mel_shift: int = setting(0, "Each clip is heard up to this many mel bins higher or lower.", between(0, 127))
    equaliser_db: float = setting(
        0.0, "Depth in decibels of a smooth random colouring, as by another microphone.", at_least(0)
    )


@dataclass
class TuningSettings:
    """AdamW with a learning rate that falls from the head to the input."""

    epochs: float = setting(20.0, "Passes through the sounds, at most; by the size of the data.", more_than(0))
    lr: float = setting(
        5e-4, "Highest learning rate, of the head and the last layer; by the size of the data.", more_than(0)
    )
    layer_decay: float = setting(
        0.75, "Each layer further down learns this much slower; by the size of the data.", more_than(0, at_most=1)
    )
    warmup: float = setting(0.1, "Share of the steps in which the learning rate rises from zero.", between(0, 1))
    weight_decay: float = setting(0.01, "AdamW's weight decay.", at_least(0))
    betas: list[float] = setting(
        [0.9, 0.98], "AdamW's two decay rates of its moving averages.", of_each(at_least(0, less_than=1), 2)
    )
    label_smoothing: float = setting(
        0.0, "Share of a label's weight that is spread over all classes.", at_least(0, less_than=1)
    )
    freeze: int = setting(
        0, "The patch embedding and this many layers stay as they are; -1: all but the head.", at_least(0, or_be=-1)
    )
    layerdrop: float = setting(0.0, "Probability of leaving a layer out of a step.", at_least(0, less_than=1))
    gradient_decay: float = setting(
        1.0, "Gradients are multiplied by this once a layer, from the top down.", more_than(0, at_most=1)
    )
    dropout: float = setting(0.1, "Dropout in front of the head.", at_least(0, less_than=1))
    pool: str = setting(
        AUTO,
        "What the head sees: mean (over all patches, as in the original), or over time: bands or statistics; auto: "
        "what a linear head does best with, or what a head that stays has.",
        one_of(AUTO, *WINDOW_POOLINGS),
    )
    average: float = setting(
        0.99,
        "The result is a moving average of the weights, of which a step keeps this share; 0: the last weights; by the "
        "size of the data.",
        at_least(0, less_than=1),
    )
    patience: int = setting(
        5,
        "Epochs without a better validation before training ends early; 0: it does not, and a cross-validation holds "
        "nothing out besides; by the size of the data.",
        at_least(0),
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

    seed: int = setting(0, "Random seed.", at_least(0))
    data: LabelledDataSettings = field(default_factory=LabelledDataSettings)
    augment: AugmentationSettings = field(default_factory=AugmentationSettings)
    model: TuningSettings = field(default_factory=TuningSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)

    def to_dict(self) -> dict[str, Any]:
        """The settings as nested dictionaries of plain values."""
        return dataclasses.asdict(self)


def predictor_heads(config: BEATsConfig, width: int) -> int:
    """Attention heads of a label predictor: as wide as the encoder's, if it is wide enough for one."""
    return max(1, width // (config.encoder_embed_dim // config.encoder_attention_heads))

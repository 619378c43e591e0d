"""Sounds, in memory or in files, to a padded batch of waveforms at 16 kHz."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor

from torchbeats import audio
from torchbeats.errors import InputError, SettingsError
from torchbeats.patches import SAMPLE_RATE


class BEATsFeatureExtractor(SequenceFeatureExtractor):
    """Resamples, mixes down to mono, and pads; log-mel features are the model's own affair.

    Args:
        feature_size: always 1.
        sampling_rate: that the model wants, in Hz: always 16,000.
        padding_value: what stands behind a sound.
        **kwargs: see `SequenceFeatureExtractor`.
    """

    model_input_names = ["input_values", "attention_mask"]  # noqa: RUF012 - as in its parent

    def __init__(
        self, feature_size: int = 1, sampling_rate: int = SAMPLE_RATE, padding_value: float = 0.0, **kwargs: Any
    ) -> None:
        if sampling_rate != SAMPLE_RATE:
            raise SettingsError(
                f"BEATs hears {SAMPLE_RATE} Hz, not {sampling_rate}. Tell the rate of your sounds when you call this: "
                "feature_extractor(sound, sampling_rate=44_100)."
            )
        if kwargs.get("padding_side", "right") != "right":
            raise SettingsError("Padding stands behind a sound: leave padding_side out.")
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: float | None = None,
        padding: bool | str = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare one sound or several.

        Args:
            raw_speech: an array, tensor or list of samples in [-1, 1], or integer PCM; a file; or a list of these, or
                an array ``(sounds, samples)``. In a list, a sound may be ``(channels, samples)``.
            sampling_rate: of the arrays, in Hz; 16,000 where not given, with a warning. Files say their own.
            padding: True or "longest", "max_length", or False.
            max_length: samples at 16 kHz, for ``padding`` and ``truncation``.
            truncation: cut sounds longer than ``max_length``.
            pad_to_multiple_of: samples.
            return_attention_mask: True where not given.
            return_tensors: "pt" or "np".
            **kwargs: not used; other feature extractors have more options.

        Returns:
            ``input_values`` ``(sounds, samples)`` float32 and ``attention_mask`` ``(sounds, samples)``, 1 where a sound
            is and 0 where padding is.

        Raises:
            InputError: no sounds, or samples that are no sound.
            AudioError: a file that gives no sound.
        """
        sounds = _sounds(raw_speech)
        if sampling_rate is None and not all(isinstance(sound, (str, os.PathLike)) for sound in sounds):
            warnings.warn(
                f"No sampling_rate was given, so these sounds are taken for {SAMPLE_RATE} Hz. Say sampling_rate=… .",
                stacklevel=2,
            )
        waves = [self._wave(index, sound, sampling_rate) for index, sound in enumerate(sounds)]
        return self.pad(
            BatchFeature({"input_values": waves}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )

    def _wave(self, index: int, sound: Any, rate: float | None) -> np.ndarray[Any, Any]:
        if isinstance(sound, (str, os.PathLike)):
            return audio.load(sound)
        try:
            return audio.from_array(sound, SAMPLE_RATE if rate is None else rate)
        except ValueError as error:
            raise InputError(f"Sound {index}: {error}") from error

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoFeatureExtractor") -> None:
        """Do nothing: a copy of this file is no use in a model's folder, which imports torchbeats instead."""


def _sounds(raw: Any) -> list[Any]:
    """The sounds that a caller means by an array, a list of samples, a file, or a list of these."""
    if isinstance(raw, (np.ndarray, torch.Tensor)):
        return [raw] if raw.ndim == 1 else list(raw)
    if isinstance(raw, (str, os.PathLike)):
        return [raw]
    if not isinstance(raw, Sequence) or not len(raw):
        raise InputError(
            f"Give a sound as an array of samples, or a list of such arrays; this is {type(raw).__name__}."
        )
    if isinstance(raw[0], (int, float, np.number)):
        return [np.asarray(raw, np.float32)]
    ready = (np.ndarray, torch.Tensor, str, os.PathLike)
    return [sound if isinstance(sound, ready) else np.asarray(sound, np.float32) for sound in raw]

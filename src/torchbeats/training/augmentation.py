"""Changes to sounds that leave what they are: loudness, bandwidth, pitch, speed."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from torchbeats.audio import Floats
from torchbeats.patches import SAMPLE_RATE, mask_behind

TELEPHONE_HZ = 4_000  # what is left of sound that was sampled at 8 kHz
NOISE_BELOW_DB = (5.0, 40.0)  # how much softer than a clip its noise is
_ROLL_OFF_HZ = 300  # over which it goes
DECIBEL = math.log(10) / 10  # of power, as natural logarithm
CURVE_TERMS = 4  # cosines in an equaliser's curve: a tilt, a bow, and two finer ones


def augment_waveform(samples: Floats, random: np.random.Generator, gain_db: float, band_limited: float) -> Floats:
    """Change a clip's loudness and bandwidth.

    Args:
        samples: ``(samples,)`` at 16 kHz.
        random: decides.
        gain_db: louder or softer by up to this much.
        band_limited: probability that what is above 4 kHz goes.
    """
    gain, narrow = random.uniform(-gain_db, gain_db), random.random() < band_limited
    if gain_db:
        samples = samples * np.float32(10 ** (gain / 20))
    return low_pass(samples, TELEPHONE_HZ) if narrow else samples


def add_noise(samples: Floats, random: np.random.Generator) -> Floats:
    """Put noise of some colour, from white to brown, under a clip, as another recorder or room would.

    Args:
        samples: ``(samples,)`` at 16 kHz.
        random: draws colour, level and noise.
    """
    spectrum = np.fft.rfft(random.standard_normal(len(samples)))
    slope, below = random.uniform(0, 1), random.uniform(*NOISE_BELOW_DB)
    noise = np.fft.irfft(spectrum * np.arange(1, len(spectrum) + 1) ** -slope, len(samples))
    level = float(np.sqrt(np.square(samples, dtype=np.float64).mean())) * 10 ** (-below / 20)
    return samples + (noise * (level / max(float(noise.std()), 1e-12))).astype(np.float32)


def change_speed(samples: Floats, factor: float) -> Floats:
    """Play a clip faster (over 1) or slower, which makes it higher or lower too, as on a tape (Ko et al. 2015).

    Args:
        samples: ``(samples,)`` at 16 kHz.
        factor: of the speed; what comes back is that much shorter.
    """
    import soxr

    return np.asarray(soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE, quality="LQ"), np.float32)


def low_pass(samples: Floats, hz: float) -> Floats:
    """Remove what is above ``hz``."""
    spectrum = np.fft.rfft(samples)
    frequencies = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    spectrum *= np.clip((hz - frequencies) / _ROLL_OFF_HZ, 0, 1)
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def equaliser_curve(decibels: float, random: np.random.Generator) -> tuple[float, ...]:
    """Draw an equaliser's curve; see `equalise`.

    Args:
        decibels: about how deep it is.
        random: decides.
    """
    curve = random.normal(0.0, decibels, CURVE_TERMS) / np.sqrt(np.arange(1, CURVE_TERMS + 1))
    return tuple(curve.tolist())


def shift_mel(fbank: Tensor, bins: Tensor) -> Tensor:
    """Move each clip up or down the mel scale; what comes in at the edge repeats the outermost bin.

    Args:
        fbank: ``(B, frames, mel bins)``.
        bins: ``(B,)`` integers, upwards where positive.
    """
    B, frames, mels = fbank.shape
    source = (torch.arange(mels, device=fbank.device) - bins.unsqueeze(1)).clamp(0, mels - 1)
    return fbank.gather(2, source.unsqueeze(1).expand(B, frames, mels))


def lay_next_over(fbank: Tensor, frames: Tensor, softer: Tensor) -> Tensor:
    """Lay the next clip of a batch over each, as if both sounded at once: powers add. One alone stays as it is.

    Args:
        fbank: ``(B, frames, mel bins)`` log power.
        frames: ``(B,)`` integers, how many of them are each clip's own.
        softer: ``(B,)`` decibels of mean power by which the next clip is softer; infinite where it is not to be heard.
    """
    if len(fbank) == 1:
        return fbank
    padding = mask_behind(frames, fbank.size(1)).unsqueeze(-1)
    mean = fbank.masked_fill(padding, -math.inf).flatten(1).logsumexp(1) - frames.log()  # but for the mel bins
    gain = mean - mean.roll(-1) - softer * DECIBEL
    return torch.logaddexp(fbank, fbank.masked_fill(padding, -math.inf).roll(-1, 0) + gain.view(-1, 1, 1))


def equalise(fbank: Tensor, curves: Tensor) -> Tensor:
    """Colour each clip as another microphone or room would: a smooth curve over the mel scale is added.

    Args:
        fbank: ``(B, frames, mel bins)`` log power.
        curves: ``(B, K)``, weights in dB of the first K cosines over the mel scale, that of a constant left out.
    """
    mels, K = fbank.size(2), curves.size(1)
    position = (torch.arange(mels, device=fbank.device) + 0.5) / mels
    cosines = torch.cos(torch.pi * torch.arange(1, K + 1, device=fbank.device).unsqueeze(1) * position)  # (K, mel bins)
    return fbank + (curves @ cosines * DECIBEL).unsqueeze(1)

"""Kaldi-compatible log-mel features for a whole batch, on any device, always in float32.

25 ms Povey windows every 10 ms, DC removed per frame, pre-emphasis 0.97, power spectrum of a 512-point FFT, 128 mel
bands from 20 Hz to 8 kHz, natural logarithm floored at float32's epsilon; no dither, ``snip_edges``. An FFT rather than
a product with a DFT matrix: in float32 the latter is off by up to 0.09 where a band holds little energy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchbeats.patches import FRAME_LENGTH, FRAME_SHIFT, N_MELS, SAMPLE_RATE

PCM_SCALE = 2.0**15  # Kaldi features are those of 16-bit integer samples
PREEMPHASIS = 0.97
N_FFT = 512  # FRAME_LENGTH rounded up to a power of two
LOW_HZ, HIGH_HZ = 20.0, SAMPLE_RATE / 2
LOG_FLOOR = torch.finfo(torch.float32).eps


def povey_window() -> Tensor:
    """Kaldi's analysis window, a symmetric Hann window to the power 0.85: ``(400,)``."""
    # Computed in float32, as the reference did: beside a loud tone the last bit of the window shows in quiet bands.
    return torch.hann_window(FRAME_LENGTH, periodic=False, dtype=torch.float32, device="cpu").pow(0.85)


def mel(hz: Any) -> Any:
    """Hertz, a number or an array of them, on Kaldi's mel scale."""
    return 1127.0 * np.log1p(hz / 700.0)


def mel_filters() -> Tensor:
    """Triangular filters, equally spaced and linear on Kaldi's mel scale: ``(257, 128)``, FFT bin by mel band."""
    edges = np.linspace(mel(LOW_HZ), mel(HIGH_HZ), N_MELS + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = mel(np.arange(N_FFT // 2 + 1) * SAMPLE_RATE / N_FFT)[:, np.newaxis]
    rising = (bins - left) / (centre - left)
    falling = (right - bins) / (right - centre)
    filters = np.maximum(0.0, np.minimum(rising, falling))
    filters[-1] = 0.0  # Kaldi leaves the Nyquist bin out
    return torch.from_numpy(filters.astype(np.float32))


class Fbank(nn.Module):
    """Waveforms to log-mel features, before any normalisation; differentiable, and nothing in the state dict."""

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", povey_window(), persistent=False)
        self.register_buffer("filters", mel_filters(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fbank:
        # The constants follow a model to its device but not to its dtype: `model.half()` must not round the window.
        exact = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, constant in exact.items():
            assert constant is not None
            self._buffers[name] = constant.to(getattr(self, name).device)
        return self

    def forward(self, wav: Tensor) -> Tensor:
        """Log-mel features of each row.

        Args:
            wav: ``(B, samples)`` at 16 kHz in [-1, 1], any floating dtype, at least 400 samples.

        Returns:
            ``(B, frames, 128)`` float32, ``frames = 1 + (samples - 400) // 160``.
        """
        with torch.autocast(wav.device.type, enabled=False):
            frames = (wav.float() * PCM_SCALE).unfold(-1, FRAME_LENGTH, FRAME_SHIFT)
            frames = frames - frames.mean(-1, keepdim=True)
            before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)  # the first sample precedes itself
            frames = (frames - PREEMPHASIS * before) * self.window
            spectrum = torch.fft.rfft(frames, n=N_FFT)
            power = spectrum.real.square() + spectrum.imag.square()
            return (power @ self.filters).clamp_min(LOG_FLOOR).log()

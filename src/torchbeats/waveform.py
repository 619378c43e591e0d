"""What a model accepts as waveforms: checked, scaled, and every row's length known."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from torchbeats.patches import mask_behind

# Full scale of integer PCM, and the value of silence.
_PCM = {
    torch.uint8: (2.0**7, 128),
    torch.int8: (2.0**7, 0),
    torch.int16: (2.0**15, 0),
    torch.int32: (2.0**31, 0),
}


def prepare(
    wav: Tensor,
    min_samples: int,
    *,
    wav_lens: Tensor | None = None,
    lengths: Tensor | None = None,
    padding_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Check a batch of waveforms and bring it into the form that the front end takes.

    Values are looked at in eager mode only; compiled and exported graphs trust them.

    Args:
        wav: ``(B, samples)`` at 16 kHz, floating point in [-1, 1] or integer PCM.
        min_samples: shorter rows are filled up to this with zeros, and one warning says so.
        wav_lens: ``(B,)``, each row's length relative to the longest.
        lengths: ``(B,)``, each row's length in samples.
        padding_mask: ``(B, samples)`` bool, True = padding.

    Returns:
        ``(B, samples)`` floating point, zero behind each row's length; and lengths ``(B,)`` int64, at least
        ``min_samples``, or None where no row has padding.

    Raises:
        ValueError: wrong rank, type or length, an empty row, a row that is not finite; more than one form of length.
    """
    eager = not torch.compiler.is_compiling()
    if wav.dim() != 2:
        hint = " For one clip, use wav.unsqueeze(0)." if wav.dim() == 1 else ""
        raise ValueError(f"Waveforms must have the shape (batch, samples); this is {tuple(wav.shape)}.{hint}")
    if eager and wav.numel() == 0:
        raise ValueError(f"There are no samples in this batch of shape {tuple(wav.shape)}.")
    wav = floating(wav)
    B, samples = wav.shape
    lengths = _lengths(B, samples, wav_lens, lengths, padding_mask)
    if lengths is not None:
        lengths = lengths.to(wav.device)
        if eager:
            _check_lengths(lengths, samples)
        wav = wav.masked_fill(mask_behind(lengths, samples), 0)
    if eager:
        _check_finite(wav)
        _warn_of_short(samples if lengths is None else lengths, B, min_samples)
    if samples < min_samples:
        wav = F.pad(wav, (0, min_samples - samples))
    return wav, None if lengths is None else lengths.clamp_min(min_samples)


def floating(wav: Tensor) -> Tensor:
    """Floating point as it is, integer PCM scaled to [-1, 1]."""
    if wav.is_floating_point():
        return wav
    if wav.dtype not in _PCM:
        raise ValueError(
            f"Waveforms of type {wav.dtype} have no agreed full scale. Use floating point in [-1, 1], or PCM as "
            "int16, int32, int8 or uint8."
        )
    full_scale, silence = _PCM[wav.dtype]
    return (wav.float() - silence) / full_scale


def _lengths(
    B: int, samples: int, wav_lens: Tensor | None, lengths: Tensor | None, padding_mask: Tensor | None
) -> Tensor | None:
    """Lengths in samples, ``(B,)`` int64, from whichever form was given."""
    arguments = {"wav_lens": wav_lens, "lengths": lengths, "padding_mask": padding_mask}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    if len(arguments) > 1:
        raise ValueError(f"Give lengths in one form, not as {' and '.join(arguments)}.")
    if wav_lens is not None and (wav_lens.dtype == torch.bool or tuple(wav_lens.shape) == (B, samples)):
        raise ValueError(
            f"wav_lens, the second argument, is each clip's share of the longest, of the shape ({B},); this is a mask, "
            f"{tuple(wav_lens.shape)} of {wav_lens.dtype}. Pass a mask by keyword: padding_mask=mask."
        )
    for name, value in arguments.items():
        expected = (B, samples) if name == "padding_mask" else (B,)
        if value is not None and tuple(value.shape) != expected:
            raise ValueError(f"{name} has the shape {tuple(value.shape)}; this batch needs {expected}.")
    if wav_lens is not None:
        # In float64: the product of a float32 share and a long clip must round to the sample that was meant.
        relative = wav_lens.to("cpu" if wav_lens.device.type == "mps" else wav_lens.device, torch.float64)
        if not torch.compiler.is_compiling() and not bool(relative.isfinite().all()):
            raise ValueError(f"wav_lens must be finite; row {_first(~relative.isfinite())} is not.")
        if not torch.compiler.is_compiling() and bool((relative > 1.5).any()):
            raise ValueError(
                f"wav_lens are shares of the longest clip, at most 1; Row {_first(relative > 1.5)} has "
                f"{float(relative.max()):g}. For lengths in samples use lengths=."
            )
        return torch.round(relative * samples).long()
    if lengths is not None:
        if lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise ValueError(f"lengths counts samples and must be integer, not {lengths.dtype}; see also wav_lens.")
        return lengths.long()
    if padding_mask is not None:
        padding_mask = padding_mask.bool()
        counts = samples - padding_mask.sum(1)
        if not torch.compiler.is_compiling():
            scattered = (padding_mask != mask_behind(counts, samples)).any(1)
            if bool(scattered.any()):
                raise ValueError(
                    f"padding_mask marks samples that are not at the end of row {_first(scattered)}; padding must be."
                )
        return counts
    return None


def _check_lengths(lengths: Tensor, samples: int) -> None:
    invalid = (lengths < 1) | (lengths > samples)
    if bool(invalid.any()):
        row = _first(invalid)
        raise ValueError(
            f"Row {row} has a length of {int(lengths[row])} samples; it must be between 1 and the batch's {samples}."
        )


def _check_finite(wav: Tensor) -> None:
    # A sum is not finite if a term is not, and takes one pass without a temporary; only then look closer, since a sum
    # of large terms may overflow as well.
    if bool(wav.sum(dtype=torch.promote_types(wav.dtype, torch.float32)).isfinite()):
        return
    broken = ~wav.isfinite().all(1)
    if bool(broken.any()):
        raise ValueError(f"Row {_first(broken)} of the waveforms holds NaN or infinite samples.")


def _warn_of_short(lengths: Tensor | int, B: int, min_samples: int) -> None:
    short = int((lengths < min_samples).sum()) if isinstance(lengths, Tensor) else B * (lengths < min_samples)
    if short:
        warnings.warn(
            f"{short} of {B} clips are shorter than {min_samples} samples, one step of patches; they are filled up "
            "with silence.",
            stacklevel=2,
        )


def _first(invalid: Tensor) -> int:
    return int(invalid.nonzero()[0, 0])

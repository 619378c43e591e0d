"""Any audio file or array → 16 kHz mono float32, and windows over recordings of any length.

    file --(libsndfile or FFmpeg)--> channels --(mean)--> mono --(soxr)--> 16 kHz --(windows)--> pieces for the model

Everything streams: what is held in memory does not grow with the file. Nothing here keeps global state, so files may be
decoded in as many threads as there are cores.
"""

from __future__ import annotations

import os
import warnings
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from torch import Tensor

from torchbeats import decoders
from torchbeats.decoders import HIGHEST_RATE, LOWEST_RATE, READ_FRAMES, Channels
from torchbeats.errors import AudioError
from torchbeats.patches import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"  # (samples,)

SUFFIXES = """
    .wav .wave .bwf .rf64 .w64 .aif .aiff .aifc .au .snd .caf .flac .wv .ape .tta
    .mp3 .mp2 .mpga .ogg .oga .opus .spx .m4a .m4b .aac .ac3 .eac3 .wma .amr .mka .weba
    .mp4 .m4v .mov .3gp .3g2 .mkv .webm .ogv .avi .wmv .asf .flv .mpg .mpeg .m2ts
"""
# What a folder is searched for. A file that is named outright may be called anything: its content decides.
AUDIO_SUFFIXES: frozenset[str] = frozenset(SUFFIXES.split())

MOMENT = SAMPLE_RATE // 40  # samples of a clip that tell how quiet it can be: 25 ms

# Float files may go beyond full scale: by a little, by some hundreds, or by 2^31 where they hold integers. What lies
# far beyond is no sound but damage, or numbers of another kind; from 2^41 on the squares in a spectrogram are infinite.
LARGEST_SAMPLE = 2.0**32

RESAMPLED = 1 << 20  # samples at 16 kHz that a block may become: 4 MB


class AudioWarning(UserWarning):
    """A file of which only a part could be read."""


def load(path: str | os.PathLike[str]) -> Floats:
    """Reads a whole file.

    Args:
        path: a sound file, or a video with sound, by path or by URL.

    Returns:
        ``(samples,)`` float32, 16 kHz mono; full scale is ±1, float files may go beyond it.

    Raises:
        AudioError: where the file gives no sound, see :func:`stream`.
    """
    return np.concatenate(list(stream(path)))


def stream(sound: str | os.PathLike[str] | BinaryIO, block_seconds: float = 30.0) -> Iterator[Floats]:
    """Reads a file of any length in constant memory.

    Channels are averaged and the rate converted by soxr's "HQ"; a 16 kHz mono file passes through untouched. Of a
    video, the first audio stream is read. A file that breaks off or is damaged on its way gives what can be read of it,
    then an :class:`AudioWarning` which says how much that was. As with every generator, the file is opened when the
    first block is asked for.

    Args:
        sound: a sound file, or a video with sound, by path or by URL; or one that is open for reading. The content
            decides how it is decoded, not the name.
        block_seconds: length of the blocks in seconds; the last may be shorter.

    Yields:
        ``(samples,)`` float32, 16 kHz mono.

    Raises:
        AudioError: the file cannot be opened, is a named pipe or a device, is empty, is no sound file, has no audio
            stream, has a rate outside 100 Hz to 4 MHz, holds no samples, breaks off before the first sample, or holds a
            sample that is not a finite number or is beyond ±2^32.
        ValueError: ``block_seconds`` is shorter than a sample.
    """
    size = round(block_seconds * SAMPLE_RATE)
    if size < 1:
        raise ValueError(f"block_seconds is {block_seconds}: give a positive number of seconds.")
    path, file = _named(sound)
    faults: list[str] = []
    total = 0
    for _, block in windows(_decode(path, faults, file=file), size, size, 1):
        total += len(block)
        yield block
    if not total:
        raise AudioError(path, faults[0] if faults else "it holds no samples")
    if faults:
        message = f"{path}: {faults[0]}; {total / SAMPLE_RATE:.2f} s were read."
        warnings.warn(message, AudioWarning, stacklevel=2)


def excerpt(sound: str | os.PathLike[str] | BinaryIO, start: float, seconds: float) -> Floats:
    """Reads a piece of a file without decoding what comes before it.

    Args:
        sound: a sound file, or one that is open for reading, such as `io.BytesIO`.
        start: in seconds; where exactly a lossy format is entered may be off by a few milliseconds.
        seconds: the most that is wanted; infinity for all that there is.

    Returns:
        ``(samples,)`` float32, 16 kHz mono; shorter where the file ends before.

    Raises:
        AudioError: as `stream`; also where nothing lies behind ``start``.
    """
    path, file = _named(sound)
    length, count = None if seconds == float("inf") else max(1, round(seconds * SAMPLE_RATE)), 0
    faults: list[str] = []
    blocks: list[Floats] = []
    for block in _decode(path, faults, start, file):
        blocks.append(block)
        count += len(block)
        if length is not None and count >= length:
            break
    if not count:
        raise AudioError(path, faults[0] if faults else f"it holds no samples behind {start:.2f} s")
    return np.concatenate(blocks)[:length]


def _named(sound: str | os.PathLike[str] | BinaryIO) -> tuple[str, BinaryIO | None]:
    """What a sound is called, and the sound if it is open already."""
    if isinstance(sound, (str, os.PathLike)):
        return os.fspath(sound), None
    return str(getattr(sound, "name", "an open file")), sound


def duration(path: str | os.PathLike[str]) -> float | None:
    """Seconds of sound in a file by what its header says; None where it does not say.

    Nothing is decoded, unless the file is too small for what its header says: then the length is what decoding gives.
    A file that was cut off may still be shorter than this by as much as its codec varies in bits a second.

    Raises:
        AudioError: it cannot be opened, is empty, is no sound file, has a rate that `stream` refuses, or had to be
            decoded and holds no samples.
    """
    seconds, plausible = decoders.declared(path)
    return seconds if plausible else _decoded_seconds(path)


def _decoded_seconds(path: str | os.PathLike[str]) -> float:
    faults: list[str] = []
    seconds = sum(block.shape[1] / rate for rate, block in decoders.read(os.fspath(path), faults))
    if not seconds:
        raise AudioError(path, faults[0] if faults else "it holds no samples")
    return seconds


def from_array(samples: np.ndarray[Any, Any] | Tensor, rate: float = SAMPLE_RATE) -> Floats:
    """Turns samples that are already in memory into what :func:`load` gives.

    Args:
        samples: ``(samples,)``, ``(channels, samples)`` or ``(samples, channels)``, the shorter axis being the
            channels; floats with full scale ±1, or PCM as int16, int32 or uint8 (whose silence is 128).
        rate: samples a second.

    Returns:
        ``(samples,)`` float32, 16 kHz mono; shares memory with ``samples`` where nothing had to be changed.

    Raises:
        ValueError: a shape, type or rate that is none of these, no samples, or one that is not a finite number or is
            beyond ±2^32.
    """
    if isinstance(samples, Tensor):
        # numpy has no bfloat16
        samples = (samples.float() if samples.is_floating_point() else samples).detach().cpu().numpy()
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2):
        raise ValueError(f"An array of shape {samples.shape} is not a sound: give (samples,) or (channels, samples).")
    if not samples.size:
        raise ValueError(f"An array of shape {samples.shape} holds no samples.")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ValueError(f"The rate is {rate}: give the samples a second, 100 to 4,000,000, such as {SAMPLE_RATE}.")
    channels = np.atleast_2d(samples)
    mono = _mono(channels if channels.shape[0] <= channels.shape[1] else channels.T)
    if (bad := _first_bad(mono)) is not None:
        raise ValueError(f"Sample {bad} is {_what_is_bad(mono[bad])}: remove, replace or scale such samples first.")
    return _resampler(rate)(np.ascontiguousarray(mono), True)


def delay(samples: Floats, count: int, random: np.random.Generator) -> Floats:
    """Let a clip begin later, behind noise that sounds like its quietest 25 ms; behind silence if it is shorter.

    Args:
        samples: ``(samples,)`` at 16 kHz.
        count: samples of noise that come before it.
        random: draws the noise.

    Returns:
        ``(count + samples,)``.
    """
    moments = samples[: len(samples) // MOMENT * MOMENT].reshape(-1, MOMENT)
    if not count or not len(moments):
        return np.pad(samples, (count, 0))
    quiet = moments[np.square(moments).sum(1).argmin()]
    # White noise that is filtered by a sound has that sound's spectrum.
    white = random.standard_normal(count + MOMENT - 1).astype(np.float32)
    noise = np.convolve(white, quiet, "valid") / np.float32(np.sqrt(MOMENT))
    return np.concatenate([noise, samples])


def windows(blocks: Iterable[Floats], length: int, hop: int, shortest: int) -> Iterator[tuple[int, Floats]]:
    """Cuts a stream of samples into windows that start at 0, ``hop``, 2 ``hop``, …, in constant memory.

    A window is the last, and takes all that is left, unless ``shortest`` samples or more (at least one) lie behind its
    ``length``. So every sample is in a window, none but the first brings fewer than ``shortest`` new ones, and the last
    may be shorter than ``length``, or longer by less than ``shortest``.

    Args:
        blocks: ``(samples,)`` arrays of any lengths, one behind the other.
        length: samples in a window.
        hop: samples from the start of one window to the start of the next, at most ``length``.
        shortest: the fewest new samples worth a window of their own; fewer join the window before them.

    Yields:
        The window's start in samples and its samples, which are the caller's to change; nothing for an empty stream.

    Raises:
        ValueError: ``hop`` is not 1 to ``length``, or ``shortest`` is negative.
    """
    if not 0 < hop <= length:
        raise ValueError(f"Windows of {length} samples every {hop} would skip samples: hop must be 1 to length.")
    if shortest < 0:
        raise ValueError(f"The shortest window has {shortest} samples: give 0 or more.")
    enough = length + max(shortest, 1)  # from here on the window at `start` is certain to be followed by another
    start = count = 0
    pending: list[Floats] = []
    for block in blocks:
        pending.append(np.array(block))  # a copy: the caller may fill one buffer again and again
        count += len(block)
        if count < enough:
            continue
        buffer = np.concatenate(pending)
        while len(buffer) >= enough:
            yield start, buffer[:length].copy()
            start, buffer = start + hop, buffer[hop:]
        pending, count = [buffer], len(buffer)
    if count:
        own = len(pending) == 1 and pending[0].base is None
        yield start, pending[0] if own else np.concatenate(pending)


def _decode(path: str, faults: list[str], start: float = 0.0, file: BinaryIO | None = None) -> Iterator[Floats]:
    """Gives the 16 kHz mono samples of a file; why they stop early, if they do, is appended to ``faults``."""
    seconds = start
    read = decoders.read(path, faults, start, file)
    for rate, run in groupby(read, key=itemgetter(0)):  # a broadcast may change its rate on the way
        decoders.check_rate(path, rate)
        convert, frames = _resampler(rate), 0
        # codecs give 20 ms or so at a time: gathered first, the work that is left is done in fewer calls
        size = min(READ_FRAMES, RESAMPLED * rate // SAMPLE_RATE)
        for first, block in windows((_mono(channels) for _, channels in run), size, size, 1):
            if (bad := _first_bad(block)) is not None:
                second = seconds + (first + bad) / rate
                raise AudioError(path, f"the sample at {second:.3f} s is {_what_is_bad(block[bad])}")
            frames = first + len(block)
            yield convert(block, False)
        yield convert(np.zeros(0, np.float32), True)
        seconds += frames / rate


def _mono(channels: Channels) -> Floats:
    """The mean of ``(channels, samples)``, as float32 of full scale ±1."""
    # Summed channel by channel: 14 times as fast as numpy's mean over the short axis of interleaved stereo.
    if len(channels) == 1:
        return _float(channels[0])
    total = np.zeros(channels.shape[1], np.float32)
    bad: list[tuple[int, np.float32]] = []
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is reported with its place
        for channel in channels:
            samples = _float(channel)
            total += samples
            if (place := _first_bad(samples)) is not None:
                bad.append((place, samples[place]))
    total /= len(channels)
    for place, sample in bad:  # opposite ones would cancel
        total[place] = sample
    return total


def _float(samples: Channels) -> Floats:
    """Samples of any PCM type as float32 of full scale ±1; float samples keep their values."""
    kind, bytes_each = samples.dtype.kind, samples.dtype.itemsize
    if kind != "f" and (kind, bytes_each) not in {("i", 2), ("i", 4), ("u", 1)}:
        raise ValueError(f"Samples of type {samples.dtype} have no known scale: give floats, int16, int32 or uint8.")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite
        floats: Floats = samples.astype(np.float32, copy=False)
    if kind == "u":
        floats = floats - np.float32(128)
    return floats if kind == "f" else floats / np.float32(2 ** (8 * bytes_each - 1))


def _first_bad(samples: Floats) -> int | None:
    """Index of the first sample that is NaN, infinite or beyond `LARGEST_SAMPLE`."""
    # both are false where there is a NaN
    if samples.min(initial=0.0) >= -LARGEST_SAMPLE and samples.max(initial=0.0) <= LARGEST_SAMPLE:
        return None
    return int((~(np.abs(samples) <= LARGEST_SAMPLE)).argmax())


def _what_is_bad(sample: np.float32) -> str:
    return f"{sample:g}, far beyond full scale (±1)" if np.isfinite(sample) else "not a finite number"


def _resampler(rate: float) -> Callable[[Floats, bool], Floats]:
    """A function of ``(block, whether it is the last)`` that converts a stream of blocks from ``rate`` Hz to 16 kHz."""
    if rate == SAMPLE_RATE:
        return lambda block, last: block
    import soxr

    converter = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    convert: Callable[[Floats, bool], Floats] = converter.resample_chunk
    return convert

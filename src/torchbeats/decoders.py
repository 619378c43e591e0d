"""A sound file → its samples as they are stored: any rate, channels and number format.

Uncompressed sound is read with libsndfile, everything else with FFmpeg. Headers are believed only as far as the file's
content allows.
"""

from __future__ import annotations

import errno
import io
import math
import os
import re
from bisect import bisect_left
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np

from torchbeats import remote
from torchbeats.containers import Content, SoundChunk, break_off, sound_chunk
from torchbeats.errors import AudioError
from torchbeats.files import is_called_like_url, special_kind, with_both_slashes

if TYPE_CHECKING:
    import soundfile
    from av import AudioFifo, AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

Channels: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"  # (channels, samples)

LOWEST_RATE, HIGHEST_RATE = 100, 4_000_000  # Hz; beyond them a header is wrong, or the signal is no sound

READ_FRAMES = 1 << 16  # frames decoded at a time: 1.5 s at 44.1 kHz
READ_SAMPLES = 8 * READ_FRAMES  # of all channels: 2 MB of float32

# The first bytes of files that hold plain samples, which libsndfile reads 10 to 20 times as fast as FFmpeg. Compressed
# sound goes to FFmpeg: libsndfile stops early, without a word, in an MP3 of variable bit rate without a Xing header,
# loses the end of a FLAC of unknown length, fills gaps in damaged Ogg files, and lets its MP3 decoder write to stderr.
PLAIN_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b".snd", b"dns.", b"caff")

SEEK_SECONDS = 0.5  # lossy decoders need this much run-up, and more, to forget where they were entered

SLACK_SECONDS = 0.25  # decoders trim a codec's priming and padding, headers count them: AAC up to 0.1 s, Opus 80 ms

# Codecs without loss; a recording takes at least 1 bit for the samples of a moment, in practice 3 and more.
LOSSLESS = frozenset({"flac", "alac", "wavpack", "tta", "ape", "mlp", "truehd", "shorten", "tak", "wmalossless"})

_COUNTED = frozenset({"flac", "wv", "tta", "ape"})  # FFmpeg's names of formats whose headers count the samples


WHOLE_BYTES = 2**22  # a file up to this size is read in one piece for FFmpeg, which asks for 32 kB at a time

_THIRD_PAGE = (2).to_bytes(4, "little")  # of an Ogg stream, by its number; the first two are headers


class Declared(NamedTuple):
    """The length of a sound by its header.

    Attributes:
        seconds: None where the header does not say.
        plausible: the file is large enough for it, and not far too large.
    """

    seconds: float | None
    plausible: bool = True


def read(
    path: str, faults: list[str], start: float = 0.0, file: BinaryIO | None = None
) -> Iterator[tuple[int, Channels]]:
    """Decodes a sound file block by block.

    Args:
        path: of the file, or its URL; where ``file`` is given too, only its name in messages.
        faults: why the samples stop early or are more than declared, if so, is appended to it.
        start: where to begin, in seconds.
        file: the content, open for reading.

    Yields:
        The rate in Hz, and ``(channels, samples)`` as the file has them.

    Raises:
        AudioError: it is no sound file that can be read, or its rate is beyond all bounds.
    """
    with opened(path) if file is None else nullcontext(file) as source:
        by_path = path if file is None and not remote.is_url(path) else None
        try:
            yield from _read(path, source, by_path, faults, start)
        except AudioError as error:
            raise remote.failure_of(source) or error from error.__cause__
        if failure := remote.failure_of(source):
            raise failure


def _read(
    path: str, source: BinaryIO, by_path: str | None, faults: list[str], start: float
) -> Iterator[tuple[int, Channels]]:
    content = _content(path, source)
    chunk, head = sound_chunk(content), content.head
    if chunk:
        check_rate(path, chunk.encoding.rate)
    plain = chunk or head.startswith(PLAIN_MAGIC)
    if head.startswith(b"OggS") and b"vorbis" in head:
        plain = _last_ogg_page(source)[18:22] == _THIRD_PAGE
    if plain and (yield from _read_libsndfile(by_path, source, chunk, head[14:18], faults, start)):
        return
    if chunk and chunk.fault:
        faults.append(chunk.fault)
    elif cause := break_off(content):
        faults.append(cause)
    yield from _read_ffmpeg(path, source, faults, start)


def declared(path: str | os.PathLike[str]) -> Declared:
    """The length of a sound by its header. Nothing is decoded.

    Raises:
        AudioError: it cannot be opened, is empty, is no sound file, or its rate is beyond all bounds.
    """
    import soundfile

    with opened(path) as file:
        content = _content(path, file)
        chunk = sound_chunk(content)
        if chunk:
            check_rate(path, chunk.encoding.rate)
            if chunk.frames is not None:  # plain samples: what is in the file counts
                return Declared(chunk.frames / chunk.encoding.rate if chunk.frames else None)
        if content.head.startswith(PLAIN_MAGIC):
            try:
                file.seek(0)
                about = soundfile.info(file if remote.is_url(path) else _name_for_libsndfile(path))
            except (soundfile.LibsndfileError, TypeError):
                pass
            else:
                return Declared(about.duration if about.frames else None)
        with _container(path, file) as container:
            sound = container.streams.audio[0]
            if sound.duration is not None and sound.time_base is not None:
                seconds = float(sound.duration * sound.time_base)
            elif container.duration is not None:
                seconds = container.duration / 1_000_000
            else:
                return Declared(None)
            if sound.codec_context is None:
                return Declared(seconds if seconds >= 0 else None)
            if sound.codec_context.sample_rate:
                check_rate(path, sound.codec_context.sample_rate)
            if container.format.name.startswith("mov,"):
                seconds = _indexed_seconds(sound, seconds, content.size)
            too_short = _counted_seconds(container, sound) and content.size > _most_bytes(sound, seconds)
            enough = 8 * content.size >= seconds * _least_bits(sound)
            return Declared(seconds, seconds >= 0 and enough and not too_short)  # less: a delay longer than the sound


def check_rate(path: str | os.PathLike[str], rate: float) -> None:
    """Refuse a file whose rate cannot be right: 1 Hz would turn a kilobyte into hours."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(path, f"its sample rate is {rate:g} Hz; rates from 100 Hz to 4 MHz can be read")


def _content(path: str | os.PathLike[str], file: BinaryIO) -> Content:
    content = Content(file)
    if not content.size:
        raise AudioError(path, "the file is empty (0 bytes)")
    return content


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a regular file, or a URL, for reading, and never wait for what is neither.

    Raises:
        AudioError: it cannot be opened, or is a folder, a named pipe, a socket or a device.
    """
    if shard := shard_of(path):
        raise AudioError(path, f"it lies in a shard: unpack {shard} to get at it by itself")
    if remote.is_url(path):
        with remote.opened(os.fspath(path)) as content:
            yield content
        return
    try:
        # closed below, where an OSError would mean something else
        file = open(path, "rb", opener=_open_regular)  # noqa: SIM115
    except _NotAFileError as error:
        raise AudioError(path, f"it is {error}, not a file") from None
    except OSError as error:
        reason = "it is a folder, not a file" if os.path.isdir(path) else f"it cannot be opened: {error.strerror}"
        if is_called_like_url(path):
            reason = f"it is no file of this machine; if it is a URL, write it as {with_both_slashes(path)}"
        raise AudioError(path, reason) from error
    except ValueError as error:  # a NUL in the name
        raise AudioError(path, f"it cannot be opened: {error}") from error
    with file:
        yield file


def shard_of(path: str | os.PathLike[str]) -> str | None:
    """The shard that a sound lies in by its name, which `torchbeats.data.shards` made; None for a file's name."""
    member = _IN_SHARD.match(os.fspath(path))
    return None if member is None or os.path.lexists(path) else member[1]


_IN_SHARD = re.compile(r"(.+\.tar)#.", re.IGNORECASE)


class _NotAFileError(Exception):
    """What the path leads to instead."""


def _open_regular(path: str, flags: int) -> int:
    if kind := special_kind(path):  # asked before opening, which may already have an effect on a device
        raise _NotAFileError(kind)
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # should a pipe have taken the place meanwhile


def _name_for_libsndfile(path: str | os.PathLike[str]) -> Any:
    """As bytes, since soundfile cannot encode names that are not UTF-8."""
    return os.fsencode(path) if os.name == "posix" else path


# --- libsndfile -------------------------------------------------------------------------------------------------------


class _Part(io.RawIOBase):
    """The bytes of an open file from one position to another, as a file."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self.file, self.start, self.size, self.position = file, start, end - start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = max(0, base + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.start + self.position)
        content = self.file.read(max(0, min(len(buffer), self.size - self.position)))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


def _open_libsndfile(path: str | None, file: BinaryIO, chunk: SoundChunk | None) -> soundfile.SoundFile | None:
    """Opens a file by its header; where that misleads, as plain samples from where they are known to begin and end."""
    import soundfile

    if chunk is None or chunk.regular or not chunk.encoding.subtype:
        file.seek(0)
        try:
            sound = soundfile.SoundFile(file if path is None else _name_for_libsndfile(path))
        except (soundfile.LibsndfileError, TypeError):  # TypeError: it wants to be told more of what is called *.raw
            pass
        else:
            if chunk is None or chunk.frames in (None, sound.frames):
                return sound
            sound.close()
    if chunk is None or not chunk.encoding.subtype or not chunk.frames:
        return None
    try:
        return soundfile.SoundFile(
            _Part(file, chunk.start, chunk.end),
            samplerate=round(chunk.encoding.rate),
            channels=chunk.encoding.channels,
            subtype=chunk.encoding.subtype,
            endian="LITTLE" if chunk.encoding.little_endian else "BIG",
            format="RAW",
        )
    except (soundfile.LibsndfileError, TypeError):
        return None


def _read_libsndfile(
    path: str | None, file: BinaryIO, chunk: SoundChunk | None, serial: bytes, faults: list[str], start: float
) -> Generator[tuple[int, Channels], None, bool]:
    """Reads with libsndfile; returns whether it could, False before anything is given."""
    import soundfile

    sound = _open_libsndfile(path, file, chunk)
    if sound is None:
        return False
    with sound:
        # Only where all sound is in one page, the third: there FFmpeg errs by up to 256 samples at the end.
        whole_sound = sound.frames.to_bytes(8, "little") + serial + _THIRD_PAGE
        if sound.format == "OGG" and _last_ogg_page(file)[6:22] != whole_sound:
            return False
        done = min(round(start * sound.samplerate), sound.frames)
        count = min(READ_FRAMES, READ_SAMPLES // sound.channels)
        try:
            if done:
                sound.seek(done)
            while done < sound.frames and len(block := sound.read(count, dtype="float32", always_2d=True)):
                done += len(block)
                yield sound.samplerate, block.T
        except soundfile.LibsndfileError as error:
            faults.append(f"decoding broke off ({error.error_string.rstrip('.')})")
        if done < sound.frames and not faults:
            faults.append(f"the file is damaged: its header declares {sound.frames / sound.samplerate:.2f} s")
        if chunk and chunk.fault:
            faults.append(chunk.fault)
        # a declared length of 0 may stand for "unknown", and then FFmpeg reads to the end
        return bool(done or faults)


# --- FFmpeg -----------------------------------------------------------------------------------------------------------


def _read_ffmpeg(path: str, file: BinaryIO, faults: list[str], start: float = 0.0) -> Iterator[tuple[int, Channels]]:
    """Reads the first audio stream with FFmpeg."""
    import av

    seconds, damaged, gathered = 0.0, 0, _Gathered()
    with _container(path, file) as container:
        sound = container.streams.audio[0]
        if sound.codec_context is None:
            raise AudioError(path, "FFmpeg has no decoder for its sound")
        expected = _least_seconds(container, sound)
        counted = _counted_seconds(container, sound)
        # Of the first sample, on FFmpeg's clock: for an MP3 the encoder's delay, for a broadcast any time of the day.
        origin = float(sound.start_time * sound.time_base) if sound.start_time and sound.time_base else 0.0
        if start > SEEK_SECONDS:
            with suppress(av.error.FFmpegError):  # a format that cannot be entered midway is read from its beginning
                container.seek(int((origin + start - SEEK_SECONDS) * 1_000_000))
        try:
            for packet in container.demux(sound):
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    damaged += 1  # what follows may be sound again
                    continue
                for frame in frames:
                    rate = frame.sample_rate
                    begin = seconds if not start or frame.time is None else frame.time - origin
                    seconds = begin + frame.samples / rate
                    if begin < start < seconds:
                        yield from gathered.taken()
                        yield rate, _samples(frame)[:, round((start - begin) * rate) :]
                    elif seconds > start:
                        yield from gathered.add(frame)
            yield from gathered.taken()
        except (av.error.FFmpegError, OSError) as error:
            yield from gathered.taken()
            faults.append(f"decoding broke off ({error.strerror})")
        name = container.format.name
    if expected is not None and seconds < expected:
        faults.append(f"the file breaks off or is damaged: its header declares at least {expected:.2f} s")
    elif counted is not None and seconds > counted + 0.001:
        faults.append(f"its header declares {counted:.2f} s of sound, but more are there")
    elif damaged:
        faults.append(f"the file breaks off or is damaged: {damaged} of its packets could not be decoded")
    elif name == "ogg" and not _last_ogg_page(file):
        faults.append("the file breaks off within an Ogg page")


class _Gathered:
    """Frames of a codec, of 3 to 100 ms each, which FFmpeg joins to larger ones: as arrays they would cost more."""

    def __init__(self) -> None:
        self._fifo: AudioFifo | None = None
        self._enough = 0

    def add(self, frame: AudioFrame) -> Iterator[tuple[int, Channels]]:
        """Take one; what was gathered comes out where it is much, or of another rate or layout."""
        import av

        frame.pts = None  # a queue takes no gap, which a file may have
        if self._fifo is not None:
            try:
                self._fifo.write(frame)
            except ValueError:
                yield from self.taken()
                self._fifo = None
        if self._fifo is None:
            self._fifo, self._enough = av.AudioFifo(), min(READ_FRAMES, READ_SAMPLES // len(frame.layout.channels))
            self._fifo.write(frame)
        if self._fifo.samples >= self._enough:
            yield from self.taken()

    def taken(self) -> Iterator[tuple[int, Channels]]:
        """All that was gathered."""
        if self._fifo is not None and (frame := self._fifo.read()) is not None:
            yield frame.sample_rate, _samples(frame)


def _samples(frame: AudioFrame) -> Channels:
    samples = frame.to_ndarray()
    return samples if frame.format.is_planar else samples.reshape(-1, len(frame.layout.channels)).T


class _ForFFmpeg:
    """A file that answers FFmpeg with a number where it asks for a place that there is not; PyAV prints exceptions."""

    def __init__(self, file: BinaryIO) -> None:
        self.name = getattr(file, "name", "<none>")  # whose ending FFmpeg looks at too
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self._file = io.BytesIO(file.read()) if size <= WHOLE_BYTES else file
        self.read, self.tell = self._file.read, self._file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """The new place, or a negative number."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -errno.EINVAL


def _container(path: str | os.PathLike[str], file: BinaryIO) -> InputContainer:
    """Opens a file with FFmpeg; it has at least one audio stream."""
    import av

    try:
        # Not by name, which FFmpeg may take for an address ("2024-05-01T12:00.m4a"). And no playlist may lead to other
        # files or into the network: the whitelist sees to that by naming a protocol that does not exist. It is for the
        # container alone: PyAV before 18 crashes where it hands options to streams that show up late (FLV, MPEG-PS).
        none = {"protocol_whitelist": "none"}
        container = av.open(_ForFFmpeg(file), "r", metadata_errors="ignore", container_options=none)
    except (av.error.FFmpegError, OSError) as error:  # OSError: a broken header sends it to a place before the file
        reason = f"it is no sound file that can be read, or its header is broken ({error.strerror})"
        raise AudioError(path, reason) from error
    if not container.streams.audio:
        container.close()
        raise AudioError(path, "it has no audio stream")
    return container


def _least_seconds(container: InputContainer, sound: AudioStream) -> float | None:
    """The fewest seconds that the file's header lets expect; None where it declares none and FFmpeg only guesses."""
    name, seconds = container.format.name, None
    if "matroska" in name:  # knows no length of a stream, but its writers leave a tag
        if tag := re.match(r"(\d+):(\d+):(\d+\.?\d*)", sound.metadata.get("DURATION", "")):
            seconds = float(tag[1]) * 3600 + float(tag[2]) * 60 + float(tag[3])
        elif container.duration is not None and len(container.streams) == 1:
            seconds = container.duration / 1_000_000
    elif sound.duration is not None and sound.time_base is not None:
        # an MP3 is known to count its frames where its header also gives the encoder's delay, which shifts the start
        counted = name in {"flac", "ogg"} or name.startswith("mov,") or (name == "mp3" and sound.start_time)
        seconds = float(sound.duration * sound.time_base) if counted else None
    slack = 0.001 if name == "flac" else SLACK_SECONDS
    return seconds - slack if seconds is not None else None


def _counted_seconds(container: InputContainer, sound: AudioStream) -> float | None:
    """The seconds that the header of a lossless format counts in samples; None for other formats, or no count."""
    if container.format.name not in _COUNTED or sound.duration is None or sound.time_base is None:
        return None
    return float(sound.duration * sound.time_base) or None


def _indexed_seconds(sound: AudioStream, seconds: float, size: int) -> float:
    """The declared seconds, less those that the index of an MP4 places behind the end of the file."""
    entries: Any = getattr(sound, "index_entries", ())  # PyAV has them from 17 on; without, the declared seconds stand
    if not len(entries) or sound.time_base is None or entries[-1].pos + entries[-1].size <= size:
        return seconds
    first_beyond = bisect_left(range(len(entries)), True, key=lambda i: entries[i].pos + entries[i].size > size)
    begin = entries[0].timestamp
    return min(seconds, float((entries[first_beyond].timestamp - begin) * sound.time_base))


def _least_bits(sound: AudioStream) -> float:
    """The fewest bits that a second of this sound is expected to take; a header that promises more is not believed."""
    codec, rate = sound.codec_context, sound.codec_context.sample_rate
    sample_format: Any = codec.format  # PyAV's types know no None
    if sample_format is None:  # no channels, or too many for its decoder: only decoding tells what there is
        return math.inf
    if codec.name.startswith("pcm_"):
        return 0.9 * rate * codec.channels * sample_format.bytes * 4  # some formats store half of what they decode to
    if codec.name in LOSSLESS:
        return rate
    if codec.name.startswith(("mp3", "mp2")):
        return 0.9 * (32_000 if rate >= 32_000 else 8_000)  # the lowest of ISO 11172-3 and of ISO 13818-3
    return 4_000  # the lowest of Opus is 6,000


def _most_bytes(sound: AudioStream, seconds: float) -> float:
    """The bytes that so much sound without loss takes where nothing can be saved, and some for what describes it.

    A file that has more has pictures, or more sound than its header declares.
    """
    codec = sound.codec_context
    sample_format: Any = codec.format
    if sample_format is None:
        return math.inf
    return seconds * codec.sample_rate * codec.channels * sample_format.bytes + 2**14


def _last_ogg_page(file: BinaryIO) -> bytes:
    """The last Ogg page (RFC 3533, section 6); empty where the file breaks off within it.

    Its bytes from 6 on: the sample that it ends at (8 bytes), its stream's serial number (4), the page's number (4).
    """
    file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16))  # a page has at most 65,307 bytes
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    segments = page[26] if len(page) > 26 else 255
    return page if len(page) >= 27 + segments + sum(page[27 : 27 + segments]) else b""

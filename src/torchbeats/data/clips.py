"""Annotated stretches of recordings → sound files of their own, at the recording's rate and with its channels."""

from __future__ import annotations

import csv
import hashlib
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from torchbeats import decoders, remote
from torchbeats.audio import AudioWarning
from torchbeats.data.annotations.annotation import Annotation
from torchbeats.data.pieces import SLACK_SECONDS, impossible
from torchbeats.decoders import Channels
from torchbeats.errors import AudioError, SettingsError
from torchbeats.files import readable, replacing

FORMATS = ("wav", "flac")
MANIFEST = "clips.csv"
FIELDS = ("path", "label", "recording", "from_second", "to_second", "low", "high", "peak")
_UNSAFE = re.compile(r'[<>:"/\\|?*%\x00-\x1f\x7f]|^[. ]|[. ]$')  # of names in some file system or other
_LONGEST = 120  # bytes of a part of a name
_BITS = {"PCM_S8": 16, "PCM_U8": 16, "PCM_16": 16, "ULAW": 16, "ALAW": 16, "PCM_24": 24, "PCM_32": 32}
_FLOATS = ("FLOAT", "DOUBLE")

# Called behind every stretch with the seconds of its clip, and the number of stretches: one.
OnClip = Callable[[float, float], None]


@dataclass
class ClipsResult:
    """What became of annotations.

    Attributes:
        written: number of clips.
        existing: number of clips that an earlier run had written.
        failures: recordings that could not be read, and stretches that they do not have, and why.
        manifest: the list of all clips in the folder, with their labels.
    """

    manifest: Path
    written: int = 0
    existing: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)


def cut_clips(
    annotations: Iterable[Annotation],
    folder: str | os.PathLike[str],
    *,
    format: str = "wav",
    padding: float = 0.0,
    class_folders: bool = True,
    overwrite: bool = False,
    on_failure: Callable[[str, str], None] = lambda path, reason: None,
    progress: OnClip = lambda seconds, count: None,
) -> ClipsResult:
    """Write a sound file for each annotation, and a list of them, which has the labels as they are.

    A clip has the rate and the channels of its recording, and its resolution up to 24 bits (WAV: 32 bits, or floats).
    Its name is made of the recording's, of the times, and of a digest of all that it depends on; so the same
    annotations give the same names, and a run that was stopped goes on. What cannot be cut is left out.

    Args:
        annotations: of recordings.
        folder: where clips go.
        format: "wav" or "flac".
        padding: seconds more on both sides, as far as the recording reaches.
        class_folders: put the clips of each label in a folder named after it. Characters that no file system takes are
            written as %2F and the like.
        overwrite: write clips that exist again.
        on_failure: called with a recording and the reason where something cannot be cut.
        progress: called behind every annotation.

    Raises:
        SettingsError: a format that there is not, or a padding that is negative.
    """
    if format not in FORMATS:
        raise SettingsError(f"The format of clips is one of {', '.join(FORMATS)}, not {format!r}.")
    if not 0 <= padding < math.inf:
        raise SettingsError(f"The padding is a number of seconds, 0 or more, not {padding}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    result = ClipsResult(folder / MANIFEST)
    rows = {row["path"]: row for row in _earlier(result.manifest) if (folder / row["path"]).is_file()}
    finished, unreadable = set[Path](), set[str]()
    for stretch in annotations:
        path = folder / _name(stretch, format, padding, class_folders)
        seconds = 0.0
        try:
            if stretch.path in unreadable:
                continue
            if path in finished:  # the same stretch twice, with boxes of its own
                continue
            if path.is_file() and not overwrite:
                result.existing += 1
            else:
                seconds = _cut(stretch, path, format, padding)
                result.written += 1
            finished.add(path)
            name = path.relative_to(folder).as_posix()
            rows[name] = _row(stretch, name)
        except _StretchError as error:
            result.failures.append((stretch.path, str(error)))
            on_failure(*result.failures[-1])
        except AudioError as error:
            unreadable.add(stretch.path)
            result.failures.append((stretch.path, error.reason))
            on_failure(*result.failures[-1])
        finally:
            progress(seconds, 1)
    with replacing(result.manifest) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))
    return result


class _StretchError(Exception):
    """Why a recording has no such stretch."""


def _earlier(manifest: Path) -> list[dict[str, str]]:
    """The rows of an earlier run's list."""
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if set(reader.fieldnames or ()) != set(FIELDS):  # of something else, and maybe huge
                return []
            return [row for row in reader if row.keys() == set(FIELDS)]
    except (FileNotFoundError, UnicodeDecodeError, csv.Error):
        return []


def recordings_of(folder: Path) -> dict[str, str]:
    """Which recording each clip in a folder was cut from, by its path below the folder; empty where nothing tells."""
    manifest = folder / MANIFEST
    rows = _earlier(manifest) if manifest.is_file() else []  # a class may be called so
    return {row["path"]: row["recording"] for row in rows if row["path"] and row["recording"]}


def _row(stretch: Annotation, path: str) -> dict[str, Any]:
    times = {"from_second": stretch.start, "to_second": stretch.end}
    return {"path": path, "label": stretch.label, "recording": readable(stretch.path), **times} | {
        name: getattr(stretch, name) for name in ("low", "high", "peak")
    }


# --- names ------------------------------------------------------------------------------------------------------------


def _name(stretch: Annotation, format: str, padding: float, class_folders: bool) -> str:
    """The path of a clip, below the folder."""
    path = stretch.path if remote.is_url(stretch.path) else os.path.realpath(stretch.path)
    about = (path, stretch.start, stretch.end, stretch.label, padding)
    digest = hashlib.sha256(repr(about).encode("utf-8", "surrogateescape")).hexdigest()[:10]
    end = "end" if stretch.end is None else f"{stretch.end:.3f}"
    stem = safe_name(readable(os.path.splitext(os.path.basename(stretch.path))[0]))
    name = f"{stem}_{stretch.start:.3f}-{end}_{digest}.{format}"
    return f"{safe_name(stretch.label)}/{name}" if class_folders else name


def safe_name(text: str) -> str:
    """A text as a part of a file's name that every file system takes; different texts have different names."""
    name = _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", text)
    if len(name.encode()) > _LONGEST:
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        name = name.encode()[: _LONGEST - 11].decode("utf-8", "ignore") + "%" + digest
    return name or "%"


# --- sound ------------------------------------------------------------------------------------------------------------


def write_clip(stretch: Annotation, path: Path, format: str = "wav", padding: float = 0.0) -> float:
    """Write one annotated stretch as a sound file, at the rate and with the channels of its recording.

    Args:
        stretch: of a recording.
        path: of the clip.
        format: "wav" or "flac".
        padding: seconds more on both sides, as far as the recording reaches.

    Returns:
        Seconds of the clip.

    Raises:
        AudioError: the recording cannot be read, or has no such stretch.
    """
    try:
        return _cut(stretch, path, format, padding)
    except _StretchError as error:
        raise AudioError(stretch.path, str(error)) from error


def _cut(stretch: Annotation, path: Path, format: str, padding: float) -> float:
    """Write a clip; its seconds.

    Raises:
        AudioError: the recording cannot be read.
        _StretchError: there is no such stretch in it, or it breaks off before the stretch's end.
    """
    import soundfile

    if reason := impossible(stretch.start, stretch.end, points=True):
        raise _StretchError(reason.replace("the piece", f"{stretch.label!r}"))
    if stretch.end == stretch.start and not padding:
        raise _StretchError(f"{stretch.label!r} at {stretch.start:g} s is a point: give a padding")
    begin = max(0.0, stretch.start - padding)
    duration = math.inf if stretch.end is None else stretch.end + padding - begin
    faults: list[str] = []
    blocks = _blocks(stretch.path, begin, duration, faults)
    try:
        rate, block = next(blocks)
    except StopIteration:
        if faults:
            raise AudioError(stretch.path, faults[0]) from None
        raise _StretchError(f"{stretch.label!r} starts at {stretch.start:g} s, where the recording has ended") from None
    subtype = _subtype(stretch.path, block, format)
    frames = 0
    with replacing(path) as temporary:
        try:
            with soundfile.SoundFile(
                _for_libsndfile(temporary), "w", rate, len(block), subtype, format=format.upper()
            ) as file:
                while True:
                    file.write(_stored(block, subtype).T)
                    frames += block.shape[1]
                    following = next(blocks, None)
                    if following is None:
                        break
                    if following[0] != rate or len(following[1]) != len(block):
                        raise AudioError(stretch.path, "its rate or its number of channels changes on the way")
                    block = following[1]
        except soundfile.LibsndfileError as error:
            raise _StretchError(
                f"a {format} of {rate} Hz and {len(block)} channels cannot be written ({error})"
            ) from error
        recording_end = begin + frames / rate
        if stretch.end is not None and recording_end < stretch.end - SLACK_SECONDS:
            if faults:
                raise _StretchError(f"{stretch.label!r} at {stretch.start:g} s: {faults[0]}")
            if recording_end <= stretch.start:
                raise _StretchError(f"{stretch.label!r} starts at {stretch.start:g} s, where the recording has ended")
            message = (
                f"{stretch.path}: {stretch.label!r} ends at {stretch.end:g} s, and the recording at "
                f"{recording_end:.2f} s; its clip too."
            )
            warnings.warn(message, AudioWarning, stacklevel=3)
    return frames / rate


def _blocks(path: str, begin: float, duration: float, faults: list[str]) -> Iterator[tuple[int, Channels]]:
    """Samples from a time on, as they are stored, so many seconds of them; none that are not finite."""
    seconds = 0.0
    for rate, block in decoders.read(path, faults, begin):
        decoders.check_rate(path, rate)
        left = duration - seconds
        block = block if left == math.inf else block[:, : max(0, round(left * rate))]
        if not block.shape[1]:
            return
        if block.dtype.kind == "f" and not np.isfinite(block).all():
            raise AudioError(path, "it holds samples that are no finite numbers")
        seconds += block.shape[1] / rate
        yield rate, block


def _subtype(path: str, block: Channels, format: str) -> str:
    """How a clip's samples are stored: as the recording's, as far as the format can."""
    import soundfile

    try:
        with decoders.opened(path) if remote.is_url(path) else nullcontext(_for_libsndfile(path)) as recording:
            stored = soundfile.info(recording).subtype
    except (soundfile.LibsndfileError, TypeError):
        stored = {"i2": "PCM_16", "u1": "PCM_16", "i4": "PCM_32"}.get(block.dtype.str[1:], "")
    if stored in _FLOATS:
        return "FLOAT" if format == "wav" else "PCM_24"
    bits = _BITS.get(stored, 16)  # lossy formats: their decoders' noise is above that of 16 bits
    return f"PCM_{min(bits, 24) if format == 'flac' else bits}"


def _stored(block: Channels, subtype: str) -> Channels:
    """Samples as libsndfile takes them without changing them: floats, or integers whose highest bits count."""
    kind = block.dtype.str[1:]
    if subtype == "FLOAT":
        return block.astype(np.float32)
    if kind == "u1":
        return (block.astype(np.int16) - 128) << 8
    if kind == "i2" or (kind == "i4" and subtype != "PCM_16"):
        return block
    if kind == "i4":
        return (block >> 16).astype(np.int16)
    bits = int(subtype[4:])
    integers = np.rint(block.astype(np.float64) * 2 ** (bits - 1)).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return integers.astype(np.int16) if bits == 16 else integers.astype(np.int64).astype(np.int32) << (32 - bits)


def _for_libsndfile(path: str | os.PathLike[str]) -> Any:
    return os.fsencode(path) if os.name == "posix" else path  # soundfile cannot encode names that are not UTF-8

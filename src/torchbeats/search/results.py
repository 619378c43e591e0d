"""Matches of a search → files: one function a format, and a table from the ending of a name to it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile

from torchbeats.data import pieces
from torchbeats.data.inputs import Piece
from torchbeats.errors import AudioError, SettingsError
from torchbeats.files import csv_line, readable, replacing
from torchbeats.patches import SAMPLE_RATE
from torchbeats.search.searching import Match

COLUMNS = ("score", "path", "start", "end")


def as_object(match: Match) -> dict[str, float | str]:
    """A match by the names of `COLUMNS`."""
    return {"score": round(match.score, 6), "path": readable(match.path), "start": match.start, "end": match.end}


def write_csv(path: Path, matches: Sequence[Match]) -> None:
    """A line a match, the best first."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(csv_line(COLUMNS))
        file.writelines(csv_line(as_object(match).values()) for match in matches)


def write_jsonl(path: Path, matches: Sequence[Match]) -> None:
    """An object a line, the best first."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(as_object(match), ensure_ascii=False) + "\n" for match in matches)


WRITERS: dict[str, Callable[[Path, Sequence[Match]], None]] = {".csv": write_csv, ".jsonl": write_jsonl}


def write_clips(folder: Path, matches: Sequence[Match]) -> list[AudioError]:
    """A WAV file for each match, 16 kHz mono as the model hears it: ``001_0.873_robin_12.50-22.50.wav``.

    Returns:
        What could not be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digits = max(3, len(str(len(matches))))
    failures = []
    for rank, match in enumerate(matches, start=1):
        stem = re.sub(r"[^\w.-]+", "_", Path(readable(match.path)).stem)[:80]
        name = f"{rank:0{digits}}_{match.score:.3f}_{stem}_{match.start:.2f}-{match.end:.2f}.wav"
        try:
            # Times of a table end with its file, which may be a little before the last sample's whole length.
            samples = np.concatenate([np.zeros(0, np.float32), *pieces.stream(Piece(match.path, match.start))])
        except AudioError as error:
            failures.append(error)
            continue
        samples = samples[: math.ceil((match.end - match.start) * SAMPLE_RATE)]
        with replacing(folder / name) as temporary:
            soundfile.write(temporary, samples, SAMPLE_RATE, "PCM_16", format="WAV")
    return failures


def check_output(out: Path) -> bool:
    """Whether an output is a folder for clips; a `SettingsError` where it is neither that nor a format of ours."""
    if out.suffix.lower() in WRITERS:
        return False
    if out.is_dir() or not out.suffix:
        return True
    raise SettingsError(f"The output must be named {' or '.join(WRITERS)}, or be a folder for clips; {out} is neither.")

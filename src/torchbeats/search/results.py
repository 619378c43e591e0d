"""Matches of a search → files: one function a format, and a table from the ending of a name to it; or sound clips."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torchbeats.data.annotations.annotation import Annotation, AnnotationWriter
from torchbeats.data.annotations.audacity import write_audacity
from torchbeats.data.annotations.raven import write_raven
from torchbeats.data.clips import safe_name, write_clip
from torchbeats.errors import AudioError, SettingsError
from torchbeats.files import csv_line, readable, refuse_existing, refuse_inputs, replacing
from torchbeats.search.searching import Match
from torchbeats.tables.tags import ending_of

COLUMNS = ("score", "path", "start", "end")
LABEL = "match"
MANIFEST = "matches.csv"  # of a folder of clips


def as_object(match: Match) -> dict[str, float | str]:
    """A match by the names of `COLUMNS`."""
    return {"score": round(match.score, 6), "path": readable(match.path), "start": match.start, "end": match.end}


def as_annotations(matches: Sequence[Match], label: str = LABEL) -> list[Annotation]:
    """Matches as labelled stretches, the score as their peak score."""
    return [Annotation(one.path, one.start, one.end, label, peak=one.score) for one in matches]


# --- files ------------------------------------------------------------------------------------------------------------


def write_csv(path: Path, matches: Sequence[Match], label: str | None) -> None:
    """A line a match, the best first."""
    _write_rows(path, [as_object(match) for match in matches], COLUMNS)


def write_jsonl(path: Path, matches: Sequence[Match], label: str | None) -> None:
    """An object a line, the best first."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(as_object(match), ensure_ascii=False) + "\n" for match in matches)


def write_parquet(path: Path, matches: Sequence[Match], label: str | None) -> None:
    """A row a match, the best first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"score": pa.float64(), "path": pa.string(), "start": pa.float64(), "end": pa.float64()}
    table = pa.Table.from_pylist([as_object(match) for match in matches], pa.schema(list(types.items())))
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def write_raven_table(path: Path, matches: Sequence[Match], label: str | None) -> None:
    """A selection table; selections are numbered by rank, and have the score as their peak score."""
    _write_annotations(path, as_annotations(matches, label or LABEL), write_raven)


def write_audacity_track(path: Path, matches: Sequence[Match], label: str | None) -> None:
    """A label track of one recording; where no label is asked for, labels are rank and score.

    Raises:
        SettingsError: the matches are of several recordings.
    """
    recordings = {match.path for match in matches}
    if len(recordings) > 1:
        raise SettingsError(
            f"A label track for Audacity is of one recording, and these are matches in {len(recordings):,}. Write "
            ".raven.txt or .csv, or a folder of clips."
        )
    labels = [label or f"{rank}: {match.score:.3f}" for rank, match in enumerate(matches, start=1)]
    rows = zip(as_annotations(matches), labels, strict=True)
    _write_annotations(path, [row._replace(label=text) for row, text in rows], write_audacity)


def _write_annotations(path: Path, rows: list[Annotation], write: AnnotationWriter) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(write(rows))


def _write_rows(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(csv_line(columns))
        file.writelines(csv_line(row[column] for column in columns) for row in rows)


WRITERS: dict[str, Callable[[Path, Sequence[Match], str | None], None]] = {
    ".csv": write_csv,
    ".jsonl": write_jsonl,
    ".parquet": write_parquet,
    ".raven.txt": write_raven_table,
    ".audacity.txt": write_audacity_track,
}


# --- clips ------------------------------------------------------------------------------------------------------------


def write_clips(
    folder: Path, matches: Sequence[Match], progress: Callable[[], None] = lambda: None
) -> list[AudioError]:
    """A WAV file for each match, ``001_0.873_robin_12.50-22.50.wav``, and ``matches.csv``, a list of them.

    Clips have the rate and the channels of their recordings. Those of a search that was written there before go.

    Args:
        folder: where clips go.
        matches: the best first.
        progress: called behind every match.

    Returns:
        What could not be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST
    for old in _clips_of(manifest):
        (folder / old).unlink(missing_ok=True)
    digits = max(3, len(str(len(matches))))
    failures, rows = [], []
    for rank, (match, stretch) in enumerate(zip(matches, as_annotations(matches), strict=True), start=1):
        stem = re.sub(r"\s+", "_", safe_name(Path(readable(match.path)).stem))
        name = f"{rank:0{digits}}_{match.score:.3f}_{stem}_{match.start:.2f}-{match.end:.2f}.wav"
        try:
            write_clip(stretch, folder / name)
            recording = {**as_object(match), "path": name, "recording": readable(match.path)}
            rows.append({"rank": rank, "from_second": recording.pop("start"), "to_second": recording.pop("end")})
            rows[-1].update(recording)
        except AudioError as error:
            failures.append(error)
        progress()
    _write_rows(manifest, rows, ("rank", "path", "score", "recording", "from_second", "to_second"))
    return failures


def _clips_of(manifest: Path) -> Iterator[str]:
    """Names of the clips in a folder's list."""
    if manifest.is_file():
        with manifest.open(encoding="utf-8", newline="") as file:
            names = [row.get("path") or "" for row in csv.DictReader(file)]
        yield from (name for name in names if re.fullmatch(r"\d{3,}_[^/\\]+\.wav", name))


# --- what an output is ------------------------------------------------------------------------------------------------


def check_output(out: Path, inputs: Sequence[str | os.PathLike[str]], overwrite: bool) -> bool:
    """Whether an output is a folder for clips.

    Args:
        out: its name.
        inputs: files that it must not replace.
        overwrite: whether it may replace others.

    Raises:
        SettingsError: it is neither a folder nor a format of ours; or it exists.
    """
    is_file = ending_of(out.name, WRITERS) is not None
    if not is_file and out.suffix and not out.is_dir():
        raise SettingsError(
            f"The output must be named {', '.join(WRITERS)}, or be a folder for clips; {out} is neither."
        )
    if is_file and out.is_dir():
        raise SettingsError(f"{out} is a folder; name a file.")
    refuse_inputs([out], inputs)
    if is_file:
        refuse_existing(out, overwrite)
    elif out.is_dir() and any(out.iterdir()) and not overwrite:
        raise SettingsError(f"{out} is not empty; use --overwrite to replace what an earlier search wrote there.")
    return not is_file

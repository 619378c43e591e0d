"""Rows of labels → text: one function a format, and one table from the ending of a file's name to it.

A new format is a function and an entry of `FORMATS`; the command takes its help, and what it accepts, from there.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from torchbeats.files import readable
from torchbeats.tagging import Tags, regions

Writer: TypeAlias = Callable[[Iterable[Tags]], Iterator[str]]

BAR = 20  # characters


def _object(row: Tags) -> str:
    labels = [{"label": label, "probability": round(probability, 6)} for label, probability in row.labels]
    return json.dumps(
        {"path": readable(row.path), "start": row.start, "end": row.end, "labels": labels}, ensure_ascii=False
    )


def write_jsonl(rows: Iterable[Tags]) -> Iterator[str]:
    """An object a line."""
    return (f"{_object(row)}\n" for row in rows)


def write_json(rows: Iterable[Tags]) -> Iterator[str]:
    """One array, with an object a line."""
    before = "[\n"
    for row in rows:
        yield before + _object(row)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def write_csv(rows: Iterable[Tags]) -> Iterator[str]:
    """A line a label."""
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    writer.writerow(("path", "start", "end", "label", "probability"))
    yield line.getvalue()
    for row in rows:
        line.seek(0)
        line.truncate()
        for label, probability in row.labels:
            writer.writerow((readable(row.path), row.start, row.end, label, f"{probability:.6f}"))
        yield line.getvalue()


def write_track(rows: Iterable[Tags]) -> Iterator[str]:
    """A label track as Audacity imports it."""
    return (f"{start:.6f}\t{end:.6f}\t{one_line(label)}\n" for start, end, label in regions(rows))


def write_table(rows: Iterable[Tags], by_file: bool) -> Iterator[str]:
    """For a person: a line a label below each file's name, or a line a row of its timeline."""
    path = None
    for row in rows:
        if by_file or row.path != path:
            path = row.path
            yield one_line(readable(path)) + (f"  {row.end:,.1f} s" if by_file else "") + "\n"
        if by_file:
            for label, probability in row.labels:
                yield f"  {probability:.3f}  {'█' * round(BAR * probability):<{BAR}}  {one_line(label)}\n"
        else:
            labels = ", ".join(f"{one_line(label)} {probability:.3f}" for label, probability in row.labels)
            yield f"  {_clock(row.start):>9} – {_clock(row.end):>9}  {labels}\n"
        if by_file and not row.labels:
            yield "  no label reaches the threshold\n"


def _clock(seconds: float) -> str:
    hundredths = round(100 * seconds)
    return f"{hundredths // 6000}:{hundredths % 6000 / 100:05.2f}"


def one_line(text: str) -> str:
    """On one line, and nothing in it that a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


@dataclass(frozen=True)
class TextFormat:
    """A format of text files.

    Attributes:
        write: from rows to the parts of the text.
        about: what such a file is, for help and messages.
        one_recording: a timeline of a single recording: there is nowhere to put the name of another.
    """

    write: Writer
    about: str
    one_recording: bool = False


FORMATS: dict[str, TextFormat] = {
    ".csv": TextFormat(write_csv, "one label per row"),
    ".json": TextFormat(write_json, "one array"),
    ".jsonl": TextFormat(write_jsonl, "one object per line"),
    ".txt": TextFormat(write_track, "label track for Audacity", one_recording=True),
}

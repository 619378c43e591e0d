"""Rows of labels → text: one function a format, and one table from the ending of a file's name to it.

A new format is a function and an entry of `FORMATS`; the command takes its help, and what it accepts, from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from torchbeats.data.annotations import plain
from torchbeats.data.annotations.annotation import Annotation, AnnotationWriter
from torchbeats.data.annotations.audacity import write_audacity
from torchbeats.data.annotations.birdnet import write_birdnet
from torchbeats.data.annotations.kaleidoscope import write_kaleidoscope
from torchbeats.data.annotations.raven import write_raven
from torchbeats.files import as_json, csv_line, one_line, readable
from torchbeats.tables.events import events
from torchbeats.tagging import Tags, regions

Writer: TypeAlias = Callable[[Iterable[Tags]], Iterator[str]]

BAR = 20  # characters


def _object(row: Tags) -> str:
    labels = [{"label": label, "probability": round(probability, 6)} for label, probability in row.labels]
    return as_json({"path": readable(row.path), "start": row.start, "end": row.end, "labels": labels})


def write_jsonl(rows: Iterable[Tags]) -> Iterator[str]:
    """An object a line."""
    return (f"{_object(row)}\n" for row in rows)


def write_json(rows: Iterable[Tags]) -> Iterator[str]:
    """One array, with an object a line."""
    prefix = "[\n"
    for row in rows:
        yield prefix + _object(row)
        prefix = ",\n"
    yield "[]\n" if prefix == "[\n" else "\n]\n"


def write_csv(rows: Iterable[Tags]) -> Iterator[str]:
    """A line a label."""
    yield csv_line(("path", "start", "end", "label", "probability"))
    cells: dict[str, str] = {}  # of labels, which come again with every row
    path, cell = None, ""  # of a file, whose rows follow each other
    for row in rows:
        if row.path != path:
            path, cell = row.path, csv_line((readable(row.path), "")).removesuffix("\n")
        begin = f"{cell}{row.start},{row.end}"
        for label, _ in row.labels:
            if label not in cells:
                cells[label] = csv_line(("", label)).removesuffix("\n")  # with the comma before it
        yield "".join(f"{begin}{cells[label]},{probability:.6f}\n" for label, probability in row.labels)


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
            for label, probability in _visible(row):
                yield f"  {probability:.3f}  {'█' * round(BAR * probability):<{BAR}}  {one_line(label)}\n"
        else:
            labels = ", ".join(f"{one_line(label)} {probability:.3f}" for label, probability in _visible(row))
            yield f"  {_clock(row.start):>9} – {_clock(row.end):>9}  {labels}\n"
        if by_file and not row.labels:
            yield "  no label reaches the threshold\n"


def _visible(row: Tags) -> list[tuple[str, float]]:
    """The labels of a row but for those that would read 0.000, of which the first stays if it is alone."""
    return [label for label in row.labels if label[1] >= 0.0005] or row.labels[:1]


def write_event_table(events: Iterable[Annotation]) -> Iterator[str]:
    """For a person: a line an event below each file's name."""
    path = None
    for event in events:
        if event.path != path:
            path = event.path
            yield one_line(readable(path)) + "\n"
        scores = f"peak {event.peak or 0.0:.3f}, mean {event.mean or 0.0:.3f}"
        yield f"  {_clock(event.start):>9} – {_clock(event.end or event.start):>9}  {one_line(event.label)}  {scores}\n"


def _stretches(write: AnnotationWriter, rows: Iterable[Tags]) -> Iterator[str]:
    """Rows as the stretches where a label goes on."""
    return write(events(rows))


def _clock(seconds: float) -> str:
    hundredths = round(100 * seconds)
    return f"{hundredths // 6000}:{hundredths % 6000 / 100:05.2f}"


@dataclass(frozen=True)
class TextFormat:
    """A format of text files.

    Attributes:
        write: from rows to the parts of the text.
        about: what such a file is, for help and messages.
        write_events: from events to the parts of the text.
        one_recording: a timeline of a single recording: there is nowhere to put the name of another.
        stretches: it has stretches of recordings, so its rows are those of a timeline.
    """

    write: Writer
    about: str
    write_events: AnnotationWriter
    one_recording: bool = False
    stretches: bool = False


def _of_stretches(write: AnnotationWriter, about: str) -> TextFormat:
    return TextFormat(partial(_stretches, write), about, write, stretches=True)


FORMATS: dict[str, TextFormat] = {
    ".csv": TextFormat(write_csv, "one label per row", partial(plain.write_csv, fields=plain.EVENT_FIELDS)),
    ".json": TextFormat(write_json, "one array", plain.write_json),
    ".jsonl": TextFormat(write_jsonl, "one object per line", plain.write_jsonl),
    ".txt": TextFormat(write_track, "label track for Audacity", write_audacity, one_recording=True, stretches=True),
    ".audacity.txt": TextFormat(write_track, "the same", write_audacity, one_recording=True, stretches=True),
    ".raven.txt": _of_stretches(write_raven, "selection table for Raven"),
    ".kaleidoscope.csv": _of_stretches(write_kaleidoscope, "table for Kaleidoscope"),
    ".birdnet.csv": _of_stretches(write_birdnet, "as BirdNET writes it"),
}
NAMED = {  # what the formats are called where no file's name tells
    "csv": ".csv",
    "json": ".json",
    "jsonl": ".jsonl",
    "audacity": ".audacity.txt",
    "raven": ".raven.txt",
    "kaleidoscope": ".kaleidoscope.csv",
    "birdnet": ".birdnet.csv",
}


def ending_of(name: str, endings: Iterable[str] = FORMATS) -> str | None:
    """The longest of the endings that a file's name has; case does not matter."""
    matching = [ending for ending in endings if name.lower().endswith(ending)]
    return max(matching, key=len, default=None)

"""Plain CSV and JSON lines: path, start, end and label, and what else is known."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torchbeats.data.annotations.annotation import Annotation
from torchbeats.files import readable

FIELDS = ("path", "start", "end", "label", "low", "high", "peak", "mean")
EVENT_FIELDS = ("path", "start", "end", "label", "peak", "mean")


def _cells(row: Annotation) -> dict[str, Any]:
    values = row._asdict() | {"path": readable(row.path)}
    for name in ("peak", "mean"):
        values[name] = None if values[name] is None else round(values[name], 6)
    return values


def write_csv(annotations: Iterable[Annotation], fields: Sequence[str] = FIELDS) -> Iterator[str]:
    """A row a stretch, with these fields."""
    line = io.StringIO()
    writer = csv.DictWriter(line, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in annotations:
        writer.writerow(_cells(row))
        yield line.getvalue()
        line.seek(0)
        line.truncate()
    yield line.getvalue()


def write_jsonl(annotations: Iterable[Annotation]) -> Iterator[str]:
    """An object a stretch, a line each; what is not known is left out."""
    for row in annotations:
        present = {name: value for name, value in _cells(row).items() if value is not None or name == "end"}
        yield json.dumps(present, ensure_ascii=False) + "\n"


def write_json(annotations: Iterable[Annotation]) -> Iterator[str]:
    """One array, with an object a line."""
    prefix = "[\n"
    for line in write_jsonl(annotations):
        yield prefix + line.rstrip("\n")
        prefix = ",\n"
    yield "[]\n" if prefix == "[\n" else "\n]\n"

"""Marks of the table's rows, right or wrong for a class: on disk at every click; and what is fitted to them."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from torchbeats.data.annotations.annotation import Annotation
from torchbeats.data.example import Example
from torchbeats.data.labelled import Labelled
from torchbeats.errors import InputError
from torchbeats.files import csv_line, from_readable, readable, replacing
from torchbeats.heads.fitting import Head, base_model, fit_head, whole_model
from torchbeats.heads.suggesting import suggest
from torchbeats.tables.reading import Table
from torchbeats.weights import checkpoint

SUFFIX, MODEL_SUFFIX = ".labels.csv", ".head.safetensors"  # behind the table's name
FIELDS = ("path", "start", "end", "label", "right")
SUGGESTIONS = 12


class Fitted(NamedTuple):
    """A head and what to mark next.

    Attributes:
        head: of the classes that have marks.
        suggestions: rows, and why each is suggested.
    """

    head: Head
    suggestions: list[tuple[int, str]]


class Marks:
    """What people have said of a table's rows. Another run of the server goes on from it.

    Args:
        table: of embeddings, whose name with `SUFFIX` is the file.

    Attributes:
        path: of the file.
        lost: marks in the file whose rows the table has no more.

    Raises:
        InputError: there is such a file, and it is none of ours.
    """

    def __init__(self, table: Table) -> None:
        self._table, self._lock = table, threading.Lock()
        self.path = table.path.with_name(table.path.name + SUFFIX)
        self.model_path = table.path.with_name(table.path.name + MODEL_SUFFIX)
        self._marks: dict[tuple[int, str], bool] = {}
        self._places: dict[int, tuple[str, float, float]] = {}
        self.lost = 0
        self._others: list[tuple[str, ...]] = []
        if self.path.exists():
            self._read()

    def mark(self, row: int, label: str, right: bool) -> None:
        """Say of a row that a class is in it, or is not; the same once more takes it back. It is on disk then."""
        with self._lock:
            key = row, label
            before = self._marks.get(key)
            if before is right:
                del self._marks[key]
            else:
                self._marks[key] = right
            if row not in self._places:
                (self._places[row],) = self._table.places(np.array([row]))
            try:
                self._write()
            except BaseException:  # what is not on disk is not shown either
                if before is None:
                    self._marks.pop(key, None)
                else:
                    self._marks[key] = before
                raise

    def classes(self) -> list[str]:
        """Of all marks."""
        with self._lock:
            return sorted({label for _, label in self._marks})

    def of(self, label: str) -> dict[int, bool]:
        """The marks of a class, by row."""
        with self._lock:
            return {row: right for (row, other), right in self._marks.items() if other == label}

    def annotations(self) -> list[Annotation]:
        """What is right, as annotations."""
        with self._lock:
            stretches = [(*self._places[row], label) for (row, label), right in self._marks.items() if right]
        return [Annotation(*one) for one in sorted(stretches)]

    def examples(self) -> tuple[np.ndarray[tuple[int], np.dtype[np.intp]], Labelled]:
        """The marked rows and their labels; one that is wrong for all classes that it was asked for has none."""
        with self._lock:
            rows = sorted({row for row, _ in self._marks})
            classes = sorted({label for _, label in self._marks})
            labels = {row: tuple(name for name in classes if self._marks.get((row, name))) for row in rows}
            places = dict(self._places)
        examples = [
            Example(path, labels[row], start, end, group=path) for row in rows for path, start, end in [places[row]]
        ]
        return np.array(rows, np.intp), Labelled(examples, classes, "multi_label")

    def fit(self) -> Fitted:
        """A head for all classes, and rows to mark next.

        Raises:
            InputError: there is too little to fit anything to.
        """
        rows, labelled = self.examples()
        if not len(rows):
            raise InputError("Nothing is marked yet: mark some rows right, and some wrong.")
        head = fit_head(self._table.take(rows), labelled)
        suggestions = suggest(self._table, head, rows, SUGGESTIONS)
        places = [(one.path, one.start, one.end) for one in suggestions]
        reasons = [f"{one.label} {one.probability:.2f} ({one.reason})" for one in suggestions]
        return Fitted(
            head, [(row, reason) for row, reason in zip(self._rows_at(places), reasons, strict=True) if row >= 0]
        )

    def save(self, head: Head) -> Path:
        """Write the model beside the table, whole or not at all; its path."""
        checkpoint.save(whole_model(base_model(self._table), head, self._table.about), self.model_path)
        return self.model_path

    def _rows_at(self, places: Iterable[tuple[str, float, float]]) -> list[int]:
        """The rows at some places; -1 where there is none."""
        requested = list(places)
        rows = self._table.rows_of({readable(path) for path, _, _ in requested})
        known = {
            (path, round(start, 3), round(end, 3)): int(row)
            for row, (path, start, end) in zip(rows, self._table.places(rows), strict=True)
        }
        return [known.get((path, round(start, 3), round(end, 3)), -1) for path, start, end in requested]

    def _write(self) -> None:
        with replacing(self.path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(csv_line(FIELDS))
            file.writelines(csv_line(other) for other in self._others)
            for (row, label), right in self._marks.items():
                path, start, end = self._places[row]
                file.write(csv_line((readable(path), start, end, label, "yes" if right else "no")))

    def _read(self) -> None:
        with self.path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) != FIELDS:
                raise InputError(
                    f"{self.path} is no file of marks of ours; move it away, so that marks can be kept there."
                )
            try:
                lines = [
                    (from_readable(path), float(start), float(end), label, right == "yes")
                    for path, start, end, label, right in reader
                ]
            except ValueError as error:
                raise InputError(f"{self.path} is damaged ({error}); mend it, or move it away.") from error
        for row, (path, start, end, label, right) in zip(self._rows_at(line[:3] for line in lines), lines, strict=True):
            if row < 0:  # kept as they are: the table may be made anew with those files
                self._others.append((readable(path), str(start), str(end), label, "yes" if right else "no"))
            else:
                self._marks[row, label] = right
                self._places[row] = path, start, end
        self.lost = len(self._others)

"""How a program writes its tables: how to recognise one, and where it has labels and paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchbeats.data.columns import LABEL_COLUMNS, Columns, is_missing, key


@dataclass(frozen=True)
class Dialect:
    """How a program writes its tables.

    Attributes:
        name: of the program.
        recognises: whether columns with these keys (see `columns.key`) are such a table.
        label_columns: of the columns of a table, those that may have a row's label, the best first.
        path_columns: those that make up the path of a recording, likewise.
        paths: of a row, by keys, what the recording may be called, the likeliest first.
        empty_labels: labels that say that there is nothing, in lower case.
        hertz: the frequencies of a row are in so many hertz, by the keys of the table's columns.
        left_out: why a row does not say that its label is there; None if it does.
    """

    name: str
    recognises: Callable[[set[str]], bool]
    label_columns: Callable[[Sequence[str]], list[str]]
    path_columns: Callable[[Sequence[str]], list[str]]
    paths: Callable[[Mapping[str, Any]], list[str]]
    empty_labels: frozenset[str] = frozenset()
    hertz: Callable[[set[str]], float] = lambda keys: 1.0
    left_out: Callable[[Mapping[str, Any]], str | None] = lambda values: None


def known_labels(names: Sequence[str], keys: Sequence[str] = LABEL_COLUMNS) -> list[str]:
    """The columns with one of these keys, in the order of the keys."""
    by_key = {key(name): name for name in reversed(names)}
    return [by_key[name_key] for name_key in keys if name_key in by_key]


def known_paths(names: Sequence[str]) -> list[str]:
    """The columns that may hold paths."""
    return Columns(names).paths


def texts(values: Mapping[str, Any], *keys: str) -> list[str]:
    """What a row has in columns with these keys, where that is text."""
    by_key = {key(name): value for name, value in values.items()}
    cells = (by_key.get(column) for column in keys)
    return [str(value).strip() for value in cells if not is_missing(value)]


def number(values: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    """The first of these columns that has a number in a row."""
    for text in texts(values, *keys):
        try:
            value = float(text.replace(",", "."))
        except ValueError:
            continue
        if value == value:
            return value
    return None

"""Lists of objects: JSON, and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torchbeats.data.columns import PATH_COLUMNS, Columns
from torchbeats.data.list_formats.raw_list import RawList, read_text


def read_jsonl(path: Path, labels: bool | str) -> RawList:
    """An object, or a path, a line."""
    text, encoding = read_text(path)
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append((number, _entry(_json(line, number), number)))
    return RawList(_names(rows), rows, encoding=encoding)


def read_json(path: Path, labels: bool | str) -> RawList:
    """An array of objects, alone or as the only one in an object; or an object a line, as NeMo calls its lists."""
    text, _ = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return read_jsonl(path, labels)
    if isinstance(content, dict) and not Columns(content).paths:
        arrays = [value for value in content.values() if isinstance(value, list)]
        content = arrays[0] if len(arrays) == 1 else content
    entries = content if isinstance(content, list) else [content]
    rows = [(number, _entry(entry, number)) for number, entry in enumerate(entries, start=1)]
    return RawList(_names(rows), rows, unit="entry")


def _names(rows: Iterable[tuple[int, dict[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(name for _, values in rows for name in values))


def _json(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except RecursionError as error:
        raise ValueError(f"line {number:,} is nested too deeply; it must hold an object with a path.") from error
    except ValueError as error:
        raise ValueError(f"line {number:,} is not JSON ({error}).") from error


def _entry(entry: Any, number: int) -> dict[str, Any]:
    """A path, or an object with one under a known name, by itself or as the path of the sound there."""
    if isinstance(entry, str):
        return {"path": entry}
    if not isinstance(entry, dict):
        raise ValueError(f"line {number:,} must hold a path, not {repr(entry)[:60]}.")
    columns = Columns(entry)
    if not columns.paths:
        names = ", ".join(name[:40] for name in list(entry)[:20]) or "none"
        raise ValueError(f"line {number:,}: it needs a column called {' or '.join(PATH_COLUMNS[:6])}; it has {names}.")
    sound = entry[columns.paths[0]]
    path = sound.get("path") if isinstance(sound, dict) else sound
    if not isinstance(path, str):
        raise ValueError(f"line {number:,} must hold a path, not {repr(sound)[:60]}.")
    return {**entry, columns.paths[0]: path}

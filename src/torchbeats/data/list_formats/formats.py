"""The formats of lists, by the endings of their names. A new one is a reader, in a file of its own, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torchbeats.data.list_formats.json_lists import read_json, read_jsonl
from torchbeats.data.list_formats.parquet import read_parquet
from torchbeats.data.list_formats.plain import read_scp, read_txt
from torchbeats.data.list_formats.raw_list import RawList
from torchbeats.data.list_formats.tables import read_csv

# The path, and which columns are wanted beside that of the sounds: see `data.lists.read_list`.
LISTS: dict[str, Callable[[Path, bool | str], RawList]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_txt,
    ".scp": read_scp,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
}
LIST_SUFFIXES = tuple(LISTS)

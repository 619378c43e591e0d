"""What the commands that work on labelled sounds share: the argument, and how results are shown."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any

import typer
from rich.console import Console

DATA = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA...",
        help="Folders with a folder of sounds for every class, named after it; lists (.csv, .jsonl, .parquet) with the "
        "columns path and label (several with ; between), and maybe start, end (seconds), split, fold, group.",
    ),
]


class Formats(str, Enum):
    """How results are printed."""

    table = "table"
    json = "json"


Format = Annotated[
    Formats | None, typer.Option(help="Of what is printed. Default: a table on a terminal, JSON elsewhere.")
]


def show(format: Formats | None, results: dict[str, Any], as_table: Callable[[Console], None]) -> None:
    """Print results on standard output as asked, or as suits who reads it."""
    if format is Formats.json or (format is None and not sys.stdout.isatty()):
        print(json.dumps(results, ensure_ascii=False, indent=1))
    else:
        as_table(Console(highlight=False))


def plain(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(inside) for key, inside in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inside) for inside in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

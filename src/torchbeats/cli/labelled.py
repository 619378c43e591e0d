"""What the commands that work on labelled sounds share: the argument, and how results are shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any

import typer

from torchbeats.cli.console import Console, complain, say_json
from torchbeats.data.labelled import Labelled

DATA = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA...",
        help="Folders with one subfolder of sounds per class; or lists (.csv, .tsv, .jsonl, .parquet) with the columns "
        "path and label (several labels separated by ;), and optionally start, end (seconds), split, fold, group.",
    ),
]


GroupFrom = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="Regular expression whose first group (in parentheses), applied to the path, names what must be held out "
        r"together, such as a speaker or a recording. Example: `_([a-z]+)_[0-9]+\.wav$`.",
    ),
]


ProblemType = Annotated[
    str | None,
    typer.Option(help="single_label (softmax) or multi_label (sigmoid). Default: chosen from the labels."),
]


class Formats(str, Enum):
    """How results are printed."""

    table = "table"
    json = "json"


Format = Annotated[
    Formats | None, typer.Option(help="Format on standard output. Default: a table on a terminal, otherwise JSON.")
]


def note_several(labelled: Labelled) -> None:
    """Say which sound makes a problem a multi-label one."""
    if odd := next((example for example in labelled.examples if len(example.labels) != 1), None):
        said = f"the labels {', '.join(odd.labels)}" if odd.labels else "no label"
        complain(f"A multi-label problem: {odd.path} has {said}.", "Note")


def show(format: Formats | None, results: dict[str, Any], as_table: Callable[[Console], None]) -> None:
    """Print results on standard output as asked, or as suits who reads it."""
    if format is Formats.json or (format is None and not sys.stdout.isatty()):
        say_json(results)
    else:
        as_table(Console())

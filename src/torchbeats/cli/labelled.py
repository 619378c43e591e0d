"""What the commands that work on labelled sounds share: the argument, and how results are shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any

import typer

from torchbeats.cli.console import Console, complain, say_json
from torchbeats.data.labelled import Labelled
from torchbeats.data.windows import MIN_OVERLAP, Windows

_DATA = typer.Argument(
    metavar="DATA...",
    help="Folders with one subfolder of sounds per class; or lists (.csv, .tsv, .jsonl, .parquet) with the columns "
    "path and label (several labels separated by ;), and optionally start, end (seconds), split, fold, group; or "
    "annotations from Raven, Audacity, Kaleidoscope or BirdNET, and folders of these.",
)
DATA = Annotated[list[str], _DATA]
OPTIONAL_DATA = Annotated[list[str] | None, _DATA]  # where a command has something to do without

ANNOTATIONS = "Annotations"  # how these options are grouped in a command's help

LabelColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=ANNOTATIONS,
        help="Column with the labels. Default: the usual names, or the only column that is not Raven's own.",
    ),
]
LabelFrom = Annotated[
    str | None,
    typer.Option(
        "--label-from",
        metavar="REGEX",
        help="The labels are in the paths of the sounds: a regular expression whose first group (in parentheses) is "
        r"the label. Example: `/([0-9])_[^/]*\.wav$`.",
    ),
]
Sounds = Annotated[
    list[str] | None,
    typer.Option(
        "--sounds",
        metavar="FOLDER",
        rich_help_panel=ANNOTATIONS,
        help="Folder to search for recordings, by name, with all its subfolders; may be repeated. Default: near the "
        "annotations.",
    ),
]
MinOverlap = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        rich_help_panel=ANNOTATIONS,
        help="Annotated recordings are cut into windows; a window gets the labels of the annotations with which it "
        "shares at least this share of the shorter of the two. Lists with start and end are cut likewise if this is "
        f"given; otherwise each of their rows is one example. Default: {MIN_OVERLAP}.",
    ),
]
FullyAnnotated = Annotated[
    bool,
    typer.Option(
        "--fully-annotated",
        rich_help_panel=ANNOTATIONS,
        help="Windows of annotated recordings without a label contain no class. Default: they are left out.",
    ),
]


def windows(seconds: float | None, min_overlap: float | None, fully_annotated: bool) -> Windows | None:
    """How annotated recordings are cut into windows of some seconds; None leaves annotations as they are."""
    if seconds is None:
        return None
    requested = min_overlap is not None or fully_annotated
    return Windows(seconds, MIN_OVERLAP if min_overlap is None else min_overlap, fully_annotated, plain_lists=requested)


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
    if unusual := next((example for example in labelled.examples if len(example.labels) != 1), None):
        description = f"the labels {', '.join(unusual.labels)}" if unusual.labels else "no label"
        complain(f"A multi-label problem: {unusual.path} has {description}.", "Note")


def show(format: Formats | None, results: dict[str, Any], as_table: Callable[[Console], None]) -> None:
    """Print results on standard output as asked, or as suits who reads it."""
    if format is Formats.json or (format is None and not sys.stdout.isatty()):
        say_json(results)
    else:
        as_table(Console())

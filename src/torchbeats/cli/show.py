"""``torchbeats show``: what a model, a table or a run is."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from torchbeats.cli.console import say, say_json
from torchbeats.cli.labelled import Format, Formats
from torchbeats.description import describe
from torchbeats.files import plain


def show(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A table, the folder of a run, a checkpoint, an .onnx file, or the name of a model."
        ),
    ],
    format: Format = None,
) -> None:
    """Show what a table, a model or a run holds: settings, sizes, labels."""
    description = plain(describe(file))
    if format is Formats.json or (format is None and not sys.stdout.isatty()):
        say_json(description)
        return
    for line in _lines(description):
        say(line, hanging=len(line) - len(line.lstrip()) + 4)


def _lines(values: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        elif isinstance(value, list):
            lines.append(f"{indent}{name}: {', '.join(map(str, value)) or 'none'}")
        else:
            lines.append(f"{indent}{name}: {value}")
    return lines

"""``torchbeats clips``: annotated or detected stretches of recordings → sound files, a folder a class."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from torchbeats.cli.console import audio_progress, complain, remark, skipped
from torchbeats.cli.labelled import LabelColumn, Sounds
from torchbeats.cli.tables import OUTPUT
from torchbeats.data.annotations.reading import read_annotations
from torchbeats.data.clips import cut_clips
from torchbeats.errors import InputError, quoted


class Formats(str, Enum):
    """The formats of sound files."""

    wav = "wav"
    flac = "flac"


def clips(
    annotations: Annotated[
        list[str],
        typer.Argument(
            metavar="ANNOTATIONS...",
            help="Annotations from Raven, Audacity, Kaleidoscope or BirdNET; events from `torchbeats tag --events`; "
            "lists with the columns path, start, end (seconds) and label; or folders of these.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", rich_help_panel=OUTPUT, help="Folder to write to."),
    ],
    format: Annotated[Formats, typer.Option(rich_help_panel=OUTPUT, help="Format of the clips.")] = Formats.wav,
    padding: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            rich_help_panel=OUTPUT,
            help="Time to add before and after each stretch, as far as the recording reaches.",
        ),
    ] = 0.0,
    flat: Annotated[
        bool,
        typer.Option("--flat", rich_help_panel=OUTPUT, help="Write all clips into one folder."),
    ] = False,
    label: Annotated[
        list[str] | None, typer.Option(help="Only stretches with this label; may be repeated. Default: all labels.")
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            help="Only stretches with at least this score or confidence. Default: all, with and without a score."
        ),
    ] = None,
    label_column: LabelColumn = None,
    sounds: Sounds = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", rich_help_panel=OUTPUT, help="Write existing clips again."),
    ] = False,
) -> None:
    """Cut annotated or detected stretches out of recordings: a training set for `torchbeats finetune`.

    Clips keep the sample rate and the channels of their recordings. The folder gets clips.csv, a list of all clips with
    their labels, recordings and times. The same command continues a run that was stopped. A recording that cannot be
    read is reported and left out; the exit status is then 1.
    """
    stretches = read_annotations(annotations, label_column=label_column, sounds=sounds or ())
    known = dict.fromkeys(stretch.label for stretch in stretches)
    if unknown := [name for name in label or () if name not in known]:
        raise InputError(f"There is no label {quoted(unknown)}; there are {quoted(known, 20)}.")
    if label:
        stretches = [stretch for stretch in stretches if stretch.label in label]
    if min_score is not None:
        stretches = [stretch for stretch in stretches if stretch.peak is not None and stretch.peak >= min_score]
    if not stretches:
        raise InputError("There are no annotations to cut.")
    with audio_progress(len(stretches), 0) as progress:
        result = cut_clips(
            stretches,
            output,
            format=format.value,
            padding=padding,
            class_folders=not flat,
            overwrite=overwrite,
            on_failure=skipped,
            progress=progress,
        )
    existing = f"; {result.existing:,} were there already" if result.existing else ""
    remark(f"{result.manifest}: {result.written:,} clips written{existing}.")
    if result.failures:
        complain(f"Recordings and stretches that could not be cut: {len(result.failures):,}.")
        raise typer.Exit(1)

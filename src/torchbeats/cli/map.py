"""``torchbeats map``: a table of embeddings → a picture of the collection, or a page to look around in and listen."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from torchbeats.cli.console import complain, count_progress, remark, working
from torchbeats.cli.labelled import ANNOTATIONS, LabelColumn, Sounds
from torchbeats.cli.tables import OUTPUT, Overwrite
from torchbeats.data.labelled import read_labelled
from torchbeats.data.windows import MIN_OVERLAP
from torchbeats.errors import SettingsError
from torchbeats.extras import require
from torchbeats.files import refuse_existing, refuse_inputs
from torchbeats.maps.grouping import CLUSTERS
from torchbeats.maps.mapping import POINTS, make_map
from torchbeats.maps.page import SPECTROGRAMS, write_page

PICTURE, PAGE = ".png", ".html"


class Methods(str, Enum):
    """How points are placed."""

    umap = "umap"
    pca = "pca"


class Colours(str, Enum):
    """What points are coloured by."""

    cluster = "cluster"
    file = "file"
    label = "label"


def map_(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A table that `torchbeats embed` wrote.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            rich_help_panel=OUTPUT,
            help="File to write. .png: picture; .html: a page in one file that needs no network, with path and time "
            "under the pointer, and spectrogram and player of the point that is clicked.",
        ),
    ],
    method: Annotated[
        Methods, typer.Option(help="umap keeps neighbours together; pca, principal components, needs no extra package.")
    ] = Methods.umap,
    colour: Annotated[
        Colours | None,
        typer.Option(help="What points are coloured by. Default: label if there are labels, or cluster."),
    ] = None,
    clusters: Annotated[int, typer.Option(min=1, help="Number of clusters for the colours (k-means).")] = CLUSTERS,
    points: Annotated[
        int,
        typer.Option(min=1, help="Most points. Of a larger table a random sample is shown, labelled windows first."),
    ] = POINTS,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABELS",
            rich_help_panel=ANNOTATIONS,
            help="Labels of files or stretches: a list, a folder with a subfolder per class, or annotations; may be "
            "repeated.",
        ),
    ] = None,
    label_column: LabelColumn = None,
    recordings: Sounds = None,
    min_overlap: Annotated[
        float,
        typer.Option(
            rich_help_panel=ANNOTATIONS,
            help="Share of the shorter of the two that a window and a labelled stretch must have in common.",
        ),
    ] = MIN_OVERLAP,
    spectrograms: Annotated[
        int, typer.Option(min=0, rich_help_panel=OUTPUT, help="Most points that get a spectrogram in the page.")
    ] = SPECTROGRAMS,
    embed_sounds: Annotated[
        float,
        typer.Option(
            "--embed-sounds",
            metavar="MB",
            min=0,
            rich_help_panel=OUTPUT,
            help="Put sounds of points with a spectrogram into the page, up to so many megabytes, to pass it on. "
            "Default: they are played from their files; those at URLs are not.",
        ),
    ] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw a map of a collection: a point is a window, and windows that sound alike lie together."""
    _check_output(output, [str(table), *(labels or ())], overwrite)
    if method is Methods.umap:
        require("umap", "map")
    # A row without a label is a window without one, and one with two is of both.
    labelled = (
        read_labelled(labels, "multi_label", label_column=label_column, sounds=recordings or ()) if labels else None
    )
    with working() as show_progress:
        shown = make_map(
            table,
            method=method.value,
            colour=colour and colour.value,
            labelled=labelled,
            min_overlap=min_overlap,
            clusters=clusters,
            points=points,
            seed=seed,
            progress=show_progress,
        )
    if shown.method != method.value:
        complain(f"{len(shown.rows)} points are too few for UMAP; they are placed by principal components.", "Note")
    if output.suffix.lower() == PICTURE:
        shown.draw(output)
        remark(f"{output}: {shown.note()}")
        return
    with count_progress(min(spectrograms, len(shown.rows)), "spectrograms") as progress:
        result = write_page(shown, output, spectrograms=spectrograms, sound_megabytes=embed_sounds, progress=progress)
    if result.missing:
        complain(f"{len(result.missing):,} sound files are not at hand: their points have no sound.", "Note")
    inside = f"{result.spectrograms:,} spectrograms and {result.sounds:,} sounds in it"
    remark(f"{output}: {shown.note()} {inside}; {output.stat().st_size / 1e6:,.1f} MB.")


def _check_output(output: Path, inputs: list[str], overwrite: bool) -> None:
    if output.suffix.lower() not in (PICTURE, PAGE):
        raise SettingsError(f"The output must be named {PICTURE} or {PAGE}; {output} is not.")
    if output.is_dir():
        raise SettingsError(f"{output} is a folder; name a file.")
    refuse_inputs([output], inputs)
    refuse_existing(output, overwrite)
    if output.suffix.lower() == PICTURE:
        require("matplotlib", "plots")

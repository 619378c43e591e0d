"""``torchbeats tag``: sounds → what is to be heard in them."""

from __future__ import annotations

from contextlib import nullcontext
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from torchbeats.abstention import Naming
from torchbeats.audio import Floats
from torchbeats.cli.console import complain
from torchbeats.cli.tables import (
    MODEL,
    NAMES,
    OUTPUT,
    WINDOWS,
    Actors,
    BatchSeconds,
    Device,
    Engine,
    FollowLinks,
    Inputs,
    Jobs,
    Overwrite,
    Ray,
    Views,
    check_actors,
    or_built_in,
)
from torchbeats.cli.tag_run import TABLE, TagRun
from torchbeats.data.inputs import find_sounds
from torchbeats.errors import SettingsError, quoted
from torchbeats.extras import require
from torchbeats.files import refuse_existing, refuse_inputs
from torchbeats.loading import load
from torchbeats.model import BEATs
from torchbeats.plans import BATCH_SECONDS
from torchbeats.protocol import Model
from torchbeats.tables.events import check_events, class_thresholds
from torchbeats.tables.events import events as merged
from torchbeats.tables.reading import Table
from torchbeats.tables.scoring import fitted_window, is_table, scored_groups
from torchbeats.tables.tags import FORMATS, NAMED, ending_of
from torchbeats.tagging import TOP, check_choice, score_plan
from torchbeats.weights import hub

PICTURE = ".png"
ENDINGS = {**{ending: form.about for ending, form in FORMATS.items()}, PICTURE: "picture"}
TIMELINES = [*(ending for ending, form in FORMATS.items() if form.one_recording), PICTURE]  # of one recording each
STRETCHES = [*(ending for ending, form in FORMATS.items() if form.stretches), PICTURE]
EVERY_SECONDS = 1.0  # of a timeline's row in these, and of events, where not given
TRACK_THRESHOLD = 0.5  # likewise, but for pictures


EVENTS = "Events"  # how these options are grouped in the help


Format = Enum("Format", {name: name for name in (TABLE, *NAMED)}, type=str)  # type: ignore[misc]


def tag(
    inputs: Inputs,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            rich_help_panel=MODEL,
            help=f"A fine-tuned model. {NAMES} Default: the built-in {hub.BUILT_IN_TAGGER}.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            rich_help_panel=OUTPUT,
            help=f"File to write. {'; '.join(f'{ending}: {about}' for ending, about in ENDINGS.items())}. "
            f"{' and '.join(TIMELINES)} are timelines of one recording. Default: standard output.",
        ),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            metavar="FORMAT",  # all names in one word would be broken anywhere
            rich_help_panel=OUTPUT,
            help=f"{', '.join(name.value for name in Format)}; whatever the output is called. On standard output json "
            "is one object per line. Default: by the output's ending; on standard output a table on a terminal, "
            "otherwise json.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, rich_help_panel=OUTPUT, help="Most labels per row.")] = TOP,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            rich_help_panel=OUTPUT,
            help=f"Smallest probability of a label. Default: 0; {TRACK_THRESHOLD} in {', '.join(STRETCHES[:-1])}; of "
            f"events what each class was fitted with by `torchbeats fit`, otherwise {TRACK_THRESHOLD}.",
        ),
    ] = None,
    unknown: Annotated[
        bool,
        typer.Option(
            "--unknown/--no-unknown",
            rich_help_panel=OUTPUT,
            help="Call a row unknown that is less familiar than the model's file asks for; without, the likeliest "
            "labels of every row. Files that ask for nothing know no unknown.",
        ),
    ] = True,
    events: Annotated[
        bool,
        typer.Option(
            "--events",
            rich_help_panel=EVENTS,
            help="Write events instead of rows: for each class the stretches in which all rows reach its threshold, "
            "with their peak and mean probability. --top does not matter.",
        ),
    ] = False,
    min_gap: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            rich_help_panel=EVENTS,
            help="Merge events of a class with less than this time between them.",
        ),
    ] = 0.0,
    min_length: Annotated[
        float,
        typer.Option(metavar="SECONDS", rich_help_panel=EVENTS, help="Drop shorter events, after merging."),
    ] = 0.0,
    every: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            rich_help_panel=WINDOWS,
            help="Make a timeline with one row every so many seconds. Default: one row per file, the mean over its "
            f"windows; {EVERY_SECONDS:g} for events, {', '.join(STRETCHES)}.",
        ),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            rich_help_panel=WINDOWS,
            help="Length of the windows in seconds; in a timeline, each lies around the middle of its row. Default: "
            "10; in a timeline the same as --every, but at least 2.",
        ),
    ] = None,
    views: Views = 1,
    batch_seconds: BatchSeconds = BATCH_SECONDS,
    engine: Engine = None,
    device: Device = "auto",
    jobs: Jobs = None,
    follow_links: FollowLinks = False,
    overwrite: Overwrite = False,
    ray: Ray = None,
    actors: Actors = None,
) -> None:
    """Name what sounds contain: the most likely labels of each sound, or of each second of a recording.

    In place of sounds, a table that `torchbeats embed` wrote can be given with a model that `torchbeats fit` made of
    it: its windows are scored without reading any sound; with --every, one row per window.

    Rows have path, start and end (seconds), and labels with their probabilities; CSV has one label per row. Rows are
    written as they are computed, and a recording may have any length. A file that cannot be read is reported and left
    out; the exit status is then 1.
    """
    ending = _ending(output, form)
    _check_output(output, ending, inputs, overwrite)
    if (events or ending in STRETCHES) and every is None:
        every = EVERY_SECONDS
    fitted = events and threshold is None
    if threshold is None:
        threshold = TRACK_THRESHOLD if events or (ending in STRETCHES and ending != PICTURE) else 0.0
    check_choice(top, threshold)
    check_events(min_gap, min_length)
    check_actors(ray, actors)
    table = Table(inputs[0]) if len(inputs) == 1 and is_table(inputs[0]) else None
    model = or_built_in(model, hub.BUILT_IN_TAGGER, hub.BUILT_IN_TAGGER_NOTE)
    head = None if table is None else load(model, device=device, expect=BEATs)
    network = head or load(model, engine=engine and engine.value, device=device)
    if window is None and every is None:
        window = fitted_window(network)
    plan = score_plan(every, window, batch_seconds, views)
    plan.check(network)
    sounds = [] if table is not None else find_sounds(inputs, follow_links=follow_links)
    _check_inputs(output, ending, [*inputs, *(sound.path for sound in sounds)], len(sounds))
    naming = Naming(network, unknown)
    tagging = TagRun(
        sounds,
        network,
        plan,
        naming,
        len(naming.names) if events else top,
        _thresholds(network, naming.classes, threshold) if fitted else threshold,
        jobs,
        None if head is None or table is None else scored_groups(table, head),
        events=partial(merged, min_gap=min_gap, min_length=min_length) if events else None,
    )
    with nullcontext() if ray is None else tagging.on_ray(output, model, ray, actors, engine and engine.value, device):
        if output is None:
            tagging.print(None if form is None else form.value, by_file=every is None)
        elif ending == PICTURE:
            assert every is not None
            tagging.draw(output, every)
        else:
            tagging.write(output, ending)
    if tagging.failed:
        raise typer.Exit(2 if tagging.failed == len(sounds) else 1)


def _ending(output: Path | None, form: Format | None) -> str:
    """The ending that stands for the format of the results; none for the table, and what standard output has."""
    if form is not None and (form.value != TABLE or output is not None):
        if form.value == TABLE:
            raise SettingsError("A table is for standard output; choose another --format for a file.")
        return NAMED[form.value]
    return "" if output is None else ending_of(output.name, ENDINGS) or output.suffix.lower()


def _thresholds(network: Model, names: list[str], default: float) -> Floats:
    """The threshold that each class was fitted with; a note names classes without one."""
    thresholds, without = class_thresholds(network, names, default)
    if 0 < len(without) < len(names):
        complain(f"No threshold was fitted for {quoted(without)}: {default:g} is used.", "Note")
    return thresholds


def _check_output(output: Path | None, ending: str, inputs: list[str], overwrite: bool) -> None:
    """Say what is wrong with the output before anything is computed."""
    if output is None:
        return
    if ending not in ENDINGS:
        raise SettingsError(f"The output must be named {', '.join(FORMATS)} or {PICTURE}; {output} is not.")
    if output.is_dir():
        raise SettingsError(f"{output} is a folder; name a file.")
    refuse_inputs([output], inputs)
    refuse_existing(output, overwrite)
    if ending == PICTURE:
        require("matplotlib", "plots")


def _check_inputs(output: Path | None, ending: str, paths: list[str], sounds: int) -> None:
    """Say where an output would replace an input, or cannot hold them all."""
    if output is not None:
        refuse_inputs([output], paths)
    if sounds > 1 and ending in TIMELINES:
        raise SettingsError(
            f"A {ending} file ({ENDINGS[ending]}) is of one recording, and the inputs name {sounds:,}. Make one for "
            "each, or use .csv, .jsonl or .raven.txt for all of them."
        )

"""``torchbeats tag``: sounds → what is to be heard in them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from torchbeats.audio import Floats
from torchbeats.cli.console import audio_progress, complain, for_terminal, remark, skipped
from torchbeats.cli.tables import (
    MODEL,
    NAMES,
    OUTPUT,
    WINDOWS,
    BatchSeconds,
    Device,
    Engine,
    FollowLinks,
    Inputs,
    Jobs,
    Overwrite,
    Views,
)
from torchbeats.data.annotations.annotation import Annotation
from torchbeats.data.inputs import Piece, find_sounds
from torchbeats.errors import SettingsError, quoted
from torchbeats.extras import require
from torchbeats.files import readable, refuse_inputs, replacing
from torchbeats.inference import Group, Progress, groups
from torchbeats.labels import class_names
from torchbeats.loading import load
from torchbeats.model import BEATs
from torchbeats.plans import BATCH_SECONDS, ScorePlan
from torchbeats.plots import timeline
from torchbeats.protocol import PROBABILITIES, Model
from torchbeats.tables.events import check_events, class_thresholds
from torchbeats.tables.events import events as merged
from torchbeats.tables.reading import Table
from torchbeats.tables.scoring import fitted_window, is_table, scored_groups
from torchbeats.tables.tags import FORMATS, NAMED, ending_of, write_event_table, write_table
from torchbeats.tagging import TOP, Tags, check_choice, likeliest, score_plan, scored, tags
from torchbeats.weights import hub

PICTURE = ".png"
ENDINGS = {**{ending: form.about for ending, form in FORMATS.items()}, PICTURE: "picture"}
TIMELINES = [*(ending for ending, form in FORMATS.items() if form.one_recording), PICTURE]  # of one recording each
STRETCHES = [*(ending for ending, form in FORMATS.items() if form.stretches), PICTURE]
EVERY_SECONDS = 1.0  # of a timeline's row in these, and of events, where not given
TRACK_THRESHOLD = 0.5  # likewise, but for pictures


EVENTS = "Events"  # how these options are grouped in the help


class Format(str, Enum):
    """How results are written where no file's name tells."""

    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    audacity = "audacity"
    raven = "raven"
    kaleidoscope = "kaleidoscope"
    birdnet = "birdnet"


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
            rich_help_panel=OUTPUT,
            help="Format, whatever the output is called. On standard output json is one object per line. Default: by "
            "the output's ending; on standard output a table on a terminal, otherwise json.",
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
    table = Table(inputs[0]) if len(inputs) == 1 and is_table(inputs[0]) else None
    if model is None:
        complain(hub.BUILT_IN_TAGGER_NOTE, "Note")
        model = hub.BUILT_IN_TAGGER
    head = None if table is None else load(model, device=device, expect=BEATs)
    network = head or load(model, engine=engine and engine.value, device=device)
    if window is None and every is None:
        window = fitted_window(network)
    plan = score_plan(every, window, batch_seconds, views)
    plan.check(network)
    sounds = [] if table is not None else find_sounds(inputs, follow_links=follow_links)
    _check_inputs(output, ending, [*inputs, *(sound.path for sound in sounds)], len(sounds))
    names = class_names(network.label_dict, network.outputs[PROBABILITIES].shape[0])
    work = _Work(
        sounds,
        network,
        plan,
        names,
        len(names) if events else top,
        _thresholds(network, names, threshold) if fitted else threshold,
        jobs,
        None if head is None or table is None else scored_groups(table, head),
        events=partial(merged, min_gap=min_gap, min_length=min_length) if events else None,
    )
    if output is None:
        work.print(form, by_file=every is None)
    elif ending == PICTURE:
        assert every is not None
        work.draw(output, every)
    else:
        work.write(output, ending)
    if work.failed:
        raise typer.Exit(1)


def _ending(output: Path | None, form: Format | None) -> str:
    """The ending that stands for the format of the results; none for the table, and what standard output has."""
    if form is not None and (form is not Format.table or output is not None):
        if form is Format.table:
            raise SettingsError("A table is for standard output; choose another --format for a file.")
        return NAMED[form.value]
    return "" if output is None else ending_of(output.name, ENDINGS) or output.suffix.lower()


def _thresholds(network: Model, names: list[str], default: float) -> Floats:
    """What each class was fitted with; of classes without a threshold it is told."""
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
    if output.exists() and not overwrite:
        raise SettingsError(f"{output} exists; use --overwrite to replace it.")
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


@dataclass
class _Work:
    """What is to be tagged, and how."""

    sounds: list[Piece]
    network: Model
    plan: ScorePlan
    names: list[str]
    top: int
    threshold: float | Floats
    jobs: int | None
    stored: Iterator[Group] | None = None  # of a table, in place of sounds
    failed: int = 0
    events: Callable[[Iterable[Tags]], Iterator[Annotation]] | None = None

    def print(self, form: Format | None, by_file: bool) -> None:
        """Write to standard output."""
        out = sys.stdout
        terminal = out.isatty()
        if isinstance(out, io.TextIOWrapper):  # a label that a terminal cannot show must not end the run
            out.reconfigure(encoding=None if terminal else "utf-8", errors="replace")
        form = form or (Format.table if terminal else Format.json)
        ending = NAMED["jsonl" if form is Format.json else form.value] if form is not Format.table else ""
        if self.events is not None:
            write_events = FORMATS[ending].write_events if ending else write_event_table
            texts = write_events(self.events(self._tags()))
        else:
            texts = (FORMATS[ending].write if ending else partial(write_table, by_file=by_file))(self._tags())
        for text in texts:
            out.write(for_terminal(text))
            out.flush()

    def write(self, output: Path, ending: str) -> None:
        """Write a text file."""
        count, text_format = 0, FORMATS[ending]

        def counted(rows: Iterable[Tags]) -> Iterator[Tags]:
            nonlocal count
            for row in rows:
                count += len(row.labels)
                yield row

        def texts(rows: Iterable[Tags]) -> Iterator[str]:
            return text_format.write(rows) if self.events is None else text_format.write_events(self.events(rows))

        with (
            replacing(output) as temporary,
            temporary.open("w", encoding="utf-8", newline="\n") as file,
            audio_progress(len(self.sounds), 0) as progress,
        ):
            file.writelines(texts(counted(self._tags(progress))))
        if not count and (self.stored is not None or self.failed < len(self.sounds)):
            limit = f"of {self.threshold:g}" if isinstance(self.threshold, float) else "as high as its threshold"
            complain(f"No label has a probability {limit}; try a lower --threshold.", "Note")
        files = f"{len(self.sounds) - self.failed:,} of {len(self.sounds):,} files"
        content = "labels" if self.events is None else "events"
        remark(f"{output}: {content} of {files if self.stored is None else 'stored windows'}.")

    def draw(self, output: Path, every: float) -> None:
        """Draw a picture of the one recording."""
        picture = timeline.Timeline(self.names, every)
        with audio_progress(len(self.sounds), 0) as progress:
            rows = scored(self._groups(progress), self.plan)
            if self.events is None:
                for row in rows:
                    picture.add(row.end, row.probabilities, likeliest(row.probabilities, self.top, self.threshold))
            else:
                drawn = picture.observe(rows)
                for event in self.events(tags(drawn, self.names, self.top, self.threshold)):
                    picture.mark(event)
        if picture.end:  # else there is nothing to draw
            picture.spectrogram.read(self.sounds[0])
            with replacing(output) as temporary:
                picture.draw(temporary, readable(os.path.basename(self.sounds[0].path)))
            remark(f"{output}: a picture of {picture.end:,.1f} s.")

    def _tags(self, progress: Progress | None = None) -> Iterator[Tags]:
        return tags(scored(self._groups(progress), self.plan), self.names, self.top, self.threshold)

    def _groups(self, progress: Progress | None) -> Iterator[Group]:
        if self.stored is not None:
            yield from self.stored
            return
        pairs = [(sound.path, sound) for sound in self.sounds]
        for group in groups(pairs, self.network, self.plan, jobs=self.jobs, progress=progress):
            for failure in group.failures:
                skipped(*failure)
            self.failed += len(group.failures)
            yield group

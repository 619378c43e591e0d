"""``torchbeats tag``: sounds → what is to be heard in them."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from torchbeats.cli.console import audio_progress, complain, remark
from torchbeats.cli.tables import NAMES, BatchSeconds, Device, Engine, Inputs, Jobs, Views, device_called, opened
from torchbeats.data.inputs import find_audio
from torchbeats.extras import require
from torchbeats.files import replacing
from torchbeats.inference import Group, Listener, groups
from torchbeats.plans import BATCH_SECONDS, ScorePlan
from torchbeats.plots import timeline
from torchbeats.tagging import (
    TOP,
    Tags,
    check_choice,
    class_names,
    likeliest,
    plan_for,
    regions,
    scored,
    tags,
)
from torchbeats.weights import hub

Text: TypeAlias = Callable[[Iterable[Tags]], Iterator[str]]

EVERY_SECONDS = 1.0  # of a track or a picture, where not given
TRACK_THRESHOLD = 0.5  # likewise
BAR = 20  # characters


class Format(str, Enum):
    """What standard output gets."""

    table = "table"
    json = "json"
    csv = "csv"


def tag(
    inputs: Inputs,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=f"One that was fine-tuned. {NAMES} Default: {hub.BUILT_IN_TAGGER}, built in.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help=".csv; .json or .jsonl; .txt, a label track for Audacity; .png, a picture. The last two are timelines "
            "of one recording. Default: standard output.",
        ),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format", help="For standard output. Default: a table on a terminal, else JSON, an object a line."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Labels in a row, at most.")] = TOP,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help=f"The probability that a label must have. Default: 0; {TRACK_THRESHOLD} in a label track.",
        ),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(
            help="A timeline: a row every so many seconds. Default: a row a file, the mean over its windows; "
            f"{EVERY_SECONDS:g} for a label track or a picture."
        ),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            help="Seconds of audio that the model sees at once; in a timeline, those around a row's middle. Default: "
            "10; in a timeline as --every, but at least 2."
        ),
    ] = None,
    views: Views = 1,
    batch_seconds: BatchSeconds = BATCH_SECONDS,
    engine: Engine = None,
    device: Device = "auto",
    jobs: Jobs = None,
) -> None:
    """Say what is to be heard: the likeliest labels of each sound, or of each second of a recording.

    Rows have path, start and end (seconds), and labels with their probabilities; in CSV a row has one label. They are
    written as they come, and a recording may have any length. A file that cannot be read is reported and left out, and
    the exit status is 1.
    """
    ending = output.suffix.lower() if output else ""
    try:
        if output and ending not in (*_TEXTS, ".png"):
            raise ValueError(f"The output must be named .csv, .json, .jsonl, .txt or .png; {output} is not.")
        if output and form:
            raise ValueError("--format is for standard output; the output's ending says how it is written.")
        if output and output.is_dir():
            raise ValueError(f"{output} is a folder; name a file.")
        if ending == ".png":
            require("matplotlib", "plots")
        if ending in (".txt", ".png") and every is None:
            every = EVERY_SECONDS
        if threshold is None:
            threshold = TRACK_THRESHOLD if ending == ".txt" else 0.0
        check_choice(top, threshold)
        plan = plan_for(every, window, batch_seconds, views)
        device_called(device)
    except (ValueError, RuntimeError, AssertionError) as error:  # PyTorch asserts that it has CUDA
        raise typer.BadParameter(str(error)) from error
    paths = find_audio(inputs)
    if output and _is_among(output, [*inputs, *paths]):
        raise typer.BadParameter(f"The output {output} is one of the inputs; name another.")
    if output and ending in (".txt", ".png") and len(paths) > 1:
        kind = "label track" if ending == ".txt" else "picture"
        raise typer.BadParameter(
            f"A {kind} is of one recording, and the inputs name {len(paths):,}. Make one for each, or use .csv or "
            ".jsonl for all of them."
        )
    if model is None:
        complain(hub.BUILT_IN_TAGGER_NOTE, "Note")
        model = hub.BUILT_IN_TAGGER
    network, _ = opened(hub.resolve(model), engine, device)
    try:
        plan.check(network)
    except ValueError as error:
        raise typer.BadParameter(f"{model}: {error}") from error

    work = _Work(paths, network, plan, class_names(network), top, threshold, jobs)
    if output is None:
        work.print(form, by_file=every is None)
    elif ending == ".png":
        assert every is not None
        work.draw(output, every)
    else:
        work.write(output)
    if work.failed:
        raise typer.Exit(1)


@dataclass
class _Work:
    """What is to be tagged, and how."""

    paths: list[str]
    network: Any
    plan: ScorePlan
    names: list[str]
    top: int
    threshold: float
    jobs: int | None
    failed: int = 0

    def print(self, form: Format | None, by_file: bool) -> None:
        """Write to standard output."""
        out = sys.stdout
        terminal = out.isatty()
        if isinstance(out, io.TextIOWrapper):  # a label that a terminal cannot show must not end the run
            out.reconfigure(encoding=None if terminal else "utf-8", errors="replace")
        texts: dict[Format, Text] = {
            Format.table: partial(_table, by_file=by_file),
            Format.json: _jsonl,
            Format.csv: _csv,
        }
        write = texts[form or (Format.table if terminal else Format.json)]
        for text in write(self._tags()):
            out.write(text)
            out.flush()

    def write(self, output: Path) -> None:
        """Write a text file."""
        said = 0

        def counted(rows: Iterable[Tags]) -> Iterator[Tags]:
            nonlocal said
            for row in rows:
                said += len(row.labels)
                yield row

        with (
            replacing(output) as temporary,
            temporary.open("w", encoding="utf-8", newline="\n") as file,
            audio_progress(len(self.paths), 0) as listener,
        ):
            file.writelines(_TEXTS[output.suffix.lower()](counted(self._tags(listener))))
        if not said and self.failed < len(self.paths):
            complain(f"No label has a probability of {self.threshold:g}; try a lower --threshold.", "Note")
        remark(f"{output}: labels of {len(self.paths) - self.failed:,} of {len(self.paths):,} files.")

    def draw(self, output: Path, every: float) -> None:
        """Draw a picture of the one recording."""
        picture = timeline.Timeline(self.names, every)
        self.plan = timeline.HeardPlan(
            every,
            window=self.plan.window,
            batch_seconds=self.plan.batch_seconds,
            views=self.plan.views,
            hear=picture.spectrogram.add,
        )
        with audio_progress(len(self.paths), 0) as listener:
            for row in scored(self._groups(listener), self.plan):
                picture.add(row.end, row.probabilities, likeliest(row.probabilities, self.top, self.threshold))
        if picture.end:  # else there is nothing to draw
            with replacing(output) as temporary:
                picture.draw(temporary, _readable(os.path.basename(self.paths[0])))
            remark(f"{output}: a picture of {picture.end:,.1f} s.")

    def _tags(self, listener: Listener | None = None) -> Iterator[Tags]:
        return tags(scored(self._groups(listener), self.plan), self.names, self.top, self.threshold)

    def _groups(self, listener: Listener | None) -> Iterator[Group]:
        sounds = [(path, path) for path in self.paths]
        for group in groups(sounds, self.network, self.plan, jobs=self.jobs, listener=listener):
            for path, reason in group.failures:
                complain(f"{path}: {reason}.", "Skipped")
            self.failed += len(group.failures)
            yield group


def _is_among(output: Path, inputs: Iterable[str]) -> bool:
    if not output.exists():
        return False
    for given in inputs:
        with suppress(OSError):  # it is for the reader to say that there is no such input
            if os.path.samefile(output, given):
                return True
    return False


# --- rows to text -----------------------------------------------------------------------------------------------------


def _readable(path: str) -> str:
    """A file's name need not be UTF-8; what is written must be."""
    return os.fsencode(path).decode("utf-8", "replace")


def _object(row: Tags) -> str:
    labels = [{"label": label, "probability": round(probability, 6)} for label, probability in row.labels]
    return json.dumps(
        {"path": _readable(row.path), "start": row.start, "end": row.end, "labels": labels}, ensure_ascii=False
    )


def _jsonl(rows: Iterable[Tags]) -> Iterator[str]:
    return (f"{_object(row)}\n" for row in rows)


def _json(rows: Iterable[Tags]) -> Iterator[str]:
    """One array, with an object a line."""
    before = "[\n"
    for row in rows:
        yield before + _object(row)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _csv(rows: Iterable[Tags]) -> Iterator[str]:
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    writer.writerow(("path", "start", "end", "label", "probability"))
    yield line.getvalue()
    for row in rows:
        line.seek(0)
        line.truncate()
        for label, probability in row.labels:
            writer.writerow((_readable(row.path), row.start, row.end, label, f"{probability:.6f}"))
        yield line.getvalue()


def _track(rows: Iterable[Tags]) -> Iterator[str]:
    """A label track as Audacity imports it."""
    return (f"{start:.6f}\t{end:.6f}\t{_plain(label)}\n" for start, end, label in regions(rows))


def _table(rows: Iterable[Tags], by_file: bool) -> Iterator[str]:
    """For a person: a line a label below each file's name, or a line a row of its timeline."""
    path = None
    for row in rows:
        if by_file or row.path != path:
            path = row.path
            yield _plain(_readable(path)) + (f"  {row.end:,.1f} s" if by_file else "") + "\n"
        if by_file:
            for label, probability in row.labels:
                yield f"  {probability:.3f}  {'█' * round(BAR * probability):<{BAR}}  {_plain(label)}\n"
        else:
            labels = ", ".join(f"{_plain(label)} {probability:.3f}" for label, probability in row.labels)
            yield f"  {_clock(row.start):>9} – {_clock(row.end):>9}  {labels}\n"
        if by_file and not row.labels:
            yield "  no label reaches the threshold\n"


def _clock(seconds: float) -> str:
    hundredths = round(100 * seconds)
    return f"{hundredths // 6000}:{hundredths % 6000 / 100:05.2f}"


def _plain(text: str) -> str:
    """On one line, and nothing in it that a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


_TEXTS: dict[str, Text] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".txt": _track,
}

"""What ``torchbeats tag`` does once its options are known: rows or events to standard output, a file or a picture."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torchbeats.abstention import Naming, Scored
from torchbeats.audio import Floats
from torchbeats.cli.console import (
    audio_progress,
    complain,
    files,
    for_terminal,
    none_read,
    remark,
    skipped,
    whole_words,
    working,
)
from torchbeats.cli.tables import display
from torchbeats.data.annotations.annotation import Annotation
from torchbeats.data.inputs import Piece
from torchbeats.distributed.running import computed_on_ray
from torchbeats.errors import InputError, SettingsError
from torchbeats.files import readable, replacing
from torchbeats.inference import Group, Progress, groups
from torchbeats.plans import ScorePlan
from torchbeats.plots import timeline
from torchbeats.protocol import Model
from torchbeats.tables.tags import FORMATS, NAMED, write_event_table, write_table
from torchbeats.tagging import Tags, likeliest, scored, tags

TABLE = "table"  # for a terminal; no file has this format
LABELS_FROM = len("    0:00.00 –   0:01.00  ")  # where a line of it has its labels


@dataclass
class TagRun:
    """What is to be tagged, and how; `print`, `write` and `draw` do it.

    Attributes:
        sounds: that are read; none where ``stored`` gives the rows.
        network: the model.
        plan: how sounds are cut into rows.
        naming: what rows are called.
        top: most labels of a row.
        threshold: smallest probability of a label: one for all classes, or one for each.
        jobs: threads that decode.
        stored: rows of a table, in place of sounds.
        failed: number of sounds that could not be read.
        events: merges rows into events; None where rows are written.
        computed: rows that a cluster has computed of the sounds.
    """

    sounds: list[Piece]
    network: Model
    plan: ScorePlan
    naming: Naming
    top: int
    threshold: float | Floats
    jobs: int | None
    stored: Iterator[Group] | None = None
    failed: int = 0
    events: Callable[[Iterable[Tags]], Iterator[Annotation]] | None = None
    computed: Iterator[Group] | None = None

    @contextmanager
    def on_ray(
        self, output: Path | None, model: str, address: str, actors: int | None, engine: str | None, device: str
    ) -> Iterator[None]:
        """Let a Ray cluster compute; what is done within is made of its results."""
        if output is None or self.stored is not None:
            raise SettingsError(
                "With --ray, sounds are tagged, and --output names a file whose folder all machines can write to."
            )
        with computed_on_ray(
            self.sounds,
            output,
            model,
            self.plan,
            address=address,
            actors=actors,
            engine=engine,
            device=device,
            jobs=self.jobs,
            display=display,
            on_failure=skipped,
        ) as (self.computed, self.failed):
            yield

    def print(self, form: str | None, by_file: bool) -> None:
        """Write to standard output; JSON as an object a line.

        Args:
            form: a name of `NAMED`, or `TABLE`; where not given, a table on a terminal and JSON elsewhere.
            by_file: a row is a whole file, rather than one of its timeline.
        """
        out = sys.stdout
        terminal = out.isatty()
        if isinstance(out, io.TextIOWrapper):  # a label that a terminal cannot show must not end the run
            out.reconfigure(encoding=None if terminal else "utf-8", errors="replace")
        form = form or (TABLE if terminal else "json")
        ending = "" if form == TABLE else NAMED["jsonl" if form == "json" else form]
        if self.events is not None:
            write_events = FORMATS[ending].write_events if ending else write_event_table
            texts = write_events(self.events(self._tags()))
        else:
            texts = (FORMATS[ending].write if ending else partial(write_table, by_file=by_file))(self._tags())
        for text in map(for_terminal, texts):
            out.write(whole_words(text, LABELS_FROM) if terminal and form == TABLE else text)
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
            audio_progress(len(self.sounds), 0) if self._ready is None else working(output.name) as progress,
        ):
            file.writelines(texts(counted(self._tags(progress))))
            if self.sounds and self.failed == len(self.sounds):
                raise InputError(f"{none_read(self.failed)}, so {output} is not written.")
        if not count:
            limit = f"of {self.threshold:g}" if isinstance(self.threshold, float) else "as high as its threshold"
            complain(f"No label has a probability {limit}; try a lower --threshold.", "Note")
        done = f"{len(self.sounds) - self.failed:,} of {files(len(self.sounds))}"
        content = "labels" if self.events is None else "events"
        remark(f"{output}: {content} of {done if self.stored is None else 'stored windows'}.")

    def draw(self, output: Path, every: float) -> None:
        """Draw a picture of the one recording."""
        picture = timeline.Timeline(self.naming.names, every)
        thresholds = self.naming.thresholds(self.threshold)
        with audio_progress(len(self.sounds), 0) as progress:
            rows = self._rows(progress)
            if self.events is None:
                for row in rows:
                    picture.add(row.end, row.probabilities, likeliest(row.probabilities, self.top, thresholds))
            else:
                for event in self.events(tags(picture.observe(rows), self.naming.names, self.top, thresholds)):
                    picture.mark(event)
        if picture.end:  # else there is nothing to draw
            picture.spectrogram.read(self.sounds[0])
            with replacing(output) as temporary:
                picture.draw(temporary, readable(os.path.basename(self.sounds[0].path)))
            remark(f"{output}: a picture of {picture.end:,.1f} s.")

    @property
    def _ready(self) -> Iterator[Group] | None:
        """Rows for which no sound need be read here."""
        return self.stored or self.computed

    def _tags(self, progress: Progress | None = None) -> Iterator[Tags]:
        thresholds = self.naming.thresholds(self.threshold)
        return tags(self._rows(progress), self.naming.names, self.top, thresholds)

    def _rows(self, progress: Progress | None) -> Iterator[Scored]:
        return self.naming.judged(scored(self._groups(progress), self.plan))

    def _groups(self, progress: Progress | None) -> Iterator[Group]:
        if self._ready is not None:
            yield from self._ready
            return
        pairs = [(sound.path, sound) for sound in self.sounds]
        for group in groups(pairs, self.network, self.plan, jobs=self.jobs, progress=progress):
            for failure in group.failures:
                skipped(*failure)
            self.failed += len(group.failures)
            yield group

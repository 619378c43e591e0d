"""A table of many sounds, made by a run that can be stopped and goes on where it was."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from torchbeats.audio import AudioWarning
from torchbeats.data.fingerprint import fingerprint, state
from torchbeats.data.inputs import Piece, described, distinct, iterate_sounds
from torchbeats.data.listing import Listing
from torchbeats.errors import SettingsError
from torchbeats.files import refuse_inputs, sha256
from torchbeats.inference import OnFailure, Position, Progress, groups
from torchbeats.loading import exported_layer, load, ready
from torchbeats.plans import Plan, plan_for
from torchbeats.protocol import Model
from torchbeats.version import __version__
from torchbeats.weights import hub

# Opens a progress display. It is given a function that tells the number of sounds, which is None until all have been
# listed, and the number of those that an earlier run has finished.
Display = Callable[[Callable[[], int | None], int], AbstractContextManager[Progress | None]]

LIST_SECONDS = 0.5  # at the start: few inputs are listed whole, and what is wrong with them is said, before any work
LIST_SHARE = 0.1  # of the time after that, until all inputs are listed


class TableResult(NamedTuple):
    """What became of a run.

    Attributes:
        path: of the table, text where it is a URL; there is none where not one sound could be read.
        errors: list of the sounds that could not be read, a JSON object a line; None where all could be.
        sounds: number of inputs.
        failures: how many of them could not be read, in whole or in part.
        rows: written by this run; those of an earlier one, which it continued, apart.
        seconds: that this run took.
        continued: number of sounds that an earlier run had finished.
        complete: the table was there already, and nothing was done.
        kept: by an update, number of sounds whose rows stayed.
        dropped: by an update, number of sounds whose old rows went, since they have changed or are gone.
    """

    path: Path | str
    errors: Path | str | None
    sounds: int
    failures: int
    rows: int
    seconds: float
    continued: int
    complete: bool
    kept: int = 0
    dropped: int = 0


def write_table(
    inputs: str | os.PathLike[str] | Piece | Iterable[str | os.PathLike[str] | Piece],
    out: str | os.PathLike[str],
    model: Model | str | os.PathLike[str] | None = None,
    plan: Plan | None = None,
    *,
    engine: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    jobs: int | None = None,
    overwrite: bool = False,
    update: bool = False,
    follow_links: bool = False,
    display: Display = lambda total, done: nullcontext(),
    on_failure: OnFailure | None = None,
) -> TableResult:
    """Write a table with rows of many sounds; a run that was stopped goes on when it is called with the same again.

    Args:
        inputs: files, folders, lists, URLs and WebDataset shards, as for `embed`.
        out: the table, ``.parquet``, ``.npz`` or ``.lance``. It appears whole, or not at all.
        model: one, or what `load` takes; None for the small built-in one.
        plan: what a row is: an `EmbeddingPlan`, a `TokenPlan` or a `ScorePlan`. Where not given, tokens from a
            tokenizer and mean embeddings from any other model.
        engine: of a model that is loaded by name; see `load`.
        device: where to compute; see `embed`.
        dtype: to compute in; see `embed`.
        jobs: threads that decode; up to four where not given.
        overwrite: replace a table that is there.
        update: if a table with the same settings is there, compute only sounds that were added or changed since (by
            size and time of change) and those that could not be read, and drop the rows of those that are gone. The old
            table stays until the new one is complete; an update that was stopped goes on when it is called again.
        follow_links: search the folders as well that links in a folder lead to, each once.
        display: opens a progress display; called with a function that tells the number of sounds, or None until all
            are listed, and with how many are done.
        on_failure: told of each sound that cannot be read, and why; an `AudioWarning` where not given.

    Returns:
        A `TableResult`.

    Raises:
        InputError: inputs that name no sounds.
        ModelError: a model that does not give what the plan asks for.
        SettingsError: a setting that makes no sense.
        StoreError: the table cannot be written there, or a run with other settings has begun it.
    """
    from torchbeats.tables.store import output_files  # pyarrow takes longer to import than all of this package

    started = time.monotonic()
    if update and overwrite:
        raise SettingsError("A table is either updated or overwritten.")
    sounds_list = [inputs] if isinstance(inputs, (str, os.PathLike, Piece)) else list(inputs)
    refuse_inputs(output_files(out), [one for one in sounds_list if not isinstance(one, Piece)])
    sounds = Listing(no_outputs(sounds_of(sounds_list, follow_links), output_files(out)))
    sounds.advance(LIST_SECONDS)
    network, name, weights = opened(model, plan, engine, device, dtype)
    plan = plan or plan_for(network)
    plan.check(network)
    if update and plan.row(network).per == "file":
        raise SettingsError("A table with a row a file cannot be updated; overwrite it.")
    about = settings_of(network, plan, name, weights, dtype)
    run = _Run(Path(out), plan, network, about, sounds, overwrite, update)
    on_failure = on_failure or partial(_warn, level=4)
    rows = 0 if run.store.complete else run.compute(jobs, display, on_failure)
    store, kept, dropped = run.store, *((run.update.kept, run.update.dropped) if run.update else (0, 0))
    errors = store.errors if store.failed else None
    seconds = time.monotonic() - started
    total = sounds.total or 0
    if not (rows or run.continued or update) and store.failed == total:
        _remove(store.out)  # a table of nothing would pass for a result
    return TableResult(
        store.out, errors, total, store.failed, rows, seconds, run.continued, run.complete, kept, dropped
    )


def _remove(table: Path) -> None:
    if table.is_dir():
        shutil.rmtree(table)
    else:
        table.unlink(missing_ok=True)


def _warn(path: str, reason: str, level: int) -> None:
    warnings.warn(f"{path} was left out: {reason}.", AudioWarning, stacklevel=level)


class _Run:
    """What has to be computed, and where its results go.

    Attributes:
        store: of the results.
        update: what an update has to do; None for all other runs.
        continued: number of sounds that an earlier run had finished.
        complete: there is nothing to do.
    """

    def __init__(
        self,
        out: Path,
        plan: Plan,
        model: Model,
        about: dict[str, Any],
        sounds: Listing,
        overwrite: bool,
        update: bool,
    ) -> None:
        # pyarrow takes longer to import than all of this package
        from torchbeats.tables.formats import exists
        from torchbeats.tables.store import Store
        from torchbeats.tables.updating import Update

        self.plan, self.model, self.sounds = plan, model, sounds
        self.update = Update(out, about, sounds) if update and exists(out) else None
        if self.update is not None:
            self.sounds = self.update.changed
        base = None if self.update is None else self.update.base
        self.store = Store(out, plan.row(model), about, overwrite, base)
        if self.store.complete:
            self.store.check_complete(fingerprint(sounds))
        elif self.update is not None and not self.update.is_needed():
            self.store.nothing_to_do()
        elif self.store.position != Position():
            done = self.store.position.inputs + bool(self.store.position.windows)
            self.store.continue_with(state(sound) for sound in islice(self.sounds, done))
        self.complete, self.continued = self.store.complete, self.store.position.inputs

    def compute(self, jobs: int | None, display: Display, on_failure: OnFailure) -> int:
        """Compute what is left, and write the table; the number of rows that were computed."""
        store, rows = self.store, 0
        states = _States(self.sounds, store.position.inputs)
        with display(lambda: self.sounds.total, self.continued) as progress:
            listing = self._listing(progress)
            computed = groups(iter(states), self.model, self.plan, start=store.position, jobs=jobs, progress=listing)
            try:
                for group in computed:
                    rows += len(group.paths)
                    store.append(group, states.take(len(group.ended), bool(group.position.windows)))
                    for path, reason in group.failures:
                        on_failure(path, reason)
            except BaseException:
                store.keep()
                raise
        merge, inputs = (None, None) if self.update is None else (self.update.merge, self.update.inputs)
        store.finish(inputs, merge)
        return rows

    def _listing(self, progress: Progress | None) -> Progress:
        """A progress that lists the sounds, too, as the run goes on."""
        last = time.monotonic()

        def both(seconds: float, inputs: float) -> None:
            nonlocal last
            self.sounds.advance(LIST_SHARE * (time.monotonic() - last))
            last = time.monotonic()
            if progress is not None:
                progress(seconds, inputs)

        return both


class _States:
    """Sounds by name, and the states in which they were when they were handed out.

    Args:
        sounds: all of them.
        done: number of those whose states are not needed again.
    """

    def __init__(self, sounds: Iterable[Piece], done: int) -> None:
        self._sounds, self._done = sounds, done
        self._states: deque[bytes] = deque()

    def __iter__(self) -> Iterator[tuple[str, Piece]]:
        for number, sound in enumerate(self._sounds):
            if number >= self._done:
                self._states.append(state(sound))
            yield sound.path, sound

    def take(self, ended: int, under_way: bool) -> list[bytes]:
        """The states of the next inputs that are done, which are then dropped, and of the one being computed."""
        return [self._states.popleft() for _ in range(ended)] + ([self._states[0]] if under_way else [])


def no_outputs(sounds: Iterable[Piece], outputs: list[Path]) -> Iterator[Piece]:
    """The same; none of them may be what is written."""
    remaining = iter(sounds)
    while block := list(islice(remaining, 256)):
        refuse_inputs(outputs, (sound.path for sound in block))
        yield from block


def sounds_of(inputs: Iterable[str | os.PathLike[str] | Piece], follow_links: bool) -> Iterator[Piece]:
    """Pieces as they are, and what all else names; each once."""
    inputs = list(inputs)
    pieces = [piece for piece in inputs if isinstance(piece, Piece)]
    names = [piece for piece in inputs if not isinstance(piece, Piece)]
    if not pieces:
        return iterate_sounds(names, follow_links=follow_links)
    return distinct(chain(described(pieces), iterate_sounds(names, follow_links=follow_links) if names else ()))


def opened(
    model: Model | str | os.PathLike[str] | None,
    plan: Plan | None,
    engine: str | None,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
) -> tuple[Model, str, str]:
    """A model that is ready, what it is called, and a hash of its weights."""
    if model is None:
        warnings.warn(hub.BUILT_IN_NOTE, stacklevel=3)
        model = hub.BUILT_IN
    if not isinstance(model, (str, os.PathLike)):
        return ready(model, device, dtype), type(model).__name__, model.digest()
    path = hub.resolve(model)
    layer = exported_layer(engine, getattr(plan, "layer", None))
    loaded = load(path, engine=engine, device=device, dtype=dtype, layer=layer)
    return loaded, os.fspath(model), sha256(path)


def settings_of(model: Model, plan: Plan, name: str, weights: str, dtype: torch.dtype | None) -> dict[str, Any]:
    """All that the table depends on beside the inputs, which it carries in its metadata."""
    row = plan.row(model)
    return {
        "torchbeats": __version__,
        plan.model_is: name,
        "weights": f"sha256:{weights}",
        **plan.settings(model),
        "shape": list(row.shape),
        "dtype": str(dtype or torch.float32).removeprefix("torch."),
        "engine": model.engine,
    }

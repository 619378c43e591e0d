"""A table of many sounds, made by the machines of a Ray cluster; a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from torchbeats.audio import AudioWarning
from torchbeats.data.blocks import blocks_of
from torchbeats.data.fingerprint import Fingerprint, state
from torchbeats.data.inputs import Piece
from torchbeats.distributed import cluster
from torchbeats.distributed.computing import Block, Job
from torchbeats.errors import SettingsError, StoreError
from torchbeats.extras import require
from torchbeats.files import from_readable
from torchbeats.inference import Group, OnFailure, Position
from torchbeats.plans import Plan, plan_for
from torchbeats.remote import is_url
from torchbeats.tables import formats
from torchbeats.tables.formats import BEGINS, COMMON, METADATA_KEY, Content
from torchbeats.tables.parts import Parts, Summary, errors_of, part_name, write_errors
from torchbeats.tables.store import difference, output_files
from torchbeats.tables.unfinished import failure_lines
from torchbeats.tables.writing import Display, TableResult, no_outputs, opened, settings_of, sounds_of

SUFFIXES = (".parquet", ".lance")


def write_table_on_ray(
    inputs: str | os.PathLike[str] | Piece | Iterable[str | os.PathLike[str] | Piece],
    out: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    plan: Plan | None = None,
    *,
    address: str = cluster.AUTO,
    actors: int | None = None,
    engine: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    jobs: int | None = None,
    overwrite: bool = False,
    update: bool = False,
    follow_links: bool = False,
    display: Display = lambda total, done: nullcontext(),
    on_failure: OnFailure | None = None,
) -> TableResult:
    """Write the table that `torchbeats.write_table` writes, with the machines of a Ray cluster.

    Inputs are computed in blocks of up to 256, on one machine type with the very numbers that one machine alone gives,
    and each block becomes a part of the table. A run that is stopped, or whose machines are lost, goes on when this is
    called again: parts that are there are not computed again. A file at which the decoder's process crashes is one that
    cannot be read, like any other.

    Args:
        inputs: as for `write_table`; the machines must see the files under the same names.
        out: a folder of Parquet files named ``.parquet``, or a Lance dataset named ``.lance``; or a URL of such a one,
            for whatever fsspec opens. Rows are in the order of the inputs, if the files are read in the order of their
            names. All machines must be able to write there.
        model: a name, or a path that all machines see; the small built-in one where not given.
        plan: as for `write_table`.
        address: "auto" for the cluster that RAY_ADDRESS names or that runs on this machine, otherwise one as for
            "local", which is started here and ends with the run; or the host and port of a cluster.
        actors: processes that compute; as many as the cluster has GPUs, or else CPU cores, where not given.
        engine: see `load`.
        device: see `load`.
        dtype: see `load`.
        jobs: threads that decode, for each actor; one where not given.
        overwrite: replace what is there of other inputs or with other settings; parts that are the same stay.
        update: if inputs were added, changed or removed, compute the blocks that differ, and drop those that are gone.
        follow_links: as for `write_table`.
        display: as for `write_table`.
        on_failure: as for `write_table`.

    Returns:
        A `TableResult`.

    Raises:
        InputError: inputs that name no sounds.
        ModelError: a model that does not give what the plan asks for.
        SettingsError: a setting that makes no sense, or no cluster at the address.
        StoreError: the table cannot be written there, or it holds something else.
        MissingPackageError: Ray, or what a URL needs, is not installed.
    """
    begun = time.monotonic()
    out = os.fspath(out)
    named = [inputs] if isinstance(inputs, (str, os.PathLike, Piece)) else list(inputs)
    if update and overwrite:
        raise SettingsError("A table is either updated or overwritten.")
    is_lance = _check_name(out)
    network, name, weights = opened(model, plan, engine, "cpu", dtype)
    plan = plan or plan_for(network)
    plan.check(network)
    about = settings_of(network, plan, name, weights, dtype)
    sounds = sounds_of(named, follow_links)
    parts = Parts(f"{out}.blocks" if is_lance else out)
    job = Job(name, plan, about, parts.folder, False, os.getcwd(), engine, device, dtype, jobs=jobs or 1)
    del network
    run = Run(out, parts, job, sounds if is_url(out) else no_outputs(sounds, output_files(out)), overwrite, update)
    if is_lance and not (overwrite or update):
        run.find_lance()
    was_complete = run.complete
    computed = run.compute(address, actors, display, on_failure or _warn)
    if not was_complete:
        run.finish(_write_lance if is_lance else None)
    seconds = time.monotonic() - begun
    errors = errors_of(out) if run.failed else None
    rows = sum(summary.rows for summary in computed)
    return TableResult(
        out if is_url(out) else Path(out),
        errors if errors is None or is_url(out) else Path(errors),
        run.total,
        run.failed,
        rows,
        seconds,
        run.continued,
        was_complete,
    )


@contextmanager
def computed_on_ray(
    sounds: Iterable[Piece],
    out: str | os.PathLike[str],
    model: str | os.PathLike[str],
    plan: Plan,
    *,
    address: str = cluster.AUTO,
    actors: int | None = None,
    engine: str | None = None,
    device: str | None = None,
    jobs: int | None = None,
    display: Display = lambda total, done: nullcontext(),
    on_failure: OnFailure | None = None,
) -> Iterator[tuple[Iterator[Group], int]]:
    """What `inference.groups` gives, computed by the machines of a Ray cluster.

    Until the work with them is done, the results lie in the folder ``OUT.blocks``, from which a run that was stopped
    goes on.

    Args:
        sounds: inputs.
        out: what is made of the groups.
        model: a name, or a path that all machines see.
        plan: how.
        address: as for `write_table_on_ray`.
        actors: as for `write_table_on_ray`.
        engine: see `load`.
        device: see `load`.
        jobs: threads that decode, for each actor.
        display: as for `write_table`.
        on_failure: as for `write_table`.

    Yields:
        The groups, in the order of the inputs, and the number of inputs that could not be read.

    Raises:
        SettingsError: no cluster at the address.
        StoreError: the folder cannot be written.
    """
    network, name, weights = opened(model, plan, engine, "cpu", None)
    parts = Parts(f"{os.fspath(out)}.blocks")
    about = settings_of(network, plan, name, weights, None)
    del network
    job = Job(name, plan, about, parts.folder, True, os.getcwd(), engine, device, jobs=jobs or 1)
    run = Run(parts.folder, parts, job, sounds)
    run.compute(address, actors, display, on_failure or _warn)
    yield stored_groups(parts, run.names()), run.failed
    parts.discard()


def _warn(path: str, reason: str) -> None:
    warnings.warn(f"{path} was left out: {reason}.", AudioWarning, stacklevel=5)


def _check_name(out: str) -> bool:
    """Whether a table is to be a Lance dataset; raises a `StoreError` where it can be nothing."""
    suffix = os.path.splitext(out.rstrip("/"))[1]
    if suffix not in SUFFIXES:
        raise StoreError(f"With Ray the output must be named {' or '.join(SUFFIXES)}; {out} is not.")
    if suffix == ".parquet" and os.path.isfile(out):
        raise StoreError(f"{out} is a file, and Ray writes a folder of that name; name another output.")
    if suffix == ".lance":
        require("lance", "search")  # not when the work is done
    return suffix == ".lance"


class Run:
    """What has to be computed, and where it goes.

    Args:
        out: the table.
        parts: its parts.
        job: what is computed.
        sounds: the inputs.
        overwrite: replace parts of other inputs or settings.
        update: replace parts of other inputs.

    Attributes:
        total: number of inputs.
        continued: how many of them an earlier run has finished.
        complete: that run has finished all, and there is nothing to do.

    Raises:
        StoreError: there is something else in the output's place.
    """

    def __init__(
        self, out: str, parts: Parts, job: Job, sounds: Iterable[Piece], overwrite: bool = False, update: bool = False
    ) -> None:
        self.out, self.parts, self.job = out, parts, job
        self.about: dict[str, Any] = json.loads(json.dumps(job.about))
        self.total = 0
        self._fingerprint, self._failed = Fingerprint(), 0
        blocks = {block.name: block for block in self._blocks(sounds)}
        existing = parts.names()
        self._others = sorted(existing - set(blocks))  # of other inputs or settings
        if self._others and not overwrite:
            self._refuse_others(update)
        self._summaries = parts.summaries(sorted(existing & set(blocks)))
        self.continued = sum(summary.inputs for summary in self._summaries)
        done = set(self.names())
        self._missing = [block for name, block in blocks.items() if name not in done]
        self.complete = not self._missing and not self._others and parts.has(COMMON)

    def _blocks(self, sounds: Iterable[Piece]) -> Iterator[Block]:
        for number, block in enumerate(blocks_of(sounds)):
            states = [state(sound) for sound in block]
            for one in states:
                self._fingerprint.add(one)
            self.total += len(block)
            yield Block.of(part_name(number, self.about, states), block)

    def _refuse_others(self, update: bool) -> None:
        existing = self.parts.about(self._others[0])
        differs = existing is None or any(existing.get(name) != self.about[name] for name in self.about)
        if differs or not update:
            also = "" if differs else ", --update to compute the blocks of files that differ"
            raise StoreError(
                f"{self.out} exists and holds something else: {difference(existing, self.about)}. Name another output, "
                f"or use --overwrite{also}."
            )

    def compute(self, address: str, actors: int | None, display: Display, on_failure: OnFailure) -> list[Summary]:
        """Compute what is missing; what became of it."""
        computed: list[Summary] = []
        if not self._missing:
            return computed
        with cluster.connected(address) as ray, display(lambda: self.total, self.continued) as progress:
            for summary in cluster.compute(ray, self.job, self._missing, actors):
                computed.append(summary)
                if progress is not None:
                    progress(summary.seconds, summary.inputs)
                for path, reason in summary.failures:
                    on_failure(path, reason)
        self._summaries = sorted([*self._summaries, *computed])
        return computed

    @property
    def failed(self) -> int:
        """Number of inputs that could not be read, so far."""
        return self._failed + sum(len(summary.failures) for summary in self._summaries)

    def names(self) -> list[str]:
        """Of the parts, in the order of the inputs."""
        return [summary.name for summary in self._summaries]

    def find_lance(self) -> None:
        """See whether the Lance dataset is there that the parts would become.

        Raises:
            StoreError: there is one that holds something else.
        """
        existing = _lance_about(self.out)
        if existing is None:
            return
        wanted = {**self.about, "inputs": str(self._fingerprint)}
        if any(existing.get(name) != value for name, value in wanted.items()):
            raise StoreError(
                f"{self.out} exists and holds something else: {difference(existing, wanted)}. Name another output, or "
                "use --overwrite."
            )
        self._missing, self._summaries, self.complete = [], [], True
        self._failed, self.continued = int(existing["failed"]), self.total

    def finish(self, write: Callable[[str, Content], None] | None = None) -> None:
        """Make the parts the table, and list the inputs that could not be read beside it; of nothing there is no table.

        Args:
            write: makes another table of them, instead of which they go; where not given they are the table.
        """
        failures = [failure for summary in self._summaries for failure in summary.failures]
        write_errors(self.out, failure_lines(failures))
        rows = sum(summary.rows for summary in self._summaries)
        if not rows and self.failed == self.total:
            self.parts.discard()  # a table of nothing would pass for a result
            return
        about = {**self.about, "failed": len(failures), "inputs": str(self._fingerprint)}
        schema = self.parts.schema(self.names()[0]).remove_metadata()
        if write is None:
            self.parts.complete(schema, about, self._summaries)
            self.parts.remove(self._others)
            return
        rows = sum(summary.rows for summary in self._summaries)
        tables = (
            table.append_column(BEGINS, pa.nulls(len(table), pa.bool_())) for table in self.parts.tables(self.names())
        )
        write(self.out, Content(schema.with_metadata({METADATA_KEY: json.dumps(about)}), rows, tables, False))
        self.parts.discard()


def _lance_about(out: str) -> dict[str, Any] | None:
    """What a Lance dataset says of itself; None where there is none."""
    lance = require("lance", "search")
    try:
        metadata = lance.dataset(out).schema.metadata or {}
    except (OSError, ValueError):
        return None
    return dict(json.loads(metadata.get(METADATA_KEY, b"{}")))


def _write_lance(out: str, content: Content) -> None:
    if not is_url(out):
        formats.WRITERS[".lance"](Path(out), content)
        return
    schema, tables = formats.finished(content)
    batches = (batch for table in tables for batch in table.to_batches())
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    require("lance", "search").write_dataset(
        reader, out, mode="overwrite" if _lance_about(out) is not None else "create"
    )


def stored_groups(parts: Parts, names: Sequence[str]) -> Iterator[Group]:
    """Parts that have the column `formats.BEGINS`, as `inference.groups` gives their rows.

    Args:
        parts: of a run.
        names: of its parts, in order; a sound's rows are all in one of them.
    """
    for name in names:
        inputs = 0
        for table in parts.tables([name]):
            paths = [from_readable(path) for path in table["path"].to_pylist()]
            times = np.stack([table["start"].to_numpy(), table["end"].to_numpy()], 1)
            values = table.column(3).combine_chunks()
            begins = table[BEGINS].to_numpy(zero_copy_only=False)
            inputs += int(begins.sum())
            yield Group(
                paths,
                times,
                values.flatten().to_numpy().reshape(len(paths), -1),
                begins,
                position=Position(inputs, 1),  # a sound may go on in the next rows
                inputs=int(begins.sum()),
            )
        yield Group(position=Position(inputs))  # none goes on in the next part

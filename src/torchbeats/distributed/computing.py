"""What a machine does with a block of inputs: compute its rows, and write its part."""

from __future__ import annotations

import json
import pickle
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import torch

from torchbeats.data.inputs import Piece
from torchbeats.errors import AudioError, ModelError
from torchbeats.files import sha256
from torchbeats.inference import groups
from torchbeats.loading import exported_layer, load
from torchbeats.plans import Plan
from torchbeats.tables import formats
from torchbeats.tables.formats import METADATA_KEY, Content, with_begins
from torchbeats.tables.parts import Parts, Summary
from torchbeats.tables.store import piece_rows, rows_of, schema_of
from torchbeats.weights import hub


class Job(NamedTuple):
    """What is to be computed of every block.

    Attributes:
        model: a name or path.
        plan: how.
        about: all that the rows depend on beside the inputs.
        parts: folder of the parts.
        begins: write the column `formats.BEGINS`, and a row a step, which is how a table is while it is made.
        folder: that relative paths start from.
        engine: see `load`.
        device: see `load`.
        dtype: see `load`.
        threads: that torch computes with.
        jobs: threads that decode.
    """

    model: str
    plan: Plan
    about: dict[str, Any]
    parts: str
    begins: bool
    folder: str
    engine: str | None = None
    device: str | None = None
    dtype: torch.dtype | None = None
    threads: int = 1
    jobs: int | None = None


class Block(NamedTuple):
    """Inputs that are computed together.

    Attributes:
        name: of their part.
        packed: the inputs in a few bytes each: the machine that hands out blocks has them all.
    """

    name: str
    packed: bytes

    @classmethod
    def of(cls, name: str, sounds: Iterable[Piece]) -> Block:
        """A block of inputs."""
        return cls(name, zlib.compress(pickle.dumps(list(sounds), pickle.HIGHEST_PROTOCOL), 1))

    def sounds(self) -> list[Piece]:
        """Its inputs, in order."""
        sounds: list[Piece] = pickle.loads(zlib.decompress(self.packed))  # of the run that it is a block of
        return sounds


class UnusableSound(NamedTuple):
    """Stands for the content of a sound that must not be read again.

    Attributes:
        name: of the sound.
        reason: why.
    """

    name: str
    reason: str

    def open(self) -> BinaryIO:
        """Raise an `AudioError` with the reason."""
        raise AudioError(self.name, self.reason)


class Computing:
    """A model in this process, and where its results go.

    Args:
        job: what is to be computed.

    Raises:
        ModelError: the model's file is another one here.
        CheckpointError: as `load`.
        HubError: as `load`.
    """

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        path = hub.resolve(job.model)
        if job.about["weights"] != f"sha256:{sha256(path)}":
            raise ModelError(f"{path} on this machine is not the model that {job.model} is where the run was started.")
        layer = exported_layer(job.engine, getattr(job.plan, "layer", None))
        self.model = load(path, engine=job.engine, device=job.device, dtype=job.dtype, layer=layer)
        self.job, self.parts = job, Parts(job.parts)
        self.schema = schema_of(job.plan.row(self.model)).with_metadata({METADATA_KEY: json.dumps(job.about)})

    def compute(self, block: Block, unusable: Mapping[int, str]) -> Summary:
        """Compute a block, and write its part; nothing is computed where that is there.

        Args:
            block: of inputs.
            unusable: for indices of inputs that must not be read, the reason.
        """
        # By a process that died, or lost its connection, behind this.
        if self.parts.has(block.name) and (summary := self.parts.summary(block.name)) is not None:
            return summary
        sounds = block.sounds()
        begun, seconds, rows = time.time(), 0.0, 0
        failures: list[tuple[str, str]] = []

        def progress(more: float, _: float) -> None:
            nonlocal seconds
            seconds += more

        def tables() -> Iterator[pa.Table]:
            for group in groups(
                _named(sounds, unusable), self.model, self.job.plan, jobs=self.job.jobs, progress=progress
            ):
                failures.extend(group.failures)
                if group.paths:
                    yield rows_of(group, self.schema)

        def counted(pieces: Iterator[pa.Table]) -> Iterator[pa.Table]:
            nonlocal rows
            for piece in pieces:
                rows += len(piece)
                yield piece.cast(schema)

        def says() -> Iterator[dict[str, Any]]:
            yield {"rows": rows, "inputs": len(sounds), "seconds": seconds, "failures": failures}

        pieces = formats.pieces(tables(), piece_rows(self.schema))
        if self.job.begins:
            schema = with_begins(self.schema)
        else:
            by_file = self.job.plan.row(self.model).per == "file"
            schema, pieces = formats.finished(Content(self.schema, 0, pieces, by_file))
        self.parts.write(block.name, schema, counted(pieces), says())
        return Summary(block.name, rows, len(sounds), seconds, failures, begun, time.time())

    def try_each(self, block: Block, unusable: Mapping[int, str]) -> Iterator[int]:
        """Compute each input of a block by itself, for nothing but to see whether this process outlives it.

        Args:
            block: of inputs.
            unusable: indices of those that are left out.

        Yields:
            The index of an input, before it is read.
        """
        for number, sound in enumerate(block.sounds()):
            if number not in unusable:
                yield number
                for _ in groups([(sound.path, sound)], self.model, self.job.plan, jobs=1):
                    pass


def _named(sounds: Sequence[Piece], unusable: Mapping[int, str]) -> Iterator[tuple[str, Piece]]:
    for number, sound in enumerate(sounds):
        if number in unusable:
            sound = Piece(sound.path, content=UnusableSound(sound.path, unusable[number]))  # type: ignore[arg-type]
        yield sound.path, sound

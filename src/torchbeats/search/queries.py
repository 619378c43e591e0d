"""What is looked for: a file, a piece of one, or a row of the table → a vector to compare the table's rows with."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from torchbeats.audio import Floats
from torchbeats.data.inputs import Piece
from torchbeats.errors import HubError, InputError, ModelError
from torchbeats.files import sha256
from torchbeats.inference import groups
from torchbeats.loading import load, ready
from torchbeats.protocol import Model
from torchbeats.weights import hub

if TYPE_CHECKING:
    from torchbeats.tables.reading import Table

_PIECE = re.compile(r"(?P<path>.+)@(?P<start>\d+(?:\.\d+)?)-(?P<end>\d+(?:\.\d+)?)")
_ROW = re.compile(r"row:(\d+)")


class QuerySource(NamedTuple):
    """What a query names: a row of the table, or a sound.

    Attributes:
        row: its index; None for a sound.
        sound: None for a row.
    """

    row: int | None = None
    sound: Piece | None = None


def parse(query: str | os.PathLike[str] | Piece | int) -> QuerySource:
    """What a query names.

    Args:
        query: ``file``, ``file@12.5-15.0`` for a piece of one, in seconds, or ``row:7`` for the row with this index; a
            `Piece`; or the index of a row. A file whose whole name looks like one of the others is that file.
    """
    if isinstance(query, Piece):
        return QuerySource(sound=query)
    if isinstance(query, int):
        return QuerySource(row=query)
    text = os.fspath(query)
    if not os.path.exists(text):
        if match := _ROW.fullmatch(text):
            return QuerySource(row=int(match[1]))
        if match := _PIECE.fullmatch(text):
            return QuerySource(sound=Piece(match["path"], float(match["start"]), float(match["end"])))
    return QuerySource(sound=Piece(text))


def unit(vectors: Floats) -> Floats:
    """Vectors of length 1 in the same directions; zeros stay."""
    lengths = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., np.newaxis]
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def vectors_of(
    sources: list[QuerySource],
    table: Table,
    model: Model | str | os.PathLike[str] | None,
    device: str | torch.device | None,
) -> Floats:
    """``(queries, D)``, of length 1: rows as they are stored, of sounds the mean over their windows.

    Raises:
        InputError: a row that the table does not have, or a sound that cannot be read.
        ModelError: another model than that of the table, or none.
    """
    rows = [source.row for source in sources if source.row is not None]
    if out_of_range := [row for row in rows if not 0 <= row < table.count]:
        raise InputError(f"{table.path} has the rows 0 to {table.count - 1}, and no row {out_of_range[0]}.")
    stored = iter(unit(table.take(np.array(rows, np.int64)))) if rows else iter(())
    sounds = [source.sound for source in sources if source.sound is not None]
    computed = iter(_embed(sounds, table, model, device) if sounds else ())
    return np.stack([next(computed) if source.row is None else next(stored) for source in sources])


def _embed(
    sounds: Iterable[Piece],
    table: Table,
    model: Model | str | os.PathLike[str] | None,
    device: str | torch.device | None,
) -> list[Floats]:
    """A vector for each sound, computed as the table's rows were."""
    network, plan = model_of(table, model, device), table.plan
    result = []
    for sound in sounds:
        values = []
        for group in groups([(sound.path, sound)], network, plan, jobs=1):
            if group.failures:
                raise InputError(f"The query {sound.path} cannot be used: {group.failures[0][1]}.")
            if len(group.values):
                values.append(group.values.reshape(len(group.values), -1))
        if not values:
            raise InputError(f"The query {sound.path} cannot be used: it has no sound.")
        result.append(direction(np.concatenate(values)))
    return result


def direction(rows: Floats) -> Floats:
    """``(D,)`` of length 1: the mean direction of a sound's rows ``(n, D)``."""
    mean: Floats = unit(unit(rows).mean(0))
    return mean


def model_of(table: Table, model: Model | str | os.PathLike[str] | None, device: str | torch.device | None) -> Model:
    """The model that computed a table's rows.

    Args:
        table: of embeddings.
        model: that model, its name or its file; the one that the table names, if not given.
        device: where it is to compute.

    Raises:
        ModelError: it is another, or cannot be had.
    """
    about = table.about
    if model is not None and not isinstance(model, (str, os.PathLike)):
        _check(table, type(model).__name__, model.digest())
        return ready(model, device)
    name = os.fspath(model or about["model"])
    try:
        path = hub.resolve(name)
    except (HubError, OSError) as error:
        raise ModelError(
            f"{table.path} was computed by {about['model']}, which cannot be had here ({str(error).rstrip('.')}). Name "
            "the same model's file with --model."
        ) from error
    _check(table, name, sha256(path))
    return load(path, engine=about["engine"], device=device, dtype=getattr(torch, about["dtype"]))


def _check(table: Table, name: str, digest: str) -> None:
    weights = str(table.about["weights"])
    if weights != f"sha256:{digest}":
        raise ModelError(
            f"{table.path} was computed by {table.about['model']} (weights {weights[:19]}…), and {name} has other "
            f"weights (sha256:{digest[:12]}…): their embeddings cannot be compared. Use the table's model, or make a "
            f"table with {name}."
        )

"""The rows of a table that are most like some sounds: exact cosine similarity, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from torchbeats.audio import Floats
from torchbeats.data.inputs import Piece
from torchbeats.errors import InputError, SettingsError
from torchbeats.files import readable
from torchbeats.protocol import Model
from torchbeats.search.queries import parse, unit, vectors_of

if TYPE_CHECKING:  # pyarrow takes longer to import than all of this package
    from torchbeats.tables.reading import Table


class Match(NamedTuple):
    """A row of a table that a search has brought up.

    Attributes:
        row: its index in the table.
        score: cosine of the angle between its embedding and the query's, from -1 to 1.
        path: of its file.
        start: in seconds.
        end: in seconds.
    """

    row: int
    score: float
    path: str
    start: float
    end: float


def search(
    table: str | os.PathLike[str] | Table,
    query: str | os.PathLike[str] | Piece | int | Iterable[str | os.PathLike[str] | Piece | int],
    *,
    unlike: Iterable[str | os.PathLike[str] | Piece | int] = (),
    n: int = 20,
    not_same_file: bool = False,
    index: bool = False,
    model: Model | str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
) -> list[Match]:
    """Find the rows of a table that are most like a sound.

    The query's embedding is computed as the table's were, by the same model; of several queries it is the mean of their
    unit vectors, of which the mean of those in ``unlike`` is taken away. Every row is compared, and the result exact,
    unless an index is asked for.

    Args:
        table: of embeddings, as `write_table` writes it.
        query: a file; ``file@12.5-15.0``, a piece of one in seconds; ``row:7`` or 7, a row of the table by its index
            from 0; a `Piece`; or several of them. A row that is asked for is not in the result.
        unlike: the result is to be unlike these.
        n: the most rows to return.
        not_same_file: leave out rows of the files that the queries are from.
        index: search by the index of a Lance table, IVF-PQ, which is built first if there is none. Scores are exact,
            but a few of the best rows may be missing. Tables of less than 10,000 rows get none, and are searched
            exactly.
        model: that computed the table; by default the one that it names.
        device: where to compute the query's embedding.

    Returns:
        Matches, the best first; of rows with the same score, the one that comes first in the table.

    Raises:
        InputError: a table, a row or a sound that cannot be read.
        ModelError: the model is not that of the table.
        SettingsError: a setting that makes no sense.
    """
    from torchbeats.tables.reading import Table

    if n < 1:
        raise SettingsError(f"At least one row must be asked for, not {n}.")
    opened = table if isinstance(table, Table) else Table(table)
    queries = [query] if isinstance(query, (str, os.PathLike, Piece, int)) else query
    parsed = [parse(text) for text in queries]
    parsed_unlike = [parse(text) for text in unlike]
    if not parsed:
        raise InputError("A search needs a query.")
    sources = [*parsed, *parsed_unlike]
    vectors = vectors_of(sources, opened, model, device)
    rows = [source.row for source in sources if source.row is not None]
    files = [source.sound.path for source in sources if source.sound is not None]
    first = len(parsed)
    return closest(
        opened, vectors[:first], vectors[first:], n, rows=rows, files=files, not_same_file=not_same_file, index=index
    )


def closest(
    table: Table,
    like: Floats,
    unlike: Floats,
    n: int,
    *,
    rows: Iterable[int] = (),
    files: Iterable[str] = (),
    not_same_file: bool = False,
    index: bool = False,
) -> list[Match]:
    """The rows of a table in a direction.

    Args:
        table: of embeddings.
        like: ``(queries, D)`` of length 1, at least one; their mean is the direction.
        unlike: ``(queries, D)`` likewise, of which the mean is taken away.
        n: the most rows to return.
        rows: of the table, which are left out.
        files: that queries are from.
        not_same_file: leave out rows of these files, and of those that ``rows`` are of.
        index: as for `search`.

    Returns:
        Matches, the best first.
    """
    target = like.mean(0)
    if len(unlike):
        target = target - unlike.mean(0)
    omitted = np.array(sorted(rows), np.int64)
    if not_same_file:
        files = [*files, *(path for path, _, _ in table.places(omitted))]
        omitted = np.union1d(omitted, table.rows_of({name for path in files for name in _names(path)}))
    compare = nearest
    if index:
        from torchbeats.search.index import build, nearest_by_index

        compare = nearest_by_index if build(table) else nearest
    indices, scores = compare(table, unit(target.astype(np.float32)), n, omitted)
    places = table.places(indices)
    return [Match(int(row), float(score), *source) for row, score, source in zip(indices, scores, places, strict=True)]


def _names(path: str) -> set[str]:
    """What a table may call a file."""
    with_names = {path, os.path.abspath(path), os.path.normpath(path), os.path.relpath(path)}
    return {readable(name) for name in with_names}


def nearest(table: Table, target: Floats, n: int, omitted: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Indices and scores of the rows with the largest cosine, the best first.

    Args:
        table: of embeddings.
        target: ``(D,)``, of length 1.
        n: how many.
        omitted: sorted indices of rows that do not count.
    """
    from torchbeats.search.vectors import for_each_block, products

    best: list[tuple[Any, Any]] = []

    def compare(first: int, block: Floats) -> None:
        scores = products(block, target)
        low, high = np.searchsorted(omitted, [first, first + len(block)])
        scores[omitted[low:high] - first] = -np.inf
        remaining = np.arange(len(scores))
        if len(scores) > n:
            remaining = np.flatnonzero(scores >= np.partition(scores, -n)[-n])
        remaining = remaining[scores[remaining] > -np.inf]
        remaining = remaining[np.argsort(-scores[remaining], kind="stable")][:n]
        best.append((remaining + first, scores[remaining]))  # of one call each: a list's append is safe in threads

    for_each_block(table, compare)
    if not best:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    indices, scores = (np.concatenate(values) for values in zip(*best, strict=True))
    order = np.lexsort((indices, -scores))[:n]
    return indices[order], scores[order]

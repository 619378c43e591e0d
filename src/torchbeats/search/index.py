"""A search by the index of a Lance table, IVF-PQ: some partitions of the table instead of all rows.

The index is approximate; of the rows that it proposes, many more than are asked for, the cosine is computed exactly. So
scores are those of an exact search, and a row can only be missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from torchbeats.audio import Floats
from torchbeats.errors import SettingsError
from torchbeats.search.queries import unit
from torchbeats.search.vectors import products
from torchbeats.tables.formats import open_lance
from torchbeats.tables.reading import Table

LEAST_ROWS = 10_000  # with fewer, all rows are compared in no time
PARTITION_ROWS = 4096
PROBED = 20  # partitions, or an eighth of them if that is more
PROPOSED = 10  # times as many rows as are asked for
VALUES_IN_CODE = 8  # values of an embedding that share a byte in the index
COLUMN = "embedding"


def build(table: Table) -> bool:
    """Build the index of a table, if it has none.

    Returns:
        Whether it has one now; a table of few rows gets none.

    Raises:
        SettingsError: the table is no Lance table.
    """
    if table.path.suffix != ".lance":
        raise SettingsError(
            f"Only Lance tables have an index: embed to .lance, or search {table.path} without --index."
        )
    if table.count < LEAST_ROWS:
        return False
    dataset = open_lance(table.path)
    if _has_index(dataset):
        return True
    width = int(np.prod(table.shape))
    codes = next(count for count in range(max(1, width // VALUES_IN_CODE), 0, -1) if width % count == 0)
    dataset.create_index(
        COLUMN,
        "IVF_PQ",
        metric="cosine",
        num_partitions=max(1, table.count // PARTITION_ROWS),
        num_sub_vectors=codes,
    )
    return True


def _has_index(dataset: Any) -> bool:
    return any(COLUMN in index.field_names for index in dataset.describe_indices())


def nearest_by_index(table: Table, target: Floats, n: int, omitted: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """As `searching.nearest`, by the index; of the rows that count, some may be missing.

    Args:
        table: with an index.
        target: ``(D,)``, of length 1.
        n: how many.
        omitted: sorted indices of rows that do not count.
    """
    dataset = open_lance(table.path)
    proposed = dataset.to_table(
        columns=["_distance"],
        with_row_id=True,
        nearest={
            "column": COLUMN,
            "q": target,
            "k": min(table.count, n + len(omitted)),
            "metric": "cosine",
            "nprobes": max(PROBED, table.count // PARTITION_ROWS // 8),
            "refine_factor": PROPOSED,
        },
    )
    indices = np.setdiff1d(_indices(dataset, proposed["_rowid"].to_numpy()), omitted)
    stored = dataset.take(indices, columns=[COLUMN])[COLUMN].combine_chunks().flatten().to_numpy()
    scores = products(unit(stored.reshape(len(indices), -1)), target)
    order = np.lexsort((indices, -scores))[:n]
    return indices[order], scores[order]


def _indices(dataset: Any, addresses: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Indices in the table of rows by their addresses: a fragment's number, and a row in it."""
    firsts, first = dict[int, int](), 0
    for fragment in dataset.get_fragments():
        firsts[fragment.fragment_id] = first
        first += fragment.count_rows()
    return np.array([firsts[address >> 32] + (address & 0xFFFFFFFF) for address in addresses.tolist()], np.int64)

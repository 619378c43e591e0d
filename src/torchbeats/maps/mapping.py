"""A table of embeddings → a map: some of its rows, where they lie, and what colour they have."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from torchbeats.audio import Floats
from torchbeats.data.labelled import Labelled
from torchbeats.data.windows import MIN_OVERLAP
from torchbeats.errors import InputError, SettingsError
from torchbeats.files import one_line, readable
from torchbeats.heads.labelling import label_windows
from torchbeats.maps.grouping import CLUSTERS, Groups, by_cluster, by_value
from torchbeats.maps.reduction import FEWEST, METHODS, reduce
from torchbeats.plots.scatter import draw_scatter
from torchbeats.search.queries import unit
from torchbeats.tables.reading import Table
from torchbeats.tagging import Indices

POINTS = 10_000
COLOUR_BY = ("cluster", "file", "label")


@dataclass
class Map:
    """A map of a table.

    Attributes:
        table: its path.
        places: ``(N, 2)`` float32, of points in random order, labelled ones first.
        rows: ``(N,)``, their rows in the table.
        stretches: of each, path, start and end in seconds.
        groups: what they are coloured by.
        labels: of each point, its labels, joined; empty for none.
        colour: "cluster", "file" or "label".
        method: "umap" or "pca".
        total: number of rows of the table.
        left_out: rows of those that were drawn whose embedding is not finite.
    """

    table: Path
    places: Floats
    rows: Indices
    stretches: list[tuple[str, float, float]]
    groups: Groups
    labels: list[str]
    colour: str
    method: str
    total: int
    left_out: int = 0

    def note(self) -> str:
        """What a reader of the map should know, in a sentence."""
        shown = len(self.rows)
        sample = (
            f"{shown:,} windows" if shown == self.total else f"a random sample of {shown:,} of {self.total:,} windows"
        )
        method = "UMAP" if self.method == "umap" else "two principal components"
        lost = f" {self.left_out:,} without finite numbers are left out." if self.left_out else ""
        return f"{sample[0].upper()}{sample[1:]}, placed by {method}, coloured by {self.colour}.{lost}"

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Write the map as a PNG."""
        draw_scatter(self.places, self.groups.of, self.groups.names, path, readable(self.table.name), self.note())


def make_map(
    table: str | os.PathLike[str] | Table,
    *,
    method: str = "umap",
    colour: str | None = None,
    labelled: Labelled | None = None,
    min_overlap: float = MIN_OVERLAP,
    clusters: int = CLUSTERS,
    points: int = POINTS,
    seed: int = 0,
    progress: Callable[[str], None] = lambda doing: None,
) -> Map:
    """Place the rows of a table on a plane, like ones together.

    Of a table with more rows than ``points`` a random sample is shown; windows with a label come first. Memory and time
    depend on the sample.

    Args:
        table: of embeddings, as `write_table` writes it.
        method: "umap" or "pca"; see `reduction.reduce`.
        colour: "cluster", "file" or "label"; by default "label" where there are labels, else "cluster".
        labelled: stretches of files with labels.
        min_overlap: the share of the shorter of the two that a window and a stretch must have in common.
        clusters: for the colours, at most so many.
        points: at most so many.
        seed: random seed.
        progress: called with what is being done.

    Raises:
        InputError: a table that cannot be read or has no rows, or labels that are of no row.
        SettingsError: a setting that makes no sense.
        MissingPackageError: umap-learn is needed, and not installed.
    """
    colour = colour or ("label" if labelled is not None else "cluster")
    _check(method, colour, labelled, clusters, points)
    opened = table if isinstance(table, Table) else Table(table)
    if not opened.count:
        raise InputError(f"{opened.path} has no rows.")
    progress("Reading labels")
    names = _label_names(opened, labelled, min_overlap) if labelled is not None else {}
    progress(f"Reading {min(points, opened.count):,} of {opened.count:,} rows")
    rows = _sample(opened.count, np.array(sorted(names), np.intp), points, seed)
    vectors = opened.take(rows)
    finite = np.isfinite(vectors).all(1)
    rows, vectors = rows[finite], unit(vectors[finite])
    if not len(rows):
        raise InputError(f"{opened.path} has no rows with finite numbers.")
    stretches = opened.places(rows)
    labels = [", ".join(names.get(row, ())) for row in rows.tolist()]
    progress("Colouring")
    if colour == "cluster":
        groups = by_cluster(vectors, clusters, seed)
    elif colour == "file":
        paths: list[Hashable | None] = [path for path, _, _ in stretches]
        titles = {
            path: one_line(readable(os.path.basename(path))) for path in sorted({path for path, _, _ in stretches})
        }
        groups = by_value(paths, titles, "other files")
    else:
        first: list[Hashable | None] = [next(iter(names.get(row, ())), None) for row in rows.tolist()]
        groups = by_value(first, {label: one_line(label) for label in sorted(_all(names))}, "other labels")
    method = method if len(rows) >= FEWEST else "pca"
    progress(f"Placing {len(rows):,} points")
    places = reduce(vectors, method, seed)
    total, lost = opened.count, int((~finite).sum())
    return Map(opened.path, places, rows, stretches, groups, labels, colour, method, total, lost)


def _check(method: str, colour: str, labelled: Labelled | None, clusters: int, points: int) -> None:
    if method not in METHODS:
        raise SettingsError(f"The method is {' or '.join(METHODS)}, not {method!r}.")
    if colour not in COLOUR_BY:
        raise SettingsError(f"Points are coloured by {', '.join(COLOUR_BY[:-1])} or {COLOUR_BY[-1]}, not {colour!r}.")
    if colour == "label" and labelled is None:
        raise SettingsError("To colour by label, name a list with labels (--labels).")
    if clusters < 1 or points < 1:
        raise SettingsError(f"At least one cluster and one point must be asked for, not {clusters} and {points}.")


def _label_names(table: Table, labelled: Labelled, min_overlap: float) -> dict[int, tuple[str, ...]]:
    """Of the rows that have labels, which."""
    windows = label_windows(table, labelled, min_overlap)
    pairs = zip(windows.indices.tolist(), windows.labelled.examples, strict=True)
    return {row: example.labels for row, example in pairs if example.labels}


def _all(names: dict[int, tuple[str, ...]]) -> set[str]:
    return {label for labels in names.values() for label in labels}


def _sample(total: int, labelled: Indices, points: int, seed: int) -> Indices:
    """At most so many rows in random order, those with a label first."""
    random = np.random.default_rng(seed)
    first = random.permutation(labelled)[:points]
    rest = points - len(first)
    if total - len(labelled) <= rest:
        others = random.permutation(np.setdiff1d(np.arange(total), labelled))
    else:
        drawn = random.choice(total, min(total, rest + len(labelled)), replace=False)
        others = drawn[~np.isin(drawn, labelled)][:rest]
    return np.concatenate([first, others]).astype(np.intp)

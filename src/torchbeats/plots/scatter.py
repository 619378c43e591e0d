"""A picture of points in two dimensions, coloured by group."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from torchbeats.audio import Floats
from torchbeats.files import replacing
from torchbeats.plots.fonts import writable
from torchbeats.tagging import Indices

# Told apart with most colour deficiencies, and on white as on black; the first six are those of Okabe and Ito.
COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"),
    *("#b2a000", "#7e57c2", "#8d6e63", "#26a69a", "#ef5350", "#78909c"),
)
NO_GROUP = "#9e9e9e"


def draw_scatter(
    places: Floats, groups: Indices, names: Sequence[str], path: str | os.PathLike[str], title: str, note: str
) -> None:
    """Write a PNG.

    Args:
        places: ``(N, 2)``.
        groups: ``(N,)``, the index of each point's group; -1 for none.
        names: of the groups, at most as many as there are `COLOURS`.
        path: of the picture.
        title: above it.
        note: below it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.add_subplot()
    size = float(np.clip(20_000 / max(len(places), 1), 3, 60))
    for index in range(-1, len(names)):  # points without a group lie below the others
        members = places[groups == index]
        if not len(members):
            continue
        words, _ = writable(names[index] if index >= 0 else "no label")
        colour = COLOURS[index] if index >= 0 else NO_GROUP
        alpha = 0.75 if index >= 0 else 0.3
        label = f"{words} ({len(members):,})"
        x, y = members.T
        axes.scatter(x, y, s=size, c=colour, alpha=alpha, linewidths=0, label=label.lstrip("_"))
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=10)
    for text in legend.get_texts():
        _, families = writable(text.get_text(), longest=100)
        text.set(parse_math=False, fontfamily=families)
    for handle in filter(None, legend.legend_handles):
        handle.set(sizes=[40], alpha=1)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", "datalim")
    axes.spines[:].set_color("0.8")
    words, families = writable(title, longest=100)
    axes.set_title(words, fontfamily=families, parse_math=False)
    axes.set_xlabel(note, fontsize=10)
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(os.fspath(temporary))

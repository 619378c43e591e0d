"""Figures → pictures, with matplotlib, which is imported only here and only when a picture is drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

import numpy as np

from torchbeats.evaluation.metrics import Array
from torchbeats.plots.fonts import writable

NUMBERS_UP_TO = 20  # classes, for counts in the cells
NAMES_UP_TO = 100  # classes, for names beside the rows and columns
SMALLEST, LARGEST = 2.5, 20.0  # inches of the matrix's side
AROUND = 1.8  # inches for the colours and the words at the axes


def draw_confusion(counts: Array, names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Draw a confusion matrix as a PNG file.

    Args:
        counts: ``(classes, classes)``, truth by prediction. Colours are shares of a row, numbers are counts.
        names: of the classes.
        path: of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true")
    beside = below = 0.0
    if len(names) <= NAMES_UP_TO:
        written = [writable(name) for name in names]
        size = 10 if len(names) <= NUMBERS_UP_TO else 7
        words = [name for name, _ in written]
        axes.set_xticks(range(len(names)), words, rotation=90)
        axes.set_yticks(range(len(names)), words)
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
            for tick, (_, families) in zip(ticks, written, strict=True):
                tick.set(parse_math=False, fontfamily=families, fontsize=size)
        extent = partial(Text.get_window_extent, renderer=canvas.get_renderer())
        beside = max(extent(tick).width for tick in axes.get_yticklabels()) / figure.dpi
        below = max(extent(tick).height for tick in axes.get_xticklabels()) / figure.dpi
    side = float(np.clip(0.4 * len(names), SMALLEST, LARGEST))  # whatever room the names take
    figure.set_size_inches(side + beside + AROUND, side + below + AROUND / 2)
    if len(names) <= NUMBERS_UP_TO:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                shade = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=shade, fontsize=9)
    canvas.print_png(os.fspath(path))

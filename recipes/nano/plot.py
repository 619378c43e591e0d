"""Draws how a pre-training run went.

    python recipes/nano/plot.py build/nano/run build/nano/run-plus --out recipes/nano/results

Every phase of every RUN's metrics.csv is a line, in the order in which they were trained; a second run's iteration is
marked with a plus, as it goes on from the first's model. ``models.png``: loss and share of hidden labels that were
predicted, with the share that the commonest label of each band has. ``labels.png``: what the tokenizers' training was
like, and how many codes are in use, in all phases.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from torchbeats.files import replacing

REACH = 2  # reports on either side are smoothed over; each is the mean over some steps already
DPI = 100


class Phase(NamedTuple):
    """One training: of a tokenizer or a model."""

    name: str
    kind: str  # "tokenizer" or "model"
    colour: str
    columns: dict[str, list[float]]

    def line(self, axes: Axes, column: str, scale: float = 1.0, style: str = "-", label: str | None = None) -> None:
        """Draw a column over the steps, if there is one; a model's full, a tokenizer's dashed."""
        points = [
            (step, scale * value)
            for step, value in zip(self.columns["step"], self.columns[column], strict=True)
            if value == value  # not NaN
        ]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, _smooth(values), style, color=self.colour, lw=1.5, label=label or self.name)


def _smooth(values: Any) -> list[float]:
    """Means over some reports on both sides; fewer near the ends, and in a short line, which would lose its shape."""
    widest = min(REACH, len(values) // 20)
    reaches = [min(widest, i, len(values) - 1 - i) for i in range(len(values))]
    return [sum(values[i - r : i + r + 1]) / (2 * r + 1) for i, r in enumerate(reaches)]


def read(runs: list[Path]) -> list[Phase]:
    """The phases of all runs; an iteration has one colour."""
    phases: dict[tuple[int, str, str], dict[str, list[float]]] = {}
    for number, run in enumerate(runs):
        file = run / "metrics.csv"
        if not file.exists():
            sys.exit(f"There is no {file}; name the folder of a run of `torchbeats pretrain`.")
        with file.open(newline="") as opened:
            for row in csv.DictReader(opened):
                key = (number, row.pop("iteration"), row.pop("phase"))
                columns = phases.setdefault(key, defaultdict(list))
                for name, value in row.items():
                    columns[name].append(float(value) if value else float("nan"))
    # A second run continues the first: its first iteration follows that one's last, with a teacher in between.
    last = max((int(iteration) for number, iteration, _ in phases if number == 0), default=0)
    iterations = list(dict.fromkeys(key[:2] for key in phases))
    colours = {iteration: f"C{index}" for index, iteration in enumerate(iterations)}
    made = []
    for (number, iteration, kind), columns in phases.items():
        name = f"iteration {iteration}" if number == 0 else f"iteration {last}{'+' * number}"
        made.append(Phase(name, kind, colours[number, iteration], columns))
    return made


def draw_models(phases: list[Phase], file: Path) -> None:
    """Loss and accuracy of masked modelling."""
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for phase in phases:
        if phase.kind == "model":
            phase.line(loss, "loss")
            phase.line(accuracy, "accuracy", 100)
            phase.line(accuracy, "majority", 100, ":", f"{phase.name}: commonest label")
    _label(loss, "Masked modelling", "loss (cross entropy, nats)")
    _label(accuracy, "Hidden labels predicted", "share of hidden patches, %")
    _from_nothing(accuracy)
    _save(figure, file)


def draw_labels(phases: list[Phase], file: Path) -> None:
    """Distillation's distance, and the codes in use in every phase."""
    figure, (distance, used, perplexity) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for phase in phases:
        style = "--" if phase.kind == "tokenizer" else "-"
        phase.line(distance, "distance")
        phase.line(used, "codes_used", 100, style, f"{phase.name}, {phase.kind}")
        phase.line(perplexity, "perplexity", 1, style, f"{phase.name}, {phase.kind}")
    _label(distance, "Tokenizers: distance to the teacher", "1 − cosine")
    _label(used, "Codes seen between two reports", "share of the codebook, %")
    _label(perplexity, "Perplexity of the labels", "codes, if all were equally common")
    _from_nothing(used)
    _from_nothing(perplexity)
    _save(figure, file)


def _label(axes: Axes, title: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("steps of the phase")
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))  # on no line
    else:
        axes.text(0.5, 0.5, "no such phase", ha="center", transform=axes.transAxes)


def _from_nothing(axes: Axes) -> None:
    """Let the axis start at zero, so that heights compare."""
    if axes.lines:
        axes.set_ylim(0, 1.08 * axes.dataLim.y1)


def _save(figure: Any, file: Path) -> None:
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    plt.close(figure)
    print(f"{file}: {file.stat().st_size / 1024:.0f} KB")


def main() -> None:
    """Reads the runs, draws both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, default=Path("recipes/nano/results"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    phases = read(options.runs)
    draw_models(phases, options.out / "models.png")
    draw_labels(phases, options.out / "labels.png")


if __name__ == "__main__":
    main()

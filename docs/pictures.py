"""The pictures of the documentation, made with the library itself: ``python docs/pictures.py [FOLDER]``.

They are kept in ``docs/pictures``, so that pages have them wherever they are read.
"""

from __future__ import annotations

import functools
import io
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image

import torchbeats
from torchbeats import audio
from torchbeats.fbank import Fbank
from torchbeats.patches import N_MELS, PATCH_SIZE, SAMPLE_RATE, frames

HERE = Path(__file__).parent
CLIPS = HERE.parent / "examples" / "audio"
TIMELINE = ("drums-1.mp3", "piano-2.mp3", "speech-english-1.flac")
FRAMES_A_SECOND = 100
INK, PAPER, ACCENTS = "#22303c", "#ffffff", ("#0072b2", "#d55e00", "#7b3fa0", "#009e73")


def timeline() -> Figure:
    """A beat, a piano and a voice, one after the other, and what the built-in tagger hears when."""
    sound = np.concatenate(
        [audio.load(CLIPS / name) for name in ("drums-1.mp3", "piano-2.mp3", "speech-english-1.flac")]
    )
    model = torchbeats.load("beats-nano-tagger")
    rows = list(torchbeats.tag((sound, SAMPLE_RATE), model, every=0.25, window=1.0, top=17))
    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(9, 4), height_ratios=[3, 2], layout="constrained")
    _spectrogram(above, sound)
    middles = [(row.start + row.end) / 2 for row in rows]
    for label, colour in zip(("drums", "music", "piano", "speech"), ACCENTS, strict=True):
        values = [dict(row.labels).get(label, 0.0) for row in rows]
        below.fill_between(middles, values, color=colour, alpha=0.15, step="mid")
        below.step(middles, values, color=colour, where="mid", label=label, linewidth=1.8)
    below.set(xlabel="seconds", ylabel="probability", ylim=(0, 1.02), xlim=(0, len(sound) / SAMPLE_RATE))
    below.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def patches() -> Figure:
    """What the model sees of a sound: cells of 160 ms by 16 of 128 mel bins."""
    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    sound = _beat()
    _spectrogram(axes, sound)
    steps = _grid(axes, sound)
    axes.add_patch(Rectangle((2 * 0.16, 16), 0.16, 16, fill=False, edgecolor="#00e5ff", linewidth=3, zorder=5))
    axes.set_title(f"{steps} steps of 160 ms × 8 bands; the marked patch is number 8 · 2 + 1", fontsize=11, color=INK)
    axes.set_xlabel("seconds")
    return figure


def masked() -> Figure:
    """The quarter of the patches that the model sees in pre-training."""
    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    sound = _beat()
    _spectrogram(axes, sound)
    steps = _grid(axes, sound)
    hidden = np.random.default_rng(0).permutation(steps * 8)[: round(0.75 * steps * 8)]
    for patch in hidden:
        step, band = divmod(int(patch), 8)
        cell = Rectangle((step * 0.16, band * PATCH_SIZE), 0.16, PATCH_SIZE, facecolor="#d9dee3", edgecolor=PAPER)
        axes.add_patch(cell)
    axes.set_title("Seen: 25 %. To be guessed: the labels of the rest", fontsize=11, color=INK)
    axes.set_xlabel("seconds")
    return figure


def loop() -> Figure:
    """The rounds of pre-training."""
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    axes.set(xlim=(0, 9), ylim=(0, 3.6))
    axes.axis("off")
    boxes = {
        "start": (1.2, 2.75, "random projection\n(first round)"),
        "tokenizer": (4.5, 2.75, "tokenizer\npatch → 1 of 1,024 labels"),
        "model": (7.7, 2.75, "masked model\nguesses hidden labels"),
        "distil": (4.5, 0.8, "distillation\nnew codes that tell\nwhat the model says"),
    }
    for x, y, text in boxes.values():
        box = FancyBboxPatch(
            (x - 1.05, y - 0.5), 2.1, 1.0, boxstyle="round,pad=0.05", facecolor="#eef3f7", edgecolor=INK
        )
        axes.add_patch(box)
        axes.text(x, y, text, ha="center", va="center", fontsize=10.5, color=INK)
    for (begin, end), name, place in (
        (((2.35, 2.75), (3.35, 2.75)), "", (0, 0)),
        (((5.65, 2.75), (6.55, 2.75)), "labels", (6.1, 2.9)),
        (((7.7, 2.15), (5.7, 0.9)), "teacher", (7.1, 1.35)),
        (((4.5, 1.4), (4.5, 2.15)), "next round", (4.62, 1.72)),
    ):
        axes.add_patch(FancyArrowPatch(begin, end, arrowstyle="-|>", mutation_scale=16, color=ACCENTS[0], lw=1.8))
        axes.text(*place, name, fontsize=9.5, color=ACCENTS[0], ha="left" if place[0] == 4.62 else "center")
    return figure


def speed() -> Figure:
    """How fast torchbeats and the others are, by the tables that benchmarks/all.py wrote."""
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.8), layout="constrained")
    one, eight = _tables("throughput.md")
    panels = [
        ("one clip of 10 s", one, "× real time"),
        ("8 clips of 10 s", eight, "× real time"),
        ("48 files, decoding included", _tables("mixed_lengths.md")[0], "× real time"),
        ("cold start", _tables("cold_start.md")[0], "to the first embedding, s"),
    ]
    for place, (title, table, column) in zip(axes, panels, strict=True):
        own = {name: row for name, row in table.items() if "alone" not in name and "padded" not in name}
        shorter = (("torchbeats.embed", "torchbeats"), (" (default)", ""), ("windows of ", ""))
        names = {name: functools.reduce(lambda text, pair: text.replace(*pair), shorter, name) for name in own}
        values = [next(float(cell.split()[0]) for head, cell in row.items() if column in head) for row in own.values()]
        colours = [ACCENTS[0] if name.startswith("torchbeats") else "#aab4bd" for name in own]
        place.barh(range(len(own)), values, color=colours)
        place.set_yticks(range(len(own)), [textwrap.fill(name.strip(), 22) for name in names.values()], fontsize=8)
        place.invert_yaxis()
        place.bar_label(place.containers[0], fmt="%.1f", padding=2, fontsize=8)
        place.set_xlim(0, 1.4 * max(values))
        place.set_xlabel("seconds" if column.endswith(", s") else column, fontsize=9)
        place.set_title(title, fontsize=10, color=INK)
        place.tick_params(axis="x", labelsize=8)
    return figure


def _tables(name: str) -> list[dict[str, dict[str, str]]]:
    """The tables of a benchmark's results: ``{row: {column: cell}}``."""
    text = (HERE.parent / "benchmarks" / "results" / name).read_text("utf-8")
    result = []
    for lines in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines.splitlines()]
        result.append({row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows})
    return result


def _beat() -> np.ndarray:
    return audio.load(CLIPS / "drums-1.mp3")[: round(2.6 * SAMPLE_RATE)]


def _spectrogram(axes: Axes, sound: np.ndarray) -> None:
    mel = Fbank()(torch.from_numpy(sound)[None])[0].T.numpy()
    low, high = np.percentile(mel, (5, 99.7))
    extent = (0, mel.shape[1] / FRAMES_A_SECOND, 0, N_MELS)
    axes.imshow(mel, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, extent=extent)
    axes.set(ylabel="mel bin", yticks=[0, 32, 64, 96, 128])


def _grid(axes: Axes, sound: np.ndarray) -> int:
    """Draw the edges of all patches; how many steps there are."""
    steps = frames(len(sound)) // PATCH_SIZE
    axes.vlines(np.arange(steps + 1) * 0.16, 0, N_MELS, color=PAPER, linewidth=0.8)
    axes.hlines(np.arange(0, N_MELS + 1, PATCH_SIZE), 0, steps * 0.16, color=PAPER, linewidth=0.8)
    axes.set_xlim(0, steps * 0.16)
    return steps


PICTURES: dict[str, Callable[[], Figure]] = {
    "timeline": timeline,
    "patches": patches,
    "masked": masked,
    "loop": loop,
    "speed": speed,
}


def main(folder: Path = HERE / "pictures") -> None:
    """Draw all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        figure = draw()
        picture = io.BytesIO()
        figure.savefig(picture, dpi=100)
        plt.close(figure)
        # A palette makes a third of the bytes, and nobody sees it.
        Image.open(picture).convert("RGB").quantize(256).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

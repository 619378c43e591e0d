"""What frozen embeddings know: linear probes on every model, one table.

    python recipes/nano/evaluate.py --fsdd FSDD --audio build/nano/audio --out recipes/nano/results \
        logmel random iteration-1=RUN/iteration-1/model.safetensors ...

A row is NAME=PATH. In place of a path, ``random`` stands for fresh weights of the size nano, ``logmel`` for the mean
and the standard deviation over time of the 128 log-mel bands. Three questions are asked of each:

- digits of spoken words, on a speaker that the probe has not heard (each of six in turn);
- digits and speakers on FSDD's own split, whose test clips are those with an index below 5;
- the family of a rendered instrument, on programs that neither model nor probe has heard.

The probe is scikit-learn's ``StandardScaler`` and ``LogisticRegression(C=0.1)``; the figure is balanced accuracy, which
on FSDD, where all classes are of one size, is accuracy. A seed draws 90 % of the probe's training clips, and the
weights of ``random``; the spread is the standard deviation over the seeds.

``OUT/results.csv`` has every single figure, ``OUT/results.md`` the table. Embeddings are kept under build/, by the
model's content.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import torchbeats
from torchbeats import BEATs, BEATsConfig, audio
from torchbeats.batching import batches_of_like_length
from torchbeats.cli.console import console, remark
from torchbeats.fbank import Fbank
from torchbeats.files import replacing, sha256
from torchbeats.patches import SAMPLE_RATE, PatchGrid, frames

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

SHARE = 0.9  # of the training clips that a seed draws
PER_FAMILY = 60  # clips of an instrument family, on either side: the probe needs no more
BATCH_SECONDS = 60.0
COLUMNS = ("model", "task", "fold", "pooling", "layer", "seed", "accuracy")
TASKS = ("digits, other speaker", "digits", "speakers", "instruments")


# --- what is asked ----------------------------------------------------------------------------------------------------


class Clips:
    """Sounds that are decoded when first wanted."""

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name, self.paths = name, paths
        listing = "".join(f"{path.name} {path.stat().st_size}\n" for path in paths)
        self.key = f"{name}-{hashlib.sha256(listing.encode()).hexdigest()[:8]}"

    @cached_property
    def samples(self) -> list[audio.Floats]:
        """``(samples,)`` each, filled up with silence to the shortest that a model takes."""
        shortest = PatchGrid().min_samples
        loaded = [audio.load(path) for path in _shown(self.paths, f"decoding {self.name}")]
        return [np.pad(clip, (0, max(0, shortest - len(clip)))) for clip in loaded]

    def batches(self, doing: str) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Indices, ``(B, samples)`` and ``(B,)`` lengths of clips of like length."""
        lengths = [len(clip) for clip in self.samples]
        for batch in _shown(list(batches_of_like_length(lengths, BATCH_SECONDS * SAMPLE_RATE)), doing):
            wav = torch.zeros(len(batch), max(lengths[index] for index in batch))
            for row, index in zip(wav, batch, strict=True):
                row[: lengths[index]] = torch.from_numpy(self.samples[index])
            yield batch, wav, torch.tensor([lengths[index] for index in batch])


class Task(NamedTuple):
    """Classes to be told apart, and for each fold which clips the probe is tested on."""

    name: str
    clips: Clips
    target: Array
    folds: dict[str, Array]


def spoken_digits(folder: Path) -> list[Task]:
    """The three tasks on the Free Spoken Digit Dataset, ``{digit}_{speaker}_{index}.wav``."""
    paths = sorted(folder.glob("*_*_*.wav"))
    if not paths:
        raise SystemExit(f"{folder} holds no files named as FSDD's are, {{digit}}_{{speaker}}_{{index}}.wav.")
    digits, speakers, indices = map(np.array, zip(*(path.stem.split("_") for path in paths), strict=True))
    clips, test = Clips("fsdd", paths), indices.astype(int) < 5
    return [
        Task(TASKS[0], clips, digits, {str(name): speakers == name for name in np.unique(speakers)}),
        Task(TASKS[1], clips, digits, {"official": test}),
        Task(TASKS[2], clips, speakers, {"official": test}),
    ]


def instruments(folder: Path) -> Task:
    """Families of rendered instruments; the split of the manifest keeps a program on one side."""
    manifest = folder / "manifest.csv"
    if not manifest.exists():
        raise SystemExit(f"There is no {manifest}; `python recipes/nano/fetch.py --out {folder}` makes it.")
    sides: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    with manifest.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["corpus"] == "instruments":
                sides[row["label"], row["split"]].append(row)
    families = sorted({label for label, split in sides if split == "heldout"} & {label for label, _ in sides})
    chosen = [row for side in sorted(sides) if side[0] in families for row in _spread(sides[side])]
    if not {"train", "heldout"} <= {row["split"] for row in chosen}:
        raise SystemExit(f"{manifest} has no instruments on both sides of the split; make that corpus first.")
    test = np.array([row["split"] == "heldout" for row in chosen])
    clips = Clips("instruments", [folder / row["path"] for row in chosen])
    return Task(TASKS[3], clips, np.array([row["label"] for row in chosen]), {"heldout": test})


def _spread(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """`PER_FAMILY` rows, as even over the groups as they allow."""
    turn: dict[str, int] = defaultdict(int)
    order = []
    for index in np.random.default_rng(0).permutation(len(rows)):
        group = rows[index]["group"]
        order.append((turn[group], group, index))
        turn[group] += 1
    return [rows[index] for _, _, index in sorted(order)[:PER_FAMILY]]


# --- what is known ----------------------------------------------------------------------------------------------------


class Source:
    """A row of the table: something that makes embeddings.

    Args:
        name: of the row.
        path: a model's file, or ``random`` or ``logmel``.
        config: of fresh weights.
        cache: folder of embeddings that were made before.
    """

    def __init__(self, name: str, path: str, config: BEATsConfig, cache: Path) -> None:
        self.name, self.path, self.config, self.cache = name, path, config, cache
        self.drawn = path == "random"  # then each seed has weights of its own

    def features(self, clips: Clips, seed: int, every_layer: bool = False, pooling: str = "bands") -> Array:
        """``(N, parts, C)``, or ``(layers + 1, N, parts, C)``; the parts are 8 bands, or log-mel's two statistics.

        With the pooling ``statistics`` the bands' means are followed by their deviations.
        """
        kind = ("-layers" if every_layer else "") + (f"-{pooling}" if pooling != "bands" else "")
        file = self.cache / f"{self._key(seed)}-{clips.key}{kind}.npy"
        if file.exists():
            made: Array = np.load(file)
            return made
        doing = f"{self.name}: {clips.name}"
        if self.path == "logmel":
            made = log_mel(clips, doing)
        else:
            made = bands(self._model(seed), clips, doing, every_layer, pooling)
        with replacing(file) as temporary, temporary.open("wb") as opened:
            np.save(opened, made)
        return made

    def _model(self, seed: int) -> BEATs:
        if not self.drawn:
            model = torchbeats.load(self.path)
            if not isinstance(model, BEATs):
                raise SystemExit(f"{self.path} is a tokenizer; embeddings need a model.")
            return model
        torch.manual_seed(seed)
        return BEATs(self.config)

    def _key(self, seed: int) -> str:
        if self.path == "logmel":
            return "logmel"
        if not self.drawn:
            return sha256(self.path)[:16]
        settings = json.dumps(self.config.to_dict(), sort_keys=True)
        return f"random-{seed}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


@torch.inference_mode()
def bands(model: BEATs, clips: Clips, doing: str, every_layer: bool, pooling: str = "bands") -> Array:
    """Means over time, the bands kept: of the final layer, or of the encoder's input and every layer."""
    made: list[Array] = [np.empty(0)] * len(clips.paths)
    for batch, wav, lengths in clips.batches(doing):
        encoded, hiddens = model.encode_features(model.preprocess(wav), lengths, output_all_hiddens=every_layer)
        pooled = torch.stack([encoded._replace(x=x).pool(pooling) for x in hiddens or [encoded.x]], dim=1)
        for index, clip in zip(batch, pooled.unflatten(2, (-1, encoded.x.size(2))).numpy(), strict=True):
            made[index] = clip
    layers = np.stack(made, axis=1)
    return layers if every_layer else layers[0]


@torch.inference_mode()
def log_mel(clips: Clips, doing: str) -> Array:
    """Mean and standard deviation over each clip's own frames, ``(N, 2, 128)``."""
    made, fbank = np.empty((len(clips.paths), 2, 128), np.float32), Fbank()
    for batch, wav, lengths in clips.batches(doing):
        for index, clip, count in zip(batch, fbank(wav), frames(lengths).tolist(), strict=True):
            made[index] = torch.stack([clip[:count].mean(0), clip[:count].std(0, correction=0)]).numpy()
    return made


def pooled(features: Array, pooling: str) -> Array:
    """``(N, parts, C)`` to ``(N, D)``. All bands have equally many patches, so their mean is that of all patches."""
    return features.mean(1) if pooling == "mean" else features.reshape(len(features), -1)


# --- what comes of it -------------------------------------------------------------------------------------------------


def probe(x: Array, target: Array, test: Array, seed: int) -> float:
    """Balanced accuracy in percent of a linear probe that has seen 90 % of the clips not in ``test``."""
    train = np.flatnonzero(~test)
    seen = np.random.default_rng(seed).choice(train, round(SHARE * len(train)), replace=False)
    scale = StandardScaler().fit(x[seen])
    # Against a solver run to 1e-6 in float64, this is 0.1 off in the mean over speakers; a tolerance of 1e-3 is 3 off.
    classifier = LogisticRegression(C=0.1, max_iter=1000).fit(scale.transform(x[seen]), target[seen])
    return 100 * float(balanced_accuracy_score(target[test], classifier.predict(scale.transform(x[test]))))


class Figure(NamedTuple):
    """One line of results.csv."""

    model: str
    task: str
    fold: str
    pooling: str
    layer: str  # a number, or "final"
    seed: int
    accuracy: float


def measure(source: Source, tasks: Sequence[Task], seeds: int) -> Iterator[Figure]:
    """All figures of one model's final layer."""
    poolings = ("mean+deviation",) if source.path == "logmel" else ("bands", "mean")
    for seed in range(seeds):
        for task in tasks:
            features = source.features(task.clips, seed if source.drawn else 0)
            for pooling in poolings:
                x = pooled(features, pooling)
                for fold, test in task.folds.items():
                    accuracy = probe(x, task.target, test, seed)
                    yield Figure(source.name, task.name, fold, pooling, "final", seed, accuracy)


def measure_layers(source: Source, task: Task) -> Iterator[Figure]:
    """Figures of the encoder's input, layer 0, and of each layer, with one seed."""
    for layer, features in enumerate(source.features(task.clips, 0, every_layer=True)):
        for pooling in ("bands", "mean"):
            x = pooled(features, pooling)
            for fold, test in task.folds.items():
                yield Figure(source.name, task.name, fold, pooling, str(layer), 0, probe(x, task.target, test, 0))


def write(figures: Sequence[Figure], tasks: Sequence[Task], seeds: int, out: Path) -> None:
    """The csv with every figure, and the table."""
    with replacing(out / "results.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((*figure[:-1], f"{figure.accuracy:.2f}") for figure in figures)
    with replacing(out / "results.md") as temporary:
        temporary.write_text("\n".join(_report(figures, tasks, seeds)) + "\n", "utf-8")


def _report(figures: Sequence[Figure], tasks: Sequence[Task], seeds: int) -> Iterator[str]:
    by: dict[tuple[str, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for f in figures:
        by[f.model, f.task, "bands" if f.pooling == "mean+deviation" else f.pooling, f.layer][f.seed].append(f.accuracy)

    def cell(*key: str) -> str:
        means = [statistics.mean(folds) for folds in by.get(key, {}).values()]
        spread = f" ± {statistics.stdev(means):.1f}" if len(means) > 1 else ""
        return f"{statistics.mean(means):.1f}{spread}" if means else "–"

    def row(*cells: str) -> str:
        return f"| {' | '.join(cells)} |"

    poolings = ("bands", "mean")
    columns = [(task.name, pooling) for task in tasks for pooling in poolings]
    yield f"""\
Made by `recipes/nano/evaluate.py`, where it says how. Balanced accuracy of a linear probe on frozen embeddings, in
percent: mean ± standard deviation over {seeds} seeds, which draw the probe's training clips, and the weights of
`random`. The spread says nothing of other speakers and instruments, nor of another pre-training run. `bands`: mean over
time, the 8 bands kept; `mean`: over all patches. `logmel` has one pooling, mean and deviation over time.
"""
    yield row("", *(f"{task}, {pooling}" for task, pooling in columns))
    yield row("---", *["--:"] * len(columns))
    yield row("chance", *(f"{100 / len(np.unique(task.target)):.1f}" for task in tasks for _ in poolings))
    names = dict.fromkeys(f.model for f in figures)
    for name in names:
        yield row(name, *(cell(name, *column, "final") for column in columns))
    if layers := sorted({int(f.layer) for f in figures if f.layer != "final"}):
        yield f"\n{TASKS[0].capitalize()}, layer by layer, one seed; 0 is the encoder's input.\n"
        yield row("", "pooling", *map(str, layers))
        yield row("---", "---", *["--:"] * len(layers))
        for name in names:
            for pooling in poolings:
                if (name, TASKS[0], pooling, "0") in by:
                    yield row(name, pooling, *(cell(name, TASKS[0], pooling, str(layer)) for layer in layers))


def _shown(items: Sequence[Any], doing: str) -> Any:
    """The items, with a bar for a person at a terminal."""
    return track(items, doing, console=console, disable=not console.is_terminal, transient=True)


def main() -> None:
    """Measures the models one by one; the table is there, and whole, behind each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=PATH", help="a row; random and logmel need no name")
    parser.add_argument("--fsdd", type=Path, required=True, metavar="FOLDER", help="the Free Spoken Digit Dataset")
    parser.add_argument("--audio", type=Path, required=True, metavar="FOLDER", help="what fetch.py made")
    parser.add_argument("--out", type=Path, default=Path("recipes/nano/results"), help="folder (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--layers", action="store_true", help="also digits on another speaker for every layer")
    parser.add_argument("--cache", type=Path, default=Path("build/nano/embeddings"), help=argparse.SUPPRESS)
    options = parser.parse_args()

    rows = [(name, path or name) for name, _, path in (given.partition("=") for given in options.models)]
    files = [path for _, path in rows if path not in ("random", "logmel")]
    if missing := [path for path in files if not os.path.isfile(path)]:
        sys.exit(f"There is no model {missing[0]}.")
    # Fresh weights hear the same normalised features as the models that they stand beside.
    normalisation = torchbeats.load(files[0]).cfg if files else BEATsConfig()
    statistics_of = {name: getattr(normalisation, name) for name in ("fbank_mean", "fbank_std")}
    config = BEATsConfig(torchbeats.SIZES["nano"], **statistics_of)

    tasks = [*spoken_digits(options.fsdd), instruments(options.audio)]
    figures: list[Figure] = []
    for name, path in rows:
        source, start = Source(name, path, config, options.cache), time.monotonic()
        figures += measure(source, tasks, options.seeds)
        if options.layers and path != "logmel":
            figures += measure_layers(source, tasks[0])
        write(figures, tasks, options.seeds, options.out)
        remark(f"{name}: {time.monotonic() - start:.0f} s")
    print((options.out / "results.md").read_text("utf-8"), end="")


if __name__ == "__main__":
    main()

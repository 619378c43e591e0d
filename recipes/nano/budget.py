"""What pays in pre-training: every row of a table is a run with the same processor time.

    python recipes/nano/budget.py --audio build/nano/audio --fsdd fsdd/recordings --out build/nano/budget

Each row is one iteration, on random-projection labels where it says nothing else, with nano.yaml and what `ROWS` says
of it, once for each seed; `fresh` is what all begin with. A trial of some steps tells what a step costs on one core,
and so how many steps there are in the budget; the learning rate rises and falls over just those. Then linear probes
ask what the model knows, as in evaluate.py: digits by other speakers, and the families of instruments where the
manifest has them, with all three poolings. A run's seed draws its weights, sounds and masks, and the clips that its
probes are fitted on.

Results are written behind each run: ``RESULTS/budget.csv`` has every figure, ``budget.md`` the table, ``budget.png``
the picture. What was stopped goes on, run by run, where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import evaluate
import matplotlib
import torch

from torchbeats import BEATsConfig
from torchbeats.files import replacing, write_json
from torchbeats.training.configuring import settings
from torchbeats.training.listener import Listener
from torchbeats.training.run import Run
from torchbeats.training.settings import Settings

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
# Short batches where there are several masks, so that a step is no dearer; 10 s is the longest crop of nano.yaml.
ROWS: dict[str, tuple[str, list[str]]] = {
    "fresh": ("weights as they are drawn: one step at no rate worth the name", ["model.lr=1e-12"]),
    "paper": ("one mask of single patches, 160 ms, as nano.yaml has it", []),
    "masks": ("four masks a clip", ["model.masks=4", "data.batch_seconds=10"]),
    "blocks": ("four masks, seen in blocks of 2 × 2", ["model.masks=4", "model.mask_block=2", "data.batch_seconds=10"]),
    "mix": ("half of the clips with another one on top", ["model.mix=0.5"]),
    "utterance": ("a second loss, for the clip as a whole", ["model.utterance=0.5"]),
    "short": ("crops of 0.6 and 1 s, batches of 32 s", ["data.crop_seconds=[0.6, 1]", "data.batch_seconds=32"]),
    "80 ms": ("patches of 8 × 8: steps of 80 ms, 16 bands", ["config.input_patch_size=8"]),
    "teacher": (
        "no labels: the layers of a teacher that follows the model",
        ["model.targets=teacher", "model.teacher_decay=0.99"],
    ),
}
WARMUP = 0.08  # share of the steps, as in nano.yaml
TRIAL_STEPS, TRIAL_SKIPS = 72, 8  # the first steps are slower
POOLINGS = ("statistics", "bands", "mean")
COLUMNS = ("row", "seed", "steps", "minutes", "task", "fold", "pooling", "accuracy")


class Stopwatch(Listener):
    """Counts the processor time of training, step by step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    @contextmanager
    def work(self, name: str, total: float | None, unit: str) -> Iterator[Callable[[float, str], None]]:
        """Around a phase; only training has steps."""
        yield lambda more, remark: self.times.append(time.process_time()) if unit == "steps" else None

    def warn(self, message: str) -> None:
        """A collapse, say."""
        print(message, flush=True)

    @property
    def seconds(self) -> float:
        """Of all steps so far."""
        return self.times[-1] - self.times[0] if self.times else 0.0


class Figure(NamedTuple):
    """A line of budget.csv."""

    row: str
    seed: int
    steps: int
    minutes: float
    task: str
    fold: str
    pooling: str
    accuracy: float


def chosen(row: str, seed: int, steps: int, more: Sequence[str]) -> Settings:
    """The settings of a run."""
    one_core = ("data.workers=0", "trainer.accelerator=cpu", "trainer.devices=1")
    length = (f"model.steps={steps}", f"model.warmup={round(WARMUP * steps)}", "iterations=1", f"seed={seed}")
    return settings("nano", HERE / "nano.yaml", [*one_core, *more, *ROWS[row][1], *length])


def train(folder: Path, sounds: Path, of: Settings, shared: Path) -> Stopwatch:
    """Train, or go on; the index of the sounds and their statistics are made once for all runs."""
    watch = Stopwatch()
    run = Run(folder, [str(sounds)], of, listener=watch)
    for name in ("corpus.parquet", "statistics.json"):
        if (shared / name).exists() and not (folder / name).exists():
            shutil.copyfile(shared / name, folder / name)
    try:
        run.train()
    finally:
        for name in ("corpus.parquet", "statistics.json"):
            if (folder / name).exists() and not (shared / name).exists():
                shutil.copyfile(folder / name, shared / name)
        spent = folder / "seconds.json"  # of processor time, over all sittings
        before = json.loads(spent.read_text("utf-8")) if spent.exists() else 0.0
        write_json(spent, before + watch.seconds)
    return watch


def steps_within(row: str, seconds: float, sounds: Path, more: Sequence[str], out: Path) -> int:
    """How many steps of a row there are in a processor time; found out once, by a trial."""
    file = out / f"{row}.json"
    if not file.exists():
        trial = out / f"{row}.trial"
        shutil.rmtree(trial, ignore_errors=True)
        times = train(trial, sounds, chosen(row, 0, TRIAL_STEPS, more), out).times
        write_json(file, {"seconds a step": (times[-1] - times[TRIAL_SKIPS]) / (len(times) - 1 - TRIAL_SKIPS)})
        shutil.rmtree(trial)
    return max(1, round(seconds / json.loads(file.read_text("utf-8"))["seconds a step"]))


def measure(
    model: Path, tasks: Sequence[evaluate.Task], seed: int, cache: Path
) -> Iterator[tuple[str, str, str, float]]:
    """Task, fold, pooling and balanced accuracy in percent."""
    source = evaluate.Source(model.parent.name, str(model), BEATsConfig(), cache)
    for task in tasks:
        features = source.features(task.clips, seed, pooling="statistics")  # (N, 2 bands, C), the means first
        means = features[:, : features.shape[1] // 2]
        poolings = (features.reshape(len(features), -1), means.reshape(len(means), -1), means.mean(1))
        for pooling, x in zip(POOLINGS, poolings, strict=True):
            for fold, test in task.folds.items():
                yield task.name, fold, pooling, evaluate.probe(x, task.target, test, seed)


def result(row: str, seed: int, options: argparse.Namespace, tasks: Sequence[evaluate.Task]) -> list[Figure]:
    """All figures of a run, which is made if it is not there."""
    folder = options.out / f"{row}-{seed}"
    file = folder / "figures.csv"
    if not file.exists():
        sounds = options.audio / "train.csv"
        seconds = 60 * options.minutes
        steps = 1 if row == "fresh" else steps_within(row, seconds, sounds, options.set, options.out)
        if not (folder / "model.safetensors").exists():
            print(f"{row}, seed {seed}: {steps:,} steps", flush=True)
            train(folder, sounds, chosen(row, seed, steps, options.set), options.out)
        minutes = json.loads((folder / "seconds.json").read_text("utf-8")) / 60
        figures = [
            Figure(row, seed, steps, round(minutes, 4), *found)
            for found in measure(folder / "model.safetensors", tasks, seed, options.out / "embeddings")
        ]
        write(file, figures)
    with file.open(newline="", encoding="utf-8") as stream:
        return [
            Figure(d["row"], int(d["seed"]), int(d["steps"]), float(d["minutes"]), d["task"], d["fold"], d["pooling"],
                   float(d["accuracy"]))
            for d in csv.DictReader(stream)
        ]  # fmt: skip


def write(file: Path, figures: Sequence[Figure]) -> None:
    """A CSV file that is complete or absent."""
    with replacing(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((*figure[:-1], f"{figure.accuracy:.2f}") for figure in figures)


def by_cell(figures: Sequence[Figure]) -> dict[tuple[str, str, str], list[float]]:
    """Row, task and pooling → the mean over the folds of each seed."""
    folds: dict[tuple[str, str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for f in figures:
        folds[f.row, f.task, f.pooling][f.seed].append(f.accuracy)
    return {key: [statistics.mean(values) for values in seeds.values()] for key, seeds in folds.items()}


def table(figures: Sequence[Figure], minutes: float) -> str:
    """The table in Markdown."""
    cells = by_cell(figures)
    columns = [(task, pooling) for task in dict.fromkeys(f.task for f in figures) for pooling in POOLINGS]
    lines = [
        f"Made by `recipes/nano/budget.py`: {minutes:g} minutes of processor time on one core for each run, and "
        "one iteration, on random-projection labels but for `teacher`. Balanced accuracy of a linear probe, in "
        "percent, the mean over speakers; ± is the standard deviation over seeds, where there are several.",
        "",
        f"| row | what | runs | steps | minutes | {' | '.join(f'{task}, {pooling}' for task, pooling in columns)} |",
        f"|---|---|--:|--:|--:|{'--:|' * len(columns)}",
    ]
    for row in dict.fromkeys(f.row for f in figures):
        of_row = [f for f in figures if f.row == row]
        runs = {f.seed: f for f in of_row}.values()
        spent = statistics.mean(f.minutes for f in runs)
        values = []
        for column in columns:
            means = cells[(row, *column)]
            spread = f" ± {statistics.stdev(means):.1f}" if len(means) > 1 else ""
            values.append(f"{statistics.mean(means):.1f}{spread}")
        about = [row, ROWS[row][0], str(len(runs)), f"{of_row[0].steps:,}", f"{spent:.1f}"]
        lines.append(f"| {' | '.join([*about, *values])} |")
    return "\n".join(lines) + "\n"


def draw(figures: Sequence[Figure], file: Path) -> None:
    """A dot for each run, a panel for each task, a colour for each pooling."""
    cells = by_cell(figures)
    rows, tasks = list(dict.fromkeys(f.row for f in figures)), list(dict.fromkeys(f.task for f in figures))
    shown, panels = plt.subplots(1, len(tasks), figsize=(4.5 * len(tasks), 1 + 0.45 * len(rows)), squeeze=False)
    for task, axes in zip(tasks, panels[0], strict=True):
        for number, pooling in enumerate(POOLINGS):
            points = [(value, place) for place, row in enumerate(rows) for value in cells[row, task, pooling]]
            axes.plot(*zip(*points, strict=True), "o", color=f"C{number}", label=pooling)
        axes.set(title=task, xlabel="balanced accuracy (%)", yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticklabels(rows if axes is panels[0][0] else [])
        axes.grid(alpha=0.3)
    panels[0][0].legend(fontsize="small")
    shown.tight_layout()
    with replacing(file) as temporary:
        shown.savefig(temporary, dpi=100, format="png")
    plt.close(shown)


def main() -> None:
    """Makes run after run, all rows of the first seed first; the table is there, and whole, behind each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True, metavar="FOLDER", help="what fetch.py made")
    parser.add_argument("--fsdd", type=Path, required=True, metavar="FOLDER", help="the Free Spoken Digit Dataset")
    parser.add_argument("--out", type=Path, default=Path("build/nano/budget"), help="the runs (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("recipes/nano/results"), help="folder of the table")
    parser.add_argument("--minutes", type=float, default=60.0, help="processor time of a run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each row (default: %(default)s)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="only these")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all rows, over nano.yaml")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    about = {"minutes": options.minutes, "set": options.set, "audio": str(options.audio.resolve())}
    plan = options.out / "plan.json"
    if plan.exists() and json.loads(plan.read_text("utf-8")) != about:
        raise SystemExit(f"{options.out} holds runs that were made otherwise, see {plan}; name another --out.")
    write_json(plan, about)
    tasks = evaluate.spoken_digits(options.fsdd)[:1]
    with (options.audio / "manifest.csv").open(newline="", encoding="utf-8") as manifest:
        if any(line["corpus"] == "instruments" for line in csv.DictReader(manifest)):
            tasks.append(evaluate.instruments(options.audio))
    figures: list[Figure] = []
    for seed in range(options.seeds):
        for row in options.rows:
            figures += result(row, seed, options, tasks)
            in_order = sorted(figures, key=lambda f: list(ROWS).index(f.row))
            write(options.results / "budget.csv", in_order)
            with replacing(options.results / "budget.md") as temporary:
                temporary.write_text(table(in_order, options.minutes), "utf-8")
            draw(in_order, options.results / "budget.png")
    print((options.results / "budget.md").read_text("utf-8"), end="")


if __name__ == "__main__":
    main()

"""Spoken digits from speakers never heard: a linear probe and fine-tuning, from a model and from random weights.

    python recipes/fsdd/run.py --fsdd FSDD/recordings --out build/fsdd --results recipes/fsdd/results

Runs `torchbeats probe` and `torchbeats finetune --cross-validate`, each speaker left out in turn, once for every seed,
and writes every figure to RESULTS/results.csv, and the table to RESULTS/results.md. A run that was stopped goes on.
``random`` stands for a model of the same size and front end with fresh weights, drawn with the seed.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

import torchbeats
from torchbeats import BEATs, BEATsConfig
from torchbeats.cli.console import console
from torchbeats.files import replacing

HERE = Path(__file__).parent
COLUMNS = ("model", "method", "seed", "speaker", "accuracy")
METHODS = ("k-NN", "linear probe", "fine-tuning")


def write_list(recordings: Path, file: Path) -> list[str]:
    """A row for each ``{digit}_{speaker}_{index}.wav``; returns the speakers."""
    paths = sorted(recordings.resolve().glob("*_*_*.wav"))
    if not paths:
        raise SystemExit(f"{recordings} holds no files named as FSDD's are, {{digit}}_{{speaker}}_{{index}}.wav.")
    rows = [(str(path), *path.stem.split("_")[:2]) for path in paths]
    with replacing(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "label", "group"), *rows])
    return sorted({speaker for _, _, speaker in rows})


def fresh(like: str, seed: int, file: Path) -> str:
    """A model with the configuration of another and weights of its own."""
    if not file.exists():
        cfg = BEATsConfig({**torchbeats.load(like).cfg.to_dict(), "finetuned_model": False})
        torch.manual_seed(seed)
        torchbeats.save(BEATs(cfg), file)
    return str(file)


def torchbeats_command(*arguments: object) -> dict[str, Any]:
    """What a command prints as JSON."""
    command = [sys.executable, "-m", "torchbeats", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"Failed: {' '.join(command)}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(rows: list[tuple[Any, ...]]) -> str:
    """Mean over the speakers and standard deviation over the seeds, a row a model."""
    by_seed: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for model, method, seed, _, accuracy in rows:
        by_seed[model, method][seed].append(float(accuracy))
    models = list(dict.fromkeys(model for model, *_ in rows))
    lines = [f"|  | {' | '.join(METHODS)} |", "| --- |" + " --: |" * len(METHODS)]
    for model in models:
        cells = []
        for method in METHODS:
            means = [statistics.mean(values) for values in by_seed[model, method].values()]
            spread = f" ± {statistics.stdev(means):.1f}" if len(means) > 1 else ""
            cells.append(f"{statistics.mean(means):.1f}{spread}" if means else "–")
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs what is not done yet, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fsdd", type=Path, required=True, help="the folder with the recordings")
    parser.add_argument("--out", type=Path, default=Path("build/fsdd"), help="folder of the runs (%(default)s)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the table (%(default)s)")
    parser.add_argument("--model", default="beats-nano", help="to begin with, by name or file (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="number of them (%(default)s)")
    parser.add_argument("--random-seeds", type=int, help="of the runs from random weights; as many where not given")
    parser.add_argument("--only", choices=("model", "random"), help="one half; the other's figures are kept")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to finetune")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    speakers = write_list(options.fsdd, out / "list.csv")
    name = Path(options.model).stem
    random_seeds = options.seeds if options.random_seeds is None else options.random_seeds
    todo = [(name, seed) for seed in range(options.seeds)] * (options.only != "random")
    todo += [("random", seed) for seed in range(random_seeds)] * (options.only != "model")
    results = options.results / "results.csv"
    rows: list[tuple[Any, ...]] = []
    if results.exists():
        with results.open(newline="", encoding="utf-8") as file:
            kept = list(csv.reader(file))[1:]
        rows = [(m, how, int(s), *rest) for m, how, s, *rest in kept if (m, int(s)) not in todo]
    settings = [argument for one in options.set for argument in ("--set", one)]
    for model, seed in track(todo, "Runs", console=console, disable=not console.is_terminal):
        weights = options.model if model == name else fresh(options.model, seed, out / f"random-{seed}.safetensors")
        if model == "random" or seed == 0:  # the probe of a given model knows no chance
            found = torchbeats_command("probe", out / "list.csv", "--model", weights, "--format", "json")
            for result in found["results"]:
                method = "k-NN" if result["classifier"] == "k-NN" else "linear probe"
                rows += [
                    (model, method, seed, speaker, f"{100 * value:.2f}")
                    for speaker, value in zip(speakers, result["by_fold"], strict=True)
                ]
        begun = time.monotonic()
        found = torchbeats_command(
            "finetune", out / "list.csv", "--model", weights, "--out", out / f"{model}-{seed}", "--cross-validate",
            "--config", HERE / "finetune.yaml", "--seed", seed, "--format", "json", *settings,
        )  # fmt: skip
        print(f"{model}, seed {seed}: {100 * found['figures']['accuracy']:.1f} %, {time.monotonic() - begun:.0f} s")
        rows += [
            (model, "fine-tuning", seed, speaker, f"{100 * value:.2f}")
            for speaker, value in zip(speakers, found["by_fold"], strict=True)
        ]
    rows.sort(key=lambda row: (row[0] == "random", row[0], METHODS.index(row[1]), row[2], row[3]))
    with replacing(results) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    with replacing(options.results / "results.md") as temporary:
        temporary.write_text(table(rows), "utf-8")
    print(table(rows), end="")


if __name__ == "__main__":
    main()

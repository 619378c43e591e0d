"""Spoken digits from speakers never heard: a linear probe and fine-tuning, from a model and from random weights.

    python recipes/fsdd/run.py --fsdd FSDD/recordings --out build/fsdd --results recipes/fsdd/results

Leaves each speaker out in turn, once for every seed, and learns from all words of the others, or from a few of each
digit. Every figure goes to RESULTS/results.csv, and the table to RESULTS/results.md. What is done is not done again, so
a run that was stopped goes on; several at once may do different speakers (--speakers) in the same OUT, and one without
that option then writes all.
``random`` stands for a model of the same size and front end with fresh weights, drawn with the seed.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torchbeats
from torchbeats import BEATs, BEATsConfig
from torchbeats.cli.training import Display
from torchbeats.data.folds import Design, Fold, design
from torchbeats.data.labelled import Labelled, read_labelled
from torchbeats.evaluation import metrics
from torchbeats.evaluation.probe import CLASSIFIERS, probe
from torchbeats.evaluation.rows import rows_of
from torchbeats.files import replacing, write_json
from torchbeats.plans import EmbeddingPlan
from torchbeats.training.configuring import finetune_settings
from torchbeats.training.defaults import DataSize
from torchbeats.training.finetune_run import Finetune
from torchbeats.training.validation import scored

HERE = Path(__file__).parent
COLUMNS = ("model", "words", "method", "seed", "speaker", "accuracy")
METHODS = ("k-NN", "linear probe", "fine-tuning")
ALL = 0  # words of a digit that are learned from; what else stands there is a number of them


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


def few(labelled: Labelled, fold: Fold, words: int, seed: int) -> Fold:
    """A fold with so many words of each digit to learn from, whoever of the other speakers says them."""
    random = np.random.default_rng([seed, words, int(fold.test[0])])
    truth = labelled.targets()[fold.train]
    rows = [random.choice(np.flatnonzero(truth == k), words, replace=False) for k in range(len(labelled.classes))]
    return Fold(fold.train[np.sort(np.concatenate(rows))], fold.test)


def probes(weights: str, labelled: Labelled, plan: Design, file: Path) -> dict[str, list[float]]:
    """Accuracy of each probe of the frozen model on each speaker."""
    if file.exists():
        found: dict[str, list[float]] = json.loads(file.read_text("utf-8"))
        return found
    rows = rows_of(labelled.examples, torchbeats.load(weights).eval(), EmbeddingPlan("statistics"))
    names = dict(zip(CLASSIFIERS, ("linear probe", "k-NN"), strict=True))
    found = {names[kind]: probe(rows.values, labelled, plan, kind).by_fold for kind in CLASSIFIERS}
    write_json(file, found)
    return found


def fine_tuned(
    weights: str, labelled: Labelled, fold: Fold, words: int, seed: int, config: Path, more: list[str], out: Path
) -> float:
    """Accuracy on the speaker left out of a fine-tuning in the folder OUT, whose last epoch it is."""
    file = out / "accuracy.json"
    if not file.exists():
        training, test = labelled.subset(fold.train.tolist()), labelled.subset(fold.test.tolist())
        settings = finetune_settings(config, more, seed=seed)
        if words != ALL:  # as many epochs, and so on, as their number suggests
            longest = settings.data.seconds
            sized = finetune_settings(None, [f"data.seconds={longest}"], DataSize.of(training, longest))
            settings.data.batch_seconds, m = sized.data.batch_seconds, sized.model
            settings.model = replace(settings.model, epochs=m.epochs, lr=m.lr, average=m.average, head_first=True)
        begun = time.monotonic()
        model = Finetune(out, torchbeats.load(weights), training, None, settings, {}, Display()).train()
        rows = scored(torchbeats.load(model), test, settings.data, lambda failure: print(failure))
        accuracy = metrics.accuracy(test.subset(rows.indices.tolist()).targets(), rows.values)
        print(f"{out.name}: {accuracy:.1%}, {time.monotonic() - begun:.0f} s", flush=True)
        write_json(file, accuracy)
    return float(json.loads(file.read_text("utf-8")))


def tables(rows: list[tuple[Any, ...]]) -> str:
    """Mean over the speakers and standard deviation over the seeds: a row a model and number of words."""
    by_seed: dict[tuple[str, int, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for model, words, method, seed, _, accuracy in rows:
        by_seed[model, int(words), method][seed].append(float(accuracy))
    lines = [
        f"| from | words a digit | {' | '.join(METHODS)} | seeds |",
        "| --- | --: |" + " --: |" * (len(METHODS) + 1),
    ]
    for model, words in dict.fromkeys((row[0], int(row[1])) for row in rows):
        cells = []
        for method in METHODS:
            means = [statistics.mean(values) for values in by_seed[model, words, method].values()]
            spread = f" ± {statistics.stdev(means):.1f}" if len(means) > 1 else ""
            cells.append(f"{statistics.mean(means):.1f}{spread}" if means else "–")
        count = len(by_seed[model, words, "fine-tuning"])
        lines.append(f"| {model} | {words or 'all, 250'} | {' | '.join(cells)} | {count} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs what is not done yet, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fsdd", type=Path, required=True, help="the folder with the recordings")
    parser.add_argument("--out", type=Path, default=Path("build/fsdd"), help="folder of the runs (%(default)s)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the tables (%(default)s)")
    parser.add_argument("--model", default="beats-nano", help="to begin with, by name or file (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="number of them (%(default)s)")
    parser.add_argument("--random-seeds", type=int, help="of the runs from random weights; as many where not given")
    parser.add_argument(
        "--words", type=int, nargs="+", default=[ALL, 4, 16], help="of each digit to learn from; 0: all"
    )
    parser.add_argument("--speakers", nargs="+", help="do these only, and write no tables")
    parser.add_argument("--config", type=Path, default=HERE / "finetune.yaml", help="of the fine-tuning (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting over the recipe's")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    about = {"model": torchbeats.load(options.model).digest(), "set": options.set}
    about["config"] = options.config.read_text("utf-8")
    plan_file = out / "plan.json"  # figures that are there are not made again, so they have to be of these settings
    if plan_file.exists() and json.loads(plan_file.read_text("utf-8")) != about:
        raise SystemExit(f"{out} holds runs that were made otherwise, see {plan_file}; name another --out.")
    write_json(plan_file, about)
    speakers = write_list(options.fsdd, out / "list.csv")
    labelled = read_labelled([out / "list.csv"])
    held_out = design(labelled)
    random_seeds = options.seeds if options.random_seeds is None else options.random_seeds
    models = [(Path(options.model).stem, seed) for seed in range(options.seeds)]
    models += [("random", seed) for seed in range(random_seeds)]
    rows: list[tuple[Any, ...]] = []
    for words in options.words:
        for model, seed in models:
            weights = (
                fresh(options.model, seed, out / f"random-{seed}.safetensors") if model == "random" else options.model
            )
            plan = held_out
            if words != ALL:
                plan = replace(
                    held_out, folds=[few(labelled, fold, words, seed) for fold in held_out.folds], groups=None
                )
            if not options.speakers and (words != ALL or model == "random" or seed == 0):  # it knows no chance else
                found = probes(weights, labelled, plan, out / f"probe-{model}-{seed}-{words}.json")
                for method, accuracies in found.items():
                    rows += [
                        (model, words, method, seed, speaker, f"{100 * value:.2f}")
                        for speaker, value in zip(speakers, accuracies, strict=True)
                    ]
            for speaker, fold in zip(speakers, plan.folds, strict=True):
                if speaker in (options.speakers or speakers):
                    folder = out / f"{model}-{seed}-{words}-{speaker}"
                    value = fine_tuned(weights, labelled, fold, words, seed, options.config, options.set, folder)
                    rows.append((model, words, "fine-tuning", seed, speaker, f"{100 * value:.2f}"))
    if options.speakers:
        return
    options.results.mkdir(parents=True, exist_ok=True)
    rows.sort(key=lambda row: (row[0] == "random", row[0], row[1], METHODS.index(row[2]), row[3], row[4]))
    with replacing(options.results / "results.csv") as temporary, temporary.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    with replacing(options.results / "results.md") as temporary:
        temporary.write_text(tables(rows), "utf-8")
    print(tables(rows), end="")


if __name__ == "__main__":
    main()

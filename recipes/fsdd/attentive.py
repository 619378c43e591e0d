"""The attentive probe on spoken digits from speakers never heard, once for every seed.

    python recipes/fsdd/attentive.py --fsdd FSDD/recordings --out build/fsdd --results recipes/fsdd/results

`torchbeats probe --head attentive` trains with seed 0; this is the same cross-validation with others too. Features are
computed once and kept in OUT. A seed's figures are written as soon as they are there; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from pathlib import Path

from run import HERE, write_list

import torchbeats
from torchbeats.cli.console import audio_progress, count_progress
from torchbeats.data.folds import design
from torchbeats.data.labelled import read_labelled
from torchbeats.evaluation.attentive import Training, attentive, total_epochs
from torchbeats.evaluation.features import plan_of, stored_features, write_features
from torchbeats.files import replacing
from torchbeats.plans import BATCH_SECONDS, WINDOW_SECONDS

COLUMNS = ("model", "seed", "speaker", "accuracy", "processor seconds", "layer weights")


def read(file: Path) -> list[list[str]]:
    """Rows of an earlier run."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))[1:]


def main() -> None:
    """Trains the heads that are not there yet, and prints the mean over the speakers and its spread over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fsdd", type=Path, required=True, help="the folder with the recordings")
    parser.add_argument("--out", type=Path, default=Path("build/fsdd"), help="folder of the features (%(default)s)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the table (%(default)s)")
    parser.add_argument("--model", default="beats-nano", help="by name or file (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="number of them (%(default)s)")
    parser.add_argument("--steps", type=int, default=Training.steps, help="of training, at least (%(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.results.mkdir(parents=True, exist_ok=True)
    speakers = write_list(options.fsdd, options.out / "list.csv")
    name, file = Path(options.model).stem, options.results / "attentive.csv"
    rows = read(file)
    todo = [seed for seed in range(options.seeds) if (name, str(seed)) not in {(row[0], row[1]) for row in rows}]
    labelled = read_labelled([options.out / "list.csv"])
    network, plan = torchbeats.load(options.model), plan_of(WINDOW_SECONDS, BATCH_SECONDS)

    def write(path: Path) -> None:
        with audio_progress(len(labelled.examples), 0) as progress:
            write_features(path, labelled.examples, network, plan, progress=progress)

    digest, settings = network.digest(), plan.settings(network)
    features, _ = stored_features(options.out, labelled.examples, digest, settings, write)
    held_out, training = design(labelled), Training(steps=options.steps)
    for seed in todo:
        begun = time.process_time()
        with count_progress(total_epochs(features, held_out, training), f"epochs of seed {seed}") as on_epoch:
            outcome, weights = attentive(features, labelled, held_out, seed, training, on_epoch)
        seconds = time.process_time() - begun
        shares = json.dumps([round(weight, 3) for weight in weights])
        rows += [
            [name, str(seed), speaker, f"{100 * accuracy:.2f}", f"{seconds:.0f}", shares]
            for speaker, accuracy in zip(speakers, outcome.by_fold, strict=True)
        ]
        with replacing(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *rows])
    print(table([row for row in rows if row[0] == name]), end="")


def table(rows: list[list[str]]) -> str:
    """A row a seed, a column a speaker, and the means."""
    speakers = list(dict.fromkeys(row[2] for row in rows))
    by_seed = {seed: {row[2]: float(row[3]) for row in rows if row[1] == seed} for seed in sorted({r[1] for r in rows})}
    means = [statistics.mean(values.values()) for values in by_seed.values()]
    lines = [f"| seed | {' | '.join(speakers)} | mean |", "| --- |" + " --: |" * (len(speakers) + 1)]
    for (seed, values), mean in zip(by_seed.items(), means, strict=True):
        lines.append(f"| {seed} | {' | '.join(f'{values[speaker]:.1f}' for speaker in speakers)} | {mean:.1f} |")
    spread = f" ± {statistics.stdev(means):.1f}" if len(means) > 1 else ""
    lines.append(f"| all |{' |' * len(speakers)} {statistics.mean(means):.1f}{spread} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

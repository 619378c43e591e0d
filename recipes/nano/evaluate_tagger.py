"""What taggers know, and whether they know it: the tables of the recipe's results.

    python recipes/nano/evaluate_tagger.py --lists build/nano first=OLD.safetensors now=NEW.safetensors

Each sound of the lists of tagger_lists.py is heard as `torchbeats tag` hears a file: the mean over windows of ten
seconds. Written are OUT/tagger.csv and OUT/tagger.md, which says what each figure is.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from everyday import OTHER

import torchbeats
from torchbeats.abstention import UNKNOWN, Abstention, Naming, Scored
from torchbeats.data.labelled import Labelled, read_labelled
from torchbeats.evaluation.metrics import roc_auc
from torchbeats.evaluation.rows import cached, rows_of
from torchbeats.files import replacing
from torchbeats.plans import ScorePlan

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

SETS = {
    "in domain": ("tagger.csv", "test"),
    "unheard programs": ("tagger-unheard.csv", None),
    "other collections": ("tagger-sources.csv", None),
    "no class": ("tagger-strange.csv", None),
}
BEFORE = {  # classes of the first tagger; sounds of others are strange to it
    "bass", "brass", "choir", "drums", "effect", "guitar", "mallets", "music", "noise", "organ", "piano", "silence",
    "speech", "strings", "synthesiser", "tone", "woodwind",
}  # fmt: skip
CONFIDENT = 0.8
ABOUT = f"""\
Made by `recipes/nano/evaluate_tagger.py`, from sounds of which nothing was trained on; all figures in percent but for
the AUROC. *in domain*: held-out speakers, files and notes of the collections that the tagger learned from. *the first
17 classes*: the same, of the classes that the first tagger has. *unheard programs*: instruments of which no note was
heard. *other collections*: sounds of known classes, recorded by others. *no class*: sounds that are none of the
classes; there nothing that is named is right.

**right**: mean over the classes of the share of sounds whose likeliest class is the right one, unknown or not.
**named right**: the same of the label that `torchbeats tag` writes first; "unknown" is not right. **unknown**: share of
the sounds that are called so, of the classes' mean where there are classes: false alarms, but with *no class*.
**wrong, and sure**: share of all sounds whose first label is a wrong class with a probability of {CONFIDENT} or more.
**AUROC**: how well the probability of the likeliest class tells right from wrong; 0.5 is chance.
"""


class Answers(NamedTuple):
    """What a tagger says of a set."""

    truth: Array  # (N,) names
    best: Array  # (N,) the likeliest known class
    confidence: Array  # (N,) its probability
    unknown: Array  # (N,) bool


def answers(path: str, labelled: Labelled, cache: Path) -> Answers:
    """Hear a set."""
    model, plan = torchbeats.load(path), ScorePlan()
    naming, abstention = Naming(model), Abstention.of(model)
    rows, _ = cached(
        cache,
        labelled.examples,
        model.digest(),
        plan.settings(model),
        lambda: rows_of(labelled.examples, model, plan),
    )
    other = None if abstention is None else abstention.other
    known = np.array([name != other for name in naming.classes])
    values = np.where(known, rows.values, -1)
    best = np.array(naming.classes)[values.argmax(1)]
    scored = (Scored("", 0, 0, row) for row in rows.values)
    unknown = np.array([row.probabilities[-1] > 0 and naming.names[-1] == UNKNOWN for row in naming.judged(scored)])
    truth = np.array([labelled.examples[index].labels[0] for index in rows.indices])
    return Answers(truth, best, values.max(1), unknown)


class Figures(NamedTuple):
    """A line of the table."""

    sounds: int
    right: float
    named_right: float
    unknown: float
    sure_and_wrong: float
    auroc: float


def figures(a: Answers) -> Figures:
    """What a set's answers are worth."""
    correct = a.best == a.truth
    classes = [name for name in np.unique(a.truth) if name != OTHER]
    called_wrong = ~correct & ~a.unknown & (a.confidence >= CONFIDENT)

    def mean(hits: Array) -> float:
        return 100 * float(np.mean([hits[a.truth == name].mean() for name in classes]) if classes else hits.mean())

    both = correct.any() and not correct.all()
    return Figures(
        len(correct),
        mean(correct) if classes else float("nan"),
        mean(correct & ~a.unknown) if classes else float("nan"),
        mean(a.unknown),
        100 * float(called_wrong.mean()),
        float(roc_auc(correct[:, np.newaxis], a.confidence[:, np.newaxis])[0]) if both else float("nan"),
    )


def within(a: Answers, classes: set[str]) -> Answers:
    """The sounds of some classes."""
    chosen = np.array([name in classes for name in a.truth])
    return Answers(*(values[chosen] for values in a))


def report(rows: Sequence[tuple[str, str, Figures]]) -> Iterator[str]:
    """The table, in Markdown."""
    yield ABOUT
    yield "| set | tagger | sounds | right | named right | unknown | wrong, and sure | AUROC |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for name, tagger, f in rows:
        cells = [f"{value:.1f}" if value == value else "–" for value in f[1:5]]
        auroc = f"{f.auroc:.3f}" if f.auroc == f.auroc else "–"
        yield f"| {name} | {tagger} | {f.sounds:,} | {' | '.join(cells)} | {auroc} |"


def by_class(all_answers: dict[tuple[str, str], Answers]) -> Iterator[str]:
    """For each class, what is right in domain and of other collections."""
    yield "\nOf each class the share that is right, unknown or not; in brackets the sounds.\n"
    columns = [key for key in all_answers if key[0] in ("in domain", "other collections")]
    yield f"| class | {' | '.join(f'{name}, {tagger}' for name, tagger in columns)} |"
    yield f"|---|{'--:|' * len(columns)}"
    for label in sorted({name for key in columns for name in all_answers[key].truth.tolist()} - {OTHER}):
        cells = []
        for key in columns:
            here = within(all_answers[key], {label})
            cells.append(f"{100 * (here.best == label).mean():.0f} ({len(here.truth)})" if len(here.truth) else "–")
        yield f"| {label} | {' | '.join(cells)} |"


def main() -> None:
    """Hears all sets with each tagger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=PATH", help="taggers")
    parser.add_argument("--lists", type=Path, required=True, metavar="FOLDER", help="what tagger_lists.py made")
    parser.add_argument("--out", type=Path, default=Path("recipes/nano/results"), help="folder (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("build/nano/embeddings"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    for folder in (options.cache, options.out):
        folder.mkdir(parents=True, exist_ok=True)
    taggers = [given.partition("=")[::2] for given in options.models]
    rows: list[tuple[str, str, Figures]] = []
    heard: dict[tuple[str, str], Answers] = {}
    for name, (file, split) in SETS.items():
        if not (options.lists / file).exists():
            continue
        labelled = read_labelled([options.lists / file], "single_label")
        labelled = labelled.select(split, None) if split else labelled
        for tagger, path in taggers:
            heard[name, tagger] = answers(path, labelled, options.cache)
            rows.append((name, tagger, figures(heard[name, tagger])))
        if name == "in domain":
            first = ((tagger, within(heard[name, tagger], BEFORE)) for tagger, _ in taggers)
            rows += [("the first 17 classes", tagger, figures(a)) for tagger, a in first]
    with replacing(options.out / "tagger.md") as temporary:
        temporary.write_text("\n".join([*report(rows), *by_class(heard)]) + "\n", "utf-8")
    with replacing(options.out / "tagger.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("set", "tagger", *Figures._fields))
        writer.writerows((name, tagger, f.sounds, *(f"{value:.4f}" for value in f[1:])) for name, tagger, f in rows)
    print((options.out / "tagger.md").read_text("utf-8"))


if __name__ == "__main__":
    main()

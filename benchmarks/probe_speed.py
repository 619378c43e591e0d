"""How fast the linear probe's regressions are: in the space that the rows span, and with all values of a row.

    python benchmarks/probe_speed.py [--sounds 400] [--width 2048] [--classes 10] [--rounds 1] [--old-threads]

Both ways cross-validate the same embeddings in the same folds, C chosen within each, and take turns. The old way fits
all values of a row by scikit-learn, to its own tolerance; with ``--old-threads`` it has as many threads for each small
product as the machine has cores, which is what a user got, and takes minutes. Its third run, to a tolerance as fine as
the new way's, tells whether a difference is one of the ways or of where the old one stopped. The embeddings are drawn
at random, or, with ``--rows FILE.npz``, those of a table with the arrays ``x`` and ``labels``.
"""

import argparse
import statistics
import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from torchbeats.data.folds import Design, design
from torchbeats.data.labelled import Example, Labelled
from torchbeats.evaluation import probe as probing
from torchbeats.evaluation.regression import standardised


def embeddings(sounds, width, classes, seed=0):
    """Correlated values, as embeddings have them, with a little of the class in each."""
    random = np.random.default_rng(seed)
    labels = np.arange(sounds) % classes
    factors = random.standard_normal((sounds, 40)) @ random.standard_normal((40, width))
    centres = random.standard_normal((classes, width))
    return (factors + 0.5 * centres[labels] + random.standard_normal((sounds, width))).astype(np.float32), labels


def all_values(tolerance):
    """`torchbeats.evaluation.regression.regressions` as it was before."""

    def regressions(train, targets, test, classes, cs):
        rows, asked = standardised(train, test)
        if tolerance < 1e-4:
            rows, asked = rows.astype(np.float64), asked.astype(np.float64)
        model = LogisticRegression(max_iter=1000, warm_start=True, tol=tolerance)
        for c in cs:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.set_params(C=c).fit(rows, targets)
            scores = np.zeros((len(test), classes), np.float32)
            scores[:, model.classes_] = model.predict_proba(asked)
            yield c, scores

    return regressions


def run(x, data: Labelled, plan: Design, regressions=None, threads=None):
    """Wall-clock seconds, seconds of processor time, and the outcome."""
    new = probing.regressions
    limit = probing.limited_threads
    try:
        if regressions is not None:
            probing.regressions = regressions
            probing.limited_threads = lambda *sizes: threadpool_limits(threads)
        begun, worked = time.perf_counter(), time.process_time()
        outcome = probing.probe(x, data, plan)
        return time.perf_counter() - begun, time.process_time() - worked, outcome
    finally:
        probing.regressions, probing.limited_threads = new, limit


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sounds", type=int, default=400)
    parser.add_argument("--width", type=int, default=2048, help="values of an embedding (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", help="NPZ file with embeddings x and labels, instead of random ones")
    parser.add_argument("--old-threads", action="store_true", help="the old way with all threads, as users had it")
    parser.add_argument("--quick", action="store_true", help="only tell whether it runs")
    options = parser.parse_args()
    if options.quick:
        options.sounds, options.width = 60, 200
    if options.rows:
        with np.load(options.rows) as table:
            x, labels = table["x"], table["labels"]
    else:
        x, labels = embeddings(options.sounds, options.width, options.classes)
    names = [str(label) for label in np.unique(labels)]
    data = Labelled([Example(str(i), (str(label),)) for i, label in enumerate(labels)], names, "single_label")
    plan = design(data)
    ways = {
        "in the span of the rows": (None, None),
        "all values, one thread": (all_values(1e-4), 1),
        **({"all values, all threads": (all_values(1e-4), None)} if options.old_threads else {}),
        "all values, one thread, to the end": (all_values(1e-6), 1),
    }
    results = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way, (regressions, threads) in ways.items():
            results[way].append(run(x, data, plan, regressions, threads))
    print(f"{len(x):,} × {x.shape[1]:,} values, {len(names)} classes, {plan.name}, rounds: {options.rounds}\n")
    print("| way | seconds (median) | processor time | accuracy | C |")
    print("|---|--:|--:|--:|---|")
    for way, rounds in results.items():
        seconds, worked = (statistics.median(column) for column in list(zip(*rounds, strict=True))[:2])
        outcome = rounds[0][2]
        cs = ", ".join(f"{c:g}" for c in outcome.c)
        print(f"| {way} | {seconds:.1f} | {worked:.1f} | {100 * outcome.figures['accuracy']:.2f} | {cs} |")


if __name__ == "__main__":
    main()

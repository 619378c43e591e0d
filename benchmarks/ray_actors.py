"""Actors of Ray beside one local run: ``python ray_actors.py [--sounds FOLDER] [--actors 2] [--rounds 1]``.

Both embed the same folder with the built-in model, in turns: the local run with as many threads as there are actors,
each of which has one core. Starting up is left out of both: what counts is the time from the first batch's beginning to
the last row. Rows are compared, and the time that a file costs beside its computation is the difference of both runs.
"""

import argparse
import os
import resource
import shutil
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import torch

from torchbeats import EmbeddingPlan, load, write_table
from torchbeats.distributed import cluster, running

MODEL = "beats-nano"


def local(sounds, out, threads):
    torch.set_num_threads(threads)
    model = load(MODEL)
    times = []

    @contextmanager
    def display(total, done):
        times.append(time.time())
        yield lambda seconds, inputs: None
        times.append(time.time())

    result = write_table(sounds, out, model, EmbeddingPlan(), display=display, jobs=threads)
    return result.sounds, times[-1] - times[0]


def on_ray(sounds, out, actors):
    summaries = []
    original = cluster.compute

    def compute(*arguments):
        for summary in original(*arguments):
            summaries.append(summary)
            yield summary

    cluster.compute = compute
    try:
        result = running.write_table_on_ray(sounds, out, MODEL, EmbeddingPlan(), address="local", actors=actors)
    finally:
        cluster.compute = original
    return result.sounds, max(s.ended for s in summaries) - min(s.begun for s in summaries)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sounds", default=str(Path(__file__).parents[2] / "shared" / "audio" / "fsdd"))
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp())
    try:
        for number in range(arguments.rounds):
            one, many = folder / f"one-{number}.parquet", folder / f"many-{number}.parquet"
            count, alone = local(arguments.sounds, one, arguments.actors)
            _, together = on_ray(arguments.sounds, many, arguments.actors)
            same = pq.read_table(one).equals(pq.read_table(many))
            print(
                f"{count:,} files: {arguments.actors} threads {count / alone:.1f} files/s, {arguments.actors} actors "
                f"{count / together:.1f} files/s, ratio {alone / together:.2f}; "
                f"{1000 * (together - alone) / count:+.2f} ms a file; rows {'the same' if same else 'DIFFER'}; load "
                f"{os.getloadavg()[0]:.1f}; most memory of this process "
                f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""Actors of Ray beside one local run: ``python ray_actors.py [--sounds FOLDER] [--actors 2] [--rounds 1]``.

Both embed the same folder with the built-in model, in turns: the local run with as many threads as there are actors,
each of which has one core. Starting up is left out of both: what counts is the time from the first batch's beginning to
the last row. Rows are compared. What a file costs beside its computation is the time in which actors were at no block.
``--only-ray`` leaves the local run out.
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
    span = max(s.ended for s in summaries) - min(s.begun for s in summaries)
    idle = actors * span - sum(s.ended - s.begun for s in summaries)
    last = [max(s.ended for s in summaries) - s.ended for s in sorted(summaries, key=lambda s: s.ended)[-actors:]]
    first = [s.begun - min(s.begun for s in summaries) for s in sorted(summaries, key=lambda s: s.begun)[:actors]]
    return result.sounds, span, (idle - sum(first) - sum(last)) / result.sounds  # starting up and the end left out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sounds", default=str(Path(__file__).parents[2] / "shared" / "audio" / "fsdd"))
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only-ray", action="store_true", help="leave the local run out")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp())
    try:
        for number in range(arguments.rounds):
            one, many = folder / f"one-{number}.parquet", folder / f"many-{number}.parquet"
            count, together, beside = on_ray(arguments.sounds, many, arguments.actors)
            load_average = os.getloadavg()[0]
            print(
                f"{count:,} files: {arguments.actors} actors {count / together:.1f} files/s, {1000 * beside:.2f} ms "
                f"a file beside computing; load {load_average:.1f}",
                flush=True,
            )
            if arguments.only_ray:
                continue
            _, alone = local(arguments.sounds, one, arguments.actors)
            same = pq.read_table(one).equals(pq.read_table(many))
            print(
                f"{arguments.actors} threads {count / alone:.1f} files/s, ratio {alone / together:.2f}; rows "
                f"{'the same' if same else 'DIFFER'}; load {os.getloadavg()[0]:.1f}; most memory of this process "
                f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

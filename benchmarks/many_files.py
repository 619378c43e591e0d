"""A folder of very many files: time to the first batch, to the end of the listing, and the memory that takes.

``python many_files.py [--files 200000]`` makes hard links to one short sound, in folders of ``--per-folder``, and
embeds them with the built-in model until all have been listed. ``--list`` writes their paths to a text file instead, of
which the first 10,000 exist: no more are reached before all are listed. ``--only-list`` computes nothing.
"""

import argparse
import os
import resource
import shutil
import tempfile
import time
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import soundfile

from torchbeats import EmbeddingPlan, load, write_table
from torchbeats.data.inputs import iterate_sounds
from torchbeats.data.listing import Listing

LINKS = 60_000  # to one file; ext4 has 65,000 at most


class Done(BaseException):
    pass


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make(folder, files, per_folder):
    folder.mkdir(exist_ok=True)
    samples = np.random.default_rng(0).normal(0, 0.1, 8_000)
    for number in range(files):
        if number % LINKS == 0:
            sound = folder / f"sound-{number}.wav"
            soundfile.write(sound, samples, 16_000)
        if number % per_folder == 0:
            below = folder / "sounds" / f"{number // per_folder:06}"
            below.mkdir(parents=True)
        os.link(sound, below / f"recording-{number:09}.wav")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--per-folder", type=int, default=10_000)
    parser.add_argument("--list", action="store_true", help="name the files in a list")
    parser.add_argument("--only-list", action="store_true", help="compute nothing")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        make(folder, min(arguments.files, 10_000) if arguments.list else arguments.files, arguments.per_folder)
        inputs = folder / "sounds"
        if arguments.list:
            inputs = folder / "sounds.txt"
            with inputs.open("w") as file:
                for number in range(arguments.files):
                    below = folder / "sounds" / f"{number // arguments.per_folder:06}"
                    file.write(f"{below / f'recording-{number:09}.wav'}\n")
        warnings.simplefilter("ignore")
        if arguments.only_list:
            before, begun, processor = memory(), time.perf_counter(), time.process_time()
            listing = Listing(iterate_sounds([inputs]))
            listing.advance(float("inf"))
            print(
                f"all {listing.total:,} listed: {time.perf_counter() - begun:.2f} s, of the processor "
                f"{time.process_time() - processor:.2f} s, {memory() - before:,.0f} MB more than before"
            )
            return
        model = load("beats-nano")
        make(folder / "warm", 2_000, 1_000)
        write_table(folder / "warm" / "sounds", folder / "warm.parquet", model)
        before, begun, first = memory(), time.perf_counter(), []

        @contextmanager
        def display(total, done):
            def progress(seconds, inputs):
                now = time.perf_counter() - begun
                if not first:
                    first.append(now)
                    print(f"first batch: {now:.2f} s, {memory() - before:,.0f} MB more than before")
                number = total() if callable(total) else total
                if number is not None:
                    print(f"all {number:,} listed: {now:.2f} s, {memory() - before:,.0f} MB more than before")
                    raise Done

            yield progress

        with suppress(Done):
            write_table(inputs, folder / "t.parquet", model, EmbeddingPlan(), display=display)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

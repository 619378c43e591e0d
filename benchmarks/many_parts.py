"""Time a part of a table's run takes, by how many parts came before it: ``python many_parts.py [--parts 100000]``.

Each part has the rows of a group of ten-second windows; what is measured is what the run waits for, the disk included.
At the end: the time that finishing takes, that going on takes, and the most memory.
"""

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from torchbeats.inference import Group, Position
from torchbeats.plans import Row
from torchbeats.tables import store

ROWS, WIDTH = 4, 32


def group(number, values):
    times = np.tile([0.0, 10.0], (ROWS, 1))
    paths = [f"/recordings/{number // 1000:05}/{ROWS * number + row:09}.wav" for row in range(ROWS)]
    ended = [(1, False)] * ROWS
    return Group(paths, times, values, np.ones(ROWS, bool), position=Position(ROWS * (number + 1)), ended=ended)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=100_000)
    parser.add_argument("--folder", help="where to write; on the disk that is measured")
    arguments = parser.parse_args()
    store.FLUSH_SECONDS = 0.0
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    row, about = Row("embedding", (WIDTH,), np.dtype(np.float32), "window"), {"model": "none"}
    values = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    states = [b"a path of the usual length, its size and its time of change"] * ROWS
    table = store.Store(folder / "t.parquet", row, about)
    tenth = arguments.parts // 10
    for part in range(10):
        begun = time.perf_counter()
        for number in range(part * tenth, (part + 1) * tenth):
            table.append(group(number, values), states)
        each = (time.perf_counter() - begun) / tenth
        print(f"parts {part * tenth:>7,} to {(part + 1) * tenth:>7,}: {1000 * each:.3f} ms each", flush=True)
    begun = time.perf_counter()
    again = store.Store(folder / "t.parquet", row, about)
    print(f"going on: {1000 * (time.perf_counter() - begun):.1f} ms, at input {again.position.inputs:,}")
    begun = time.perf_counter()
    table.finish()
    print(f"finishing: {time.perf_counter() - begun:.1f} s, {(folder / 't.parquet').stat().st_size / 1e6:,.0f} MB")
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()

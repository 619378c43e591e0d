"""Seconds and memory that a search in a large table takes: ``python search.py [--rows 1000000] [--width 768]``.

A table of random embeddings is made in ``--folder`` and deleted at the end, with what the search keeps of it.
"""

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import torchbeats
from torchbeats.tables.formats import METADATA_KEY

ROWS = 5_000  # a row group; as `embed` makes them


def make(path, rows, width):
    about = {"model": "none", "weights": "sha256:0", "engine": "torch", "dtype": "float32", "shape": [width]}
    about |= {"pool": "mean", "layer": None, "hop": None, "window": 10.0, "batch_seconds": 40.0}
    fields = [("path", pa.string()), ("start", pa.float64()), ("end", pa.float64())]
    schema = pa.schema([*fields, ("embedding", pa.list_(pa.float32(), width))], {METADATA_KEY: json.dumps(about)})
    draw = np.random.default_rng(0)
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, ROWS):
            count = min(ROWS, rows - first)
            values = pa.array(draw.standard_normal(count * width, dtype=np.float32))
            paths = [f"/recordings/{row // 6:09}.wav" for row in range(first, first + count)]
            start = 10.0 * (np.arange(first, first + count) % 6)
            columns = [paths, start, start + 10, pa.FixedSizeListArray.from_arrays(values, width)]
            writer.write_table(pa.table(columns, schema=schema))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        make(folder / "small.parquet", 10_000, arguments.width)
        torchbeats.search(folder / "small.parquet", "row:1")
        small = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        make(folder / "t.parquet", arguments.rows, arguments.width)
        made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for what in ("first", "second", "third", "fourth"):
            begun, used = time.perf_counter(), time.process_time()
            torchbeats.search(folder / "t.parquet", f"row:{arguments.rows // 2}")
            seconds, used = time.perf_counter() - begun, time.process_time() - used
            print(f"{what}: {seconds:.2f} s, {used:.2f} s of CPU", flush=True)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"memory: {small / 1024:,.0f} MB for 10,000 rows, {made / 1024:,.0f} MB after making the table")
        print(f"        {most / 1024:,.0f} MB for {arguments.rows:,} rows")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

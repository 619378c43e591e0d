"""Recall and time of the index of a Lance table against the exact search.

``python search_index.py [--rows 200000] [--width 256]``: vectors around centres that lie around centres, from a seed;
queries are rows of the table. A table is made in ``--folder`` and deleted at the end.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

from torchbeats.search import index
from torchbeats.search.queries import unit
from torchbeats.search.searching import nearest
from torchbeats.tables.formats import METADATA_KEY
from torchbeats.tables.reading import Table


def vectors(rows, width, seed=0):
    """``(rows, width)``: 200 kinds of sound, 10 recordings of each, and noise."""
    draw = np.random.default_rng(seed)
    kinds = draw.standard_normal((200, width), dtype=np.float32)
    recordings = kinds.repeat(10, 0) + 0.7 * draw.standard_normal((2000, width), dtype=np.float32)
    values = 0.5 * draw.standard_normal((rows, width), dtype=np.float32)
    values += recordings[draw.integers(2000, size=rows)]
    return values


def make(path, values):
    rows, width = values.shape
    about = {"model": "none", "weights": "sha256:0", "engine": "torch", "dtype": "float32", "shape": [width]}
    about |= {"pool": "mean", "layer": None, "hop": None, "window": 10.0, "batch_seconds": 40.0}
    fields = [("path", pa.string()), ("start", pa.float64()), ("end", pa.float64())]
    schema = pa.schema([*fields, ("embedding", pa.list_(pa.float32(), width))], {METADATA_KEY: json.dumps(about)})
    start = np.arange(rows) * 1.0
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
    table = pa.table([[f"{row // 100}.wav" for row in range(rows)], start, start + 1, embeddings], schema=schema)
    lance.write_dataset(table, str(path))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        values = vectors(arguments.rows, arguments.width)
        make(folder / "t.lance", values)
        table = Table(folder / "t.lance")
        begun, used = time.perf_counter(), time.process_time()
        index.build(table)
        print(f"index: {time.perf_counter() - begun:.1f} s, {time.process_time() - used:.1f} s of CPU", flush=True)
        rows = np.random.default_rng(1).choice(arguments.rows, arguments.queries, replace=False)
        shared, seconds = 0, {"exact": 0.0, "index": 0.0}
        for row in rows.tolist():
            target, own = unit(values[row]), np.array([row])
            best = {}
            for name, search in (("exact", nearest), ("index", index.nearest_by_index)):
                used = time.process_time()
                best[name], _ = search(table, target, 20, own)
                seconds[name] += time.process_time() - used
            shared += len(set(best["exact"].tolist()) & set(best["index"].tolist()))
        print(f"recall at 20: {shared / 20 / len(rows):.4f} over {len(rows)} queries")
        print("CPU a query: " + ", ".join(f"{name} {1000 * s / len(rows):.0f} ms" for name, s in seconds.items()))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

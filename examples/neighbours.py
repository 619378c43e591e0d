"""Embed a folder of sounds and print which clips sound alike: what `make demo` runs.

    python examples/neighbours.py [FOLDER] [--model NAME_OR_PATH]

Without --model, the small model that comes with the package is used: no network, nothing to download.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

HERE = Path(os.path.relpath(Path(__file__).parent))
WORK = Path("build", "demo")


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", nargs="?", default=HERE / "audio", type=Path)
parser.add_argument("--model", help="a name from `torchbeats models`, or a checkpoint file")
arguments = parser.parse_args()

table_path = WORK / "embeddings.parquet"
command = ["torchbeats", "embed", str(arguments.folder), "-o", str(table_path), "--pool", "bands"]
if arguments.model is not None:
    command += ["-m", arguments.model]
print("$", " ".join(command), flush=True)
subprocess.run([sys.executable, "-m", *command, "--overwrite"], check=True)

table = pq.read_table(table_path)
embeddings = np.stack(table["embedding"].to_numpy())
embeddings = (embeddings - embeddings.mean(0)) / (embeddings.std(0) + 1e-6)
embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
likeness = embeddings @ embeddings.T
np.fill_diagonal(likeness, -np.inf)

print(f"\n{len(table)} rows of {embeddings.shape[1]} values in {table_path}\n")
names = [Path(path).name for path in table["path"].to_pylist()]
print(f"{'clip':<24} {'from':>6} {'to':>6}   nearest (cosine)")
for row, name in enumerate(names):
    nearest = ", ".join(f"{names[other]} {likeness[row, other]:.2f}" for other in np.argsort(-likeness[row])[:2])
    print(f"{name:<24} {table['start'][row].as_py():>5.1f}s {table['end'][row].as_py():>5.1f}s   {nearest}")

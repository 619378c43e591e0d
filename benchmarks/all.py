"""All tables, one after the other: `make bench` for a look, `make bench-all` for those that are kept.

    python benchmarks/all.py            # small, in a few minutes: the size of the built-in model, into build/bench
    python benchmarks/all.py --whole    # base size, three rounds, into benchmarks/results, and the pages' pictures

Peers take part where `benchmarks/peers.sh` has installed them. A benchmark that fails is named at the end; the others
run all the same.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
TABLES = ("throughput", "mixed_lengths", "long_recordings", "cold_start", "where_time_goes", "short_files")


def commands(whole, rounds):
    """Each benchmark's command line."""
    for name in TABLES:
        small = ["--quick", "--out", str(ROOT / "build" / "bench" / f"{name}.md")]
        yield name, [str(HERE / f"{name}.py"), *(["--rounds", str(rounds)] if whole else small)]
    yield "counts", [str(HERE / "counts.py")]
    if whole:
        yield "pictures", [str(ROOT / "docs" / "pictures.py")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--whole", action="store_true", help="the tables that are kept")
    parser.add_argument("--rounds", type=int, default=3, help="how often all take their turn, with --whole")
    options = parser.parse_args()
    failed = []
    for name, command in commands(options.whole, options.rounds):
        print(f"--- {name}", file=sys.stderr, flush=True)
        if subprocess.run([sys.executable, *command], check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()

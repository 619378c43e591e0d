"""From nothing to the first embedding: import, loading, one clip of 10 s; and the memory that a loaded model takes.

    python benchmarks/cold_start.py [--rounds 5] [--size base]

Every figure is of a fresh process, which imports nothing before the clock runs. The checkpoint is in the disk cache.
"""

import time
from pathlib import Path

import bench


def cold(name, weights, options):
    """Seconds to import, seconds from the process's start to the first embedding, MB after loading."""
    with bench.Worker(name, options) as worker:
        imported = worker("start")
        loaded = worker("load", checkpoint=str(weights), device=options.device)
        worker("encode", clips=1, seconds=10.0)
        first = time.perf_counter() - worker.begun
    return imported["seconds"], first, loaded["rss"] or 0.0


def main():
    options = bench.parse(bench.parser(__doc__), rounds=1)
    with bench.temporary() as folder:
        weights = bench.checkpoint(options, Path(folder))
        found, missing = bench.contenders(options, weights, onnx=True)
        answers = bench.turns(
            options.rounds, {name: lambda name=name: cold(name, found[name], options) for name in found}
        )
    first = {name: [answer[1] for answer in given] for name, given in answers.items()}
    faster = bench.speedups(first, "speechbrain")
    rows = [
        (
            bench.TITLES[name],
            bench.spread([answer[0] for answer in given]),
            bench.spread(first[name]),
            bench.shown(faster[name]),
            bench.spread([answer[2] for answer in given], 0),
        )
        for name, given in answers.items()
    ]
    heads = ("", "import, s", "to the first embedding, s", "speed, of SpeechBrain's", "memory after loading, MB")
    title = f"# Cold start, {options.size}, {options.rounds} rounds"
    note = "Import is that of the package and of PyTorch with it; the second column begins with the process."
    bench.write(
        options,
        "cold_start",
        [title, bench.table(heads, rows), note, bench.machine(options) + bench.left_out(missing)],
    )


if __name__ == "__main__":
    main()

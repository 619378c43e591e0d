"""How fast the encoders are: the same weights, the same clips of noise in memory, all in turn.

    python benchmarks/throughput.py [--clips 1 8] [--seconds 10] [--size base] [--device cuda]

The last rows are no encoders but the matrix products that all of them have to compute, and nothing else. Before the
clock runs, every implementation's values for one clip are compared with SpeechBrain's.
"""

from pathlib import Path

import bench
import numpy as np


def agreement(workers, seconds, folder):
    """What each gives for one clip, against SpeechBrain, or whoever is first."""
    found = {}
    for name, worker in workers.items():
        if not name.endswith("products"):
            worker("values", clips=1, seconds=seconds, out=str(folder / f"{name}.npy"))
            found[name] = np.load(folder / f"{name}.npy")
    reference = found.get("speechbrain", next(iter(found.values())))
    return {name: bench.apart(values, reference) for name, values in found.items()}


def main():
    parser = bench.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument(
        "--processor-time", action="store_true", help="of all threads, in place of the clock's: for busy machines"
    )
    parser.add_argument("--clips", type=int, nargs="+", default=[1, 8], help="in a batch")
    options = bench.parse(parser, seconds=2.0, clips=[1, 2])
    parts, clock = [], "processor" if options.processor_time else "seconds"
    with bench.temporary() as folder:
        folder = Path(folder)
        weights = bench.checkpoint(options, folder)
        found, missing = bench.contenders(options, weights, onnx=True)
        workers = {name: bench.opened(name, path, options) for name, path in found.items()}
        for name in ("products", "int8_products")[: 2 if options.device == "cpu" else 1]:
            workers[name] = bench.opened(name, weights, options)
        apart = agreement(workers, options.seconds, folder)
        for clips in options.clips:

            def passes(worker, clips=clips):
                return lambda: worker("encode", clips=clips, seconds=options.seconds)[clock]

            bench.progress(f"{clips} clips of {options.seconds:g} s")
            things = {name: passes(worker) for name, worker in workers.items()}
            warm = bench.turns(1, things)
            seconds = bench.turns(options.rounds, {name: things[name] for name in warm})
            faster = bench.speedups(seconds, "speechbrain")
            rows = [
                (
                    bench.TITLES[name],
                    bench.spread([clips * options.seconds / taken for taken in times], 1),
                    bench.shown(faster[name]),
                    f"{apart[name]:.0e}" if name in apart else "–",
                )
                for name, times in seconds.items()
            ]
            heads = ("", "× real time (median; range)", "speed, of SpeechBrain's", "largest difference, of the spread")
            parts.append(f"Batches of {clips}:\n\n" + bench.table(heads, rows))
        for worker in workers.values():
            worker.__exit__()
    title = f"# Encoder, {options.size}, clips of {options.seconds:g} s, {options.rounds} rounds" + (
        ", processor time" if options.processor_time else ""
    )
    bench.write(options, "throughput", [title, *parts, bench.machine(options) + bench.left_out(missing)])


if __name__ == "__main__":
    main()

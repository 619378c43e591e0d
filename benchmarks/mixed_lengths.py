"""A folder of clips of mixed lengths: files in, one embedding each out, decoding included.

    python benchmarks/mixed_lengths.py [--files 48] [--total 299] [--size base] [--one-by-one]

48 files of 0.5 to 30 s, 299 s in all, half of them WAV and half FLAC, at 16 kHz: nobody has to resample. torchbeats
reads the folder; SpeechBrain gets the loop that people write around it, in batches of eight padded to the longest and
file by file, and so do the others as far as they can.
"""

from pathlib import Path

import bench
import numpy as np
import soundfile

SHORTEST, LONGEST = 0.5, 30.0
# What is timed: its name, who does it, and how.
WAYS = {
    "torchbeats.embed, windows of 30 s": ("torchbeats", {"window": 30.0}),
    "torchbeats.embed, windows of 10 s (default)": ("torchbeats", {"window": 10.0}),
    "torchbeats.embed, ONNX Runtime, int8, windows of 30 s": ("int8", {"window": 30.0}),
    "torchbeats.embed, ONNX Runtime, int8, windows of 10 s": ("int8", {"window": 10.0}),
    "torchbeats.embed, OpenVINO, int8, windows of 30 s": ("openvino_int8", {"window": 30.0}),
    "torchbeats.embed, OpenVINO, int8, windows of 10 s": ("openvino_int8", {"window": 10.0}),
    "SpeechBrain, padded batches of 8": ("speechbrain", {"batch": 8}),
    "SpeechBrain, one by one": ("speechbrain", {"batch": 1}),
    "AVEX, padded batches of 8": ("avex", {"batch": 8}),
    "AVEX, one by one": ("avex", {"batch": 1}),
    "OpenBEATs, one by one": ("openbeats", {"batch": 1}),
}
MEASURE = "SpeechBrain, padded batches of 8"
WHOLE = "SpeechBrain, one by one"


def lengths(files, total, random):
    """Seconds of each file: many short and few long ones, with the shortest and the longest among them."""
    places = np.concatenate([[0.0, 1.0], random.random(files - 2)])
    low, high = 0.01, 100.0
    for _ in range(60):  # the larger the power, the shorter the files
        power = (low * high) ** 0.5
        made = SHORTEST * (LONGEST / SHORTEST) ** (places**power)
        low, high = (power, high) if made.sum() > total else (low, power)
    return random.permutation(made)


def sounds(folder, files, total):
    """The files, of tones in noise."""
    random = np.random.default_rng(0)
    paths = []
    for number, seconds in enumerate(lengths(files, total, random)):
        time = np.arange(round(16000 * seconds)) / 16000
        tone = 0.2 * np.sin(2 * np.pi * random.uniform(100, 4000) * time)
        path = folder / f"{number:03d}.{'wav' if number % 2 else 'flac'}"
        soundfile.write(path, tone + 0.02 * random.standard_normal(len(time)), 16000, subtype="PCM_16")
        paths.append(str(path))
    return paths


def main():
    parser = bench.parser(__doc__)
    parser.add_argument("--files", type=int, default=48)
    parser.add_argument("--total", type=float, default=299.0, help="seconds in all")
    parser.add_argument("--one-by-one", action="store_true", help="leave out padded batches, which take minutes")
    options = bench.parse(parser, rounds=1, files=4, total=34.0)
    timed = {
        way: how for way, how in WAYS.items() if not (options.one_by_one and "batch" in how[1] and how[1]["batch"] > 1)
    }
    with bench.temporary() as folder:
        folder = Path(folder)
        weights = bench.checkpoint(options, folder)
        (folder / "sounds").mkdir()
        paths = sounds(folder / "sounds", options.files, options.total)
        exact = sum(soundfile.info(path).duration for path in paths)
        found, missing = bench.contenders(options, weights, onnx=True)
        wanted = {name for name, _ in timed.values()}
        workers = {name: bench.opened(name, path, options) for name, path in found.items() if name in wanted}
        results = {way: folder / f"{number}.npy" for number, way in enumerate(timed)}

        def run(way):
            name, how = timed[way]
            return lambda: workers[name]("folder", paths=paths, out=str(results[way]), **how)["seconds"]

        ways = {way: run(way) for way, (name, _) in timed.items() if name in workers}
        for worker in workers.values():
            worker("encode", clips=1, seconds=2.0)  # nobody's first pass is timed
        seconds = bench.turns(options.rounds, ways)
        for worker in workers.values():
            worker.__exit__()
        measures = {f"speed, of {way}": bench.speedups(seconds, way) for way in (MEASURE, WHOLE) if way in timed}
        reference_way = WHOLE if WHOLE in seconds else next(iter(seconds))
        reference = np.load(results[reference_way])
        rows = [
            (
                way,
                bench.spread([exact / taken for taken in times], 1),
                *(bench.shown(faster[way]) for faster in measures.values()),
                f"{bench.apart(np.load(results[way]), reference):.0e}",
            )
            for way, times in seconds.items()
        ]
    title = f"# {options.files} files of mixed lengths, {exact:.0f} s, {options.size}, float32, {options.rounds} rounds"
    heads = ("", "× real time (median; range)", *measures, "difference")
    note = (
        f"The difference is the largest of any value of the embeddings from those of {reference_way}, of their spread. "
        "Windows of 10 s hear longer files in pieces: other embeddings, not worse ones."
    )
    bench.write(
        options,
        "mixed_lengths",
        [title, bench.table(heads, rows), note, bench.machine(options) + bench.left_out(missing)],
    )


if __name__ == "__main__":
    main()

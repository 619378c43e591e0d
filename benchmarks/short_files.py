"""A folder of short files beside the model alone: what of the model's speed decoding, Python and the table leave.

    python benchmarks/short_files.py [--cases digits mixed ogg] [--files 512] [--data FOLDER] [--rounds 3]

`digits` are the WAV files of ``--data`` (where none is given, half-second pieces of the example clips), `mixed` the
same as MP3, FLAC and Ogg Vorbis in turn, `ogg` Vorbis of 5 s at 44.1 kHz. A run is `write_table` with the built-in
model; the model alone computes the very batches of that run, which lie in memory. Both take turns; a ratio is of two
neighbours. ``--hash`` prints a hash of the rows, which tells whether two versions give the same.
"""

import hashlib
import time
import warnings
from pathlib import Path
from unittest import mock

import bench
import numpy as np
import pyarrow.parquet
import soundfile
import torch

import torchbeats

CLIPS = Path(__file__).parent.parent / "examples" / "audio"
CASES = {"digits": ("wav",), "mixed": ("mp3", "flac", "ogg"), "ogg": ("ogg",)}
OGG_SECONDS, OGG_RATE = 5, 44_100
WORD_SECONDS, WORD_RATE = 0.43, 8_000
CODECS = {"wav": "PCM_16", "flac": "PCM_16", "mp3": "MPEG_LAYER_III", "ogg": "VORBIS"}


def excerpts(seconds, rate):
    """Pieces of the example clips, which are mixed so that no two are alike."""
    clips = [torchbeats.audio.load(path) for path in sorted(CLIPS.iterdir()) if path.suffix != ".md"]
    random, length = np.random.default_rng(0), round(seconds * 16_000)
    places = np.arange(round(seconds * rate)) * 16_000 / rate
    while True:
        one, other = (np.resize(clips[index], 2 * length) for index in random.choice(len(clips), 2, replace=False))
        first, second = random.integers(length, size=2)
        mixed = 0.5 * (one[first : first + length] + other[second : second + length])
        yield np.interp(places, np.arange(length), mixed), rate


def words(data):
    if data is None:
        yield from excerpts(WORD_SECONDS, WORD_RATE)
    paths = sorted(data.rglob("*.wav"))
    while True:
        yield from map(soundfile.read, paths)


def make(folder, case, files, data):
    """The files of a case."""
    folder.mkdir()
    sounds = excerpts(OGG_SECONDS, OGG_RATE) if case == "ogg" else words(data)
    for number, (samples, rate) in zip(range(files), sounds, strict=False):
        kind = CASES[case][number % len(CASES[case])]
        soundfile.write(folder / f"{number:05d}.{kind}", np.clip(samples, -1, 1), rate, CODECS[kind])


def batches_of(folder, out, model):
    """The batches that a run over a folder computes."""
    found, plain = [], model.compute

    def compute(output, wav, lengths=None, layer=None):
        found.append((wav.clone(), lengths))
        return plain(output, wav, lengths, layer)

    with mock.patch.object(model, "compute", compute):
        torchbeats.write_table(folder, out, model, overwrite=True)
    return found


def row_hash(table):
    content = pyarrow.parquet.read_table(table)
    names = [Path(path).name for path in content["path"].to_pylist()]
    values = [content[name].combine_chunks() for name in ("start", "end")]
    vectors = content["embedding"].combine_chunks().flatten()
    digest = hashlib.sha256(repr(names).encode())
    for column in (*values, vectors):
        digest.update(np.ascontiguousarray(column.to_numpy()).tobytes())
    return digest.hexdigest()[:16]


def main():
    parser = bench.parser(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--files", type=int, default=512)
    parser.add_argument("--data", type=Path, help="a folder of WAV files, for the cases of words")
    parser.add_argument("--hash", action="store_true", help="print a hash of each case's rows")
    options = bench.parse(parser, files=6, cases=["mixed"])
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    model, rows = torchbeats.load("beats-nano", device=options.device), []
    with bench.temporary() as work:
        for case in options.cases:
            folder, out = Path(work) / case, Path(work) / f"{case}.parquet"
            make(folder, case, options.files, options.data)
            batches = batches_of(folder, out, model)

            def run(folder=folder, out=out):
                begun, processor = time.perf_counter(), time.process_time()
                torchbeats.write_table(folder, out, model, overwrite=True)
                return time.perf_counter() - begun, time.process_time() - processor

            def alone(batches=batches):
                begun, processor = time.perf_counter(), time.process_time()
                for batch in batches:
                    model.compute("mean", *batch)
                return time.perf_counter() - begun, time.process_time() - processor

            times = bench.turns(options.rounds, {"run": run, "alone": alone})
            seconds = {name: [one[0] for one in taken] for name, taken in times.items()}
            processor = {name: [1000 * one[1] / options.files for one in taken] for name, taken in times.items()}
            share = [alone / run for run, alone in zip(seconds["run"], seconds["alone"], strict=True)]
            rows.append(
                (
                    case,
                    bench.spread([options.files / one for one in seconds["run"]], 0),
                    bench.spread([options.files / one for one in seconds["alone"]], 0),
                    bench.spread(share),
                    bench.spread(processor["run"]),
                    bench.spread(processor["alone"]),
                )
            )
            if options.hash:
                bench.progress(f"{case}: rows {row_hash(out)}")
    heads = ("", "files/s", "the model alone", "share", "processor, ms a file", "of the model alone")
    title = f"# Short files, the built-in model, {options.files} a case, {options.rounds} rounds"
    bench.write(options, "short_files", [title, bench.table(heads, rows), bench.machine(options)])


if __name__ == "__main__":
    main()

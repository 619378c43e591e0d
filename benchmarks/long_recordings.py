"""Long recordings: two minutes in one piece, and an hour against a minute through `torchbeats embed`.

    python benchmarks/long_recordings.py [--seconds 120] [--minutes 1 60] [--whole 2] [--size base]

Every figure is of a fresh process: its time for one pass, in one piece without loading and through the command with it,
and the most memory it ever held (VmHWM).
"""

from pathlib import Path

import bench
import numpy as np
import soundfile


def recording(folder, minutes):
    """A WAV file of tones in noise; written in pieces, for it may be long."""
    path = folder / f"{minutes:g}min.wav"
    random = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", 16000, 1, "PCM_16") as file:
        left = round(minutes * 60 * 16000)
        while left:
            count = min(left, 16000 * 30)
            tone = 0.2 * np.sin(2 * np.pi * random.uniform(100, 4000) * np.arange(count) / 16000)
            file.write(tone + 0.02 * random.standard_normal(count))
            left -= count
    return path


def main():
    parser = bench.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="in one piece; 0 to leave that part out")
    parser.add_argument("--minutes", type=float, nargs="*", default=[1.0, 60.0], help="of the files to embed")
    parser.add_argument("--whole", type=float, nargs="*", default=[], help="minutes of files for `--window full`")
    options = bench.parse(parser, rounds=1, seconds=5.0, minutes=[0.05], whole=[])
    parts = [f"# Long recordings, {options.size}, float32"]
    missing = {}
    with bench.temporary() as folder:
        folder = Path(folder)
        weights = bench.checkpoint(options, folder)
        if options.seconds:
            found, missing = bench.contenders(options, weights)

            def one_piece(name):
                with bench.opened(name, found[name], options) as worker:
                    worker("encode", clips=1, seconds=2.0)  # nobody's first pass is timed
                    return worker("encode", clips=1, seconds=options.seconds)

            answers = bench.turns(options.rounds, {name: lambda name=name: one_piece(name) for name in found})
            seconds = {name: [answer["seconds"] for answer in given] for name, given in answers.items()}
            faster, than_avex = bench.speedups(seconds, "speechbrain"), bench.speedups(seconds, "avex")
            rows = [
                (
                    bench.TITLES[name],
                    bench.spread(seconds[name], 1),
                    bench.spread([options.seconds / taken for taken in seconds[name]], 1),
                    bench.shown(faster[name]),
                    bench.shown(than_avex[name]),
                    f"{max(answer['peak'] or 0 for answer in given):,.0f}",
                )
                for name, given in answers.items()
            ]
            speeds = ("speed, of SpeechBrain's", "of AVEX's")
            heads = ("", "seconds (median; range)", "× real time", *speeds, "peak memory, MB")
            parts += [
                f"{options.seconds:g} s in one piece, {options.rounds} rounds:",
                bench.table(heads, rows),
            ]
        rows = []
        for minutes, window in [(m, []) for m in options.minutes] + [(m, ["--window", "full"]) for m in options.whole]:
            sound, out = recording(folder, minutes), folder / f"{len(rows)}.parquet"
            arguments = ["embed", str(sound), "--output", str(out), "--model", str(weights), "--device", options.device]
            try:
                with bench.Worker("torchbeats", options) as worker:
                    worker("start")
                    answer = worker("command", arguments=[*arguments, *window])
            except bench.WorkerError as error:
                bench.progress(f"Left out: {error}")
                missing[f"{minutes} {window}"] = (
                    f"a file of {minutes:g} min. with {' '.join(window) or 'the defaults'}."
                )
                continue
            speed = 60 * minutes / answer["seconds"]
            rows.append(
                (f"{minutes:g}", " ".join(window) or "10 s (default)", f"{speed:.1f}", f"{answer['peak'] or 0:,.0f}")
            )
            bench.progress(f"a file of {minutes:g} min.: done")
        if rows:
            heads = ("minutes", "window", "× real time, loading included", "peak memory, MB")
            parts += ["`torchbeats embed` of one file, once each:", bench.table(heads, rows)]
    bench.write(options, "long_recordings", [*parts, bench.machine(options) + bench.left_out(missing)])


if __name__ == "__main__":
    main()

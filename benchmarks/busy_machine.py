"""Commands beside a busy program of somebody else: how the threads that compute should wait for one another.

    python benchmarks/busy_machine.py [--files 100] [--steps 8] [--rounds 3]

``embed`` of clips of 5 s and a short ``pretrain`` on them, with the built-in model's size, on a machine that does
nothing else and beside one process that never rests, in a session of its own as another user's is. Each with OpenMP's
own way of waiting (300,000 turns of a loop), with what ``torchbeats`` sets (`torchbeats.openmp`), and with none (0).
Seconds are of the whole command, from its start.
"""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import bench
import short_files

from torchbeats.openmp import SPINS

WAYS = {"OpenMP's own": 300_000, "as the commands wait": SPINS, "none": 0}


@contextmanager
def beside(busy):
    """With a process beside that takes a core, or without."""
    other = (
        subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True, stdin=subprocess.DEVNULL)
        if busy
        else None
    )
    try:
        yield
    finally:
        if other:
            other.kill()
            other.wait()


def seconds(words, spins, busy, threads):
    """Of a command, in a process of its own."""
    environment = {**os.environ, "GOMP_SPINCOUNT": str(spins)}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    with beside(busy):
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "torchbeats", *words, "--quiet"], env=environment, capture_output=True, check=False
        )
        taken = time.perf_counter() - begun
    if done.returncode:
        raise bench.WorkerError(f"torchbeats {words[0]}: {done.stderr.decode(errors='replace')[-300:]}")
    return taken


def main():
    parser = bench.parser(__doc__)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--steps", type=int, default=8, help="of the pre-training")
    options = bench.parse(parser, files=3, steps=1, rounds=1)
    rows = []
    with bench.temporary() as work:
        sounds = Path(work) / "sounds"
        short_files.make(sounds, "ogg", options.files, None)
        numbers = iter(range(10**6))

        def commands():
            number = next(numbers)
            learning = ["--size", "nano", "--iterations", "1", "--set", "data.batch_seconds=16"]
            learning += ["--set", f"model.steps={options.steps}"]
            return {
                "embed": ["embed", str(sounds), "-m", "beats-nano", "-o", f"{work}/{number}.parquet"],
                "pretrain": ["pretrain", str(sounds), "--out", f"{work}/{number}", *learning],
            }

        for name in commands():
            for busy in (False, True):
                things = {
                    way: lambda name=name, spins=spins, busy=busy: seconds(
                        commands()[name], spins, busy, options.threads
                    )
                    for way, spins in WAYS.items()
                }
                taken = bench.turns(options.rounds, things)
                faster = bench.speedups(taken, next(iter(WAYS)))
                rows += [
                    (
                        name,
                        "one busy process" if busy else "nothing",
                        way,
                        bench.spread(taken[way], 1),
                        bench.shown(faster[way]),
                    )
                    for way in taken
                ]
    heads = ("command", "beside", "waiting", "seconds", "speed, of OpenMP's own way")
    title = f"# A busy machine: {options.files} clips, {options.steps} steps, {options.rounds} rounds"
    bench.write(options, "busy_machine", [title, bench.table(heads, rows), bench.machine(options)])


if __name__ == "__main__":
    main()

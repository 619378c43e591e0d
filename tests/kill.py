"""Kill commands at random moments, let them go on, and compare with a calm run: ``python tests/kill.py --moments 50``.

Each command is killed until it has been so many times, then left alone; when it ends before that, another run of it
begins. Its output must be that of the calm run, to the bit, and nothing may lie beside it. Of a training that is every
model and every figure of metrics.csv, but for the speed.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

sys.path.insert(0, os.fspath(Path(__file__).parent))

import torchbeats
from helpers import become_command, small_model, small_tokenizer, write_sounds

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "interrupt": signal.SIGINT}
COMMANDS = {"embed": ".parquet", "tokens": ".npz", "tag": ".csv", "pretrain": "", "finetune": ""}
TRAINING = ("pretrain", "finetune")
# As little as shows all phases, with a state behind every step.
TINY = {
    "pretrain": (
        "config.encoder_layers=1 config.encoder_embed_dim=32 config.embed_dim=32 config.encoder_ffn_embed_dim=64 "
        "config.encoder_attention_heads=2 config.conv_pos=16 config.conv_pos_groups=4 tokens.quant_n=32 "
        "tokens.quant_dim=8 data.crop_seconds=[0.5,1] data.batch_seconds=6 data.statistics_seconds=30 model.steps=6 "
        "model.warmup=1 model.predictor_layers=1 model.predictor_width=32 distillation.steps=6 distillation.warmup=1 "
        "distillation.estimator_layers=1 distillation.kmeans_batches=2"
    ),
    "finetune": "data.seconds=1 data.batch_seconds=8 data.validation=0.3 model.epochs=4",
}
EVERY = "data.workers=0 trainer.accelerator=cpu trainer.devices=1 trainer.log_every=2 trainer.save_every=2"
STOPPED = {signal.SIGTERM: 143, signal.SIGINT: 130}


def arguments(command: str, folder: Path, out: Path) -> list[str]:
    """The command line, for the inputs in a folder."""
    if command in TRAINING:
        sets = [part for setting in f"{TINY[command]} {EVERY}".split() for part in ("--set", setting)]
        data = [folder / "sounds", "--size", "nano", "--iterations", "2"]
        if command == "finetune":
            data = [folder / "labelled.csv", "-m", folder / "encoder.safetensors"]
        return [str(word) for word in (command, *data, "-o", out, *sets)]
    small = ["--window", "1", "--batch-seconds", "1", "--jobs", "2"]
    model = ["-t", folder / "tokenizer.safetensors"] if command == "tokens" else ["-m", folder / "model.safetensors"]
    return [str(word) for word in (command, folder / "sounds", *model, "-o", out, *small)]


def inputs(folder: Path) -> None:
    """A model, a tokenizer, and half a minute of sounds of many lengths, some of them none."""
    tagger = small_model(finetuned_model=True, predictor_class=3, problem_type="multi_label")
    tagger.label_dict = {0: "cat", 1: "dog", 2: "rain"}
    torchbeats.save(tagger, folder / "model.safetensors")
    torchbeats.save(small_tokenizer(), folder / "tokenizer.safetensors")
    chance = random.Random(0)
    lengths = {f"{number:02}.wav": 9.0 if number == 5 else chance.uniform(0.1, 4) for number in range(12)}
    write_sounds(folder / "sounds", lengths)
    for name in ("03x.wav", "08x.wav"):
        (folder / "sounds" / name).touch()
    torchbeats.save(small_model(dropout=0.0, attention_dropout=0.0), folder / "encoder.safetensors")
    rows = [f"sounds/{name},{'cat' if number % 2 else 'dog'}\n" for number, name in enumerate(lengths)]
    (folder / "labelled.csv").write_text("path,label\n" + "".join(rows))


def run_to_the_end(begin: Callable[[list[str], Path], multiprocessing.Process], command: list[str], log: Path) -> float:
    """Seconds of a calm run."""
    begun = time.monotonic()
    process = begin(command, log)
    process.join()
    assert process.exitcode == done(command), log.read_text()
    return time.monotonic() - begun


def done(command: list[str]) -> int:
    """The status of a run that nobody stopped: two files are no sounds, which training does without."""
    return 0 if command[0] in TRAINING else 1


def figures(file: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without what the clock decides."""
    with file.open(newline="") as stream:
        return [{k: v for k, v in row.items() if k != "clips_per_second"} for row in csv.DictReader(stream)]


def same(one: Path, other: Path) -> bool:
    """Whether two outputs hold the same: Parquet by its rows and metadata, all else by its bytes."""
    if one.name == "metrics.csv":
        return figures(one) == figures(other)
    if one.suffix == ".parquet":
        return bool(pq.read_table(one).equals(pq.read_table(other), check_metadata=True))
    return one.read_bytes() == other.read_bytes()


def trial(
    begin: Callable[[list[str], Path], multiprocessing.Process],
    command: str,
    folder: Path,
    moments: int,
    number: int,
    chance: random.Random,
) -> tuple[int, int]:
    """Kill a command so many times; how many of its runs ended before the next kill, and were compared."""
    ending = COMMANDS[command]
    calm, warm = (folder / f"{command}-{name}" / f"out{ending}" for name in ("calm", "warm"))
    run_to_the_end(begin, arguments(command, folder, warm), folder / "log")  # imports, of which no kill is to be
    seconds = run_to_the_end(begin, arguments(command, folder, calm), folder / "log")
    place = folder / f"{command}-killed"
    out, kills, compared = place / f"out{ending}", 0, 0
    while kills < moments:
        process = begin(arguments(command, folder, out), folder / "log")
        process.join(chance.uniform(0, seconds))
        if process.is_alive():
            os.kill(process.pid or 0, number)
            process.join(60)
        if process.exitcode in (-number, STOPPED.get(signal.Signals(number))):
            kills += 1
        else:
            assert process.exitcode == done([command]), (
                f"exit status {process.exitcode}: {(folder / 'log').read_text()}"
            )
            compare(calm, out)
            compared += 1
            shutil.rmtree(place)
    run_to_the_end(begin, arguments(command, folder, out), folder / "log")
    compare(calm, out)
    assert "Traceback" not in (folder / "log").read_text()
    return kills, compared + 1


def compare(calm: Path, out: Path) -> None:
    """Raise an `AssertionError` where the outputs differ, or something was left."""
    names = [{path.relative_to(one.parent) for path in files(one.parent)} for one in (calm, out)]
    assert names[0] == names[1], f"left: {names[1] - names[0]}; missing: {names[0] - names[1]}"
    for name in names[0]:
        assert same(calm.parent / name, out.parent / name), f"{out.parent / name} differs from {calm.parent / name}"


def files(folder: Path) -> list[Path]:
    """All that a run left but its logs, of which each process of it has its own, and what names its folder."""
    existing = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in existing if "tensorboard" not in path.parts and path.name not in ("run.yaml", ".lock")]


def begin(command: list[str], log: Path) -> multiprocessing.Process:
    """The command in a process of its own, forked from one that has imported everything."""
    process = multiprocessing.get_context("forkserver").Process(target=become_command, args=(command, str(log)))
    process.start()
    return process  # type: ignore[return-value]


def main() -> None:
    """Print a line for each command and signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="kills of each command")
    parser.add_argument("--command", choices=COMMANDS, action="append", help="default: all")
    parser.add_argument("--signal", choices=SIGNALS, default="kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what they run in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Older Pythons do not tell a fork server where this file's neighbours are, and it goes without them in silence.
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([known] if known else [])])
    preload = ["default_signals", "torchbeats.cli", "safetensors.torch", "soundfile", "soxr", "av", "helpers"]
    preload += ["torchbeats.training.run", "torchbeats.training.finetune_run", "tensorboard"]
    multiprocessing.get_context("forkserver").set_forkserver_preload(preload)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs(folder)
        for command in given.command or COMMANDS:
            chance = random.Random(f"{given.seed} {command}")
            kills, compared = trial(begin, command, folder, given.moments, SIGNALS[given.signal], chance)
            print(
                f"{command}: {kills} times {given.signal}, {compared} of {compared} outputs as of the calm run",
                flush=True,
            )


if __name__ == "__main__":
    main()

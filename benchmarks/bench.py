"""What the benchmarks share: workers, taking turns, the machine's description, the table that is written."""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import torchbeats

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PEERS_PYTHON = HERE.parent / "build" / "peers" / "bin" / "python"
TITLES = {
    "torchbeats": "torchbeats",
    "onnx": "torchbeats, ONNX Runtime",
    "int8": "torchbeats, ONNX Runtime, int8",
    "openvino": "torchbeats, OpenVINO",
    "openvino_int8": "torchbeats, OpenVINO, int8, calibrated",
    "speechbrain": "SpeechBrain 1.1.2",
    "avex": "AVEX 1.4.0",
    "openbeats": "OpenBEATs 0.1.1",
    "products": "float32 matrix products alone",
    "int8_products": "int8 products of linear layers alone",
}
PROCESSES = {"onnx": "torchbeats", "int8": "torchbeats", "openvino_int8": "openvino"}  # what each is in `worker.py`
SOUNDS = HERE.parent / "examples" / "audio"  # to calibrate with
PEERS = ("speechbrain", "avex", "openbeats")


class WorkerError(RuntimeError):
    """What a worker said went wrong."""


class Worker:
    """`worker.py` with one implementation, in a process of its own.

    Args:
        name: of the implementation, or of an engine of ours.
        options: as `parse` gives them.
    """

    def __init__(self, name, options):
        ours = name not in PEERS
        environment = dict(os.environ)
        if ours:
            # The torchbeats that is imported here, wherever it came from.
            paths = [str(Path(torchbeats.__file__).parents[1]), environment.get("PYTHONPATH")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        else:
            environment.pop("PYTHONPATH", None)  # of our environment, not of the peers'
        engine = PROCESSES.get(name, name)
        self.name = name
        self.begun = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable if ours else options.peers_python, HERE / "worker.py", engine, str(options.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if options.verbose else subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    def __call__(self, do, **arguments):
        """Have it do something; its answer."""
        try:
            print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            raise WorkerError(f"{TITLES[self.name]} ended with status {code} at {do!r}; see why with --verbose.")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{TITLES[self.name]}: {answer['error']}")
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def parser(description):
    """The options that all have."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--size", default="base", help="of the model; its weights are random (default: base)")
    made.add_argument("--rounds", type=int, default=5, help="how often all take their turn")
    made.add_argument("--threads", type=int, default=0, help="of PyTorch on the CPU (default: its own choice)")
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    made.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="who else; nothing for nobody")
    made.add_argument("--peers-python", type=Path, default=PEERS_PYTHON, help="of the environment they are in")
    made.add_argument("--out", type=Path, help="the file to write (default: benchmarks/results; none with --quick)")
    made.add_argument("--quick", action="store_true", help="a small model and little sound: does it run at all?")
    made.add_argument("--verbose", action="store_true", help="show what the workers say")
    return made


def parse(made, **quick):
    """Options as given; with --quick, those of ``quick`` over all."""
    options = made.parse_args()
    if options.quick:
        vars(options).update({"size": "nano", "rounds": 2, **quick})
    if options.peers and not options.peers_python.exists():
        progress(f"There are no peers at {options.peers_python}: run benchmarks/peers.sh first. Going on without.")
        options.peers = []
    return options


def progress(line):
    print(line, file=sys.stderr, flush=True)


def checkpoint(options, folder):
    """A model with random weights, in the format of the research code, which every implementation reads."""
    torch.manual_seed(0)
    model = torchbeats.BEATs(torchbeats.BEATsConfig(torchbeats.SIZES[options.size]))
    with torch.no_grad():
        for parameter in model.parameters():  # biases are 0 and gains 1 at first, which would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.02)
    torchbeats.save(model, folder / "model.pt")
    return folder / "model.pt"


def exported(weights, name, options):
    """The file that an engine of ours runs, with the same weights."""
    if not hasattr(torchbeats, "export"):
        raise WorkerError("This version of torchbeats does not export to ONNX.")
    path = weights
    if name != "openvino":
        path = weights.with_name(f"{name}.onnx")
        sounds = sorted(map(str, SOUNDS.glob("*.*"))) if name == "openvino_int8" else []
        with Worker("torchbeats", options) as worker:
            worker("start")
            sounds = [sound for sound in sounds if not sound.endswith(".md")]
            worker("export", checkpoint=str(weights), out=str(path), int8=name != "onnx", sounds=sounds)
    if name.startswith("openvino"):
        opened(name, path, options).__exit__()  # which says what is missing
    return path


def contenders(options, weights, onnx=False):
    """``{name: weights}`` of all that can be had here, and why the others cannot."""
    found, missing = {"torchbeats": weights}, {}
    for name in options.peers:
        try:
            with Worker(name, options) as worker:
                worker("start")
                worker("load", checkpoint=str(weights), device=options.device)
            found[name] = weights
        except WorkerError as error:
            missing[name] = str(error)
    if onnx and options.device == "cpu":
        for name in ("onnx", "int8", "openvino", "openvino_int8"):
            try:
                found[name] = exported(weights, name, options)
            except WorkerError as error:
                missing[name] = str(error)
    for reason in dict.fromkeys(missing.values()):
        progress(f"Left out: {reason}")
    return found, missing


def opened(name, weights, options):
    """A worker with its model loaded."""
    worker = Worker(name, options)
    worker("start")
    worker("load", checkpoint=str(weights), device=options.device)
    return worker


def turns(rounds, things):
    """Have all do their thing in turn, A B C A B C …

    Args:
        rounds: how often.
        things: ``{name: callable}``; each gives a result.

    Returns:
        ``{name: [result of each round]}``, without whatever failed.
    """
    results = {name: [] for name in things}
    for number in range(rounds):
        for name, thing in things.items():
            if name not in results:
                continue
            try:
                results[name].append(thing())
            except WorkerError as error:
                progress(f"Left out from here on: {error}")
                del results[name]
        progress(f"round {number + 1} of {rounds}")
    return results


def spread(values, digits=2):
    """Median and range, as in 1.23 (1.20–1.31)."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def speedups(seconds, measure):
    """``{name: [times as fast as measure, round by round]}``; empty where ``measure`` was left out."""
    if measure not in seconds:
        return {name: [] for name in seconds}
    return {
        name: [theirs / own for own, theirs in zip(taken, seconds[measure], strict=True)]
        for name, taken in seconds.items()
    }


def shown(values, digits=2):
    return spread(values, digits) if values else "–"


def apart(values, reference):
    """How far two arrays lie apart at most, of the reference's own spread."""
    if values.shape != reference.shape:
        return float("inf")
    return float(np.abs(values - reference).max() / reference.std())


def machine(options):
    """One line: when, on what, with what."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = options.threads or torch.get_num_threads()
    place = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{cpu}, {cores} cores"
    return (
        f"{datetime.date.today()}, {place}, torch {torch.__version__}, {threads} threads, "
        f"load {os.getloadavg()[0]:.1f} at the end, some {threads} of it the benchmark's own."
    )


def write(options, name, parts):
    """Print a table, and keep it."""
    # Where things lie on this machine is nobody's business.
    here = re.compile(r"--(peers-python|out)(=| )\S+ ?|--verbose ?")
    command = f"python benchmarks/{name}.py {here.sub('', ' '.join(sys.argv[1:]))}".strip()
    text = "\n\n".join([*(part.strip() for part in parts), f"`{command}`"]) + "\n"
    print(text)
    out = options.out or (None if options.quick else RESULTS / f"{name}.md")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
        progress(f"Written to {out}.")


def table(heads, rows):
    """Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def left_out(missing):
    return "".join(f"\n\nLeft out: {reason}" for reason in dict.fromkeys(missing.values()))


def temporary():
    return tempfile.TemporaryDirectory(prefix="torchbeats-benchmark-")

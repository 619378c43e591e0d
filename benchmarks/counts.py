"""What a pass, a file, a run and a start take, counted rather than timed: no noise moves these figures.

    python benchmarks/counts.py            # beside the upper limits in counts.json
    python benchmarks/counts.py --write    # make the figures of now the limits

`tests/test_benchmarks.py` fails where a figure is above its limit, so a change that makes the code slower by doing more
is seen on any machine. Limits hold for the PyTorch that counts.json names: another has other operators. Those of
Python's calls have a tenth of room, as each version of Python has others.
"""

import argparse
import builtins
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import torchbeats

HERE = Path(__file__).parent
LIMITS = HERE / "counts.json"
CLIPS = HERE.parent / "examples" / "audio"
FILES = 4  # copies of each
ROOM = 1.1  # for calls of Python functions
PASSES = {
    "1 x 3 s": [3.0],
    "1 x 10 s": [10.0],
    "4 x 10 s": [10.0] * 4,
    "4 of 2 to 5 s": [2, 3, 4, 5],
    "1 x 30 s": [30.0],
}


class Operators(TorchDispatchMode):
    """Counts calls of PyTorch's operators, bytes of the tensors that they make, and those of them that copy a weight.

    Args:
        model: whose weights are meant.
    """

    def __init__(self, model):
        super().__init__()
        self.calls, self.bytes, self.weight_bytes = 0, 0, 0
        self.weights = {tensor.data_ptr() for tensor in model.parameters() if tensor.numel() > 1000}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = function(*args, **(kwargs or {}))
        known = {_address(tensor) for tensor in given}
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and _address(tensor) not in known:
                self.bytes += tensor.numel() * tensor.element_size()
                if given and all(one.data_ptr() in self.weights for one in given):
                    self.weight_bytes += tensor.numel() * tensor.element_size()
        return made


def _address(tensor):
    return None if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


def passes(onednn):
    """Of one pass of the built-in model over clips of these lengths, by oneDNN's products or without them."""
    model = torchbeats.load("beats-nano")
    found = {}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=onednn):
            model.compute("mean", torch.randn(1, 48_000) / 10)  # what is made once is no part of a pass
            for name, seconds in PASSES.items():
                lengths = torch.tensor([round(16_000 * length) for length in seconds])
                wav = torch.randn(len(lengths), int(lengths.max())) / 10
                arguments = (wav, lengths if len(set(seconds)) > 1 else None)
                with Operators(model) as counted:
                    model.compute("mean", *arguments)
                found[f"{name}: operators"] = counted.calls
                found[f"{name}: new tensors, kB"] = counted.bytes // 1000
                found[f"{name}: copies of weights, kB"] = counted.weight_bytes // 1000
    return found


@contextmanager
def python_calls():
    """Counts calls of Python functions, in threads that are started inside too."""
    count = Counter()

    def called(frame, event, what):
        if event == "call":
            count["calls"] += 1

    threading.setprofile(called)
    sys.setprofile(called)
    try:
        yield count
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


@contextmanager
def system_calls():
    """Counts what Python asks of the system about files: opened, looked up, forced to the disk."""
    count, places = Counter(), [(builtins, "open"), (os, "stat"), (os, "lstat"), (os, "fsync")]
    plain = [getattr(*place) for place in places]

    def counting(name, function):
        def call(*args, **kwargs):
            count[name] += 1
            return function(*args, **kwargs)

        return call

    for (owner, name), function in zip(places, plain, strict=True):
        setattr(owner, name, counting(name, function))
    try:
        yield count
    finally:
        for place, function in zip(places, plain, strict=True):
            setattr(*place, function)


def files(folder):
    """Of decoding a short file, by kind; and of a run over all of them."""
    found, model = {}, torchbeats.load("beats-nano")
    for clip in ("speech-english-2.wav", "trumpet.flac", "siren.mp3", "flute.ogg"):
        for number in range(FILES):
            shutil.copy(CLIPS / clip, folder / f"{number:03d}-{clip}")
    for kind in ("wav", "flac", "mp3", "ogg"):
        paths = sorted(folder.glob(f"*.{kind}"))
        torchbeats.audio.load(paths[0])  # imports what it needs
        with system_calls() as asked:
            for path in paths:
                torchbeats.audio.load(path)
        with python_calls() as calls:
            for path in paths:
                torchbeats.audio.load(path)
        found[f"{kind}: opened"] = asked["open"] // FILES
        found[f"{kind}: looked up"] = (asked["stat"] + asked["lstat"]) // FILES
        found[f"{kind}: calls"] = calls["calls"] // FILES
    out = folder.parent / "table.parquet"
    torchbeats.write_table([paths[0]], out, model, jobs=1)
    with system_calls() as asked:
        torchbeats.write_table(folder, out, model, jobs=1, overwrite=True)
    with python_calls() as calls:
        torchbeats.write_table(folder, out, model, jobs=1, overwrite=True)
    inputs = 4 * FILES
    found["run, a file: opened"] = round(asked["open"] / inputs, 2)
    found["run, a file: looked up"] = round((asked["stat"] + asked["lstat"]) / inputs, 2)
    found["run, a file: calls"] = calls["calls"] // inputs
    found["run: forced to the disk"] = asked["fsync"]
    return found


def start():
    """Modules that an import takes beyond what PyTorch imports itself, and those of the command's help."""
    script = """
import json, sys
import torch
before = {*sys.modules}
import torchbeats
imported = {*sys.modules} - before
from torchbeats import cli
print(json.dumps([len(imported), len({*sys.modules} - before)]))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(torchbeats.__file__).parents[1])}
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=environment)
    package, command = json.loads(answer.stdout)
    return {"import torchbeats: modules": package, "command torchbeats: modules": command}


def measured():
    """All figures, by group."""
    found = {"pass": passes(onednn=False)}
    if torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512":
        found["pass by oneDNN"] = passes(onednn=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sounds").mkdir()
        found["files"] = files(Path(folder) / "sounds")
    found["start"] = start()
    return found


def above(found, limits):
    """Figures above their limit, in words."""
    return [
        f"{group}, {name}: {figure}, at most {limits[group][name]}"
        for group, figures in found.items()
        for name, figure in figures.items()
        if figure > limits[group][name] * (ROOM if name.endswith(": calls") else 1)
    ]


def version():
    """Of PyTorch, without the kind of build."""
    return ".".join(torch.__version__.split("+")[0].split(".")[:2])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="make these figures the limits")
    options = parser.parse_args()
    kept = json.loads(LIMITS.read_text()) if LIMITS.exists() else {"limits": {}}
    found = measured()
    for group, figures in found.items():
        print(f"| {group} | now | limit |\n|---|--:|--:|")
        for name, figure in figures.items():
            print(f"| {name} | {figure} | {kept['limits'].get(group, {}).get(name, '–')} |")
        print()
    if options.write:
        # Figures of another processor's way stay.
        limits = kept["limits"] | found
        made = {"torch": version(), "python": platform.python_version(), "limits": limits}
        LIMITS.write_text(json.dumps(made, indent=1) + "\n")
    elif kept["limits"] and (exceeded := above(found, kept["limits"])):
        sys.exit("Above the limit: " + "; ".join(exceeded))


if __name__ == "__main__":
    main()

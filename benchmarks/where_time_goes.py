"""Where torchbeats spends its time: shares of one pass over noise in memory, with what is left to gain.

    python benchmarks/where_time_goes.py [--cases 1x10 8x10 1x3 1x30 1x120] [--size base]

PyTorch's profiler tells what each operation took, and in which part of the model it was called. A matrix product has a
speed; the last line of a table is that of the linear layers of the whole batch with nothing in between. Fastest of
`--rounds` passes, float32, on a CPU.
"""

import time
from collections import defaultdict
from contextlib import contextmanager
from functools import wraps

import bench
import torch
from torch.profiler import ProfilerActivity, profile, record_function

import torchbeats
from torchbeats import kernels
from torchbeats.fbank import Fbank

PARTS = {
    "linear": "linear layers, with their GELU",
    "products": "attention: products with keys and values",
    "softmax": "attention: softmax",
    "bias": "attention: gated position bias, and the rest",
    "convolution": "position convolution",
    "spectrogram": "spectrogram",
    "rest": "gates, sums, norms, copies",
}


def labelled(function, name):
    """The same function, by a name that the profiler shows."""

    @wraps(function)
    def call(*args, **kwargs):
        with record_function(name):
            return function(*args, **kwargs)

    return call


@contextmanager
def labels():
    """For a while, the profiler shows the model's parts by name."""
    places = [(kernels, "linear"), (kernels, "attention"), (kernels, "convolution"), (Fbank, "forward")]
    plain = [getattr(*place) for place in places]
    for (owner, name), function in zip(places, plain, strict=True):
        setattr(owner, name, labelled(function, f"part:{'spectrogram' if owner is Fbank else name}"))
    try:
        yield
    finally:
        for place, function in zip(places, plain, strict=True):
            setattr(*place, function)


def part_of(event):
    """Which of `PARTS` an operation belongs to."""
    around, outer = event, None
    while around is not None and outer is None:
        outer = around.name.removeprefix("part:") if around.name.startswith("part:") else None
        around = around.cpu_parent
    if outer != "attention":
        return outer or "rest"
    if event.name in ("aten::bmm", "aten::baddbmm", "aten::baddbmm_"):
        return "products"
    return "softmax" if "softmax" in event.name else "bias"


def shares(model, wav, rounds):
    """Seconds of the fastest pass, and of each part in it."""
    fastest, found = float("inf"), {}
    with torch.inference_mode():
        model.extract_features(wav)  # nobody's first pass is timed
        for _ in range(rounds):
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                begun = time.perf_counter()
                model.extract_features(wav)
                seconds = time.perf_counter() - begun
            if seconds < fastest:
                fastest, found = seconds, defaultdict(float)
                for event in profiled.events():
                    found[part_of(event)] += event.self_cpu_time_total / 1e6
    return fastest, found


def products(model, wav, tokens, rounds):
    """What linear layers and attention have to multiply, in floating-point operations; and the speed of the former."""
    layers = [module for module in model.encoder.layers.modules() if isinstance(module, torch.nn.Linear)]
    layers = [layer for layer in layers if min(layer.weight.shape) >= 64]  # the gates' are counted with the gates
    B, C, depth = len(wav), model.cfg.encoder_embed_dim, len(model.encoder.layers)
    linear = sum(2 * B * tokens * layer.weight.numel() for layer in layers)
    given = {layer.in_features: torch.randn(B * tokens, layer.in_features) for layer in layers}
    fastest = float("inf")
    with torch.inference_mode():
        for _ in range(rounds + 1):
            begun = time.perf_counter()
            for layer in layers:
                kernels.linear(layer, given[layer.in_features])
            fastest = min(fastest, time.perf_counter() - begun)
    return {"linear": linear, "products": 4 * B * depth * tokens**2 * C}, linear / fastest


def main():
    parser = bench.parser(__doc__)
    parser.add_argument("--cases", nargs="+", default=["1x10", "8x10", "1x3", "1x30", "1x120"], help="clips x seconds")
    options = bench.parse(parser, cases=["1x2", "2x2"])
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = torchbeats.BEATs(torchbeats.BEATsConfig(torchbeats.SIZES[options.size]))
    parts = [f"# Where the time goes, {options.size}, float32"]
    for case in options.cases:
        clips, seconds = case.split("x")
        wav = torch.randn(int(clips), round(float(seconds) * 16000)) / 10
        with torch.inference_mode():
            tokens = model.extract_features(wav[:1])[0].size(1)
        with labels():
            taken, found = shares(model, wav, options.rounds)
        work, speed = products(model, wav, tokens, options.rounds)
        rows = [
            (
                title,
                f"{100 * found[part] / sum(found.values()):.1f} %",
                f"{work[part] / found[part] / 1e9:.0f}" if part in work and found[part] else "–",
            )
            for part, title in PARTS.items()
        ]
        rows.append(("linear layers by themselves", "–", f"{speed / 1e9:.0f}"))
        audio = int(clips) * float(seconds)
        parts += [
            f"{clips} of {seconds} s: {audio / taken:.1f} × real time",
            bench.table(("", "share of the time", "GFLOP/s"), rows),
        ]
        bench.progress(f"{case}: done")
    bench.write(options, "where_time_goes", [*parts, bench.machine(options)])


if __name__ == "__main__":
    main()

"""How fast pre-training is, and whether its cost follows what is kept.

    python benchmarks/pretraining_step.py [--sizes nano base] [--clips 4] [--device cuda] [--precision bf16]

One step is front end, labels by random projection, forward, backward and optimiser, on clips of noise that are in
memory. Steps with 75 % of the patches hidden and steps with none hidden take turns in one run, so that their ratio
stands whatever else the machine is doing.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from torchbeats import BEATs, RandomProjectionConfig, RandomProjectionTokenizer
from torchbeats.patches import SAMPLE_RATE, PatchGrid
from torchbeats.training.configuring import settings
from torchbeats.training.crops import Crop, collate, random_mask
from torchbeats.training.memory import keep_freed_memory
from torchbeats.training.pretraining import Pretraining


def batch(clips, seconds, share):
    random, grid = np.random.default_rng(0), PatchGrid()
    samples = round(seconds * SAMPLE_RATE)
    patches = grid.patches(samples)
    crops = [
        Crop(random.standard_normal(samples).astype(np.float32) / 10, random_mask(patches, share, random))
        for _ in range(clips)
    ]
    return collate(crops, grid)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["nano", "base"])
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--clips", type=int, default=4, help="in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    keep_freed_memory()  # as the command does

    print(f"{options.clips} clips of {options.seconds:g} s, {options.precision}, {device}, {torch.__version__}\n")
    print("| size | mask 0.75, clips/s | mask 0, clips/s | cost of a step at 0.75, of that at 0 (median; range) |")
    print("|---|---|---|---|")
    for size in options.sizes:
        chosen = settings(size)
        torch.manual_seed(0)
        task = Pretraining(
            BEATs(chosen.beats_config(), freeze=False),
            RandomProjectionTokenizer(RandomProjectionConfig()),
            chosen.model,
            seed=0,
        ).to(device)
        task.share_of_mean = lambda total, count: total / count  # one process, without Lightning's trainer
        optimizer = torch.optim.AdamW(task.network.parameters())
        batches = {share: batch(options.clips, options.seconds, share).to(device) for share in (0.75, 0.0)}

        def step(share, task=task, optimizer=optimizer, batches=batches):
            if device.type == "cuda":
                torch.cuda.synchronize()
            begun = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
                loss = task.step(batches[share])["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - begun

        for share in batches:
            step(share)
        times = {share: [] for share in batches}
        for _ in range(options.rounds):
            for share in batches:
                times[share].append(step(share))
        ratios = [masked / whole for masked, whole in zip(times[0.75], times[0.0], strict=True)]
        speed = {share: options.clips / statistics.median(seconds) for share, seconds in times.items()}
        print(
            f"| {size} | {speed[0.75]:.2f} | {speed[0.0]:.2f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Fine-tunes a pre-trained model on the corpora's own coarse classes: the teacher of the next tokenizer.

    python recipes/nano/teacher.py --audio build/nano/audio --model RUN/model.safetensors --out teacher.safetensors

Classes are drawn equally often, and of each a file, and of each a second. At the end the held-out files' accuracy is
printed, and written beside the model as ``.json``. A plain loop, older than `torchbeats finetune`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

import torchbeats
from torchbeats import BEATs, BEATsConfig, audio
from torchbeats.cli.console import console
from torchbeats.files import replacing
from torchbeats.training.augment import augment_waveform

SECONDS = 1.0  # of a crop, as most of those that the model was trained on
BATCH = 32
GAIN_DB = 10.0
BAND_LIMITED = 0.5  # most prompts come from telephones; what is above 4 kHz must not give the class away
MOST_HELD_OUT = 200  # files of a class; speech has thousands


class Sound(NamedTuple):
    """A file, and the class that it belongs to."""

    path: Path
    label: str
    seconds: float


def read_manifest(folder: Path, split: str) -> dict[str, list[Sound]]:
    """The files of a split that have a label, by label."""
    sounds: dict[str, list[Sound]] = defaultdict(list)
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["label"] and row["split"] == split:
                sounds[row["label"]].append(Sound(folder / row["path"], row["label"], float(row["seconds"])))
    return dict(sorted(sounds.items()))


def with_head(model: BEATs, labels: Sequence[str]) -> BEATs:
    """The same model, not frozen, with a fresh head for ``labels``."""
    cfg = BEATsConfig(model.cfg.to_dict())
    cfg.update({"finetuned_model": True, "predictor_class": len(labels), "problem_type": "single_label"})
    tuned = BEATs(cfg, freeze=False)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("predictor.")}
    tuned.load_state_dict({**tuned.state_dict(), **weights})
    tuned.label_dict = dict(enumerate(labels))
    return tuned


def batch(crops: Sequence[audio.Floats], shortest: int) -> tuple[Tensor, Tensor]:
    """``(B, samples)`` and ``(B,)`` lengths, none below ``shortest``: what is missing there is silence."""
    lengths = [max(len(crop), shortest) for crop in crops]
    wav = torch.zeros(len(crops), max(lengths))
    for row, crop in zip(wav, crops, strict=True):
        row[: len(crop)] = torch.from_numpy(crop)
    return wav, torch.tensor(lengths)


def train(model: BEATs, sounds: dict[str, list[Sound]], steps: int, lr: float, seed: int) -> None:
    """Adam with a linear warm-up over a tenth of the steps, then linearly down to nothing."""
    random = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.98))
    warmup = max(1, steps // 10)
    labels = list(sounds)
    model.train()
    said = 0.0
    for step in _shown(range(steps), "Fine-tuning"):
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
        targets = random.integers(len(labels), size=BATCH)
        crops = []
        for target in targets:
            choices = sounds[labels[target]]
            sound = choices[random.integers(len(choices))]
            crop = audio.excerpt(sound.path, random.uniform(0, max(0.0, sound.seconds - SECONDS)), SECONDS)
            crops.append(augment_waveform(crop, random, GAIN_DB, BAND_LIMITED))
        wav, lengths = batch(crops, model.grid.min_samples)
        loss = F.cross_entropy(model.logits(wav, lengths=lengths), torch.from_numpy(targets))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        said = float(loss.detach()) if step == 0 else 0.95 * said + 0.05 * float(loss.detach())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} of {steps}: loss {said:.3f}", file=sys.stderr, flush=True)


@torch.inference_mode()
def accuracies(model: BEATs, sounds: dict[str, list[Sound]]) -> dict[str, dict[str, Any]]:
    """For each class that has held-out files: how many were heard, and the share that was recognised."""
    model.eval()
    found: dict[str, dict[str, Any]] = {}
    for index, label in (model.label_dict or {}).items():
        files = sounds.get(label, [])
        files = [files[i] for i in np.random.default_rng(0).permutation(len(files))[:MOST_HELD_OUT]]
        hits = 0
        for start in range(0, len(files), BATCH):
            middles = [
                audio.excerpt(sound.path, max(0.0, sound.seconds - SECONDS) / 2, SECONDS)
                for sound in files[start : start + BATCH]
            ]
            wav, lengths = batch(middles, model.grid.min_samples)
            hits += int((model.logits(wav, lengths=lengths).argmax(1) == index).sum())
        if files:
            found[label] = {"files": len(files), "accuracy": round(100 * hits / len(files), 1)}
    return found


def _shown(items: Any, doing: str) -> Any:
    """The items, with a bar for a person at a terminal."""
    return track(items, doing, console=console, disable=not console.is_terminal, transient=True)


def main() -> None:
    """Reads, trains, saves, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True, metavar="FOLDER", help="what fetch.py made")
    parser.add_argument("--model", required=True, help="a pre-trained model, by file or name")
    parser.add_argument("--out", type=Path, required=True, help="the teacher's file, .safetensors")
    parser.add_argument("--steps", type=int, default=600, help=f"of {BATCH} crops (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=5e-4, help="the highest (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness (default: %(default)s)")
    options = parser.parse_args()
    if options.out.suffix != ".safetensors":
        sys.exit(f"The teacher's name must end in .safetensors; {options.out} does not.")
    if not (options.audio / "manifest.csv").exists():
        sys.exit(f"There is no {options.audio / 'manifest.csv'}; recipes/nano/fetch.py makes it.")

    sounds = read_manifest(options.audio, "train")
    torch.manual_seed(options.seed)
    model = torchbeats.load(options.model)
    if not isinstance(model, BEATs):
        sys.exit(f"{options.model} is a tokenizer; a model is needed.")
    teacher = with_head(model, list(sounds))
    train(teacher, sounds, options.steps, options.lr, options.seed)
    torchbeats.save(teacher, options.out)

    classes = accuracies(teacher, read_manifest(options.audio, "heldout"))
    mean = round(sum(row["accuracy"] for row in classes.values()) / max(1, len(classes)), 1)
    about = {"model": options.model, "steps": options.steps, "lr": options.lr, "seed": options.seed}
    with replacing(options.out.with_suffix(".json")) as temporary:
        report = {**about, "balanced_accuracy": mean, "heldout": classes}
        temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(f"{'class':24}files  held-out accuracy")
    for label, row in classes.items():
        print(f"{label:24}{row['files']:5}  {row['accuracy']:5.1f} %")
    print(f"{'mean over the classes':29}  {mean:5.1f} %")


if __name__ == "__main__":
    main()

"""A tagger that knows what it does not know: a head on a frozen model, from the lists of tagger_lists.py.

    python recipes/nano/train_tagger.py build/nano/tagger.csv --out build/nano/beats-nano-tagger.safetensors

1. Embeddings of pieces of two seconds, several of a rare class: louder and softer, through a telephone, with noise
   behind. Two sounds of different classes at once, about as loud as each other, are of no class, like "other" itself.
2. A linear head, all classes with the same weight; its regularisation is the best for the validation split by the mean
   over the classes.
3. The temperature at which the probabilities of the validation split are right (arXiv 1706.04599), folded into the
   head.
4. The threshold below which a sound is unknown: one in twenty sounds of known classes of the validation split is.

Embeddings are kept beside the lists. It takes some minutes, most of them for the embeddings.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from everyday import OTHER
from torch import Tensor, nn

import torchbeats
from torchbeats import BEATs, audio
from torchbeats.abstention import SETTING, setting
from torchbeats.config import BEATsConfig
from torchbeats.files import replacing
from torchbeats.heads.fitting import OF_A_HEAD
from torchbeats.patches import SAMPLE_RATE, PatchGrid

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

SECONDS = 2.0
LONGEST = 10.0  # seconds of a validation sound that are heard, as `torchbeats tag` hears a file
PIECES = 250  # of a class, at least: so often are its sounds heard anew
MIXTURES = 1000
UNMIXED = {OTHER, "noise", "silence"}  # behind another sound they do not make it another
BATCH_SECONDS = 32.0
POOL = "statistics"
RIDGES = (300.0, 3000.0, 30000.0)


# --- pieces -----------------------------------------------------------------------------------------------------------


def piece(samples: audio.Floats, rng: np.random.Generator, changed: bool) -> audio.Floats:
    """Some two seconds of a sound, where there is something to be heard; changed, as another recorder would have it."""
    length = int(SECONDS * SAMPLE_RATE)
    if len(samples) > length:
        starts = rng.integers(0, len(samples) - length + 1, 4)
        energy = [float(np.square(samples[start : start + length]).sum()) for start in starts]
        start = starts[int(np.argmax(energy[:2] if changed else energy))]
        samples = samples[start : start + length]
    if not changed:
        return samples
    samples = samples * np.float32(10 ** (rng.uniform(-10, 10) / 20))
    if rng.random() < 0.3:  # a telephone
        spectrum = np.fft.rfft(samples)
        spectrum[int(len(spectrum) * rng.uniform(0.42, 0.6)) :] = 0
        samples = np.fft.irfft(spectrum, len(samples)).astype(np.float32)
    if rng.random() < 0.4:
        samples = samples + noise(len(samples), rng) * level(samples) * 10 ** (rng.uniform(-35, -12) / 20)
    return (samples / max(1.0, float(np.abs(samples).max(initial=0)))).astype(np.float32)


def noise(size: int, rng: np.random.Generator) -> audio.Floats:
    """Noise of any slope, as loud as 1."""
    gain = np.maximum(np.arange(size // 2 + 1), 20) ** -rng.uniform(0, 1)
    result = np.fft.irfft(np.fft.rfft(rng.standard_normal(size)) * gain, size)
    return (result / np.sqrt(np.square(result).mean())).astype(np.float32)


def level(samples: audio.Floats) -> float:
    """Root mean square of the louder half of a sound."""
    squares = np.sort(np.square(samples))[len(samples) // 2 :]
    return float(np.sqrt(squares.mean())) if len(squares) else 0.0


def mixture(one: audio.Floats, two: audio.Floats, rng: np.random.Generator) -> audio.Floats:
    """Both at once, the second at most 4 dB louder or softer."""
    size = min(len(one), len(two))
    gain = level(one) / max(level(two), 1e-6) * 10 ** (rng.uniform(-4, 4) / 20)
    mixed = one[:size] + two[:size] * np.float32(gain)
    return (mixed / max(1.0, float(np.abs(mixed).max(initial=0)))).astype(np.float32)


def pieces(rows: Sequence[dict[str, str]], seed: int) -> Iterator[audio.Floats]:
    """What the head is shown of a class."""
    rng = np.random.default_rng(seed)
    for row in rows:
        samples = audio.load(row["path"])[: 60 * SAMPLE_RATE]
        for number in range(max(1, min(12, math.ceil(PIECES / len(rows))))):
            yield piece(samples, rng, changed=number > 0 or rng.random() < 0.5)


def mixtures(rows: Sequence[dict[str, str]], seed: int) -> Iterator[audio.Floats]:
    """Two classes at once, each pair of classes as often as any other."""
    rng = np.random.default_rng(seed)
    of = {label: here for label, here in classes_of(rows).items() if label not in UNMIXED}
    labels = sorted(of)
    for _ in range(MIXTURES):
        chosen = [labels[number] for number in rng.choice(len(labels), 2, replace=False)]
        paths = [of[label][rng.integers(len(of[label]))]["path"] for label in chosen]
        one, two = (piece(audio.load(path)[: 20 * SAMPLE_RATE], rng, changed=False) for path in paths)
        yield mixture(one, two, rng)


def heard(rows: Sequence[dict[str, str]]) -> Iterator[audio.Floats]:
    """Each sound once, as `torchbeats tag` hears the first window of a file."""
    return (audio.load(row["path"])[: int(LONGEST * SAMPLE_RATE)] for row in rows)


def classes_of(rows: Sequence[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """The rows of each class."""
    result: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        result.setdefault(row["label"], []).append(row)
    return result


def embedded(model: BEATs, sounds: Iterator[audio.Floats]) -> Array:
    """``(N, D)`` embeddings of sounds, in any order."""
    rows: list[Array] = []
    waiting: list[audio.Floats] = []

    def flush() -> None:
        waiting.sort(key=len)
        while waiting:
            count = max(1, int(BATCH_SECONDS * SAMPLE_RATE / len(waiting[-1])))
            batch, waiting[-count:] = waiting[-count:], []
            lengths = torch.tensor([len(samples) for samples in batch])
            wav = torch.zeros(len(batch), int(lengths.max()))
            for line, samples in zip(wav, batch, strict=True):
                line[: len(samples)] = torch.from_numpy(samples)
            rows.append(model.compute(POOL, wav, lengths).numpy())

    shortest = PatchGrid().min_samples
    for samples in sounds:
        waiting.append(np.pad(samples, (0, max(0, shortest - len(samples)))))
        if len(waiting) >= 256:
            flush()
    flush()
    return np.concatenate(rows)


class Embeddings:
    """Embeddings of the lists' sounds; what was made is kept.

    Args:
        model: that makes them.
        folder: where they are kept.
        seed: of what is drawn.
    """

    def __init__(self, model: BEATs, folder: Path, seed: int) -> None:
        self.model, self.folder, self.seed = model, folder, seed
        self._digest = model.digest()

    def of(self, rows: Sequence[dict[str, str]], sounds: Iterator[audio.Floats], about: str) -> Array:
        """``(N, D)`` of sounds, which depend on the rows, the seed and what is said of them."""
        told = json.dumps([self._digest, POOL, self.seed, about, rows])
        path = self.folder / f"tagger-{hashlib.sha256(told.encode()).hexdigest()[:16]}.npy"
        if not path.exists():
            values = embedded(self.model, sounds).astype(np.float16)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, values)
            print(f"{about}: {len(values):,} pieces", flush=True)
        stored: Array = np.load(path).astype(np.float32)
        return stored

    def train(self, rows: Sequence[dict[str, str]]) -> tuple[Array, Array]:
        """``(N, D)`` and ``(N,)`` labels of the training split."""
        parts = [
            (label, self.of(here, pieces(here, self.seed), f"train {label}"))
            for label, here in classes_of(rows).items()
        ]
        return joined([*parts, (OTHER, self.of(rows, mixtures(rows, self.seed), "mixtures"))])

    def validation(self, rows: Sequence[dict[str, str]]) -> tuple[Array, Array]:
        """As `train`, of the validation split, each sound once."""
        return joined(
            [(label, self.of(here, heard(here), f"validation {label}")) for label, here in classes_of(rows).items()]
        )


def joined(parts: Sequence[tuple[str, Array]]) -> tuple[Array, Array]:
    """One array of rows, and one of labels."""
    labels = [np.repeat(label, len(values)) for label, values in parts]
    return np.concatenate([values for _, values in parts]), np.concatenate(labels)


# --- the head ---------------------------------------------------------------------------------------------------------


def fit(x: Tensor, y: Tensor, valid: Tensor, truth: Tensor, classes: int) -> tuple[nn.Linear, float]:
    """The head that is best for the validation split, and its mean accuracy over the classes there.

    Ridge regression to the classes, each with the same weight: a matter of seconds.
    """
    weight = torch.bincount(y, minlength=classes).clamp(min=1).reciprocal()[y]
    weight = (weight / weight.mean()).sqrt()[:, None]
    target = (nn.functional.one_hot(y, classes) - 1 / classes) * weight
    x = x * weight
    gram, moment = x.T @ x, x.T @ target
    best: tuple[float, Tensor] = (-1.0, moment)
    for ridge in RIDGES:
        solution = torch.cholesky_solve(moment, torch.linalg.cholesky(gram + ridge * torch.eye(len(gram))))
        reached = balanced((valid @ solution).argmax(1), truth)
        print(f"ridge {ridge:g}: {reached:.1f} % of the validation sounds", flush=True)
        best = max(best, (reached, solution), key=lambda found: found[0])
    head = nn.Linear(len(gram), classes)
    with torch.no_grad():
        head.weight.copy_(best[1].T)
        head.bias.zero_()
    return head, best[0]


def balanced(named: Tensor, truth: Tensor) -> float:
    """Mean over the classes of the share that is right, in percent."""
    return 100 * float(torch.stack([(named[truth == k] == k).float().mean() for k in truth.unique()]).mean())


def temperature(logits: Tensor, truth: Tensor) -> float:
    """What logits are to be divided by so that probabilities say how often they are right."""
    weights = 1 / torch.bincount(truth).clamp(min=1)[truth].double()
    candidates = np.geomspace(0.01, 5, 400)
    losses = [
        float((nn.functional.cross_entropy(logits.double() / t, truth, reduction="none") * weights).sum())
        for t in candidates
    ]
    return float(candidates[int(np.argmin(losses))])


def whole(base: BEATs, head: nn.Linear, classes: list[str]) -> BEATs:
    """The model with the head on top."""
    cfg = BEATsConfig(
        base.cfg.to_dict(),
        finetuned_model=True,
        predictor_class=len(classes),
        predictor_pool=POOL,
        problem_type="single_label",
    )
    for name in OF_A_HEAD:
        cfg.__dict__.pop(name, None)
    model = BEATs(cfg)
    state = {name: value for name, value in base.state_dict().items() if not name.startswith("predictor.")}
    state |= {f"predictor.{name}": value for name, value in head.state_dict().items()}
    model.load_state_dict(state)
    model.label_dict = dict(enumerate(classes))
    return model


def main() -> None:
    """Trains, calibrates, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path, help="tagger.csv of tagger_lists.py")
    parser.add_argument("--model", default="beats-nano", help="whose embeddings (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="file of the tagger")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args()
    with options.list.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    base = torchbeats.load(options.model, expect=BEATs)
    embeddings = Embeddings(base, options.list.parent, options.seed)
    x, labels = embeddings.train([row for row in rows if row["split"] == "train"])
    valid, valid_labels = embeddings.validation([row for row in rows if row["split"] == "validation"])
    classes = sorted(set(labels.tolist()))
    index = {name: number for number, name in enumerate(classes)}
    y, truth = (torch.tensor([index[name] for name in names.tolist()]) for names in (labels, valid_labels))
    mean, deviation = x.mean(0), x.std(0) + 1e-3
    fitted, reached = fit(
        torch.from_numpy((x - mean) / deviation), y, torch.from_numpy((valid - mean) / deviation), truth,
        len(classes),
    )  # fmt: skip
    head = nn.Linear(x.shape[1], len(classes))
    with torch.no_grad():
        weight = fitted.weight / torch.from_numpy(deviation)
        bias = fitted.bias - weight @ torch.from_numpy(mean)
        logits = nn.functional.linear(torch.from_numpy(valid), weight, bias)
        scale = temperature(logits, truth)
        head.weight.copy_(weight / scale)
        head.bias.copy_(bias / scale)
        probabilities = (logits / scale).softmax(1).numpy()
    model = whole(base, head, classes)
    known = valid_labels != OTHER
    about = {**setting(probabilities[known], classes, OTHER), "temperature": round(scale, 4)}
    model.cfg.update({SETTING: about})
    torchbeats.save(model, options.out)
    print(f"{options.out}: {len(classes)} classes, {reached:.1f} % of validation sounds, {json.dumps(about)}")


if __name__ == "__main__":
    main()

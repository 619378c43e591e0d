"""Labelled sounds → every layer's features of every patch, in a file that is read where it is needed.

They are many: of a base model 160 kB a step of 160 ms. A file that is mapped to memory holds them, so that neither
computing nor reading them takes more memory than a few windows or a batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from torchbeats.data.example import Example
from torchbeats.data.inputs import Piece
from torchbeats.errors import InputError
from torchbeats.evaluation.metrics import Array
from torchbeats.evaluation.rows import NOT_FINITE, cache_key
from torchbeats.files import replacing
from torchbeats.inference import Progress, groups
from torchbeats.plans import EmbeddingPlan
from torchbeats.protocol import Model

EPSILON = 1e-5  # beside the variance, as in a layer norm


@dataclass
class Features:
    """Features of examples, each layer's normalised patch by patch (a layer norm without weights).

    So layers are of one size, as in s3prl's ``Featurizer(normalize=True)``, and half precision holds them.

    Attributes:
        values: ``(steps, layers, bands, C)`` float16, mapped to memory; one example's steps behind another's.
        starts: ``(N,)`` int64, where each example's steps begin.
        counts: ``(N,)`` int64, how many it has; 0 of one that could not be used.
        failures: paths of those that could not be read, in whole or in part, or of which the model makes values that
            are not finite; and why.
    """

    values: Array
    starts: Array
    counts: Array
    failures: list[tuple[str, str]]

    def subset(self, examples: Sequence[int] | Array) -> Features:
        """The features of some examples, by their numbers, without a copy of the values."""
        return replace(self, starts=self.starts[examples], counts=self.counts[examples])

    def of(self, example: int, first: int = 0, steps: int | None = None) -> Array:
        """Some of an example's steps, or all: ``(steps, layers, bands, C)`` float16."""
        start, end = self.starts[example] + first, self.starts[example] + self.counts[example]
        return self.values[start : end if steps is None else min(end, start + steps)]


def write_features(
    path: Path,
    examples: Sequence[Example],
    model: Model,
    plan: EmbeddingPlan,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Compute features into a file, beside it an index. Both are complete or absent.

    Args:
        path: of the file; the index has the suffix .npz.
        examples: labelled sounds. One that cannot be used has no features, and the index names it.
        model: that embeds.
        plan: one with the pooling "patches" and all layers, as `plan_of` makes it.
        jobs: threads that decode.
        progress: called with what is done.
    """
    shape = plan.row(model).shape  # (layers, bands, C)
    failures: list[tuple[str, str]] = []
    starts, counts, total = np.zeros(len(examples), np.int64), np.zeros(len(examples), np.int64), 0
    pieces = (Piece(example.path, example.start, example.end, example.content) for example in examples)
    sounds = ((str(i), piece) for i, piece in enumerate(pieces))
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            for group in groups(sounds, model, plan, jobs=jobs, progress=progress):
                failures += [(examples[int(name)].path, reason) for name, reason in group.failures]
                if not len(group.values):
                    continue
                file.write(_normalised(group.values.reshape(-1, *shape)).tobytes())
                finite = np.isfinite(group.values).min(axis=1)
                for row, name in enumerate(group.paths):
                    i = int(name)
                    if counts[i] == 0:
                        starts[i] = total + row
                    if counts[i] >= 0:
                        counts[i] = counts[i] + 1 if finite[row] else -1
                total += len(group.values)
        failures += [(examples[i].path, NOT_FINITE) for i in np.flatnonzero(counts < 0).tolist()]
    with replacing(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            failures=np.array(json.dumps(failures)),
            starts=starts,
            counts=np.maximum(counts, 0),
            shape=np.array([total, *shape]),
        )


def _normalised(x: Array) -> Array:
    """``(steps, layers, bands, C)`` float16 with mean 0 and variance 1 over C; zeros for what is not finite."""
    with np.errstate(all="ignore"):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + EPSILON)
        return np.nan_to_num(scaled.astype(np.float16), nan=0.0, posinf=0.0, neginf=0.0)


def read_features(path: Path) -> Features:
    """What `write_features` wrote, mapped to memory.

    Raises:
        FileNotFoundError: it is not there.
        InputError: not one of the sounds could be used.
    """
    with np.load(path.with_suffix(".npz")) as index:
        arrays: dict[str, Array] = dict(index)
    failures = [(name, reason) for name, reason in json.loads(str(arrays["failures"]))]
    shape = tuple(arrays["shape"].tolist())
    if not arrays["counts"].any():
        raise InputError(f"Not one of the {len(arrays['counts']):,} sounds can be used.")
    values: Any = np.memmap(path, np.float16, "r", shape=shape)
    return Features(values, arrays["starts"], arrays["counts"], failures)


def plan_of(window: float | None, batch_seconds: float) -> EmbeddingPlan:
    """Every layer's patches. Batches are small, as every second of them is kept a hundred times over for a moment."""
    return EmbeddingPlan("patches", "all", window=window, batch_seconds=min(batch_seconds, 10.0))


def stored_features(
    folder: Path, examples: Sequence[Example], weights: str, settings: dict[str, Any], write: Callable[[Path], None]
) -> tuple[Features, bool]:
    """The features that an earlier run of the same version with the same arguments has kept, or new ones.

    Args:
        folder: where they are kept.
        examples: what they are of.
        weights: the model's digest.
        settings: all others that decide them; see `EmbeddingPlan.settings`.
        write: makes them at a path, by `write_features`.

    Returns:
        The features, and whether they were there already.
    """
    path = folder / f"{cache_key(examples, weights, settings)}.f16"
    try:
        return read_features(path), True
    except FileNotFoundError:
        pass
    except InputError:
        raise
    except Exception:  # damaged: made anew
        path.with_suffix(".npz").unlink(missing_ok=True)
    write(path)
    return read_features(path), False

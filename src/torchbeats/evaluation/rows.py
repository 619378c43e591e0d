"""Labelled sounds → a row of numbers for each: class probabilities, or embeddings, kept for the next time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchbeats.audio import Floats
from torchbeats.data.example import Example
from torchbeats.data.fingerprint import fingerprint
from torchbeats.data.inputs import Piece, described
from torchbeats.errors import InputError
from torchbeats.files import replacing
from torchbeats.inference import OnFailure, Progress, groups
from torchbeats.plans import Plan
from torchbeats.protocol import Model
from torchbeats.remote import absolute
from torchbeats.version import __version__

NOT_FINITE = "the model gives numbers for it that are not finite"


@dataclass
class Rows:
    """What became of examples.

    Attributes:
        values: ``(N, D)`` float32, the mean over each one's windows; all are finite.
        indices: ``(N,)`` int64, which of the examples.
        failures: paths of those that could not be read, in whole or in part, or of which the model makes values
            that are not finite; and why.
    """

    values: Floats
    indices: np.ndarray[Any, np.dtype[np.int64]]
    failures: list[tuple[str, str]]


def rows_of(
    examples: Sequence[Example],
    model: Model,
    plan: Plan,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    on_failure: OnFailure = lambda path, reason: None,
) -> Rows:
    """Compute a row for each example, the mean over its windows. One that cannot be used is left out and named.

    Raises:
        InputError: not one of them can be read, or gives finite values.
    """
    total, windows, failures = np.empty((0, 0), np.float32), np.zeros(len(examples), np.int64), []
    pieces = (Piece(example.path, example.start, example.end, example.content) for example in examples)
    sounds = ((str(i), piece) for i, piece in enumerate(pieces))
    for group in groups(sounds, model, plan, jobs=jobs, progress=progress):
        for name, reason in group.failures:
            failures.append((examples[int(name)].path, reason))
            on_failure(*failures[-1])
        if group.paths and not total.size:
            total = np.zeros((len(examples), group.values.shape[1]), np.float32)
        for name, row in zip(group.paths, group.values, strict=True):
            total[int(name)] += row
            windows[int(name)] += 1
    indices = np.flatnonzero(windows)
    if not len(indices):
        first_failure = f" The first, {failures[0][0]}: {failures[0][1]}." if failures else ""
        raise InputError(f"Not one of the {len(examples):,} sounds can be read.{first_failure}")
    values = np.asarray(total[indices] / windows[indices, np.newaxis], np.float32)
    finite = np.isfinite(values).all(1)
    for i in indices[~finite].tolist():
        failures.append((examples[i].path, NOT_FINITE))
        on_failure(*failures[-1])
    if not finite.any():
        raise InputError("The model makes no finite values of any sound; its weights may be damaged.")
    return Rows(values[finite], indices[finite], failures)


def cache_key(examples: Sequence[Example], weights: str, settings: dict[str, Any]) -> str:
    """A name for what a model makes of sounds: another if any of what it depends on is. Arguments as for `cached`."""
    pieces = described(
        Piece(absolute(example.path), example.start, example.end, example.content) for example in examples
    )
    key = {"torchbeats": __version__, "weights": weights, "sounds": fingerprint(pieces), **settings}
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def cached(
    folder: Path | None,
    examples: Sequence[Example],
    weights: str,
    settings: dict[str, Any],
    compute: Callable[[], Rows],
) -> tuple[Rows, bool]:
    """The rows that an earlier run with the same version, weights, files, pieces and settings has kept, or new ones.

    Args:
        folder: where; None to keep nothing.
        examples: what the rows are of. A file whose size or time of change differs is another one.
        weights: the model's digest.
        settings: all others that decide the rows; see `Plan.settings`.
        compute: makes them.

    Returns:
        The rows, and whether they were there already.
    """
    if folder is None:
        return compute(), False
    path = folder / f"{cache_key(examples, weights, settings)}.npz"
    try:
        with np.load(path) as arrays:
            failures = [(name, reason) for name, reason in json.loads(str(arrays["failures"]))]
            if np.isfinite(arrays["values"]).all():
                return Rows(arrays["values"], arrays["heard"], failures), True
    except FileNotFoundError:
        pass
    except Exception:  # damaged: made anew
        path.unlink(missing_ok=True)
    rows = compute()
    failed = np.array(json.dumps(rows.failures))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, values=rows.values, heard=rows.indices, failures=failed)
    return rows, False

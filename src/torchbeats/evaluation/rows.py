"""Labelled sounds → a row of numbers for each: class probabilities, or embeddings, kept for the next time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchbeats.audio import Floats
from torchbeats.data.inputs import Piece
from torchbeats.data.labelled import Example
from torchbeats.errors import InputError
from torchbeats.files import replacing
from torchbeats.inference import Listener, groups
from torchbeats.patches import PatchGrid
from torchbeats.plans import BasePlan, Plan, Values

POOLS = ("mean", "bands")


@dataclass
class Rows:
    """What became of examples.

    Attributes:
        values: ``(heard, D)`` float32, the mean over each one's windows.
        heard: ``(heard,)`` int64, which of the examples.
        failures: paths of those that could not be read, in whole or in part, and why.
    """

    values: Floats
    heard: np.ndarray[Any, np.dtype[np.int64]]
    failures: list[tuple[str, str]]


def rows_of(
    examples: Sequence[Example],
    model: Any,
    plan: BasePlan,
    *,
    jobs: int | None = None,
    listener: Listener | None = None,
    on_failure: Callable[[str, str], None] = lambda path, reason: None,
) -> Rows:
    """Compute a row for each example, the mean over its windows. One that cannot be read is left out and named.

    Raises:
        InputError: not one of them can be read.
    """
    total, windows, failures = np.empty((0, 0), np.float32), np.zeros(len(examples), np.int64), []
    pieces = (Piece(example.path, example.start, example.end, example.content) for example in examples)
    sounds = ((str(i), piece) for i, piece in enumerate(pieces))
    for group in groups(sounds, model, plan, jobs=jobs, listener=listener):
        for name, reason in group.failures:
            failures.append((examples[int(name)].path, reason))
            on_failure(*failures[-1])
        if group.paths and not total.size:
            total = np.zeros((len(examples), group.values.shape[1]), np.float32)
        for name, row in zip(group.paths, group.values, strict=True):
            total[int(name)] += row
            windows[int(name)] += 1
    heard = np.flatnonzero(windows)
    if not len(heard):
        raise InputError(f"Not one of the {len(examples):,} sounds can be read.")
    return Rows(np.asarray(total[heard] / windows[heard, np.newaxis], np.float32), heard, failures)


@dataclass(frozen=True)
class LayersPlan(BasePlan):
    """How embeddings of one layer, or of all at once, are made: a row a window, layers side by side.

    Args:
        pool: "mean" over all patches, or "bands", over time with the bands kept.
        layer: whose output: 0 is the encoder's input to the first, None the model's output, "all" every one.
        window: seconds that the model sees at once.
        batch_seconds: audio in a batch, padding included.

    Raises:
        ValueError: a setting that makes no sense, named.
    """

    pool: str = "bands"
    layer: int | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool not in POOLS:
            raise ValueError(f"There is no pooling called {self.pool!r} here; choose one of {', '.join(POOLS)}.")
        if isinstance(self.layer, str) and self.layer != "all":
            raise ValueError(f"The layer must be a number or all, not {self.layer!r}.")

    @property
    def by_step(self) -> bool:
        """A row for every step rather than for every window."""
        return False

    @property
    def _plan(self) -> Plan:
        layer = None if isinstance(self.layer, str) else self.layer
        return Plan(self.pool, layer, window=self.window, batch_seconds=self.batch_seconds)

    def check(self, model: nn.Module) -> None:
        """Raise a ``ValueError`` where the model is none that embeds, or has no such layer."""
        self._plan.check(model)

    def windows(self, blocks: Any, grid: PatchGrid) -> Iterator[tuple[int, Floats]]:
        """Cut a stream of samples into ``(start, samples)`` windows."""
        return self._plan.windows(blocks, grid)

    def rows(self, model: Any, wav: Tensor, lengths: Tensor | None) -> Iterator[Values]:
        """What becomes of a batch ``(B, samples)``: ``(1, layers * D)`` float32 for each clip."""
        if self.layer != "all":
            return self._plan.rows(model, wav, lengths)
        encoded, hiddens = model.encode_features(model.preprocess(wav), lengths, output_all_hiddens=True)
        hiddens = [*hiddens[:-1], encoded.x]  # with the final norm, where there is one
        pooled = torch.stack([self._plan.pooled(encoded._replace(x=x)) for x in hiddens], dim=1)
        return iter(pooled.float().cpu().numpy().reshape(len(pooled), 1, -1))

    def names(self, model: Any) -> list[str]:
        """The layers in a row, in order."""
        depth = len(model.encoder.layers)
        if self.layer == "all":
            return [str(layer) for layer in range(depth + 1)]
        return [str(depth if self.layer is None else self.layer)]


def cache_folder() -> Path:
    """Where embeddings are kept: below ``XDG_CACHE_HOME``, or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchbeats" / "probe"


def cached(
    folder: Path | None, examples: Sequence[Example], weights: str, plan: LayersPlan, compute: Callable[[], Rows]
) -> tuple[Rows, bool]:
    """The rows of an earlier run with the same weights, files, pieces and settings, or new ones, which are kept.

    Args:
        folder: where; None to keep nothing.
        examples: what the rows are of. A file whose size or time of change differs is another one.
        weights: SHA-256 of the model's file.
        plan: how rows are made.
        compute: makes them.

    Returns:
        The rows, and whether they were there already.
    """
    if folder is None:
        return compute(), False
    settings = {"format": 1, "weights": weights, "pool": plan.pool, "layer": plan.layer, "window": plan.window}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for example in examples:
        try:
            stat = os.stat(example.path if example.content is None else example.content.file)
            state = (stat.st_size, stat.st_mtime_ns)
        except OSError:
            state = (-1, -1)
        digest.update(f"{os.path.abspath(example.path)!r} {example.start} {example.end} {state}\n".encode())
    path = folder / f"{digest.hexdigest()[:32]}.npz"
    try:
        with np.load(path) as arrays:
            failures = [(name, reason) for name, reason in json.loads(str(arrays["failures"]))]
            return Rows(arrays["values"], arrays["heard"], failures), True
    except FileNotFoundError:
        pass
    except Exception:  # damaged: made anew
        path.unlink(missing_ok=True)
    rows = compute()
    failed = np.array(json.dumps(rows.failures))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, values=rows.values, heard=rows.heard, failures=failed)
    return rows, False

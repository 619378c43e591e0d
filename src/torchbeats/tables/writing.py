"""A table of many sounds, made by a run that can be stopped and goes on where it was."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from torchbeats.audio import AudioWarning
from torchbeats.data.fingerprint import fingerprint
from torchbeats.data.inputs import Piece, find_sounds
from torchbeats.files import refuse_inputs, sha256
from torchbeats.inference import OnFailure, Progress, groups
from torchbeats.loading import load, ready
from torchbeats.plans import Plan, plan_for
from torchbeats.protocol import Model
from torchbeats.version import __version__
from torchbeats.weights import hub

# Opens a progress display for so many sounds, of which an earlier run has finished some.
Display = Callable[[int, int], AbstractContextManager[Progress | None]]


class TableResult(NamedTuple):
    """What became of a run.

    Attributes:
        path: of the table.
        errors: list of the sounds that could not be read, a JSON object a line; None where all could be.
        sounds: number of inputs.
        failures: how many of them could not be read, in whole or in part.
        rows: written by this run; those of an earlier one, which it continued, apart.
        seconds: that this run took.
        continued: number of sounds that an earlier run had finished.
        complete: the table was there already, and nothing was done.
    """

    path: Path
    errors: Path | None
    sounds: int
    failures: int
    rows: int
    seconds: float
    continued: int
    complete: bool


def write_table(
    inputs: str | os.PathLike[str] | Piece | Iterable[str | os.PathLike[str] | Piece],
    out: str | os.PathLike[str],
    model: Model | str | os.PathLike[str] | None = None,
    plan: Plan | None = None,
    *,
    engine: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    jobs: int | None = None,
    overwrite: bool = False,
    follow_links: bool = False,
    display: Display = lambda total, done: nullcontext(),
    on_failure: OnFailure | None = None,
) -> TableResult:
    """Write a table with rows of many sounds; a run that was stopped goes on when it is called with the same again.

    Args:
        inputs: files, folders and lists, as for `embed`.
        out: the table, ``.parquet`` or ``.npz``. It appears whole, or not at all.
        model: one, or what `load` takes; None for the small built-in one.
        plan: what a row is: an `EmbeddingPlan`, a `TokenPlan` or a `ScorePlan`. Where not given, tokens from a
            tokenizer and mean embeddings from any other model.
        engine: of a model that is loaded by name; see `load`.
        device: where to compute; see `embed`.
        dtype: to compute in; see `embed`.
        jobs: threads that decode; up to four where not given.
        overwrite: replace a table that is there.
        follow_links: search the folders as well that links in a folder lead to, each once.
        display: opens a progress display; called with the number of sounds and how many are done.
        on_failure: told of each sound that cannot be read, and why; an `AudioWarning` where not given.

    Returns:
        A `TableResult`.

    Raises:
        InputError: inputs that name no sounds.
        ModelError: a model that does not give what the plan asks for.
        SettingsError: a setting that makes no sense.
        StoreError: the table cannot be written there, or a run with other settings has begun it.
    """
    from torchbeats.tables.store import Store, output_files  # pyarrow takes longer to import than all of this package

    begun = time.monotonic()
    named = [inputs] if isinstance(inputs, (str, os.PathLike, Piece)) else list(inputs)
    sounds = _sounds(named, follow_links)
    listed = (one for one in named if not isinstance(one, Piece))
    refuse_inputs(output_files(out), [*listed, *(sound.path for sound in sounds)])
    network, name, weights = _opened(model, plan, engine, device, dtype)
    plan = plan or plan_for(network)
    plan.check(network)
    store = Store(out, plan.row(network), _about(network, plan, name, weights, sounds, dtype), overwrite)
    continued, rows = store.position.inputs, 0
    if not store.complete:
        with display(len(sounds), continued) as progress:
            try:
                pairs = [(sound.path, sound) for sound in sounds]
                for group in groups(pairs, network, plan, start=store.position, jobs=jobs, progress=progress):
                    rows += len(group.paths)
                    store.append(group)
                    for path, reason in group.failures:
                        if on_failure is None:
                            warnings.warn(f"{path} was left out: {reason}.", AudioWarning, stacklevel=2)
                        else:
                            on_failure(path, reason)
            except BaseException:
                store.keep()
                raise
        store.finish()
        complete = False
    else:
        complete = True
    errors = store.errors if store.failed else None
    seconds = time.monotonic() - begun
    return TableResult(store.out, errors, len(sounds), store.failed, rows, seconds, continued, complete)


def _sounds(inputs: Sequence[str | os.PathLike[str] | Piece], follow_links: bool) -> list[Piece]:
    """Pieces as they are, and what all else names; each once."""
    pieces = [one for one in inputs if isinstance(one, Piece)]
    names = [one for one in inputs if not isinstance(one, Piece)]
    if not pieces or names:
        pieces += find_sounds(names, follow_links=follow_links)
    return list(dict.fromkeys(pieces))


def _opened(
    model: Model | str | os.PathLike[str] | None,
    plan: Plan | None,
    engine: str | None,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
) -> tuple[Model, str, str]:
    """A model that is ready, what it is called, and a hash of its weights."""
    if model is None:
        warnings.warn(hub.BUILT_IN_NOTE, stacklevel=3)
        model = hub.BUILT_IN
    if not isinstance(model, (str, os.PathLike)):
        return ready(model, device, dtype), type(model).__name__, model.digest()
    path = hub.resolve(model)
    layer = getattr(plan, "layer", None)
    loaded = load(path, engine=engine, device=device, dtype=dtype, layer=layer if engine == "onnx" else None)
    return loaded, os.fspath(model), sha256(path)


def _about(
    model: Model, plan: Plan, name: str, weights: str, sounds: list[Piece], dtype: torch.dtype | None
) -> dict[str, Any]:
    """All that the table depends on, which it carries in its metadata."""
    row = plan.row(model)
    return {
        "torchbeats": __version__,
        plan.model_is: name,
        "weights": f"sha256:{weights}",
        **plan.settings(model),
        "shape": list(row.shape),
        "dtype": str(dtype or torch.float32).removeprefix("torch."),
        "engine": model.engine,
        "inputs": fingerprint(sounds),
    }

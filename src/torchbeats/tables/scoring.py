"""Stored embeddings → class probabilities, by the label head of a model alone: no sound is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from torchbeats.errors import ModelError
from torchbeats.inference import Group, Position
from torchbeats.model import BEATs
from torchbeats.protocol import Model
from torchbeats.tables.reading import Table


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a table of embeddings of ours, rather than a list of files."""
    from torchbeats.tables.formats import SUFFIXES, summary

    name = os.fspath(path)
    about_table = summary(Path(name)) if name.lower().endswith(SUFFIXES) and os.path.exists(name) else None
    return about_table is not None and "embedding" in about_table["columns"]


def fitted_window(model: Model) -> float | None:
    """Seconds of the windows that a model's label head was fitted to; None where that is not known."""
    fitted = getattr(model.cfg, "fitted", None)
    window = fitted.get("window") if isinstance(fitted, dict) else None
    return float(window) if isinstance(window, (int, float)) else None


def check_fits(table: Table, model: BEATs) -> nn.Module:
    """A model's label head, if it is for a table's embeddings.

    Raises:
        ModelError: it is not; the message says what differs.
    """
    fitted = getattr(model.cfg, "fitted", None)
    if model.predictor is None or not isinstance(fitted, dict):
        raise ModelError(
            f"Only a head that `torchbeats fit` made scores a table, and this model has none. Tag the sounds of "
            f"{table.path} themselves."
        )
    different = [
        f"{name} is {table.about.get(name)} in the table and {fitted.get(name)} for the head"
        for name in ("weights", "pool", "layer")
        if table.about.get(name) != fitted.get(name)
    ]
    if different:
        raise ModelError(f"The head does not fit {table.path}: {'; '.join(different)}.")
    return model.predictor


def scored_groups(table: Table, model: BEATs) -> Iterator[Group]:
    """Probabilities of a table's windows, as `inference.groups` gives those of sounds.

    Raises:
        ModelError: the head is not for this table's embeddings.
    """
    head = check_fits(table, model)
    inputs = 0
    for rows in table.rows():
        # Arrow's memory is read-only, of which torch would warn.
        values = torch.from_numpy(np.require(rows.values, requirements=["C", "W"])).to(model.device)
        with torch.inference_mode():
            probabilities = model.probabilities(head(values))
        inputs += int(rows.begins.sum())
        last = rows.first + len(rows.paths) == table.count
        # A file may go on in the next rows: only the table's end is known to be one's.
        position = Position(inputs, 0 if last else 1)
        yield Group(
            rows.paths, rows.times, probabilities.cpu().numpy(), rows.begins, position=position, inputs=len(rows.paths)
        )

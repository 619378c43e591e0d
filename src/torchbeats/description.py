"""What a file of ours holds, for people: a model, a table, or the folder of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torchbeats.errors import InputError
from torchbeats.files import is_called_like_url, with_both_slashes
from torchbeats.loading import load
from torchbeats.protocol import Model
from torchbeats.weights import hub

RUN_SETTINGS = "run.yaml"
_MOST_BYTES = 2**24  # inputs and classes may be many
_MOST_VALUES = 10**6
_RESULTS = ("model.safetensors", "validation.json", "metrics.csv", "skipped.jsonl")


def describe(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a model, a table or a run is.

    Args:
        name_or_path: a table that `write_table` wrote (.parquet, .npz); the folder of a pre-training or fine-tuning;
            or a model: whatever `load` takes.

    Returns:
        A dictionary for JSON with "kind" ("table", "run" or "model"), and then: of a table its rows, columns and
        settings; of a run its settings and results; of a model its outputs, configuration and labels.

    Raises:
        InputError: a table that torchbeats did not write, or a folder without a run.
        CheckpointError: as `load`.
        HubError: as `load`.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix.lower() in (".parquet", ".npz", ".lance"):
        return _table(path)
    if path.is_dir():
        return _run(path)
    return _model(os.fspath(name_or_path), load(name_or_path))


def settings_of_run(path: Path) -> dict[str, Any]:
    """What the folder of a run says that it computes.

    Raises:
        InputError: that cannot be read.
    """
    from torchbeats import yaml_text  # with PyYAML, which few descriptions need

    file = path / RUN_SETTINGS
    try:
        values = yaml_text.read(file, _MOST_BYTES, _MOST_VALUES)
    except ValueError as error:
        raise InputError(f"{file} {error}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{file} holds no settings of a run.")
    return values


def _table(path: Path) -> dict[str, Any]:
    from torchbeats.tables.formats import summary

    about_table = summary(path)
    if about_table is None and is_called_like_url(path):
        raise InputError(f"{with_both_slashes(path)} is a URL, and a table is read from this machine: download it.")
    if about_table is None:
        raise InputError(f"{path} cannot be read, or is no table that torchbeats wrote.")
    return {"kind": "table", "path": str(path), **about_table}


def _run(path: Path) -> dict[str, Any]:
    if not (path / RUN_SETTINGS).exists():
        raise InputError(f"The folder {path} holds no run: it has no {RUN_SETTINGS}.")
    results = [name for name in _RESULTS if (path / name).exists()]
    results += sorted(str(file.relative_to(path)) for file in path.glob("iteration-*/*.safetensors"))
    results += sorted(f"{folder.name}/" for folder in path.glob("fold-*"))
    return {
        "kind": "run",
        "path": str(path),
        "complete": (path / "model.safetensors").exists() or (path / "validation.json").exists(),
        "results": results,
        "settings": settings_of_run(path),
    }


def _model(name: str, model: Model) -> dict[str, Any]:
    path = hub.resolve(name)
    outputs = {name: list(output.shape) for name, output in model.outputs.items()}
    return {
        "kind": "model",
        "path": str(path),
        "bytes": path.stat().st_size,
        "engine": model.engine,
        "summary": model.cfg.summary(),
        "outputs": outputs,
        "labels": model.labels,
        "config": model.cfg.to_dict(),
    }

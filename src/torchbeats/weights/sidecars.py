"""Files beside the weights that describe them: small, plain, and looked at with care."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchbeats.errors import CheckpointError

LARGEST = 2**23  # bytes: label tables of 100,000 names fit
_MOST_YAML_VALUES = 150_000  # a second's work


def find(path: Path, name: str) -> Path | None:
    """A file that describes the weights: beside them or, in the Hub's cache, at the top of their repository."""
    folders = [path.parent]
    if "snapshots" in path.parts:
        top = len(path.parts) - path.parts[::-1].index("snapshots") + 1
        folders.append(Path(*path.parts[:top]))
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file."""
    try:
        return _dictionary(path, json.loads(_text(path)))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The dictionary in a YAML file."""
    from torchbeats import yaml_text  # with PyYAML, which few files need

    try:
        return _dictionary(path, yaml_text.read(path, LARGEST, _MOST_YAML_VALUES))
    except ValueError as error:
        raise CheckpointError(path, f"the file that describes the weights {error}.") from error


def _text(path: Path) -> str:
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"it has {size:,} bytes; at most {LARGEST:,} are read")
    return path.read_text("utf-8")


def _dictionary(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise CheckpointError(path, f"the file that describes the weights holds a {type(content).__name__}.")
    return dict(content)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    return CheckpointError(path, f"the file that describes the weights cannot be read ({error}).")

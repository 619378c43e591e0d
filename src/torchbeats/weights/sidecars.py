"""Files beside the weights that describe them: small, plain, and looked at with care."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torchbeats.errors import CheckpointError

LARGEST = 2**23  # bytes: label tables of 100,000 names fit
_MOST_VALUES = 10**6  # with every alias of a YAML file spelt out


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
    import yaml

    try:
        # The loader in C is ten times as fast, and as safe.
        content = yaml.load(_text(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return _dictionary(path, content)
    except (OSError, ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        raise _unreadable(path, error) from error


def is_small(value: Any) -> bool:
    """Whether a value, with all that is in it as often as it is in it, has a bounded number of parts.

    A few lines of YAML, or a pickle, can name a list of nine lists of nine lists ...; it takes no room until somebody
    prints or writes it.
    """
    counts: dict[int, float] = {}  # by identity: parts of what has been counted; infinite while it is being counted

    def parts(item: Any) -> float:
        if not isinstance(item, (list, tuple, set, frozenset, Mapping)):
            return 1
        if id(item) not in counts:
            counts[id(item)] = float("inf")
            counts[id(item)] = 1 + sum(parts(child) for child in _inside(item))
        return counts[id(item)]

    try:
        return parts(value) <= _MOST_VALUES
    except RecursionError:
        return False


def _inside(item: Any) -> Iterator[Any]:
    if isinstance(item, Mapping):
        yield from item.keys()
        yield from item.values()
    else:
        yield from item


def _text(path: Path) -> str:
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"it has {size:,} bytes; at most {LARGEST:,} are read")
    return path.read_text("utf-8")


def _dictionary(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise CheckpointError(path, f"the file that describes the weights holds a {type(content).__name__}.")
    if not is_small(content):
        raise ValueError("its aliases stand for more than a million values")
    return dict(content)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    return CheckpointError(path, f"the file that describes the weights cannot be read ({error}).")

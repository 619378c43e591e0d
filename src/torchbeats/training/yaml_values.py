"""YAML that people write by hand: read within bounds, with a sentence for what cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchbeats import yaml_text
from torchbeats.errors import SettingsError

_MOST_BYTES = 2**16
_MOST_VALUES = 10_000


def read_yaml_file(path: Path) -> Any:
    """The values in a file.

    Raises:
        SettingsError: the file cannot be read, or is not YAML.
    """
    return _values(lambda: yaml_text.read(path, _MOST_BYTES, _MOST_VALUES), str(path)) or {}


def read_yaml(text: str, where: str) -> Any:
    """The values in a text.

    Args:
        text: YAML; numbers like 1e-3, which have no point, are numbers too.
        where: it comes from, for messages.

    Raises:
        SettingsError: it is not YAML, or more than settings can be.
    """
    return _values(lambda: yaml_text.load(text, _MOST_VALUES), where)


def _values(read: Callable[[], Any], where: str) -> Any:
    try:
        return _numbers(read())
    except ValueError as error:
        raise SettingsError(f"{where} {error}.") from error


def _numbers(value: Any) -> Any:
    """YAML takes 1e-3 for a word, since it has no point; people do not."""
    if isinstance(value, dict):
        return {name: _numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value

"""YAML that people write by hand: read within bounds, with a sentence for what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from torchbeats.errors import SettingsError
from torchbeats.files import special_kind

_MOST_BYTES = 2**16
_DEEPEST = 50
_MOST_VALUES = 10_000  # with every alias written out


def read_yaml_file(path: Path) -> Any:
    """The values in a file.

    Raises:
        SettingsError: the file cannot be read, or is not YAML.
    """
    if kind := special_kind(path):  # which could give bytes for ever
        raise SettingsError(f"The settings {path} cannot be read: it is {kind}, not a file.")
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"The settings {path} cannot be read: {reason}.") from error
    if len(content) > _MOST_BYTES:
        raise SettingsError(f"{path} is larger than {_MOST_BYTES // 1024} kB, and is no file of settings.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    return read_yaml(text, str(path)) or {}


def read_yaml(text: str, where: str) -> Any:
    """The values in a text.

    Args:
        text: YAML; numbers like 1e-3, which have no point, are numbers too.
        where: it comes from, for messages.

    Raises:
        SettingsError: it is not YAML, or aliases make much of it.
    """
    try:
        if _depth(text) > _DEEPEST:
            raise _Unfit("is nested too deeply to be settings")
        return _numbers(_constructed(text))
    except yaml.YAMLError as error:
        raise SettingsError(f"{where} is not YAML: {error}") from error
    except _Unfit as error:
        raise SettingsError(f"{where} {error}.") from None
    except (ValueError, OverflowError) as error:  # a date or a number that cannot be
        raise SettingsError(f"{where} holds a value that cannot be read: {error}") from error


class _Unfit(Exception):
    """What is wrong with a text that is YAML."""


def _depth(text: str) -> int:
    """How deep values lie in each other; not all is read where that is too deep."""
    depth = deepest = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        deepest = max(deepest, depth)
        if deepest > _DEEPEST:
            break
    return deepest


def _constructed(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > _MOST_VALUES:
            raise _Unfit(f"holds more than {_MOST_VALUES:,} values, and is no list of settings")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _values(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many values a node has below it, with every alias written out."""
    if id(node) in counts:
        return counts[id(node)]
    counts[id(node)] = _MOST_VALUES + 1  # until it is known: an alias within what it stands for has no end
    below = node.value if isinstance(node, yaml.CollectionNode) else []
    parts = [part for entry in below for part in (entry if isinstance(entry, tuple) else (entry,))]
    counts[id(node)] = 1 + sum(_values(part, counts) for part in parts)
    return counts[id(node)]


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

"""YAML → plain values, within bounds that are kept while it is read: a few lines can stand for gigabytes."""

from __future__ import annotations

import os
from typing import Any

import yaml

from torchbeats.files import special_kind

DEEPEST = 50
LONGEST_NUMBER = 1000  # characters; one to the base of 60 (1:59:59) takes time with the square of its length
# libyaml is ten times as fast, and as safe; not every system has it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read(path: str | os.PathLike[str], most_bytes: int, most_values: int) -> Any:
    """The values in a file of UTF-8.

    Args:
        path: of the file.
        most_bytes: that it may have.
        most_values: as for `load`.

    Raises:
        ValueError: as for `load`; or the file cannot be read, or is too large.
    """
    if kind := special_kind(path):  # which could give bytes for ever
        raise ValueError(f"cannot be read: it is {kind}, not a file")
    try:
        with open(path, "rb") as file:
            content = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > most_bytes:
        raise ValueError(f"is larger than {most_bytes // 1024:,} kB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    return load(text, most_values)


def load(text: str, most_values: int) -> Any:
    """The values in a text; nothing in it is ever executed.

    Args:
        text: one document of YAML.
        most_values: that it may have, with every alias written out.

    Returns:
        Dictionaries, lists, words, numbers and dates; None for an empty text.

    Raises:
        ValueError: it is not YAML, too deep or too much, or holds a date or number that cannot be, or is too long. The
            message goes on behind the name of the file, and has no full stop.
    """
    try:
        if fault := _fault(text, most_values):
            raise ValueError(fault)
        loader = _LOADER(text)
        try:
            node = loader.get_single_node()
            if node is not None and _values(node, {}, most_values) > most_values:
                raise ValueError(_too_many(most_values))
            return None if node is None else _constructed(loader, node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ValueError(f"is not YAML: {error.problem or error.context}{line}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from error


def _fault(text: str, most_values: int) -> str | None:
    """What is too deep or too much about a text; no more of it is read than it takes to know that."""
    depth = count = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        count += isinstance(event, yaml.NodeEvent)
        if depth > DEEPEST:
            return f"is nested more than {DEEPEST} levels deep"
        if count > most_values:
            return _too_many(most_values)
    return None


def _too_many(most_values: int) -> str:
    return f"holds more than {most_values:,} values"


def _values(node: yaml.Node, counts: dict[int, int], most: int) -> int:
    """How many values a node has in it, with every alias written out."""
    if id(node) in counts:
        return counts[id(node)]
    counts[id(node)] = most + 1  # until it is known: an alias within what it stands for has no end
    if node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
        raise ValueError(f"holds a number of {len(node.value):,} characters")
    below = node.value if isinstance(node, yaml.CollectionNode) else []
    parts = [part for entry in below for part in (entry if isinstance(entry, tuple) else (entry,))]
    counts[id(node)] = 1 + sum(_values(part, counts, most) for part in parts)
    return counts[id(node)]


def _constructed(loader: Any, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"holds a value that cannot be read: {error}") from error

"""Settings with the sentence that each has: as YAML with comments, and as rows for the documentation."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from torchbeats.training.defaults import TABLE, DataSize, row_for
from torchbeats.training.limits import limit_of
from torchbeats.training.settings import TuningSettings


class Explanation(NamedTuple):
    """A setting: its name with dots, its type as written, its value, what it means, and what else it may be."""

    name: str
    kind: str
    value: Any
    meaning: str
    limit: str


def explanations(settings: Any, prefix: str = "") -> Iterator[Explanation]:
    """Every setting of a `Settings` or `FinetuneSettings` object, with those of its parts, in their order."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from explanations(value, f"{prefix}{field.name}.")
        else:
            limit = limit_of(field)
            words = limit.words if limit else ""
            yield Explanation(prefix + field.name, str(field.type), value, field.metadata["meaning"], words)


def explained_yaml(settings: Any, room: int = 0) -> str:
    """All settings as YAML that ``--config`` takes, with a comment for each.

    Args:
        settings: a dataclass of groups of them.
        room: characters in a line, where comments are to be broken between words; 0: none is broken.
    """
    lines: list[tuple[str, str]] = []
    _add(lines, settings, "")
    width = min(max(len(line) for line, _ in lines), 40)
    result = []
    for line, meaning in lines:
        if room < width + 30:
            result.append(f"{line:<{width}}  # {meaning}\n")
            continue
        comments = textwrap.wrap(meaning, room - width - 4)
        firsts = [line, *[""] * (len(comments) - 1)]
        if len(line) > width:
            result.append(f"{line}\n")
            firsts[0] = ""
        result += [f"{first:<{width}}  # {comment}\n" for first, comment in zip(firsts, comments, strict=True)]
    return "".join(result)


def _add(lines: list[tuple[str, str]], settings: Any, indent: str) -> None:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            lines.append((f"{indent}{field.name}:", section_meaning(value)))
            _add(lines, value, indent + "  ")
        else:
            # On one line, so that the comment stands behind it.
            plain = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
            lines.append((f"{indent}{field.name}: {plain}", field.metadata["meaning"]))


def section_meaning(settings: Any) -> str:
    """The sentence about a group of settings."""
    return inspect.cleandoc(type(settings).__doc__ or "").splitlines()[0]


def reason(size: DataSize, model: TuningSettings) -> str:
    """A sentence about the settings that a fine-tuning has, and the size that decided what nobody set."""
    row = row_for(size)
    bounds = f"less than {row.below:,}" if row is not TABLE[-1] else f"{TABLE[-2].below:,} or more"
    early = f", ended early when {model.patience} of them bring nothing better" if model.patience else ""
    return (
        f"{size.clips:,} clips of {size.seconds:.1f} s, {size.classes} classes: settings as for {bounds} clips, unless "
        f"given. At most {model.epochs:g} epochs{early}; learning rate {model.lr:g}, layer decay {model.layer_decay:g}."
    )

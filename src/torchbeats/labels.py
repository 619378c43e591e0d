"""Readable names for labels."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources


@cache
def audioset_names() -> dict[str, str]:
    """AudioSet id to display name, all 527 classes: ``{"/m/09x0r": "Speech", …}`` (AudioSet, Google, CC BY 4.0)."""
    table = resources.files("torchbeats").joinpath("assets").joinpath("audioset_labels.csv").read_text("utf-8")
    return {row["mid"]: row["display_name"] for row in csv.DictReader(table.splitlines())}


def display_name(label: str) -> str:
    """The name of an AudioSet id; any other label as it is."""
    return audioset_names().get(label, label) if label.startswith("/") else label


def class_names(label_dict: Mapping[int, str] | None, classes: int) -> list[str]:
    """A readable name for each output: AudioSet ids become names; "class 7" where a model's file has none."""
    names = label_dict or {}
    return [display_name(names[index]) if index in names else f"class {index}" for index in range(classes)]


def names_and_aliases(
    label_dict: Mapping[int, str] | None, labels: Sequence[str] | None, classes: int
) -> tuple[list[str], dict[str, str]]:
    """What classes are called in data: one name each, and what else they may be called, such as AudioSet ids."""
    if label_dict is None:
        return [str(number) for number in range(classes)], {}
    raw = [label_dict[index] for index in sorted(label_dict)]
    names = list(labels or raw)
    if len(set(names)) < len(names):  # two classes would be one
        return raw, {}
    return names, dict(zip(raw, names, strict=True))

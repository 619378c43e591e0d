"""Readable names for labels."""

from __future__ import annotations

import csv
from collections.abc import Mapping
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
    known = label_dict or {}
    return [display_name(known[index]) if index in known else f"class {index}" for index in range(classes)]

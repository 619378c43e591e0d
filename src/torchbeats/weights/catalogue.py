"""The models that have a name: what they are, and whether they are on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from torchbeats.weights import hub

_ABOUT = {
    hub.BUILT_IN: "the default: a small model pre-trained on free audio, for first steps and tests",
    hub.BUILT_IN_TAGGER: "of the same size, fine-tuned to tag",
}


class ModelEntry(NamedTuple):
    """A model that `load` and every command take by name.

    Attributes:
        name: to type.
        bytes: of its file, approximately; None where nobody has said.
        licence: of the weights.
        cached: whether it is on this machine: built in, or downloaded before.
        built_in: whether it is part of this package.
        source: path of the file, or its address.
        about: what it is, in a few words.
    """

    name: str
    bytes: int | None
    licence: str
    cached: bool
    built_in: bool
    source: str
    about: str


def models() -> list[ModelEntry]:
    """The models that can be loaded by name. Never asks the network."""
    return [*(_built_in(name) for name in hub.BUILT_INS), *(_published(source) for source in hub.MODELS.values())]


def _built_in(name: str) -> ModelEntry:
    file = hub.BUILT_INS[name]
    classes = _classes(file)
    about = f"{_ABOUT[name]} {len(classes)} classes: {', '.join(classes)}" if classes else _ABOUT[name]
    return ModelEntry(name, file.stat().st_size, "MIT", True, True, str(file), about)


def _classes(file: Path) -> list[str]:
    """Labels of one of our own files, of which only the header is read."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        labels: dict[str, str] = json.loads(opened.metadata()["torchbeats"]).get("labels") or {}
    return list(labels.values())


def _published(source: hub.Source) -> ModelEntry:
    kind = "datasets/" if source.repo_type == "dataset" else ""
    page = f"https://huggingface.co/{kind}{source.repo}"
    address = f"{page}/resolve/{source.revision}/{source.file}" if source.file else page
    return ModelEntry(source.name, source.size, source.licence, hub.is_cached(source), False, address, source.about)

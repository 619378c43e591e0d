"""A map as a page in one file, which asks nobody for anything: points, pictures and sounds lie in it.

A sound that does not lie in the page is played from its file, if the page can name that from where it lies. The page's
own policy forbids every other request.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torchbeats.audio import AUDIO_SUFFIXES
from torchbeats.files import readable, replacing
from torchbeats.maps import media
from torchbeats.maps.mapping import Map
from torchbeats.plots.scatter import COLOURS, NO_GROUP
from torchbeats.remote import is_url

SPECTROGRAMS = 2_000
TEMPLATE = Path(__file__).parents[1] / "assets" / "map.html"
DECIMALS = 4  # of a place, as a share of the map's width: finer than a pixel


@dataclass
class PageResult:
    """What lies in a page.

    Attributes:
        spectrograms: number of points with one.
        sounds: number of points whose sound is in the page.
        missing: files that are not at hand.
    """

    spectrograms: int = 0
    sounds: int = 0
    missing: set[str] = field(default_factory=set)


def write_page(
    shown: Map,
    path: str | os.PathLike[str],
    *,
    spectrograms: int = SPECTROGRAMS,
    sound_megabytes: float = 0,
    progress: Callable[[], None] = lambda: None,
) -> PageResult:
    """Write a map as an HTML page.

    Args:
        shown: the map.
        path: of the page.
        spectrograms: the most points that get one; each takes about 5 kB.
        sound_megabytes: of sounds to put into the page, at most; those of the same points, as long as there is room.
        progress: called behind each point of which a sound was looked for.
    """
    folder = Path(path).resolve().parent
    result = PageResult()
    names = list(dict.fromkeys(name for name, _, _ in shown.stretches))
    sources = [_source(name, folder) for name in names]
    result.missing.update(name for name, source in zip(names, sources, strict=True) if source is None)
    pictures, sounds = _media(shown, spectrograms, sound_megabytes * 1e6, result, progress)
    number = {name: index for index, name in enumerate(names)}
    low, span = shown.places.min(0), max(float((shown.places.max(0) - shown.places.min(0)).max()), 1e-9)
    places = ((shown.places - low) / span).round(DECIMALS)
    groups = [
        {"name": name, "colour": COLOURS[index], "count": int((shown.groups.of == index).sum())}
        for index, name in enumerate(shown.groups.names)
    ]
    without = int((shown.groups.of < 0).sum())
    data = {
        "groups": [*groups, {"name": "no label", "colour": NO_GROUP, "count": without}] if without else groups,
        "paths": [readable(name) for name in names],
        "sources": sources,
        "x": _numbers(places[:, 0]),
        "y": _numbers(places[:, 1]),
        "group": [len(groups) if index < 0 else index for index in shown.groups.of.tolist()],
        "path": [number[name] for name, _, _ in shown.stretches],
        "start": [round(start, 3) for _, start, _ in shown.stretches],
        "end": [round(end, 3) for _, _, end in shown.stretches],
        "row": shown.rows.tolist(),
        "labels": shown.labels if any(shown.labels) else None,
        "spectrograms": pictures,
        "sounds": sounds,
    }
    title, note = html.escape(readable(shown.table.name)), html.escape(shown.note())
    values = {"title": title, "note": note, "data": _in_script(data)}
    # In one pass: a value may hold what looks like a mark.
    text = re.sub(r"\{\{(\w+)\}\}", lambda mark: values[mark[1]], TEMPLATE.read_text("utf-8"))
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")
    return result


def _media(
    shown: Map, spectrograms: int, room: float, result: PageResult, progress: Callable[[], None]
) -> tuple[dict[int, str], dict[int, str]]:
    """Data URIs of pictures and sounds, by the numbers of the points."""
    pictures: dict[int, str] = {}
    sounds: dict[int, str] = {}
    silent = {name for name in result.missing if not (room > 0 and is_url(name))}  # to fetch sounds is to be asked for
    for number, (name, start, end) in enumerate(shown.stretches[:spectrograms]):
        samples = None if name in silent else media.samples_of(name, start, end)
        if samples is None and is_url(name):
            silent.add(name)  # one that fails is not asked again
        if samples is not None:
            result.missing.discard(name)
            pictures[number] = _uri("image/png", media.spectrogram(samples))
            if room > 0:
                sound = _uri(*media.compressed(samples))
                room -= len(sound)
                if room >= 0:
                    sounds[number] = sound
        progress()
    result.spectrograms, result.sounds = len(pictures), len(sounds)
    return pictures, sounds


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _source(name: str, folder: Path) -> str | None:
    """How a page in a folder calls a sound file; None where there is none that it could play."""
    if not os.path.isfile(name) or os.path.splitext(name)[1].lower() not in AUDIO_SUFFIXES:
        return None
    try:
        relative = os.path.relpath(os.path.realpath(name), folder)
    except ValueError:  # on another drive
        return None
    parts = os.fsencode(relative).split(os.fsencode(os.sep))
    return "/".join(quote(part) for part in parts)


def _numbers(values: Any) -> list[float]:
    return [round(float(value), DECIMALS) for value in values]


def _in_script(data: dict[str, Any]) -> str:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")

"""*Listen*: a file or a recording → its spectrogram, what is heard when, and files of that."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from torchbeats.abstention import Naming, Scored
from torchbeats.audio import Floats
from torchbeats.errors import RequestError
from torchbeats.inference import Group
from torchbeats.plans import ScorePlan
from torchbeats.plots.timeline import Timeline
from torchbeats.serve.answers import plan_for_tags
from torchbeats.serve.decoding import Decoded
from torchbeats.serve.page import parts
from torchbeats.serve.page.guard import inside, upload_folder
from torchbeats.serve.page.results import Results
from torchbeats.serve.service import Service
from torchbeats.serve.uploads import Upload
from torchbeats.tables.events import events
from torchbeats.tables.tags import FORMATS
from torchbeats.tagging import likeliest, scored, tags

EVERY_SECONDS, THRESHOLD, TOP = 1.0, 0.3, 3
SHOWN_EVENTS = 200


def build(service: Service, results: Results) -> None:
    """The tab, inside the page's blocks."""
    sound = sound_input("Sound: drop a file, or record")
    with gr.Row():
        threshold = gr.Slider(0.05, 0.95, THRESHOLD, step=0.05, label="Smallest probability")
        every = gr.Slider(0.2, 10, EVERY_SECONDS, step=0.1, label="Seconds of a row")
    answer = gr.HTML(parts.note("Labels, and when they are heard, appear here."), elem_id="heard", js_on_load=None)

    async def listen(path: str | None, threshold: float, every: float) -> str:
        if path is None:
            return parts.note("Labels, and when they are heard, appear here.")
        try:
            return await _heard(service, results, path, threshold, every)
        except RequestError as error:
            return parts.problem(str(error))

    for event in (sound.change, threshold.release, every.release):
        event(listen, [sound, threshold, every], answer, show_progress="full")


def sound_input(label: str) -> Any:
    """Where a person drops a file, or records."""
    return gr.Audio(sources=["upload", "microphone"], type="filepath", label=label, buttons=["download"])


def upload_at(path: str) -> Upload:
    """A file that a browser has sent into the server's private folder.

    Raises:
        RequestError: it is another file.
    """
    place = inside(path, upload_folder())
    return Upload(parts.shown_name(path), place.read_bytes())


async def _heard(service: Service, results: Results, path: str, threshold: float, every: float) -> str:
    """What the page says of a sound."""
    upload = await asyncio.to_thread(upload_at, path)
    model = service.tagger.model
    plan = plan_for_tags(model, every, None, False)
    (sound,) = await service.decode([upload])
    (group,) = await service.compute([upload], [sound], model, plan)
    naming = Naming(model)
    return await asyncio.to_thread(_shown, results, upload.name, sound, group, plan, naming, threshold, every)


def _shown(
    results: Results,
    name: str,
    sound: Decoded,
    group: Group,
    plan: ScorePlan,
    naming: Naming,
    threshold: float,
    every: float,
) -> str:
    rows = list(naming.judged(scored([group], plan)))
    thresholds = naming.thresholds(threshold)
    labels = list(tags(rows, naming.names, len(naming.names), thresholds))
    merged = list(events(labels))
    picture = _picture(name, sound, rows, naming.names, thresholds, every)
    stem = Path(name).stem or "sound"
    files = {f"{stem}.csv": "".join(FORMATS[".csv"].write_events(merged))}
    files |= {f"{stem}{end}": "".join(FORMATS[end].write_events(merged)) for end in (".raven.txt", ".audacity.txt")}
    contents = {file: text.encode() for file, text in files.items()} | {f"{stem}.png": picture}
    key = results.add(contents)
    heard = ", ".join(dict.fromkeys(event.label for event in merged)) or "no label"
    shown = [(event.label, event.start, event.end or event.start, event.peak or 0.0) for event in merged[:SHOWN_EVENTS]]
    more = f" (the first {SHOWN_EVENTS} of {len(merged)})" if len(merged) > SHOWN_EVENTS else ""
    sections = [parts.problem(sound.warning)] if sound.warning else []
    alternative = f"Spectrogram of {name}, {sound.seconds:.1f} s, and a timeline of its labels: {heard}."
    sections += [parts.picture(picture, alternative), parts.links(key, contents)]
    sections.append(parts.table(("label", "start (s)", "end (s)", "peak"), shown, f"What is heard in {name}{more}"))
    return "".join(sections)


def _picture(
    name: str, sound: Decoded, rows: Sequence[Scored], names: list[str], threshold: float | Floats, every: float
) -> bytes:
    drawing = Timeline(names, every)
    for row in rows:
        drawing.add(row.end, row.probabilities, likeliest(row.probabilities, TOP, threshold))
    drawing.spectrogram.add(np.asarray(sound.samples))
    file: Any = io.BytesIO()
    drawing.draw(file, name)
    content: bytes = file.getvalue()
    return content

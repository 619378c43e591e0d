"""*Teach*: name a class, mark rows right or wrong, fit, see how good it is, go on with what it is unsure of, save."""

from __future__ import annotations

import asyncio
from typing import Any

import gradio as gr
import numpy as np

from torchbeats.errors import RequestError, TorchbeatsError
from torchbeats.heads.fitting import Head
from torchbeats.serve.page import parts
from torchbeats.serve.page.find import Query, matches, pressed
from torchbeats.serve.page.labelling import Marks
from torchbeats.serve.page.results import Results
from torchbeats.serve.service import Service
from torchbeats.tables.tags import FORMATS

SHOWN, REVIEWED = 12, 48
MARKS = {"right": "Right (y)", "wrong": "Wrong (n)"}
EMPTY = parts.note(
    "Name a class and show rows for it: those like the ones that are marked right, or like what Find looks for."
)
Row = tuple[int, str]


def build(blocks: Any, service: Service, query: Any, marks: Marks, results: Results) -> None:
    """The tab, inside the page's blocks.

    Args:
        blocks: of the page.
        service: with a table.
        query: a state that holds the `Query` of *Find*.
        marks: of the table's rows.
        results: where downloads go.
    """
    assert service.table is not None
    last = service.table.count - 1
    shown, fitted = gr.State([]), gr.State(None)
    lost = f" {marks.lost} marks there are of files that the table does not have; they are kept." if marks.lost else ""
    gr.HTML(parts.note(f"Every mark is kept in {marks.path} at once.{lost}"), js_on_load=None)
    with gr.Row():
        label = gr.Dropdown([], allow_custom_value=True, label="Class")
        row = gr.Textbox(label=f"Start from a row, 0 to {last} (may be empty)")
    with gr.Row():
        show = gr.Button("Show rows to mark")
        review = gr.Button("Show what is marked")
        fit = gr.Button("Fit", variant="primary")
        save = gr.Button("Save model and labels")
    outcome = gr.HTML("", elem_id="outcome", js_on_load=None)
    grid = gr.HTML(EMPTY, elem_id="to-mark", js_on_load=parts.BEHAVIOUR)

    async def start(label: str | None, row: str | None, query: Query | None) -> tuple[list[Row], str]:
        if not (label or "").strip():
            return [], parts.problem("Name the class first.")
        try:
            rows = await _candidates(service, marks, str(label).strip(), (row or "").strip(), query or Query(), last)
        except RequestError as error:
            return [], parts.problem(str(error))
        return rows, _grid(service, marks, str(label).strip(), rows) if rows else EMPTY

    async def marked(label: str | None) -> tuple[list[Row], str]:
        name = (label or "").strip()
        rows: list[Row] = [(row, "") for row in sorted(marks.of(name))[-REVIEWED:]]
        return rows, _grid(service, marks, name, rows) if rows else parts.note("Nothing is marked for this class yet.")

    async def mark(label: str | None, rows: list[Row], event: gr.EventData) -> tuple[str, Any]:
        name = (label or "").strip()
        try:
            row, mark = pressed(event, last)
            await asyncio.to_thread(marks.mark, row, name, mark == "right")
        except (TorchbeatsError, OSError) as error:
            return parts.problem(f"The mark was not kept: {error}") + _grid(service, marks, name, rows), gr.skip()
        return _grid(service, marks, name, rows), gr.update(choices=marks.classes())

    async def learn(label: str | None, rows: list[Row]) -> tuple[Head | None, str, list[Row], str]:
        name = (label or "").strip()
        try:
            done = await service.search(marks.fit)
        except TorchbeatsError as error:
            return None, parts.problem(str(error)), rows, _grid(service, marks, name, rows) if rows else EMPTY
        return done.head, _figures(done.head), done.suggestions, _grid(service, marks, name, done.suggestions)

    async def keep(head: Head | None) -> str:
        if head is None:
            return parts.problem("There is no model yet: press Fit first.")
        try:
            path = await service.search(marks.save, head)
        except (TorchbeatsError, OSError) as error:
            return parts.problem(f"The model was not saved: {error}")
        labels = marks.annotations()
        texts = {f"labels{end}": "".join(FORMATS[end].write_events(labels)) for end in (".raven.txt", ".csv")}
        key = results.add({name: text.encode() for name, text in texts.items()})
        status = parts.note(f"Saved: {path}. Use it: torchbeats tag SOUNDS -m {path}")
        return _figures(head) + status + parts.links(key, texts) + _MODEL_LINK

    def known(label: str | None) -> Any:
        classes = marks.classes()
        return gr.update(choices=classes) if label or not classes else gr.update(choices=classes, value=classes[0])

    blocks.load(known, label, label)
    show.click(start, [label, row, query], [shown, grid])
    review.click(marked, [label], [shown, grid])
    grid.mark(mark, [label, shown], [grid, label])
    fit.click(learn, [label, shown], [fitted, outcome, shown, grid])
    save.click(keep, [fitted], outcome)


_MODEL_LINK = (
    '<ul class="tb-links"><li><a href="/model.safetensors" download="model.safetensors">model.safetensors</a></li></ul>'
)


async def _candidates(service: Service, marks: Marks, label: str, row: str, query: Query, last: int) -> list[Row]:
    """Rows to mark for a class, which are not marked yet, and what is said of each."""
    known = marks.of(label)
    right = tuple(row for row, is_right in known.items() if is_right)
    wrong = tuple(row for row, is_right in known.items() if not is_right)
    first: list[Row] = []
    if row:
        if not row.isdecimal() or int(row) > last:
            raise RequestError(422, "no_such_row", f"The table has the rows 0 to {last}.")
        first, query = [(int(row), "the row that was named")], Query(like=(int(row),))
    elif right:
        query = Query(like=right, unlike=wrong)
    omitted = {*known, *(number for number, _ in first)}
    nearest = [(one.row, f"likeness {one.score:.3f}") for one in await matches(service, query, SHOWN, omitted)]
    return [*first, *nearest][:SHOWN]


def _grid(service: Service, marks: Marks, label: str, rows: list[Row]) -> str:
    """Rows with the marks that they have."""
    assert service.table is not None
    known = {row: "right" if right else "wrong" for row, right in marks.of(label).items()}
    places = service.table.places(np.array([row for row, _ in rows], np.int64))
    cards = [parts.Card(row, *place, remark, known.get(row)) for (row, remark), place in zip(rows, places, strict=True)]
    right = list(known.values()).count("right")
    status = parts.note(f"{label}: {right} right, {len(known) - right} wrong. Is {label} in these? Keys: y, n, arrows.")
    return status + parts.grid(cards, MARKS, f"Rows to mark for {label}")


def _figures(head: Head) -> str:
    """How good a head is."""
    rows: list[tuple[str | float, ...]] = [
        (
            str(row["class"]),
            str(row["windows"]),
            *(float(row.get(name, float("nan"))) for name in ("average_precision", "threshold", "precision", "recall")),
        )
        for row in head.by_class
    ]
    names = ("class", "right", "average precision", "threshold", "precision", "recall")
    how = f"How good it is on what was held out: {head.held_out}" if head.held_out else "Fitted; no figures yet"
    return parts.table(names, rows, how) + "".join(map(parts.note, head.warnings))

"""*Find*: from a file, a stretch of it or a row of the table to what is like it, and on from there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from torchbeats.audio import Floats
from torchbeats.errors import RequestError
from torchbeats.patches import SAMPLE_RATE
from torchbeats.search.queries import direction, unit
from torchbeats.search.searching import Match, closest
from torchbeats.serve.page import parts
from torchbeats.serve.page.listen import sound_input, upload_at
from torchbeats.serve.service import Service

SHOWN = 12
MARKS = {"like": "More like this", "unlike": "Less like this"}
EMPTY = parts.note("Start from a sound or from a row of the table; what is like it appears here.")


class Query(NamedTuple):
    """What is looked for.

    Attributes:
        sound: its direction; None where the search starts from rows.
        name: of the sound.
        like: rows, the first of which the search may have started from.
        unlike: rows.
    """

    sound: Floats | None = None
    name: str = ""
    like: tuple[int, ...] = ()
    unlike: tuple[int, ...] = ()

    def marked(self, row: int, mark: str) -> Query:
        """With a row's mark, or without it where it had the same."""
        like, unlike = (tuple(one for one in rows if one != row) for rows in (self.like, self.unlike))
        if mark == "like" and row not in self.like:
            like = (*like, row)
        elif mark == "unlike" and row not in self.unlike:
            unlike = (*unlike, row)
        return self._replace(like=like, unlike=unlike)


def build(service: Service, query: Any) -> Any:
    """The tab, inside the page's blocks; what tells when a search was begun elsewhere.

    Args:
        service: with a table.
        query: a state that holds a `Query`.
    """
    assert service.table is not None
    last = service.table.count - 1
    with gr.Row():
        with gr.Column():
            sound = sound_input("Start from a sound")
            with gr.Row():
                start = gr.Number(0, label="From second", minimum=0)
                end = gr.Number(0, label="To second (0: its end)", minimum=0)
            by_sound = gr.Button("Find what is like this sound", variant="primary")
        with gr.Column():
            row = gr.Number(
                0, label=f"Start from a row of the table (0 to {last})", precision=0, minimum=0, maximum=last
            )
            by_row = gr.Button("Find what is like this row")
    grid = gr.HTML(EMPTY, elem_id="neighbours", js_on_load=parts.BEHAVIOUR)

    async def shown(asked: Query) -> str:
        try:
            return await neighbours(service, asked)
        except RequestError as error:
            return parts.problem(str(error))

    async def from_sound(path: str | None, start: float | None, end: float | None) -> tuple[Query, str]:
        if path is None:
            return Query(), parts.problem("There is no sound yet: drop a file above, or record.")
        try:
            asked = await of_sound(service, path, start or 0.0, end or None)
        except RequestError as error:
            return Query(), parts.problem(str(error))
        return asked, await shown(asked)

    async def from_row(row: float | None) -> tuple[Query, str]:
        if row is None or not 0 <= row <= last:
            return Query(), parts.problem(f"The table has the rows 0 to {last}.")
        asked = Query(like=(int(row),))
        return asked, await shown(asked)

    async def mark(asked: Query | None, event: gr.EventData) -> tuple[Query, str]:
        row, mark = pressed(event, last)
        changed = (asked or Query()).marked(row, mark)
        return changed, await shown(changed)

    by_sound.click(from_sound, [sound, start, end], [query, grid])
    by_row.click(from_row, [row], [query, grid])
    grid.mark(mark, [query], [query, grid])
    return grid


def pressed(event: Any, last: int) -> tuple[int, str]:
    """Which row's button was pressed, and what stands for it.

    Raises:
        RequestError: the browser tells of a row that there is not.
    """
    data = getattr(event, "_data", None) or {}
    row, mark = data.get("row"), str(data.get("mark"))
    if not isinstance(row, int) or not 0 <= row <= last:
        raise RequestError(422, "no_such_row", f"The table has the rows 0 to {last}.")
    return row, mark


async def of_sound(service: Service, path: str, start: float, end: float | None) -> Query:
    """A query from a stretch of a file that was sent.

    Raises:
        RequestError: it cannot be read, or has no such stretch.
    """
    table, model = service.table, service.table_model
    assert table is not None
    assert model is not None
    upload = await asyncio.to_thread(upload_at, path)
    (sound,) = await service.decode([upload])
    first, behind = round(start * SAMPLE_RATE), len(sound.samples) if end is None else round(end * SAMPLE_RATE)
    samples = sound.samples[first:behind]
    if not len(samples):
        raise RequestError(
            422, "no_such_stretch", f"{upload.name} has {sound.seconds:.2f} s; there is nothing between."
        )
    stretch = sound._replace(samples=samples)
    (group,) = await service.compute([upload], [stretch], model, table.plan)
    return Query(direction(group.values.reshape(len(group.values), -1)), upload.name)


async def matches(service: Service, query: Query, count: int, omitted: Iterable[int] = ()) -> list[Match]:
    """The rows that are most like a query, but some; none where nothing is looked for."""
    table = service.table
    assert table is not None
    if query.sound is None and not query.like:
        return []
    rows = [*query.like, *query.unlike]

    def look() -> list[Match]:
        stored = (
            unit(table.take(np.array(rows, np.int64))) if rows else np.zeros((0, table.take(np.array([0])).shape[1]))
        )
        like, unlike = stored[: len(query.like)], stored[len(query.like) :]
        if query.sound is not None:
            like = np.concatenate([query.sound[np.newaxis], like])
        return closest(table, like.astype(np.float32), unlike.astype(np.float32), count, rows={*query.unlike, *omitted})

    return await service.search(look)


async def neighbours(service: Service, query: Query) -> str:
    """The grid of a query."""
    nearest = await matches(service, query, SHOWN)
    if not nearest:
        return EMPTY
    marks = dict.fromkeys(query.like, "like")
    cards = [
        parts.Card(one.row, one.path, one.start, one.end, f"likeness {one.score:.3f}", marks.get(one.row))
        for one in nearest
    ]
    base = query.name or f"row {query.like[0]}"
    more = f", {len(query.like)} liked and {len(query.unlike)} not"
    return parts.note(f"Like {base}{more}.") + parts.grid(cards, MARKS, f"Rows like {base}")

"""Requests → answers: what is asked of the service, and how its rows are put."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np

from torchbeats.abstention import Naming
from torchbeats.audio import Floats
from torchbeats.errors import RequestError, SettingsError
from torchbeats.files import readable
from torchbeats.inference import Group
from torchbeats.plans import EmbeddingPlan, ScorePlan
from torchbeats.protocol import Model
from torchbeats.search.queries import direction, unit
from torchbeats.search.searching import closest
from torchbeats.serve import shapes
from torchbeats.serve.decoding import Decoded
from torchbeats.serve.service import Service
from torchbeats.serve.uploads import Upload
from torchbeats.tables.events import class_thresholds, events
from torchbeats.tables.scoring import fitted_window
from torchbeats.tagging import Tags, score_plan, scored, tags

EVERY_SECONDS = 1.0  # of a row, where events are asked for and nothing else is said
EVENT_THRESHOLD = 0.5


async def embeddings(
    service: Service, options: shapes.EmbeddingOptions, uploads: Sequence[Upload]
) -> shapes.Embeddings:
    """Embed sounds."""
    served = service.model_called(options.model, service.embedder)
    try:
        plan = EmbeddingPlan(options.pool.value, options.layer, options.hop, window=options.window)
    except SettingsError as error:
        raise RequestError(422, "invalid_request", str(error)) from error
    sounds = await service.decode(uploads)
    groups = await service.compute(uploads, sounds, served.model, plan)
    data = []
    for index, group in enumerate(groups):
        if options.each_window:
            for (start, end), row in zip(group.times.tolist(), group.values, strict=True):
                value = _written(row, options.encoding_format)
                data.append(shapes.EmbeddingRow(index=index, embedding=value, start=start, end=end))
        else:
            value = _written(mean_of_windows(group), options.encoding_format)
            data.append(shapes.EmbeddingRow(index=index, embedding=value))
    usage = _usage(sounds, served.model)
    return shapes.Embeddings(data=data, model=served.name, usage=usage, warnings=_warnings(sounds))


async def tagged(service: Service, options: shapes.TagOptions, uploads: Sequence[Upload]) -> shapes.TagAnswer:
    """Tag sounds."""
    served = service.model_called(options.model, service.tagger)
    model = served.model
    plan = plan_for_tags(model, options.every, options.window, options.events)
    sounds = await service.decode(uploads)
    groups = await service.compute(uploads, sounds, model, plan)
    naming = Naming(model, options.unknown)
    data = []
    for index, group in enumerate(groups):
        rows = labelled(group, plan, model, naming, options)
        if options.events:
            merged = [
                shapes.Event(
                    start=one.start,
                    end=one.end or one.start,
                    label=one.label,
                    peak=one.peak or 0.0,
                    mean=one.mean or 0.0,
                )
                for one in events(rows, options.min_gap, options.min_length)
            ]
            data.append(shapes.TaggedSound(index=index, events=merged))
        else:
            listed = [
                shapes.TagRow(
                    start=row.start,
                    end=row.end,
                    labels=[shapes.Label(label=label, probability=value) for label, value in row.labels],
                )
                for row in rows
            ]
            data.append(shapes.TaggedSound(index=index, rows=listed))
    usage = _usage(sounds, model)
    return shapes.TagAnswer(data=data, model=served.name, usage=usage, warnings=_warnings(sounds))


async def matches(
    service: Service,
    options: shapes.SearchOptions,
    like: Sequence[Upload | int],
    unlike: Sequence[Upload | int] = (),
) -> shapes.SearchAnswer:
    """Search the table."""
    table, model = service.table, service.table_model
    if table is None or model is None:
        raise RequestError(404, "no_table", "This server has no table to search; start it with --table.")
    queries = [*like, *unlike]
    rows = [query for query in queries if isinstance(query, int)]
    if wrong := [row for row in rows if not 0 <= row < table.count]:
        raise RequestError(422, "no_such_row", f"The table has the rows 0 to {table.count - 1}, and no row {wrong[0]}.")
    uploads = [query for query in queries if not isinstance(query, int)]
    sounds = await service.decode(uploads)
    groups = await service.compute(uploads, sounds, model, table.plan) if uploads else []
    computed = iter([direction(group.values.reshape(len(group.values), -1)) for group in groups])
    stored = iter(unit(await service.search(table.take, np.array(rows, np.int64))) if rows else ())
    vectors = np.stack([next(stored if isinstance(query, int) else computed) for query in queries])
    nearest = await service.search(
        closest,
        table,
        vectors[: len(like)],
        vectors[len(like) :],
        options.n,
        rows=rows,
        not_same_file=options.not_same_file,
    )
    data = [
        shapes.MatchRow(row=one.row, score=one.score, path=readable(one.path), start=one.start, end=one.end)
        for one in nearest
    ]
    return shapes.SearchAnswer(data=data, warnings=_warnings(sounds))


def plan_for_tags(model: Model, every: float | None, window: float | None, with_events: bool) -> ScorePlan:
    """How sounds are tagged.

    Raises:
        RequestError: a setting that makes no sense.
    """
    if every is None and with_events:
        every = EVERY_SECONDS
    if window is None and every is None:
        window = fitted_window(model)
    try:
        return score_plan(every, window)
    except SettingsError as error:
        raise RequestError(422, "invalid_request", str(error)) from error


def labelled(group: Group, plan: ScorePlan, model: Model, naming: Naming, options: shapes.TagOptions) -> list[Tags]:
    """A sound's probabilities as rows of labels."""
    threshold: float | Floats = options.threshold if options.threshold is not None else 0.0
    top = options.top
    if options.events:
        top = len(naming.names)
        if options.threshold is None:
            threshold, _ = class_thresholds(model, naming.classes, EVENT_THRESHOLD)
    return list(tags(naming.judged(scored([group], plan)), naming.names, top, naming.thresholds(threshold)))


def mean_of_windows(group: Group) -> Floats:
    """``(D,)``: a sound's one row, or the mean of its rows by their seconds."""
    if len(group.values) == 1:
        row: Floats = group.values[0]
        return row
    seconds = group.times[:, 1] - group.times[:, 0]
    mean: Floats = np.average(group.values.astype(np.float64), 0, seconds).astype(np.float32)
    return mean


def _written(row: Floats, form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    values: list[float] = row.tolist()
    return values


def _usage(sounds: Sequence[Decoded], model: Model) -> shapes.Usage:
    patches = sum(int(model.grid.patches(max(len(sound.samples), model.grid.min_samples))) for sound in sounds)
    seconds = sum(sound.seconds for sound in sounds)
    return shapes.Usage(prompt_tokens=patches, total_tokens=patches, audio_seconds=round(seconds, 3))


def _warnings(sounds: Sequence[Decoded]) -> list[shapes.Warned]:
    return [
        shapes.Warned(index=index, message=sound.warning)
        for index, sound in enumerate(sounds)
        if sound.warning is not None
    ]

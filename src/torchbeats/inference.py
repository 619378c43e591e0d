"""Many sounds → batches that waste little → results in order.

Files are decoded a bounded distance ahead of the model. Their windows are gathered into groups of a fixed amount of
audio, which also end with a block of inputs; inside a group windows of like length share a batch. What is in a group,
and so every batch, depends on the inputs alone: a run that starts again at a group's end, or a machine that computes
one block of many, gets the very same numbers.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from torchbeats.audio import AudioWarning, Floats
from torchbeats.batching import batches_of_like_length
from torchbeats.data.blocks import BlockEnds
from torchbeats.data.sounds import Sound, named
from torchbeats.decoding_ahead import Clip, decode_ahead
from torchbeats.loading import ready
from torchbeats.patches import SAMPLE_RATE
from torchbeats.plans import BATCH_SECONDS, WINDOW_SECONDS, EmbeddingPlan, Plan, TokenPlan, Values
from torchbeats.protocol import Model

Times: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Flags: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"

GROUP_BATCHES = 8  # how many batches' worth of audio is sorted by length together


class Embedding(NamedTuple):
    """One row of results.

    Attributes:
        path: of the file; ``[i]`` for the i-th input where that was an array.
        start: in seconds.
        end: in seconds.
        embedding: ``(D,)`` float32.
    """

    path: str
    start: float
    end: float
    embedding: Floats

    def __repr__(self) -> str:
        """With the embedding's size in place of its numbers."""
        return (
            f"Embedding(path={self.path!r}, start={self.start:g}, end={self.end:g}, "
            f"embedding=<{len(self.embedding)} × {self.embedding.dtype}>)"
        )


class TokenGrid(NamedTuple):
    """The labels of one file.

    Attributes:
        path: of the file; ``[i]`` for the i-th input where that was an array.
        start: ``(steps,)`` float64, in seconds.
        end: ``(steps,)`` float64, in seconds.
        labels: ``(steps, bands)``, low frequencies first; int16, or int32 from a codebook too large for that.
    """

    path: str
    start: Times
    end: Times
    labels: Values

    def __repr__(self) -> str:
        """With the grid's shape in place of its numbers."""
        steps, bands = self.labels.shape
        return f"TokenGrid(path={self.path!r}, labels=<{steps} steps × {bands} bands, {self.labels.dtype}>)"


class Position(NamedTuple):
    """How far a run has come: whole inputs, and windows of the one that follows them.

    Attributes:
        inputs: that are done.
        windows: of the next one that are done.
        failed: the model gave numbers for that one that are not finite; the rest of it is left out.
    """

    inputs: int = 0
    windows: int = 0
    failed: bool = False


@dataclass
class Group:
    """Results of one group of windows, in the order of the inputs.

    Attributes:
        paths: for each row, the name of its input.
        times: ``(rows, 2)`` float64, start and end in seconds.
        values: ``(rows, D)``, float32 embeddings or integer labels.
        begins: ``(rows,)`` bool, whether a row is the first of its input.
        failures: inputs that could not be read, and why.
        position: where the run stands behind this group.
        inputs: number of inputs that end in this group.
        ended: for each of them, the number of its windows that have rows, as far as they begin in this group or one
            before, and whether it could not be read in whole.
    """

    paths: list[str] = field(default_factory=list)
    times: Times = field(default_factory=lambda: np.empty((0, 2)))
    values: Values = field(default_factory=lambda: np.empty((0, 0), np.float32))
    begins: Flags = field(default_factory=lambda: np.empty(0, bool))
    failures: list[tuple[str, str]] = field(default_factory=list)
    position: Position = field(default_factory=Position)
    inputs: int = 0
    ended: list[tuple[int, bool]] = field(default_factory=list)

    def rows(self) -> Iterator[Embedding]:
        """The rows one by one, where they are embeddings."""
        for path, (start, end), embedding in zip(self.paths, self.times.tolist(), self.values, strict=True):
            yield Embedding(path, start, end, embedding)


# Called behind every batch with the seconds of audio in it, and its share of the inputs.
Progress: TypeAlias = Callable[[float, float], None]
# Called with the name of an input that cannot be read, in whole or in part, and the reason.
OnFailure: TypeAlias = Callable[[str, str], None]


def embed(
    inputs: Sound | Iterable[Sound],
    model: Model | str | os.PathLike[str] | None = None,
    *,
    pool: str = "mean",
    layer: int | None = None,
    window: float | None = WINDOW_SECONDS,
    hop: float | None = None,
    batch_seconds: float = BATCH_SECONDS,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    jobs: int | None = None,
) -> Iterator[Embedding]:
    """Embed sounds, lazily: files are read and rows computed as they are asked for.

    ``pandas.DataFrame(torchbeats.embed("recordings", model=model))`` is the whole table.

    Args:
        inputs: a file, a folder or a list of files (.csv, .txt, .jsonl); an array or tensor at 16 kHz, mono or
            channels by samples; a pair (array, its sample rate); or an iterable of any of these.
        model: a `BEATs`, an `OnnxModel`, or what `load` takes; None for the small built-in one.
        pool: "mean", "bands" or "statistics", a row a window; "steps" or "patches", a row a step of 160 ms. See
            `EmbeddingPlan`.
        layer: whose output; the model's where not given.
        window: seconds that the model sees at once; a last piece shorter than half a second joins the window before.
            None for all of a sound at once, however long: memory grows with its length, time with the square of it.
        hop: seconds from a window's start to the next; the window's length where not given.
        batch_seconds: audio in a batch; less of it takes less memory.
        device: where to compute; where the model is, if not given.
        dtype: to compute in; the model's own, if not given. A model of the caller's stays as, and where, it is: a copy
            of it computes.
        jobs: threads that decode; up to four where not given.

    Yields:
        `Embedding` rows in the order of the inputs. A file that cannot be read is left out with an `AudioWarning`.

    Raises:
        ValueError: a setting that makes no sense, or inputs that name no files.
    """
    plan = EmbeddingPlan(pool, layer, hop, window=window, batch_seconds=batch_seconds)
    results = groups_of(inputs, ready(model, device, dtype), plan, jobs)
    return (row for group in results for row in group.rows())


def tokenize(
    inputs: Sound | Iterable[Sound],
    tokenizer: Model | str | os.PathLike[str],
    *,
    window: float | None = WINDOW_SECONDS,
    batch_seconds: float = BATCH_SECONDS,
    device: str | torch.device | None = None,
    jobs: int | None = None,
) -> Iterator[TokenGrid]:
    """Label sounds, lazily, a grid of steps and bands for each.

    Steps join over the windows that a long sound is cut into; the tokenizer sees, and normalises, each by itself.

    Args:
        inputs: as for `embed`.
        tokenizer: one, or what `load` makes one of.
        window: seconds that the tokenizer sees at once, rounded to whole steps; a last piece shorter than half a second
            joins the window before. None for all of a sound at once.
        batch_seconds: audio in a batch; less of it takes less memory.
        device: where to compute, with a copy of the tokenizer if need be; where it is, if not given.
        jobs: threads that decode; up to four where not given.

    Yields:
        A `TokenGrid` for each sound, in the order of the inputs. A file that cannot be read is left out with an
        `AudioWarning`.

    Raises:
        ValueError: a setting that makes no sense, or inputs that name no files.
    """
    plan = TokenPlan(window=window, batch_seconds=batch_seconds)
    return _by_file(groups_of(inputs, ready(tokenizer, device), plan, jobs))


def groups_of(
    inputs: Sound | Iterable[Sound],
    model: Model,
    plan: Plan,
    jobs: int | None,
    on_failure: OnFailure | None = None,
) -> Iterator[Group]:
    """Groups of whatever a caller in Python gives; what is wrong with it is said at once, not with the first group.

    Without ``on_failure``, an `AudioWarning` tells of a sound that is left out.
    """
    plan.check(model)
    sounds = named(inputs)
    if not isinstance(inputs, Iterator):
        sounds = iter(list(sounds))

    def results() -> Iterator[Group]:
        for group in groups(sounds, model, plan, jobs=jobs):
            for path, reason in group.failures:
                if on_failure is not None:
                    on_failure(path, reason)
                else:
                    warnings.warn(f"{path} was left out: {reason}.", AudioWarning, stacklevel=3)
            yield group

    return results()


def _by_file(results: Iterable[Group]) -> Iterator[TokenGrid]:
    """Rows a step to rows a file, as soon as a file is complete."""
    path, times, labels = "", list[Times](), list[Values]()

    def complete() -> Iterator[TokenGrid]:
        if times:
            start, end = np.concatenate(times).T.copy()
            yield TokenGrid(path, start, end, np.concatenate(labels))
        times.clear()
        labels.clear()

    for group in results:
        edges = [0, *np.flatnonzero(group.begins).tolist(), len(group.paths)]
        for number, (first, last) in enumerate(pairwise(edges)):
            if number:  # what lies before the first of them belongs to the file that the last group ended in
                yield from complete()
            if first < last:
                path = group.paths[first]
                times.append(group.times[first:last])
                labels.append(group.values[first:last])
        if not group.position.windows:  # no file is under way
            yield from complete()


def groups(
    sounds: Iterable[tuple[str, Sound]],
    model: Model,
    plan: Plan,
    *,
    start: Position = Position(),  # noqa: B008 - immutable
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Group]:
    """What becomes of named sounds, group by group, from a position that an earlier run has reached."""
    plan.check(model)
    block_ends = deque[bool]()

    def remaining() -> Iterator[tuple[str, Sound, int]]:
        ends = BlockEnds()
        for number, (name, sound) in enumerate(sounds):
            last = ends.is_last(sound)
            if number >= start.inputs:
                block_ends.append(last)
                yield name, sound, ends.size

    decoded = decode_ahead(remaining(), plan, model.grid, jobs or min(4, os.cpu_count() or 1))
    group, clips, held = Group(), list[Clip](), 0.0
    inputs, skip, seen, failed, block_ended = start.inputs, start.windows, 0, start.failed, False
    decode_failures: dict[int, tuple[str, str]] = {}  # by the index of their input

    def computed() -> Group:
        nonlocal failed
        group.position = Position(inputs, seen, failed)
        result = _compute(group, clips, model, plan, progress, decode_failures)
        failed = result.position.failed
        decode_failures.clear()
        return result

    for name, event in decoded:
        if isinstance(event, Clip):
            seen += 1
            if seen <= skip or failed:  # computed by the run that this one continues; or not to be
                continue
            clips.append(event)
            event.input = inputs
            held += len(event.samples) / SAMPLE_RATE
        else:
            if event is not None and not failed:
                decode_failures[inputs] = (name, event + _note_of_rows(seen))
            group.ended.append((0 if failed else seen, failed or event is not None))
            inputs, skip, seen, failed = inputs + 1, 0, 0, False
            group.inputs += 1
            block_ended = block_ends.popleft()
        if held >= GROUP_BATCHES * plan.batch_seconds or block_ended:
            block_ended = False
            yield computed()
            group, clips, held = Group(), [], 0.0
    yield computed()


def _note_of_rows(windows: int) -> str:
    """The end of a failure's message: how many rows the sound has all the same."""
    return f"; what comes before it was kept, in {windows} windows" if windows else ""


# --- computing --------------------------------------------------------------------------------------------------------


def _compute(
    group: Group,
    clips: list[Clip],
    model: Model,
    plan: Plan,
    progress: Progress | None,
    failures: dict[int, tuple[str, str]],
) -> Group:
    """Fill a group with the results of its clips, and with those that failed in decoding or computing."""
    results: list[Values | None] = [None] * len(clips)
    lengths = [max(len(clip.samples), model.grid.min_samples) for clip in clips]
    for batch in batches_of_like_length(lengths, plan.batch_seconds * SAMPLE_RATE):
        members = [clips[index] for index in batch]
        for index, result in zip(batch, _run([clip.samples for clip in members], model, plan), strict=True):
            results[index] = result
        if progress is not None:
            seconds = sum(len(clip.samples) for clip in members) / SAMPLE_RATE
            progress(seconds, group.inputs * len(batch) / len(clips))
        for clip in members:
            clip.release()
    computed = [(clip, result) for clip, result in zip(clips, results, strict=True) if result is not None]
    broken = _first_without_numbers(computed)
    failures = failures | {
        clip.input: (clip.name, f"the model gives numbers for it that are not finite{_note_of_rows(clip.number)}")
        for clip in broken.values()
    }
    group.failures = [failures[index] for index in sorted(failures)]
    first = group.position.inputs - len(group.ended)
    for index, clip in broken.items():
        if index < group.position.inputs:
            group.ended[index - first] = (clip.number, True)
    if group.position.inputs in broken:
        group.position = group.position._replace(failed=True)
    computed = [
        (clip, result)
        for clip, result in computed
        if clip.input not in broken or clip.number < broken[clip.input].number
    ]
    if not computed:
        return group
    by_step = plan.row(model).per != "window"
    times, begins = [], []
    for clip, result in computed:
        times.append(_times(clip, len(result), model.grid.step_seconds if by_step else None))
        begins.append(np.arange(len(result)) + clip.number == 0)
        group.paths += [clip.name] * len(result)
    group.times, group.begins = np.concatenate(times), np.concatenate(begins)
    group.values = np.concatenate([result for _, result in computed])
    return group


def _first_without_numbers(results: list[tuple[Clip, Values]]) -> dict[int, Clip]:
    """For each input whose results are not all numbers, the first window of which they are not."""
    broken: dict[int, Clip] = {}
    for clip, values in results:
        valid = np.isfinite(values) if values.dtype.kind == "f" else values >= 0  # a patch without a label has -1
        if not valid.all():
            broken.setdefault(clip.input, clip)
    return broken


def _times(clip: Clip, rows: int, step: float | None) -> Times:
    """Start and end of a window's rows in its file, ``(rows, 2)``; of steps, where their length is given."""
    start, end = (clip.offset + edge / SAMPLE_RATE for edge in (clip.window.start, clip.window.end))
    if step is None:
        return np.array([[start, end]])
    edges = start + step * np.arange(rows + 1)
    return np.stack([edges[:-1], np.minimum(edges[1:], end)], axis=1)


@torch.inference_mode()
def _run(samples: list[Floats], model: Model, plan: Plan) -> Iterator[Values]:
    """Results of one batch, ``(rows, D)`` for each clip."""
    lengths = [max(len(clip), model.grid.min_samples) for clip in samples]  # silence is added without a word
    wav = torch.zeros(len(samples), max(lengths))
    for row, clip in zip(wav, samples, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    ragged = torch.tensor(lengths, device=model.device) if min(lengths) < max(lengths) else None
    return plan.rows(model, wav.to(model.device), ragged)

"""Many sounds → batches that waste little → results in order.

Files are decoded by a few threads, a bounded distance ahead of the model. Their windows are gathered into groups of a
fixed amount of audio; inside a group windows of like length share a batch. What is in a group, and so every batch,
depends on the inputs alone: a run that starts again at a group's end computes the very same numbers.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from torchbeats import audio
from torchbeats.audio import AudioError, AudioWarning
from torchbeats.backbone import Encoded
from torchbeats.inputs import find_audio
from torchbeats.loading import load
from torchbeats.model import BEATs
from torchbeats.patches import SAMPLE_RATE, PatchGrid
from torchbeats.tokenizers import Tokenizers

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"
Sound: TypeAlias = (
    "str | os.PathLike[str] | np.ndarray[Any, Any] | Tensor | tuple[np.ndarray[Any, Any] | Tensor, float]"
)

POOLS = ("mean", "bands", "steps", "patches")
SHORTEST_SECONDS = 0.5  # a last piece shorter than this joins the window before
WINDOW_SECONDS = 10.0
BATCH_SECONDS = 40.0
GROUP_BATCHES = 8  # how many batches' worth of audio is sorted by length together
WINDOWS_AHEAD = 4  # of each file that is being decoded


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


@dataclass(frozen=True)
class Plan:
    """How sounds are cut up and what is made of each piece.

    Args:
        pool: "mean": one row a window, the mean over its patches, C values. "bands": the mean over time with the bands
            kept, 8 × C. "steps": a row a step of 160 ms, the mean over its bands, C. "patches": a row a step with
            all its bands, 8 × C.
        layer: whose output: 0 is the encoder's input to the first, None the model's output.
        window: seconds that the model sees at once. For "steps" and "patches" rounded to whole steps.
        hop: seconds from a window's start to the next; the window's length where not given.
        batch_seconds: audio in a batch, padding included.

    Raises:
        ValueError: a setting that makes no sense, named.
    """

    pool: str = "mean"
    layer: int | None = None
    window: float = WINDOW_SECONDS
    hop: float | None = None
    batch_seconds: float = BATCH_SECONDS

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ValueError(f"There is no pooling called {self.pool!r}; choose one of {', '.join(POOLS)}.")
        if not SHORTEST_SECONDS <= self.window < math.inf:
            raise ValueError(f"A window must have at least {SHORTEST_SECONDS} s, not {self.window}.")
        if self.hop is not None and not SHORTEST_SECONDS / 10 <= self.hop <= self.window:
            raise ValueError(f"The hop must lie between {SHORTEST_SECONDS / 10} s and the window's {self.window} s.")
        if self.hop is not None and self.by_step:
            raise ValueError(f"The pooling {self.pool!r} lays windows so that steps join; leave the hop out.")
        if not self.batch_seconds > 0:
            raise ValueError(f"A batch must hold some seconds of audio, not {self.batch_seconds}.")

    @property
    def by_step(self) -> bool:
        """A row for every step rather than for every window."""
        return self.pool in ("steps", "patches")

    def windows(self, blocks: Iterable[Floats], grid: PatchGrid) -> Iterator[tuple[int, Floats]]:
        """Cut a stream of samples into ``(start, samples)`` windows."""
        if self.by_step:  # each window starts at the step that follows the last one's steps
            steps = max(1, round(self.window * SAMPLE_RATE / grid.step_samples))
            length, hop = grid.samples(steps), steps * grid.step_samples
        else:
            length = round(self.window * SAMPLE_RATE)
            hop = length if self.hop is None else round(self.hop * SAMPLE_RATE)
        return audio.windows(blocks, length, hop, round(SHORTEST_SECONDS * SAMPLE_RATE))

    def pooled(self, encoded: Encoded) -> Tensor:
        """``(B, D)``, or ``(B, steps, D)`` by step."""
        match self.pool:
            case "mean":
                return encoded.pooled()
            case "bands":
                return encoded.pooled_bands()
            case "steps":
                return encoded.steps()
            case _:
                return encoded.by_step().flatten(2)


class Position(NamedTuple):
    """How far a run has come: whole inputs, and windows of the one that follows them."""

    inputs: int = 0
    windows: int = 0


@dataclass
class Group:
    """Results of one group of windows, in the order of the inputs.

    Attributes:
        paths: for each row, the name of its input.
        times: ``(rows, 2)`` float64, start and end in seconds.
        embeddings: ``(rows, D)`` float32.
        failures: inputs that could not be read, and why.
        position: where the run stands behind this group.
        inputs: number of inputs that end in this group.
    """

    paths: list[str] = field(default_factory=list)
    times: np.ndarray[Any, np.dtype[np.float64]] = field(default_factory=lambda: np.empty((0, 2)))
    embeddings: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32))
    failures: list[tuple[str, str]] = field(default_factory=list)
    position: Position = field(default_factory=Position)
    inputs: int = 0

    def rows(self) -> Iterator[Embedding]:
        """The rows one by one."""
        for path, (start, end), embedding in zip(self.paths, self.times.tolist(), self.embeddings, strict=True):
            yield Embedding(path, start, end, embedding)


@dataclass
class Listener:
    """What a progress display is told.

    Attributes:
        on_batch: called behind every batch with the seconds of audio in it, and its share of the inputs.
    """

    on_batch: Callable[[float, float], None] = lambda seconds, inputs: None


def embed(
    inputs: Sound | Iterable[Sound],
    model: BEATs | str | os.PathLike[str] | None = None,
    *,
    pool: str = "mean",
    layer: int | None = None,
    window: float = WINDOW_SECONDS,
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
        model: a `BEATs`, or what `load` takes.
        pool: "mean" or "bands", a row a window; "steps" or "patches", a row a step of 160 ms. See `Plan`.
        layer: whose output; the model's where not given.
        window: seconds that the model sees at once; a last piece shorter than half a second joins the window before.
        hop: seconds from a window's start to the next; the window's length where not given.
        batch_seconds: audio in a batch; less of it takes less memory.
        device: the model goes there; where it is, if not given.
        dtype: the model takes it; its own, if not given.
        jobs: threads that decode; up to four where not given.

    Yields:
        `Embedding` rows in the order of the inputs. A file that cannot be read is left out with an `AudioWarning`.

    Raises:
        ValueError: a setting that makes no sense, or inputs that name no files.
    """
    plan = Plan(pool, layer, window, hop, batch_seconds)
    if not isinstance(model, BEATs):
        loaded = model if isinstance(model, Tokenizers) else load(model, device=device, dtype=dtype)
        if not isinstance(loaded, BEATs):
            raise ValueError("This is a tokenizer; embeddings need a BEATs model.")
        model = loaded
    elif device is not None or dtype is not None:
        model = model.to(device=device, dtype=dtype)
    _check_layer(plan, model)
    sounds = _named(inputs)
    if not isinstance(inputs, Iterator):  # what is wrong with a list of names is said at once
        sounds = iter(list(sounds))

    def rows() -> Iterator[Embedding]:
        for group in groups(sounds, model, plan, jobs=jobs):
            for path, reason in group.failures:
                warnings.warn(f"{path} was left out: {reason}.", AudioWarning, stacklevel=2)
            yield from group.rows()

    return rows()


def groups(
    sounds: Iterable[tuple[str, Sound]],
    model: BEATs,
    plan: Plan,
    *,
    start: Position = Position(),  # noqa: B008 - immutable
    jobs: int | None = None,
    listener: Listener | None = None,
) -> Iterator[Group]:
    """Embed named sounds group by group, from a position that an earlier run has reached."""
    _check_layer(plan, model)
    listener = listener or Listener()
    decoded = _decode_ahead(islice(sounds, start.inputs, None), plan, model.grid, jobs or min(4, os.cpu_count() or 1))
    group, clips, held = Group(), list[_Clip](), 0.0
    inputs, skip, seen = start.inputs, start.windows, 0
    for name, event in decoded:
        if isinstance(event, _Clip):
            seen += 1
            if seen <= skip:  # computed by the run that this one continues
                continue
            clips.append(event)
            held += len(event.samples) / SAMPLE_RATE
        else:
            if event is not None:
                kept = f"; what comes before it was embedded, in {seen} windows" if seen else ""
                group.failures.append((name, event + kept))
            inputs, skip, seen = inputs + 1, 0, 0
            group.inputs += 1
        if held >= GROUP_BATCHES * plan.batch_seconds or len(group.failures) >= 1000:
            group.position = Position(inputs, seen)
            yield _compute(group, clips, model, plan, listener)
            group, clips, held = Group(), [], 0.0
    group.position = Position(inputs, seen)
    yield _compute(group, clips, model, plan, listener)


def _check_layer(plan: Plan, model: BEATs) -> None:
    depth = len(model.encoder.layers)
    if plan.layer is not None and not 0 <= plan.layer <= depth:
        raise ValueError(f"The model has {depth} layers, and its input as number 0; there is no layer {plan.layer}.")


# --- decoding ---------------------------------------------------------------------------------------------------------


@dataclass
class _Clip:
    """A window of an input: where it starts and ends, in samples, and what is in it."""

    name: str
    start: int
    end: int
    samples: Floats

    def release(self) -> None:
        """Give the samples' memory back; a group of windows is large."""
        self.samples = np.empty(0, np.float32)


# What comes out of decoding an input: its windows, then None, or the reason why there are no more.
_Event: TypeAlias = "_Clip | str | None"


def _decode_ahead(
    sounds: Iterator[tuple[str, Sound]], plan: Plan, grid: PatchGrid, jobs: int
) -> Iterator[tuple[str, _Event]]:
    """Events of all inputs in order, while threads work on the inputs that follow."""
    stopped = threading.Event()

    def decode(name: str, sound: Sound, events: queue.Queue[_Event]) -> None:
        def put(event: _Event) -> bool:
            while not stopped.is_set():
                try:
                    events.put(event, timeout=0.1)
                except queue.Full:
                    continue
                return True
            return False

        end: str | None = None
        try:
            for start, samples in plan.windows(_blocks(sound), grid):
                if not put(_Clip(name, start, start + len(samples), samples)):
                    return
        except (AudioError, ValueError, OSError) as error:
            end = error.reason if isinstance(error, AudioError) else str(error).removesuffix(".")
        except Exception as error:  # a decoder's surprise must not end the run, nor leave the reader waiting
            end = f"decoding failed with {error!r}"
        put(end)

    running: deque[tuple[str, queue.Queue[_Event]]] = deque()
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="decode")
    try:
        while True:
            for name, sound in islice(sounds, 4 * jobs - len(running)):
                running.append((name, queue.Queue(WINDOWS_AHEAD)))
                pool.submit(decode, name, sound, running[-1][1])
            if not running:
                break
            name, events = running.popleft()
            while isinstance(event := events.get(), _Clip):
                yield name, event
            yield name, event
    finally:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _blocks(sound: Sound) -> Iterator[Floats]:
    if isinstance(sound, (str, os.PathLike)):
        return audio.stream(sound)
    samples, rate = sound if isinstance(sound, tuple) else (sound, SAMPLE_RATE)
    return iter([audio.from_array(samples, rate)])


def _named(inputs: Sound | Iterable[Sound]) -> Iterator[tuple[str, Sound]]:
    """Every single sound with the name its rows will have."""
    one = isinstance(inputs, (str, os.PathLike, np.ndarray, Tensor))
    pair = isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[1], Real)
    for index, sound in enumerate([inputs] if one or pair else inputs):  # type: ignore[arg-type]
        if isinstance(sound, (str, os.PathLike)):
            yield from ((path, path) for path in find_audio([sound]))
        else:
            yield f"[{index}]", sound


# --- computing --------------------------------------------------------------------------------------------------------


def _compute(group: Group, clips: list[_Clip], model: BEATs, plan: Plan, listener: Listener) -> Group:
    """Fill a group with the results of its clips."""
    results: list[Floats | None] = [None] * len(clips)
    lengths = [max(len(clip.samples), model.grid.min_samples) for clip in clips]
    for batch in batches_of_like_length(lengths, plan.batch_seconds * SAMPLE_RATE):
        chosen = [clips[index] for index in batch]
        for index, result in zip(batch, _run([clip.samples for clip in chosen], model, plan), strict=True):
            results[index] = result
        seconds = sum(len(clip.samples) for clip in chosen) / SAMPLE_RATE
        listener.on_batch(seconds, group.inputs * len(batch) / len(clips))
        for clip in chosen:
            clip.release()
    times = []
    step = model.grid.step_seconds
    done = [result for result in results if result is not None]
    for clip, result in zip(clips, done, strict=True):
        start, end = clip.start / SAMPLE_RATE, clip.end / SAMPLE_RATE
        if plan.by_step:
            edges = start + step * np.arange(len(result) + 1)
            times.append(np.stack([edges[:-1], np.minimum(edges[1:], end)], axis=1))
        else:
            times.append(np.array([[start, end]]))
        group.paths += [clip.name] * len(result)
    if clips:
        group.times = np.concatenate(times)
        group.embeddings = np.concatenate(done)
    return group


def batches_of_like_length(lengths: Sequence[int], budget: float) -> Iterator[list[int]]:
    """Indices of like lengths, longest first; a batch's padded size stays within ``budget`` samples if it can."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@contextmanager
def _evaluating(model: BEATs) -> Iterator[None]:
    """Evaluation mode for a while; every module has its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.inference_mode()
def _run(samples: list[Floats], model: BEATs, plan: Plan) -> Iterator[Floats]:
    """Results of one batch, ``(rows, D)`` for each clip."""
    lengths = [max(len(clip), model.grid.min_samples) for clip in samples]  # silence is added without a word
    wav = torch.zeros(len(samples), max(lengths))
    for row, clip in zip(wav, samples, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    device = model.patch_embedding.weight.device
    ragged = torch.tensor(lengths, device=device) if min(lengths) < max(lengths) else None
    with _evaluating(model):
        encoded = model.encode(wav.to(device), ragged, layer=plan.layer)
    pooled = plan.pooled(encoded).float().cpu().numpy()
    if not plan.by_step:
        return iter(pooled[:, np.newaxis])
    counts = encoded.step_counts().tolist()
    return (result[:count] for result, count in zip(pooled, counts, strict=True))

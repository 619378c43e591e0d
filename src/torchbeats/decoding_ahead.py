"""Inputs → windows in order, decoded by a few threads a bounded distance ahead of whoever computes with them.

Small files are decoded some at a time, since to hand over each by itself costs as much as to decode it.
"""

from __future__ import annotations

import mmap
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np

from torchbeats.audio import Floats
from torchbeats.data.inputs import Piece
from torchbeats.data.sounds import Sound, blocks
from torchbeats.errors import AudioError
from torchbeats.interrupts import postponed
from torchbeats.patches import SAMPLE_RATE, PatchGrid
from torchbeats.plans import Plan, Window

PARCELS_AHEAD = 4  # that wait for being taken, of each thread's work
PARCEL_SECONDS = 10.0  # of sound, or a window: what is handed over at once
BUNDLE_INPUTS, BUNDLE_BYTES = 16, 2**18  # of small files that a thread decodes together
FULL_SECONDS = 0.002  # from one look at a queue that is full to the next


@dataclass
class Clip:
    """A window of an input.

    Attributes:
        name: of the input.
        offset: seconds at which the input starts in its file.
        number: of the window in the input.
        window: what is in it.
        input: the input's index among all.
    """

    name: str
    offset: float
    number: int
    window: Window
    input: int = 0

    @property
    def samples(self) -> Floats:
        """What the model sees."""
        return self.window.samples

    def release(self) -> None:
        """Give the samples' memory back; a group of windows is large."""
        self.window = self.window._replace(samples=np.empty(0, np.float32))


def _copy_in_own_pages(samples: Floats) -> Floats:
    """A copy in pages of its own, which go back to the system with it.

    Windows wait for their group's end. Beside the blocks that they were cut from, which go at once, they would keep
    twice their size of a decoding thread's heap.
    """
    if len(samples) < SAMPLE_RATE:  # of those there may be more than a process may have maps
        return samples
    copy: Floats = np.frombuffer(mmap.mmap(-1, samples.nbytes, access=mmap.ACCESS_COPY), np.float32)
    copy[:] = samples
    return copy


# What comes out of decoding an input: its windows, then None, or the reason why there are no more.
Event: TypeAlias = Clip | str | None


def decode_ahead(
    sounds: Iterator[tuple[str, Sound, int]], plan: Plan, grid: PatchGrid, jobs: int
) -> Iterator[tuple[str, Event]]:
    """Events of all inputs in order, while threads work on the inputs that follow.

    Args:
        sounds: name, sound, and bytes of its file, 0 where they are not known.
        plan: cuts them into windows.
        grid: of the model.
        jobs: number of threads.
    """
    stopped = threading.Event()

    def decode(bundle: list[tuple[str, Sound]], parcels: queue.SimpleQueue[_Parcel]) -> None:
        def put(last: bool) -> bool:
            while not stopped.is_set():
                if parcels.qsize() < PARCELS_AHEAD:
                    parcels.put(_Parcel(events.copy(), last))
                    events.clear()
                    return True
                time.sleep(FULL_SECONDS)
            return False

        events, samples = list[tuple[str, Event]](), 0
        for name, sound in bundle:
            end: str | None = None
            try:
                offset = sound.start if isinstance(sound, Piece) else 0.0
                for number, window in enumerate(plan.windows(blocks(sound), grid)):
                    window = window._replace(samples=_copy_in_own_pages(window.samples))
                    events.append((name, Clip(name, offset, number, window)))
                    samples += len(window.samples)
                    if samples >= PARCEL_SECONDS * SAMPLE_RATE:
                        samples = 0
                        if not put(last=False):
                            return
            except (AudioError, ValueError, OSError) as error:
                end = error.reason if isinstance(error, AudioError) else str(error).removesuffix(".")
            except Exception as error:  # a decoder's surprise must not end the run, nor leave the reader waiting
                end = f"decoding failed with {error!r}"
            events.append((name, end))
        put(last=True)

    # A signal may raise at any moment here: only what C guards, or what is postponed, leaves no lock held behind it.
    running: deque[queue.SimpleQueue[_Parcel]] = deque()
    bundles = _bundles(sounds)
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="decode")
    try:
        while True:
            for bundle in islice(bundles, 4 * jobs - len(running)):
                running.append(queue.SimpleQueue())
                with postponed():
                    pool.submit(decode, bundle, running[-1])
            if not running:
                break
            parcels, last = running.popleft(), False
            while not last:
                events, last = parcels.get()
                yield from events
    finally:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)


class _Parcel(NamedTuple):
    """Events that a thread hands over together, each with the name of its input; and whether its work is done."""

    events: list[tuple[str, Event]]
    last: bool


def _bundles(sounds: Iterable[tuple[str, Sound, int]]) -> Iterator[list[tuple[str, Sound]]]:
    """Small files together, for one thread each: to hand over each by itself costs as much as to decode it."""
    bundle, size = list[tuple[str, Sound]](), 0
    for name, sound, count in sounds:
        alone = not count or count > BUNDLE_BYTES // 4
        if bundle and (alone or size + count > BUNDLE_BYTES or len(bundle) == BUNDLE_INPUTS):
            yield bundle
            bundle, size = [], 0
        bundle.append((name, sound))
        size += count
        if alone:
            yield bundle
            bundle, size = [], 0
    if bundle:
        yield bundle

"""Sounds that come together are computed together, in one thread, by the same steps as those of a folder.

What arrives while the model computes waits for it; what arrives at a model that is free waits 20 ms for others. A batch
is made of sounds with the same model and plan, up to a number of seconds, the oldest first.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from torchbeats.audio import Floats
from torchbeats.errors import RequestError
from torchbeats.inference import Group, Position, groups
from torchbeats.patches import SAMPLE_RATE
from torchbeats.plans import Plan
from torchbeats.protocol import Model
from torchbeats.serve.metrics import Metrics

WAIT_SECONDS = 0.02
SPEED_SECONDS = 10.0  # of computing, over which the speed is averaged


@dataclass(eq=False)
class _Job:
    """A sound that waits."""

    name: str
    samples: Floats
    model: Model
    plan: Plan
    future: Future[Group] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    def goes_with(self, other: _Job) -> bool:
        """Whether both can share a batch."""
        return self.model is other.model and self.plan == other.plan


class _Speed(NamedTuple):
    """Sound computed, and the time that it took."""

    sound: float = 0.0
    time: float = 0.0


class Batcher:
    """The one thread that computes.

    Args:
        metrics: which count what it does.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._computing, self._speed = 0.0, _Speed()
        self._sound = metrics.counter("torchbeats_audio_seconds_total", "Seconds of sound that were computed.")
        self._batches = metrics.counter("torchbeats_batches_total", "Batches of sounds that were computed together.")
        self._sounds = metrics.counter("torchbeats_sounds_total", "Sounds that were computed.")
        metrics.gauge("torchbeats_waiting_audio_seconds", "Decoded sound that waits for the model.", self.backlog)
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    def submit(self, name: str, samples: Floats, model: Model, plan: Plan) -> Future[Group]:
        """Compute a plan's rows of a sound.

        Args:
            name: of the sound, for messages.
            samples: ``(samples,)`` at 16 kHz.
            model: that computes.
            plan: what is wanted, and how the sound is cut.

        Returns:
            A group with the rows of this sound alone; cancelled, it is not computed if that has not begun.
        """
        job = _Job(name, samples, model, plan)
        with self._changed:
            if self._closing:
                raise RequestError(503, "stopping", "The server is stopping; try another, or again later.")
            self._waiting.append(job)
            self._changed.notify_all()
        return job.future

    def backlog(self) -> float:
        """Seconds of sound that wait, or are being computed."""
        with self._changed:
            return self._computing + sum(job.seconds for job in self._waiting)

    def speed(self) -> float:
        """Seconds of sound that are computed in a second, of late; 0 where nothing has been computed."""
        sound, taken = self._speed
        return sound / taken if taken else 0.0

    def close(self) -> None:
        """Compute what waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while jobs := self._next():
            began = time.monotonic()
            self._compute(jobs)
            seconds, taken = sum(job.seconds for job in jobs), time.monotonic() - began
            share = min(1.0, SPEED_SECONDS / (self._speed.time + taken))
            self._speed = _Speed((self._speed.sound + seconds) * share, (self._speed.time + taken) * share)
            self._sound(seconds)
            self._batches(1)
            self._sounds(len(jobs))

    def _next(self) -> list[_Job]:
        """The next jobs that are computed together; none at the end."""
        with self._changed:
            self._computing = 0.0
            while True:
                self._waiting = deque(job for job in self._waiting if not job.future.cancelled())
                if not self._waiting:
                    if self._closing:
                        return []
                    self._changed.wait()
                    continue
                jobs = self._together()
                seconds, budget = sum(job.seconds for job in jobs), jobs[0].plan.batch_seconds
                left = jobs[0].arrived + WAIT_SECONDS - time.monotonic()
                if left > 0 and seconds < budget and not self._closing:
                    self._changed.wait(left)
                    continue
                taken = set(map(id, jobs))
                self._waiting = deque(job for job in self._waiting if id(job) not in taken)
                if jobs := [job for job in jobs if job.future.set_running_or_notify_cancel()]:
                    self._computing = sum(job.seconds for job in jobs)
                    return jobs

    def _together(self) -> list[_Job]:
        """The one that has waited longest, and those that go with it as far as there is room."""
        first, *others = self._waiting
        jobs, seconds = [first], first.seconds
        for job in others:
            if seconds >= first.plan.batch_seconds:
                break
            if job.goes_with(first) and seconds + job.seconds <= first.plan.batch_seconds:
                jobs.append(job)
                seconds += job.seconds
        return jobs

    def _compute(self, jobs: list[_Job]) -> None:
        """Compute some jobs together; where that fails, each by itself, so that one does not cost the others."""
        try:
            results = _rows_of(jobs)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._compute([job])
            else:
                jobs[0].future.set_exception(error)
            return
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Group):
                job.future.set_result(result)
            else:
                job.future.set_exception(result)


def _rows_of(jobs: list[_Job]) -> list[Group | RequestError]:
    """For each job its rows, or why it has none."""
    names = [str(number) for number in range(len(jobs))]
    rows: list[list[Group]] = [[] for _ in jobs]
    reasons: dict[int, str] = {}
    sounds = ((name, job.samples) for name, job in zip(names, jobs, strict=True))
    for group in groups(sounds, jobs[0].model, jobs[0].plan, jobs=1):
        reasons |= {int(name): reason for name, reason in group.failures}
        owners = np.array([int(path) for path in group.paths], np.intp)
        for owner in np.unique(owners):
            own = owners == owner
            rows[owner].append(Group([], group.times[own], group.values[own], group.begins[own]))
    return [
        RequestError(422, "no_numbers", f"{job.name}: {reasons[number]}.") if number in reasons else _joined(own, job)
        for number, (job, own) in enumerate(zip(jobs, rows, strict=True))
    ]


def _joined(parts: list[Group], job: _Job) -> Group | RequestError:
    """One group of a sound's rows."""
    if not parts:
        return RequestError(422, "no_rows", f"{job.name}: it holds no sound.")
    times, values, begins = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("times", "values", "begins")
    )
    return Group([job.name] * len(times), times, values, begins, position=Position(1), inputs=1)

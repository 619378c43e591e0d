"""Sounds from anywhere are decoded in processes of their own, so that a decoder's crash costs one sound.

Such a process has bounded memory and time, can open no file and no connection once it has begun, and ends when the
server does. Another takes its place after a crash; it is forked from a process that has imported everything.
"""

from __future__ import annotations

import atexit
import io
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from torchbeats import audio
from torchbeats.audio import AudioWarning, Floats
from torchbeats.errors import AudioError, RequestError
from torchbeats.patches import SAMPLE_RATE
from torchbeats.serve.limits import MEGABYTE, Limits

BLOCK_SECONDS = 5.0
START_SECONDS = 60.0  # for a new process, on a machine that has much else to do
GRACE_SECONDS = 2.0  # behind the time limit that a process keeps itself

# Samples and a warning; or the reason why there are none; or that there are too many.
_Answer: TypeAlias = "tuple[str, Any, str | None]"


class Decoded(NamedTuple):
    """A sound that was sent.

    Attributes:
        samples: ``(samples,)`` float32, 16 kHz mono.
        warning: what is wrong with the rest of it; None where it was read in whole.
    """

    samples: Floats
    warning: str | None

    @property
    def seconds(self) -> float:
        """Of sound."""
        return len(self.samples) / SAMPLE_RATE


class Decoders:
    """Some processes that decode.

    Args:
        limits: of a server.
        on_crash: called when a process has died over a sound.
    """

    def __init__(self, limits: Limits, on_crash: Callable[[], None] = lambda: None) -> None:
        self._limits, self._on_crash = limits, on_crash
        self._context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
        if os.name == "posix":
            self._context.set_forkserver_preload([__name__])
        self._threads = ThreadPoolExecutor(limits.decoders, thread_name_prefix="decoder")
        self._own = threading.local()  # each thread talks to a process of its own
        self._all: list[_Process] = []
        self._lock, self._closed = threading.Lock(), False
        atexit.register(self.close)  # Python would ask the processes to end, and wait: they end for nobody but us

    def submit(self, name: str, content: bytes, most_seconds: float) -> Future[Decoded]:
        """Decode a file's content.

        Args:
            name: of the sound, for messages.
            content: of the file.
            most_seconds: of sound that it may have.

        Returns:
            The sound, or a `RequestError`.
        """
        return self._threads.submit(self._decode, name, content, most_seconds)

    def start(self) -> None:
        """Begin to start the processes, without waiting for them."""
        for _ in range(self._limits.decoders):
            self._threads.submit(self._process)

    def processes(self) -> list[int]:
        """Identifiers of the processes that run."""
        with self._lock:
            return [process.pid for process in self._all]

    def close(self) -> None:
        """End all processes."""
        atexit.unregister(self.close)
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            for process in self._all:
                process.end()
            self._all.clear()

    def _process(self) -> _Process:
        process: _Process | None = getattr(self._own, "process", None)
        if process is not None and not process.is_alive():  # killed from outside: no sound's fault
            self._drop(process)
            process = None
        if process is None:
            process = _Process(self._context, self._limits)
            with self._lock:
                if not self._closed:
                    self._all.append(process)
            if self._closed:  # while it was being started
                process.end()
            self._own.process = process
        return process

    def _drop(self, process: _Process) -> None:
        """End one; the thread's next sound gets another."""
        self._own.process = None
        with self._lock:
            if process in self._all:
                self._all.remove(process)
        process.end()

    def _decode(self, name: str, content: bytes, most_seconds: float) -> Decoded:
        process = self._process()
        answer = process.ask(content, most_seconds)
        if answer is None:
            self._drop(process)
            self._on_crash()
            bounds = f"{self._limits.decoder_seconds:g} s and {self._limits.decoder_mb:g} MB"
            raise RequestError(
                422, "decoder_died", f"{name}: the decoder died over it; decoding a sound may take {bounds}."
            )
        kind, value, warning = answer
        if kind == "long":
            raise RequestError(
                413,
                "too_much_audio",
                f"{name}: it has more sound than the {self._limits.audio_seconds:g} s that a request may have in all; "
                "cut it into pieces.",
            )
        if kind == "reason":
            raise RequestError(422, "unreadable_audio", f"{name}: {value}.")
        return Decoded(np.frombuffer(value, np.float32), warning)


class _Process:
    """One process, and the pipe to it."""

    def __init__(self, context: Any, limits: Limits) -> None:
        self._seconds = limits.decoder_seconds
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, round(limits.decoder_mb * MEGABYTE), limits.decoder_seconds)
        self._process = context.Process(target=_serve, args=arguments, daemon=True, name="decoder")
        self._process.start()
        theirs.close()
        self._ready = False
        self.pid: int = self._process.pid

    def ask(self, content: bytes, most_seconds: float) -> _Answer | None:
        """What becomes of a content; None where the process has died, or is to."""
        try:
            if not self._ready:
                if not self._pipe.poll(START_SECONDS):
                    return None
                self._pipe.recv()
                self._ready = True
            self._pipe.send((content, most_seconds))
            return self._pipe.recv() if self._pipe.poll(self._seconds + GRACE_SECONDS) else None
        except (EOFError, OSError):
            return None

    def is_alive(self) -> bool:
        """Whether it runs."""
        return not self._pipe.closed and bool(self._process.is_alive())

    def end(self) -> None:
        """At once."""
        self._process.kill()
        self._process.join(GRACE_SECONDS)
        self._pipe.close()


# --- in the process ---------------------------------------------------------------------------------------------------


def _serve(pipe: Connection, memory: int, seconds: float) -> None:
    """Decode what comes through a pipe until its other end is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they go to the whole group; the server answers what is under way
        signal.signal(number, signal.SIG_IGN)
    _warm_up()
    _confine(memory)
    pipe.send("ready")
    while True:
        try:
            content, most_seconds = pipe.recv()
        except (EOFError, OSError):
            return
        with suppress(AttributeError):  # no such clock on Windows; the server's own ends the process there
            signal.setitimer(signal.ITIMER_REAL, seconds)  # then the signal ends the process
        answer = _answer(content, most_seconds)
        with suppress(AttributeError):
            signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            pipe.send(answer)
        except OSError:
            return


def _answer(content: bytes, most_seconds: float) -> _Answer:
    file, blocks, most, held = io.BytesIO(content), list[Floats](), round(most_seconds * SAMPLE_RATE), 0
    file.name = "upload"
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always")
        try:
            for block in audio.stream(file, BLOCK_SECONDS):
                held += len(block)
                if held > most:
                    return "long", None, None
                blocks.append(block)
            samples = np.concatenate(blocks).tobytes()
        except AudioError as error:
            return "reason", error.reason, None
        except MemoryError:
            return "reason", "decoding it takes more memory than is allowed", None
        except Exception as error:  # a decoder's surprise
            return "reason", f"decoding failed with {type(error).__name__}", None
    faults = [
        str(one.message).removeprefix(f"{file.name}: ") for one in noticed if issubclass(one.category, AudioWarning)
    ]
    return "samples", samples, faults[0] if faults else None


def _warm_up() -> None:
    """Decode something with each decoder: what they load they have then."""
    import soundfile

    for form, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16")):
        file = io.BytesIO()
        soundfile.write(file, np.zeros(800, np.float32), 8000, subtype, format=form)
        _answer(file.getvalue(), 1.0)


def _confine(memory: int) -> None:
    """Bound this process's memory; let it open no file, start no process and leave no core."""
    try:
        import resource
    except ImportError:  # Windows
        return
    bounds = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 0)]
    with suppress(OSError, ValueError), open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
        bounds.append((resource.RLIMIT_AS, taken + memory))
    for kind, bound in bounds:
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (bound, bound))

"""Decoding in processes of their own: crashes, memory and time."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from helpers import noise, tone
from live_server import SOUNDS, wait_for, wav
from torchbeats import audio
from torchbeats.errors import RequestError
from torchbeats.serve.decoding import Decoders
from torchbeats.serve.limits import Limits

CLIP = wav(noise(2.0))


@pytest.fixture
def decoders():
    """One process; what died is counted."""
    made = []

    def make(**limits):
        died = []
        decoders = Decoders(Limits(decoders=1, **limits), lambda: died.append(1))
        decoders.died = died
        made.append(decoders)
        return decoders

    yield make
    for one in made:
        one.close()


def decode(decoders, content, most=600.0):
    return decoders.submit("clip", content, most).result(120)


def test_samples_are_those_of_the_file(decoders):
    one = decoders()
    for path in SOUNDS.iterdir():
        if path.suffix != ".md":
            decoded = decode(one, path.read_bytes())
            np.testing.assert_array_equal(decoded.samples, audio.load(path))
            assert decoded.warning is None


def test_a_process_that_dies_costs_one_sound(decoders):
    one = decoders(decoder_seconds=60.0)
    decode(one, CLIP)
    (process,) = one.processes()
    os.kill(process, signal.SIGSTOP)  # so that it is surely in the midst of it
    future = one.submit("clip 7", CLIP, 600.0)
    time.sleep(0.2)
    os.kill(process, signal.SIGKILL)
    with pytest.raises(
        RequestError, match="clip 7: the decoder died over it; decoding a sound may take 60 s and 1024 MB"
    ):
        future.result(60)
    assert one.died == [1]
    assert len(decode(one, CLIP).samples) == 32_000
    os.kill(one.processes()[0], signal.SIGKILL)  # while nothing is decoded: no sound's fault
    assert wait_for(lambda: not Path(f"/proc/{process}").exists())
    time.sleep(0.5)
    assert len(decode(one, CLIP).samples) == 32_000
    assert one.died == [1]


def test_time_is_bounded(decoders):
    """A process ends itself; where it cannot even do that, it is ended."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros((96_000 * 100, 8), np.int16), 96_000, format="FLAC")
    short = decoders(decoder_seconds=0.05)
    with pytest.raises(RequestError, match=r"the decoder died over it; decoding a sound may take 0\.05 s"):
        decode(short, file.getvalue())
    assert short.died == [1]
    one = decoders(decoder_seconds=3.0)
    decode(one, CLIP)
    os.kill(one.processes()[0], signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(RequestError, match="the decoder died over it"):
        decode(one, CLIP)
    assert time.monotonic() - began < 20
    assert len(decode(one, CLIP).samples) == 32_000


@pytest.mark.skipif(not Path("/proc").exists(), reason="the memory of a process is bounded on Linux")
def test_memory_is_bounded(decoders):
    one = decoders(decoder_mb=24.0)
    assert len(decode(one, CLIP).samples) == 32_000
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16_000 * 599, np.float32), 16_000, format="FLAC")  # unfolds to 38 MB
    with pytest.raises(RequestError) as caught:
        decode(one, file.getvalue())
    assert caught.value.status == 422
    assert len(decode(one, CLIP).samples) == 32_000


def test_seconds_are_bounded(decoders):
    one = decoders()
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8000 * 3600, np.float32), 8000, format="FLAC")
    began = time.monotonic()
    with pytest.raises(RequestError, match="more sound than the 600 s") as caught:
        decode(one, file.getvalue(), 5.0)
    assert caught.value.status == 413
    assert time.monotonic() - began < 10  # the rest was not decoded


@pytest.mark.skipif(not Path("/proc").exists(), reason="Linux tells what a process has open")
def test_such_a_process_can_open_nothing(decoders):
    one = decoders()
    decode(one, CLIP)
    (process,) = one.processes()
    limits = Path(f"/proc/{process}/limits").read_text()
    lines = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
    assert lines["Max open files"] == ["0", "0"]
    assert lines["Max file size"] == ["0", "0"]
    assert lines["Max address space"][0].isdigit()


def test_processes_end_with_the_server(decoders):
    one = decoders()
    decode(one, wav(tone(0.5)))
    (process,) = one.processes()
    waiting = threading.Thread(target=one.close)
    waiting.start()
    waiting.join(20)
    assert wait_for(lambda: not Path(f"/proc/{process}").exists())


def test_an_end_while_processes_are_being_started():
    """Which takes seconds; no process is left, and Python ends."""
    code = """
from torchbeats.serve.decoding import Decoders
from torchbeats.serve.limits import Limits
decoders = Decoders(Limits(decoders=2))
decoders.start()
decoders.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")

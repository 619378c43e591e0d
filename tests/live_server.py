"""A server in a process of its own, and sounds as they are sent to it."""

import base64
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import soundfile

SOUNDS = Path(__file__).parents[1] / "examples" / "audio"
START_SECONDS = 120  # on a machine that has much else to do


def wav(samples, rate=16_000):
    """The content of a WAV file with these very numbers."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, "FLOAT", format="WAV")
    return file.getvalue()


def url(content, kind="audio/wav"):
    """A file's content as a URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def wait_for(condition, seconds=20.0):
    """Whether something becomes true before long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def group_is_alive(group):
    """Whether a process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


class Running:
    """A server; its address, and all that it has said."""

    def __init__(self, *arguments, env=None):
        settings = {**os.environ, "TORCHBEATS_TOKEN": "", **(env or {})}
        if not settings["TORCHBEATS_TOKEN"]:
            del settings["TORCHBEATS_TOKEN"]
        command = [sys.executable, "-m", "torchbeats", "serve", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=settings, start_new_session=True
        )
        self.lines, self._told = [], threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._told.wait(START_SECONDS), self.said
        assert self.process.poll() is None or self.address, self.said

    address = None

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.match(r"torchbeats answers at (\S+)", line):
                self.address = match[1]
                self._told.set()
        self._told.set()

    @property
    def said(self):
        return "".join(self.lines)

    @property
    def port(self):
        return int(self.address.rpartition(":")[2])

    def memory(self):
        """Bytes of the server's process that are in memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self, number=signal.SIGTERM, seconds=30):
        """Its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(5)
        return status

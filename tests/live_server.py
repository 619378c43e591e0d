"""A server in a process of its own, and sounds as they are sent to it."""

import base64
import io
import os
import re
import signal
import sys
import tempfile
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

import soundfile

from helpers import forking
from torchbeats import cli

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


def become_server(arguments, settings, pipe):
    """In a new process: be the command, in a session of its own, which writes to a named pipe."""
    os.setsid()
    forkserver._forkserver.__init__()  # decoders are started by this process, not by that which started it
    os.environ.clear()
    os.environ.update(settings)
    for number in (1, 2):
        os.dup2(os.open(pipe, os.O_WRONLY), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = ["torchbeats", *arguments]
    cli.main()


class Running:
    """A server; its address, and all that it has said.

    Its process is forked from one that has imported everything, which takes a tenth of the time of starting anew.
    """

    def __init__(self, *arguments, env=None):
        settings = {**os.environ, "TORCHBEATS_TOKEN": "", **(env or {})}
        if not settings["TORCHBEATS_TOKEN"]:
            del settings["TORCHBEATS_TOKEN"]
        self._folder = tempfile.TemporaryDirectory()
        pipe = Path(self._folder.name, "said")
        os.mkfifo(pipe)
        command = ["serve", "--port", "0", *map(str, arguments)]
        self.process = forking().Process(target=become_server, args=(command, settings, str(pipe)))
        self.process.start()
        self._pipe = pipe
        self.lines, self._told = [], threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._told.wait(START_SECONDS), self.said
        assert self.process.is_alive() or self.address, self.said

    address = None

    def _read(self):
        with self._pipe.open() as said:
            for line in said:
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
        if self.process.is_alive():
            os.kill(self.process.pid, number)
        self.process.join(seconds)
        if self.process.is_alive():
            self.kill()
            raise TimeoutError
        self._reader.join(5)
        return self.process.exitcode

    def kill(self):
        """End it at once, whatever it does."""
        self.process.kill()
        self.process.join()

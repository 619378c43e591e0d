"""Settings of all tests, and fixtures that several test files take: the command in this process, and in another.

One thread: tensors here are small, and handing them to a second thread costs more than it saves. Commands that tests
start inherit that, and leave the other cores to other tests.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
import sys
import warnings

import pytest
import torch

from helpers import become_command, forking, plain
from torchbeats import cli

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it runs in the background so, and processes that tests start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def plain_sigterm():
    """The system's own answer to SIGTERM; Ray leaves another in the processes that it was used in."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture
def recwarn(recwarn):
    """Without what Python says of files and sockets that other tests left to its garbage collection."""
    warnings.simplefilter("ignore", ResourceWarning)
    return recwarn


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command here: its exit status, and what it wrote to standard output and error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["torchbeats", *map(str, arguments)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return caught.value.code or 0, said.out, plain(said.err)

    return call


@pytest.fixture(scope="module")
def fork():
    """Begin the command in a process of its own; see `helpers.become_command` and `helpers.forking`."""

    def begin(arguments, log):
        process = forking().Process(target=become_command, args=(arguments, str(log)))
        process.start()
        return process

    return begin

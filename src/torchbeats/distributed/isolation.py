"""Blocks are computed in a child process, so that a file at which a decoder crashes costs a row, not the job.

A child that dies is started again. The inputs of its block are then tried one by one, and one at which it has died
`DEATHS` times is an input that cannot be read.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from typing import Any

from torchbeats.distributed.computing import Block, Job
from torchbeats.errors import StoreError
from torchbeats.tables.parts import Summary

DEATHS = 2  # at an input alone, beside the one in company that raised the suspicion
UNEXPLAINED = 3  # deaths in a block each of whose inputs is harmless alone


class Died(Exception):
    """The child has died.

    Attributes:
        at: index of the input that it was trying.
        reason: why, as far as the system tells.
    """

    def __init__(self, at: int | None, reason: str) -> None:
        super().__init__(reason)
        self.at, self.reason = at, reason


class Isolated:
    """Computes blocks in a process that may die.

    Args:
        job: what is to be computed.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._process: subprocess.Popen[bytes] | None = None

    def compute(self, block: Block) -> Summary:
        """Compute a block, and write its part.

        Raises:
            StoreError: the process dies over and over, though no input is to blame.
            TorchbeatsError: what `Computing` raises.
        """
        unusable: dict[int, str] = {}
        unexplained, reason = 0, ""
        while unexplained < UNEXPLAINED:
            try:
                summary: Summary = self._ask(block, False, unusable)
                return summary
            except Died as death:
                reason = death.reason
                unexplained += not self._find_unusable(block, unusable)
        raise StoreError(
            f"The process that computes {block.name} {reason}, {UNEXPLAINED} times, though none of its files does that "
            "to it alone. Its memory may be short: try a smaller --batch-seconds, or fewer --actors."
        )

    def _find_unusable(self, block: Block, unusable: dict[int, str]) -> bool:
        """Add the inputs that a child does not outlive; whether there is any."""
        before, deaths = len(unusable), dict[int, int]()
        while True:
            try:
                self._ask(block, True, unusable)
                return len(unusable) > before
            except Died as death:
                if death.at is None:  # as it was started: no input is to blame
                    return len(unusable) > before
                deaths[death.at] = deaths.get(death.at, 0) + 1
                if deaths[death.at] == DEATHS:
                    unusable[death.at] = f"the process that read it {death.reason}, {DEATHS + 1} times"

    def _ask(self, block: Block, one_by_one: bool, unusable: dict[int, str]) -> Any:
        at = None
        try:
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            _send(process, (block, one_by_one, unusable))
            while True:
                kind, value = pickle.load(process.stdout)  # of our own child
                if kind == "done":
                    return value
                if kind == "error":
                    raise value
                at = value
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            raise Died(at, self._end()) from error

    def _started(self) -> subprocess.Popen[bytes]:
        """The child, with its model loaded."""
        if self._process is None:
            folder = self.job.folder if os.path.isdir(self.job.folder) else None
            self._process = subprocess.Popen(
                [sys.executable, "-m", "torchbeats.distributed.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
            _send(self._process, self.job)
            assert self._process.stdout is not None
            kind, value = pickle.load(self._process.stdout)
            if kind == "error":
                self._end()
                raise value
        return self._process

    def _end(self) -> str:
        """Wait for a child that dies; how it did."""
        process, self._process = self._process, None
        assert process is not None
        status = process.wait()
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._end()


def _send(process: subprocess.Popen[bytes], value: object) -> None:
    assert process.stdin is not None
    pickle.dump(value, process.stdin)
    process.stdin.flush()

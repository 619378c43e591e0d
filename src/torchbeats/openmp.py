"""How the threads that compute wait for one another in the command ``torchbeats``; decided before PyTorch is imported.

GNU OpenMP, which PyTorch computes with on Linux, lets threads that are done turn in a loop for milliseconds until the
last is. Where another program wants the same core, the one that is waited for waits for a turn itself, time and again:
a single busy process beside it made ``torchbeats embed`` six times slower, and training five times. A shorter loop
before they sleep cost nothing that could be measured where nothing else ran. A program that imports the package is left
alone, and so is whoever has set one of the variables; ``benchmarks/busy_machine.py`` has figures.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from torchbeats.interrupts import is_the_command

SPINS = 10_000  # turns of the loop; 300,000 where nobody says


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Have OpenMP's threads sleep soon, unless somebody has said how they are to wait."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(environment):
        environment["GOMP_SPINCOUNT"] = str(SPINS)


if is_the_command():
    wait_briefly(os.environ)

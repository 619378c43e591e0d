"""Memory that a training's steps give back stays with the process, unless somebody has told glibc otherwise."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="only glibc is told what to do"
)

STEPS = """
import resource, sys
import torch
from torchbeats.training.memory import keep_freed_memory
kept = sys.argv[1] == "kept" and keep_freed_memory()
def step():
    return [torch.ones(1_000_000) for _ in range(20)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how, **environment):
    """Whether freed memory is kept, and pages that the system had to clear for ten steps of 80 MB."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    plain.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", STEPS, how], env=plain | environment, capture_output=True, text=True, check=True
    )
    kept, count = done.stdout.split()
    return kept == "True", int(count)


def test_steps_find_the_memory_of_those_before():
    kept, count = faults("kept")
    assert kept
    assert count < 2_000
    assert faults("left alone")[1] > 50_000  # of 195,000 pages


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.perturb=0")]
)
def test_who_has_told_glibc_is_left_alone(name, value):
    assert not faults("kept", **{name: value})[0]

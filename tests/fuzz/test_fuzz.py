"""Damaged files of every kind, for five seconds each; `make fuzz` takes twelve minutes.

A failure prints the edits, shrunk to the fewest, and leaves the file that they make in build/fuzz/.
"""

import os
import random
import shutil
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzz.mutations import damaged, edits
from fuzz.targets import TARGETS
from torchbeats.errors import TorchbeatsError

SECONDS = float(os.environ.get("FUZZ_SECONDS", 5))
SLOW = 20.0  # seconds of the processor for one small file, however busy the machine is
KEPT = Path(__file__).parents[2] / "build" / "fuzz"
ROUND = 50  # examples between two looks at the clock


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files(name, tmp_path):
    target = TARGETS[name]
    (tmp_path / "seeds").mkdir()
    seeds = {path.name: path.read_bytes() for path in target.seeds(tmp_path / "seeds")}
    count, refused, until = 0, 0, time.monotonic() + SECONDS

    def check(file_name, changes):
        nonlocal count, refused
        path = tmp_path / file_name
        path.write_bytes(damaged(seeds[file_name], changes))
        begun = time.process_time()
        count += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target.check(path)
        except TorchbeatsError:
            refused += 1
        except BaseException:
            KEPT.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, KEPT / f"{name}-{file_name}")
            raise
        assert time.process_time() - begun < SLOW, "one small file takes too long"

    for file in seeds:
        check(file, [])
    assert refused == 0  # the seeds are good
    first = random.randrange(2**32) if "FUZZ_SECONDS" in os.environ else 0  # the smoke test is always the same
    while time.monotonic() < until:
        some = settings(
            max_examples=ROUND,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(given(st.sampled_from(sorted(seeds)), edits)(check))
        seed(first)(some)()
        first += 1
    print(f"{name}: {count:,} files, of which {refused:,} were refused")
    assert count > len(seeds)

"""The programs whose tables are recognised."""

from __future__ import annotations

from collections.abc import Sequence

from torchbeats.data.annotations.birdnet import BIRDNET
from torchbeats.data.annotations.dialects import Dialect
from torchbeats.data.annotations.hoplite import HOPLITE
from torchbeats.data.annotations.kaleidoscope import KALEIDOSCOPE
from torchbeats.data.annotations.raven import RAVEN
from torchbeats.data.columns import key

DIALECTS = (RAVEN, KALEIDOSCOPE, BIRDNET, HOPLITE)


def dialect_of(names: Sequence[str]) -> Dialect | None:
    """The program that writes tables with these columns, if it is a known one."""
    keys = {key(name) for name in names}
    return next((dialect for dialect in DIALECTS if dialect.recognises(keys)), None)

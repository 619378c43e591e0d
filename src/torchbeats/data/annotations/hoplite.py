"""Perch Hoplite's annotations: each row says that a label is right, wrong or uncertain; the right ones count.

``hoplite_annotations.csv`` has ``recording,start_offset_s,end_offset_s,label,label_type``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchbeats.data.annotations.dialects import Dialect, known_labels, known_paths, texts

POSITIVE = "positive"


def _left_out(values: Mapping[str, Any]) -> str | None:
    (kind,) = texts(values, "label_type") or [POSITIVE]
    return None if kind.lower() == POSITIVE else "whose label_type is not positive"


HOPLITE = Dialect(
    "Hoplite",
    lambda keys: {"recording", "start_offset_s", "end_offset_s", "label_type"} <= keys,
    lambda names: known_labels(names, ("label",)),
    known_paths,
    lambda values: texts(values, "recording"),
    left_out=_left_out,
)

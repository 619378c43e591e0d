"""Is this the same fine-tuning as before? Which files, unchanged since, and which of them are held out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchbeats.data.example import Example
from torchbeats.data.fingerprint import fingerprint


@dataclass(frozen=True)
class _Assigned:
    """An example, and which parts of the work it belongs to."""

    example: Example
    parts: tuple[str, ...]

    @property
    def path(self) -> str:
        return self.example.path

    @property
    def content(self) -> Any:
        return self.example.content


def work_of(examples: Sequence[Example], parts: Mapping[str, Sequence[int]]) -> str:
    """Number and hash of examples; the hash is another if a file or its part in the work is.

    Args:
        examples: all that are heard, for training or validation.
        parts: name of each part ("held out", say), and the examples that it has.
    """
    names = defaultdict[int, list[str]](list)
    for name, rows in parts.items():
        for row in rows:
            names[row].append(name)
    return fingerprint(_Assigned(example, tuple(names[row])) for row, example in enumerate(examples))

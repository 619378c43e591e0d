"""Where a model says that it does not know: the one place that decides what is called unknown.

A model's file may say how familiar a sound must be (`Abstention`). Rows of probabilities are then judged by it: where
one is not familiar enough, "unknown" stands in place of all classes. What was computed is not touched: a model gives,
and an evaluation and an exported graph have, the classes' own probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from torchbeats.audio import Floats
from torchbeats.errors import ModelError
from torchbeats.labels import class_names
from torchbeats.protocol import PROBABILITIES, Model

UNKNOWN = "unknown"  # a label like any other where it is written
SETTING = "abstention"  # of a model's configuration
FALSE_ALARMS = 0.05  # share of the sounds of known classes that a threshold lets be called unknown
SURE = 0.99  # what one class has this much of is never unknown, however sure a model is of all that was held out


class Scored(NamedTuple):
    """Probabilities of a stretch of a sound.

    Attributes:
        path: of the file; ``[i]`` for the i-th input where that was an array.
        start: in seconds.
        end: in seconds.
        probabilities: of all classes, ``(classes,)``.
    """

    path: str
    start: float
    end: float
    probabilities: Floats


@dataclass(frozen=True)
class Abstention:
    """When a sound is unknown to a model of one class a sound.

    A sound is as familiar as the likeliest of the known classes is probable. A class that was trained with sounds of no
    class at all is not a known one: what it takes of the probability, it takes from them.

    Args:
        threshold: the least familiarity of a known sound.
        other: the class of sounds of no class, if the model has one.
    """

    threshold: float
    other: str | None = None

    @classmethod
    def of(cls, model: Model) -> Abstention | None:
        """What a model's file says; None where it says nothing.

        Raises:
            ModelError: what it says makes no sense.
        """
        stored = getattr(model.cfg, SETTING, None)
        if stored is None:
            return None
        problem = f"The model's {SETTING} setting needs a threshold from 0 to 1, and may name a class as other"
        if not isinstance(stored, Mapping):
            raise ModelError(f"{problem}; it is {stored!r}.")
        threshold, other = stored.get("threshold"), stored.get("other")
        if (
            not isinstance(threshold, (int, float))
            or isinstance(threshold, bool)
            or not 0 <= threshold <= 1
            or not (other is None or isinstance(other, str))
        ):
            raise ModelError(f"{problem}; it is {dict(stored)!r}.")
        if other is not None and other not in (model.labels or ()):
            raise ModelError(f"The model's {SETTING} setting names the class {other!r}, which the model does not have.")
        if other is not None and {*(model.labels or ())} == {other}:
            raise ModelError(f"The model's {SETTING} setting leaves no known class: {other!r} is the only one.")
        return cls(float(threshold), other)

    def familiarity(self, probabilities: Floats, names: list[str]) -> Floats:
        """Of rows ``(…, classes)``: ``(…)``, from 0 to 1."""
        known = [index for index, name in enumerate(names) if name != self.other]
        result: Floats = probabilities[..., known].max(-1)
        return result


def setting(
    probabilities: Floats, names: list[str], other: str | None = None, false_alarms: float = FALSE_ALARMS
) -> dict[str, Any]:
    """What a model's file is to say, from sounds that were held out.

    Args:
        probabilities: ``(N, classes)`` for held-out sounds of known classes.
        names: of the classes.
        other: the class of sounds of no class, if there is one.
        false_alarms: share of these sounds that may be called unknown.
    """
    familiar = np.sort(Abstention(0.0, other).familiarity(probabilities, names))
    lowest = min(float(familiar[math.floor(false_alarms * len(familiar))]), SURE)
    threshold = math.floor(1e6 * lowest) / 1e6
    below = float((familiar < threshold).mean())
    return {
        "threshold": threshold,
        "other": other,
        "false_alarms": round(below, 6),
        "sounds": len(familiar),
    }


class Naming:
    """What a model's rows are called: its classes and, where its file says when, "unknown".

    Args:
        model: with labels.
        unknown: False to name the likeliest classes of every sound, familiar or not.

    Attributes:
        classes: names of the model's classes.
        names: of the columns of judged rows.
    """

    def __init__(self, model: Model, unknown: bool = True) -> None:
        self.classes = class_names(model.label_dict, model.outputs[PROBABILITIES].shape[0])
        abstention = Abstention.of(model) if unknown else None
        # A model that has learnt what it calls unknown says it by itself.
        self._abstention = None if UNKNOWN in self.classes else abstention
        self.names = self.classes if self._abstention is None else [*self.classes, UNKNOWN]

    def judged(self, rows: Iterable[Scored]) -> Iterator[Scored]:
        """Rows with a column for "unknown" behind the classes'.

        It has 0 where a row is familiar. Elsewhere all classes have 0, and it has the probability that the likeliest of
        the known ones would have been wrong. The class of sounds of no class has 0 in both.
        """
        if self._abstention is None:
            yield from rows
            return
        for row in rows:
            yield row._replace(probabilities=self._judge(self._abstention, row.probabilities))

    def _judge(self, abstention: Abstention, probabilities: Floats) -> Floats:
        familiarity = float(abstention.familiarity(probabilities, self.classes))
        result = np.zeros(len(self.names), np.float32)
        if familiarity < abstention.threshold:
            result[-1] = max(1 - familiarity, np.finfo(np.float32).tiny)
        else:
            result[:-1] = probabilities
            if abstention.other is not None:
                result[self.classes.index(abstention.other)] = 0
        return result

    def thresholds(self, threshold: float | Floats) -> float | Floats:
        """The smallest probability of each column's label, from one of all classes or one of each.

        What is unknown is so by the model's own threshold, and is named whatever its probability.
        """
        if self._abstention is None:
            return threshold
        smallest = np.finfo(np.float32).tiny  # a 0 says that the other side holds
        each = np.broadcast_to(np.asarray(threshold, np.float32), len(self.classes))
        return np.append(np.maximum(each, smallest), smallest).astype(np.float32)

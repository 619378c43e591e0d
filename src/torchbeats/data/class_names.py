"""Labels as people write them → the names of classes: one class for 1 and 01, and for names and codes of a model's."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from torchbeats.audio import AudioWarning
from torchbeats.data.cells import canonical_numbers, plain_number
from torchbeats.data.columns import is_missing


class ClassNames:
    """Turns labels as they are written into classes.

    Args:
        class_by_name: the classes of a model by every name that they may be written with; empty without a model.
        labels: all labels of all inputs.
    """

    def __init__(self, class_by_name: Mapping[str, str], labels: Iterable[str]) -> None:
        self.class_by_name = class_by_name
        written = {label for label in labels if label in class_by_name or not is_missing(label)}
        unknown = written - set(class_by_name)
        self.spellings = {} if class_by_name else canonical_numbers(written)
        self.all_numbers = all(plain_number(label) for label in written)
        plain = {label: number for label in unknown if (number := plain_number(label))}
        self.numbers = {label: class_by_name[number] for label, number in plain.items() if number in class_by_name}
        if self.spellings and self.all_numbers:
            self.numbers = plain

    def classes_of(self, labels: Iterable[str], from_cells: bool) -> tuple[str, ...]:
        """The classes of a sound, each once.

        Args:
            labels: of the sound.
            from_cells: see `LabelSource`.
        """
        classes = (
            self.class_by_name.get(label) or self.numbers.get(label, label)
            for label in labels
            if label in self.class_by_name or not (from_cells and is_missing(label))
        )
        return tuple(dict.fromkeys(classes))

    def warn_of_spellings(self) -> None:
        """Warn of numbers that are written in several ways."""
        if self.spellings:
            spellings = "; ".join(", ".join(labels) for labels in list(self.spellings.values())[:5])
            treatment = "one class each" if self.all_numbers else "different classes, as not all labels are numbers"
            warnings.warn(
                f"Numbers written in several ways are taken as {treatment}: {spellings}.", AudioWarning, stacklevel=3
            )

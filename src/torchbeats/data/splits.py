"""What the words for the parts of a data set mean: the one list of them."""

from __future__ import annotations

import re

TRAIN, VALIDATION, TEST = PURPOSES = ("train", "validation", "test")
_PURPOSES = (
    dict.fromkeys(("train", "training", "trn"), TRAIN)
    | dict.fromkeys(("validation", "validate", "valid", "val", "dev", "devel"), VALIDATION)
    | dict.fromkeys(("test", "testing", "tst", "eval", "evaluation", "heldout", "holdout"), TEST)
)


def purpose(name: str) -> str | None:
    """What a split is for: "train", "validation" or "test"; None if its name does not tell.

    Capitals, blanks, digits and punctuation do not matter: "TRAINING ", "dev-1" and "Hold-out" are understood.
    """
    return _PURPOSES.get(re.sub("[^a-z]", "", name.lower()))

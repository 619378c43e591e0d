"""The cells of a list → the labels that they hold."""

from __future__ import annotations

import ast
import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from torchbeats.data.columns import is_missing

SEPARATORS = ";|"  # between the labels of one sound, in a list that is text
LONGEST = 1000  # characters of a label

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_QUOTED_LIST = re.compile(rf"[\[({{]\s*(?:(?:{_QUOTED}|None|nan)(?:\s*,\s*|\s+|\s*(?=[\])}}])))*[\])}}]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)
_YES_OR_NO = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


def items(value: Any) -> list[str]:
    """The labels in a cell: text with separators, a list as JSON, Python or NumPy writes it, or a list already.

    Raises:
        ValueError: something else, or a label of unreasonable length; the message says what is expected.
    """
    if isinstance(value, str):
        value = _of_text(value.strip())
    values = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
    words = [_label(item) for item in values]
    return [word for word in words if word]


def _of_text(text: str) -> Sequence[Any]:
    content = text[1:-1]
    if text.startswith("[") and text.endswith("]"):
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            if isinstance(parsed, list):
                return parsed
    if _QUOTED_LIST.fullmatch(text):  # as Python and NumPy print lists; the latter without commas
        return [ast.literal_eval(quoted) for quoted in re.findall(_QUOTED, text)]
    if text.startswith("[") and text.endswith("]"):
        parts = content.split(",") if "," in content else content.split()
        return parts if "," in content or all(_NUMBER.fullmatch(part) for part in parts) else [content]
    for separator in SEPARATORS[1:]:
        text = text.replace(separator, SEPARATORS[0])
    return text.split(SEPARATORS[0])


def _label(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, (dict, list, tuple)):
        raise ValueError(f"a label must be a word or a number, not {str(value)[:60]}.")
    text = word(value)
    if text is not None and len(text) > LONGEST:
        raise ValueError(f"a label has {len(text):,} characters; a quotation mark may have no partner.")
    return text


def word(value: Any) -> str | None:
    """A cell as text; None where it is empty. 3.0, as a table with gaps has it, is 3."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return composed(str(value)).strip() or None


def composed(text: str) -> str:
    """The text with each letter as one code point, where there is one."""
    return unicodedata.normalize("NFC", text)


def yes_or_no(value: Any) -> int | None:
    """1 or 0 where a cell says so; None for anything else. An empty cell is no."""
    if is_missing(value):
        return 0
    return _YES_OR_NO.get(str(value).strip().lower())


def are_one_hot(cells: Sequence[Sequence[str]]) -> bool:
    """Whether lists of labels are rows of noughts and ones, a place for each class, rather than names of classes."""
    lengths = {len(cell) for cell in cells if cell}
    if len(lengths) != 1 or 1 in lengths or not all(label in _YES_OR_NO for cell in cells for label in cell):
        return False
    return any(list(cell) != ["0", "1"] for cell in cells if cell)


def canonical_numbers(labels: Iterable[str]) -> dict[str, list[str]]:
    """Numbers among labels that are written in more than one way: the plain way → the others, as they are written."""
    spellings: dict[str, set[str]] = defaultdict(set)
    for label in labels:
        if plain := plain_number(label):
            spellings[plain].add(label)
    return {plain: sorted(labels) for plain, labels in spellings.items() if len(labels) > 1}


def plain_number(label: str) -> str | None:
    """The plain way to write a number: 1 for 01 and 1.0; None if the label is no number."""
    if len(label) > 40 or not _NUMBER.fullmatch(label):
        return None
    number = Decimal(label)
    return str(int(number)) if number == number.to_integral_value() else str(number.normalize())

"""Which values a setting may have."""

import math
import typing
from dataclasses import fields, is_dataclass

import pytest

from torchbeats.errors import SettingsError
from torchbeats.training.configuring import PRESETS, finetune_settings, settings
from torchbeats.training.explaining import explanations
from torchbeats.training.limits import at_least, between, beyond_limits, limit_of, more_than, of_each, one_of
from torchbeats.training.settings import FinetuneSettings, Settings


def every_field(kind, prefix=""):
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from every_field(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hints[field.name], field


@pytest.mark.parametrize("kind", [Settings, FinetuneSettings])
def test_every_number_has_a_limit(kind):
    """Without one a value that means nothing is only met far inside a training."""
    numbers = [(name, field) for name, hint, field in every_field(kind) if hint in (int, float, list[float])]
    assert len(numbers) > 20
    assert [name for name, field in numbers if limit_of(field) is None] == []


@pytest.mark.parametrize("made", [settings(size) for size in PRESETS] + [finetune_settings()])
def test_what_is_there_by_default_is_allowed(made):
    assert list(beyond_limits(made)) == []


@pytest.mark.parametrize("make", [lambda a: settings("nano", assignments=a), lambda a: finetune_settings(None, a)])
def test_a_number_below_all_limits_is_refused_with_its_words(make):
    rows = [row for row in explanations(make([])) if row.kind in ("int", "float") and row.limit]
    assert len(rows) > 20
    for row in rows:
        with pytest.raises(SettingsError) as error:
            make([f"{row.name}=-7"])
        assert str(error.value) == f"The settings cannot be followed: {row.name} must be {row.limit}."


@pytest.mark.parametrize(
    ("limit", "words", "inside", "outside"),
    [
        (at_least(0), "at least 0", [0, 5], [-1e-9, math.nan]),
        (at_least(0, less_than=1), "at least 0 and less than 1", [0, 0.999], [1, -1, math.nan]),
        (at_least(0, or_be=-1), "at least 0, or -1", [0, 7, -1], [-2, -0.5]),
        (between(0, 0.5), "between 0 and 0.5", [0, 0.5], [0.51, -0.1, math.nan]),
        (between(1, 2**20), "between 1 and 1048576", [1, 2**20], [0, 2**20 + 1]),
        (between(0, 1000, or_be=-1), "between 0 and 1000, or -1", [-1, 0, 1000], [-2, 1001]),
        (more_than(0), "more than 0", [1e-9, 3], [0, -1, math.nan]),
        (more_than(0, at_most=1e6), "more than 0 and at most 1000000", [1, 1e6], [0, 1e6 + 1]),
        (one_of("a", "b", "c"), "a, b or c", ["a", "c"], ["", "d", "ab"]),
        (of_each(at_least(1)), "one or more numbers, each at least 1", [[1], [1, 2, 3]], [[], [1, 0]]),
        (of_each(at_least(1), 2), "2 numbers, each at least 1", [[1, 1]], [[], [1], [1, 0], [1, 1, 1]]),
    ],
)
def test_a_limit_says_what_it_allows(limit, words, inside, outside):
    assert limit.words == words
    assert all(limit.allows(value) for value in inside)
    assert not any(limit.allows(value) for value in outside)

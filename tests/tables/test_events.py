"""Events: rows merged over gaps, their scores, and where recordings end; in memory that does not grow with them."""

from itertools import count, islice

import numpy as np
import pytest

from torchbeats.errors import SettingsError
from torchbeats.tables.events import class_thresholds, events
from torchbeats.tagging import Tags


def rows(text, path="r.wav", every=1.0, first=0.0):
    """A row a group of letters: the labels that reach their threshold; a capital letter is surer."""
    named = text.split()
    for number, letters in enumerate(named):
        labels = [(letter.lower(), 0.9 if letter.isupper() else 0.6) for letter in letters if letter != "."]
        yield Tags(path, first + number * every, first + (number + 1) * every, labels)


def brief(found):
    return [(event.start, event.end, event.label) for event in found]


def test_rows_that_join_are_one_event_with_peak_and_mean():
    (event,) = events(rows(". a A a ."))
    assert event[:4] == ("r.wav", 1.0, 4.0, "a")
    assert (event.peak, event.mean) == (0.9, pytest.approx(0.7))


def test_rows_of_unequal_length_weigh_by_it():
    (event,) = events([Tags("r", 0.0, 1.0, [("a", 0.6)]), Tags("r", 1.0, 4.0, [("a", 0.8)])])
    assert event.mean == pytest.approx((0.6 + 3 * 0.8) / 4)


@pytest.mark.parametrize(
    ("min_gap", "expected"),
    [
        (0.0, [(0, 1), (2, 3), (5, 6)]),
        (1.0, [(0, 1), (2, 3), (5, 6)]),  # a gap of one second is not less than one
        (1.5, [(0, 3), (5, 6)]),
        (2.5, [(0, 6)]),
    ],
)
def test_gaps(min_gap, expected):
    found = list(events(rows("a . A . . a"), min_gap=min_gap))
    assert [(event.start, event.end) for event in found] == expected
    assert all(event.mean >= 0.6 for event in found)  # rows of a gap do not count


def test_short_events_are_dropped_after_merging():
    assert brief(events(rows("a . a . . a"), 1.5, 2.0)) == [(0, 3, "a")]
    assert brief(events(rows("a a . a"), 0.0, 2.0)) == [(0, 2, "a")]


def test_classes_have_events_of_their_own_in_the_order_of_their_starts():
    found = brief(events(rows("a ab b . c ac")))
    assert found == [(0, 2, "a"), (1, 3, "b"), (4, 6, "c"), (5, 6, "a")]
    found = brief(events(rows("ab a a ac a")))
    assert found == [(0, 1, "b"), (0, 5, "a"), (3, 4, "c")]


def test_events_end_with_their_recording():
    several = [*rows(". a", "x.wav"), *rows("a .", "y.wav"), *rows(". a", "x.wav")]
    found = [(event.path, event.start, event.end) for event in events(several, min_gap=99)]
    assert found == [("x.wav", 1, 2), ("y.wav", 0, 1), ("x.wav", 1, 2)]


def test_the_same_recording_twice():
    found = brief(events([*rows(". a"), *rows("a .")], min_gap=99))
    assert found == [(1, 2, "a"), (0, 1, "a")]


def test_pieces_of_a_recording_and_rows_that_are_missing():
    pieces = [*rows(". a"), *rows("a .", first=2.0), *rows("a", first=8.0)]  # what lies between could not be read
    assert brief(events(pieces)) == [(1, 3, "a"), (8, 9, "a")]


def test_windows_that_overlap():
    overlapping = [Tags("r", start, start + 2.0, [("a", 0.7)] * (start != 3.0)) for start in (0.0, 1.0, 3.0, 4.0)]
    assert brief(events(overlapping)) == [(0, 3, "a"), (4, 6, "a")]


@pytest.mark.parametrize("every", [1 / 3, 0.7, 0.05])
def test_rounding_divides_no_event(every):
    (event,) = events(rows("a " * 1000, every=every))
    assert event.end == pytest.approx(1000 * every)


def test_events_come_as_soon_as_they_are_certain():
    endless = (Tags("r", float(n), n + 1.0, [("a", 0.7)] * (n % 2)) for n in count())
    assert brief(islice(events(endless), 3)) == [(1, 2, "a"), (3, 4, "a"), (5, 6, "a")]


def test_nothing_and_nonsense():
    assert list(events([])) == []
    assert list(events(rows(". . ."))) == []
    for settings in ({"min_gap": -1}, {"min_length": float("nan")}, {"min_gap": float("inf")}):
        with pytest.raises(SettingsError, match="number of seconds, 0 or more"):
            list(events(rows("a"), **settings))


@pytest.mark.parametrize(
    ("stored", "expected", "without"),
    [([0.2, None], [0.2, 0.5], ["b"]), ([0.2, 0.7], [0.2, 0.7], []), (None, [0.5, 0.5], ["a", "b"]), ([1], None, None)],
)
def test_thresholds_of_classes(stored, expected, without):
    class Model:
        class cfg:
            thresholds = stored

    found, lacking = class_thresholds(Model, ["a", "b"], 0.5)
    np.testing.assert_allclose(found, expected or [0.5, 0.5], rtol=1e-6)
    assert lacking == (["a", "b"] if without is None else without)

"""Labels and groups that are in the paths of sounds."""

import pytest

from helpers import write_sounds
from torchbeats.data.folds import MANY_FOLDS, design, groups_from
from torchbeats.data.labelled import read_labelled
from torchbeats.errors import InputError


@pytest.fixture
def digits(tmp_path):
    speakers = range(MANY_FOLDS + 1)
    return write_sounds(tmp_path / "digits", {f"{digit}_s{i}_0.wav": 0.6 for digit in "01" for i in speakers})


def test_labels_from_paths(digits):
    data = read_labelled([digits], label_from=r"/([0-9])_[^/]*\.wav$")
    assert data.classes == ["0", "1"]
    assert all(example.path.split("/")[-1][0] == example.labels[0] for example in data.examples)
    assert data.problem_type == "single_label"


@pytest.mark.parametrize(("pattern", "message"), [("(", "is not a regular expression"), ("dog", "finds no label in")])
def test_patterns_that_cannot_work(digits, pattern, message):
    with pytest.raises(InputError, match=message):
        read_labelled([digits], label_from=pattern)


def test_many_groups_are_worth_a_warning(digits):
    data = groups_from(read_labelled([digits], label_from=r"/([0-9])_[^/]*\.wav$"), r"_(s\d+)_")
    (warning,) = design(data, None, by_group=True).warnings
    assert f"{MANY_FOLDS + 1} groups" in warning
    assert "--folds 5" in warning
    assert design(data, 5, by_group=True).warnings == []

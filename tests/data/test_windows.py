"""Annotated recordings as windows: overlapping boxes, points, edges, and what is said of unlabelled parts."""

import math

import pytest

from helpers import write_sounds
from torchbeats.audio import AudioWarning
from torchbeats.data.example import Example
from torchbeats.data.labelled import read_labelled
from torchbeats.data.windows import Windows
from torchbeats.errors import InputError, SettingsError


@pytest.fixture
def folder(tmp_path):
    return write_sounds(tmp_path, {"a.wav": 10.2, "b.wav": 4.0, "c.wav": 4.0})


def track(path, *rows):
    path.write_text("".join(f"{start}\t{end}\t{label}\n" for start, end, label in rows), "utf-8")
    return path


def brief(examples):
    return [(example.start, example.end, example.labels) for example in examples]


def test_overlapping_boxes_share_windows(folder):
    path = str(folder / "a.wav")
    boxes = [Example(path, ("x",), 0.5, 1.5), Example(path, ("y",), 1.0, 3.2), Example(path, ("x",), 1.2, 1.4)]
    windows, unused = Windows(2.0, 0.6).cut(boxes)
    assert brief(windows) == [(0.0, 2.0, ("x",)), (2.0, 4.0, ("y",))]  # y has 1.0 of 2.0 s in the first
    assert not unused
    windows, _ = Windows(2.0, 0.5).cut(boxes)
    assert brief(windows) == [(0.0, 2.0, ("x", "y")), (2.0, 4.0, ("y",))]


def test_a_box_on_an_edge_is_in_a_window_unless_more_is_asked(folder):
    box = Example(str(folder / "a.wav"), ("x",), 1.8, 2.2)
    assert brief(Windows(2.0, 0.5).cut([box])[0]) == [(0.0, 2.0, ("x",)), (2.0, 4.0, ("x",))]
    assert Windows(2.0, 0.6).cut([box]) == ([], [box])


@pytest.mark.parametrize(
    ("start", "end"),
    [(1.0, 99.0), (0.0, 1e30), (30.0, 31.0), (-2.0, 1.0), (3.0, 2.0), (math.inf, math.inf), (1e30, 1e30)],
)
def test_what_a_recording_cannot_have_is_not_used(folder, start, end):
    path = str(folder / "a.wav")
    good, bad = Example(path, ("x",), 0.0, 2.0), Example(path, ("y",), start, end)
    windows, unused = Windows(2.0).cut([good, bad])
    assert (brief(windows), unused) == ([(0.0, 2.0, ("x",))], [bad])


def test_an_absurd_end_makes_no_endless_windows_of_what_cannot_be_read(folder):
    (folder / "broken.wav").write_bytes(b"RIFF")
    boxes = [Example(str(folder / "broken.wav"), ("y",), 0.0, 1e30), Example(str(folder / "broken.wav"), ("x",), 0, 2)]
    windows, unused = Windows(2.0).cut(boxes)
    assert (brief(windows), unused) == ([(0.0, 2.0, ("x",))], boxes[:1])


def test_points_long_boxes_and_whole_files(folder):
    path = str(folder / "a.wav")
    assert brief(Windows(2.0).cut([Example(path, ("p",), 2.0, 2.0)])[0]) == [(2.0, 4.0, ("p",))]
    long = Windows(2.0).cut([Example(path, ("l",), 1.5, 7.5)])[0]
    assert [(one.start, one.end) for one in long] == [(2.0, 4.0), (4.0, 6.0), (6.0, 8.0)]
    whole = Windows(2.0).cut([Example(path, ("w",))])[0]
    assert [(one.start, one.end) for one in whole] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, pytest.approx(10.2))]


def test_unlabelled_parts_are_negatives_only_if_said(folder):
    track(folder / "a.txt", (0.5, 1.5, "x"), (4.5, 5.0, "y"))
    labelled = read_labelled([folder / "a.txt"], windows=Windows(2.0))
    assert brief(labelled.examples) == [(0, 2, ("x",)), (4, 6, ("y",))]
    assert labelled.problem_type == "single_label"
    labelled = read_labelled([folder / "a.txt"], windows=Windows(2.0, fully_annotated=True))
    assert [labels for _, _, labels in brief(labelled.examples)] == [("x",), (), ("y",), (), ()]
    assert labelled.problem_type == "multi_label"
    assert labelled.targets().tolist() == [[1, 0], [0, 0], [0, 1], [0, 0], [0, 0]]


def test_a_recording_without_any_label_is_a_negative_if_said(folder):
    track(folder / "b.txt", (0.5, 1.5, "x"))
    track(folder / "c.txt")
    assert len(read_labelled([folder], windows=Windows(2.0)).examples) == 1
    labelled = read_labelled([folder], windows=Windows(2.0, fully_annotated=True))
    names = [example.path.rpartition("/")[2] for example in labelled.examples]
    assert names == ["b.wav", "b.wav", "c.wav", "c.wav"]


def test_two_tracks_of_one_recording_are_one(folder):
    track(folder / "b.frogs.txt", (0.5, 1.5, "frog"))
    track(folder / "b.birds.txt", (1.0, 1.9, "bird"), (2.0, 3.0, "bird"))
    labelled = read_labelled([folder], windows=Windows(2.0))
    assert [sorted(labels) for _, _, labels in brief(labelled.examples)] == [["bird", "frog"], ["bird"]]


def test_one_stretch_with_two_labels_is_no_conflict(folder):
    track(folder / "b.txt", (0, 3, "x"), (0, 3, "y"), (3, 4, "x"))
    labelled = read_labelled([folder / "b.txt"])
    assert labelled.problem_type == "multi_label"
    assert brief(labelled.examples) == [(0, 3, ("x", "y")), (3, 4, ("x",))]


def test_plain_lists_are_cut_only_if_asked(folder):
    table = folder / "t.csv"
    table.write_text("path,start,end,label\nb.wav,0.5,1,x\nb.wav,1.5,2,y\n")
    assert brief(read_labelled([table], windows=Windows(2.0)).examples) == [(0.5, 1, ("x",)), (1.5, 2, ("y",))]
    cut = read_labelled([table], windows=Windows(2.0, plain_lists=True)).examples
    assert brief(cut) == [(0, 2, ("x", "y"))]


def test_stretches_in_no_window_are_named(folder):
    track(folder / "b.txt", (0.5, 1.5, "x"), (1.8, 2.2, "y"), (77, 78, "y"))
    with pytest.warns(AudioWarning, match="2 labelled stretches are in no window"):
        read_labelled([folder / "b.txt"], windows=Windows(2.0, 0.9))


def test_class_folders_stay_what_they_are(tmp_path):
    write_sounds(tmp_path, {"dog/a.wav": 1.0, "cat/b.wav": 1.0})
    (tmp_path / "readme.txt").write_text("Recorded in the garden.\n")
    (tmp_path / "list.csv").write_text("path,start,end,label\ndog/a.wav,0,1,bark\n")
    labelled = read_labelled([tmp_path], windows=Windows(2.0, plain_lists=True))
    assert labelled.classes == ["cat", "dog"]


def test_splits_and_groups_of_annotations(folder):
    header = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tBegin File\tSpecies\tsplit\tgroup\n"
    rows = "1\tS\t1\t0\t1\tb.wav\tx\ttrain\tg1\n2\tS\t1\t0\t1\tc.wav\ty\ttest\tg2\n"
    (folder / "t.txt").write_text(header + rows)
    labelled = read_labelled([folder / "t.txt"], windows=Windows(2.0))
    assert [(one.split, one.group, one.labels) for one in labelled.examples] == [
        ("train", "g1", ("x",)),
        ("test", "g2", ("y",)),
    ]


def test_what_makes_no_sense(folder):
    with pytest.raises(SettingsError, match="The overlap is a share"):
        Windows(2.0, 0.0)
    track(folder / "a.txt")
    with pytest.raises(InputError, match="name no sounds"):
        read_labelled([folder / "a.txt"], windows=Windows(2.0))

"""Marks of rows: on disk at every click, as they were when that fails, and what is fitted to them."""

import os
import shutil

import numpy as np
import pytest

from live_server import SOUNDS
from torchbeats import EmbeddingPlan, write_table
from torchbeats.errors import InputError
from torchbeats.serve.page.labelling import Marks
from torchbeats.tables.reading import Table


@pytest.fixture
def own_table(table, tmp_path):
    return Table(shutil.copy(table, tmp_path / "sounds.parquet"))


def rows_with(table, name):
    return [row for row, (path, *_) in enumerate(table.places(np.arange(table.count))) if name in path]


def test_marks_are_on_disk_and_read_again(own_table):
    marks = Marks(own_table)
    marks.mark(3, 'rain, "heavy"', True)
    marks.mark(4, 'rain, "heavy"', False)
    marks.mark(3, "wind", True)
    marks.mark(5, "wind", True)
    marks.mark(5, "wind", True)  # once more: taken back
    marks.mark(4, "wind", True)
    marks.mark(4, "wind", False)  # a change of mind
    again = Marks(own_table)
    for one in (marks, again):
        assert one.classes() == ['rain, "heavy"', "wind"]
        assert one.of('rain, "heavy"') == {3: True, 4: False}
        assert one.of("wind") == {3: True, 4: False}
        assert len(one.annotations()) == 2
    rows, labelled = again.examples()
    assert rows.tolist() == [3, 4]
    assert [example.labels for example in labelled.examples] == [('rain, "heavy"', "wind"), ()]


def test_a_mark_that_cannot_be_kept_is_not_shown(own_table):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere; see the next test")
    marks = Marks(own_table)
    own_table.path.parent.chmod(0o500)
    try:
        with pytest.raises(OSError, match="labels"):
            marks.mark(3, "rain", True)
    finally:
        own_table.path.parent.chmod(0o700)
    assert marks.of("rain") == {}


def test_a_full_disk_leaves_what_was(own_table, monkeypatch):
    marks = Marks(own_table)
    marks.mark(3, "rain", True)
    before = marks.path.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torchbeats.serve.page.labelling.csv_line", full)
    for row, right in ((4, True), (3, False), (3, True)):
        with pytest.raises(OSError, match="could not be written: no space left on device"):
            marks.mark(row, "rain", right)
    assert marks.of("rain") == {3: True}
    assert marks.path.read_text() == before


def test_files_that_are_none_of_ours_are_left_alone(own_table):
    path = Marks(own_table).path
    for text in (
        "my,own,notes\n1,2,3\n",
        "path,start,end,label,right\na.wav,x,2,rain,yes\n",
        "path,start,end,label,right\n1\n",
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=r"labels\.csv is"):
            Marks(own_table)
        assert path.read_text() == text


def test_marks_of_files_that_the_table_has_no_more_are_kept(own_table, tmp_path):
    marks = Marks(own_table)
    marks.mark(3, "rain", True)
    gone = marks.path.read_text().splitlines()[1]
    marks.path.write_text(marks.path.read_text() + "/gone/a.wav,0.0,1.0,rain,yes\n")
    again = Marks(own_table)
    assert again.lost == 1
    again.mark(7, "rain", False)
    text = again.path.read_text()
    assert "/gone/a.wav,0.0,1.0,rain,yes\n" in text
    assert gone in text
    assert Marks(own_table).of("rain") == {3: True, 7: False}


def test_too_little_to_fit_is_said(own_table):
    pytest.importorskip("sklearn")
    marks = Marks(own_table)
    with pytest.raises(InputError, match="Nothing is marked yet"):
        marks.fit()
    marks.mark(3, "rain", True)
    with pytest.raises(InputError, match="same labels"):
        marks.fit()


def test_a_head_of_marks_and_what_to_mark_next(own_table, run):
    pytest.importorskip("sklearn")
    marks = Marks(own_table)
    speech, others = rows_with(own_table, "speech-"), rows_with(own_table, "noise-") + rows_with(own_table, "drums-")
    for row in speech:
        marks.mark(row, "talk", True)
    for row in others:
        marks.mark(row, "talk", False)
    done = marks.fit()
    (row,) = done.head.by_class
    assert row["windows"] == len(speech)
    assert row["average_precision"] > 0.8
    assert done.suggestions
    assert not {number for number, _ in done.suggestions} & {*speech, *others}
    path = marks.save(done.head)
    status, out, _ = run("tag", SOUNDS / "speech-german.opus", "-m", path, "--format", "jsonl")
    assert status == 0
    assert '"talk"' in out


def test_a_table_that_is_made_anew_keeps_its_marks(own_table):
    marks = Marks(own_table)
    marks.mark(10, "rain", True)
    (place,) = own_table.places(np.array([10]))
    write_table([SOUNDS / "siren.mp3", SOUNDS], own_table.path, "beats-nano", EmbeddingPlan(window=1.0), overwrite=True)
    again = Table(own_table.path)
    ((row, right),) = Marks(again).of("rain").items()
    assert right
    assert again.places(np.array([row])) == [place]

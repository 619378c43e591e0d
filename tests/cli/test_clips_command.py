"""`torchbeats clips`, from a track on disk to a training set."""

import pytest

from helpers import write_sounds


@pytest.fixture
def folder(tmp_path):
    write_sounds(tmp_path, {"a.wav": 4.0})
    (tmp_path / "a.txt").write_text("0.5\t1.0\tfrog\n2.0\t3.0\tbird\n")
    table = "Start (s),End (s),Scientific name,Common name,Confidence\n0,1,T,owl,0.9\n1,2,T,owl,0.2\n"
    (tmp_path / "a.BirdNET.results.csv").write_text(table)
    return tmp_path


def names(folder):
    return sorted(path.relative_to(folder).parent.as_posix() for path in folder.rglob("*.*") if path.suffix != ".csv")


def test_clips_of_a_folder(run, folder, tmp_path):
    out = tmp_path / "out"
    status, said, err = run("clips", folder, "-o", out)
    assert (status, said, err) == (0, "", "")
    assert names(out) == ["bird", "frog", "owl", "owl"]
    assert run("clips", folder, "-o", tmp_path / "two", "--format", "flac", "--flat", "--min-score", 0.5)[0] == 0
    assert names(tmp_path / "two") == ["."]
    assert run("clips", folder / "a.txt", "-o", tmp_path / "three", "--label", "frog", "--padding", 0.5)[0] == 0
    assert names(tmp_path / "three") == ["frog"]


def test_clips_that_cannot_be_cut(run, folder, tmp_path):
    (folder / "b.wav").write_bytes(b"no sound")
    (folder / "b.txt").write_text("0.5\t1.0\tfrog\n")
    status, _, err = run("clips", folder, "-o", tmp_path / "out")
    assert status == 1
    assert "b.wav" in err
    assert "Recordings and stretches that could not be cut: 1." in err
    assert names(tmp_path / "out") == ["bird", "frog", "owl", "owl"]


def test_what_is_refused(run, folder, tmp_path):
    status, _, err = run("clips", folder, "-o", tmp_path / "out", "--label", "cat")
    assert status == 2
    assert "There is no label 'cat'; there are" in err
    assert run("clips", folder, "-o", tmp_path / "out", "--min-score", 0.99)[0] == 2
    assert run("clips", folder / "none.txt", "-o", tmp_path / "out")[0] == 2
    assert not (tmp_path / "out").exists()

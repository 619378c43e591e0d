"""What a search writes: every format read back, clips that are what lies there, and outputs that are refused."""

import csv
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import torchbeats
from helpers import noise, tone
from torchbeats import EmbeddingPlan, write_table
from torchbeats.data.annotations.reading import read_annotations
from torchbeats.data.inputs import find_sounds

RATE = 44_100


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Stereo at 44.1 kHz: noise with a tone in it; and the tone alone."""
    folder = tmp_path_factory.mktemp("sounds")
    for name, start in (("Größe 1", 5), ("b", 3)):
        samples = np.stack([noise(9.0, RATE, seed=start + channel, level=0.02) for channel in range(2)], axis=1)
        samples[start * RATE : (start + 1) * RATE] += tone(1.0, RATE)[:, np.newaxis]
        soundfile.write(folder / f"{name}.wav", samples, RATE, "PCM_24")
    soundfile.write(folder / "query.wav", tone(1.0), 16_000)
    return folder


@pytest.fixture(scope="module")
def table(sounds, tmp_path_factory):
    inputs = [sounds / "Größe 1.wav", sounds / "b.wav"]
    return write_table(inputs, tmp_path_factory.mktemp("t") / "t.parquet", "beats-nano", EmbeddingPlan(window=1.0)).path


@pytest.fixture(scope="module")
def expected(table, sounds):
    return torchbeats.search(table, sounds / "query.wav", n=3)


def places(rows):
    return [(one.path, pytest.approx(one.start), pytest.approx(one.end)) for one in rows]


def test_parquet(run, table, sounds, tmp_path, expected):
    assert run("search", table, sounds / "query.wav", "-n", 3, "-o", tmp_path / "m.parquet")[:2] == (0, "")
    rows = pq.read_table(tmp_path / "m.parquet").to_pylist()
    assert [(row["path"], row["start"], row["end"]) for row in rows] == places(expected)
    assert [row["score"] for row in rows] == pytest.approx([one.score for one in expected], abs=1e-6)
    assert [(piece.path, piece.start, piece.end) for piece in find_sounds([tmp_path / "m.parquet"])] == places(expected)


@pytest.mark.parametrize(("options", "label"), [([], "match"), (["--label", "Zaunkönig"], "Zaunkönig")])
def test_a_table_for_raven(run, table, sounds, tmp_path, expected, options, label):
    output = tmp_path / "m.raven.txt"
    assert run("search", table, sounds / "query.wav", "-n", 3, "-o", output, *options)[:2] == (0, "")
    rows = read_annotations(output)
    assert places(rows) == places(expected)
    assert {row.label for row in rows} == {label}
    assert [row.peak for row in rows] == pytest.approx([one.score for one in expected], abs=1e-5)
    assert [line.split("\t")[0] for line in output.read_text("utf-8").splitlines()[1:]] == ["1", "2", "3"]


def test_a_track_for_audacity_is_of_one_recording(run, table, sounds, tmp_path):
    query, output = f"{sounds / 'b.wav'}@3-4", tmp_path / "b.audacity.txt"
    status, _, said = run("search", table, query, "-n", 20, "-o", output)
    assert (status, "matches in 2. Write .raven.txt or .csv" in said) == (2, True)
    assert not output.exists()
    only = ["search", table, "row:5", "--not-same-file", "-n", 2, "-o", output]
    assert run(*only)[:2] == (0, "")
    rows = read_annotations(output, sounds=[sounds])
    matches = torchbeats.search(table, 5, n=2, not_same_file=True)
    assert [row[:3] for row in rows] == places(matches)
    assert [row.label for row in rows] == [f"{rank}: {one.score:.3f}" for rank, one in enumerate(matches, start=1)]
    assert run(*only, "--label", "wren", "--overwrite")[0] == 0
    assert {row.label for row in read_annotations(output, sounds=[sounds])} == {"wren"}


def test_clips(run, table, sounds, tmp_path):
    folder = tmp_path / "clips"
    status, _, said = run("search", table, f"{sounds / 'Größe 1.wav'}@5-6", "-n", "3", "-o", folder)
    assert (status, said) == (0, "")
    *names, manifest = sorted(os.listdir(folder))
    assert (len(names), manifest) == (3, "matches.csv")
    assert names[0] == "001_1.000_Größe_1_5.00-6.00.wav"
    clip, rate = soundfile.read(folder / names[0])
    whole, _ = soundfile.read(sounds / "Größe 1.wav")
    assert rate == RATE
    np.testing.assert_array_equal(clip, whole[5 * RATE : 6 * RATE])
    with (folder / manifest).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["path"]) for row in rows] == [(str(rank), name) for rank, name in enumerate(names, 1)]
    assert (rows[0]["recording"], rows[0]["from_second"]) == (str(sounds / "Größe 1.wav"), "5.0")


def test_another_search_into_the_same_folder(run, table, tmp_path):
    folder = tmp_path / "clips"
    assert run("search", table, "row:0", "-n", 5, "-o", folder)[0] == 0
    (folder / "mine.wav").write_bytes(b"the user's own")
    status, _, said = run("search", table, "row:3", "-n", 2, "-o", folder)
    assert (status, "is not empty; use --overwrite" in said) == (2, True)
    assert len(os.listdir(folder)) == 7
    assert run("search", table, "row:3", "-n", 2, "-o", folder, "--overwrite")[0] == 0
    assert [name.split("_")[0] for name in sorted(os.listdir(folder))] == ["001", "002", "matches.csv", "mine.wav"]


def test_clips_of_sounds_that_are_gone(run, table, sounds, tmp_path):
    moved = sounds / "Größe 1.wav"
    moved.rename(tmp_path / "away.wav")
    try:
        status, _, said = run("search", table, "row:0", "-n", 20, "-o", tmp_path / "clips")
    finally:
        (tmp_path / "away.wav").rename(moved)
    assert (status, said.count("Größe 1.wav")) == (1, 8)
    assert len([name for name in os.listdir(tmp_path / "clips") if name.endswith(".wav")]) == 9


@pytest.mark.parametrize("name", ["m.txt", "m.xlsx", "m.npz"])
def test_other_outputs_are_refused_before_any_work(run, tmp_path, name):
    status, _, said = run("search", tmp_path / "no.parquet", "row:0", "-o", tmp_path / name)
    assert (status, "or be a folder for clips" in said) == (2, True)


def test_files_that_exist_are_refused(run, table, tmp_path):
    before = table.read_bytes()
    for options in ([], ["--overwrite"]):
        status, _, said = run("search", table, "row:0", "-o", table, *options)
        assert (status, "is one of the inputs" in said) == (2, True)
    assert table.read_bytes() == before
    (tmp_path / "m.csv").write_text("mine")
    status, _, said = run("search", table, "row:0", "-o", tmp_path / "m.csv")
    assert (status, "exists; use --overwrite" in said) == (2, True)
    assert run("search", table, "row:0", "-o", tmp_path / "m.csv", "--overwrite")[0] == 0
    (tmp_path / "d.csv").mkdir()
    status, _, said = run("search", table, "row:0", "-o", tmp_path / "d.csv")
    assert (status, "is a folder" in said) == (2, True)


def test_jsonl_has_names_in_any_script(run, table, sounds, tmp_path, expected):
    assert run("search", table, sounds / "query.wav", "-n", 3, "-o", tmp_path / "m.jsonl")[0] == 0
    lines = (tmp_path / "m.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["path"] for line in lines] == [one.path for one in expected]
    assert any("Größe" in line for line in lines)

"""The recipes' own scripts, on data laid out as the real ones are."""

import contextlib
import csv
import io
import json
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import soundfile
import yaml

import torchbeats
from helpers import noise, small_model, tone
from torchbeats import cli
from torchbeats.data.folds import design, split
from torchbeats.data.labelled import read_labelled
from torchbeats.training.defaults import TABLE
from torchbeats.training.settings import finetune_settings, settings

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture
def script(monkeypatch, capsys):
    """Run a recipe's script and its commands here: exit status, and what it wrote to standard output and error."""

    def command(words, **_):
        assert words[:3] == [sys.executable, "-m", "torchbeats"]
        with monkeypatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
            patch.setattr(sys, "argv", words[2:])
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            with pytest.raises(SystemExit) as end:
                cli.main()
        return subprocess.CompletedProcess(words, end.value.code or 0, out.getvalue())

    def call(name, *arguments):
        monkeypatch.setattr(subprocess, "run", command)
        monkeypatch.setattr(sys, "argv", [str(RECIPES / name), *map(str, arguments)])
        monkeypatch.syspath_prepend((RECIPES / name).parent)
        status = 0
        try:
            runpy.run_path(str(RECIPES / name), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
            if isinstance(status, str):  # as the interpreter would
                print(status, file=sys.stderr)
                status = 1
        return status, *capsys.readouterr()

    return call


def write(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, 16_000)


def test_esc50_becomes_a_list_with_its_folds(script, tmp_path):
    meta = tmp_path / "ESC-50" / "meta" / "esc50.csv"
    meta.parent.mkdir(parents=True)
    rows = [(f"{fold}-100-A-{i}.wav", fold, i, name, False, 100 * fold + i, "A")
            for fold in (1, 2, 3) for i, name in enumerate(("dog", "sea_waves"))]  # fmt: skip
    with meta.open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "fold", "target", "category", "esc10", "src_file", "take"), *rows])
    for row in rows:
        write(tmp_path / "ESC-50" / "audio" / row[0], tone(0.3))
    out = tmp_path / "list.csv"
    status, said, _ = script("esc50/prepare.py", "--esc50", tmp_path / "ESC-50", "--out", out)
    assert (status, said) == (0, f"{out}: 6 clips, 2 classes.\n")
    labelled = read_labelled([out])
    assert (labelled.classes, labelled.problem_type) == (["dog", "sea_waves"], "single_label")
    assert design(labelled).name == "3 folds as given"
    status, _, said = script("esc50/prepare.py", "--esc50", tmp_path, "--out", out)
    assert (status, "There is no" in said) == (1, True)


def test_audioset_segments_find_their_files(script, tmp_path):
    clips = tmp_path / "clips"
    for name in ("--PJHxphWEs.wav", "a/Y-0123456789_30.000.flac", "b/Yabcdefghij.wav", "unwanted.wav"):
        write(clips / name, tone(0.3))
    head = "# Segments csv created\n# num_ytids=3\n# YTID, start_seconds, end_seconds, positive_labels\n"
    (tmp_path / "train.csv").write_text(
        head + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n-0123456789, 30.000, 40.000, "/m/04rlf"\n'
        'gone-gone-g, 0.000, 10.000, "/m/04rlf"\n'
    )
    (tmp_path / "eval.csv").write_text(head + 'Yabcdefghij, 0.000, 10.000, "/m/09x0r"\n')
    out = tmp_path / "list.parquet"
    lists = ("--train", tmp_path / "train.csv", "--test", tmp_path / "eval.csv")
    status, said, _ = script("audioset/prepare.py", "--audio", clips, *lists, "--out", out)
    assert status == 0
    assert "2 of 3 segments are there" in said
    labelled = read_labelled([out])
    assert labelled.problem_type == "multi_label"
    assert labelled.classes == ["/m/04rlf", "/m/09x0r", "/t/dd00088"]
    parts = split(labelled, 0.1, 0)
    assert {Path(e.path).name: e.labels for e in parts.train.examples} == {
        "--PJHxphWEs.wav": ("/m/09x0r", "/t/dd00088"),
        "Y-0123456789_30.000.flac": ("/m/04rlf",),
    }
    assert [Path(e.path).name for e in parts.validation.examples] == ["Yabcdefghij.wav"]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_settings_are_ones_that_there_are(path):
    if path.name == "nano.yaml":
        assert settings("nano", path).iterations == 2
    else:
        assert finetune_settings(path).model.epochs > 0


@pytest.fixture
def recordings(tmp_path):
    """Two digits, a tone and noise, by two people."""
    for speaker, hertz in (("ada", 300.0), ("bob", 330.0)):
        for index in range(4):
            write(tmp_path / "recordings" / f"0_{speaker}_{index}.wav", tone(0.3, hertz=hertz + 3 * index))
            write(tmp_path / "recordings" / f"1_{speaker}_{index}.wav", noise(0.3, seed=index))
    return tmp_path / "recordings"


def test_fsdd_probes_and_fine_tunes_a_model(script, tmp_path, recordings):
    torchbeats.save(small_model(dropout=0.0), tmp_path / "m.safetensors")
    quick = [f"--set={one}" for one in ("model.epochs=6", "data.workers=0", "trainer.accelerator=cpu")]
    places = ("--fsdd", recordings, "--out", tmp_path / "out", "--results", tmp_path / "results")
    command = ("fsdd/run.py", *places, "--model", tmp_path / "m.safetensors", "--random-seeds", 0, "--seeds", 1, *quick)
    command = (*command, "--words", 0, 3)
    for one in ("ada", "bob"):
        status, said, error = script(*command, "--speakers", one)
        assert status == 0, error
    assert not (tmp_path / "results").exists()
    status, said, error = script(*command)
    assert status == 0, error
    assert "%" not in said  # nothing was trained again
    with (tmp_path / "results" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 2  # numbers of words, methods, speakers
    tuned = [float(row["accuracy"]) for row in rows if row["method"] == "fine-tuning" and row["words"] == "0"]
    assert sum(tuned) / 2 >= 75  # a tone or noise
    assert "| m | all, 250 |" in said
    assert "| m | 3 |" in said
    about = yaml.safe_load((tmp_path / "out" / "m-0-3-ada" / "run.yaml").read_text("utf-8"))
    assert about["model"]["lr"] == TABLE[0].lr  # by the number of words


@pytest.mark.slow
def test_fsdd_attentive_probe_of_several_seeds(script, tmp_path, recordings):
    torchbeats.save(small_model(dropout=0.0), tmp_path / "m.safetensors")
    places = ("--fsdd", recordings, "--out", tmp_path / "out", "--results", tmp_path / "results")
    command = ("fsdd/attentive.py", *places, "--model", tmp_path / "m.safetensors", "--steps", 30, "--seeds")
    written = []
    for seeds in (1, 2):  # the second goes on from the first
        status, said, error = script(*command, seeds)
        assert status == 0, error
        written.append((tmp_path / "results" / "attentive.csv").read_text("utf-8"))
    assert written[1].startswith(written[0])
    rows = list(csv.DictReader(written[1].splitlines()))
    assert [(row["seed"], row["speaker"]) for row in rows] == [(s, who) for s in "01" for who in ("ada", "bob")]
    assert all(float(row["accuracy"]) >= 75 for row in rows)  # a tone or noise
    assert len(json.loads(rows[0]["layer weights"])) == 3
    assert re.search(r"\| all \| \| \| \d+\.\d ± \d+\.\d \|", said)

"""The recipes' own scripts, on data laid out as the real ones are."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import torchbeats
from helpers import noise, small_model, tone
from torchbeats.data.folds import design, split
from torchbeats.data.labelled import read_labelled
from torchbeats.training.settings import finetune_settings, settings

RECIPES = Path(__file__).parent.parent / "recipes"


def script(name, *arguments):
    done = subprocess.run(
        [sys.executable, RECIPES / name, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def write(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, 16_000)


def test_esc50_becomes_a_list_with_its_folds(tmp_path):
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


def test_audioset_segments_find_their_files(tmp_path):
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


def test_fsdd_probes_and_fine_tunes_a_model(tmp_path, recordings):
    torchbeats.save(small_model(dropout=0.0), tmp_path / "m.safetensors")
    quick = [
        f"--set={one}" for one in ("model.epochs=12", "model.lr=3e-3", "data.workers=0", "trainer.accelerator=cpu")
    ]
    places = ("--fsdd", recordings, "--out", tmp_path / "out", "--results", tmp_path / "results")
    status, said, error = script(
        "fsdd/run.py", *places, "--model", tmp_path / "m.safetensors", "--only", "model", "--seeds", 1, *quick
    )
    assert status == 0, error
    with (tmp_path / "results" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    tuned = [float(row["accuracy"]) for row in rows if row["method"] == "fine-tuning" and row["model"] == "m"]
    assert len(rows) == 3 * 2  # methods, speakers
    assert sum(tuned) / 2 >= 75  # a tone or noise
    assert "| m |" in said
    about = json.loads((tmp_path / "out" / "m-0" / "validation.json").read_text("utf-8"))
    assert about["held_out"] == "each of 2 groups left out in turn"


@pytest.mark.slow
def test_fsdd_attentive_probe_of_several_seeds(tmp_path, recordings):
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


def test_everyday_sounds_are_fetched_and_listed_by_their_names(tmp_path):
    """From a repository in place of GitHub's, to the tagger's lists."""
    repository = tmp_path / "mirror" / "Tonejs" / "audio"
    names = ("dog_bark_1", "dog_bark_2", "doorbell1", "door_close2", "RunningEcho", "bullet", "guitar_riff", "crowbar")
    for number, name in enumerate(names):
        write(repository / "berklee" / f"{name}.wav", noise(0.3, seed=number))
    write(repository / "elsewhere" / "dog.wav", noise(0.3, seed=99))
    git = ["git", "-C", repository, "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "Sounds"]):
        subprocess.run([*git, *command], check=True)
    mirror = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{tmp_path / 'mirror'}/.insteadOf"}
    environment = {**os.environ, **mirror, "GIT_CONFIG_VALUE_0": "https://github.com/"}
    audio = tmp_path / "audio"
    command = [sys.executable, RECIPES / "nano/fetch.py", "--out", audio, "--only", "berklee"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with (audio / "manifest.csv").open() as file:
        found = {Path(row["path"]).stem: row for row in csv.DictReader(file)}
    labels = {name: row["label"] for name, row in found.items()}
    kinds = ("animal", "animal", "bell", "door", "footsteps", "other", "", "other")
    assert labels == dict(zip(names, kinds, strict=True))
    assert found["dog_bark_1"]["group"] == found["dog_bark_2"]["group"]  # takes of one thing
    assert (audio / "train.csv").read_text().count("\n") == 1  # the model was pre-trained without
    status, _, error = script("nano/tagger_lists.py", "--audio", audio, "--out", tmp_path)
    assert status == 0, error
    listed = [row for name in ("tagger.csv", "tagger-strange.csv") if (tmp_path / name).exists()
              for row in csv.DictReader((tmp_path / name).open())]  # fmt: skip
    assert {Path(row["path"]).stem: row["label"] for row in listed} == {k: v for k, v in labels.items() if v}
    assert len({row["split"] for row in listed if row["label"] == "animal"}) == 1


def test_a_tagger_is_calibrated_and_evaluated(tmp_path):
    model = small_model(finetuned_model=True, predictor_class=2, problem_type="single_label", dropout=0.0)
    model.label_dict = {0: "noise", 1: "tone"}
    with torch.no_grad():
        model.predictor.weight.mul_(0.05)  # or its probabilities are 0 and 1
    torchbeats.save(model, tmp_path / "m.safetensors")
    rows = []
    for number in range(12):
        for label, samples in (("noise", noise(0.5, seed=number)), ("tone", tone(0.5, hertz=200.0 + 50 * number))):
            write(tmp_path / label / f"{number}.wav", samples)
            split = "validation" if number % 2 else "test"
            rows.append((tmp_path / label / f"{number}.wav", label, split, f"{label} {number}"))
    with (tmp_path / "tagger.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "group"), *rows])
    with (tmp_path / "tagger-strange.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "group"), (rows[0][0], "other", "test", "x")])
    calibrated = tmp_path / "c.safetensors"
    status, said, error = script("nano/calibrate.py", tmp_path / "m.safetensors", "--list", tmp_path / "tagger.csv",
                                 "--out", calibrated)  # fmt: skip
    assert status == 0, error
    about = torchbeats.load(calibrated).cfg.abstention
    assert json.loads(said.partition(": ")[2]) == about
    assert (about["sounds"], 0 < about["threshold"] <= 1) == (12, True)
    files = (tmp_path / "m.safetensors", calibrated)
    before, after = (next(torchbeats.tag(rows[0][0], path, unknown=False)).labels for path in files)
    logit = [np.log(dict(labels)["tone"] / dict(labels)["noise"]) for labels in (before, after)]
    assert logit[0] / logit[1] == pytest.approx(about["temperature"], rel=1e-3)
    places = ("--lists", tmp_path, "--out", tmp_path / "results", "--cache", tmp_path / "cache")
    status, said, error = script("nano/evaluate_tagger.py", *places, f"now={calibrated}")
    assert status == 0, error
    assert "| no class | now | 1 |" in said
    assert "| in domain | now | 12 |" in said
    assert (tmp_path / "results" / "tagger.md").read_text("utf-8") in said

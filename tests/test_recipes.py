"""The recipes' own scripts, on data laid out as the real ones are."""

import contextlib
import csv
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import yaml

import torchbeats
from helpers import noise, small_model, tiny_run, tone
from torchbeats import cli
from torchbeats.data.folds import design, split
from torchbeats.data.labelled import read_labelled
from torchbeats.training.configuring import finetune_settings, settings
from torchbeats.training.defaults import TABLE

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


def write(path, samples, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)


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


def test_audioset_strong_labels_make_a_clip_s_labels(script, tmp_path):
    write(tmp_path / "clips" / "Y_bcdefghij-.wav", tone(0.3))
    (tmp_path / "strong.tsv").write_text(
        "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
        "_bcdefghij-_30000\t0.000\t1.500\t/m/09x0r\n_bcdefghij-_30000\t2.000\t2.500\t/t/dd00088\n"
        "_bcdefghij-_30000\t4.000\t5.000\t/m/09x0r\ngone-gone-g_0\t0.000\t9.000\t/m/04rlf\n"
    )
    out = tmp_path / "list.parquet"
    arguments = ("audioset/prepare.py", "--audio", tmp_path / "clips", "--out", out, "--train")
    status, said, _ = script(*arguments, tmp_path / "strong.tsv")
    assert (status, "1 of 2 segments are there" in said) == (0, True)
    assert [row["labels"] for row in pq.read_table(out).to_pylist()] == [["/m/09x0r", "/t/dd00088"]]
    status, _, said = script(*arguments, tmp_path / "weak.csv")
    assert (status, said.startswith("There is no")) == (1, True)


# --- the READMEs' commands, on stand-ins of the same layout -----------------------------------------------------------


@pytest.fixture
def follow(tmp_path, monkeypatch, run):
    """Run the commands of a recipe's README, in a folder that has the recipes and the model that they name."""
    (tmp_path / "recipes").symlink_to(RECIPES)
    torchbeats.save(small_model(dropout=0.0), tmp_path / "beats.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(recipe, *quick):
        done = []
        for block in re.findall(r"^```\n(.*?)^```$", (RECIPES / recipe / "README.md").read_text("utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = [{"beats-iter3": "beats.safetensors"}.get(w, w) for w in shlex.split(line, comments=True)]
                if not words or words[0] in ("git", "pip"):
                    continue
                if words[0] == "python":
                    monkeypatch.setattr(sys, "argv", words[1:])
                    runpy.run_path(words[1], run_name="__main__")
                else:
                    settings = quick if words[1] == "finetune" else ()
                    status, _, error = run(*words[1:], *(f"--set={one}" for one in settings))
                    assert status == 0, f"{line}: {error}"
                done.append(words[1])
        return done

    return call


QUICK = ("model.epochs=1", "model.lr=1e-4", "data.workers=0", "trainer.accelerator=cpu", "trainer.devices=1")


def test_the_commands_of_esc50_run(tmp_path, follow):
    meta = tmp_path / "ESC-50" / "meta" / "esc50.csv"
    meta.parent.mkdir(parents=True)
    kinds = ("dog", "sea_waves")
    rows = [(f"{fold}-{fold}0{i}-A-{i % 2}.wav", fold, i % 2, kinds[i % 2], True, f"{fold}0{i}", "A")
            for fold in range(1, 6) for i in range(4)]  # fmt: skip
    with meta.open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "fold", "target", "category", "esc10", "src_file", "take"), *rows])
    for name, fold, target, *_ in rows:
        sound = noise(0.5, 44_100, seed=fold) if target else tone(0.5, 44_100, hertz=300 + 20 * fold)
        write(tmp_path / "ESC-50" / "audio" / name, sound, 44_100)
    assert follow("esc50", *QUICK) == ["recipes/esc50/prepare.py", "probe", "finetune"]
    about = json.loads((tmp_path / "build" / "esc50" / "iter3" / "validation.json").read_text("utf-8"))
    assert about["held_out"] == "5 folds as given"
    assert about["figures"]["accuracy"] >= 0.75  # a tone or noise, which the head that training begins with tells apart


def test_the_commands_of_audioset_run(tmp_path, follow, run):
    random = np.random.default_rng(0)
    kinds = {"/m/09x0r": tone(0.5), "/m/04rlf": noise(0.5), "/t/dd00088": tone(0.5, hertz=2_000)}
    head = "# Segments csv created\n# num_ytids=9\n# YTID, start_seconds, end_seconds, positive_labels\n"
    for name, clips in (("balanced_train", 8), ("unbalanced_train", 8), ("eval", 6)):
        lines = []
        for number in range(clips):
            labels = [label for label in kinds if random.random() < 0.5] or ["/m/09x0r"]
            video = f"{name[0]}-_{number:08d}"
            write(tmp_path / "CLIPS" / name / f"Y{video}.wav", sum(kinds[label] for label in labels))
            lines.append(f'{video}, 30.000, 40.000, "{",".join(labels)}"\n')
        (tmp_path / f"{name}_segments.csv").write_text(
            head + "".join(lines) + 'gone-gone-g, 0.000, 10.000, "/m/04rlf"\n'
        )
    done = follow("audioset", *QUICK)
    assert done == ["recipes/audioset/prepare.py"] * 2 + ["finetune"] * 2 + ["evaluate", "convert"]
    made = tmp_path / "build" / "audioset"
    figures = json.loads((made / "as20k" / "evaluation" / "metrics.json").read_text("utf-8"))
    assert {"mAP", "d_prime", "lwlrap"} <= figures["metrics"].keys()
    assert len(figures["classes"]) == len(kinds)
    assert torchbeats.load(made / "as2m" / "model.safetensors").label_dict == dict(enumerate(sorted(kinds)))
    status, said, _ = run("tag", tmp_path / "CLIPS" / "eval" / "Ye-_00000000.wav", "--model", made / "as20k.pt")
    assert (status, "Speech" in said) == (0, True)  # the name of /m/09x0r


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
    status, _, error = script(*command, "--set=model.epochs=1")  # figures of other settings are no figures of these
    assert (status, "made otherwise" in error) == (1, True)


@pytest.mark.slow
def test_rows_of_a_budget_are_made_one_by_one(script, tmp_path, recordings):
    audio = tmp_path / "audio"
    rows = [("path", "corpus", "licence", "label", "group", "split", "seconds")]
    for index in range(6):
        write(audio / f"{index}.wav", noise(1.5, seed=index, level=0.03 * (index + 1)))
        rows.append((f"{index}.wav", "noise", "CC0-1.0", "", str(index), "train", "1.500"))
    for name in ("train.csv", "manifest.csv"):
        with (audio / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    places = ("--audio", audio, "--fsdd", recordings, "--out", tmp_path / "out", "--results", tmp_path / "results")
    quick = [f"--set={one}" for one in tiny_run()]
    command = ("nano/budget.py", *places, "--minutes", 0.003, "--seeds", 1, *quick, "--rows")
    written = []
    for names in (("paper",), ("paper", "masks")):
        status, said, error = script(*command, *names)
        assert status == 0, error
        written.append((tmp_path / "results" / "budget.csv").read_text("utf-8"))
        assert said.count("steps\n") == 1  # the one that was not there yet
    assert written[1].startswith(written[0])
    figures = list(csv.DictReader(written[1].splitlines()))
    assert [(f["row"], f["pooling"], f["fold"]) for f in figures] == [
        (row, pooling, who)
        for row in ("paper", "masks")
        for pooling in ("statistics", "bands", "mean")
        for who in ("ada", "bob")
    ]
    assert float(figures[0]["accuracy"]) == 100  # a tone or noise
    assert all(float(f["minutes"]) > 0 for f in figures)
    assert "| masks | four masks a clip | 1 |" in said
    assert (tmp_path / "results" / "budget.png").exists()
    status, said, error = script(*command, "fresh", "teacher")
    assert status == 0, error
    assert "fresh, seed 0: 1 steps\n" in said
    assert not list((tmp_path / "out").glob("teacher-0/iteration-1/tokenizer.*"))  # nor any labels
    first, last = (torchbeats.load(tmp_path / "out" / f"{row}-0" / "model.safetensors") for row in ("fresh", "paper"))
    for name, weight in first.state_dict().items():  # they begin alike
        torch.testing.assert_close(weight, last.state_dict()[name], rtol=0, atol=0.02)
    status, _, error = script(*command, "paper", "--set=seed=1")
    assert (status, "made otherwise" in error) == (1, True)


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


def test_everyday_sounds_are_fetched_and_listed_by_their_names(script, tmp_path):
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


def test_a_tagger_is_calibrated_and_evaluated(script, tmp_path):
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

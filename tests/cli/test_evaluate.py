"""`torchbeats evaluate` as people run it: its figures are scikit-learn's on the model's own scores."""

import csv
import json
import sys
import warnings
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as reference
import soundfile
import torch

import torchbeats
from helpers import noise, small_model, tone
from torchbeats import audio
from torchbeats.evaluation import plots

RATE = 16_000
CLASSES = ["low", "high", "noise"]


def save(path, labels, problem_type):
    model = small_model(finetuned_model=True, predictor_class=len(labels), problem_type=problem_type)
    model.label_dict = dict(enumerate(labels))
    with torch.no_grad():  # no shared favourite
        model.predictor.weight.mul_(20)
    torchbeats.save(model, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def single(folder):
    return save(folder / "single.safetensors", CLASSES, "single_label")


@pytest.fixture(scope="module")
def multi(folder):
    """AudioSet's ids of Speech, Music and Silence, and one class that is no id."""
    return save(folder / "multi.safetensors", ["/m/09x0r", "/m/04rlf", "/m/028v0c", "click"], "multi_label")


@pytest.fixture(scope="module")
def sounds(folder):
    data = folder / "data"
    for seed in range(4):
        for name in CLASSES:
            (data / name).mkdir(parents=True, exist_ok=True)
            pitch = {"low": 200.0, "high": 2000.0}.get(name)
            seconds = 0.4 + 0.2 * seed
            wav = noise(seconds, seed=seed) if pitch is None else tone(seconds, hertz=pitch + 50 * seed)
            soundfile.write(data / name / f"{seed}.wav", wav, RATE)
    return data


@pytest.fixture
def run(run, monkeypatch):
    """Run this command: its exit status, and what it wrote to standard output and error."""
    monkeypatch.setenv("COLUMNS", "200")
    return partial(run, "evaluate")


def test_single_label_folders(run, single, sounds, tmp_path):
    pytest.importorskip("matplotlib")
    status, out, err = run(sounds, "-m", single, "-o", tmp_path / "out")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found == json.loads((tmp_path / "out/metrics.json").read_text("utf-8"))
    table = pq.read_table(tmp_path / "out/scores.parquet")
    assert json.loads(table.schema.metadata[b"torchbeats"])["classes"] == CLASSES
    scores, labels = np.stack(table["scores"].to_numpy()), [one for (one,) in table["labels"].to_pylist()]
    model = torchbeats.load(single)
    for path, row in zip(table["path"].to_pylist(), scores, strict=True):
        alone = model(torch.from_numpy(audio.load(path))[None])[1][0].numpy()
        np.testing.assert_allclose(row, alone, atol=1e-5)
    truth, predicted = np.array([CLASSES.index(label) for label in labels]), scores.argmax(1)
    metrics = found["metrics"]
    assert metrics["accuracy"] == pytest.approx(reference.accuracy_score(truth, predicted))
    assert metrics["macro_f1"] == pytest.approx(reference.f1_score(truth, predicted, average="macro"))
    assert metrics["mAP"] == pytest.approx(reference.average_precision_score(np.eye(3)[truth], scores))
    assert found["confusion"] == reference.confusion_matrix(truth, predicted, labels=range(3)).tolist()
    assert found["examples"] == 12
    assert found["failed"] == found["absent"] == []
    with (tmp_path / "out/classes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["examples"]) for row in rows] == [(name, "4") for name in CLASSES]
    assert (tmp_path / "out/confusion.png").read_bytes().startswith(b"\x89PNG")


def test_views(run, single, sounds, tmp_path):
    status, out, _ = run(sounds, "-m", single, "-o", tmp_path / "out", "--views", 3)
    assert status == 0
    assert json.loads(out)["views"] == 3
    table = pq.read_table(tmp_path / "out/scores.parquet")
    assert json.loads(table.schema.metadata[b"torchbeats"])["views"] == 3
    for path, row in zip(table["path"].to_pylist(), table["scores"].to_pylist(), strict=True):
        (tags,) = torchbeats.tag(path, str(single), top=3, views=3)
        assert dict(zip(CLASSES, row, strict=True)) == pytest.approx(dict(tags.labels), abs=1e-5)


def test_multi_label_list(run, multi, sounds, tmp_path):
    """Ids and names for the same classes, a piece of a file, a file of many windows, a class without examples."""
    (sounds / "long.wav").write_bytes(b"")
    soundfile.write(sounds / "long.wav", noise(2.5), RATE)
    rows = [
        ("low/0.wav", "/m/09x0r", "", "", "test"),
        ("low/1.wav", "Speech;Music", "", "", "test"),
        ("long.wav", "Music", "", "", "test"),
        ("long.wav", "click;/m/09x0r", "1.2", "2", "test"),
        ("high/1.wav", "", "", "", "test"),
        ("high/2.wav", "click", "", "", "train"),
    ]
    (sounds / "list.csv").write_text("path,labels,start,end,split\n" + "".join(",".join(row) + "\n" for row in rows))
    given = (sounds / "list.csv", "-m", multi, "--split", "test", "--window", "1", "-o", tmp_path)
    (tmp_path / "confusion.png").touch()
    status, _, err = run(*given)
    assert (status, err) == (2, f"Error: {tmp_path / 'confusion.png'} exists; use --overwrite to replace it.")
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]
    given = (*given, "--overwrite")
    status, out, err = run(*given)
    assert status == 0
    assert err == "Note: 1 of 4 classes have no examples; means over classes leave them out."
    found = json.loads(out)
    assert found["absent"] == ["Silence"]
    assert found["confusion"] is None
    assert not (tmp_path / "confusion.png").exists()
    table = pq.read_table(tmp_path / "scores.parquet")
    scores = np.stack(table["scores"].to_numpy())
    model, wav = torchbeats.load(multi), torch.from_numpy(audio.load(sounds / "long.wav"))
    windows = [wav[:16_000], wav[16_000:32_000], wav[32_000:]]
    mean = torch.cat([model(window[None])[1] for window in windows]).mean(0)
    np.testing.assert_allclose(scores[2], mean.numpy(), atol=1e-5)
    piece = model(wav[None, 19_200:32_000])[1][0]
    np.testing.assert_allclose(scores[3], piece.numpy(), atol=1e-5)
    names = ["Speech", "Music", "Silence", "click"]
    truth = np.array([[label in row for label in names] for row in table["labels"].to_pylist()])
    assert truth.sum(0).tolist() == [3, 2, 0, 1]
    there = truth.any(0)
    metrics = found["metrics"]
    assert metrics["mAP"] == pytest.approx(reference.average_precision_score(truth[:, there], scores[:, there]))
    assert metrics["auc"] == pytest.approx(reference.roc_auc_score(truth[:, there], scores[:, there]))
    wanted = reference.label_ranking_average_precision_score(truth, scores, sample_weight=truth.sum(1))
    assert metrics["lwlrap"] == pytest.approx(wanted)
    assert found["classes"][2]["ap"] is None


def test_bad_files_are_named_and_left_out(run, single, sounds, tmp_path):
    (tmp_path / "text.wav").write_text("not a sound\n" * 100)
    good = sounds / "low/0.wav"
    rows = f"path,label\n{good},low\ntext.wav,high\ngone.wav,high\n{sounds / 'high/0.wav'},high\n"
    (tmp_path / "list.csv").write_text(rows)
    status, out, err = run(tmp_path / "list.csv", "-m", single)
    assert status == 1
    found = json.loads(out)
    assert found["examples"] == 2
    assert [entry["path"] for entry in found["failed"]] == [str(tmp_path / "text.wav"), str(tmp_path / "gone.wav")]
    assert "Skipped: " + str(tmp_path / "gone.wav") in err
    assert "2 of 4 sounds could not be used" in err


def test_none_that_can_be_read(run, single, tmp_path):
    (tmp_path / "low").mkdir()
    (tmp_path / "low/a.wav").write_text("not a sound")
    status, out, err = run(tmp_path, "-m", single)
    assert (status, out) == (2, "")
    assert "Not one of the 1 sounds can be read." in err


def test_table(run, single, sounds):
    status, out, _ = run(sounds, "-m", single, "--format", "table")
    assert status == 0
    for word in ("accuracy", "macro F1", "d′", "12 sounds", *CLASSES):
        assert word in out


def test_what_is_refused_before_any_sound_is_read(run, single, sounds, folder, tmp_path):
    status, _, err = run(sounds, "-m", single, "--split", "test")
    assert status == 2
    assert "There is no example in the split 'test'; no example says its split." in err
    (tmp_path / "list.csv").write_text(f"path,label\n{sounds / 'low/0.wav'},bass\n")
    status, _, err = run(tmp_path / "list.csv", "-m", single)
    assert status == 2
    assert "There is no class called 'bass'; there are 'low', 'high', 'noise'." in err
    torchbeats.save(small_model(), folder / "headless.safetensors")
    status, _, err = run(sounds, "-m", folder / "headless.safetensors")
    assert status == 2
    assert "has no label head" in err


def test_without_matplotlib(run, single, sounds, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = run(sounds, "-m", single, "-o", tmp_path)
    assert status == 0
    assert "There will be no confusion.png. This needs the package matplotlib: pip install 'torchbeats[plots]'." in err
    assert (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "confusion.png").exists()


@pytest.mark.parametrize("classes", [1, 3, 40, 120])
def test_confusion_of_any_size_and_script(tmp_path, classes):
    pytest.importorskip("matplotlib")
    names = ["鳥 $x^", "Grünspecht", "[b]", *map(str, range(classes))][:classes]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.draw_confusion(np.eye(classes, dtype=int) * 7, names, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_long_names_leave_the_confusion_its_room(tmp_path, classes):
    """What is drawn ends before the picture does, and the matrix stays large enough for its colours' words."""
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    names = [f"{number}: engine of a lorry that idles in the rain" for number in range(classes)]
    plots.draw_confusion(np.eye(classes, dtype=int) * 7, names, tmp_path / "c.png")
    picture = imread(tmp_path / "c.png")[..., :3]
    edges = (picture[0], picture[-1], picture[:, 0], picture[:, -1])
    assert all((edge == 1).all() for edge in edges)  # a word that is cut reaches the edge
    blue = (picture[..., 2] - picture[..., 0]) > 0.2  # the diagonal, and the upper half of the colours
    assert np.ptp(np.flatnonzero(blue.any(1))) > 0.8 * 100 * plots.SMALLEST


def test_no_input_is_overwritten(run, tmp_path):
    data = tmp_path / "classes.csv"
    soundfile.write(tmp_path / "a.wav", noise(0.5), 16_000)
    data.write_text("path,label\na.wav,cat\n")
    before = data.read_bytes()
    tagger = small_model(finetuned_model=True, predictor_class=1, problem_type="single_label")
    tagger.label_dict = {0: "cat"}
    torchbeats.save(tagger, tmp_path / "m.safetensors")
    status, _, err = run(data, "-m", tmp_path / "m.safetensors", "-o", tmp_path, "--overwrite")
    assert status == 2
    assert f"The output {data} is one of the inputs" in err
    assert data.read_bytes() == before

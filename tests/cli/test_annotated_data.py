"""`evaluate`, `probe`, `finetune` and `fit` take annotations of every format, and a folder of them."""

import json
from itertools import chain

import pytest

import torchbeats
from helpers import noise, small_model, tone, write_sound
from torchbeats.data.annotations.annotation import Annotation
from torchbeats.data.annotations.audacity import write_audacity
from torchbeats.data.annotations.birdnet import write_birdnet
from torchbeats.data.annotations.kaleidoscope import write_kaleidoscope
from torchbeats.data.annotations.plain import write_csv, write_jsonl
from torchbeats.data.annotations.raven import write_raven
from torchbeats.extras import is_installed

RATE = 16_000
WRITERS = {"raven.txt": write_raven, "kaleidoscope.csv": write_kaleidoscope, "birdnet.csv": write_birdnet}
WRITERS |= {"csv": write_csv, "jsonl": write_jsonl}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four recordings of 12 s: noise, with a low tone at 2 to 4 s and a high one at 7 to 9 s."""
    folder = tmp_path_factory.mktemp("annotated")
    (folder / "sounds").mkdir()
    rows = []
    for seed in range(4):
        samples = noise(12, seed=seed)
        samples[2 * RATE : 4 * RATE] += tone(2, hertz=200 + seed)
        samples[7 * RATE : 9 * RATE] += tone(2, hertz=3000 + seed)
        path = str(write_sound(folder / "sounds" / f"{seed}.wav", samples, RATE))
        rows.append([Annotation(path, 2.0, 4.0, "low"), Annotation(path, 7.0, 9.0, "high")])
    (folder / "tables").mkdir()
    for ending, write in WRITERS.items():
        (folder / "tables" / f"t.{ending}").write_text("".join(write(chain.from_iterable(rows))), "utf-8")
    (folder / "tracks").mkdir()
    for seed, own in enumerate(rows):
        (folder / "tracks" / f"{seed}.txt").write_text("".join(write_audacity(own)), "utf-8")
    model = small_model(finetuned_model=True, predictor_class=2, problem_type="multi_label")
    model.label_dict = {0: "high", 1: "low"}
    torchbeats.save(model, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("ending", [*WRITERS, "folder"])
def test_evaluate(run, folder, ending):
    data = folder / "tracks" if ending == "folder" else folder / "tables" / f"t.{ending}"
    common = ("-m", folder / "model.safetensors", "--window", 2)
    status, out, err = run("evaluate", data, *common, "--min-overlap", 0.5)
    assert status == 0, err
    found = json.loads(out)
    assert found["examples"] == 12  # 7 to 9 s is half in each of two windows
    assert {one["name"]: one["examples"] for one in found["classes"]} == {"low": 4, "high": 8}
    _, out, _ = run("evaluate", data, *common, "--fully-annotated")
    assert json.loads(out)["examples"] == 24
    _, out, _ = run("evaluate", data, *common, "--min-overlap", 0.9)
    assert {one["name"]: one["examples"] for one in json.loads(out)["classes"]} == {"low": 4, "high": 0}


def test_probe(run, folder):
    if not is_installed("sklearn"):
        pytest.skip("needs scikit-learn")
    common = ("-m", folder / "model.safetensors", "--window", 2, "--no-cache", "--folds", 2)
    status, out, err = run("probe", folder / "tracks", *common)
    assert status == 0, err
    assert json.loads(out)["classes"] == {"high": 8, "low": 4}
    status, out, _ = run("probe", folder / "tables" / "t.raven.txt", *common, "--fully-annotated")
    assert (status, json.loads(out)["examples"], json.loads(out)["problem_type"]) == (0, 24, "multi_label")


def test_fit(run, folder, tmp_path):
    if not is_installed("sklearn"):
        pytest.skip("needs scikit-learn")
    table = tmp_path / "t.parquet"
    model = folder / "model.safetensors"
    assert run("embed", folder / "sounds", "-m", model, "--window", 2, "-o", table)[0] == 0
    options = ("-m", model, "--folds", 2, "--fully-annotated", "-o", tmp_path / "head.safetensors")
    status, out, err = run("fit", table, folder / "tables" / "t.raven.txt", *options)
    assert status == 0, err
    found = {one["class"]: one["windows"] for one in json.loads(out)["by_class"]}
    assert found == {"low": 4, "high": 8}


def test_finetune(run, folder, tmp_path):
    if not is_installed("lightning"):
        pytest.skip("needs Lightning")
    settings = ("--epochs", 1, "--set", "data.seconds=2", "--set", "trainer.accelerator=cpu", "--freeze", -1)
    model = folder / "model.safetensors"
    status, _, err = run("finetune", folder / "tracks", "-m", model, "-o", tmp_path / "run", *settings)
    assert status == 0, err
    assert list(torchbeats.load(tmp_path / "run" / "model.safetensors").labels) == ["high", "low"]


def test_a_column_and_a_folder_that_are_named(run, folder, tmp_path):
    table = tmp_path / "elsewhere" / "0.txt"
    table.parent.mkdir()
    table.write_text("Selection\tView\tBegin Time (s)\tEnd Time (s)\tCall\tSex\n1\tS\t2\t4\tlow\tm\n")
    common = ("-m", folder / "model.safetensors", "--window", 2)
    status, _, err = run("evaluate", table, *common, "--sounds", folder / "sounds")
    assert status == 2
    assert "has the labels? Name it: --label-column." in err
    status, out, _ = run("evaluate", table, *common, "--sounds", folder / "sounds", "--label-column", "Call")
    assert (status, json.loads(out)["examples"]) == (0, 1)

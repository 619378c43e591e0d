"""What a model says where it does not know: by its file's threshold, in the same way wherever labels are written."""

import csv
import json

import numpy as np
import pytest
import torch

import torchbeats
from helpers import noise, small_model, tone, write_sound
from torchbeats.abstention import SETTING, UNKNOWN, Abstention, Naming, Scored, setting
from torchbeats.data.annotations.reading import read_annotations
from torchbeats.errors import ModelError
from torchbeats.extras import is_installed
from torchbeats.tagging import tags

NAMES = ["bell", "rain", "other"]


def judged(model, *rows, threshold=0.0, unknown=True):
    naming = Naming(model, unknown)
    scored = [Scored("a", i, i + 1, np.array(row, np.float32)) for i, row in enumerate(rows)]
    rows = tags(naming.judged(scored), naming.names, 5, naming.thresholds(threshold))
    return [{label: round(value, 3) for label, value in row.labels} for row in rows]


def tagger(**about):
    """A model whose windows differ: noise is likelier rain, and a tone a bell."""
    model = small_model(finetuned_model=True, predictor_class=3, problem_type="single_label")
    model.label_dict = dict(enumerate(NAMES))
    if about:
        model.cfg.update({SETTING: about})
    return model


def test_rows_below_the_threshold_have_one_label():
    model = tagger(threshold=0.5, other="other")
    rows = [[0.5, 0.3, 0.2], [0.4, 0.35, 0.25], [0.2, 0.1, 0.7], [0.0, 1.0, 0.0]]
    assert judged(model, *rows) == [{"bell": 0.5, "rain": 0.3}, {UNKNOWN: 0.6}, {UNKNOWN: 0.8}, {"rain": 1.0}]
    # The class of sounds of no class is never named; "unknown" is, whatever the smallest probability of a label.
    assert judged(model, *rows, threshold=0.7) == [{}, {UNKNOWN: 0.6}, {UNKNOWN: 0.8}, {"rain": 1.0}]
    assert judged(model, rows[1], threshold=np.array([0.9, 0.9, 0.9])) == [{UNKNOWN: 0.6}]
    # Without it the classes' own probabilities are there, all of them.
    assert judged(model, rows[1], unknown=False) == [{"bell": 0.4, "rain": 0.35, "other": 0.25}]


def test_files_that_ask_for_nothing_are_as_they_were():
    assert Abstention.of(tagger()) is None
    assert judged(tagger(), [0.2, 0.1, 0.7]) == [{"other": 0.7, "bell": 0.2, "rain": 0.1}]
    named = tagger(threshold=0.9)
    named.label_dict[2] = UNKNOWN  # it has learnt what that is
    assert judged(named, [0.2, 0.1, 0.7]) == [{UNKNOWN: 0.7, "bell": 0.2, "rain": 0.1}]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (0.5, "it is 0.5"),
        ({"other": "other"}, "needs a threshold from 0 to 1"),
        ({"threshold": "0.5"}, "needs a threshold from 0 to 1"),
        ({"threshold": True}, "needs a threshold from 0 to 1"),
        ({"threshold": float("nan")}, "needs a threshold from 0 to 1"),
        ({"threshold": 0.5, "other": 3}, "may name a class as other"),
        ({"threshold": 0.5, "other": "dog"}, "names the class 'dog', which the model does not have"),
    ],
)
def test_a_setting_that_makes_no_sense_is_said(stored, message):
    model = tagger()
    model.cfg.update({SETTING: stored})
    with pytest.raises(ModelError, match=message):
        Naming(model)
    Naming(model, unknown=False)  # nothing is asked of it


def test_a_model_of_no_known_class_is_said():
    model = small_model(finetuned_model=True, predictor_class=1, problem_type="single_label")
    model.label_dict = {0: "other"}
    model.cfg.update({SETTING: {"threshold": 0.5, "other": "other"}})
    with pytest.raises(ModelError, match="leaves no known class: 'other' is the only one"):
        Naming(model)


def test_one_in_twenty_held_out_sounds_is_a_false_alarm():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([3, 1, 1], 1000).astype(np.float32)
    for other in (None, "other"):
        about = setting(probabilities, NAMES, other)
        familiarity = Abstention(about["threshold"], other).familiarity(probabilities, NAMES)
        assert 0.045 <= (familiarity < about["threshold"]).mean() <= 0.05
        assert about["false_alarms"] == pytest.approx((familiarity < about["threshold"]).mean(), abs=0.002)
    certain = setting(np.tile(np.eye(3, dtype=np.float32)[0], (20, 1)), NAMES)
    assert certain["false_alarms"] == 0  # a threshold that all reach


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    samples = noise(6.0)
    samples[2 * 16_000 : 4 * 16_000] = tone(2)
    write_sound(folder / "a.wav", samples, 16_000)
    return folder


@pytest.fixture(scope="module")
def saved(sounds, tmp_path_factory):
    """A file with a threshold that some of the six seconds reach, and some do not."""
    model = tagger()
    with torch.no_grad():
        model.predictor.weight.mul_(10)
    raw = [max(p for _, p in row.labels) for row in torchbeats.tag(sounds, model, every=1.0)]
    assert max(raw) - min(raw) > 0.01
    model.cfg.update({SETTING: {"threshold": (max(raw) + min(raw)) / 2}})
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    torchbeats.save(model, path)
    return path


def test_all_outputs_call_the_same_seconds_unknown(run, saved, sounds, tmp_path):
    rows = list(torchbeats.tag(sounds, saved, every=1.0))
    unknown = [row.start for row in rows if row.labels[0][0] == UNKNOWN]
    assert 0 < len(unknown) < 6
    assert all(len(row.labels) == 1 for row in rows if row.start in unknown)
    table = torchbeats.Tagger(saved, every=1.0)({"path": [str(sounds / "a.wav")]})
    assert [
        start for start, labels in zip(table["start"], table["labels"], strict=True) if labels == [UNKNOWN]
    ] == unknown
    tagged = ("tag", sounds / "a.wav", "-m", saved, "--every", 1)
    lines = [json.loads(line) for line in run(*tagged)[1].splitlines()]
    assert [row["start"] for row in lines if row["labels"][0]["label"] == UNKNOWN] == unknown
    assert run(*tagged, "--format", "table")[1].count(UNKNOWN) == len(unknown)
    assert run(*tagged, "--format", "csv")[1].count(UNKNOWN) == len(unknown)
    assert run(*tagged, "-o", tmp_path / "e.raven.txt", "--events")[0] == 0
    stretches = [one for one in read_annotations(tmp_path / "e.raven.txt") if one.label == UNKNOWN]
    assert sum(one.end - one.start for one in stretches) == pytest.approx(len(unknown), abs=0.01)
    if is_installed("matplotlib"):
        assert run(*tagged, "-o", tmp_path / "p.png")[0] == 0
    _, out, _ = run(*tagged, "--no-unknown", "--format", "csv")
    assert {row["label"] for row in csv.DictReader(out.splitlines())} == set(NAMES)
    raw = list(torchbeats.tag(sounds, saved, every=1.0, unknown=False))
    assert all(len(row.labels) == 3 for row in raw)
    threshold = torchbeats.load(saved).cfg.abstention["threshold"]
    assert [row.start for row in raw if max(p for _, p in row.labels) < threshold] == unknown


def test_a_file_says_when_and_an_exported_one_too(run, saved, sounds, tmp_path):
    status, out, _ = run("show", saved, "--format", "json")
    assert (status, json.loads(out)["config"][SETTING]) == (0, torchbeats.load(saved).cfg.abstention)
    if not is_installed("onnxruntime"):
        pytest.skip("needs onnxruntime")
    torchbeats.export(torchbeats.load(saved), tmp_path / "m.onnx")
    exported = [row.labels[0][0] for row in torchbeats.tag(sounds, tmp_path / "m.onnx", every=1.0)]
    assert exported == [row.labels[0][0] for row in torchbeats.tag(sounds, saved, every=1.0)]
